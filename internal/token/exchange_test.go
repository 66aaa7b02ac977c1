package token

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// TestExchange: who acts for whom, and that nothing grows on the way.
func TestExchange(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		name    string
		subject string // claims of the subject token; or a token as it is
		kind    string
		more    []string
		status  int
		code    string
		why     reason.Reason
		check   func(r *reply, c *claims)
	}{
		{name: "all that both have", subject: `{"sub":"alice"}`, status: 200, check: func(r *reply, c *claims) {
			if r.Scope != "read write" || !slices.Equal(c.Roles, []string{"clerk"}) || c.Subject != "corp:"+aliceSub || c.ACR != "silver" || c.AuthTime == 0 || string(c.Actor) != `{"sub":"shop"}` {
				t.Errorf("%s %+v", r.raw, c)
			}
			if r.rec.Raw.IssuerSub != "corp|"+aliceSub || r.rec.Event.Name != "exchange" || r.rec.Authn.Client != "shop" || r.rec.Authn.Issuer != "corp" {
				t.Errorf("%+v %+v", r.rec.Event, r.rec.Authn)
			}
			if left := c.Expires - time.Now().Unix(); left > 120 || left < 118 {
				t.Errorf("%d s left", left)
			}
		}},
		{name: "less scope", subject: `{"sub":"alice"}`, more: []string{"scope", "write"}, status: 200, check: func(r *reply, _ *claims) {
			if r.Scope != "write" {
				t.Error(r.raw)
			}
		}},
		{name: "scope that the client has not", subject: `{"sub":"alice"}`, more: []string{"scope", "admin"}, status: 400, code: invalidScope, why: reason.ScopeMissing},
		{name: "scope that the subject has not", subject: `{"sub":"bare"}`, more: []string{"scope", "read"}, status: 400, code: invalidScope, why: reason.ScopeMissing},
		{name: "nothing to pass on", subject: `{"sub":"bare"}`, status: 200, check: func(r *reply, c *claims) {
			if r.Scope != "" || c.Roles != nil {
				t.Errorf("%s %+v", r.raw, c)
			}
		}},
		{name: "same name of another source", subject: `{"sub":"partner-alice"}`, status: 200, check: func(_ *reply, c *claims) {
			if c.Subject != "partner:"+aliceSub {
				t.Errorf("%+v", c)
			}
		}},
		{name: "an actor before", subject: `{"sub":"alice","act":{"sub":"web","act":{"sub":"job"}}}`, status: 200, check: func(_ *reply, c *claims) {
			if string(c.Actor) != `{"sub":"shop","act":{"sub":"web","act":{"sub":"job"}}}` {
				t.Errorf("%s", c.Actor)
			}
		}},
		{name: "too many actors", subject: `{"sub":"alice","act":{"act":{"act":{"act":{}}}}}`, status: 400, code: invalidGrant, why: reason.DeniedByDefault},
		{name: "an actor that is no object", subject: `{"sub":"alice","act":"x"}`, status: 400, code: invalidGrant, why: reason.DeniedByDefault},
		{name: "may act", subject: `{"sub":"alice","may_act":{"sub":"shop"}}`, status: 200},
		{name: "another may act", subject: `{"sub":"alice","may_act":{"sub":"web"}}`, status: 400, code: invalidGrant, why: reason.DeniedByPolicy},
		{name: "nobody may act", subject: `{"sub":"alice","may_act":[]}`, status: 400, code: invalidGrant, why: reason.DeniedByPolicy},
		{name: "bound", subject: `{"sub":"bound"}`, status: 400, code: invalidGrant, why: reason.BindingRequired},
		{name: "expired", subject: `{"sub":"expired"}`, status: 400, code: invalidGrant, why: reason.TokenExpired},
		{name: "no time left", subject: `{"sub":"ended"}`, status: 400, code: invalidGrant, why: reason.TokenExpired},
		{name: "nobody's", subject: `{"sub":"x"}`, status: 400, code: invalidGrant, why: reason.TokenIssuer},
		{name: "source away", subject: `{"sub":"away"}`, status: 503, code: temporarily, why: reason.IssuerUnavailable},
		{name: "api key", subject: "gbk_key", kind: TypeAPIKey, status: 200, check: func(r *reply, c *claims) {
			if c.Subject != "keys:robot" || r.Scope != "read" || c.Expires-c.IssuedAt != 300 || string(c.Actor) != `{"sub":"shop"}` || r.rec.Raw.IssuerSub != "apikeys|robot" {
				t.Errorf("%s %+v", r.raw, c)
			}
		}},
		{name: "unknown api key", subject: "gbk_other", kind: TypeAPIKey, status: 400, code: invalidGrant, why: reason.KeyUnknown},
		{name: "api key for some routes", subject: "gbk_narrow", kind: TypeAPIKey, status: 400, code: invalidGrant, why: reason.DeniedByPolicy},
		{name: "api key as a token", subject: "gbk_key", status: 400, code: invalidGrant, why: reason.TokenIssuer},
		{name: "offline for an api key", subject: "gbk_key", kind: TypeAPIKey, more: []string{"scope", "offline_access"}, status: 400, code: invalidScope, why: reason.ScopeMissing},
		{name: "unknown type", subject: `{"sub":"alice"}`, kind: "urn:ietf:params:oauth:token-type:id_token", status: 400, code: invalidRequest, why: reason.MalformedRequest},
		{name: "a refresh token wanted", subject: `{"sub":"alice"}`, more: []string{"requested_token_type", TypeRefresh}, status: 400, code: invalidRequest, why: reason.MalformedRequest},
		{name: "an actor token", subject: `{"sub":"alice"}`, more: []string{"actor_token", "x"}, status: 400, code: invalidRequest, why: reason.MalformedRequest},
		{name: "no subject token", subject: "", status: 400, code: invalidRequest, why: reason.MalformedRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := c.subject
			if strings.HasPrefix(raw, "{") {
				raw = unsigned(raw)
			}
			if c.kind == "" {
				c.kind = TypeJWT
			}
			r := h.as("shop", PathToken, append([]string{
				"grant_type", string(Exchange), "subject_token", raw, "subject_token_type", c.kind, "audience", orders,
			}, c.more...)...)
			if r.status != c.status || r.Error != c.code || r.rec.Error.Reason != string(c.why) {
				t.Fatalf("%d %s, record %+v", r.status, r.raw, r.rec.Error)
			}
			if c.check != nil {
				c.check(r, h.claimsOf(r.AccessToken))
			}
		})
	}
	if r := h.as("web", PathToken, "grant_type", string(Exchange), "subject_token", "gbk_key", "subject_token_type", TypeAPIKey); r.status != 400 || r.rec.Error.Reason != string(reason.TokenIssuer) {
		t.Errorf("a source that is not the client's: %d %s", r.status, r.raw)
	}
}

