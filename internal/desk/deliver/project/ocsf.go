package project

import (
	"math"
	"strconv"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// ocsf is the Open Cybersecurity Schema Framework. What a class has no
// attribute for stands under "unmapped".
func (p *projection) ocsf(s *scratch, e *enc, id string, entry *book.Entry) {
	r := &s.rec
	c := classOf(r)
	h := has{
		id: true, outcome: c.uid != classFinding, origin: true, subject: true, issuer: true, client: true, roles: true,
		decision: r.Authz.Decision != "", status: true, upstream: true, target: true, reason: true, trace: true, session: true,
	}
	p.ocsfHead(e, r, c, id, entry, -1)
	ocsfActor(e, r)
	ocsfSource(e, r, c, &h)
	ocsfVerdict(e, r)
	if exchange(r.Kind) {
		ocsfDestination(e, r)
		h.host = true
		ocsfHTTP(e, r, c, &h)
	}
	p.ocsfClass(e, r, c, id, &h)
	if !exchange(r.Kind) {
		h.status, h.upstream, h.target = r.Status == 0, false, false
	}
	if c.uid != classAPI && c.uid != classHTTP {
		h.trace = r.Trace == ""
	} else if traced(r) {
		e.traceID(`"trace":{"uid":`, r)
		e.end()
	}
	at := e.open(`"unmapped":`)
	p.rest(s, e, &h)
	e.close(at)
	e.end()
}

// ocsfHead writes what every class has; size >= 0 is that of a stub.
func (p *projection) ocsfHead(e *enc, r *record.Record, c class, id string, entry *book.Entry, size int) {
	e.begin()
	e.num(`"class_uid":`, int64(c.uid))
	e.num(`"category_uid":`, int64(c.uid/1000))
	e.num(`"activity_id":`, int64(c.activity))
	e.num(`"type_uid":`, int64(c.uid)*100+int64(c.activity))
	if c.activity == activityOther {
		e.must(`"activity_name":`, action(r))
	}
	e.num(`"time":`, r.Time/1000)
	e.num(`"severity_id":`, int64(severity(r)))
	e.message(`"message":`, r)
	at := e.open(`"metadata":`)
	e.lit(`"version":`, `"`+OCSFVersion+`","product":{"name":"Gatebook","vendor_name":"Gatebook"`)
	e.str(`"version":`, p.product)
	e.end()
	e.lit(`"profiles":`, c.profiles())
	e.must(`"uid":`, id)
	e.uint(`"sequence":`, entry.Index)
	e.id(`"correlation_uid":`, r.ID)
	e.must(`"event_code":`, string(r.Kind))
	e.must(`"log_name":`, p.origin)
	if r.Node != "" {
		e.must(`"reporter":{"name":`, r.Node)
		e.end()
	}
	e.time(`"original_time":`, r.Time)
	if size >= 0 {
		e.lit(`"is_truncated":`, "true")
		e.num(`"untruncated_size":`, int64(size))
	}
	e.close(at)
	ocsfStatus(e, r, c)
}

// ocsfStatus says how it ended. In a finding the status is the finding's own.
func ocsfStatus(e *enc, r *record.Record, c class) {
	status := int64(0)
	switch r.Outcome {
	case record.Success:
		status = 1
	case record.Failure:
		status = 2
	}
	if c.uid == classFinding {
		status = 1 // New
		if c.activity == findingClose {
			status = 4 // Resolved
		}
	}
	e.num(`"status_id":`, status)
	if r.Status != 0 && exchange(r.Kind) {
		e.key(`"status_code":"`)
		e.b = append(strconv.AppendInt(e.b, int64(r.Status), 10), '"')
	}
	e.str(`"status_detail":`, r.Error.Reason)
	if d := r.DurUS / 1000; d > 0 {
		e.num(`"duration":`, d)
	}
	if r.Event.Name == "fold" && r.Event.Count > 0 && r.Event.Count <= math.MaxInt32 {
		e.num(`"count":`, r.Event.Count)
		e.num(`"start_time":`, r.Event.First/1000)
		e.num(`"end_time":`, r.Event.Last/1000)
	}
}

func ocsfActor(e *enc, r *record.Record) {
	at := e.open(`"actor":`)
	ocsfUser(e, r)
	if a := r.Authn.Issuer; a != "" {
		e.must(`"idp":{"name":`, a)
		e.end()
	}
	e.str(`"app_uid":`, r.Authn.Client)
	if r.Personal.Session != "" {
		e.must(`"session":{"uid":`, r.Personal.Session)
		e.end()
	}
	e.close(at)
}

func ocsfUser(e *enc, r *record.Record) {
	at := e.open(`"user":`)
	e.must(`"uid":`, r.Subject)
	e.str(`"name":`, r.Personal.Sub)
	e.str(`"full_name":`, r.Personal.Name)
	e.str(`"email_addr":`, r.Personal.Email)
	if len(r.Authn.Roles) > 0 {
		e.list(`"groups":`)
		for _, role := range r.Authn.Roles {
			e.item()
			e.must(`"name":`, role)
			e.lit(`"type":`, `"role"`)
			e.end()
		}
		e.endList()
	}
	e.close(at)
}

// ocsfSource says where from. The prefix is the endpoint's name: of an address
// there is no part that OCSF would take for one. In a finding it is evidence;
// what the book does by itself comes from nowhere.
func ocsfSource(e *enc, r *record.Record, c class, h *has) {
	switch c.uid {
	case classLifecycle, classError:
		return
	case classFinding:
		e.list(`"evidences":`)
		e.item()
		defer func() { e.end(); e.endList() }()
	}
	h.prefix = true
	at := e.open(`"src_endpoint":`)
	e.must(`"name":`, r.Client.Prefix)
	if ip := r.Personal.IP; validIP(ip) {
		e.must(`"ip":`, ip)
		h.ip = true
	}
	if port := r.Personal.Port; port > 0 && port <= math.MaxUint16 {
		e.num(`"port":`, int64(port))
		h.port = true
	}
	h.fwd = len(r.Personal.Fwd) > 0
	for _, ip := range r.Personal.Fwd {
		h.fwd = h.fwd && validIP(ip)
	}
	if h.fwd {
		e.strs(`"intermediate_ips":`, r.Personal.Fwd)
	}
	e.close(at)
}

// ocsfVerdict is the profile security_control: what was decided, by what, and
// what came of it.
func ocsfVerdict(e *enc, r *record.Record) {
	action, disposition := controls(r)
	e.num(`"action_id":`, int64(action))
	e.num(`"disposition_id":`, int64(disposition))
	if r.Authz.Decision == "" {
		return
	}
	e.list(`"authorizations":`)
	for _, policy := range r.Authz.Policies {
		e.item()
		e.must(`"decision":`, r.Authz.Decision)
		e.must(`"policy":{"uid":`, policy)
		e.str(`"version":`, r.Authz.Set)
		e.end()
		e.end()
	}
	if len(r.Authz.Policies) == 0 {
		e.item()
		e.must(`"decision":`, r.Authz.Decision)
		if r.Authz.Set != "" {
			e.lit(`"policy":`, `{"type":"policy set"`)
			e.must(`"version":`, r.Authz.Set)
			e.end()
		}
		e.end()
	}
	e.endList()
}

func ocsfDestination(e *enc, r *record.Record) {
	at := e.open(`"dst_endpoint":`)
	e.str(`"svc_name":`, r.Upstream.Name)
	e.str(`"name":`, r.Upstream.Target)
	e.str(`"hostname":`, r.Host)
	e.close(at)
}

// ocsfHTTP writes request and response where the class has them.
func ocsfHTTP(e *enc, r *record.Record, c class, h *has) {
	if c.uid == classNetwork {
		h.status = r.Status == 0
		return
	}
	h.bytes, h.proto, h.userAgent, h.path, h.query, h.referrer = true, true, true, true, true, true
	at := e.open(`"http_request":`)
	e.id(`"uid":`, r.ID)
	if h.method = standard(r.Method); h.method {
		e.must(`"http_method":`, r.Method)
	}
	e.str(`"version":`, r.Proto)
	url := e.open(`"url":`)
	switch {
	case r.Personal.Path != "":
		e.must(`"path":`, r.Personal.Path)
	case r.Template != "":
		e.must(`"path":`, r.Template)
	case r.Personal.Query != "":
		e.must(`"path":`, "/")
	}
	if e.b[len(e.b)-1] != '{' { // OCSF has no URL without a path
		e.str(`"hostname":`, r.Host)
		e.str(`"query_string":`, r.Personal.Query)
	}
	e.close(url)
	e.str(`"user_agent":`, r.Personal.UA)
	e.str(`"referrer":`, r.Personal.Referer)
	e.int(`"body_length":`, r.BytesIn)
	e.close(at)
	if r.Status == 0 {
		if r.BytesOut != 0 {
			h.bytes = false
		}
		return
	}
	at = e.open(`"http_response":`)
	e.num(`"code":`, int64(r.Status))
	e.int(`"body_length":`, r.BytesOut)
	e.int(`"latency":`, r.DurUS/1000)
	e.close(at)
}

// standard reports the methods that OCSF knows.
func standard(method string) bool {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
		return true
	}
	return false
}

func (p *projection) ocsfStub(s *scratch, e *enc, id string, entry *book.Entry, size int) {
	r := &s.rec
	c := classOf(r)
	var h has
	p.ocsfHead(e, r, c, id, entry, size)
	ocsfActor(e, r)
	ocsfSource(e, r, c, &h)
	ocsfVerdict(e, r)
	if exchange(r.Kind) {
		ocsfHTTP(e, r, c, &h)
	}
	p.ocsfClass(e, r, c, id, &h)
	at := e.open(`"unmapped":`)
	e.must(`"kind":`, string(r.Kind))
	e.must(`"outcome":`, string(r.Outcome))
	e.close(at)
	e.end()
}
