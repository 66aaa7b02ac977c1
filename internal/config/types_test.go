package config

import (
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		out  string // "" if the same as in
		err  string
	}{
		{in: "15ms", want: 15 * time.Millisecond},
		{in: "1h30m", want: 90 * time.Minute},
		{in: "90m", want: 90 * time.Minute, out: "1h30m"},
		{in: "365d", want: 365 * 24 * time.Hour},
		{in: "1d2h3m4s5ms6us", want: 26*time.Hour + 3*time.Minute + 4*time.Second + 5*time.Millisecond + 6*time.Microsecond},
		{in: "0s"},
		{in: "0d0us", out: "0s"},
		{in: "", err: "no duration"},
		{in: "5", err: "without a unit"},
		{in: "1h30", err: "without a unit"},
		{in: "-5s", err: "not a duration"},
		{in: "+5s", err: "not a duration"},
		{in: " 5s", err: "not a duration"},
		{in: "s", err: "not a duration"},
		{in: "1.5h", err: "unknown unit"},
		{in: "5 s", err: "unknown unit"},
		{in: "5w", err: "unknown unit"},
		{in: "5S", err: "unknown unit"},
		{in: "5ns", err: "unknown unit"},
		{in: "30m1h", err: "out of order"},
		{in: "1s1s", err: "out of order"},
		{in: "106751d", want: 106751 * 24 * time.Hour},
		{in: "106752d", err: "too long"},
		{in: "106751d24h", err: "too long"},
		{in: "99999999999999999999s", err: "too long"},
		{in: "٣s", err: "not a duration"},
	} {
		d, err := ParseDuration(c.in)
		check(t, "ParseDuration", c.in, d.Std() == c.want, d, err, c.err)
		if out := or(c.out, c.in); err == nil && d.String() != out {
			t.Errorf("ParseDuration(%q).String() = %q, want %q", c.in, d, out)
		}
	}
	for _, d := range []Duration{-1, 0, 999} {
		if d.String() != "0s" {
			t.Errorf("Duration(%d) is written %q", int64(d), d)
		}
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func check(t *testing.T, what, in string, ok bool, got any, err error, want string) {
	t.Helper()
	switch {
	case want == "" && (err != nil || !ok):
		t.Errorf("%s(%q) = %v, %v", what, in, got, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s(%q) = %v, %v; want error with %q", what, in, got, err, want)
	}
}

func TestParseSize(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Size
		out  string
		err  string
	}{
		{in: "0B"},
		{in: "512B", want: 512},
		{in: "1024B", want: 1024, out: "1KiB"},
		{in: "1025B", want: 1025},
		{in: "10MiB", want: 10 << 20},
		{in: "8589934591GiB", want: 8589934591 << 30},
		{in: "8589934592GiB", err: "too large"},
		{in: "99999999999999999999B", err: "too large"},
		{in: "", err: "not a size"},
		{in: "10", err: "without a unit"},
		{in: "10MB", err: "unknown unit"},
		{in: "10 MiB", err: "unknown unit"},
		{in: "1MiB2B", err: "not a size"},
		{in: "-1B", err: "not a size"},
		{in: "1.5MiB", err: "not a size"},
	} {
		s, err := ParseSize(c.in)
		check(t, "ParseSize", c.in, s == c.want, s, err, c.err)
		if out := or(c.out, c.in); err == nil && s.String() != out {
			t.Errorf("ParseSize(%q).String() = %q, want %q", c.in, s, out)
		}
	}
}

func TestParseRate(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Rate
		err  string
	}{
		{in: "100/s", want: Rate{100, time.Second}},
		{in: "20/m", want: Rate{20, time.Minute}},
		{in: "1000000000/h", want: Rate{1000000000, time.Hour}},
		{in: "1000000001/h", err: "out of range"},
		{in: "0/s", err: "out of range"},
		{in: "-1/s", err: "not a rate"},
		{in: "+1/s", err: "not a rate"},
		{in: "1", err: "not a rate"},
		{in: "/s", err: "not a rate"},
		{in: "1/", err: "unknown unit"},
		{in: "1/d", err: "unknown unit"},
		{in: "1/s/s", err: "unknown unit"},
		{in: "1 / s", err: "unknown unit"},
	} {
		r, err := ParseRate(c.in)
		check(t, "ParseRate", c.in, r == c.want, r, err, c.err)
		if err == nil && r.String() != c.in {
			t.Errorf("ParseRate(%q).String() = %q", c.in, r)
		}
	}
}

