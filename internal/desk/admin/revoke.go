package admin

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Revocation says what no longer counts: everything that an issuer gave to a
// subject or to a client up to now, or one token. Exactly one of the three is
// set.
type Revocation struct {
	Issuer  string `json:"issuer,omitempty"` // configured name; may be left out if there is one only
	Subject string `json:"subject,omitempty"`
	Client  string `json:"client,omitempty"`
	TokenID string `json:"jti,omitempty"`
}

// maxRevocation bounds the body of the call.
const maxRevocation = 8 << 10

func (a *API) revoke(w http.ResponseWriter, r *http.Request) error {
	var req Revocation
	dec := json.NewDecoder(io.LimitReader(r.Body, maxRevocation))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return &Problem{Title: "request: " + err.Error(), Status: http.StatusBadRequest, Code: exitUsage}
	}
	out, err := a.revoking(r.Context(), callerOf(r), req)
	if err != nil {
		return err
	}
	return a.writeJSON(w, out)
}

// ActRevocation records a revocation and makes it. target names what it is about
// without saying it: a pseudonym, the keyed hash of a token, or the configured
// name of a client; kind is "subject", "client" or "token".
func ActRevocation(ctx context.Context, b noter, who *Caller, kind, target string, do func() error) error {
	return Act(ctx, b, who, record.Record{
		Kind: record.KindAdmin, Outcome: record.Success,
		Event: record.Event{Name: actRevoke, Target: target, Cause: kind},
	}, do)
}

// Usage is the problem of a call that asks for what cannot be.
func Usage(text string) *Problem {
	return &Problem{Title: text, Status: http.StatusBadRequest, Code: exitUsage}
}
