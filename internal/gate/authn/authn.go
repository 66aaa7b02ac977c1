// Package authn says who a request comes from. JWT verifies OAuth 2.0 access
// tokens in JWS compact form with a strict parser of its own over the standard
// library's cryptography; keys come from a JWKS that it fetches and keeps
// fresh. Everything unset, unclear or unreachable is a refusal.
//
// The sources are RFC 6750 (bearer usage), RFC 7515/7517/7518/7519 (JOSE),
// RFC 8725 (JWT best practice), RFC 9068 (access token profile) and RFC 8414
// (issuer metadata). Where those leave a choice the stricter reading is built.
package authn

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// ErrNoCredential means that the request carries nothing for this method: try
// the next one. Every other error of an Authenticate ends the search.
var ErrNoCredential = errors.New("no credential for this authentication method")

// Principal is who a verified credential speaks for. It is immutable and
// shared between requests (the verification cache hands out the same one), so
// nobody may write to it or to what it points at, but into Memo.
type Principal struct {
	Method  string // "jwt", "introspect", "apikey" or MethodMTLS
	Issuer  string // configured name of the issuer, never its URL
	Subject string // unique only together with Issuer
	Client  string // OAuth client id; empty if the token names none

	Roles, Groups, Scopes, AMR []string

	ACR, KID, Alg, TokenID string

	// Each is zero if not stated, which only AuthTime may be in a JWT; of an API
	// key only IssuedAt is always there.
	IssuedAt, Expires, AuthTime time.Time

	Name, Email, Tenant string

	// Routes are the only routes that the credential is good for; nil: it says
	// nothing about routes.
	Routes []string

	// Audiences are those that the credential names; nil for one that names
	// none, such as a client certificate.
	Audiences []string

	// Confirm is the key that the credential is bound to. Whoever takes a bound
	// credential must see the proof.
	Confirm Confirmation

	// Session is the keyed hash of a browser session's id; Family that of a
	// family of refresh tokens or sessions. Empty if there is none.
	Session, Family string

	// Claims holds the scalar claims that the configuration asks to pass on,
	// by their configured names. It may be nil. Unfit names those of them that the
	// credential has and that are no short text, integer or truth value.
	Claims map[string]string
	Unfit  []string

	// Memo keeps what the gate has derived from the rest; nil for a principal that
	// is not handed out twice. A copy of a principal shares it.
	Memo *Memo
}

// Memo is for what would otherwise be derived with each request from a
// credential that is remembered. Safe for concurrent use; all of its values are
// of one type.
type Memo struct{ atomic.Value }

// Confirmation is the key or certificate that a credential is bound to (the cnf
// claim, RFC 7800). Its zero value means that it is a bearer credential.
type Confirmation struct {
	JKT string // JWK thumbprint, base64url without padding (RFC 9449 section 6.1)
	X5T string // SHA-256 of the client certificate, likewise (RFC 8705 section 3.1)
}

// The kinds of binding, as records name them.
const (
	BoundDPoP = "dpop"
	BoundMTLS = "mtls"
)

// Bound is the kind of binding, empty if there is none.
func (c Confirmation) Bound() string {
	switch {
	case c.JKT != "":
		return BoundDPoP
	case c.X5T != "":
		return BoundMTLS
	}
	return ""
}

// Failure is a refused credential. It is immutable once returned; the negative
// cache hands out the same one again.
type Failure struct {
	Reason reason.Reason

	// Claimed is the subject that the refused credential claimed, unverified,
	// at most 512 bytes; personal data. Empty if none could be read.
	Claimed string

	// Issuer, KID and Alg are set only when equal to a configured or loaded
	// value, so that they may appear in a record's frame.
	Issuer, KID, Alg string

	// Nonce, if there is one, is what the client must put into its next DPoP
	// proof (RFC 9449 section 8).
	Nonce string

	// ACRValues and MaxAge are what a step-up has to reach (RFC 9470 section 3);
	// MaxAge is 0 if any age will do.
	ACRValues string
	MaxAge    time.Duration

	// Told: an alert has told of it, once for all that follows.
	Told bool

	// Detail says in the project's own words what was wrong. It holds nothing
	// that came from outside.
	Detail string

	// Err is the cause where there is one; it may hold text from outside and is
	// for a debug log only.
	Err error
}

// Error implements error. It repeats nothing that came from outside.
func (f *Failure) Error() string {
	if f.Detail == "" {
		return "authentication: " + string(f.Reason)
	}
	return "authentication: " + string(f.Reason) + ": " + f.Detail
}

// Unwrap returns the cause, if any.
func (f *Failure) Unwrap() error { return f.Err }

// NotMine is a credential that this method does not judge: a bearer token of
// another issuer, or one that is no JWS at all (an opaque token or API key).
// errors.Is finds ErrNoCredential in it, so a caller goes on to the next
// method; errors.As finds the *Failure, which is what to record if no method
// took the request. Test for ErrNoCredential first.
type NotMine struct{ Failure }

// Error implements error.
func (n *NotMine) Error() string { return n.Failure.Error() }

// Is makes errors.Is(n, ErrNoCredential) true.
func (n *NotMine) Is(target error) bool { return target == ErrNoCredential }

// Unwrap returns the Failure that says why the credential was not taken.
func (n *NotMine) Unwrap() error { return &n.Failure }

// fail makes a Failure without context; JWT adds issuer, kid and alg.
func fail(r reason.Reason, detail string) *Failure {
	return &Failure{Reason: r, Detail: detail}
}
