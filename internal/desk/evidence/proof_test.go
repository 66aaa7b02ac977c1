package evidence

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// library is a book with some records, sealed and not, and proofs of one of
// each.
type library struct {
	vkey   string
	ids    []record.ID
	proofs [][]byte // sealed, sealed and disclosed, not sealed, not sealed and disclosed
}

// newLibrary makes one.
func newLibrary(t testing.TB) *library {
	t.Helper()
	ctx := context.Background()
	c := book.Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1"}
	l := &library{}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	l.vkey, err = book.Create(ctx, c)
	must(err)
	rules, err := redact.New(redact.Config{Names: redact.Names{Routes: []string{"a"}, Templates: []string{"/a/{id}"}}})
	must(err)
	fill := func(b *book.Book) {
		rec := b.Recorder(rules, "00112233445566778899aabbccddeeff")
		for n := range 20 {
			now := time.Now()
			r := &record.Record{ID: b.NewID(now), Time: now.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success, Route: "a", Op: "GET /a/{id}",
				Method: "GET", Status: 200, Client: record.Client{Prefix: "192.0.2.0/24"},
				Raw: record.Raw{IssuerSub: fmt.Sprintf("corp|person-%d", n%3), Path: fmt.Sprintf("/a/%d", n), UA: "curl/8.5.0 \u2028<&>"}}
			must(rec.Commit(ctx, record.Ref{}, r, record.Written))
			l.ids = append(l.ids, r.ID)
		}
	}
	b, err := book.Open(ctx, c)
	must(err)
	fill(b)
	must(b.Close(ctx)) // seals them
	b, err = book.Open(ctx, c)
	must(err)
	fill(b)
	must(b.Sign(ctx))
	rd, err := b.Reader()
	must(err)
	for _, id := range []record.ID{l.ids[3], l.ids[25]} {
		for _, reveal := range []bool{false, true} {
			p, d, err := rd.Prove(id, reveal)
			must(err)
			file, err := Encode(p, d)
			must(err)
			l.proofs = append(l.proofs, file)
		}
	}
	must(rd.Close())
	must(b.Close(ctx))
	return l
}

// TestProof: what is proved is the record, with its personal part only if that
// was disclosed.
func TestProof(t *testing.T) {
	l := newLibrary(t)
	for i, file := range l.proofs {
		if !IsProof(file) {
			t.Errorf("proof %d does not look like one: %.40q", i, file)
		}
		p, err := Verify(file, l.vkey)
		if err != nil {
			t.Fatalf("proof %d: %v", i, err)
		}
		var r record.Record
		if err := record.Decode(p.Frame, p.Personal, &r); err != nil {
			t.Fatalf("proof %d: %v", i, err)
		}
		if r.ID != l.ids[[]int{3, 25}[i/2]] || !strings.HasPrefix(p.Origin, "log.example/n1/") || p.Index >= p.Size {
			t.Errorf("proof %d is of %+v", i, p)
		}
		disclosed := i%2 == 1
		if (p.Personal != nil) != disclosed || disclosed != (r.Personal.Path == fmt.Sprintf("/a/%d", []int{3, 5}[i/2])) {
			t.Errorf("proof %d discloses %q", i, p.Personal)
		}
		if !disclosed && (bytes.Contains(extraOf(t, file), []byte("/a/3")) || bytes.Contains(extraOf(t, file), []byte("curl"))) {
			t.Errorf("proof %d holds the personal part", i)
		}
	}
}

