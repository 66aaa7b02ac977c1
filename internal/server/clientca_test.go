package server

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
)

// doorman is a house whose listener asks for client certificates.
type doorman struct {
	*house
	clientCA, crl config.Path
}

func newDoorman(t *testing.T, auth, ca, crl string) *doorman {
	t.Helper()
	dir := t.TempDir()
	d := &doorman{clientCA: config.Path(filepath.Join(dir, "ca.pem")), crl: config.Path(filepath.Join(dir, "ca.crl"))}
	put(t, d.clientCA, ca)
	if crl != "" {
		put(t, d.crl, crl)
	}
	d.house = newHouse(t, houseConfig{tls: func(c *config.TLS) {
		c.ClientAuth, c.ClientCA = auth, d.clientCA
		if crl != "" {
			c.CRL = d.crl
		}
	}})
	return d
}

// with is a client that shows a certificate, whatever it was asked for.
func (d *doorman) with(cert *tls.Certificate, version uint16) *tls.Config {
	c := d.client("http/1.1")
	c.MinVersion, c.MaxVersion = version, version
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return c
}

// ask sends a request over a new connection and returns it with the status, 0 if
// there was no answer.
func (d *doorman) ask(t *testing.T, c *tls.Config) (*tls.Conn, int) {
	t.Helper()
	conn := tls.Client(d.dial(t), c)
	return conn, again(conn)
}

func again(conn *tls.Conn) int {
	if _, err := conn.Write([]byte("GET /x HTTP/1.1\r\nHost: api.example.com\r\n\r\n")); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString(0); err == nil {
		return 0
	}
	return resp.StatusCode
}

