package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// hostile are texts that a terminal or a reader of lines would obey, in the
// forms that reach a field whole: bytes that HTTP lets through, and all of them
// where they can be encoded.
var hostile = []string{
	"\x1b[2J\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u009b31m", "\x9b31m", "a\rb", "a\nFAKE 2026-11-23 request 200", "a\r\n\r\nb", "a\tb", "\x00\x08", "\x7f",
	"\u202egpj.exe", "\u2066x\u2069", "\u061c", "\u200e", "\u2028x\u2029", "\ufeff", "\u200b\u200d", "\U000e0041", "\xff\xfe", "\u0085", "\u00a0",
}

// readable reports what of an output must not reach a terminal.
func unreadable(out []byte) (what string, at int) {
	if !utf8.Valid(out) {
		return "bytes that are no UTF-8", 0
	}
	at = bytes.IndexFunc(out, func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) })
	if at < 0 {
		return "", 0
	}
	c, _ := utf8.DecodeRune(out[at:])
	return fmt.Sprintf("%U", c), at
}

// TestHostileText: whatever is in the traffic, what commands print and what the
// process logs are lines of printable characters, and JSON still says what was
// there.
func TestHostileText(t *testing.T) {
	s := newCanarySite(t, newCanaryUpstream(t))
	s.launch()
	h := &shooter{s: s}
	defer h.hangUp()
	want := 0
	fire := func(raw string) {
		h.fire(t, raw, planting{})
		h.hangUp()
		want++
	}
	for _, text := range hostile {
		inPath := strings.ReplaceAll(url.PathEscape(text), "%2F", "")
		fire("GET /open/" + inPath + "?note=" + url.QueryEscape(text) + " HTTP/1.1\r\n" + canaryHead + "\r\n")
		fire("GET /nowhere/" + inPath + " HTTP/1.1\r\n" + canaryHead + "\r\n")
		fire("GET /open/x?note=" + url.QueryEscape(text) + "&page=" + url.QueryEscape(text) + " HTTP/1.1\r\n" + canaryHead + "\r\n")
		if !strings.ContainsAny(text, "\x00\r\n") { // those end a field
			fire("GET /open/x HTTP/1.1\r\n" + canaryHead + "User-Agent: ua " + text + "\r\nReferer: https://a.example/" + text + "\r\nX-Order: " + text + "\r\nX-Request-Id: " + text + "\r\n\r\n")
			fire("GET /open/x HTTP/1.1\r\nHost: " + text + "\r\n%F\r\n\r\n")
			fire("BREW" + text + " /open/x HTTP/1.1\r\n" + canaryHead + "\r\n")
			fire("GET /open/x" + text + " HTTP/1.1\r\n" + canaryHead + "\r\n")
		}
		claim, err := json.Marshal("sub " + text + " end")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"sub", "name", "email", "department", "roles", "client_id"} {
			old := token(s.env, "ann", "r", func(o jwtattack.Object) jwtattack.Object {
				return o.Set(name, string(claim)).Set("exp", fmt.Sprint(time.Now().Unix()-600)).Set("iat", fmt.Sprint(time.Now().Unix()-900))
			})
			now := token(s.env, "ann", "r", func(o jwtattack.Object) jwtattack.Object { return o.Set(name, string(claim)) })
			for _, tok := range []string{old, now} {
				fire("GET /guarded/x HTTP/1.1\r\n" + canaryHead + "Authorization: Bearer " + tok + "\r\n\r\n")
			}
		}
	}
	check := func(out []byte, args ...string) {
		t.Helper()
		if what, at := unreadable(out); what != "" {
			t.Errorf("gatebook %s prints %s: %q", strings.Join(args, " "), what, out[max(0, at-60):min(len(out), at+60)])
		}
	}
	run := func(args ...string) []byte {
		t.Helper()
		out := []byte(s.command(0, args...))
		check(out, args...)
		return out
	}
	for _, where := range []string{"from the server", "offline"} {
		const traffic = `kind in ["request", "malformed"]`
		run("search", "--reveal")
		lines := bytes.Count(run("search", "--reveal", traffic), []byte("\n"))
		records := parseOpened(t, string(run("search", "--reveal", "--json", traffic)))
		if lines != len(records) || lines < want/2 {
			t.Errorf("%s: %d lines for %d records of %d requests", where, lines, len(records), want)
		}
		told := map[string]bool{}
		for _, o := range records {
			b, err := json.Marshal(o.Personal)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range hostile {
				quoted, _ := json.Marshal(text)
				told[text] = told[text] || bytes.Contains(b, bytes.Trim(quoted, `"`))
			}
		}
		for _, text := range []string{"\u202egpj.exe", "a\tb", "\u009b31m", "\U000e0041"} {
			if !told[text] {
				t.Errorf("%s: %q is in no personal part, so nothing was proved", where, text)
			}
		}
		for _, by := range []string{"personal.ua", "personal.path", "personal.query", "personal.claimed", "personal.sub", "personal.name", "personal.email", "template", "op", "host", "[personal.ua, personal.path]"} {
			lines := run("count", "--reveal", "--by", by)
			var counts []struct{ Value string }
			if err := json.Unmarshal(run("count", "--reveal", "--by", by, "--json"), &counts); err != nil || len(counts) != bytes.Count(lines, []byte("\n")) {
				t.Errorf("%s: by %s: %d counts, %v, and %d lines", where, by, len(counts), err, bytes.Count(lines, []byte("\n")))
			}
		}
		shown := 0
		for _, o := range records {
			var f struct{ ID, Kind string }
			if err := json.Unmarshal(o.Frame, &f); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprint(o.Personal)
			if what, _ := unreadable([]byte(text)); what == "" || f.Kind != "request" || shown == 5 {
				continue
			}
			shown++
			run("show", f.ID, "--reveal")
			run("show", f.ID, "--reveal", "--json")
			proof := filepath.Join(t.TempDir(), "x.tlog-proof")
			run("prove", f.ID, "--reveal", "-o", proof)
			check([]byte(s.run(0, "verify", proof, "--key-file", filepath.Join(s.dir, "log.vkey"))), "verify PROOF")
			check([]byte(s.run(0, "verify", proof, "--json", "--key-file", filepath.Join(s.dir, "log.vkey"))), "verify PROOF --json")
		}
		if shown == 0 {
			t.Errorf("%s: no record holds anything hostile", where)
		}
		if where == "from the server" {
			s.stop()
		}
	}
	check([]byte(s.stderr.String()), "serve")
	s.mistakes(t, check)
}

