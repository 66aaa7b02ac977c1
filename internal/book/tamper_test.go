package book

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/store"
)

// names are the files of the specimen below a folder, the spare WAL file left
// out.
func (s *specimen) names(folder string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if strings.HasPrefix(name, folder) && s.regions[name][0].kind != "spare WAL file" {
			out = append(out, name)
		}
	}
	return out
}

// spare is the WAL file that was prepared.
func (s *specimen) spare() string {
	for name, rs := range s.regions {
		if rs[0].kind == "spare WAL file" {
			return name
		}
	}
	s.t.Fatal("there is no spare WAL file")
	return ""
}

// manipulation is something done to the folder and what verification must say.
type manipulation struct {
	what  string
	files map[string][]byte
	saved []byte
	codes []int
	// One finding must be of this kind and cover these leaves, if a kind is
	// given.
	kind        ledger.DamageKind
	first, last uint64
	// serve goes on, for the file is nothing to it, and verify goes on saying so.
	stays bool
}

var (
	damaged    = []int{ledger.ExitDamaged}
	truncated  = []int{ledger.ExitTruncated}
	either     = []int{ledger.ExitDamaged, ledger.ExitTruncated}
	harmless   = []int{0}
	orKeyless  = []int{ledger.ExitDamaged, ledger.ExitTruncated, ledger.ExitKeyless}
	orHarmless = []int{0, ledger.ExitDamaged, ledger.ExitTruncated, ledger.ExitKeyless}
)

// manipulations is the table.
func (s *specimen) manipulations() []manipulation {
	segs, mans, wal := s.names("segments/"), s.names("manifests/"), s.names("wal/")[0]
	rangeOf := func(name string) (uint64, uint64) { return s.regions[name][0].first, s.regions[name][0].last }
	two := func(a, b string) map[string][]byte {
		files := s.with(a, s.files[b])
		files[b] = s.files[a]
		return files
	}
	out := []manipulation{
		{what: "nothing", files: s.files, codes: harmless},
		{what: "the spare WAL file is gone", files: s.with(s.spare(), nil), codes: harmless},
		{what: "the lock file is gone", files: s.with("lock", nil), codes: harmless},
		{what: "the checkpoint is gone", files: s.with("checkpoint", nil), codes: damaged, kind: ledger.Missing},
		{what: "the identity is gone", files: s.with("ledger", nil), codes: damaged, kind: ledger.Missing},
		{what: "the verifier key is gone", files: s.with("log.vkey", nil), codes: damaged, kind: ledger.Missing},
		{what: "the WAL file is gone", files: s.with(wal, nil), codes: truncated, kind: ledger.Truncated, first: s.regions[wal][1].first, last: s.signed - 1},
		{what: "a copy of a segment under a name that no manifest gives", files: s.with("segments/00000000000000ff.0.seg", s.files[segs[0]]), codes: harmless},
		{what: "a copy of a segment as its own next generation", files: s.with(strings.Replace(segs[0], ".0.seg", ".1.seg", 1), s.files[segs[0]]), codes: harmless},
		{what: "a copy of the WAL file under the next number", files: s.with("wal/00000000000000ff.wal", s.files[wal]), codes: damaged},
		{what: "a copy of a manifest under another index", files: s.with("manifests/0000000000000003", s.files[mans[0]]), codes: either, stays: true},
		{what: "an older checkpoint", files: s.with("checkpoint", s.older), codes: truncated, kind: ledger.Truncated, first: s.sizeOf(s.older), last: s.signed - 1},
		{what: "all files as they were earlier, but the checkpoint", files: s.olderBut("checkpoint"), codes: truncated, kind: ledger.Truncated, first: s.signed - 1, last: s.signed - 1},
		{what: "all files as they were earlier, and a newer checkpoint was kept", files: s.before, saved: s.check, codes: truncated, kind: ledger.Truncated, first: s.sizeOf(s.older), last: s.signed - 1},
		{what: "only the WAL folder as it was earlier", files: s.olderFolder("wal/"), codes: either},
	}
	for _, name := range segs {
		m := manipulation{what: name + " is gone", files: s.with(name, nil), codes: damaged, kind: ledger.Missing}
		m.first, m.last = rangeOf(name)
		out = append(out, m)
	}
	for _, name := range mans {
		out = append(out, manipulation{what: name + " is gone", files: s.with(name, nil), codes: either})
	}
	m := manipulation{what: "two segments change places", files: two(segs[0], segs[1]), codes: damaged, kind: ledger.Reordered}
	m.first, m.last = rangeOf(segs[0])
	out = append(out, m, manipulation{what: "two manifests change places", files: two(mans[0], mans[1]), codes: either})
	return append(out, s.cutsAndAdditions()...)
}

