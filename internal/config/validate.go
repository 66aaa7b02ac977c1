package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// where returns the position of a value, or of the nearest value around it
// that the file spells out.
func (d *decoder) where(path string) position { return nearest(d.at, path) }

func nearest(at map[string]position, path string) position {
	for {
		if p, ok := at[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return position{}
		}
		path = path[:i]
	}
}

// validate checks what concerns more than one value. A zero value was missing
// or refused before and is not reported again.
func (d *decoder) validate(f *File) {
	d.checkKeys(f)
	d.checkListeners(f)
	d.checkIssuers(f)
	d.checkTokenService(f)
	d.checkSessions(f)
	d.checkUpstreams(f)
	d.checkRoutes(f)
	d.checkMTLS(f)
	d.checkOverlaps(f)
	d.checkRoles(f)
	d.checkRedact(f)
	d.checkAdmin(f)
	d.checkShared(f)
	d.checkSinks(f)
	d.checkDetect(f)
	for _, name := range slices.Sorted(maps.Keys(f.Classes)) {
		if c := f.Classes[name]; c.Max > 0 && c.Min > c.Max {
			path := "classes." + name
			d.report(d.where(path+".min"), path, "min "+c.Min.String()+" is longer than max "+c.Max.String(), "swap them or raise max")
		}
	}
}

// checkKeys keeps the keys out of what a backup or a stolen disk of the data
// directory would hold.
func (d *decoder) checkKeys(f *File) {
	if f.Data == "" || f.Keys.Wrapper.File == "" {
		return
	}
	if inside(string(f.Keys.Wrapper.File), string(f.Data)) {
		d.report(d.where("keys.wrapper.file"), "keys.wrapper.file", "the keys are inside the data directory", "keep them apart: who copies the data must not get the keys")
	}
}

// inside tells whether a file is a directory or below it.
func inside(name, dir string) bool {
	name, dir = filepath.Clean(name), filepath.Clean(dir)
	return name == dir || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}

func (d *decoder) checkListeners(f *File) {
	names := map[string]int{}
	var taken []binding
	routes := false
	for i := range f.Listen {
		l, path := &f.Listen[i], fmt.Sprintf("listen[%d]", i)
		d.unique(names, l.Name, i, path+".name", "listener")
		d.listenerMode(l, path)
		d.checkClientAuth(l, path)
		routes = routes || !l.RedirectToHTTPS
		taken = d.bind(taken, l.Address, path+".address", "listener "+l.Name)
	}
	taken = d.bind(taken, f.Health.Address, "health.address", "health")
	d.bind(taken, f.Admin.Address, "admin.address", "admin")
	if len(f.Listen) > 0 && !routes {
		d.report(d.where("listen"), "listen", "every listener only redirects", "add one with tls, or with plaintext: behind_proxy")
	}
}

func (d *decoder) listenerMode(l *Listener, path string) {
	if l.ClientCert && len(l.Trusted) == 0 {
		d.report(d.where(path+".client_cert"), path+".client_cert", "client_cert without trusted", "name in trusted the address ranges of the proxies whose Client-Cert is believed")
	}
	if l.ClientCert && l.TLS != nil && l.TLS.ClientAuth != "" && l.TLS.ClientAuth != ClientAuthOff {
		d.report(d.where(path+".client_cert"), path+".client_cert", "client_cert beside client_auth", "the certificate of a connection is either the client's or the proxy's; use a listener for each")
	}
	modes := 0
	for _, on := range []bool{l.TLS != nil, l.RedirectToHTTPS, l.Plaintext != ""} {
		if on {
			modes++
		}
	}
	if d.countKeys(path, reflect.TypeFor[Listener]()) == 0 {
		return // reported as missing keys
	}
	pos := d.where(path)
	_, later := d.at[path+".acme"]
	_, tried := d.at[path+".plaintext"]
	switch {
	case modes == 0 && !later && !(tried && l.Plaintext == ""):
		d.report(pos, path, "the listener has neither tls nor redirect_to_https nor plaintext", "give it tls with certificates; plaintext: behind_proxy is for listeners behind a proxy that ends TLS")
	case modes > 1:
		d.report(pos, path, "the listener has more than one of tls, redirect_to_https and plaintext", "keep one; use a listener for each")
	}
	if _, tried := d.at[path+".trusted"]; l.Plaintext != "" && !tried {
		d.report(pos, path, "the key trusted is missing", "a plaintext listener needs the address ranges of the proxy in front, such as [10.0.0.0/8]")
	} else if l.RedirectToHTTPS && tried {
		d.report(d.where(path+".trusted"), path+".trusted", "trusted has no effect on a listener that only redirects", "remove it")
	} else if tried && l.Plaintext != "" && len(l.Trusted) == 0 {
		d.report(d.where(path+".trusted"), path+".trusted", "the list is empty", "name the address ranges of the proxy in front")
	}
}

