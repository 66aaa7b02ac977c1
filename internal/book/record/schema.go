package record

// The schema is one table per half, in the order in which the keys are
// written. The encoder, the strict decoder and the column codec all walk these
// tables, so a key exists in all three or in none.

type fieldType uint8

const (
	tOpen    fieldType = iota // opens a nested object
	tClose                    // closes it
	tVersion                  // the constant Version
	tID                       // UUID text
	tTime                     // RFC 3339, UTC, six digits of microseconds
	tKind                     // closed list, mandatory
	tOutcome                  // closed list, mandatory
	tFact                     // mandatory string, None when there is nothing
	tString                   // absent when empty
	tInt                      // int64, absent when zero
	tSmall                    // int, absent when zero
	tBool                     // true, absent when false
	tList                     // list of strings, absent when empty
	tPairs                    // object of strings or lists of them, absent when empty
)

// A field is one row of a schema table.
type field struct {
	lit   string // what is written before the value: `"node":`, `"phase":{`
	typ   fieldType
	next  int                // row after this field; for tOpen the row after its tClose
	at    func(*Record) any  // pointer to the value in a record; nil for tOpen, tClose, tVersion
	empty func(*Record) bool // tOpen: reports that no field inside is set; may be nil
	path  string             // "node", "authn.issuer"
}

func (f *field) mandatory() bool {
	switch f.typ {
	case tVersion, tID, tTime, tKind, tOutcome, tFact:
		return true
	}
	return false
}

// row is a field as it is written down in the tables below.
type row struct {
	key   string
	typ   fieldType
	at    func(*Record) any
	empty func(*Record) bool
}

// build turns rows into a table: key literals, paths and skip targets.
func build(rows []row) []field {
	tab := make([]field, len(rows))
	var open []int
	prefix := ""
	for i, w := range rows {
		f := field{typ: w.typ, next: i + 1, at: w.at, empty: w.empty}
		switch w.typ {
		case tOpen:
			open = append(open, i)
			f.lit = `"` + w.key + `":{`
			prefix += w.key + "."
		case tClose:
			o := open[len(open)-1]
			open = open[:len(open)-1]
			tab[o].next = i + 1
			prefix = prefix[:len(prefix)-len(rows[o].key)-1]
		default:
			f.lit = `"` + w.key + `":`
			f.path = prefix + w.key
		}
		tab[i] = f
	}
	return tab
}

