package token

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate"
)

// Endpoint is one path of the service.
type Endpoint struct {
	Name    string // of its route
	Path    string
	Method  string
	MaxBody int64
	Respond gate.ResponderFunc
}

// Endpoints are all paths of the service.
func (s *Service) Endpoints() []Endpoint {
	return []Endpoint{
		{"token", PathToken, "POST", maxBody, s.Token},
		{"token-revoke", PathRevoke, "POST", maxBody, s.Revoke},
		{"token-introspect", PathIntrospect, "POST", maxBody, s.Introspect},
		{"token-keys", PathJWKS, "GET", 1, s.JWKS},
		{"token-metadata", PathMetadata, "GET", 1, s.Metadata},
	}
}

// The ways in which an operator's wish is refused.
var (
	ErrNoClient = errors.New("the configuration has no such client")
	ErrNoFamily = errors.New("there is no such family of refresh tokens")
	ErrNotGiven = errors.New("the client may not have that")
)

// Issue makes an access token for a client of the configuration, as client
// credentials would give it, for tests by an operator. The caller records it.
// hash is what the record of its use will say of the token.
func (s *Service) Issue(client, audience, scope string, now time.Time) (token, hash string, expires time.Time, err error) {
	cl := s.clients[client]
	switch {
	case cl == nil:
		return "", "", time.Time{}, ErrNoClient
	case cl.BoundMTLS:
		return "", "", time.Time{}, fmt.Errorf("%w: its tokens are bound to its certificate, which is not here", ErrNotGiven)
	case !slices.Contains(cl.Grants, ClientCredentials):
		return "", "", time.Time{}, fmt.Errorf("%w: it has no grant client_credentials", ErrNotGiven)
	}
	g, r := cl.own(form{{"audience", audience}, {"scope", scope}})
	if r != nil {
		return "", "", time.Time{}, fmt.Errorf("%w: %s", ErrNotGiven, r.code)
	}
	out, id, r := s.make(g, now)
	if r != nil {
		return "", "", time.Time{}, fmt.Errorf("%w: %s", ErrNotGiven, r.code)
	}
	return out.AccessToken, s.hash(s.name, id), now.Truncate(time.Second).Add(time.Duration(out.ExpiresIn) * time.Second), nil
}

// FamilyInfo is what an operator may know of a family of refresh tokens.
type FamilyInfo struct {
	ID         string
	Client     string
	Source     string
	Subject    string // personal
	Audience   string
	Scopes     []string
	Created    time.Time
	Expires    time.Time
	Generation uint32
	Revoked    string // why, "" if it is not
}

// Families lists the families of a client, or of all if client is empty, the
// newest first, at most most of them.
func (s *State) Families(ctx context.Context, client string, most int) ([]FamilyInfo, error) {
	var list []FamilyInfo
	err := s.store.Range(ctx, tableFamily, func(_ string, value []byte) error {
		var f family
		if err := json.Unmarshal(value, &f); err != nil {
			return err
		}
		if client == "" || f.Client == client {
			list = append(list, FamilyInfo{
				ID: f.ID, Client: f.Client, Source: f.Source, Subject: f.Of, Audience: f.Audience, Scopes: f.Scopes,
				Created: f.Created, Expires: f.Expires, Generation: f.Generation, Revoked: f.Revoked,
			})
		}
		return nil
	})
	slices.SortFunc(list, func(a, b FamilyInfo) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	return list[:min(len(list), most)], err
}

// RevokeFamily ends a family on behalf of an operator, who records it before.
func (s *State) RevokeFamily(ctx context.Context, id string) error {
	f, err := s.family(ctx, id)
	if err != nil {
		return err
	}
	if f == nil {
		return ErrNoFamily
	}
	return s.revokeFamily(ctx, f, revokedOperator)
}

// FamilyHash is what records say of a family.
func (s *Service) FamilyHash(id string) string { return s.hash(familyHash, id) }

// Knows reports whether the configuration has a client.
func (s *Service) Knows(client string) bool { return s.clients[client] != nil }

// HasFamily reports whether there is a family.
func (s *State) HasFamily(ctx context.Context, id string) (bool, error) {
	f, err := s.family(ctx, id)
	return f != nil, err
}
