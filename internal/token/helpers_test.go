package token

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

const (
	issuer   = "https://auth.example.com"
	secret   = "correct-horse-battery-staple-0123456789"
	apiURL   = "https://api.example.com"
	orders   = "https://orders.internal"
	aliceSub = "alice-7f3a9c"
)

// book is a Recorder in memory.
type book struct {
	mu    sync.Mutex
	opens int             // mu
	recs  []record.Record // mu
}

func (b *book) Open(_ context.Context, r *record.Record, _ record.Level) (record.Ref, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opens++
	return r.ID, nil
}

func (b *book) Commit(_ context.Context, _ record.Ref, r *record.Record, _ record.Level) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recs = append(b.recs, *r)
	return nil
}

// faulty is a store that can be away.
type faulty struct {
	kv.Store
	away atomic.Bool
}

var errAway = io.ErrClosedPipe

func (f *faulty) Get(ctx context.Context, table, key string) ([]byte, error) {
	if f.away.Load() {
		return nil, errAway
	}
	return f.Store.Get(ctx, table, key)
}

func (f *faulty) Create(ctx context.Context, table, key string, value []byte, expires time.Time) (bool, error) {
	if f.away.Load() {
		return false, errAway
	}
	return f.Store.Create(ctx, table, key, value, expires)
}

func (f *faulty) Put(ctx context.Context, table, key string, value []byte, expires time.Time) error {
	if f.away.Load() {
		return errAway
	}
	return f.Store.Put(ctx, table, key, value, expires)
}

// house is a service behind a gate.
type house struct {
	t      *testing.T
	file   string
	store  *faulty
	local  *kv.Local
	state  *State
	svc    *Service
	gate   *gate.Gate
	book   *book
	alerts []string // mu of book
	limits []*ratelimit.Rule
	ids    atomic.Uint64
}

// alice is who the source "corp" knows by the token "alice's".
func alice(now time.Time) *authn.Principal {
	return &authn.Principal{
		Method: "jwt", Issuer: "corp", Subject: aliceSub, Roles: []string{"clerk", "boss"}, Scopes: []string{"read", "write", "admin"},
		TokenID: "t-1", ACR: "silver", AMR: []string{"pwd"}, IssuedAt: now, Expires: now.Add(2 * time.Minute), AuthTime: now.Add(-time.Hour),
	}
}

// unsigned is a token whose payload is the claims; verifiers here do not look
// at signatures.
func unsigned(claims string) string {
	return "e30." + b64.EncodeToString([]byte(claims)) + ".c2ln"
}

func corp(_ context.Context, raw string) (*authn.Principal, error) {
	now := time.Now()
	p := alice(now)
	claims, ok := peek(raw)
	if !ok {
		return nil, authn.ErrNoCredential
	}
	switch claims.Subject {
	case "alice":
	case "client":
		p.Subject = "shop"
	case "bound":
		p.Confirm.JKT = "x"
	case "expired":
		return nil, &authn.Failure{Reason: reason.TokenExpired, Claimed: aliceSub}
	case "ended":
		p.Expires = now
	case "away":
		return nil, &authn.Failure{Reason: reason.IssuerUnavailable}
	case "bare":
		p.Scopes, p.Roles = nil, nil
	default:
		return nil, authn.ErrNoCredential
	}
	return p, nil
}

func apikey(_ context.Context, raw string) (*authn.Principal, error) {
	p := &authn.Principal{Method: "apikey", Issuer: "apikeys", Subject: "robot", Scopes: []string{"read"}}
	switch raw {
	case "gbk_key":
	case "gbk_narrow":
		p.Routes = []string{"orders"}
	default:
		return nil, &authn.Failure{Reason: reason.KeyUnknown}
	}
	return p, nil
}

// assertion verifies the client assertions of "signer".
func assertion(_ context.Context, raw string) (*authn.Principal, error) {
	var c struct {
		Subject string `json:"sub"`
		ID      string `json:"jti"`
	}
	_, rest, _ := strings.Cut(raw, ".")
	payload, sig, _ := strings.Cut(rest, ".")
	b, _ := b64.DecodeString(payload)
	if json.Unmarshal(b, &c) != nil || sig != "c2ln" {
		return nil, &authn.Failure{Reason: reason.TokenSignature}
	}
	return &authn.Principal{Subject: c.Subject, TokenID: c.ID, Expires: time.Now().Add(time.Minute)}, nil
}

