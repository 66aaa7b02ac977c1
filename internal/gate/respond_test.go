package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// responder makes the one route answer by itself.
func responder(f ResponderFunc, more ...func(r *Route)) houseConfig {
	return houseConfig{tune: func(r *Route) {
		r.Upstream, r.UpstreamName = nil, ""
		r.Responder, r.Kind, r.MaxBody = f, record.KindToken, 16
		r.Public, r.Authenticators, r.Engine = true, nil, nil
		for _, m := range more {
			m(r)
		}
	}}
}

func says(status int, body string, why reason.Reason) Answer {
	return Answer{Status: status, Body: []byte(body), Reason: why, Fields: []canon.Field{{Name: "cache-control", Value: "no-store"}}}
}

// robot is who the responders below find.
var robot = &authn.Principal{Method: "client_secret_basic", Issuer: "gatebook", Subject: "robot", Client: "robot"}

func always(a Answer) ResponderFunc { return func(context.Context, *Call) Answer { return a } }

// TestRespond takes every way that an exchange with a Responder can go, over
// both protocols.
func TestRespond(t *testing.T) {
	read := func(_ context.Context, c *Call) Answer {
		b, err := io.ReadAll(c.Body)
		if err != nil {
			return says(200, "never", "")
		}
		return says(200, string(b), "")
	}
	marked := func(_ context.Context, c *Call) Answer {
		if !c.Identify(robot) || !c.Mark() || !c.Mark() {
			return Answer{}
		}
		c.Record.Event = record.Event{Name: "issued"}
		return says(200, "token", "")
	}
	limit := func(key string) func(r *Route) {
		return func(r *Route) { r.Limits = []*ratelimit.Rule{oneRule(key)} }
	}
	broken := newFakeBook()
	broken.openErr = bookError(reason.BookFull)
	unmarked := responder(marked)
	unmarked.book = broken
	authenticated := responder(func(_ context.Context, c *Call) Answer { return says(200, c.Principal.Subject, "") },
		func(r *Route) { r.Public, r.Authenticators, r.Engine = false, []Authenticator{tokenAuth}, allowAll })
	for _, w := range []struct {
		name   string
		conf   houseConfig
		method string
		body   func() io.Reader
		bearer bool
		before int

		status int
		text   string // "": a problem
		why    reason.Reason
		phase  string
		opens  int
		folds  bool
		check  func(t *testing.T, resp *http.Response, rec *record.Record)
	}{
		{name: "answers", conf: responder(always(says(200, "hello", ""))), status: 200, text: "hello", check: func(t *testing.T, resp *http.Response, rec *record.Record) {
			if h := resp.Header; h.Get("Cache-Control") != "no-store" || h.Get("X-Request-Id") != rec.ID.String() || resp.ContentLength != 5 || rec.BytesOut != 5 {
				t.Errorf("%v length %d out %d", h, resp.ContentLength, rec.BytesOut)
			}
		}},
		{name: "head", conf: responder(always(says(200, "hello", ""))), method: "HEAD", status: 200, text: "-", check: func(t *testing.T, resp *http.Response, rec *record.Record) {
			if resp.ContentLength != 5 || rec.BytesOut != 0 {
				t.Errorf("length %d out %d", resp.ContentLength, rec.BytesOut)
			}
		}},
		{name: "no content", conf: responder(always(says(204, "dropped", ""))), status: 204, text: "-"},
		{name: "reads", conf: responder(read), method: "POST", body: func() io.Reader { return body(16) }, status: 200, text: strings.Repeat("b", 16), check: func(t *testing.T, _ *http.Response, rec *record.Record) {
			if rec.BytesIn != 16 {
				t.Errorf("bytes_in %d", rec.BytesIn)
			}
		}},
		{name: "declared too large", conf: responder(read), method: "POST", body: func() io.Reader { return body(17) }, status: 413, why: reason.BodyTooLarge, phase: phaseAdmit, folds: true},
		{name: "too large", conf: responder(read), method: "POST", body: func() io.Reader { return chunked(17) }, status: 413, why: reason.BodyTooLarge, phase: phaseRespond, folds: true},
		{name: "refuses in its own words", conf: responder(always(says(400, `{"error":"invalid_grant"}`, reason.TokenReuseDetected))), status: 400, text: `{"error":"invalid_grant"}`, why: reason.TokenReuseDetected, phase: phaseRespond},
		{name: "refuses in the gate's words", conf: responder(always(Answer{Reason: reason.SessionExpired})), status: 401, why: reason.SessionExpired, phase: phaseRespond, folds: true},
		{name: "a failed attempt", conf: responder(always(Answer{Failure: &authn.Failure{Reason: reason.KeyUnknown, Claimed: "mallory"}})), status: 401, why: reason.KeyUnknown, phase: phaseRespond, folds: true, check: func(t *testing.T, _ *http.Response, rec *record.Record) {
			if a := rec.Authn; rec.Personal.Claimed != "mallory" || a.Outcome != "failed" || a.Reason != "key_unknown" {
				t.Errorf("%+v claimed %q", a, rec.Personal.Claimed)
			}
		}},
		{name: "identified and marked", conf: responder(marked), status: 200, text: "token", opens: 1, check: func(t *testing.T, _ *http.Response, rec *record.Record) {
			if a := rec.Authn; a.Method != robot.Method || a.Client != "robot" || a.Outcome != "ok" || rec.Raw.IssuerSub != "gatebook|robot" || rec.Event.Name != "issued" {
				t.Errorf("%+v %+v %q", a, rec.Event, rec.Raw.IssuerSub)
			}
		}},
		{name: "no mark", conf: unmarked, status: 503, why: reason.BookFull, phase: phaseOpen},
		{name: "refused after the mark", conf: responder(func(_ context.Context, c *Call) Answer {
			c.Mark()
			return says(400, "no", reason.TokenExpired)
		}), status: 400, text: "no", why: reason.TokenExpired, phase: phaseRespond, opens: 1},
		{name: "refused and known", conf: responder(func(_ context.Context, c *Call) Answer {
			c.Identify(robot)
			return says(400, "no", reason.TokenExpired)
		}), status: 400, text: "no", why: reason.TokenExpired, phase: phaseRespond},
		{name: "limited by client", conf: responder(func(_ context.Context, c *Call) Answer {
			p := *robot
			p.Client = fmt.Sprint("robot", c.Request.Method)
			if !c.Identify(&p) {
				return says(200, "never", "")
			}
			return says(200, "hello", "")
		}, func(r *Route) {
			r.Limits = []*ratelimit.Rule{{Name: "tight", Key: ratelimit.KeyClient, Rate: 1, Per: time.Hour, Burst: 2}}
		}), before: 1, method: "POST", status: 200, text: "hello"},
		{name: "limited by address", conf: responder(marked, limit(ratelimit.KeyPrefix)), before: 1, status: 429, why: reason.RateLimited, phase: phaseLimit, folds: true},
		{name: "strangers are limited by address", conf: responder(always(says(400, "no", reason.KeyUnknown)), limit(ratelimit.KeyClient)), before: 1, status: 429, why: reason.RateLimited, phase: phaseLimit, folds: true},
		{name: "authenticated", conf: authenticated, bearer: true, status: 200, text: "alice"},
		{name: "not authenticated", conf: authenticated, status: 401, why: reason.NoCredential, phase: phaseAuthn, folds: true},
		{name: "panics", conf: responder(func(context.Context, *Call) Answer { panic("a") }), status: 500, why: reason.Panic, phase: phaseRespond},
		{name: "says nothing", conf: responder(always(Answer{})), status: 500, why: reason.Panic, phase: phaseRespond},
		{name: "says nonsense", conf: responder(always(says(99, "", ""))), status: 500, why: reason.Panic, phase: phaseRespond},
		{name: "unknown reason", conf: responder(always(says(400, "no", "made_up"))), status: 500, why: reason.Panic, phase: phaseRespond},
	} {
		t.Run(w.name, func(t *testing.T) {
			newHouse(t, w.conf).both(func(t *testing.T, _ *http.Client, proto string) {
				h := newHouse(t, w.conf)
				c := h.h1
				if proto == "HTTP/2" {
					c = h.h2
				}
				for range w.before {
					if _, _, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
						t.Fatal(err)
					}
					<-h.book.done
				}
				if w.method == "" {
					w.method = "GET"
				}
				var in io.Reader
				if w.body != nil {
					in = w.body()
				}
				opens := h.book.opened()
				r := h.request(t, w.method, "/v1/orders/42", in)
				if !w.bearer {
					r.Header.Del("Authorization")
				}
				resp, text, err := do(t, c, r)
				if err != nil {
					t.Fatal(err)
				}
				got := h.one(t)
				rec := &got.rec
				if w.text == "" && resp.Header.Get("Content-Type") != "application/problem+json" {
					t.Errorf("answer %q is no problem", text)
				}
				if w.text != "" && text != strings.TrimPrefix(w.text, "-") {
					t.Errorf("answer %q", text)
				}
				if resp.StatusCode != w.status || rec.Status != w.status || rec.Error.Reason != string(w.why) || rec.Error.Phase != w.phase || rec.Kind != record.KindToken || rec.Route != "orders" {
					t.Errorf("status %d; record %s: %d %+v route %s", resp.StatusCode, rec.Kind, rec.Status, rec.Error, rec.Route)
				}
				if (rec.Outcome == record.Success) != (w.why == "") || rec.Raw.Fold != w.folds || rec.Upstream.Name != "" {
					t.Errorf("outcome %s folds %v upstream %q", rec.Outcome, rec.Raw.Fold, rec.Upstream.Name)
				}
				if n := h.book.opened() - opens; n != w.opens || (got.ref == rec.ID) != (w.opens == 1) {
					t.Errorf("%d open marks, want %d", n, w.opens)
				}
				if w.check != nil {
					w.check(t, resp, rec)
				}
			})
		})
	}
}

