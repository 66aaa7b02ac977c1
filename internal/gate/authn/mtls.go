package authn

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// MethodMTLS is the method of a principal known by its client certificate.
const MethodMTLS = "mtls"

// The names of a certificate that can be its subject.
const (
	SubjectCN     = "cn"
	SubjectDNS    = "dns"
	SubjectURI    = "uri"
	SubjectEmail  = "email"
	SubjectSPIFFE = "spiffe"
)

// maxCertSubject bounds a subject, in bytes (SPIFFE ID section 2.3).
const maxCertSubject = 2048

// MTLSConfig says whom a client certificate speaks for.
type MTLSConfig struct {
	Name    string // what records and policies call the issuer
	Subject string // one of the Subject constants
	// TrustDomains are those whose SPIFFE ids are accepted; for SubjectSPIFFE
	// only.
	TrustDomains []string
	// Roles lists the subjects of each role. One that ends in "/*" stands for
	// all that begin with what is before the star.
	Roles map[string][]string
	// Alone says that the route takes nothing else, so that a missing
	// certificate is why it refuses.
	Alone bool

	Now func() time.Time // default time.Now
}

// MTLS takes the certificate that the client showed in the handshake. Whether it
// is good is the listener's to judge, in the handshake and before every
// request; MTLS finds out whose it is, once for each connection. It is safe for
// concurrent use.
type MTLS struct {
	cfg   MTLSConfig
	exact map[string][]string // roles by subject, sorted
	below []roleBelow
}

// roleBelow is a role of all subjects that begin with prefix.
type roleBelow struct{ prefix, role string }

// NewMTLS checks the configuration.
func NewMTLS(c MTLSConfig) (*MTLS, error) {
	switch {
	case c.Name == "":
		return nil, errors.New("client certificates have no name for their issuer")
	case !slices.Contains([]string{SubjectCN, SubjectDNS, SubjectURI, SubjectEmail, SubjectSPIFFE}, c.Subject):
		return nil, fmt.Errorf("subject %q is not one of cn dns uri email spiffe", c.Subject)
	case c.Subject == SubjectSPIFFE && len(c.TrustDomains) == 0:
		return nil, errors.New("no trust domains; name those whose workloads may come")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	m := &MTLS{cfg: c, exact: map[string][]string{}}
	for _, role := range slices.Sorted(maps.Keys(c.Roles)) {
		for _, subject := range c.Roles[role] {
			if prefix, many := strings.CutSuffix(subject, "*"); many && strings.HasSuffix(prefix, "/") {
				m.below = append(m.below, roleBelow{prefix, role})
				continue
			}
			if strings.Contains(subject, "*") || subject == "" {
				return nil, fmt.Errorf("role %q: %q is no subject; only /* at the end stands for many", role, subject)
			}
			m.exact[subject] = append(m.exact[subject], role)
		}
	}
	return m, nil
}

// Method names it in records of failed attempts.
func (*MTLS) Method() string { return MethodMTLS }

// certVerdict is what was found of a connection's certificate.
type certVerdict struct {
	principal *Principal
	failure   *Failure
}

// Authenticate says whose certificate the connection has.
func (m *MTLS) Authenticate(_ context.Context, r *canon.Request) (*Principal, error) {
	if r.TLS == nil || len(r.TLS.Client) == 0 {
		if m.cfg.Alone {
			return nil, &NotMine{Failure{Reason: reason.TLSNoClientCert, Detail: "no client certificate on this connection"}}
		}
		return nil, ErrNoCredential
	}
	leaf := r.TLS.Client[0]
	v, _ := r.TLS.Memo.Get(m).(*certVerdict)
	if v == nil {
		v = m.judge(leaf)
		r.TLS.Memo.Set(m, v)
	}
	if v.failure != nil {
		return nil, v.failure
	}
	if now := m.cfg.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return nil, m.refused(leaf, "the client certificate is not valid now")
	}
	return v.principal, nil
}