// binding is an address that something listens on.
type binding struct{ host, port, who string }

// bind reports two users of one address. Port 0 is chosen by the system and
// never collides.
func (d *decoder) bind(taken []binding, address, path, who string) []binding {
	host, port, err := net.SplitHostPort(address)
	if address == "" || err != nil || port == "0" {
		return taken
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = ""
	}
	for _, b := range taken {
		if b.port == port && (b.host == host || b.host == "" || host == "") {
			d.report(d.where(path), path, "the address "+quote(address)+" is taken by "+b.who, "use another port or address")
			return taken
		}
	}
	return append(taken, binding{host, port, who})
}

// unique reports the second use of a name.
func (d *decoder) unique(seen map[string]int, name string, i int, path, what string) {
	if name == "" {
		return
	}
	if j, dup := seen[name]; dup {
		d.report(d.where(path), path, "a second "+what+" named "+quote(name), fmt.Sprintf("the first is in line %d; rename one", d.where(strings.Replace(path, fmt.Sprintf("[%d]", i), fmt.Sprintf("[%d]", j), 1)).line))
		return
	}
	seen[name] = i
}

func (d *decoder) checkIssuers(f *File) {
	names := map[string]int{}
	for i := range f.Issuers {
		is, path := &f.Issuers[i], fmt.Sprintf("issuers[%d]", i)
		d.unique(names, is.Name, i, path+".name", "issuer")
		d.checkPreset(is, path)
		d.checkIntrospection(is, path)
		if is.Name != "" && is.Name == f.APIKeys.Issuer {
			d.report(d.where(path+".name"), path+".name", "the name "+quote(is.Name)+" is that of API keys", "rename it, or give apikeys.issuer another name: subjects of the two must not be taken for each other")
		}
		if is.JWKS == nil {
			continue
		}
		_, byURL := d.at[path+".jwks.url"]
		_, byFile := d.at[path+".jwks.file"]
		if byURL == byFile {
			d.report(d.where(path+".jwks"), path+".jwks", "jwks needs exactly one of url and file", "keep one, or remove jwks to discover it from the issuer")
		}
		if byFile && !byURL && is.CA != "" && is.Introspection == nil {
			d.report(d.where(path+".ca"), path+".ca", "ca has no effect with a key set from a file", "remove it")
		}
	}
}

func (d *decoder) checkUpstreams(f *File) {
	for _, name := range slices.Sorted(maps.Keys(f.Upstreams)) {
		u, path := f.Upstreams[name], "upstreams."+name
		first := ""
		for i, t := range u.Targets {
			scheme, _, ok := strings.Cut(t, "://")
			if !ok {
				continue
			}
			if first == "" {
				first = scheme
			} else if scheme != first {
				d.report(d.where(fmt.Sprintf("%s.targets[%d]", path, i)), path+".targets", "targets with different schemes: "+first+" and "+scheme, "use one scheme, so that no target is reached unprotected by chance")
			}
		}
		if u.TLS != nil && first == "http" {
			d.report(d.where(path+".tls"), path+".tls", "tls has no effect on http targets", "write https in the targets or remove tls")
		}
		if h := u.Health; h != nil && h.Timeout > h.Interval {
			at := path + ".health.timeout"
			d.report(d.where(at), at, "a timeout longer than the interval", "give a check no more time than there is between two")
		}
	}
}

