package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// eventRow is a row of the list of events, and whether a flood of it may be
// counted in one record.
type eventRow struct {
	name  string
	folds bool
}

// eventRows are those of the list, in its order.
var eventRows = []eventRow{
	{"answered by upstream", false},
	{"connection closed before the first byte", false},
	{"TLS handshake failed", true},
	{"HTTP/1 head malformed", true},
	{"HTTP/2 protocol error", true},
	{"slow or stalled request", true},
	{"over connection caps", true},
	{"no route, wrong method", true},
	{"limits", true},
	{"credential missing or bad", true},
	{"step-up, binding", false},
	{"denied", false},
	{"body too large", true},
	{"upstream failed", false},
	{"client went away", false},
	{"panic", false},
	{"book cannot take it", true},
	{"shutting down, draining", true},
	{"upgraded session", false},
	{"process died", false},
}

// elsewhere says why something has no event here, and which test has it, ""
// if this release cannot do it.
type elsewhere struct{ why, test string }

var rowsElsewhere = map[string]elsewhere{
	"panic":               {"nothing that a client sends makes one", "internal/gate.TestWays"},
	"book cannot take it": {"the disk must fail or be full", "internal/book.TestGap"},
	"process died":        {"it is what TestEvents begins with", "cmd/gatebook.TestEvents"},
}

