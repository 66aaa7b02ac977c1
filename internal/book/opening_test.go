package book

import (
	"context"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
)

// TestErasedUnderWay: whoever is unbound between the open mark and the record is
// somebody new in the record, as in every exchange after it, and a stranger whose
// day is dropped too. What the mark left is not used then; otherwise it is, and
// the record is the mark's subject's.
func TestErasedUnderWay(t *testing.T) {
	ctx := context.Background()
	r := newRoom(t, small(64))
	b := r.open()
	rec := b.Recorder(testRules(t), testSnap)
	for _, who := range []string{"alice", "bob", ""} {
		for _, erase := range []bool{false, true, true} {
			x := exchange(b, 0, who)
			ref, err := rec.Open(ctx, x, record.Written)
			if err != nil {
				t.Fatal(err)
			}
			marked := x.Subject
			if erase && who != "" {
				s, err := b.ring.Person("corp|" + who)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.ring.Unbind(s.ID); err != nil {
					t.Fatal(err)
				}
			}
			if erase && who == "" {
				if err := b.ring.DropDay(x.At()); err != nil {
					t.Fatal(err)
				}
			}
			x.Status, x.Outcome = 502, record.Failure
			if err := rec.Commit(ctx, ref, x, record.Written); err != nil {
				t.Fatal(err)
			}
			if (x.Subject == marked) == erase {
				t.Errorf("%q, erased %v: the mark is %s's, the record %s's", who, erase, marked, x.Subject)
			}
		}
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	r.mustVerify(nil)
	rd := r.reader()
	for _, k := range ofKind(all(t, rd), record.KindRequest) {
		if k.rec.Status != 502 || k.rec.Personal.Path != pathOf(0) {
			t.Errorf("record %d: status %d, path %q", k.index, k.rec.Status, k.rec.Personal.Path)
		}
	}
	if err := rd.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBirthIsCarriedUntilWritten: a subject that was born for an open mark is born
// again by the record if it is not known that the mark was written.
func TestBirthIsCarriedUntilWritten(t *testing.T) {
	r := newRoom(t, small(64))
	b := r.open()
	rec := b.Recorder(testRules(t), testSnap)
	ctx := context.Background()
	births := func(x *record.Record, o *opening) [2][]byte {
		t.Helper()
		buf, err := b.encode(ledger.ItemRecord, true, x, "corp|alice", o)
		if err != nil {
			t.Fatal(err)
		}
		return buf.item.Births
	}
	x := exchange(b, 0, "alice")
	who, _ := rec.redact(x)
	o := b.openings.Get().(*opening)
	if got := births(x, o); got[0] == nil {
		t.Fatal("nobody is born")
	}
	if got := births(x, o); got[0] == nil {
		t.Error("what is not in the WAL is not carried any more")
	}
	if _, err := rec.Open(ctx, exchange(b, 1, "alice"), record.Written); err != nil {
		t.Fatal(err)
	}
	if got := births(x, o); got[0] != nil || who != "corp|alice" {
		t.Error("what is in the WAL is carried again")
	}
	if !o.born || o.subject.Key == (keys.Key{}) {
		t.Errorf("not remembered: %v", o.subject)
	}
	b.forget(o)
	if o.born || o.subject.Key != (keys.Key{}) || o.who != "" {
		t.Error("a key is remembered after the exchange")
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
}