// extraOf is the disclosed record of a proof file, in clear.
func extraOf(t testing.TB, file []byte) []byte {
	t.Helper()
	line := strings.TrimPrefix(strings.Split(string(file), "\n")[1], "extra ")
	b, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// same tells whether two proofs show the same.
func same(a, b *Proved) bool {
	return a.Origin == b.Origin && a.Index == b.Index && a.Size == b.Size && bytes.Equal(a.Frame, b.Frame) &&
		bytes.Equal(a.Personal, b.Personal) && (a.Personal == nil) == (b.Personal == nil)
}

// TestFlippedProof changes every byte of proof files: the proof is refused, or
// it shows exactly what it showed before.
func TestFlippedProof(t *testing.T) {
	l := newLibrary(t)
	bits := 1
	if os.Getenv("GATEBOOK_SOAK") != "" {
		bits = 8
	}
	for i, file := range l.proofs {
		want, err := Verify(file, l.vkey)
		if err != nil {
			t.Fatal(err)
		}
		passed := 0
		for at := range file {
			for bit := range bits {
				broken := bytes.Clone(file)
				broken[at] ^= 1 << ((at + bit) % 8)
				got, err := Verify(broken, l.vkey)
				switch {
				case err == nil && !same(got, want):
					t.Fatalf("proof %d, byte %d: another record is proved: %+v", i, at, got)
				case err == nil:
					passed++
				case !errors.Is(err, ErrProof):
					t.Fatalf("proof %d, byte %d: %v", i, at, err)
				}
			}
		}
		// JSON does not tell names in upper and lower case apart, and a note may
		// carry signatures of others; nothing else has two forms.
		if passed > 40*bits {
			t.Errorf("proof %d: %d of %d changes pass", i, passed, len(file)*bits)
		}
		for n := range file {
			if got, err := Verify(file[:n], l.vkey); err == nil {
				t.Fatalf("proof %d, cut to %d bytes: %+v", i, n, got)
			}
		}
	}
}

// TestForgedProof changes proofs in ways that make sense.
func TestForgedProof(t *testing.T) {
	l := newLibrary(t)
	hidden, open := l.proofs[0], l.proofs[1]
	other := newLibrary(t)
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"another status", edit(t, open, func(d *disclosed) { d.Frame = strings.Replace(d.Frame, `"status":200`, `"status":201`, 1) }), "changed"},
		{"another path", edit(t, open, func(d *disclosed) { d.Personal = strings.Replace(d.Personal, "/a/3", "/a/4", 1) }), "changed"},
		{"a space in the frame", edit(t, open, func(d *disclosed) { d.Frame = strings.Replace(d.Frame, ":", ": ", 1) }), "changed"},
		{"a personal part beside its hash", edit(t, hidden, func(d *disclosed) { d.Personal = `{"sub":"mallory"}` }), "key"},
		{"key and hash", edit(t, open, func(d *disclosed) { d.PersonalHash = base64.StdEncoding.EncodeToString(make([]byte, 32)) }), "not both"},
		{"neither key nor hash", edit(t, open, func(d *disclosed) { d.Key = "" }), "without its key"},
		{"the personal part left out", edit(t, open, func(d *disclosed) { d.Personal = "" }), "changed"},
		{"another key", edit(t, open, func(d *disclosed) { d.Key = base64.StdEncoding.EncodeToString(make([]byte, 32)) }), "changed"},
		{"a short key", edit(t, open, func(d *disclosed) { d.Key = "AAAA" }), "32 bytes"},
		{"another version", edit(t, open, func(d *disclosed) { d.V = 2 }), "version 2"},
		{"another index", line(open, 2, "index 9"), "changed"},
		{"an index behind the tree", line(open, 2, "index 4000"), "not in a tree"},
		{"a huge index", line(open, 2, "index 18446744073709551615"), "index"},
		{"an index with a plus", line(open, 2, "index +3"), "index"},
		{"an index with a zero", line(open, 2, "index 03"), "index"},
		{"another head", line(open, 0, "c2sp.org/tlog-proof@v2"), "first line"},
		{"a hash too few", line(open, 3, ""), "checkpoint"},
		{"a hash that is none", line(open, 3, "AAAA"), "inclusion path"},
		{"a hash doubled", line(open, 3, strings.Split(string(open), "\n")[3]+"\n"+strings.Split(string(open), "\n")[3]), "changed"},
		{"a hundred hashes", line(open, 3, strings.Repeat(strings.Split(string(open), "\n")[3]+"\n", 100)), "too long"},
		{"the checkpoint of another log", append(head(open), tail(other.proofs[1])...), "note"},
		{"the record of another place", append(head(l.proofs[3]), tail(other.proofs[3])...), "note"},
		{"nothing", nil, "empty line"},
		{"too much", append(bytes.Clone(open), make([]byte, maxProof)...), "too large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Verify(c.file, l.vkey)
			if err == nil {
				t.Fatalf("accepted: %+v", got)
			}
			if !errors.Is(err, ErrProof) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
	if _, err := Verify(open, other.vkey); !errors.Is(err, ErrProof) {
		t.Errorf("under another log's key: %v", err)
	}
	if _, err := Verify(open, "no key"); err == nil || errors.Is(err, ErrProof) {
		t.Errorf("under what is no key: %v", err)
	}
}

// edit changes the disclosed record.
func edit(t testing.TB, file []byte, change func(*disclosed)) []byte {
	t.Helper()
	var d disclosed
	if err := json.Unmarshal(extraOf(t, file), &d); err != nil {
		t.Fatal(err)
	}
	change(&d)
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return line(file, 1, "extra "+base64.StdEncoding.EncodeToString(b))
}

// line replaces line n.
func line(file []byte, n int, text string) []byte {
	lines := strings.Split(string(file), "\n")
	lines[n] = text
	return []byte(strings.Join(lines, "\n"))
}

// head is a proof up to the checkpoint, tail the checkpoint.
func head(file []byte) []byte {
	h, _, _ := bytes.Cut(file, []byte("\n\n"))
	return append(bytes.Clone(h), "\n\n"...)
}

func tail(file []byte) []byte {
	_, c, _ := bytes.Cut(file, []byte("\n\n"))
	return c
}

// TestEncode keeps the form of a proof file, which others read.
func TestEncode(t *testing.T) {
	p := &ledger.Proof{Index: 7, Checkpoint: []byte("log.example/n1\n8\nAAAA\n\nsignature\n")}
	p.Hashes = append(p.Hashes, [32]byte{1}, [32]byte{2})
	got, err := Encode(p, &book.Disclosure{Frame: []byte(`{"v":1}`), PersonalHash: [32]byte{3}})
	if err != nil {
		t.Fatal(err)
	}
	want := `c2sp.org/tlog-proof@v1
extra eyJ2IjoxLCJmcmFtZSI6IntcInZcIjoxfSIsInBlcnNvbmFsX2hhc2giOiJBd0FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBPSJ9
index 7
AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=

log.example/n1
8
AAAA

signature
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// kept are proofs that an earlier build wrote, with the key of their log.
func kept(t testing.TB) (vkey string, proofs [][]byte) {
	t.Helper()
	for _, name := range []string{"log.vkey", "hidden.tlog-proof", "open.tlog-proof"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if vkey == "" {
			vkey = strings.TrimSpace(string(b))
			continue
		}
		proofs = append(proofs, b)
	}
	return vkey, proofs
}

// TestKeptProofs: proofs outlive the release that wrote them.
func TestKeptProofs(t *testing.T) {
	vkey, proofs := kept(t)
	for i, file := range proofs {
		p, err := Verify(file, vkey)
		if err != nil {
			t.Fatal(err)
		}
		if p.Index != 29 || p.Size != 44 || !bytes.Contains(p.Frame, []byte(`"route":"a"`)) || bytes.Contains(p.Personal, []byte(`"path":"/a/5"`)) != (i == 1) {
			t.Errorf("proof %d shows %+v %s %s", i, p, p.Frame, p.Personal)
		}
	}
}

// FuzzVerify: nothing makes Verify panic, and what it accepts is what was
// proved.
func FuzzVerify(f *testing.F) {
	vkey, proofs := kept(f)
	var want []*Proved
	for _, file := range proofs {
		f.Add(file)
		p, err := Verify(file, vkey)
		if err != nil {
			f.Fatal(err)
		}
		want = append(want, p)
	}
	f.Add([]byte(proofHead + "\nextra e30=\nindex 0\n\n"))
	f.Add([]byte(proofHead + "\nextra \nindex 9223372036854775807\n\nx\n1\n\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		p, err := Verify(file, vkey)
		if err != nil {
			return
		}
		for _, w := range want {
			if same(p, w) {
				return
			}
		}
		t.Fatalf("a record is proved that nobody proved: %+v", p)
	})
}
