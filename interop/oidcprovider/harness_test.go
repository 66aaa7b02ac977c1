package oidcprovider

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// options is what the provider is told to be; provider.mjs has the meanings.
type options struct {
	Clients         []map[string]any          `json:"clients,omitempty"` // OpenID client metadata
	Resources       map[string]resource       `json:"resources,omitempty"`
	DefaultResource string                    `json:"defaultResource,omitempty"`
	Accounts        map[string]map[string]any `json:"accounts,omitempty"`    // claims of people, by account
	TokenClaims     map[string]map[string]any `json:"tokenClaims,omitempty"` // more in access tokens, by account or client
	ACRValues       []string                  `json:"acrValues,omitempty"`
	TTL             map[string]int            `json:"ttl,omitempty"` // seconds, by kind: AccessToken, ClientCredentials, ...
	Alg             string                    `json:"alg,omitempty"` // ES256 (default), EdDSA, RS256 or PS256
	MoreAlgs        []string                  `json:"moreAlgs,omitempty"`
	DPoPNonce       bool                      `json:"dpopNonce,omitempty"` // proofs need a nonce
}

// resource is a protected resource, by its indicator (RFC 8707).
type resource struct {
	Format   string `json:"format,omitempty"` // "opaque"; otherwise JWT
	Scope    string `json:"scope,omitempty"`
	Audience string `json:"audience,omitempty"` // default: the indicator
	TTL      int    `json:"ttl,omitempty"`      // seconds
	Alg      string `json:"alg,omitempty"`
}

// client is one that authenticates by a secret.
func client(id, secret string, more map[string]any) map[string]any {
	c := map[string]any{"client_id": id, "client_secret": secret, "redirect_uris": []string{redirectURI}}
	for k, v := range more {
		c[k] = v
	}
	return c
}

// redirectURI is where codes go; nothing is there, and nobody follows it.
const redirectURI = "https://app.example.com/cb"

// provider is the child process.
type provider struct {
	t      *testing.T
	issuer string
	kids   []string // the newest first

	mu     sync.Mutex
	in     io.WriteCloser // guarded by mu
	out    *bufio.Reader  // guarded by mu
	serial int            // guarded by mu
}

func startProvider(t *testing.T, o options) *provider {
	t.Helper()
	cmd := exec.Command("node", "provider.mjs")
	var errs strings.Builder
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (node is needed)", err)
	}
	late := time.AfterFunc(time.Minute*5, func() { cmd.Process.Kill() }) // whatever hangs ends the test
	t.Cleanup(func() {
		in.Close() // it ends by itself
		io.Copy(io.Discard, out)
		err := cmd.Wait()
		late.Stop()
		if err != nil || t.Failed() {
			t.Logf("provider: %v\n%s", err, errs.String())
		}
	})
	p := &provider{t: t, in: in, out: bufio.NewReaderSize(out, 1<<20)}
	if err := json.NewEncoder(in).Encode(o); err != nil {
		t.Fatal(err)
	}
	var hello struct {
		Issuer string   `json:"issuer"`
		KIDs   []string `json:"kids"`
	}
	p.read(&hello)
	p.issuer, p.kids = hello.Issuer, hello.KIDs
	return p
}

func (p *provider) read(into any) {
	p.t.Helper()
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.t.Fatalf("the provider said %q and then nothing: %v (npm ci in this folder installs it)", line, err)
	}
	if err := json.Unmarshal(line, into); err != nil {
		p.t.Fatalf("%v: %s", err, line)
	}
}

