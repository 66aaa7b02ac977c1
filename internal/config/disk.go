package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Check looks at the files that a configuration names: that they are there,
// readable, of the right kind, that certificates match their keys and are
// valid now, and that secrets are not open to others. It returns nil if all is
// well. It reads only.
func Check(f *File) *Problems {
	c := &checker{newReporter(f.source.name, f.source.text), f, time.Now()}
	c.directories()
	c.certificates()
	c.authorities()
	c.tokenClients()
	c.policies()
	c.secrets()
	c.sessions()
	c.sinks()
	return c.problems()
}

type checker struct {
	*reporter
	f   *File
	now time.Time
}

// blame reports a problem with the value at path, naming the file as the
// configuration does.
func (c *checker) blame(path string, name Path, what, hint string) {
	shown := string(name)
	if rel, err := filepath.Rel(c.f.source.dir, shown); err == nil && !strings.HasPrefix(rel, "..") {
		shown = rel
	}
	c.report(nearest(c.f.source.at, path), path, what+": "+quote(shown), hint)
}

// stat reports a file that is not there or not of the kind wanted.
func (c *checker) stat(path string, name Path, dir bool) (fs.FileInfo, bool) {
	info, err := os.Stat(string(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.blame(path, name, "no such "+kindName(dir), "create it or correct the name; relative names begin at the directory of this file")
	case err != nil:
		c.blame(path, name, "cannot be looked at ("+cause(err)+")", "check the permissions of the directories above it")
	case info.IsDir() != dir:
		c.blame(path, name, "a "+kindName(!dir)+" where a "+kindName(dir)+" is expected", "correct the name")
	default:
		return info, true
	}
	return nil, false
}

func kindName(dir bool) string {
	if dir {
		return "directory"
	}
	return "file"
}

// cause is an error without the file name, which the message gives already.
func cause(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

func (c *checker) read(path string, name Path) ([]byte, bool) {
	if _, ok := c.stat(path, name, false); !ok {
		return nil, false
	}
	b, err := readBounded(string(name))
	switch {
	case err != nil:
		c.blame(path, name, "cannot be read ("+cause(err)+")", "give this user permission to read it")
	case len(b) > maxFileSize:
		c.blame(path, name, fmt.Sprintf("larger than %d bytes", maxFileSize), "is this the right file?")
	default:
		return b, true
	}
	return nil, false
}

func (c *checker) directories() {
	keys := c.f.Keys.Wrapper.File
	if info, ok := c.stat("keys.wrapper.file", keys, true); ok && info.Mode().Perm()&0o077 != 0 {
		c.blame("keys.wrapper.file", keys, fmt.Sprintf("others may enter the key directory (mode %04o)", info.Mode().Perm()), "chmod 700 it")
	}
	// The data directory is made by init or book new; only what stands in its
	// place is judged here.
	info, err := os.Stat(string(c.f.Data))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		c.blame("data", c.f.Data, "cannot be looked at ("+cause(err)+")", "check the permissions of the directories above it")
	case !info.IsDir():
		c.blame("data", c.f.Data, "a file where a directory is expected", "correct the name")
	case info.Mode().Perm()&0o022 != 0:
		c.blame("data", c.f.Data, fmt.Sprintf("others may write to the data directory (mode %04o)", info.Mode().Perm()), "chmod 700 it")
	}
}

func (c *checker) certificates() {
	if t := c.f.Admin.TLS; t != nil {
		for j, cert := range t.Certificates {
			c.certificate(fmt.Sprintf("admin.tls.certificates[%d]", j), cert)
		}
		c.authority("admin.tls.client_ca", t.ClientCA)
	}
	for i := range c.f.Listen {
		if c.f.Listen[i].TLS == nil {
			continue
		}
		for j, cert := range c.f.Listen[i].TLS.Certificates {
			c.certificate(fmt.Sprintf("listen[%d].tls.certificates[%d]", i, j), cert)
		}
		c.clientCertificates(fmt.Sprintf("listen[%d].tls", i), c.f.Listen[i].TLS)
	}
}

func (c *checker) certificate(path string, cert Certificate) {
	if leaf := c.pair(path, cert); leaf != nil && len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
		c.blame(path+".cert", cert.Cert, "the certificate names no host (no subject alternative names)", "clients will refuse it; issue one with them")
	}
}

