package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/token"
)

// Acts of operators on the token service, as records name them.
const (
	actIssueToken   = "token_issue"
	actFamilies     = "token_families"
	actRevokeFamily = "token_revoke_family"
	actRotateKeys   = "token_rotate_keys"
)

// tokenCalls are the administration's ways to the token service.
func (s *Server) tokenCalls() []admin.Call {
	return []admin.Call{
		{Pattern: "POST /api/v1/token-service/issue", Act: actIssueToken, Role: admin.Operator, Changes: true, Do: s.issueToken},
		{Pattern: "GET /api/v1/token-service/families", Act: actFamilies, Role: admin.Reader, Do: s.listFamilies},
		{Pattern: "POST /api/v1/token-service/families/{id}/revoke", Act: actRevokeFamily, Role: admin.Operator, Changes: true, Do: s.revokeFamily},
		{Pattern: "POST /api/v1/token-service/rotate-keys", Act: actRotateKeys, Role: admin.Operator, Changes: true, Do: s.rotateKeys},
	}
}

// tokenService is the service in force.
func (s *Server) tokenService() (*tokenParts, error) {
	t := &s.now.Load().parts.token
	if t.service == nil {
		return nil, &admin.Problem{Title: "the token service is off; token_service turns it on", Status: http.StatusConflict, Code: 2}
	}
	return t, nil
}

// IssueRequest asks for an access token for a client of the token service.
type IssueRequest struct {
	Client   string `json:"client"`
	Audience string `json:"audience,omitempty"`
	Scope    string `json:"scope,omitempty"`
}

// Issued is the token. It is shown once and kept nowhere.
type Issued struct {
	Token   string    `json:"access_token"`
	Expires time.Time `json:"expires"`
}

func decodeCall(body []byte, v any) error {
	if err := json.Unmarshal(body, v); err != nil {
		return admin.Usage("request: " + err.Error())
	}
	return nil
}

// tokenProblem says what is wrong with an operator's wish.
func tokenProblem(err error) error {
	switch {
	case errors.Is(err, token.ErrNoClient), errors.Is(err, token.ErrNoFamily):
		return &admin.Problem{Title: err.Error(), Status: http.StatusNotFound, Code: 3}
	case errors.Is(err, token.ErrNotGiven):
		return &admin.Problem{Title: err.Error(), Status: http.StatusForbidden, Code: 4}
	case errors.Is(err, token.ErrTooManyKeys):
		return &admin.Problem{Title: err.Error(), Status: http.StatusConflict, Code: 1}
	}
	return err
}

// issueToken makes a token for a client as the client itself would get it. It
// is recorded before it is handed out.
func (s *Server) issueToken(r *http.Request, who *admin.Caller, body []byte) (any, error) {
	t, err := s.tokenService()
	if err != nil {
		return nil, err
	}
	var req IssueRequest
	if err := decodeCall(body, &req); err != nil {
		return nil, err
	}
	raw, hash, until, err := t.service.Issue(req.Client, req.Audience, req.Scope, time.Now())
	if err != nil {
		return nil, tokenProblem(err)
	}
	rec := &record.Record{
		Kind: record.KindAdmin, Outcome: record.Success, Event: record.Event{Name: actIssueToken, Target: req.Client},
		Personal: record.Personal{Token: hash},
	}
	if err := admin.Note(r.Context(), s.book, who, rec); err != nil {
		return nil, err
	}
	return &Issued{Token: raw, Expires: until}, nil
}

// Family is a family of refresh tokens.
type Family struct {
	ID       string    `json:"id"`
	Client   string    `json:"client"`
	Issuer   string    `json:"issuer"`
	Subject  string    `json:"subject,omitempty"` // if personal parts are revealed
	Audience string    `json:"audience"`
	Scopes   []string  `json:"scopes,omitempty"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires"`
	Rotated  uint32    `json:"rotated"` // how often
	Revoked  string    `json:"revoked,omitempty"`
}

// maxFamilies bounds a list.
const maxFamilies = 1000

func (s *Server) listFamilies(r *http.Request, who *admin.Caller, _ []byte) (any, error) {
	t, err := s.tokenService()
	if err != nil {
		return nil, err
	}
	client, reveal := r.URL.Query().Get("client"), r.URL.Query().Get("reveal") == "true"
	if client != "" && !t.service.Knows(client) {
		return nil, tokenProblem(token.ErrNoClient)
	}
	if err := admin.NoteAccess(r.Context(), s.book, who, actFamilies, client, reveal); err != nil {
		return nil, err
	}
	list, err := t.state.Families(r.Context(), client, maxFamilies)
	if err != nil {
		return nil, fmt.Errorf("families: %w", err)
	}
	out := []Family{}
	for _, f := range list {
		one := Family{
			ID: f.ID, Client: f.Client, Issuer: f.Source, Audience: f.Audience, Scopes: f.Scopes,
			Created: f.Created, Expires: f.Expires, Rotated: f.Generation, Revoked: f.Revoked,
		}
		if reveal {
			one.Subject = f.Subject
		}
		out = append(out, one)
	}
	return out, nil
}

func (s *Server) revokeFamily(r *http.Request, who *admin.Caller, _ []byte) (any, error) {
	t, err := s.tokenService()
	if err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	ok, err := t.state.HasFamily(r.Context(), id)
	if err == nil && !ok {
		err = token.ErrNoFamily
	}
	if err != nil {
		return nil, tokenProblem(err)
	}
	hash := t.service.FamilyHash(id)
	rec := record.Record{
		Kind: record.KindAdmin, Outcome: record.Success, Event: record.Event{Name: actRevokeFamily, Target: hash},
		Personal: record.Personal{Family: hash},
	}
	ctx := context.WithoutCancel(r.Context()) // once recorded it must be done
	if err := admin.Act(ctx, s.book, who, rec, func() error { return tokenProblem(t.state.RevokeFamily(ctx, id)) }); err != nil {
		return nil, err
	}
	return map[string]string{"recorded_as": hash}, nil
}

// RotatedKey is a new signing key of the token service.
type RotatedKey struct {
	KID  string    `json:"kid"`
	From time.Time `json:"from"` // when it begins to sign
}

func (s *Server) rotateKeys(r *http.Request, who *admin.Caller, _ []byte) (any, error) {
	t, err := s.tokenService()
	if err != nil {
		return nil, err
	}
	atOnce := r.URL.Query().Get("at_once") == "true"
	cause := "scheduled"
	if atOnce {
		cause = "at_once"
	}
	rec := record.Record{Kind: record.KindKey, Outcome: record.Success, Event: record.Event{Name: actRotateKeys, Cause: cause}}
	ctx := context.WithoutCancel(r.Context())
	var out RotatedKey
	err = admin.Act(ctx, s.book, who, rec, func() (err error) {
		out.KID, out.From, err = t.state.RotateKeys(ctx, atOnce)
		return tokenProblem(err)
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}
