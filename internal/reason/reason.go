// Package reason is the closed list of why an exchange did not go as asked.
// Each reason has one HTTP status, one origin and one public text: the exact
// reason goes to the record, the public text to the client, so that an answer
// is no oracle (spec/record.md "Reasons", spec/events.md). It uses the
// standard library only and everything in it is safe for concurrent use.
package reason

// Reason is one entry of the closed list; the zero value means that nothing
// went wrong.
type Reason string

// What the client did or sent.
const (
	MalformedRequest    Reason = "malformed_request"
	AmbiguousFraming    Reason = "ambiguous_framing"
	BadPath             Reason = "bad_path"
	BadHost             Reason = "bad_host"
	HeaderTooLarge      Reason = "header_too_large"
	BodyTooLarge        Reason = "body_too_large"
	UnsupportedProtocol Reason = "unsupported_protocol"
	TLSHandshake        Reason = "tls_handshake"
	TLSVersion          Reason = "tls_version"
	TLSNoClientCert     Reason = "tls_no_client_cert"
	TLSBadClientCert    Reason = "tls_bad_client_cert"
	TimeoutReading      Reason = "timeout_reading"
	ClientAborted       Reason = "client_aborted"
	NoRoute             Reason = "no_route"
	MethodNotAllowed    Reason = "method_not_allowed"
	UpgradeRefused      Reason = "upgrade_refused"
	MisdirectedRequest  Reason = "misdirected_request"
)

// Why nobody, or nobody trusted, stands behind the request.
const (
	NoCredential          Reason = "no_credential"
	TwoCredentials        Reason = "two_credentials"
	TokenMalformed        Reason = "token_malformed"
	TokenAlgorithm        Reason = "token_algorithm"
	TokenKeyUnknown       Reason = "token_key_unknown"
	TokenSignature        Reason = "token_signature"
	TokenExpired          Reason = "token_expired"
	TokenNotYet           Reason = "token_not_yet"
	TokenLifetimeExceeded Reason = "token_lifetime_exceeded"
	TokenTooOld           Reason = "token_too_old"
	TokenAudience         Reason = "token_audience"
	TokenIssuer           Reason = "token_issuer"
	TokenType             Reason = "token_type"
	TokenReplayed         Reason = "token_replayed"
	TokenReuseDetected    Reason = "token_reuse_detected"
	TokenRevoked          Reason = "token_revoked"
	TokenInactive         Reason = "token_inactive"
	BindingRequired       Reason = "binding_required"
	BindingMismatch       Reason = "binding_mismatch"
	DPoPProof             Reason = "dpop_proof"
	DPoPNonce             Reason = "dpop_nonce"
	KeyUnknown            Reason = "key_unknown"
	KeyExpired            Reason = "key_expired"
	KeyRevoked            Reason = "key_revoked"
	SessionExpired        Reason = "session_expired"
	StepupRequired        Reason = "stepup_required"
	// CrossSite: an unsafe method with a session's cookie that no page of this
	// origin is known to have sent.
	CrossSite         Reason = "cross_site"
	IssuerUnavailable Reason = "issuer_unavailable"
)

// Why the policies said no.
const (
	DeniedByPolicy  Reason = "denied_by_policy"
	DeniedByDefault Reason = "denied_by_default"
	PolicyError     Reason = "policy_error"
	ScopeMissing    Reason = "scope_missing"
	// PolicyUnavailable: an outside decision point gave no clear answer in time.
	PolicyUnavailable Reason = "policy_unavailable"
)

// Which limit was reached.
const (
	RateLimited        Reason = "rate_limited"
	ConcurrencyLimited Reason = "concurrency_limited"
	ConnectionLimited  Reason = "connection_limited"
	QuotaExceeded      Reason = "quota_exceeded"
	LimiterUnavailable Reason = "limiter_unavailable"
	Overloaded         Reason = "overloaded"
)

// What the upstream did.
const (
	DNS                  Reason = "dns"
	ConnectRefused       Reason = "connect_refused"
	ConnectTimeout       Reason = "connect_timeout"
	TLSVerify            Reason = "tls_verify"
	TLSHandshakeUpstream Reason = "tls_handshake_upstream"
	ResetBeforeResponse  Reason = "reset_before_response"
	ResetMidBody         Reason = "reset_mid_body"
	ResponseTimeout      Reason = "response_timeout"
	BodyStalled          Reason = "body_stalled"
	BadResponse          Reason = "bad_response"
	BodyLengthMismatch   Reason = "body_length_mismatch"
	BreakerOpen          Reason = "breaker_open"
	NoHealthyTarget      Reason = "no_healthy_target"
	RetriesExhausted     Reason = "retries_exhausted"
)