// TestRespondLimitsByClient: of two clients at one address the limit by client
// stops the one that used it up.
func TestRespondLimitsByClient(t *testing.T) {
	rule := &ratelimit.Rule{Name: "tight", Key: ratelimit.KeyClient, Rate: 1, Per: time.Hour, Burst: 2}
	h := newHouse(t, responder(func(_ context.Context, c *Call) Answer {
		name, _ := c.Request.Get("x-who")
		if c.Identify(&authn.Principal{Method: "client_secret_basic", Issuer: "gatebook", Subject: name, Client: name}); !c.Mark() {
			return Answer{}
		}
		return says(200, name, "")
	}, func(r *Route) { r.Limits = []*ratelimit.Rule{rule} }))
	h.gate.limiter = byKey{h.gate.limiter} // addresses are never limited
	for i, want := range []int{200, 200, 429} {
		resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/42", nil, "X-Who", "a"))
		if err != nil || resp.StatusCode != want {
			t.Errorf("request %d: %v %v", i, resp, err)
		}
		if got := h.one(t); want == 429 && got.ref != (record.Ref{}) {
			t.Error("a mark was made for what was refused")
		} else if rec := got.rec; want == 429 && (rec.Limit.Rule != "tight" || rec.Authn.Client != "a" || rec.Raw.Fold) {
			t.Errorf("%+v %+v", rec.Limit, rec.Authn)
		}
	}
	resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/42", nil, "X-Who", "b"))
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("the other client: %v %v", resp, err)
	}
	h.one(t)
}