// TestPlainSubjects: names may stay as they are, but none may be that of a
// client.
func TestPlainSubjects(t *testing.T) {
	h := newHouse(t)
	sub := subjects()
	sub[0].Plain = true
	h.serve(clients(), sub)
	ask := func(who string) *reply {
		return h.as("shop", PathToken, "grant_type", string(Exchange), "subject_token", unsigned(`{"sub":"`+who+`"}`), "subject_token_type", TypeJWT, "audience", orders)
	}
	if r := ask("alice"); r.status != 200 || h.claimsOf(r.AccessToken).Subject != aliceSub {
		t.Errorf("%d %s", r.status, r.raw)
	}
	if r := ask("client"); r.status != 400 || r.Error != invalidGrant {
		t.Errorf("a person by the name of a client: %d %s", r.status, r.raw)
	}
}

// TestExchangeOwn: a token of ours can be exchanged again; the chain grows, the
// name stays, and a revoked one is of no use.
func TestExchangeOwn(t *testing.T) {
	h := newHouse(t)
	sub := append(subjects(), Subject{Name: "own", Type: TypeAccessToken, Verify: func(_ context.Context, raw string) (*authn.Principal, error) {
		payload, ok := h.state.keys.Load().open(raw)
		if !ok {
			return nil, authn.ErrNoCredential
		}
		var c claims
		if err := json.Unmarshal(payload, &c); err != nil {
			return nil, err
		}
		return &authn.Principal{Issuer: "own", Subject: c.Subject, TokenID: c.ID, Scopes: strings.Fields(c.Scope), Roles: c.Roles, Expires: time.Unix(c.Expires, 0)}, nil
	}})
	cl := clients()
	cl[3].Subjects = []string{"own"}
	h.serve(cl, sub)
	one := h.as("shop", PathToken, "grant_type", string(Exchange), "subject_token", unsigned(`{"sub":"alice"}`), "subject_token_type", TypeJWT, "audience", apiURL)
	ask := func() *reply {
		return h.as("web", PathToken, "grant_type", string(Exchange), "subject_token", one.AccessToken, "subject_token_type", TypeJWT)
	}
	two := ask()
	if two.status != 200 {
		t.Fatal(two.raw)
	}
	a, b := h.claimsOf(one.AccessToken), h.claimsOf(two.AccessToken)
	if b.Subject != a.Subject || string(b.Actor) != `{"sub":"web","act":{"sub":"shop"}}` || b.Expires > a.Expires || b.Scope != "read" || b.Roles != nil {
		t.Errorf("%+v, before %+v", b, a)
	}
	h.as("shop", PathRevoke, "token", one.AccessToken)
	if r := ask(); r.status != 400 || r.rec.Error.Reason != string(reason.TokenRevoked) {
		t.Errorf("%d %s", r.status, r.raw)
	}
}

