package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCreateAndOpen(t *testing.T) {
	ctx := t.Context()
	s, w := NewMemStore(), newTestWrapper()
	_, err := Open(ctx, s, w)
	wantErr(t, err, ErrNotCreated)
	r := value[*Ring](t)(Create(ctx, s, w))
	_, err = Create(ctx, s, w)
	wantErr(t, err, ErrExists)

	sys := r.System()
	if sys.Birth != nil || sys.Pseudonym != sys.ID.String() || sys.Key == (Key{}) {
		t.Errorf("system subject %+v", sys)
	}
	seed := value[[32]byte](t)(r.SigningSeed())
	if seed == (Key{}) || seed == sys.Key {
		t.Error("signing seed is not a key of its own")
	}
	again := reopen(t, s, w)
	if got := again.System(); got.ID != sys.ID || got.Key != sys.Key {
		t.Error("system subject changed")
	}
	if value[[32]byte](t)(again.SigningSeed()) != seed {
		t.Error("signing seed changed")
	}
	if value[Key](t)(again.SubjectKey(sys.ID)) != sys.Key {
		t.Error("system key not found by id")
	}
	other, _, _ := newRing(t)
	if other.System().ID == sys.ID || other.System().Key == sys.Key {
		t.Error("two rings share a system subject")
	}
	check(t, s, w)
}

func TestOpenUnavailable(t *testing.T) {
	ctx := t.Context()
	_, s, w := newRing(t)
	_, err := Open(ctx, s, newTestWrapper())
	wantErr(t, err, ErrKeyUnavailable)
	boom := errors.New("boom")
	w.fault = func(string) error { return boom }
	_, err = Open(ctx, s, w)
	wantErr(t, err, ErrKeyUnavailable)
	wantErr(t, err, boom)
	w.fault = nil
	must(t, s.Update(func(tx Tx) error { return tx.Put(bucketMeta, []byte(metaVersion), []byte{9}) }))
	_, err = Open(ctx, s, w)
	wantErr(t, err, ErrVersion)
}

func TestBoltRing(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "keys.db")
	w := value[*FileWrapper](t)(CreateFileWrapper(filepath.Join(t.TempDir(), "wrap")))
	s := value[Store](t)(OpenBolt(path, false))
	r := value[*Ring](t)(Create(ctx, s, w))
	a := person1(t, r, "corp|alice")
	settle(t, r, a.Birth)
	_, err := OpenBolt(path, false)
	wantErr(t, err, ErrLocked)
	must(t, r.Rewrap(ctx))
	must(t, r.DestroyEpoch(ctx, 1))
	must(t, s.Close())

	s = value[Store](t)(OpenBolt(path, false))
	r = value[*Ring](t)(Open(ctx, s, w))
	if got := person1(t, r, "corp|alice"); got.ID != a.ID || got.Key != a.Key {
		t.Error("alice changed")
	}
	must(t, s.Close())
	if raw := value[[]byte](t)(os.ReadFile(path)); bytes.Contains(raw, []byte("alice")) || bytes.Contains(raw, a.Key[:]) {
		t.Error("the store holds a name or a key in clear")
	}
	s = value[Store](t)(OpenBolt(path, true))
	r = value[*Ring](t)(Open(ctx, s, w))
	if value[Key](t)(r.SubjectKey(a.ID)) != a.Key {
		t.Error("a read-only store gives another key")
	}
	_, _, err = r.NewKey(KindWAL)
	wantErr(t, err, ErrReadOnly)
	must(t, s.Close())
}

