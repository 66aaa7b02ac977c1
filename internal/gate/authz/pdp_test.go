package authz

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// TestPoint: both must allow, and nothing but a clear yes is one.
func TestPoint(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	answer := func(status int, typ, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", typ)
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	const js = "application/json"
	for _, c := range []struct {
		name string
		h    http.HandlerFunc
		want reason.Reason
	}{
		{"yes", answer(200, js, `{"decision": true}`), ""},
		{"yes with a context", answer(200, js+"; charset=utf-8", ` {"context": {"a": [1]}, "decision": true} `), ""},
		{"no", answer(200, js, `{"decision": false}`), reason.DeniedByPolicy},
		{"a word", answer(200, js, `{"decision": "true"}`), reason.PolicyUnavailable},
		{"a number", answer(200, js, `{"decision": 1}`), reason.PolicyUnavailable},
		{"null", answer(200, js, `{"decision": null}`), reason.PolicyUnavailable},
		{"nothing", answer(200, js, `{}`), reason.PolicyUnavailable},
		{"twice", answer(200, js, `{"decision": false, "decision": true}`), reason.PolicyUnavailable},
		{"twice in another case", answer(200, js, `{"decision": false, "Decision": true}`), reason.PolicyUnavailable},
		{"two answers", answer(200, js, `{"decision": true}{"decision": false}`), reason.PolicyUnavailable},
		{"a list", answer(200, js, `[{"decision": true}]`), reason.PolicyUnavailable},
		{"not JSON", answer(200, "text/plain", `{"decision": true}`), reason.PolicyUnavailable},
		{"cut off", answer(200, js, `{"decision": true`), reason.PolicyUnavailable},
		{"an error", answer(500, js, `{"decision": true}`), reason.PolicyUnavailable},
		{"created", answer(201, js, `{"decision": true}`), reason.PolicyUnavailable},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/yes", http.StatusTemporaryRedirect)
		}, reason.PolicyUnavailable},
		{"endless", answer(200, js, `{"decision": true, "x": "`+strings.Repeat("x", maxZenAnswer)+`"}`), reason.PolicyUnavailable},
		{"silent", func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) // only then is a client that leaves noticed
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}, reason.PolicyUnavailable},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, reason.PolicyUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := httptest.NewServer(c.h)
			defer s.Close()
			p := NewPoint(PointConfig{Name: "opa", URL: s.URL, Timeout: 500 * time.Millisecond, Conns: 2, Token: "t"})
			defer p.Close()
			b := &Both{mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}}), p}
			d := b.Decide(asks(nil))
			if d.Allow != (c.want == "") || d.Reason != c.want || !slices.Contains(d.Policies, "pdp:opa") || (c.want == reason.PolicyUnavailable) != (len(d.Errors) > 0) {
				t.Errorf("%+v, want %q", d, c.want)
			}
			if strings.Contains(strings.Join(d.Errors, " "), "alice") {
				t.Errorf("the error tells who asked: %v", d.Errors)
			}
		})
	}
	p := NewPoint(PointConfig{Name: "opa", URL: "http://127.0.0.1:1/", Timeout: time.Second, Conns: 2})
	b := &Both{mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}}), p}
	if d := b.Decide(asks(nil)); d.Reason != reason.PolicyUnavailable {
		t.Errorf("nobody there: %+v", d)
	}
}

// TestPointQuestion: what the policies deny is not asked, and the question is
// one that our own endpoint answers as our policies do.
func TestPointQuestion(t *testing.T) {
	live := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}})
	inner := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}}, "p.cedar",
		`@id("x") forbid(principal is User, action in [Action::"GET /v1/orders/{id}"], resource == Route::"orders.read") when { context.params.id == "9" && context.acr == "mfa" && context.scopes.contains("orders") && principal.hasTag("dept") && principal.getTag("dept") == "sales" && context.ip == ip("203.0.113.7") && context has auth_age && context.auth_age == 90 };`)
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		q, err := ParseZen(body)
		if err != nil {
			t.Error(err)
		}
		_, d, err := inner.EvaluateZen(&q.ZenEvaluation, time.Now())
		if err != nil {
			t.Error(err)
		}
		if r.Header.Get("Authorization") != "Bearer secret" {
			t.Error("no token")
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(ZenDecision{Decision: d.Allow})
	}))
	defer s.Close()
	b := &Both{live, NewPoint(PointConfig{Name: "us", URL: s.URL, Timeout: 5 * time.Second, Conns: 1, Token: "secret"})}
	if d := b.Decide(asks(nil)); !d.Allow || !slices.Equal(d.Policies, []string{"pdp:us", "role:clerk:orders.read"}) {
		t.Errorf("%+v", d)
	}
	if d := b.Decide(asks(func(r *Request) { r.Params = []Param{{"id", "9"}} })); d.Allow || d.Reason != reason.DeniedByPolicy {
		t.Errorf("%+v", d)
	}
	if d := b.Decide(asks(func(r *Request) { r.Roles = nil })); d.Reason != reason.DeniedByDefault || asked.Load() != 2 {
		t.Errorf("%+v, asked %d times", d, asked.Load())
	}
}

