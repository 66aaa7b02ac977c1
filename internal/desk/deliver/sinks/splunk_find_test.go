package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/hecd"
)

func TestSplunkFind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		srv.Search = "reader"
		secret := "stale"
		token, err := NewCredential(func() (string, error) { return secret, nil })
		if err != nil {
			t.Fatal(err)
		}
		s := splunkInside(t, srv, nil)
		for i := range uint64(3) {
			if r := s.Send(t.Context(), splunkBatch(10*i, 10*i+10)); r.Class != deliver.Done {
				t.Fatalf("%+v", r)
			}
		}
		if r := s.Send(t.Context(), splunkBatch(20, 22)); r.Class != deliver.Done { // twice
			t.Fatalf("%+v", r)
		}
		s.search = &splunkSearchClient{client: inside{srv, time.Minute}, token: token, index: "audit", sourcetype: "gatebook:record"}
		f := &splunkFinder{s}
		w := deliver.Window{Origin: origin, From: 5, To: 25, Since: start.Add(5 * time.Second), Until: start.Add(24 * time.Second)}
		got := map[string]int{}
		count := func(id string) error { got[id]++; return nil }
		if err := f.Find(t.Context(), w, count); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("with a stale credential: %v", err)
		}
		secret = "reader" // it was exchanged meanwhile
		if err := f.Find(t.Context(), w, count); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(30) {
			want := 0
			if i >= 5 && i < 25 {
				want = 1
			}
			if i == 20 || i == 21 {
				want = 2
			}
			if got[deliver.EventID(origin, i)] != want {
				t.Errorf("%d was found %d times, want %d", i, got[deliver.EventID(origin, i)], want)
			}
		}
		stop := errors.New("enough")
		if err := f.Find(t.Context(), w, func(string) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("%v", err)
		}
		empty := deliver.Window{Origin: "other", From: 0, To: 50, Since: start, Until: start.Add(time.Hour)}
		if err := f.Find(t.Context(), empty, func(id string) error { return errors.New(id) }); err != nil {
			t.Errorf("nothing is there: %v", err)
		}
		for name, fault := range map[string]hecd.Fault{
			"half":    {Status: 200, Body: `{"preview":false,"offset":0,"result":{"event_id":"a-1","count":"1"}}`},
			"garbage": {Status: 200, Body: `<response>`},
			"fatal":   {Status: 200, Body: `{"messages":[{"type":"FATAL","text":"Unknown search command"}]}`},
			"busy":    {Status: 503},
			"reset":   {Reset: hecd.After},
			"count":   {Status: 200, Body: `{"preview":false,"lastrow":true,"result":{"event_id":"a-1","count":"99999999999"}}`},
		} {
			srv.Script(hecd.Export, fault)
			if err := f.Find(t.Context(), w, func(string) error { return nil }); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}

// hecSearchFake answers the same for ever, cut if it is about more than most indexes.
type hecSearchFake struct{ most uint64 }

func (f *hecSearchFake) Do(_ context.Context, _, _ string, _ http.Header, body []byte) (*Answer, error) {
	var from, to uint64
	text := string(body)
	if _, err := fmt.Sscanf(text[strings.Index(text, "n%3E%3D"):], "n%%3E%%3D%d+AND+n%%3C%d", &from, &to); err != nil {
		return nil, err
	}
	if to-from > f.most {
		return &Answer{Status: 200, Cut: true}, nil
	}
	var b bytes.Buffer
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, `{"preview":false,"lastrow":%t,"result":{"event_id":"h-%d","count":"1"}}`+"\n", i == to-1, i)
	}
	return &Answer{Status: 200, Body: b.Bytes()}, nil
}

