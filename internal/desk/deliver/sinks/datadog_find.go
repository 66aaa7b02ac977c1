package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

const (
	datadogPage  = 1000 // logs of a page, at most
	datadogTries = 6    // of one page
)

// Renew implements deliver.Renewer for both keys.
func (d *datadogFinder) Renew() (bool, error) {
	api, err := d.key.Renew()
	app, appErr := d.app.Renew()
	return api || app, errors.Join(err, appErr)
}

// Find implements deliver.Finder with Datadog's log search. It asks by tag and
// time: what was on time lies in the window, what was late between its beginning
// and now. An answer that Datadog itself calls incomplete is an error. Datadog
// indexes what it took some time later, and only what its filters let through.
func (d *datadogFinder) Find(ctx context.Context, w deliver.Window, fn func(id string) error) error {
	log, _, _ := strings.Cut(deliver.EventID(w.Origin, w.From), "-")
	for _, q := range []struct {
		query string
		until time.Time
	}{
		{datadogLogTag + log + " -" + datadogLateTag, w.Until.Add(time.Second)},
		{datadogLogTag + log + " " + datadogLateTag, d.now().Add(time.Minute)},
	} {
		if err := d.search(ctx, q.query, w.Since.Add(-time.Second), q.until, fn); err != nil {
			return err
		}
	}
	return nil
}

// search pages through what a query finds.
func (d *datadogFinder) search(ctx context.Context, query string, from, until time.Time, fn func(id string) error) error {
	cursor, limit := "", datadogPage
	for {
		page, err := d.page(ctx, query, from, until, cursor, limit)
		if errors.Is(err, errPageCut) && limit > 1 {
			limit = max(limit/4, 1) // longer than what is read of one answer
			continue
		}
		if err != nil {
			return err
		}
		for _, l := range page.Data {
			if id := l.Attributes.Attributes.ID; id != "" {
				if err := fn(id); err != nil {
					return err
				}
			}
		}
		next := page.Meta.Page.After
		if next == "" {
			return nil
		}
		if next == cursor {
			return errors.New("datadog: the search does not get past a page")
		}
		cursor = next
	}
}

// datadogAnswer is what is read of a page.
type datadogAnswer struct {
	Data []struct {
		Attributes struct {
			Attributes struct {
				ID string `json:"event_id"`
			} `json:"attributes"`
		} `json:"attributes"`
	} `json:"data"`
	Meta struct {
		Status   string            `json:"status"`
		Warnings []json.RawMessage `json:"warnings"`
		Page     struct {
			After string `json:"after"`
		} `json:"page"`
	} `json:"meta"`
}

var errPageCut = errors.New("datadog: one page of the search is longer than what is read of an answer")

func (d *datadogFinder) page(ctx context.Context, query string, from, until time.Time, cursor string, limit int) (*datadogAnswer, error) {
	type object map[string]any
	page := object{"limit": limit}
	if cursor != "" {
		page["cursor"] = cursor
	}
	body, err := json.Marshal(object{
		"filter": object{"query": query, "from": strconv.FormatInt(from.UnixMilli(), 10), "to": strconv.FormatInt(until.UnixMilli(), 10)},
		"sort":   "timestamp",
		"page":   page,
	})
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		key, app := d.key.Get(), d.app.Get()
		h := http.Header{"Content-Type": {"application/json"}, "Dd-Api-Key": {key}, "Dd-Application-Key": {app}}
		a, err := d.api.Do(ctx, http.MethodPost, "/api/v2/logs/events/search", h, body)
		if err == nil && a.Status == http.StatusOK {
			return readPage(a, key, app)
		}
		var after time.Duration
		if err != nil {
			err = errors.New("datadog: the search failed (" + causeOf(err) + "): " + excerpt([]byte(err.Error()), key, app))
		} else {
			err = fmt.Errorf("datadog: the search is refused (%d): %s", a.Status, excerpt(a.Body, key, app))
			if classOf(a.Status) != deliver.Retry {
				return nil, err
			}
			after = max(retryAfter(a.Header, d.now()), rateReset(a.Header))
		}
		if try == datadogTries {
			return nil, err
		}
		if err := d.wait(ctx, max(after, time.Second<<(try-1))); err != nil {
			return nil, err
		}
	}
}

func readPage(a *Answer, secrets ...string) (*datadogAnswer, error) {
	if a.Cut {
		return nil, errPageCut
	}
	var p datadogAnswer
	if err := json.Unmarshal(a.Body, &p); err != nil {
		return nil, fmt.Errorf("datadog: the answer of the search cannot be read: %s", excerpt(a.Body, secrets...))
	}
	if p.Meta.Status != "" && p.Meta.Status != "done" || len(p.Meta.Warnings) > 0 {
		return nil, fmt.Errorf("datadog: the search is incomplete (status %q, %d warnings), so nothing can be said of what is missing", excerpt([]byte(p.Meta.Status)), len(p.Meta.Warnings))
	}
	return &p, nil
}

// rateReset reads how many seconds it takes until the search may be used again.
func rateReset(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("X-Ratelimit-Reset"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxAfter)
}

// pause waits, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