func (d *decoder) checkRoutes(f *File) {
	names := map[string]int{}
	listeners := map[string]*Listener{}
	for i := range f.Listen {
		listeners[f.Listen[i].Name] = &f.Listen[i]
	}
	issuers := map[string]*Issuer{}
	for i := range f.Issuers {
		issuers[f.Issuers[i].Name] = &f.Issuers[i]
	}
	for i := range f.Routes {
		r, path := &f.Routes[i], fmt.Sprintf("routes[%d]", i)
		d.unique(names, r.Name, i, path+".name", "route")
		for j, name := range r.Listeners {
			at := fmt.Sprintf("%s.listeners[%d]", path, j)
			l, ok := listeners[name]
			known(d, at, "listener", name, listeners, ok)
			if ok && l.RedirectToHTTPS {
				d.report(d.where(at), at, "unreachable: the listener "+name+" only redirects", "name a listener with tls or plaintext")
			}
		}
		_, ok := f.Upstreams[r.Upstream]
		known(d, path+".upstream", "upstream", r.Upstream, f.Upstreams, ok)
		d.routeAuthn(f, r, path, issuers)
		for j := range r.Authn {
			if m := r.Authn[j].MTLS; m != nil && m.Name != "" && m.Name == f.APIKeys.Issuer {
				at := fmt.Sprintf("%s.authn[%d].mtls.name", path, j)
				d.report(d.where(at), at, "the name "+quote(m.Name)+" is that of API keys", "rename it, or give apikeys.issuer another name: subjects of the two must not be taken for each other")
			}
		}
		d.routeTokens(r, path, issuers)
		d.routeBinding(f, r, path)
		d.routeLimits(f, r, path)
	}
}

// known reports a name that nothing bears.
func known[V any](d *decoder, path, what, name string, all map[string]V, ok bool) {
	if ok || name == "" {
		return
	}
	if len(d.list) >= maxProblems { // looking for hints among thousands of names takes seconds
		d.report(d.where(path), path, "unknown "+what+" "+quote(name), "check the spelling")
		return
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(s string) bool { return s == "" })
	otherwise := "there is none; add it"
	if n := len(names); n > 0 && n <= 10 {
		otherwise = "known are " + list(names)
	} else if n > 10 {
		otherwise = "check the spelling"
	}
	d.report(d.where(path), path, "unknown "+what+" "+quote(name), didYouMean(name, names, otherwise))
}

