package gate

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

func broken(r reason.Reason) backend {
	return func(context.Context, *upstream.Request) (*upstream.Response, error) {
		return nil, &upstream.Error{Reason: r, Phase: "connect", Err: errors.New("broken"), Target: "10.0.0.6:80", Attempts: 2}
	}
}

// midBody answers with a head and parts of a body, then fails.
func midBody(length int64, end error, parts ...string) backend {
	return func(context.Context, *upstream.Request) (*upstream.Response, error) {
		return response(200, length, nil, end, parts...), nil
	}
}

var resetMidBody = &upstream.Error{Reason: reason.ResetMidBody, Phase: "body", Err: errors.New("reset")}

type panicBody struct{ pieces }

func (p *panicBody) Read(b []byte) (int, error) {
	if len(p.parts) == 0 {
		panic("body")
	}
	return p.pieces.Read(b)
}

func panicsMidBody(length int64) backend {
	return func(context.Context, *upstream.Request) (*upstream.Response, error) {
		r := response(200, length, nil, nil)
		r.Body = &panicBody{pieces{parts: []string{"some"}}}
		return r, nil
	}
}

func oneRule(key string) *ratelimit.Rule {
	return &ratelimit.Rule{Name: "tight", Key: key, Rate: 1, Per: time.Hour, Burst: 1}
}

func body(n int) io.Reader { return strings.NewReader(strings.Repeat("b", n)) }

// chunked hides the length.
func chunked(n int) io.Reader { return struct{ io.Reader }{body(n)} }

// way is one way through the pipeline.
type way struct {
	name   string
	conf   houseConfig
	before int // requests that use up limits
	method string
	path   string
	body   func() io.Reader
	fields []string

	status  int // 0: the client gets no complete answer
	want    reason.Reason
	phase   string
	kind    record.Kind
	route   string
	opens   int // open marks of this exchange
	check   func(t *testing.T, resp *http.Response, text string, rec *record.Record)
	sent    int64 // bytes_out, if not 0
	upSeen  int   // upstream_status
	recStat int   // recorded status if not status
}

