package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// holder is a client that can prove that it holds a key.
type holder struct {
	key *ecdsa.PrivateKey
	jwk string
	jkt string
}

func newHolder(t *testing.T) *holder {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	// The members of RFC 7638 section 3.2 in their order, so that this is also
	// what the thumbprint is made of.
	jwk := fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, raw64(pub[1:33]), raw64(pub[33:]))
	sum := sha256.Sum256([]byte(jwk))
	return &holder{key, jwk, raw64(sum[:])}
}

func raw64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// claims of a proof of now.
func (h *holder) claims(method, url, token string) map[string]any {
	sum := sha256.Sum256([]byte(token))
	return map[string]any{"jti": rand.Text(), "htm": method, "htu": url, "iat": time.Now().Unix(), "ath": raw64(sum[:])}
}

// sign makes a proof of claims.
func (h *holder) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	return h.signAs(t, `{"typ":"dpop+jwt","alg":"ES256","jwk":`+h.jwk+`}`, claims)
}

func (h *holder) signAs(t *testing.T, header string, claims map[string]any) string {
	t.Helper()
	body, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := raw64([]byte(header)) + "." + raw64(body)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, h.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + raw64(sig)
}

// bindingSite is a gate whose routes demand more of a token than its issuer.
// proxy is the address of a listener behind a proxy that ends TLS.
func bindingSite(t *testing.T, upstream, extra string) (s *site, env *jwtattack.Env, proxy string) {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	s, proxy = newSite(t, upstream), freeAddr(t)
	s.write("jwks.json", string(env.JWKS))
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
  - {name: inner, address: %q, plaintext: behind_proxy, trusted: ["127.0.0.0/8"], client_cert: true}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256], roles_claim: /roles, skew: 5s, clients: [web], jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: plain, path: "/plain/{rest...}", upstream: app, authn: [{jwt: corp}]}
  - {name: optional, path: "/optional/{rest...}", upstream: app, authn: [{jwt: corp}], dpop: optional, certificate_bound: optional}
  - {name: required, path: "/required/{rest...}", upstream: app, authn: [{jwt: corp}], dpop: required}
  - {name: nonce, path: "/nonce/{rest...}", upstream: app, authn: [{jwt: corp}], dpop: required, dpop_nonce: true}
  - {name: cert, path: "/cert/{rest...}", upstream: app, authn: [{jwt: corp}], certificate_bound: required}
  - {name: once, path: "/once/{rest...}", upstream: app, authn: [{jwt: corp}], one_time: true}
