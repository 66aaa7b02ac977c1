package gate

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

// The phases of an exchange, as Error.Phase of its record names them; an
// upstream failure has the upstream's own phase instead.
const (
	phaseParse   = "parse"
	phaseAccept  = "accept"
	phaseConnect = "connection" // the client's side of it, before each request
	phaseLimit   = "limit"
	phaseRoute   = "route"
	phaseAuthn   = "authn"
	phaseAuthz   = "authz"
	phaseAdmit   = "admit"
	phaseOpen    = "open"
	phaseForward = "forward"
	phaseBody    = "body"
	phaseRespond = "respond"
)

// bufSize is the size of the buffers that answers pass through.
const bufSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// exchange is the state of one exchange. The goroutine of Serve owns all of
// it; only interim runs elsewhere, while that goroutine waits. It is reused.
type exchange struct {
	g        *Gate
	ctx      context.Context
	ex       Exchange
	req      *canon.Request
	snap     *Snapshot
	lis      *listener
	recorder Recorder
	audit    Audit

	start  time.Time
	step   time.Time // start of the current phase, if phases are recorded
	id     record.ID
	idText string
	trace  string // the traceparent that the upstream gets
	phase  string
	why    reason.Reason
	rec    record.Record
	ref    record.Ref
	marked bool // an open mark was due: from here on the exchange may have had effects

	// Who sent it: the address that counts, and the forwarding chain that was
	// believed, the farthest hop first.
	client   netip.Addr
	clientIP string // client as text, "" if it is not known
	fwd      []string
	trusted  bool // the peer is in the listener's trusted ranges
	proto    string
	traceID  string // of a trusted peer, 32 hex digits
	traceTag string // its flags

	op        *operation
	route     *Route
	principal *authn.Principal
	derived   *derived       // from principal
	refusal   *authn.Failure // why there is no principal, for the challenge
	nonce     string         // for the client's next DPoP proof
	cookie    string         // Set-Cookie of its session, "" for none
	allow     string         // Allow field of a 405
	limited   *ratelimit.Rule
	limit     ratelimit.Result
	failMax   bool // this failure is one too many of its address prefix
	spread    bool // the same, of the name that it claims

	params []authz.Param
	values []string
	asked  authz.Request
	shadow *authz.ShadowTrial // nil: the shadow policies are not asked

	out      upstream.Request
	fields   []canon.Field
	body     *requestBody
	resp     *upstream.Response
	spoiled  bool // a call was given up: others may still hold on to parts of x
	closed   bool
	trailers []canon.Field

	buf      *[bufSize]byte
	first    []byte // of buf: the whole body of an answerWhole
	sent     int64  // body bytes given to the engine
	headSent bool
	answer   answer
	own      ownAnswer
	hangUp   bool // the connection ends with a problem

	interimFn func(code int, fields []canon.Field) error // x.interim, bound once
	fieldsFn  func(name string) []string                 // x.fieldValues, bound once
}

func newExchange(g *Gate) *exchange {
	x := &exchange{g: g, values: make([]string, 0, usualParams)}
	x.interimFn = x.interim
	x.fieldsFn = x.fieldValues
	return x
}

// usualParams is how many parameters a path may have without costing memory.
const usualParams = 8

// begin takes the exchange up: id, snapshot, and what is known of the peer.
func (g *Gate) begin(ctx context.Context, ex Exchange) *exchange {
	x := g.spare.Get().(*exchange)
	x.ctx, x.ex, x.req = ctx, ex, ex.Request()
	x.phase = phaseParse
	x.start = g.now()
	x.step = x.start
	x.id = g.newID(x.start)
	x.snap = g.snapshot.Load()
	x.lis = x.snap.listener(ex.Listener())
	x.recorder, x.audit = x.snap.recorder, x.snap.audit
	x.findClient()
	x.nameIt()
	x.describe()
	return x
}

// end gives the state back. After a failed commit the Recorder may still be
// looking at the record, after a panic or a failed call an upstream at the
// request, so those are left to the collector.
func (g *Gate) end(x *exchange) {
	if x.spoiled {
		return
	}
	if x.buf != nil {
		buffers.Put(x.buf)
		x.buf = nil
	}
	clear(x.params)
	clear(x.values[:cap(x.values)])
	clear(x.fields)
	*x = exchange{
		g: x.g, interimFn: x.interimFn, fieldsFn: x.fieldsFn,
		params: x.params[:0], values: x.values[:0], fields: x.fields[:0],
	}
	g.spare.Put(x)
}

// describe fills the record with what is known before any decision.
func (x *exchange) describe() {
	r, q := &x.rec, x.req
	r.ID = x.id
	r.Time = x.start.UnixMicro()
	r.Kind = record.KindRequest
	r.Node, r.Snap = x.snap.node, x.snap.id
	r.Route, r.Op = record.None, record.None
	r.Method = x.snap.methodName(q.Method)
	r.Host = x.snap.hostName(q.Host)
	r.Proto = q.Proto
	r.Authn.Method = record.None
	if t := q.TLS; t != nil {
		r.TLS = record.TLS{Version: t.Version, Cipher: t.Cipher, Group: t.Group, ALPN: t.ALPN, Resumed: t.Resumed, JA4: t.JA4, ClientCert: t.ClientHash}
		r.Personal.CertSubject = t.ClientSubject
		if t.SNI != "" {
			r.TLS.SNI = x.snap.hostName(t.SNI)
		}
	}
	if p := x.snap.recordPrefix(x.client); p.IsValid() {
		var b [len("255.255.255.255/32") + 32]byte
		r.Client.Prefix = string(p.AppendTo(b[:0]))
	} else {
		r.Client.Prefix = record.None
	}
	r.Client.PortClass = portClass(q.Remote.Port())
	r.Client.Hops = len(x.fwd)
	r.Raw.Path, r.Raw.Query, r.Raw.Unmatched = q.Path, q.Query, true
	r.Raw.UA, _ = q.Get("user-agent")
	r.Raw.Referer, _ = q.Get("referer")
	if x.client.IsValid() {
		x.clientIP = x.client.String()
		r.Raw.RemoteAddr = x.clientIP
	}
	if len(x.fwd) == 0 {
		r.Raw.RemotePort = int(q.Remote.Port())
	}
	r.Personal.Fwd = x.fwd
	if x.trusted && x.snap.acceptIDs {
		id, _ := q.Get("x-request-id")
		r.Personal.ClientRequestID = clip(id)
	}
	tp, _ := q.Get("traceparent")
	r.Personal.Traceparent = clip(tp)
	r.Trace = x.traceID
}

// maxOutside bounds what a client can put into a record by its own choice of
// an id.
const maxOutside = 128

func clip(s string) string {
	if len(s) > maxOutside {
		return s[:maxOutside]
	}
	return s
}

// portClass coarsens a port (RFC 6335 section 6).
func portClass(port uint16) string {
	switch {
	case port == 0:
		return ""
	case port < 1024:
		return "system"
	case port < 49152:
		return "user"
	default:
		return "dynamic"
	}
}

func (x *exchange) elapsed() int64 { return max(x.g.now().Sub(x.start).Microseconds(), 0) }

// lap adds the time since the last lap to a phase of the record, if the route
// wants phases.
func (x *exchange) lap(phase *int64) {
	if !x.audit.Phases {
		return
	}
	now := x.g.now()
	*phase += max(now.Sub(x.step).Microseconds(), 0)
	x.step = now
}