// Long windows are asked for in pages, shorter ones if an answer is too long.
func TestSplunkFindPages(t *testing.T) {
	s := splunkInside(t, hecd.New(), nil)
	for _, c := range []struct{ most, n uint64 }{{1 << 20, 50_001}, {7000, 50_001}, {1, 50}} {
		s.search = &splunkSearchClient{client: &hecSearchFake{most: c.most}, token: credential(t, "r"), index: "i", sourcetype: "s"}
		next := uint64(0)
		err := (&splunkFinder{s}).Find(t.Context(), deliver.Window{Origin: origin, To: c.n, Since: start, Until: start}, func(id string) error {
			if id != fmt.Sprintf("h-%d", next) {
				return fmt.Errorf("%s, want %d", id, next)
			}
			next++
			return nil
		})
		if err != nil || next != c.n {
			t.Errorf("pages of %d: %v after %d", c.most, err, next)
		}
	}
	s.search = &splunkSearchClient{client: &hecSearchFake{}, token: credential(t, "r"), index: "i", sourcetype: "s"}
	if err := (&splunkFinder{s}).Find(t.Context(), deliver.Window{Origin: origin, To: 9, Since: start, Until: start}, nil); err == nil {
		t.Error("an answer that is cut for ever is believed")
	}
}

func FuzzSplunkRows(f *testing.F) {
	f.Add([]byte(`{"preview":false,"offset":0,"lastrow":true,"result":{"event_id":"a-1","count":"2"}}`))
	f.Add([]byte(`{"preview":true,"result":{"event_id":"a-1","count":"2"}}` + "\n" + `{"preview":false,"lastrow":true}`))
	f.Add([]byte(`{"messages":[{"type":"FATAL","text":"x"}]}`))
	f.Add([]byte("\n\n{}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		n := 0
		err := splunkRows(body, func(id string) error {
			if n++; id == "" || n > 1000 {
				return errors.New("enough")
			}
			return nil
		})
		// A last row is "lastrow":true in whatever spelling JSON allows.
		if err == nil && !bytes.Contains(body, []byte("true")) {
			t.Fatalf("believed without an end: %q", body)
		}
	})
}

// The whole of it over real connections: events, acknowledgements and the
// search, and connections that are cut.
func TestSplunkOverHTTP(t *testing.T) {
	t.Parallel()
	srv := hecd.New()
	srv.Search = "reader"
	web := httptest.NewServer(srv)
	defer web.Close()
	s, err := NewSplunk(SplunkSettings{
		Settings: Settings{URL: web.URL, Gzip: true, Timeout: 6 * time.Second}, Token: credential(t, hecd.AckToken), Index: "audit", Ack: true, InFlight: 2,
		Search: &SplunkSearch{Settings: Settings{URL: web.URL}, Token: credential(t, "reader")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Test(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for name, c := range map[string]struct {
		fault  hecd.Fault
		class  deliver.Class
		copies int // of what is sent until it is done
	}{
		"well":   {hecd.Fault{}, deliver.Done, 1},
		"before": {hecd.Fault{Reset: hecd.Before}, deliver.Retry, 1},
		"after":  {hecd.Fault{Reset: hecd.After}, deliver.Retry, 2},
		"half":   {hecd.Fault{Reset: hecd.Half}, deliver.Retry, 2},
		"slow":   {hecd.Fault{Slow: time.Minute}, deliver.Retry, 2},
		"busy":   {hecd.Fault{Code: 9}, deliver.Retry, 1},
	} {
		srv.Script(hecd.Events, c.fault)
		b := splunkBatch(n, n+3)
		n += 3
		r := s.Send(t.Context(), b)
		if r.Class != c.class || r.Ambiguous != (c.class == deliver.Retry && name != "busy") {
			t.Errorf("%s: %+v", name, r)
		}
		if r.Class != deliver.Done {
			if r = s.Send(t.Context(), b); r.Class != deliver.Done || r.Grade != deliver.Durable {
				t.Errorf("%s, again: %+v", name, r)
			}
		}
		if got := srv.Copies()[b.Items[0].ID]; got != c.copies {
			t.Errorf("%s: %d copies, want %d", name, got, c.copies)
		}
	}
	found := map[string]int{}
	w := deliver.Window{Origin: origin, To: n, Since: start, Until: start.Add(time.Hour)}
	if err := s.(deliver.Finder).Find(t.Context(), w, func(id string) error { found[id]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if want := srv.Copies(); !maps.Equal(found, want) {
		t.Errorf("found %v, want %v", found, want)
	}
}
