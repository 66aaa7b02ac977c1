package authz

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestScenarios loads the small complete sets in testdata, each with policies
// and cases; a set whose cases fail does not load.
func TestScenarios(t *testing.T) {
	roles := map[string]Role{
		"clerk":   {Allow: []string{"orders.read", "orders.write"}},
		"auditor": {Allow: []string{"orders.read"}},
		"admin":   {Allow: []string{"*"}},
	}
	dirs, err := filepath.Glob("testdata/scenarios/*")
	if err != nil || len(dirs) < 3 {
		t.Fatalf("%d scenarios: %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			e, err := Load(Config{Dir: dir, Tests: dir, Roles: roles, Routes: testRoutes})
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range e.Untested() {
				if !strings.HasPrefix(id, rolePrefix) {
					t.Errorf("no case is determined by policy %s", id)
				}
			}
			cases, err := openDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer cases.root.Close()
			files, err := cases.files(".json")
			if err != nil || len(files) == 0 {
				t.Fatalf("%d test files: %v", len(files), err)
			}
			for _, f := range files {
				list, prob := parseCases(f)
				if prob != nil {
					t.Fatal(prob)
				}
				for i := range list {
					r, err := e.caseRequest(&list[i])
					if err != nil {
						t.Fatal(err)
					}
					got, want := e.Decide(r), linear(t, e, r)
					if got.Allow != want.Allow || got.Reason != want.Reason || !slices.Equal(got.Policies, want.Policies) {
						t.Errorf("%s: indexed %+v, linear %+v", list[i].Name, got, want)
					}
				}
			}
		})
	}
}

func TestCasesRefuse(t *testing.T) {
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}}, "p.cedar",
		`@id("night") forbid(principal, action, resource) when { context.time.toTime() < duration("6h") }; @id("never") permit(principal == User::"corp|zoe", action, resource);`)
	const clerk = `"principal": {"issuer": "corp", "subject": "a", "roles": ["clerk"]}, "route": "orders.read", "method": "GET", "params": {"id": "1"}`
	for _, c := range []struct {
		name, text string
		want       string // "" means all pass
	}{
		{"passes", `[{"name": "x", ` + clerk + `, "expect": "allow", "policies": ["role:clerk:orders.read"]}]`, ""},
		{"no cases", `[]`, ""},
		{"night", `[{"name": "x", ` + clerk + `, "context": {"time": "2026-01-01T05:59:59Z"}, "expect": "deny", "reason": "denied_by_policy", "policies": ["night"]}]`, ""},
		{"other decision", `[{"name": "x", ` + clerk + `, "expect": "deny"}]`, `c.json: case "x": expected deny, got allow by role:clerk:orders.read`},
		{"other reason", `[{"name": "x", ` + clerk + `, "context": {"time": "2026-01-01T05:59:59Z"}, "expect": "deny", "reason": "denied_by_default"}]`, `expected reason denied_by_default, got deny (denied_by_policy) by night`},
		{"other policies", `[{"name": "x", ` + clerk + `, "expect": "allow", "policies": ["night"]}]`, `expected allow by night, got allow by role:clerk:orders.read`},
		{"no policies", `[{"name": "x", ` + clerk + `, "expect": "allow", "policies": []}]`, `expected allow by no policy`},
		{"every failure is named", `[{"name": "x", ` + clerk + `, "expect": "deny"}, {"name": "y", ` + clerk + `, "expect": "deny"}]`, `case "y": expected deny`},
		{"error", `[{"name": "x", "principal": {"issuer": "corp"}, "route": "orders.read", "method": "GET", "params": {"id": "1"}, "expect": "allow"}]`, `got deny (policy_error) by no policy; the principal has no subject`},
		{"unknown route", `[{"name": "x", "route": "nope", "method": "GET", "expect": "deny"}]`, `route "nope" is not configured`},
		{"no method", `[{"name": "x", "route": "rest", "expect": "deny"}]`, `method is missing`},
		{"no expectation", `[{"name": "x", ` + clerk + `}]`, `expect must be "allow" or "deny", not ""`},
		{"age", `[{"name": "x", ` + clerk + `, "context": {"auth_age": 9223372037}, "expect": "deny"}]`, `auth_age 9223372037 is out of range`},
		{"no name", `[{` + clerk + `, "expect": "deny"}]`, `case 1 has no name`},
		{"same name", `[{"name": "x", ` + clerk + `, "expect": "allow"}, {"name": "x", ` + clerk + `, "expect": "allow"}]`, `case "x" has the name of one in c.json`},
		{"unknown key", "[\n  {\"name\": \"x\", \"expects\": \"deny\"}\n]", `c.json:2:`},
		{"repeated key", "[{\"expect\": \"allow\",\n \"Expect\": \"deny\"}]", `c.json:2:10: key "Expect" occurs twice`},
		{"repeated key inside", `[{"principal": {"roles": ["a"], "claims": {"a": "1", "a": "2"}}}]`, `key "a" occurs twice`},
		{"wrong type", "[{\"name\":\n 3}]", `c.json:2:`},
		{"not an array", `{"name": "x"}`, `c.json:1:`},
		{"trailing text", `[] []`, `there is text after the array of cases`},
		{"syntax", "[\n{", `c.json:2:`},
		{"address", `[{"name": "x", ` + clerk + `, "context": {"ip": "1.2.3"}, "expect": "deny"}]`, `c.json:1:`},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.untested = nil
			err := e.test([]file{{"c.json", c.text}})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	e.untested = nil
	if err := e.test([]file{{"c.json", `[{"name": "x", ` + clerk + `, "expect": "allow"}]`}}); err != nil {
		t.Fatal(err)
	}
	if got := e.Untested(); !slices.Equal(got, []string{"never", "night"}) {
		t.Errorf("untested %q", got)
	}
}