// TestClientCertificates: whose certificate is taken, and what the record says
// if it is not. With TLS 1.3 the client is done before it is refused.
func TestClientCertificates(t *testing.T) {
	p := newPKI(t)
	hour := time.Hour
	narrow := newCA(t, "narrow", p.root, func(c *x509.Certificate) {
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"inside.example"}
	})
	last := newCA(t, "last", p.root, func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true })
	below := newCA(t, "below", last, nil)
	ada := p.root.client("ada", nil)
	stolen := p.root.client("thief", nil)
	stolen.Certificate = ada.Certificate // without ada's key
	all := p.root.pem() + p.mid.pem()
	dns := func(name string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.DNSNames = []string{name} }
	}
	good := p.mid.client("ada", nil)
	for _, row := range []struct {
		name    string
		auth    string // default required
		ca, crl string
		cert    *tls.Certificate
		reason  string // empty: it is let in
		phase   string
		claimed string
	}{
		{name: "good", ca: p.root.pem(), cert: ada},
		{name: "good by an intermediate that it sends", ca: p.root.pem(), cert: p.mid.client("ada", nil, p.mid)},
		{name: "good by an intermediate of the file", ca: all, cert: good},
		{name: "good by an intermediate that is the anchor", ca: p.mid.pem(), cert: good},
		{name: "good by name constraints", ca: p.root.pem(), cert: narrow.client("ada", dns("ada.inside.example"), narrow)},
		{name: "good and listed by all", ca: all, crl: p.root.list(hour) + p.mid.list(hour), cert: good},
		{name: "none, and none needed", auth: "optional", ca: p.root.pem()},
		{name: "good where none is needed", auth: "optional", ca: p.root.pem(), cert: ada},
		{name: "none", ca: p.root.pem(), reason: "tls_no_client_cert", phase: "client_certificate"},
		{name: "bad where none is needed", auth: "optional", ca: p.root.pem(), cert: p.other.client("eve", nil), reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: "CN=eve"},
		{name: "another authority of the same name", ca: p.root.pem(), cert: p.other.client("eve", nil), reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: "CN=eve"},
		{name: "an intermediate that nobody has", ca: p.root.pem(), cert: good, reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: "CN=ada"},
		{name: "its own authority sent along", ca: p.root.pem(), cert: p.other.client("eve", nil, p.other), reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: "CN=eve"},
		{name: "expired", ca: p.root.pem(), cert: p.root.client("old", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), reason: "tls_bad_client_cert", phase: "expired", claimed: "CN=old"},
		{name: "of tomorrow", ca: p.root.pem(), cert: p.root.client("new", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(hour) }), reason: "tls_bad_client_cert", phase: "expired", claimed: "CN=new"},
		{name: "for servers", ca: p.root.pem(), cert: p.root.client("web", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), reason: "tls_bad_client_cert", phase: "purpose", claimed: "CN=web"},
		{name: "outside of name constraints", ca: p.root.pem(), cert: narrow.client("ada", dns("ada.outside.example"), narrow), reason: "tls_bad_client_cert", phase: "constraint", claimed: "CN=ada"},
		{name: "too long a path", ca: p.root.pem(), cert: below.client("ada", nil, below, last), reason: "tls_bad_client_cert", phase: "constraint", claimed: "CN=ada"},
		{name: "revoked", ca: p.root.pem(), crl: p.root.list(hour, ada.Leaf), cert: ada, reason: "tls_bad_client_cert", phase: "revoked", claimed: "CN=ada"},
		{name: "its intermediate is revoked", ca: all, crl: p.root.list(hour, p.mid.cert) + p.mid.list(hour), cert: good, reason: "tls_bad_client_cert", phase: "revoked", claimed: "CN=ada"},
		{name: "its authority has no list", ca: all, crl: p.root.list(hour), cert: good, reason: "tls_bad_client_cert", phase: "crl_missing", claimed: "CN=ada"},
		{name: "the list has run out", ca: p.root.pem(), crl: p.root.list(-hour), cert: ada, reason: "tls_bad_client_cert", phase: "crl_expired", claimed: "CN=ada"},
		{name: "without its key", ca: p.root.pem(), cert: stolen, reason: "tls_bad_client_cert", phase: "proof"},
		{name: "no certificate at all", ca: p.root.pem(), cert: &tls.Certificate{Certificate: [][]byte{{0x30, 3, 1, 2, 3}}, PrivateKey: ada.PrivateKey}, reason: "tls_bad_client_cert", phase: "proof"},
		{name: "a name too long to keep", ca: p.root.pem(), cert: p.other.client("eve", func(c *x509.Certificate) {
			c.Subject.Organization = []string{strings.Repeat("o", 4000)}
		}), reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: ("CN=eve,O=" + strings.Repeat("o", 4000))[:512]},
		{name: "a workload without a subject", ca: p.root.pem(), cert: p.other.client("", func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/a"}}
		}), reason: "tls_bad_client_cert", phase: "unknown_authority", claimed: "spiffe://example.org/a"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(row.name+"/"+tls.VersionName(version), func(t *testing.T) {
				auth := row.auth
				if auth == "" {
					auth = config.ClientAuthRequired
				}
				d := newDoorman(t, auth, row.ca, row.crl)
				defer d.end()
				_, status := d.ask(t, d.with(row.cert, version))
				r := d.next(t)
				if row.reason == "" {
					if status != 200 || r.Kind != record.KindRequest || r.Status != 200 {
						t.Errorf("answered %d, recorded %s %d %+v", status, r.Kind, r.Status, r.Error)
					}
					if want := ""; row.cert != nil {
						if want = row.cert.Leaf.Subject.String(); r.Personal.CertSubject != want {
							t.Errorf("subject %q, want %q", r.Personal.CertSubject, want)
						}
					}
				} else if status != 0 || r.Kind != record.KindHandshake || r.Outcome != record.Failure || r.Error.Reason != row.reason || r.Error.Phase != row.phase || r.Personal.Claimed != row.claimed {
					t.Errorf("answered %d, recorded %s %s %+v claimed %q", status, r.Kind, r.Outcome, r.Error, r.Personal.Claimed)
				}
				if r.TLS.JA4 == "" || r.TLS.SNI != "api.example.com" {
					t.Errorf("%+v", r.TLS)
				}
				d.quiet(t)
			})
		}
	}
}