// cutsAndAdditions shortens and lengthens every file.
func (s *specimen) cutsAndAdditions() (out []manipulation) {
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		b := s.files[name]
		codes := orKeyless
		if rs := s.regions[name]; rs[len(rs)-1].harmless != "" {
			codes = orHarmless // judged by what is read
		}
		for _, n := range []int{0, 1, 5, len(b) / 3, len(b) / 2, len(b) - 33, len(b) - 1} {
			if n >= 0 && n < len(b) {
				out = append(out, manipulation{what: fmt.Sprintf("%s is cut to %d of %d bytes", name, n, len(b)), files: s.with(name, bytes.Clone(b[:n])), codes: codes})
			}
		}
		if name == "lock" {
			codes = harmless
		}
		for _, junk := range []string{"\x00", "x", "\n", strings.Repeat("junk\n", 100)} {
			out = append(out, manipulation{what: fmt.Sprintf("%q is added to %s", junk[:1], name), files: s.with(name, append(bytes.Clone(b), junk...)), codes: codes})
		}
	}
	// At the end of a batch that the checkpoint covers, nothing looks broken.
	wal := s.names("wal/")[0]
	rs := s.regions[wal]
	half := rs[len(rs)/2]
	return append(out, manipulation{
		what: "the WAL file ends after a batch that the checkpoint covers", files: s.with(wal, bytes.Clone(s.files[wal][:half.to])),
		codes: truncated, kind: ledger.Truncated, first: half.last + 1, last: s.signed - 1,
	})
}

func (s *specimen) sizeOf(check []byte) uint64 {
	n, err := ledger.CheckpointSize(check)
	s.must(err)
	return n
}

// olderBut is the folder as it was earlier with one file of today.
func (s *specimen) olderBut(name string) map[string][]byte {
	files := maps.Clone(s.before)
	files[name] = s.files[name]
	return files
}

// olderFolder is the folder of today with one subfolder as it was earlier.
func (s *specimen) olderFolder(folder string) map[string][]byte {
	files := maps.Clone(s.files)
	for name := range files {
		if strings.HasPrefix(name, folder) {
			delete(files, name)
		}
	}
	for name, b := range s.before {
		if strings.HasPrefix(name, folder) {
			files[name] = b
		}
	}
	return files
}

// TestManipulations deletes, copies, swaps, cuts and rolls back files.
func TestManipulations(t *testing.T) {
	s := newSpecimen(t)
	ms := s.manipulations()
	eachInParallel(len(ms), func(i int) {
		m := &ms[i]
		if problem := s.judgeManipulation(m); problem != "" {
			t.Errorf("%s: %s", m.what, problem)
		}
		if m.saved != nil || m.stays {
			return // nothing that serve goes by is wrong with the folder
		}
		if problem := s.judgeServe(m.files, s.rows.Snapshot()); problem != "" {
			t.Errorf("%s: serving it: %s", m.what, problem)
		}
	})
}

// TestMissingFileKeys takes the key of a segment, and of the WAL, out of the key
// store, which then works and does not know it: no record accounts for that, so
// it is edited, over just the records that it opened. A key store that cannot
// be unwrapped is another thing.
func TestMissingFileKeys(t *testing.T) {
	s := newSpecimen(t)
	take := func(kind keys.Kind, id []byte) *keys.MemStore {
		state := s.rows.Snapshot()
		ring, err := keys.Open(t.Context(), state, s.root)
		s.must(err)
		s.must(ring.Destroy(kind, keys.ID(id)))
		return state
	}
	seg, wal := s.names("segments/")[0], s.names("wal/")[0]
	for name, state := range map[string]*keys.MemStore{
		seg: take(keys.KindSegment, s.files[seg][26:42]),
		wal: take(keys.KindWAL, s.files[wal][30:46]),
	} {
		rep := s.verifyWith(state, s.files, nil, nil)
		if code := rep.ExitCode(); code != ledger.ExitDamaged {
			t.Errorf("%s without its key: exit code %d: %v, %+v", name, code, rep.Findings, rep)
		}
		if len(rep.Findings) == 0 || rep.Findings[0].Kind != ledger.Edited || rep.Findings[0].File != name {
			t.Errorf("%s without its key: %v", name, rep.Findings)
		}
		if problem := s.judgeServe(s.files, state.Snapshot()); problem != "" && name == wal {
			t.Errorf("%s without its key: serving it: %s", name, problem)
		}
	}
}