// TestCertificates: clients that authenticate by certificate, and tokens bound
// to it.
func TestCertificates(t *testing.T) {
	h := newHouse(t)
	cert := func(raw string, dns ...string) *canon.TLS {
		return &canon.TLS{Version: "1.3", Client: []*x509.Certificate{{Raw: []byte(raw), DNSNames: dns, URIs: []*url.URL{{Scheme: "spiffe", Host: "x", Path: "/y"}}}}}
	}
	grants, aud := []Grant{ClientCredentials}, []string{apiURL}
	h.serve([]Client{
		{ID: "pki", Method: MTLS, Holder: Holder{"dns", "job.example.com"}, Grants: grants, Audiences: aud, BoundMTLS: true},
		{ID: "spiffe", Method: MTLS, Holder: Holder{"uri", "spiffe://x/y"}, Grants: grants, Audiences: aud},
		{ID: "own", Method: MTLSOwn, Prints: [][32]byte{sha("leaf")}, Grants: grants, Audiences: aud},
		{ID: "basic", Method: SecretBasic, Secret: sha(secret), Grants: grants, Audiences: aud},
	}, nil)
	for _, c := range []struct {
		client string
		tls    *canon.TLS
		status int
		why    reason.Reason
	}{
		{"pki", cert("a", "job.example.com"), 200, ""},
		{"pki", cert("a", "other.example.com"), 401, reason.TLSBadClientCert},
		{"pki", cert("a", "job.example.com", "other.example.com"), 401, reason.TLSBadClientCert},
		{"pki", cert("a"), 401, reason.TLSBadClientCert},
		{"pki", &canon.TLS{}, 401, reason.NoCredential},
		{"pki", nil, 401, reason.NoCredential},
		{"spiffe", cert("a"), 200, ""},
		{"own", cert("leaf"), 200, ""},
		{"own", cert("other", "job.example.com"), 401, reason.TLSBadClientCert},
		{"basic", cert("a", "job.example.com"), 401, reason.KeyUnknown},
		{"nobody", cert("a", "job.example.com"), 401, reason.KeyUnknown},
		{"", cert("a"), 400, reason.MalformedRequest},
	} {
		r := h.send("POST", PathToken, encode("grant_type", "client_credentials", "client_id", c.client), c.tls, "content-type", formType)
		if r.status != c.status || r.rec.Error.Reason != string(c.why) {
			t.Errorf("%s %v: %d %s %+v", c.client, c.tls, r.status, r.raw, r.rec.Error)
		}
		if r.status != 200 {
			continue
		}
		cnf := h.claimsOf(r.AccessToken).Confirm
		if sum := sha("a"); c.client == "pki" && (cnf == nil || cnf.X5T != b64.EncodeToString(sum[:])) || c.client != "pki" && cnf != nil {
			t.Errorf("%s: %+v", c.client, cnf)
		}
	}
	if !strings.Contains(string(h.svc.metadata), `"tls_client_certificate_bound_access_tokens":true`) {
		t.Errorf("%s", h.svc.metadata)
	}
}

func sha(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }
