package sinks

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/hecd"
)

// nth makes the indexer refuse every n-th event by its index.
func nth(digit string, code int) func(*hecd.Server) {
	return func(s *hecd.Server) {
		s.Bad = func(e *hecd.Event) int {
			if strings.HasSuffix(e.ID, digit) {
				return code
			}
			return 0
		}
	}
}

func all(changes ...func(*hecd.Server)) func(*hecd.Server) {
	return func(s *hecd.Server) {
		for _, c := range changes {
			c(s)
		}
	}
}

func disabled(s *hecd.Server) {
	s.Set(func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{Ack: true, Disabled: true} })
}
func enabled(s *hecd.Server) {
	s.Set(func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{Ack: true} })
}
func balanced(s *hecd.Server) { s.Nodes, s.RequireCookie = 3, true }

// splunkFaults are what may go wrong. The book has 120 records and some of its
// own, batches have 20, three may be under way.
var splunkFaults = []splunkFault{
	{name: "nothing"},
	{name: "nothing, G1", set: noAck},
	{name: "nothing, three indexers", srv: balanced},

	// Connections.
	{name: "unsent", unsent: 3, cause: "broken"},
	{name: "reset before", events: []hecd.Fault{{Reset: hecd.Before}}, ambiguous: true, cause: "closed"},
	{name: "reset before, often", events: times(7, hecd.Fault{Reset: hecd.Before}), ambiguous: true},
	{name: "reset after", events: []hecd.Fault{{Reset: hecd.After}}, ambiguous: true, cause: "closed"},
	{name: "reset after, often", events: times(5, hecd.Fault{Reset: hecd.After}), ambiguous: true},
	{name: "reset after, G1", set: noAck, events: times(2, hecd.Fault{Reset: hecd.After}), ambiguous: true},
	{name: "half an answer", events: []hecd.Fault{{Reset: hecd.Half}}, ambiguous: true},
	{name: "half an answer, G1", set: noAck, events: times(3, hecd.Fault{Reset: hecd.Half}), ambiguous: true},
	{name: "slow, in time", events: times(2, hecd.Fault{Slow: 20 * time.Second})},
	{name: "slow, too late", events: []hecd.Fault{{Slow: time.Minute}}, ambiguous: true, cause: "timeout"},
	{name: "slow, too late, G1", set: noAck, events: []hecd.Fault{{Slow: time.Minute}}, ambiguous: true, cause: "timeout"},

	// Answers to events that are none.
	{name: "200 garbage, taken", events: []hecd.Fault{{Status: 200, Body: "<html>ok", Do: true}}, ambiguous: true, cause: "answer"},
	{name: "200 garbage, not taken", events: []hecd.Fault{{Status: 200, Body: "<html>ok"}}, ambiguous: true, cause: "answer"},
	{name: "200 garbage, G1", set: noAck, events: []hecd.Fault{{Status: 200, Body: "ok", Do: true}}, ambiguous: true, cause: "answer"},
	{name: "200 empty", events: []hecd.Fault{{Status: 200, Do: true}}, ambiguous: true, cause: "answer"},
	{name: "200 with an error", events: []hecd.Fault{{Status: 200, Body: `{"text":"Invalid token","code":4}`}}, ambiguous: true, cause: "answer"},
	{name: "200 cut JSON", set: noAck, events: []hecd.Fault{{Status: 200, Body: `{"text":"Success","co`, Do: true}}, ambiguous: true, cause: "answer"},
	{name: "200 odd ackId", events: []hecd.Fault{{Status: 200, Body: `{"text":"Success","code":0,"ackId":"x"}`, Do: true}}, ambiguous: true, cause: "answer"},
	{name: "202", events: []hecd.Fault{{Status: 202, Body: `{"text":"Success","code":0}`}}, ambiguous: true, cause: "answer"},
	{name: "204", set: noAck, events: []hecd.Fault{{Status: 204}}, ambiguous: true, cause: "answer"},
	{name: "200 and another's ackId", events: []hecd.Fault{{Status: 200, Body: `{"text":"Success","code":0,"ackId":77}`, Do: true}}, ambiguous: true, cause: "ack_timeout"},
	{name: "302", events: []hecd.Fault{{Status: 302, Header: map[string]string{"Location": "/"}}}, cause: "http_302"},

	// Busy and away.
	{name: "busy", events: times(4, hecd.Fault{Code: 9}), cause: "hec_9"},
	{name: "busy in the middle", events: times(2, hecd.Fault{Code: 9, Take: 7}), ambiguous: true, cause: "hec_9"},
	{name: "busy, 429", srv: func(s *hecd.Server) { s.Busy429 = true }, events: times(3, hecd.Fault{Code: 9}), cause: "hec_9"},
	{name: "busy in the middle, 429", srv: func(s *hecd.Server) { s.Busy429 = true }, events: []hecd.Fault{{Code: 9, Take: 19}}, ambiguous: true},
	{name: "429 of a balancer", events: []hecd.Fault{{Status: 429, Header: map[string]string{"Retry-After": "30"}}}, cause: "http_429"},
	{name: "503 of a balancer", events: []hecd.Fault{{Status: 503, Body: "no healthy upstream"}}, ambiguous: true, cause: "http_503"},
	{name: "502, taken", events: []hecd.Fault{{Status: 502, Do: true}}, ambiguous: true, cause: "http_502"},
	{name: "504, taken", events: times(2, hecd.Fault{Status: 504, Do: true}), ambiguous: true, cause: "http_504"},
	{name: "408", events: []hecd.Fault{{Status: 408}}, ambiguous: true, cause: "http_408"},
	{name: "500 code 8", events: []hecd.Fault{{Code: 8}}, ambiguous: true, cause: "hec_8"},
	{name: "500 code 8 in the middle", events: []hecd.Fault{{Code: 8, Take: 11}}, ambiguous: true, cause: "hec_8"},
	{name: "404 on a path that worked", events: []hecd.Fault{{}, {}, {}, {Status: 404}, {Status: 404}}, cause: "http_404"},
	{name: "404 from the beginning", events: []hecd.Fault{{Status: 404}}, cause: "http_404"},
	{name: "shutting down", events: []hecd.Fault{{Status: 503, Body: `{"text":"Server is shutting down","code":23}`}}, cause: "hec_23"},
	{name: "Retry-After as nonsense", events: []hecd.Fault{{Status: 503, Body: `{"text":"Server is busy","code":9}`, Header: map[string]string{"Retry-After": "soon"}}}, cause: "hec_9"},
	{name: "Retry-After for years", events: []hecd.Fault{{Status: 503, Body: `{"text":"Server is busy","code":9}`, Header: map[string]string{"Retry-After": "999999999"}}}, cause: "hec_9"},

	// What the collector refuses.
	{name: "too large", srv: func(s *hecd.Server) { s.MaxBody = 1500 }, cause: "http_413"},
	{name: "bad format", srv: nth("7", 6), refused: 12, ambiguous: true, cause: "hec_6"},
	{name: "bad format, counted from 1", srv: all(nth("7", 6), func(s *hecd.Server) { s.OneBased = true }), refused: 12, ambiguous: true, cause: "hec_6"},
	{name: "bad format, first of the batch", srv: nth("-20", 6), refused: 1, cause: "hec_6"},
	{name: "bad fields", srv: nth("3", 15), refused: 12, ambiguous: true, cause: "hec_15"},
	{name: "no event", srv: nth("-5", 12), refused: 1, ambiguous: true, cause: "hec_12"},
	{name: "blank event, G1", set: noAck, srv: nth("-5", 13), refused: 1, ambiguous: true, cause: "hec_13"},
	{name: "bad format without a number", srv: nth("-44", 6), events: []hecd.Fault{{Status: 400, Body: `{"text":"Invalid data format","code":6}`}}, refused: 1, ambiguous: true},
	{name: "bad format, then a reset", srv: nth("-20", 6), events: []hecd.Fault{{}, {}, {Reset: hecd.After}}, refused: 1, ambiguous: true},
	{name: "bad format, then busy", srv: nth("-19", 6), events: []hecd.Fault{{}, {}, {Code: 9}, {Code: 9}}, refused: 1, ambiguous: true},
	{name: "bad format, then the token goes", srv: nth("-1", 6), set: func(s *SplunkSettings) { s.InFlight = 1 }, events: []hecd.Fault{{}, {Code: 1}}, refused: 1, ambiguous: true, cause: "hec_1"},
	{name: "a number of nothing", events: []hecd.Fault{{Status: 400, Body: `{"text":"Invalid data format","code":6,"invalid-event-number":99999}`}}, ambiguous: true},
	{name: "a number of a good one", events: []hecd.Fault{{Status: 400, Body: `{"text":"Invalid data format","code":6,"invalid-event-number":3}`}}, ambiguous: true},

	// Somebody must act, and does.
	{name: "token disabled", srv: disabled, after: time.Minute, then: enabled, cause: "hec_1"},
	{name: "token unknown", srv: func(s *hecd.Server) { delete(s.Tokens, hecd.AckToken) }, after: time.Minute, then: enabled, cause: "hec_4"},
	{name: "wrong index", srv: func(s *hecd.Server) { s.Indexes = []string{"main"} }, after: time.Minute,
		then: func(s *hecd.Server) { s.Set(func(s *hecd.Server) { s.Indexes = []string{"main", "audit"} }) }, cause: "hec_7"},
	{name: "acknowledgement off", srv: func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{} }, after: time.Minute, then: enabled, ambiguous: true, cause: "ack_off"},
	{name: "acknowledgement on, G1", set: func(s *SplunkSettings) { s.Ack = false }, after: time.Minute,
		then: func(s *hecd.Server) {
			s.Set(func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{} })
		}, cause: "hec_10"},
	{name: "invalid channel", events: []hecd.Fault{{Code: 11}}, cause: "hec_11"},
	{name: "codes 21 and 22", events: []hecd.Fault{{Code: 21}, {Code: 22}}},
	{name: "a 400 that says nothing", events: []hecd.Fault{{Status: 400, Body: "Bad Request"}}, cause: "http_400"},
	{name: "a 403 of a firewall", events: []hecd.Fault{{Status: 403, Body: "<html>"}}, cause: "http_403"},
	{name: "gzip refused", events: []hecd.Fault{{Status: 415}}, cause: "http_415"},

	// Acknowledgements.
	{name: "ack never", events: []hecd.Fault{{NeverAck: true}}, ambiguous: true, cause: "ack_timeout"},
	{name: "ack never, three times", events: times(3, hecd.Fault{NeverAck: true}), ambiguous: true, cause: "ack_timeout"},
	{name: "ack late, in time", events: []hecd.Fault{{Late: 4 * time.Minute}}},
	{name: "ack too late", events: []hecd.Fault{{Late: 6 * time.Minute}}, ambiguous: true, cause: "ack_timeout"},
	{name: "a short limit", set: func(s *SplunkSettings) { s.AckLimit = 10 * time.Second }, events: []hecd.Fault{{Late: 11 * time.Second}}, ambiguous: true, cause: "ack_timeout"},
	{name: "ack told to nobody", acks: times(2, hecd.Fault{Reset: hecd.After}), srv: func(s *hecd.Server) { s.Delay = 0 }, ambiguous: true, cause: "ack_timeout"},
	{name: "ack told in half", acks: times(2, hecd.Fault{Reset: hecd.Half}), srv: func(s *hecd.Server) { s.Delay = 0 }, ambiguous: true, cause: "ack_timeout"},
	{name: "ack questions are cut", acks: times(9, hecd.Fault{Reset: hecd.Before})},
	{name: "ack questions are busy", acks: times(5, hecd.Fault{Status: 503, Body: `{"text":"Server is busy","code":9}`})},
	{name: "ack questions are slow", acks: times(3, hecd.Fault{Slow: 25 * time.Second})},
	{name: "ack questions get garbage", acks: times(6, hecd.Fault{Status: 200, Body: `{"acks":[true]}`})},
	{name: "ack questions get others", acks: times(4, hecd.Fault{Status: 200, Body: `{"acks":{"4711":true}}`})},
	{name: "ack questions get 404", acks: times(4, hecd.Fault{Status: 404})},
	{name: "ack questions get 401", acks: []hecd.Fault{{Status: 401, Body: `{"text":"Invalid authorization","code":3}`}}, ambiguous: true, cause: "hec_3"},
	{name: "ack turned off", srv: func(s *hecd.Server) { s.Delay = time.Minute }, after: 30 * time.Second,
		then: func(s *hecd.Server) {
			s.Set(func(s *hecd.Server) { s.Tokens[hecd.AckToken] = hecd.Token{} })
			time.AfterFunc(time.Minute, func() { enabled(s) })
		}, ambiguous: true, cause: "hec_14"},

	// Restarts.
	{name: "restart behind a 200", events: []hecd.Fault{{}, {RestartAfter: true}}, ambiguous: true, cause: "ack_timeout"},
	{name: "restart before a 200", events: []hecd.Fault{{Restart: true}}, ambiguous: true, cause: "ack_timeout"},
	{name: "restart that keeps its queue", srv: func(s *hecd.Server) { s.Keep = true }, events: []hecd.Fault{{}, {}, {RestartAfter: true}}, ambiguous: true, cause: "ack_timeout"},
	{name: "restart while waiting", srv: func(s *hecd.Server) { s.Delay = time.Minute }, after: 20 * time.Second, then: (*hecd.Server).Restart, ambiguous: true, cause: "ack_timeout"},
	{name: "restart and reset", events: []hecd.Fault{{}, {Restart: true, Reset: hecd.After}}, ambiguous: true},
	{name: "restart, ids from 0, a slow answer", events: []hecd.Fault{{NeverAck: true}, {RestartAfter: true}, {Slow: 25 * time.Second}, {Slow: 20 * time.Second}}, ambiguous: true},
	{name: "restart, G1", set: noAck, events: []hecd.Fault{{}, {RestartAfter: true}}, lossy: true},
	{name: "rolling restart", srv: balanced, events: []hecd.Fault{{}, {}, {}, {Status: 404}, {Status: 503, Body: `{"text":"Server is busy","code":9}`}, {RestartAfter: true}, {RestartAfter: true}, {RestartAfter: true}}, ambiguous: true, cause: "http_404"},

	// The balancer.
	{name: "cookie lost on the way, events", srv: balanced, events: []hecd.Fault{{}, {}, {}, {ForgetCookies: true}}},
	{name: "cookie lost on the way, ack", srv: balanced, acks: times(2, hecd.Fault{ForgetCookies: true})},
	{name: "cookie lost, not enforced", srv: func(s *hecd.Server) { s.Nodes = 3 }, acks: times(3, hecd.Fault{ForgetCookies: true})},
	{name: "no cookies, one indexer", srv: func(s *hecd.Server) { s.NoCookies = true }},
	{name: "cookies enforced and none come", srv: func(s *hecd.Server) { s.RequireCookie, s.NoCookies = true, true }, after: time.Minute,
		then: func(s *hecd.Server) { s.Set(func(s *hecd.Server) { s.NoCookies = false }) }, cause: "http_400"},
}

