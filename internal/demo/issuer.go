package demo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// audience is what the demo's tokens are for.
const audience = "https://orders.demo.example"

// person is somebody with a token. File is its name in the folder "tokens".
type person struct {
	File, Subject, Name, Role string
}

// String is how the story names who asks.
func (p person) String() string {
	switch p {
	case late:
		return "clerk, with an expired token"
	case nobody:
		return "nobody"
	}
	return p.File
}

// The people of the demo.
var (
	admin   = person{"admin", "ada", "Ada Admin", "admin"}
	clerk   = person{"clerk", "cleo", "Cleo Clerk", "clerk"}
	auditor = person{"auditor", "otto", "Otto Auditor", "auditor"}
	late    = person{"expired", "cleo", "Cleo Clerk", "clerk"} // the clerk with yesterday's token
	nobody  = person{}
)

// How long tokens live and how often they are replaced. The preset rfc9068
// accepts an hour at most.
const (
	tokenLife  = time.Hour
	tokenRenew = 20 * time.Minute
)

// issuer makes ES256 access tokens in the form of RFC 9068 and publishes its
// metadata (RFC 8414) and keys (RFC 7517). It is immutable once made.
type issuer struct {
	url string
	key *ecdsa.PrivateKey
	kid string
}

func newIssuer(url string) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &issuer{url: url, key: key}
	x, y, err := s.point()
	if err != nil {
		return nil, err
	}
	// RFC 7638 section 3: these members in this order, without spaces.
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, x, y))
	s.kid = b64(sum[:])
	return s, nil
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// point is the public key as a JWK has it (RFC 7518 section 6.2.1).
func (s *issuer) point() (x, y string, err error) {
	b, err := s.key.PublicKey.Bytes() // 4, then x, then y
	if err != nil {
		return "", "", err
	}
	return b64(b[1:33]), b64(b[33:]), nil
}

// handler publishes metadata and keys.
func (s *issuer) handler() (http.Handler, error) {
	x, y, err := s.point()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	publish := func(path string, v any) error {
		b, err := json.Marshal(v)
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(b)
		})
		return err
	}
	err = publish("/.well-known/oauth-authorization-server", map[string]any{"issuer": s.url, "jwks_uri": s.url + "/keys", "response_types_supported": []string{}})
	if err != nil {
		return nil, err
	}
	return mux, publish("/keys", map[string]any{"keys": []map[string]string{
		{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": s.kid, "x": x, "y": y},
	}})
}

// token makes an access token that begins at iat and lives for an hour.
func (s *issuer) token(p person, iat time.Time) (string, error) {
	head, err := json.Marshal(map[string]string{"alg": "ES256", "typ": "at+jwt", "kid": s.kid})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": s.url, "aud": audience, "sub": p.Subject, "client_id": "demo-shop", "jti": rand.Text(),
		"iat": iat.Unix(), "exp": iat.Add(tokenLife).Unix(),
		"roles": []string{p.Role}, "name": p.Name, "email": p.Subject + "@demo.example",
	})
	if err != nil {
		return "", err
	}
	signed := b64(head) + "." + b64(claims)
	sum := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	var sig [64]byte // RFC 7518 section 3.4: r and s, 32 bytes each
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return signed + "." + b64(sig[:]), nil
}

// writeTokens puts everybody's token into a file of its own, each replaced as
// a whole, so that whoever reads one at that moment gets a good one.
func (s *issuer) writeTokens(dir string, now time.Time) error {
	for _, p := range []person{admin, clerk, auditor, late} {
		iat := now
		if p == late {
			iat = now.Add(-24 * time.Hour)
		}
		t, err := s.token(p, iat)
		if err != nil {
			return err
		}
		name := filepath.Join(dir, p.File)
		if err := os.WriteFile(name+".tmp", []byte(t), 0o600); err != nil {
			return err
		}
		if err := os.Rename(name+".tmp", name); err != nil {
			return err
		}
	}
	return nil
}