// TestClientResumption: a session carries its certificate on, and only as long
// as that is good and at the listener that saw it.
func TestClientResumption(t *testing.T) {
	p := newPKI(t)
	ada := p.root.client("ada", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, row := range []struct {
			name    string
			change  func(t *testing.T, d *doorman) // between the two connections
			twice   bool                           // the second goes to another listener
			status  int
			resumed bool
		}{
			{name: "nothing has changed", change: func(*testing.T, *doorman) {}, status: 200, resumed: true},
			{name: "revoked", change: func(t *testing.T, d *doorman) { put(t, d.crl, p.root.list(time.Hour, ada.Leaf)) }},
			{name: "another list", change: func(t *testing.T, d *doorman) { put(t, d.crl, p.root.list(time.Hour)) }, status: 200},
			{name: "another authority", change: func(t *testing.T, d *doorman) {
				put(t, d.clientCA, p.other.pem())
				put(t, d.crl, p.other.list(time.Hour))
			}},
			{name: "one authority more", change: func(t *testing.T, d *doorman) { put(t, d.clientCA, p.root.pem()+p.other.pem()) }, status: 200},
			{name: "another listener of the same authority", change: func(*testing.T, *doorman) {}, twice: true, status: 200},
		} {
			t.Run(row.name+"/"+tls.VersionName(version), func(t *testing.T) {
				d := newDoorman(t, config.ClientAuthRequired, p.root.pem(), p.root.list(time.Hour))
				defer d.end()
				c := d.with(ada, version)
				c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
				conn, status := d.ask(t, c)
				if r := d.next(t); status != 200 || r.TLS.Resumed {
					t.Fatalf("answered %d %+v", status, r.TLS)
				}
				conn.Close()
				row.change(t, d)
				d.certs.poll(time.Now())
				if row.twice {
					d = newDoorman(t, config.ClientAuthRequired, p.root.pem(), p.root.list(time.Hour))
					defer d.end()
					c.RootCAs = d.pool
				}
				_, status = d.ask(t, c)
				r := d.next(t)
				if status != row.status || r.Status != row.status || r.TLS.Resumed != row.resumed {
					t.Errorf("answered %d, recorded %d %+v %+v; want %d, resumed %t", status, r.Status, r.Error, r.TLS, row.status, row.resumed)
				}
				if row.status == 200 && r.Personal.CertSubject != "CN=ada" {
					t.Errorf("subject %q", r.Personal.CertSubject)
				}
				d.quiet(t)
			})
		}
	}
}

// TestClientOfLongConnection: what was found in the handshake is not believed
// for ever.
func TestClientOfLongConnection(t *testing.T) {
	p := newPKI(t)
	ada := p.root.client("ada", nil)
	for _, row := range []struct {
		name   string
		auth   string
		cert   *tls.Certificate
		change func(t *testing.T, d *doorman)
		reason string
	}{
		{name: "nothing has changed", cert: ada},
		{name: "another list", cert: ada, change: func(t *testing.T, d *doorman) { put(t, d.crl, p.root.list(time.Hour)) }},
		{name: "one authority more", cert: ada, change: func(t *testing.T, d *doorman) { put(t, d.clientCA, p.root.pem()+p.other.pem()) }},
		{name: "revoked", cert: ada, change: func(t *testing.T, d *doorman) { put(t, d.crl, p.root.list(time.Hour, ada.Leaf)) }, reason: "tls_bad_client_cert"},
		{name: "another authority", cert: ada, change: func(t *testing.T, d *doorman) {
			put(t, d.clientCA, p.other.pem())
			put(t, d.crl, p.other.list(time.Hour))
		}, reason: "tls_bad_client_cert"},
		{name: "no certificates any more", cert: ada, change: func(t *testing.T, d *doorman) { d.reload(t, config.ClientAuthOff) }, reason: "tls_bad_client_cert"},
		{name: "only optional now", cert: ada, change: func(t *testing.T, d *doorman) { d.reload(t, config.ClientAuthOptional) }},
		{name: "required now", auth: config.ClientAuthOptional, change: func(t *testing.T, d *doorman) { d.reload(t, config.ClientAuthRequired) }, reason: "tls_no_client_cert"},
		{name: "not asked for any more, and none shown", auth: config.ClientAuthOptional, change: func(t *testing.T, d *doorman) { d.reload(t, config.ClientAuthOff) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			auth := row.auth
			if auth == "" {
				auth = config.ClientAuthRequired
			}
			d := newDoorman(t, auth, p.root.pem(), p.root.list(time.Hour))
			defer d.end()
			conn, status := d.ask(t, d.with(row.cert, tls.VersionTLS13))
			if r := d.next(t); status != 200 || r.Status != 200 {
				t.Fatalf("answered %d %+v", status, r.Error)
			}
			if row.change != nil {
				row.change(t, d)
				d.certs.poll(time.Now())
			}
			want := 200
			if row.reason != "" {
				want = 400
			}
			status = again(conn)
			r := d.next(t)
			if status != want || r.Kind != record.KindRequest || r.Status != want || r.Error.Reason != row.reason {
				t.Errorf("answered %d, recorded %s %d %+v", status, r.Kind, r.Status, r.Error)
			}
			if row.reason == "" {
				return
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the connection goes on")
			}
			d.quiet(t)
		})
	}
}

