package canon

import (
	"strings"
	"testing"
)

func TestParseHost(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct{ raw, scheme, host, authority string }{
		{"example.com", "https", "example.com", "example.com"},
		{"EXAMPLE.Com", "https", "example.com", "example.com"},
		{"example.com.", "https", "example.com", "example.com"},
		{"example.com:443", "https", "example.com", "example.com"},
		{"example.com.:443", "https", "example.com", "example.com"},
		{"example.com:80", "http", "example.com", "example.com"},
		{"example.com:80", "https", "example.com", "example.com:80"},
		{"example.com:443", "http", "example.com", "example.com:443"},
		{"example.com:8443", "https", "example.com", "example.com:8443"},
		{"localhost", "http", "localhost", "localhost"},
		{"my_service:9000", "http", "my_service", "my_service:9000"},
		{"xn--bcher-kva.example", "https", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"127.0.0.1", "http", "127.0.0.1", "127.0.0.1"},
		{"127.0.0.1:8080", "http", "127.0.0.1", "127.0.0.1:8080"},
		{"[::1]", "http", "::1", "[::1]"},
		{"[::1]:80", "http", "::1", "[::1]"},
		{"[::1]:8080", "http", "::1", "[::1]:8080"},
		{"[2001:DB8:0:0::1]", "https", "2001:db8::1", "[2001:db8::1]"},
		{"1.example", "https", "1.example", "1.example"},
		{"4chan.org", "https", "4chan.org", "4chan.org"},
		{long + ".example", "https", long + ".example", long + ".example"},

		{"", "https", "", ""},
		{".", "https", "", ""},
		{"..", "https", "", ""},
		{"a..b", "https", "", ""},
		{".a", "https", "", ""},
		{"a..", "https", "", ""},
		{":443", "https", "", ""},
		{"a:", "https", "", ""},
		{"a:0", "https", "", ""},
		{"a:00443", "https", "", ""},
		{"a:0443", "https", "", ""},
		{"a:+443", "https", "", ""},
		{"a:-1", "https", "", ""},
		{"a:65536", "https", "", ""},
		{"a:4 43", "https", "", ""},
		{"a:80:90", "https", "", ""},
		{"a:http", "https", "", ""},
		{"user@a", "https", "", ""},
		{"a@b:80:90", "https", "", ""},
		{"user:pass@a", "https", "", ""},
		{"a b", "https", "", ""},
		{" a", "https", "", ""},
		{"a\x00", "https", "", ""},
		{"a\tb", "https", "", ""},
		{"a/b", "https", "", ""},
		{"a\\b", "https", "", ""},
		{"a?b", "https", "", ""},
		{"a#b", "https", "", ""},
		{"a%2eb", "https", "", ""},
		{"a,b", "https", "", ""},
		{"a;b", "https", "", ""},
		{"*.example.com", "https", "", ""},
		{"b\xc3\xbccher.example", "https", "", ""},
		{"a\xff", "https", "", ""},
		{"\xef\xbd\x81.example", "https", "", ""},
		{"-a.example", "https", "", ""},
		{"a-.example", "https", "", ""},
		{"ab--cd.example", "https", "", ""},
		{"xn--.example", "https", "", ""},
		{long + "a.example", "https", "", ""},
		{strings.Repeat("a.", 127) + "a", "https", "", ""},
		{"1", "http", "", ""},
		{"127.1", "http", "", ""},
		{"2130706433", "http", "", ""},
		{"0x7f.1", "http", "", ""},
		{"0x7f000001", "http", "", ""},
		{"0x", "http", "", ""},
		{"127.0.0.01", "http", "", ""},
		{"256.0.0.1", "http", "", ""},
		{"1.2.3.4.5", "http", "", ""},
		{"a.1", "http", "", ""},
		{"::1", "http", "", ""},
		{"[::1", "http", "", ""},
		{"::1]", "http", "", ""},
		{"[::1]x", "http", "", ""},
		{"[::1].example", "http", "", ""},
		{"[fe80::1%eth0]", "http", "", ""},
		{"[fe80::1%25eth0]", "http", "", ""},
		{"[127.0.0.1]", "http", "", ""},
		{"[]", "http", "", ""},
		{"[v1.x]", "http", "", ""},
		{"[::1]:", "http", "", ""},
		{"[::1]:0", "http", "", ""},
	} {
		host, authority, err := parseHost(tc.raw, tc.scheme)
		if tc.host == "" {
			if err == nil {
				t.Errorf("%q: accepted as %q", tc.raw, host)
			} else if e := err.(*Error); e.Reason != BadHost || e.Detail == "" {
				t.Errorf("%q: refused with %v", tc.raw, e)
			}
			continue
		}
		if err != nil || host != tc.host || authority != tc.authority {
			t.Errorf("%q: got %q %q %v, want %q %q", tc.raw, host, authority, err, tc.host, tc.authority)
		}
	}
}

// FuzzHost: the canonical authority parses to itself.
func FuzzHost(f *testing.F) {
	for _, s := range []string{"a", "A.b.", "a:443", "[::1]:80", "1.2.3.4", "xn--a", "0x1"} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, raw string, secure bool) {
		scheme := "http"
		if secure {
			scheme = "https"
		}
		host, authority, err := parseHost(raw, scheme)
		if err != nil {
			return
		}
		h2, a2, err := parseHost(authority, scheme)
		if err != nil || h2 != host || a2 != authority {
			t.Fatalf("%q: %q %q parses to %q %q %v", raw, host, authority, h2, a2, err)
		}
		if host != strings.ToLower(host) || strings.HasSuffix(host, ".") {
			t.Fatalf("%q: host %q", raw, host)
		}
	})
}