policies: {dir: policies}
dpop: {origins: ["https://%s", "https://api.example.com"]}
%s
`, s.addr, proxy, jwtattack.Issuer, jwtattack.Audience, upstream, s.addr, extra))
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	return s, env, proxy
}

// bound is a token with a cnf of that one member and a jti of its own.
func bound(env *jwtattack.Env, sub, member, value string) string {
	return token(env, sub, "clerk", func(c jwtattack.Object) jwtattack.Object {
		c = c.Set("jti", fmt.Sprintf("%q", rand.Text()))
		if member != "" {
			c = c.Add("cnf", fmt.Sprintf(`{%q:%q}`, member, value))
		}
		return c
	})
}

// shown is what a client got.
type shown struct {
	status           int
	id               string
	challenge, nonce string
	body             string
}

// ask sends one request.
func (s *site) ask(method, url string, fields ...string) shown {
	s.t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			req.Host = fields[i+1]
		} else if fields[i+1] != "" {
			req.Header.Add(fields[i], fields[i+1])
		}
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
	return shown{resp.StatusCode, resp.Header.Get("X-Request-Id"), resp.Header.Get("WWW-Authenticate"), resp.Header.Get("DPoP-Nonce"), string(b)}
}

// boundFrame is what these tests look at in a record.
type boundFrame struct {
	Frame struct {
		Kind    string `json:"kind"`
		Status  int    `json:"status"`
		Subject string `json:"subject"`
		Authn   struct {
			Bound   string `json:"bound"`
			Outcome string `json:"outcome"`
			Reason  string `json:"reason"`
			Issuer  string `json:"issuer"`
		} `json:"authn"`
		Limit struct {
			Rule string `json:"rule"`
			Mode string `json:"mode"`
		} `json:"limit"`
		Error struct {
			Reason string `json:"reason"`
			Origin string `json:"origin"`
		} `json:"error"`
		Event struct {
			Name   string `json:"name"`
			Count  int    `json:"count"`
			Target string `json:"target"`
			Cause  string `json:"cause"`
		} `json:"event"`
	} `json:"frame"`
}

// frames returns the records that match.
func (s *site) frames(expr string) (out []boundFrame) {
	s.t.Helper()
	dec := json.NewDecoder(strings.NewReader(s.command(0, "search", expr, "--json")))
	for {
		var f boundFrame
		if err := dec.Decode(&f); err == io.EOF {
			return out
		} else if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, f)
	}
}

// refused demands an answer that says no more than it may, and its record.
func (s *site) refused(a shown, status int, why, challenge string) {
	s.t.Helper()
	if a.status != status || !strings.HasPrefix(a.challenge, challenge) {
		s.t.Errorf("status %d challenge %q, want %d %q", a.status, a.challenge, status, challenge)
	}
	if strings.Contains(a.body, why) || !strings.Contains(a.body, fmt.Sprintf(`"status":%d`, status)) || !strings.Contains(a.body, a.id) {
		s.t.Errorf("the problem is %s", a.body)
	}
	got := s.frames(fmt.Sprintf("id == %q", a.id))
	if len(got) != 1 {
		s.t.Fatalf("%d records of %s", len(got), a.id)
	}
	if f := got[0].Frame; f.Status != status || f.Error.Reason != why {
		s.t.Errorf("recorded status %d reason %q, want %d %q", f.Status, f.Error.Reason, status, why)
	}
}

// passed demands an answer of the upstream, and how the record says that the
// token was bound.
func (s *site) passed(a shown, boundTo string) {
	s.t.Helper()
	if a.status != 200 {
		s.t.Errorf("status %d: %s %s", a.status, a.challenge, a.body)
	}
	got := s.frames(fmt.Sprintf("id == %q", a.id))
	if len(got) != 1 || got[0].Frame.Authn.Bound != boundTo || got[0].Frame.Status != a.status {
		s.t.Errorf("records %+v, want one, bound to %q", got, boundTo)
	}
}

// Who holds the key of a token bound by DPoP is let in, whoever does not is
// not, and each refusal is shown and recorded by its reason.
func TestProofsEndToEnd(t *testing.T) {
	up := newUpstream(t)
	s, env, proxy := bindingSite(t, up.URL, "")
	s.start()
	defer s.stop()
	h, thief := newHolder(t), newHolder(t)
	tok, bare := bound(env, "ann", "jkt", h.jkt), bound(env, "ann", "", "")
	base := "https://" + s.addr
	for _, row := range []struct {
		name, path, scheme string
		token              string
		change             func(c map[string]any)
		header             func() string // of the proof
		by                 *holder
		noProof            bool
		extra              []string
		status             int
		why, challenge     string
	}{
		{name: "proved", path: "/required/a", status: 200},
		{name: "proved where it is optional", path: "/optional/a", status: 200},
		{name: "scheme in other case", path: "/required/a", scheme: "dPoP", status: 200},
		{name: "htu with query and fragment", path: "/required/a?x=1", change: func(c map[string]any) { c["htu"] = base + "/required/a?other=2#f" }, status: 200},
		{name: "htu spelled otherwise", path: "/required/a", change: func(c map[string]any) { c["htu"] = "HTTPS://" + s.addr + "/x/%2e%2E/./requi%72ed/a" }, status: 200},
		{name: "no proof", path: "/required/a", noProof: true, status: 401, why: "dpop_proof", challenge: `DPoP realm="gatebook", error="invalid_dpop_proof"`},
		{name: "as bearer", path: "/required/a", scheme: "Bearer", status: 401, why: "binding_required", challenge: `DPoP realm="gatebook", error="invalid_token"`},
		{name: "as bearer without a proof", path: "/optional/a", scheme: "Bearer", noProof: true, status: 401, why: "binding_required", challenge: `Bearer realm="gatebook", error="invalid_token", DPoP `},
		{name: "as bearer where nothing checks", path: "/plain/a", scheme: "Bearer", status: 401, why: "binding_required", challenge: `Bearer `},
		{name: "where the scheme is not taken", path: "/plain/a", status: 401, why: "no_credential", challenge: `Bearer realm="gatebook"`},
		{name: "token bound to nothing", path: "/required/a", token: bare, scheme: "Bearer", noProof: true, status: 401, why: "binding_required", challenge: "DPoP "},
		{name: "token bound to nothing under DPoP", path: "/optional/a", token: bare, status: 401, why: "binding_mismatch", challenge: "DPoP "},
		{name: "token bound to nothing where that will do", path: "/optional/a", token: bare, scheme: "Bearer", noProof: true, status: 200},
		{name: "another key", path: "/required/a", by: thief, status: 401, why: "binding_mismatch", challenge: `DPoP realm="gatebook", error="invalid_token"`},
		{name: "another's key in the header", path: "/required/a", by: thief, header: func() string { return `{"typ":"dpop+jwt","alg":"ES256","jwk":` + h.jwk + `}` }, status: 401, why: "dpop_proof"},
		{name: "another method", path: "/required/a", change: func(c map[string]any) { c["htm"] = "POST" }, status: 401, why: "dpop_proof"},
		{name: "another path", path: "/required/a", change: func(c map[string]any) { c["htu"] = base + "/required/b" }, status: 401, why: "dpop_proof"},
		{name: "an origin that the client forwards", path: "/required/a", change: func(c map[string]any) { c["htu"] = "https://evil.example/required/a" },
			extra: []string{"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https", "Forwarded", "host=evil.example;proto=https"}, status: 401, why: "dpop_proof"},
		{name: "too old", path: "/required/a", change: func(c map[string]any) { c["iat"] = time.Now().Unix() - 120 }, status: 401, why: "dpop_proof"},
		{name: "of another token", path: "/required/a", change: func(c map[string]any) { sum := sha256.Sum256([]byte(bare)); c["ath"] = raw64(sum[:]) }, status: 401, why: "dpop_proof"},
		{name: "no algorithm", path: "/required/a", header: func() string { return `{"typ":"dpop+jwt","alg":"none","jwk":` + h.jwk + `}` }, status: 401, why: "dpop_proof"},
		{name: "two proofs", path: "/required/a", extra: []string{"DPoP", "second"}, status: 401, why: "dpop_proof"},
		{name: "two authorizations of one token", path: "/optional/a", extra: []string{"Authorization", "Bearer " + tok}, status: 400, why: "two_credentials"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s.t = t
			who, tk, scheme := h, tok, "DPoP"
			if row.by != nil {
				who = row.by
			}
			if row.token != "" {
				tk = row.token
			}
			if row.scheme != "" {
				scheme = row.scheme
			}
			path, _, _ := strings.Cut(row.path, "?")
			c := who.claims("GET", base+path, tk)
			if row.change != nil {
				row.change(c)
			}
			proof := who.sign(t, c)
			if row.header != nil {
				proof = who.signAs(t, row.header(), c)
			}
			if row.noProof {
				proof = ""
			}
			a := s.ask("GET", base+row.path, append([]string{"Authorization", scheme + " " + tk, "DPoP", proof}, row.extra...)...)
			if row.status == 200 {
				s.passed(a, map[bool]string{true: "dpop"}[tk == tok])
				return
			}
			s.refused(a, row.status, row.why, row.challenge)
		})
	}
	s.t = t
	t.Run("used twice", func(t *testing.T) {
		proof := h.sign(t, h.claims("GET", base+"/required/twice", tok))
		s.passed(s.ask("GET", base+"/required/twice", "Authorization", "DPoP "+tok, "DPoP", proof), "dpop")
		s.refused(s.ask("GET", base+"/required/twice", "Authorization", "DPoP "+tok, "DPoP", proof), 401, "token_replayed", "DPoP ")
	})
	t.Run("behind a proxy", func(t *testing.T) {
		proof := h.sign(t, h.claims("GET", "https://api.example.com/required/a", tok))
		s.passed(s.ask("GET", "http://"+proxy+"/required/a", "Host", "api.example.com", "Authorization", "DPoP "+tok, "DPoP", proof), "dpop")
	})
	t.Run("a field named by Connection", func(t *testing.T) {
		proof := h.sign(t, h.claims("GET", base+"/optional/a", tok))
		s.refused(s.ask("GET", base+"/optional/a", "Authorization", "DPoP "+tok, "DPoP", proof, "Connection", "DPoP"), 400, "malformed_request", "")
	})
	t.Run("proofs stay here", func(t *testing.T) {
		up.mu.Lock()
		defer up.mu.Unlock()
		if up.proofs > 0 {
			t.Errorf("%d proofs or tokens reached the upstream", up.proofs)
		}
	})
}

// A route may ask for proofs with a nonce: the challenge brings one.
func TestProofNonces(t *testing.T) {
	up := newUpstream(t)
	s, env, _ := bindingSite(t, up.URL, "")
	s.start()
	defer s.stop()
	h := newHolder(t)
	tok, url := bound(env, "ann", "jkt", h.jkt), "https://"+s.addr+"/nonce/a"
	first := s.ask("GET", url, "Authorization", "DPoP "+tok, "DPoP", h.sign(t, h.claims("GET", url, tok)))
	s.refused(first, 401, "dpop_nonce", `DPoP realm="gatebook", error="use_dpop_nonce"`)
	if first.nonce == "" {
		t.Fatal("the challenge brings no nonce")
	}
	c := h.claims("GET", url, tok)
	c["nonce"] = first.nonce
	second := s.ask("GET", url, "Authorization", "DPoP "+tok, "DPoP", h.sign(t, c))
	s.passed(second, "dpop")
	c = h.claims("GET", url, tok)
	c["nonce"] = first.nonce[:len(first.nonce)-2] + "AA"
	s.refused(s.ask("GET", url, "Authorization", "DPoP "+tok, "DPoP", h.sign(t, c)), 401, "dpop_nonce", `DPoP `)
}

// A token bound to a certificate is for whoever shows that certificate; a
// trusted proxy that ended the TLS may say which it was.
func TestCertificateBound(t *testing.T) {
	up := newUpstream(t)
	s, env, proxy := bindingSite(t, up.URL, "")
	s.start()
	defer s.stop()
	mine, other := clientCert(t), clientCert(t)
	sum := sha256.Sum256(mine)
	tok := bound(env, "ann", "x5t#S256", raw64(sum[:]))
	field := func(der []byte) string { return ":" + base64.StdEncoding.EncodeToString(der) + ":" }
	inner, outer := "http://"+proxy, "https://"+s.addr
	s.passed(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+tok, "Client-Cert", field(mine)), "mtls")
	s.passed(s.ask("GET", inner+"/optional/a", "Authorization", "Bearer "+tok, "Client-Cert", field(mine)), "mtls")
	s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+tok, "Client-Cert", field(other)), 401, "binding_mismatch", `Bearer realm="gatebook", error="invalid_token"`)
	s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+tok), 401, "binding_required", `Bearer `)
	s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+tok, "Client-Cert", "broken"), 401, "binding_required", `Bearer `)
	s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+tok, "Client-Cert", field(mine), "Client-Cert", field(mine)), 401, "binding_required", `Bearer `)
	s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+bound(env, "ann", "", ""), "Client-Cert", field(mine)), 401, "binding_required", `Bearer `)
	s.refused(s.ask("GET", inner+"/required/a", "Authorization", "Bearer "+tok, "Client-Cert", field(mine)), 401, "binding_required", `DPoP `)
	s.refused(s.ask("GET", inner+"/optional/a", "Authorization", "DPoP "+tok, "Client-Cert", field(mine)), 401, "binding_mismatch", `DPoP `)
	// Whoever is not the trusted proxy says nothing about certificates.
	s.refused(s.ask("GET", outer+"/cert/a", "Authorization", "Bearer "+tok, "Client-Cert", field(mine)), 401, "binding_required", `Bearer `)
}

// clientCert makes a self-signed certificate and returns its DER.
func clientCert(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), crypto.Signer(key))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Nothing of proofs, tokens and their ids is on the disk in clear.
func TestProofsLeaveNoTrace(t *testing.T) {
	up := newUpstream(t)
	s, env, _ := bindingSite(t, up.URL, "")
	s.start()
	h := newHolder(t)
	tok := bound(env, "ann", "jkt", h.jkt)
	url := "https://" + s.addr + "/required/a"
	c := h.claims("GET", url, tok)
	proof := h.sign(t, c)
	s.passed(s.ask("GET", url, "Authorization", "DPoP "+tok, "DPoP", proof), "dpop")
	jti := "canary-" + rand.Text()
	once := token(env, "canary-subject", "clerk", func(o jwtattack.Object) jwtattack.Object { return o.Set("jti", fmt.Sprintf("%q", jti)) })
	s.passed(s.ask("GET", "https://"+s.addr+"/once/a", "Authorization", "Bearer "+once), "")
	s.command(0, "token", "revoke", "--jti", jti)
	s.command(0, "token", "revoke", "--subject", "canary-subject")
	s.kill()
	words := []string{jti, "canary-subject", c["jti"].(string), proof, tok, once, h.jkt, strings.Split(proof, ".")[2], c["ath"].(string)}
	files := 0
	err := filepath.WalkDir(filepath.Join(s.dir, "data"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, w := range words {
			if strings.Contains(string(b), w) {
				t.Errorf("%s holds %q", path, w)
			}
		}
		return nil
	})
	if err != nil || files < 6 {
		t.Errorf("%d files looked at: %v", files, err)
	}
	for _, w := range words {
		if strings.Contains(s.stderr.String(), w) {
			t.Errorf("the process log holds %q", w)
		}
	}
}
