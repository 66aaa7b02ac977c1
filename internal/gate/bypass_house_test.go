package gate

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// bypassHouse is a gate with everything real but the book: listeners, tokens,
// policies, limits, connections to an upstream. Its routes are the scenery of
// the published bypasses: something public beside something that only root may
// have.
type bypassHouse struct {
	t        *testing.T
	book     *fakeBook
	gate     *Gate
	h1, h2   string // addresses, in the clear
	env      *jwtattack.Env
	upstream *watchedUpstream
	policies string
	cache    *authn.Cache
}

// watchedUpstream remembers what reached it.
type watchedUpstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen []forwarded // under mu
}

// forwarded is a request as the upstream saw it.
type forwarded struct {
	method, target, host, body string
	header                     http.Header
}

func newWatchedUpstream(t *testing.T) *watchedUpstream {
	u := &watchedUpstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		u.mu.Lock()
		u.seen = append(u.seen, forwarded{r.Method, r.RequestURI, r.Host, string(b), r.Header.Clone()})
		u.mu.Unlock()
		io.WriteString(w, "treasure")
	}))
	t.Cleanup(u.Close)
	return u
}

// take returns what was seen since the last call.
func (u *watchedUpstream) take() []forwarded {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.seen
	u.seen = nil
	return out
}

// bypassRoutes is the scenery. "clerk" may use what is private, only "root"
// what is an admin's.
var bypassRoutes = []struct {
	name, host, path string
	methods          []string
	public           bool
	forms            canon.PathForms
	scopes           []string
	limit            string // key of a limit of two
	max              int64
}{
	{name: "health", path: "/healthz", methods: []string{"GET"}, public: true},
	{name: "public", path: "/public/{rest...}", public: true},
	{name: "loose", path: "/loose/{rest...}", public: true, forms: allForms},
	{name: "private", path: "/private/{rest...}"},
	{name: "admin", path: "/admin/{rest...}"},
	{name: "admin.root", path: "/admin"},
	{name: "loose.admin", path: "/loose/admin/{rest...}"},
	{name: "vault.guarded", host: "a.b.example.com", path: "/vault/{rest...}"},
	{name: "vault.open", path: "/vault/{rest...}", public: true},
	{name: "template", path: "/v1/users/{id}/secrets", methods: []string{"GET"}},
	{name: "scoped", path: "/scoped", scopes: []string{"admin:all"}},
	{name: "upload", path: "/upload", methods: []string{"POST"}, public: true, max: 16},
	{name: "by.prefix", path: "/limited/prefix", public: true, limit: ratelimit.KeyPrefix},
	{name: "by.subject", path: "/limited/subject", limit: ratelimit.KeySubject},
}

func newBypassHouse(t *testing.T) *bypassHouse {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	h := &bypassHouse{t: t, env: env, book: newFakeBook(), upstream: newWatchedUpstream(t), policies: t.TempDir(), cache: authn.NewCache(0)}
	jwks := filepath.Join(h.policies, "jwks.json")
	h.write(jwks, string(env.JWKS))
	h.write(filepath.Join(h.policies, "blocked.cedar"), `
@id("blocked")
forbid (principal in Role::"blocked", action, resource);
@id("frozen")
forbid (principal, action, resource) when { context.path like "*/frozen*" };
@id("public")
permit (principal, action, resource) when { resource in RouteGroup::"public" };
`)
	pool, err := upstream.NewPool(upstream.Config{Name: "app", Targets: []string{h.upstream.URL}, PreserveHost: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	snap, err := NewSnapshot(SnapshotConfig{
		ID: "00112233445566778899aabbccddeeff", Node: "gate-1", Listeners: []Listener{{Name: "public"}},
		Routes: h.routes(pool, h.issuer(jwtattack.Issuer, jwks)), Recorder: h.book,
	})
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return jwtattack.Now }
	h.gate, err = New(Config{NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{Start: jwtattack.Now}), Now: now}, snap)
	if err != nil {
		t.Fatal(err)
	}
	h.listen()
	return h
}

