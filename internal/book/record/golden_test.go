package record

// goldenRecords gives one record for each family of kinds. Their bytes are
// frozen under testdata/v1.
func goldenRecords() map[string]*Record {
	id := ID{0x01, 0x9a, 0xb1, 0xc2, 0xd3, 0xe4, 0x71, 0x23, 0x9a, 0xbc, 0xde, 0xf0, 0x12, 0x34, 0x56, 0x78}
	const at = 1795428000123456
	own := func(kind Kind, e Event) *Record {
		return &Record{ID: id, Time: at, Kind: kind, Outcome: Success, Node: "gate-1", Event: e}
	}
	return map[string]*Record{
		"request": {
			ID: id, Time: at, Kind: KindRequest, Outcome: Success, Node: "gate-1",
			Snap: "0d4e1c9ab2f35a7788aa12fe6cd01b34", Route: "orders.read", Op: "GET /v1/orders/{id}",
			Method: "GET", Host: "api.example.com", Proto: "HTTP/2", Template: "/v1/orders/{id}",
			Status: 200, UpstreamStatus: 200, BytesOut: 913, DurUS: 4021,
			Phase:   Phase{Auth: 11, Limit: 1, Policy: 9, Open: 41, Queue: 2, Connect: 210, TLS: 480, TTFB: 3011, Body: 120},
			Subject: "q7Jc0r1m2n3o4p5q6r7s8Q",
			Authn: Authn{Method: "jwt", Issuer: "corp", Client: "web", Roles: []string{"clerk", "auditor"}, ACR: "aal2",
				AMR: []string{"pwd", "otp"}, AgeS: 61, TTLS: 3539, Bound: "dpop", KID: "2026-11", Alg: "ES256", Outcome: "ok"},
			Authz: Authz{Decision: "allow", Policies: []string{"clerks-read"}, Set: "9c1185a5c5e9fc54612808977ee8f548",
				ShadowDecision: "deny", ShadowPolicies: []string{"strict"}},
			Limit: Limit{Rule: "per_subject", Outcome: "ok", Remaining: 199, Mode: "local"},
			TLS: TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2",
				SNI: "api.example.com", Resumed: true, JA4: "t13d1516h2_8daaf6152771_b186095e22b6", ClientCert: "b1946ac92492d2347c6235b4d2611184"},
			Client:   Client{Prefix: "203.0.113.0/24", PortClass: "ephemeral", Hops: 1},
			Upstream: Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1, Reused: true, Breaker: "closed", TTFBUS: 3011},
			San:      San{Set: "77c05cd4b2a5d0b1f15f1b2a30a4dd11", Dropped: 2, Masked: 1, Tripped: 1, Invalid: 1},
			Trace:    "4bf92f3577b34da6a3ce929d0e0e4736",
			Personal: Personal{
				Sub: "248289761001", Name: "Ana \u202e Müller", Email: "ana@example.com", TenantUser: "t1/ana", IP: "203.0.113.7", Port: 50123,
				Fwd: []string{"198.51.100.2"}, UA: "curl/8.5 <x>", Path: "/v1/orders/17", Query: "page=2", Referer: "https://app.example.com/orders",
				CertSubject: "CN=ana", Session: "c2Vzc2lvbg", Token: "dG9rZW4", Family: "ZmFtaWx5", ClientRequestID: "abc-1",
				Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
				Headers:     []Pair{{"accept-language", "de"}, {"x-tag", "a"}, {"x-tag", "b\xff"}}, Claims: []Pair{{"dept", "sales"}},
				BodySHA256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
				JA4:        "t13d", BytesIn: 1, BytesOut: 913,
			},
		},
		"denied": {
			ID: id, Time: at, Kind: KindRequest, Outcome: Failure, Node: "gate-1", Route: None, Op: None, Method: Other,
			Host: Other, Proto: "HTTP/1.1", Template: "/{word}/{uuid}/{token}", Status: 401, DurUS: 90,
			Authn:    Authn{Method: None, Outcome: "failed", Reason: "token_expired"},
			Client:   Client{Prefix: "2001:db8::/32"},
			Error:    Error{Origin: "identity", Reason: "token_expired", Phase: "authn"},
			Personal: Personal{Claimed: "ana", IP: "2001:db8::1"},
		},
		"handshake":   {ID: id, Time: at, Kind: KindHandshake, Outcome: Failure, Client: Client{Prefix: "192.0.2.0/24"}, Error: Error{Origin: "client", Reason: "tls_version"}, TLS: TLS{Version: "1.0"}},
		"malformed":   {ID: id, Time: at, Kind: KindMalformed, Outcome: Failure, Client: Client{Prefix: "192.0.2.0/24"}, Status: 400, Error: Error{Origin: "client", Reason: "ambiguous_framing"}},
		"session":     {ID: id, Time: at, Kind: KindSession, Outcome: Success, Route: "feed", Op: "GET /v1/feed", Status: 101, Links: []string{id.String()}, Event: Event{Name: "progress"}},
		"interrupted": {ID: id, Time: at, Kind: KindInterrupted, Outcome: Unknown, Route: "orders.read", Op: "GET /v1/orders/{id}", Client: Client{Prefix: "192.0.2.0/24"}},
		"heartbeat":   own(KindHeartbeat, Event{Name: "minute", Count: 12, Exact: true, MonoUS: 60000000, Clock: "synced"}),
		"gap":         own(KindGap, Event{Name: "book_full", Count: 3, Exact: true, First: at - 5, Last: at - 1}),
		"config":      own(KindConfig, Event{Name: "reload", Before: "aa", After: "bb", Target: "gatebook.yaml", Cause: "signal"}),
	}
}
