package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Values of Introspection.Auth.
const (
	ClientBasic         = "basic"
	ClientPost          = "post"
	ClientPrivateKeyJWT = "private_key_jwt"
)

// Introspection is where an issuer is asked about single tokens (RFC 7662).
type Introspection struct {
	URL          string       `key:"url" required:"true" form:"jwksurl" doc:"URL of the introspection endpoint, https (http on loopback only). Redirects are not followed."`
	ClientID     string       `key:"client_id" required:"true" form:"text" doc:"Client id of this gate at the issuer."`
	Auth         string       `key:"auth" default:"basic" enum:"basic post private_key_jwt" doc:"How the gate says who it is: HTTP Basic, secret in the form, or a signed assertion (RFC 7523) whose audience is the issuer."`
	ClientSecret *Secret      `key:"client_secret" doc:"The secret, for basic and post."`
	PrivateKey   Path         `key:"private_key" form:"file" doc:"PEM file of the private key (P-256, P-384, Ed25519 or RSA), for private_key_jwt."`
	KeyID        string       `key:"key_id" form:"text" doc:"Key id (kid) of the assertions, for private_key_jwt."`
	Prefixes     []string     `key:"token_prefixes" form:"tokentext" doc:"A token that begins with none of these is not asked about. Unset: all are that do not name another issuer."`
	Cache        VerdictCache `key:"cache" doc:"How long an answer counts."`
	Timeout      Duration     `key:"timeout" default:"2s" min:"100ms" max:"30s" doc:"For one question."`
	Concurrency  int          `key:"concurrency" default:"16" min:"1" max:"1024" doc:"Questions that are under way at once."`
	Rate         Rate         `key:"rate" default:"200/s" doc:"Questions put on average, and at once after a pause. What is over is answered 503 (overloaded); answers that still count need no question."`
}

// VerdictCache bounds how long an answer about a token counts.
type VerdictCache struct {
	Active  Duration `key:"active" default:"1m" min:"1s" max:"1m" doc:"An active token, if it does not end sooner: a revoked one is taken so long."`
	Refused Duration `key:"refused" default:"5s" min:"1s" max:"10s" doc:"A token that was refused."`
}

// Secret is where a secret is: exactly one of File and Env. The secret itself
// is never in the configuration.
type Secret struct {
	File Path   `key:"file" form:"file" doc:"File that holds it and nothing else; a line end after it does not count."`
	Env  string `key:"env" form:"env" doc:"Environment variable that holds it."`
}

// Read gets the secret. Errors say what is wrong and never what was found.
func (s *Secret) Read() (string, error) {
	if s.Env != "" {
		v := os.Getenv(s.Env)
		if v == "" {
			return "", fmt.Errorf("the environment variable %s is not set", s.Env)
		}
		return v, nil
	}
	b, err := readBounded(string(s.File))
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case text == "":
		return "", fmt.Errorf("%s is empty", s.File)
	case len(text) > 4096 || strings.ContainsAny(text, "\r\n\x00"):
		return "", fmt.Errorf("%s holds more than one line, or more than a secret can be long", s.File)
	}
	return text, nil
}

// checkSecret wants exactly one place for a secret.
func (d *decoder) checkSecret(s *Secret, path string) {
	if s == nil {
		return
	}
	_, byFile := d.at[path+".file"]
	_, byEnv := d.at[path+".env"]
	if byFile == byEnv && d.quiet(path) {
		d.report(d.where(path), path, "a secret needs exactly one of file and env", "write {file: /run/secrets/NAME} or {env: NAME}")
	}
}