// command gives a command and takes its answer. It may be called from any
// goroutine of the test that may end it.
func (p *provider) command(cmd string, args map[string]any, into any) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serial++
	line := map[string]any{"id": p.serial, "cmd": cmd}
	for k, v := range args {
		line[k] = v
	}
	if err := json.NewEncoder(p.in).Encode(line); err != nil {
		p.t.Fatal(err)
	}
	var raw json.RawMessage
	p.read(&raw)
	var head struct {
		ID    int    `json:"id"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal(raw, &head); err != nil || head.ID != p.serial || head.Error != "" {
		p.t.Fatalf("%s: %v %s", cmd, err, raw)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			p.t.Fatal(err)
		}
	}
}

// rotate makes a new signing key; keep older ones stay published.
func (p *provider) rotate(keep int) []string {
	p.t.Helper()
	var a struct {
		KIDs []string `json:"kids"`
	}
	p.command("rotate", map[string]any{"keep": keep}, &a)
	return a.KIDs
}

// fault makes a path of the provider answer with a status, late (ms) or never
// (hang); an empty one makes it well again.
func (p *provider) fault(path string, how map[string]any) {
	p.t.Helper()
	args := map[string]any{"path": path}
	for k, v := range how {
		args[k] = v
	}
	p.command("fault", args, nil)
}

// steal tells the one refresh token of a client that is still good.
func (p *provider) steal(client string) string {
	p.t.Helper()
	var a struct {
		Tokens []string `json:"tokens"`
	}
	if p.command("steal", map[string]any{"client": client}, &a); len(a.Tokens) != 1 {
		p.t.Fatalf("%d refresh tokens of %s are good", len(a.Tokens), client)
	}
	return a.Tokens[0]
}

// requests is how often a path was asked for.
func (p *provider) requests(path string) int {
	p.t.Helper()
	var a struct {
		Counts map[string]int `json:"counts"`
	}
	p.command("counts", nil, &a)
	return a.Counts[path]
}

// event is something that the provider did.
type event struct {
	Event  string `json:"event"`
	Error  string `json:"error"`
	Client string `json:"client"`
}

func (p *provider) events() []event {
	p.t.Helper()
	var a struct {
		Events []event `json:"events"`
	}
	p.command("events", nil, &a)
	return a.Events
}

// answer is what the token endpoint, or another of its kind, says.
type answer struct {
	Status int
	Header http.Header
	Fields map[string]any
}

func (a answer) text(name string) string { s, _ := a.Fields[name].(string); return s }

// post sends a form as a client that has a secret, or none ("").
func (p *provider) post(path, id, secret string, form url.Values, header http.Header) answer {
	p.t.Helper()
	req, err := http.NewRequest("POST", p.issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if secret != "" {
		req.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	a := answer{Status: res.StatusCode, Header: res.Header}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if len(b) > 0 && json.Unmarshal(b, &a.Fields) != nil {
		p.t.Fatalf("%s answers %d %s", path, res.StatusCode, b)
	}
	return a
}

// clientToken gets an access token for a client itself.
func (p *provider) clientToken(id, secret, resource, scope string) string {
	p.t.Helper()
	a := p.post("/token", id, secret, url.Values{"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {scope}}, nil)
	if a.Status != 200 {
		p.t.Fatalf("token endpoint: %d %v", a.Status, a.Fields)
	}
	return a.text("access_token")
}

// revoke revokes an opaque token.
func (p *provider) revoke(id, secret, token string) {
	p.t.Helper()
	if a := p.post("/token/revocation", id, secret, url.Values{"token": {token}}, nil); a.Status != 200 {
		p.t.Fatalf("revocation: %d %v", a.Status, a.Fields)
	}
}

// newBrowser keeps cookies and stops at the redirect URI.
func newBrowser(t *testing.T) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, CheckRedirect: func(req *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(req.URL.String(), redirectURI) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
}

// authorize goes through the authorization endpoint and returns what comes back
// to the redirect URI. Whoever login_hint names is logged in.
func (p *provider) authorize(browser *http.Client, params url.Values) url.Values {
	p.t.Helper()
	res, err := browser.Get(p.issuer + "/auth?" + params.Encode())
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	to, err := res.Location()
	if err != nil {
		b, _ := io.ReadAll(res.Body)
		p.t.Fatalf("authorization ended with %d: %s", res.StatusCode, b)
	}
	return to.Query()
}

// userTokens goes through the code flow with PKCE for a person.
func (p *provider) userTokens(browser *http.Client, id, secret, account, resource, scope string, more url.Values) answer {
	p.t.Helper()
	const verifier, challenge = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM" // RFC 7636 appendix B
	params := url.Values{
		"client_id": {id}, "response_type": {"code"}, "redirect_uri": {redirectURI}, "scope": {"openid " + scope}, "resource": {resource},
		"login_hint": {account}, "code_challenge": {challenge}, "code_challenge_method": {"S256"}, "state": {"s"},
	}
	for k, v := range more {
		params[k] = v
	}
	back := p.authorize(browser, params)
	if back.Get("code") == "" || back.Get("state") != "s" {
		p.t.Fatalf("authorization: %v", back)
	}
	return p.post("/token", id, secret, url.Values{
		"grant_type": {"authorization_code"}, "code": {back.Get("code")}, "redirect_uri": {redirectURI}, "code_verifier": {verifier}, "resource": {resource},
	}, nil)
}

// endSession logs the browser out at the provider, which tells the clients.
func (p *provider) endSession(browser *http.Client) {
	p.t.Helper()
	res, err := browser.Get(p.issuer + "/session/end")
	if err != nil {
		p.t.Fatal(err)
	}
	page, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		p.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), `name="xsrf" value="`)
	xsrf, _, ok := strings.Cut(after, `"`)
	if !ok {
		p.t.Fatalf("no form in %s", page)
	}
	res, err = browser.PostForm(p.issuer+"/session/end/confirm", url.Values{"xsrf": {xsrf}, "logout": {"yes"}})
	if err != nil {
		p.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		p.t.Fatalf("logout ended with %d", res.StatusCode)
	}
}