func (h *bypassHouse) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// issuer is one that shares the house's cache with others.
func (h *bypassHouse) issuer(iss, jwks string) *authn.JWT {
	h.t.Helper()
	j, err := authn.NewJWT(authn.JWTConfig{
		Name: "corp", Issuer: iss, Audiences: []string{jwtattack.Audience}, Algorithms: jwtattack.Algorithms, RolesClaim: jwtattack.RolesClaim,
		Keys: authn.KeySource{File: jwks}, Cache: h.cache, Now: func() time.Time { return jwtattack.Now },
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return j
}

func (h *bypassHouse) routes(up Upstream, auth Authenticator) []*Route {
	h.t.Helper()
	c := authz.Config{Dir: h.policies, Roles: map[string]authz.Role{
		"clerk": {Allow: []string{"private", "template", "scoped", "by.subject"}},
		"root":  {Allow: []string{"*"}},
	}}
	var out []*Route
	for _, r := range bypassRoutes {
		c.Routes = append(c.Routes, authz.Route{Name: r.name, Methods: r.methods, Template: r.path, Anonymous: r.public})
		route := &Route{
			Name: r.name, Host: r.host, Path: r.path, Methods: r.methods, Public: r.public, Scopes: r.scopes, MaxBody: r.max, Forms: r.forms,
			Upstream: up, UpstreamName: "app", CredentialFields: []string{"x-api-key"},
		}
		if !r.public {
			route.Authenticators = []Authenticator{auth}
		}
		if r.limit != "" {
			route.Limits = []*ratelimit.Rule{{Name: "two", Key: r.limit, Rate: 1, Per: time.Hour, Burst: 2}}
		}
		out = append(out, route)
	}
	engine, err := authz.Load(c)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range out {
		if !r.Public {
			r.Engine = engine
		}
	}
	return out
}

// listen opens a listener for each protocol, both behind the gate's own
// readers.
func (h *bypassHouse) listen() {
	h.t.Helper()
	engine := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public"})
	for _, two := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			h.t.Fatal(err)
		}
		srv := &http.Server{
			Handler: engine, ConnContext: ConnContext, ReadHeaderTimeout: time.Minute, MaxHeaderBytes: 48 << 10, DisableGeneralOptionsHandler: true, Protocols: new(http.Protocols),
		}
		srv.Protocols.SetHTTP1(!two)
		srv.Protocols.SetUnencryptedHTTP2(two)
		if two {
			h.h2 = l.Addr().String()
		} else {
			h.h1 = l.Addr().String()
		}
		ended := make(chan error, 1)
		go func() { ended <- srv.Serve(&bypassListener{l, engine, two}) }()
		h.t.Cleanup(func() {
			srv.Close()
			if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
				h.t.Error(err)
			}
		})
	}
}

// bypassListener does what the accept loop does.
type bypassListener struct {
	net.Listener
	e   *HTTPEngine
	two bool
}

func (l *bypassListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	f := &ConnFacts{Listener: "public", Remote: netip.MustParseAddrPort(c.RemoteAddr().String()), Start: jwtattack.Now}
	if l.two {
		return l.e.H2Conn(c, f), nil
	}
	return l.e.H1Conn(c, f), nil
}

// token is a genuine token of a subject with roles.
func (h *bypassHouse) token(sub string, roles ...string) string {
	return h.tokenWith(sub, roles, func(o jwtattack.Object) jwtattack.Object { return o })
}

func (h *bypassHouse) tokenWith(sub string, roles []string, change func(jwtattack.Object) jwtattack.Object) string {
	c := jwtattack.Claims().Set("sub", fmt.Sprintf("%q", sub)).Set("roles", `["`+strings.Join(roles, `","`)+`"]`).Set("jti", fmt.Sprintf("%q", sub+strings.Join(roles, "-")))
	return h.env.Token("ES256", jwtattack.Header("ES256"), change(c))
}

