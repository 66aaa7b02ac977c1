package gate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// finding is a demand with something to say.
type finding struct {
	found authn.Findings
	err   error
	saw   func(r *canon.Request)
}

func (f finding) Check(context.Context, *canon.Request, *authn.Principal) error {
	panic("asked without its findings")
}

func (f finding) Examine(_ context.Context, r *canon.Request, _ *authn.Principal) (authn.Findings, error) {
	if f.saw != nil {
		f.saw(r)
	}
	return f.found, f.err
}

// What a demand finds beside yes reaches the client and the record, with
// answers of the upstream and of the gate alike.
func TestFindings(t *testing.T) {
	for _, row := range []struct {
		name   string
		found  authn.Findings
		err    error
		status int
		mode   string
	}{
		{"nothing", authn.Findings{}, nil, 200, ""},
		{"a newer nonce with a good answer", authn.Findings{Nonce: "next"}, nil, 200, ""},
		{"a newer nonce with a refusal", authn.Findings{Nonce: "next"}, &authn.Failure{Reason: reason.TokenReplayed}, 401, ""},
		{"this node alone", authn.Findings{Local: true}, nil, 200, "local"},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHouse(t, houseConfig{tune: func(r *Route) { r.Demands = []Demand{finding{found: row.found, err: row.err}} }})
			resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil))
			if err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Values("DPoP-Nonce"); resp.StatusCode != row.status || (len(got) == 1) != (row.found.Nonce != "") {
				t.Errorf("status %d, nonces %q", resp.StatusCode, got)
			}
			if rec := h.one(t).rec; rec.Limit.Mode != row.mode || (rec.Limit.Rule == "replay") != (row.mode != "") {
				t.Errorf("recorded %+v", rec.Limit)
			}
		})
	}
}

// Which certificate is the client's: that of the connection, or what a trusted
// peer says if the listener is behind one; never both, and never what somebody
// else says.
func TestForwardedCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(der)
	peer := netip.MustParseAddrPort("10.0.0.1:1234")
	for _, row := range []struct {
		name    string
		from    string
		on      bool
		fields  []string
		own     bool // the connection has one, too
		forward bool // the forwarded one counts
		none    bool
	}{
		{name: "trusted", from: "10.0.0.0/8", on: true, fields: []string{":" + text + ":"}, forward: true},
		{name: "trusted, with a certificate of its own", from: "10.0.0.0/8", on: true, own: true, fields: []string{":" + text + ":"}, forward: true},
		{name: "the proxy's own is not the client's", from: "10.0.0.0/8", on: true, own: true, none: true},
		{name: "not trusted", from: "192.0.2.0/24", on: true, fields: []string{":" + text + ":"}, none: true},
		{name: "not trusted, own", from: "192.0.2.0/24", on: true, own: true, fields: []string{":" + text + ":"}},
		{name: "off", from: "10.0.0.0/8", fields: []string{":" + text + ":"}, none: true},
		{name: "two", from: "10.0.0.0/8", on: true, fields: []string{":" + text + ":", ":" + text + ":"}, none: true},
		{name: "a list", from: "10.0.0.0/8", on: true, fields: []string{":" + text + ":, :" + text + ":"}, none: true},
		{name: "no colons", from: "10.0.0.0/8", on: true, fields: []string{text}, none: true},
		{name: "PEM", from: "10.0.0.0/8", on: true, fields: []string{"-----BEGIN CERTIFICATE-----"}, none: true},
		{name: "parameters", from: "10.0.0.0/8", on: true, fields: []string{":" + text + ":;a=1"}, none: true},
		{name: "no certificate", from: "10.0.0.0/8", on: true, fields: []string{":AAAA:"}, none: true},
	} {
		own := &x509.Certificate{}
		r := &canon.Request{Remote: peer}
		if row.own {
			r.TLS = &canon.TLS{Client: []*x509.Certificate{own}}
		}
		for _, v := range row.fields {
			r.Fields = append(r.Fields, canon.Field{Name: "client-cert", Value: v})
		}
		x := &exchange{req: r, lis: &listener{trusted: []netip.Prefix{netip.MustParsePrefix(row.from)}, clientCert: row.on}}
		x.findClient()
		switch got := r.ClientCertificate(); {
		case row.none && got != nil, row.forward && (got == nil || !got.Equal(leaf)), !row.none && !row.forward && got != own:
			t.Errorf("%s: %v", row.name, got)
		}
		if r.Client != peer.Addr() {
			t.Errorf("%s: the client is %s", row.name, r.Client)
		}
	}
}

// Challenges name the schemes that the route takes.
func TestDPoPChallenges(t *testing.T) {
	for _, row := range []struct {
		mode          DPoPMode
		authorization string
		why           reason.Reason
		want          string
	}{
		{DPoPOff, "", reason.NoCredential, `Bearer realm="gatebook"`},
		{DPoPOff, "DPoP x", reason.NoCredential, `Bearer realm="gatebook"`},
		{DPoPOptional, "", reason.NoCredential, `Bearer realm="gatebook", DPoP realm="gatebook", algs="ES256 EdDSA"`},
		{DPoPOptional, "Bearer x", reason.TokenExpired, `Bearer realm="gatebook", error="invalid_token", DPoP realm="gatebook", algs="ES256 EdDSA"`},
		{DPoPOptional, "dpop x", reason.TokenExpired, `DPoP realm="gatebook", error="invalid_token", algs="ES256 EdDSA"`},
		{DPoPRequired, "", reason.NoCredential, `DPoP realm="gatebook", algs="ES256 EdDSA"`},
		{DPoPRequired, "Bearer x", reason.BindingRequired, `DPoP realm="gatebook", error="invalid_token", algs="ES256 EdDSA"`},
		{DPoPRequired, "DPoP x", reason.DPoPProof, `DPoP realm="gatebook", error="invalid_dpop_proof", algs="ES256 EdDSA"`},
		{DPoPRequired, "DPoP x", reason.DPoPNonce, `DPoP realm="gatebook", error="use_dpop_nonce", algs="ES256 EdDSA"`},
	} {
		h := newHouse(t, houseConfig{tune: func(r *Route) {
			r.Challenge.DPoP, r.Challenge.DPoPAlgorithms = row.mode, "ES256 EdDSA"
			r.Authenticators = []Authenticator{fakeAuth(func(*canon.Request) (*authn.Principal, error) {
				if row.why == reason.NoCredential {
					return nil, authn.ErrNoCredential
				}
				return nil, &authn.Failure{Reason: row.why}
			})}
		}})
		req := h.request(t, "GET", "/v1/orders/1", nil)
		req.Header.Del("Authorization")
		if row.authorization != "" {
			req.Header.Set("Authorization", row.authorization)
		}
		resp, _, err := do(t, h.h1, req)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != http.StatusUnauthorized || got != row.want {
			t.Errorf("%d %q: %d %q, want %q", row.mode, row.authorization, resp.StatusCode, got, row.want)
		}
	}
}
