package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// world is one gate with a way to bring about every event, and what is around
// it.
type world struct {
	*site
	env     *jwtattack.Env
	mesh    string // its listener without TLS
	door    string // its listener that only redirects
	health  string
	hello   string            // a ClientHello
	keys    map[string]string // API keys that are not taken, by why
	arrived chan string       // ids of requests that the service keeps waiting
	release chan struct{}
}

// Networks of what belongs to no event: a request that the end of the process
// cuts off, and one that keeps a stop waiting.
const diedNetwork, heldNetwork = 1, 2

func (w *world) network(n byte) string { return fmt.Sprintf("127.62.%d.0/24", n) }

func newWorld(t *testing.T) *world {
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{env: env, mesh: freeAddr(t), door: freeAddr(t), health: freeAddr(t), arrived: make(chan string, 256), release: make(chan struct{})}
	service := httptest.NewServer(http.HandlerFunc(w.service))
	t.Cleanup(service.Close)
	t.Cleanup(service.CloseClientConnections)
	tokens := newTokenServer(t, jwtattack.Audience)
	w.site = newSite(t, service.URL)
	w.write("introspect.secret", tokenServerSecret+"\n")
	w.write("jwks.json", string(env.JWKS))
	w.write("policies/open.cedar", `
@id("open")
permit (principal, action, resource) unless { resource == Route::"unlisted" };
@id("closed")
forbid (principal, action, resource == Route::"closed");
@id("sum")
forbid (principal, action, resource == Route::"sum") when { 9223372036854775807 + 1 > 0 };
`)
	w.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
  - {name: mesh, address: %q, plaintext: behind_proxy, trusted: ["127.200.0.0/16"]}
  - {name: door, address: %q, redirect_to_https: true}
health: {address: %q}
issuers:
  - {name: corp, issuer: %q, audiences: [%q, other], algorithms: [ES256], jwks: {file: jwks.json}}
  - {name: away, issuer: "https://away.example", audiences: [%q], algorithms: [ES256], jwks: {url: "http://127.0.0.1:1/keys"}}
  - {name: asked, issuer: "https://asked.example", audiences: [%q], introspection: {url: %q, client_id: gate, client_secret: {file: introspect.secret}}}
  - {name: mute, issuer: "https://mute.example", audiences: [%q], introspection: {url: "http://127.0.0.1:1/introspect", client_id: gate, client_secret: {file: introspect.secret}}}
upstreams:
  app: {targets: [%q]}
  gone: {targets: ["http://%s"], ejection: {failures: 0}}
  hasty: {targets: [%q], timeouts: {response: 50ms}, ejection: {failures: 0}}
routes:
  - {name: open, path: "/open/{rest...}", methods: [GET, POST], upstream: app, public: true, max_body: 1KiB}
  - {name: guarded, path: "/guarded/{rest...}", upstream: app, authn: [{jwt: corp}]}
  - {name: keyed, path: "/keyed/{rest...}", upstream: app, authn: [{apikey: {}}]}
  - {name: foreign, path: "/foreign/{rest...}", upstream: app, authn: [{jwt: away}]}
  - {name: asked, path: "/asked/{rest...}", upstream: app, authn: [{jwt: corp}, {introspect: asked}], resource: "http://localhost/asked"}
  - {name: mute, path: "/mute/{rest...}", upstream: app, authn: [{introspect: mute}]}
  - {name: young, path: "/young", upstream: app, authn: [{jwt: corp}], token_max_age: 1m}
  - {name: careful, path: "/careful", upstream: app, authn: [{jwt: corp}], acr: [gold, "urn:silver"], max_age: 5m}
  - {name: audience, path: "/audience", upstream: app, authn: [{jwt: corp}, {introspect: asked}], audiences: [other]}
  - {name: limited, path: "/limited/{rest...}", upstream: app, public: true, limits: [tight]}
  - {name: unlisted, path: "/unlisted", upstream: app, public: true}
  - {name: closed, path: "/closed", upstream: app, authn: [{jwt: corp}]}
  - {name: sum, path: "/sum", upstream: app, authn: [{jwt: corp}]}
  - {name: scoped, path: "/scoped", upstream: app, authn: [{jwt: corp}], scopes: ["admin:all"]}
  - {name: gone, path: "/gone", upstream: gone, public: true}
  - {name: hasty, path: "/hasty/{rest...}", upstream: hasty, public: true}
limits:
  tight: {key: prefix, rate: 1/h, burst: 1}
policies: {dir: policies}
detect: {failed_logins: {action: count}}
`, w.addr, w.mesh, w.door, w.health, jwtattack.Issuer, jwtattack.Audience, jwtattack.Audience,
		jwtattack.Audience, tokens.URL, jwtattack.Audience, service.URL, freeAddr(t), service.URL))
	w.run(0, "check", w.dir+"/gatebook.yaml")
	w.hello = clientHello(t)
	w.keys = map[string]string{"unknown": "gbk_" + strings.Repeat("0", 43)}
	w.keys["unknown"] += crcOf(w.keys["unknown"])
	for name, act := range map[string][]string{"replaced": {"rotate", "--overlap", "0s"}, "revoked": {"revoke"}} {
		id, key := w.newKey("--owner", "o")
		w.command(0, append([]string{"apikey", act[0], id}, act[1:]...)...)
		w.keys[name] = key
	}
	return w
}

// service is behind the gate.
func (w *world) service(out http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/missing"):
		out.WriteHeader(http.StatusNotFound)
		return
	case strings.HasSuffix(r.URL.Path, "/reset"):
		panic(http.ErrAbortHandler)
	case strings.HasSuffix(r.URL.Path, "/hang"):
		w.arrived <- r.Header.Get("X-Gatebook-Request-Id")
		fallthrough
	case strings.HasSuffix(r.URL.Path, "/hold"):
		select {
		case <-w.release:
		case <-r.Context().Done():
			return
		}
	}
	fmt.Fprintln(out, "hello")
}

// clientHello is what a client of TLS begins with.
func clientHello(t *testing.T) string {
	t.Helper()
	mine, theirs := net.Pipe()
	defer mine.Close()
	go func() {
		c := tls.Client(theirs, &tls.Config{ServerName: "localhost"})
		_ = c.Handshake() // it gets no answer
		c.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(mine, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(mine, body); err != nil {
		t.Fatal(err)
	}
	return string(head) + string(body)
}

// visits are those of all events, each from a network of its own.
func (w *world) visits() (out []*visit) {
	table := eventTable()
	for i := range table {
		e := &table[i]
		out = append(out, &visit{w: w, e: e, n: 1, from: net.IPv4(127, 60, byte(i), 1).To4()})
		if e.fold || e.often {
			out = append(out, &visit{w: w, e: e, n: burst, from: net.IPv4(127, 61, byte(i), 1).To4()})
		}
	}
	return out
}

// reply is what a client got.
type reply struct {
	status int // 0: nothing
	header http.Header
	body   string
	closed bool // the gate has ended the connection
}

func (r reply) id() string { return r.header.Get("X-Request-Id") }

// dial opens a connection from the visitor's network. It is closed with the
// visit.
func (v *visit) dial(addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: v.from}, Timeout: time.Minute}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.conns = append(v.conns, c)
	return c, c.SetDeadline(time.Now().Add(time.Minute))
}

// secure opens a connection with TLS.
func (v *visit) secure(protocol string) (*tls.Conn, error) {
	raw, err := v.dial(v.w.addr)
	if err != nil {
		return nil, err
	}
	conf := v.w.tls()
	conf.NextProtos = []string{protocol}
	c := tls.Client(raw, conf)
	return c, c.Handshake()
}

// ask sends text in the clear and takes the answer.
func (v *visit) ask(addr, text string) (reply, error) {
	c, err := v.dial(addr)
	if err != nil {
		return reply{}, err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return reply{}, err
	}
	return answer(c)
}

// answer reads one answer, and the end of the connection if that is announced.
func answer(c net.Conn) (reply, error) {
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, err
	}
	r := reply{status: resp.StatusCode, header: resp.Header, body: string(b)}
	if resp.Close {
		if _, err := in.ReadByte(); err != io.EOF {
			return r, fmt.Errorf("after Connection: close: %w", err)
		}
		r.closed = true
	}
	return r, nil
}

// ended waits for the gate to hang up without an answer. An alert of TLS is
// none.
func ended(c net.Conn) (reply, error) {
	b, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return reply{}, errors.New("the gate does not end the connection")
	}
	r := reply{closed: true}
	if len(b) > 0 && b[0] != 0x15 && b[0] != 0x16 {
		r.body = string(b)
		r.status = -1
	}
	return r, nil
}

// asks is an event that a request in the clear brings about.
func asks(request string) func(*visit) (reply, error) {
	return func(v *visit) (reply, error) { return v.ask(v.w.mesh, request) }
}

// overH2 is an event that a GET over HTTP/2 brings about. Fields are names and
// values in turns.
func overH2(path string, fields ...string) func(*visit) (reply, error) {
	return func(v *visit) (reply, error) {
		tr := &http.Transport{
			TLSClientConfig: v.w.tls(), ForceAttemptHTTP2: true,
			DialContext: func(_ context.Context, _, addr string) (net.Conn, error) { return v.dial(addr) },
		}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequest("GET", "https://"+v.w.addr+path, nil)
		if err != nil {
			return reply{}, err
		}
		for i := 0; i < len(fields); i += 2 {
			req.Header.Set(fields[i], fields[i+1])
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return reply{}, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.ProtoMajor != 2 {
			err = errors.New(resp.Proto)
		}
		return reply{status: resp.StatusCode, header: resp.Header, body: string(b)}, err
	}
}

// get is a request; more are further lines of its head.
func get(path string, more ...string) string { return request("GET", path, "", more...) }

func request(method, path, body string, more ...string) string {
	lines := append([]string{method + " " + path + " HTTP/1.1", "Host: localhost"}, more...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n" + body
}

// with is a guarded request with a genuine token of now, changed.
func with(path string, change func(header, claims jwtattack.Object) (h, c jwtattack.Object)) func(*visit) (reply, error) {
	return func(v *visit) (reply, error) {
		return v.ask(v.w.mesh, get(path, "Authorization: Bearer "+v.w.bearer(change)))
	}
}

func (w *world) bearer(change func(header, claims jwtattack.Object) (h, c jwtattack.Object)) string {
	now := time.Now().Unix()
	h := jwtattack.Header("ES256")
	c := jwtattack.Claims().Set("iat", fmt.Sprint(now-5)).Set("exp", fmt.Sprint(now+300)).Set("sub", `"ann"`)
	if change != nil {
		h, c = change(h, c)
	}
	alg := "ES256"
	if strings.Contains(h.Get("alg"), "ES384") {
		alg = "ES384"
	}
	return w.env.Token(alg, h, c)
}

// claims changes claims only.
func claims(change func(c jwtattack.Object) jwtattack.Object) func(header, claims jwtattack.Object) (h, c jwtattack.Object) {
	return func(h, c jwtattack.Object) (jwtattack.Object, jwtattack.Object) { return h, change(c) }
}

// failsTLS is a handshake that the client spoils.
func failsTLS(change func(*tls.Config)) func(*visit) (reply, error) {
	return func(v *visit) (reply, error) {
		raw, err := v.dial(v.w.addr)
		if err != nil {
			return reply{}, err
		}
		conf := v.w.tls()
		change(conf)
		if err := tls.Client(raw, conf).Handshake(); err == nil {
			return reply{}, errors.New("the handshake succeeds")
		}
		return ended(onlyEnd{raw})
	}
}

// throws sends bytes to the listener with TLS.
func throws(text string) func(*visit) (reply, error) {
	return func(v *visit) (reply, error) {
		c, err := v.dial(v.w.addr)
		if err != nil {
			return reply{}, err
		}
		if _, err := io.WriteString(c, text); err != nil {
			return reply{}, err
		}
		return ended(c)
	}
}

// speaksH2 sends frames and waits for the answer to them: a GOAWAY and the end
// of the connection, or the reset of a stream.
func speaksH2(frames string, last byte) func(*visit) (reply, error) {
	return func(v *visit) (reply, error) {
		c, err := v.openH2(frames)
		if err != nil {
			return reply{}, err
		}
		if _, err := untilH2(c, last, 0); err != nil {
			return reply{}, err
		}
		if last == h2GoAway {
			return ended(onlyEnd{c})
		}
		return reply{}, nil
	}
}

// h2GoAway is the type of the frame that ends a connection.
const h2GoAway = 7

// onlyEnd is a connection of which only the end matters.
type onlyEnd struct{ net.Conn }

func (r onlyEnd) Read(p []byte) (int, error) {
	_, err := r.Conn.Read(p)
	return 0, err
}

func (v *visit) openH2(frames string) (*tls.Conn, error) {
	c, err := v.secure("h2")
	if err != nil {
		return nil, err
	}
	_, err = io.WriteString(c, h2Preface+h2Frame(h2Settings, 0, 0, "")+frames)
	return c, err
}

// untilH2 reads frames to one of a kind, with these flags.
func untilH2(c io.Reader, kind, flags byte) (stream uint32, err error) {
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(c, head); err != nil {
			return 0, fmt.Errorf("no frame of type %d: %w", kind, err)
		}
		n := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
		if _, err := io.CopyN(io.Discard, c, n); err != nil {
			return 0, err
		}
		if head[3] == kind && head[4]&flags == flags {
			return binary.BigEndian.Uint32(head[5:]), nil
		}
	}
}

// goes is a client that leaves after its request has got where it is meant to.
func goes(v *visit) (reply, error) {
	c, err := v.dial(v.w.mesh)
	if err != nil {
		return reply{}, err
	}
	if _, err := io.WriteString(c, get("/open/hang")); err != nil {
		return reply{}, err
	}
	<-v.w.arrived
	return reply{}, c.Close()
}

// dies kills the gate while a request is on its way, and returns its id.
func (w *world) dies() (id string) {
	w.t.Helper()
	v := &visit{w: w, from: net.IPv4(127, 62, diedNetwork, 1).To4()}
	defer v.hangUp()
	c, err := v.dial(w.mesh)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(c, get("/open/hang")); err != nil {
		w.t.Fatal(err)
	}
	id = <-w.arrived
	w.kill()
	if n, err := c.Read(make([]byte, 1)); err == nil {
		w.t.Errorf("%d bytes of an answer from a gate that is dead", n)
	}
	return id
}

// stopWith stops the gate with a request under way, so that it drains for a
// while, and brings about what needs that.
func (w *world) stopWith(last []*visit) {
	w.t.Helper()
	held := &visit{w: w, from: net.IPv4(127, 62, heldNetwork, 1).To4()}
	defer held.hangUp()
	c, err := held.dial(w.mesh)
	if err == nil {
		_, err = io.WriteString(c, get("/open/hang"))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	<-w.arrived
	want := map[string]int{}
	before := w.counters(false)
	for _, v := range last {
		if err := v.e.prepare(v); err != nil {
			w.t.Fatalf("%s: %v", v.e.name, err)
		}
		for k, n := range v.e.counted(v.n) {
			want[k] += n
		}
	}
	open := 1.0
	for _, v := range last {
		open += float64(len(v.waiting))
	}
	until(w.t, "all have been accepted", func() bool { return metric(w.t, w.health, "gatebook_connections_open") == open })
	if err := w.cmd.Process.Signal(os.Interrupt); err != nil {
		w.t.Fatal(err)
	}
	until(w.t, "the gate takes no new connection", func() bool {
		c, err := net.Dial("tcp", w.mesh)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	for _, v := range slices.Backward(last) {
		for i := 0; i < v.n && v.err == nil; i++ {
			var r reply
			r, v.err = v.e.do(v)
			v.answers = append(v.answers, r)
		}
		v.hangUp()
	}
	moved := func() map[string]int {
		now := w.counters(false)
		maps.DeleteFunc(now, func(k string, n int) bool { return n == before[k] })
		for k := range now {
			now[k] -= before[k]
		}
		return now
	}
	until(w.t, "all that the stop refused is counted", func() bool { return sum(moved()) >= sum(want) })
	if got := moved(); !maps.Equal(got, want) {
		w.t.Errorf("stopping: gatebook_records_total moved by %v, want %v", got, want)
	}
	close(w.release)
	if a, err := answer(c); err != nil || a.status != 200 {
		w.t.Errorf("the request under way got %+v, %v", a, err)
	}
	if err := w.cmd.Wait(); err != nil {
		w.t.Errorf("stop: %v\n%s", err, w.stderr)
	}
}
