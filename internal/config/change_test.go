package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// changeBase is a configuration to change in one place at a time.
const changeBase = `
data: data
node: gate-1
origin: log.example.com/gates
keys: {wrapper: {file: keys}}
book: {sync_within: 15ms}
listen:
  - {name: public, address: ":8443", tls: {certificates: [{cert: a.crt, key: a.key}]}, trusted: ["10.0.0.0/8"]}
  - {name: mesh, address: ":8081", plaintext: behind_proxy, trusted: ["10.0.0.0/8"]}
admin: {address: ":9443", tls: {certificates: [{cert: a.crt, key: a.key}], client_ca: ca.pem}, roles: {reader: ["cn:ada"]}}
health: {address: ":9080"}
issuers: [{name: corp, issuer: "https://idp.example.com", audiences: [a], ca: idp.pem}]
upstreams: {api: {targets: ["https://10.0.0.1"], tls: {ca: up.pem}}}
routes: [{name: a, path: /a, upstream: api, authn: [{jwt: corp}]}]
policies: {dir: policies}
reload: {watch: false}
`

func TestFixed(t *testing.T) {
	base := mustParse(t, "/srv/gate/gatebook.yaml", changeBase)
	for name, c := range map[string]struct{ from, to, keys string }{
		"nothing":      {"", "", ""},
		"data":         {"data: data", "data: elsewhere", "data"},
		"node":         {"node: gate-1", "node: gate-2", "node"},
		"origin":       {"example.com/gates", "example.com/doors", "origin"},
		"keys":         {"file: keys", "file: keys2", "keys"},
		"book":         {"15ms", "16ms", "book"},
		"address":      {`":8443"`, `":8444"`, "listen.public.address"},
		"kind":         {"{name: mesh, address: \":8081\", plaintext: behind_proxy, trusted: [\"10.0.0.0/8\"]}", "{name: mesh, address: \":8081\", redirect_to_https: true}", "listen.mesh"},
		"name":         {"name: mesh", "name: inner", "listen.mesh listen.inner"},
		"health":       {`":9080"`, `":9081"`, "health.address"},
		"admin":        {`":9443"`, `":9444"`, "admin.address"},
		"admin socket": {"admin: {", "admin: {socket: false, ", "admin.socket"},
		"live":         {"cn:ada", "cn:bob", ""},
		"certificates": {"cert: a.crt, key: a.key}]}, trusted: [\"10", "cert: b.crt, key: b.key}]}, trusted: [\"11", ""},
		"watch":        {"watch: false", "watch: true", ""},
		"two at once":  {"data: data\nnode: gate-1", "data: x\nnode: y", "data node"},
	} {
		text := strings.Replace(changeBase, c.from, c.to, 1)
		if c.from != "" && text == changeBase {
			t.Fatalf("%s: nothing was changed", name)
		}
		if got := strings.Join(Fixed(base, mustParse(t, "/srv/gate/gatebook.yaml", text)), " "); got != c.keys {
			t.Errorf("%s: %q, want %q", name, got, c.keys)
		}
	}
}

// TestFingerprint: the print of a part changes with it and with the content of
// its files, and with nothing else.
func TestFingerprint(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"idp.pem", "up.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	prints := func(text string) (issuer, upstream [32]byte) {
		t.Helper()
		f := mustParse(t, filepath.Join(dir, "gatebook.yaml"), text)
		issuer, err := f.Fingerprint(&f.Issuers[0])
		if err != nil {
			t.Fatal(err)
		}
		u := f.Upstreams["api"]
		if upstream, err = f.Fingerprint(&u); err != nil {
			t.Fatal(err)
		}
		return issuer, upstream
	}
	i, u := prints(changeBase)
	check := func(what, text string, issuer, upstream bool) {
		t.Helper()
		if i2, u2 := prints(text); (i2 == i) != issuer || (u2 == u) != upstream {
			t.Errorf("%s: issuer the same %t, upstream the same %t", what, i2 == i, u2 == u)
		}
	}
	check("nothing", changeBase+"# comment\n", true, true)
	check("another route", strings.Replace(changeBase, "path: /a", "path: /b", 1), true, true)
	check("audience", strings.Replace(changeBase, "audiences: [a]", "audiences: [b]", 1), false, true)
	check("target", strings.Replace(changeBase, "10.0.0.1\"]", "10.0.0.2\"]", 1), true, false)
	if err := os.WriteFile(filepath.Join(dir, "idp.pem"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("the issuer's authority", changeBase, false, true)
	f := mustParse(t, "/nowhere/gatebook.yaml", changeBase)
	if _, err := f.Fingerprint(&f.Issuers[0]); err == nil {
		t.Error("a file that is not there has a print")
	}
}

func TestContentOf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("gatebook.yaml", changeBase)
	write("policies/a.cedar", "permit")
	f := mustParse(t, filepath.Join(dir, "gatebook.yaml"), changeBase)
	sources := f.Sources()
	for _, name := range []string{"gatebook.yaml", "policies", "idp.pem", "up.pem", "ca.pem"} {
		if !slices.Contains(sources, filepath.Join(dir, name)) {
			t.Errorf("%s is not among %v", name, sources)
		}
	}
	sum := func() [32]byte {
		t.Helper()
		s, err := ContentOf(sources)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	seen := map[[32]byte]string{sum(): "first"}
	for _, step := range []struct {
		name string
		do   func()
		new  bool
	}{
		{"nothing", func() {}, false},
		{"the same again", func() { write("policies/a.cedar", "permit") }, false},
		{"an editor's file", func() { write("policies/.a.cedar.swp", "x") }, false},
		{"a change", func() { write("policies/a.cedar", "forbid") }, true},
		{"a new file", func() { write("policies/deep/b.cedar", "permit") }, true},
		{"an authority", func() { write("idp.pem", "x") }, true},
		{"a file less", func() { os.Remove(filepath.Join(dir, "policies/deep/b.cedar")) }, true},
	} {
		step.do()
		s := sum()
		if was, known := seen[s]; known == step.new {
			t.Errorf("%s: known %t (%s)", step.name, known, was)
		}
		seen[s] = step.name
	}
}

func TestParseHolder(t *testing.T) {
	for text, want := range map[string]Holder{
		"cn:Ada Lovelace":    {HolderCN, "", "Ada Lovelace"},
		"uri:spiffe://a/b:c": {HolderURI, "", "spiffe://a/b:c"},
		"role:corp:a:b":      {HolderRole, "corp", "a:b"},
		"sub:corp:7":         {HolderSub, "corp", "7"},
		"cn:":                {},
		"cn":                 {},
		"role:corp":          {},
		"role:corp:":         {},
		"role::x":            {},
		"ip:10.0.0.1":        {},
		"":                   {},
	} {
		if got := ParseHolder(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// FuzzParseHolder: what is taken can be written again in one way only, and the
// schema's pattern takes it, too.
func FuzzParseHolder(f *testing.F) {
	for _, s := range []string{"cn:Ada", "role:corp:auditor", "sub:a:b:c", "cn", "role::x", "uri:", ":", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := ParseHolder(s)
		text := h.Kind + ":" + h.Name
		if h.OfToken() {
			text = h.Kind + ":" + h.Issuer + ":" + h.Name
		}
		if h.Kind != "" && (text != s || h.Name == "" || h.OfToken() != (h.Issuer != "")) {
			t.Errorf("%q is read as %+v", s, h)
		}
		if h.Kind == "" && h != (Holder{}) {
			t.Errorf("%q is nobody, but %+v", s, h)
		}
	})
}
