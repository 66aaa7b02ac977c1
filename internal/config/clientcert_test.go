package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// issuing is an authority that makes lists of revoked certificates.
type issuing struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newIssuing(t testing.TB, name string, ca bool) *issuing {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if !ca {
		c.KeyUsage = x509.KeyUsageDigitalSignature
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &issuing{t, key, c}
}

func (i *issuing) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}))
}

// list makes a revocation list of serial 7.
func (i *issuing) list(change func(*x509.RevocationList)) []byte {
	i.t.Helper()
	l := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: time.Now()}},
	}
	if change != nil {
		change(l)
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, i.cert, i.key)
	if err != nil {
		i.t.Fatal(err)
	}
	return der
}

func crlPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

func TestParseAuthorities(t *testing.T) {
	a, b, leaf := newIssuing(t, "A", true), newIssuing(t, "B", true), newIssuing(t, "leaf", false)
	key := "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	for _, row := range []struct {
		name, text, want string
		n                int
	}{
		{name: "two", text: "# words\n" + a.pem() + b.pem(), n: 2},
		{name: "none", text: "", want: "no certificate"},
		{name: "words", text: "hello", want: "no certificate"},
		{name: "an end entity", text: a.pem() + leaf.pem(), want: `the certificate of "CN=leaf" is not that of an authority`},
		{name: "a key among them", text: a.pem() + key, want: `a PEM block "PRIVATE KEY"`},
		{name: "garbage inside", text: a.pem() + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", want: "cannot be read"},
		{name: "cut off", text: a.pem() + b.pem()[:200], want: "a PEM block that cannot be read"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := ParseAuthorities([]byte(row.text))
			if row.want == "" && (err != nil || len(got) != row.n) || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%d certificates, %v; want %d, %q", len(got), err, row.n, row.want)
			}
		})
	}
}

func TestParseRevocations(t *testing.T) {
	a, b := newIssuing(t, "A", true), newIssuing(t, "B", true)
	twin := newIssuing(t, "A", true) // another key of the same name
	authorities := []*x509.Certificate{a.cert, b.cert}
	extension := func(id asn1.ObjectIdentifier, critical bool) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: id, Critical: critical, Value: []byte{0x30, 0}}}
		}
	}
	broken := a.list(nil)
	broken[len(broken)-1] ^= 1
	for _, row := range []struct {
		name string
		data []byte
		want string
		n    int
	}{
		{name: "DER", data: a.list(nil), n: 1},
		{name: "PEM", data: []byte(crlPEM(a.list(nil))), n: 1},
		{name: "of two", data: []byte(crlPEM(a.list(nil)) + "words\n" + crlPEM(b.list(nil))), n: 2},
		{name: "one that has run out is for others to judge", data: a.list(func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), n: 1},
		{name: "none", data: nil, want: "no revocation list"},
		{name: "words", data: []byte("hello"), want: "no revocation list"},
		{name: "garbage", data: []byte(crlPEM([]byte("hello"))), want: "not a certificate revocation list"},
		{name: "signed by another of that name", data: twin.list(nil), want: "is signed by none of client_ca"},
		{name: "broken signature", data: broken, want: "is signed by none of client_ca"},
		{name: "one that does not count for all", data: a.list(extension(asn1.ObjectIdentifier{2, 5, 29, 28}, true)), want: "not a whole one (critical extension 2.5.29.28)"},
		{name: "a delta", data: a.list(extension(asn1.ObjectIdentifier{2, 5, 29, 27}, true)), want: "not a whole one (critical extension 2.5.29.27)"},
		{name: "an extension that may be left unread", data: a.list(extension(asn1.ObjectIdentifier{2, 5, 29, 46}, false)), n: 1},
		{name: "entries of others", data: a.list(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}}
		}), want: "critical extension 2.5.29.29"},
		{name: "two of one", data: []byte(crlPEM(a.list(nil)) + crlPEM(a.list(nil))), want: "two revocation lists"},
		{name: "a certificate among them", data: []byte(crlPEM(a.list(nil)) + a.pem()), want: `a PEM block "CERTIFICATE"`},
		{name: "cut off", data: []byte(crlPEM(a.list(nil)) + crlPEM(b.list(nil))[:100]), want: "a PEM block that cannot be read"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := ParseRevocations(row.data, authorities)
			if row.want == "" && (err != nil || len(got) != row.n) || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%d lists, %v; want %d, %q", len(got), err, row.n, row.want)
			}
		})
	}
}

