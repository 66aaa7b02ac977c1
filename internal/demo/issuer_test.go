package demo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", url, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatal(err)
	}
}

func unb64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A token verifies with nothing but what the issuer publishes.
func TestTokenVerifiesWithPublishedKey(t *testing.T) {
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	defer srv.Close()
	s, err := newIssuer(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	h, err := s.handler()
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/", h)

	var meta struct {
		Issuer string
		JWKS   string `json:"jwks_uri"`
	}
	getJSON(t, srv.URL+"/.well-known/oauth-authorization-server", &meta)
	if meta.Issuer != srv.URL {
		t.Errorf("issuer %q", meta.Issuer)
	}
	var set struct {
		Keys []struct{ Kty, Crv, Alg, Kid, X, Y string }
	}
	getJSON(t, meta.JWKS, &set)
	if len(set.Keys) != 1 {
		t.Fatalf("%d keys", len(set.Keys))
	}
	k := set.Keys[0]
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, unb64(t, k.X)...), unb64(t, k.Y)...))
	if err != nil {
		t.Fatal(err)
	}

	now := time.Unix(1_800_000_000, 0)
	for range 50 { // r and s begin with zeros now and then
		token, err := s.token(clerk, now)
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(token, ".")
		if len(parts) != 3 {
			t.Fatalf("token of %d parts", len(parts))
		}
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		sig := unb64(t, parts[2])
		if len(sig) != 64 || !ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
			t.Fatalf("bad signature of %d bytes", len(sig))
		}
		var head struct{ Alg, Typ, Kid string }
		if err := json.Unmarshal(unb64(t, parts[0]), &head); err != nil || head.Alg != "ES256" || head.Typ != "at+jwt" || head.Kid != k.Kid {
			t.Errorf("header %+v, %v", head, err)
		}
		var claims struct {
			Iss, Aud, Sub string
			Iat, Exp      int64
			Roles         []string
		}
		if err := json.Unmarshal(unb64(t, parts[1]), &claims); err != nil {
			t.Fatal(err)
		}
		if claims.Iss != srv.URL || claims.Aud != audience || claims.Sub != "cleo" || claims.Iat != now.Unix() || claims.Exp != now.Unix()+3600 || len(claims.Roles) != 1 || claims.Roles[0] != "clerk" {
			t.Errorf("claims %+v", claims)
		}
	}
}

func TestWriteTokens(t *testing.T) {
	s, err := newIssuer("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	seen := map[string]bool{}
	now := time.Now()
	for range 2 { // made, then replaced
		if err := s.writeTokens(dir, now); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 4 {
			t.Errorf("%d files", len(entries))
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if seen[string(b)] {
				t.Errorf("%s was not replaced", e.Name())
			}
			seen[string(b)] = true
			if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", e.Name(), st.Mode(), err)
			}
			var claims struct{ Exp int64 }
			if err := json.Unmarshal(unb64(t, strings.Split(string(b), ".")[1]), &claims); err != nil {
				t.Fatal(err)
			}
			if expired := claims.Exp < now.Unix(); expired != (e.Name() == late.File) {
				t.Errorf("%s: expired %v", e.Name(), expired)
			}
		}
	}
}

func TestOrders(t *testing.T) {
	srv := httptest.NewServer(newOrders().handler())
	defer srv.Close()
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/orders", "", 200, `[{"id":"1042","item":"brass lamp","status":"open"},{"id":"1043"`},
		{"GET", "/v1/orders/1042", "", 200, `"status":"open","asked_by":"ada"}`},
		{"POST", "/v1/orders/1042", `{"status":"packed"}`, 200, `"status":"packed"`},
		{"GET", "/v1/orders/1042", "", 200, `"status":"packed"`},
		{"GET", "/v1/orders/7", "", 404, "no such order"},
		{"POST", "/v1/orders/7", `{"status":"packed"}`, 404, "no such order"},
		{"POST", "/v1/orders/1042", `{}`, 400, "send"},
		{"POST", "/v1/orders/1042", `{"status":"` + strings.Repeat("x", maxOrder) + `"}`, 400, "send"},
		{"DELETE", "/v1/orders/1042", "", 405, ""},
	} {
		req, err := http.NewRequest(c.method, srv.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Gatebook-Subject", "ada")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !strings.Contains(string(b), c.want) {
			t.Errorf("%s %s: %s %q, %v", c.method, c.path, resp.Status, b, err)
		}
	}
}

// The port refuses, and nobody else can take it.
func TestDownPort(t *testing.T) {
	d, err := holdDownPort()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if c, err := net.DialTimeout("tcp", d.addr, 5*time.Second); err == nil {
			c.Close()
			t.Fatal("something answers")
		}
	}
	if l, err := net.Listen("tcp", d.addr); err == nil {
		l.Close()
		t.Error("the port could be taken")
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
}
