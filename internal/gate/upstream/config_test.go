package upstream

import (
	"crypto/tls"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNewPool(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	ok := func(f func(*Config)) Config {
		c := Config{Name: "orders", Targets: []string{"http://10.0.0.5:8080"}}
		f(&c)
		return c
	}
	targets := func(s ...string) Config { return ok(func(c *Config) { c.Targets = s }) }
	for name, tt := range map[string]struct {
		cfg  Config
		want string // part of the error, "" none
	}{
		"minimal":             {ok(func(*Config) {}), ""},
		"all set":             {ok(func(c *Config) { c.Balance, c.MaxAttempts, c.TLSConfig = LeastRequests, 3, &tls.Config{} }), ""},
		"no name":             {ok(func(c *Config) { c.Name = "" }), "name is missing"},
		"no target":           {targets(), "0 targets"},
		"too many targets":    {targets(strings.Split(strings.Repeat("http://a,", 65), ",")[:65]...), "65 targets"},
		"same target twice":   {targets("http://a:80", "http://A"), "same server"},
		"no scheme":           {targets("10.0.0.5:8080"), "write scheme://host:port"},
		"other scheme":        {targets("ftp://a"), "neither http nor https"},
		"path":                {targets("http://a/v1"), "nothing more"},
		"query":               {targets("http://a?b"), "nothing more"},
		"empty query":         {targets("http://a?"), "nothing more"},
		"fragment":            {targets("http://a#"), "nothing more"},
		"userinfo":            {targets("http://u:p@a"), "nothing more"},
		"no host":             {targets("http://:80"), "host"},
		"port zero":           {targets("http://a:0"), "port"},
		"port too big":        {targets("http://a:65536"), "port"},
		"empty port":          {targets("http://a:"), "port is empty"},
		"international name":  {targets("http://m\u00fcller.example"), "xn--"},
		"zone":                {targets("http://[fe80::1%25eth0]:80"), "zone"},
		"control character":   {targets("http://a\x01"), "not a URL"},
		"balance":             {ok(func(c *Config) { c.Balance = "random" }), "balance"},
		"negative time":       {ok(func(c *Config) { c.IdleBody = -1 }), "negative"},
		"negative idle":       {ok(func(c *Config) { c.MaxIdlePerTarget = -1 }), "negative"},
		"attempts":            {ok(func(c *Config) { c.MaxAttempts = 9 }), "attempts"},
		"ejection":            {ok(func(c *Config) { c.Ejection = Ejection{MaxTime: time.Second} }), "ejection"},
		"ejection, times":     {ok(func(c *Config) { c.Ejection = Ejection{BaseTime: time.Minute, MaxTime: time.Second} }), "ejection"},
		"health, path":        {ok(func(c *Config) { c.Health = Health{Path: "//x"} }), "health path"},
		"health, bad byte":    {ok(func(c *Config) { c.Health = Health{Path: "/a b"} }), "health path"},
		"health, interval":    {ok(func(c *Config) { c.Health = Health{Path: "/", Interval: -1} }), "health interval"},
		"health, count":       {ok(func(c *Config) { c.Health = Health{Path: "/", Healthy: -1} }), "at least 1 check"},
		"health, status":      {ok(func(c *Config) { c.Health = Health{Path: "/", Status: []int{99}} }), "health status"},
		"no verification":     {ok(func(c *Config) { c.TLSConfig = &tls.Config{InsecureSkipVerify: true} }), "cannot be turned off"},
		"old TLS":             {ok(func(c *Config) { c.TLSConfig = &tls.Config{MaxVersion: tls.VersionTLS11} }), "below 1.2"},
		"key log":             {ok(func(c *Config) { c.TLSConfig = &tls.Config{KeyLogWriter: io.Discard} }), "session keys"},
		"missing CA file":     {ok(func(c *Config) { c.CAFile = filepath.Join(t.TempDir(), "none.pem") }), "CA file"},
		"CA file without any": {ok(func(c *Config) { c.CAFile = empty }), "no PEM certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := NewPool(tt.cfg)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				p.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestParseTarget(t *testing.T) {
	for s, want := range map[string][2]string{
		"http://10.0.0.5:8080":    {"10.0.0.5:8080", "10.0.0.5:8080"},
		"http://10.0.0.5":         {"10.0.0.5:80", "10.0.0.5"},
		"https://API.example":     {"api.example:443", "api.example"},
		"https://api.example:443": {"api.example:443", "api.example"},
		"https://api.example:80":  {"api.example:80", "api.example:80"},
		"http://[2001:db8::1]:81": {"[2001:db8::1]:81", "[2001:db8::1]:81"},
		"http://[2001:db8::1]/":   {"[2001:db8::1]:80", "[2001:db8::1]"},
		"http://my_service:1":     {"my_service:1", "my_service:1"},
	} {
		got, err := parseTarget(s)
		if err != nil || got.addr != want[0] || got.hostField != want[1] {
			t.Errorf("%s: %+v, %v; want %v", s, got, err, want)
		}
	}
}

func TestTLSConfig(t *testing.T) {
	base := &tls.Config{NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS10}
	cfg := Config{TLSConfig: base}
	got := cfg.tlsConfig("api.example", nil)
	if got.MinVersion != tls.VersionTLS12 || got.ServerName != "api.example" || len(got.NextProtos) != 1 || got.NextProtos[0] != "http/1.1" {
		t.Errorf("minimum %x, name %q, protocols %q", got.MinVersion, got.ServerName, got.NextProtos)
	}
	if base.NextProtos[0] != "h2" || base.ServerName != "" {
		t.Error("the caller's configuration was changed")
	}
	cfg.ServerName = "other.example"
	if got := cfg.tlsConfig("api.example", nil); got.ServerName != "other.example" {
		t.Errorf("name %q", got.ServerName)
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"http://a:1", "https://[::1]:2", "http://a", "http://a/", "http://a?", "http://u@a", "//a", "http://a%20b", "http://[fe80::1%25eth0]:1", "http://a:+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseTarget(s)
		if err != nil {
			return
		}
		b, err := parseTarget(a.scheme + "://" + a.addr)
		if err != nil || b.addr != a.addr || b.hostField != a.hostField {
			t.Errorf("%q gives %q, which gives %+v, %v", s, a.addr, b, err)
		}
		if strings.ContainsAny(a.hostField, " \r\n/@?#") {
			t.Errorf("%q gives Host %q", s, a.hostField)
		}
	})
}
