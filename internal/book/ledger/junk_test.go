package ledger

import (
	"testing"

	"github.com/gatebook/gatebook/internal/book/store"
)

// TestJunk: a start removes what an interrupted sealing has left, and nothing
// that it did not make.
func TestJunk(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, seqTo(20)...)
	w.close() // seals them
	gone := []string{"segments/0000000000000040.0.seg", "segments/0000000000000000.1.seg", "segments/0000000000000040.0.seg.tmp"}
	stay := []string{"segments/0000000000000000.0.seg.bak", "segments/notes.txt", "segments/0000000000000000.0.seg.tmp.tmp", "segments/40.0.seg", "segments/000000000000004g.0.seg"}
	for _, name := range append(gone, stay...) {
		if err := store.WriteFile(w.fs, name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	w.mustVerify()
	w.reboot(w.fs)
	w.open()
	for _, name := range gone {
		if _, err := store.ReadFile(w.fs, name, 10); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, name := range stay {
		if _, err := store.ReadFile(w.fs, name, 10); err != nil {
			t.Errorf("%s, which is not of the book: %v", name, err)
		}
	}
	w.close()
	w.mustVerify()
}
