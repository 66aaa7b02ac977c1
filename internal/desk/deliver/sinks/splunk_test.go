package sinks

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/hecd"
)

// inside is a requester that calls a handler without a network, so that time
// can be the bubble's. What a connection would lose is an error.
type inside struct {
	h       http.Handler
	timeout time.Duration
}

func (i inside) Do(ctx context.Context, method, path string, header http.Header, body []byte) (a *Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	req := httptest.NewRequestWithContext(ctx, method, path, bytes.NewReader(body))
	if header != nil {
		req.Header = header.Clone()
	}
	w := httptest.NewRecorder()
	defer func() {
		switch p := recover(); {
		case p == nil:
		case p == http.ErrAbortHandler && ctx.Err() != nil:
			a, err = nil, ctx.Err()
		case p == http.ErrAbortHandler:
			a, err = nil, io.ErrUnexpectedEOF
		default:
			panic(p)
		}
	}()
	i.h.ServeHTTP(w, req)
	return &Answer{Status: w.Code, Header: w.Header(), Body: w.Body.Bytes()}, nil
}

func credential(t *testing.T, secret string) *Credential {
	t.Helper()
	c, err := NewCredential(func() (string, error) { return secret, nil })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// splunkInside is a sink that talks to a server in the same bubble.
func splunkInside(t *testing.T, h http.Handler, change func(*SplunkSettings)) *Splunk {
	t.Helper()
	set := SplunkSettings{Settings: Settings{URL: "https://splunk.example.com:8088", Gzip: true}, Token: credential(t, hecd.AckToken), Index: "audit", Host: "gate-1", Ack: true}
	if change != nil {
		change(&set)
	}
	s, err := newSplunk(set, inside{h, 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const origin = "gate.example.com/log"

var start = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

func splunkBatch(from, to uint64) *deliver.Batch {
	b := &deliver.Batch{Planned: start, Attempt: 1}
	for i := from; i < to; i++ {
		id := deliver.EventID(origin, i)
		b.Items = append(b.Items, deliver.Item{
			Index: i, ID: id, Time: start.Add(time.Duration(i) * time.Second), Kind: "exchange", Body: fmt.Appendf(nil, `{"id":%q,"n":%d}`, id, i),
		})
	}
	return b
}

// The requests are of the documented form: one envelope a line, the token and
// the channel in their headers, acknowledgements asked for by number.
func TestSplunkRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		s := splunkInside(t, srv, nil)
		if r := s.Send(t.Context(), splunkBatch(0, 2)); r.Class != deliver.Done || r.Grade != deliver.Durable {
			t.Fatalf("%+v", r)
		}
		got := srv.Requests()
		if len(got) != 2 {
			t.Fatalf("%d requests", len(got))
		}
		id := strings.TrimSuffix(deliver.EventID(origin, 0), "0")
		events := `{"time":1772366400.123456,"host":"gate-1","source":"gatebook","sourcetype":"gatebook:record","index":"audit","fields":{"event_id":"` + id + `0"},"event":{"id":"` + id + `0","n":0}}` + "\n" +
			`{"time":1772366401.123456,"host":"gate-1","source":"gatebook","sourcetype":"gatebook:record","index":"audit","fields":{"event_id":"` + id + `1"},"event":{"id":"` + id + `1","n":1}}` + "\n"
		if got[0].Path != "/services/collector/event" || string(got[0].Body) != events {
			t.Errorf("%s\n%s", got[0].Path, got[0].Body)
		}
		if got[1].Path != "/services/collector/ack" || string(got[1].Body) != `{"acks":[0]}` {
			t.Errorf("%s %s", got[1].Path, got[1].Body)
		}
		for i, want := range []map[string]string{
			{"Authorization": "Splunk " + hecd.AckToken, "Content-Type": "application/json", "Content-Encoding": "gzip", "Cookie": ""},
			{"Authorization": "Splunk " + hecd.AckToken, "Content-Type": "application/json", "Content-Encoding": "", "Cookie": ""},
		} {
			for k, v := range want {
				if got[i].Header.Get(k) != v {
					t.Errorf("request %d: %s: %q", i, k, got[i].Header.Get(k))
				}
			}
		}
		if c := got[0].Header.Get("X-Splunk-Request-Channel"); len(c) != 36 || c[14] != '4' || c != got[1].Header.Get("X-Splunk-Request-Channel") {
			t.Errorf("channel %q", c)
		}
	})
}

// The length that the engine reckons with is no less than the real one.
func TestSplunkOverhead(t *testing.T) {
	s := splunkInside(t, hecd.New(), func(set *SplunkSettings) {
		set.Source, set.Sourcetype, set.Host = "sü", "x:y", strings.Repeat("h", 256)
	})
	for _, at := range []time.Time{{}, start, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} {
		it := deliver.Item{ID: deliver.EventID(origin, 1<<63), Time: at, Body: []byte(`{}`)}
		if n := len(s.appendEvent(nil, &it)); n > s.Limits().Overhead+2 {
			t.Errorf("%d bytes of %d", n-2, s.Limits().Overhead)
		}
	}
	if l := s.Limits(); l.Item+l.Overhead > l.Bytes || l.Bytes != 1_000_000 || l.InFlight != 8 || l.MaxAge != 0 {
		t.Errorf("%+v", l)
	}
}

func TestSplunkSettings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*SplunkSettings)
		want   string
	}{
		"token":       {func(s *SplunkSettings) { s.Token = nil }, "no token"},
		"index quote": {func(s *SplunkSettings) { s.Index = `a"b` }, "index"},
		"host line":   {func(s *SplunkSettings) { s.Host = "a\nb" }, "host"},
		"limit":       {func(s *SplunkSettings) { s.AckLimit = -1 }, "negative"},
		"long limit":  {func(s *SplunkSettings) { s.AckLimit = time.Hour }, "too long"},
		"batch":       {func(s *SplunkSettings) { s.BatchBytes = 100 }, "too small"},
		"plain":       {func(s *SplunkSettings) { s.URL = "http://splunk.example.com" }, "http to another machine"},
		"search index": {func(s *SplunkSettings) {
			s.Index, s.Search = "", &SplunkSearch{Settings: Settings{URL: "https://x"}, Token: s.Token}
		}, "index"},
		"search token": {func(s *SplunkSettings) { s.Search = &SplunkSearch{Settings: Settings{URL: "https://x"}} }, "search: there is no token"},
		"search url":   {func(s *SplunkSettings) { s.Search = &SplunkSearch{Token: s.Token} }, "search:"},
	} {
		set := SplunkSettings{Settings: Settings{URL: "https://splunk.example.com:8088"}, Token: credential(t, hecd.AckToken), Index: "audit"}
		c.change(&set)
		if _, err := NewSplunk(set); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := NewSplunk(SplunkSettings{Settings: Settings{URL: "https://splunk.example.com:8088"}, Token: credential(t, hecd.AckToken)})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.(deliver.Finder); ok {
		t.Error("a sink without search says that it can be asked")
	}
	if _, ok := s.(deliver.Renewer); !ok || s.Grade() != deliver.Accepted {
		t.Error("no renewer, or not G1")
	}
}

