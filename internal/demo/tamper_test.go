package demo

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestChanged(t *testing.T) {
	for _, c := range []struct {
		before, after string
		want          span
	}{
		{"", "", span{0, -1}},
		{"abc", "abc", span{3, 2}},
		{"abc\x00\x00", "abc", span{5, 4}},
		{"abc\x00\x00\x00", "abcde\x00", span{3, 4}},
		{"abc\x00", "abcdefg\x00\x00\x00", span{3, 6}},
		{"abcdefg\x00\x00\x00", "abc\x00", span{3, 6}},
		{"abc\x00\x00\x00", "abc\x00de", span{4, 5}}, // what was added begins with a zero
		{"abc", "xbc", span{0, 0}},
	} {
		if got := changed([]byte(c.before), []byte(c.after)); got.first > got.last && c.want.first > c.want.last {
			continue // empty either way
		} else if got != c.want {
			t.Errorf("changed(%q, %q) = %v, want %v", c.before, c.after, got, c.want)
		}
	}
}

func FuzzChanged(f *testing.F) {
	f.Add([]byte("abc\x00\x00"), []byte("abcde\x00\x00\x00"))
	f.Add([]byte{}, []byte{0})
	f.Fuzz(func(t *testing.T, before, after []byte) {
		n := max(len(before), len(after))
		a, b := append(bytes.Clone(before), make([]byte, n-len(before))...), append(bytes.Clone(after), make([]byte, n-len(after))...)
		s := changed(before, after)
		if s.first > s.last {
			if !bytes.Equal(a, b) {
				t.Fatalf("no change between %q and %q", before, after)
			}
			return
		}
		if !bytes.Equal(a[:s.first], b[:s.first]) || !bytes.Equal(a[s.last+1:], b[s.last+1:]) || a[s.first] == b[s.first] || a[s.last] == b[s.last] {
			t.Fatalf("changed(%q, %q) = %v", before, after, s)
		}
	})
}

func TestGrown(t *testing.T) {
	before := wal{"wal/1": []byte("ab\x00\x00"), "wal/2": []byte("\x00\x00")}
	after := wal{"wal/1": []byte("abc\x00\x00\x00"), "wal/2": []byte("head\x00\x00"), "wal/3": []byte("x")}
	if got, err := grown(before, after); err != nil || got != (place{"wal/1", span{2, 2}}) {
		t.Errorf("grown: %v, %v", got, err)
	}
	if got, err := grown(before, before); err == nil {
		t.Errorf("nothing grew, and it was at %v", got)
	}
}

func TestFlip(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte{1, 2, 3}, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := flip(name, 1); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, []byte{1, 0xfd, 3}) {
		t.Errorf("%v, %v", b, err)
	}
	if err := flip(name, 3); err == nil {
		t.Error("a byte behind the end was flipped")
	}
}

func TestCopyData(t *testing.T) {
	dir := folder(t.TempDir())
	if err := os.MkdirAll(dir.path("data/wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir.path("data/wal/1"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", dir.path("data/admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := dir.copyData("copy"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dir.path("copy/wal/1")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := os.Lstat(dir.path("copy/admin.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket: %v", err)
	}
	if err := dir.copyData("copy"); err == nil {
		t.Error("an existing copy was written over")
	}
}

// A shell takes quoted words for what they were.
func TestQuote(t *testing.T) {
	words := []string{"", "plain", "a b", "it's", `"$(reboot)"`, "`x`", `status >= 400 && op == "GET /"`, "a\nb", "ü", "*", "~", "'", `\`}
	for _, w := range words {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(w)).Output()
		if err != nil || string(out) != w {
			t.Errorf("quote(%q) = %s, which is %q to a shell: %v", w, quote(w), out, err)
		}
	}
	if got, want := quoteAll([]string{"/bin/gatebook", "show", "a b"}), "/bin/gatebook show 'a b'"; got != want {
		t.Errorf("quoteAll: %s", got)
	}
}

func TestPrinter(t *testing.T) {
	for _, colour := range []bool{false, true} {
		var out bytes.Buffer
		p := &printer{w: &out, colour: colour}
		p.heading("Name", "one\ntwo")
		p.command("gatebook verify")
		p.output("x\ny\n")
		want := "\nName\n  one\n  two\n  $ gatebook verify\n  x\n  y\n"
		if colour {
			want = "\n\x1b[1mName\x1b[0m\n  one\n  two\n  \x1b[2m$ gatebook verify\x1b[0m\n  x\n  y\n"
		}
		if out.String() != want || p.err != nil {
			t.Errorf("%q, %v", out.String(), p.err)
		}
	}
	if got := cut("0123456789\n", 10); got != "0123456789\n" {
		t.Errorf("cut: %q", got)
	}
	if got := cut("0123456789a\n", 10); got != "0123456...\n" {
		t.Errorf("cut: %q", got)
	}
	if got := lastLines("a\nb\nc\n", 2); got != "b\nc" {
		t.Errorf("lastLines: %q", got)
	}
}
