package book

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// specimen is the folder of a book of 500 records, taken while it was open: six
// segments, a WAL file that a checkpoint covers but for its last records, and a
// spare one.
type specimen struct {
	t       testing.TB
	cfg     Config
	root    keys.Wrapper
	files   map[string][]byte // all but the key store
	state   []byte            // the key store
	rows    *keys.MemStore    // its content
	vkey    string
	check   []byte            // the checkpoint in it
	older   []byte            // one from before
	before  map[string][]byte // the files when that was signed
	signed  uint64
	content []([32]byte) // of every record, in order
	layout  *layout
	regions map[string][]region
}

const stateFile = "state/keys.db"

// newSpecimen makes one.
func newSpecimen(t testing.TB) *specimen {
	t.Helper()
	ctx := context.Background()
	c := testConfig()
	c.FoldSlots = keepForAll // the least: its file is not evidence
	c.Dir, c.KeyDir = t.TempDir(), filepath.Join(t.TempDir(), "keys")
	s := &specimen{t: t, cfg: c, files: map[string][]byte{}}
	s.must(os.MkdirAll(filepath.Dir(c.statePath()), 0o700))
	root, err := keys.CreateFileWrapper(c.KeyDir)
	s.must(err)
	s.root = root
	disk, err := keys.OpenBolt(c.statePath(), false)
	s.must(err)
	p := &place{files: store.Dir(c.Dir), state: disk, wrapper: root, tune: small(256)}
	s.vkey, err = create(ctx, &c, p)
	s.must(err)
	rules := testRules(t)
	n := 0
	fill := func(b *Book, to int) {
		rec := b.Recorder(rules, testSnap)
		for ; n < to; n++ {
			who := fmt.Sprintf("person-%d", n*n%13)
			if n%5 == 4 {
				who = ""
			}
			s.must(keepAll(rec, exchange(b, n, who), record.Written))
		}
	}
	b, err := open(ctx, c, p)
	s.must(err)
	fill(b, 150)
	s.must(b.Close(ctx))
	disk, err = keys.OpenBolt(c.statePath(), false)
	s.must(err)
	p.state = disk
	b, err = open(ctx, c, p)
	s.must(err)
	fill(b, 478)
	s.must(b.ledger.SealNow(ctx))
	s.older = b.ledger.Checkpoint()
	s.copy()
	s.before, s.files = s.files, map[string][]byte{}
	fill(b, 495)
	s.must(b.ledger.SignCheckpoint(ctx))
	s.must(b.ring.Project(b.ring.Pending()))
	fill(b, 498)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	s.must(b.Run(ended)) // goes round once and prepares a WAL file
	s.copy()
	s.must(b.Close(ctx))
	s.survey()
	return s
}

func (s *specimen) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// copy takes the files as they are.
func (s *specimen) copy() {
	s.t.Helper()
	s.must(filepath.WalkDir(s.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(s.cfg.Dir, path)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		s.files[filepath.ToSlash(name)] = b
		return err
	}))
	s.state = s.files[stateFile]
	delete(s.files, stateFile)
	s.check = s.files["checkpoint"]
}

// survey reads the specimen and finds out what stands where.
func (s *specimen) survey() {
	s.t.Helper()
	dir := s.lay(s.files, s.state)
	disk, err := keys.OpenBolt(filepath.Join(dir, stateFile), true)
	s.must(err)
	s.rows, err = keys.Load(disk)
	s.must(errors.Join(err, disk.Close()))
	rep := s.verify(s.files, func(_ uint64, frame []byte) error {
		s.content = append(s.content, digestOf(frame))
		return nil
	})
	if code := rep.ExitCode(); code != 0 || rep.Records < 500 || len(s.content) != int(rep.Records) {
		s.t.Fatalf("the specimen: exit code %d, %+v, %v", code, rep, rep.Findings)
	}
	s.signed = rep.Signed
	s.layout = &layout{t: s.t, ring: s.ringOf(s.rows), origin: rep.Origin, signed: rep.Signed}
	s.regions = map[string][]region{}
	total := 0
	for name, b := range s.files {
		s.regions[name] = s.layout.file(name, b)
		total += len(b)
		at := 0
		for _, r := range s.regions[name] {
			if r.from != at || r.to < r.from {
				s.t.Fatalf("%s: region %+v does not follow %d", name, r, at)
			}
			at = r.to
		}
		if at != len(b) {
			s.t.Fatalf("%s: regions end at %d of %d bytes", name, at, len(b))
		}
	}
	s.t.Logf("%d records, %d leaves signed, %d files of %d bytes, key store of %d", rep.Records, rep.Signed, len(s.files), total, len(s.state))
}