// TestClientStands: time alone ends what was found.
func TestClientStands(t *testing.T) {
	p := newPKI(t)
	ada := p.root.client("ada", nil)
	for _, row := range []struct {
		name  string
		crl   string
		after time.Duration
		want  string
	}{
		{name: "at once"},
		{name: "just before its end", after: 24*time.Hour - time.Minute},
		{name: "after its end", after: 24*time.Hour + time.Minute, want: "tls_bad_client_cert"},
		{name: "before the end of the list", crl: p.root.list(time.Hour), after: time.Hour - time.Minute},
		{name: "after the end of the list", crl: p.root.list(time.Hour), after: time.Hour + time.Minute, want: "tls_bad_client_cert"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var crl []byte
			if row.crl != "" {
				crl = []byte(row.crl)
			}
			trust, err := newClientTrust(true, []byte(p.root.pem()), crl)
			if err != nil {
				t.Fatal(err)
			}
			store := &certStore{}
			store.now.Store(&certSet{trust: trust})
			s := &standing{store: store}
			now := time.Now()
			if err := s.judge(trust, []*x509.Certificate{ada.Leaf}, now); err != nil {
				t.Fatal(err)
			}
			if got := s.still(now.Add(row.after)); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
			if n := testing.AllocsPerRun(100, func() { s.still(now) }); n != 0 {
				t.Errorf("%v allocations for each request", n)
			}
		})
	}
}

// reload changes how the listener asks, as a new configuration does.
func (d *doorman) reload(t *testing.T, auth string) {
	t.Helper()
	f := d.certs.now.Load().files
	f.auth = auth
	adopt, err := d.certs.prepare(f)
	if err != nil {
		t.Fatal(err)
	}
	adopt()
}

// TestClientFiles: a file that is no good keeps the listener from starting, and
// one that has become no good is not taken.
func TestClientFiles(t *testing.T) {
	p := newPKI(t)
	cert := (&house{t: t}).certificate().Certificates
	good, list := p.root.pem(), p.root.list(time.Hour)
	for _, row := range []struct {
		name      string
		ca, crl   string // "-": no such file
		start, in string // what the start and the change say; start empty: it starts
	}{
		{name: "no authorities", ca: "-", crl: list, start: "no such file"},
		{name: "empty authorities", ca: "", crl: list, start: "no certificate"},
		{name: "garbage", ca: "hello", crl: list, start: "no certificate"},
		{name: "half a certificate", ca: good[:200], crl: list, start: "cannot be read"},
		{name: "no list", ca: good, crl: "-", start: "no such file"},
		{name: "empty list", ca: good, crl: "", start: "is empty"},
		{name: "half a list", ca: good, crl: list[:100], start: "cannot be read"},
		{name: "a list of another authority", ca: good, crl: p.other.list(time.Hour), start: "signed by none of client_ca"},
		{name: "a list that has run out", ca: good, crl: p.root.list(-time.Hour), in: "ran out on"},
		{name: "an older list", ca: good, crl: list, in: "older than the one in use"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			f := tlsFiles{cert, config.Path(filepath.Join(dir, "ca.pem")), config.Path(filepath.Join(dir, "ca.crl")), config.ClientAuthRequired}
			write := func(ca, crl string) {
				for name, text := range map[config.Path]string{f.clientCA: ca, f.crl: crl} {
					if text == "-" {
						_ = os.Remove(string(name))
						continue
					}
					put(t, name, text)
				}
			}
			write(row.ca, row.crl)
			_, err := newCertStore("listener x", f, nil, slog.New(slog.DiscardHandler))
			if (err == nil) != (row.start == "") || err != nil && !strings.Contains(err.Error(), row.start) {
				t.Errorf("start: %v, want %q", err, row.start)
			}
			write(good, p.root.list(time.Hour))
			s, err := newCertStore("listener x", f, nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			inUse := s.now.Load()
			write(row.ca, row.crl)
			want := row.in
			if want == "" {
				want = row.start
			}
			s.poll(time.Now())
			if notes := s.notes(time.Now()); s.now.Load() != inUse || len(notes) == 0 || !strings.Contains(notes[0], want) {
				t.Errorf("taken %t, notes %q", s.now.Load() != inUse, notes)
			}
			if _, err := s.prepare(f); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("reload: %v, want %q", err, want)
			}
		})
	}
}

