package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/config"
)

// ca is an authority of client certificates.
type ca struct {
	t     testing.TB
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	above *ca // nil: it vouches for itself
	lists int64
}

var serials atomic.Int64

func newCA(t testing.TB, name string, above *ca, change func(*x509.Certificate)) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &ca{t: t, key: key, above: above}
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(100 * 24 * time.Hour),
	}
	if change != nil {
		change(c)
	}
	signer := a
	if above != nil {
		signer = above
	}
	a.cert = signer.sign(c, key)
	return a
}

func (a *ca) sign(c *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	if c.SerialNumber == nil {
		c.SerialNumber = big.NewInt(1000 + serials.Add(1))
	}
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

func (a *ca) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// client makes a client's certificate, with the authorities between as the
// client sends them.
func (a *ca) client(name string, change func(*x509.Certificate), between ...*ca) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	if change != nil {
		change(c)
	}
	leaf := a.sign(c, key)
	out := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, b := range between {
		out.Certificate = append(out.Certificate, b.cert.Raw)
	}
	return out
}

// list is the authority's list of revoked certificates. until is when it ends,
// from now.
func (a *ca) list(until time.Duration, revoked ...*x509.Certificate) string {
	a.t.Helper()
	a.lists++
	now := time.Now().Truncate(time.Second)
	l := &x509.RevocationList{Number: big.NewInt(a.lists), ThisUpdate: now.Add(time.Duration(a.lists)*time.Second - 10*time.Minute), NextUpdate: now.Add(until)}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now})
	}
	if until < 0 {
		l.ThisUpdate = l.NextUpdate.Add(-time.Hour)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func put(t testing.TB, path config.Path, text string) {
	t.Helper()
	// As tools replace such a file: a new one takes the name.
	if err := os.WriteFile(string(path)+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(string(path)+".new", string(path)); err != nil {
		t.Fatal(err)
	}
}

// pki is an anchor with an intermediate below it, and what they issued.
type pki struct {
	root, mid, other *ca
}

func newPKI(t testing.TB) pki {
	root := newCA(t, "root", nil, nil)
	return pki{root, newCA(t, "mid", root, nil), newCA(t, "root", nil, nil)} // the other one has the same name
}