// Every documented answer, and what is none.
func TestSplunkAnswers(t *testing.T) {
	const (
		done, retry, split, poison, pause = deliver.Done, deliver.Retry, deliver.Split, deliver.Poison, deliver.Pause
	)
	for _, c := range []struct {
		status    int
		body      string
		class     deliver.Class
		ambiguous bool
		cause     string
	}{
		{200, `{"text":"Success","code":0}`, done, false, ""},
		{200, `{"text":"Success","code":0,"ackId":7}`, done, false, ""},
		{200, `{"text":"HEC queue is approaching capacity","code":24}`, done, false, ""},
		{403, `{"text":"Token disabled","code":1}`, pause, false, "hec_1"},
		{401, `{"text":"Token is required","code":2}`, pause, false, "hec_2"},
		{401, `{"text":"Invalid authorization","code":3}`, pause, false, "hec_3"},
		{403, `{"text":"Invalid token","code":4}`, pause, false, "hec_4"},
		{400, `{"text":"No data","code":5}`, pause, false, "hec_5"},
		{400, `{"text":"Invalid data format","code":6,"invalid-event-number":0}`, poison, false, "hec_6"},
		{400, `{"text":"Invalid data format","code":6,"invalid-event-number":3}`, poison, true, "hec_6"},
		{400, `{"text":"Invalid data format","code":6}`, poison, true, "hec_6"},
		{400, `{"text":"Incorrect index","code":7,"invalid-event-number":0}`, pause, false, "hec_7"},
		{400, `{"text":"Incorrect index","code":7,"invalid-event-number":1}`, pause, true, "hec_7"},
		{500, `{"text":"Internal server error","code":8}`, retry, true, "hec_8"},
		{503, `{"text":"Server is busy","code":9}`, retry, false, "hec_9"},
		{503, `{"text":"Server is busy","code":9,"invalid-event-number":10}`, retry, true, "hec_9"},
		{429, `{"text":"Server is busy","code":9}`, retry, false, "hec_9"},
		{429, `{"text":"Queue is at capacity","code":26,"invalid-event-number":2}`, retry, true, "hec_26"},
		{429, ``, retry, false, "http_429"},
		{400, `{"text":"Data channel is missing","code":10}`, pause, false, "hec_10"},
		{400, `{"text":"Invalid data channel","code":11}`, pause, false, "hec_11"},
		{400, `{"text":"Event field is required","code":12,"invalid-event-number":0}`, poison, false, "hec_12"},
		{400, `{"text":"Event field cannot be blank","code":13,"invalid-event-number":0}`, poison, false, "hec_13"},
		{400, `{"text":"ACK is disabled","code":14}`, pause, false, "hec_14"},
		{400, `{"text":"Error in handling indexed fields","code":15,"invalid-event-number":0}`, poison, false, "hec_15"},
		{400, `{"text":"Query string authorization is not enabled","code":16}`, pause, false, "hec_16"},
		{503, `{"text":"Server is shutting down","code":23}`, retry, false, "hec_23"},
		{400, `{"text":"Invalid token","code":21}`, pause, false, "hec_21"},
		{400, `{"text":"Token disabled","code":22}`, pause, false, "hec_22"},
		{400, `<html>Bad Request</html>`, pause, false, "http_400"},
		{200, `{"text":"Invalid token","code":4}`, retry, true, "answer"},
		{200, `{"text":"Succ`, retry, true, "answer"},
		{200, ``, retry, true, "answer"},
		{200, `{"code":"0"}`, retry, true, "answer"},
		{200, `{"code":0,"ackId":-1}`, retry, true, "answer"},
		{200, `{"code":0,"ackId":1.5}`, retry, true, "answer"},
		{200, `[0]`, retry, true, "answer"},
		{200, `null`, retry, true, "answer"},
		{202, `{"text":"Success","code":0}`, retry, true, "answer"},
		{204, ``, retry, true, "answer"},
		{301, ``, pause, false, "http_301"},
		{404, ``, pause, false, "http_404"},
		{403, `<html>`, pause, false, "http_403"},
		{407, ``, pause, false, "http_407"},
		{408, ``, retry, true, "http_408"},
		{413, ``, split, false, "http_413"},
		{415, ``, pause, false, "http_415"},
		{418, ``, pause, false, "http_418"},
		{500, `<html>`, retry, true, "http_500"},
		{502, ``, retry, true, "http_502"},
		{503, `<html>`, retry, true, "http_503"},
		{504, ``, retry, true, "http_504"},
	} {
		s := splunkInside(t, hecd.New(), nil)
		a := &Answer{Status: c.status, Body: []byte(c.body), Header: http.Header{"Retry-After": {"7"}}}
		r := s.classify(a, splunkParse(a))
		if r.Class != c.class || r.Ambiguous != c.ambiguous || r.Cause != c.cause {
			t.Errorf("%d %s: %+v", c.status, c.body, r)
		}
		if c.class == pause && r.Detail == "" || c.class == retry && !r.Ambiguous && r.After != 7*time.Second {
			t.Errorf("%d %s: %+v", c.status, c.body, r)
		}
	}
	s := splunkInside(t, hecd.New(), nil)
	s.worked.Store(true)
	if r := s.classify(&Answer{Status: 404}, splunkReply{code: -1, number: -1}); r.Class != retry {
		t.Errorf("404 on a path that worked: %+v", r)
	}
	if d := s.classify(&Answer{Status: 401, Body: []byte("Splunk " + hecd.AckToken + "\n\x1b[31m")}, splunkReply{code: 3}).Detail; strings.Contains(d, hecd.AckToken) || strings.ContainsAny(d, "\n\x1b") {
		t.Errorf("detail %q", d)
	}
}

