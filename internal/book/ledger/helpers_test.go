package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/book/store"
)

// testKeys is a key store whose every change is durable, like the real one.
type testKeys struct {
	mu       sync.Mutex
	n        uint64
	files    map[[16]byte][32]byte
	subjects map[[16]byte][32]byte // what Born made durable
	fault    func(op string) error
}

func newTestKeys() *testKeys {
	return &testKeys{files: map[[16]byte][32]byte{}, subjects: map[[16]byte][32]byte{}}
}

// forget returns the store as a restarted process finds it.
func (k *testKeys) forget() *testKeys {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := newTestKeys()
	c.n = k.n
	for id, key := range k.files {
		c.files[id] = key
	}
	for id, key := range k.subjects {
		c.subjects[id] = key
	}
	return c
}

func (k *testKeys) fail(op string) error {
	if k.fault == nil {
		return nil
	}
	return k.fault(op)
}

func (k *testKeys) NewFileKey(use Use) (id [16]byte, key [32]byte, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.fail("new"); err != nil {
		return id, key, err
	}
	k.n++
	binary.BigEndian.PutUint64(id[:], k.n)
	key = sha256.Sum256(append(id[:], byte(use)))
	k.files[id] = key
	return id, key, nil
}

func (k *testKeys) FileKey(_ Use, id [16]byte) ([32]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.files[id]
	if !ok {
		return key, errors.New("destroyed")
	}
	return key, nil
}

func (k *testKeys) DropFileKey(_ Use, id [16]byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.files, id)
	return k.fail("drop")
}

func (k *testKeys) SubjectKey(id [16]byte) ([32]byte, error) {
	return subjectKey(id), nil
}

func (k *testKeys) Born(births [][]byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range births {
		k.subjects[[16]byte(b)] = subjectKey([16]byte(b))
	}
	return k.fail("born")
}

func subjectKey(id [16]byte) [32]byte { return sha256.Sum256(append([]byte("subject"), id[:]...)) }

// testCodec keeps frames in one column.
type testCodec struct{}

func (testCodec) EncodeColumns(frames iter.Seq[[]byte], _ func() [][]byte, _ func()) ([][]byte, error) {
	var col []byte
	for f := range frames {
		col = binary.AppendUvarint(col, uint64(len(f)))
		col = append(col, f...)
	}
	return [][]byte{col}, nil
}

func (testCodec) DecodeColumns(cols [][]byte, n int, _ func()) ([][]byte, error) {
	var out [][]byte
	for b := cols[0]; len(b) > 0; {
		size, rest, ok := takeUvarint(b, uint64(len(b)))
		if !ok || size > uint64(len(rest)) {
			return nil, errSegment
		}
		out = append(out, rest[:size])
		b = rest[size:]
	}
	return out, nil
}

func (c testCodec) Frames(cols [][]byte, n int, yield func()) iter.Seq2[[]byte, error] {
	return func(give func([]byte, error) bool) {
		frames, err := c.DecodeColumns(cols, n, yield)
		for _, f := range frames {
			if !give(f, nil) {
				return
			}
		}
		if err != nil {
			give(nil, err)
		}
	}
}

// world is a ledger with everything around it.
type world struct {
	t    testing.TB
	fs   *store.Mem
	keys *testKeys
	opt  Options
	vkey string
	l    *Ledger
	rec  *Recovered
	stop context.CancelFunc
	done chan error
}

var testSeed = sha256.Sum256([]byte("seed"))

func newWorld(t testing.TB, change func(*Options)) *world {
	t.Helper()
	origin := Origin("log.example", "n1", testSeed)
	s, vkey, err := NewSigner(origin, testSeed)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, fs: store.NewMem(nil), keys: newTestKeys(), vkey: vkey}
	w.opt = Options{Origin: origin, Signer: s, Codec: testCodec{}, Prealloc: 8 << 10}
	if change != nil {
		change(&w.opt)
	}
	w.opt.FS, w.opt.Keys = w.fs, w.keys
	if err := Create(w.opt, vkey); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) open() *world {
	w.t.Helper()
	if err := w.tryOpen(); err != nil {
		w.t.Fatal(err)
	}
	return w
}

func (w *world) tryOpen() (err error) {
	w.opt.FS, w.opt.Keys = w.fs, w.keys
	w.l, w.rec, err = Open(w.opt, w.vkey)
	return err
}

// run starts the background loops.
func (w *world) run() *world {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.done = cancel, make(chan error, 1)
	l := w.l
	go func() { w.done <- l.Run(ctx) }()
	return w
}

func (w *world) halt() {
	w.t.Helper()
	w.stop()
	if err := <-w.done; err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.t.Helper()
	if err := w.l.Close(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// reboot continues on what the disk kept.
func (w *world) reboot(fs *store.Mem) {
	w.fs, w.keys = fs, w.keys.forget()
}

func markID(n uint64) (id [16]byte) {
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func testItem(kind ItemKind, n uint64) *Item {
	id := [16]byte{byte(n % 7), 1}
	key := subjectKey(id)
	return &Item{
		Kind: kind, Mark: markID(n), Closes: kind == ItemRecord, Time: int64(n), Subject: id, SubjectKey: &key, Births: [2][]byte{id[:]},
		Frame: fmt.Appendf(nil, `{"n":%d}`, n), Personal: fmt.Appendf(nil, `{"ip":"192.0.2.%d"}`, n%200),
	}
}

func (w *world) add(level Level, ns ...uint64) {
	w.t.Helper()
	for _, n := range ns {
		if _, err := w.l.Append(context.Background(), testItem(ItemRecord, n), level); err != nil {
			w.t.Fatalf("record %d: %v", n, err)
		}
	}
}

// frames returns the frames of all records of the view, in order.
func frames(t testing.TB, v *View) []string {
	t.Helper()
	var out []string
	err := v.Read(0, v.Size(), func(s *Sealed) error {
		if s.PersonalErr != nil {
			return s.PersonalErr
		}
		if !s.Manifest {
			out = append(out, string(s.Frame))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (w *world) view() *View {
	w.t.Helper()
	v, err := w.l.View()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { v.Close() })
	return v
}

// verify checks a copy of the files with and without keys.
func (w *world) verify() *Report {
	w.t.Helper()
	rep, err := Verify(VerifyOptions{FS: w.fs.Clone(), Codec: w.opt.Codec, Keys: w.keys.forget(), Key: w.vkey})
	if err != nil {
		w.t.Fatal(err)
	}
	return rep
}

func (w *world) mustVerify() *Report {
	w.t.Helper()
	rep := w.verify()
	if code := rep.ExitCode(); code != 0 {
		w.t.Fatalf("verify gives exit code %d: %+v, findings %v", code, rep, rep.Findings)
	}
	return rep
}

func sameFrames(t testing.TB, got []string, want ...uint64) {
	t.Helper()
	var b bytes.Buffer
	for _, n := range want {
		fmt.Fprintf(&b, `{"n":%d}`, n)
	}
	var g bytes.Buffer
	for _, f := range got {
		g.WriteString(f)
	}
	if b.String() != g.String() {
		t.Fatalf("records\n%s\nwant\n%s", g.String(), b.String())
	}
}

func seqTo(n uint64) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(i)
	}
	return out
}
