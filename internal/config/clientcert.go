package config

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// MaxRevocationFile bounds the file of revocation lists, in bytes.
const MaxRevocationFile = 64 << 20

// ParseAuthorities reads the PEM file of the authorities of client
// certificates. Every block must be a certificate of an authority: one that is
// skipped over, or an end entity that vouches for itself, is a mistake that
// nobody would see.
func ParseAuthorities(data []byte) ([]*x509.Certificate, error) {
	ders, err := pemBlocks(data, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	if len(ders) == 0 {
		return nil, errors.New("no certificate; the file holds PEM blocks that begin with BEGIN CERTIFICATE")
	}
	out := make([]*x509.Certificate, len(ders))
	for i, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("a certificate that cannot be read (%s)", strings.TrimPrefix(err.Error(), "x509: "))
		}
		if !c.BasicConstraintsValid || !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not that of an authority", c.Subject.String())
		}
		out[i] = c
	}
	return out, nil
}

// pemBlocks returns the blocks of a file, all of which must be of one type.
// pem.Decode passes over what it cannot read; here that is an error.
func pemBlocks(data []byte, kind string) (ders [][]byte, err error) {
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != kind {
			return nil, fmt.Errorf("a PEM block %q where only %q is expected", block.Type, kind)
		}
		ders = append(ders, block.Bytes)
	}
	if bytes.Count(data, []byte("-----BEGIN ")) != len(ders) {
		return nil, errors.New("a PEM block that cannot be read")
	}
	return ders, nil
}

// ParseRevocations reads revocation lists, in PEM or one in DER, and returns
// each with the authority that signed it. Only whole lists with an end are
// taken (RFC 5280 section 5): a delta, or a list for some certificates only,
// would leave the others unjudged.
func ParseRevocations(data []byte, authorities []*x509.Certificate) (map[*x509.RevocationList]*x509.Certificate, error) {
	ders, err := pemBlocks(data, "X509 CRL")
	if len(data) > 0 && data[0] == 0x30 { // the SEQUENCE that DER begins with
		ders, err = [][]byte{data}, nil
	}
	if err != nil {
		return nil, err
	}
	if len(ders) == 0 {
		return nil, errors.New("no revocation list; the file holds PEM blocks that begin with BEGIN X509 CRL, or one list in DER")
	}
	out := make(map[*x509.RevocationList]*x509.Certificate, len(ders))
	for _, der := range ders {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("not a certificate revocation list (%s)", strings.TrimPrefix(err.Error(), "x509: "))
		}
		issuer, err := signerOf(list, authorities)
		if err != nil {
			return nil, err
		}
		for _, other := range out {
			if other == issuer {
				return nil, fmt.Errorf("two revocation lists of %q", issuer.Subject.String())
			}
		}
		out[list] = issuer
	}
	return out, nil
}

// signerOf checks a list and finds who signed it.
func signerOf(list *x509.RevocationList, authorities []*x509.Certificate) (*x509.Certificate, error) {
	name := list.Issuer.String()
	if list.NextUpdate.IsZero() || !list.NextUpdate.After(list.ThisUpdate) {
		return nil, fmt.Errorf("the revocation list of %q does not say until when it is good", name)
	}
	if id := criticalExtension(list); id != nil {
		return nil, fmt.Errorf("the revocation list of %q is not a whole one (critical extension %s)", name, id)
	}
	for _, c := range authorities {
		if bytes.Equal(c.RawSubject, list.RawIssuer) && list.CheckSignatureFrom(c) == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("the revocation list of %q is signed by none of client_ca", name)
}

// criticalExtension is the first extension that must be understood: that of a
// list or entry that means less, or somebody else's certificates.
func criticalExtension(list *x509.RevocationList) asn1.ObjectIdentifier {
	for _, e := range list.Extensions {
		if e.Critical {
			return e.Id
		}
	}
	for i := range list.RevokedCertificateEntries {
		for _, e := range list.RevokedCertificateEntries[i].Extensions {
			if e.Critical {
				return e.Id
			}
		}
	}
	return nil
}

// ReadRevocations reads the bytes of a file of revocation lists.
func ReadRevocations(name Path) ([]byte, error) {
	file, err := os.Open(string(name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxRevocationFile+1))
	if err == nil && len(data) > MaxRevocationFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, MaxRevocationFile)
	}
	return data, err
}

// checkClientAuth finds settings of client certificates that contradict each
// other: none of them may be quietly without effect.
func (d *decoder) checkClientAuth(l *Listener, path string) {
	if l.TLS == nil {
		return
	}
	path += ".tls"
	_, hasCA := d.at[path+".client_ca"]
	_, hasAuth := d.at[path+".client_auth"]
	_, hasCRL := d.at[path+".crl"]
	switch asks := l.TLS.ClientAuth != ClientAuthOff; {
	case !d.quiet(path + ".client_auth"):
	case hasCA && !hasAuth:
		d.report(d.where(path+".client_ca"), path+".client_ca", "client_ca without client_auth", "say client_auth: required, or optional if clients may come without a certificate")
	case hasCA && !asks:
		d.report(d.where(path+".client_ca"), path+".client_ca", "client_ca has no effect with client_auth: off", "remove it, or say client_auth: required or optional")
	case asks && !hasCA:
		d.report(d.where(path+".client_auth"), path+".client_auth", "client certificates are asked for, and there is no client_ca to check them with", "add client_ca: FILE with the authorities")
	}
	if hasCRL && !hasCA {
		d.report(d.where(path+".crl"), path+".crl", "crl has no effect without client_ca", "add client_ca and client_auth, or remove crl")
	}
}