func (m *MTLS) refused(leaf *x509.Certificate, detail string) *Failure {
	f := fail(reason.TLSBadClientCert, detail)
	f.Issuer = m.cfg.Name
	if f.Claimed = leaf.Subject.String(); len(f.Claimed) > 512 {
		f.Claimed = strings.ToValidUTF8(f.Claimed[:512], "")
	}
	return f
}

func (m *MTLS) judge(leaf *x509.Certificate) *certVerdict {
	subject, err := m.subject(leaf)
	if err != nil {
		return &certVerdict{failure: m.refused(leaf, err.Error())}
	}
	p := &Principal{
		Method: MethodMTLS, Issuer: m.cfg.Name, Subject: subject,
		Roles: m.roles(subject), IssuedAt: leaf.NotBefore, Expires: leaf.NotAfter,
	}
	return &certVerdict{principal: p}
}

func (m *MTLS) roles(subject string) []string {
	roles := slices.Clone(m.exact[subject])
	for _, b := range m.below {
		if strings.HasPrefix(subject, b.prefix) && len(subject) > len(b.prefix) {
			roles = append(roles, b.role)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

// subject is the one name of the kind that the configuration asks for. A
// certificate with several could be taken for either.
func (m *MTLS) subject(leaf *x509.Certificate) (string, error) {
	var names []string
	switch m.cfg.Subject {
	case SubjectSPIFFE:
		return m.spiffe(leaf)
	case SubjectCN:
		for _, n := range leaf.Subject.Names {
			if n.Type.Equal(oidCommonName) {
				s, _ := n.Value.(string)
				names = append(names, s)
			}
		}
	case SubjectDNS:
		for _, n := range leaf.DNSNames {
			names = append(names, strings.ToLower(n)) // DNS names have no case
		}
	case SubjectEmail:
		names = leaf.EmailAddresses
	case SubjectURI:
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
	}
	if len(names) != 1 {
		return "", fmt.Errorf("a client certificate with %d names of the kind %s, not one", len(names), m.cfg.Subject)
	}
	s := names[0]
	if s == "" || len(s) > maxCertSubject || strings.TrimSpace(s) != s || strings.ContainsFunc(s, unicode.IsControl) || strings.ToValidUTF8(s, "") != s {
		return "", errors.New("a client certificate whose name is empty, too long or no plain text")
	}
	return s, nil
}

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// spiffe checks an X.509-SVID (SPIFFE X.509-SVID sections 2 to 5) and returns
// its id.
func (m *MTLS) spiffe(leaf *x509.Certificate) (string, error) {
	switch {
	case len(leaf.URIs) != 1:
		return "", fmt.Errorf("a client certificate with %d URIs: an SVID has one", len(leaf.URIs))
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return "", errors.New("the certificate of an authority where a workload's is expected")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return "", errors.New("an SVID whose key is not for signatures")
	}
	domain, err := parseSPIFFE(leaf.URIs[0])
	if err != nil {
		return "", err
	}
	if !slices.Contains(m.cfg.TrustDomains, domain) {
		return "", errors.New("an SVID of a trust domain that is not accepted")
	}
	return leaf.URIs[0].String(), nil
}

// parseSPIFFE returns the trust domain of a workload's SPIFFE id (SPIFFE ID
// section 2): spiffe://DOMAIN/PATH and nothing else, not percent-encoded, with
// neither empty nor dot segments.
func parseSPIFFE(u *url.URL) (domain string, err error) {
	text := u.String()
	rest, ok := strings.CutPrefix(text, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	switch {
	case !ok || len(text) > maxCertSubject:
		return "", errors.New("a URI that is no SPIFFE id")
	case domain == "" || len(domain) > 255 || strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "":
		return "", errors.New("a SPIFFE id without a trust domain in its proper form")
	case !hasPath || path == "":
		return "", errors.New("a SPIFFE id of a trust domain, not of a workload")
	}
	for seg := range strings.SplitSeq(path, "/") {
		if seg == "" || seg == "." || seg == ".." {
			return "", errors.New("a SPIFFE id with an empty or dot segment")
		}
		for i := range len(seg) {
			c := seg[i]
			if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
				return "", errors.New("a SPIFFE id with a character that none has")
			}
		}
	}
	return domain, nil
}
