package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const clientSecret = "0123456789abcdef0123456789abcdef"

// tokenSite is a gate with the token service on, whose tokens its own routes
// take. The issuer "self" is the service; the client "shop" gets tokens for the
// gate and exchanges them again.
func tokenSite(t *testing.T) *site {
	t.Helper()
	up := newUpstream(t)
	s := newSite(t, up.URL)
	port := s.addr[strings.LastIndexByte(s.addr, ':'):]
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: self, issuer: "https://localhost%s", audiences: ["https://api.example.com"], algorithms: [ES256]}
token_service:
  issuer: "https://localhost%s"
  limits: [tokens]
  clients:
    - {id: shop, auth: client_secret_basic, secret: {file: shop.secret}, grants: [client_credentials, token_exchange], issuers: [self], audiences: ["https://api.example.com"], scopes: [read], roles: [reader], offline: 1h}
    - {id: api, auth: client_secret_post, secret: {file: shop.secret}, introspect: ["https://api.example.com"]}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, authn: [{jwt: self}], scopes: [read]}
roles:
  reader: {allow: [all]}
limits:
  tokens: {key: client, rate: 100/s, burst: 200}
`, s.addr, port, port, up.URL))
	s.write("shop.secret", clientSecret+"\n")
	return s
}

// base is the service's address.
func (s *site) base() string {
	return "https://localhost" + s.addr[strings.LastIndexByte(s.addr, ':'):]
}

// tokenReply is an answer of the service.
type tokenReply struct {
	status       int
	id           string
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	Error        string `json:"error"`
	Active       bool   `json:"active"`
}

// form posts to the service as shop.
func (s *site) form(path string, pairs ...string) (r tokenReply) {
	s.t.Helper()
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	req, err := http.NewRequest("POST", s.base()+path, strings.NewReader(v.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if v.Get("client_secret") == "" {
		req.SetBasicAuth("shop", clientSecret)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	r.status, r.id = resp.StatusCode, resp.Header.Get("X-Request-Id")
	if strings.HasPrefix(string(b), "{") {
		if err := json.Unmarshal(b, &r); err != nil {
			s.t.Fatalf("%s: %v", b, err)
		}
	}
	return r
}

// use shows a token to the gate.
func (s *site) use(token string) int {
	s.t.Helper()
	req, err := http.NewRequest("GET", s.base()+"/x", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (s *site) offline(token string) tokenReply {
	return s.form("/oauth2/token", "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", token,
		"subject_token_type", "urn:ietf:params:oauth:token-type:access_token", "scope", "read offline_access")
}

// TestTokenService is the service behind a real gate: a token, its use, its
// exchange, its end, and a record of kind token for each exchange.
func TestTokenService(t *testing.T) {
	s := tokenSite(t)
	s.start()
	one := s.form("/oauth2/token", "grant_type", "client_credentials")
	if one.status != 200 || s.use(one.AccessToken) != 200 {
		t.Fatalf("%+v", one)
	}
	two := s.offline(one.AccessToken)
	if two.status != 200 || two.RefreshToken == "" || s.use(two.AccessToken) != 200 {
		t.Fatalf("%+v", two)
	}
	ask := func(token string) bool {
		return s.form("/oauth2/introspect", "token", token, "client_id", "api", "client_secret", clientSecret).Active
	}
	if !ask(one.AccessToken) || !ask(two.AccessToken) {
		t.Error("not active")
	}
	// The service's own doings and the gate's agree at once.
	if r := s.form("/oauth2/revoke", "token", two.RefreshToken); r.status != 200 || s.use(two.AccessToken) != 401 || ask(two.AccessToken) || s.use(one.AccessToken) != 200 {
		t.Errorf("%+v", r)
	}
	if r := s.form("/oauth2/token", "grant_type", "refresh_token", "refresh_token", two.RefreshToken); r.Error != "invalid_grant" {
		t.Errorf("%+v", r)
	}
	bad := s.form("/oauth2/token", "grant_type", "client_credentials", "client_id", "api", "client_secret", "wrong")
	if bad.status != 401 {
		t.Errorf("%+v", bad)
	}
	// The person who is revoked on the gate has lost the service too.
	s.command(0, "token", "revoke", "--client", "shop")
	if s.use(one.AccessToken) != 401 || ask(one.AccessToken) || s.offline(one.AccessToken).status != 400 {
		t.Error("revoked and of use all the same")
	}
	s.stop()
	out := s.command(0, "count", "--by", `event.name + " " + error.reason`, `kind == "token"`)
	for _, want := range []string{"client_credentials", "exchange", "introspect", "revoke", "refresh token_revoked", "client_credentials key_unknown", "exchange token_revoked"} {
		if !strings.Contains(out, want) {
			t.Errorf("no record of %q in\n%s", want, out)
		}
	}
	// Nothing secret on the disk, in no file.
	err := filepath.WalkDir(filepath.Join(s.dir, "data"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, secret := range []string{clientSecret, one.AccessToken, two.AccessToken, two.RefreshToken, two.RefreshToken[5:27]} {
			if strings.Contains(string(b), secret) {
				t.Errorf("%s holds %.12q", path, secret)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTokenServiceKilled: killed while refresh tokens are being rotated, the
// service goes on where it was: whoever did not get the answer gets it by asking
// again, and what was used up stays so.
func TestTokenServiceKilled(t *testing.T) {
	s := tokenSite(t)
	s.start()
	for round := range 3 {
		one := s.form("/oauth2/token", "grant_type", "client_credentials")
		fam := s.offline(one.AccessToken)
		if fam.RefreshToken == "" {
			t.Fatalf("round %d: %+v", round, fam)
		}
		// Rotate until the kill; last is the newest token whose answer came.
		var mu sync.Mutex
		last, gone := fam.RefreshToken, false
		var done sync.WaitGroup
		rotated := make(chan struct{}, 1)
		done.Go(func() {
			for {
				next, ok := s.tryRefresh(last)
				if !ok {
					return
				}
				mu.Lock()
				last, gone = next, true
				mu.Unlock()
				select {
				case rotated <- struct{}{}:
				default:
				}
			}
		})
		<-rotated
		s.kill()
		done.Wait()
		s.start()
		mu.Lock()
		token := last
		mu.Unlock()
		r := s.form("/oauth2/token", "grant_type", "refresh_token", "refresh_token", token)
		if r.status != 200 || r.RefreshToken == token || !gone {
			t.Fatalf("round %d: after the kill: %+v", round, r)
		}
		if s.use(r.AccessToken) != 200 || s.use(one.AccessToken) != 200 {
			t.Errorf("round %d: tokens from before do not verify", round)
		}
		// Once the successor has been used, the first one is a replay.
		if next := s.form("/oauth2/token", "grant_type", "refresh_token", "refresh_token", r.RefreshToken); next.status != 200 {
			t.Errorf("round %d: %+v", round, next)
		}
		if replay := s.form("/oauth2/token", "grant_type", "refresh_token", "refresh_token", fam.RefreshToken); replay.Error != "invalid_grant" {
			t.Errorf("round %d: %+v", round, replay)
		}
	}
	s.stop()
	out := s.command(0, "count", "--by", "event.name", `kind == "alert" and event.name == "authn_token_reuse"`)
	if !strings.Contains(out, "3") {
		t.Errorf("not three alerts:\n%s", out)
	}
	s.command(0, "verify")
}

// tryRefresh rotates a token; false if there was no whole answer.
func (s *site) tryRefresh(token string) (string, bool) {
	v := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
	req, err := http.NewRequest("POST", s.base()+"/oauth2/token", strings.NewReader(v.Encode()))
	if err != nil {
		return "", false
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth("shop", clientSecret)
	resp, err := s.client.Do(req)
	if err != nil {
		return "", false
	}
	defer resp.Body.Close()
	var r tokenReply
	if resp.StatusCode != 200 || json.NewDecoder(resp.Body).Decode(&r) != nil || r.RefreshToken == "" {
		return "", false
	}
	return r.RefreshToken, true
}

// TestTokenCommands is what an operator does with the service, and what records
// keep of that.
func TestTokenCommands(t *testing.T) {
	s := tokenSite(t)
	s.start()
	issued := strings.TrimSpace(s.command(0, "token", "issue", "shop", "--scope", "read"))
	if s.use(issued) != 200 {
		t.Errorf("%q does not do", issued)
	}
	s.command(3, "token", "issue", "nobody")
	s.command(4, "token", "issue", "api")
	s.command(4, "token", "issue", "shop", "--scope", "write")

	fam := s.offline(issued)
	list := s.command(0, "token", "families", "--client", "shop")
	id, rest, _ := strings.Cut(strings.TrimSpace(list), " ")
	if !strings.Contains(rest, "shop") || !strings.Contains(rest, "rotated 0 times") || strings.Contains(rest, "self shop") {
		t.Errorf("%q", list)
	}
	if open := s.command(0, "token", "families", "--reveal"); !strings.Contains(open, id) || !strings.Contains(open, "self shop") {
		t.Errorf("%q", open)
	}
	s.command(3, "token", "families", "--client", "nobody")
	s.command(3, "token", "revoke-family", "nothing")
	s.command(0, "token", "revoke-family", id)
	if r := s.form("/oauth2/token", "grant_type", "refresh_token", "refresh_token", fam.RefreshToken); r.Error != "invalid_grant" || s.use(fam.AccessToken) != 401 {
		t.Errorf("%+v", r)
	}

	// Keys: one that waits, one that signs at once; old tokens go on.
	s.command(0, "token", "rotate-keys")
	var key struct{ KID string }
	if err := json.Unmarshal([]byte(s.command(0, "token", "rotate-keys", "--at-once", "--json")), &key); err != nil || key.KID == "" {
		t.Fatal(err)
	}
	next := strings.TrimSpace(s.command(0, "token", "issue", "shop"))
	if strings.Split(next, ".")[0] == strings.Split(issued, ".")[0] || s.use(issued) != 200 {
		t.Error("the key was not changed, or the old one is gone")
	}
	if s.use(next) != 200 {
		t.Error("the gate does not know the key that its own service signs with")
	}
	// More than may wait are refused, and the record that announced it does not
	// stand alone.
	for range 4 {
		s.command(0, "token", "rotate-keys")
	}
	if s.command(1, "token", "rotate-keys"); !strings.Contains(s.said, "waiting to be used") {
		t.Errorf("one key too many: %q", s.said)
	}
	s.stop()
	s.command(1, "token", "rotate-keys")
	out := s.command(0, "count", "--by", `kind + " " + event.name + " " + event.cause`, `kind in ["admin", "key", "access"]`)
	for _, want := range []string{"admin token_issue", "access token_families frames", "access token_families reveal", "admin token_revoke_family", "key token_rotate_keys scheduled", "key token_rotate_keys at_once", "key token_rotate_keys not_stored"} {
		if !strings.Contains(out, want) {
			t.Errorf("no record of %q in\n%s", want, out)
		}
	}
	if strings.Contains(s.command(0, "search", "--json", `kind == "admin"`), issued) {
		t.Error("a record holds the token")
	}
}

// TestTokenCertificates: a client that authenticates with its certificate gets
// tokens that are bound to it, and the gate takes them from nobody else.
func TestTokenCertificates(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	ca := newAuthority(t, "clients")
	job := ca.client(&x509.Certificate{Subject: pkix.Name{CommonName: "job"}, DNSNames: []string{"job.example.com"}})
	other := ca.client(&x509.Certificate{Subject: pkix.Name{CommonName: "other"}, DNSNames: []string{"other.example.com"}})
	s.write("clients.pem", ca.pem())
	s.write("other.pem", certPEM(other.Certificate[0]))
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}], client_ca: clients.pem, client_auth: optional}}
issuers:
  - {name: self, issuer: %q, audiences: ["https://api.example.com"], algorithms: [ES256]}
token_service:
  issuer: %q
  clients:
    - {id: job, auth: tls_client_auth, certificate: "dns:job.example.com", certificate_bound: true, grants: [client_credentials], audiences: ["https://api.example.com"], roles: [reader]}
    - {id: other, auth: self_signed_tls_client_auth, own_certificates: other.pem, grants: [client_credentials], audiences: ["https://api.example.com"], roles: [reader]}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, authn: [{jwt: self}], certificate_bound: optional}
roles:
  reader: {allow: [all]}
`, s.addr, s.base(), s.base(), up.URL))
	s.start()
	as := func(c *tls.Certificate) *site {
		conf := s.client.Transport.(*http.Transport).TLSClientConfig.Clone()
		if c != nil {
			conf.Certificates = []tls.Certificate{*c}
		}
		one := *s
		tr := &http.Transport{TLSClientConfig: conf}
		t.Cleanup(tr.CloseIdleConnections)
		one.client = &http.Client{Transport: tr, Timeout: s.client.Timeout}
		return &one
	}
	ask := func(who *site, id string) (int, string) {
		r, err := who.client.Post(s.base()+"/oauth2/token", "application/x-www-form-urlencoded", strings.NewReader("grant_type=client_credentials&client_id="+id))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		var out tokenReply
		if err := json.NewDecoder(r.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, out.AccessToken
	}
	jobs, others, nobody := as(&job), as(&other), as(nil)
	for _, c := range []struct {
		who    *site
		id     string
		status int
	}{{jobs, "job", 200}, {others, "job", 401}, {nobody, "job", 401}, {others, "other", 200}, {jobs, "other", 401}} {
		if status, _ := ask(c.who, c.id); status != c.status {
			t.Errorf("%s: %d, want %d", c.id, status, c.status)
		}
	}
	_, token := ask(jobs, "job")
	if jobs.use(token) != 200 || others.use(token) != 401 || nobody.use(token) != 401 {
		t.Error("the token is not bound to the certificate")
	}
	if _, free := ask(others, "other"); nobody.use(free) != 200 {
		t.Error("a token that is bound to nothing is refused")
	}
	s.stop()
}