// Acknowledgements are asked for quickly and then ever more slowly, and after
// the limit not at all.
func TestSplunkAckLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		srv.Script(hecd.Events, hecd.Fault{NeverAck: true})
		s := splunkInside(t, srv, func(set *SplunkSettings) { set.InFlight = 1 })
		begin := time.Now()
		r := s.Send(t.Context(), splunkBatch(0, 3))
		if r.Class != deliver.Retry || !r.Ambiguous || r.Cause != "ack_timeout" || time.Since(begin) != 5*time.Minute {
			t.Fatalf("%+v after %s", r, time.Since(begin))
		}
		// 250 ms, 500 ms, ... 8 s, then every 10 s.
		if n := srv.Asked(hecd.Ack); n < 30 || n > 40 {
			t.Errorf("asked %d times", n)
		}
		// The channel is left: nobody can take a late answer for another's.
		if r := s.Send(t.Context(), splunkBatch(0, 3)); r.Class != deliver.Done {
			t.Fatalf("%+v", r)
		}
		seen := map[string]bool{}
		for _, q := range srv.Requests() {
			seen[q.Header.Get("X-Splunk-Request-Channel")] = true
		}
		if len(seen) != 2 {
			t.Errorf("%d channels", len(seen))
		}
	})
}

// Sends that wait at the same time wait on different channels, and each channel
// stays with its indexer by its own cookie.
func TestSplunkChannels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		srv.Nodes, srv.RequireCookie, srv.Delay = 3, true, 20*time.Second
		s := splunkInside(t, srv, func(set *SplunkSettings) { set.InFlight = 4 })
		var wg sync.WaitGroup
		begin := time.Now()
		for i := range uint64(8) {
			wg.Go(func() {
				if r := s.Send(t.Context(), splunkBatch(10*i, 10*i+10)); r.Class != deliver.Done || r.Grade != deliver.Durable {
					t.Errorf("%+v", r)
				}
			})
		}
		wg.Wait()
		if d := time.Since(begin); d > 70*time.Second {
			t.Errorf("took %s", d)
		}
		seen := map[string]map[string]bool{}
		for _, q := range srv.Requests() {
			c := q.Header.Get("X-Splunk-Request-Channel")
			if seen[c] == nil {
				seen[c] = map[string]bool{}
			}
			if k := q.Header.Get("Cookie"); k != "" {
				seen[c][k] = true
			}
		}
		if len(seen) != 4 {
			t.Errorf("%d channels", len(seen))
		}
		for c, cookies := range seen {
			if len(cookies) != 1 {
				t.Errorf("channel %s was sent to %v", c, cookies)
			}
		}
		once(t, srv, 80)
	})
}

