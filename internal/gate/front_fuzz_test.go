package gate

import (
	"bufio"
	"io"
	"net/http"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
)

// FuzzFront sends anything through H1Conn into net/http. net/http must never
// have to answer by itself, since that would mean that the parser in front let
// something pass which net/http reads differently; and there is a record for
// every answer, at most one more for what was cut off.
func FuzzFront(f *testing.F) {
	for _, p := range readProbes(f) {
		f.Add([]byte(p.raw), uint16(len(p.raw)))
	}
	book := newFakeBook()
	s, err := NewSnapshot(SnapshotConfig{
		ID: "id", Node: "n", Recorder: book, Listeners: []Listener{{Name: "public"}},
		Routes: []*Route{{Name: "all", Path: "/{rest...}", Public: true, Engine: allowAll, Upstream: echo, UpstreamName: "u"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	g, err := New(Config{NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{Start: epoch})}, s)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) {
		if len(raw) > 64<<10 {
			return
		}
		h := serveFront(t, &frontHouse{house: &house{t: t, book: book, gate: g}}, HTTPConfig{})
		c, r := h.pipe(t)
		go func() {
			for rest := raw; len(rest) > 0; {
				n := min(max(int(size), 1), len(rest))
				if _, err := c.Write(rest[:n]); err != nil {
					break
				}
				rest = rest[n:]
			}
			c.Close()
		}()
		answers := countAnswers(r)
		<-h.over
		if n := h.engine.Stats().Foreign.Load(); n != 0 {
			t.Errorf("net/http answered %d times by itself", n)
		}
		records, cut := 0, 0
		for len(book.done) > 0 {
			rec := (<-book.done).rec
			records++
			if rec.Kind == record.KindMalformed && rec.Error.Reason == "client_aborted" {
				cut++
			}
		}
		if answers > records || cut > 1 {
			t.Errorf("%d answers, %d records, %d of them cut off", answers, records, cut)
		}
	})
}

// countAnswers counts final answers whose head came whole.
func countAnswers(r *bufio.Reader) (n int) {
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return n
		}
		if resp.StatusCode >= 200 {
			n++
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return n
		}
	}
}
