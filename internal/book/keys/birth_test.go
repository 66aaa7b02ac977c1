package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func sampleBirths() []birth {
	key, _ := seq(0x40)
	w := func(kind Kind, id ID) wrapped { return goldenWrap(kind, id, 7, &key) }
	id := ID([]byte("0123456789abcdef"))
	return []birth{
		{typ: birthPerson, id: id, key: w(KindSubject, id), inner: w(kindIdentity, id)},
		{typ: birthAnonymous, id: id, key: w(KindSubject, id), day: 20526, bucket: 0xb1},
		{typ: birthClaimed, id: id, inner: w(kindClaimed, id), day: 20526},
		{typ: birthFull, day: 20526},
	}
}

func TestBirthRoundTrip(t *testing.T) {
	for _, b := range sampleBirths() {
		p := b.encode()
		if len(p) != birthLen[b.typ] {
			t.Errorf("type %d has %d bytes", b.typ, len(p))
		}
		back := value[birth](t)(parseBirth(p))
		if !bytes.Equal(back.encode(), p) || back.id != b.id || back.day != b.day || back.bucket != b.bucket {
			t.Errorf("type %d: %+v", b.typ, back)
		}
		for n := range p {
			if _, err := parseBirth(p[:n]); err == nil {
				t.Errorf("type %d: accepted %d bytes", b.typ, n)
			}
		}
		_, err := parseBirth(append(p, 0))
		wantErr(t, err, ErrBirth)
		if b.typ != birthFull {
			zero := bytes.Clone(p)
			copy(zero[19:23], make([]byte, 4))
			_, err = parseBirth(zero)
			wantErr(t, err, ErrBirth)
		}
		p[0] = 2
		_, err = parseBirth(p)
		wantErr(t, err, ErrVersion)
		p[0], p[1] = 1, 9
		_, err = parseBirth(p)
		wantErr(t, err, ErrBirth)
		p[1] = 0
		_, err = parseBirth(p)
		wantErr(t, err, ErrBirth)
	}
}

func FuzzBirth(f *testing.F) {
	for _, b := range sampleBirths() {
		p := b.encode()
		f.Add(p)
		f.Add(p[:len(p)-1])
	}
	f.Add([]byte{})
	f.Add([]byte{1, 5})
	f.Add([]byte{2, 1, 0})
	r, s, w := newRing(f)
	settle(f, r, person1(f, r, "corp|alice").Birth)
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := parseBirth(p)
		if err != nil {
			if !errors.Is(err, ErrBirth) && !errors.Is(err, ErrVersion) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		if !bytes.Equal(b.encode(), p) {
			t.Fatal("encodes to other bytes")
		}
		// Nothing that was not wrapped by this ring gets in.
		if b.typ == birthPerson || b.typ == birthAnonymous {
			if err := r.Project([][]byte{p}); err == nil {
				t.Fatal("a forged birth was projected")
			}
			check(t, s, w)
		}
	})
}

// seq returns 32 (and 12) bytes counting up from b.
func seq(b byte) (key Key, nonce []byte) {
	for i := range key {
		key[i] = b + byte(i)
	}
	return key, key[20:]
}

// goldenGCM is the plain construction of the wrapped forms, with a given
// nonce, written apart from the code under test.
func goldenGCM(root Key, nonce, plain []byte, ad string) []byte {
	block, err := aes.NewCipher(root[:])
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm.Seal(bytes.Clone(nonce), nonce, plain, []byte(ad))
}

func goldenWrap(kind Kind, id ID, epoch byte, key *Key) wrapped {
	root, _ := seq(0)
	_, nonce := seq(0xa0)
	ad := "gatebook/v1/key\x01" + string([]byte{byte(kind)}) + string(id[:]) + "\x00\x00\x00" + string([]byte{epoch})
	return append([]byte{1, 0, 0, 0, epoch}, goldenGCM(root, nonce, key[:], ad)...)
}

func goldenHMAC(key Key, parts ...string) []byte {
	m := hmac.New(sha256.New, key[:])
	for _, p := range parts {
		m.Write([]byte(p))
	}
	return m.Sum(nil)
}

