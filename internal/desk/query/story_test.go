package query

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/reason"
)

// TestAdvice: there is advice on every reason and on nothing else.
func TestAdvice(t *testing.T) {
	for _, r := range reason.All() {
		a, ok := AdviceOn(string(r))
		if !ok || a.Means == "" || a.Do == "" {
			t.Errorf("no advice on %s", r)
		}
		if strings.HasSuffix(a.Means, ".") || !strings.HasSuffix(a.Do, ".") {
			t.Errorf("%s: %q is part of a sentence, %q are sentences", r, a.Means, a.Do)
		}
	}
	if len(advice) != len(reason.All()) {
		t.Errorf("%d pieces of advice on %d reasons", len(advice), len(reason.All()))
	}
	if _, ok := AdviceOn("nonsense"); ok {
		t.Error("advice on nonsense")
	}
}

// told is a story as text.
func told(t *testing.T, r *record.Record, sealed string) string {
	t.Helper()
	r.Time = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC).UnixMicro()
	r.ID[0], r.ID[6], r.ID[8] = 1, 0x70, 0x80
	r.Subject = "AAAAAAAAAAAAAAAAAAAAAA"
	if r.Client.Prefix == "" {
		r.Client.Prefix = record.None
	}
	if r.Authn.Method == "" {
		r.Authn.Method = record.None
	}
	m := &Match{Index: 7, Frame: record.AppendFrame(nil, r), Sealed: sealed}
	if r.Personal.Sub != "" || r.Personal.IP != "" {
		m.Personal = record.AppendPersonal(nil, r)
	}
	lines, err := Story(m, func(policy, set string) string { return "in " + policy + ".cedar:" + set })
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%s: %s\n", l.About, l.Text)
	}
	return b.String()
}

func TestStory(t *testing.T) {
	request := func(change func(r *record.Record)) *record.Record {
		r := &record.Record{
			Kind: record.KindRequest, Outcome: record.Success, Snap: "s1", Route: "orders.read", Op: "GET /v1/orders/{id}", Template: "/v1/orders/{id}", Method: "GET",
			Host: "api.example.com", Proto: "HTTP/2", Status: 200, UpstreamStatus: 200, BytesOut: 12, DurUS: 2500,
			Authn: record.Authn{Method: "jwt", Issuer: "corp", Roles: []string{"clerk"}, Outcome: "ok"}, Authz: record.Authz{Decision: "allow", Policies: []string{"role-clerk"}, Set: "5"},
			TLS: record.TLS{Version: "1.3"}, Client: record.Client{Prefix: "203.0.113.0/24"}, Upstream: record.Upstream{Name: "orders", Target: "http://10.0.0.5", Attempts: 1, TTFBUS: 1800},
		}
		change(r)
		return r
	}
	for name, c := range map[string]struct {
		r      *record.Record
		sealed string
		want   []string
		not    []string
	}{
		"allowed": {request(func(*record.Record) {}), "", []string{
			"record: number 7, 01000000-0000-7000-8000-000000000000, of request at 2026-11-23T10:00:00.000000Z",
			"came: GET /v1/orders/{id} for api.example.com, HTTP/2, TLS 1.3, from 203.0.113.0/24",
			"route: orders.read, under snapshot s1", "who: subject AAAAAAAAAAAAAAAAAAAAAA, by jwt of corp, roles clerk",
			"decision: allow by role-clerk (set 5)", ": role-clerk is in role-clerk.cedar:5",
			"upstream: orders at http://10.0.0.5 answered 200 after 1.8 ms", "client: got 200 with 12 bytes; it had sent 0", "time: 2.5 ms in all, 1.8 ms of it until the upstream's head",
		}, []string{"why", "to do"}},
		"revealed": {request(func(r *record.Record) {
			r.Personal = record.Personal{Sub: "ann", IP: "203.0.113.9", Path: "/v1/orders/7"}
			r.Phase = record.Phase{Auth: 20, Open: 40, TTFB: 1800}
		}), "", []string{"(203.0.113.9)", "the path was /v1/orders/7", "that is ann", "2.5 ms in all: authentication 20 us, open mark 40 us, the upstream's head 1.8 ms"}, nil},
		"sealed": {request(func(*record.Record) {}), "the key was destroyed", []string{"cannot be opened: the key was destroyed"}, nil},
		"denied": {request(func(r *record.Record) {
			r.Status, r.UpstreamStatus, r.Outcome, r.Upstream = 403, 0, record.Failure, record.Upstream{}
			r.Authz = record.Authz{Decision: "deny", Policies: []string{"freeze"}, Set: "5"}
			r.Error = record.Error{Origin: "policy", Reason: "denied_by_policy", Phase: "authz"}
		}), "", []string{"decision: deny by freeze (set 5)", "upstream: never called", "client: got 403", "why: denied_by_policy (policy, phase authz): a policy forbids it", "to do: The policies named above decided."}, nil},
		"no route": {request(func(r *record.Record) {
			r.Status, r.UpstreamStatus, r.Upstream, r.Authz, r.Authn = 404, 0, record.Upstream{}, record.Authz{}, record.Authn{}
			r.Route, r.Op, r.Template = record.None, record.None, "/{word}/{uuid}"
			r.Error = record.Error{Origin: "client", Reason: "no_route", Phase: "route"}
		}), "", []string{"came: GET /{word}/{uuid} for", "route: none", "who: nobody was asked", "decision: policies were not asked", "why: no_route"}, nil},
		"expired": {request(func(r *record.Record) {
			r.Status, r.UpstreamStatus, r.Upstream, r.Authz = 401, 0, record.Upstream{}, record.Authz{}
			r.Authn = record.Authn{Issuer: "corp", Outcome: "failed", Reason: "token_expired"}
			r.Error = record.Error{Origin: "identity", Reason: "token_expired", Phase: "authn"}
		}), "", []string{"who: not established: token_expired", "why: token_expired", "fresh token"}, nil},
		"limited": {request(func(r *record.Record) {
			r.Status, r.UpstreamStatus, r.Upstream = 429, 0, record.Upstream{}
			r.Limit = record.Limit{Rule: "slow", Outcome: "limited", RetryS: 30}
			r.Error = record.Error{Origin: "limit", Reason: "rate_limited", Phase: "limit"}
		}), "", []string{"limit: slow said limited; come again in 30 s"}, nil},
		"upstream down": {request(func(r *record.Record) {
			r.Status, r.UpstreamStatus = 502, 0
			r.Upstream = record.Upstream{Name: "orders", Target: "http://10.0.0.5", Attempts: 2}
			r.Error = record.Error{Origin: "upstream", Reason: "connect_refused", Phase: "connect"}
		}), "", []string{"upstream: orders at http://10.0.0.5 gave no usable answer, at attempt 2", "why: connect_refused (upstream, phase connect): the upstream refused the connection"}, nil},
		"upstream's own error": {request(func(r *record.Record) { r.Status, r.UpstreamStatus = 500, 500 }), "", []string{"the status is the upstream's own"}, nil},
		"broken off": {request(func(r *record.Record) {
			r.Error = record.Error{Origin: "upstream", Reason: "reset_mid_body", Phase: "body"}
		}), "", []string{"the answer was broken off"}, nil},
		"gone": {request(func(r *record.Record) {
			r.Status, r.Error = 499, record.Error{Origin: "client", Reason: "client_aborted", Phase: "body"}
		}), "", []string{"client: went away; 12 bytes of the answer had been sent"}, nil},
		"interrupted": {request(func(r *record.Record) {
			r.Kind, r.Outcome, r.Status, r.UpstreamStatus = record.KindInterrupted, record.Unknown, 0, 0
		}), "", []string{"may have been called", "saw no complete answer", "killed or lost power", "Ask the upstream"}, nil},
		"fold": {request(func(r *record.Record) { r.Event = record.Event{Name: "fold", Count: 900} }), "", []string{"the first of 900 alike"}, nil},
		"handshake": {&record.Record{Kind: record.KindHandshake, Outcome: record.Failure, Client: record.Client{Prefix: "203.0.113.0/24"}, Error: record.Error{Origin: "client", Reason: "tls_version", Phase: "version"}}, "",
			[]string{"a connection that never became one", "client: got no answer", "older than TLS 1.2"}, []string{"route:", "decision:", "upstream:"}},
		"config": {&record.Record{Kind: record.KindConfig, Outcome: record.Failure, Event: record.Event{Name: "reload", Before: "a", Target: "data", Cause: "fixed"}, Authn: record.Authn{Method: "socket", Outcome: "ok"}, Personal: record.Personal{Sub: "uid:7"}}, "",
			[]string{"what: reload, of data (fixed): failure", "before a, after nothing", "by socket", "that is uid:7"}, []string{"client:"}},
		"a reason of another release": {request(func(r *record.Record) { r.Error = record.Error{Origin: "client", Reason: "from_the_future"} }), "", []string{"does not know the reason"}, nil},
	} {
		text := told(t, c.r, c.sealed)
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", name, want, text)
			}
		}
		for _, not := range c.not {
			if strings.Contains(text, not) {
				t.Errorf("%s: %q in\n%s", name, not, text)
			}
		}
	}
	if _, err := Story(&Match{Frame: []byte("{}")}, nil); err == nil {
		t.Error("a story of nothing")
	}
}

