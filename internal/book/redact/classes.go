package redact

// Class says what happens to a field.
type Class string

// The classes.
const (
	Keep         Class = "keep"         // closed words, numbers, configured names: as it is
	Generalise   Class = "generalise"   // coarser than it came
	Pseudonymise Class = "pseudonymise" // keyed or random stand-in, made before it gets here
	Seal         Class = "seal"         // personal part only
	Drop         Class = "drop"         // never leaves Apply
)

// FieldClass is one row of the class table.
type FieldClass struct {
	Path  string // Go path in record.Record
	Class Class
}

// Fields gives the class table: one row for each field of record.Record. What
// has no row does not exist; a test holds the table against the struct.
func Fields() []FieldClass {
	return []FieldClass{
		{"ID", Keep},
		{"Time", Keep},
		{"Kind", Keep},
		{"Outcome", Keep},
		{"Node", Keep},
		{"Snap", Keep},
		{"Route", Keep}, // configured or Other
		{"Op", Keep},    // method and configured template
		{"Method", Keep},
		{"Host", Keep}, // configured or Other
		{"Proto", Keep},
		{"Template", Generalise}, // configured, or the shape of the path
		{"Status", Keep},
		{"UpstreamStatus", Keep},
		{"BytesIn", Keep}, // sealed when minimal
		{"BytesOut", Keep},
		{"DurUS", Keep},
		{"Phase.Auth", Keep},
		{"Phase.Limit", Keep},
		{"Phase.Policy", Keep},
		{"Phase.Open", Keep},
		{"Phase.Queue", Keep},
		{"Phase.Connect", Keep},
		{"Phase.TLS", Keep},
		{"Phase.TTFB", Keep},
		{"Phase.Body", Keep},
		{"Subject", Pseudonymise},
		{"Authn.Method", Keep},
		{"Authn.Issuer", Keep}, // configured or Other
		{"Authn.Client", Keep}, // configured, loaded or Other
		{"Authn.Roles", Keep},
		{"Authn.ACR", Keep},
		{"Authn.AMR", Keep},
		{"Authn.AgeS", Keep},
		{"Authn.TTLS", Keep},
		{"Authn.Bound", Keep},
		{"Authn.KID", Keep},
		{"Authn.Alg", Keep},
		{"Authn.Outcome", Keep},
		{"Authn.Reason", Keep},
		{"Authz.Decision", Keep},
		{"Authz.Policies", Keep},
		{"Authz.Set", Keep},
		{"Authz.Errors", Keep},
		{"Authz.ShadowDecision", Keep},
		{"Authz.ShadowPolicies", Keep},
		{"Limit.Rule", Keep},
		{"Limit.Outcome", Keep},
		{"Limit.Remaining", Keep},
		{"Limit.RetryS", Keep},
		{"Limit.Mode", Keep},
		{"TLS.Version", Keep},
		{"TLS.Cipher", Keep},
		{"TLS.Group", Keep},
		{"TLS.ALPN", Keep},
		{"TLS.SNI", Keep}, // configured or Other
		{"TLS.Resumed", Keep},
		{"TLS.JA4", Keep}, // sealed when minimal
		{"TLS.ClientCert", Pseudonymise},
		{"Client.Prefix", Generalise},
		{"Client.PortClass", Generalise},
		{"Client.Hops", Keep},
		{"Upstream.Name", Keep},
		{"Upstream.Target", Keep},
		{"Upstream.Attempts", Keep},
		{"Upstream.Reused", Keep},
		{"Upstream.Breaker", Keep},
		{"Upstream.TTFBUS", Keep},
		{"Error.Origin", Keep},
		{"Error.Reason", Keep},
		{"Error.Phase", Keep},
		{"San.Set", Keep},
		{"San.Dropped", Keep},
		{"San.Masked", Keep},
		{"San.Tripped", Keep},
		{"San.Invalid", Keep},
		{"Trace", Keep},
		{"Links", Keep},
		{"Event.Name", Keep},
		{"Event.Count", Keep},
		{"Event.Exact", Keep},
		{"Event.First", Keep},
		{"Event.Last", Keep},
		{"Event.MonoUS", Keep},
		{"Event.Clock", Keep},
		{"Event.Before", Keep},
		{"Event.After", Keep},
		{"Event.Target", Keep},
		{"Event.Cause", Keep},
		{"Personal.Sub", Seal},
		{"Personal.Name", Seal},
		{"Personal.Email", Seal},
		{"Personal.TenantUser", Seal},
		{"Personal.Claimed", Seal},
		{"Personal.IP", Seal},
		{"Personal.Port", Seal},
		{"Personal.Fwd", Seal},
		{"Personal.UA", Seal},
		{"Personal.Path", Seal},
		{"Personal.Query", Seal},
		{"Personal.Referer", Seal},
		{"Personal.CertSubject", Seal},
		{"Personal.Session", Pseudonymise},
		{"Personal.Token", Pseudonymise},
		{"Personal.Family", Pseudonymise},
		{"Personal.ClientRequestID", Seal},
		{"Personal.Traceparent", Seal},
		{"Personal.Headers", Seal},
		{"Personal.Claims", Seal},
		{"Personal.BodySHA256", Seal},
		{"Personal.JA4", Seal},
		{"Personal.BytesIn", Seal},
		{"Personal.BytesOut", Seal},
		{"Raw.IssuerSub", Drop},
		{"Raw.Path", Generalise},
		{"Raw.Query", Seal},
		{"Raw.UA", Seal},
		{"Raw.Referer", Generalise},
		{"Raw.Unmatched", Drop},
		{"Raw.Headers", Seal},
		{"Raw.Claims", Seal},
		{"Raw.RemoteAddr", Generalise},
		{"Raw.RemotePort", Seal},
		{"Raw.Fold", Drop},
		{"Raw.Kept", Drop},
	}
}
