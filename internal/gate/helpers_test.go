package gate

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

// bookError is an error of the book as the gate meets it.
type bookError string

func (e bookError) Error() string  { return "book: " + string(e) }
func (e bookError) Reason() string { return string(e) }

// committed is one call of Commit.
type committed struct {
	ref record.Ref
	rec record.Record
	lvl record.Level
	err error
}

// fakeBook is a Recorder that keeps everything in memory and can fail, before
// or after keeping, or wait.
type fakeBook struct {
	openErr   error
	commitErr error
	keepFirst bool          // a failing Commit has kept the record all the same
	hold      chan struct{} // if not nil, Commit waits until it is closed
	entered   chan struct{} // gets a value when Commit begins to wait

	mu      sync.Mutex
	opens   []record.Record // mu
	commits []committed     // mu
	done    chan committed  // one for each Commit, in order
}

func newFakeBook() *fakeBook {
	return &fakeBook{done: make(chan committed, 256), entered: make(chan struct{}, 256)}
}

func (b *fakeBook) Open(ctx context.Context, r *record.Record, l record.Level) (record.Ref, error) {
	if ctx.Err() != nil || ctx.Done() != nil {
		return record.Ref{}, errors.New("open with a context that a client can end")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.openErr != nil {
		return record.Ref{}, b.openErr
	}
	b.opens = append(b.opens, *r)
	return r.ID, nil
}

func (b *fakeBook) Commit(ctx context.Context, ref record.Ref, r *record.Record, l record.Level) error {
	if b.hold != nil {
		b.entered <- struct{}{}
		<-b.hold
	}
	c := committed{ref: ref, rec: *r, lvl: l, err: b.commitErr}
	if ctx.Done() != nil {
		c.err = errors.New("commit with a context that a client can end")
	}
	b.mu.Lock()
	if c.err == nil || b.keepFirst {
		b.commits = append(b.commits, c)
	}
	b.mu.Unlock()
	b.done <- c
	return c.err
}

func (b *fakeBook) opened() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.opens)
}

// fakeAuth is an Authenticator made of a function.
type fakeAuth func(r *canon.Request) (*authn.Principal, error)

func (f fakeAuth) Authenticate(_ context.Context, r *canon.Request) (*authn.Principal, error) {
	return f(r)
}
func (fakeAuth) Method() string { return "fake" }

// tokenAuth takes "Bearer good" and fails what else is a bearer token.
var tokenAuth = fakeAuth(func(r *canon.Request) (*authn.Principal, error) {
	v, n := r.Get("authorization")
	token, bearer := strings.CutPrefix(v, "Bearer ")
	switch {
	case n == 0 || !bearer:
		return nil, authn.ErrNoCredential
	case token == "good":
		return alice, nil
	default:
		return nil, &authn.Failure{Reason: reason.TokenExpired, Claimed: "mallory", Issuer: "corp", KID: "k1", Alg: "ES256"}
	}
})

// keyAuth takes the API key "key".
var keyAuth = fakeAuth(func(r *canon.Request) (*authn.Principal, error) {
	v, n := r.Get("x-api-key")
	switch {
	case n == 0:
		return nil, authn.ErrNoCredential
	case v == "key":
		return &authn.Principal{Method: "apikey", Issuer: "keys", Subject: "robot"}, nil
	default:
		return nil, &authn.Failure{Reason: reason.KeyUnknown}
	}
})

var alice = &authn.Principal{
	Method: "jwt", Issuer: "corp", Subject: "alice", Client: "web", Roles: []string{"clerk", "auditor"}, Scopes: []string{"read"},
	KID: "k1", Alg: "ES256", TokenID: "t-1", ACR: "silver", AMR: []string{"pwd"},
	IssuedAt: epoch.Add(-time.Minute), Expires: epoch.Add(time.Hour), AuthTime: epoch.Add(-time.Hour),
	Name: "Alice A.", Email: "alice@example.com", Tenant: "t1", Claims: map[string]string{"dept": "sales", "secret": "x"},
}

var epoch = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// policy is an Authorizer made of a function.
type policy func(r *authz.Request) authz.Decision

func (f policy) Decide(r *authz.Request) authz.Decision { return f(r) }

var allowedBy = []string{"p1"}

var allowAll = policy(func(*authz.Request) authz.Decision {
	return authz.Decision{Allow: true, Policies: allowedBy, Set: "set0"}
})

// backend is an Upstream made of a function.
type backend func(ctx context.Context, r *upstream.Request) (*upstream.Response, error)

func (f backend) RoundTrip(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	return f(ctx, r)
}

// pieces is a response body that comes in pieces and ends with an error.
type pieces struct {
	parts []string
	end   error
	shut  atomic.Bool
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.parts) == 0 {
		return 0, p.end
	}
	n := copy(b, p.parts[0])
	if p.parts[0] = p.parts[0][n:]; p.parts[0] == "" {
		p.parts = p.parts[1:]
	}
	return n, nil
}

func (p *pieces) Close() error { p.shut.Store(true); return nil }

