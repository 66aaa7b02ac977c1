package project

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
)

// exchange reports the kinds that are about a request or a connection of
// somebody else, as opposed to an act of the book or of an operator.
func exchange(k record.Kind) bool {
	switch k {
	case record.KindRequest, record.KindHandshake, record.KindMalformed, record.KindSession, record.KindToken, record.KindInterrupted:
		return true
	}
	return false
}

// The origins of errors, as package reason has them. They are part of the
// record's schema and told here by their words, since a record may be older
// than this list.
const (
	originClient   = "client"
	originIdentity = "identity"
	originPolicy   = "policy"
	originLimit    = "limit"
	originGateway  = "gateway"
)

// verdict is what the gate did with an exchange.
type verdict uint8

const (
	open    verdict = iota // the outcome is not known
	allowed                // and it went well
	failed                 // allowed, and something broke
	denied
)

func verdictOf(r *record.Record) verdict {
	switch {
	case r.Kind == record.KindInterrupted || r.Outcome == record.Unknown:
		return open
	case r.Authz.Decision == "deny":
		return denied
	case r.Error.Reason == "" && r.Outcome == record.Success:
		return allowed
	case r.Error.Reason == "client_aborted":
		return failed
	}
	switch r.Error.Origin {
	case originClient, originIdentity, originPolicy, originLimit:
		return denied
	}
	if r.Outcome == record.Success {
		return allowed
	}
	return failed
}

// reasonOf is why something did not go well.
func reasonOf(r *record.Record) string {
	if r.Error.Reason != "" {
		return r.Error.Reason
	}
	return r.Authn.Reason
}

// action is what happened, in the words of OWASP's Logging Vocabulary where it
// has one, else a reason or the name of an act.
func action(r *record.Record) string {
	if exchange(r.Kind) {
		if a := refusal(r); a != "" {
			return a
		}
	}
	name := r.Event.Name
	switch r.Kind {
	case record.KindToken:
		return tokenAction(name)
	case record.KindSession:
		if name == "session_login" {
			return "authn_login_success"
		}
	case record.KindAdmin, record.KindKey:
		return operatorAction(r)
	case record.KindAccess:
		if r.Outcome == record.Failure {
			return "authz_fail"
		}
		return "sensitive_read"
	case record.KindErasure:
		return "sensitive_delete"
	case record.KindPolicy:
		if name != "shadow" {
			return "authz_change"
		}
	case record.KindGap:
		return "sys_monitor_disabled"
	case record.KindStart:
		return "sys_startup"
	case record.KindStop:
		return "sys_shutdown"
	case record.KindUncleanStop:
		return "sys_crash"
	case record.KindInterrupted, record.KindRequest, record.KindHandshake, record.KindMalformed:
		return string(r.Kind) // the name says something else of these: fold, would_refuse
	}
	if name == "" {
		return string(r.Kind)
	}
	return name
}

// refusal is the action of an exchange that did not go well, "" if it did.
func refusal(r *record.Record) string {
	why := reasonOf(r)
	switch why {
	case "":
		return ""
	case "token_replayed", "token_reuse_detected":
		return "authn_token_reuse"
	case "session_expired":
		return "session_use_after_expire"
	case "rate_limited", "concurrency_limited", "connection_limited", "quota_exceeded":
		return "excess_rate_limit_exceeded"
	case "malformed_request", "ambiguous_framing", "bad_path", "bad_host", "header_too_large", "body_too_large", "unsupported_protocol":
		return "input_validation_fail"
	}
	switch r.Error.Origin {
	case originIdentity:
		return "authn_login_fail"
	case originPolicy:
		return "authz_fail"
	}
	return why
}

func tokenAction(name string) string {
	switch name {
	case "client_credentials", "refresh", "exchange", "issue":
		return "authn_token_created"
	case "revoke":
		return "authn_token_revoked"
	case "":
		return string(record.KindToken)
	}
	return name
}

func operatorAction(r *record.Record) string {
	name := r.Event.Name
	switch {
	case r.Outcome == record.Failure && r.Error.Origin == originPolicy:
		return "authz_fail"
	case r.Outcome == record.Failure && r.Error.Origin == originIdentity:
		return "authn_login_fail"
	case name == "token_issue" || name == "apikey_create" || name == "apikey_rotate":
		return "authn_token_created"
	case strings.HasPrefix(name, "token_revoke") || name == "apikey_revoke":
		return "authn_token_revoked"
	case name == "":
		return string(r.Kind)
	}
	return name
}

// message is one line for people: what, and how it ended.
func (e *enc) message(k string, r *record.Record) {
	e.key(k)
	e.b = append(e.b, '"')
	// Each part is escaped alone; the quotes of parts become spaces.
	part := func(s string) {
		if s == "" {
			return
		}
		e.b = append(e.b, ' ')
		at := len(e.b)
		e.b = record.AppendString(e.b, s)
		copy(e.b[at:], e.b[at+1:])
		e.b = e.b[:len(e.b)-2]
	}
	e.b = append(e.b, r.Kind...) // of a closed list, as decoding made sure
	switch {
	case !exchange(r.Kind):
		if r.Event.Name != string(r.Kind) {
			part(r.Event.Name)
		}
	case r.Op != record.None:
		part(r.Op)
	default:
		part(r.Method)
	}
	if r.Status != 0 {
		e.b = strconv.AppendInt(append(e.b, ' '), int64(r.Status), 10)
	}
	part(string(r.Outcome))
	part(reasonOf(r))
	e.b = append(e.b, '"')
}

// traced reports whether an exchange has a trace id.
func traced(r *record.Record) bool { return r.Trace != "" || exchange(r.Kind) }

// traceID writes the id of a trace that a trusted peer sent, else the request's
// own id without dashes, which is what the upstream was told.
func (e *enc) traceID(k string, r *record.Record) {
	if r.Trace != "" {
		e.must(k, r.Trace)
		return
	}
	e.key(k)
	e.b = append(hex.AppendEncode(append(e.b, '"'), r.ID[:]), '"')
}