func ways() []way {
	tune := func(f func(r *Route)) houseConfig { return houseConfig{tune: f} }
	auth := func(f fakeAuth) houseConfig {
		return tune(func(r *Route) { r.Authenticators = []Authenticator{f} })
	}
	engine := func(f policy) houseConfig { return tune(func(r *Route) { r.Engine = f }) }
	keys := tune(func(r *Route) {
		r.Authenticators = []Authenticator{tokenAuth, keyAuth}
		r.CredentialFields = []string{"x-api-key"}
	})
	return []way{
		{name: "plain", status: 200, opens: 1, sent: 5, upSeen: 200},
		{name: "post", method: "POST", body: func() io.Reader { return body(1000) }, status: 200, opens: 1, check: bytesIn(1000)},
		{name: "post of unknown length", method: "POST", body: func() io.Reader { return chunked(100_000) }, status: 200, opens: 1, check: bytesIn(100_000)},
		{name: "head", method: "HEAD", status: 200, opens: 1, check: headAsGet},
		{name: "no content", conf: houseConfig{up: answers(204, 0, nil)}, status: 204, opens: 1},
		{name: "not modified", conf: houseConfig{up: answers(304, -1, nil)}, status: 304, opens: 1},
		{name: "empty", conf: houseConfig{up: answers(200, 0, nil)}, status: 200, opens: 1},
		{name: "unknown length", conf: houseConfig{up: answers(200, -1, nil, "ab", "cd")}, status: 200, opens: 1, sent: 4},
		{name: "known length in pieces", conf: houseConfig{up: answers(200, 6, nil, "ab", "cd", "ef")}, status: 200, opens: 1, sent: 6},
		{name: "upstream error status", conf: houseConfig{up: answers(500, 2, nil, "no")}, status: 500, opens: 1, upSeen: 500},
		{name: "public", conf: tune(func(r *Route) { r.Public, r.Authenticators, r.Engine = true, nil, nil }), fields: []string{"Authorization", ""}, status: 200, opens: 1, check: anonymous},

		{name: "no route", path: "/nowhere", status: 404, want: reason.NoRoute, phase: "route", route: "none"},
		{name: "wrong method", method: "DELETE", status: 405, want: reason.MethodNotAllowed, phase: "route", route: "none", check: field("Allow", "GET, HEAD, POST, PUT")},
		{name: "options not listed", method: "OPTIONS", status: 405, want: reason.MethodNotAllowed, phase: "route", route: "none"},
		{name: "encoded slash", path: "/v1/orders/a%2fb", status: 400, want: reason.BadPath, phase: "parse", route: "none", kind: record.KindMalformed},
		{name: "alias of our field", fields: []string{"x_gatebook_subject", "admin"}, status: 400, want: reason.MalformedRequest, phase: "parse", route: "none", kind: record.KindMalformed},
		{name: "upgrade", fields: []string{"Connection", "Upgrade", "Upgrade", "websocket"}, status: 400, want: reason.UpgradeRefused, phase: "admit"},

		{name: "limit before authentication", conf: houseConfig{snap: func(s *SnapshotConfig) {
			s.Listeners[0].PreAuth = []*ratelimit.Rule{oneRule(ratelimit.KeyPrefix)}
		}}, before: 1, status: 429, want: reason.RateLimited, phase: "limit", route: "none", check: limited},
		{name: "limit by subject", conf: tune(func(r *Route) { r.Limits = []*ratelimit.Rule{oneRule(ratelimit.KeySubject)} }), before: 1, status: 429, want: reason.RateLimited, phase: "limit", check: limited},
		{name: "limit by client", conf: tune(func(r *Route) { r.Limits = []*ratelimit.Rule{oneRule(ratelimit.KeyClient)} }), before: 1, status: 429, want: reason.RateLimited, phase: "limit", check: limited},
		{name: "limit by route", conf: tune(func(r *Route) { r.Limits = []*ratelimit.Rule{oneRule(ratelimit.KeyRoute)} }), before: 1, status: 429, want: reason.RateLimited, phase: "limit", check: limited},
		{name: "limit by prefix", conf: tune(func(r *Route) { r.Limits = []*ratelimit.Rule{oneRule(ratelimit.KeyPrefix)} }), before: 1, status: 429, want: reason.RateLimited, phase: "limit", check: limited},

		{name: "no credential", fields: []string{"Authorization", ""}, status: 401, want: reason.NoCredential, phase: "authn", check: field("Www-Authenticate", `Bearer realm="gatebook"`)},
		{name: "expired", fields: []string{"Authorization", "Bearer old"}, status: 401, want: reason.TokenExpired, phase: "authn", check: claimed},
		{name: "second method", conf: keys, fields: []string{"Authorization", "", "X-Api-Key", "key"}, status: 200, opens: 1},
		{name: "second method fails", conf: keys, fields: []string{"Authorization", "", "X-Api-Key", "no"}, status: 401, want: reason.KeyUnknown, phase: "authn"},
		{name: "first method fails, second not asked", conf: keys, fields: []string{"Authorization", "Bearer old"}, status: 401, want: reason.TokenExpired, phase: "authn"},
		{name: "two credentials", conf: keys, fields: []string{"X-Api-Key", "key"}, status: 400, want: reason.TwoCredentials, phase: "authn", check: field("Www-Authenticate", `Bearer realm="gatebook", error="invalid_request"`)},
		{name: "cookie beside token", conf: keys, fields: []string{"Cookie", "session=other"}, status: 200, opens: 1},
		{name: "not mine", conf: auth(func(*canon.Request) (*authn.Principal, error) {
			return nil, &authn.NotMine{Failure: authn.Failure{Reason: reason.TokenIssuer}}
		}), status: 401, want: reason.TokenIssuer, phase: "authn"},
		{name: "neither yes nor no", conf: auth(func(*canon.Request) (*authn.Principal, error) { return nil, nil }), status: 503, want: reason.IssuerUnavailable, phase: "authn"},
		{name: "error without a reason", conf: auth(func(*canon.Request) (*authn.Principal, error) { return alice, errors.New("x") }), status: 503, want: reason.IssuerUnavailable, phase: "authn"},
		{name: "reason outside the list", conf: auth(func(*canon.Request) (*authn.Principal, error) {
			return nil, &authn.Failure{Reason: "made_up"}
		}), status: 503, want: reason.IssuerUnavailable, phase: "authn"},

		{name: "denied", conf: engine(func(*authz.Request) authz.Decision {
			return authz.Decision{Reason: reason.DeniedByPolicy, Policies: []string{"no"}, Set: "s"}
		}), status: 403, want: reason.DeniedByPolicy, phase: "authz", check: decided("deny", "no")},
		{name: "zero decision", conf: engine(func(*authz.Request) authz.Decision { return authz.Decision{} }), status: 403, want: reason.DeniedByDefault, phase: "authz"},
		{name: "allow with an error", conf: engine(func(*authz.Request) authz.Decision {
			return authz.Decision{Allow: true, Reason: reason.PolicyError, Errors: []string{"p"}}
		}), status: 403, want: reason.PolicyError, phase: "authz"},
		{name: "allow with an error and no reason", conf: engine(func(*authz.Request) authz.Decision {
			return authz.Decision{Allow: true, Errors: []string{"p"}}
		}), status: 403, want: reason.DeniedByDefault, phase: "authz"},
		{name: "scope missing", conf: tune(func(r *Route) { r.Scopes = []string{"read", "write"} }), status: 403, want: reason.ScopeMissing, phase: "authz",
			check: field("Www-Authenticate", `Bearer realm="gatebook", error="insufficient_scope", scope="read write"`)},

		{name: "body too large", conf: tune(func(r *Route) { r.MaxBody = 10 }), method: "POST", body: func() io.Reader { return body(11) }, status: 413, want: reason.BodyTooLarge, phase: "admit"},
		{name: "body just fits", conf: tune(func(r *Route) { r.MaxBody = 10 }), method: "POST", body: func() io.Reader { return body(10) }, status: 200, opens: 1},
		{name: "chunked body just fits", conf: tune(func(r *Route) { r.MaxBody = 10 }), method: "POST", body: func() io.Reader { return chunked(10) }, status: 200, opens: 1},
		{name: "chunked body too large", conf: tune(func(r *Route) { r.MaxBody = 10 }), method: "POST", body: func() io.Reader { return chunked(11) }, status: 413, want: reason.BodyTooLarge, phase: "forward", opens: 1},

		{name: "refused", conf: houseConfig{up: broken(reason.ConnectRefused)}, status: 502, want: reason.ConnectRefused, phase: "connect", opens: 1, check: target("10.0.0.6:80", 2)},
		{name: "slow", conf: houseConfig{up: broken(reason.ResponseTimeout)}, status: 504, want: reason.ResponseTimeout, phase: "connect", opens: 1},
		{name: "breaker", conf: houseConfig{up: broken(reason.BreakerOpen)}, status: 503, want: reason.BreakerOpen, phase: "connect", opens: 1},
		{name: "pool closed", conf: houseConfig{up: backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
			return nil, upstream.ErrClosed
		})}, status: 503, want: reason.ShuttingDown, phase: "forward", opens: 1},
		{name: "cannot be sent", conf: houseConfig{up: backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
			return nil, errors.New("bytes")
		})}, status: 400, want: reason.MalformedRequest, phase: "forward", opens: 1},
		{name: "switching protocols unasked", conf: houseConfig{up: answers(101, 0, nil)}, status: 502, want: reason.BadResponse, phase: "forward", opens: 1},
		{name: "status 600", conf: houseConfig{up: answers(600, 0, nil)}, status: 502, want: reason.BadResponse, phase: "forward", opens: 1},
		{name: "reset before the body", conf: houseConfig{up: midBody(10, resetMidBody)}, status: 502, want: reason.ResetMidBody, phase: "body", opens: 1},
		{name: "reset in a known body", conf: houseConfig{up: midBody(10, resetMidBody, "abc")}, want: reason.ResetMidBody, phase: "body", opens: 1, recStat: 200, sent: 3},
		{name: "reset in a stream", conf: houseConfig{up: midBody(-1, resetMidBody, "abc")}, want: reason.ResetMidBody, phase: "body", opens: 1, recStat: 200, sent: 3},
		{name: "body too short", conf: houseConfig{up: midBody(10, io.EOF, "abc", "def")}, want: reason.BodyLengthMismatch, phase: "body", opens: 1, recStat: 200, sent: 6},
		{name: "body too long", conf: houseConfig{up: midBody(4, io.EOF, "abc", "def")}, want: reason.BodyLengthMismatch, phase: "body", opens: 1, recStat: 200, sent: 3},

		{name: "panic in authentication", conf: auth(func(*canon.Request) (*authn.Principal, error) { panic("a") }), status: 500, want: reason.Panic, phase: "authn"},
		{name: "panic in a policy", conf: engine(func(*authz.Request) authz.Decision { panic("a") }), status: 500, want: reason.Panic, phase: "authz"},
		{name: "panic in the upstream", conf: houseConfig{up: backend(func(context.Context, *upstream.Request) (*upstream.Response, error) { panic("a") })}, status: 500, want: reason.Panic, phase: "forward", opens: 1},
		{name: "panic mid-body", conf: houseConfig{up: panicsMidBody(10)}, want: reason.Panic, phase: "body", opens: 1, recStat: 200, sent: 4},
		{name: "panic mid-stream", conf: houseConfig{up: panicsMidBody(-1)}, want: reason.Panic, phase: "body", opens: 1, recStat: 200, sent: 4},
	}
}