// answers is a backend that reads the whole request and answers with text.
func answers(status int, length int64, fields []canon.Field, parts ...string) backend {
	return func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
		if r.Body != nil {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return nil, err
			}
		}
		if r.Method == http.MethodHead {
			return response(status, length, fields, io.EOF), nil
		}
		return response(status, length, fields, io.EOF, parts...), nil
	}
}

func response(status int, length int64, fields []canon.Field, end error, parts ...string) *upstream.Response {
	return &upstream.Response{
		Status: status, Length: length, Fields: slices.Clone(fields),
		Body: &pieces{parts: slices.Clone(parts), end: end}, Target: "10.0.0.5:80", Attempts: 1, TTFB: time.Millisecond,
	}
}

// house is a gate on real listeners with fakes behind it.
type house struct {
	t      *testing.T
	book   *fakeBook
	gate   *Gate
	server *httptest.Server
	routes []*Route
	h1, h2 *http.Client
}

type houseConfig struct {
	book   *fakeBook
	up     Upstream
	tune   func(r *Route)          // changes the one route
	snap   func(s *SnapshotConfig) // changes the rest
	engine HTTPConfig
}

// counter makes ids that are valid UUIDs and never repeat.
func counter() func(time.Time) record.ID {
	var n atomic.Uint64
	return func(time.Time) record.ID {
		var id record.ID
		binary.BigEndian.PutUint64(id[8:], n.Add(1))
		id[6], id[8] = 0x70, id[8]&0x3f|0x80
		return id
	}
}

func newHouse(t *testing.T, c houseConfig) *house {
	t.Helper()
	if c.book == nil {
		c.book = newFakeBook()
	}
	if c.up == nil {
		c.up = answers(200, 5, nil, "hello")
	}
	r := &Route{
		Name: "orders", Path: "/v1/orders/{id}", Methods: []string{"GET", "POST", "PUT"}, Authenticators: []Authenticator{tokenAuth},
		Engine: allowAll, Upstream: c.up, UpstreamName: "orders",
	}
	if c.tune != nil {
		c.tune(r)
	}
	sc := SnapshotConfig{ID: "00112233445566778899aabbccddeeff", Node: "gate-1", Listeners: []Listener{{Name: "public"}}, Routes: []*Route{r}, Recorder: c.book}
	if c.snap != nil {
		c.snap(&sc)
	}
	snap, err := NewSnapshot(sc)
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{
		NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{Start: epoch}), Now: func() time.Time { return epoch },
		TokenHash: func(issuer, id string) string { return "hash:" + issuer + ":" + id },
	}, snap)
	if err != nil {
		t.Fatal(err)
	}
	c.engine.Listener, c.engine.TLS = "public", true
	h := &house{t: t, book: c.book, gate: g, routes: sc.Routes}
	h.server = httptest.NewUnstartedServer(NewHTTPEngine(g, c.engine))
	h.server.EnableHTTP2 = true
	h.server.StartTLS()
	t.Cleanup(h.server.Close)
	h.h1, h.h2 = h.client("http/1.1"), h.client("h2")
	return h
}

func (h *house) tlsConfig(alpn string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(h.server.Certificate())
	return &tls.Config{RootCAs: pool, ServerName: "example.com", NextProtos: []string{alpn}, MinVersion: tls.VersionTLS12}
}

func (h *house) client(alpn string) *http.Client {
	tr := &http.Transport{TLSClientConfig: h.tlsConfig(alpn), ForceAttemptHTTP2: alpn == "h2", DisableCompression: true, ExpectContinueTimeout: time.Hour}
	if alpn != "h2" {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	h.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// both runs a test over each protocol.
func (h *house) both(f func(t *testing.T, c *http.Client, proto string)) {
	h.t.Helper()
	h.t.Run("h1", func(t *testing.T) { f(t, h.h1, "HTTP/1.1") })
	h.t.Run("h2", func(t *testing.T) { f(t, h.h2, "HTTP/2") })
}

// dial opens a raw HTTP/1.1 connection.
func (h *house) dial(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := tls.Dial("tcp", h.server.Listener.Addr().String(), h.tlsConfig("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, bufio.NewReader(c)
}

// request makes a request with alice's token.
func (h *house) request(t *testing.T, method, path string, body io.Reader, fields ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, h.server.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer good")
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] == "" {
			r.Header.Del(fields[i])
			continue
		}
		r.Header[http.CanonicalHeaderKey(fields[i])] = []string{fields[i+1]}
	}
	return r
}

// do sends a request and reads the whole answer.
func do(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string, error) {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// one returns the record of the one exchange so far and checks that there is
// no other.
func (h *house) one(t *testing.T) committed {
	t.Helper()
	c := <-h.book.done
	select {
	case more := <-h.book.done:
		t.Fatalf("a second record: %+v", more.rec.Error)
	default:
	}
	return c
}

// The real parts fit.
var (
	_ Authenticator = (*authn.JWT)(nil)
	_ Authorizer    = (*authz.Engine)(nil)
	_ Limiter       = (*ratelimit.Table)(nil)
	_ Upstream      = (*upstream.Pool)(nil)
	_ http.Handler  = (*HTTPEngine)(nil)
	_ Exchange      = (*httpExchange)(nil)
)

var loopback = netip.MustParseAddr("127.0.0.1")