// TestClientNotes: readiness tells what keeps clients out, or soon will.
func TestClientNotes(t *testing.T) {
	p := newPKI(t)
	trust, err := newClientTrust(true, []byte(p.root.pem()), []byte(p.root.list(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		after time.Duration
		want  []string
	}{
		{0, nil},
		{55 * time.Minute, []string{"runs out on"}},
		{2 * time.Hour, []string{"no client certificate of \"CN=root\" is taken: its revocation list ran out"}},
		{95 * 24 * time.Hour, []string{"no client certificate", "expires on"}},
		{101 * 24 * time.Hour, []string{"no client certificate", "expired on"}},
	} {
		notes := trust.notes(time.Now().Add(row.after))
		if len(notes) != len(row.want) {
			t.Errorf("after %s: %q", row.after, notes)
			continue
		}
		for i, w := range row.want {
			if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, w) }) {
				t.Errorf("after %s: no %q in %q", row.after, row.want[i], notes)
			}
		}
	}
}

// splitConn sends every byte by itself, or a ClientHello in records of one byte.
type splitConn struct {
	net.Conn
	records bool
	begun   bool
}

func (c *splitConn) Write(p []byte) (int, error) {
	out := p
	if c.records && !c.begun && len(p) > 5 && p[0] == 22 {
		out = nil
		for _, b := range p[5:] {
			out = append(out, 22, p[1], p[2], 0, 1, b)
		}
	}
	size := 1
	if c.records || c.begun {
		size = 64
	}
	c.begun = true
	for chunk := range slices.Chunk(out, size) {
		if _, err := c.Conn.Write(chunk); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestClientHelloVariants: however the hello is cut and its name is written, a
// certificate is asked for.
func TestClientHelloVariants(t *testing.T) {
	p := newPKI(t)
	ada := p.root.client("ada", nil)
	for _, row := range []struct {
		name  string
		sni   string
		split func(net.Conn) net.Conn
	}{
		{name: "byte by byte", sni: "api.example.com", split: func(c net.Conn) net.Conn { return &splitConn{Conn: c} }},
		{name: "a record for each byte", sni: "api.example.com", split: func(c net.Conn) net.Conn { return &splitConn{Conn: c, records: true} }},
		{name: "upper case name", sni: "API.EXAMPLE.COM"},
		{name: "mixed case name", sni: "aPi.eXample.com"},
		{name: "name with a dot", sni: "api.example.com."},
		{name: "name that no certificate has", sni: "evil.example"},
		{name: "wildcard name", sni: "*.example.com"},
		{name: "no name", sni: ""},
	} {
		for _, shown := range []*tls.Certificate{nil, ada} {
			t.Run(row.name, func(t *testing.T) {
				d := newDoorman(t, config.ClientAuthRequired, p.root.pem(), "")
				defer d.end()
				c := d.with(shown, tls.VersionTLS13)
				c.ServerName, c.InsecureSkipVerify = row.sni, true
				raw := net.Conn(d.dial(t))
				if row.split != nil {
					raw = row.split(raw)
				}
				status := again(tls.Client(raw, c))
				r := d.next(t)
				if shown == nil && (status != 0 || r.Error.Reason != "tls_no_client_cert") {
					t.Errorf("let in without a certificate: %d %+v", status, r.Error)
				}
				if shown != nil && (status != 200 || r.Personal.CertSubject != "CN=ada") {
					t.Errorf("not let in with one: %d %+v", status, r.Error)
				}
				d.quiet(t)
			})
		}
	}
}
