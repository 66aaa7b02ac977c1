package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTwoServers: one process has the book; what others try says so.
func TestTwoServers(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.start()
	s.get("/v1/orders/1")
	data := filepath.Join(s.dir, "data")
	s.command(13, "serve")
	s.run(13, "verify", data, "--keys", filepath.Join(s.dir, "keys"), "--key-file", filepath.Join(s.dir, "log.vkey"))
	// The one that runs is not disturbed.
	s.get("/v1/orders/2")
	s.command(0, "verify")
	s.stop()
	s.run(0, "verify", data, "--keys", filepath.Join(s.dir, "keys"), "--key-file", filepath.Join(s.dir, "log.vkey"))
}

// TestDamage: verify and serve tell damage, truncation and missing keys apart
// by their exit codes, and serve changes nothing of what it refuses.
func TestDamage(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.start()
	for range 20 {
		s.get("/v1/orders/1")
	}
	s.stop()
	old := s.read("data/checkpoint")
	s.start()
	s.get("/v1/orders/2")
	s.kill()
	segment := s.only("data/segments/*.seg")
	for _, c := range []struct {
		what   string
		name   string
		change func([]byte) []byte
		verify int
		serve  int
	}{
		{"a bit of a segment", segment, func(b []byte) []byte { b[len(b)/2] ^= 4; return b }, 10, 10},
		{"a segment cut", segment, func(b []byte) []byte { return b[:len(b)/2] }, 10, 10},
		{"a segment removed", segment, func([]byte) []byte { return nil }, 10, 10},
		{"a checkpoint rolled back", "data/checkpoint", func([]byte) []byte { return old }, 11, 11},
		{"a checkpoint with a bit changed", "data/checkpoint", func(b []byte) []byte { b[len(b)-9] ^= 4; return b }, 10, 10},
		{"a bit of the key store's first tree page", "data/state/keys.db", func(b []byte) []byte {
			for page := 2; page < len(b)/4096; page++ { // the count of every page
				b[page*4096+11] ^= 0x80
			}
			return b
		}, 14, 14},
		{"the key store cut", "data/state/keys.db", func(b []byte) []byte { return b[:3*4096+100] }, 14, 14},
		{"the key store empty", "data/state/keys.db", func([]byte) []byte { return []byte{} }, 14, 14},
		{"the key store removed", "data/state/keys.db", func([]byte) []byte { return nil }, 14, 14},
		{"the wrapping key removed", s.only("keys/*.key"), func([]byte) []byte { return nil }, 14, 14},
	} {
		t.Run(c.what, func(t *testing.T) {
			defer func(outer *testing.T) { s.t = outer }(s.t)
			s.t = t
			was := s.read(c.name)
			path := filepath.Join(s.dir, c.name)
			broken := c.change(append([]byte(nil), was...))
			if broken == nil {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			} else {
				s.write(c.name, string(broken))
			}
			out := s.command(c.verify, "verify")
			if !strings.Contains(out, "NOT verified") {
				t.Errorf("verify says\n%s", out)
			}
			s.command(c.serve, "serve")
			s.write(c.name, string(was))
			s.command(0, "verify")
		})
	}
	s.start()
	s.get("/v1/orders/3")
	s.stop()
	s.command(0, "verify")
}

// only is the one file that matches.
func (s *site) only(pattern string) string {
	s.t.Helper()
	names, err := filepath.Glob(filepath.Join(s.dir, pattern))
	if err != nil || len(names) != 1 {
		s.t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	name, err := filepath.Rel(s.dir, names[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return name
}
