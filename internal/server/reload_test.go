package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
)

func TestGivenUp(t *testing.T) {
	base := func() *config.File {
		return &config.File{Routes: []config.Route{
			{Name: "a", Authn: []config.Authn{{JWT: "corp"}}, Scopes: []string{"s"}, Limits: []string{"l"}, Audit: config.Audit{OnFailure: "refuse", Intent: "all"}},
			{Name: "b", Public: true, Audit: config.Audit{OnFailure: "allow", Intent: "none"}},
		}}
	}
	for name, c := range map[string]struct {
		change func(f *config.File)
		want   []string
	}{
		"nothing":        {func(*config.File) {}, nil},
		"a new route":    {func(f *config.File) { f.Routes = append(f.Routes, config.Route{Name: "c", Public: true}) }, nil},
		"more of it":     {func(f *config.File) { f.Routes[1].Public, f.Routes[1].Audit = false, f.Routes[0].Audit }, nil},
		"gone":           {func(f *config.File) { f.Routes = f.Routes[:1] }, []string{"route b: it is gone"}},
		"public":         {func(f *config.File) { f.Routes[0].Public = true }, []string{"route a: it is public now"}},
		"without scopes": {func(f *config.File) { f.Routes[0].Scopes = nil }, []string{"route a: it demands no scopes"}},
		"without limits": {func(f *config.File) { f.Routes[0].Limits = nil }, []string{"route a: it has no limits"}},
		"allow":          {func(f *config.File) { f.Routes[0].Audit.OnFailure = "allow" }, []string{"route a: it answers even if"}},
		"intent":         {func(f *config.File) { f.Routes[0].Audit.Intent = "unsafe" }, []string{"route a: not every request is noted"}},
		"all":            {func(f *config.File) { f.Routes = nil }, []string{"route a: it is gone", "route b: it is gone"}},
	} {
		is := base()
		c.change(is)
		got := givenUp(base(), is)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q", name, got)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], c.want[i]) {
				t.Errorf("%s: %q, want %q", name, got[i], c.want[i])
			}
		}
	}
}

func TestAdminLaw(t *testing.T) {
	law, err := newAdminLaw(&config.Admin{TLS: &config.AdminTLS{}, Roles: config.AdminRoles{
		Reader: []string{"cn:ada", "role:corp:auditor"}, Reveal: []string{"cn:ada"}, Operator: []string{"sub:batch:7", "role:corp:admin"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if law.clients != nil {
		t.Error("client certificates are taken without an authority")
	}
	if got := law.issuers(); !slices.Equal(got, []string{"corp", "batch"}) {
		t.Errorf("issuers %v", got)
	}
	for _, c := range []struct {
		said []config.Holder
		want []admin.Role
	}{
		{nil, nil},
		{[]config.Holder{{Kind: "cn", Name: "ada"}}, []admin.Role{admin.Reader, admin.Reveal}},
		{[]config.Holder{{Kind: "cn", Name: "Ada"}}, nil},
		{[]config.Holder{{Kind: "dns", Name: "ada"}}, nil},
		{[]config.Holder{{Kind: "role", Issuer: "corp", Name: "auditor"}, {Kind: "role", Issuer: "corp", Name: "admin"}}, []admin.Role{admin.Reader, admin.Operator}},
		{[]config.Holder{{Kind: "role", Issuer: "batch", Name: "auditor"}}, nil},
		{[]config.Holder{{Kind: "sub", Issuer: "corp", Name: "7"}}, nil},
		{[]config.Holder{{Kind: "sub", Issuer: "batch", Name: "7"}}, []admin.Role{admin.Operator}},
	} {
		if got := law.roles(c.said); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.said, got, c.want)
		}
	}
	if _, err := newAdminLaw(&config.Admin{TLS: &config.AdminTLS{ClientCA: "/nowhere.pem"}}); err == nil {
		t.Error("an authority that is not there")
	}
}

// pair writes a certificate for localhost and its key.
func pair(t *testing.T, c config.Certificate, from, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(from.UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv6loopback}, NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[config.Path]*pem.Block{c.Cert: {Type: "CERTIFICATE", Bytes: der}, c.Key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(string(name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCertStore(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) config.Certificate {
		return config.Certificate{Cert: config.Path(filepath.Join(dir, name+".crt")), Key: config.Path(filepath.Join(dir, name+".key"))}
	}
	a, b := at("a"), at("b")
	now := time.Now()
	day := 24 * time.Hour
	pair(t, a, now.Add(-10*day), now.Add(80*day))
	pair(t, b, now.Add(-10*day), now.Add(80*day))
	s, err := newCertStore("listener x", tlsFiles{certs: []config.Certificate{a}}, []string{"h2"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if !s.verifies("localhost") || !s.verifies("::1") || s.verifies("evil.example") || s.verifies("") {
		t.Error("names of the certificate")
	}
	serial := func() int64 { return s.leaves()[0].SerialNumber.Int64() }
	first := serial()
	expect := func(what string, taken bool, state, wrong string) {
		t.Helper()
		was := serial()
		s.poll(now)
		st := s.status(now)[0]
		if (serial() != was) != taken || st.State != state || !strings.Contains(st.Wrong, wrong) || (wrong == "") != (st.Wrong == "") {
			t.Errorf("%s: taken %t, %+v", what, serial() != was, st)
		}
		if notes := s.notes(now); (len(notes) == 0) != (state == certOK && wrong == "") {
			t.Errorf("%s: notes %q", what, notes)
		}
	}
	expect("nothing new", false, certOK, "")
	pair(t, a, now.Add(-11*day), now.Add(79*day))
	expect("a new pair", true, certOK, "")
	pair(t, a, now.Add(-20*day), now.Add(-day))
	expect("an expired pair", false, certOK, "expired on")
	expect("still", false, certOK, "expired on")
	pair(t, a, now.Add(day), now.Add(80*day))
	expect("a pair of tomorrow", false, certOK, "not valid before")
	if err := os.WriteFile(string(a.Key), []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("no key", false, certOK, "a.key")
	if err := os.Remove(string(a.Cert)); err != nil {
		t.Fatal(err)
	}
	expect("no certificate", false, certOK, "no such file")
	pair(t, a, now.Add(-80*day), now.Add(day))
	expect("a pair that ends soon", true, certExpiring, "")
	if got := s.status(now.Add(2 * day))[0].State; got != certExpired || s.left(now) > 25*time.Hour || s.left(now.Add(2*day)) > 0 {
		t.Errorf("in two days it is %s", got)
	}
	// A configuration that names other files.
	if _, err := s.prepare(tlsFiles{certs: []config.Certificate{at("none")}}); err == nil {
		t.Error("files that are not there")
	}
	adopt, err := s.prepare(tlsFiles{certs: []config.Certificate{b}})
	if err != nil {
		t.Fatal(err)
	}
	if before := serial(); before == first {
		t.Error("the serial number did not change")
	}
	adopt()
	expect("other files", false, certOK, "")
	pair(t, a, now.Add(-12*day), now.Add(78*day))
	expect("files that are not used any more", false, certOK, "")
}
