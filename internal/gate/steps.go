package gate

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// Limiter counts. It is live state, shared by all snapshots.
type Limiter interface {
	Take(rule *ratelimit.Rule, key string, now time.Time) ratelimit.Result
	TakePrefix(rule *ratelimit.Rule, prefix netip.Prefix, now time.Time) ratelimit.Result
	// Peek and PeekPrefix look without counting.
	Peek(rule *ratelimit.Rule, key string, now time.Time) ratelimit.Result
	PeekPrefix(rule *ratelimit.Rule, prefix netip.Prefix, now time.Time) ratelimit.Result
}

// The outcomes of authentication and limits, and the decisions, in records.
const (
	outcomeOK      = "ok"
	outcomeFailed  = "failed"
	outcomeLimited = "limited"

	// replayRule stands in a record for the memory of what was used once.
	replayRule = "replay"
	modeLocal  = "local"

	decisionAllow = "allow"
	decisionDeny  = "deny"

	// eventWouldRefuse marks an exchange that a strict route would have
	// refused: Event.Target names the path forms, Event.Cause the reason.
	eventWouldRefuse = "would_refuse"
)

// canonical refuses what the engine could not read in one way only.
func (x *exchange) canonical() bool {
	refusal := x.ex.Refusal()
	if refusal == nil {
		return true
	}
	x.rec.Kind = record.KindMalformed
	r := reason.Reason(refusal.Reason)
	if !r.Valid() {
		r = reason.MalformedRequest
	}
	return x.fail(r)
}

// accepted refuses new exchanges while the gate drains.
func (x *exchange) accepted() bool {
	x.phase = phaseAccept
	if x.g.draining.Load() {
		return x.fail(reason.Draining)
	}
	return true
}

// connected refuses a request whose connection would not be made any more: the
// client's certificate has expired or been revoked, its authority is not
// trusted any longer, or one is demanded now. The connection ends with it.
func (x *exchange) connected() bool {
	x.phase = phaseConnect
	t := x.req.TLS
	if t == nil {
		return true
	}
	if t.Still != nil {
		if why := reason.Reason(t.Still(x.start)); why != "" {
			x.hangUp = true
			return x.fail(why)
		}
	}
	// The client shares a connection between hosts (RFC 9110 section 15.5.20):
	// its certificate was shown to another one, or would be asked for elsewhere.
	if x.lis.strictSNI && t.SNI != "" && t.SNI != x.req.Host || x.lis.foreign[x.req.Host] {
		return x.fail(reason.MisdirectedRequest)
	}
	return true
}

// preAuthLimits counts by address prefix, before anything costs anything.
func (x *exchange) preAuthLimits() bool {
	x.phase = phaseLimit
	if len(x.lis.preAuth) == 0 {
		return true
	}
	prefix := x.snap.limitPrefix(x.client)
	for _, rule := range x.lis.preAuth {
		if !x.take(rule, x.g.limiter.TakePrefix(rule, prefix, x.start)) {
			return false
		}
	}
	return true
}

// take judges one limit; only the one that said no is recorded.
func (x *exchange) take(rule *ratelimit.Rule, res ratelimit.Result) bool {
	if res.Allowed {
		return true
	}
	x.limited, x.limit = rule, res
	x.rec.Limit = record.Limit{
		Rule: rule.Name, Outcome: outcomeLimited, Remaining: res.Remaining,
		RetryS: res.RetryAfterSeconds(), Mode: modeLocal,
	}
	return x.fail(reason.RateLimited)
}

// matchRoute finds the route by host, path and method.
func (x *exchange) matchRoute() bool {
	x.phase = phaseRoute
	op, params, allow := x.lis.router.match(x.req.Host, x.req.Method, x.req.Segments, x.values[:0], x.params[:0])
	x.params = params
	if x.req.Forms != 0 && !x.formsTaken(op) {
		return false
	}
	if op == nil {
		x.allow = allow
		if allow != "" {
			return x.fail(reason.MethodNotAllowed)
		}
		return x.fail(reason.NoRoute)
	}
	x.op, x.route = op, op.route
	x.audit = x.route.Audit
	r := &x.rec
	r.Route, r.Op, r.Template = x.route.Name, op.name, x.route.Path
	if x.route.Kind != "" {
		r.Kind = x.route.Kind
	}
	r.Raw.Unmatched = false
	for _, name := range x.route.RecordHeaders {
		for i := range x.req.Fields {
			if f := &x.req.Fields[i]; f.Name == name {
				r.Raw.Headers = append(r.Raw.Headers, record.Pair{Name: name, Value: f.Value})
			}
		}
	}
	return true
}