type checkFunc = func(t *testing.T, resp *http.Response, text string, rec *record.Record)

func bytesIn(n int64) checkFunc {
	return func(t *testing.T, _ *http.Response, _ string, rec *record.Record) {
		if rec.BytesIn != n {
			t.Errorf("bytes_in %d, want %d", rec.BytesIn, n)
		}
	}
}

func headAsGet(t *testing.T, resp *http.Response, _ string, rec *record.Record) {
	if rec.Method != "HEAD" || rec.Op != "GET /v1/orders/{id}" || rec.BytesOut != 0 || resp.ContentLength != 5 {
		t.Errorf("method %q op %q out %d length %d", rec.Method, rec.Op, rec.BytesOut, resp.ContentLength)
	}
}

func anonymous(t *testing.T, _ *http.Response, _ string, rec *record.Record) {
	if rec.Authn.Method != record.None || rec.Raw.IssuerSub != "" || rec.Authz.Decision != "allow" || rec.Raw.RemoteAddr != "127.0.0.1" {
		t.Errorf("%+v %+v %+v", rec.Authn, rec.Authz, rec.Raw)
	}
}

func field(name, want string) checkFunc {
	return func(t *testing.T, resp *http.Response, _ string, _ *record.Record) {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func limited(t *testing.T, resp *http.Response, _ string, rec *record.Record) {
	h := resp.Header
	if h.Get("Retry-After") != "3600" || h.Get("Ratelimit") != `"tight";r=0;t=3600` || h.Get("Ratelimit-Policy") != `"tight";q=1;w=3600` {
		t.Errorf("fields %v", h)
	}
	if want := (record.Limit{Rule: "tight", Outcome: "limited", RetryS: 3600, Mode: "local"}); rec.Limit != want {
		t.Errorf("limit %+v", rec.Limit)
	}
}

func claimed(t *testing.T, resp *http.Response, _ string, rec *record.Record) {
	if got := resp.Header.Get("Www-Authenticate"); got != `Bearer realm="gatebook", error="invalid_token"` {
		t.Errorf("challenge %q", got)
	}
	a := rec.Authn
	if rec.Personal.Claimed != "mallory" || a.Method != "fake" || a.Issuer != "corp" || a.KID != "k1" || a.Alg != "ES256" || a.Outcome != "failed" || a.Reason != "token_expired" || rec.Raw.IssuerSub != "" {
		t.Errorf("%+v claimed %q", a, rec.Personal.Claimed)
	}
}

func decided(decision, id string) checkFunc {
	return func(t *testing.T, _ *http.Response, _ string, rec *record.Record) {
		if rec.Authz.Decision != decision || len(rec.Authz.Policies) != 1 || rec.Authz.Policies[0] != id {
			t.Errorf("%+v", rec.Authz)
		}
	}
}

func target(addr string, attempts int) checkFunc {
	return func(t *testing.T, _ *http.Response, _ string, rec *record.Record) {
		if rec.Upstream.Target != addr || rec.Upstream.Attempts != attempts || rec.Upstream.Name != "orders" {
			t.Errorf("%+v", rec.Upstream)
		}
	}
}

// TestWays takes every way through the pipeline over both protocols: exactly
// one record each, with the reason, and an answer that says no more than the
// public text.
func TestWays(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
				if proto == "HTTP/2" && w.want == reason.UpgradeRefused {
					continue // HTTP/2 has no such field
				}
				w.run(t, proto)
			}
		})
	}
}

