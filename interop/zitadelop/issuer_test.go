package zitadelop

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// What there is at the issuer. The person is the first of the example's store.
const (
	apiAudience = "https://api.example.com"
	secret      = "0123456789abcdef0123456789abcdef"
	person      = "id1"
	personName  = "test-user@127.0.0.1"
	password    = "verysecure"
)

// issuer is the provider with what a test may do to it.
type issuer struct {
	t     *testing.T
	url   string
	store *store
}

// newIssuer starts a provider that signs with RS256, as zitadel does.
func newIssuer(t *testing.T) *issuer {
	t.Helper()
	var handler http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	registered := map[string]*storage.Client{}
	for _, id := range []string{"machine", "opaque", "resource", "web", "keyed"} {
		registered[id] = storage.WebClient(id, secret, program.AppOrigin+"/_gatebook/callback")
	}
	s := &store{
		Storage: storage.NewStorageWithClients(storage.NewUserStore(server.URL), registered), registered: registered,
		url: server.URL, tokens: map[string]*issued{}, clientKeys: map[string]*ecdsa.PublicKey{},
	}
	s.rotate(t, 0)
	handler = exampleop.SetupServer(server.URL, s, slog.New(slog.DiscardHandler), false)
	return &issuer{t, server.URL, s}
}

// rotate signs with a new key from now on; keep older ones stay published.
func (i *issuer) rotate(keep int) { i.store.rotate(i.t, keep) }

// post sends a form as a client with a secret.
func (i *issuer) post(path, client string, form url.Values) map[string]any {
	i.t.Helper()
	req, err := http.NewRequest("POST", i.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		i.t.Fatal(err)
	}
	req.SetBasicAuth(client, secret)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		i.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	out := map[string]any{}
	if len(b) > 0 && json.Unmarshal(b, &out) != nil || res.StatusCode != 200 {
		i.t.Fatalf("%s: %d %s", path, res.StatusCode, b)
	}
	return out
}

// token gets an access token for a client itself.
func (i *issuer) token(client, scope string) string {
	i.t.Helper()
	text, _ := i.post("/oauth/token", client, url.Values{"grant_type": {"client_credentials"}, "scope": {scope}})["access_token"].(string)
	if text == "" {
		i.t.Fatal("no access token")
	}
	return text
}

// signing is one of the issuer's keys.
type signing struct {
	id  string
	key *rsa.PrivateKey
}

func (s *signing) ID() string                                  { return s.id }
func (s *signing) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (s *signing) Key() any                                    { return s.key }

// published is what others see of it.
type published struct{ *signing }

func (p published) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (p published) Use() string                        { return "sig" }
func (p published) Key() any                           { return &p.key.PublicKey }

// issued is an access token that the issuer knows.
type issued struct {
	client, subject  string
	audience, scopes []string
	until            time.Time
}

// store is the example's storage with keys that change, clients of several
// kinds, and tokens for an API instead of for their own client alone.
type store struct {
	*storage.Storage
	registered map[string]*storage.Client
	url        string

	mu         sync.Mutex
	keys       []*signing // the newest first
	serial     int
	tokens     map[string]*issued
	clientKeys map[string]*ecdsa.PublicKey // of clients that sign assertions
	life       time.Duration               // of a session's access token; 0: as the example has it
	refreshes  int
}

// refreshed is how many refresh tokens were used so far.
func (s *store) refreshed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refreshes
}

func (s *store) rotate(t *testing.T, keep int) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serial++
	s.keys = slices.Insert(s.keys[:min(keep, len(s.keys))], 0, &signing{"key-" + strconv.Itoa(s.serial), key})
}

func (s *store) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[0], nil
}

func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.RS256}, nil
}

func (s *store) KeySet(context.Context) (out []op.Key, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keys {
		out = append(out, published{k})
	}
	return out, nil
}

// client is one of the example's with what tests need changed.
type client struct{ *storage.Client }

func (c client) IsScopeAllowed(string) bool { return true }

func (c client) GrantTypes() []oidc.GrantType {
	return append(c.Client.GrantTypes(), oidc.GrantTypeClientCredentials)
}

func (c client) AuthMethod() oidc.AuthMethod {
	if c.GetID() == "keyed" {
		return oidc.AuthMethodPrivateKeyJWT
	}
	return oidc.AuthMethodBasic
}

func (c client) AccessTokenType() op.AccessTokenType {
	if c.GetID() == "machine" {
		return op.AccessTokenTypeJWT
	}
	return op.AccessTokenTypeBearer
}

func (s *store) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	c := s.registered[id]
	if c == nil {
		return nil, errors.New("no such client")
	}
	return client{c}, nil
}

func (s *store) GetKeyByIDAndClientID(_ context.Context, kid, id string) (*jose.JSONWebKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := s.clientKeys[id]
	if key == nil || kid != "g1" {
		return nil, errors.New("no such key")
	}
	return &jose.JSONWebKey{KeyID: kid, Use: "sig", Key: key}, nil
}

func (s *store) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	if err := s.AuthorizeClientIDSecret(ctx, id, secret); err != nil {
		return nil, err
	}
	return s.GetClientByClientID(ctx, id)
}

// machineRequest is a client that asks for itself; the example's own forgets
// which client that was.
type machineRequest struct {
	client string
	scopes []string
}

func (m *machineRequest) GetSubject() string    { return m.client }
func (m *machineRequest) GetAudience() []string { return []string{apiAudience} }
func (m *machineRequest) GetScopes() []string   { return m.scopes }

func (s *store) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	return &machineRequest{id, scopes}, nil
}

func (s *store) CreateAccessToken(ctx context.Context, r op.TokenRequest) (string, time.Time, error) {
	id, until, err := s.Storage.CreateAccessToken(ctx, r)
	if m, ok := r.(*machineRequest); ok && err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tokens[id] = &issued{client: m.client, subject: m.client, audience: m.GetAudience(), scopes: m.scopes, until: until}
	}
	return id, until, err
}

func (s *store) CreateAccessAndRefreshTokens(ctx context.Context, r op.TokenRequest, refresh string) (string, string, time.Time, error) {
	id, next, until, err := s.Storage.CreateAccessAndRefreshTokens(ctx, r, refresh)
	s.mu.Lock()
	defer s.mu.Unlock()
	if refresh != "" && err == nil {
		s.refreshes++
	}
	if s.life > 0 {
		until = time.Now().Add(s.life)
	}
	return id, next, until, err
}

func (s *store) GetPrivateClaimsFromScopes(_ context.Context, user, _ string, scopes []string) (map[string]any, error) {
	return map[string]any{"scope": strings.Join(scopes, " "), "roles": []string{"clerk"}}, nil
}

// SetIntrospectionFromToken tells resource servers what a token is; op leaves to
// the storage what is said of it.
func (s *store) SetIntrospectionFromToken(_ context.Context, out *oidc.IntrospectionResponse, id, _, asks string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[id]
	if t == nil || asks != "resource" || time.Now().After(t.until) {
		return errors.New("not active")
	}
	out.Subject, out.ClientID, out.Audience, out.Scope = t.subject, t.client, t.audience, t.scopes
	out.Issuer, out.TokenType, out.Expiration = s.url, oidc.BearerToken, oidc.FromTime(t.until)
	return nil
}

func (s *store) RevokeToken(ctx context.Context, id, user, client string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tokens[id]; t != nil && t.client == client {
		delete(s.tokens, id)
		return nil
	}
	return s.Storage.RevokeToken(ctx, id, user, client)
}
