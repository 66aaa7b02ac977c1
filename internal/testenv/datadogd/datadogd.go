// Package datadogd is what tests need of Datadog: an intake that takes logs by
// the rules of its Logs API v2, and the search that finds them again. It keeps
// what it took as it came, except where the real one does not.
package datadogd

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of the Logs API v2.
const (
	MaxPayload = 5_000_000
	MaxEntries = 1000
	MaxEntry   = 1_000_000
	MaxAge     = 18 * time.Hour
	maxPage    = 1000
)

// Log is one entry as it was taken.
type Log struct {
	ID        string // of Datadog's own
	Raw       json.RawMessage
	Fields    map[string]json.RawMessage
	Date      time.Time
	Tags      []string
	Truncated bool
}

// EventID is the attribute by which Gatebook names a record.
func (l *Log) EventID() string { return l.text("event_id") }

func (l *Log) text(key string) (s string) { _ = json.Unmarshal(l.Fields[key], &s); return s }

// Server is one account. Fields other than the keys may be read under Logs and
// Dropped only. It is safe for concurrent use.
type Server struct {
	now func() time.Time

	mu      sync.Mutex
	keys    map[string]bool // guarded by mu; API keys
	apps    map[string]bool // guarded by mu; application keys
	logs    []Log           // guarded by mu
	dropped int             // guarded by mu; entries taken with 202 and thrown away for their date
	warn    string          // guarded by mu; a warning with every search
	page    int             // guarded by mu; most logs of a page
}

// New makes an account with one key of each kind.
func New(key, app string) *Server {
	return &Server{now: time.Now, keys: map[string]bool{key: true}, apps: map[string]bool{app: true}, page: maxPage}
}

// SetKey replaces the API keys by one.
func (s *Server) SetKey(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = map[string]bool{key: true}
}

// SetPage bounds pages, so that a test needs few logs for many of them.
func (s *Server) SetPage(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.page = n
}

// Warn lets searches say that they are incomplete.
func (s *Server) Warn(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warn = text
}

// Logs are what was taken and kept.
func (s *Server) Logs() []Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.logs)
}

// Dropped is how many entries were too old.
func (s *Server) Dropped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Method + " " + r.URL.Path {
	case "POST /api/v2/logs":
		s.intake(w, r)
	case "POST /api/v2/logs/events/search":
		s.search(w, r)
	case "GET /api/v1/validate":
		if s.keys[r.Header.Get("DD-API-KEY")] {
			say(w, http.StatusOK, `{"valid":true}`)
		} else {
			say(w, http.StatusForbidden, `{"errors":["Forbidden"]}`)
		}
	default:
		say(w, http.StatusNotFound, `{"errors":["Not Found"]}`)
	}
}

func say(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func refuse(w http.ResponseWriter, status int, title string) {
	b, _ := json.Marshal(map[string]any{"errors": []map[string]string{{"status": strconv.Itoa(status), "title": title}}})
	say(w, status, string(b))
}

var errLong = errors.New("too long")

// payload decodes a body up to the bound, and one byte.
func payload(r *http.Request) ([]byte, error) {
	var body io.Reader = r.Body
	var err error
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		body, err = gzip.NewReader(body)
	case "deflate":
		body, err = zlib.NewReader(body)
	default:
		err = errors.New("unknown encoding")
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(body, MaxPayload+1))
	if len(b) > MaxPayload {
		return nil, errLong
	}
	return b, err
}

func (s *Server) intake(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("DD-API-KEY")
	switch {
	case key == "":
		refuse(w, http.StatusUnauthorized, "Unauthorized")
		return
	case !s.keys[key]:
		refuse(w, http.StatusForbidden, "Forbidden")
		return
	}
	b, err := payload(r)
	if errors.Is(err, errLong) {
		refuse(w, http.StatusRequestEntityTooLarge, "Payload too large")
		return
	}
	var entries []json.RawMessage
	if b = bytes.TrimSpace(b); err == nil && len(b) > 0 && b[0] == '{' {
		b = append(append([]byte{'['}, b...), ']')
	}
	if err != nil || json.Unmarshal(b, &entries) != nil || len(entries) > MaxEntries {
		refuse(w, http.StatusBadRequest, "Invalid payload")
		return
	}
	logs := make([]Log, 0, len(entries))
	for _, e := range entries {
		l := Log{Raw: slices.Clone(e)}
		if json.Unmarshal(e, &l.Fields) != nil || l.Fields == nil {
			refuse(w, http.StatusBadRequest, "Invalid log")
			return
		}
		logs = append(logs, l)
	}
	for _, l := range logs {
		s.take(l)
	}
	say(w, http.StatusAccepted, `{}`)
}