// FuzzParseRevocations: whatever is accepted is signed by the authority that it
// is said to be of.
func FuzzParseRevocations(f *testing.F) {
	a, b := newIssuing(f, "A", true), newIssuing(f, "B", true)
	f.Add(a.list(nil))
	f.Add([]byte(crlPEM(a.list(nil)) + crlPEM(b.list(nil))))
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lists, err := ParseRevocations(data, []*x509.Certificate{a.cert, b.cert})
		if err == nil && len(lists) == 0 {
			t.Error("no list and no error")
		}
		for list, issuer := range lists {
			if err := list.CheckSignatureFrom(issuer); err != nil || list.NextUpdate.IsZero() {
				t.Errorf("a list that nobody signed: %v", err)
			}
		}
	})
}

// FuzzParseAuthorities: nothing that is no authority gets in, and nothing in
// the file is skipped.
func FuzzParseAuthorities(f *testing.F) {
	a := newIssuing(f, "A", true)
	f.Add([]byte(a.pem()))
	f.Add([]byte(a.pem() + a.pem()))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := ParseAuthorities(data)
		if err != nil {
			return
		}
		for _, c := range list {
			if !c.IsCA {
				t.Errorf("%s is no authority", c.Subject)
			}
		}
		if len(list) == 0 || len(list) < bytes.Count(data, []byte("-----BEGIN CERTIFICATE-----")) {
			t.Errorf("%d certificates of %d blocks", len(list), bytes.Count(data, []byte("-----BEGIN CERTIFICATE-----")))
		}
	})
}

// TestCheckClientCertificates: the files of client certificates are looked at
// before they are needed.
func TestCheckClientCertificates(t *testing.T) {
	cert, key, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca, other := newIssuing(t, "A", true), newIssuing(t, "B", true)
	for _, row := range []struct {
		name     string
		ca, crl  string // "-": no such file
		problems []string
	}{
		{name: "good", ca: ca.pem(), crl: crlPEM(ca.list(nil))},
		{name: "no files", ca: "-", crl: "-", problems: []string{"tls.client_ca: no such file"}},
		{name: "no list", ca: ca.pem(), crl: "-", problems: []string{"tls.crl: no such file"}},
		{name: "empty authorities", ca: "", crl: "-", problems: []string{"tls.client_ca: no certificate"}},
		{name: "empty list", ca: ca.pem(), crl: "", problems: []string{"tls.crl: no revocation list"}},
		{name: "a list of others", ca: ca.pem(), crl: crlPEM(other.list(nil)), problems: []string{"tls.crl: the revocation list of \"CN=B\" is signed by none of client_ca"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			files := map[string]string{
				"gatebook.yaml": strings.Replace(onDisk, "        - {cert: api.crt, key: api.key}\n", "        - {cert: api.crt, key: api.key}\n      client_ca: clients.pem\n      client_auth: required\n      crl: clients.crl\n", 1),
				"api.crt":       string(cert), "api.key": string(key), "ca.pem": string(cert), "keys.json": `{"keys": [{"kty": "EC"}]}`, "keys/x": "", "data/x": "",
				"policies/a.cedar": "", "policies/schema.cedarschema": "", "policies/tests/a.json": "",
			}
			for name, text := range map[string]string{"clients.pem": row.ca, "clients.crl": row.crl} {
				if text != "-" {
					files[name] = text
				}
			}
			dir := put(t, files)
			for _, d := range []string{"keys", "data"} {
				if err := os.Chmod(filepath.Join(dir, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			f, err := Load(filepath.Join(dir, "gatebook.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			problems := Check(f)
			got := 0
			if problems != nil {
				got = problems.Len()
			}
			if got != len(row.problems) {
				t.Fatalf("%d problems, want %d:\n%v", got, len(row.problems), problems)
			}
			for _, want := range row.problems {
				if !strings.Contains(problems.Error(), want) {
					t.Errorf("no %q in\n%v", want, problems)
				}
			}
		})
	}
}
