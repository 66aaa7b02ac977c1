package sinks

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"":                               0,
		"0":                              0,
		"7":                              7 * time.Second,
		" 7 ":                            7 * time.Second,
		"3600":                           time.Hour,
		"3601":                           time.Hour,
		"99999999999999999999":           time.Hour,
		"-1":                             0,
		"1.5":                            0,
		"soon":                           0,
		"Sun, 01 Mar 2026 12:00:30 GMT":  30 * time.Second,
		"Sunday, 01-Mar-26 12:00:30 GMT": 30 * time.Second,
		"Sun Mar  1 12:00:30 2026":       30 * time.Second,
		"Sun, 01 Mar 2026 11:00:30 GMT":  0,
		"Mon, 01 Mar 2027 12:00:30 GMT":  time.Hour,
	} {
		if got := retryAfter(http.Header{"Retry-After": {v}}, now); got != want {
			t.Errorf("%q: %s, want %s", v, got, want)
		}
	}
}

func TestExcerpt(t *testing.T) {
	for _, c := range []struct {
		in      string
		secrets []string
		want    string
	}{
		{"", nil, ""},
		{"  plain\r\n\ttext\x00 ", nil, "plain text"},
		{"a\x1b[31mred\u202ebidi\u2028line\u200bzero", nil, "a [31mred bidi line zero"},
		{"\xff\xfe", nil, "??"},
		{"key s3cr3t/+ is bad", []string{"s3cr3t/+"}, "key *** is bad"},
		{"key s3cr3t%2F%2B is bad", []string{"s3cr3t/+"}, "key *** is bad"},
		{"Basic czNjcjN0Lys= is bad", []string{"s3cr3t/+", ""}, "Basic *** is bad"},
		{strings.Repeat("é", 300), nil, strings.Repeat("é", 256)},
		{strings.Repeat("x", 510) + "secret", []string{"secret"}, strings.Repeat("x", 510) + "**"},
	} {
		if got := excerpt([]byte(c.in), c.secrets...); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func FuzzExcerpt(f *testing.F) {
	f.Add([]byte("x\x00y"), "sec")
	f.Add([]byte(strings.Repeat("ab", 600)), "aba")
	f.Fuzz(func(t *testing.T, b []byte, secret string) {
		got := excerpt(b, secret)
		if len(got) > maxExcerpt || !utf8.ValidString(got) {
			t.Errorf("%q", got)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Errorf("%q has %U", got, r)
			}
		}
	})
}

func TestClassOf(t *testing.T) {
	for status, want := range map[int]deliver.Class{
		301: deliver.Pause, 307: deliver.Pause, 400: deliver.Poison, 401: deliver.Pause, 403: deliver.Pause, 404: deliver.Pause,
		408: deliver.Retry, 410: deliver.Pause, 413: deliver.Split, 415: deliver.Pause, 422: deliver.Poison, 425: deliver.Retry,
		429: deliver.Retry, 500: deliver.Retry, 502: deliver.Retry, 503: deliver.Retry, 504: deliver.Retry, 599: deliver.Retry, 999: deliver.Retry,
		204: deliver.Pause,
	} {
		if got := classOf(status); got != want {
			t.Errorf("%d: %d, want %d", status, got, want)
		}
	}
}

func TestCredential(t *testing.T) {
	name := filepath.Join(t.TempDir(), "token")
	write := func(s string) {
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := NewCredential(FromFile(name)); err == nil {
		t.Error("a file that is not there gave a credential")
	}
	write("first\n")
	c, err := NewCredential(FromFile(name))
	if err != nil || c.Get() != "first" {
		t.Fatal(c.Get(), err)
	}
	if changed, err := c.Renew(); changed || err != nil {
		t.Errorf("unchanged: %v, %v", changed, err)
	}
	write("second\r\n")
	if changed, err := c.Renew(); !changed || err != nil || c.Get() != "second" {
		t.Errorf("changed: %v, %v, %q", changed, err, c.Get())
	}
	for _, bad := range []string{"", "\n", "two\nlines", "with space", "é", strings.Repeat("x", maxSecret+1)} {
		write(bad)
		if changed, err := c.Renew(); changed || err == nil || c.Get() != "second" || strings.Contains(err.Error(), "lines") {
			t.Errorf("%.10q: %v, %v, %q", bad, changed, err, c.Get())
		}
	}
	t.Setenv("GATEBOOK_TEST_TOKEN", "fromenv")
	if c, err := NewCredential(FromEnv("GATEBOOK_TEST_TOKEN")); err != nil || c.Get() != "fromenv" {
		t.Error(err)
	}
	if _, err := NewCredential(FromEnv("GATEBOOK_TEST_UNSET")); err == nil {
		t.Error("an unset variable gave a credential")
	}
}
