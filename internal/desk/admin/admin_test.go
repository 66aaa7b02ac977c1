package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// openBook makes a book and runs it until the test ends.
func openBook(t *testing.T) *book.Book {
	t.Helper()
	c := book.Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1", CommitTimeout: time.Minute}
	if _, err := book.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// pipes is a listener whose connections hold nothing: what is written waits
// until it is read.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// served is an API behind pipes, with one caller for all.
func served(t *testing.T, a *API, who *Caller) *pipes {
	t.Helper()
	p := newPipes()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- a.serve(ctx, p, a.mux, func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, who)
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

// events reads the records of a kind by now.
func events(t *testing.T, b *book.Book, name string) (out []record.Record) {
	t.Helper()
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	err = rd.Each(0, rd.Size(), true, func(e *book.Entry) error {
		if e.Record.Event.Name == name {
			out = append(out, *e.Record)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// bookAlone is a book without state beside it.
type bookAlone struct{ *book.Book }

func (b bookAlone) Backup(w io.Writer, withKeys bool) (*book.BackupInfo, error) {
	return b.Book.Backup(w, withKeys, nil)
}

func note(t *testing.T, b *book.Book, n int) {
	t.Helper()
	for range n {
		if err := b.Note(t.Context(), &record.Record{Kind: record.KindAlert, Outcome: record.Success, Event: record.Event{Name: "test"}}); err != nil {
			t.Fatal(err)
		}
	}
}

// A reader that does not take what it asked for is cut and never slows the
// book.
func TestSlowTailIsCut(t *testing.T) {
	b := openBook(t)
	a := New(Config{Book: bookAlone{b}})
	a.wait = 2 * time.Second
	p := served(t, a, Local("socket", "uid:1", Roles()...))
	c := p.dial()
	defer c.Close()
	if _, err := io.WriteString(c, "GET /api/v1/tail HTTP/1.1\r\nHost: admin\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReaderSize(c, 16)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, ": from now on") {
			break
		}
	}
	// From here on nothing is read any more.
	note(t, b, 50)
	eventually(t, "the end of the tail", func() bool { return len(events(t, b, "tail_end")) == 1 })
	if got := events(t, b, "tail_end")[0]; got.Event.Cause != tailSlow || got.Personal.Sub != "uid:1" || got.Kind != record.KindAccess {
		t.Errorf("%+v", got)
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Errorf("the connection is not closed: %v", err)
	}
}

// There are only so many tails.
func TestTailsAreCapped(t *testing.T) {
	b := openBook(t)
	a := New(Config{Book: bookAlone{b}})
	p := served(t, a, Local("socket", "uid:1", Roles()...))
	ask := func() (net.Conn, *http.Response) {
		t.Helper()
		c := p.dial()
		if _, err := io.WriteString(c, "GET /api/v1/tail HTTP/1.1\r\nHost: admin\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, resp
	}
	for range maxTails {
		c, resp := ask()
		defer c.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		go io.Copy(io.Discard, c) // ends when c is closed
	}
	c, resp := ask()
	defer c.Close()
	if resp.StatusCode != 503 {
		t.Errorf("one more is answered %d", resp.StatusCode)
	}
	if n := len(events(t, b, "tail")); n != maxTails {
		t.Errorf("%d records of %d tails", n, maxTails)
	}
}

// A caller whom nobody knows gets nothing, and one without the role is on
// record.
func TestCallers(t *testing.T) {
	b := openBook(t)
	reloads := 0
	a := New(Config{Book: bookAlone{b}, Reload: func(context.Context, *Caller) (any, error) { reloads++; return map[string]int{}, nil }})
	paths := []string{
		"GET /api/v1/records", "GET /api/v1/records/019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b", "GET /api/v1/counts?by=kind", "GET /api/v1/tail",
		"GET /api/v1/status", "POST /api/v1/verify", "POST /api/v1/backup", "POST /api/v1/reload", "GET /log/checkpoint",
	}
	for name, who := range map[string]*Caller{"unknown": nil, "nameless": {Roles: Roles()}, "without a role": Local("mtls", "cn:ada")} {
		p := served(t, a, who)
		for _, call := range paths {
			method, path, _ := strings.Cut(call, " ")
			if name == "without a role" && path == "/log/checkpoint" || name == "nameless" && strings.HasSuffix(path, "/status") || name == "nameless" && path == "/log/checkpoint" || name == "nameless" && path == "/api/v1/reload" {
				continue // what needs no record; who comes in by the door has a name and a role
			}
			c := p.dial()
			fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", method, path)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("%s %s: %v", name, call, err)
			}
			body, err := io.ReadAll(resp.Body)
			c.Close()
			if err != nil || resp.StatusCode < 400 || strings.Contains(string(body), "index") {
				t.Errorf("%s %s: %d %s %v", name, call, resp.StatusCode, body, err)
			}
		}
	}
	if reloads != 0 {
		t.Errorf("%d reloads", reloads)
	}
	refused := 0
	for _, act := range []string{"search", "show", "count", "tail", "status", "verify", "backup", "reload"} {
		for _, r := range events(t, b, act) {
			if r.Outcome != record.Failure || !strings.HasPrefix(r.Event.Cause, "without_") || r.Personal.Sub != "cn:ada" || (r.Kind == record.KindAdmin) != (act == "reload") {
				t.Errorf("%s: %+v", act, r)
			}
			refused++
		}
	}
	if refused != len(paths)-1 {
		t.Errorf("%d records of refused calls", refused)
	}
}

// What is answered passes through Plain.
func TestAnswersArePlain(t *testing.T) {
	b := openBook(t)
	a := New(Config{Book: bookAlone{b}, Status: func() any { return map[string]string{"a": "\u202e"} }, Plain: func(w io.Writer) io.Writer { return marker{w} }})
	p := served(t, a, Local("socket", "uid:1", Roles()...))
	for _, path := range []string{"/api/v1/status", "/api/v1/records", "/api/v1/counts?by=kind"} {
		c := p.dial()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		c.Close()
		if err != nil || !strings.HasPrefix(string(body), "plain:") {
			t.Errorf("%s: %s %v", path, body, err)
		}
	}
}

type marker struct{ w io.Writer }

func (m marker) Write(b []byte) (int, error) {
	_, err := m.w.Write(append([]byte("plain:"), b...))
	return len(b), err
}

// An error says with which exit code a command ends.
func TestProblemCodes(t *testing.T) {
	b := openBook(t)
	a := New(Config{Book: bookAlone{b}, Reload: func(context.Context, *Caller) (any, error) { return nil, ownError{} }})
	p := served(t, a, Local("socket", "uid:1", Roles()...))
	for call, want := range map[string][2]int{
		"GET /api/v1/records/x": {400, 2},
		"GET /api/v1/records/019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b": {404, 3},
		"GET /api/v1/records?q=nonsense":                           {400, 2},
		"GET /api/v1/counts?by=nonsense":                           {400, 2},
		"POST /api/v1/verify":                                      {400, 2},
		"POST /api/v1/reload":                                      {418, 7},
	} {
		method, path, _ := strings.Cut(call, " ")
		c := p.dial()
		fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n", method, path)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		var got Problem
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != want[0] || got.Code != want[1] {
			t.Errorf("%s: %d %+v %v", call, resp.StatusCode, got, err)
		}
		c.Close()
	}
}

type ownError struct{}

func (ownError) Error() string     { return "own" }
func (ownError) Problem() *Problem { return &Problem{Title: "own", Status: 418, Code: 7} }

func TestSocketPaths(t *testing.T) {
	for name, length := range map[string]int{"short": 20, "at the limit": maxSocketPath, "over it": maxSocketPath + 1, "far over it": 240} {
		dir, err := os.MkdirTemp("/tmp", "s")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "s")
		if n := length - len(path) - 1; n > 1 {
			dir = filepath.Join(dir, strings.Repeat("d", n))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path = filepath.Join(dir, "s")
		}
		if err := os.WriteFile(path, []byte("left over"), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := ListenSocket(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
		got := make(chan *Caller, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- nil
				return
			}
			defer c.Close()
			got <- peer(c)
		}()
		c, err := DialSocket(t.Context(), path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			l.Close()
			continue
		}
		if who := <-got; who == nil || who.Name != fmt.Sprintf("uid:%d", os.Getuid()) || !who.Has(Privacy) {
			t.Errorf("%s: caller %+v", name, who)
		}
		c.Close()
		if err := l.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s: the socket is left behind", name)
		}
	}
	if _, err := ListenSocket(filepath.Join(t.TempDir(), strings.Repeat("x", 200), "s")); err == nil {
		t.Error("a socket in a folder that is not there")
	}
}

// FuzzParseQuery: whatever stands in a URL is a question or a problem that is
// the caller's.
func FuzzParseQuery(f *testing.F) {
	for _, s := range []string{"", "q=status+%3D%3D+200&limit=7&reveal=true", "since=2026-11-23T10:00:00Z&until=x", "limit=-1", "limit=9999999999999999999", "q=%zz", ";&=;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := parseQuery(&http.Request{URL: &url.URL{RawQuery: raw}})
		var p *Problem
		if err != nil && (!errors.As(err, &p) || p.Status != 400 || p.Code != exitUsage) {
			t.Errorf("%q: %v", raw, err)
		}
		if err == nil && q.Limit < 0 {
			t.Errorf("%q: limit %d", raw, q.Limit)
		}
	})
}

// TestCapped: what is over the cap is closed at once, and a place that becomes
// free is taken again.
func TestCapped(t *testing.T) {
	p := newPipes()
	defer p.Close()
	l := &capped{Listener: p, places: make(chan struct{}, 2)}
	got := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(got)
				return
			}
			got <- c
		}
	}()
	var clients, servers []net.Conn
	for range 2 {
		clients = append(clients, p.dial())
		servers = append(servers, <-got)
	}
	for range 3 {
		over := p.dial()
		if _, err := over.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a connection over the cap: %v", err)
		}
	}
	servers[0].Close()
	servers[0].Close() // gives its place back once
	next := p.dial()
	c := <-got
	over := p.dial()
	if _, err := over.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one more: %v", err)
	}
	for _, c := range append(clients, next, c, servers[1]) {
		c.Close()
	}
	p.Close()
	if _, open := <-got; open {
		t.Error("a connection that nobody made")
	}
}

