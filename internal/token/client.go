package token

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// assertionType is that of client assertions (RFC 7523 section 2.2).
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// maxToken bounds a token or an assertion, in bytes.
const maxToken = 8 << 10

// assertionSkew is how long an assertion's id is kept beyond its expiry: the
// most that a verifier may allow for clocks.
const assertionSkew = time.Minute

// presented is how a request says which client it comes from.
type presented struct {
	method    Method // SecretBasic, SecretPost, PrivateKeyJWT or MTLS
	id        string
	secret    string
	assertion string
	basic     bool // an Authorization field was used
}

// authenticate finds the client that sent a request and tells the gate. It
// returns neither a client nor a refusal if the gate has one of its own.
func (s *Service) authenticate(ctx context.Context, c *gate.Call, f form) (*Client, *refusal) {
	p, r := present(c.Request, f)
	if r != nil {
		return nil, r
	}
	cl, why := s.prove(ctx, c.Request, p)
	if why == reason.IssuerUnavailable {
		return nil, &refusal{code: temporarily, status: http.StatusServiceUnavailable, reason: why}
	}
	if why != "" {
		return nil, &refusal{
			code: invalidClient, status: http.StatusUnauthorized, reason: why, basic: p.basic,
			failure: &authn.Failure{Reason: why, Claimed: p.id},
		}
	}
	if !c.Identify(s.principal(cl)) {
		return nil, nil
	}
	return cl, nil
}

// principal is a client speaking for itself.
func (s *Service) principal(c *Client) *authn.Principal {
	return &authn.Principal{Method: string(c.Method), Issuer: s.name, Subject: c.ID, Client: c.ID}
}

// present reads the one way in which a request names its client. Two ways are
// refused (RFC 6749 section 2.3).
func present(r *canon.Request, f form) (*presented, *refusal) {
	p := &presented{id: f.get("client_id"), secret: f.get("client_secret"), assertion: f.get("client_assertion")}
	field, fields := r.Get("authorization")
	kind := f.get("client_assertion_type")
	ways := 0
	for _, on := range []bool{fields > 0, p.secret != "", p.assertion != "" || kind != ""} {
		if on {
			ways++
		}
	}
	switch {
	case ways > 1 || fields > 1:
		return nil, &refusal{code: invalidRequest, text: "the client authenticates in two ways", status: http.StatusBadRequest, reason: reason.TwoCredentials}
	case len(p.id) > maxClientID:
		return nil, malformed("client_id is too long")
	case fields == 1:
		return presentBasic(p, field)
	case p.secret != "":
		p.method = SecretPost
	case p.assertion != "" || kind != "":
		return presentAssertion(p, kind)
	case r.ClientCertificate() != nil:
		p.method = MTLS
	default:
		return nil, &refusal{code: invalidClient, status: http.StatusUnauthorized, reason: reason.NoCredential, failure: &authn.Failure{Reason: reason.NoCredential, Claimed: p.id}}
	}
	if p.id == "" {
		return nil, malformed("client_id is missing")
	}
	return p, nil
}

