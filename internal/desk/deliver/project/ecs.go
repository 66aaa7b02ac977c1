package project

import (
	"math"
	"net/netip"
	"strings"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// ecs is the Elastic Common Schema. What it has no field for stands under
// "gatebook", a namespace of our own.
func (p *projection) ecs(s *scratch, e *enc, id string, entry *book.Entry) {
	r := &s.rec
	h := has{
		outcome: true, host: true, proto: true, method: true, status: true, tls: true, tlsMore: true, prefix: true, upstream: true, target: true,
		trace: true, bytes: true, roles: true, reason: true, subject: true, userAgent: true, path: true, query: true, referrer: true, certSubject: true,
	}
	p.ecsHead(e, r, id, entry.Index, &h)
	if exchange(r.Kind) {
		h.id = true
	}
	ecsHTTP(e, r)
	ecsURL(e, r)
	ecsWho(e, r)
	ecsSource(e, r, &h)
	ecsDestination(e, r)
	ecsTLS(e, r)
	ecsRule(e, r)
	if traced(r) {
		e.traceID(`"trace":{"id":`, r)
		e.end()
	}
	at := e.open(`"gatebook":`)
	p.rest(s, e, &h)
	e.close(at)
	e.end()
}

// ecsHead writes what every event has.
func (p *projection) ecsHead(e *enc, r *record.Record, id string, index uint64, h *has) {
	e.begin()
	e.time(`"@timestamp":`, r.Time)
	e.lit(`"ecs":`, `{"version":"`+ECSVersion+`"}`)
	e.message(`"message":`, r)
	at := e.open(`"event":`)
	e.must(`"id":`, id)
	kind, about := ecsSorts(r)
	e.must(`"kind":`, kind)
	e.lit(`"category":`, about.category)
	e.lit(`"type":`, about.types)
	e.must(`"action":`, action(r))
	e.must(`"outcome":`, string(r.Outcome))
	e.str(`"reason":`, r.Error.Reason)
	if d := r.DurUS; d > 0 && d <= math.MaxInt64/1000 {
		e.num(`"duration":`, d*1000)
		h.duration = true
	}
	e.uint(`"sequence":`, index)
	e.time(`"start":`, r.Time)
	e.lit(`"module":"gatebook","dataset":`, `"gatebook.audit"`)
	e.close(at)
	at = e.open(`"observer":`)
	e.str(`"name":`, r.Node)
	e.lit(`"vendor":"Gatebook","product":"Gatebook","type":`, `"proxy"`)
	e.str(`"version":`, p.product)
	e.close(at)
}

func ecsHTTP(e *enc, r *record.Record) {
	at := e.open(`"http":`)
	e.str(`"version":`, strings.TrimPrefix(r.Proto, "HTTP/"))
	in := e.open(`"request":`)
	if exchange(r.Kind) {
		e.id(`"id":`, r.ID)
	}
	e.str(`"method":`, r.Method)
	e.str(`"referrer":`, r.Personal.Referer)
	if r.BytesIn != 0 {
		e.num(`"body":{"bytes":`, r.BytesIn)
		e.end()
	}
	e.close(in)
	out := e.open(`"response":`)
	e.int(`"status_code":`, int64(r.Status))
	if r.BytesOut != 0 {
		e.num(`"body":{"bytes":`, r.BytesOut)
		e.end()
	}
	e.close(out)
	e.close(at)
}

func ecsURL(e *enc, r *record.Record) {
	at := e.open(`"url":`)
	e.str(`"domain":`, r.Host)
	e.str(`"path":`, r.Personal.Path)
	e.str(`"query":`, r.Personal.Query)
	e.close(at)
	if ua := r.Personal.UA; ua != "" {
		e.must(`"user_agent":{"original":`, ua)
		e.end()
	}
}

func ecsWho(e *enc, r *record.Record) {
	at := e.open(`"user":`)
	e.must(`"id":`, r.Subject)
	e.str(`"name":`, r.Personal.Sub)
	e.str(`"full_name":`, r.Personal.Name)
	e.str(`"email":`, r.Personal.Email)
	e.strs(`"roles":`, r.Authn.Roles)
	e.close(at)
}

func ecsSource(e *enc, r *record.Record, h *has) {
	at := e.open(`"source":`)
	e.must(`"address":`, r.Client.Prefix)
	if ip := r.Personal.IP; validIP(ip) {
		e.must(`"ip":`, ip)
		h.ip = true
	}
	if port := r.Personal.Port; port > 0 && port <= math.MaxUint16 {
		e.num(`"port":`, int64(port))
		h.port = true
	}
	e.close(at)
}

// validIP reports what a field of type ip takes: no zone, no port.
func validIP(s string) bool {
	if s == "" {
		return false
	}
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == ""
}

func ecsDestination(e *enc, r *record.Record) {
	at := e.open(`"destination":`)
	e.str(`"address":`, r.Upstream.Target)
	e.close(at)
	if name := r.Upstream.Name; name != "" {
		e.must(`"service":{"target":{"name":`, name)
		e.end()
		e.end()
	}
}

func ecsTLS(e *enc, r *record.Record) {
	t := &r.TLS
	at := e.open(`"tls":`)
	if t.Version != "" {
		e.must(`"version":`, t.Version)
		e.lit(`"version_protocol":`, `"tls"`) // the schema's word; the gate speaks no SSL
	}
	e.str(`"cipher":`, t.Cipher)
	e.str(`"curve":`, t.Group)
	e.str(`"next_protocol":`, t.ALPN)
	e.bool(`"resumed":`, t.Resumed)
	client := e.open(`"client":`)
	e.str(`"server_name":`, t.SNI)
	e.str(`"subject":`, r.Personal.CertSubject)
	e.close(client)
	e.close(at)
}

// ecsRule names the first determining policy; all of them are under gatebook.
func ecsRule(e *enc, r *record.Record) {
	if len(r.Authz.Policies) == 0 {
		return
	}
	at := e.open(`"rule":`)
	e.str(`"id":`, r.Authz.Policies[0])
	e.str(`"version":`, r.Authz.Set)
	e.close(at)
}

func (p *projection) ecsStub(s *scratch, e *enc, id string, entry *book.Entry, size int) {
	r := &s.rec
	var h has
	p.ecsHead(e, r, id, entry.Index, &h)
	ecsWho(e, r)
	ecsSource(e, r, &h)
	at := e.open(`"gatebook":`)
	e.id(`"id":`, r.ID)
	e.must(`"kind":`, string(r.Kind))
	e.must(`"origin":`, p.origin)
	authz := e.open(`"authz":`)
	e.str(`"decision":`, r.Authz.Decision)
	e.close(authz)
	e.lit(`"truncated":`, "true")
	e.num(`"size":`, int64(size))
	e.close(at)
	e.end()
}