// keeping is a requester that keeps bodies as a connection may, which goes on reading
// when the answer is there.
type keeping struct{ bodies [][]byte }

func (k *keeping) Do(_ context.Context, _, _ string, _ http.Header, body []byte) (*Answer, error) {
	k.bodies = append(k.bodies, body)
	h := http.Header{}
	for i := range 100 { // a new name each time
		h.Add("Set-Cookie", fmt.Sprintf("c%d-%d=%s; Path=/%d", len(k.bodies), i, strings.Repeat("x", 100), i))
	}
	return &Answer{Status: http.StatusServiceUnavailable, Header: h, Body: []byte(`{"code":9}`)}, nil
}

func TestSplunkBodiesAreApart(t *testing.T) {
	k := &keeping{}
	s, err := newSplunk(SplunkSettings{Settings: Settings{URL: "https://splunk.example.com:8088"}, Token: credential(t, hecd.AckToken), InFlight: 1}, k)
	if err != nil {
		t.Fatal(err)
	}
	for from := range uint64(50) {
		s.Send(t.Context(), splunkBatch(from, from+1))
	}
	for i, body := range k.bodies {
		if !bytes.Contains(body, []byte(deliver.EventID(origin, uint64(i))+`"`)) {
			t.Fatalf("the body of request %d was written over: %s", i, body)
		}
	}
	l := <-s.free
	if n := len(l.header().Get("Cookie")); n > splunkCookies*splunkCookie || n == 0 {
		t.Errorf("%d bytes of cookies", n)
	}
	if len(l.names) > splunkCookies || len(l.jar.Cookies(s.url)) > splunkCookies {
		t.Errorf("%d cookies", len(l.names))
	}
}

// The copies of all rows together are bounded, or an answer of 4 MiB could keep a
// processor busy for hours.
func TestSplunkRowsAreBounded(t *testing.T) {
	row := `{"preview":false,"result":{"event_id":"a-1","count":"600000"}}` + "\n"
	n := 0
	err := splunkRows([]byte(strings.Repeat(row, 10)), func(string) error { n++; return nil })
	if err == nil || n > splunkCopies {
		t.Errorf("%d copies, %v", n, err)
	}
}
