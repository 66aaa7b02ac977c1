package detect

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

func TestCases(t *testing.T) {
	for _, name := range []string{"testdata/builtin.json", "testdata/own.json"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		results, err := Test(b, Builtin())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, r := range results {
			if !r.OK() {
				t.Errorf("%s: %s:\nmissing %q\nunwanted %q", name, r.Name, r.Want, r.More)
			}
		}
	}
}

// TestNeeds: from the fields that the rules say they need alone, as a reader of the
// book picks them, comes the same as from whole records.
func TestNeeds(t *testing.T) {
	found := 0
	for _, name := range []string{"testdata/builtin.json", "testdata/own.json"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := decodeCases(b)
		if err != nil {
			t.Fatal(err)
		}
		rules, err := f.onTop(Builtin())
		if err != nil {
			t.Fatal(err)
		}
		for i := range f.Cases {
			found += f.Cases[i].picked(t, rules)
		}
	}
	if found < 20 {
		t.Errorf("in all there are %d alerts", found)
	}
	for where, all := range map[string]bool{`status == 200`: false, `index > 3`: false, `authn == authn`: true, `$env.status == 200`: true} {
		g, err := newEngine([]Rule{{Name: "a", Where: where, Count: 1, Window: time.Minute}})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(g.needs()) == len(record.FramePaths()); got != all {
			t.Errorf("%s needs %q", where, g.needs())
		}
	}
}

// picked runs a case on whole records and on picked ones.
func (c *caseText) picked(t *testing.T, rules []Rule) int {
	t.Helper()
	whole, err := newEngine(rules)
	if err != nil {
		t.Fatal(err)
	}
	part, err := newEngine(rules)
	if err != nil {
		t.Fatal(err)
	}
	p, err := record.NewPicker(part.needs())
	if err != nil {
		t.Fatal(err)
	}
	if c.Start.IsZero() {
		c.Start = time.UnixMicro(begin)
	}
	left := maxCaseRecords
	recs, err := c.make(&left)
	if err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		r, err := p.Pick(record.AppendFrame(nil, &recs[i]))
		if err != nil {
			t.Fatal(err)
		}
		whole.see(uint64(i), &recs[i])
		part.see(uint64(i), r)
	}
	show := func(g *engine) (out []string) {
		for _, f := range g.findings {
			out = append(out, fmt.Sprint(f.rule.Name, f.key, f.values, f.count, f.exact, f.first, f.last, f.links))
		}
		return out
	}
	if a, b := show(whole), show(part); !slices.Equal(a, b) {
		t.Errorf("%s: of whole records %q, of picked ones %q", c.Name, a, b)
	}
	return len(whole.findings)
}

// TestCasesFail: a case that does not go as it says is told.
func TestCasesFail(t *testing.T) {
	file := `{"rules": [{"name": "any", "where": "true", "count": 2, "window": "1m"}], "cases": [
		{"name": "none", "records": [{"repeat": 2}]},
		{"name": "other", "records": [{"repeat": 2}], "alerts": [{"rule": "any", "target": "x"}]},
		{"name": "twice", "records": [{"repeat": 2}], "alerts": [{"rule": "any", "target": "*"}, {"rule": "any", "target": "*"}]},
		{"name": "late", "records": [{"repeat": 2, "every": "10s"}], "alerts": [{"rule": "any", "target": "*", "within": "9s"}]},
		{"name": "number", "records": [{"repeat": 2}], "alerts": [{"rule": "any", "target": "*", "count": 3}]}]}`
	results, err := Test([]byte(file), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.OK() {
			t.Errorf("the case %q goes as it says: %q", r.Name, r.Got)
		}
	}
}

