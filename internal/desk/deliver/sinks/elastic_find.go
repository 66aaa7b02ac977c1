package sinks

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

const (
	findIDs  = 1000  // ids asked for at once
	findHits = 10000 // most hits of one answer: index.max_result_window of both products
	// findSlack is put around the times of a window, since dates are kept in
	// milliseconds.
	findSlack = time.Second
)

const findFilter = "error,status,timed_out,_shards.failed,hits.total,hits.hits._id,hits.hits._index"

// Find asks for the ids of the window, which are known, a thousand at a time, and
// calls fn for each copy in whatever backing index. So it needs neither a point in
// time, which the two products make in two ways, nor an order with ties in it, nor
// a field that a projection may lack; times only spare old backing indexes the
// question. It needs the privilege to read, of the credential Read of the settings.
//
// What has just been created is found after the next refresh of its index.
func (e *Elastic) Find(ctx context.Context, w deliver.Window, fn func(id string) error) error {
	c := e.read
	if c == nil {
		c = e.credential
	}
	for from := w.From; from < w.To; {
		to := min(from+findIDs, w.To)
		if err := e.findSome(ctx, c, w, from, to, fn); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// findSome asks for [from, to), in halves if there are too many copies for one answer.
func (e *Elastic) findSome(ctx context.Context, c *Credential, w deliver.Window, from, to uint64, fn func(id string) error) error {
	ids, err := e.search(ctx, c, w, from, to)
	if err != nil {
		return err
	}
	if ids == nil {
		if to-from == 1 {
			return fmt.Errorf("data stream %s: there are more than %d copies of the record %s", e.set.Stream, findHits, deliver.EventID(w.Origin, from))
		}
		half := from + (to-from)/2
		if err := e.findSome(ctx, c, w, from, half, fn); err != nil {
			return err
		}
		return e.findSome(ctx, c, w, half, to, fn)
	}
	for _, id := range ids {
		if err := fn(id); err != nil {
			return err
		}
	}
	return nil
}

// searchAnswer is what is read of an answer to a search.
type searchAnswer struct {
	TimedOut bool `json:"timed_out"`
	Shards   *struct {
		Failed int
	} `json:"_shards"`
	Hits struct {
		Total *struct {
			Value    int
			Relation string
		}
		Hits []struct {
			Index string `json:"_index"`
			ID    string `json:"_id"`
		}
	}
	Error *elasticError
}

// search is the ids found, never nil, unless there were more than one answer holds.
func (e *Elastic) search(ctx context.Context, c *Credential, w deliver.Window, from, to uint64) ([]string, error) {
	ids := make([]string, 0, to-from)
	for i := from; i < to; i++ {
		ids = append(ids, deliver.EventID(w.Origin, i))
	}
	filter := []any{map[string]any{"ids": map[string]any{"values": ids}}}
	if !w.Since.IsZero() && !w.Until.IsZero() {
		filter = append(filter, map[string]any{"range": map[string]any{"@timestamp": map[string]string{
			"gte": w.Since.Add(-findSlack).UTC().Format(time.RFC3339Nano), "lte": w.Until.Add(findSlack).UTC().Format(time.RFC3339Nano),
		}}})
	}
	query, err := json.Marshal(map[string]any{
		"size": findHits, "_source": false, "track_total_hits": true,
		"query": map[string]any{"bool": map[string]any{"filter": filter}},
	})
	if err != nil {
		return nil, err
	}
	header, secret, err := e.authorize(c, "application/json")
	if err != nil {
		return nil, err
	}
	path := "/" + e.set.Stream + "/_search?allow_partial_search_results=false&filter_path=" + findFilter
	a, err := e.client.Do(ctx, http.MethodPost, path, header, query)
	if err != nil {
		return nil, fmt.Errorf("data stream %s: search: %w", e.set.Stream, err)
	}
	found, err := e.found(a, secret)
	if err != nil || found != nil {
		return found, err
	}
	return nil, nil
}

// found reads an answer to a search; nil without an error: there are more.
func (e *Elastic) found(a *Answer, secret string) ([]string, error) {
	var answer searchAnswer
	readable := json.Unmarshal(a.Body, &answer) == nil && !a.Cut
	switch {
	case a.Status == http.StatusForbidden:
		return nil, fmt.Errorf("data stream %s: the credential may not search: comparing needs one with the privilege to read (403: %s)", e.set.Stream, e.reason(a, secret))
	case a.Status == http.StatusNotFound:
		return nil, fmt.Errorf("data stream %s: there is none (404)", e.set.Stream)
	case a.Status != http.StatusOK:
		return nil, fmt.Errorf("data stream %s: search: answer %d: %s", e.set.Stream, a.Status, e.reason(a, secret))
	case !readable || answer.Hits.Total == nil || answer.Shards == nil:
		return nil, fmt.Errorf("data stream %s: search: the answer cannot be read", e.set.Stream)
	case answer.TimedOut || answer.Shards.Failed > 0:
		return nil, fmt.Errorf("data stream %s: search: only a part of the shards answered; what is missing cannot be told from what was not looked at", e.set.Stream)
	case answer.Hits.Total.Value > findHits || answer.Hits.Total.Relation != "eq":
		return nil, nil
	case len(answer.Hits.Hits) != answer.Hits.Total.Value:
		return nil, fmt.Errorf("data stream %s: search: %d hits are counted and %d listed", e.set.Stream, answer.Hits.Total.Value, len(answer.Hits.Hits))
	}
	ids := make([]string, 0, len(answer.Hits.Hits))
	for _, h := range answer.Hits.Hits {
		if !strings.HasPrefix(h.Index, ".fs-") { // a failure store is not the stream
			ids = append(ids, h.ID)
		}
	}
	return ids, nil
}

// reason is what an answer that is an error says.
func (e *Elastic) reason(a *Answer, secret string) string {
	var doc struct{ Error *elasticError }
	if json.Unmarshal(a.Body, &doc) == nil && doc.Error != nil {
		return elasticDetail(doc.Error.Type, doc.Error.Reason, false, secret)
	}
	return excerpt(a.Body, secret)
}