func clients() []Client {
	sum := sha256.Sum256([]byte(secret))
	return []Client{
		{
			ID: "shop", Method: SecretBasic, Secret: sum, Grants: []Grant{ClientCredentials, Exchange}, Audiences: []string{apiURL, orders},
			Scopes: []string{"read", "write"}, Roles: []string{"clerk", "robot"}, Subjects: []string{"corp", "partner", "keys"}, Offline: 8 * time.Hour,
		},
		{ID: "form", Method: SecretPost, Secret: sum, Grants: []Grant{ClientCredentials}, Audiences: []string{apiURL}, Lifetime: time.Minute},
		{ID: "signer", Method: PrivateKeyJWT, Assertion: assertion, Grants: []Grant{ClientCredentials}, Audiences: []string{apiURL}},
		{ID: "web", Method: SecretBasic, Secret: sum, Grants: []Grant{Exchange}, Audiences: []string{orders}, Subjects: []string{"corp"}, Offline: time.Hour, Scopes: []string{"read"}},
		{ID: "api", Method: SecretBasic, Secret: sum, Inspects: []string{apiURL}},
		{ID: "idle", Method: SecretBasic, Secret: sum},
	}
}

func subjects() []Subject {
	return []Subject{
		{Name: "corp", Type: TypeAccessToken, Verify: corp, Offline: true},
		{Name: "partner", Type: TypeAccessToken, Offline: true, Verify: func(_ context.Context, raw string) (*authn.Principal, error) {
			if c, ok := peek(raw); ok && c.Subject == "partner-alice" {
				return &authn.Principal{Issuer: "partner", Subject: aliceSub, Scopes: []string{"read"}, Expires: time.Now().Add(time.Hour)}, nil
			}
			return nil, authn.ErrNoCredential
		}},
		{Name: "keys", Type: TypeAPIKey, Verify: apikey},
	}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, file: filepath.Join(t.TempDir(), "live.db"), book: &book{}}
	h.open()
	t.Cleanup(func() { _ = h.local.Close() })
	return h
}

var storeKey = [32]byte{1, 2, 3}

func (h *house) open() {
	h.t.Helper()
	var err error
	if h.local, err = kv.OpenLocal(h.file, storeKey, nil); err != nil {
		h.t.Fatal(err)
	}
	h.store = &faulty{Store: h.local}
	if h.state, err = OpenState(h.t.Context(), h.store, Terms{Algorithm: ES256, Rotate: 30 * 24 * time.Hour}, nil, nil); err != nil {
		h.t.Fatal(err)
	}
	h.serve(clients(), subjects())
}

// reopen is a restart without a stop: everything that was not on the disk is
// gone.
func (h *house) reopen() {
	h.t.Helper()
	if err := h.local.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
}