// TestForeignKeyInFolder: serve compares log.vkey with the log.
func TestForeignKeyInFolder(t *testing.T) {
	s := newSpecimen(t)
	other := newRoom(t, nil)
	for what, b := range map[string][]byte{"another log's": []byte(other.vkey + "\n"), "no": nil} {
		files := s.with("log.vkey", b)
		mem := store.NewMem(nil)
		for name, b := range files {
			f, err := mem.Create(name)
			s.must(err)
			_, err = f.WriteAt(b, 0)
			s.must(err)
		}
		_, err := open(t.Context(), s.cfg, &place{files: mem, state: s.rows.Snapshot(), wrapper: s.root, tune: small(256)})
		var d *ledger.Damage
		if !errors.As(err, &d) || d.File != "log.vkey" {
			t.Errorf("with %s verifier key in the folder it says %v", what, err)
		}
	}
}

func (s *specimen) judgeManipulation(m *manipulation) string {
	var n int
	rep := s.verifyWith(s.rows, m.files, m.saved, func(uint64, []byte) error { n++; return nil })
	code := rep.ExitCode()
	if !slices.Contains(m.codes, code) {
		return fmt.Sprintf("exit code %d, want one of %d: %v, %+v", code, m.codes, rep.Findings, rep)
	}
	if code == 0 && n < s.settled() {
		return fmt.Sprintf("not found, and only %d records were opened", n)
	}
	if m.kind == "" {
		return ""
	}
	for _, f := range rep.Findings {
		if f.Kind == m.kind && f.First <= m.first && f.Last >= m.last {
			return ""
		}
	}
	return fmt.Sprintf("no finding of kind %q covers records %d to %d: %v", m.kind, m.first, m.last, rep.Findings)
}

// settled is how many records no power cut may take.
func (s *specimen) settled() int {
	torn := 0
	for _, r := range s.regions[s.names("wal/")[0]] {
		if r.torn {
			torn += int(r.last - r.first + 1)
		}
	}
	return len(s.content) - torn
}

// judgeServe starts on a copy: it must be refused with a reason, or go on with
// all that was settled, under the same signatures.
func (s *specimen) judgeServe(files map[string][]byte, state *keys.MemStore) string {
	mem := store.NewMem(nil)
	for name, b := range files {
		f, err := mem.Create(name)
		if err == nil {
			_, err = f.WriteAt(b, 0)
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return err.Error()
		}
	}
	ctx := context.Background()
	b, err := open(ctx, s.cfg, &place{files: mem, state: state, wrapper: s.root, tune: small(256)})
	var d *ledger.Damage
	var k *ledger.KeyError
	switch {
	case errors.As(err, &d), errors.As(err, &k), errors.Is(err, ErrNone):
		return ""
	case err != nil:
		return "refused with an error that says neither damage nor key: " + err.Error()
	}
	if err := b.Close(ctx); err != nil {
		return "closing: " + err.Error()
	}
	return s.judgeAfter(mirror(s.t, mem), state)
}

// judgeAfter verifies what serving left behind.
func (s *specimen) judgeAfter(files map[string][]byte, state *keys.MemStore) string {
	n, same := 0, true
	rd := s.verifyWith(state, files, s.check, func(_ uint64, frame []byte) error {
		same = same && (n >= s.settled() || s.content[n] == digestOf(frame))
		n++
		return nil
	})
	if code := rd.ExitCode(); code != 0 {
		return fmt.Sprintf("it went on, and verify gives exit code %d: %v, %+v", code, rd.Findings, rd)
	}
	if !same || n < s.settled() {
		return fmt.Sprintf("it went on with %d records, the same: %v", n, same)
	}
	return ""
}

// TestServeOnFlips starts on copies with a bit flipped in each kind of place.
func TestServeOnFlips(t *testing.T) {
	s := newSpecimen(t)
	type probe struct {
		name string
		at   int
	}
	var probes []probe
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		for i, r := range s.regions[name] {
			if len(s.regions[name]) > 40 && i%17 > 0 && !r.torn {
				continue // one place in many of the same kind
			}
			for _, at := range []int{r.from, (r.from + r.to) / 2, r.to - 1} {
				if r.to > r.from {
					probes = append(probes, probe{name, at})
				}
			}
		}
	}
	eachInParallel(len(probes), func(i int) {
		p := probes[i]
		r := regionAt(s.regions[p.name], p.at)
		if problem := s.judgeServe(s.with(p.name, flip(s.files[p.name], p.at)), s.rows.Snapshot()); problem != "" {
			t.Errorf("%s byte %d (%s, %d to %d): %s", p.name, p.at, r.kind, r.from, r.to, problem)
		}
	})
	t.Logf("%d starts", len(probes))
}