// checkMTLS checks the ways that take client certificates, over all routes.
func (d *decoder) checkMTLS(f *File) {
	listeners := map[string]*Listener{}
	for i := range f.Listen {
		listeners[f.Listen[i].Name] = &f.Listen[i]
	}
	type use struct {
		way  *MTLS
		path string
		ca   Path
	}
	first := map[string]use{}
	for i := range f.Routes {
		r, before := &f.Routes[i], ""
		for j := range r.Authn {
			m, at := r.Authn[j].MTLS, fmt.Sprintf("routes[%d].authn[%d].mtls", i, j)
			if m == nil || !d.quiet(at) {
				continue
			}
			d.mtlsAlone(f, m, at)
			if before != "" {
				d.report(d.where(at), at, "a second way for client certificates on one route", "keep one: the first takes or refuses every certificate")
			}
			before = at
			cas := authoritiesOf(r, listeners)
			if len(cas) == 0 {
				d.report(d.where(at), at, "no listener of this route asks for client certificates", "set client_auth and client_ca on one of its listeners")
				continue
			}
			for _, ca := range cas {
				was, seen := first[m.Name]
				switch {
				case !seen:
					first[m.Name] = use{m, at, ca}
				case was.ca != ca:
					d.report(d.where(at), at+".name", "the name "+m.Name+" stands for two sets of authorities", "give each client_ca a name of its own: the same subject of two authorities is not the same caller")
				case was.way.Subject != m.Subject || !slices.Equal(was.way.TrustDomains, m.TrustDomains):
					d.report(d.where(at), at+".name", fmt.Sprintf("the name %s is used with another subject in line %d", m.Name, d.where(was.path).line), "use the same subject and trust_domains, or another name")
				}
			}
		}
	}
}

// authoritiesOf lists the client_ca files of a route's listeners.
func authoritiesOf(r *Route, listeners map[string]*Listener) (cas []Path) {
	for _, name := range r.Listeners {
		l := listeners[name]
		if l != nil && l.TLS != nil && l.TLS.ClientCA != "" && !slices.Contains(cas, l.TLS.ClientCA) {
			cas = append(cas, l.TLS.ClientCA)
		}
	}
	return cas
}

// mtlsAlone checks what one way says by itself.
func (d *decoder) mtlsAlone(f *File, m *MTLS, at string) {
	if slices.ContainsFunc(f.Issuers, func(is Issuer) bool { return is.Name == m.Name }) {
		d.report(d.where(at), at+".name", "the name "+m.Name+" is that of an issuer of tokens", "use another: their subjects are not the same callers")
	}
	switch spiffe := m.Subject == SubjectSPIFFE; {
	case spiffe && len(m.TrustDomains) == 0:
		d.report(d.where(at), at, "subject spiffe without trust_domains", "name the trust domains whose workloads may come, such as trust_domains: [example.org]")
	case !spiffe && len(m.TrustDomains) > 0:
		d.report(d.where(at+".trust_domains"), at+".trust_domains", "trust_domains has no effect with subject "+m.Subject, "remove it, or use subject: spiffe")
	}
	for role, subjects := range m.Roles {
		for _, s := range subjects {
			if strings.Contains(strings.TrimSuffix(s, "/*"), "*") {
				d.report(d.where(at+".roles."+role), at+".roles."+role, "a star inside a subject: "+quote(s), "only /* at the end stands for many subjects")
			}
		}
	}
}

// clientCertificates looks at the files of a listener's client certificates.
func (c *checker) clientCertificates(path string, t *TLS) {
	if t.ClientCA == "" {
		return
	}
	data, ok := c.read(path+".client_ca", t.ClientCA)
	if !ok {
		return
	}
	authorities, err := ParseAuthorities(data)
	if err != nil {
		c.blame(path+".client_ca", t.ClientCA, err.Error(), "export the authorities again as PEM")
		return
	}
	if t.CRL == "" {
		return
	}
	if _, ok := c.stat(path+".crl", t.CRL, false); !ok {
		return
	}
	if data, err = ReadRevocations(t.CRL); err != nil {
		c.blame(path+".crl", t.CRL, "cannot be read ("+cause(err)+")", "give this user permission to read it")
		return
	}
	if _, err = ParseRevocations(data, authorities); err != nil {
		c.blame(path+".crl", t.CRL, err.Error(), "fetch the lists of the authorities in client_ca again")
	}
}
