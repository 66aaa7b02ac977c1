package demo

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// files is what the demo's configuration is made of.
//
//go:embed files
var files embed.FS

// folder is where everything of a demo is.
type folder string

func (d folder) path(name string) string { return filepath.Join(string(d), name) }

// Files in the folder that are named to people.
const (
	configFile = "gatebook.yaml"
	certFile   = "tls/gate.crt"
	keyFile    = "tls/gate.key"
	secretFile = "demo-shop.secret"
	vkeyFile   = "log.vkey"
	logFile    = "gatebook.log"
	proofFile  = "denied.tlog-proof"
)

// makeFolder makes the folder: keep, which must be new or empty, or a
// temporary one.
func makeFolder(keep string) (folder, error) {
	if keep == "" {
		dir, err := os.MkdirTemp("", "gatebook-demo-")
		return folder(dir), err
	}
	dir, err := filepath.Abs(keep)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(names) > 0 {
		return "", &UsageError{fmt.Errorf("%s is not empty; name a new folder or an empty one", keep)}
	}
	return folder(dir), nil
}

// places are the addresses that the configuration names.
type places struct {
	Listen, Gate, Issuer, Audience, Orders, Reports string
}

// write makes the configuration, policies, their tests, the certificate and
// the empty folders for keys and tokens.
func (d folder) write(p places, now time.Time) error {
	for _, name := range []string{"keys", "tls", "tokens", "copies", "policies", "policies/tests"} {
		if err := os.Mkdir(d.path(name), 0o700); err != nil {
			return err
		}
	}
	t, err := template.New("gatebook.yaml.tmpl").Funcs(template.FuncMap{"q": strconv.Quote}).ParseFS(files, "files/gatebook.yaml.tmpl")
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := t.Execute(&text, p); err != nil {
		return err
	}
	cert, key, err := certificate(now)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{configFile: text.Bytes(), certFile: cert, keyFile: key, secretFile: []byte(rand.Text() + rand.Text() + "\n")} {
		if err := os.WriteFile(d.path(name), data, 0o600); err != nil {
			return err
		}
	}
	return d.writePolicies()
}

func (d folder) writePolicies() error {
	return fs.WalkDir(files, "files/policies", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(d.path(strings.TrimPrefix(name, "files/")), data, 0o600)
	})
}

// certificate makes a self-signed certificate for loopback that is its own
// authority, so that clients can be told to trust exactly it.
func certificate(now time.Time) (cert, key []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), // positive, RFC 5280 section 4.1.2.2
		Subject:      pkix.Name{CommonName: "Gatebook demo"},
		NotBefore:    now.Add(-5 * time.Minute), NotAfter: now.Add(30 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, priv.Public(), priv)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}

// UsageError means that the command line asked for something that cannot be.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

// errNoCertificate means that what was just written cannot be read.
var errNoCertificate = errors.New(certFile + " holds no certificate")