func TestNewKeyAndDestroy(t *testing.T) {
	r, s, w := newRing(t)
	for _, kind := range []Kind{KindWAL, KindSegment, KindState, KindSigning, KindSubject} {
		t.Run(kind.String(), func(t *testing.T) {
			id, key, err := r.NewKey(kind)
			must(t, err)
			for _, r := range []*Ring{r, reopen(t, s, w)} {
				if value[Key](t)(r.Key(kind, id)) != key {
					t.Error("another key came back")
				}
			}
			wrong := KindWAL
			if kind == KindWAL {
				wrong = KindSegment
			}
			_, err = r.Key(wrong, id)
			wantErr(t, err, ErrKeyUnknown)
			wantErr(t, r.Destroy(wrong, id), ErrKeyUnknown)
			must(t, r.Destroy(kind, id))
			must(t, r.Destroy(kind, id))
			for _, r := range []*Ring{r, reopen(t, s, w)} {
				_, err = r.Key(kind, id)
				wantErr(t, err, ErrKeyDestroyed)
			}
		})
	}
	for _, kind := range []Kind{0, kindIdentity, kindClaimed, 200} {
		if _, _, err := r.NewKey(kind); err == nil {
			t.Errorf("made a key of %v", kind)
		}
		if _, err := r.Key(kind, ID{}); err == nil {
			t.Errorf("gave a key of %v", kind)
		}
		if err := r.Destroy(kind, ID{}); err == nil {
			t.Errorf("destroyed a key of %v", kind)
		}
	}
	wantErr(t, r.Destroy(KindSubject, r.System().ID), ErrKeyInUse)
	wantErr(t, r.Unbind(r.System().ID), ErrKeyInUse)
	for name, kind := range map[string]Kind{metaSigning: KindSigning, metaRoot: KindState, blindName(1): KindState} {
		var id ID
		must(t, s.View(func(tx Tx) (err error) {
			id, err = metaID(tx, name)
			return err
		}))
		wantErr(t, r.Destroy(kind, id), ErrKeyInUse)
	}
	check(t, s, w)
}

// A row changed anywhere, or moved to another id or kind, does not open.
func TestTamperedRows(t *testing.T) {
	r, s, w := newRing(t)
	id, _, err := r.NewKey(KindSegment)
	must(t, err)
	id2, _, err := r.NewKey(KindSegment)
	must(t, err)
	var row []byte
	must(t, s.View(func(tx Tx) error {
		row = bytes.Clone(tx.Get(bucketKey, keyRow(KindSegment, id)))
		return nil
	}))
	if len(row) != wrappedLen {
		t.Fatalf("wrapped key has %d bytes", len(row))
	}
	set := func(kind Kind, id ID, row []byte) {
		must(t, s.Update(func(tx Tx) error { return tx.Put(bucketKey, keyRow(kind, id), row) }))
	}
	for i := range row {
		for bit := range 8 {
			bad := bytes.Clone(row)
			bad[i] ^= 1 << bit
			set(KindSegment, id, bad)
			if _, err := r.Key(KindSegment, id); err == nil || errors.Is(err, ErrKeyUnknown) {
				t.Fatalf("flip of bit %d in byte %d: %v", bit, i, err)
			}
		}
	}
	for n := 1; n < len(row); n++ {
		set(KindSegment, id, row[:n])
		_, err := r.Key(KindSegment, id)
		wantErr(t, err, ErrKeyDamaged)
	}
	set(KindSegment, id, row)
	set(KindSegment, id2, row)
	_, err = r.Key(KindSegment, id2)
	wantErr(t, err, ErrKeyDamaged)
	set(KindWAL, id, row)
	_, err = r.Key(KindWAL, id)
	wantErr(t, err, ErrKeyDamaged)
	if err := r.Rewrap(t.Context()); !errors.Is(err, ErrKeyDamaged) {
		t.Errorf("rewrap over a damaged row: %v", err)
	}
	// The ring's own rows are checked at open.
	must(t, s.Update(func(tx Tx) error {
		id := value[ID](t)(metaID(tx, metaSigning))
		return tx.Put(bucketKey, keyRow(KindSigning, id), row)
	}))
	_, err = Open(t.Context(), s, w)
	wantErr(t, err, ErrKeyDamaged)
}

func TestSecretsDoNotPrint(t *testing.T) {
	r, _, _ := newRing(t)
	s := person1(t, r, "corp|alice")
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%+v %#v", s, s), s.LogValue().String()} {
		if !strings.Contains(text, s.Pseudonym) || strings.Contains(text, fmt.Sprint(s.Key[:4])[1:10]) || len(text) > 100 {
			t.Errorf("printed %q", text)
		}
	}
}

func TestParseID(t *testing.T) {
	id, _ := random()
	if got := value[ID](t)(ParseID(id.String())); got != id {
		t.Error("round trip")
	}
	good := ID{}.String()
	for _, bad := range []string{"", good[:21], good + "A", good[:21] + "B", good[:21] + "=", good[:20] + "+/", "\n" + good[:21]} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}
