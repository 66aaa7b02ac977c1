package token

import (
	"encoding/json"
	"net/http"

	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// refusal is a request that is not granted. The client learns the code of RFC
// 6749 section 5.2 and no more, except what was wrong with the form of its own
// request; the record learns the reason.
type refusal struct {
	code    string
	text    string // error_description, only about the form of the request
	status  int
	reason  reason.Reason
	failure *authn.Failure // of the client, or of the token that it brought
	basic   bool           // answer with a Basic challenge (RFC 6749 section 5.2)
}

// The codes.
const (
	invalidRequest       = "invalid_request"
	invalidClient        = "invalid_client"
	invalidGrant         = "invalid_grant"
	invalidScope         = "invalid_scope"
	invalidTarget        = "invalid_target" // RFC 8693 section 2.2.2
	unauthorizedClient   = "unauthorized_client"
	unsupportedGrantType = "unsupported_grant_type"
	invalidProof         = "invalid_dpop_proof" // RFC 9449 section 5
	temporarily          = "temporarily_unavailable"
)

func malformed(text string) *refusal {
	return &refusal{code: invalidRequest, text: text, status: http.StatusBadRequest, reason: reason.MalformedRequest}
}

func refused(code string, why reason.Reason) *refusal {
	return &refusal{code: code, status: http.StatusBadRequest, reason: why}
}

// away is a store that does not do what it must: nothing is given out.
func (s *Service) away(err error) *refusal {
	s.log.Error("the token service's state is away; requests are refused", "err", err)
	return &refusal{code: temporarily, status: http.StatusServiceUnavailable, reason: reason.IssuerUnavailable}
}

// noStore are the fields of every answer about tokens (RFC 6749 section 5.1).
var noStore = []canon.Field{
	{Name: "content-type", Value: "application/json"},
	{Name: "cache-control", Value: "no-store"},
	{Name: "pragma", Value: "no-cache"},
	{Name: "x-content-type-options", Value: "nosniff"},
}

// answer is the refusal as the client gets it.
func (r *refusal) answer() gate.Answer {
	body, err := json.Marshal(struct {
		Error string `json:"error"`
		Text  string `json:"error_description,omitempty"`
	}{r.code, r.text})
	if err != nil {
		return gate.Answer{Reason: reason.Panic}
	}
	fields := noStore
	if r.basic {
		fields = append(fields[:len(fields):len(fields)], canon.Field{Name: "www-authenticate", Value: `Basic realm="gatebook"`})
	}
	return gate.Answer{Status: r.status, Fields: fields, Body: body, Reason: r.reason, Failure: r.failure}
}

// granted is an answer to a request that was granted.
func granted(v any) gate.Answer {
	body, err := json.Marshal(v)
	if err != nil {
		return gate.Answer{Reason: reason.Panic}
	}
	return gate.Answer{Status: http.StatusOK, Fields: noStore, Body: body}
}
