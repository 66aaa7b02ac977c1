// Package record is the schema of what the book keeps of one exchange: the
// fields, their one encoding, and the columns they are sealed in. It uses the
// standard library only, so that a record can be read without the rest.
package record

import "time"

// Version is the schema version that Encode writes into every frame.
const Version = 1

// None is the explicit value of a mandatory fact that does not apply.
const None = "none"

// Other stands in a frame for a name from outside that equals no configured
// or loaded value.
const Other = "_other"

// Kind says what sort of event a record describes.
type Kind string

// The closed list of kinds.
const (
	KindRequest     Kind = "request"
	KindHandshake   Kind = "handshake"
	KindMalformed   Kind = "malformed"
	KindSession     Kind = "session"
	KindToken       Kind = "token"
	KindAdmin       Kind = "admin"
	KindAccess      Kind = "access"
	KindConfig      Kind = "config"
	KindPolicy      Kind = "policy"
	KindKey         Kind = "key"
	KindErasure     Kind = "erasure"
	KindRetention   Kind = "retention"
	KindHold        Kind = "hold"
	KindDelivery    Kind = "delivery"
	KindGap         Kind = "gap"
	KindClock       Kind = "clock"
	KindStart       Kind = "start"
	KindStop        Kind = "stop"
	KindUncleanStop Kind = "unclean_stop"
	KindHeartbeat   Kind = "heartbeat"
	KindInterrupted Kind = "interrupted"
	KindAlert       Kind = "alert"
)

// Outcome says whether the exchange did what was asked. It is one of the six
// mandatory facts and therefore always written.
type Outcome string

// Valid reports whether k is one of the closed list.
func (k Kind) Valid() bool {
	switch k {
	case KindRequest, KindHandshake, KindMalformed, KindSession, KindToken,
		KindAdmin, KindAccess, KindConfig, KindPolicy, KindKey, KindErasure,
		KindRetention, KindHold, KindDelivery, KindGap, KindClock, KindStart,
		KindStop, KindUncleanStop, KindHeartbeat, KindInterrupted, KindAlert:
		return true
	}
	return false
}

// The closed list of outcomes.
const (
	Success Outcome = "success"
	Failure Outcome = "failure"
	Unknown Outcome = "unknown" // the process died before the end was known
)

// Valid reports whether o is one of the closed list.
func (o Outcome) Valid() bool {
	return o == Success || o == Failure || o == Unknown
}

// Level is how firmly a record is kept before its exchange may go on.
type Level uint8

const (
	// Written: in the kernel, survives kill -9; synced within 15 ms.
	Written Level = iota
	// Durable: fdatasync has returned.
	Durable
	// Queued: accepted in memory only; loss is counted in a gap record.
	Queued
)

// ID is a request id: a UUIDv7 (RFC 9562 section 5.7). It names an exchange,
// its open mark and its record.
type ID [16]byte

// Ref names an open mark; it is the id of its exchange.
type Ref = ID

// Record is one exchange. The fields up to Event form the frame, which holds
// no direct identifier; Personal is sealed under the subject's key. A zero
// value of an optional field or group means not applicable and is not
// written. A Record belongs to one goroutine at a time.
type Record struct {
	ID       ID
	Time     int64 // start, microseconds since the Unix epoch, UTC; 0 to 253402300799999999
	Kind     Kind
	Outcome  Outcome
	Node     string
	Snap     string // first 32 hex digits of the snapshot's SHA-256
	Route    string // configured name, None if unmatched
	Op       string // "METHOD template", None if unmatched
	Method   string
	Host     string
	Proto    string
	Template string

	Status         int
	UpstreamStatus int
	BytesIn        int64
	BytesOut       int64
	DurUS          int64
	Phase          Phase

	Subject  string // 22-character pseudonym or None; set by the book
	Authn    Authn
	Authz    Authz
	Limit    Limit
	TLS      TLS
	Client   Client
	Upstream Upstream
	Error    Error
	San      San // set by the book
	Trace    string
	Links    []string
	Event    Event

	Personal Personal
	Raw      Raw
}

