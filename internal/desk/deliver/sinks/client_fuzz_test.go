package sinks

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"", "7", "99999999999999999999", "-1", "Sun, 01 Mar 2026 12:00:30 GMT", "Sun Mar  1 12:00:30 2026"} {
		f.Add(s)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		if d := retryAfter(http.Header{"Retry-After": {s}}, now); d < 0 || d > maxAfter {
			t.Errorf("%q: %s", s, d)
		}
	})
}

func FuzzDatadogPage(f *testing.F) {
	f.Add([]byte(`{"data":[{"attributes":{"attributes":{"event_id":"a-1"}}}],"meta":{"status":"done","page":{"after":"x"}}}`))
	f.Add([]byte(`{"data":null,"meta":{"warnings":[{}]}}`))
	f.Add([]byte("\x1b[31m"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readPage(&Answer{Status: 200, Body: b})
		if err == nil && (len(p.Meta.Warnings) > 0 || p.Meta.Status != "" && p.Meta.Status != "done") {
			t.Errorf("incomplete, and taken: %q", b)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x00\n\x1b") {
			t.Errorf("%q", err)
		}
	})
}

// Whatever a file has: either it is left alone, or no whole line of it is lost and
// the batch is behind it.
func FuzzFileEnd(f *testing.F) {
	for _, s := range []string{"", "{", "{}\n", "{}\n{\"a\"", "{}\n\x00\x00\n\x00", "\x00\x00", "\n\n", "text\n"} {
		f.Add([]byte(s))
	}
	items := testItems(0, 2, time.Unix(1_770_000_000, 0))
	f.Fuzz(func(t *testing.T, before []byte) {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := NewFile(FileConfig{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		r := s.Send(t.Context(), &deliver.Batch{Items: items})
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if r.Class != deliver.Done {
			if !bytes.Equal(before, after) {
				t.Errorf("refused (%+v) and changed: %q became %q", r, before, after)
			}
			return
		}
		for line := range bytes.Lines(before) {
			if bytes.HasSuffix(line, []byte("\n")) && bytes.IndexByte(line, 0) < 0 && !bytes.Contains(after, line) {
				t.Errorf("%q is lost: %q became %q", line, before, after)
			}
		}
		for _, it := range items {
			if n := bytes.Count(after, append(bytes.Clone(it.Body), '\n')); n != 1 {
				t.Errorf("%s is there %d times", it.ID, n)
			}
		}
	})
}