// ringOf opens the keys anew, so that nothing learnt from another copy helps.
func (s *specimen) ringOf(state *keys.MemStore) *keys.Ring {
	ring, err := keys.Open(context.Background(), state.Snapshot(), s.root)
	if err != nil {
		panic(err)
	}
	return ring
}

// verify checks a copy with keys and verifier key; see, if not nil, gets every
// record that was opened.
func (s *specimen) verify(files map[string][]byte, see func(uint64, []byte) error) *ledger.Report {
	return s.verifyWith(s.rows, files, nil, see)
}

// verifyWith is verify with another key store and a checkpoint kept from
// earlier.
func (s *specimen) verifyWith(state *keys.MemStore, files map[string][]byte, saved []byte, see func(uint64, []byte) error) *ledger.Report {
	rep, err := ledger.Verify(ledger.VerifyOptions{FS: still(files), Codec: codec{}, Keys: ringKeys{s.ringOf(state)}, Key: s.vkey, Saved: saved, Record: see})
	if err != nil {
		// Verification that cannot be done at all fails with exit code 1; no
		// damage may lead there.
		return &ledger.Report{Signatures: ledger.Answer{Status: ledger.Failed, Detail: "verification was given up: " + err.Error()}}
	}
	return rep
}

// lay writes a copy to a folder.
func (s *specimen) lay(files map[string][]byte, state []byte) string {
	s.t.Helper()
	dir := s.t.TempDir()
	put := func(name string, b []byte) {
		path := filepath.Join(dir, name)
		s.must(os.MkdirAll(filepath.Dir(path), 0o700))
		s.must(os.WriteFile(path, b, 0o600))
	}
	for name, b := range files {
		put(name, b)
	}
	if state != nil {
		put(stateFile, state)
	}
	return dir
}

// with is the files with one replaced; nil removes it.
func (s *specimen) with(name string, b []byte) map[string][]byte {
	files := maps.Clone(s.files)
	files[name] = b
	if b == nil {
		delete(files, name)
	}
	return files
}

func digestOf(frame []byte) [32]byte { return sha256.Sum256(frame) }

// flip returns b with one bit changed.
func flip(b []byte, at int) []byte {
	out := bytes.Clone(b)
	out[at] ^= 1 << ((at + at/16) % 8)
	return out
}

// positions are the bytes of a file to flip: each sixteenth (fewer with the race
// detector), with an offset of its own for each file, or in a soak all.
func positions(file, size int) []int {
	step, at := flipStep, file*5%flipStep
	if soak() {
		step, at = 1, 0
	}
	var out []int
	for ; at < size; at += step {
		out = append(out, at)
	}
	return out
}

// eachInParallel calls fn for every n below count.
func eachInParallel(count int, fn func(n int)) {
	var wg sync.WaitGroup
	work := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for n := range work {
				fn(n)
			}
		})
	}
	for n := range count {
		work <- n
	}
	close(work)
	wg.Wait()
}

// TestFlips flips bits all over the folder: each is found, in the right place
// and with the right exit code, or stands where it cannot matter.
func TestFlips(t *testing.T) {
	s := newSpecimen(t)
	defer debug.SetGCPercent(debug.SetGCPercent(1000)) // what each verification leaves behind is little
	names := slices.Sorted(maps.Keys(s.files))
	tally := &tally{counts: map[string]int{}}
	for i, name := range names {
		b := s.files[name]
		at := positions(i, len(b))
		eachInParallel(len(at), func(n int) {
			r := regionAt(s.regions[name], at[n])
			if problem := s.judge(name, at[n], r); problem != "" {
				t.Errorf("%s byte %d (%s, %d to %d): %s", name, at[n], r.kind, r.from, r.to, problem)
			}
			tally.add(r)
		})
	}
	t.Log(tally)
}