// pair reads a certificate with its key; nil if something was wrong with them.
func (c *checker) pair(path string, cert Certificate) *x509.Certificate {
	certPEM, certOK := c.read(path+".cert", cert.Cert)
	keyPEM, keyOK := c.read(path+".key", cert.Key)
	if keyOK {
		c.private(path+".key", cert.Key)
	}
	if !certOK || !keyOK {
		return nil
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		c.blame(path+".cert", cert.Cert, "not a certificate with its key ("+strings.TrimPrefix(err.Error(), "tls: ")+")", "both are PEM files; the chain begins with the certificate of this key")
		return nil
	}
	switch leaf := pair.Leaf; {
	case c.now.After(leaf.NotAfter):
		c.blame(path+".cert", cert.Cert, "the certificate expired on "+leaf.NotAfter.UTC().Format(time.RFC3339), "renew it")
	case c.now.Before(leaf.NotBefore):
		c.blame(path+".cert", cert.Cert, "the certificate is not valid before "+leaf.NotBefore.UTC().Format(time.RFC3339), "check the clock of this machine")
	default:
		return leaf
	}
	return nil
}

// private reports a secret that others may read. Reading by the group is left
// to the operator: that is how orchestrators hand secrets to a process.
func (c *checker) private(path string, name Path) {
	info, err := os.Stat(string(name))
	if err == nil && info.Mode().Perm()&0o027 != 0 {
		c.blame(path, name, fmt.Sprintf("others may read or change the private key (mode %04o)", info.Mode().Perm()), "chmod 600 it")
	}
}

func (c *checker) authorities() {
	for i, is := range c.f.Issuers {
		path := fmt.Sprintf("issuers[%d]", i)
		c.authority(path+".ca", is.CA)
		c.introspection(path, is.Introspection)
		if is.JWKS != nil && is.JWKS.File != "" {
			c.keySet(path+".jwks.file", is.JWKS.File)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.f.Upstreams)) {
		if t := c.f.Upstreams[name].TLS; t != nil {
			c.authority("upstreams."+name+".tls.ca", t.CA)
		}
	}
}

// tokenClients looks at what the clients of the token service prove themselves
// with.
func (c *checker) tokenClients() {
	if c.f.TokenService == nil {
		return
	}
	for i := range c.f.TokenService.Clients {
		cl, path := &c.f.TokenService.Clients[i], fmt.Sprintf("token_service.clients[%d]", i)
		if s := cl.Secret; s != nil && s.File != "" {
			if _, ok := c.read(path+".secret.file", s.File); ok {
				c.private(path+".secret.file", s.File)
				if _, err := cl.ClientSecret(); err != nil {
					c.blame(path+".secret.file", s.File, "not a client secret ("+err.Error()+")", "write one line of printable characters")
				}
			}
		}
		if cl.Keys != nil && cl.Keys.File != "" {
			c.keySet(path+".keys.file", cl.Keys.File)
		}
		c.authority(path+".own_certificates", cl.Own)
	}
}

func (c *checker) authority(path string, name Path) {
	if name == "" {
		return
	}
	data, ok := c.read(path, name)
	if !ok {
		return
	}
	n := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			c.blame(path, name, "a certificate that cannot be read ("+strings.TrimPrefix(err.Error(), "x509: ")+")", "export it again as PEM")
			return
		}
		n++
	}
	if n == 0 {
		c.blame(path, name, "no certificate", "the file holds PEM blocks that begin with BEGIN CERTIFICATE")
	}
}

func (c *checker) keySet(path string, name Path) {
	data, ok := c.read(path, name)
	if !ok {
		return
	}
	var set struct {
		Keys []struct {
			Kty string `json:"kty"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		c.blame(path, name, "not a JSON Web Key Set ("+err.Error()+")", `the file holds {"keys": [...]}`)
		return
	}
	if len(set.Keys) == 0 {
		c.blame(path, name, "a key set without keys", `the file holds {"keys": [...]}`)
	}
	for _, k := range set.Keys {
		if k.Kty == "oct" {
			c.blame(path, name, "a key set with a shared secret (kty oct)", "only public keys are accepted; whoever holds a shared secret can make tokens")
		}
	}
}

func (c *checker) policies() {
	p := c.f.Policies
	if p == nil {
		return
	}
	if _, ok := c.stat("policies.dir", p.Dir, true); ok && !c.holdsPolicies(p.Dir) {
		c.blame("policies.dir", p.Dir, "no policy files", "put files ending in .cedar there, or remove policies")
	}
	if p.Schema != "" {
		c.read("policies.schema", p.Schema)
	}
	if p.Tests != "" {
		c.stat("policies.tests", p.Tests, true)
	}
}

// holdsPolicies reports whether there is a policy file in or below dir. What
// cannot be listed is reported and counts as there.
func (c *checker) holdsPolicies(dir Path) bool {
	found := false
	err := filepath.WalkDir(string(dir), func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(e.Name(), ".") && name != string(dir):
			if e.IsDir() {
				return fs.SkipDir
			}
		case !e.IsDir() && strings.HasSuffix(name, ".cedar"):
			found = true
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		c.blame("policies.dir", dir, "cannot be listed ("+cause(err)+")", "give this user permission to read it")
		return true
	}
	return found
}