// TestLoadRunsTests: the loader itself refuses.
func TestLoadRunsTests(t *testing.T) {
	dir := tree(t, map[string]string{
		"p.cedar":      `@id("p") permit(principal, action, resource);`,
		"tests/a.json": `[{"name": "x", "route": "health", "method": "GET", "expect": "deny"}]`,
	})
	if _, err := Load(Config{Dir: dir, Tests: filepath.Join(dir, "tests"), Routes: testRoutes}); err == nil || !strings.Contains(err.Error(), `a.json: case "x": expected deny, got allow by p`) {
		t.Errorf("got %v", err)
	}
}

func FuzzCases(f *testing.F) {
	f.Add(`[{"name": "x", "principal": {"issuer": "corp", "subject": "a"}, "route": "orders.read", "method": "GET", "params": {"id": "1"}, "context": {"ip": "::1", "auth_age": 5}, "expect": "deny"}]`)
	f.Add(`[{"a":[{}],"A":1}]`)
	f.Add(`[{"name": "\u0000", "expect": "allow", "policies": null}] `)
	e := mustEngine(f, nil)
	f.Fuzz(func(t *testing.T, text string) {
		e.untested = nil
		cases, prob := parseCases(file{"c.json", text})
		if prob != nil {
			if prob.Message == "" || prob.Line < 1 || prob.Column < 1 {
				t.Errorf("problem without place: %+v", *prob)
			}
			return
		}
		for i := range cases {
			if d, fault := e.runCase(&cases[i]); d.Allow || fault == "" && cases[i].Expect != "deny" {
				t.Errorf("an empty set allows %q", text)
			}
		}
	})
}

func FuzzPolicyText(f *testing.F) {
	f.Add(`@id("a;b") permit(principal, action, resource) when { context.path == "};" }; // ;`)
	f.Add("/* ; */ @id(\"x\")\nforbid(principal, action, resource);\n@id(\"y\") permit(principal, action, resource);")
	f.Add("@id(\"x\") permit(principal, action, resource) when { ((((((true)))))) };")
	f.Fuzz(func(t *testing.T, text string) {
		policies, probs := parsePolicies([]file{{"f.cedar", text}})
		for _, p := range probs {
			if p.Message == "" {
				t.Errorf("empty problem: %+v", p)
			}
			_ = p.String()
		}
		for _, p := range policies {
			if !strings.Contains(text, p.text) || p.text == "" {
				t.Errorf("text of %s is %q", p.id, p.text)
			}
		}
		if probs == nil {
			_, _ = engineOf(testRoutes, nil, "f.cedar", text)
		}
	})
}
