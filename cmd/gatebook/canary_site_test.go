package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// canaryUpstream answers with planted things, in every part of an answer.
type canaryUpstream struct {
	app  *httptest.Server
	raw  net.Listener
	list []canary
}

func newCanaryUpstream(t *testing.T) *canaryUpstream {
	t.Helper()
	u := &canaryUpstream{list: canaries()}
	u.app = httptest.NewServer(u)
	t.Cleanup(u.app.Close)
	var err error
	if u.raw, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := u.raw.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { u.serveRaw(c) })
		}
	})
	t.Cleanup(func() { u.raw.Close() })
	return u
}

// planted finds the value that the last segment of a path names.
func (u *canaryUpstream) planted(path string) string {
	n, err := strconv.Atoi(path[strings.LastIndexByte(path, '/')+1:])
	if err != nil || n >= len(u.list) {
		return ""
	}
	return u.list[n].value
}

// ServeHTTP implements http.Handler: /open/reply/STATUS/NUMBER answers with the
// value everywhere, anything else with a word.
func (u *canaryUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) < 4 || parts[2] != "reply" {
		io.WriteString(w, "fine\n")
		return
	}
	v := u.planted(r.URL.Path)
	h := w.Header()
	for _, name := range []string{"Set-Cookie", "Location", "Www-Authenticate", "X-Secret", "Warning", "Link", "Server", "Etag", "Content-Disposition", "Content-Location", "Traceparent", "Retry-After", "Authentication-Info"} {
		h.Set(name, v)
	}
	h.Set("Location", "https://app.example/?code="+url.QueryEscape(v))
	h.Set("Trailer", "X-Sum")
	status, err := strconv.Atoi(parts[3])
	if err != nil {
		status = 500
	}
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":%q}`, v)
	h.Set("X-Sum", v)
}

// rawAnswers are answers that are not HTTP, or not as they should be, with %s
// for the value.
var rawAnswers = map[string]string{
	"reason":      "HTTP/1.1 200 %s\r\nContent-Length: 2\r\n\r\nok",
	"field":       "HTTP/1.1 200 OK\r\nBad %s: x\r\nContent-Length: 2\r\n\r\nok",
	"name":        "HTTP/1.1 200 OK\r\n%s\r\n\r\n",
	"length":      "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\nok",
	"coding":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\nok",
	"chunk":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
	"status":      "HTTP/1.1 %s\r\n\r\n",
	"greeting":    "220 %s ESMTP\r\n",
	"interim":     "HTTP/1.1 103 Early Hints\r\nLink: <%s>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
	"unsolicited": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 %[1]s\r\nX-Secret: %[1]s\r\n\r\n%[1]s",
	"short":       "HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n%s",
	"upgrade":     "HTTP/1.1 101 Switching\r\nUpgrade: %s\r\n\r\n%[1]s",
	"trailer":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: %[1]s\r\nBad %[1]s\r\n\r\n",
}

// serveRaw answers /raw/MODE/NUMBER with one of rawAnswers and hangs up.
func (u *canaryUpstream) serveRaw(c net.Conn) {
	defer c.Close()
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) == 4 {
		fmt.Fprintf(c, rawAnswers[parts[2]], u.planted(r.URL.Path))
	}
}

// canarySite is a gate that keeps as much as a configuration can ask for.
type canarySite struct {
	*site
	env          *jwtattack.Env
	mesh, health string

	mu      sync.Mutex
	sent    map[string]planting // under mu; by request id
	answers bytes.Buffer        // under mu; what the gate answered on its own
	turn    int                 // under mu; for client addresses
}

// planting says what one request carried and where that may be kept.
type planting struct {
	canary   canary
	encoding string
	position string
	field    string // those of the personal part; "" for nowhere
}

func newCanarySite(t *testing.T, u *canaryUpstream) *canarySite {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	s := &canarySite{site: newSite(t, u.app.URL), env: env, mesh: freeAddr(t), health: freeAddr(t), sent: map[string]planting{}}
	s.write("jwks.json", string(env.JWKS))
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
  - {name: mesh, address: %q, plaintext: behind_proxy, trusted: ["127.0.0.0/8"]}
health: {address: %q}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256, RS256], roles_claim: /roles, jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q], timeouts: {response: 20s}}
  raw: {targets: ["http://%s"], ejection: {failures: 0}, timeouts: {response: 5s}}
  gone: {targets: ["http://%s"], ejection: {failures: 0}}
routes:
  - {name: open, path: "/open/{rest...}", upstream: app, public: true, max_body: 64KiB, record: {headers: [accept-language, x-order, from]}}
  - {name: relaxed, path: "/relaxed/{rest...}", upstream: app, public: true, path_rules: {allow: [percent], strict: observe}}
  - {name: guarded, path: "/guarded/{rest...}", upstream: app, authn: [{jwt: corp}], record: {headers: [x-order], claims: [department]}}
  - {name: keyed, path: "/keyed/{rest...}", upstream: app, authn: [{jwt: corp}, {apikey: {}}]}
  - {name: raw, path: "/raw/{mode}/{number}", methods: [GET], upstream: raw, public: true}
  - {name: gone, path: "/gone/{rest...}", upstream: gone, public: true}
