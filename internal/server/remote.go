package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// adminListener is what the administration's TCP listener is called where
// listeners are listed.
const adminListener = "admin"

// remoteLine is the administration over TCP.
type remoteLine struct {
	socket net.Listener
	certs  *certStore
	law    atomic.Pointer[adminLaw]
	now    func() *current
}

// adminLaw says who holds which role. It is immutable.
type adminLaw struct {
	clients *clientTrust // nil: no client certificates are taken
	holders map[admin.Role][]config.Holder
}

func newAdminLaw(c *config.Admin) (*adminLaw, error) {
	law := &adminLaw{holders: map[admin.Role][]config.Holder{}}
	for role, list := range c.Roles.Lists() {
		for _, text := range list {
			law.holders[admin.Role(role)] = append(law.holders[admin.Role(role)], config.ParseHolder(text))
		}
	}
	if c.TLS.ClientCA == "" {
		return law, nil
	}
	var err error
	law.clients, _, err = readClientTrust(tlsFiles{clientCA: c.TLS.ClientCA, auth: config.ClientAuthOptional})
	return law, err
}

// roles are those that somebody holds of whom all this can be said.
func (l *adminLaw) roles(said []config.Holder) (roles []admin.Role) {
	for _, role := range admin.Roles() {
		if slices.ContainsFunc(l.holders[role], func(h config.Holder) bool { return slices.Contains(said, h) }) {
			roles = append(roles, role)
		}
	}
	return roles
}

// issuers are those whose tokens could give a role.
func (l *adminLaw) issuers() (names []string) {
	for _, role := range admin.Roles() {
		for _, h := range l.holders[role] {
			if h.OfToken() && !slices.Contains(names, h.Issuer) {
				names = append(names, h.Issuer)
			}
		}
	}
	return names
}

func (s *Server) newRemoteLine(c *config.Admin) (*remoteLine, error) {
	r := &remoteLine{now: s.now.Load}
	law, err := newAdminLaw(c)
	if err != nil {
		return nil, err
	}
	r.law.Store(law)
	if r.certs, err = newCertStore("listener "+adminListener, tlsFiles{certs: c.TLS.Certificates}, []string{"http/1.1"}, s.log); err != nil {
		return nil, err
	}
	if r.socket, err = net.Listen("tcp", c.Address); err != nil {
		return nil, err
	}
	return r, nil
}

// prepare reads what a new configuration says of the administration.
func (r *remoteLine) prepare(f *config.File) (adopt func(), err error) {
	law, err := newAdminLaw(&f.Admin)
	if err != nil {
		return nil, err
	}
	certs, err := r.certs.prepare(tlsFiles{certs: f.Admin.TLS.Certificates})
	if err != nil {
		return nil, err
	}
	return func() {
		certs()
		r.law.Store(law)
	}, nil
}

func (r *remoteLine) terms() admin.Remote {
	return admin.Remote{TLS: &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: r.handshake}, Authenticate: r.authenticate, Host: r.certs.verifies}
}

// handshake asks for a certificate, which need not be good: authenticate judges
// it. No tickets: each connection shows what it has.
func (r *remoteLine) handshake(*tls.ClientHelloInfo) (*tls.Config, error) {
	c := r.certs.now.Load().config.Clone()
	c.SessionTicketsDisabled = true
	if law := r.law.Load(); law.clients != nil {
		law.clients.ask(c)
	}
	return c, nil
}

// authenticate finds out who calls by a client certificate or a bearer token.
func (r *remoteLine) authenticate(req *http.Request) (*admin.Caller, error) {
	law := r.law.Load()
	caller := r.place(req.RemoteAddr)
	shown := req.TLS.PeerCertificates
	tokens := req.Header.Values("Authorization")
	var said []config.Holder
	var why *admin.Refusal
	switch {
	case len(shown) > 0 && len(tokens) > 0:
		why = refusal(http.StatusBadRequest, reason.TwoCredentials, "a client certificate and a token: send one of them")
	case len(shown) > 0:
		said, why = law.certificate(shown, caller)
	case len(tokens) > 0:
		said, why = r.token(req.Context(), law, tokens, caller)
	default:
		why = refusal(http.StatusUnauthorized, reason.NoCredential, "a client certificate or a bearer token is needed")
	}
	if why == nil {
		if caller.Roles = law.roles(said); len(caller.Roles) > 0 {
			return caller, nil
		}
		why = refusal(http.StatusForbidden, reason.DeniedByDefault, "the caller holds no role here")
	}
	why.Caller = caller
	return nil, why
}