// mistakes puts hostile text into command lines and files.
func (s *canarySite) mistakes(t *testing.T, check func(out []byte, args ...string)) {
	odd := filepath.Join(t.TempDir(), "odd\x1b[31m.tlog-proof")
	if err := os.WriteFile(odd, []byte("c2sp.org/tlog-proof@v1\nextra \x1b[2J\u202e\nindex 1\u009b\n\n\x1b"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(s.dir, "gatebook.yaml")
	for _, args := range [][]string{
		{"search", "status == \"\x1b[31m\u202e\" &&", "-c", config},
		{"show", "\x1b[2J", "-c", config},
		{"count", "--by", "\u202ex", "-c", config},
		{"verify", odd, "--key-file", filepath.Join(s.dir, "log.vkey")},
		{"verify", "/nowhere/\x1b[2J"},
		{"check", odd},
		{"\x1b[2J"},
		{"--\x1b[2J"},
	} {
		var out bytes.Buffer
		cmd := exec.Command("gatebook", args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err == nil {
			t.Errorf("%q: no error", args)
		}
		check(bytes.ReplaceAll(out.Bytes(), []byte("\t"), nil), args...)
	}
}

// TestLoudLibraries: the HTTP library cannot be made to print what it reads.
func TestLoudLibraries(t *testing.T) {
	s := newSite(t, "http://127.0.0.1:1")
	for _, setting := range []string{"http2debug=1", "http2debug=2", "http2server=1,http2debug=2"} {
		t.Setenv("GODEBUG", setting)
		s.command(2, "serve")
	}
}
