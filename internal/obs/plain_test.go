package obs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// hostile are texts that speak to a terminal, to a log reader or to the eye.
var hostile = []string{
	"\x1b[2J\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "\u009b31m", "a\rb", "a\nb", "a\r\nHTTP/1.1 200 OK", "a\tb", "\x00", "\x08\x08", "\x7f",
	"\u202egpj.exe", "\u2066x\u2069", "\u061c", "\u200e\u200f", "a\u2028b\u2029c", "\ufeff", "\u200b\u200d", "\U000e0041\U000e0042", "\xff\xfe", "\xed\xa0\x80", "\ufffd", "\u00a0", "\u0085",
}

func TestPlain(t *testing.T) {
	for _, s := range hostile {
		for _, text := range []string{s, "before " + s + " after", s + s} {
			got := Plain(text)
			if i := strings.IndexFunc(got, func(c rune) bool { return !unicode.IsPrint(c) }); i >= 0 || !utf8.ValidString(got) {
				t.Errorf("%q: %q", text, got)
			}
			if got == text && s != "\ufffd" {
				t.Errorf("%q is unchanged", text)
			}
			if lines := PlainLines(text); strings.Count(lines, "\n") != strings.Count(text, "\n") || Plain(strings.NewReplacer("\n", "", "\t", "").Replace(lines)) != strings.NewReplacer("\n", "", "\t", "").Replace(lines) {
				t.Errorf("%q as lines: %q", text, lines)
			}
		}
	}
	for _, s := range []string{"", "plain", "café €", "日本語", "😀", `a\b "c"`} {
		if Plain(s) != s || PlainLines(s) != s {
			t.Errorf("%q is changed", s)
		}
	}
	if got := Plain("a\x1b\u202e\U000e0041\xff"); got != `a\u001b\u202e\udb40\udc41\ufffd` {
		t.Errorf("got %s", got)
	}
}

// FuzzPlain: JSON stays the same JSON.
func FuzzPlain(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		var was, is map[string]string
		if err := errors.Join(json.Unmarshal(b, &was), json.Unmarshal([]byte(Plain(string(b))), &is)); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(was) != fmt.Sprint(is) {
			t.Errorf("%q becomes %q", was, is)
		}
		if p := Plain(s); Plain(p) != p {
			t.Errorf("%q: not stable", s)
		}
	})
}

// TestLoggerIsPlain: whatever an attribute holds, each entry is one line of
// printable characters.
func TestLoggerIsPlain(t *testing.T) {
	var out bytes.Buffer
	for name, log := range map[string]*slog.Logger{
		"json": NewLogger(&out),
		"text": slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: plainAttr})),
	} {
		for _, s := range hostile {
			out.Reset()
			log.Info("message "+s, "text", s, "err", fmt.Errorf("failed: %w", errors.New(s)), "list", []string{s}, slog.Group("g", "text", s))
			line, ok := strings.CutSuffix(out.String(), "\n")
			if i := strings.IndexFunc(line, func(c rune) bool { return !unicode.IsPrint(c) }); i >= 0 || !ok || !utf8.ValidString(line) {
				t.Errorf("%s: %q is logged as %q", name, s, out.String())
			}
		}
	}
}

func TestPlainWriter(t *testing.T) {
	var out bytes.Buffer
	n, err := fmt.Fprintf(PlainWriter(&out), "one %s\ntwo\t%s\n", "\x1b[1m", "fine")
	if err != nil || n != len("one \x1b[1m\ntwo\tfine\n") || out.String() != "one \\u001b[1m\ntwo\tfine\n" {
		t.Errorf("%d %v %q", n, err, out.String())
	}
	if _, err := PlainWriter(brokenWriter{}).Write([]byte("\x1b")); err == nil {
		t.Error("the error is lost")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken") }
