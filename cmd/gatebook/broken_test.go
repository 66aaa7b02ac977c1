package main

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// A disk that breaks under a running gate: nothing is answered that was not
// recorded, readiness says so, the process stays, and a restart goes on.
func TestBookFailsUnderTheGate(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	health := freeAddr(t)
	conf := string(s.read("gatebook.yaml"))
	s.write("gatebook.yaml", conf+"health: {address: "+health+"}\n")
	s.start()
	ready := func() int {
		resp, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := s.get("/a").StatusCode; code != 200 || ready() != 200 {
		t.Fatalf("status %d, ready %d", code, ready())
	}
	// The place of the checkpoint becomes a folder that cannot be replaced: to
	// the ledger the disk is broken.
	checkpoint := filepath.Join(s.dir, "data", "checkpoint")
	saved := s.read("data/checkpoint")
	if err := os.Remove(checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(checkpoint, "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 10_000 {
		if resp := s.get("/b"); resp.StatusCode == http.StatusServiceUnavailable {
			refused++
			break
		}
	}
	if refused == 0 || ready() != http.StatusServiceUnavailable {
		t.Fatalf("%d refused, ready %d\n%s", refused, ready(), s.stderr)
	}
	up.mu.Lock()
	before := len(up.seen)
	up.mu.Unlock()
	for range 10 {
		if code := s.get("/c").StatusCode; code != http.StatusServiceUnavailable {
			t.Fatalf("status %d from a gate without a book", code)
		}
	}
	up.mu.Lock()
	if len(up.seen) != before {
		t.Error("the upstream was called without a record")
	}
	up.mu.Unlock()
	if !s.stderr.shows("nothing more is recorded until a restart") {
		t.Errorf("the log does not say so:\n%s", s.stderr)
	}
	s.kill()
	if err := os.RemoveAll(checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(checkpoint, saved, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.get("/d")
	s.command(0, "verify")
	s.stop()
}
