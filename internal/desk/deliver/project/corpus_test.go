package project

import (
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/reason"
)

func kinds() []record.Kind {
	return []record.Kind{
		record.KindRequest, record.KindHandshake, record.KindMalformed, record.KindSession, record.KindToken, record.KindAdmin,
		record.KindAccess, record.KindConfig, record.KindPolicy, record.KindKey, record.KindErasure, record.KindRetention,
		record.KindHold, record.KindDelivery, record.KindGap, record.KindClock, record.KindStart, record.KindStop,
		record.KindUncleanStop, record.KindHeartbeat, record.KindInterrupted, record.KindAlert,
	}
}

const corpusTime = 1795428000123456

func corpusID() record.ID {
	return record.ID{0x01, 0x9a, 0xb1, 0xc2, 0xd3, 0xe4, 0x71, 0x23, 0x9a, 0xbc, 0xde, 0xf0, 0x12, 0x34, 0x56, 0x78}
}

// named is a record with a name for its golden file.
type named struct {
	name string
	rec  *record.Record
}

// full is an allowed request in which every field has a value.
func full() *record.Record {
	return &record.Record{
		ID: corpusID(), Time: corpusTime, Kind: record.KindRequest, Outcome: record.Success, Node: "gate-1",
		Snap: "0d4e1c9ab2f35a7788aa12fe6cd01b34", Route: "orders.read", Op: "GET /v1/orders/{id}",
		Method: "GET", Host: "api.example.com", Proto: "HTTP/2", Template: "/v1/orders/{id}",
		Status: 200, UpstreamStatus: 200, BytesIn: 11, BytesOut: 913, DurUS: 4021,
		Phase:   record.Phase{Auth: 11, Limit: 1, Policy: 9, Open: 41, Queue: 2, Connect: 210, TLS: 480, TTFB: 3011, Body: 120},
		Subject: "q7Jc0r1m2n3o4p5q6r7s8Q",
		Authn: record.Authn{Method: "jwt", Issuer: "corp", Client: "web", Roles: []string{"clerk", "auditor"}, ACR: "aal2",
			AMR: []string{"pwd", "otp"}, AgeS: 61, TTLS: 3539, Bound: "dpop", KID: "2026-11", Alg: "ES256", Outcome: "ok"},
		Authz: record.Authz{Decision: "allow", Policies: []string{"clerks-read", "office-hours"}, Set: "9c1185a5c5e9fc54612808977ee8f548",
			ShadowDecision: "deny", ShadowPolicies: []string{"strict"}},
		Limit: record.Limit{Rule: "per_subject", Outcome: "ok", Remaining: 199, Mode: "local"},
		TLS: record.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2",
			SNI: "api.example.com", Resumed: true, JA4: "t13d1516h2_8daaf6152771_b186095e22b6", ClientCert: "b1946ac92492d2347c6235b4d2611184"},
		Client:   record.Client{Prefix: "203.0.113.0/24", PortClass: "ephemeral", Hops: 1},
		Upstream: record.Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1, Reused: true, Breaker: "closed", TTFBUS: 3011},
		San:      record.San{Set: "77c05cd4b2a5d0b1f15f1b2a30a4dd11", Dropped: 2, Masked: 1, Tripped: 1},
		Trace:    "4bf92f3577b34da6a3ce929d0e0e4736",
		Personal: record.Personal{
			Sub: "248289761001", Name: "Ana Müller", Email: "ana@example.com", TenantUser: "t1/ana", IP: "203.0.113.7", Port: 50123,
			Fwd: []string{"198.51.100.2"}, UA: "curl/8.5 <x>", Path: "/v1/orders/17", Query: "page=2", Referer: "https://app.example.com/orders",
			CertSubject: "CN=ana", Session: "c2Vzc2lvbi1oYXNoLTAwMQ", Token: "dG9rZW4taGFzaC0wMDAwMQ", Family: "ZmFtaWx5LWhhc2gtMDAwMQ",
			ClientRequestID: "abc-1", Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			Headers: []record.Pair{{Name: "accept-language", Value: "de"}, {Name: "x-secret", Value: "not named"}, {Name: "x-tag", Value: "a"}, {Name: "x-tag", Value: "b"}},
			Claims:  []record.Pair{{Name: "dept", Value: "sales"}, {Name: "salary", Value: "not named"}},
		},
	}
}

// plain is an ordinary allowed request, as most are.
func plain() *record.Record {
	r := full()
	r.Phase, r.Trace, r.TLS.ClientCert, r.San.Masked, r.San.Tripped, r.San.Dropped = record.Phase{}, "", "", 0, 0, 0
	r.Authz.ShadowDecision, r.Authz.ShadowPolicies, r.Authz.Policies = "", nil, r.Authz.Policies[:1]
	r.Personal = record.Personal{}
	return r
}