// TestFollower: nothing is left out and nothing comes twice, however few are
// taken at a time.
func TestFollower(t *testing.T) {
	rd, _ := newReader(t)
	want, err := found(t, rd, Query{Expr: `status == 403`})
	if err != nil {
		t.Fatal(err)
	}
	for most := 1; most < 9; most++ {
		f, err := NewFollower(Query{Expr: `status == 403`})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for from := uint64(0); from < rd.Size(); {
			matches, next, err := f.Read(rd, from, most)
			if err != nil || next <= from || len(matches) > most {
				t.Fatalf("%d at a time from %d: %d, next %d, %v", most, from, len(matches), next, err)
			}
			for _, m := range matches {
				if m.Index < from || m.Index >= next {
					t.Errorf("record %d from %d to %d", m.Index, from, next)
				}
				got = append(got, string(m.Frame))
			}
			from = next
		}
		if len(got) != len(want) {
			t.Errorf("%d at a time: %d of %d", most, len(got), len(want))
		}
	}
	if _, err := NewFollower(Query{Expr: "nonsense"}); !IsUsage(err) {
		t.Errorf("%v", err)
	}
}

// TestCountFolds: a folded record counts as often as it says, unless records
// are asked for.
func TestCountFolds(t *testing.T) {
	c := book.Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1"}
	if _, err := book.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []record.Event{{Name: "fold", Count: 40}, {Name: "fold", Count: 2}, {}, {Name: "gap", Count: 1000}} {
		r := &record.Record{Kind: record.KindRequest, Outcome: record.Failure, Status: 404, Event: e}
		if err := b.Note(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rd, err := book.OpenReader(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for records, want := range map[bool]int64{false: 44, true: 4} {
		got, err := CountBy(rd, "status", Query{Expr: `kind == "request"`}, records)
		if err != nil || len(got) != 1 || got[0].Count != want {
			t.Errorf("records %t: %v, %v; want %d", records, got, err, want)
		}
	}
}