// formsTaken reports whether the route takes the unusual forms in the path. A
// path that another reader could take for one of another route is refused even
// so, and a route that only observes notes what it would have refused.
func (x *exchange) formsTaken(op *operation) bool {
	if op != nil && !x.lis.router.ambiguous(op, x.req) {
		refused := x.req.Forms &^ op.route.Forms
		if refused == 0 {
			return true
		}
		if op.route.ObserveForms {
			x.rec.Event = record.Event{Name: eventWouldRefuse, Target: refused.String(), Cause: string(reason.BadPath)}
			return true
		}
	}
	x.phase = phaseParse
	x.rec.Kind = record.KindMalformed
	return x.fail(reason.BadPath)
}

// authenticate asks the route's methods in their order.
func (x *exchange) authenticate() bool {
	x.phase = phaseAuthn
	if x.route.Public {
		return true
	}
	if x.twoCredentials() {
		return x.notAuthenticated(nil, &authn.Failure{Reason: reason.TwoCredentials})
	}
	if x.heldBack() {
		return false
	}
	var notMine *authn.Failure
	for _, a := range x.route.Authenticators {
		p, err := x.ask(a)
		if err == nil && p != nil {
			if err := x.meetsDemands(p); err != nil {
				return x.notAuthenticated(a, err)
			}
			x.authenticated(p)
			x.lap(&x.rec.Phase.Auth)
			return true
		}
		if !errors.Is(err, authn.ErrNoCredential) {
			return x.notAuthenticated(a, err)
		}
		var f *authn.Failure
		if errors.As(err, &f) && (notMine == nil || weight(f) > weight(notMine)) {
			notMine = f
		}
	}
	if notMine != nil {
		return x.notAuthenticated(nil, notMine)
	}
	return x.notAuthenticated(nil, &authn.Failure{Reason: reason.NoCredential})
}

// weight orders the reasons of methods that did not take the request: that one
// of them could not be asked says more than what the others found, and that the
// credential has another shape than a method knows says least.
func weight(f *authn.Failure) int {
	switch {
	case f.Reason.Status() >= 500:
		return 2
	case f.Reason == reason.TokenMalformed:
		return 0
	}
	return 1
}

// meetsDemands asks for what the route demands beyond a valid credential. A
// bound credential needs a demand that has seen the proof: taking it as a
// bearer credential would be a downgrade (RFC 9449 section 7.2).
func (x *exchange) meetsDemands(p *authn.Principal) error {
	proven := p.Confirm.Bound() == ""
	for _, d := range x.route.Demands {
		if err := x.meets(d, p); err != nil {
			return err
		}
		if b, ok := d.(BindingDemand); !proven && ok {
			proven = b.ChecksBinding()
		}
	}
	if !proven {
		return &authn.Failure{
			Reason: reason.BindingRequired, Claimed: p.Subject, Issuer: p.Issuer, KID: p.KID, Alg: p.Alg,
			Detail: "the credential is bound to a key, and nothing on this route checks the proof",
		}
	}
	return nil
}

// meets asks for one demand.
func (x *exchange) meets(d Demand, p *authn.Principal) error {
	e, ok := d.(Examiner)
	if !ok {
		return d.Check(x.ctx, x.req, p)
	}
	found, err := e.Examine(x.ctx, x.req, p)
	if found.Nonce != "" {
		x.nonce = found.Nonce
	}
	if found.Local {
		// Whether it was used before is known of this node alone (DESIGN section 6).
		x.rec.Limit = record.Limit{Rule: replayRule, Outcome: outcomeOK, Mode: modeLocal}
	}
	return err
}

// twoCredentials reports whether the fields that the route's methods look at
// hold two different values: one could be checked and another used. The scheme
// before a credential does not make it another one.
func (x *exchange) twoCredentials() bool {
	first := ""
	for _, name := range x.route.CredentialFields {
		for i := range x.req.Fields {
			f := &x.req.Fields[i]
			if f.Name != name || f.Value == "" {
				continue
			}
			v := f.Value[strings.LastIndexByte(f.Value, ' ')+1:]
			if first != "" && v != first {
				return true
			}
			first = v
		}
	}
	return false
}

