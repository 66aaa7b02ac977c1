package server

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
)

// revocationTime is how long a revocation is remembered: longer than any token
// is good for that an issuer may be configured to give (max_lifetime).
const revocationTime = 31 * 24 * time.Hour

// Revoked says what a revocation is about, as its record does.
type Revoked struct {
	Issuer string `json:"issuer"`
	Kind   string `json:"kind"`   // "subject", "client" or "token"
	Target string `json:"target"` // a pseudonym, a client, the keyed hash of a token
}

// revokeCall is the administration's way to revoke. It has acted when it
// returns, on tokens whose verdict is cached too.
func (s *Server) revokeCall(ctx context.Context, who *admin.Caller, r admin.Revocation) (any, error) {
	f := s.now.Load().file
	issuer, err := issuerNamed(f, r.Issuer)
	if err != nil {
		return nil, err
	}
	out := &Revoked{Issuer: issuer.Name}
	var act func() error
	given := 0
	for _, id := range []string{r.Subject, r.Client, r.TokenID} {
		if id != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, admin.Usage("name exactly one of subject, client and jti")
	case r.Subject != "":
		out.Kind = "subject"
		if out.Target, err = s.book.Pseudonym(issuer.Name + "|" + r.Subject); err != nil {
			return nil, err
		}
		act = func() error { return s.guards.revoked.Subject(ctx, issuer.Name, r.Subject, revocationTime) }
	case r.Client != "":
		out.Kind, out.Target = "client", record.Other
		if slices.Contains(issuer.Clients, r.Client) {
			out.Target = r.Client
		}
		act = func() error { return s.guards.revoked.Client(ctx, issuer.Name, r.Client, revocationTime) }
	default:
		out.Kind, out.Target = "token", s.book.TokenHash(issuer.Name, r.TokenID)
		act = func() error { return s.guards.revoked.Token(ctx, issuer.Name, r.TokenID, revocationTime, false) }
	}
	out.Target = cmp.Or(out.Target, record.None) // nobody of that name was ever here
	// Once it is recorded it must be done even if whoever asked is gone.
	ctx = context.WithoutCancel(ctx)
	if err := admin.ActRevocation(ctx, s.book, who, out.Kind, out.Target, act); err != nil {
		return nil, err
	}
	return out, nil
}

// issuerNamed finds an issuer; no name means the only one.
func issuerNamed(f *config.File, name string) (*config.Issuer, error) {
	var known []string
	for i := range f.Issuers {
		if f.Issuers[i].Name == name || name == "" && len(f.Issuers) == 1 {
			return &f.Issuers[i], nil
		}
		known = append(known, f.Issuers[i].Name)
	}
	return nil, admin.Usage("name one of the configured issuers: " + strings.Join(known, ", "))
}