// take keeps an entry, or does with it what Datadog does without a word.
func (s *Server) take(l Log) {
	now := s.now()
	l.Date = now
	var ms int64
	var text string
	switch raw := l.Fields["timestamp"]; {
	case json.Unmarshal(raw, &ms) == nil:
		l.Date = time.UnixMilli(ms)
	case json.Unmarshal(raw, &text) == nil:
		if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
			l.Date = t
		}
	}
	if now.Sub(l.Date) > MaxAge {
		s.dropped++
		return
	}
	for tag := range strings.SplitSeq(l.text("ddtags"), ",") {
		if tag = strings.TrimSpace(tag); tag != "" {
			l.Tags = append(l.Tags, tag)
		}
	}
	if len(l.Raw) > MaxEntry {
		// What is left is no JSON any more: its attributes are gone.
		l.Raw, l.Fields, l.Truncated = l.Raw[:MaxEntry], nil, true
	}
	l.ID = "AQAAAY" + strconv.Itoa(len(s.logs))
	s.logs = append(s.logs, l)
}

// question is what a search asks.
type question struct {
	Filter struct {
		Query   string   `json:"query"`
		From    string   `json:"from"`
		To      string   `json:"to"`
		Indexes []string `json:"indexes"`
	} `json:"filter"`
	Sort string `json:"sort"`
	Page struct {
		Cursor string `json:"cursor"`
		Limit  int    `json:"limit"`
	} `json:"page"`
}

func (s *Server) search(w http.ResponseWriter, r *http.Request) {
	if !s.keys[r.Header.Get("DD-API-KEY")] || !s.apps[r.Header.Get("DD-APPLICATION-KEY")] {
		refuse(w, http.StatusForbidden, "Forbidden")
		return
	}
	var q question
	b, err := payload(r)
	if err != nil || json.Unmarshal(b, &q) != nil || q.Page.Limit > maxPage {
		refuse(w, http.StatusBadRequest, "Invalid query")
		return
	}
	from, okFrom := s.moment(q.Filter.From, s.now().Add(-15*time.Minute))
	to, okTo := s.moment(q.Filter.To, s.now())
	start := 0
	if q.Page.Cursor != "" {
		c, err := base64.RawURLEncoding.DecodeString(q.Page.Cursor)
		if err == nil {
			start, err = strconv.Atoi(string(c))
		}
		okFrom = okFrom && err == nil
	}
	if !okFrom || !okTo {
		refuse(w, http.StatusBadRequest, "Invalid time or cursor")
		return
	}
	if q.Page.Limit == 0 {
		q.Page.Limit = 10
	}
	found := s.find(q, from, to)
	rest := found[min(start, len(found)):]
	n := min(q.Page.Limit, s.page, len(rest))
	s.tell(w, rest[:n], start+n, n < len(rest))
}

// find filters by words of the form tag and -tag, all of which must hold, and *.
func (s *Server) find(q question, from, to time.Time) (found []Log) {
	for _, l := range s.logs {
		ok := !l.Date.Before(from) && !l.Date.After(to)
		for word := range strings.FieldsSeq(q.Filter.Query) {
			tag, not := strings.CutPrefix(word, "-")
			key, value, _ := strings.Cut(tag, ":")
			has := slices.Contains(l.Tags, tag) || key == "service" && l.text("service") == value || key == "source" && l.text("ddsource") == value
			ok = ok && (word == "*" || has != not)
		}
		if ok {
			found = append(found, l)
		}
	}
	slices.SortStableFunc(found, func(a, b Log) int { return a.Date.Compare(b.Date) })
	if strings.HasPrefix(q.Sort, "-") {
		slices.Reverse(found)
	}
	return found
}

func (s *Server) tell(w http.ResponseWriter, logs []Log, next int, more bool) {
	type object map[string]any
	data := []object{}
	for _, l := range logs {
		own := object{}
		for k, v := range l.Fields {
			if !slices.Contains([]string{"ddsource", "ddtags", "hostname", "service", "message", "status", "timestamp"}, k) {
				own[k] = v
			}
		}
		data = append(data, object{"id": l.ID, "type": "log", "attributes": object{
			"attributes": own, "host": l.text("hostname"), "message": l.text("message"), "service": l.text("service"),
			"status": l.text("status"), "tags": append([]string{"source:" + l.text("ddsource")}, l.Tags...), "timestamp": l.Date.UTC().Format(time.RFC3339Nano),
		}})
	}
	meta := object{"status": "done", "elapsed": 1, "request_id": "r"}
	if more {
		meta["page"] = object{"after": base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(next)))}
	}
	if s.warn != "" {
		meta["warnings"] = []object{{"code": "unknown_index", "title": s.warn, "detail": s.warn}}
	}
	b, err := json.Marshal(object{"data": data, "meta": meta})
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	say(w, http.StatusOK, string(b))
}

// moment reads milliseconds, an ISO date, or now with a distance.
func (s *Server) moment(v string, unset time.Time) (time.Time, bool) {
	if v == "" {
		return unset, true
	}
	if ms, err := strconv.ParseInt(v, 10, 64); err == nil {
		return time.UnixMilli(ms), true
	}
	if rest, ok := strings.CutPrefix(v, "now"); ok {
		if rest == "" {
			return s.now(), true
		}
		d, err := time.ParseDuration(rest)
		return s.now().Add(d), err == nil
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	return t, err == nil
}