// TestServeOnKeyStoreFlips starts, from the disk, on key stores in which a bit
// was flipped.
func TestServeOnKeyStoreFlips(t *testing.T) {
	s := newSpecimen(t)
	step := 64 * flipStep
	if soak() {
		step = 16
	}
	page := 4096
	var at []int
	for n := 0; n < len(s.state); n += step {
		at = append(at, n+n/step%16)
	}
	for n := 0; n < len(s.state); n += page * sweepStep { // the head of each page
		at = append(at, n, n+8, n+10, n+12, n+15, n+16, n+20, n+24, n+28)
	}
	for _, n := range at {
		if problem := s.serveState(n); problem != "" {
			t.Errorf("key store byte %d: %s", n, problem)
		}
	}
	t.Logf("%d starts", len(at))
}

// serveState starts on a folder whose key store has a bit flipped at byte n.
func (s *specimen) serveState(n int) string {
	dir, err := os.MkdirTemp(s.t.TempDir(), "")
	s.must(err)
	defer os.RemoveAll(dir)
	for name, b := range s.files {
		path := filepath.Join(dir, name)
		s.must(os.MkdirAll(filepath.Dir(path), 0o700))
		s.must(os.WriteFile(path, b, 0o600))
	}
	c := s.cfg
	c.Dir = dir
	s.must(os.MkdirAll(filepath.Dir(c.statePath()), 0o700))
	s.must(os.WriteFile(c.statePath(), flip(s.state, n), 0o600))
	b, err := Open(context.Background(), c)
	var d *ledger.Damage
	var k *ledger.KeyError
	switch {
	case errors.As(err, &d), errors.As(err, &k):
		return ""
	case err != nil:
		return "refused with an error that says neither damage nor key: " + err.Error()
	}
	closed := b.Close(context.Background())
	if closed != nil && !errors.As(closed, &k) {
		return "closing: " + closed.Error()
	}
	rep, err := Verify(context.Background(), VerifyOptions{Dir: dir, KeyDir: c.KeyDir, Key: s.vkey, Saved: s.check})
	s.must(err)
	// A key that only an old record needs is missed when that is read.
	code := rep.ExitCode()
	switch {
	case code == 0 && closed == nil, code == ledger.ExitKeyless, code == ledger.ExitDamaged && onlyKeys(rep):
		return ""
	}
	return fmt.Sprintf("it went on, closing gave %v, and verify exit code %d: %v, %+v", closed, code, rep.Findings, rep)
}

// onlyKeys tells whether all that was found is personal parts without a key.
func onlyKeys(rep *ledger.Report) bool {
	for _, f := range rep.Findings {
		if !strings.Contains(f.Detail, "personal part cannot be opened") {
			return false
		}
	}
	return true
}

// TestHugeNumbers puts the largest numbers into every field of eight and four
// bytes of the clear parts, where a reader might believe them.
func TestHugeNumbers(t *testing.T) {
	s := newSpecimen(t)
	type probe struct {
		name string
		at   int
		huge uint64
		region
	}
	var probes []probe
	step := flipStep * 2
	if soak() {
		step = 1
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		for _, r := range s.regions[name] {
			if r.kind != "WAL header" && r.kind != "segment header" && r.kind != "segment footer" && r.kind != "manifest" {
				continue
			}
			for at := r.from + len(probes)%3; at+8 <= r.to; at += step {
				for _, huge := range []uint64{1<<64 - 1, 1<<63 - 1, 1 << 32} {
					probes = append(probes, probe{name, at, huge, r})
				}
			}
		}
	}
	eachInParallel(len(probes), func(i int) {
		p := probes[i]
		b := bytes.Clone(s.files[p.name])
		binary.BigEndian.PutUint64(b[p.at:], p.huge)
		if code := s.verify(s.with(p.name, b), nil).ExitCode(); code == 0 && !bytes.Equal(b, s.files[p.name]) {
			t.Errorf("%s: %#x at byte %d (%s) is not found", p.name, p.huge, p.at, p.kind)
		}
	})
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.Sys > 1<<30 {
		t.Errorf("the process took %d MiB", m.Sys>>20)
	}
	t.Logf("%d numbers", len(probes))
}