func once(t *testing.T, srv *hecd.Server, n int) {
	t.Helper()
	copies := srv.Copies()
	for id, k := range copies {
		if k != 1 {
			t.Errorf("%s is there %d times", id, k)
		}
	}
	if len(copies) != n {
		t.Errorf("%d ids, want %d", len(copies), n)
	}
}

// The number of a bad event is believed only when that event is refused alone,
// whether the server counts from 0 or from 1.
func TestSplunkSuspects(t *testing.T) {
	for _, oneBased := range []bool{false, true} {
		for bad := range 5 {
			synctest.Test(t, func(t *testing.T) {
				srv := hecd.New()
				srv.OneBased = oneBased
				srv.Bad = func(e *hecd.Event) int {
					if e.ID == deliver.EventID(origin, uint64(bad)) {
						return 6
					}
					return 0
				}
				s := splunkInside(t, srv, nil)
				r := s.Send(t.Context(), splunkBatch(0, 5))
				if len(r.Items) != 5 {
					t.Fatalf("%+v", r)
				}
				for i, r := range r.Items {
					switch {
					case i == bad && (r.Class != deliver.Poison || r.Ambiguous):
						t.Errorf("one-based %t, bad %d: the bad one is %+v", oneBased, bad, r)
					case i != bad && r.Class == deliver.Poison:
						t.Errorf("one-based %t, bad %d: %d is %+v", oneBased, bad, i, r)
					case i < bad && r.Class == deliver.Retry && !r.Ambiguous:
						t.Errorf("one-based %t, bad %d: %d may be in and is %+v", oneBased, bad, i, r)
					}
				}
			})
		}
	}
	// A number that leads nowhere: the batch is bisected.
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		srv.Script(hecd.Events, hecd.Fault{Status: 400, Body: `{"text":"Invalid data format","code":6,"invalid-event-number":4000000}`})
		if r := splunkInside(t, srv, nil).Send(t.Context(), splunkBatch(0, 5)); r.Class != deliver.Poison || r.Items != nil {
			t.Errorf("%+v", r)
		}
		srv.Script(hecd.Events, hecd.Fault{Status: 400, Body: `{"text":"Invalid data format","code":6,"invalid-event-number":3}`})
		if r := splunkInside(t, srv, nil).Send(t.Context(), splunkBatch(0, 5)); r.Class != deliver.Poison || r.Items != nil || !r.Ambiguous {
			t.Errorf("%+v", r)
		}
	})
}