// TestDoor: refusals wait for one another; each is a record.
func TestDoor(t *testing.T) {
	b := openBook(t)
	a := New(Config{Book: bookAlone{b}})
	d := &door{api: a, pace: make(chan struct{}, 1), Remote: Remote{
		Host: func(h string) bool { return h == "admin" || h == "::1" },
		Authenticate: func(r *http.Request) (*Caller, error) {
			if r.Header.Get("Authorization") == "" {
				return nil, &Refusal{Status: 401, Origin: "identity", Reason: "no_credential", Text: "who?", Caller: &Caller{Prefix: "192.0.2.0/24"}}
			}
			return Local("jwt", "ann", Reader), nil
		},
	}}
	ask := func(host string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("GET", "http://"+host+"/api/v1/records", nil)
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		d.ServeHTTP(w, r)
		return w
	}
	begun := time.Now()
	var all sync.WaitGroup
	const strangers = 5
	for range strangers {
		all.Go(func() {
			if w := ask("admin"); w.Code != 401 || w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("a stranger is answered %d", w.Code)
			}
		})
	}
	all.Wait()
	if took := time.Since(begun); took < strangers*refusalPause {
		t.Errorf("%d refusals took %s", strangers, took)
	}
	if got := events(t, b, "refused"); len(got) != strangers || got[0].Client.Prefix != "192.0.2.0/24" || got[0].Error.Reason != "no_credential" || got[0].Personal.Sub != "" {
		t.Errorf("%d records: %+v", len(got), got)
	}
	for host, want := range map[string]int{"admin": 200, "admin:9443": 200, "[::1]:9443": 200, "evil.example": 421, "admin.evil.example": 421} {
		if w := ask(host, "Authorization: x"); w.Code != want {
			t.Errorf("host %s: %d, want %d", host, w.Code, want)
		}
	}
	for header, want := range map[string]int{
		"Sec-Fetch-Site: none": 200, "Sec-Fetch-Site: same-origin": 403, "Sec-Fetch-Site: cross-site": 403, "Origin: http://admin": 403,
	} {
		if w := ask("admin", "Authorization: x", header); w.Code != want || w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %d, want %d", header, w.Code, want)
		}
	}
	last := events(t, b, "refused")
	if r := last[len(last)-1]; r.Personal.Sub != "ann" || r.Error.Origin != "client" {
		t.Errorf("a known caller with a bad call: %+v", r)
	}
}
