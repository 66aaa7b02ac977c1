package project

import "github.com/gatebook/gatebook/internal/book/record"

// has says what a schema had a place for, so that it is not written again among
// the rest.
type has struct {
	id, outcome, origin                    bool
	route, op, method, status              bool
	duration                               bool
	issuer, client, roles                  bool
	decision                               bool
	tls, tlsMore, ja4, prefix              bool // tlsMore: group, alpn, resumed
	upstream, target                       bool
	reason                                 bool
	trace                                  bool
	host, proto                            bool
	bytes                                  bool
	subject, ip, port, fwd, path, referrer bool
	userAgent, query, session              bool
	certSubject                            bool
}

// rest writes, in the words of the record, what the schema has no place for.
func (p *projection) rest(s *scratch, e *enc, h *has) {
	r := &s.rec
	if !h.id {
		e.id(`"id":`, r.ID)
	}
	e.must(`"kind":`, string(r.Kind))
	if !h.outcome {
		e.must(`"outcome":`, string(r.Outcome))
	}
	if !h.origin {
		e.must(`"origin":`, p.origin)
	}
	e.str(`"snap":`, r.Snap)
	if !h.route {
		e.str(`"route":`, r.Route)
	}
	if !h.op {
		e.must(`"op":`, r.Op)
	}
	if !h.method {
		e.str(`"method":`, r.Method)
	}
	if !h.host {
		e.str(`"host":`, r.Host)
	}
	if !h.proto {
		e.str(`"proto":`, r.Proto)
	}
	e.str(`"template":`, r.Template)
	if !h.status {
		e.int(`"status":`, int64(r.Status))
	}
	e.int(`"upstream_status":`, int64(r.UpstreamStatus))
	if !h.bytes {
		e.int(`"bytes_in":`, r.BytesIn)
		e.int(`"bytes_out":`, r.BytesOut)
	}
	if !h.duration {
		e.int(`"dur_us":`, r.DurUS)
	}
	restPhase(e, &r.Phase)
	restAuthn(e, &r.Authn, h)
	restAuthz(e, &r.Authz, h)
	restLimit(e, &r.Limit)
	restConnection(e, r, h)
	restUpstream(e, &r.Upstream, h)
	at := e.open(`"error":`)
	e.str(`"origin":`, r.Error.Origin)
	if !h.reason {
		e.str(`"reason":`, r.Error.Reason)
	}
	e.str(`"phase":`, r.Error.Phase)
	e.close(at)
	restSan(e, &r.San)
	if !h.trace {
		e.str(`"trace":`, r.Trace)
	}
	e.strs(`"links":`, r.Links)
	restEvent(e, &r.Event)
	restPersonal(e, &r.Personal, h)
	if s.erased {
		e.lit(`"erased":`, "true")
	}
}

func restPhase(e *enc, f *record.Phase) {
	if *f == (record.Phase{}) {
		return
	}
	at := e.open(`"phase":`)
	e.int(`"auth":`, f.Auth)
	e.int(`"limit":`, f.Limit)
	e.int(`"policy":`, f.Policy)
	e.int(`"open":`, f.Open)
	e.int(`"queue":`, f.Queue)
	e.int(`"connect":`, f.Connect)
	e.int(`"tls":`, f.TLS)
	e.int(`"ttfb":`, f.TTFB)
	e.int(`"body":`, f.Body)
	e.close(at)
}

func restAuthn(e *enc, a *record.Authn, h *has) {
	at := e.open(`"authn":`)
	e.str(`"method":`, a.Method)
	if !h.issuer {
		e.str(`"issuer":`, a.Issuer)
	}
	if !h.client {
		e.str(`"client":`, a.Client)
	}
	if !h.roles {
		e.strs(`"roles":`, a.Roles)
	}
	e.str(`"acr":`, a.ACR)
	e.strs(`"amr":`, a.AMR)
	e.int(`"age_s":`, a.AgeS)
	e.int(`"ttl_s":`, a.TTLS)
	e.str(`"bound":`, a.Bound)
	e.str(`"kid":`, a.KID)
	e.str(`"alg":`, a.Alg)
	e.str(`"outcome":`, a.Outcome)
	e.str(`"reason":`, a.Reason)
	e.close(at)
}

func restAuthz(e *enc, a *record.Authz, h *has) {
	at := e.open(`"authz":`)
	if !h.decision {
		e.str(`"decision":`, a.Decision)
		e.strs(`"policies":`, a.Policies)
		e.str(`"set":`, a.Set)
	}
	e.int(`"errors":`, int64(a.Errors))
	shadow := e.open(`"shadow":`)
	e.str(`"decision":`, a.ShadowDecision)
	e.strs(`"policies":`, a.ShadowPolicies)
	e.close(shadow)
	e.close(at)
}