// refused is a request that ended with a reason.
func refused(why reason.Reason) *record.Record {
	r := &record.Record{
		ID: corpusID(), Time: corpusTime, Kind: record.KindRequest, Outcome: record.Failure, Node: "gate-1",
		Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1", Template: "/v1/orders/{id}",
		Status: why.Status(), DurUS: 90, Client: record.Client{Prefix: "2001:db8::/32"},
		Error: record.Error{Origin: why.Origin(), Reason: string(why), Phase: "somewhere"},
	}
	switch why.Origin() {
	case reason.OriginIdentity:
		r.Authn = record.Authn{Method: record.None, Outcome: "failed", Reason: string(why)}
	case reason.OriginPolicy:
		r.Authz = record.Authz{Decision: "deny", Set: "9c1185a5c5e9fc54612808977ee8f548"}
	case reason.OriginUpstream:
		r.Authz = record.Authz{Decision: "allow", Policies: []string{"clerks-read"}}
	case reason.OriginClient:
		switch {
		case strings.HasPrefix(string(why), "tls_"):
			r = &record.Record{ID: r.ID, Time: r.Time, Kind: record.KindHandshake, Outcome: record.Failure, Client: r.Client, Error: r.Error,
				TLS: record.TLS{Version: "1.0", JA4: "t10d0000_000000000000_000000000000"}}
		case why != reason.ClientAborted && why != reason.BodyTooLarge:
			r.Kind, r.Route, r.Op, r.Method, r.Host, r.Template = record.KindMalformed, record.None, record.None, record.Other, record.Other, "/{word}/{uuid}/{token}"
		}
	}
	return r
}

