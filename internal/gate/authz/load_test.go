package authz

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gatebook/gatebook/internal/reason"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// customSchema is a user's schema for the first test route: typed claims, no
// tags, a smaller context and an action group of its own.
const customSchema = `
entity Role; entity Client; entity Anonymous; entity RouteGroup;
entity Route in [RouteGroup];
entity User in [Role] { sub: String, level?: Long, staff?: Bool, dept?: String };
action reading;
type Moment = { ip: ipaddr, auth_age?: Long, params: { id: String } };
action "GET /v1/orders/{id}" in [reading] appliesTo { principal: User, resource: Route, context: Moment };
action "HEAD /v1/orders/{id}" in [reading] appliesTo { principal: [User, Anonymous], resource: Route, context: {} };
`

func TestGoldenSchema(t *testing.T) {
	got, err := DefaultSchema(testRoutes)
	if err != nil {
		t.Fatal(err)
	}
	const name = "testdata/default.cedarschema"
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the generated schema differs from %s; run with -update and read the difference", name)
	}
	if e, err := Load(Config{Routes: testRoutes}); err != nil || e.Schema() != got {
		t.Error("the engine uses another schema")
	}
}

func TestCustomSchema(t *testing.T) {
	e, err := engineOf(testRoutes[:1], nil, "s.cedarschema", customSchema, "p.cedar", `
@id("senior") permit(principal, action in Action::"reading", resource) when { principal has level && principal.level >= 3 };
@id("staff") forbid(principal, action == Action::"GET /v1/orders/{id}", resource) unless { principal has staff && principal.staff };`)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		claims map[string]string
		reason reason.Reason
	}{
		{map[string]string{"level": "3", "staff": "true"}, ""},
		{map[string]string{"level": "3", "staff": "false"}, reason.DeniedByPolicy},
		{map[string]string{"level": "2", "staff": "true"}, reason.DeniedByDefault},
		{map[string]string{"level": "three", "staff": "true"}, reason.PolicyError},
		{map[string]string{"level": "3", "staff": "yes"}, reason.PolicyError},
		{map[string]string{"level": "9223372036854775808", "staff": "true"}, reason.PolicyError},
		{nil, reason.DeniedByPolicy},
	} {
		d := e.Decide(asks(func(r *Request) { r.Claims = c.claims }))
		if d.Reason != c.reason || d.Allow != (c.reason == "") {
			t.Errorf("claims %v: %+v", c.claims, d)
		}
		for _, msg := range d.Errors {
			if strings.Contains(msg, "three") || strings.Contains(msg, "yes") {
				t.Errorf("message %q quotes a claim", msg)
			}
		}
	}
}