func TestParsePrefixes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Prefixes
		out  string
		err  string
	}{
		{in: "/24,/32", want: Prefixes{24, 32}},
		{in: "/24, /48", want: Prefixes{24, 48}, out: "/24,/48"},
		{in: "/32,/128", want: Prefixes{32, 128}},
		{in: "/0,/0", out: "none"},
		{in: "none"},
		{in: "/33,/32", err: "not a pair"},
		{in: "/24,/129", err: "not a pair"},
		{in: "/24", err: "not a pair"},
		{in: "24,32", err: "not a pair"},
		{in: "/24,/32,/1", err: "not a pair"},
		{in: "/-1,/32", err: "not a pair"},
		{in: "", err: "not a pair"},
	} {
		p, err := ParsePrefixes(c.in)
		check(t, "ParsePrefixes", c.in, p == c.want, p, err, c.err)
		if out := or(c.out, c.in); err == nil && p.String() != out {
			t.Errorf("ParsePrefixes(%q).String() = %q, want %q", c.in, p, out)
		}
	}
}

// FuzzScalars: what is read is written in a form that reads the same.
func FuzzScalars(f *testing.F) {
	for _, s := range []string{"1h30m", "10MiB", "100/s", "/24,/32", "none", "9223372036854775807us", "007s", "1d0h0s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseDuration(s); err == nil {
			if again, err := ParseDuration(d.String()); err != nil || again != d || d < 0 {
				t.Errorf("duration %q: %v, then %v, %v", s, d, again, err)
			}
		}
		if z, err := ParseSize(s); err == nil {
			if again, err := ParseSize(z.String()); err != nil || again != z || z < 0 {
				t.Errorf("size %q: %v, then %v, %v", s, z, again, err)
			}
		}
		if r, err := ParseRate(s); err == nil {
			if again, err := ParseRate(r.String()); err != nil || again != r {
				t.Errorf("rate %q: %v, then %v, %v", s, r, again, err)
			}
		}
		if p, err := ParsePrefixes(s); err == nil {
			if again, err := ParsePrefixes(p.String()); err != nil || again != p {
				t.Errorf("prefixes %q: %v, then %v, %v", s, p, again, err)
			}
		}
	})
}

func TestSuggest(t *testing.T) {
	top := []string{"data", "node", "origin", "keys", "book", "listen", "admin", "health", "issuers", "upstreams", "routes", "roles", "policies", "decision_points", "limits", "redact", "reload", "request_id"}
	for _, c := range []struct{ in, want string }{
		{"dta", "data"},
		{"Data", "data"},
		{"date", "data"},
		{"ndoe", "node"},
		{"route", "routes"},
		{"rotues", "routes"},
		{"upstream", "upstreams"},
		{"upsteams", "upstreams"},
		{"listeners", "listen"},
		{"issuer", "issuers"},
		{"policy", "policies"},
		{"request-id", "request_id"},
		{"requestid", "request_id"},
		{"REQUEST_ID", "request_id"},
		{"rolse", "roles"},
		{"kyes", "keys"},
		{"metrics", ""},
		{"x", ""},
		{"", ""},
		{"tls", ""},
		{strings.Repeat("a", 65), ""},
	} {
		if got := suggest(c.in, top); got != c.want {
			t.Errorf("suggest(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1},
		{"abc", "ab", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}, {"node", "ndoe", 1},
	} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := editDistance(c.b, c.a); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.b, c.a, got, c.want)
		}
	}
}
