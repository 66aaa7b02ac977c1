package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/book/store"
)

// room is a book in memory with everything around it: files that forget like a
// disk, a key store whose every change is durable, and real keys in a folder.
type room struct {
	t     testing.TB
	cfg   Config
	files *store.Mem
	state *keys.MemStore
	root  keys.Wrapper
	tune  func(*ledger.Options)
	vkey  string
}

func newRoom(t testing.TB, tune func(*ledger.Options)) *room {
	t.Helper()
	root, err := keys.CreateFileWrapper(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	r := &room{t: t, cfg: testConfig(), files: store.NewMem(nil), state: keys.NewMemStore(), root: root, tune: tune}
	if r.vkey, err = create(context.Background(), &r.cfg, r.place()); err != nil {
		t.Fatal(err)
	}
	return r
}

// testConfig is complete but for its folders, which a room does not have.
func testConfig() Config {
	c := Config{Dir: "none", KeyDir: "none", Prefix: "log.example", Node: "n1", Ballast: -1}
	if err := c.setDefaults(); err != nil {
		panic(err)
	}
	return c
}

func (r *room) place() *place {
	return &place{files: r.files, state: r.state, wrapper: r.root, tune: r.tune}
}

func (r *room) tryOpen() (*Book, error) { return open(context.Background(), r.cfg, r.place()) }

func (r *room) open() *Book {
	r.t.Helper()
	b, err := r.tryOpen()
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// reader reads the files as they are, in another process as it were.
func (r *room) reader() *Reader {
	r.t.Helper()
	state := r.state.Snapshot()
	ring, err := keys.Open(context.Background(), state, r.root)
	if err != nil {
		r.t.Fatal(err)
	}
	rd, err := openReader(&r.cfg, &place{files: r.files.Clone(), state: state, wrapper: r.root, tune: r.tune}, ring)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { rd.Close() })
	return rd
}

// verify checks a copy of the files.
func (r *room) verify(saved []byte) *ledger.Report {
	r.t.Helper()
	ring, err := keys.Open(context.Background(), r.state.Snapshot(), r.root)
	if err != nil {
		r.t.Fatal(err)
	}
	rep, err := verify(ledger.VerifyOptions{FS: r.files.Clone(), Codec: codec{}, Keys: ringKeys{ring}, Key: r.vkey, Saved: saved}, ring, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return rep
}

func (r *room) mustVerify(saved []byte) *ledger.Report {
	r.t.Helper()
	rep := r.verify(saved)
	if code := rep.ExitCode(); code != 0 {
		r.t.Fatalf("verify gives exit code %d: %+v, findings %v", code, rep, rep.Findings)
	}
	return rep
}

// background runs b.Run; what it returns stops it and gives Run's error.
func background(b *Book) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// testRules keep what exchange makes.
func testRules(t testing.TB) *redact.Rules {
	t.Helper()
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"}, Issuers: []string{"corp"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

const testSnap = "00112233445566778899aabbccddeeff"

// exchange is request n. who is a person, or "" for somebody unknown from one
// of a few networks; each third of those claims a name.
func exchange(b *Book, n int, who string) *record.Record {
	now := b.cfg.Now()
	r := &record.Record{
		ID: b.NewID(now), Time: now.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
		Route: "orders.read", Op: "GET /v1/orders/{id}", Template: "/v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1",
		Status: 200, UpstreamStatus: 200, BytesOut: int64(100 + n), DurUS: int64(700 + n%50),
		Client: record.Client{Prefix: fmt.Sprintf("192.0.%d.0/24", n%4), PortClass: "dynamic"},
		Raw:    record.Raw{Path: pathOf(n), UA: "curl/8.5.0", RemoteAddr: fmt.Sprintf("192.0.%d.%d", n%4, n%200), RemotePort: 40000 + n%9999},
	}
	if who == "" {
		r.Authn = record.Authn{Method: record.None, Outcome: "failed", Reason: "token_expired"}
		r.Status, r.Outcome = 401, record.Failure
		if n%3 == 0 {
			r.Personal.Claimed = fmt.Sprintf("claimed-%d", n%5)
		}
		return r
	}
	r.Authn = record.Authn{Method: "jwt", Issuer: "corp", Alg: "ES256", Outcome: "ok"}
	r.Authz = record.Authz{Decision: "allow", Policies: []string{"open"}}
	r.Personal.Sub, r.Raw.IssuerSub = who, "corp|"+who
	return r
}

func pathOf(n int) string { return fmt.Sprintf("/v1/orders/%d", n) }

// kept is one record as read back, with its personal part.
type kept struct {
	index           uint64
	kind            record.Kind
	id              record.ID
	subject         string
	rec             record.Record
	frame, personal string
}

// all reads every record.
func all(t testing.TB, rd *Reader) []kept {
	t.Helper()
	var out []kept
	err := rd.Each(0, rd.Size(), true, func(e *Entry) error {
		if e.Sealed != nil {
			return fmt.Errorf("record %d: %w", e.Index, e.Sealed)
		}
		out = append(out, kept{e.Index, e.Record.Kind, e.Record.ID, e.Record.Subject, *e.Record, string(e.Frame), string(e.Personal)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ofKind are the records of one kind.
func ofKind(ks []kept, kind record.Kind) []kept {
	var out []kept
	for _, k := range ks {
		if k.kind == kind {
			out = append(out, k)
		}
	}
	return out
}

// small makes ledger files small.
func small(records uint64) func(*ledger.Options) {
	return func(o *ledger.Options) {
		o.SegmentRecords, o.Prealloc = records, 4<<10
		o.CheckpointEvery = time.Hour
	}
}

// keepAll is one exchange from open mark to record.
func keepAll(rec *Recorder, r *record.Record, l record.Level) error {
	ref, err := rec.Open(context.Background(), r, l)
	if err != nil {
		return err
	}
	return rec.Commit(context.Background(), ref, r, l)
}

func mustReason(t testing.TB, err error, want string) {
	t.Helper()
	var named interface{ Reason() string }
	if !errors.As(err, &named) || named.Reason() != want {
		t.Fatalf("error %v, want the reason %s", err, want)
	}
}

// mirror copies the files of a room.
func mirror(t testing.TB, m *store.Mem) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range m.Files() {
		b, err := store.ReadFile(m, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = bytes.Clone(b)
	}
	return out
}