// tally counts what was tried, by kind of place.
type tally struct {
	mu     sync.Mutex
	counts map[string]int // under mu
}

func (c *tally) add(r region) {
	kind, _, _ := strings.Cut(r.kind, " of ")
	kind, _, _ = strings.Cut(kind, "/")
	if r.harmless != "" {
		kind += " (harmless: " + r.harmless + ")"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[kind]++
}

func (c *tally) String() string {
	var out []string
	for kind, n := range c.counts {
		out = append(out, fmt.Sprintf("%6d %s", n, kind))
	}
	sort.Strings(out)
	return "flips tried:\n" + strings.Join(out, "\n")
}

func regionAt(rs []region, at int) region {
	for _, r := range rs {
		if at >= r.from && at < r.to {
			return r
		}
	}
	panic("no region")
}

// judge verifies the copy with one bit flipped and says what is wrong with the
// answer.
func (s *specimen) judge(name string, at int, r region) string {
	n := 0
	same := true
	rep := s.verify(s.with(name, flip(s.files[name], at)), func(_ uint64, frame []byte) error {
		same = same && n < len(s.content) && s.content[n] == digestOf(frame)
		n++
		return nil
	})
	code := rep.ExitCode()
	switch {
	case code == 0 && r.harmless == "":
		return "not found"
	case code == 0 && !same:
		return "not found, and other content was opened"
	case code == 0 && !r.torn && n != len(s.content):
		return fmt.Sprintf("not found, and %d of %d records were opened", n, len(s.content))
	case code == 0:
		return ""
	case code != ledger.ExitDamaged && code != ledger.ExitTruncated && code != ledger.ExitKeyless:
		return fmt.Sprintf("exit code %d: %+v", code, rep)
	case code == ledger.ExitKeyless:
		return ""
	}
	for _, f := range rep.Findings {
		if f.First <= r.last && f.Last >= r.first && (!r.exact || f.First == r.first && f.Last == r.last) && f.First <= f.Last {
			return ""
		}
	}
	return fmt.Sprintf("no finding covers records %d to %d (exact: %v): %v", r.first, r.last, r.exact, rep.Findings)
}

// still is a tree of files that nobody can change.
type still map[string][]byte

var errStill = errors.New("verification wrote to the evidence")

func (m still) Create(string) (store.File, error) { return nil, errStill }
func (m still) OpenRW(string) (store.File, error) { return nil, errStill }
func (m still) Rename(string, string) error       { return errStill }
func (m still) Remove(string) error               { return errStill }
func (m still) MkdirAll(string) error             { return errStill }
func (m still) SyncDir(string) error              { return errStill }
func (m still) Lock(string) (io.Closer, error)    { return nil, errStill }
func (m still) Space() (int64, int64, error)      { return 0, 0, errStill }

func (m still) Open(name string) (store.File, error) {
	b, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return stillFile{bytes.NewReader(b)}, nil
}

func (m still) ReadDir(name string) ([]string, error) {
	seen := map[string]bool{}
	for file := range m {
		rest, ok := strings.CutPrefix(file, name+"/")
		if name == "." {
			rest, ok = file, true
		}
		if ok {
			first, _, _ := strings.Cut(rest, "/")
			seen[first] = true
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

type stillFile struct{ *bytes.Reader }

func (stillFile) WriteAt([]byte, int64) (int, error) { return 0, errStill }
func (stillFile) Sync() error                        { return errStill }
func (stillFile) Truncate(int64) error               { return errStill }
func (stillFile) Allocate(int64) error               { return errStill }
func (stillFile) Allocated() (int64, error)          { return 0, errStill }
func (stillFile) Close() error                       { return nil }
func (f stillFile) Size() (int64, error)             { return f.Reader.Size(), nil }