func (w way) run(t *testing.T, proto string) {
	t.Helper()
	h := newHouse(t, w.conf)
	c := h.h1
	if proto == "HTTP/2" {
		c = h.h2
	}
	if w.method == "" {
		w.method = "GET"
	}
	if w.path == "" {
		w.path = "/v1/orders/42?x=1"
	}
	if w.kind == "" {
		w.kind = record.KindRequest
	}
	if w.route == "" {
		w.route = "orders"
	}
	for range w.before {
		if _, _, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
			t.Fatal(err)
		}
		<-h.book.done
	}
	opens := h.book.opened()
	var in io.Reader
	if w.body != nil {
		in = w.body()
	}
	resp, text, err := do(t, c, h.request(t, w.method, w.path, in, w.fields...))
	got := h.one(t)
	rec := &got.rec
	if w.status == 0 {
		if err == nil {
			t.Errorf("%s: the client took a whole answer: %d %q", proto, resp.StatusCode, text)
		}
		w.status = w.recStat
	} else {
		if err != nil {
			t.Fatalf("%s: %v", proto, err)
		}
		w.answered(t, resp, text, rec)
	}
	if rec.Status != w.status || rec.Error.Reason != string(w.want) || rec.Error.Phase != w.phase || rec.Kind != w.kind || rec.Route != w.route || rec.Proto != proto {
		t.Errorf("%s: status %d error %+v kind %s route %s proto %s", proto, rec.Status, rec.Error, rec.Kind, rec.Route, rec.Proto)
	}
	if w.want != "" && rec.Error.Origin != w.want.Origin() {
		t.Errorf("%s: origin %q", proto, rec.Error.Origin)
	}
	if success := w.want == "" && w.status < 400; (rec.Outcome == record.Success) != success {
		t.Errorf("%s: outcome %s", proto, rec.Outcome)
	}
	if n := h.book.opened() - opens; n != w.opens || (got.ref == rec.ID) != (w.opens == 1) {
		t.Errorf("%s: %d open marks, want %d (ref %v)", proto, n, w.opens, got.ref)
	}
	if w.sent != 0 && rec.BytesOut != w.sent {
		t.Errorf("%s: bytes_out %d, want %d", proto, rec.BytesOut, w.sent)
	}
	if w.upSeen != 0 && rec.UpstreamStatus != w.upSeen {
		t.Errorf("%s: upstream_status %d, want %d", proto, rec.UpstreamStatus, w.upSeen)
	}
}

