// Package canon makes the one canonical request: it parses what a client sent
// strictly and once, refuses what two readers could understand differently,
// and normalises the rest. Routing, authorization, forwarding and recording
// all use the Request it returns, never the bytes it came from. It uses the
// standard library only.
package canon

import (
	"crypto/x509"
	"net/netip"
	"sync/atomic"
	"time"
)

// Field is one header field. Name is in lower case; Value has no leading or
// trailing white space.
type Field struct{ Name, Value string }

// Request is the canonical form of one request. FromHTTP fills it; it is not
// changed afterwards and may be read from several goroutines.
type Request struct {
	Method    string    // token as sent, case kept
	Scheme    string    // "https" or "http"
	Host      string    // lower case, no port, no trailing dot; an IPv6 literal without brackets
	Authority string    // host[:port] canonical, default port removed; to be sent upstream as Host when asked to preserve
	Path      string    // normal form, begins with '/', no query; what is authorized and recorded, and forwarded if Forms is 0
	Segments  []string  // path segments, split as received and decoded once, for matching: "/" has none, a trailing slash makes the last one ""
	Forms     PathForms // unusual forms in Path; whoever takes the request must allow each of them
	RawPath   string    // the path as received, if Forms is not 0, else ""; see Sent
	Query     string    // raw, without '?'
	HasQuery  bool      // a '?' was there, even if nothing followed
	Proto     string    // "HTTP/1.1" or "HTTP/2"

	// Fields are the end-to-end fields, lower case, in the order of arrival
	// within one name. Host, Content-Length, Transfer-Encoding, Connection,
	// the fields that Connection named, Keep-Alive, Proxy-Connection, TE,
	// Trailer, Upgrade and Expect are not among them: what they said is in
	// Authority, ContentLength, TETrailers, Upgrade and ExpectContinue.
	Fields []Field

	ContentLength int64          // -1: unknown (chunked, or HTTP/2 without length); 0: none
	Remote        netip.AddrPort // peer, IPv4-mapped addresses unmapped, no zone
	TLS           *TLS           // nil on plaintext

	// Client and Forwarded are set by the gate before it asks anybody else: whose
	// address counts (the peer's, or what trusted peers say), and the client's
	// certificate as a trusted proxy that ended the TLS gives it. FromProxy says
	// that there is such a proxy, so that the certificate of the connection is
	// its own and not the client's.
	Client    netip.Addr
	Forwarded *x509.Certificate
	FromProxy bool

	Upgrade        string // what the client asks to upgrade to, as sent; "" if it does not
	ExpectContinue bool   // the client waits for 100 Continue before it sends the body
	TETrailers     bool   // the client takes trailers (TE: trailers)
	DroppedNames   int    // fields dropped because their name has a '_' that an upstream may read as '-'
}

// TLS is the client's side of the connection, in the names that a record
// uses.
type TLS struct {
	Version string // "1.2" or "1.3"
	Cipher  string
	Group   string
	ALPN    string
	SNI     string
	Resumed bool
	JA4     string // set by whoever saw the ClientHello

	// Client is the client's certificate and its chain as verified in the
	// handshake, leaf first; nil if it showed none. Read only.
	Client []*x509.Certificate
	// ClientHash is the keyed hash of the certificate that records keep, and
	// ClientSubject its subject as text. Empty if there is none.
	ClientHash, ClientSubject string
	// Still, if not nil, says what has become wrong with the client's side of
	// the connection since the handshake: "", or TLSNoClientCert or
	// TLSBadClientCert. It is asked before every request, by any goroutine.
	Still func(now time.Time) (reason string)
	// Memo keeps what an authenticator made of the certificate.
	Memo Memo
}

// Memo is one slot for what is the same for all requests of a connection. Its
// zero value is empty. It is safe for concurrent use.
type Memo struct{ p atomic.Pointer[memo] }

type memo struct{ by, value any }

// Get returns what by has put there; nil if nothing, or somebody else did.
func (m *Memo) Get(by any) any {
	if have := m.p.Load(); have != nil && have.by == by {
		return have.value
	}
	return nil
}

// Set puts a value there, instead of any other. by must be comparable.
func (m *Memo) Set(by, value any) { m.p.Store(&memo{by, value}) }

// Get returns the first value of the field name, which must be in lower case,
// and how many fields of that name there are.
func (r *Request) Get(name string) (value string, n int) {
	for i := range r.Fields {
		if r.Fields[i].Name != name {
			continue
		}
		if n == 0 {
			value = r.Fields[i].Value
		}
		n++
	}
	return value, n
}

// ClientCertificate is the client's own certificate, nil if it showed none. A
// forwarded one was verified by the proxy alone: it tells which key the client
// holds, not whom a CA of ours says it is.
func (r *Request) ClientCertificate() *x509.Certificate {
	switch {
	case r.FromProxy:
		return r.Forwarded
	case r.TLS != nil && len(r.TLS.Client) > 0:
		return r.TLS.Client[0]
	}
	return nil
}

// The reasons that an Error can carry, and those of TLS.Still; they equal those of package reason.
const (
	MalformedRequest    = "malformed_request"
	AmbiguousFraming    = "ambiguous_framing"
	BadPath             = "bad_path"
	BadHost             = "bad_host"
	HeaderTooLarge      = "header_too_large"
	UnsupportedProtocol = "unsupported_protocol"
	TLSNoClientCert     = "tls_no_client_cert"
	TLSBadClientCert    = "tls_bad_client_cert"
)

// Error says why a request was refused. Detail is for the operator's log: it
// names the rule and never quotes what the client sent.
type Error struct {
	Reason string // one of the constants above
	Detail string
}

// Error implements error.
func (e *Error) Error() string { return "request refused: " + e.Detail + " (" + e.Reason + ")" }

func refuse(reason, detail string) error { return &Error{Reason: reason, Detail: detail} }