// notAuthenticated records a failed attempt: what it claimed is personal.
func (x *exchange) notAuthenticated(a Authenticator, err error) bool {
	var f *authn.Failure
	switch {
	case errors.As(err, &f) && f.Reason.Valid():
	case x.ctx.Err() != nil:
		return x.fail(reason.ClientAborted)
	default:
		// A method that cannot say why, or says neither yes nor no.
		f = &authn.Failure{Reason: reason.IssuerUnavailable}
	}
	method := record.None
	if m, ok := a.(interface{ Method() string }); ok {
		method = m.Method()
	}
	x.noteFailure(f, method)
	x.countFailure(f)
	x.lap(&x.rec.Phase.Auth)
	return x.fail(f.Reason)
}

// noteFailure puts a failed attempt into the record.
func (x *exchange) noteFailure(f *authn.Failure, method string) {
	x.refusal = f
	x.rec.Authn = record.Authn{
		Method: method, Issuer: f.Issuer, KID: f.KID, Alg: f.Alg,
		Outcome: outcomeFailed, Reason: string(f.Reason),
	}
	x.rec.Personal.Claimed = f.Claimed
}

// authenticated records who it is.
func (x *exchange) authenticated(p *authn.Principal) {
	x.principal = p
	r := &x.rec
	r.Authn = record.Authn{
		Method: p.Method, Issuer: p.Issuer, Client: p.Client, Roles: p.Roles,
		ACR: p.ACR, AMR: p.AMR, KID: p.KID, Alg: p.Alg, Bound: p.Confirm.Bound(), Outcome: outcomeOK,
	}
	if p.Method == authn.MethodMTLS {
		r.Authn.Bound = authn.BoundMTLS // to the connection, by itself
	}
	if !p.IssuedAt.IsZero() {
		r.Authn.AgeS = max(int64(x.start.Sub(p.IssuedAt)/time.Second), 0)
	}
	if !p.Expires.IsZero() {
		r.Authn.TTLS = max(int64(p.Expires.Sub(x.start)/time.Second), 0)
	}
	x.derived = x.g.derive(p)
	r.Raw.IssuerSub = x.derived.who
	r.Personal.Sub = p.Subject
	r.Personal.Name, r.Personal.Email, r.Personal.TenantUser = p.Name, p.Email, p.Tenant
	r.Personal.Session, r.Personal.Family = p.Session, p.Family
	r.Personal.Token = x.derived.token
	for _, name := range x.route.RecordClaims {
		if v, ok := p.Claims[name]; ok {
			r.Raw.Claims = append(r.Raw.Claims, record.Pair{Name: name, Value: v})
		}
	}
	x.recordInputs(p)
}

// derived is what follows from a principal alone.
type derived struct {
	of    *authn.Principal
	g     *Gate  // whose tokenHash it is
	who   string // issuer and subject, joined by '|'
	token string // keyed hash of the token's id, "" for none
	roles string // as the upstream gets them
}

// derive is quick for a principal that this gate has seen before. What was
// derived from one that p is a changed copy of does not count.
func (g *Gate) derive(p *authn.Principal) *derived {
	if p.Memo != nil {
		if d, ok := p.Memo.Load().(*derived); ok && d.of == p && d.g == g {
			return d
		}
	}
	d := &derived{of: p, g: g, who: p.Issuer + "|" + p.Subject, roles: joinRoles(p.Roles)}
	if g.tokenHash != nil && p.TokenID != "" {
		d.token = g.tokenHash(p.Issuer, p.TokenID)
	}
	if p.Memo != nil {
		p.Memo.Store(d)
	}
	return d
}

// postAuthLimits counts by what is known now. Somebody without a subject or a
// client counts by address, never by an empty key that all of them share.
func (x *exchange) postAuthLimits() bool {
	x.phase = phaseLimit
	for _, rule := range x.route.Limits {
		var res ratelimit.Result
		if key := x.limitKey(rule); key != "" {
			res = x.g.limiter.Take(rule, key, x.start)
		} else {
			res = x.g.limiter.TakePrefix(rule, x.snap.limitPrefix(x.client), x.start)
		}
		if !x.take(rule, res) {
			return false
		}
	}
	x.lap(&x.rec.Phase.Limit)
	return true
}

// limitKey is what a limit counts by here, "" for the address.
func (x *exchange) limitKey(rule *ratelimit.Rule) string {
	switch p := x.principal; {
	case rule.Key == ratelimit.KeyRoute:
		return x.route.Name
	case rule.Key == ratelimit.KeyClient && p != nil && p.Client != "":
		return p.Issuer + "|" + p.Client
	case rule.Key != ratelimit.KeyPrefix && p != nil:
		return x.rec.Raw.IssuerSub
	}
	return ""
}