func refusal(status int, why reason.Reason, text string) *admin.Refusal {
	return &admin.Refusal{Status: status, Origin: why.Origin(), Reason: string(why), Text: text}
}

// place is a caller of whom only the address is known.
func (r *remoteLine) place(remote string) *admin.Caller {
	c := &admin.Caller{}
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return c
	}
	c.Addr = at.Addr().Unmap().WithZone("")
	keep := r.now().file.Redact.ClientPrefix
	bits := keep.V6
	if c.Addr.Is4() {
		bits = keep.V4
	}
	if p, err := c.Addr.Prefix(bits); err == nil && bits > 0 {
		c.Prefix = p.String()
	}
	return c
}

// certificate judges a chain and completes the caller with what it says.
func (l *adminLaw) certificate(chain []*x509.Certificate, c *admin.Caller) ([]config.Holder, *admin.Refusal) {
	if l.clients == nil {
		return nil, refusal(http.StatusUnauthorized, reason.TLSBadClientCert, "client certificates are not taken here")
	}
	leaf := chain[0]
	if _, _, bad := l.clients.verify(chain, time.Now()); bad != nil {
		return nil, refusal(http.StatusUnauthorized, reason.TLSBadClientCert, "the client certificate is not accepted")
	}
	var said []config.Holder
	say := func(kind, name string) {
		if name != "" {
			said = append(said, config.Holder{Kind: kind, Name: name})
		}
	}
	say(config.HolderCN, leaf.Subject.CommonName)
	for _, n := range leaf.DNSNames {
		say(config.HolderDNS, n)
	}
	for _, n := range leaf.EmailAddresses {
		say(config.HolderEmail, n)
	}
	for _, u := range leaf.URIs {
		say(config.HolderURI, u.String())
	}
	if len(said) == 0 {
		return nil, refusal(http.StatusUnauthorized, reason.TLSBadClientCert, "the client certificate names nobody")
	}
	c.Method, c.Name, c.Cert = "mtls", said[0].Kind+":"+said[0].Name, leaf.Subject.String()
	c.Identity = "cert|" + c.Name
	return said, nil
}

// token asks the issuers that could give a role.
func (r *remoteLine) token(ctx context.Context, law *adminLaw, fields []string, c *admin.Caller) ([]config.Holder, *admin.Refusal) {
	req := &canon.Request{}
	for _, v := range fields {
		req.Fields = append(req.Fields, canon.Field{Name: "authorization", Value: v})
	}
	why := reason.NoCredential
	parts := r.now().parts
	for _, name := range law.issuers() {
		j := parts.issuers[name]
		if j == nil {
			continue
		}
		p, err := j.Authenticate(ctx, req)
		if err == nil && p.Confirm.Bound() != "" {
			why = reason.BindingRequired // nothing here checks the proof
			break
		}
		if err == nil {
			c.Method, c.Name, c.Issuer, c.Identity = p.Method, p.Subject, p.Issuer, p.Issuer+"|"+p.Subject
			said := []config.Holder{{Kind: config.HolderSub, Issuer: name, Name: p.Subject}}
			for _, role := range p.Roles {
				said = append(said, config.Holder{Kind: config.HolderRole, Issuer: name, Name: role})
			}
			return said, nil
		}
		var f *authn.Failure
		if errors.As(err, &f) {
			why = f.Reason
		}
		if !errors.Is(err, authn.ErrNoCredential) {
			break
		}
	}
	if why.Status() >= 500 {
		return nil, refusal(why.Status(), why, "tokens cannot be checked now")
	}
	return nil, refusal(http.StatusUnauthorized, why, "the token is not accepted")
}