// byKey never limits an address.
type byKey struct{ Limiter }

func (byKey) TakePrefix(*ratelimit.Rule, netip.Prefix, time.Time) ratelimit.Result {
	return ratelimit.Result{Allowed: true}
}

// TestRespondUnrecorded: what the book does not take is not answered, and not
// answered twice either.
// TestRespondFailures: guesses that a Responder finds count like others, and too
// many are answered like others. Who is right goes on.
func TestRespondFailures(t *testing.T) {
	wrong := func(name string) Answer {
		return Answer{Status: 401, Body: []byte("wrong"), Failure: &authn.Failure{Reason: reason.KeyUnknown, Claimed: name}}
	}
	conf := responder(func(_ context.Context, c *Call) Answer {
		switch name := c.Request.Query; {
		case name == "right":
			if !c.Identify(robot) {
				return Answer{}
			}
			return says(200, "token", "")
		case name == "late":
			return Answer{Status: 401, Failure: &authn.Failure{Reason: reason.TokenExpired, Claimed: name}}
		default:
			return wrong(name)
		}
	})
	conf.snap = func(c *SnapshotConfig) {
		c.Failures, c.Alerts = failLimits(), AlertRules{Window: time.Minute, Least: DefaultAlerts()}
	}
	h := newHouse(t, conf)
	h.gate.now = func() time.Time { return epoch }
	ask := func(name string, status int, rule string) {
		t.Helper()
		resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/7?"+name, nil))
		if err != nil {
			t.Fatal(err)
		}
		rec := h.one(t).rec
		if resp.StatusCode != status || rec.Status != status || rec.Limit.Rule != rule || rule != "" && (rec.Error.Reason != "rate_limited" || rec.Personal.Claimed != name || resp.Header.Get("Retry-After") == "") {
			t.Fatalf("%s: %d, %+v, %+v, claimed %q", name, resp.StatusCode, rec.Error, rec.Limit, rec.Personal.Claimed)
		}
	}
	for range 4 {
		ask("svc", 401, "")
	}
	ask("svc", 429, "failed_logins.name")
	ask("other", 401, "")
	ask("late", 401, "")
	for i := range 5 {
		ask(fmt.Sprint("svc", i), 401, "")
	}
	ask("svc9", 429, "failed_logins.rate")
	ask("late", 401, "") // not one that guessing makes
	ask("right", 200, "")
	if n := h.gate.HeldBack(); n != 2 {
		t.Errorf("%d held back", n)
	}
	h.gate.alerts.mu.Lock()
	defer h.gate.alerts.mu.Unlock()
	held := int64(0)
	for key, e := range h.gate.alerts.table {
		if key.name == AlertLoginFailMax {
			held += e.count
		}
	}
	if held == 0 {
		t.Error("no alert that so many failed")
	}
}

