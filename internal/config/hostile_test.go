package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHostile feeds what exhausts careless YAML readers. Each must be refused,
// soon, and with a short answer.
func TestHostile(t *testing.T) {
	laughs := "a0: &a0 [lol, lol]\n"
	for i := 1; i < 30; i++ {
		p, n := string(rune('a'+i%26))+"x", string(rune('a'+(i-1)%26))+"x"
		laughs += p + ": &" + p + " [*" + n + ", *" + n + "]\n"
	}
	var flat strings.Builder
	for i := range 60_000 {
		flat.WriteString(strings.Repeat("k", 1+i%7) + "x" + string(rune('a'+i%26)) + ": 1\n")
	}
	for name, c := range map[string]struct{ text, want string }{
		"10 MB":            {"a: " + strings.Repeat("x", 10<<20), "bytes, more than"},
		"1 MB scalar":      {"a: " + strings.Repeat("x", 1<<20-10), "a line of"},
		"brackets":         {"a: " + strings.Repeat("[", 8000) + strings.Repeat("]", 8000), "nested more than"},
		"open brackets":    {"a: " + strings.Repeat("[", 8000), "nested more than"},
		"braces":           {strings.Repeat("{a: ", 3000) + strings.Repeat("}", 3000), "nested more than"},
		"dashes":           {strings.Repeat("- ", 4000) + "a", "nested more than"},
		"question marks":   {strings.Repeat("? ", 4000) + "a", "complex key"},
		"indentation":      {staircase(200), "nested more than"},
		"tags":             {"a: " + strings.Repeat("!x ", 4000), "a tag"},
		"anchors":          {"a: " + strings.Repeat("&x ", 4000), "an anchor"},
		"billion laughs":   {laughs, "an anchor"},
		"many keys":        {flat.String(), "more than"},
		"many tokens":      {strings.Repeat("a: [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]\n", 20_000), "YAML tokens"},
		"many documents":   {strings.Repeat("---\na: 1\n", 20_000), "a second document"},
		"unknown keys":     {unknownKeys(4000), "unknown key"},
		"empty elements":   {"routes: [" + strings.Repeat("~, ", 5000) + "]", "an empty element"},
		"one name":         {"listen: [" + strings.Repeat("{name: a},", 1600) + "]", "the key address is missing"},
		"unknown names":    {unknownNames(800), "unknown upstream"},
		"not UTF-8":        {strings.Repeat("\xff", 1000), "a character that text may not hold"},
		"zero bytes":       {strings.Repeat("\x00", 1000), "a character that text may not hold"},
		"bidi in excerpt":  {"nоde: \"\u202e\u2066abc\"\n", "unknown key"},
		"escape in string": {"node: \"\\e[2J\\x00\"\n", "not a node name"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			f, problems := Parse("x.yaml", []byte(c.text))
			took := time.Since(start)
			if f != nil || problems.Len() == 0 {
				t.Fatal("accepted")
			}
			text := problems.Error()
			if !strings.Contains(text, c.want) {
				t.Errorf("want %q in:\n%.2000s", c.want, text)
			}
			if len(text) > 100_000 || len(problems.All()) > maxProblems {
				t.Errorf("an answer of %d bytes, %d problems", len(text), len(problems.All()))
			}
			if strings.ContainsAny(text, "\x1b\x00\u202e") {
				t.Error("the answer steers terminals")
			}
			// Generous, for slow machines under the race detector; quadratic
			// time on these inputs is minutes.
			if took > time.Minute {
				t.Errorf("took %v", took)
			}
		})
	}
}

func staircase(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// unknownNames has thousands of upstreams and as many routes to others.
func unknownNames(n int) string {
	var b strings.Builder
	b.WriteString("node: a\norigin: b\nlisten: [{name: a, address: \":80\", plaintext: behind_proxy, trusted: [10.0.0.0/8]}]\nupstreams:\n")
	for i := range n {
		fmt.Fprintf(&b, "  a%dabcdefghijklmnopqrstuvwxyz: {targets: [\"http://10.0.0.1\"]}\n", i)
	}
	b.WriteString("routes:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {name: a%d, path: /%d, public: true, upstream: abcdefghijklmnopqrstuvwxyza%d}\n", i, i, i)
	}
	return b.String()
}

func unknownKeys(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("unknown" + strings.Repeat("z", i%50) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + ": 1\n")
	}
	return b.String()
}

func TestLoadIsBounded(t *testing.T) {
	name := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(name, []byte("#"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 1<<32); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a file of 4 GiB: %.200v", err)
	}
}

// TestManyProblems: beyond the listing they are counted.
func TestManyProblems(t *testing.T) {
	_, problems := Parse("x.yaml", []byte(unknownKeys(3000)))
	if len(problems.All()) != maxProblems || problems.Len() <= maxCollected {
		t.Errorf("%d listed, %d counted", len(problems.All()), problems.Len())
	}
	if !strings.Contains(problems.Error(), "more") {
		t.Error("the listing hides that there are more")
	}
	if !slices.IsSortedFunc(problems.All(), func(a, b Problem) int { return a.Line - b.Line }) {
		t.Error("not sorted")
	}
}

// TestExcerpt checks the caret where columns and bytes differ.
func TestExcerpt(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"üü: x", "    3 | üü: x\n      |     ^"},
		{"\tüx x", "    3 |  üx x\n      |     ^"},
		{"ab\u202e: x", "    3 | ab·: x\n      |     ^"},
	} {
		if got := excerpt(c.line, 3, 5); got != c.want {
			t.Errorf("excerpt(%q) =\n%s\nwant\n%s", c.line, got, c.want)
		}
	}
	long := strings.Repeat("ü", 300) + "X" + strings.Repeat("y", 300)
	got := strings.Split(excerpt(long, 1, 301), "\n")
	if at := len([]rune(got[1])) - 1; []rune(got[0])[at] != 'X' || !strings.HasPrefix(got[1], "      | ") {
		t.Errorf("the caret is not under the X:\n%s\n%s", got[0], got[1])
	}
	var none *Problems
	if none.Error() != "" || none.Len() != 0 || none.All() != nil || none.err() != nil {
		t.Error("nil Problems are not nothing")
	}
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"valid", "problems"} {
		names, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
		if err != nil || len(names) == 0 {
			f.Fatal("no seeds")
		}
		for _, n := range names {
			data, err := os.ReadFile(n)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	for _, s := range []string{"a: |\n", "? a\n: b\n", "[", "{", "- - -", "\"", "a: !!binary x", "%", "--- >", "a: &", "*", "'", "<<:", "a:\t1", "\ufeffa: 1", "a: {b: [c, {d"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, problems := Parse("/x/fuzz.yaml", data)
		if (file == nil) == (problems.Len() == 0) {
			t.Fatalf("file %v and %d problems", file != nil, problems.Len())
		}
		if file != nil {
			again, problems := Parse("/x/fuzz.yaml", data)
			if problems != nil || again.Digest() != file.Digest() {
				t.Fatal("not deterministic")
			}
			return
		}
		lines := strings.Count(string(data), "\n") + 1
		for _, p := range problems.All() {
			if p.Line < 0 || p.Line > lines+1 || p.Column < 0 || p.What == "" || len(p.String()) > 4096 {
				t.Fatalf("bad problem: %+v", p)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	data, err := os.ReadFile("testdata/valid/full.yaml")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, problems := Parse("full.yaml", data); problems != nil {
			b.Fatal(problems)
		}
	}
}
