package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func initOptions() InitOptions {
	return InitOptions{Upstream: "http://127.0.0.1:9001", Issuer: "https://idp.example.com/realms/a"}
}

func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "gate")
	opts := initOptions()
	opts.SelfSigned = true
	created, err := Init(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]fs.FileMode{
		"gatebook.yaml": 0o640, "keys": fs.ModeDir | 0o700,
		"tls": fs.ModeDir | 0o750, "tls/localhost.crt": 0o644, "tls/localhost.key": 0o600,
		"policies": fs.ModeDir | 0o750, "policies/access.cedar": 0o640,
		"policies/tests": fs.ModeDir | 0o750, "policies/tests/access.json": 0o640,
	}
	if len(created) != len(modes) {
		t.Errorf("created %v", created)
	}
	for _, name := range created {
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := modes[rel]; !ok || info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", rel, info.Mode(), want)
		}
	}
	f, err := Load(filepath.Join(dir, "gatebook.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if p := Check(f); p != nil {
		t.Errorf("Check:\n%v", p)
	}
	if f.Data != Path(filepath.Join(dir, "data")) || f.Keys.Wrapper.File != Path(filepath.Join(dir, "keys")) {
		t.Errorf("data %s, keys %s", f.Data, f.Keys.Wrapper.File)
	}
	again, err := Init(dir, opts)
	if err == nil || !strings.Contains(err.Error(), "exists already") || again != nil {
		t.Errorf("a second Init: %v, %v", again, err)
	}
}

// TestInitKeepsWhatIsThere: one file in the way, and nothing is made.
func TestInitKeepsWhatIsThere(t *testing.T) {
	dir := put(t, map[string]string{"policies/tests/access.json": "mine"})
	if created, err := Init(dir, initOptions()); err == nil || created != nil {
		t.Fatalf("Init: %v, %v", created, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "policies/tests/access.json")); err != nil || string(b) != "mine" {
		t.Errorf("changed: %q, %v", b, err)
	}
	// A link to nowhere is in the way, too.
	dir = t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, initOptions()); err == nil {
		t.Error("Init followed a dangling link")
	}
}