// frameV1 is the frame of schema version 1. It is frozen: a later version has
// a table of its own.
var frameV1 = build([]row{
	{key: "v", typ: tVersion},
	{key: "id", typ: tID, at: func(r *Record) any { return &r.ID }},
	{key: "time", typ: tTime, at: func(r *Record) any { return &r.Time }},
	{key: "kind", typ: tKind, at: func(r *Record) any { return &r.Kind }},
	{key: "outcome", typ: tOutcome, at: func(r *Record) any { return &r.Outcome }},
	{key: "node", typ: tString, at: func(r *Record) any { return &r.Node }},
	{key: "snap", typ: tString, at: func(r *Record) any { return &r.Snap }},
	{key: "route", typ: tString, at: func(r *Record) any { return &r.Route }},
	{key: "op", typ: tFact, at: func(r *Record) any { return &r.Op }},
	{key: "method", typ: tString, at: func(r *Record) any { return &r.Method }},
	{key: "host", typ: tString, at: func(r *Record) any { return &r.Host }},
	{key: "proto", typ: tString, at: func(r *Record) any { return &r.Proto }},
	{key: "template", typ: tString, at: func(r *Record) any { return &r.Template }},
	{key: "status", typ: tSmall, at: func(r *Record) any { return &r.Status }},
	{key: "upstream_status", typ: tSmall, at: func(r *Record) any { return &r.UpstreamStatus }},
	{key: "bytes_in", typ: tInt, at: func(r *Record) any { return &r.BytesIn }},
	{key: "bytes_out", typ: tInt, at: func(r *Record) any { return &r.BytesOut }},
	{key: "dur_us", typ: tInt, at: func(r *Record) any { return &r.DurUS }},

	{key: "phase", typ: tOpen, empty: func(r *Record) bool { return r.Phase == Phase{} }},
	{key: "auth", typ: tInt, at: func(r *Record) any { return &r.Phase.Auth }},
	{key: "limit", typ: tInt, at: func(r *Record) any { return &r.Phase.Limit }},
	{key: "policy", typ: tInt, at: func(r *Record) any { return &r.Phase.Policy }},
	{key: "open", typ: tInt, at: func(r *Record) any { return &r.Phase.Open }},
	{key: "queue", typ: tInt, at: func(r *Record) any { return &r.Phase.Queue }},
	{key: "connect", typ: tInt, at: func(r *Record) any { return &r.Phase.Connect }},
	{key: "tls", typ: tInt, at: func(r *Record) any { return &r.Phase.TLS }},
	{key: "ttfb", typ: tInt, at: func(r *Record) any { return &r.Phase.TTFB }},
	{key: "body", typ: tInt, at: func(r *Record) any { return &r.Phase.Body }},
	{typ: tClose},

	{key: "subject", typ: tFact, at: func(r *Record) any { return &r.Subject }},

	{key: "authn", typ: tOpen},
	{key: "method", typ: tString, at: func(r *Record) any { return &r.Authn.Method }},
	{key: "issuer", typ: tString, at: func(r *Record) any { return &r.Authn.Issuer }},
	{key: "client", typ: tString, at: func(r *Record) any { return &r.Authn.Client }},
	{key: "roles", typ: tList, at: func(r *Record) any { return &r.Authn.Roles }},
	{key: "acr", typ: tString, at: func(r *Record) any { return &r.Authn.ACR }},
	{key: "amr", typ: tList, at: func(r *Record) any { return &r.Authn.AMR }},
	{key: "age_s", typ: tInt, at: func(r *Record) any { return &r.Authn.AgeS }},
	{key: "ttl_s", typ: tInt, at: func(r *Record) any { return &r.Authn.TTLS }},
	{key: "bound", typ: tString, at: func(r *Record) any { return &r.Authn.Bound }},
	{key: "kid", typ: tString, at: func(r *Record) any { return &r.Authn.KID }},
	{key: "alg", typ: tString, at: func(r *Record) any { return &r.Authn.Alg }},
	{key: "outcome", typ: tString, at: func(r *Record) any { return &r.Authn.Outcome }},
	{key: "reason", typ: tString, at: func(r *Record) any { return &r.Authn.Reason }},
	{typ: tClose},

	{key: "authz", typ: tOpen},
	{key: "decision", typ: tString, at: func(r *Record) any { return &r.Authz.Decision }},
	{key: "policies", typ: tList, at: func(r *Record) any { return &r.Authz.Policies }},
	{key: "set", typ: tString, at: func(r *Record) any { return &r.Authz.Set }},
	{key: "errors", typ: tSmall, at: func(r *Record) any { return &r.Authz.Errors }},
	{key: "shadow", typ: tOpen, empty: func(r *Record) bool {
		return r.Authz.ShadowDecision == "" && len(r.Authz.ShadowPolicies) == 0
	}},
	{key: "decision", typ: tString, at: func(r *Record) any { return &r.Authz.ShadowDecision }},
	{key: "policies", typ: tList, at: func(r *Record) any { return &r.Authz.ShadowPolicies }},
	{typ: tClose},
	{typ: tClose},

	{key: "limit", typ: tOpen, empty: func(r *Record) bool { return r.Limit == Limit{} }},
	{key: "rule", typ: tString, at: func(r *Record) any { return &r.Limit.Rule }},
	{key: "outcome", typ: tString, at: func(r *Record) any { return &r.Limit.Outcome }},
	{key: "remaining", typ: tInt, at: func(r *Record) any { return &r.Limit.Remaining }},
	{key: "retry_s", typ: tInt, at: func(r *Record) any { return &r.Limit.RetryS }},
	{key: "mode", typ: tString, at: func(r *Record) any { return &r.Limit.Mode }},
	{typ: tClose},

	{key: "tls", typ: tOpen},
	{key: "version", typ: tString, at: func(r *Record) any { return &r.TLS.Version }},
	{key: "cipher", typ: tString, at: func(r *Record) any { return &r.TLS.Cipher }},
	{key: "group", typ: tString, at: func(r *Record) any { return &r.TLS.Group }},
	{key: "alpn", typ: tString, at: func(r *Record) any { return &r.TLS.ALPN }},
	{key: "sni", typ: tString, at: func(r *Record) any { return &r.TLS.SNI }},
	{key: "resumed", typ: tBool, at: func(r *Record) any { return &r.TLS.Resumed }},
	{key: "ja4", typ: tString, at: func(r *Record) any { return &r.TLS.JA4 }},
	{key: "client_cert", typ: tString, at: func(r *Record) any { return &r.TLS.ClientCert }},
	{typ: tClose},

	{key: "client", typ: tOpen},
	{key: "prefix", typ: tFact, at: func(r *Record) any { return &r.Client.Prefix }},
	{key: "port_class", typ: tString, at: func(r *Record) any { return &r.Client.PortClass }},
	{key: "hops", typ: tSmall, at: func(r *Record) any { return &r.Client.Hops }},
	{typ: tClose},

	{key: "upstream", typ: tOpen},
	{key: "name", typ: tString, at: func(r *Record) any { return &r.Upstream.Name }},
	{key: "target", typ: tString, at: func(r *Record) any { return &r.Upstream.Target }},
	{key: "attempts", typ: tSmall, at: func(r *Record) any { return &r.Upstream.Attempts }},
	{key: "reused", typ: tBool, at: func(r *Record) any { return &r.Upstream.Reused }},
	{key: "breaker", typ: tString, at: func(r *Record) any { return &r.Upstream.Breaker }},
	{key: "ttfb_us", typ: tInt, at: func(r *Record) any { return &r.Upstream.TTFBUS }},
	{typ: tClose},

	{key: "error", typ: tOpen, empty: func(r *Record) bool { return r.Error == Error{} }},
	{key: "origin", typ: tString, at: func(r *Record) any { return &r.Error.Origin }},
	{key: "reason", typ: tString, at: func(r *Record) any { return &r.Error.Reason }},
	{key: "phase", typ: tString, at: func(r *Record) any { return &r.Error.Phase }},
	{typ: tClose},

	{key: "san", typ: tOpen},
	{key: "set", typ: tString, at: func(r *Record) any { return &r.San.Set }},
	{key: "dropped", typ: tSmall, at: func(r *Record) any { return &r.San.Dropped }},
	{key: "masked", typ: tSmall, at: func(r *Record) any { return &r.San.Masked }},
	{key: "tripped", typ: tSmall, at: func(r *Record) any { return &r.San.Tripped }},
	{key: "invalid", typ: tSmall, at: func(r *Record) any { return &r.San.Invalid }},
	{typ: tClose},

	{key: "trace", typ: tString, at: func(r *Record) any { return &r.Trace }},
	{key: "links", typ: tList, at: func(r *Record) any { return &r.Links }},

	{key: "event", typ: tOpen, empty: func(r *Record) bool { return r.Event == Event{} }},
	{key: "name", typ: tString, at: func(r *Record) any { return &r.Event.Name }},
	{key: "count", typ: tInt, at: func(r *Record) any { return &r.Event.Count }},
	{key: "exact", typ: tBool, at: func(r *Record) any { return &r.Event.Exact }},
	{key: "first", typ: tInt, at: func(r *Record) any { return &r.Event.First }},
	{key: "last", typ: tInt, at: func(r *Record) any { return &r.Event.Last }},
	{key: "mono_us", typ: tInt, at: func(r *Record) any { return &r.Event.MonoUS }},
	{key: "clock", typ: tString, at: func(r *Record) any { return &r.Event.Clock }},
	{key: "before", typ: tString, at: func(r *Record) any { return &r.Event.Before }},
	{key: "after", typ: tString, at: func(r *Record) any { return &r.Event.After }},
	{key: "target", typ: tString, at: func(r *Record) any { return &r.Event.Target }},
	{key: "cause", typ: tString, at: func(r *Record) any { return &r.Event.Cause }},
	{typ: tClose},
})