func restLimit(e *enc, l *record.Limit) {
	at := e.open(`"limit":`)
	e.str(`"rule":`, l.Rule)
	e.str(`"outcome":`, l.Outcome)
	e.int(`"remaining":`, l.Remaining)
	e.int(`"retry_s":`, l.RetryS)
	e.str(`"mode":`, l.Mode)
	e.close(at)
}

// restConnection writes the client's side.
func restConnection(e *enc, r *record.Record, h *has) {
	at := e.open(`"tls":`)
	if !h.tls {
		e.str(`"version":`, r.TLS.Version)
		e.str(`"cipher":`, r.TLS.Cipher)
	}
	if !h.tlsMore {
		e.str(`"group":`, r.TLS.Group)
		e.str(`"alpn":`, r.TLS.ALPN)
		e.bool(`"resumed":`, r.TLS.Resumed)
	}
	if !h.tls && !h.tlsMore {
		e.str(`"sni":`, r.TLS.SNI)
	}
	if !h.ja4 {
		e.str(`"ja4":`, r.TLS.JA4)
	}
	e.str(`"client_cert":`, r.TLS.ClientCert)
	e.close(at)
	at = e.open(`"client":`)
	if !h.prefix {
		e.must(`"prefix":`, r.Client.Prefix)
	}
	e.str(`"port_class":`, r.Client.PortClass)
	e.int(`"hops":`, int64(r.Client.Hops))
	e.close(at)
}

func restUpstream(e *enc, u *record.Upstream, h *has) {
	at := e.open(`"upstream":`)
	if !h.upstream {
		e.str(`"name":`, u.Name)
	}
	if !h.target {
		e.str(`"target":`, u.Target)
	}
	e.int(`"attempts":`, int64(u.Attempts))
	e.bool(`"reused":`, u.Reused)
	e.str(`"breaker":`, u.Breaker)
	e.int(`"ttfb_us":`, u.TTFBUS)
	e.close(at)
}

func restSan(e *enc, s *record.San) {
	at := e.open(`"san":`)
	e.str(`"set":`, s.Set)
	e.int(`"dropped":`, int64(s.Dropped))
	e.int(`"masked":`, int64(s.Masked))
	e.int(`"tripped":`, int64(s.Tripped))
	e.int(`"invalid":`, int64(s.Invalid))
	e.close(at)
}

func restEvent(e *enc, v *record.Event) {
	at := e.open(`"event":`)
	e.str(`"name":`, v.Name)
	e.int(`"count":`, v.Count)
	e.bool(`"exact":`, v.Exact)
	e.int(`"first":`, v.First)
	e.int(`"last":`, v.Last)
	e.int(`"mono_us":`, v.MonoUS)
	e.str(`"clock":`, v.Clock)
	e.str(`"before":`, v.Before)
	e.str(`"after":`, v.After)
	e.str(`"target":`, v.Target)
	e.str(`"cause":`, v.Cause)
	e.close(at)
}

// restPersonal writes the named personal fields without a place of their own.
func restPersonal(e *enc, p *record.Personal, h *has) {
	at := e.open(`"personal":`)
	if !h.subject {
		e.str(`"sub":`, p.Sub)
		e.str(`"name":`, p.Name)
		e.str(`"email":`, p.Email)
	}
	e.str(`"tenant_user":`, p.TenantUser)
	e.str(`"claimed":`, p.Claimed)
	if !h.ip {
		e.str(`"ip":`, p.IP)
	}
	if !h.port {
		e.int(`"port":`, int64(p.Port))
	}
	if !h.fwd {
		e.strs(`"fwd":`, p.Fwd)
	}
	if !h.userAgent {
		e.str(`"ua":`, p.UA)
	}
	if !h.path {
		e.str(`"path":`, p.Path)
	}
	if !h.query {
		e.str(`"query":`, p.Query)
	}
	if !h.referrer {
		e.str(`"referer":`, p.Referer)
	}
	if !h.certSubject {
		e.str(`"cert_subject":`, p.CertSubject)
	}
	if !h.session {
		e.str(`"session":`, p.Session)
	}
	e.str(`"token":`, p.Token)
	e.str(`"family":`, p.Family)
	e.str(`"client_request_id":`, p.ClientRequestID)
	e.str(`"traceparent":`, p.Traceparent)
	e.pairs(`"headers":`, p.Headers)
	e.pairs(`"claims":`, p.Claims)
	e.str(`"body_sha256":`, p.BodySHA256)
	e.str(`"ja4":`, p.JA4)
	e.int(`"bytes_in":`, p.BytesIn)
	e.int(`"bytes_out":`, p.BytesOut)
	e.close(at)
}
