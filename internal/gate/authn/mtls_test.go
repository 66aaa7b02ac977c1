package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// shown is a certificate as the handshake hands it on; it vouches for itself,
// which is none of MTLS's business.
func shown(t testing.TB, change func(*x509.Certificate)) *canon.Request {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &canon.Request{TLS: &canon.TLS{Client: []*x509.Certificate{c}}}
}

func uris(texts ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, s := range texts {
			u, err := url.Parse(s)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

func commonNames(names ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, n := range names {
			c.Subject.ExtraNames = append(c.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: n})
		}
	}
}

func TestMTLSSubject(t *testing.T) {
	const id = "spiffe://example.org/ns/shop/sa/api"
	both := func(a, b func(*x509.Certificate)) func(*x509.Certificate) {
		return func(c *x509.Certificate) { a(c); b(c) }
	}
	names := func(dns, email []string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = dns, email }
	}
	for _, row := range []struct {
		name, kind string
		cert       func(*x509.Certificate)
		want       string // empty: refused
	}{
		{"common name", "cn", commonNames("ada"), "ada"},
		{"common name beside others", "cn", both(commonNames("ada"), names([]string{"a.example", "b.example"}, nil)), "ada"},
		{"no common name", "cn", names([]string{"a.example"}, nil), ""},
		{"two common names", "cn", commonNames("ada", "root"), ""},
		{"empty common name", "cn", commonNames(""), ""},
		{"a common name with a line break", "cn", commonNames("ada\nroot"), ""},
		{"a common name with a space behind", "cn", commonNames("ada "), ""},
		{"a long common name", "cn", commonNames(strings.Repeat("a", 2049)), ""},
		{"DNS", "dns", names([]string{"API.example.com"}, nil), "api.example.com"},
		{"two DNS names", "dns", names([]string{"a.example", "b.example"}, nil), ""},
		{"no DNS name but a common name like one", "dns", commonNames("a.example"), ""},
		{"email", "email", names(nil, []string{"Ada@example.com"}), "Ada@example.com"},
		{"two email addresses", "email", names(nil, []string{"a@example.com", "b@example.com"}), ""},
		{"URI", "uri", uris("https://example.com/ada"), "https://example.com/ada"},
		{"two URIs", "uri", uris("https://example.com/ada", "https://example.com/root"), ""},
		{"SPIFFE id", "spiffe", uris(id), id},
		{"SPIFFE id of another accepted domain", "spiffe", uris("spiffe://stage.example.org/a"), "spiffe://stage.example.org/a"},
		{"SPIFFE id beside a DNS name", "spiffe", both(uris(id), names([]string{"a.example"}, nil)), id},
		{"no URI", "spiffe", commonNames(id), ""},
		{"a second URI", "spiffe", uris(id, "https://example.org/a"), ""},
		{"two SPIFFE ids", "spiffe", uris(id, "spiffe://example.org/root"), ""},
		{"another trust domain", "spiffe", uris("spiffe://evil.example/ns/shop/sa/api"), ""},
		{"a trust domain that only begins like one", "spiffe", uris("spiffe://example.org.evil.example/a"), ""},
		{"a trust domain that only ends like one", "spiffe", uris("spiffe://evil-example.org/a"), ""},
		{"a trust domain in upper case", "spiffe", uris("spiffe://EXAMPLE.org/a"), ""},
		{"the trust domain itself", "spiffe", uris("spiffe://example.org"), ""},
		{"an empty path", "spiffe", uris("spiffe://example.org/"), ""},
		{"a slash at the end", "spiffe", uris(id + "/"), ""},
		{"an empty segment", "spiffe", uris("spiffe://example.org/ns//api"), ""},
		{"a dot segment", "spiffe", uris("spiffe://example.org/ns/../api"), ""},
		{"an encoded slash", "spiffe", uris("spiffe://example.org/ns%2Fapi"), ""},
		{"a port", "spiffe", uris("spiffe://example.org:443/a"), ""},
		{"a user", "spiffe", uris("spiffe://root@example.org/a"), ""},
		{"a query", "spiffe", uris("spiffe://example.org/a?b"), ""},
		{"a fragment", "spiffe", uris("spiffe://example.org/a#b"), ""},
		{"another scheme", "spiffe", uris("https://example.org/a"), ""},
		{"an id that is too long", "spiffe", uris("spiffe://example.org/" + strings.Repeat("a", 2048)), ""},
		{"an authority's", "spiffe", both(uris(id), func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), ""},
		{"one that may sign certificates", "spiffe", both(uris(id), func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), ""},
		{"one that may not sign", "spiffe", both(uris(id), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := MTLSConfig{Name: "mesh", Subject: row.kind}
			if row.kind == SubjectSPIFFE {
				c.TrustDomains = []string{"example.org", "stage.example.org"}
			}
			m, err := NewMTLS(c)
			if err != nil {
				t.Fatal(err)
			}
			r := shown(t, row.cert)
			p, err := m.Authenticate(context.Background(), r)
			if row.want != "" {
				if err != nil || p.Subject != row.want || p.Issuer != "mesh" || p.Method != "mtls" || p.Confirm != (Confirmation{}) ||
					!p.Expires.Equal(r.TLS.Client[0].NotAfter) || !p.IssuedAt.Equal(r.TLS.Client[0].NotBefore) {
					t.Errorf("%+v, %v", p, err)
				}
				return
			}
			var f *Failure
			if !errors.As(err, &f) || errors.Is(err, ErrNoCredential) || f.Reason != reason.TLSBadClientCert || f.Issuer != "mesh" || len(f.Claimed) > 512 {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

func TestMTLSRoles(t *testing.T) {
	m, err := NewMTLS(MTLSConfig{Name: "mesh", Subject: SubjectSPIFFE, TrustDomains: []string{"example.org"}, Roles: map[string][]string{
		"clerk": {"spiffe://example.org/ns/shop/*"}, "batch": {"spiffe://example.org/ns/shop/nightly", "spiffe://example.org/job"}, "all": {"spiffe://example.org/*"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for subject, want := range map[string][]string{
		"spiffe://example.org/ns/shop/api":     {"all", "clerk"},
		"spiffe://example.org/ns/shop/nightly": {"all", "batch", "clerk"},
		"spiffe://example.org/ns/shop":         {"all"},
		"spiffe://example.org/ns/shopping/api": {"all"},
		"spiffe://example.org/job":             {"all", "batch"},
		"spiffe://example.org/jobs":            {"all"},
	} {
		p, err := m.Authenticate(context.Background(), shown(t, uris(subject)))
		if err != nil || !slices.Equal(p.Roles, want) {
			t.Errorf("%s: %v %v, want %v", subject, p, err, want)
		}
	}
}

// TestMTLSWithout: no certificate is for the next method to judge, and the
// reason only if there is none.
func TestMTLSWithout(t *testing.T) {
	for _, r := range []*canon.Request{{}, {TLS: &canon.TLS{}}} {
		for _, alone := range []bool{false, true} {
			m, err := NewMTLS(MTLSConfig{Name: "mesh", Subject: SubjectCN, Alone: alone})
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Authenticate(context.Background(), r)
			var f *Failure
			if !errors.Is(err, ErrNoCredential) || errors.As(err, &f) != alone || alone && f.Reason != reason.TLSNoClientCert {
				t.Errorf("alone %t: %v", alone, err)
			}
		}
	}
}

// TestMTLSOnce: a certificate is judged once for each connection and
// configuration, and its time is looked at every time.
func TestMTLSOnce(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	a, err := NewMTLS(MTLSConfig{Name: "a", Subject: SubjectCN, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewMTLS(MTLSConfig{Name: "b", Subject: SubjectDNS, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	r := shown(t, commonNames("ada"))
	ctx := context.Background()
	first, err := a.Authenticate(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := a.Authenticate(ctx, r); again != first {
		t.Error("judged again")
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = a.Authenticate(ctx, r) }); n != 0 {
		t.Errorf("%v allocations for each request", n)
	}
	if _, err := b.Authenticate(ctx, r); err == nil {
		t.Error("another configuration was answered with the first one's principal")
	}
	if p, err := a.Authenticate(ctx, r); err != nil || p.Issuer != "a" {
		t.Errorf("%+v %v", p, err)
	}
	for _, off := range []time.Duration{-2 * time.Hour, 2 * time.Hour} {
		now = time.Now().Add(off)
		var f *Failure
		if _, err := a.Authenticate(ctx, r); !errors.As(err, &f) || f.Reason != reason.TLSBadClientCert {
			t.Errorf("%s from now: %v", off, err)
		}
	}
}

func TestNewMTLSRefuses(t *testing.T) {
	for name, c := range map[string]MTLSConfig{
		"no name":         {Subject: SubjectCN},
		"no subject":      {Name: "a"},
		"unknown subject": {Name: "a", Subject: "ou"},
		"no domain":       {Name: "a", Subject: SubjectSPIFFE},
		"a star":          {Name: "a", Subject: SubjectCN, Roles: map[string][]string{"x": {"a*"}}},
		"only a star":     {Name: "a", Subject: SubjectCN, Roles: map[string][]string{"x": {"*"}}},
		"an empty one":    {Name: "a", Subject: SubjectCN, Roles: map[string][]string{"x": {""}}},
	} {
		if _, err := NewMTLS(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// FuzzSPIFFE: what is accepted is one spelling of one id.
func FuzzSPIFFE(f *testing.F) {
	for _, s := range []string{"spiffe://example.org/a", "spiffe://example.org/a/../b", "spiffe://example.org", "spiffe://a@example.org:1/b?c#d", "SPIFFE://example.org/a", "spiffe:example.org/a", "spiffe://example.org/%61"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		domain, err := parseSPIFFE(u)
		if err != nil {
			return
		}
		path := strings.TrimPrefix(u.String(), "spiffe://"+domain+"/")
		if u.Scheme != "spiffe" || u.Host != domain || u.User != nil || u.Port() != "" || u.RawQuery != "" || u.Fragment != "" || u.Path != "/"+path ||
			strings.ContainsAny(path, "%?#@:") || slices.Contains(strings.Split(path, "/"), "..") {
			t.Errorf("%q taken as %q", s, domain)
		}
	})
}