// TestRefused: what keeps a set from loading, with its place.
func TestRefused(t *testing.T) {
	deep := strings.Repeat("(", maxDepth) + "true" + strings.Repeat(")", maxDepth)
	for _, c := range []struct {
		name   string
		roles  map[string]Role
		routes []Route
		files  []string
		want   []string
	}{
		{"syntax", nil, nil, []string{"a.cedar", "// fine\npermit(principal,\n\taction, nothing);"},
			[]string{"a.cedar:3:17: near \")\": got nothing want resource", "    \taction, nothing);\n    \t               ^"}},
		{"many faults", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action, resource) when { context.nope };"}, []string{"and 9 more of the kind"}},
		{"bad string", nil, nil, []string{"a.cedar", "@id(\"x) permit(principal, action, resource);"}, []string{"a.cedar:1:", "literal not terminated"}},
		{"every file is named", nil, nil, []string{"a.cedar", "permit", "b.cedar", "forbid"}, []string{"a.cedar:1:7: ", "b.cedar:1:7: "}},
		{"no id", nil, nil, []string{"a.cedar", "\n  permit(principal, action, resource);"}, []string{"a.cedar:2:3: the policy has no id"}},
		{"bad id", nil, nil, []string{"a.cedar", "@id(\"a b\") permit(principal, action, resource);"}, []string{"a.cedar:1:1: id \"a b\" must be"}},
		{"kept id", nil, nil, []string{"a.cedar", "@id(\"role:x:y\") permit(principal, action, resource);"}, []string{"is kept for policies made from roles"}},
		{"id taken", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action, resource);", "b.cedar", "\n@id(\"x\") forbid(principal, action, resource);"},
			[]string{"b.cedar:2:1: id \"x\" is already taken at a.cedar:1:1"}},
		{"too deep", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action, resource)\nwhen { " + deep + " };"}, []string{"a.cedar:2:107: brackets are nested more than 100 deep"}},
		{"unknown action", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action == Action::\"GET /nowhere\", resource);"},
			[]string{"a.cedar:1:1: policy \"x\": unrecognized action `Action::\"GET /nowhere\"`", "    @id(\"x\") permit"}},
		{"unknown entity type", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal in Team::\"g\", action, resource);"}, []string{"unrecognized entity type `Team`"}},
		{"unknown attribute", nil, nil, []string{"a.cedar", "// one\n// two\n@id(\"x\") permit(principal is User, action, resource) when { principal.level > 3 };"},
			[]string{"a.cedar:3:1: policy \"x\": attribute `level` on entity type `User` not found"}},
		{"wrong type", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action, resource) when { context.acr > 3 };"}, []string{"a.cedar:1:1: policy \"x\": unexpected type"}},
		{"unguarded optional", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action, resource) when { context.auth_age < 3 };"}, []string{"unable to guarantee safety of access to optional attribute `auth_age`"}},
		{"claim without a guard", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal is User, action, resource) when { principal.getTag(\"a\") == \"b\" };"}, []string{"a.cedar:1:1: policy \"x\": "}},
		{"unscoped use of a user on an anonymous route", nil, nil, []string{"a.cedar", "@id(\"x\") permit(principal, action, resource) when { principal.sub == \"a\" };"}, []string{"attribute `sub` on entity type `Anonymous` not found"}},

		{"role names no route", map[string]Role{"clerk": {Allow: []string{"orders.raed"}}}, nil, nil, []string{`role "clerk": allow "orders.raed": no such route is configured`}},
		{"role names no group", map[string]Role{"clerk": {Allow: []string{"order.*"}}}, nil, nil, []string{`allow "order.*": no such route`}},
		{"role with a star inside", map[string]Role{"clerk": {Allow: []string{"*.read"}}}, nil, nil, []string{`* may stand only alone or at the end`}},
		{"role line twice", map[string]Role{"clerk": {Allow: []string{"rest", "rest"}}}, nil, nil, []string{`listed twice`}},
		{"role without a name", map[string]Role{"": {Allow: []string{"rest"}}}, nil, nil, []string{`role "": the name must be`}},
		{"roles with one id", map[string]Role{"a": {Allow: []string{"b:c"}}, "a:b": {Allow: []string{"c"}}},
			[]Route{{Name: "b:c", Template: "/1"}, {Name: "c", Template: "/2"}}, nil, []string{`policy id "role:a:b:c" is made from two lines`}},

		{"route twice", nil, []Route{{Name: "a", Template: "/"}, {Name: "a", Template: "/b"}}, nil, []string{`route "a": declared twice`}},
		{"route with a star", nil, []Route{{Name: "a.*", Template: "/"}}, nil, []string{`printable characters without *`}},
		{"template", nil, []Route{{Name: "a", Template: "/x{id}"}, {Name: "b", Template: "/{i}/{i}"}, {Name: "c", Template: "x"}}, nil,
			[]string{`segment "x{id}" must be`, `parameter "i" occurs twice`, `must start with /`}},
		{"method", nil, []Route{{Name: "a", Template: "/", Methods: []string{"get", "PUT", "PUT"}}}, nil, []string{`method "get" must be`, `method "PUT" is listed twice`}},

		{"schema syntax", nil, nil, []string{"s.cedarschema", "entity User {\n  x: ;\n};"}, []string{"s.cedarschema:2:6: ", "      x: ;"}},
		{"schema with unknown type", nil, nil, []string{"s.cedarschema", "entity User in [Nope];"}, []string{`s.cedarschema: entity "User": undefined entity type "Nope"`}},
		{"schema too deep", nil, nil, []string{"s.cedarschema", strings.Repeat("{", 200)}, []string{"s.cedarschema:1:101: brackets"}},
		{"empty schema", nil, testRoutes[:1], []string{"s.cedarschema", ""},
			[]string{"must declare entity type User", "must declare entity type Route", "must declare entity type RouteGroup", `must declare action "GET /v1/orders/{id}" of route "orders.read"`}},
		{"schema that promises too much", nil, testRoutes[:1], []string{"s.cedarschema", `
			entity Role { x: String }; entity Client; entity Anonymous; entity RouteGroup; entity Route;
			entity User { sub: Long, client: Client, a: String, b?: Set<String> } tags Long;
			action "GET /v1/orders/{id}" appliesTo { principal: User, resource: Route, context: {
				ip: String, geo: String, auth_age: Long, params: { id: Long, x: String } } };
			action "HEAD /v1/orders/{id}" appliesTo { principal: Role, resource: Route };`},
			[]string{
				`entity type Role declares attribute "x", which the gate cannot supply`,
				"entity type Route must be in [RouteGroup]", "entity type User must be in [Role]", "tags of entity type User must be String",
				"attribute sub of entity type User is declared Long; the gate supplies String", "must be optional (client?)", "must be optional (a?)",
				"attribute b of entity type User is declared Set<String>; the gate supplies String",
				"declares ip: String; the gate supplies ipaddr", `declares "geo", which the gate does not supply`, "must declare auth_age? as optional",
				"declares params.id as Long; it is a String", "declares params.x, which is not in the template",
				`action "HEAD /v1/orders/{id}" must apply to principal User and resource Route`,
			}},
		{"schema without anonymous", nil, []Route{{Name: "h", Methods: []string{"GET"}, Template: "/", Anonymous: true}}, []string{"s.cedarschema", `
			entity Role, Client, Anonymous, RouteGroup; entity Route in [RouteGroup]; entity User in [Role];
			action "GET /" appliesTo { principal: User, resource: Route };`}, []string{`must apply to principal Anonymous, because route "h"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			routes := c.routes
			if routes == nil {
				routes = testRoutes
			}
			_, err := engineOf(routes, c.roles, c.files...)
			var probs Problems
			if !errors.As(err, &probs) {
				t.Fatalf("got %v, want Problems", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q:\n%v", want, err)
				}
			}
			for range 5 {
				if _, again := engineOf(routes, c.roles, c.files...); again.Error() != err.Error() {
					t.Fatalf("the message changes from load to load:\n%v\n%v", err, again)
				}
			}
		})
	}
}

// tree writes files below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func ids(e *Engine) []string {
	var out []string
	for _, p := range e.Policies() {
		out = append(out, p.ID)
	}
	return out
}

func TestLoadDir(t *testing.T) {
	files := map[string]string{
		"b.cedar":              `@id("b") permit(principal, action, resource);`,
		"a.cedar":              `@id("a2") permit(principal, action, resource); @id("a1") forbid(principal, action, resource);`,
		"sub/c.cedar":          `@id("c") permit(principal, action, resource);`,
		".hidden/d.cedar":      "not Cedar",
		".e.cedar":             "not Cedar",
		"notes.txt":            "not Cedar",
		"..2026/mounted.cedar": `@id("m") permit(principal, action, resource);`,
	}
	dir := tree(t, files)
	// As Kubernetes mounts a ConfigMap.
	for link, to := range map[string]string{"..data": "..2026", "mounted.cedar": "..data/mounted.cedar"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	c := Config{Dir: dir, Routes: testRoutes, Roles: map[string]Role{"clerk": {Allow: []string{"rest", "orders.*"}}}}
	e, err := Load(c)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a1", "a2", "b", "c", "m", "role:clerk:orders.*", "role:clerk:rest"}
	if got := ids(e); !slices.Equal(got, want) {
		t.Errorf("ids %q, want %q", got, want)
	}
	if p := e.Policies()[0]; p.File != "a.cedar" || p.Line != 1 || p.Column != 48 || !p.Forbid || p.Text != `@id("a1") forbid(principal, action, resource);` {
		t.Errorf("policy a1 is described as %+v", p)
	}

	shuffled := c
	shuffled.Routes = slices.Clone(c.Routes)
	slices.Reverse(shuffled.Routes)
	shuffled.Roles = map[string]Role{"clerk": {Allow: []string{"orders.*", "rest"}}}
	if again, err := Load(shuffled); err != nil || again.SetHash() != e.SetHash() {
		t.Errorf("another order of the same configuration: %v", err)
	}
	if len(e.SetHash()) != 32 || strings.Trim(e.SetHash(), "0123456789abcdef") != "" {
		t.Errorf("set hash %q", e.SetHash())
	}
	changed := c
	changed.Roles = map[string]Role{"clerk": {Allow: []string{"rest"}}}
	if other, err := Load(changed); err != nil || other.SetHash() == e.SetHash() {
		t.Errorf("other roles, same hash: %v", err)
	}
	changed = c
	changed.Routes = append(slices.Clone(c.Routes), Route{Name: "new", Template: "/new"})
	if other, err := Load(changed); err != nil || other.SetHash() == e.SetHash() {
		t.Errorf("other routes, same hash: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.cedar"), []byte(files["b.cedar"]+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if other, err := Load(c); err != nil || other.SetHash() == e.SetHash() {
		t.Errorf("other bytes, same hash: %v", err)
	}
}

func TestLoadDirSchema(t *testing.T) {
	dir := tree(t, map[string]string{schemaFile: customSchema, "elsewhere.txt": strings.Replace(customSchema, "level?: Long", "level?: String", 1)})
	e, err := Load(Config{Dir: dir, Routes: testRoutes[:1]})
	if err != nil {
		t.Fatal(err)
	}
	if e.Schema() != customSchema {
		t.Error("schema.cedarschema was not used")
	}
	other, err := Load(Config{Dir: dir, Schema: filepath.Join(dir, "elsewhere.txt"), Routes: testRoutes[:1]})
	if err != nil {
		t.Fatal(err)
	}
	if other.schema.claims["level"] != "String" || other.SetHash() == e.SetHash() {
		t.Error("the named schema was not used")
	}
}

func TestLoadRefusesFiles(t *testing.T) {
	outside := tree(t, map[string]string{"secret.cedar": `@id("s") permit(principal, action, resource);`})
	for _, c := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"link out", func(dir string) error {
			return os.Symlink(filepath.Join(outside, "secret.cedar"), filepath.Join(dir, "x.cedar"))
		}, "x.cedar"},
		{"relative link out", func(dir string) error {
			rel, err := filepath.Rel(dir, filepath.Join(outside, "secret.cedar"))
			return errors.Join(err, os.Symlink(rel, filepath.Join(dir, "x.cedar")))
		}, "x.cedar"},
		{"dangling link", func(dir string) error { return os.Symlink("nowhere", filepath.Join(dir, "x.cedar")) }, "x.cedar"},
		{"pipe", func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "x.cedar"), 0o600) }, "not a regular file"},
		{"not UTF-8", func(dir string) error { return os.WriteFile(filepath.Join(dir, "x.cedar"), []byte("// \xff"), 0o600) }, "not UTF-8"},
		{"large file", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "x.cedar"), make([]byte, maxFileBytes+1), 0o600)
		}, "larger than"},
		{"schema link out", func(dir string) error {
			return os.Symlink(filepath.Join(outside, "secret.cedar"), filepath.Join(dir, schemaFile))
		}, schemaFile},
		{"too much", func(dir string) error {
			text := slices.Repeat([]byte("//\n"), maxFileBytes/3)
			for i := range maxBytes/len(text) + 1 {
				if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))+".cedar"), text, 0o600); err != nil {
					return err
				}
			}
			return nil
		}, "in all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(Config{Dir: dir, Routes: testRoutes}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for _, c := range []Config{{Dir: "testdata/nowhere"}, {Schema: "testdata/nowhere"}, {Tests: "testdata/nowhere"}} {
		if _, err := Load(c); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestBundle: a decision can be repeated from the text that its set hash names.
func TestBundle(t *testing.T) {
	e, err := engineOf(testRoutes[:1], map[string]Role{"clerk": {Allow: []string{"*"}}}, "s.cedarschema", customSchema,
		"p.cedar", `@id("x") forbid(principal, action, resource) when { principal has dept && principal.dept == "sälës" }; // <&>`)
	if err != nil {
		t.Fatal(err)
	}
	back, err := LoadBundle(e.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	if back.SetHash() != e.SetHash() {
		t.Errorf("hash %s became %s", e.SetHash(), back.SetHash())
	}
	for _, dept := range []string{"sales", "sälës"} {
		r := asks(func(r *Request) { r.Claims = map[string]string{"dept": dept} })
		if got, want := back.Decide(r), e.Decide(r); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", dept, got, want)
		}
	}
	if _, err := LoadBundle([]byte(strings.Replace(string(e.Bundle()), engineVersion, "gatebook-authz/0", 1))); err == nil || !strings.Contains(err.Error(), "made by engine") {
		t.Errorf("bundle of another engine: %v", err)
	}
	if _, err := LoadBundle([]byte("{")); err == nil {
		t.Error("broken bundle was loaded")
	}
}

func TestProblemExcerpt(t *testing.T) {
	p := at("f", "one\r\n\ttwo é three\r\n", 2, 8, "bad %s", "word")
	if want := "f:2:8: bad word\n    \ttwo é three\n    \t      ^"; p.String() != want {
		t.Errorf("got %q, want %q", p.String(), want)
	}
	if p := at("f", strings.Repeat("x", 300), 1, 1, "long"); p.String() != "f:1:1: long" {
		t.Errorf("got %q", p.String())
	}
}

// TestPolicyText: strings and comments hide what ends a policy or opens a
// bracket.
func TestPolicyText(t *testing.T) {
	const first = "@id(\"a;\\\"b\") /* ; */ permit(principal, // ;\n action, resource)\nwhen { context.path == \";\" };"
	if got := policyText("// x\n"+first+" @id(\"y\") forbid(principal, action, resource);", 5); got != first {
		t.Errorf("got %q", got)
	}
	open := strings.Repeat("(", maxDepth+1)
	for _, text := range []string{"// " + open, "/* " + open + " */", "/* " + open, `"` + open + `"`, `"\"` + open, open[1:] + strings.Repeat(")", 9) + "(((", ""} {
		if _, deep := tooDeep(text); deep {
			t.Errorf("%q counts as too deep", text)
		}
	}
	for _, text := range []string{open, "// x\n" + open, "/* */" + open, `"\\"` + open, "\"x\n" + open} {
		if off, deep := tooDeep(text); !deep || off != len(text)-1 {
			t.Errorf("%q: %d %v", text, off, deep)
		}
	}
}