func TestSplunkTest(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*hecd.Server)
		set    func(*SplunkSettings)
		want   string // "": nothing is wrong
	}{
		"good":            {nil, nil, ""},
		"good, G1":        {nil, func(s *SplunkSettings) { s.Ack, s.Token = false, credential(t, hecd.PlainToken) }, ""},
		"cookies":         {func(s *hecd.Server) { s.Nodes, s.RequireCookie = 2, true }, nil, ""},
		"cookies missing": {func(s *hecd.Server) { s.RequireCookie, s.NoCookies = true, true }, nil, "cookie"},
		"queues":          {func(s *hecd.Server) { s.Health = 18 }, nil, "code 18"},
		"acks away":       {func(s *hecd.Server) { s.Health = 19 }, nil, "code 19"},
		"acks away, G1": {func(s *hecd.Server) { s.Health = 19 }, func(s *SplunkSettings) {
			s.Ack, s.Token = false, credential(t, hecd.PlainToken)
		}, ""},
		"both":          {func(s *hecd.Server) { s.Health = 20 }, nil, "code 20"},
		"token":         {nil, func(s *SplunkSettings) { s.Token = credential(t, "other") }, "code 4"},
		"disabled":      {func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{Ack: true, Disabled: true} }, nil, "code 1"},
		"acks off":      {nil, func(s *SplunkSettings) { s.Token = credential(t, hecd.PlainToken) }, "code 14"},
		"acks on, G1":   {nil, func(s *SplunkSettings) { s.Ack = false }, "code 10"},
		"not there":     {func(s *hecd.Server) { s.Script(hecd.Health, hecd.Fault{Status: 404}) }, nil, "no event collector"},
		"reset":         {func(s *hecd.Server) { s.Script(hecd.Health, hecd.Fault{Reset: hecd.Before}) }, nil, "cannot be asked"},
		"event reset":   {func(s *hecd.Server) { s.Script(hecd.Events, hecd.Fault{Reset: hecd.Before}) }, nil, "cannot be asked"},
		"ack reset":     {func(s *hecd.Server) { s.Script(hecd.Ack, hecd.Fault{Reset: hecd.Before}) }, nil, "cannot be asked"},
		"ack garbage":   {func(s *hecd.Server) { s.Script(hecd.Ack, hecd.Fault{Status: 200, Body: "ok"}) }, nil, "not an answer"},
		"health is odd": {func(s *hecd.Server) { s.Script(hecd.Health, hecd.Fault{Status: 500}) }, nil, "health: 500"},
	} {
		synctest.Test(t, func(t *testing.T) {
			srv := hecd.New()
			if c.change != nil {
				c.change(srv)
			}
			err := splunkInside(t, srv, c.set).Test(t.Context())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s: %v", name, err)
			}
			if len(srv.Copies()) != 0 {
				t.Errorf("%s: something was kept", name)
			}
		})
	}
}