// authorize asks the policies. Deny by default; any error is a deny.
func (x *exchange) authorize() bool {
	x.phase = phaseAuthz
	if x.route.Engine == nil {
		x.rec.Authz.Decision = decisionAllow // NewSnapshot allows this on a public route only
		return true
	}
	d := x.decide()
	x.tryShadow(d)
	x.rec.Authz = record.Authz{Decision: decisionDeny, Policies: d.Policies, Set: d.Set, Errors: len(d.Errors)}
	x.lap(&x.rec.Phase.Policy)
	if !d.Allow || len(d.Errors) > 0 {
		if !d.Reason.Valid() {
			d.Reason = reason.DeniedByDefault
		}
		if len(d.Errors) > 0 {
			x.g.log.Error("policy error", "request_id", x.idText, "route", x.route.Name, "errors", d.Errors)
		}
		return x.fail(d.Reason)
	}
	if !x.hasScopes() {
		return x.fail(reason.ScopeMissing)
	}
	if p := x.principal; p != nil && p.Routes != nil && !slices.Contains(p.Routes, x.route.Name) {
		x.rec.Authz.Policies = nil // they would have allowed it: the credential's own terms do not
		return x.fail(reason.DeniedByPolicy)
	}
	x.rec.Authz.Decision = decisionAllow
	return true
}

func (x *exchange) hasScopes() bool {
	for _, s := range x.route.Scopes {
		if x.principal == nil || !slices.Contains(x.principal.Scopes, s) {
			return false
		}
	}
	return true
}

// decide asks about the path in its normal form. What a policy forbids is
// forbidden too if the path is written in a form that the upstream may read as
// the forbidden one.
func (x *exchange) decide() authz.Decision {
	d := x.route.Engine.Decide(x.decision(x.req.Path))
	if x.req.Forms == 0 || !d.Allow {
		return d
	}
	path, segments := x.req.Plain()
	plain := x.decision(path)
	if l, values := x.lis.router.find(x.req.Host, segments, nil); l == x.op.leaf {
		plain.Params = x.op.appendParams(nil, values)
	}
	again := x.route.Engine.Decide(plain)
	if len(again.Errors) == 0 && (again.Allow || again.Reason == reason.DeniedByDefault) {
		return d
	}
	again.Allow = false
	return again
}

// decision fills the request to the policies. A HEAD is asked as the GET that
// it stands for.
func (x *exchange) decision(path string) *authz.Request {
	d := &x.asked
	*d = authz.Request{
		Route: x.route.Name, Action: x.op.name, Method: x.op.method, Path: path, Params: x.params,
		BodySize: x.req.ContentLength, Header: x.fieldsFn, RemoteIP: x.client, Now: x.start,
	}
	if x.req.TLS != nil {
		d.TLSVersion = x.req.TLS.Version
	}
	if p := x.principal; p != nil {
		d.Issuer, d.Subject, d.Client = p.Issuer, p.Subject, p.Client
		d.Tenant, d.Groups = p.Tenant, p.Groups
		d.Roles, d.Scopes, d.ACR, d.AMR, d.Claims, d.Unfit = p.Roles, p.Scopes, p.ACR, p.AMR, p.Claims, p.Unfit
		if !p.AuthTime.IsZero() {
			d.AuthAge = max(x.start.Sub(p.AuthTime), 1)
		}
	}
	return d
}

// admit refuses what this route will not forward for whoever asks.
func (x *exchange) admit() bool {
	x.phase = phaseAdmit
	if x.req.Upgrade != "" {
		return x.fail(reason.UpgradeRefused)
	}
	if x.route.MaxBody > 0 && x.req.ContentLength > x.route.MaxBody {
		return x.fail(reason.BodyTooLarge)
	}
	return true
}

// openMark commits that the exchange is about to be forwarded. Without it the
// upstream is not called, unless the route allows that.
func (x *exchange) openMark() bool {
	x.phase, x.marked = phaseOpen, true
	if x.audit.Intent == IntentNone || x.audit.Intent == IntentUnsafe && safe(x.req) {
		return true
	}
	if x.recorder == nil {
		return x.fail(reason.BookUnavailable)
	}
	ref, err := x.recorder.Open(context.Background(), &x.rec, x.audit.Level)
	x.lap(&x.rec.Phase.Open)
	if err == nil {
		x.ref = ref
		return true
	}
	if x.audit.OnFailure == Allow {
		return true
	}
	return x.fail(bookReason(err))
}

// safe reports the methods of RFC 9110 section 9.2.1.
func safe(r *canon.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}