func TestCaseErrors(t *testing.T) {
	rule := func(s string) string { return `{"rules": [` + s + `], "cases": [{"name": "x"}]}` }
	rec := func(s string) string { return `{"cases": [{"name": "x", "records": [` + s + `]}]}` }
	for _, c := range []struct{ file, want string }{
		{``, "not a file of cases"},
		{`{"cases": []}`, "1 to 1000 cases"},
		{`{"cases": [{"name": "x"}]} {}`, "follows its end"},
		{`{"cases": [{"nome": "x"}]}`, "nome"},
		{`{"off": ["nobody"], "cases": [{"name": "x"}]}`, "no rule of this name"},
		{rule(`{"name": "Big", "where": "true", "count": 1, "window": "1m"}`), "lower-case"},
		{rule(`{"name": "a", "where": "", "count": 1, "window": "1m"}`), "where: expression"},
		{rule(`{"name": "a", "where": "status", "count": 1, "window": "1m"}`), "where: expression"},
		{rule(`{"name": "a", "where": "personal.sub == \"x\"", "count": 1, "window": "1m"}`), "personal"},
		{rule(`{"name": "a", "where": "true", "count": 0, "window": "1m"}`), "count: 0"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "500ms"}`), "window"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "2d"}`), "window"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "soon"}`), "soon"},
		{rule(`{"name": "a", "where": "true", "count": 2000, "window": "1m", "distinct": "op"}`), "told apart"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "distinct": "status"}`), "distinct"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "by": ["personal.sub"]}`), "by:"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "by": ["op", "op"]}`), "twice"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "by": ["op", "host", "route", "method"]}`), "at most 3"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "times": 1}`), "times"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "learn": "1h"}`), "learn"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "after": "nope"}`), "after"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "after": "true", "times": 2}`), "after"},
		{rule(`{"name": "a", "where": "true", "count": 3, "window": "1m", "new": "op"}`), "new"},
		{rule(`{"name": "a", "where": "true", "count": 3, "window": "1m", "new": "op", "after": "true", "learn": "1h"}`), "learn"},
		{rule(`{"name": "a", "where": "true", "window": "1m", "new": "nope"}`), "new"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "severity": "huge"}`), "huge"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "alert": "A B"}`), "alert"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "hours": {"zone": "Mars/Olympus", "days": ["mon"], "from": "07:00", "to": "08:00"}}`), "Mars/Olympus"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "hours": {"days": ["moon"], "from": "07:00", "to": "08:00"}}`), "moon"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "hours": {"days": ["mon"], "from": "7:00", "to": "08:00"}}`), "time of day"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "hours": {"days": ["mon"], "from": "08:00", "to": "08:00"}}`), "before it ends"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "hours": {"from": "08:00", "to": "24:01"}}`), "time of day"},
		{rule(`{"name": "a", "where": "true", "count": 1, "window": "1m", "hours": {"from": "08:00", "to": "24:00"}}`), "no days"},
		{rec(`{"set": {"nope": 1}}`), "no such field"},
		{rec(`{"set": {"route": 1}}`), "it is text"},
		{rec(`{"set": {"status": "x"}}`), "no number"},
		{rec(`{"set": {"route": "{n"}}`), "has no }"},
		{rec(`{"set": {"route": "{n%0}"}}`), "{n%7}"},
		{rec(`{"repeat": 2000000}`), "may make"},
		{rec(`{"repeat": 100000, "every": "1d"}`), "a year"},
		{`{"rules": [{"name": "a", "where": "1 / status > 1", "count": 1, "window": "1m"}, {"name": "b", "where": "bytes_in % status == 0", "count": 1, "window": "1m"}], "cases": [{"name": "x", "records": [{"set": {"status": 0}}]}]}`, "no answer"},
	} {
		results, err := Test([]byte(c.file), Builtin())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngives %v, %v; want an error with %q", c.file, results, err, c.want)
		}
	}
}

func TestSelect(t *testing.T) {
	own := Rule{Name: "scraping", Where: "true", Count: 7, Window: minWindow}
	rules, err := Select([]string{"token_replay"}, []Rule{own, {Name: "mine", Where: "true", Count: 1, Window: minWindow}})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range rules {
		names = append(names, r.Name)
		if r.Name == "scraping" && r.Count != 7 {
			t.Error("the built-in rule is still there")
		}
	}
	if got := strings.Join(names, " "); got != "credential_stuffing guessed_credential privilege_probing scraping mine" {
		t.Errorf("the rules are %s", got)
	}
	for _, c := range []struct {
		off  []string
		own  []Rule
		want string
	}{
		{[]string{"nope"}, nil, "no built-in rule"},
		{[]string{"scraping", "scraping"}, nil, "named twice"},
		{[]string{"scraping"}, []Rule{own}, "turned off and declared"},
		{nil, []Rule{own, own}, "two rules"},
		{nil, []Rule{{Name: "x"}}, "window"},
		{nil, make([]Rule, MaxRules), "name"},
	} {
		if _, err := Select(c.off, c.own); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %v: %v, want %q", c.off, c.own, err, c.want)
		}
	}
}

// TestBuiltin: what is on by default is well-formed, and no two are the same.
func TestBuiltin(t *testing.T) {
	rules, err := Select(nil, nil)
	if err != nil || len(rules) != 5 {
		t.Fatalf("%d rules, %v", len(rules), err)
	}
	for _, r := range rules {
		if err := r.Check(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzCases(f *testing.F) {
	for _, seed := range []string{
		`{"rules": [{"name": "a", "where": "status >= 400", "by": ["route", "subject"], "count": 2, "window": "1m", "distinct": "op", "times": 2, "learn": "1d"}], "cases": [{"name": "x", "learned": true, "records": [{"repeat": 4, "set": {"status": 404, "route": "a", "subject": "s", "op": "{n}"}}], "alerts": [{"rule": "a", "target": "a|s", "within": "1s", "count": 2}]}]}`,
		`{"rules": [{"name": "a", "where": "true", "after": "false", "new": "op", "count": 1, "window": "1h", "hours": {"zone": "Asia/Tokyo", "days": ["sun"], "from": "00:00", "to": "24:00"}}], "cases": [{"name": "x", "start": "2026-01-01T00:00:00Z", "records": [{"set": {"op": "{n%3}", "dur_us": 9, "authn.roles": ["r"]}}]}]}`,
		`{"rules": [{"name": "a", "where": "true", "new": "op", "window": "1h", "unless": "b", "severity": "low", "alert": "c"}], "off": ["a"], "cases": [{"name": "x", "records": [{"set": {"kind": "alert", "event.name": "b"}}]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Add([]byte(`{"cases": [{"name": "x", "records": [{"at": "1d", "repeat": 3, "every": "1s", "set": {"route": "{n%2}", "authn.roles": ["a"]}}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCases(b)
		if err != nil {
			return
		}
		rules, err := c.onTop(nil)
		if err != nil {
			return
		}
		left := 1000
		for i := range c.Cases {
			if _, err := c.Cases[i].try(rules, &left); err != nil {
				return
			}
		}
	})
}
