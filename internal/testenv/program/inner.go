package program

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"
	"time"
)

// AppOrigin is where browsers find the application behind an Inner.
const AppOrigin = "https://app.example.com"

// Inner is a gate behind what ends TLS and in front of the upstream "app", which
// greets whoever is let in.
type Inner struct {
	*Gate
	Addr string

	app *httptest.Server
}

// NewInner makes the gate, for a binary. Configure comes next.
func NewInner(t *testing.T, program string) *Inner {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.Header.Get("X-Gatebook-Subject"))
	}))
	t.Cleanup(app.Close)
	return &Inner{NewGate(t, program), FreeAddr(t), app}
}

// Configure writes gatebook.yaml: what Gate.Configure does, the listener, the
// policies and the upstream, and the rest.
func (g *Inner) Configure(rest string) {
	g.T.Helper()
	g.Gate.Configure(fmt.Sprintf(`
listen: [{name: inner, address: %q, plaintext: behind_proxy, trusted: ["127.200.0.0/16"]}]
policies: {dir: policies}
upstreams: {app: {targets: [%q]}}
`, g.Addr, g.app.URL) + rest)
}

// Ask asks with a token, if there is one. It may be called from any goroutine.
func (g *Inner) Ask(path, token string) (status int, body string, header http.Header, err error) {
	req, err := http.NewRequest("GET", "http://"+g.Addr+path, nil)
	if err != nil {
		return 0, "", nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), res.Header, err
}

// Get asks as Ask does and demands an answer of some kind.
func (g *Inner) Get(path, token string) (status int, body string, header http.Header) {
	g.T.Helper()
	status, body, header, err := g.Ask(path, token)
	if err != nil {
		g.T.Fatal(err)
	}
	return status, body, header
}

// Taken asks with a token and demands the greeting of whom it is about.
func (g *Inner) Taken(path, token, who string) {
	g.T.Helper()
	if status, body, _ := g.Get(path, token); status != http.StatusOK || body != "hello "+who+"\n" {
		g.T.Errorf("%s: %d %q, want the greeting of %s", path, status, body, who)
	}
}

// Refused asks with a token and demands a status, and a reason in the book.
func (g *Inner) Refused(path, token string, status int, why string) {
	g.T.Helper()
	got, _, header := g.Get(path, token)
	if found := g.Reason(header.Get("X-Request-Id")); got != status || found != why {
		g.T.Errorf("%s: %d %q, want %d %q", path, got, found, status, why)
	}
}

// Browser is a new browser, for which the gate is at AppOrigin.
func (g *Inner) Browser() *http.Client {
	g.T.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		g.T.Fatal(err)
	}
	return &http.Client{Jar: jar, Transport: through{g.Addr}, Timeout: time.Minute}
}

// through sends what is for the application's origin to the gate, as a proxy
// that ends TLS does, and everything else where it belongs.
type through struct{ gate string }

func (t through) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme+"://"+r.URL.Host == AppOrigin {
		host := r.URL.Host
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host, r.Host = "http", t.gate, host
	}
	return http.DefaultTransport.RoundTrip(r)
}

// Eventually waits for what another process does by itself.
func Eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