// corpus has every kind with what its records are made of, and every reason. What
// comes after a colon in a name shares the file of what is before it.
func corpus() []named {
	own := func(kind record.Kind, outcome record.Outcome, e record.Event) *record.Record {
		return &record.Record{ID: corpusID(), Time: corpusTime, Kind: kind, Outcome: outcome, Node: "gate-1", Event: e}
	}
	by := func(r *record.Record) *record.Record {
		r.Subject, r.Authn = "AAECAwQFBgcICQoLDA0ODw", record.Authn{Method: "mtls", Outcome: "ok"}
		r.Client.Prefix, r.Personal = "192.0.2.0/24", record.Personal{Sub: "ops@example.com", IP: "192.0.2.9"}
		return r
	}
	call := func(kind record.Kind, name, op string, status int) *record.Record {
		r := plain()
		r.Kind, r.Op, r.Method, r.Template, r.Status, r.Event = kind, op, strings.Fields(op)[0], strings.Fields(op)[1], status, record.Event{Name: name}
		r.Authz, r.Upstream, r.UpstreamStatus = record.Authz{}, record.Upstream{}, 0
		return r
	}
	const ok, no = record.Success, record.Failure
	link := []string{corpusID().String()}
	out := []named{
		{"request", plain()},
		{"request-full", full()},
		{"request-unmatched", &record.Record{ID: corpusID(), Time: corpusTime, Kind: record.KindRequest, Outcome: no, Node: "gate-1", Route: record.None, Op: record.None,
			Method: "PROPFIND", Host: record.Other, Proto: "HTTP/1.1", Template: "/{word}", Status: 404, Client: record.Client{Prefix: "192.0.2.0/24"},
			Error: record.Error{Origin: "client", Reason: "no_route"}}},
		{"fold", &record.Record{ID: corpusID(), Time: corpusTime, Kind: record.KindRequest, Outcome: no, Node: "gate-1", Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET",
			Status: 401, Client: record.Client{Prefix: "192.0.2.0/24"}, Error: record.Error{Origin: "identity", Reason: "no_credential"},
			Event: record.Event{Name: "fold", Count: 5012, Exact: true, First: corpusTime, Last: corpusTime + 9e6}}},
		{"session-upgrade", func() *record.Record {
			r := call(record.KindSession, "progress", "GET /v1/feed", 101)
			r.Links = link
			return r
		}()},
		{"session-login", call(record.KindSession, "session_login", "GET /_gatebook/callback", 303)},
		{"session-logout", call(record.KindSession, "session_logout", "POST /_gatebook/logout", 303)},
		{"token-client", call(record.KindToken, "client_credentials", "POST /oauth2/token", 200)},
		{"token-refresh", call(record.KindToken, "refresh", "POST /oauth2/token", 200)},
		{"token-revoke", call(record.KindToken, "revoke", "POST /oauth2/revoke", 200)},
		{"token-jwks", call(record.KindToken, "jwks", "GET /oauth2/jwks", 200)},
		{"admin-revoke", by(own(record.KindAdmin, ok, record.Event{Name: "token_revoke", Target: "q7Jc0r1m2n3o4p5q6r7s8Q", Cause: "subject"}))},
		{"admin-refused", func() *record.Record {
			r := own(record.KindAdmin, no, record.Event{Name: "refused"})
			r.Status, r.Error = 401, record.Error{Origin: "identity", Reason: "no_credential", Phase: "admin"}
			return r
		}()},
		{"access", by(own(record.KindAccess, ok, record.Event{Name: "show", Target: corpusID().String(), Cause: "reveal"}))},
		{"access-denied", func() *record.Record {
			r := by(own(record.KindAccess, no, record.Event{Name: "search", Cause: "without_reader"}))
			r.Status, r.Error = 403, record.Error{Origin: "policy", Reason: "denied_by_default", Phase: "admin"}
			return r
		}()},
		{"config", own(record.KindConfig, ok, record.Event{Name: "reload", Before: "aa", After: "bb", Target: "9c1185a5c5e9fc54612808977ee8f548"})},
		{"config-refused", own(record.KindConfig, no, record.Event{Name: "reload", Before: "aa", Target: "issuers", Cause: "invalid"})},
		{"policy-shadow", func() *record.Record {
			r := own(record.KindPolicy, ok, record.Event{Name: "shadow", Target: corpusID().String(), After: "cc"})
			r.Authz, r.Links = record.Authz{Decision: "allow", Policies: []string{"a"}, Set: "aa", ShadowDecision: "deny", ShadowPolicies: []string{"b"}}, link
			return r
		}()},
		{"key-create", by(own(record.KindKey, ok, record.Event{Name: "apikey_create", Target: "k1", After: "bb"}))},
		{"key-revoke", by(own(record.KindKey, ok, record.Event{Name: "apikey_revoke", Target: "k1", Before: "aa"}))},
		{"erasure", by(own(record.KindErasure, ok, record.Event{Name: "erase", Target: "q7Jc0r1m2n3o4p5q6r7s8Q", Cause: "subject"}))},
		{"retention", own(record.KindRetention, ok, record.Event{Name: "prune", Count: 65536, Exact: true})},
		{"hold", by(own(record.KindHold, ok, record.Event{Name: "hold", Target: "case-17"}))},
		{"delivery", own(record.KindDelivery, ok, record.Event{Name: "receipt", Target: "siem", Count: 500, Exact: true})},
		{"delivery-failed", own(record.KindDelivery, no, record.Event{Name: "quarantine", Target: "siem", Count: 1, Exact: true, Cause: "mapping"})},
		{"gap", own(record.KindGap, no, record.Event{Name: "gap", Count: 3, Exact: true, First: corpusTime - 5, Last: corpusTime - 1, Cause: "book_full"})},
		{"clock", own(record.KindClock, ok, record.Event{Name: "clock_step", Count: -7000000, MonoUS: 60000000, Clock: "synced"})},
		{"start", own(record.KindStart, ok, record.Event{Name: "start", Target: "0.9.0", Clock: "synced"})},
		{"stop", own(record.KindStop, ok, record.Event{Name: "stop"})},
		{"unclean-stop", own(record.KindUncleanStop, no, record.Event{Name: "unclean_stop", Count: 2, Exact: true, Cause: "torn"})},
		{"heartbeat", own(record.KindHeartbeat, ok, record.Event{Name: "heartbeat", Count: 12, MonoUS: 60000000, Clock: "synced"})},
		{"interrupted", &record.Record{ID: corpusID(), Time: corpusTime, Kind: record.KindInterrupted, Outcome: record.Unknown, Node: "gate-1", Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Client: record.Client{Prefix: "192.0.2.0/24"}}},
		{"alert-flood", func() *record.Record {
			r := own(record.KindAlert, no, record.Event{Name: "flood_begin", First: corpusTime, Cause: "no_credential"})
			r.Client.Prefix, r.Links, r.Error = "192.0.2.0/24", link, record.Error{Origin: "identity", Reason: "no_credential"}
			return r
		}()},
		{"alert-flood-end", own(record.KindAlert, no, record.Event{Name: "flood_end", Count: 90, Exact: true, First: corpusTime, Last: corpusTime + 5e6, Cause: "no_credential"})},
		{"alert-reuse", func() *record.Record {
			r := own(record.KindAlert, no, record.Event{Name: "authn_token_reuse", Count: 2, Exact: true, First: corpusTime, Cause: "blocked"})
			r.Subject, r.Authn = "q7Jc0r1m2n3o4p5q6r7s8Q", record.Authn{Method: record.None, Issuer: "corp"}
			r.Personal = record.Personal{Sub: "248289761001", Token: "dG9rZW4taGFzaC0wMDAwMQ"}
			return r
		}()},
	}
	// Every class with all that a record can hold, and with nothing.
	for _, kind := range kinds() {
		all := full()
		all.Kind, all.Links, all.Error = kind, link, record.Error{Origin: "upstream", Reason: "bad_response", Phase: "forward"}
		all.Event = record.Event{Name: "fold", Count: 2, Exact: true, First: corpusTime, Last: corpusTime + 1, MonoUS: 5, Clock: "synced", Before: "aa", After: "bb", Target: "t", Cause: "c"}
		out = append(out, named{"full:" + string(kind), all}, named{"least:" + string(kind), &record.Record{Kind: kind, Outcome: record.Unknown}})
	}
	for _, why := range reason.All() {
		out = append(out, named{"reasons:" + string(why), refused(why)})
	}
	return out
}
