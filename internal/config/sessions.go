package config

import (
	"fmt"
	"net/url"
	"strings"
)

// Session is how people log in with a browser on one host: OpenID Connect
// authorization code flow with PKCE.
type Session struct {
	Name         string   `key:"name" required:"true" form:"name" doc:"Name by which routes refer to it."`
	Issuer       string   `key:"issuer" required:"true" form:"name" doc:"Name of the issuer that logs people in. Its discovery says where; roles_claim, groups_claim and tenant_claim are read from the ID token."`
	Origin       string   `key:"origin" required:"true" form:"target" doc:"Scheme, host and port under which browsers reach this gate, https. The pages /_gatebook/login, /callback, /logout and /backchannel-logout are served there; the redirect URI to register is ORIGIN/_gatebook/callback."`
	Listeners    []string `key:"listeners" form:"name" doc:"Listeners on which its pages are served. Default: all that do not only redirect."`
	ClientID     string   `key:"client_id" required:"true" form:"text" doc:"Client id of this gate at the issuer; the audience of ID tokens."`
	Auth         string   `key:"auth" default:"basic" enum:"basic post private_key_jwt" doc:"How the gate says who it is: HTTP Basic, secret in the form, or a signed assertion (RFC 7523) whose audience is the issuer."`
	ClientSecret *Secret  `key:"client_secret" doc:"The secret, for basic and post."`
	PrivateKey   Path     `key:"private_key" form:"file" doc:"PEM file of the private key (P-256, P-384, Ed25519 or RSA), for private_key_jwt."`
	KeyID        string   `key:"key_id" form:"text" doc:"Key id (kid) of the assertions, for private_key_jwt."`
	Scopes       []string `key:"scopes" form:"scope" doc:"Scopes asked for; openid always is. Default: openid, profile, email. offline_access asks for consent each time."`
	UserInfo     bool     `key:"userinfo" doc:"Ask the userinfo endpoint for roles, groups, tenant, name and e-mail that the ID token lacks."`
	Idle         Duration `key:"idle" default:"30m" min:"1m" max:"30d" doc:"A session that is not used for so long ends."`
	Absolute     Duration `key:"absolute" default:"12h" min:"1m" max:"90d" doc:"A session ends after so long."`
	Rotate       Duration `key:"rotate" default:"15m" min:"1m" max:"1d" doc:"How often the id in the cookie is renewed. The one before is taken for 30 seconds more; later use of it ends the session (token_reuse_detected)."`
	AfterLogout  string   `key:"after_logout" form:"checkpath" doc:"Path of this host to which a browser is sent after logout; ORIGIN and it are to be registered as post-logout redirect URI. Unset: the issuer's page, or one of the gate."`
	Timeout      Duration `key:"timeout" default:"5s" min:"100ms" max:"20s" doc:"For one question to the issuer."`
}

// defaultSessionScopes are asked for if none are named.
func defaultSessionScopes() []string { return []string{"openid", "profile", "email"} }

// AskedScopes are the scopes that a login asks for.
func (s *Session) AskedScopes() []string {
	if len(s.Scopes) == 0 {
		return defaultSessionScopes()
	}
	return s.Scopes
}

// Host is the origin's host, without port.
func (s *Session) Host() string { return strings.ToLower(hostOf(s.Origin)) }

// ReservedPaths is below what the gate's own pages of sessions are.
const ReservedPaths = "/_gatebook/"

func (d *decoder) checkSessions(f *File) {
	names, hosts := map[string]int{}, map[string]int{}
	issuers := map[string]bool{}
	for i := range f.Issuers {
		issuers[f.Issuers[i].Name] = true
	}
	listeners := map[string]*Listener{}
	for i := range f.Listen {
		listeners[f.Listen[i].Name] = &f.Listen[i]
	}
	for i := range f.Sessions {
		s, path := &f.Sessions[i], fmt.Sprintf("sessions[%d]", i)
		d.unique(names, s.Name, i, path+".name", "session")
		known(d, path+".issuer", "issuer", s.Issuer, issuers, issuers[s.Issuer])
		for j, l := range s.Listeners {
			at := fmt.Sprintf("%s.listeners[%d]", path, j)
			on, ok := listeners[l]
			known(d, at, "listener", l, listeners, ok)
			if ok && on.RedirectToHTTPS {
				d.report(d.where(at), at, "the listener "+l+" only redirects", "name a listener with tls or plaintext")
			}
		}
		d.sessionOrigin(s, path)
		d.unique(hosts, s.Host(), i, path+".origin", "session on the host") // cookies do not tell ports apart
		d.sessionClient(s, path)
		if s.Absolute > 0 && s.Idle > s.Absolute {
			d.report(d.where(path+".idle"), path+".idle", "idle "+s.Idle.String()+" is longer than absolute "+s.Absolute.String(), "swap them or raise absolute")
		}
	}
	for i := range f.Routes {
		if p := f.Routes[i].Path; len(f.Sessions) > 0 && strings.HasPrefix(p+"/", ReservedPaths) {
			at := fmt.Sprintf("routes[%d].path", i)
			d.report(d.where(at), at, "a route below "+ReservedPaths, "the pages of sessions are there; choose another path")
		}
	}
}

func (d *decoder) sessionOrigin(s *Session, path string) {
	at := path + ".origin"
	if s.Origin == "" || !d.quiet(at) {
		return
	}
	u, err := url.Parse(s.Origin)
	if err != nil || u.Scheme != "https" || strings.HasSuffix(s.Origin, "/") {
		d.report(d.where(at), at, "not an https origin: "+quote(s.Origin), "write it like https://app.example.com: browsers keep session cookies for https only")
	}
}

func (d *decoder) sessionClient(s *Session, path string) {
	d.checkSecret(s.ClientSecret, path+".client_secret")
	_, secret := d.at[path+".client_secret"]
	_, key := d.at[path+".private_key"]
	_, id := d.at[path+".key_id"]
	if assertion := s.Auth == ClientPrivateKeyJWT; assertion && (!key || secret) {
		d.report(d.where(path), path, "auth private_key_jwt needs private_key and no client_secret", "name the PEM file of the key")
	} else if !assertion && s.Auth != "" && (!secret || key || id) {
		d.report(d.where(path), path, "auth "+s.Auth+" needs client_secret and neither private_key nor key_id", "write client_secret: {file: /run/secrets/NAME}")
	}
}

// routeSession checks one way to authenticate by a session.
func (d *decoder) routeSession(f *File, r *Route, j int, at string) {
	name := r.Authn[j].Session
	all := map[string]*Session{}
	for i := range f.Sessions {
		all[f.Sessions[i].Name] = &f.Sessions[i]
	}
	s, ok := all[name]
	known(d, at+".session", "session", name, all, ok)
	if ok && r.Host != "" && s.Host() != "" && r.Host != s.Host() {
		d.report(d.where(at), at, "the route is at "+quote(r.Host)+" and the session at "+quote(s.Host()), "a browser sends the cookie to the session's host only")
	}
	for i := range j {
		if r.Authn[i].Session != "" {
			d.report(d.where(at), at, "two sessions on one route", "keep one")
		}
	}
}

// sessions looks at the files that sessions name.
func (c *checker) sessions() {
	for i := range c.f.Sessions {
		s, path := &c.f.Sessions[i], fmt.Sprintf("sessions[%d]", i)
		c.secret(path+".client_secret", s.ClientSecret)
		if s.PrivateKey == "" {
			continue
		}
		at := path + ".private_key"
		if _, ok := c.read(at, s.PrivateKey); ok {
			c.private(at, s.PrivateKey)
		}
	}
}