// TestPointIsBounded: no more connections than allowed, and waiting for one is
// part of the time.
func TestPointIsBounded(t *testing.T) {
	var now, most atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer s.Close()
	b := &Both{mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}}), NewPoint(PointConfig{Name: "x", URL: s.URL, Timeout: 200 * time.Millisecond, Conns: 2})}
	done := make(chan time.Duration, 8)
	for range 8 {
		go func() {
			begin := time.Now()
			if d := b.Decide(asks(nil)); d.Reason != reason.PolicyUnavailable {
				t.Errorf("%+v", d)
			}
			done <- time.Since(begin)
		}()
	}
	for range 8 {
		if took := <-done; took > 5*time.Second {
			t.Errorf("waited %v", took)
		}
	}
	if most.Load() > 2 {
		t.Errorf("%d connections at once", most.Load())
	}
}

func TestZenRefuses(t *testing.T) {
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}})
	const who, what, which = `"subject": {"type": "user", "id": "a", "properties": {"issuer": "corp"}}`, `"action": {"name": "GET"}`, `"resource": {"type": "route", "id": "orders.read", "properties": {"params": {"id": "1"}}}`
	for _, c := range []struct{ text, want string }{
		{"{" + who + "," + what + "," + which + "}", ""},
		{"{" + who + "," + what + "}", "resource with"},
		{"{" + who + "," + which + "}", "action with"},
		{"{" + what + "," + which + "}", "subject with"},
		{`{"subject": {"type": "user", "id": "a"},` + what + "," + which + "}", "issuer is missing"},
		{`{"subject": {"type": "robot", "id": "a"},` + what + "," + which + "}", "subject type"},
		{"{" + who + "," + what + `, "resource": {"type": "book", "id": "a"}}`, "resource type"},
		{"{" + who + "," + what + `, "resource": {"type": "route", "id": "a"}}`, `route "a"`},
		{"{" + who + `, "action": {"name": "FLY"},` + which + "}", `method "FLY"`},
		{"{" + who + "," + what + "," + which + `, "context": {"auth_age": -1}}`, "auth_age"},
		{"{" + who + "," + what + "," + which + `, "context": []}`, "context"},
		{"{" + who + "," + who + "}", "occurs twice"},
		{`{"options": {"evaluations_semantic": "some"}}`, "not known"},
		{`{"evaluations": [` + strings.Repeat("{},", 100) + `{}]}`, "at most 100"},
		{`[]`, "cannot unmarshal"},
		{``, ""},
	} {
		q, err := ParseZen([]byte(c.text))
		if err == nil {
			_, _, err = e.EvaluateZen(&q.ZenEvaluation, testNow)
		}
		if c.text != "" && (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.text, err, c.want)
		}
	}
}

// FuzzZen: whatever comes, it is answered or refused, and never allowed to
// somebody without a role.
func FuzzZen(f *testing.F) {
	e := mustEngine(f, map[string]Role{"clerk": {Allow: []string{"orders.read"}}})
	f.Add([]byte(`{"subject": {"type": "user", "id": "a", "properties": {"issuer": "corp", "roles": ["boss"]}}, "action": {"name": "GET"}, "resource": {"type": "route", "id": "orders.read", "properties": {"path": "/v1/orders/1"}}, "context": {"ip": "10.0.0.1"}}`))
	f.Add([]byte(`{"evaluations": [{}], "options": {"evaluations_semantic": "deny_on_first_deny"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := ParseZen(body)
		if err != nil {
			return
		}
		r, d, err := e.EvaluateZen(&q.ZenEvaluation, testNow)
		if err == nil && d.Allow && !slices.Contains(r.Roles, "clerk") {
			t.Errorf("%s: %+v", body, d)
		}
		if allow, err := parseZenDecision(body); allow && err == nil && !strings.Contains(string(body), "true") {
			t.Errorf("%s is a yes", body)
		}
	})
}
