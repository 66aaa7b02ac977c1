package bulkd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// search answers a search. It knows the queries ids, range, term, exists, match_all and
// bool with filter, must and must_not, size up to 10,000, and refuses the rest.
func (s *Server) search(name string, body []byte) (int, any, error) {
	var q struct {
		Query          json.RawMessage `json:"query"`
		Size           *int            `json:"size"`
		Source         any             `json:"_source"`
		TrackTotalHits any             `json:"track_total_hits"`
		Sort           any             `json:"sort"`
		Timeout        string          `json:"timeout"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		return 0, nil, fail(400, "parsing_exception", err.Error())
	}
	size := 10
	if q.Size != nil {
		size = *q.Size
	}
	if size > 10000 {
		return 0, nil, fail(400, "illegal_argument_exception", "Result window is too large, from + size must be less than or equal to: [10000] but was ["+strconv.Itoa(size)+"]")
	}
	ixs := s.store.search(name)
	if len(ixs) == 0 && !strings.Contains(name, "*") {
		return 0, nil, fail(404, "index_not_found_exception", "no such index ["+name+"]")
	}
	wanted, err := compile(q.Query)
	if err != nil {
		return 0, nil, fail(400, "parsing_exception", err.Error())
	}
	total, hits := 0, []any{}
	for _, ix := range ixs {
		for _, d := range ix.docs {
			if !wanted(d) {
				continue
			}
			total++
			if len(hits) < size {
				hit := map[string]any{"_index": d.Index, "_id": d.ID, "_score": 1.0}
				if q.Source != false {
					hit["_source"] = json.RawMessage(d.Source)
				}
				hits = append(hits, hit)
			}
		}
	}
	relation := "eq"
	if q.TrackTotalHits != true && total > 10000 {
		total, relation = 10000, "gte"
	}
	return 200, map[string]any{
		"took": 2, "timed_out": false,
		"_shards": map[string]any{"total": len(ixs), "successful": len(ixs), "skipped": 0, "failed": 0},
		"hits":    map[string]any{"total": map[string]any{"value": total, "relation": relation}, "max_score": 1.0, "hits": hits},
	}, nil
}

// query is one that was read.
type query func(d Doc) bool

func compile(raw json.RawMessage) (query, error) {
	if raw == nil {
		return func(Doc) bool { return true }, nil
	}
	var q map[string]json.RawMessage
	if err := json.Unmarshal(raw, &q); err != nil || len(q) != 1 {
		return nil, errors.New("[query] malformed, one clause expected")
	}
	for kind, arg := range q {
		switch kind {
		case "match_all":
			return func(Doc) bool { return true }, nil
		case "ids":
			var ids struct{ Values []string }
			if err := json.Unmarshal(arg, &ids); err != nil {
				return nil, err
			}
			wanted := map[string]bool{}
			for _, id := range ids.Values {
				wanted[id] = true
			}
			return func(d Doc) bool { return wanted[d.ID] }, nil
		case "term":
			var term map[string]any
			if err := json.Unmarshal(arg, &term); err != nil || len(term) != 1 {
				return nil, errors.New("[term] malformed")
			}
			for path, want := range term {
				return func(d Doc) bool { return fmt.Sprint(lookup(d.Source, path)) == fmt.Sprint(want) }, nil
			}
		case "range":
			return compileRange(arg)
		case "bool":
			return compileBool(arg)
		}
		return nil, fmt.Errorf("unknown query [%s]", kind)
	}
	return nil, errors.New("no query")
}

func compileBool(arg json.RawMessage) (query, error) {
	var clauses map[string][]json.RawMessage
	if err := json.Unmarshal(arg, &clauses); err != nil {
		return nil, err
	}
	var yes, no []query
	for kind, list := range clauses {
		if kind != "filter" && kind != "must" && kind != "must_not" {
			return nil, fmt.Errorf("[bool] query does not support [%s]", kind)
		}
		for _, c := range list {
			q, err := compile(c)
			if err != nil {
				return nil, err
			}
			if kind == "must_not" {
				no = append(no, q)
			} else {
				yes = append(yes, q)
			}
		}
	}
	return func(d Doc) bool {
		return !slices.ContainsFunc(yes, func(q query) bool { return !q(d) }) && !slices.ContainsFunc(no, func(q query) bool { return q(d) })
	}, nil
}

// compileRange reads bounds that are times of RFC 3339.
func compileRange(arg json.RawMessage) (query, error) {
	var bounds map[string]map[string]time.Time
	if err := json.Unmarshal(arg, &bounds); err != nil || len(bounds) != 1 {
		return nil, errors.New("[range] malformed, or its bounds are no times")
	}
	holds := map[string]func(c int) bool{
		"gte": func(c int) bool { return c >= 0 }, "gt": func(c int) bool { return c > 0 },
		"lte": func(c int) bool { return c <= 0 }, "lt": func(c int) bool { return c < 0 },
	}
	for path, b := range bounds {
		for op := range b {
			if holds[op] == nil {
				return nil, fmt.Errorf("[range] query does not support [%s]", op)
			}
		}
		return func(d Doc) bool {
			text, _ := lookup(d.Source, path).(string)
			at, err := time.Parse(time.RFC3339Nano, text)
			for op, limit := range b {
				if err != nil || !holds[op](at.Compare(limit)) {
					return false
				}
			}
			return true
		}, nil
	}
	return nil, errors.New("[range] malformed")
}

func lookup(source []byte, path string) any {
	var v any
	if json.Unmarshal(source, &v) != nil {
		return nil
	}
	for _, k := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[k]
	}
	return v
}
