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
	total, hits := 0, []any{}
	for _, ix := range ixs {
		for _, d := range ix.docs {
			ok, err := matches(q.Query, d)
			if err != nil {
				return 0, nil, fail(400, "parsing_exception", err.Error())
			}
			if !ok {
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

func matches(raw json.RawMessage, d Doc) (bool, error) {
	if raw == nil {
		return true, nil
	}
	var q map[string]json.RawMessage
	if err := json.Unmarshal(raw, &q); err != nil || len(q) != 1 {
		return false, errors.New("[query] malformed, one clause expected")
	}
	for kind, arg := range q {
		switch kind {
		case "match_all":
			return true, nil
		case "ids":
			var ids struct{ Values []string }
			err := json.Unmarshal(arg, &ids)
			return slices.Contains(ids.Values, d.ID), err
		case "term":
			var term map[string]any
			if err := json.Unmarshal(arg, &term); err != nil || len(term) != 1 {
				return false, errors.New("[term] malformed")
			}
			for path, want := range term {
				return fmt.Sprint(lookup(d.Source, path)) == fmt.Sprint(want), nil
			}
		case "range":
			return inRange(arg, d)
		case "bool":
			return both(arg, d)
		}
		return false, fmt.Errorf("unknown query [%s]", kind)
	}
	return false, nil
}

func both(arg json.RawMessage, d Doc) (bool, error) {
	var clauses map[string][]json.RawMessage
	if err := json.Unmarshal(arg, &clauses); err != nil {
		return false, err
	}
	for kind, list := range clauses {
		if kind != "filter" && kind != "must" && kind != "must_not" {
			return false, fmt.Errorf("[bool] query does not support [%s]", kind)
		}
		for _, c := range list {
			ok, err := matches(c, d)
			if err != nil {
				return false, err
			}
			if ok == (kind == "must_not") {
				return false, nil
			}
		}
	}
	return true, nil
}

// inRange compares times of RFC 3339.
func inRange(arg json.RawMessage, d Doc) (bool, error) {
	var bounds map[string]map[string]string
	if err := json.Unmarshal(arg, &bounds); err != nil {
		return false, err
	}
	for path, b := range bounds {
		text, _ := lookup(d.Source, path).(string)
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return false, nil
		}
		for op, limit := range b {
			l, err := time.Parse(time.RFC3339Nano, limit)
			if err != nil {
				return false, err
			}
			c := at.Compare(l)
			switch op {
			case "gte":
				if c < 0 {
					return false, nil
				}
			case "gt":
				if c <= 0 {
					return false, nil
				}
			case "lte":
				if c > 0 {
					return false, nil
				}
			case "lt":
				if c >= 0 {
					return false, nil
				}
			default:
				return false, fmt.Errorf("[range] query does not support [%s]", op)
			}
		}
	}
	return true, nil
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
