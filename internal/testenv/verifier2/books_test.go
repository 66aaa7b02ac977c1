package verifier2_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/testenv/verifier2"
)

// shelf is a book on disk.
type shelf struct {
	dir, keys, vkey string
}

func (s shelf) config() book.Config {
	return book.Config{Dir: s.dir, KeyDir: s.keys, Prefix: "log.example", Node: "n1"}
}

// newShelf makes an empty book.
func newShelf(t *testing.T) shelf {
	t.Helper()
	root := t.TempDir()
	s := shelf{dir: filepath.Join(root, "book"), keys: filepath.Join(root, "keys")}
	var err error
	if s.vkey, err = book.Create(t.Context(), s.config()); err != nil {
		t.Fatal(err)
	}
	return s
}

// copy is the book as it lies on the disk now.
func (s shelf) copy(t *testing.T) shelf {
	t.Helper()
	root := t.TempDir()
	c := shelf{dir: filepath.Join(root, "book"), keys: filepath.Join(root, "keys"), vkey: s.vkey}
	for from, to := range map[string]string{s.dir: c.dir, s.keys: c.keys} {
		if err := os.MkdirAll(to, 0o700); err != nil {
			t.Fatal(err)
		}
		err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			if d.IsDir() {
				return os.MkdirAll(filepath.Join(to, rel), 0o700)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(to, rel), b, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// run opens the book, lets use work with it and stops Run. The book is
// returned open, at rest.
func (s shelf) run(t *testing.T, use func(*book.Book, *book.Recorder)) *book.Book {
	t.Helper()
	b, err := book.Open(t.Context(), s.config())
	if err != nil {
		t.Fatal(err)
	}
	rules, err := redact.New(redact.Config{
		QueryKeys: map[string][]string{"orders.read": {"page"}},
		Names:     redact.Names{Routes: []string{"orders.read", "orders.write", "rest"}, Issuers: []string{"corp"}, Roles: []string{"clerk", "admin"}, Hosts: []string{"api.example.com"}, Clients: []string{"web", "app"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	use(b, b.Recorder(rules, "00112233445566778899aabbccddeeff"))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return b
}

func closeBook(t *testing.T, b *book.Book) {
	t.Helper()
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// traffic records n exchanges of every sort.
func traffic(t *testing.T, rng *rand.Rand, n int) func(*book.Book, *book.Recorder) {
	return func(b *book.Book, rec *book.Recorder) {
		t.Helper()
		for i := range n {
			level := record.Level(rng.IntN(2))
			r := someRecord(b, rng)
			var ref record.Ref
			if rng.IntN(2) == 0 {
				open := *r
				var err error
				if ref, err = rec.Open(t.Context(), &open, level); err != nil {
					t.Fatal(err)
				}
			}
			if i%50 == 49 {
				continue // an exchange whose end never comes
			}
			if err := rec.Commit(t.Context(), ref, r, level); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// someRecord makes a request, denied, anonymous, malformed or of the book's
// own.
func someRecord(b *book.Book, rng *rand.Rand) *record.Record {
	now := time.Now()
	r := &record.Record{ID: b.NewID(now), Time: now.UnixMicro() - int64(rng.IntN(100_000)), Kind: record.KindRequest, Outcome: record.Success,
		DurUS: int64(rng.IntN(90_000)), Client: record.Client{Prefix: fmt.Sprintf("192.0.%d.0/24", rng.IntN(4)), PortClass: "high", Hops: rng.IntN(2)},
		Proto: pick(rng, "HTTP/1.1", "HTTP/2"), Host: "api.example.com", Method: pick(rng, "GET", "POST")}
	r.Raw.RemoteAddr, r.Raw.RemotePort, r.Raw.UA = fmt.Sprintf("192.0.2.%d", rng.IntN(250)), 1024+rng.IntN(60_000), pick(rng, "curl/8", "Mozilla/5.0 ☃ <b>", "")
	switch rng.IntN(6) {
	case 0: // failed attempt with a claimed name
		r.Outcome, r.Status = record.Failure, 401
		r.Personal.Claimed = fmt.Sprintf("name%d", rng.IntN(9))
		r.Authn = record.Authn{Method: "jwt", Outcome: "failed", Reason: "token_expired"}
		r.Error = record.Error{Origin: "identity", Reason: "token_expired", Phase: "authn"}
	case 1: // a probe
		r.Kind, r.Outcome, r.Status, r.Raw.Unmatched, r.Raw.Path = record.KindMalformed, record.Failure, 400, true, "/.env/\xff"
	case 2:
		r.Kind, r.Client.Prefix, r.Event = record.KindAdmin, record.None, record.Event{Name: "reload", Count: rng.Int64(), Before: "a", After: "b"}
	default:
		who := fmt.Sprintf("corp|person%d", rng.IntN(25))
		r.Raw.IssuerSub, r.Personal.Sub = who, strings.TrimPrefix(who, "corp|")
		r.Route, r.Op, r.Template = pick(rng, "orders.read", "rest"), "GET /v1/orders/{id}", "/v1/orders/{id}"
		r.Raw.Path, r.Raw.Query = fmt.Sprintf("/v1/orders/%d", rng.IntN(1000)), pick(rng, "page=2", "token=secret&page=1", "")
		r.Status, r.UpstreamStatus, r.BytesIn, r.BytesOut = 200, 200, rng.Int64N(5000), rng.Int64N(1<<40)
		r.Authn = record.Authn{Method: "jwt", Issuer: "corp", Client: pick(rng, "web", "app"), Roles: pick(rng, []string{"clerk"}, []string{"admin", "clerk"}, nil), AgeS: int64(rng.IntN(900)), TTLS: int64(rng.IntN(3600)), Outcome: "ok"}
		r.Authz = record.Authz{Decision: "allow", Policies: []string{"p1"}, Set: "0123456789abcdef0123456789abcdef"}
		r.Limit = record.Limit{Rule: "per_subject", Outcome: "ok", Remaining: int64(rng.IntN(200)), Mode: "local"}
		r.TLS = record.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Resumed: rng.IntN(2) == 0}
		r.Upstream = record.Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1 + rng.IntN(2), Reused: rng.IntN(2) == 0, TTFBUS: int64(rng.IntN(50_000))}
	}
	return r
}

// both runs the two verifiers over a book and demands that they agree. It
// returns the records found and why the second one refuses.
func (s shelf) both(t *testing.T, what string) (records int, err error) {
	t.Helper()
	rep, first := book.Verify(t.Context(), book.VerifyOptions{Dir: s.dir, KeyDir: s.keys, Key: s.vkey})
	if first == nil && rep.ExitCode() != 0 {
		first = fmt.Errorf("exit code %d, findings %v, %+v", rep.ExitCode(), rep.Findings, rep)
	}
	records, err = verifier2.Verify(s.dir, s.keys, s.vkey)
	if (first == nil) != (err == nil) {
		t.Fatalf("%s: the verifiers disagree:\nbook:      %v\nverifier2: %v", what, first, err)
	}
	if err == nil && rep.Records != uint64(records) {
		t.Fatalf("%s: the verifiers count %d and %d records", what, rep.Records, records)
	}
	return records, err
}

// library makes the books that the tests damage: one cleanly closed with
// several segments, one killed with a WAL in use, and the second one reopened
// and killed again.
func library(t *testing.T) map[string]shelf {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 7))
	s := newShelf(t)
	for range 3 {
		closeBook(t, s.run(t, traffic(t, rng, 110)))
	}
	closed := s.copy(t)
	b := s.run(t, traffic(t, rng, 130))
	killed := s.copy(t)
	closeBook(t, b)

	again := killed.copy(t)
	b = again.run(t, traffic(t, rng, 20))
	twice := again.copy(t)
	closeBook(t, b)
	return map[string]shelf{"closed": closed, "killed": killed, "killed twice": twice}
}

func TestGoodBooks(t *testing.T) {
	for name, s := range library(t) {
		n, err := s.both(t, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n < 300 {
			t.Errorf("%s: only %d records", name, n)
		}
	}
}

// files lists a folder's files, or the file itself.
func (s shelf) files(t *testing.T, patterns ...string) []string {
	t.Helper()
	var out []string
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(s.dir, p))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, found...)
	}
	return out
}

// current is the WAL file in use; a prepared one holds a header only.
func (s shelf) current(t *testing.T) string {
	t.Helper()
	best, most := "", 0
	for _, file := range s.files(t, "wal/*.wal") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := used(b); n > most {
			best, most = file, n
		}
	}
	return best
}

// TestFlippedBytes changes single bytes. In segments, manifests and notes
// each must be found; in the WAL both verifiers must at least agree, since a
// torn tail and unused space are irrelevant (section 14).
func TestFlippedBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, s := range library(t) {
		accepted, refused := 0, 0
		for _, file := range s.files(t, "checkpoint", "ledger", "log.vkey", "manifests/*", "segments/*", "wal/*") {
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tries := 12
			if strings.Contains(file, "/wal/") {
				tries = 40
			}
			for i := range tries / flipShare {
				at := rng.IntN(len(whole))
				if i%3 == 0 {
					at = rng.IntN(min(len(whole), 200)) // headers
				}
				if i%3 == 1 {
					at = len(whole) - 1 - rng.IntN(min(len(whole), 200)) // footers
				}
				if end := used(whole); strings.Contains(file, "/wal/") && i%3 == 2 {
					at = max(0, end-1-rng.IntN(end)/8) // newest batches
				}
				changed := append([]byte(nil), whole...)
				changed[at] ^= byte(1 + rng.IntN(255))
				what := fmt.Sprintf("%s: %s byte %d: %#x -> %#x", name, file, at, whole[at], changed[at])
				write(t, file, changed)
				_, err := s.both(t, what)
				if err == nil {
					accepted++
					// A torn tail and spare space are irrelevant; a prepared
					// file is nothing but a header and spare space.
					prepared := used(whole) < 200
					if !strings.Contains(file, "/wal/") || !prepared && at < used(whole)/2 {
						t.Errorf("%s is not found", what)
					}
				} else {
					refused++
				}
			}
			write(t, file, whole)
		}
		t.Logf("%s: %d changes found, %d irrelevant", name, refused, accepted)
		if refused == 0 {
			t.Errorf("%s: nothing is ever found", name)
		}
	}
}

// used is the length of b without the zeros at its end.
func used(b []byte) int {
	n := len(b)
	for n > 1 && b[n-1] == 0 {
		n--
	}
	return n
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedBooks damages a copy of each book as a whole.
func TestDamagedBooks(t *testing.T) {
	books := library(t)
	last := func(t *testing.T, s shelf, pattern string) string {
		files := s.files(t, pattern)
		if len(files) == 0 {
			t.Fatalf("no %s", pattern)
		}
		return files[len(files)-1]
	}
	read := func(t *testing.T, file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	remove := func(pattern string) func(*testing.T, shelf) {
		return func(t *testing.T, s shelf) {
			if err := os.Remove(last(t, s, pattern)); err != nil {
				t.Fatal(err)
			}
		}
	}
	either := errors.New("either, if both agree")
	refuse := errors.New("refuse")
	for _, c := range []struct {
		name   string
		want   error // nil: must be accepted
		damage func(*testing.T, shelf)
	}{
		{"a segment is missing", refuse, remove("segments/*")},
		{"the oldest manifest is missing", refuse, func(t *testing.T, s shelf) {
			if err := os.Remove(s.files(t, "manifests/*")[0]); err != nil {
				t.Fatal(err)
			}
		}},
		{"the newest manifest is in the WAL only", refuse, remove("manifests/*")},
		{"the WAL is missing", refuse, func(t *testing.T, s shelf) {
			if err := os.Remove(s.current(t)); err != nil {
				t.Fatal(err)
			}
		}},
		{"the checkpoint is missing", refuse, remove("checkpoint")},
		{"the identity is missing", refuse, remove("ledger")},
		{"the key in the folder is missing", refuse, remove("log.vkey")},
		{"the key folder lacks the epoch", refuse, func(t *testing.T, s shelf) {
			if err := os.Remove(filepath.Join(s.keys, "epoch-0000000001.key")); err != nil {
				t.Fatal(err)
			}
		}},
		{"two segments change places", refuse, func(t *testing.T, s shelf) {
			f := s.files(t, "segments/*")
			a, b := read(t, f[0]), read(t, f[1])
			write(t, f[0], b)
			write(t, f[1], a)
		}},
		{"two manifests change places", refuse, func(t *testing.T, s shelf) {
			f := s.files(t, "manifests/*")
			a, b := read(t, f[0]), read(t, f[1])
			write(t, f[0], b)
			write(t, f[1], a)
		}},
		{"a manifest also stands under a record's index", refuse, func(t *testing.T, s shelf) {
			write(t, filepath.Join(s.dir, "manifests", fmt.Sprintf("%016x", 3)), read(t, last(t, s, "manifests/*")))
		}},
		{"a manifest also stands behind the end", refuse, func(t *testing.T, s shelf) {
			write(t, filepath.Join(s.dir, "manifests", fmt.Sprintf("%016x", 1<<40)), read(t, last(t, s, "manifests/*")))
		}},
		{"a segment grows by a byte", refuse, func(t *testing.T, s shelf) {
			f := last(t, s, "segments/*")
			write(t, f, append(read(t, f), 0))
		}},
		{"a segment is empty", refuse, func(t *testing.T, s shelf) { write(t, last(t, s, "segments/*"), nil) }},
		{"the WAL is zeros", refuse, func(t *testing.T, s shelf) {
			f := s.current(t)
			write(t, f, make([]byte, len(read(t, f))))
		}},
		{"the WAL ends in its first half", either, func(t *testing.T, s shelf) {
			f := s.current(t)
			b := read(t, f)
			write(t, f, b[:used(b)/2])
		}},
		{"the WAL's last byte is gone", either, func(t *testing.T, s shelf) {
			f := s.current(t)
			b := read(t, f)
			write(t, f, b[:used(b)-1])
		}},
		{"the WAL has no spare space", nil, func(t *testing.T, s shelf) {
			f := s.current(t)
			b := read(t, f)
			write(t, f, b[:used(b)])
		}},
		{"the WAL ends in noise", nil, func(t *testing.T, s shelf) {
			f := s.current(t)
			b := read(t, f)
			write(t, f, append(b[:used(b)], strings.Repeat("noise", 200)...))
		}},
		{"files that never came to be", nil, func(t *testing.T, s shelf) {
			write(t, filepath.Join(s.dir, "wal", fmt.Sprintf("%016x.wal", 1<<30)), make([]byte, 5000))
			write(t, filepath.Join(s.dir, "wal", fmt.Sprintf("%016x.wal", 1<<31)), nil)
			write(t, filepath.Join(s.dir, "wal", "x.tmp"), []byte("x"))
			write(t, filepath.Join(s.dir, "manifests", "x.tmp"), []byte("x"))
			write(t, filepath.Join(s.dir, "segments", "0000000000000000.9.seg"), []byte("x"))
		}},
		{"a WAL file with another name", refuse, func(t *testing.T, s shelf) {
			f := s.current(t)
			write(t, filepath.Join(s.dir, "wal", fmt.Sprintf("%016x.wal", 1<<30)), read(t, f))
		}},
		{"a stray name in wal", refuse, func(t *testing.T, s shelf) { write(t, filepath.Join(s.dir, "wal", "x"), nil) }},
		{"a stray name in manifests", refuse, func(t *testing.T, s shelf) { write(t, filepath.Join(s.dir, "manifests", "x"), nil) }},
	} {
		for name, s := range books {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				d := s.copy(t)
				c.damage(t, d)
				if _, err := d.both(t, c.name); c.want != either && (err == nil) != (c.want == nil) {
					t.Errorf("both say %v", err)
				}
			})
		}
	}
}

// TestRolledBackCheckpoint puts an older checkpoint of the same log back. With
// the WAL in which the newer one is noted it is found.
func TestRolledBackCheckpoint(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	s := newShelf(t)
	closeBook(t, s.run(t, traffic(t, rng, 30)))
	old, err := os.ReadFile(filepath.Join(s.dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	b := s.run(t, traffic(t, rng, 30))
	killed := s.copy(t)
	closeBook(t, b)
	write(t, filepath.Join(killed.dir, "checkpoint"), old)
	if _, err := killed.both(t, "rolled back"); err == nil {
		t.Error("a rolled-back checkpoint is accepted although the WAL notes a newer one")
	}
}