// At returns the start of the exchange.
func (r *Record) At() time.Time { return time.UnixMicro(r.Time).UTC() }

// Phase holds the parts of the duration, in microseconds (opt-in per route).
type Phase struct {
	Auth, Limit, Policy, Open, Queue, Connect, TLS, TTFB, Body int64
}

// Authn says who the caller was found to be and how.
type Authn struct {
	Method  string // "jwt", None when no method took the request
	Issuer  string
	Client  string
	Roles   []string
	ACR     string
	AMR     []string
	AgeS    int64
	TTLS    int64
	Bound   string // "dpop", "mtls"; absent when unbound
	KID     string
	Alg     string
	Outcome string // "ok", "failed"; absent when not tried
	Reason  string
}

// Authz says what the policies decided.
type Authz struct {
	Decision       string // "allow", "deny"
	Policies       []string
	Set            string
	Errors         int
	ShadowDecision string
	ShadowPolicies []string
}

// Limit says which limit decided, if any.
type Limit struct {
	Rule      string
	Outcome   string // "ok", "limited", "unavailable"
	Remaining int64
	RetryS    int64
	Mode      string // "shared", "local", "open", "closed"
}

// TLS describes the client's side of the connection.
type TLS struct {
	Version    string
	Cipher     string
	Group      string
	ALPN       string
	SNI        string
	Resumed    bool
	JA4        string
	ClientCert string
}

// Client says where the request came from, coarsened.
type Client struct {
	Prefix    string // "203.0.113.0/24", None for the book's own records
	PortClass string
	Hops      int
}

// Upstream says where the request went.
type Upstream struct {
	Name     string
	Target   string
	Attempts int
	Reused   bool
	Breaker  string
	TTFBUS   int64
}

// Error says what failed, from the closed list of package reason.
type Error struct {
	Origin string
	Reason string
	Phase  string
}

// San says what redaction did to this record.
type San struct {
	Set     string
	Dropped int
	Masked  int
	Tripped int
	Invalid int
}

// Event is the detail of a record that the book or an operator made: how many
// a gap or fold stands for, what a clock or heartbeat read, what an act
// changed.
type Event struct {
	Name   string // what was done or seen, a closed word of the acting part
	Count  int64
	Exact  bool
	First  int64 // microseconds since the Unix epoch
	Last   int64 // microseconds since the Unix epoch
	MonoUS int64 // monotonic clock, microseconds since start
	Clock  string
	Before string // digest
	After  string // digest
	Target string // pseudonym, id or configured name acted on
	Cause  string // closed word
}

// Personal is the half that is sealed under the subject's key.
type Personal struct {
	Sub, Name, Email, TenantUser string
	Claimed                      string
	IP                           string
	Port                         int
	Fwd                          []string
	UA                           string
	Path                         string
	Query                        string
	Referer                      string
	CertSubject                  string
	Session, Token, Family       string
	ClientRequestID, Traceparent string
	Headers                      []Pair // sorted by name, then in order of arrival
	Claims                       []Pair // sorted by name
	BodySHA256                   string

	// With a minimal frame these stand here instead of in the frame.
	JA4               string
	BytesIn, BytesOut int64
}

// Pair is one allow-listed header or claim.
type Pair struct{ Name, Value string }

// Raw carries what has not been through redaction yet. Redaction empties it
// and fills Personal; nothing encodes it.
type Raw struct {
	IssuerSub  string // issuer and subject joined by '|': the identity a subject key belongs to
	Path       string // concrete path in canonical form
	Query      string // raw query, without '?'
	UA         string
	Referer    string
	Unmatched  bool   // no route matched: only the path's shape may be kept
	Headers    []Pair // fields that the route names
	Claims     []Pair // claims that the route names
	RemoteAddr string // client IP address as text
	RemotePort int
	// Fold says that a flood of exchanges like this one may be counted in one
	// record: nobody was authenticated, the reason folds, and there is no open
	// mark.
	Fold bool
	// Kept, if not nil, is the record as redaction left it when it last looked:
	// what has not changed since need not be looked at or written again.
	Kept *Kept
}
