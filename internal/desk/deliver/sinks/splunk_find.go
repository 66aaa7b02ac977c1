package sinks

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// splunkFinder is a Splunk that can be asked.
type splunkFinder struct{ *Splunk }

// splunkSearchClient asks a search head.
type splunkSearchClient struct {
	client            requester
	token             *Credential
	index, sourcetype string
}

const (
	splunkExport = "/services/search/jobs/export"
	// splunkPage is how many indexes are asked for at once: what is said of them
	// fits into what is read of an answer.
	splunkPage = 20000
	// splunkCopies bounds what is believed of the events of one answer.
	splunkCopies = 1 << 20
)

func newSplunkSearch(set SplunkSearch, index, sourcetype string) (*splunkSearchClient, error) {
	reach := set.Settings
	reach.Gzip, reach.Jar = false, false
	reach.Timeout = cmp.Or(reach.Timeout, 5*time.Minute)
	client, err := NewClient(reach)
	if err != nil {
		return nil, err
	}
	if set.Token == nil {
		return nil, errors.New("there is no token")
	}
	return &splunkSearchClient{client: client, token: set.Token, index: index, sourcetype: sourcetype}, nil
}

// Find implements deliver.Finder. It counts by the indexed field alone, so no
// event is read for it.
func (f *splunkFinder) Find(ctx context.Context, w deliver.Window, fn func(id string) error) error {
	for from, page := w.From, uint64(splunkPage); from < w.To; {
		to := w.To
		if w.To-from > page {
			to = from + page
		}
		a, err := f.search.ask(ctx, w, from, to)
		if err != nil {
			return fmt.Errorf("splunk: search: %s", f.detail(err.Error()))
		}
		if a.Cut && page > 1 {
			page /= 2
			continue
		}
		if a.Status != http.StatusOK || a.Cut {
			return fmt.Errorf("splunk: search: %s", f.detail(f.search.refused(a)))
		}
		if err := splunkRows(a.Body, fn); err != nil {
			return fmt.Errorf("splunk: search: %w", err)
		}
		from = to
	}
	return nil
}

// ask searches for a page. After a 401 the credential is read again, once.
func (c *splunkSearchClient) ask(ctx context.Context, w deliver.Window, from, to uint64) (*Answer, error) {
	body := []byte(c.form(w, from, to).Encode())
	for try := 0; ; try++ {
		h := http.Header{"Authorization": {"Bearer " + c.token.Get()}, "Content-Type": {"application/x-www-form-urlencoded"}}
		a, err := c.client.Do(ctx, http.MethodPost, splunkExport, h, body)
		if err != nil || a.Status != http.StatusUnauthorized || try > 0 {
			return a, err
		}
		if changed, err := c.token.Renew(); err != nil || !changed {
			return a, err
		}
	}
}

func (c *splunkSearchClient) form(w deliver.Window, from, to uint64) url.Values {
	hash, _, _ := strings.Cut(deliver.EventID(w.Origin, 0), "-")
	search := `| tstats count where index="` + c.index + `" sourcetype="` + c.sourcetype + `" event_id="` + hash + `-*" by event_id` +
		` | eval n=tonumber(mvindex(split(event_id,"-"),1)) | where n>=` + strconv.FormatUint(from, 10) + ` AND n<` + strconv.FormatUint(to, 10) +
		` | fields event_id count`
	return url.Values{
		"search":      {search},
		"output_mode": {"json"},
		"preview":     {"false"},
		// The latest time is not part of what is searched.
		"earliest_time": {string(splunkTime(nil, w.Since))},
		"latest_time":   {string(splunkTime(nil, w.Until.Add(time.Second)))},
	}
}

func (c *splunkSearchClient) refused(a *Answer) string {
	text := excerpt(a.Body, c.token.Get())
	switch {
	case a.Cut:
		return "an answer about one event is longer than what is read of an answer"
	case a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden:
		return fmt.Sprintf("%d: the credential may not search; give the token of a user with the search capability on this index: %s", a.Status, text)
	}
	return fmt.Sprintf("%d: %s", a.Status, text)
}

// splunkRows reads the lines of an export and calls fn for every copy. Lines
// that are only a preview are passed over; without a last row the answer is not
// whole.
func splunkRows(body []byte, fn func(id string) error) error {
	last, copies := false, uint64(0)
	for len(body) > 0 {
		var line []byte
		line, body, _ = bytes.Cut(body, []byte("\n"))
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var row struct {
			Preview bool `json:"preview"`
			Last    bool `json:"lastrow"`
			Result  *struct {
				ID    string `json:"event_id"`
				Count string `json:"count"`
			} `json:"result"`
			Messages []struct {
				Type string `json:"type"`
				Text string `json:"text"`
			} `json:"messages"`
		}
		if err := json.Unmarshal(line, &row); err != nil {
			return fmt.Errorf("a line of the answer is not JSON: %w", err)
		}
		for _, m := range row.Messages {
			if m.Type == "FATAL" || m.Type == "ERROR" {
				return fmt.Errorf("%s: %.200q", m.Type, m.Text)
			}
		}
		if row.Preview {
			continue
		}
		last = last || row.Last
		if row.Result == nil {
			continue
		}
		n, err := strconv.ParseUint(row.Result.Count, 10, 64)
		if copies += min(n, splunkCopies+1); err != nil || copies > splunkCopies || row.Result.ID == "" {
			return fmt.Errorf("a row of the answer is not an id and how often it is there: %.200q", line)
		}
		for range n {
			if err := fn(row.Result.ID); err != nil {
				return err
			}
		}
	}
	if !last {
		return errors.New("the answer ended before its last row")
	}
	return nil
}
