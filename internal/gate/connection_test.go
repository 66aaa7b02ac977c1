package gate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
)

// onLine is an exchange of a given canonical request that keeps its answer.
type onLine struct {
	nullExchange
	listener string
	status   int
	fields   []canon.Field
}

func (x *onLine) Listener() string { return x.listener }
func (x *onLine) Head(status int, fields []canon.Field, _ int64) error {
	x.status, x.fields = status, append(x.fields, fields...)
	return nil
}

func (x *onLine) field(name string) string {
	for _, f := range x.fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// TestMisdirected: a connection that was made for one host, or to a listener
// that asks in another way, is not good for another host.
func TestMisdirected(t *testing.T) {
	book := newFakeBook()
	up := answers(200, 5, nil, "hello")
	route := func(name, host string, listeners ...string) *Route {
		return &Route{Name: name, Host: host, Path: "/{rest...}", Public: true, Upstream: up, UpstreamName: "u", Listeners: listeners}
	}
	h := newHouse(t, houseConfig{book: book, snap: func(s *SnapshotConfig) {
		s.Listeners = []Listener{{Name: "public"}, {Name: "second"}, {Name: "partners", ClientAuth: "required a.pem"}}
		s.Routes = []*Route{
			route("api", "api.example.com"), route("web", "web.example.com", "public", "second"), route("partners", "partners.example.com", "partners"),
			route("more", "more.example.com", "partners"), route("hidden", "hidden.example.com", "second"), route("rest", "", "public"),
		}
	}})
	for _, row := range []struct {
		listener, sni, host string
		plain               bool
		status              int
		reason              string
	}{
		{listener: "public", sni: "api.example.com", host: "api.example.com", status: 200},
		{listener: "public", sni: "api.example.com", host: "web.example.com", status: 200}, // both ask for nothing: shared connections are fine
		{listener: "public", sni: "", host: "web.example.com", status: 200},
		{listener: "public", sni: "api.example.com", host: "partners.example.com", status: 421, reason: "misdirected_request"},
		{listener: "public", sni: "partners.example.com", host: "partners.example.com", status: 421, reason: "misdirected_request"},
		{listener: "public", sni: "api.example.com", host: "hidden.example.com", status: 200}, // asked for in the same way elsewhere: the route without a host takes it
		{listener: "public", plain: true, host: "api.example.com", status: 200},
		{listener: "second", sni: "web.example.com", host: "more.example.com", status: 421, reason: "misdirected_request"},
		{listener: "partners", sni: "partners.example.com", host: "partners.example.com", status: 200},
		{listener: "partners", sni: "", host: "partners.example.com", status: 200}, // no name was said, so none differs
		{listener: "partners", sni: "api.example.com", host: "api.example.com", status: 200},
		{listener: "partners", sni: "api.example.com", host: "partners.example.com", status: 421, reason: "misdirected_request"},
		{listener: "partners", sni: "partners.example.com", host: "more.example.com", status: 421, reason: "misdirected_request"},
		{listener: "partners", sni: "partners.example.com", host: "api.example.com", status: 421, reason: "misdirected_request"},
		{listener: "partners", sni: "evil.example", host: "partners.example.com", status: 421, reason: "misdirected_request"},
		{listener: "partners", sni: "partners.example.com", host: "web.example.com", status: 421, reason: "misdirected_request"},
	} {
		x := &onLine{listener: row.listener}
		x.req = canon.Request{Method: "GET", Scheme: "https", Host: row.host, Authority: row.host, Path: "/x", Segments: []string{"x"}, Proto: "HTTP/2", TLS: &canon.TLS{Version: "1.3", SNI: row.sni}}
		if row.plain {
			x.req.TLS = nil
		}
		h.gate.Serve(context.Background(), x)
		c := <-book.done
		if x.status != row.status || c.rec.Status != row.status || c.rec.Error.Reason != row.reason {
			t.Errorf("%s, connection to %q, request for %q: answered %d, recorded %d %+v; want %d %s", row.listener, row.sni, row.host, x.status, c.rec.Status, c.rec.Error, row.status, row.reason)
		}
		if row.reason != "" && !c.rec.Raw.Fold {
			t.Error("a flood of it is written one by one")
		}
	}
}

// TestConnectionStanding: the connection is asked before every request, and what
// it says ends it; its certificate is in the record.
func TestConnectionStanding(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ada", Organization: []string{"corp"}}, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	method, err := authn.NewMTLS(authn.MTLSConfig{Name: "staff", Subject: authn.SubjectCN, Alone: true, Now: func() time.Time { return epoch }})
	if err != nil {
		t.Fatal(err)
	}
	book := newFakeBook()
	h := newHouse(t, houseConfig{book: book, tune: func(r *Route) { r.Authenticators = []Authenticator{method} }})
	for _, row := range []struct {
		name   string
		cert   bool
		still  string
		status int
		reason string
	}{
		{"good", true, "", 200, ""},
		{"gone bad", true, "tls_bad_client_cert", 400, "tls_bad_client_cert"},
		{"demanded meanwhile", false, "tls_no_client_cert", 400, "tls_no_client_cert"},
		{"none, and the route wants one", false, "", 400, "tls_no_client_cert"},
	} {
		t.Run(row.name, func(t *testing.T) {
			x := &onLine{listener: "public"}
			asked := 0
			conn := &canon.TLS{Version: "1.3", Still: func(now time.Time) string {
				asked++
				if !now.Equal(epoch) {
					t.Errorf("asked about %v", now)
				}
				return row.still
			}}
			if row.cert {
				h.gate.Certificate(conn, []*x509.Certificate{cert})
			}
			x.req = canon.Request{Method: "GET", Scheme: "https", Host: "a", Authority: "a", Path: "/v1/orders/1", Segments: []string{"v1", "orders", "1"}, Proto: "HTTP/1.1", TLS: conn}
			h.gate.Serve(context.Background(), x)
			c := <-book.done
			if x.status != row.status || c.rec.Status != row.status || c.rec.Error.Reason != row.reason || asked != 1 {
				t.Errorf("answered %d, recorded %d %+v, asked %d times", x.status, c.rec.Status, c.rec.Error, asked)
			}
			if got := x.field("connection"); (got == "close") != (row.still != "") {
				t.Errorf("connection: %q", got)
			}
			if row.cert && (c.rec.Personal.CertSubject != "CN=ada,O=corp" || c.rec.TLS.ClientCert == "") || !row.cert && c.rec.TLS.ClientCert != "" {
				t.Errorf("certificate %q %q", c.rec.Personal.CertSubject, c.rec.TLS.ClientCert)
			}
			if row.status == 200 {
				if a := c.rec.Authn; a.Method != "mtls" || a.Issuer != "staff" || a.Bound != "mtls" || a.Outcome != "ok" || a.TTLS != 3600 || a.AgeS != 3600 || c.rec.Personal.Sub != "ada" {
					t.Errorf("%+v %q", a, c.rec.Personal.Sub)
				}
			}
		})
	}
}
