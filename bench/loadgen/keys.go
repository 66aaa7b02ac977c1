package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

var b64 = base64.RawURLEncoding

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

// subjects is how many callers there are.
const subjects = 200

// keysMain writes keys and tokens (RFC 9068 access tokens of 12 hours): one for
// every subject into tokens.ALG, and COUNT different ones for the same subjects
// into fresh.ALG. Arguments: DIR ISSUER ALG COUNT.
func keysMain(args []string) {
	dir, issuer, alg := args[0], args[1], args[2]
	kid := map[string]string{"ES256": "e1", "RS256": "r1"}[alg]
	count := must(strconv.Atoi(args[3]))
	write := func(name, s string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
			log.Fatal(err)
		}
	}
	pemOf := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	rs := must(rsa.GenerateKey(rand.Reader, 2048))
	write("es256.pub.pem", pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&ec.PublicKey))))
	write("rs256.pub.pem", pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&rs.PublicKey))))
	pub := must(ec.PublicKey.ECDH()).Bytes()
	jwks := fmt.Sprintf(`{"keys":[{"kty":"EC","use":"sig","alg":"ES256","kid":"e1","crv":"P-256","x":%q,"y":%q},{"kty":"RSA","use":"sig","alg":"RS256","kid":"r1","e":"AQAB","n":%q}]}`,
		b64.EncodeToString(pub[1:33]), b64.EncodeToString(pub[33:]), b64.EncodeToString(rs.N.Bytes()))
	write("jwks.json", jwks)
	if err := os.MkdirAll(filepath.Join(dir, "www", ".well-known"), 0o755); err != nil {
		log.Fatal(err)
	}
	write("www/jwks.json", jwks)
	write("www/.well-known/openid-configuration", fmt.Sprintf(`{"issuer":%q,"authorization_endpoint":"%s/auth","token_endpoint":"%s/token","jwks_uri":"%s/jwks.json","response_types_supported":["code"],"subject_types_supported":["public"],"id_token_signing_alg_values_supported":["ES256","RS256"]}`, issuer, issuer, issuer, issuer))

	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature}
	tk := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	crt := pemOf("CERTIFICATE", must(x509.CreateCertificate(rand.Reader, cert, cert, &tk.PublicKey, tk)))
	key := pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(tk)))
	write("tls.crt", crt)
	write("tls.key", key)
	write("tls.both.pem", crt+key)

	s := signer{issuer, ec, rs}
	write("tokens."+strings.ToLower(alg), strings.Join(s.many(alg, kid, subjects), "\n")+"\n")
	write("fresh."+strings.ToLower(alg), strings.Join(s.many(alg, kid, count), "\n")+"\n")
}

type signer struct {
	issuer string
	ec     *ecdsa.PrivateKey
	rs     *rsa.PrivateKey
}

// many signs n different tokens on all cores.
func (s *signer) many(alg, kid string, n int) []string {
	out := make([]string, n)
	var wg sync.WaitGroup
	for w := range runtime.NumCPU() {
		wg.Go(func() {
			for i := w; i < n; i += runtime.NumCPU() {
				out[i] = s.sign(alg, kid, i)
			}
		})
	}
	wg.Wait()
	return out
}

func (s *signer) sign(alg, kid string, i int) string {
	now, sub := time.Now().Unix(), i%subjects
	head := must(json.Marshal(map[string]string{"alg": alg, "typ": "at+jwt", "kid": kid}))
	claims := must(json.Marshal(map[string]any{
		"iss": s.issuer, "aud": "bench", "sub": fmt.Sprintf("user-%04d", sub), "client_id": "web", "email": fmt.Sprintf("user-%04d@example.test", sub),
		"roles": []string{[]string{"admins", "readers", "writers", "auditors"}[sub%4], "staff"},
		"jti":   fmt.Sprintf("%08x", i), "iat": now - 60, "nbf": now - 60, "exp": now + 12*3600,
	}))
	msg := b64.EncodeToString(head) + "." + b64.EncodeToString(claims)
	sum := sha256.Sum256([]byte(msg))
	if alg != "ES256" {
		return msg + "." + b64.EncodeToString(must(rsa.SignPKCS1v15(rand.Reader, s.rs, crypto.SHA256, sum[:])))
	}
	r, t, err := ecdsa.Sign(rand.Reader, s.ec, sum[:])
	if err != nil {
		log.Fatal(err)
	}
	return msg + "." + b64.EncodeToString(append(r.FillBytes(make([]byte, 32)), t.FillBytes(make([]byte, 32))...))
}
