package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// floodSite is a gate with a way to be refused for every kind. mesh is its
// listener without TLS.
func floodSite(t *testing.T, upstream string) (s *site, mesh, health string) {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	s, mesh, health = newSite(t, upstream), freeAddr(t), freeAddr(t)
	s.write("jwks.json", string(env.JWKS))
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
  - {name: mesh, address: %q, plaintext: behind_proxy, trusted: ["127.200.0.0/16"]}
health: {address: %q}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256], jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: open, path: "/open/{rest...}", methods: [GET], upstream: app, public: true}
  - {name: guarded, path: "/guarded/{rest...}", upstream: app, authn: [{jwt: corp}]}
  - {name: limited, path: "/limited/{rest...}", upstream: app, public: true, limits: [tight]}
limits:
  tight: {key: prefix, rate: 1/h, burst: 2}
policies: {dir: policies}
detect: {failed_logins: {action: count}}
`, s.addr, mesh, health, jwtattack.Issuer, jwtattack.Audience, upstream))
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	return s, mesh, health
}

// TestFlood is the promise that strangers can neither fill the disk nor get out
// of the book: what six kinds of flood sent is in the book to the last one, in
// records and in counts, and neither the folder nor the gate grows with it. Its
// long form is a million requests.
func TestFlood(t *testing.T) {
	order := floodOrder{Total: 30_000 / raceShare, Rate: 4000, Networks: 4}
	memory := 256e6 // by which the gate may grow; the race detector takes more
	if os.Getenv("GATEBOOK_SOAK") != "" {
		order.Total, order.Rate, memory = 1_000_000, 6000, 64e6
	}
	const disk = 5_000_000 // by which the folder may grow
	up := newUpstream(t)
	s, mesh, health := floodSite(t, up.URL)
	order.Public, order.Mesh = s.addr, mesh
	b := &beside{s: s}
	data := filepath.Join(s.dir, "data")
	s.start()
	b.warm(t)
	s.stop()
	// At rest there are no files with room ahead, and all records are compressed.
	atRest := diskUse(t, data)
	s.start()
	b.warm(t)
	running, before := diskUse(t, data), s.peak(t)
	f := startFlood(t, order)
	begun := time.Now()
	f.ask("go")
	r := f.ask("wait")
	took := time.Since(begun)
	f.end()
	running = diskUse(t, data) - running
	grown := s.peak(t) - before
	b.one(t)

	if n := int(metric(t, health, "gatebook_handshakes_failed")); n != r.Sent["tls_handshake"] {
		t.Errorf("gatebook_handshakes_failed is %d, %d were sent", n, r.Sent["tls_handshake"])
	}
	if n := int(metric(t, health, "gatebook_heads_refused")); n != r.Sent["malformed_request"] {
		t.Errorf("gatebook_heads_refused is %d, %d were sent", n, r.Sent["malformed_request"])
	}
	metered := int(metric(t, health, "gatebook_book_folded"))
	s.stop()
	atRest = diskUse(t, data) - atRest
	if folded := s.holds(r, b.asked); folded != metered {
		t.Errorf("gatebook_book_folded is %d, the book says %d", metered, folded)
	}
	t.Logf("%d requests in %v; disk %+d bytes while running, %+d at rest; most memory %.1f MB before, %+.1f MB",
		order.Total, took.Round(time.Millisecond), running, atRest, before/1e6, grown/1e6)
	if running >= disk || atRest >= disk {
		t.Errorf("the folder grew by %d bytes while running and %d at rest, %d are allowed", running, atRest, disk)
	}
	if grown > memory {
		t.Errorf("the flood took %.1f MB", grown/1e6)
	}
	s.command(0, "verify")
}

// holds demands that the book has everything that a flood sent, whether it is
// written or counted, and what was answered besides. It returns how many are
// counted.
func (s *site) holds(r floodReport, asked int) (counted int) {
	s.t.Helper()
	single, folded := s.counted()
	for _, k := range floodKinds {
		sent := r.Sent[k.reason]
		counted += folded[k.reason]
		if got := single[k.reason] + folded[k.reason]; got != sent || folded[k.reason] == 0 {
			s.t.Errorf("%s: %d sent, %d in the book, %d of them counted", k.reason, sent, got, folded[k.reason])
		}
		s.t.Logf("%-18s sent %7d = %6d records + %7d counted", k.reason, sent, single[k.reason], folded[k.reason])
	}
	if want := asked + r.Let; single[""] != want || folded[""] != 0 {
		s.t.Errorf("%d answers of the upstream, %d records and %d counted", want, single[""], folded[""])
	}
	return counted
}

// peak is the most memory in bytes that the server ever had resident
// (proc_pid_status(5)).
func (s *site) peak(t *testing.T) float64 { return s.memoryOf(t, "VmHWM") }

// diskUse is what a folder takes of the disk.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // sealed and removed meanwhile
		}
		if err == nil {
			n += i.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// counted reads how many exchanges of each reason the book holds, in records of
// their own and in those of floods.
func (s *site) counted() (single, folded map[string]int) {
	s.t.Helper()
	single, folded = map[string]int{}, map[string]int{}
	out := s.command(0, "search", `kind == "request" || kind == "malformed" || kind == "handshake"`, "--json")
	for line := range strings.Lines(out) {
		var r frame
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatalf("%v: %s", err, line)
		}
		if r.Frame.Event.Name == "fold" {
			folded[r.Frame.Error.Reason] += r.Frame.Event.Count
		} else {
			single[r.Frame.Error.Reason]++
		}
	}
	return single, folded
}