// TestOwnCookie: an upstream sets none of the gate's cookies, however it writes
// them.
func TestOwnCookie(t *testing.T) {
	for value, own := range map[string]bool{
		"__Host-gatebook=x; Path=/": true, "__host-GATEBOOK=x": true, " __Host-gatebook =x": true, "__Host-gatebook-login-1=x": true,
		"=__Host-gatebook=x; Path=/; Secure": true, " = __Host-gatebook=x": true, "__Host-gatebook; Path=/": true,
		"a=__Host-gatebook=x": false, "__Host-gatebooks=x": false, "=x; Path=/": false, "id=1; Path=/__Host-gatebook=": false, "x": false, "": false, "=": false, "==x": false,
	} {
		if got := ownCookie(&canon.Field{Name: "set-cookie", Value: value}); got != own {
			t.Errorf("%q: %v", value, got)
		}
	}
}

func TestRespondUnrecorded(t *testing.T) {
	b := newFakeBook()
	b.commitErr = errors.New("disk")
	c := responder(always(says(200, "secret", "")))
	c.book = b
	h := newHouse(t, c)
	resp, text, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/42", nil))
	if err != nil || resp.StatusCode != 503 || strings.Contains(text, "secret") {
		t.Errorf("%v %q %v", resp, text, err)
	}
}

// TestRespondRouteChecks: a route answers in one way, and reads no body
// without a bound.
func TestRespondRouteChecks(t *testing.T) {
	for _, c := range []struct {
		tune func(r *Route)
		want string
	}{
		{func(r *Route) { r.Upstream, r.UpstreamName = answers(200, 0, nil), "orders" }, "an upstream and a responder at once"},
		{func(r *Route) { r.MaxBody = 0 }, "needs a limit on the body"},
		{func(r *Route) { r.Kind = record.KindStart }, "not made here"},
		{func(r *Route) {
			r.Responder, r.Kind, r.Upstream, r.UpstreamName = nil, record.KindToken, answers(200, 0, nil), "orders"
		}, "not made here"},
	} {
		r := &Route{Name: "orders", Path: "/", Public: true, Responder: always(Answer{}), MaxBody: 1}
		c.tune(r)
		if err := r.check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}