// answered checks an answer that the client got whole.
func (w way) answered(t *testing.T, resp *http.Response, text string, rec *record.Record) {
	t.Helper()
	if resp.StatusCode != w.status {
		t.Errorf("status %d, want %d", resp.StatusCode, w.status)
	}
	if id := resp.Header.Values("X-Request-Id"); len(id) != 1 || id[0] != rec.ID.String() {
		t.Errorf("X-Request-Id %q, recorded %s", id, rec.ID)
	}
	if w.want != "" {
		var p struct {
			Type, Title string
			Status      int
			RequestID   string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatalf("%v: %q", err, text)
		}
		if p.Type == "" || p.Title != w.want.Public() || p.Status != w.status || p.RequestID != rec.ID.String() {
			t.Errorf("problem %+v", p)
		}
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			t.Errorf("content type %q", ct)
		}
		if strings.Contains(text, string(w.want)) {
			t.Errorf("the answer tells the exact reason: %s", text)
		}
		if rec.BytesOut != int64(len(text)) {
			t.Errorf("bytes_out %d of %d", rec.BytesOut, len(text))
		}
	}
	if w.check != nil {
		w.check(t, resp, text, rec)
	}
}

// TestRecordIsFull looks at everything that one allowed exchange leaves.
func TestRecordIsFull(t *testing.T) {
	h := newHouse(t, houseConfig{
		tune: func(r *Route) {
			r.Host = "example.com"
			r.RecordHeaders, r.RecordClaims = []string{"x-order"}, []string{"dept", "none-such"}
			r.Audit.Level = record.Durable
		},
	})
	r := h.request(t, "GET", "/v1/orders/a%20b?page=2", nil, "X-Order", "7", "User-Agent", "test/1", "Referer", "https://a.example/x",
		"X-Request-Id", "mine", "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	r.Host = "Example.com:443"
	if _, _, err := do(t, h.h2, r); err != nil {
		t.Fatal(err)
	}
	c := h.one(t)
	rec := c.rec
	if c.lvl != record.Durable || c.ref != rec.ID {
		t.Errorf("level %d ref %v", c.lvl, c.ref)
	}
	port := rec.Raw.RemotePort
	want := record.Record{
		ID: rec.ID, Time: epoch.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success, Node: "gate-1", Snap: "00112233445566778899aabbccddeeff",
		Route: "orders", Op: "GET /v1/orders/{id}", Method: "GET", Host: "example.com", Proto: "HTTP/2", Template: "/v1/orders/{id}",
		Status: 200, UpstreamStatus: 200, BytesOut: 5,
		Authn:    record.Authn{Method: "jwt", Issuer: "corp", Client: "web", Roles: alice.Roles, ACR: "silver", AMR: alice.AMR, AgeS: 60, TTLS: 3600, KID: "k1", Alg: "ES256", Outcome: "ok"},
		Authz:    record.Authz{Decision: "allow", Policies: []string{"p1"}, Set: "set0"},
		TLS:      record.TLS{Version: "1.3", Cipher: rec.TLS.Cipher, Group: "X25519MLKEM768", ALPN: "h2", SNI: "example.com"},
		Client:   record.Client{Prefix: "127.0.0.0/24", PortClass: portClass(uint16(port))},
		Upstream: record.Upstream{Name: "orders", Target: "10.0.0.5:80", Attempts: 1, TTFBUS: 1000},
		Personal: record.Personal{Sub: "alice", Name: "Alice A.", Email: "alice@example.com", TenantUser: "t1", Token: "hash:corp:t-1",
			Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		Raw: record.Raw{IssuerSub: "corp|alice", Path: "/v1/orders/a%20b", Query: "page=2", UA: "test/1", Referer: "https://a.example/x",
			Headers: []record.Pair{{Name: "x-order", Value: "7"}}, Claims: []record.Pair{{Name: "dept", Value: "sales"}}, RemoteAddr: "127.0.0.1", RemotePort: port},
	}
	got, _ := json.Marshal(rec)
	exp, _ := json.Marshal(want)
	if string(got) != string(exp) {
		t.Errorf("got  %s\nwant %s", got, exp)
	}
	if port == 0 || !strings.HasPrefix(rec.TLS.Cipher, "TLS_") {
		t.Errorf("port %d cipher %q", port, rec.TLS.Cipher)
	}
	if open := h.book.opens[0]; open.ID != rec.ID || open.Route != "orders" || open.Authz.Decision != "allow" || open.Status != 0 {
		t.Errorf("open mark %+v", open)
	}
}

// TestUnknownNames: names from outside do not get into the frame.
func TestUnknownNames(t *testing.T) {
	h := newHouse(t, houseConfig{})
	r := h.request(t, "BREW", "/x", nil)
	r.Host = "secret-project.example"
	if _, _, err := do(t, h.h1, r); err != nil {
		t.Fatal(err)
	}
	rec := h.one(t).rec
	if rec.Host != record.Other || rec.Method != record.Other || rec.TLS.SNI != record.Other || rec.Template != "" || !rec.Raw.Unmatched {
		t.Errorf("%+v", rec)
	}
}

// TestIntent: which requests get an open mark.
func TestIntent(t *testing.T) {
	for _, tc := range []struct {
		intent Intent
		method string
		opens  int
	}{
		{IntentAll, "GET", 1}, {IntentAll, "POST", 1}, {IntentUnsafe, "GET", 0}, {IntentUnsafe, "HEAD", 0}, {IntentUnsafe, "POST", 1}, {IntentNone, "GET", 0}, {IntentNone, "POST", 0},
	} {
		h := newHouse(t, houseConfig{tune: func(r *Route) { r.Audit.Intent = tc.intent }})
		if resp, _, err := do(t, h.h1, h.request(t, tc.method, "/v1/orders/1", nil)); err != nil || resp.StatusCode != 200 {
			t.Fatal(err)
		}
		c := h.one(t)
		if n := h.book.opened(); n != tc.opens || (c.ref == record.Ref{}) != (tc.opens == 0) {
			t.Errorf("%d %s: %d open marks, ref %v", tc.intent, tc.method, n, c.ref)
		}
	}
}

// TestOpenFails: without its mark the upstream is not called.
func TestOpenFails(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want reason.Reason
	}{
		{bookError("book_full"), reason.BookFull},
		{bookError("book_slow"), reason.BookSlow},
		{bookError("token_expired"), reason.BookUnavailable}, // not a reason of the book
		{errors.New("anything"), reason.BookUnavailable},
		{context.DeadlineExceeded, reason.BookSlow},
	} {
		book := newFakeBook()
		book.openErr = tc.err
		called := false
		up := backend(func(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
			called = true
			return response(200, 0, nil, io.EOF), nil
		})
		h := newHouse(t, houseConfig{book: book, up: up})
		resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil || resp.StatusCode != 503 || called {
			t.Errorf("%v: %v %v, upstream called: %v", tc.err, resp, err, called)
		}
		if c := h.one(t); c.rec.Error.Reason != string(tc.want) || c.rec.Error.Origin != "book" || c.rec.Error.Phase != "open" {
			t.Errorf("%v: %+v", tc.err, c.rec.Error)
		}

		h = newHouse(t, houseConfig{book: book, up: up, tune: func(r *Route) { r.Audit.OnFailure = Allow }})
		resp, _, err = do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil || resp.StatusCode != 200 || !called {
			t.Errorf("allow: %v: %v %v, upstream called: %v", tc.err, resp, err, called)
		}
		if c := h.one(t); c.rec.Error.Reason != "" || c.ref != (record.Ref{}) {
			t.Errorf("allow: %v: %+v", tc.err, c.rec.Error)
		}
	}
}

// TestCommitFails: no complete answer without its record, unless the route
// says so; whether the failing book kept the record makes no difference.
func TestCommitFails(t *testing.T) {
	long := strings.Repeat("x", 3*bufSize)
	for _, tc := range []struct {
		name   string
		up     backend
		fields []string
		status int // of the answer in place; 0: cut off
	}{
		{"whole", answers(200, 5, nil, "hello"), nil, 503},
		{"no content", answers(204, 0, nil), nil, 503},
		{"own answer", nil, []string{"Authorization", ""}, 503},
		{"upstream failed", broken(reason.DNS), nil, 503},
		{"pieces", answers(200, 4, nil, "ab", "cd"), nil, 0},
		{"long", answers(200, int64(len(long)), nil, long), nil, 0},
		{"stream", answers(200, -1, nil, "ab"), nil, 0},
	} {
		for _, keep := range []bool{false, true} {
			book := newFakeBook()
			book.commitErr, book.keepFirst = bookError("book_full"), keep
			h := newHouse(t, houseConfig{book: book, up: tc.up})
			h.both(func(t *testing.T, c *http.Client, _ string) {
				resp, text, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil, tc.fields...))
				<-book.done
				switch {
				case tc.status == 0 && err == nil:
					t.Errorf("%s: got a whole answer of %d bytes", tc.name, len(text))
				case tc.status != 0 && (err != nil || resp.StatusCode != tc.status):
					t.Errorf("%s: %v %v", tc.name, resp, err)
				case tc.status != 0 && !strings.Contains(text, reason.BookFull.Public()):
					t.Errorf("%s: %q", tc.name, text)
				}
			})
			if tc.fields != nil {
				continue // a request without identity reached the route: its rule applies too
			}
			h = newHouse(t, houseConfig{book: book, up: tc.up, tune: func(r *Route) { r.Audit.OnFailure = Allow }})
			h.both(func(t *testing.T, c *http.Client, _ string) {
				resp, _, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil))
				<-book.done
				if err != nil || resp.StatusCode == 503 {
					t.Errorf("allow: %s: %v %v", tc.name, resp, err)
				}
			})
		}
	}
}

