package hecd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// query is the one search that this server understands: how often each event id
// is there, by the indexed field.
var query = regexp.MustCompile(`^\| tstats count where index="([^"]*)" sourcetype="([^"]*)" event_id="([0-9a-f]+)-\*" by event_id` +
	` \| eval n=tonumber\(mvindex\(split\(event_id,"-"\),1\)\) \| where n>=(\d+) AND n<(\d+) \| fields event_id count$`)

// export runs a search and streams its results the way that the endpoint does:
// one JSON object a line, previews among them.
func (s *Server) export(r *http.Request, body []byte) (int, any) {
	s.mu.Lock()
	allowed := s.Search != "" && r.Header.Get("Authorization") == "Bearer "+s.Search
	s.mu.Unlock()
	if !allowed {
		return http.StatusUnauthorized, messages("WARN", "call not properly authenticated")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("output_mode") != "json" {
		return http.StatusBadRequest, messages("FATAL", "Unparsable URI-encoded request data")
	}
	m := query.FindStringSubmatch(form.Get("search"))
	if m == nil {
		return http.StatusBadRequest, messages("FATAL", "Error in search: "+form.Get("search"))
	}
	from, _ := strconv.ParseUint(m[4], 10, 64)
	to, _ := strconv.ParseUint(m[5], 10, 64)
	earliest, err1 := strconv.ParseFloat(form.Get("earliest_time"), 64)
	latest, err2 := strconv.ParseFloat(form.Get("latest_time"), 64)
	if err1 != nil || err2 != nil {
		return http.StatusBadRequest, messages("FATAL", "Invalid earliest_time or latest_time")
	}
	found := map[string]int{}
	now := time.Now()
	s.mu.Lock()
	for _, e := range s.events {
		at, _ := e.Time.Float64()
		hash, rest, _ := strings.Cut(e.ID, "-")
		n, err := strconv.ParseUint(rest, 10, 64)
		if err == nil && !e.ready.After(now) && e.Index == m[1] && e.Sourcetype == m[2] && hash == m[3] && n >= from && n < to && at >= earliest && at < latest {
			found[e.ID]++
		}
	}
	s.mu.Unlock()
	return http.StatusOK, rows(found, form.Get("preview") != "false")
}

func messages(kind, text string) any {
	return map[string]any{"messages": []any{map[string]string{"type": kind, "text": text}}}
}

func rows(found map[string]int, previews bool) []byte {
	ids := make([]string, 0, len(found))
	for id := range found {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var b bytes.Buffer
	if previews {
		for i, id := range ids[:len(ids)/2] {
			fmt.Fprintf(&b, `{"preview":true,"offset":%d,"result":{"event_id":%q,"count":"1"}}`+"\n", i, id)
		}
	}
	for i, id := range ids {
		row := map[string]any{"preview": false, "offset": i, "result": map[string]string{"event_id": id, "count": strconv.Itoa(found[id])}}
		if i == len(ids)-1 {
			row["lastrow"] = true
		}
		line, _ := json.Marshal(row)
		b.Write(append(line, '\n'))
	}
	if len(ids) == 0 {
		b.WriteString(`{"preview":false,"lastrow":true}` + "\n")
	}
	return b.Bytes()
}
