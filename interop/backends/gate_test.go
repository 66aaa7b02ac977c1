package backends

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
	"github.com/gatebook/gatebook/internal/testenv/program"
)

// account is what the thing under test says of one request that it got.
type account struct {
	id        string
	kind      string // as in a record
	status    int
	reason    string
	method    string
	host      string // "" if the account does not tell
	path      string // "" if the account does not tell
	query     string
	subject   bool // somebody was authenticated
	forwarded bool
	upstream  int   // the origin's status
	in        int64 // bytes of the body
	from      string
}

// gate is one that stands before every origin.
type gate struct {
	*program.Gate
	open   map[string]string // origin: address without TLS
	secure map[string]string // origin: address with TLS
	token  string            // that the guarded route takes
}

// newGate has two listeners for each origin, and the same routes behind each
// pair: one for each form of a path, a guarded one, and for the folders named
// admin one that takes no method that is ever sent.
func newGate(t *testing.T, all []*origin) *gate {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Gate: program.NewGate(t, program.Build(t)), open: map[string]string{}, secure: map[string]string{}}
	now := time.Now().Unix()
	g.token = env.Token("ES256", jwtattack.Header("ES256"), jwtattack.Claims().Set("iat", fmt.Sprint(now-60)).Set("exp", fmt.Sprint(now+3000)))
	g.Write("jwks.json", string(env.JWKS))
	g.configure(all)
	return g
}

func (g *gate) configure(all []*origin) {
	g.T.Helper()
	var listen, upstreams, routes strings.Builder
	for _, o := range all {
		g.open[o.name], g.secure[o.name] = program.FreeAddr(g.T), program.FreeAddr(g.T)
		fmt.Fprintf(&listen, "  - {name: %s-open, address: %q, plaintext: behind_proxy, trusted: [192.0.2.1/32]}\n", o.name, g.open[o.name])
		fmt.Fprintf(&listen, "  - {name: %s-secure, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}\n", o.name, g.secure[o.name])
		fmt.Fprintf(&upstreams, "  %s: {targets: [\"http://%s\"], preserve_host: true, max_idle: 16, ejection: {failures: 0}, timeouts: {response: 1m}}\n", o.name, o.addr)
		route := func(name, path, rest string) {
			fmt.Fprintf(&routes, "  - {name: %s.%s, listeners: [%s-open, %s-secure], upstream: %s, path: %q, %s}\n", o.name, name, o.name, o.name, o.name, path, rest)
		}
		const methods = "methods: [GET, POST, PUT, DELETE, PATCH, OPTIONS, PROPFIND, PURGE, M-SEARCH], "
		for _, r := range routeForms {
			route(r.name, r.prefix+"/{rest...}", methods+r.rules)
			route(r.name+"-admin", r.prefix+"/admin", "methods: [NOBODY], "+r.rules)
			route(r.name+"-admins", r.prefix+"/admin/{rest...}", "methods: [NOBODY], "+r.rules)
		}
		// Records tell the hosts that some route names.
		route("named", "/named/{rest...}", "host: api.example.com, public: true")
	}
	g.Configure(fmt.Sprintf(`
book: {commit_timeout: 1m}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256, RS256], roles_claim: /roles, jwks: {file: jwks.json}}
listen:
%supstreams:
%sroutes:
%spolicies: {dir: policies}
`, jwtattack.Issuer, jwtattack.Audience, listen.String(), upstreams.String(), routes.String()))
}

// routeForms are the routes by the prefixes that lead to them.
var routeForms = []struct{ name, prefix, rules string }{
	{"root", "", "public: true"},
	{"strict", "/s", "public: true"},
	{"encodedslash", "/es", "public: true, path_rules: {allow: [encoded_slash]}"},
	{"semicolon", "/semi", "public: true, path_rules: {allow: [semicolon]}"},
	{"empty", "/empty", "public: true, path_rules: {allow: [empty_segment]}"},
	{"percent", "/pct", "public: true, path_rules: {allow: [percent]}"},
	{"every", "/all", "public: true, path_rules: {allow: [encoded_slash, semicolon, empty_segment, percent]}"},
	{"observed", "/obs", "public: true, path_rules: {strict: observe}"},
	{"guarded", "/jwt", "authn: [{jwt: corp}], path_rules: {allow: [encoded_slash, semicolon, empty_segment, percent]}"},
}

// accounts reads the book, what identifies people included, in the order in
// which the records were made.
func (g *gate) accounts() []account {
	g.T.Helper()
	type record struct {
		Frame struct {
			ID, Kind, Method, Host string
			Status                 int
			UpstreamStatus         int   `json:"upstream_status"`
			BytesIn                int64 `json:"bytes_in"`
			Error                  struct{ Reason string }
			Authn                  struct{ Outcome string }
			Upstream               struct{ Name string }
			Event                  struct{ Count int64 }
		}
		Personal struct{ IP, Path, Query string }
	}
	var all []account
	for _, r := range program.Search[record](g.Gate, "kind == 'request' || kind == 'malformed'", "--reveal") {
		f := r.Frame
		if f.Event.Count > 1 {
			g.T.Errorf("a record that stands for %d: %+v", f.Event.Count, r)
		}
		all = append(all, account{
			id: f.ID, kind: f.Kind, status: f.Status, reason: f.Error.Reason, method: f.Method, host: f.Host, path: r.Personal.Path, query: r.Personal.Query,
			subject: f.Authn.Outcome == "ok", forwarded: f.Upstream.Name != "", upstream: f.UpstreamStatus, in: f.BytesIn, from: r.Personal.IP,
		})
	}
	g.Run("verify")
	return all
}
