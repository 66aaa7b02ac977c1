package config

import (
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
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// templates holds what Init writes.
//
//go:embed templates
var templates embed.FS

// InitOptions is what Init must know. Upstream and Issuer are required.
type InitOptions struct {
	Upstream string // base URL of the service behind the gate
	Issuer   string // issuer of the access tokens
	Preset   string // default rfc9068
	Audience string // default https://api.example.com, to be changed
	Name     string // name of the node; default gate-1
	Origin   string // prefix of the log's name; default localhost/gatebook

	// SelfSigned makes a certificate for localhost and the loopback addresses,
	// good for trying out only, in place of CertFile and KeyFile. With neither,
	// the gate listens on loopback behind a proxy.
	SelfSigned        bool
	CertFile, KeyFile string
}

func (o *InitOptions) setDefaults() {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&o.Preset, "rfc9068")
	set(&o.Audience, "https://api.example.com")
	set(&o.Name, "gate-1")
	set(&o.Origin, "localhost/gatebook")
	if o.SelfSigned {
		o.CertFile, o.KeyFile = "tls/localhost.crt", "tls/localhost.key"
	}
}

func (o *InitOptions) validate() error {
	if (o.CertFile == "") != (o.KeyFile == "") {
		return errors.New("a certificate and its key go together; name both files")
	}
	p := presetNamed(o.Preset)
	if p.name != o.Preset {
		var names []string
		for _, p := range presets() {
			names = append(names, p.name)
		}
		return fmt.Errorf("unknown preset %s; %s", quote(o.Preset), didYouMean(o.Preset, names, "known are "+list(names)))
	}
	if p.refuse != "" {
		return fmt.Errorf("the preset %s can accept no token: %s", p.name, p.refuse)
	}
	for _, v := range []struct{ what, value, form string }{
		{"upstream", o.Upstream, "target"}, {"issuer", o.Issuer, "issuer"}, {"audience", o.Audience, "text"},
		{"node name", o.Name, "node"}, {"origin", o.Origin, "origin"},
	} {
		if v.value == "" {
			return fmt.Errorf("the %s is not given", v.what)
		}
		if what, hint := forms(v.form).check(v.value); what != "" {
			return fmt.Errorf("the %s is %s; %s", v.what, what, hint)
		}
	}
	return nil
}

// initFile is one file or directory that Init makes.
type initFile struct {
	name string // relative to the directory
	mode fs.FileMode
	data []byte // nil: a directory
}

// Init writes a configuration that runs, with every choice commented, into
// dir, with example policies and their test, a directory for keys (which the
// caller fills) and, if asked, a certificate. It overwrites nothing: if
// anything it would make is there already, it makes nothing. It returns the
// names of what it made.
func Init(dir string, opts InitOptions) (created []string, err error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	files, err := initFiles(dir, opts)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if _, err := os.Lstat(name); err == nil {
			return nil, fmt.Errorf("%s exists already and is left alone; choose another directory or remove it", name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	for _, f := range files {
		name := filepath.Join(dir, f.name)
		if err := writeNew(name, f); err != nil {
			return nil, errors.Join(err, removeAll(created))
		}
		created = append(created, name)
	}
	return created, nil
}

// initFiles makes the contents, directories before what is in them.
func initFiles(dir string, opts InitOptions) ([]initFile, error) {
	file := filepath.Join(dir, "gatebook.yaml")
	text, err := renderInit(file, opts)
	if err != nil {
		return nil, err
	}
	files := []initFile{{"gatebook.yaml", 0o640, text}, {"keys", 0o700, nil}}
	if opts.SelfSigned {
		cert, key, err := selfSigned(time.Now())
		if err != nil {
			return nil, fmt.Errorf("cannot make a certificate: %w", err)
		}
		files = append(files, initFile{"tls", 0o750, nil},
			initFile{opts.CertFile, 0o644, cert}, initFile{opts.KeyFile, 0o600, key})
	}
	err = fs.WalkDir(templates, "templates/policies", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(name, "templates/")
		if e.IsDir() {
			files = append(files, initFile{rel, 0o750, nil})
			return nil
		}
		data, err := templates.ReadFile(name)
		files = append(files, initFile{rel, 0o640, data})
		return err
	})
	return files, err
}

// renderInit fills the template and proves that the result is accepted.
func renderInit(file string, opts InitOptions) ([]byte, error) {
	t, err := template.New("gatebook.yaml.tmpl").Funcs(template.FuncMap{"q": strconv.Quote}).ParseFS(templates, "templates/gatebook.yaml.tmpl")
	if err != nil {
		return nil, err
	}
	rules := presetNamed(opts.Preset).rules
	types := slices.Clone(rules.Types)
	if rules.AllowNoType {
		types = append(types, AbsentType)
	}
	var b strings.Builder
	err = t.Execute(&b, map[string]any{
		"File": file, "Name": opts.Name, "Origin": opts.Origin, "Cert": opts.CertFile, "Key": opts.KeyFile,
		"Preset": opts.Preset, "Issuer": opts.Issuer, "Audience": opts.Audience, "Upstream": opts.Upstream,
		"UpstreamTLS": strings.HasPrefix(opts.Upstream, "https:"),
		"Algorithms":  strings.Join(rules.Algorithms, ", "), "Types": strings.Join(types, ", "),
		"MaxLifetime": Duration(rules.MaxLifetime).String(), "RolesClaim": rules.RolesClaim,
	})
	if err != nil {
		return nil, err
	}
	if _, problems := Parse(file, []byte(b.String())); problems != nil {
		return nil, fmt.Errorf("these options make no valid configuration:\n%w", problems)
	}
	return []byte(b.String()), nil
}

func writeNew(name string, f initFile) error {
	if f.data == nil {
		if err := os.Mkdir(name, f.mode); err != nil {
			return err
		}
		return os.Chmod(name, f.mode) // whatever the umask
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	_, err = file.Write(f.data)
	err = errors.Join(err, file.Chmod(f.mode), file.Close())
	if err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// removeAll undoes what was made, newest first.
func removeAll(names []string) error {
	var errs []error
	for _, n := range slices.Backward(names) {
		errs = append(errs, os.Remove(n))
	}
	return errors.Join(errs...)
}

// selfSignedLife is how long a self-signed certificate is good: long enough
// for trying out, short enough not to be forgotten in production.
const selfSignedLife = 90 * 24 * time.Hour

// selfSigned makes an ECDSA P-256 certificate for this machine's loopback
// names, and its key, both PEM.
func selfSigned(now time.Time) (cert, key []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)), // positive, RFC 5280 section 4.1.2.2
		Subject:               pkix.Name{CommonName: "localhost", Organization: []string{"Gatebook development certificate"}},
		NotBefore:             now.Add(-5 * time.Minute),
		NotAfter:              now.Add(selfSignedLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, priv.Public(), priv)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return cert, key, nil
}