// reasonsElsewhere are the reasons that no event here has.
var reasonsElsewhere = map[string]elsewhere{
	"tls_no_client_cert":  {"it needs a listener that asks for certificates", "cmd/gatebook.TestClientCertificates"},
	"tls_bad_client_cert": {"likewise", "cmd/gatebook.TestClientCertificates"},
	"misdirected_request": {"likewise", "cmd/gatebook.TestClientCertificates"},
	"quota_exceeded":      {why: "there are no quotas in this release"},
	"limiter_unavailable": {"the shared store must be away", "cmd/gatebook.TestTwoNodesShareWhatWasUsed"},

	"token_replayed":       {"it takes routes that bind tokens", "cmd/gatebook.TestOneTimeToken"},
	"token_reuse_detected": {"it takes a listener behind a proxy", "cmd/gatebook.TestTokenReuse"},
	"token_revoked":        {"it takes a command in between", "cmd/gatebook.TestRevokeWhileHotInCache"},
	"binding_mismatch":     {"it takes routes that bind tokens", "cmd/gatebook.TestProofsEndToEnd"},
	"dpop_proof":           {"it takes routes that bind tokens", "cmd/gatebook.TestProofsEndToEnd"},
	"dpop_nonce":           {"it takes routes that bind tokens", "cmd/gatebook.TestProofNonces"},
	"session_expired":      {"it takes a browser that has logged in", "cmd/gatebook.TestBrowserSession"},
	"cross_site":           {"it takes a browser that has logged in", "cmd/gatebook.TestBrowserSession"},

	"policy_unavailable": {"an outside decision point must be away", "cmd/gatebook.TestPolicySite"},

	"dns":                    {"names are looked up outside", "cmd/gatebook.TestUpstreamReasons"},
	"connect_timeout":        {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"tls_verify":             {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"tls_handshake_upstream": {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"reset_mid_body":         {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"body_stalled":           {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"bad_response":           {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"body_length_mismatch":   {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"breaker_open":           {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"no_healthy_target":      {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},
	"retries_exhausted":      {"it takes a service that is broken", "cmd/gatebook.TestUpstreamReasons"},

	"panic":            {"nothing that a client sends makes one", "internal/gate.TestWays"},
	"draining":         {"it takes a request between two steps of a stop", "internal/gate.TestDrain"},
	"book_unavailable": {"the disk must fail", "internal/book.TestBrokenDisk"},
	"book_full":        {"the disk must be full", "internal/book.TestGap"},
	"book_slow":        {"the disk must be slow", "internal/book.TestFoldWhileSlow"},
}

// waiting is a connection on which the rest of what is to be said waits for the
// stop.
type waiting struct {
	c    net.Conn
	rest string
}

// eventTable is all that can be brought about.
func eventTable() (all []event) {
	for _, of := range []struct {
		row    string
		events []event
	}{
		{"answered by upstream", answeredEvents()},
		{"connection closed before the first byte", silentEvents()},
		{"TLS handshake failed", handshakeEvents()},
		{"HTTP/1 head malformed", headEvents()},
		{"HTTP/2 protocol error", h2Events()},
		{"slow or stalled request", slowEvents()},
		{"over connection caps", capEvents()},
		{"no route, wrong method", routeEvents()},
		{"limits", limitEvents()},
		{"credential missing or bad", tokenEvents()},
		{"step-up, binding", bindingEvents()},
		{"denied", deniedEvents()},
		{"body too large", bodyEvents()},
		{"upstream failed", upstreamEvents()},
		{"client went away", abortEvents()},
		{"shutting down, draining", stopEvents()},
		{"upgraded session", upgradeEvents()},
	} {
		for _, e := range of.events {
			e.row = of.row
			all = append(all, e)
		}
	}
	return all
}

func answeredEvents() []event {
	return []event{
		{name: "200", kind: "request", status: 200, wire: 200, often: true, do: asks(get("/open/x"))},
		{name: "200 to an introspected token", kind: "request", status: 200, wire: 200, often: true, do: asks(get("/asked/x", "Authorization: Bearer good"))},
		{name: "200 after a step-up", kind: "request", status: 200, wire: 200, do: with("/careful", claims(func(c jwtattack.Object) jwtattack.Object {
			return c.Set("acr", `"urn:silver"`).Set("auth_time", fmt.Sprint(time.Now().Unix()))
		}))},
		{
			name: "metadata of a resource", kind: "request", status: 200, wire: 200, fields: map[string]string{"Content-Type": "application/json"},
			do: asks(get("/.well-known/oauth-protected-resource/asked")),
		},
		{name: "404 of the service", kind: "request", status: 404, wire: 404, do: asks(get("/open/missing"))},
		{
			name: "redirected by the gate", kind: "request", status: 308, wire: 308, closed: true, fields: map[string]string{"Location": "https://localhost/open/x?q=1"},
			do: func(v *visit) (reply, error) { return v.ask(v.w.door, get("/open/x?q=1")) },
		},
	}
}

func silentEvents() []event {
	silent := func(secure bool) func(v *visit) (reply, error) {
		return func(v *visit) (reply, error) {
			addr := v.w.mesh
			if secure {
				addr = v.w.addr
			}
			const name = "gatebook_connections_silent"
			before := metric(v.w.t, v.w.health, name)
			c, err := v.dial(addr)
			if err != nil {
				return reply{}, err
			}
			if err := c.Close(); err != nil {
				return reply{}, err
			}
			until(v.w.t, "the connection is counted", func() bool { return metric(v.w.t, v.w.health, name) == before+1 })
			return reply{}, nil
		}
	}
	return []event{{name: "in the clear", do: silent(false)}, {name: "TLS", do: silent(true)}}
}

func handshakeEvents() []event {
	refusal := func(name, why, phase string, do func(*visit) (reply, error)) event {
		return event{name: name, kind: "handshake", reason: why, phase: phase, closed: true, do: do}
	}
	garbage := refusal("no ClientHello", "tls_handshake", "hello", throws("\x16\x03\x01\x00\x05hello"))
	garbage.fold = true
	plain := refusal("HTTP on the TLS port", "tls_handshake", "http_on_tls", func(v *visit) (reply, error) { return v.ask(v.w.addr, get("/open/x")) })
	plain.status, plain.wire, plain.plain = 400, 400, true
	return []event{
		garbage, plain,
		refusal("version", "tls_version", "version", failsTLS(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })),
		refusal("suite", "tls_handshake", "negotiate", failsTLS(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_RC4_128_SHA}
		})),
		refusal("protocol", "tls_handshake", "negotiate", failsTLS(func(c *tls.Config) { c.NextProtos = []string{"imap"} })),
		refusal("certificate", "tls_handshake", "alert", failsTLS(func(c *tls.Config) { c.ServerName = "other.example" })),
		refusal("cut off", "tls_handshake", "closed", func(v *visit) (reply, error) {
			c, err := v.dial(v.w.addr)
			if err != nil {
				return reply{}, err
			}
			if _, err := io.WriteString(c, v.w.hello[:50]); err != nil {
				return reply{}, err
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				return reply{}, err
			}
			return ended(c)
		}),
	}
}

func headEvents() []event {
	refusal := func(name, why, phase string, status int, text string) event {
		return event{name: name, kind: "malformed", reason: why, phase: phase, status: status, wire: status, closed: true, do: asks(text)}
	}
	field := refusal("field name", "malformed_request", "head", 400, get("/open/x", "Bad Field: x"))
	field.fold = true
	return []event{
		field,
		refusal("two lengths", "ambiguous_framing", "head", 400, request("POST", "/open/x", "hello", "Content-Length: 5", "Transfer-Encoding: chunked")),
		refusal("too large", "header_too_large", "head", 431, get("/open/x", "X-Large: "+strings.Repeat("x", 64<<10))),
		refusal("version", "unsupported_protocol", "head", 505, "GET /open/x HTTP/1.9\r\nHost: localhost\r\n\r\n"),
		refusal("host", "bad_host", "head", 400, "GET /open/x HTTP/1.1\r\nHost: local host\r\n\r\n"),
		refusal("path", "bad_path", "parse", 400, get("/open/../open/x")),
	}
}

func h2Events() []event {
	upper := h2Frame(h2Headers, h2EndStream|h2EndHeaders, 1, h2Head(h2Get)+h2Field("Upper", "x"))
	return []event{
		{
			name: "data without a stream", kind: "malformed", reason: "malformed_request", phase: "frame", closed: true, fold: true, atOnce: true,
			do: speaksH2(h2Frame(h2Data, 0, 0, "x"), h2GoAway),
		},
		{name: "field name in capitals", kind: "malformed", reason: "malformed_request", phase: "stream", do: speaksH2(upper, h2Reset)},
	}
}

func slowEvents() []event {
	events := []event{
		{
			name: "head", kind: "malformed", reason: "timeout_reading", phase: "head", status: 408, wire: 408, closed: true, fold: true, slow: true,
			do: asks("GET /open/x HTTP/1.1\r\nHost: loc"),
		},
		{
			name: "handshake", kind: "handshake", reason: "timeout_reading", phase: "handshake", closed: true, slow: true,
			do: func(v *visit) (reply, error) { return throws(v.w.hello[:50])(v) },
		},
	}
	if os.Getenv("GATEBOOK_SOAK") != "" { // the gate has patience with bodies
		events = append(events, event{
			name: "body", kind: "request", reason: "timeout_reading", phase: "forward", status: 408, wire: 408, closed: true, slow: true,
			do: asks(request("POST", "/open/x", "hello", "Content-Length: 100")),
		})
	}
	return events
}

// capped is as many connections as one address may have.
const capped = 512

func capEvents() []event {
	fill := func(v *visit) error {
		for range capped {
			if _, err := v.dial(v.w.mesh); err != nil {
				return err
			}
		}
		return nil
	}
	// When one beyond them is refused, all of them have been counted.
	over := func(v *visit) error {
		if err := fill(v); err != nil {
			return err
		}
		_, err := v.ask(v.w.mesh, get("/open/x"))
		return err
	}
	return []event{
		{name: "in the clear", kind: "handshake", reason: "connection_limited", phase: "accept", status: 503, wire: 503, closed: true, fold: true, prepare: fill, do: asks(get("/open/x"))},
		{name: "TLS", kind: "handshake", reason: "connection_limited", phase: "accept", closed: true, prepare: over, beside: map[string]int{"handshake connection_limited 5xx": 1}, do: throws("\x16")},
	}
}

func routeEvents() []event {
	return []event{
		{name: "path", kind: "request", reason: "no_route", phase: "route", status: 404, wire: 404, fold: true, do: asks(get("/nowhere"))},
		{name: "path over HTTP/2", kind: "request", reason: "no_route", phase: "route", status: 404, wire: 404, do: overH2("/nowhere")},
		{
			name: "method", kind: "request", reason: "method_not_allowed", phase: "route", status: 405, wire: 405, fields: map[string]string{"Allow": "GET, HEAD, POST"},
			do: asks(request("DELETE", "/open/x", "")),
		},
	}
}

func limitEvents() []event {
	var streams strings.Builder
	for i := range uint32(101) {
		streams.WriteString(h2Frame(h2Headers, h2EndStream|h2EndHeaders, 2*i+1, h2Get+"\x87"+h2Field(":path", "/open/hold")+h2Field(":authority", "localhost")))
	}
	return []event{
		{
			name: "rate", kind: "request", reason: "rate_limited", phase: "limit", status: 429, wire: 429, fold: true,
			fields: map[string]string{"RateLimit-Policy": `"tight";q=1;w=3600`},
			prepare: func(v *visit) error {
				a, err := v.ask(v.w.mesh, get("/limited/x"))
				if err == nil && a.status != 200 {
					err = fmt.Errorf("the first got %d", a.status)
				}
				return err
			},
			beside: map[string]int{"request none 2xx": 1},
			do:     asks(get("/limited/x")),
		},
		{
			name: "streams", kind: "request", reason: "concurrency_limited", phase: "stream",
			beside: map[string]int{"request client_aborted 4xx": 100},
			do:     speaksH2(streams.String(), h2Reset),
		},
		{
			name: "frames", kind: "malformed", reason: "overloaded", phase: "flood", closed: true,
			do: func(v *visit) (reply, error) {
				conf := v.w.tls()
				conf.NextProtos = []string{"h2"}
				var sent atomic.Int64
				err := h2FloodOne(v.w.addr, conf, v.from, strings.Repeat(h2Frame(h2Ping, 0, 0, "12345678"), 20_000), &sent)
				return reply{closed: true}, err
			},
		},
	}
}

func tokenEvents() []event {
	refusal := func(why string, do func(*visit) (reply, error)) event {
		return event{name: why, kind: "request", reason: why, phase: "authn", status: 401, wire: 401, do: do}
	}
	none := refusal("no_credential", asks(get("/guarded/x")))
	none.fold = true
	call := event{
		name: "gRPC", kind: "request", reason: "no_credential", phase: "authn", status: 200, wire: 200, plain: true,
		fields: map[string]string{"Content-Type": "application/grpc", "Grpc-Status": "16", "Grpc-Message": "authentication required"},
		do:     overH2("/guarded/service/Method", "Content-Type", "application/grpc"),
	}
	two := refusal("two_credentials", func(v *visit) (reply, error) {
		return v.ask(v.w.mesh, get("/guarded/x", "Authorization: Bearer "+v.w.bearer(nil), "Authorization: Bearer "+v.w.bearer(nil)))
	})
	two.status, two.wire = 400, 400
	away := refusal("issuer_unavailable", with("/foreign/x", claims(func(c jwtattack.Object) jwtattack.Object { return c.Set("iss", `"https://away.example"`) })))
	away.status, away.wire = 503, 503
	inactive := refusal("token_inactive", asks(get("/asked/x", "Authorization: Bearer revoked")))
	inactive.fold = true
	inactive.fields = map[string]string{"WWW-Authenticate": `Bearer realm="gatebook", error="invalid_token", resource_metadata="http://localhost/.well-known/oauth-protected-resource/asked"`}
	mute := refusal("issuer_unavailable", asks(get("/mute/x", "Authorization: Bearer good")))
	mute.name, mute.status, mute.wire = "introspection away", 503, 503
	demanded := func(why, name string, do func(*visit) (reply, error)) event {
		e := refusal(why, do)
		e.name = why + ", " + name
		if name == "introspected" {
			e.fields = inactive.fields
		}
		return e
	}
	header := func(name, value string) func(h, c jwtattack.Object) (jwtattack.Object, jwtattack.Object) {
		return func(h, c jwtattack.Object) (jwtattack.Object, jwtattack.Object) { return h.Set(name, value), c }
	}
	claim := func(name, value string) func(h, c jwtattack.Object) (jwtattack.Object, jwtattack.Object) {
		return claims(func(c jwtattack.Object) jwtattack.Object { return c.Set(name, value) })
	}
	at := func(after time.Duration) string { return fmt.Sprint(time.Now().Add(after).Unix()) }
	return []event{
		none, call, two, away,
		refusal("token_malformed", asks(get("/guarded/x", "Authorization: Bearer nonsense"))),
		refusal("token_algorithm", with("/guarded/x", func(_, c jwtattack.Object) (jwtattack.Object, jwtattack.Object) { return jwtattack.Header("ES384"), c })),
		refusal("token_key_unknown", with("/guarded/x", header("kid", `"of-others"`))),
		refusal("token_signature", func(v *visit) (reply, error) {
			good, bad := v.w.bearer(nil), v.w.bearer(claim("sub", `"max"`))
			return v.ask(v.w.mesh, get("/guarded/x", "Authorization: Bearer "+good[:strings.LastIndexByte(good, '.')]+bad[strings.LastIndexByte(bad, '.'):]))
		}),
		refusal("token_expired", with("/guarded/x", claims(func(c jwtattack.Object) jwtattack.Object {
			return c.Set("iat", at(-15*time.Minute)).Set("exp", at(-10*time.Minute))
		}))),
		refusal("token_not_yet", with("/guarded/x", claim("nbf", at(4*time.Minute)))),
		refusal("token_lifetime_exceeded", with("/guarded/x", claim("exp", at(60*24*time.Hour)))),
		refusal("token_audience", with("/guarded/x", claim("aud", `"https://other.example"`))),
		refusal("token_issuer", with("/guarded/x", claim("iss", `"https://evil.example"`))),
		refusal("token_type", with("/guarded/x", header("typ", `"JWT"`))),
		refusal("token_too_old", with("/young", claims(func(c jwtattack.Object) jwtattack.Object {
			return c.Set("iat", at(-2*time.Minute))
		}))),
		demanded("token_audience", "of the route", with("/audience", nil)),
		inactive, mute,
		demanded("token_expired", "introspected", asks(get("/asked/x", "Authorization: Bearer expired"))),
		demanded("token_not_yet", "introspected", asks(get("/asked/x", "Authorization: Bearer early"))),
		demanded("token_audience", "introspected", asks(get("/asked/x", "Authorization: Bearer elsewhere"))),
		demanded("token_audience", "introspected, of the route", asks(get("/audience", "Authorization: Bearer good"))),
		demanded("token_issuer", "introspected", asks(get("/asked/x", "Authorization: Bearer foreign"))),
		demanded("token_type", "introspected", asks(get("/asked/x", "Authorization: Bearer refresh"))),
		demanded("token_malformed", "introspected", asks(get("/asked/x", "Authorization: Bearer nobody"))),
		demanded("token_lifetime_exceeded", "introspected", asks(get("/asked/x", "Authorization: Bearer eternal"))),
		demanded("binding_required", "introspected", asks(get("/asked/x", "Authorization: Bearer bound"))),
		refusal("key_unknown", keyed("unknown")),
		refusal("key_expired", keyed("replaced")),
		refusal("key_revoked", keyed("revoked")),
	}
}

// keyed sends the API key of that name.
func keyed(name string) func(v *visit) (reply, error) {
	return func(v *visit) (reply, error) { return v.ask(v.w.mesh, get("/keyed/x", "X-API-Key: "+v.w.keys[name])) }
}

func bindingEvents() []event {
	bound := claims(func(c jwtattack.Object) jwtattack.Object {
		return c.Set("cnf", `{"jkt":"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}`)
	})
	login := func(name, acr string, ago time.Duration) event {
		return event{
			name: name, kind: "request", reason: "stepup_required", phase: "authn", status: 401, wire: 401, often: true,
			fields: map[string]string{"WWW-Authenticate": `Bearer realm="gatebook", error="insufficient_user_authentication", acr_values="gold urn:silver", max_age=300`},
			do: with("/careful", claims(func(c jwtattack.Object) jwtattack.Object {
				return c.Set("acr", acr).Set("auth_time", fmt.Sprint(time.Now().Add(-ago).Unix()))
			})),
		}
	}
	return []event{
		{name: "binding", kind: "request", reason: "binding_required", phase: "authn", status: 401, wire: 401, often: true, do: with("/guarded/x", bound)},
		login("login of another class", `"bronze"`, time.Minute), login("old login", `"gold"`, 10*time.Minute),
	}
}

func deniedEvents() []event {
	refusal := func(why string, do func(*visit) (reply, error)) event {
		return event{name: why, kind: "request", reason: why, phase: "authz", status: 403, wire: 403, do: do}
	}
	nobody := refusal("denied_by_default", asks(get("/unlisted")))
	nobody.often = true
	scope := refusal("scope_missing", with("/scoped", nil))
	scope.fields = map[string]string{"WWW-Authenticate": `Bearer realm="gatebook", error="insufficient_scope", scope="admin:all"`}
	return []event{nobody, scope, refusal("denied_by_policy", with("/closed", nil)), refusal("policy_error", with("/sum", nil))}
}

func bodyEvents() []event {
	return []event{
		{
			name: "declared", kind: "request", reason: "body_too_large", phase: "admit", status: 413, wire: 413, closed: true, fold: true,
			do: asks(request("POST", "/open/x", "", "Content-Length: 1000000")),
		},
		{
			name: "in chunks", kind: "request", reason: "body_too_large", phase: "forward", status: 413, wire: 413, closed: true,
			do: asks(request("POST", "/open/x", "800\r\n"+strings.Repeat("x", 2048)+"\r\n0\r\n\r\n", "Transfer-Encoding: chunked")),
		},
	}
}

func upstreamEvents() []event {
	refusal := func(why, phase string, status int, path string) event {
		return event{name: why, kind: "request", reason: why, phase: phase, status: status, wire: status, do: asks(get(path))}
	}
	refused := refusal("connect_refused", "connect", 502, "/gone")
	refused.often = true
	reset := refusal("reset_before_response", "head", 502, "")
	reset.do = asks(request("POST", "/open/reset", "", "Content-Length: 0")) // is not tried again
	return []event{
		refused, reset,
		refusal("response_timeout", "head", 504, "/hasty/hold"),
	}
}

func abortEvents() []event {
	return []event{
		{name: "waiting", kind: "request", reason: "client_aborted", phase: "forward", status: 499, often: true, do: goes},
		{name: "in its head", kind: "malformed", reason: "client_aborted", phase: "head", status: 499, closed: true, do: func(v *visit) (reply, error) {
			c, err := v.dial(v.w.mesh)
			if err != nil {
				return reply{}, err
			}
			if _, err := io.WriteString(c, "GET /open/x HTTP/1.1\r\nHo"); err != nil {
				return reply{}, err
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				return reply{}, err
			}
			return ended(c)
		}},
	}
}

func upgradeEvents() []event {
	return []event{{
		name: "WebSocket", kind: "request", reason: "upgrade_refused", phase: "admit", status: 400, wire: 400, often: true,
		do: asks(get("/open/x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")),
	}}
}

// next takes the next of the connections that wait.
func (v *visit) next() waiting {
	w := v.waiting[0]
	v.waiting = v.waiting[1:]
	return w
}

// half opens connections and says the first half of something on each.
func half(addr func(w *world) string, text func(w *world) (first, rest string), answered bool) func(v *visit) error {
	return func(v *visit) error {
		first, rest := text(v.w)
		for range v.n {
			c, err := v.dial(addr(v.w))
			if err != nil {
				return err
			}
			if _, err := io.WriteString(c, first); err != nil {
				return err
			}
			if answered {
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					return err
				}
			}
			v.waiting = append(v.waiting, waiting{c, rest})
		}
		return nil
	}
}

func stopEvents() []event {
	stream := func(n uint32) string {
		return h2Frame(h2Headers, h2EndStream|h2EndHeaders, n, h2Get+"\x87"+h2Field(":path", "/open/hang")+h2Field(":authority", "localhost"))
	}
	return []event{
		{
			name: "a stream after the GOAWAY", kind: "request", reason: "shutting_down", phase: "stream", at: stopping,
			beside: map[string]int{"request client_aborted 4xx": 1},
			prepare: func(v *visit) error {
				c, err := v.openH2(stream(1))
				if err != nil {
					return err
				}
				<-v.w.arrived
				v.waiting = []waiting{{c, stream(3) + h2Frame(h2Ping, 0, 0, "12345678")}}
				return nil
			},
			do: func(v *visit) (reply, error) {
				w := v.next()
				if _, err := untilH2(w.c, h2GoAway, 0); err != nil {
					return reply{}, err
				}
				if _, err := io.WriteString(w.c, w.rest); err != nil {
					return reply{}, err
				}
				_, err := untilH2(w.c, h2Ping, 1)
				return reply{}, errors.Join(err)
			},
		},
		{
			name: "half a handshake when it begins", kind: "handshake", reason: "shutting_down", phase: "handshake", closed: true, fold: true, at: stopping,
			prepare: half(func(w *world) string { return w.addr }, func(w *world) (string, string) { return w.hello, "" }, true),
			do:      func(v *visit) (reply, error) { return ended(onlyEnd{v.next().c}) },
		},
		{
			name: "half a head when it begins", kind: "malformed", reason: "shutting_down", phase: "head", status: 503, wire: 503, closed: true, fold: true, at: stopping,
			prepare: half(func(w *world) string { return w.mesh }, func(*world) (string, string) { return "GET /open/x HTTP/1.1\r\nHo", "st: localhost\r\n\r\n" }, false),
			do: func(v *visit) (reply, error) {
				w := v.next()
				if _, err := io.WriteString(w.c, w.rest); err != nil {
					return reply{}, err
				}
				return answer(w.c)
			},
		},
	}
}