func (d *decoder) routeAuthn(f *File, r *Route, path string, issuers map[string]*Issuer) {
	_, tried := d.at[path+".authn"]
	_, saysPublic := d.at[path+".public"]
	switch {
	case d.countKeys(path, reflect.TypeFor[Route]()) == 0:
		return // reported as missing keys
	case r.Public && tried:
		d.report(d.where(path+".public"), path, "the route is public and has authn", "keep one of them")
	case !r.Public && !tried && (!saysPublic || d.quiet(path+".public")):
		d.report(d.where(path), path, "the route says neither who may ask (authn) nor that anyone may (public)", "add authn: [{jwt: ISSUER}], or public: true")
	case tried && !r.Public && len(r.Authn) == 0 && d.quiet(path+".authn"):
		d.report(d.where(path+".authn"), path+".authn", "the list is empty", "add {jwt: ISSUER}, or write public: true instead of authn")
	}
	if r.Public && len(r.Scopes) > 0 {
		d.report(d.where(path+".scopes"), path+".scopes", "scopes on a public route", "remove them, or replace public by authn")
	}
	if r.Public && len(r.Record.Claims) > 0 {
		d.report(d.where(path+".record.claims"), path+".record.claims", "claims on a public route", "remove them, or replace public by authn")
	}
	seen := map[string]string{}
	keyed := false
	for j := range r.Authn {
		name, at := r.Authn[j].JWT, fmt.Sprintf("%s.authn[%d]", path, j)
		keys := d.countKeys(at, reflect.TypeFor[Authn]())
		if keys != 1 && d.quiet(at) {
			d.report(d.where(at), at, "a way to authenticate needs exactly one key", "write {jwt: ISSUER}; each way is an element of its own")
		}
		if r.Authn[j].Session != "" {
			d.routeSession(f, r, j, at)
			continue
		}
		if asked := r.Authn[j].Introspect; asked != "" {
			is, ok := issuers[asked]
			known(d, at+".introspect", "issuer", asked, issuers, ok)
			if ok && is.Introspection == nil {
				d.report(d.where(at+".introspect"), at+".introspect", "the issuer "+quote(asked)+" has no introspection", "say in the issuer where it is asked: introspection: {url: ...}")
			}
			for i := range j {
				if r.Authn[i].Introspect == asked {
					d.report(d.where(at), at, "the issuer "+quote(asked)+" is asked twice", "keep one")
				}
			}
			continue
		}
		if k := r.Authn[j].APIKey; k != nil {
			if keyed {
				d.report(d.where(at), at, "a second way to take API keys", "keep one, and list all headers in its in")
			}
			keyed = true
			d.keyFields(k, r.Record.Headers, at+".apikey.in")
		}
		is, ok := issuers[name]
		known(d, at+".jwt", "issuer", name, issuers, ok)
		if !ok || is.Issuer == "" {
			continue
		}
		if other, dup := seen[is.Issuer]; dup {
			d.report(d.where(at), at, "two ways on one route for tokens of the same issuer: "+other+" and "+name, "keep one, and list all audiences there")
		}
		seen[is.Issuer] = name
	}
}

// keyFields completes where a route looks for API keys.
func (d *decoder) keyFields(k *APIKey, recorded []string, path string) {
	if _, tried := d.at[path]; !tried {
		k.In = []string{"x-api-key", "authorization"}
	} else if len(k.In) == 0 && d.quiet(path) {
		d.report(d.where(path), path, "the list is empty", "name a header, or remove the key for the usual ones")
	}
	for i, name := range k.In {
		at := fmt.Sprintf("%s[%d]", path, i)
		if slices.Contains(k.In[:i], name) {
			d.report(d.where(at), at, "the header "+name+" is named twice", "remove one")
		}
		if slices.Contains(recorded, name) {
			d.report(d.where(at), at, "the header "+name+" would be kept in records", "take it off record.headers: it holds a secret")
		}
	}
}

// countKeys counts the keys of the struct type t that the file gives at path.
func (d *decoder) countKeys(path string, t reflect.Type) int {
	n := 0
	for _, f := range fieldsOf(t) {
		if _, ok := d.at[path+"."+f.key]; ok {
			n++
		}
	}
	return n
}

// quiet reports whether nothing has been reported at or below path, so that a
// refused value does not also count as missing.
func (d *decoder) quiet(path string) bool {
	return !d.full() && !slices.ContainsFunc(d.list, func(p Problem) bool {
		return p.Key == path || strings.HasPrefix(p.Key, path+".") || strings.HasPrefix(p.Key, path+"[")
	})
}

func (d *decoder) routeLimits(f *File, r *Route, path string) {
	for j, name := range r.Limits {
		at := fmt.Sprintf("%s.limits[%d]", path, j)
		l, ok := f.Limits[name]
		known(d, at, "limit", name, f.Limits, ok)
		if ok && r.Public && (l.Key == KeySubject || l.Key == KeyClient) {
			d.report(d.where(at), at, "the limit "+name+" counts by "+l.Key+", which a public route does not know", "use a limit by prefix or route")
		}
	}
}