func (d *decoder) checkIntrospection(is *Issuer, path string) {
	in := is.Introspection
	if in == nil {
		return
	}
	path += ".introspection"
	d.checkSecret(in.ClientSecret, path+".client_secret")
	_, secret := d.at[path+".client_secret"]
	_, key := d.at[path+".private_key"]
	_, id := d.at[path+".key_id"]
	if assertion := in.Auth == ClientPrivateKeyJWT; assertion && (!key || secret) {
		d.report(d.where(path), path, "auth private_key_jwt needs private_key and no client_secret", "name the PEM file of the key")
	} else if !assertion && in.Auth != "" && (!secret || key || id) {
		d.report(d.where(path), path, "auth "+in.Auth+" needs client_secret and neither private_key nor key_id", "write client_secret: {file: /run/secrets/NAME}")
	}
}

// routeTokens checks what a route demands of credentials.
func (d *decoder) routeTokens(r *Route, path string, issuers map[string]*Issuer) {
	if strings.HasPrefix(r.Name, ReservedRoutes) {
		d.report(d.where(path+".name"), path+".name", "a route name that begins with "+ReservedRoutes, "these are the gate's own routes; choose another name")
	}
	for _, k := range []struct {
		name string
		set  bool
	}{{"audiences", len(r.Audiences) > 0}, {"acr", len(r.ACR) > 0}, {"max_age", r.MaxAge > 0}, {"token_max_age", r.TokenMaxAge > 0}, {"resource", r.Resource != ""}} {
		if r.Public && k.set {
			at := path + "." + k.name
			d.report(d.where(at), at, k.name+" on a public route", "remove it, or replace public by authn")
		}
	}
	for _, k := range []string{"audiences", "acr"} {
		at := path + "." + k
		if _, tried := d.at[at]; tried && d.quiet(at) && (k == "audiences" && len(r.Audiences) == 0 || k == "acr" && len(r.ACR) == 0) {
			d.report(d.where(at), at, "the list is empty", "name what the route demands, or remove the key")
		}
	}
	for j, a := range r.Audiences {
		d.routeAudience(r, a, fmt.Sprintf("%s.audiences[%d]", path, j), issuers)
	}
	d.routeResource(r, path)
}

// routeAudience wants that an issuer of the route takes the audience: a token
// that names it only would be refused before.
func (d *decoder) routeAudience(r *Route, audience, at string, issuers map[string]*Issuer) {
	var names []string
	for j := range r.Authn {
		is := issuers[r.Authn[j].Issuer()]
		if is == nil {
			return // reported, or a way without audiences
		}
		if slices.Contains(is.Audiences, audience) {
			return
		}
		names = append(names, is.Name)
	}
	if len(names) > 0 && audience != "" {
		d.report(d.where(at), at, "no issuer of the route has the audience "+quote(audience), "add it to the audiences of "+list(names))
	}
}

// routeResource wants an identifier that is a URL of the route.
func (d *decoder) routeResource(r *Route, path string) {
	at := path + ".resource"
	if r.Resource == "" || !d.quiet(at) {
		return
	}
	u, err := url.Parse(r.Resource)
	if err != nil {
		return // reported
	}
	if host := strings.ToLower(u.Hostname()); r.Host != "" && host != r.Host {
		d.report(d.where(at), at, "the resource is at "+quote(host)+" and the route at "+quote(r.Host), "a resource identifier is the URL that clients use")
		return
	}
	if !slices.ContainsFunc(r.Authn, func(a Authn) bool { return a.Issuer() != "" }) {
		d.report(d.where(at), at, "a resource without authorization server: the route takes no tokens", "remove it, or add {jwt: ISSUER} to authn")
	}
}

// Issuer is the name of the issuer whose tokens the way takes, "" if it takes
// none.
func (a *Authn) Issuer() string {
	if a.JWT != "" {
		return a.JWT
	}
	return a.Introspect
}

// ReservedRoutes is how the names of the gate's own routes begin.
const ReservedRoutes = "gatebook."

// ReadFile reads a file that the configuration names, whole and bounded.
func ReadFile(name Path) ([]byte, error) { return readBounded(string(name)) }

