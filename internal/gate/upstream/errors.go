package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/gatebook/gatebook/internal/reason"
)

// Where on its way an exchange failed: the values of Error.Phase.
const (
	PhasePick    = "pick"    // no target could be chosen
	PhaseDNS     = "dns"     // resolving the target's name
	PhaseConnect = "connect" // TCP connect
	PhaseTLS     = "tls"     // TLS handshake
	PhaseRequest = "request" // writing the request
	PhaseHead    = "head"    // waiting for or reading the response head
	PhaseBody    = "body"    // reading the response body
)

// Error is a failure that the upstream is to blame for. RoundTrip and
// Response.Body return it; whatever else they return is the caller's own: the
// context's error, an error of Request.Body or Request.Interim, or a Request
// that cannot be sent.
type Error struct {
	Reason   reason.Reason // one of the upstream reasons
	Phase    string        // one of the Phase constants
	Err      error         // the cause, never nil
	Target   string        // the last target tried, "" if none
	Attempts int           // attempts made, 0 if no target could be chosen
	Reused   bool          // the last attempt used a kept connection
	Breaker  string        // one of the Breaker constants, for the last target tried
}

// Error describes the failure for logs; it holds nothing the client sent.
func (e *Error) Error() string {
	if e.Target == "" {
		return fmt.Sprintf("upstream: %s: %v", e.Reason, e.Err)
	}
	return fmt.Sprintf("upstream %s: %s in phase %s: %v", e.Target, e.Reason, e.Phase, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// The caller's own errors.
var (
	// ErrClosed is returned for a request to a closed pool.
	ErrClosed = errors.New("upstream: pool is closed")
	// ErrShortBody is returned when Request.Body ends before Request.Length
	// bytes. It matches io.ErrUnexpectedEOF.
	ErrShortBody = fmt.Errorf("upstream: request body ended before its declared length: %w", io.ErrUnexpectedEOF)
)

var (
	errUnsolicited = errors.New("upstream sent bytes that no request asked for")
	errConnDead    = errors.New("kept connection was closed by the upstream")
	errBodyStopped = errors.New("upstream: request body no longer wanted")
	errAllEjected  = errors.New("every target is ejected after repeated failures; wait for its next probe or repair it")
	errUnhealthy   = errors.New("every target is ejected or fails its health checks; repair one")
	errBodyClosed  = errors.New("upstream: read of a response body after Close")
)

// dialError carries the reason of a failed connect through net/http.
type dialError struct {
	reason reason.Reason
	phase  string
	err    error
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// classifyDial names the reason of a failed TCP connect. What is neither a
// resolver error nor a time-out (refused, unreachable, no route) counts as
// refused.
func classifyDial(err error) *dialError {
	var dns *net.DNSError
	var addr *net.AddrError
	switch {
	case errors.As(err, &dns), errors.As(err, &addr):
		return &dialError{reason.DNS, PhaseDNS, err}
	case isTimeout(err):
		return &dialError{reason.ConnectTimeout, PhaseConnect, err}
	default:
		return &dialError{reason.ConnectRefused, PhaseConnect, err}
	}
}

// classifyTLS tells a certificate that does not verify from any other failure
// of the handshake.
func classifyTLS(err error) *dialError {
	var verify *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	if errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &host) || errors.As(err, &invalid) {
		return &dialError{reason.TLSVerify, PhaseTLS, err}
	}
	return &dialError{reason.TLSHandshakeUpstream, PhaseTLS, err}
}

// cause is the first thing a connection noticed going wrong in an exchange.
type cause struct {
	reason reason.Reason
	phase  string
	err    error
}

// readCause names a failed read from the connection, by where the response
// stood.
func readCause(f *framer, err error) *cause {
	switch {
	case !f.phase.inHead() && isTimeout(err):
		return &cause{reason.BodyStalled, PhaseBody, err}
	case f.phase.inHead() && isTimeout(err):
		return &cause{reason.ResponseTimeout, PhaseHead, err}
	case f.phase.inHead() && !f.started && isRemoteAlert(err):
		// TLS 1.3 servers refuse a client certificate after the handshake
		// (RFC 8446 section 4.4.2.4).
		return &cause{reason.TLSHandshakeUpstream, PhaseTLS, err}
	case f.phase.inHead():
		return &cause{reason.ResetBeforeResponse, PhaseHead, err}
	default:
		return &cause{reason.ResetMidBody, PhaseBody, err}
	}
}

// frameCause names a breach of framing.
func frameCause(f *framer, err error) *cause {
	phase := PhaseBody
	if f.phase.inHead() {
		phase = PhaseHead
	}
	var fe *frameError
	if errors.As(err, &fe) {
		return &cause{fe.reason, phase, err}
	}
	return &cause{reason.BadResponse, phase, err}
}

func isRemoteAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &ne) && ne.Timeout()
}

// contextError is what an exchange returns whose context is done: an error
// that matches ctx.Err() and, where it differs, the cause.
func contextError(ctx context.Context) error {
	err, why := ctx.Err(), context.Cause(ctx)
	if why == nil || why == err {
		return err
	}
	return fmt.Errorf("%w: %w", err, why)
}