// checkOverlaps finds routes of which one could never, or not always, be
// reached: same host, shape of path, listener and method.
func (d *decoder) checkOverlaps(f *File) {
	type place struct{ listener, host, shape string }
	type claims struct {
		all     int // route without methods, -1 if none
		any     int // some route, -1 if none
		methods map[string]int
	}
	taken := map[place]*claims{}
	for i := range f.Routes {
		r := &f.Routes[i]
		segs, what, _ := parsePattern(r.Path)
		if what != "" {
			continue
		}
		other := -1
		for _, l := range r.Listeners {
			at := place{l, r.Host, shapeKey(segs)}
			c := taken[at]
			if c == nil {
				c = &claims{-1, -1, map[string]int{}}
				taken[at] = c
			}
			other = max(other, c.all)
			if len(r.Methods) == 0 {
				other = max(other, c.any)
				c.all = i
			}
			for _, m := range r.Methods {
				if m == "" {
					continue
				}
				if j, ok := c.methods[m]; ok && j != i {
					other = max(other, j)
				}
				c.methods[m] = i
			}
			c.any = i
		}
		if other >= 0 {
			path := fmt.Sprintf("routes[%d].path", i)
			d.report(d.where(path), path, fmt.Sprintf("the route %s takes the same requests as %s in line %d", r.Name, f.Routes[other].Name, d.where(fmt.Sprintf("routes[%d].path", other)).line),
				"they have the same host, listener, path shape and method; change one")
		}
	}
}

func (d *decoder) checkRoles(f *File) {
	routes := map[string]bool{}
	public := true
	for i := range f.Routes {
		routes[f.Routes[i].Name] = true
		public = public && f.Routes[i].Public
	}
	for _, name := range slices.Sorted(maps.Keys(f.Roles)) {
		for j, pattern := range f.Roles[name].Allow {
			at := fmt.Sprintf("roles.%s.allow[%d]", name, j)
			below, wild := strings.CutSuffix(pattern, "*")
			if !wild {
				known(d, at, "route", pattern, routes, routes[pattern])
				continue
			}
			if !hasPrefixed(routes, below) && pattern != "" {
				d.report(d.where(at), at, "no route has a name beginning with "+quote(below), "check the spelling, or remove it")
			}
		}
	}
	if len(f.Routes) > 0 && !public && len(f.Roles) == 0 && f.Policies == nil && d.quiet("roles") && d.quiet("policies") {
		d.report(d.where("routes"), "routes", "nothing allows any request: there are neither roles nor policies", "add roles: {ROLE: {allow: [ROUTE]}}, or policies: {dir: policies}")
	}
}

func hasPrefixed(names map[string]bool, prefix string) bool {
	for n := range names {
		if strings.HasPrefix(n, prefix) {
			return true
		}
	}
	return false
}

func (d *decoder) checkRedact(f *File) {
	routes := map[string]bool{}
	for i := range f.Routes {
		routes[f.Routes[i].Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(f.Redact.QueryKeys)) {
		path := "redact.query_keys." + name
		if !routes[name] {
			names := slices.Sorted(maps.Keys(routes))
			d.report(d.keyAt[path], path, "unknown route "+quote(name), didYouMean(name, names, "name a route"))
		}
		for j, k := range f.Redact.QueryKeys[name] {
			if secretQueryKey(k) {
				d.report(d.where(fmt.Sprintf("%s[%d]", path, j)), path, "the query parameter "+quote(k)+" carries secrets", "it is never stored, whatever the configuration says; remove it")
			}
		}
	}
}

// secretQueryKey knows the parameters that are never stored.
func secretQueryKey(k string) bool {
	k = strings.ToLower(k)
	return slices.Contains([]string{
		"code", "state", "access_token", "refresh_token", "id_token", "token", "client_secret", "client_assertion",
		"password", "passwd", "secret", "api_key", "apikey", "key", "sig", "signature", "assertion", "code_verifier", "request",
	}, k) || strings.HasPrefix(k, "x-amz-") || strings.HasPrefix(k, "x-goog-")
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
