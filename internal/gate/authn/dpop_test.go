package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// prover makes proofs with a P-256 key.
type prover struct {
	key *ecdsa.PrivateKey
	jwk string
}

func newProver(t testing.TB) *prover {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	return &prover{key, fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, enc(pub[1:33]), enc(pub[33:]))}
}

func (p *prover) jkt() string {
	sum := sha256.Sum256([]byte(p.jwk))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (p *prover) sign(t testing.TB, header, claims string) string {
	t.Helper()
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, p.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + enc(sig)
}

func (p *prover) header() string { return `{"typ":"dpop+jwt","alg":"ES256","jwk":` + p.jwk + `}` }

const (
	provedToken = "the.access.token"
	provedURL   = "https://api.example.com/v1/a"
)

var provedAt = time.Unix(1_800_000_000, 0)

// proofClaimsOf are good claims with changes; a nil value removes one.
func proofClaimsOf(change map[string]any) string {
	c := map[string]any{"jti": rand.Text(), "htm": "GET", "htu": provedURL, "iat": provedAt.Unix(), "ath": accessTokenHash(provedToken)}
	for k, v := range change {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	b, _ := json.Marshal(c)
	return string(b)
}

func proofRequest(proofs ...string) *canon.Request {
	r := &canon.Request{Method: "GET", Scheme: "https", Authority: "api.example.com", Path: "/v1/a"}
	r.Fields = append(r.Fields, canon.Field{Name: "authorization", Value: "DPoP " + provedToken})
	for _, p := range proofs {
		r.Fields = append(r.Fields, canon.Field{Name: "dpop", Value: p})
	}
	return r
}

func judge(t testing.TB, change func(c *DPoPConfig)) *DPoP {
	t.Helper()
	now := func() time.Time { return provedAt }
	set, err := OpenReplaySet(ReplayConfig{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	c := DPoPConfig{Origins: []string{"https://api.example.com"}, Algorithms: []string{"ES256", "EdDSA", "Ed25519"}, Once: set, Now: now}
	if change != nil {
		change(&c)
	}
	d, err := NewDPoP(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Every way in which a proof can be wrong, by its reason, and every freedom
// that RFC 9449 gives it.
func TestProofs(t *testing.T) {
	p := newProver(t)
	other := newProver(t)
	h := func(change func(s string) string) string { return change(p.header()) }
	replace := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	good := proofClaimsOf(nil)
	for _, row := range []struct {
		name           string
		header, claims string
		want           reason.Reason
	}{
		{"good", p.header(), good, ""},
		{"unknown members are ignored", h(replace(`"typ"`, `"x":1,"typ"`)), proofClaimsOf(map[string]any{"extra": 1}), ""},
		{"typ with application/", h(replace(`dpop+jwt`, `application/DPoP+jwt`)), good, ""},
		{"jwk with kid, use and alg", h(replace(`"crv"`, `"kid":"a","use":"sig","alg":"ES256","key_ops":["verify"],"crv"`)), good, ""},
		{"oldest", p.header(), proofClaimsOf(map[string]any{"iat": provedAt.Unix() - 60}), ""},
		{"newest", p.header(), proofClaimsOf(map[string]any{"iat": provedAt.Unix() + 10}), ""},
		{"too old", p.header(), proofClaimsOf(map[string]any{"iat": provedAt.Unix() - 61}), reason.DPoPProof},
		{"too new", p.header(), proofClaimsOf(map[string]any{"iat": provedAt.Unix() + 11}), reason.DPoPProof},
		{"exp passed", p.header(), proofClaimsOf(map[string]any{"exp": provedAt.Unix()}), reason.DPoPProof},
		{"nbf ahead", p.header(), proofClaimsOf(map[string]any{"nbf": provedAt.Unix() + 11}), reason.DPoPProof},
		{"iat a string", p.header(), proofClaimsOf(map[string]any{"iat": "1800000000"}), reason.DPoPProof},
		{"iat a fraction", p.header(), proofClaimsOf(map[string]any{"iat": 1.5}), reason.DPoPProof},
		{"iat missing", p.header(), proofClaimsOf(map[string]any{"iat": nil}), reason.DPoPProof},
		{"jti missing", p.header(), proofClaimsOf(map[string]any{"jti": nil}), reason.DPoPProof},
		{"jti empty", p.header(), proofClaimsOf(map[string]any{"jti": ""}), reason.DPoPProof},
		{"jti long", p.header(), proofClaimsOf(map[string]any{"jti": strings.Repeat("a", 257)}), reason.DPoPProof},
		{"jti a number", p.header(), proofClaimsOf(map[string]any{"jti": 1}), reason.DPoPProof},
		{"ath missing", p.header(), proofClaimsOf(map[string]any{"ath": nil}), reason.DPoPProof},
		{"ath of another", p.header(), proofClaimsOf(map[string]any{"ath": accessTokenHash("x")}), reason.DPoPProof},
		{"ath padded", p.header(), proofClaimsOf(map[string]any{"ath": accessTokenHash(provedToken) + "="}), reason.DPoPProof},
		{"htm missing", p.header(), proofClaimsOf(map[string]any{"htm": nil}), reason.DPoPProof},
		{"htm in lower case", p.header(), proofClaimsOf(map[string]any{"htm": "get"}), reason.DPoPProof},
		{"htu missing", p.header(), proofClaimsOf(map[string]any{"htu": nil}), reason.DPoPProof},
		{"htu of another host", p.header(), proofClaimsOf(map[string]any{"htu": "https://evil.example/v1/a"}), reason.DPoPProof},
		{"htu of another port", p.header(), proofClaimsOf(map[string]any{"htu": "https://api.example.com:8443/v1/a"}), reason.DPoPProof},
		{"htu of another scheme", p.header(), proofClaimsOf(map[string]any{"htu": "http://api.example.com/v1/a"}), reason.DPoPProof},
		{"htu a path", p.header(), proofClaimsOf(map[string]any{"htu": "/v1/a"}), reason.DPoPProof},
		{"htu with user", p.header(), proofClaimsOf(map[string]any{"htu": "https://u@api.example.com/v1/a"}), reason.DPoPProof},
		{"htu with default port", p.header(), proofClaimsOf(map[string]any{"htu": "https://API.example.com:443/v1/a"}), ""},
		{"htu with query", p.header(), proofClaimsOf(map[string]any{"htu": provedURL + "?a=b#c"}), ""},
		{"htu deeper", p.header(), proofClaimsOf(map[string]any{"htu": provedURL + "/"}), reason.DPoPProof},
		{"typ missing", h(replace(`"typ":"dpop+jwt",`, ``)), good, reason.DPoPProof},
		{"typ of a token", h(replace(`dpop+jwt`, `at+jwt`)), good, reason.DPoPProof},
		{"alg none", h(replace(`ES256`, `none`)), good, reason.DPoPProof},
		{"alg symmetric", h(replace(`ES256`, `HS256`)), good, reason.DPoPProof},
		{"alg not configured", h(replace(`ES256`, `ES384`)), good, reason.DPoPProof},
		{"alg of another kind of key", h(replace(`ES256`, `EdDSA`)), good, reason.DPoPProof},
		{"jwk missing", `{"typ":"dpop+jwt","alg":"ES256"}`, good, reason.DPoPProof},
		{"jwk private", h(replace(`"crv"`, `"d":"AAAA","crv"`)), good, reason.DPoPProof},
		{"jwk symmetric", h(replace(`"crv"`, `"k":"AAAA","crv"`)), good, reason.DPoPProof},
		{"jwk for encryption", h(replace(`"crv"`, `"use":"enc","crv"`)), good, reason.DPoPProof},
		{"jwk for another algorithm", h(replace(`"crv"`, `"alg":"ES384","crv"`)), good, reason.DPoPProof},
		{"jwk in other case", h(replace(`"crv"`, `"KTY":"EC","crv"`)), good, reason.DPoPProof},
		{"jwk by URL", h(replace(`"typ"`, `"jku":"https://evil.example","typ"`)), good, reason.DPoPProof},
		{"certificates", h(replace(`"typ"`, `"x5c":["AA=="],"typ"`)), good, reason.DPoPProof},
		{"crit", h(replace(`"typ"`, `"crit":["exp"],"typ"`)), good, reason.DPoPProof},
		{"duplicate jwk", h(replace(`"typ"`, `"jwk":`+other.jwk+`,"typ"`)), good, reason.DPoPProof},
		{"of another key", other.header(), good, reason.BindingMismatch},
	} {
		t.Run(row.name, func(t *testing.T) {
			by := p
			if row.want == reason.BindingMismatch {
				by = other
			}
			d := judge(t, nil)
			_, f := d.prove(t.Context(), proofRequest(by.sign(t, row.header, row.claims)), &Principal{Confirm: Confirmation{JKT: p.jkt()}}, provedToken, nil)
			if got := reasonOf(f); got != row.want {
				t.Errorf("%q (%v), want %q", got, f, row.want)
			}
		})
	}
	proof := p.sign(t, p.header(), good)
	for name, r := range map[string]*canon.Request{
		"none": proofRequest(), "two": proofRequest(proof, proof), "empty": proofRequest(""),
		"signature of another": proofRequest(other.sign(t, p.header(), good)),
		"signature cut":        proofRequest(proof[:len(proof)-4]),
		"padding":              proofRequest(proof + "="),
		"four segments":        proofRequest(proof + ".AAAA"),
		"list":                 proofRequest(proof + "," + proof),
	} {
		if _, f := judge(t, nil).prove(t.Context(), r, &Principal{Confirm: Confirmation{JKT: p.jkt()}}, provedToken, nil); reasonOf(f) != reason.DPoPProof {
			t.Errorf("%s: %v", name, f)
		}
	}
}

func reasonOf(f *Failure) reason.Reason {
	if f == nil {
		return ""
	}
	return f.Reason
}

// Ed25519 goes under the old and the new name.
func TestProofsOfEd25519(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	jwk := fmt.Sprintf(`{"crv":"Ed25519","kty":"OKP","x":%q}`, enc(pub))
	sum := sha256.Sum256([]byte(jwk))
	for _, alg := range []string{"EdDSA", "Ed25519"} {
		text := enc([]byte(`{"typ":"dpop+jwt","alg":"`+alg+`","jwk":`+jwk+`}`)) + "." + enc([]byte(proofClaimsOf(nil)))
		proof := text + "." + enc(ed25519.Sign(key, []byte(text)))
		p := &Principal{Confirm: Confirmation{JKT: enc(sum[:])}}
		if _, f := judge(t, nil).prove(t.Context(), proofRequest(proof), p, provedToken, nil); f != nil {
			t.Errorf("%s: %v", alg, f)
		}
	}
}

// A proof that is not good in every point uses up nothing.
func TestBadProofsUseUpNothing(t *testing.T) {
	p, other := newProver(t), newProver(t)
	d := judge(t, nil)
	claims := proofClaimsOf(nil)
	who := &Principal{Confirm: Confirmation{JKT: p.jkt()}}
	for range 3 {
		if _, f := d.prove(t.Context(), proofRequest(other.sign(t, p.header(), claims)), who, provedToken, nil); reasonOf(f) != reason.DPoPProof {
			t.Fatal(f)
		}
	}
	if _, f := d.prove(t.Context(), proofRequest(p.sign(t, p.header(), claims)), who, provedToken, nil); f != nil {
		t.Fatalf("the first good one: %v", f)
	}
	if _, f := d.prove(t.Context(), proofRequest(p.sign(t, p.header(), claims)), who, provedToken, nil); reasonOf(f) != reason.TokenReplayed {
		t.Fatalf("the same jti in another proof: %v", f)
	}
}

// failingOnce is a store that is away, or was never asked.
type failingOnce struct {
	fresh bool
	err   error
}

func (o failingOnce) Use(context.Context, Use) (bool, error) { return o.fresh, o.err }

// What the store says decides, and that it is away is told apart.
func TestProofStore(t *testing.T) {
	p := newProver(t)
	who := &Principal{Confirm: Confirmation{JKT: p.jkt()}}
	for _, row := range []struct {
		fresh bool
		err   error
		want  reason.Reason
		local bool
	}{
		{true, nil, "", false},
		{false, nil, reason.TokenReplayed, false},
		{false, ErrForgot, reason.TokenReplayed, false},
		{false, ErrFull, reason.Overloaded, false},
		{false, errors.New("disk"), reason.LimiterUnavailable, false},
		{true, errors.New("disk"), reason.LimiterUnavailable, false},
		{true, &LocalOnly{errors.New("away")}, "", true},
		{false, &LocalOnly{errors.New("away")}, reason.TokenReplayed, true},
	} {
		d := judge(t, func(c *DPoPConfig) { c.Once = failingOnce{row.fresh, row.err} })
		found, f := d.prove(t.Context(), proofRequest(p.sign(t, p.header(), proofClaimsOf(nil))), who, provedToken, nil)
		if reasonOf(f) != row.want || found.Local != row.local {
			t.Errorf("%v %v: %v, local %v", row.fresh, row.err, f, found.Local)
		}
		// A one-time token is never left to this node alone.
		f2 := reason.Reason("")
		var fail *Failure
		err := NewOneTime(failingOnce{row.fresh, row.err}, 0).Check(t.Context(), nil, &Principal{TokenID: "a", Expires: provedAt})
		if errors.As(err, &fail) {
			f2 = fail.Reason
		}
		want := row.want
		if row.local {
			want = reason.LimiterUnavailable
		}
		if f2 != want {
			t.Errorf("one-time %v %v: %q, want %q", row.fresh, row.err, f2, want)
		}
	}
}

// Nonces: that of this period and the one before, nobody else's.
func TestNonces(t *testing.T) {
	n := NewNonces([32]byte{1}, time.Minute)
	at := provedAt.Truncate(time.Minute)
	nonce := n.At(at)
	for _, row := range []struct {
		nonce  string
		by     *Nonces
		later  time.Duration
		ok     bool
		rotate bool
	}{
		{nonce, n, 0, true, false},
		{nonce, n, 59 * time.Second, true, false},
		{nonce, n, time.Minute, true, true},
		{nonce, n, 2*time.Minute - time.Second, true, true},
		{nonce, n, 2 * time.Minute, false, true},
		{nonce, n, -time.Second, false, true},
		{nonce, NewNonces([32]byte{2}, time.Minute), 0, false, true},
		{nonce, NewNonces([32]byte{1}, time.Minute), 0, true, false},
		{"", n, 0, false, true},
		{nonce[:31], n, 0, false, true},
	} {
		ok, fresh := row.by.check(row.nonce, at.Add(row.later))
		if ok != row.ok || (fresh != "") != row.rotate {
			t.Errorf("%q after %v: %v %q", row.nonce, row.later, ok, fresh)
		}
		if fresh != "" && fresh != row.by.At(at.Add(row.later)) {
			t.Errorf("after %v the client is told %q", row.later, fresh)
		}
	}
}

// The origin that a proof must be for follows from the host asked for.
func TestProofOrigins(t *testing.T) {
	p := newProver(t)
	who := &Principal{Confirm: Confirmation{JKT: p.jkt()}}
	two := []string{"https://api.example.com", "https://other.example.com:8443"}
	for _, row := range []struct {
		origins   []string
		authority string
		htu       string
		want      reason.Reason
	}{
		{two, "api.example.com", "https://api.example.com/v1/a", ""},
		{two, "other.example.com:8443", "https://other.example.com:8443/v1/a", ""},
		{two, "api.example.com", "https://other.example.com:8443/v1/a", reason.DPoPProof},
		{two, "third.example.com", "https://api.example.com/v1/a", reason.DPoPProof},
		{two, "third.example.com", "https://third.example.com/v1/a", reason.DPoPProof},
		{two[:1], "gate-1.internal:8081", "https://api.example.com/v1/a", ""},
		{two[:1], "gate-1.internal:8081", "https://gate-1.internal:8081/v1/a", reason.DPoPProof},
	} {
		d := judge(t, func(c *DPoPConfig) { c.Origins = row.origins })
		r := proofRequest(p.sign(t, p.header(), proofClaimsOf(map[string]any{"htu": row.htu})))
		r.Authority = row.authority
		if _, f := d.prove(t.Context(), r, who, provedToken, nil); reasonOf(f) != row.want {
			t.Errorf("%s for %s: %v", row.htu, row.authority, f)
		}
	}
	for _, c := range []DPoPConfig{
		{}, {Origins: two}, {Origins: []string{"https://a/b"}}, {Origins: []string{"a"}}, {Origins: []string{"https://a", "http://a"}},
	} {
		c.Once = failingOnce{}
		if c.Algorithms == nil && len(c.Origins) != 2 {
			c.Algorithms = []string{"ES256"}
		}
		if _, err := NewDPoP(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// Two spellings of one URI are one, two URIs are two.
func TestURIs(t *testing.T) {
	for in, want := range map[string]string{
		"https://a":                  "https://a/",
		"HTTPS://A.B./":              "https://a.b/",
		"https://a:443/x":            "https://a/x",
		"http://a:80/x":              "http://a/x",
		"https://a:80/x":             "https://a:80/x",
		"https://[::1]:8443/":        "https://[::1]:8443/",
		"https://[0:0::1]/":          "https://[::1]/",
		"https://a/%7euser/%2f":      "https://a/~user/%2F",
		"https://a/b/../c/./d":       "https://a/c/d",
		"https://a/b/..":             "https://a/",
		"https://a/../../b":          "https://a/b",
		"https://a/b/%2e%2e/c":       "https://a/c",
		"https://a/.well-known/x":    "https://a/.well-known/x",
		"https://a/x?q=/../y#/../z":  "https://a/x",
		"https://a?x":                "https://a/",
		"https://a//b/":              "https://a//b/",
		"https://a/{x}|":             "https://a/%7Bx%7D%7C",
		"ftp://a/":                   "",
		"https:/a":                   "",
		"//a/b":                      "",
		"https://":                   "",
		"https://u:p@a/":             "",
		"https://a:0/":               "",
		"https://a:443443/":          "",
		"https://a:0443/":            "",
		"https://a/%zz":              "",
		"https://a/%2":               "",
		"https://a/b c":              "",
		"https://a\\b/":              "",
		"https://../":                "",
		"https://a..b/":              "",
		"https://ä/":                 "",
		"https://a/\x00":             "",
		"https://[::1%25eth0]/":      "",
		"https://[1.2.3.4]/":         "",
		strings.Repeat("h", 5000):    "",
		"https://a*b/":               "",
		"https://a:/x":               "https://a/x",
		"https://a/;p=1":             "https://a/;p=1",
		"https://a/%25%32e%32e/x":    "https://a/%252e2e/x",
		"https://a/x%2F..%2Fy":       "https://a/x%2F..%2Fy",
		"https://EXAMPLE.com/A%2Fb":  "https://example.com/A%2Fb",
		"https://example.com/a/../%": "",
	} {
		u, err := parseURI(in)
		if got := u.origin + u.path; err == nil && got != want || err != nil && want != "" {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
}

// FuzzProof: a proof that is taken is so in one spelling only and says which
// key it is of.
func FuzzProof(f *testing.F) {
	p := newProver(f)
	allowed := []*algorithm{proofAlgorithm("ES256"), proofAlgorithm("EdDSA"), proofAlgorithm("Ed25519"), proofAlgorithm("RS256")}
	f.Add(p.sign(f, p.header(), proofClaimsOf(nil)))
	f.Add(p.sign(f, strings.Replace(p.header(), `"typ"`, `"d":1,"typ"`, 1), proofClaimsOf(map[string]any{"htu": "https://a/../b", "nonce": "x"})))
	f.Add(p.sign(f, `{"typ":"dpop+jwt","alg":"RS256","jwk":{"kty":"RSA","n":"AQAB","e":"AQAB"}}`, `{"jti":"a"}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		pr, err := parseProof(raw, allowed)
		if err != nil {
			return
		}
		if len(pr.jkt) != 43 || pr.pub == nil || pr.alg == nil || !pr.alg.fits(pr.pub) || pr.jti == "" || pr.htm == "" || pr.iat < 0 {
			t.Fatalf("incomplete: %+v", pr)
		}
		again, err := parseProof(raw, allowed)
		if err != nil || again.jkt != pr.jkt || again.htu != pr.htu {
			t.Fatalf("read otherwise the second time: %v", err)
		}
		pr.verify()
	})
}

// FuzzURI: the normal form is its own normal form, and holds nothing that could
// be taken for another path.
func FuzzURI(f *testing.F) {
	for _, s := range []string{"https://a", "http://[::1]:80/%2e%2E/x?y#z", "HTTPS://..", "HTTPS://A.b.:443/a/./b/../c%7e%2f", "https://a/{b}|^`"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseURI(s)
		if err != nil {
			return
		}
		again, err := parseURI(u.origin + u.path)
		if err != nil || again != u {
			t.Fatalf("%q gives %+v, that gives %+v (%v)", s, u, again, err)
		}
		for _, seg := range strings.Split(u.path, "/") {
			if seg == "." || seg == ".." {
				t.Fatalf("%q gives %q", s, u.path)
			}
		}
		if u.path[0] != '/' || strings.ContainsAny(u.path, "?#\\ ") {
			t.Fatalf("%q gives %q", s, u.path)
		}
	})
}