// presentBasic reads RFC 6749 section 2.3.1: id and secret in the form of a
// form, joined by a colon.
func presentBasic(p *presented, field string) (*presented, *refusal) {
	bad := &refusal{
		code: invalidClient, status: http.StatusUnauthorized, reason: reason.TokenMalformed, basic: true,
		failure: &authn.Failure{Reason: reason.TokenMalformed},
	}
	scheme, rest, ok := strings.Cut(field, " ")
	if !ok || !strings.EqualFold(scheme, "basic") || strings.ContainsAny(rest, "\r\n") {
		return nil, bad
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(rest)
	if err != nil {
		return nil, bad
	}
	rawID, rawSecret, ok := strings.Cut(string(raw), ":")
	id, okID := decode(rawID)
	secret, okSecret := decode(rawSecret)
	if !ok || !okID || !okSecret || id == "" || len(id) > maxClientID || !isText(id) {
		return nil, bad
	}
	if p.id != "" && p.id != id {
		return nil, malformed("client_id is not that of the Authorization field")
	}
	return &presented{method: SecretBasic, id: id, secret: secret, basic: true}, nil
}

// presentAssertion finds out whose an assertion claims to be; the client's own
// keys will tell whether it is.
func presentAssertion(p *presented, kind string) (*presented, *refusal) {
	if kind != assertionType || p.assertion == "" || len(p.assertion) > maxToken {
		return nil, malformed("client_assertion and client_assertion_type do not fit")
	}
	claims, ok := peek(p.assertion)
	if !ok || claims.Subject == "" || len(claims.Subject) > maxClientID || !isText(claims.Subject) {
		return nil, &refusal{
			code: invalidClient, status: http.StatusUnauthorized, reason: reason.TokenMalformed,
			failure: &authn.Failure{Reason: reason.TokenMalformed, Claimed: p.id},
		}
	}
	if p.id != "" && p.id != claims.Subject {
		return nil, malformed("client_id is not that of the assertion")
	}
	p.method, p.id = PrivateKeyJWT, claims.Subject
	return p, nil
}

// prove judges what was presented. An unknown client costs as much as a wrong
// secret and looks the same.
func (s *Service) prove(ctx context.Context, r *canon.Request, p *presented) (*Client, reason.Reason) {
	cl := s.clients[p.id]
	method := p.method
	if method == MTLS && cl != nil && cl.Method == MTLSOwn {
		method = MTLSOwn
	}
	var want [sha256.Size]byte
	if cl != nil && cl.Method == method {
		want = cl.Secret
	} else {
		cl = nil
	}
	switch method {
	case SecretBasic, SecretPost:
		have := sha256.Sum256([]byte(p.secret))
		if subtle.ConstantTimeCompare(have[:], want[:]) != 1 || cl == nil {
			return nil, reason.KeyUnknown
		}
	case PrivateKeyJWT:
		if cl == nil {
			return nil, reason.KeyUnknown
		}
		if why := s.proveAssertion(ctx, cl, p.assertion); why != "" {
			return nil, why
		}
	default:
		if cl == nil {
			return nil, reason.KeyUnknown
		}
		if !cl.holds(r) {
			return nil, reason.TLSBadClientCert
		}
	}
	return cl, ""
}

// proveAssertion judges a client assertion (RFC 7523 section 3): signed by the
// client, by and about itself, for this service alone, and used once.
func (s *Service) proveAssertion(ctx context.Context, cl *Client, raw string) reason.Reason {
	p, err := cl.Assertion(ctx, raw)
	if err != nil || p == nil {
		return failureOf(err).Reason
	}
	claims, ok := peek(raw)
	switch {
	case !ok, p.Subject != cl.ID, p.TokenID == "", p.Expires.IsZero():
		return reason.TokenMalformed
	case !claims.isFor(s.issuer):
		return reason.TokenAudience
	}
	first, err := s.state.store.Create(ctx, tableAsserted, cl.ID+"|"+p.TokenID, nil, p.Expires.Add(assertionSkew))
	if err != nil {
		s.away(err)
		return reason.IssuerUnavailable
	}
	if !first {
		return reason.TokenReplayed
	}
	return ""
}

// holds tells whether the certificate of a request is the client's. A name in it
// counts only if the handshake has verified it here: one that a proxy forwards
// tells which key it is, and no more.
func (cl *Client) holds(r *canon.Request) bool {
	leaf := r.ClientCertificate()
	if cl.Method == MTLSOwn {
		return slices.Contains(cl.Prints, sha256.Sum256(leaf.Raw))
	}
	return !r.FromProxy && cl.Holder.in(leaf)
}

// in tells whether a certificate names the holder.
func (h Holder) in(leaf *x509.Certificate) bool {
	var names []string
	switch h.Kind {
	case "cn":
		return leaf.Subject.CommonName == h.Name
	case "dns":
		names = leaf.DNSNames
	case "email":
		names = leaf.EmailAddresses
	case "uri":
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
	}
	// One name of the kind: with several, another one could be meant.
	return len(names) == 1 && names[0] == h.Name
}

// failureOf is why a verifier said no.
func failureOf(err error) *authn.Failure {
	var f *authn.Failure
	if errors.As(err, &f) && f.Reason.Valid() {
		return f
	}
	return &authn.Failure{Reason: reason.IssuerUnavailable, Err: err}
}

// peeked are claims of a token that only a verifier can vouch for.
type peeked struct {
	Subject  string          `json:"sub"`
	Audience json.RawMessage `json:"aud"`
	Actor    json.RawMessage `json:"act"`
	MayAct   json.RawMessage `json:"may_act"`
}

// peek reads the payload of a compact JWS. What it returns is worth as much as
// the verdict of a strict verifier on the same bytes: before it, nothing.
func peek(raw string) (*peeked, bool) {
	_, rest, _ := strings.Cut(raw, ".")
	payload, _, ok := strings.Cut(rest, ".")
	if !ok || strings.ContainsAny(payload, "\r\n") {
		return nil, false
	}
	b, err := b64.DecodeString(payload)
	if err != nil {
		return nil, false
	}
	var p peeked
	return &p, json.Unmarshal(b, &p) == nil
}

// isFor reports whether the audience is this issuer and nobody else: an
// assertion for two could be used by the other.
func (p *peeked) isFor(issuer string) bool {
	var one string
	if json.Unmarshal(p.Audience, &one) == nil {
		return one == issuer
	}
	var many []string
	return json.Unmarshal(p.Audience, &many) == nil && len(many) == 1 && many[0] == issuer
}