// Signed reports whether something takes JWTs of the issuer, so that its keys
// are needed.
func (f *File) Signed(issuer string) bool {
	for i := range f.Issuers {
		if f.Issuers[i].Name == issuer && f.Issuers[i].Introspection == nil {
			return true
		}
	}
	for i := range f.Routes {
		if slices.ContainsFunc(f.Routes[i].Authn, func(a Authn) bool { return a.JWT == issuer }) {
			return true
		}
	}
	if t := f.TokenService; t != nil && slices.ContainsFunc(f.Issuers, func(i Issuer) bool { return i.Name == issuer && i.Issuer == t.Issuer }) {
		return true // its keys are in this process
	}
	for _, holders := range [][]string{f.Admin.Roles.Reader, f.Admin.Roles.Reveal, f.Admin.Roles.Operator, f.Admin.Roles.Privacy} {
		for _, text := range holders {
			if h := ParseHolder(text); h.OfToken() && h.Issuer == issuer {
				return true
			}
		}
	}
	return false
}

// checkResource takes a resource identifier (RFC 9728 section 1.2) in the one
// form that a client's URL has.
func checkResource(s string) (string, string) {
	if what, hint := secureURL(s); what != "" {
		return what, strings.Replace(hint, "https://idp.example.com", "https://api.example.com/v1", 1)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "not a URL: " + quote(s), "write it like https://api.example.com/v1"
	case u.RawQuery != "" || u.ForceQuery:
		return "a resource with a query: " + quote(s), "remove what begins with ?"
	case u.Host != strings.ToLower(u.Host) || u.Port() == "443" && u.Scheme == "https" || u.Port() == "80" && u.Scheme == "http":
		return "a resource that clients write in another way: " + quote(s), "write the host in lower case and leave out the usual port"
	case u.Path != "/" && strings.HasSuffix(u.Path, "/") || strings.Contains(u.Path, "//") || strings.ContainsAny(u.EscapedPath(), "%{};\\") || strings.Contains(u.Path+"/", "/./") || strings.Contains(u.Path+"/", "/../"):
		return "a resource whose path can be written in two ways: " + quote(s), "leave out a final slash, dots, and what needs %"
	}
	return "", ""
}

// checkACR takes a value of acr (RFC 9470 section 3): they stand in a list with
// spaces between.
func checkACR(s string) (string, string) {
	if what, _ := checkScope(s); what != "" {
		return "not an authentication context class: " + quote(s), "write one per list element, without spaces"
	}
	return "", ""
}

func checkTokenText(s string) (string, string) {
	if s == "" || len(s) > 256 || !only(s, letters, "-._~+/=") {
		return "not the beginning of a token: " + quote(s), "use letters, digits and - . _ ~ + / ="
	}
	return "", ""
}

func checkEnv(s string) (string, string) {
	if s == "" || len(s) > 256 || !only(s, letters, "_") || isDigit(s[0]) {
		return "not the name of an environment variable: " + quote(s), "write the name alone, without $: the secret itself is never in this file"
	}
	return "", ""
}

// secret looks whether a secret is there and nobody else can read it.
func (c *checker) secret(path string, s *Secret) {
	switch {
	case s == nil:
	case s.Env != "":
		if os.Getenv(s.Env) == "" {
			at := path + ".env"
			c.report(nearest(c.f.source.at, at), at, "the environment variable "+s.Env+" is not set", "set it for whoever runs the gate, and this check")
		}
	case s.File != "":
		at := path + ".file"
		if _, ok := c.read(at, s.File); !ok {
			return
		}
		c.private(at, s.File)
		if _, err := s.Read(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.blame(at, s.File, "not a secret of one line", "put the secret into it and nothing else")
		}
	}
}

func (c *checker) introspection(path string, in *Introspection) {
	if in == nil {
		return
	}
	c.secret(path+".introspection.client_secret", in.ClientSecret)
	if in.PrivateKey != "" {
		at := path + ".introspection.private_key"
		if _, ok := c.read(at, in.PrivateKey); ok {
			c.private(at, in.PrivateKey)
		}
	}
}