// TestDrain: new exchanges are refused and recorded.
func TestDrain(t *testing.T) {
	h := newHouse(t, houseConfig{})
	h.gate.Drain()
	h.both(func(t *testing.T, c *http.Client, _ string) {
		resp, _, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil || resp.StatusCode != 503 {
			t.Fatalf("%v %v", resp, err)
		}
		if c := h.one(t); c.rec.Error.Reason != "draining" || c.rec.Error.Phase != "accept" {
			t.Errorf("%+v", c.rec.Error)
		}
	})
}

// TestSwap: an exchange keeps the snapshot it began with.
func TestSwap(t *testing.T) {
	inside, goOn := make(chan struct{}), make(chan struct{})
	h := newHouse(t, houseConfig{up: backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
		inside <- struct{}{}
		<-goOn
		return response(204, 0, nil, io.EOF), nil
	})})
	got := make(chan error)
	go func() {
		_, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil))
		got <- err
	}()
	<-inside
	other := newFakeBook()
	next, err := NewSnapshot(SnapshotConfig{ID: "next", Node: "gate-1", Listeners: []Listener{{Name: "public"}}, Recorder: other})
	if err != nil {
		t.Fatal(err)
	}
	before, err := h.gate.Swap(next)
	if err != nil || before.ID() == "next" || h.gate.Snapshot() != next {
		t.Fatalf("swap: %v", err)
	}
	if _, err := h.gate.Swap(nil); err == nil {
		t.Error("swapped nothing in")
	}
	close(goOn)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if c := h.one(t); c.rec.Snap == "next" || c.rec.Status != 204 {
		t.Errorf("%+v", c.rec)
	}
	if resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil || resp.StatusCode != 404 {
		t.Fatalf("%v %v", resp, err)
	}
	if c := <-other.done; c.rec.Snap != "next" {
		t.Errorf("%+v", c.rec)
	}
}