policies: {dir: policies}
detect: {failed_logins: {action: count}}
redact: {query_keys: {open: [page, note], guarded: [page, note]}}
request_id: {accept_from: trusted}
`, s.addr, s.mesh, s.health, jwtattack.Issuer, jwtattack.Audience, u.app.URL, u.raw.Addr(), freeAddr(t)))
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	return s
}

// firstLine tells when the server serves.
type firstLine struct {
	*output
	up   chan struct{}
	once sync.Once
}

// Write implements io.Writer.
func (f *firstLine) Write(b []byte) (int, error) {
	n, err := f.output.Write(b)
	if strings.Contains(f.String(), `"serving"`) {
		f.once.Do(func() { close(f.up) })
	}
	return n, err
}

// launch is start, with nothing lost of what the process prints last.
func (s *canarySite) launch() {
	s.t.Helper()
	s.stderr = &output{}
	first := &firstLine{output: s.stderr, up: make(chan struct{})}
	s.cmd = exec.Command("gatebook", "serve", "-c", filepath.Join(s.dir, "gatebook.yaml"))
	s.cmd.Stderr = first
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.cmd.Process.Kill() })
	select {
	case <-first.up:
	case <-time.After(30 * time.Second):
		s.t.Fatalf("the server did not start within 30 s:\n%s", s.stderr)
	}
}

// shooter sends raw requests to the plaintext listener, one after another.
type shooter struct {
	s    *canarySite
	conn net.Conn
	r    *bufio.Reader
}

// forwarded is an address that is new each time, so that no two requests come
// from the same network.
func (s *canarySite) forwarded() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn++
	return fmt.Sprintf("10.%d.%d.1", s.turn>>8&255, s.turn&255)
}

// fire sends one request (without the field that says where it comes from, for
// which %F stands) and reads the answers.
func (h *shooter) fire(t *testing.T, raw string, p planting) {
	raw = strings.Replace(raw, "%F", "X-Forwarded-For: "+h.s.forwarded(), 1)
	for range 2 { // the connection may have ended since
		if h.conn == nil {
			c, err := net.Dial("tcp", h.s.mesh)
			if err != nil {
				t.Error(err)
				return
			}
			h.conn, h.r = c, bufio.NewReader(c)
		}
		if _, err := io.WriteString(h.conn, raw); err == nil {
			method, _, _ := strings.Cut(raw, " ")
			resp, err := http.ReadResponse(h.r, &http.Request{Method: method})
			if err == nil {
				h.s.took(t, resp, p)
				if resp.Close || resp.StatusCode >= 400 && p.field == "" {
					h.hangUp()
				}
				return
			}
			if h.r.Buffered() > 0 { // an answer, but not one of HTTP
				t.Errorf("%s: %v", p.position, err)
			}
		}
		h.hangUp()
	}
}

func (h *shooter) hangUp() {
	if h.conn != nil {
		h.conn.Close()
		h.conn = nil
	}
}

// took notes an answer: whose it was, and its text if the gate made it.
func (s *canarySite) took(t *testing.T, resp *http.Response, p planting) {
	var text bytes.Buffer
	_, err := io.Copy(&text, resp.Body)
	resp.Body.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	id := resp.Header.Get("X-Request-Id")
	if id != "" {
		s.sent[id] = p
	}
	if id != "" && !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		return // the upstream's own
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Logf("%s: %v", p.position, err)
	}
	fmt.Fprintf(&s.answers, "%s %v\n%s\n", resp.Status, resp.Header, text.Bytes())
}

// handshake shows the TLS listener a hello with the value in it.
func (s *canarySite) handshake(value string) {
	c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, ServerName: value, NextProtos: []string{value[:min(len(value), 255)], "http/1.1"}})
	if err != nil {
		return // refused, which is what some values are for
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /open/sni HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", "localhost")
	io.Copy(io.Discard, c)
}

// notTLS talks to the TLS listener in another language.
func (s *canarySite) notTLS(text string) {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		return
	}
	defer c.Close()
	io.WriteString(c, text)
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c)
}

// surfaces are all bytes that somebody without keys can come to see.
func (s *canarySite) surfaces(t *testing.T, when string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{when + " process log": []byte(s.stderr.String())}
	data := filepath.Join(s.dir, "data")
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // sealed and gone meanwhile
		}
		name, _ := filepath.Rel(s.dir, path)
		out[when+" "+name+" (name)"] = []byte(name)
		out[when+" "+name] = bytes.TrimRight(b, "\x00") // prepared space
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ask reads a page of the health listener.
func (s *canarySite) ask(t *testing.T, path string) []byte {
	t.Helper()
	resp, err := http.Get("http://" + s.health + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// opened is one record with its personal part.
type opened struct {
	Index    uint64          `json:"index"`
	Frame    json.RawMessage `json:"frame"`
	Personal map[string]any  `json:"personal"`
	Sealed   string          `json:"sealed"`
}

func parseOpened(t *testing.T, text string) []opened {
	t.Helper()
	var out []opened
	dec := json.NewDecoder(strings.NewReader(text))
	for {
		var o opened
		err := dec.Decode(&o)
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
}