// outcome is what came of one attempt.
type outcome struct {
	status  int // 0: no answer
	text    string
	header  http.Header
	records []record.Record
	seen    []forwarded
}

// reason is that of the only record.
func (o *outcome) reason() string {
	if len(o.records) != 1 {
		return fmt.Sprintf("(%d records)", len(o.records))
	}
	return o.records[0].Error.Reason
}

// fire sends bytes over a new HTTP/1 connection, reads one answer, closes, and
// waits for the record.
func (h *bypassHouse) fire(raw string) outcome {
	h.t.Helper()
	c, err := net.Dial("tcp", h.h1)
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	if _, err := io.WriteString(c, raw); err != nil {
		h.t.Fatal(err)
	}
	var o outcome
	method, _, _ := strings.Cut(raw, " ")
	if resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method}); err == nil {
		b, _ := io.ReadAll(resp.Body)
		o.status, o.text, o.header = resp.StatusCode, string(b), resp.Header
	}
	h.settle(&o)
	return o
}

// settle waits for the one record that an attempt must leave.
func (h *bypassHouse) settle(o *outcome) {
	h.t.Helper()
	select {
	case c := <-h.book.done:
		o.records = append(o.records, c.rec)
	case <-time.After(time.Minute):
	}
	for {
		select {
		case c := <-h.book.done:
			o.records = append(o.records, c.rec)
			continue
		default:
		}
		break
	}
	o.seen = h.upstream.take()
}

// fire2 sends one request over a new HTTP/2 connection, with the fields as they
// are, pseudo-fields included, and waits for its record and its end.
func (h *bypassHouse) fire2(fields ...string) outcome {
	h.t.Helper()
	c, err := net.Dial("tcp", h.h2)
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	var block []byte
	for i := 0; i+1 < len(fields); i += 2 {
		block = append(block, 0) // literal without indexing, new name (RFC 7541 section 6.2.2)
		for _, s := range fields[i : i+2] {
			block = appendHPACKString(block, s)
		}
	}
	out := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	out = appendFrame(out, 4, 0, 0, nil)
	out = appendFrame(out, 1, 5, 1, block) // END_STREAM, END_HEADERS
	if _, err := c.Write(out); err != nil {
		h.t.Fatal(err)
	}
	var o outcome
	h.readFrames(c, &o)
	h.settle(&o)
	return o
}

func appendHPACKString(b []byte, s string) []byte {
	if len(s) < 127 {
		return append(append(b, byte(len(s))), s...)
	}
	b = append(b, 127)
	n := len(s) - 127
	for ; n >= 128; n >>= 7 {
		b = append(b, byte(n&127|128))
	}
	return append(append(b, byte(n)), s...)
}

func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// readFrames reads until the stream or the connection has ended. The status is
// that in the text of an answer of the gate, or 200 if the upstream answered.
func (h *bypassHouse) readFrames(c net.Conn, o *outcome) {
	defer func() {
		var problem struct{ Status int }
		switch {
		case o.text == "treasure":
			o.status = 200
		case json.Unmarshal([]byte(o.text), &problem) == nil:
			o.status = problem.Status
		}
	}()
	var head [9]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, payload); err != nil {
			return
		}
		kind, flags := head[3], head[4]
		if kind == 0 {
			o.text += string(payload)
		}
		if kind == 3 || kind == 7 || kind <= 1 && flags&1 != 0 { // RST_STREAM, GOAWAY, END_STREAM
			return
		}
	}
}

// requestWith is a canonical request with one field.
func requestWith(name, value string) *canon.Request {
	return &canon.Request{Method: "GET", Scheme: "http", Host: "localhost", Path: "/", Proto: "HTTP/1.1", Fields: []canon.Field{{Name: name, Value: value}}}
}
