package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// mtlsSite is a gate that knows clients by their certificates: at one listener
// they may show one, at another they must, at the third nobody asks.
type mtlsSite struct {
	*site
	ca     *authority
	open   string
	strict string
	off    string
	env    *jwtattack.Env
	net    int // of the next visitor
}

func newMTLSSite(t *testing.T, upstream string) *mtlsSite {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	m := &mtlsSite{site: newSite(t, upstream), ca: newAuthority(t, "clients"), open: freeAddr(t), strict: freeAddr(t), off: freeAddr(t), env: env}
	server := newAuthority(t, "servers")
	key := newKey(t)
	cert := server.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "gate"}, DNSNames: []string{"api.example.com", "web.example.com", "partners.example.com"}}, &key.PublicKey)
	m.write("server.pem", server.pem())
	m.write("tls/gate.crt", certPEM(cert.Raw))
	m.write("tls/gate.key", keyPEM(t, key))
	m.write("jwks.json", string(env.JWKS))
	m.write("clients.pem", m.ca.pem())
	m.write("clients.crl", m.list())
	m.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource) when { resource == Route::\"pub\" || resource == Route::\"partners\" };\n")
	m.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: open, address: %q, tls: {certificates: [{cert: tls/gate.crt, key: tls/gate.key}], client_ca: clients.pem, client_auth: optional, crl: clients.crl}}
  - {name: strict, address: %q, tls: {certificates: [{cert: tls/gate.crt, key: tls/gate.key}], client_ca: clients.pem, client_auth: required, crl: clients.crl}}
  - {name: off, address: %q, tls: {certificates: [{cert: tls/gate.crt, key: tls/gate.key}]}}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256], roles_claim: /roles, jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: cn, path: /cn, upstream: app, authn: [{mtls: {name: staff, subject: cn, roles: {clerk: [ada, eve]}}}]}
  - {name: mesh, path: /mesh, upstream: app, authn: [{mtls: {name: mesh, subject: spiffe, trust_domains: [example.org], roles: {clerk: ["spiffe://example.org/ns/shop/*"]}}}]}
  - {name: both, path: /both, upstream: app, authn: [{mtls: {name: staff, subject: cn, roles: {clerk: [ada, eve]}}}, {jwt: corp}]}
  - {name: pub, host: api.example.com, path: /pub, upstream: app, public: true}
  - {name: web, host: web.example.com, path: /pub, upstream: app, public: true}
  - {name: partners, host: partners.example.com, path: /pub, listeners: [strict], upstream: app, public: true}
