package ledger

import (
	"bytes"
	"context"
	"testing"
)

// TestReadWhileSealed: who reads a WAL file goes on reading it when it is sealed
// and taken away; one that nobody reads is cut off before it is removed, and what
// a stop leaves of it is no damage.
func TestReadWhileSealed(t *testing.T) {
	w := newWorld(t, nil).open()
	const n, size = 40, 60 << 10
	fill := func() {
		for i := range uint64(n) {
			it := testItem(ItemRecord, i)
			it.Personal = bytes.Repeat([]byte{byte(i)}, size)
			if _, err := w.l.Append(context.Background(), it, Written); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	v := w.view()
	if err := w.l.SealNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	sameFrames(t, frames(t, v), seqTo(n)...)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}

	fill()
	old := w.l.state.last()
	again, err := w.fs.Open(old.name)
	if err != nil {
		t.Fatal(err)
	}
	before, err := again.Size()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.l.SealNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	after, err := again.Size()
	if err != nil {
		t.Fatal(err)
	}
	if before < n*size || after > 2<<20 || after < 1<<20 {
		t.Errorf("a file of %d bytes was cut to %d before it was removed, want 1 MiB and a little", before, after)
	}
	// A stop between cutting and removing leaves the beginning without its key.
	b := make([]byte, after)
	if _, err := again.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	w.close()
	fs := w.fs.Clone()
	if err := putFile(fs, old.name, b); err != nil {
		t.Fatal(err)
	}
	w.reboot(fs)
	w.open()
	defer w.close()
	sameFrames(t, frames(t, w.view()), append(seqTo(n), seqTo(n)...)...)
	w.mustVerify()
}