// personalV1 is the personal part of schema version 1.
var personalV1 = build([]row{
	{key: "sub", typ: tString, at: func(r *Record) any { return &r.Personal.Sub }},
	{key: "name", typ: tString, at: func(r *Record) any { return &r.Personal.Name }},
	{key: "email", typ: tString, at: func(r *Record) any { return &r.Personal.Email }},
	{key: "tenant_user", typ: tString, at: func(r *Record) any { return &r.Personal.TenantUser }},
	{key: "claimed", typ: tString, at: func(r *Record) any { return &r.Personal.Claimed }},
	{key: "ip", typ: tString, at: func(r *Record) any { return &r.Personal.IP }},
	{key: "port", typ: tSmall, at: func(r *Record) any { return &r.Personal.Port }},
	{key: "fwd", typ: tList, at: func(r *Record) any { return &r.Personal.Fwd }},
	{key: "ua", typ: tString, at: func(r *Record) any { return &r.Personal.UA }},
	{key: "path", typ: tString, at: func(r *Record) any { return &r.Personal.Path }},
	{key: "query", typ: tString, at: func(r *Record) any { return &r.Personal.Query }},
	{key: "referer", typ: tString, at: func(r *Record) any { return &r.Personal.Referer }},
	{key: "cert_subject", typ: tString, at: func(r *Record) any { return &r.Personal.CertSubject }},
	{key: "session", typ: tString, at: func(r *Record) any { return &r.Personal.Session }},
	{key: "token", typ: tString, at: func(r *Record) any { return &r.Personal.Token }},
	{key: "family", typ: tString, at: func(r *Record) any { return &r.Personal.Family }},
	{key: "client_request_id", typ: tString, at: func(r *Record) any { return &r.Personal.ClientRequestID }},
	{key: "traceparent", typ: tString, at: func(r *Record) any { return &r.Personal.Traceparent }},
	{key: "headers", typ: tPairs, at: func(r *Record) any { return &r.Personal.Headers }},
	{key: "claims", typ: tPairs, at: func(r *Record) any { return &r.Personal.Claims }},
	{key: "body_sha256", typ: tString, at: func(r *Record) any { return &r.Personal.BodySHA256 }},
	{key: "ja4", typ: tString, at: func(r *Record) any { return &r.Personal.JA4 }},
	{key: "bytes_in", typ: tInt, at: func(r *Record) any { return &r.Personal.BytesIn }},
	{key: "bytes_out", typ: tInt, at: func(r *Record) any { return &r.Personal.BytesOut }},
})

// A StringField names one string of a record and gives access to it.
type StringField struct {
	Path string // key path, "authn.issuer"
	off  uintptr
}

// At gives the string of a record.
func (f *StringField) At(r *Record) *string { return value[string](r, f.off) }

// FrameStrings lists the free strings of the frame in the order of the
// schema: not id, time, kind, outcome and lists. The slice is the caller's.
func FrameStrings() []StringField {
	var out []StringField
	for i := range frameV1 {
		f := &frameV1[i]
		if f.typ == tString || f.typ == tFact {
			out = append(out, StringField{f.path, frameSteps[i].off})
		}
	}
	return out
}