roles: {clerk: {allow: [cn, mesh, both]}}
policies: {dir: policies}
`, m.open, m.strict, m.off, jwtattack.Issuer, jwtattack.Audience, upstream))
	return m
}

// list is the authority's list of revoked certificates.
func (m *mtlsSite) list(revoked ...tls.Certificate) string {
	m.t.Helper()
	now := time.Now()
	l := &x509.RevocationList{Number: big.NewInt(now.UnixNano()), ThisUpdate: now.Add(-time.Second), NextUpdate: now.Add(time.Hour)}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: now})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, m.ca.cert, m.ca.key)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// visitor is a client with its own network, by which its record is known.
type visitor struct{ addr, network string }

func (m *mtlsSite) visitor() visitor {
	m.net++
	return visitor{fmt.Sprintf("127.71.%d.1", m.net), fmt.Sprintf("127.71.%d.0/24", m.net)}
}

// mtlsRecord is what is looked at of a record.
type mtlsRecord struct {
	Frame struct {
		ID, Kind, Outcome string
		Status            int
		Authn             struct {
			Method, Issuer, Bound, Outcome string
			Roles                          []string
		}
		TLS struct {
			Version    string
			ClientCert string `json:"client_cert"`
		}
		Error struct{ Reason, Phase string }
	}
	Personal struct {
		Sub, Claimed string
		CertSubject  string `json:"cert_subject"`
	}
}

// record waits for the one record of a network: a client is done before the
// gate has written down that it refused it.
func (m *mtlsSite) record(t *testing.T, network string) mtlsRecord {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		var out []mtlsRecord
		dec := json.NewDecoder(strings.NewReader(m.command(0, "search", fmt.Sprintf("client.prefix == %q", network), "--reveal", "--json")))
		for dec.More() {
			var r mtlsRecord
			if err := dec.Decode(&r); err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		if len(out) == 1 {
			return out[0]
		}
		if len(out) > 1 || time.Now().After(deadline) {
			t.Fatalf("%d records of %s: %+v", len(out), network, out)
		}
	}
}

// pair writes a certificate and its key for a client program.
func (m *mtlsSite) pair(name string, c tls.Certificate) {
	m.write(name+".crt", certPEM(c.Certificate[0]))
	m.write(name+".key", keyPEM(m.t, c.PrivateKey.(*ecdsa.PrivateKey)))
}

// curl asks with the real program and returns the status, 0 if there was none.
func (m *mtlsSite) curl(t *testing.T, v visitor, addr, host, path, version, cert string, more ...string) (status int, body string) {
	t.Helper()
	_, port, _ := strings.Cut(addr, ":")
	args := []string{
		"-sS", "--interface", v.addr, "--resolve", host + ":" + port + ":127.0.0.1", "--cacert", filepath.Join(m.dir, "server.pem"),
		"--tlsv" + version, "--tls-max", version, "--max-time", "20", "-w", "\n%{http_code}",
	}
	if cert != "" {
		args = append(args, "--cert", filepath.Join(m.dir, cert+".crt"), "--key", filepath.Join(m.dir, cert+".key"))
	}
	cmd := exec.Command("curl", append(append(args, more...), "https://"+host+":"+port+path)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	i := strings.LastIndexByte(out.String(), '\n')
	if _, scanErr := fmt.Sscan(out.String()[i+1:], &status); scanErr != nil {
		t.Fatalf("curl: %v %s%s", err, out.String(), errs.String())
	}
	if (err == nil) != (status != 0) {
		t.Errorf("curl: %v, status %d: %s", err, status, errs.String())
	}
	return status, out.String()[:max(i, 0)]
}

// openssl asks with openssl s_client and returns the status, 0 if there was
// none, and what it said.
func (m *mtlsSite) openssl(t *testing.T, v visitor, addr, host, path, version, cert string) (status int, said string) {
	t.Helper()
	args := []string{"s_client", "-connect", addr, "-bind", v.addr + ":0", "-servername", host, "-CAfile", filepath.Join(m.dir, "server.pem"), "-quiet", "-ign_eof", "-tls" + strings.ReplaceAll(version, ".", "_")}
	if cert != "" {
		args = append(args, "-cert", filepath.Join(m.dir, cert+".crt"), "-key", filepath.Join(m.dir, cert+".key"))
	}
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = strings.NewReader("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
	out, _ := cmd.CombinedOutput() // its exit code tells nothing of what was answered
	if i := strings.Index(string(out), "HTTP/1.1 "); i >= 0 {
		fmt.Sscan(string(out)[i+len("HTTP/1.1 "):], &status)
	}
	return status, string(out)
}

// mtlsCase is one visit and what is to come of it.
type mtlsCase struct {
	name     string
	listener string // "open" unless set
	host     string // api.example.com unless set
	path     string
	cert     string // name of a pair; empty: none
	token    bool
	hostSent string // in the Host field, if not the host of the connection

	status int // 0: no answer
	reason string
	phase  string
	// of the record
	method, issuer, sub, claimed, subject string
	alert                                 string // what openssl says of a refused handshake
}

var mtlsCases = []mtlsCase{
	{name: "known by its common name", path: "/cn", cert: "ada", status: 200, method: "mtls", issuer: "staff", sub: "ada", subject: "CN=ada,O=corp"},
	{name: "known where one must be shown", listener: "strict", path: "/cn", cert: "ada", status: 200, method: "mtls", issuer: "staff", sub: "ada", subject: "CN=ada,O=corp"},
	{name: "a workload", path: "/mesh", cert: "api", status: 200, method: "mtls", issuer: "mesh", sub: "spiffe://example.org/ns/shop/api", subject: "spiffe://example.org/ns/shop/api"},
	{name: "known, and without a role", path: "/cn", cert: "bob", status: 403, reason: "denied_by_default", phase: "authz", method: "mtls", issuer: "staff", sub: "bob", subject: "CN=bob"},
	{name: "no certificate where the route wants one", path: "/cn", status: 400, reason: "tls_no_client_cert", phase: "authn", method: "none"},
	{name: "no certificate where no listener asks", listener: "off", path: "/cn", status: 400, reason: "tls_no_client_cert", phase: "authn", method: "none"},
	{name: "a certificate where no listener asks", listener: "off", path: "/cn", cert: "ada", status: 400, reason: "tls_no_client_cert", phase: "authn", method: "none"},
	{name: "no credential of two ways", path: "/both", status: 401, reason: "no_credential", phase: "authn", method: "none"},
	{name: "a token instead", path: "/both", token: true, status: 200, method: "jwt", issuer: "corp", sub: "ann"},
	{name: "a certificate beside a token", path: "/both", cert: "ada", token: true, status: 200, method: "mtls", issuer: "staff", sub: "ada", subject: "CN=ada,O=corp"},
	{name: "no workload", path: "/mesh", cert: "ada", status: 400, reason: "tls_bad_client_cert", phase: "authn", method: "mtls", issuer: "mesh", claimed: "CN=ada,O=corp", subject: "CN=ada,O=corp"},
	{name: "a workload of another trust domain", path: "/mesh", cert: "evil", status: 400, reason: "tls_bad_client_cert", phase: "authn", method: "mtls", issuer: "mesh", subject: "spiffe://evil.example/ns/shop/api"},
	{name: "anonymous where one may be shown", path: "/pub", status: 200, method: "none"},
	{name: "a certificate on a public route", path: "/pub", cert: "ada", status: 200, method: "none", subject: "CN=ada,O=corp"},
	{name: "a host of another listener", host: "partners.example.com", path: "/pub", status: 421, reason: "misdirected_request", phase: "connection"},
	{name: "a host of another listener, where none asks", listener: "off", host: "partners.example.com", path: "/pub", status: 421, reason: "misdirected_request", phase: "connection"},
	{name: "its own listener", listener: "strict", host: "partners.example.com", path: "/pub", cert: "ada", status: 200, method: "none", subject: "CN=ada,O=corp"},
	{name: "another host over the same connection", path: "/pub", cert: "ada", hostSent: "web.example.com", status: 421, reason: "misdirected_request", phase: "connection", subject: "CN=ada,O=corp"},
	{name: "another host where none asks", listener: "off", path: "/pub", hostSent: "web.example.com", status: 403, reason: "denied_by_default", phase: "authz", method: "none"},

	{name: "none where one must be shown", listener: "strict", path: "/cn", reason: "tls_no_client_cert", phase: "client_certificate", alert: "certificate required"},
	{name: "of another authority", path: "/pub", cert: "stranger", reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: "CN=eve", alert: "bad certificate"},
	{name: "expired", path: "/pub", cert: "expired", reason: "tls_bad_client_cert", phase: "expired", claimed: "CN=old", alert: "bad certificate"},
	{name: "for servers", listener: "strict", path: "/pub", cert: "server", reason: "tls_bad_client_cert", phase: "purpose", claimed: "CN=web", alert: "bad certificate"},
	{name: "revoked", listener: "strict", path: "/cn", cert: "revoked", reason: "tls_bad_client_cert", phase: "revoked", claimed: "CN=eve", alert: "bad certificate"},
}

// TestClientCertificates: each way to come with a certificate, and without one,
// by the programs that people use.
func TestClientCertificates(t *testing.T) {
	up := newUpstream(t)
	m := newMTLSSite(t, up.URL)
	spiffe := func(id string) *x509.Certificate {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		return &x509.Certificate{URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature}
	}
	named := func(name string) *x509.Certificate { return &x509.Certificate{Subject: pkix.Name{CommonName: name}} }
	ada, old, web := named("ada"), named("old"), named("web")
	ada.Subject.Organization = []string{"corp"}
	old.NotBefore, old.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	web.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	revoked := m.ca.client(named("eve"))
	for name, c := range map[string]tls.Certificate{
		"ada": m.ca.client(ada), "bob": m.ca.client(named("bob")), "api": m.ca.client(spiffe("spiffe://example.org/ns/shop/api")), "evil": m.ca.client(spiffe("spiffe://evil.example/ns/shop/api")),
		"stranger": newAuthority(t, "clients").client(named("eve")), "expired": m.ca.client(old), "server": m.ca.client(web), "revoked": revoked,
	} {
		m.pair(name, c)
	}
	m.write("clients.crl", m.list(revoked))
	m.run(0, "check", filepath.Join(m.dir, "gatebook.yaml"))
	m.start()
	defer m.stop()
	bearer := "Authorization: Bearer " + token(m.env, "ann", "clerk", nil)
	hashes := map[string][]string{}
	for _, row := range mtlsCases {
		host, addr := row.host, m.open
		if host == "" {
			host = "api.example.com"
		}
		switch row.listener {
		case "strict":
			addr = m.strict
		case "off":
			addr = m.off
		}
		var more []string
		if row.token {
			more = append(more, "-H", bearer)
		}
		if row.hostSent != "" {
			more = append(more, "-H", "Host: "+row.hostSent)
		}
		for _, client := range []string{"curl 1.3", "curl 1.3 h1", "curl 1.2", "openssl 1.3", "openssl 1.2"} {
			program, version, _ := strings.Cut(client, " ")
			version, _, h1 := strings.Cut(version, " ")
			if program == "openssl" && more != nil {
				continue // it sends what a row of the other program sends
			}
			t.Run(row.name+"/"+client, func(t *testing.T) {
				v := m.visitor()
				var status int
				var said string
				if program == "curl" {
					extra := slices.Clone(more)
					if h1 {
						extra = append(extra, "--http1.1")
					}
					status, said = m.curl(t, v, addr, host, row.path, version, row.cert, extra...)
				} else {
					status, said = m.openssl(t, v, addr, host, row.path, version, row.cert)
					if row.alert != "" && version == "1.3" && !strings.Contains(said, row.alert) {
						t.Errorf("no alert %q in %s", row.alert, said)
					}
				}
				if status != row.status || row.reason != "" && strings.Contains(said, row.reason) {
					t.Errorf("answered %d, want %d: %s", status, row.status, said)
				}
				r := m.record(t, v.network)
				kind, outcome := "request", "success"
				if row.status == 0 {
					kind = "handshake"
				}
				if row.reason != "" {
					outcome = "failure"
				}
				f := r.Frame
				if f.Kind != kind || f.Outcome != outcome || f.Status != row.status || f.Error.Reason != row.reason || f.Error.Phase != row.phase {
					t.Errorf("recorded %s %s %d %+v", f.Kind, f.Outcome, f.Status, f.Error)
				}
				if row.method != "" && f.Authn.Method != row.method || f.Authn.Issuer != row.issuer || r.Personal.Sub != row.sub || row.claimed != "" && r.Personal.Claimed != row.claimed || r.Personal.CertSubject != row.subject {
					t.Errorf("recorded %+v %+v", f.Authn, r.Personal)
				}
				if row.method == "mtls" && row.status == 200 && (f.Authn.Bound != "mtls" || !slices.Equal(f.Authn.Roles, []string{"clerk"})) {
					t.Errorf("recorded %+v", f.Authn)
				}
				if (f.TLS.ClientCert != "") != (row.subject != "") {
					t.Errorf("hash %q of the certificate", f.TLS.ClientCert)
				}
				if row.status > 0 && f.TLS.Version != version {
					t.Errorf("version %s", f.TLS.Version)
				}
				if row.subject != "" && !slices.Contains(hashes[row.cert], f.TLS.ClientCert) {
					hashes[row.cert] = append(hashes[row.cert], f.TLS.ClientCert)
				}
			})
		}
	}
	for cert, list := range hashes {
		if len(list) != 1 {
			t.Errorf("%s has the hashes %q", cert, list)
		}
	}
	plain := m.command(0, "search", `kind in ["request", "handshake"]`, "--json")
	for _, word := range []string{"CN=", "spiffe://", `"ada`, `"eve`, "ada@", "ada."} {
		if strings.Contains(plain, word) {
			t.Errorf("frames hold %q", word)
		}
	}
	m.command(0, "verify")
}

// TestClientCertificateFiles: what changes on the disk counts without a reload,
// and what is no good there never opens the gate.
func TestClientCertificateFiles(t *testing.T) {
	up := newUpstream(t)
	m := newMTLSSite(t, up.URL)
	ada := m.ca.client(&x509.Certificate{Subject: pkix.Name{CommonName: "ada"}})
	m.pair("ada", ada)
	file := filepath.Join(m.dir, "gatebook.yaml")
	good := string(m.read("clients.pem"))
	for name, broken := range map[string]string{"empty": "", "garbage": "hello", "half": good[:100], "a key": keyPEM(t, newKey(t))} {
		m.write("clients.pem", broken)
		m.run(2, "check", file)
		m.run(2, "serve", "-c", file)
		if !strings.Contains(m.said, "listen[0].tls.client_ca") {
			t.Errorf("%s: %s", name, m.said)
		}
	}
	if err := os.Remove(filepath.Join(m.dir, "clients.pem")); err != nil {
		t.Fatal(err)
	}
	m.run(2, "serve", "-c", file)
	m.write("clients.pem", good)
	list := string(m.read("clients.crl"))
	m.write("clients.crl", "hello")
	m.run(2, "serve", "-c", file)
	m.write("clients.crl", list)
	m.start()
	defer m.stop()
	ask := func(want int, reason string) {
		t.Helper()
		v := m.visitor()
		if status, said := m.curl(t, v, m.strict, "api.example.com", "/cn", "1.3", "ada"); status != want {
			t.Errorf("answered %d, want %d: %s", status, want, said)
		}
		if r := m.record(t, v.network); r.Frame.Error.Reason != reason {
			t.Errorf("recorded %+v", r.Frame.Error)
		}
	}
	ask(200, "")
	m.write("clients.pem", "")
	m.command(2, "reload")
	ask(200, "") // the authorities before are in force
	if !m.stderr.shows("changed certificates were not taken") {
		t.Error("nobody is told of a broken file")
	}
	ask(200, "")
	m.write("clients.pem", good)
	m.write("clients.crl", m.list(ada))
	if !m.stderr.shows("certificates were read again") {
		t.Error("the list was not read again")
	}
	// Both listeners look at the file, one after the other.
	deadline := time.Now().Add(20 * time.Second)
	for {
		v := m.visitor()
		status, _ := m.curl(t, v, m.strict, "api.example.com", "/cn", "1.3", "ada")
		if r := m.record(t, v.network); status == 0 && r.Frame.Error.Reason == "tls_bad_client_cert" && r.Frame.Error.Phase == "revoked" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a revoked certificate is still taken")
		}
	}
	m.write("clients.pem", newAuthority(t, "clients").pem())
	m.command(2, "reload") // the list is not of this authority
	m.command(0, "verify")
}