// What the gate itself did.
const (
	Panic        Reason = "panic"
	ShuttingDown Reason = "shutting_down"
	Draining     Reason = "draining"
)

// Why the book did not take the record.
const (
	BookUnavailable Reason = "book_unavailable"
	BookFull        Reason = "book_full"
	BookSlow        Reason = "book_slow"
)

// The origins: who is to look into it.
const (
	OriginClient   = "client"
	OriginIdentity = "identity"
	OriginPolicy   = "policy"
	OriginLimit    = "limit"
	OriginUpstream = "upstream"
	OriginGateway  = "gateway"
	OriginBook     = "book"
)

// StatusClientAborted is the status of a record whose client went away before
// its answer was complete. It is recorded only and never sent.
const StatusClientAborted = 499

// Valid reports whether r is in the closed list.
func (r Reason) Valid() bool {
	_, ok := table[r]
	return ok
}

// Number is r's place in All, from 1; 0 for no reason and -1 for one outside
// the list. It may change from one release to the next.
func (r Reason) Number() int {
	if r == "" {
		return 0
	}
	if e, ok := table[r]; ok {
		return e.number
	}
	return -1
}

// Status is the HTTP status that the client gets, 400 to 599. ClientAborted is
// 499 and recorded only; the tls_* reasons of a failed handshake are recorded
// without a status, since nothing but an alert is sent. A reason outside the
// list is 500.
func (r Reason) Status() int {
	if e, ok := table[r]; ok {
		return e.status
	}
	return 500
}

// Origin is who is to look into it: one of the Origin constants, OriginGateway
// for a reason outside the list.
func (r Reason) Origin() string {
	if e, ok := table[r]; ok {
		return e.origin
	}
	return OriginGateway
}

// Public is the text that the client gets. The texts are few on purpose: no
// two failures of the same stage can be told apart by it (spec/events.md).
func (r Reason) Public() string {
	if e, ok := table[r]; ok {
		return e.public
	}
	return textInternal
}

// OAuthError is the error code for the WWW-Authenticate challenge: RFC 6750
// section 3.1, RFC 9449 sections 7.1 and 9 for DPoP, RFC 9470 section 3 for
// step-up. It is empty where no code may be given: RFC 6750 section 3 wants
// none for a request without credentials, and reasons that are not about
// credentials have none.
func (r Reason) OAuthError() string {
	switch r {
	case NoCredential, SessionExpired, IssuerUnavailable:
		return ""
	case TwoCredentials:
		return "invalid_request"
	case ScopeMissing:
		return "insufficient_scope"
	case DPoPProof:
		return "invalid_dpop_proof"
	case DPoPNonce:
		return "use_dpop_nonce"
	case StepupRequired:
		return "insufficient_user_authentication"
	case CrossSite:
		return ""
	}
	if r.Origin() == OriginIdentity {
		return "invalid_token"
	}
	return ""
}

// Folds says whether a flood of it from strangers may be counted in one record
// instead of being written one by one (spec/events.md, column "fold"). What it
// does not name is always written: what was done to somebody known, what
// reached an upstream, and what went wrong inside.
func (r Reason) Folds() bool {
	switch r {
	case TLSHandshake, TLSVersion, TLSNoClientCert, TLSBadClientCert,
		MalformedRequest, AmbiguousFraming, BadPath, BadHost, HeaderTooLarge, UnsupportedProtocol,
		TimeoutReading, NoRoute, MethodNotAllowed, MisdirectedRequest, BodyTooLarge,
		ShuttingDown, Draining:
		return true
	case BindingRequired, BindingMismatch, StepupRequired, CrossSite, // the credential itself is good
		TokenReplayed, TokenReuseDetected: // and what is done with it is evidence
		return false
	}
	return r.Origin() == OriginIdentity || r.Origin() == OriginLimit
}

// The gRPC status codes that a gate answers with.
const (
	grpcPermissionDenied  = 7
	grpcResourceExhausted = 8
	grpcUnavailable       = 14
	grpcUnauthenticated   = 16
)

// GRPC is the grpc-status that goes with the reason: 16 for identity failures,
// 7 for requests that will not do, 8 for limits and sizes, 14 for everything
// that may work later. Other codes are left to the upstream.
func (r Reason) GRPC() int {
	switch s := r.Status(); {
	case s >= 500:
		return grpcUnavailable
	case r.Origin() == OriginIdentity:
		return grpcUnauthenticated
	case s == 429, s == 431, s == 413:
		return grpcResourceExhausted
	default:
		return grpcPermissionDenied
	}
}

// All returns the closed list in the order of spec/record.md. The slice is the
// caller's.
func All() []Reason {
	all := make([]Reason, len(list))
	for i, e := range list {
		all[i] = e.reason
	}
	return all
}