// goldenVectors builds every format by hand; the test then has the code under
// test open and rebuild them.
func goldenVectors() (names []string, vectors map[string][]byte) {
	vectors = make(map[string][]byte)
	add := func(name string, b []byte) { names = append(names, name); vectors[name] = b }
	epochKey, nonce := seq(0)
	key, _ := seq(0x40)
	rootKey, _ := seq(0x60)
	blindKey, _ := seq(0x80)
	dayKey, _ := seq(0x20)
	fileKey, _ := seq(0xc0)
	id := ID([]byte("0123456789abcdef"))

	add("key-file", append([]byte{1}, fileKey[:]...))
	add("wrapped-epoch-key", append([]byte{1}, goldenGCM(fileKey, nonce, epochKey[:], "gatebook/v1/epoch\x01\x00\x00\x00\x07")...))
	for _, kind := range []Kind{KindWAL, KindSegment, KindState, KindSigning, KindSubject} {
		add("wrapped-key-"+kind.String(), goldenWrap(kind, id, 7, &key))
	}
	for i, name := range []string{"birth-person", "birth-anonymous", "birth-claimed", "birth-full"} {
		b := sampleBirths()[i]
		add(name, b.encode())
	}
	for _, f := range []Field{FieldIdentity, FieldClaimed} {
		name := map[Field]string{FieldIdentity: "identity", FieldClaimed: "claimed"}[f]
		inner := goldenHMAC(rootKey, "gatebook/v1/blind", string([]byte{byte(f)}), "corp|alice")
		add("blind-inner-"+name, inner)
		add("blind-row-key-"+name, append(append([]byte{byte(f)}, goldenHMAC(blindKey, string(inner))[:16]...), id[:]...))
	}
	sum := goldenHMAC(dayKey, "gatebook/v1/anonymous", "192.0.2.0/24")
	add("anonymous-bucket", sum[:1])
	add("anonymous-pseudonym", []byte(ID(sum[16:]).String()))
	return names, vectors
}

func TestGolden(t *testing.T) {
	names, vectors := goldenVectors()
	var text strings.Builder
	for _, n := range names {
		fmt.Fprintf(&text, "%s %s\n", n, hex.EncodeToString(vectors[n]))
	}
	path := filepath.Join("testdata", "formats-v1.golden")
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(text.String()), 0o644))
	}
	if want := value[[]byte](t)(os.ReadFile(path)); string(want) != text.String() {
		t.Errorf("formats changed; got:\n%s", text.String())
	}

	epochKey, _ := seq(0)
	key, _ := seq(0x40)
	rootKey, _ := seq(0x60)
	e := &epoch{num: 7}
	e.blind, _ = seq(0x80)
	var err error
	e.aead, err = newAEAD(&epochKey)
	must(t, err)
	es := opener(e)
	id := ID([]byte("0123456789abcdef"))
	for _, kind := range []Kind{KindWAL, KindSegment, KindState, KindSigning, KindSubject} {
		if value[Key](t)(es.openRow(kind, id, vectors["wrapped-key-"+kind.String()])) != key {
			t.Errorf("%s key does not open", kind)
		}
	}
	for _, name := range []string{"birth-person", "birth-anonymous", "birth-claimed"} {
		b := value[birth](t)(parseBirth(vectors[name]))
		if b.key != nil && value[Key](t)(es.open(KindSubject, b.id, b.key)) != key {
			t.Errorf("%s: key does not open", name)
		}
		if b.inner != nil && value[Key](t)(es.open(b.field().kind(), b.id, b.inner)) != key {
			t.Errorf("%s: hash does not open", name)
		}
	}
	for f, name := range map[Field]string{FieldIdentity: "identity", FieldClaimed: "claimed"} {
		inner := blindInner(&rootKey, f, "corp|alice")
		k, v := e.blindRow(f, id, &inner, 3)
		if !bytes.Equal(inner[:], vectors["blind-inner-"+name]) || !bytes.Equal(k, vectors["blind-row-key-"+name]) {
			t.Errorf("blind index of %s differs", name)
		}
		if row := value[blindRow](t)(parseBlindRow(k, v)); row.field != f || row.target != id || row.day != 3 {
			t.Errorf("row %+v", row)
		}
	}
	d := new(day)
	d.key, _ = seq(0x20)
	if b, p := d.place("192.0.2.0/24"); b != vectors["anonymous-bucket"][0] || p.String() != string(vectors["anonymous-pseudonym"]) {
		t.Error("anonymous subject differs")
	}
	fw := value[*FileWrapper](t)(OpenFileWrapper(privateDir(t)))
	must(t, os.WriteFile(fw.path(7, epochSuffix), vectors["key-file"], 0o600))
	if value[Key](t)(fw.Unwrap(t.Context(), 7, vectors["wrapped-epoch-key"])) != epochKey {
		t.Error("epoch key does not open")
	}
}
