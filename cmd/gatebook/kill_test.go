package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// killSeed makes the moments of the kills repeat as far as a loaded machine
// can repeat anything.
const killSeed = 0x6761746562

// kills is how many times the server is killed: enough for every test run, and
// many more when GATEBOOK_SOAK is set.
func kills() int {
	if os.Getenv("GATEBOOK_SOAK") != "" {
		return 200
	}
	return 25
}

// TestKills is promise P1 with SIGKILL: whatever a client received whole, and
// whatever the upstream saw, has exactly one record after the restart.
func TestKills(t *testing.T) {
	up := newLoadUpstream(t)
	s := newSite(t, up.URL)
	s.levels(up.URL)
	rng := rand.New(rand.NewPCG(killSeed, 0))
	j := &joint{t: t, up: up, records: map[string][]frame{}, whole: map[string]answered{}, part: map[string]answered{}}
	began := time.Now()
	for n := range kills() {
		s.start()
		j.read(s) // what the kill before left behind
		s.checkpointed(n)
		l := startLoad(s, rng.Uint64())
		if err := l.wait(1 + rng.IntN(400)); err != nil {
			t.Fatalf("kill %d: %v\n%s", n, err, s.stderr)
		}
		s.keepCheckpoint()
		s.kill()
		j.add(l.end())
		s.verifyDead(n)
		if n%7 == 3 { // what comes after stands behind sealed segments
			s.start()
			s.stop()
		}
	}
	s.start()
	j.read(s)
	s.checkpointed(kills())
	s.stop()
	s.verifyDead(kills())
	j.final(kills())
	t.Logf("%d kills in %s: %d responses whole, %d in part, %d seen upstream, %d records, and %d refusals in counts",
		kills(), time.Since(began).Round(time.Millisecond), len(j.whole), len(j.part), len(up.saw()), len(j.records), j.folded)
}

// joint joins what clients, upstream and book know of every exchange.
type joint struct {
	t       *testing.T
	up      *loadUpstream
	next    uint64             // first index not read yet
	records map[string][]frame // by request id
	unclean int
	whole   map[string]answered
	part    map[string]answered

	// Refusals: asked for, recorded one by one, counted in folded records.
	asked, single, folded int
}

// add takes what clients saw.
func (j *joint) add(whole, part []answered, asked int) {
	j.t.Helper()
	j.asked += asked
	for _, a := range whole {
		if _, twice := j.whole[a.id]; twice {
			j.t.Errorf("id %s was given to two responses", a.id)
		}
		j.whole[a.id] = a
	}
	for _, a := range part {
		j.part[a.id] = a
	}
}

// read takes the records since the last call and compares.
func (j *joint) read(s *site) {
	j.t.Helper()
	for _, f := range s.search(fmt.Sprintf("index >= %d", j.next)) {
		if f.Index < j.next {
			j.t.Fatalf("record %d comes after %d", f.Index, j.next)
		}
		j.next = f.Index + 1
		switch f.Frame.Kind {
		case "request", "interrupted", "malformed":
			j.records[f.Frame.ID] = append(j.records[f.Frame.ID], f)
			switch {
			case f.Frame.Event.Name == "fold":
				j.folded += f.Frame.Event.Count
			case f.Frame.Error.Reason == "bad_path":
				j.single++
			}
		case "unclean_stop":
			j.unclean++
		case "gap":
			j.t.Errorf("record %d: a gap although the book was well", f.Index)
		}
	}
	j.compare()
}

// compare demands the promise of everything seen so far.
func (j *joint) compare() {
	j.t.Helper()
	refused := 0
	for id, a := range j.whole {
		rs := j.records[id]
		if a.path == refusedPath {
			refused++
			if len(rs) == 0 {
				continue // counted, see below
			}
		}
		if len(rs) != 1 {
			j.t.Fatalf("%s %d, received whole, has %d records: id %s, %+v", a.path, a.status, len(rs), id, rs)
		}
		f := rs[0].Frame
		if f.Kind == "interrupted" || f.Status != a.status {
			j.t.Fatalf("%s %d, received whole, has the record %+v", a.path, a.status, rs[0])
		}
		if f.BytesOut != a.bytes {
			j.t.Fatalf("%s: %d bytes received, %d recorded", a.path, a.bytes, f.BytesOut)
		}
	}
	// Whoever got a refusal whole is in a record or in a count; nobody is in
	// either who did not ask.
	if n := j.single + j.folded; n < refused || n > j.asked {
		j.t.Fatalf("%d refusals received whole of %d asked for; %d are recorded and %d counted", refused, j.asked, j.single, j.folded)
	}
	for id := range j.up.saw() {
		if n := len(j.records[id]); n != 1 {
			j.t.Fatalf("the upstream saw request %q, which has %d records", id, n)
		}
	}
	for id, rs := range j.records {
		if len(rs) != 1 {
			j.t.Fatalf("request %s has %d records: %+v", id, len(rs), rs)
		}
	}
	for id, a := range j.part {
		n := len(j.records[id])
		if n != 1 && (n != 0 || a.path != refusedPath) { // a refusal may be in a count
			j.t.Fatalf("%s, of which the client got a part, has %d records: id %s", a.path, n, id)
		}
	}
}

// final demands what only the whole story shows.
func (j *joint) final(kills int) {
	j.t.Helper()
	if j.unclean != kills {
		j.t.Errorf("%d unclean stops are recorded after %d kills", j.unclean, kills)
	}
	interrupted := 0
	for _, rs := range j.records {
		if rs[0].Frame.Kind == "interrupted" {
			interrupted++
		}
	}
	// If no kill met an exchange under way, this test tests nothing.
	if interrupted < kills {
		j.t.Errorf("only %d interrupted exchanges after %d kills", interrupted, kills)
	}
	if len(j.part) == 0 || j.folded == 0 {
		j.t.Errorf("%d responses were cut off, %d refusals counted: neither may be none", len(j.part), j.folded)
	}
}

// levels gives some routes the level durable.
func (s *site) levels(upstream string) {
	s.t.Helper()
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
book: {commit_timeout: 30s} # a busy disk is not what is tried here
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: firm, path: "/echo/{rest...}", upstream: app, public: true, audit: {commit: durable}}
  - {name: all, path: "/{rest...}", upstream: app, public: true}
policies: {dir: policies}
`, s.addr, upstream))
}

// keepCheckpoint saves the newest checkpoint, as an auditor would.
func (s *site) keepCheckpoint() {
	s.t.Helper()
	s.write("kept.checkpoint", string(s.read("data/checkpoint")))
}

// checkpointed verifies, through the running server, that the log still holds
// what was signed before the kill.
func (s *site) checkpointed(n int) {
	s.t.Helper()
	if n == 0 {
		return
	}
	s.command(0, "verify", "--checkpoint", filepath.Join(s.dir, "kept.checkpoint"))
}

// verifyDead verifies the folder as the kill left it, with all keys, offline.
func (s *site) verifyDead(n int) {
	s.t.Helper()
	out := s.run(0, "verify", filepath.Join(s.dir, "data"), "--json", "--key-file", filepath.Join(s.dir, "log.vkey"),
		"--keys", filepath.Join(s.dir, "keys"), "--checkpoint", filepath.Join(s.dir, "kept.checkpoint"))
	var rep struct {
		Anchored struct{ Status string }
		Bytes    struct{ Status string }
	}
	if err := json.Unmarshal([]byte(out), &rep); err != nil {
		s.t.Fatal(err)
	}
	if rep.Anchored.Status != "ok" || rep.Bytes.Status != "ok" {
		s.t.Fatalf("after kill %d verify says: %s", n, out)
	}
}