func (h *house) serve(cl []Client, sub []Subject, tune ...func(c *Config)) {
	h.t.Helper()
	cfg := Config{
		Issuer: issuer, Name: "own", Lifetime: 5 * time.Minute, Clients: cl, Subjects: sub, State: h.state,
		Hash: func(a, b string) string {
			sum := sha256.Sum256([]byte(a + "|" + b))
			return b64.EncodeToString(sum[:8])
		},
		Alert: func(_ context.Context, client, request string) error {
			h.book.mu.Lock()
			defer h.book.mu.Unlock()
			h.alerts = append(h.alerts, client+" "+request)
			return nil
		},
	}
	for _, f := range tune {
		f(&cfg)
	}
	var err error
	if h.svc, err = New(cfg); err != nil {
		h.t.Fatal(err)
	}
	var routes []*gate.Route
	for _, e := range h.svc.Endpoints() {
		routes = append(routes, &gate.Route{
			Name: e.Name, Path: e.Path, Methods: []string{e.Method}, Public: true, Responder: e.Respond, Kind: record.KindToken,
			MaxBody: e.MaxBody, Limits: h.limits,
		})
	}
	snap, err := gate.NewSnapshot(gate.SnapshotConfig{
		ID: "00112233445566778899aabbccddeeff", Node: "gate-1", Listeners: []gate.Listener{{Name: "public"}}, Routes: routes, Recorder: h.book,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.gate, err = gate.New(gate.Config{
		NewID: func(time.Time) (id record.ID) {
			binary.BigEndian.PutUint64(id[8:], h.ids.Add(1))
			id[6], id[8] = 0x70, id[8]&0x3f|0x80
			return id
		},
		Limiter: ratelimit.NewTable(ratelimit.Config{}),
	}, snap)
	if err != nil {
		h.t.Fatal(err)
	}
}

// wire is one exchange without a network.
type wire struct {
	req    canon.Request
	body   io.Reader
	status int
	fields []canon.Field
	out    bytes.Buffer
	done   bool
}

func (w *wire) Listener() string                 { return "public" }
func (w *wire) Request() *canon.Request          { return &w.req }
func (w *wire) Refusal() *canon.Error            { return nil }
func (w *wire) Body() io.Reader                  { return w.body }
func (w *wire) Interim(int, []canon.Field) error { return nil }
func (w *wire) Head(status int, fields []canon.Field, _ int64) error {
	w.status, w.fields = status, fields
	return nil
}
func (w *wire) Write(p []byte) (int, error)         { return w.out.Write(p) }
func (w *wire) Flush() error                        { return nil }
func (w *wire) Finish([]canon.Field) error          { w.done = true; return nil }
func (w *wire) Abort()                              {}
func (w *wire) Tunnel() (io.ReadWriteCloser, error) { return nil, io.ErrClosedPipe }

// reply is what came of an exchange.
type reply struct {
	status int
	fields map[string]string
	raw    string
	rec    record.Record

	AccessToken  string `json:"access_token"`
	IssuedType   string `json:"issued_token_type"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
	RefreshToken string `json:"refresh_token"`
	Scope        string `json:"scope"`
	Error        string `json:"error"`
	Active       bool   `json:"active"`
}

const formType = "application/x-www-form-urlencoded"

// send takes one request through the gate. Fields come in pairs.
func (h *house) send(method, path, body string, tls *canon.TLS, fields ...string) *reply {
	h.t.Helper()
	w := &wire{body: strings.NewReader(body), req: canon.Request{
		Method: method, Scheme: "https", Host: "auth.example.com", Authority: "auth.example.com", Proto: "HTTP/2",
		ContentLength: int64(len(body)), Remote: netip.MustParseAddrPort("192.0.2.1:40000"), TLS: tls,
	}}
	w.req.Path, w.req.Query, w.req.HasQuery = strings.Cut(path, "?")
	return h.finish(w, fields)
}

func (h *house) finish(w *wire, fields []string) *reply {
	h.t.Helper()
	w.req.Segments = strings.Split(w.req.Path[1:], "/")
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] != "" {
			w.req.Fields = append(w.req.Fields, canon.Field{Name: fields[i], Value: fields[i+1]})
		}
	}
	h.gate.Serve(context.Background(), w)
	if !w.done {
		h.t.Errorf("the exchange was not finished (status %d)", w.status)
	}
	r := &reply{status: w.status, raw: w.out.String(), fields: map[string]string{}}
	for _, f := range w.fields {
		r.fields[f.Name] = f.Value
	}
	if strings.HasPrefix(r.raw, "{") {
		if err := json.Unmarshal(w.out.Bytes(), r); err != nil {
			h.t.Errorf("answer %q: %v", r.raw, err)
		}
	}
	id := r.fields["x-request-id"]
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	n := 0
	for i := range h.book.recs {
		if h.book.recs[i].ID.String() == id {
			r.rec = h.book.recs[i]
			n++
		}
	}
	if n != 1 || r.rec.Kind != record.KindToken && r.status != 405 || r.rec.Status != r.status {
		h.t.Errorf("%d records of request %s: %+v", n, id, r.rec)
	}
	return r
}

func basic(id, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
}

// as posts a form as a client with a secret in the Authorization field.
func (h *house) as(client, path string, pairs ...string) *reply {
	h.t.Helper()
	return h.send("POST", path, encode(pairs...), nil, "content-type", formType, "authorization", basic(client, secret))
}

func encode(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(pairs[i]) + "=" + url.QueryEscape(pairs[i+1]))
	}
	return b.String()
}

// claimsOf reads an access token of ours.
func (h *house) claimsOf(raw string) *claims {
	h.t.Helper()
	payload, ok := h.state.keys.Load().open(raw)
	if !ok {
		h.t.Fatalf("not a token of the service: %q", raw)
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		h.t.Fatal(err)
	}
	return &c
}