// With acknowledgement configured, a token without it stops the sink: never
// silently a lower grade.
func TestSplunkAcksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		s := splunkInside(t, srv, func(set *SplunkSettings) { set.Token = credential(t, hecd.PlainToken) })
		r := s.Send(t.Context(), splunkBatch(0, 2))
		if r.Class != deliver.Pause || !r.Ambiguous || r.Cause != "ack_off" || !strings.Contains(r.Detail, "ack: false") {
			t.Errorf("%+v", r)
		}
		// Turned off while something waits: code 14 at the question.
		srv.Delay = time.Minute
		s = splunkInside(t, srv, nil)
		time.AfterFunc(10*time.Second, func() { srv.Set(func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{} }) })
		if r := s.Send(t.Context(), splunkBatch(2, 4)); r.Class != deliver.Pause || !r.Ambiguous || r.Cause != "hec_14" {
			t.Errorf("%+v", r)
		}
		// And without acknowledgement configured it is G1, at once.
		s = splunkInside(t, srv, func(set *SplunkSettings) { set.Ack, set.Token = false, credential(t, hecd.PlainToken) })
		if r := s.Send(t.Context(), splunkBatch(4, 6)); r.Class != deliver.Done || r.Grade != deliver.Accepted || s.Grade() != deliver.Accepted {
			t.Errorf("%+v", r)
		}
	})
}

// A send that nobody wants any more ends, and says whether the request had gone.
func TestSplunkCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		srv.Delay = time.Hour
		s := splunkInside(t, srv, func(set *SplunkSettings) { set.InFlight = 1 })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if r := s.Send(ctx, splunkBatch(0, 1)); r.Class != deliver.Retry || !r.Ambiguous || r.Cause != "canceled" {
				t.Errorf("%+v", r)
			}
		})
		synctest.Wait()
		late, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if r := s.Send(late, splunkBatch(1, 2)); r.Class != deliver.Retry || r.Ambiguous || r.Cause != "canceled" {
			t.Errorf("without a lane: %+v", r)
		}
		wg.Wait()
		once(t, srv, 1)
	})
}

func FuzzSplunkAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"text":"Success","code":0,"ackId":0}`, `{"text":"Invalid data format","code":6,"invalid-event-number":1}`,
		`{"acks":{"0":true,"1":false}}`, `{"code":0,"ackId":18446744073709551616}`, `null`, `{"acks":null}`, `{"acks":{"0":1}}`, "\xff",
	} {
		f.Add(200, []byte(seed))
		f.Add(400, []byte(seed))
	}
	set := SplunkSettings{Settings: Settings{URL: "https://splunk.example.com:8088"}}
	set.Token, _ = NewCredential(func() (string, error) { return "a-secret-token", nil })
	s, err := newSplunk(set, inside{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		a := &Answer{Status: status, Body: body, Header: http.Header{}}
		p := splunkParse(a)
		r := s.classify(a, p)
		if r.Class == deliver.Done && (status != 200 || p.code != 0 && p.code <= 22) {
			t.Fatalf("done: %d %q", status, body)
		}
		if r.Class == deliver.Poison && status != 400 {
			t.Fatalf("poison: %d %q", status, body)
		}
		if len(r.Detail) > 512 || strings.ContainsAny(r.Detail, "\n\r\x1b") || strings.Contains(r.Detail, "a-secret-token") {
			t.Fatalf("detail %q", r.Detail)
		}
		if ok, err := splunkAcked(a, 0); ok && (err != nil || status != 200 || !bytes.Contains(body, []byte("true"))) {
			t.Fatalf("acknowledged by %d %q", status, body)
		}
	})
}

// What was taken though the answer said nothing of it has an id that nobody was told.
// Another indexer may give the next request the same id, and without a cookie the first
// one is asked: its yes is about something else.
func TestSplunkAnotherIndexersYes(t *testing.T) {
	for name, f := range map[string]hecd.Fault{
		"504 of a balancer": {Status: 504, Do: true},
		"garbage":           {Status: 200, Body: "<html>ok", Do: true},
		"408":               {Status: 408, Do: true},
		"half an answer":    {Reset: hecd.Half},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := hecd.New()
				srv.Nodes, srv.NoCookies = 2, true
				srv.Script(hecd.Events, f)
				s := splunkInside(t, srv, func(set *SplunkSettings) { set.InFlight, set.AckLimit = 1, 10*time.Minute })
				if r := s.Send(t.Context(), splunkBatch(0, 2)); r.Class != deliver.Retry || !r.Ambiguous {
					t.Fatalf("%+v", r)
				}
				srv.Set(func(s *hecd.Server) { s.Delay = 5 * time.Minute })
				r := s.Send(t.Context(), splunkBatch(2, 4))
				indexed := map[string]bool{}
				for _, e := range srv.Indexed() {
					indexed[e.ID] = true
				}
				if have := indexed[deliver.EventID(origin, 2)] && indexed[deliver.EventID(origin, 3)]; r.Class == deliver.Done && !have {
					t.Errorf("%+v and it is not indexed", r)
				} else if r.Class != deliver.Done {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

// After an answer that did not come the balancer may choose another indexer:
// the one that the cookie leads to may be what does not answer.
func TestSplunkLeavesIndexer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := hecd.New()
		srv.Nodes = 2
		s := splunkInside(t, srv, func(set *SplunkSettings) { set.InFlight = 1 })
		srv.Script(hecd.Events, hecd.Fault{}, hecd.Fault{Slow: time.Hour})
		for i, want := range []deliver.Class{deliver.Done, deliver.Retry, deliver.Done} {
			if r := s.Send(t.Context(), splunkBatch(uint64(i), uint64(i+1))); r.Class != want {
				t.Fatalf("%d: %+v", i, r)
			}
		}
		var sent []http.Header
		for _, q := range srv.Requests() {
			if q.Path == splunkEvents {
				sent = append(sent, q.Header)
			}
		}
		const channel = "X-Splunk-Request-Channel"
		if len(sent) != 3 || sent[1].Get("Cookie") == "" || sent[2].Get("Cookie") != "" || sent[0].Get(channel) != sent[1].Get(channel) || sent[1].Get(channel) == sent[2].Get(channel) {
			t.Errorf("%v", sent)
		}
	})
}
