//go:build !race

package verifier2_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// The race detector makes this ten times slower and has nothing to find in it: one
// goroutine appends. "make test" runs this package without it too.

// TestBookWithATile fills a block of 65,536 leaves, so that a tile becomes a
// file.
func TestBookWithATile(t *testing.T) {
	s := newShelf(t)
	rng := rand.New(rand.NewPCG(4, 4))
	b := s.run(t, func(b *book.Book, rec *book.Recorder) {
		for b.Status().Leaves < 1<<16 {
			if err := rec.Commit(t.Context(), record.Ref{}, someRecord(b, rng), record.Written); err != nil {
				t.Fatal(err)
			}
		}
	})
	closeBook(t, b)
	n, err := s.both(t, "a book with a tile")
	if err != nil || n < 1<<16 {
		t.Fatalf("%d records, %v", n, err)
	}
	file := filepath.Join(s.dir, "tile", "1", "000")
	tile, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := append([]byte(nil), tile...)
	changed[len(changed)-1] ^= 1
	write(t, file, changed)
	if _, err := s.both(t, "a changed tile"); err == nil {
		t.Error("a changed tile is not found")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := s.both(t, "a missing tile"); err == nil {
		t.Error("a missing tile is not found")
	}
}