// TestInitUndoes: what fails half way leaves nothing.
func TestInitUndoes(t *testing.T) {
	dir := t.TempDir()
	files := []initFile{{"a", 0o640, []byte("x")}, {"b", 0o750, nil}, {"b/c", 0o640, []byte("y")}}
	var created []string
	for _, f := range files {
		if err := writeNew(filepath.Join(dir, f.name), f); err != nil {
			t.Fatal(err)
		}
		created = append(created, filepath.Join(dir, f.name))
	}
	if err := writeNew(filepath.Join(dir, "a"), files[0]); err == nil {
		t.Error("overwrote a file")
	}
	if err := writeNew(filepath.Join(dir, "b"), files[1]); err == nil {
		t.Error("took over a directory")
	}
	if err := removeAll(created); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestInitOptions(t *testing.T) {
	for _, p := range presets() {
		opts := initOptions()
		opts.Preset = p.name
		switch p.name {
		case "auth0":
			opts.Issuer = "https://t.eu.auth0.com/"
		case "okta":
			opts.Issuer = "https://t.okta.com/oauth2/default"
		}
		_, err := Init(t.TempDir(), opts)
		if (err == nil) != (p.refuse == "") {
			t.Errorf("preset %s: %v", p.name, err)
		}
	}
	for _, c := range []struct {
		change func(*InitOptions)
		want   string
	}{
		{func(o *InitOptions) { o.Upstream = "" }, "the upstream is not given"},
		{func(o *InitOptions) { o.Issuer = "" }, "the issuer is not given"},
		{func(o *InitOptions) { o.Upstream = "10.0.0.1" }, "the upstream is not an http or https URL"},
		{func(o *InitOptions) { o.Issuer = "http://idp.example.com" }, "the issuer is an http URL"},
		{func(o *InitOptions) { o.Preset = "keycloack" }, "did you mean keycloak?"},
		{func(o *InitOptions) { o.Name = "Gate 1" }, "the node name is not a node name"},
		{func(o *InitOptions) { o.Origin = "https://x" }, "the origin is an origin with a scheme"},
		{func(o *InitOptions) { o.CertFile = "a.crt" }, "go together"},
		{func(o *InitOptions) { o.Audience = "a\nroutes: []" }, "control characters"},
		{func(o *InitOptions) { o.Preset, o.Issuer = "okta", "https://t.okta.com" }, "org authorization server"},
	} {
		opts := initOptions()
		c.change(&opts)
		dir := t.TempDir()
		created, err := Init(dir, opts)
		if err == nil || created != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Init(%+v) = %v, %v; want error with %q", opts, created, err, c.want)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	}
	// Values from outside are quoted, whatever they hold.
	opts := initOptions()
	opts.Audience = `a", issuer: "x #'\ü{{.}}`
	dir := t.TempDir()
	if _, err := Init(dir, opts); err != nil {
		t.Fatal(err)
	}
	f, err := Load(filepath.Join(dir, "gatebook.yaml"))
	if err != nil || !slices.Equal(f.Issuers[0].Audiences, []string{opts.Audience}) {
		t.Errorf("audience: %v, %v", f, err)
	}
}

// variants are the kinds of file that Init writes.
func variants() map[string]InitOptions {
	proxy, own, https := initOptions(), initOptions(), initOptions()
	own.CertFile, own.KeyFile = "api.crt", "api.key"
	https.Upstream, https.SelfSigned, https.Preset = "https://10.0.0.1", true, "cognito"
	return map[string]InitOptions{"proxy": proxy, "own": own, "https": https}
}

// TestInitShowsEveryKey: every key of this release is in the file, set or
// commented out, and each commented one is accepted when it is put in.
func TestInitShowsEveryKey(t *testing.T) {
	seen := map[string]bool{}
	option := regexp.MustCompile(`^( *)#(- |)([a-z_]+:|\{name)`)
	for name, opts := range variants() {
		opts.setDefaults()
		text, err := renderInit("/srv/gate/gatebook.yaml", opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range allRows() {
			if r.f.later == "" && regexp.MustCompile(`(^|[\s{,#-])`+r.f.key+`:`).Match(text) {
				seen[r.path] = true
			}
		}
		lines := strings.Split(string(text), "\n")
		options := 0
		for i, line := range lines {
			if !option.MatchString(line) {
				continue
			}
			options++
			put := slices.Clone(lines)
			put[i] = strings.Replace(line, "#", "", 1)
			if _, problems := Parse("/srv/gate/gatebook.yaml", []byte(strings.Join(put, "\n"))); problems != nil {
				t.Errorf("%s: the option in line %d is refused:\n%v", name, i+1, problems)
			}
		}
		if options < 10 {
			t.Errorf("%s: only %d options", name, options)
		}
	}
	for _, r := range allRows() {
		if r.f.later == "" && !seen[r.path] && !strings.HasPrefix(r.path, "classes.") {
			t.Errorf("%s is in no file that Init writes", r.path)
		}
	}
}

// TestInitPolicies: the cases name routes, roles and policies that exist.
func TestInitPolicies(t *testing.T) {
	opts := initOptions()
	opts.setDefaults()
	text, err := renderInit("/srv/gate/gatebook.yaml", opts)
	if err != nil {
		t.Fatal(err)
	}
	f := mustParse(t, "/srv/gate/gatebook.yaml", string(text))
	policies, err := templates.ReadFile("templates/policies/access.cedar")
	if err != nil {
		t.Fatal(err)
	}
	data, err := templates.ReadFile("templates/policies/tests/access.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Route, Method, Path, Expect, Reason string
		Principal                                 struct {
			Issuer, Subject string
			Roles           []string
		}
		Params   map[string]string
		Policies []string
	}
	if err := json.Unmarshal(data, &cases); err != nil || len(cases) == 0 {
		t.Fatal(err)
	}
	for _, c := range cases {
		i := slices.IndexFunc(f.Routes, func(r Route) bool { return r.Name == c.Route && slices.Contains(r.Methods, c.Method) })
		if i < 0 || c.Path != "/"+c.Params["rest"] {
			t.Errorf("%s: no such request: %s %s %s", c.Name, c.Route, c.Method, c.Path)
		}
		if !slices.ContainsFunc(f.Issuers, func(is Issuer) bool { return is.Name == c.Principal.Issuer }) {
			t.Errorf("%s: no issuer %s", c.Name, c.Principal.Issuer)
		}
		for _, id := range c.Policies {
			role, route, isRole := strings.Cut(strings.TrimPrefix(id, "role:"), ":")
			known := strings.Contains(string(policies), fmt.Sprintf("@id(%q)", id))
			if isRole {
				known = slices.Contains(f.Roles[role].Allow, route)
			}
			if !known {
				t.Errorf("%s: no policy %s", c.Name, id)
			}
		}
	}
}

func TestSelfSigned(t *testing.T) {
	dir := t.TempDir()
	opts := initOptions()
	opts.SelfSigned = true
	if _, err := Init(dir, opts); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls/localhost.crt"), filepath.Join(dir, "tls/localhost.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Leaf)
	for _, name := range []string{"localhost", "127.0.0.1", "::1"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := pair.Leaf.VerifyHostname("example.com"); err == nil {
		t.Error("good for example.com")
	}
	if pair.Leaf.IsCA || pair.Leaf.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		t.Errorf("CA %v, %v", pair.Leaf.IsCA, pair.Leaf.SignatureAlgorithm)
	}
}
