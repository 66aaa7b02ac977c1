package ledger

import (
	"bytes"
	"crypto/aes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// builtSegment is a segment as sealing makes it, with what went in.
type builtSegment struct {
	in      *segmentInput
	records []testRecord
	keys    *testKeys
	bytes   []byte
	unpack  *unpacker
}

// memWriter is a file in memory, written from front to back.
type memWriter []byte

func (m *memWriter) WriteAt(b []byte, off int64) (int, error) {
	*m = append((*m)[:off], b...)
	return len(b), nil
}

// testRecord is one record that goes in.
type testRecord struct {
	index           uint64
	subject         [16]byte
	commit          [32]byte
	frame, personal []byte
}

// buildTestSegment seals n records of three subjects, the leaf after every
// tenth being a manifest.
func buildTestSegment(t testing.TB, origin string, first uint64, n int) *builtSegment {
	t.Helper()
	keys := newTestKeys()
	id, key, err := keys.NewFileKey(UseSegment)
	if err != nil {
		t.Fatal(err)
	}
	in := &segmentInput{key: key, header: segmentHeader{first: first, keyID: id, origin: origin, salt: sha256.Sum256([]byte(origin))}}
	var records []testRecord
	in.frames = func(give func([]byte) bool) {
		for i := range records {
			if !give(records[i].frame) {
				return
			}
		}
	}
	for i := range n {
		if i%10 == 9 {
			in.entries = append(in.entries, entry{entryManifest, sha256.Sum256([]byte{byte(i)})})
			continue
		}
		r := testRecord{
			index: first + uint64(i), subject: [16]byte{byte(i % 3), 9},
			frame:    fmt.Appendf(nil, `{"n":%d,"what":"%s"}`, i, strings.Repeat("frame ", i%5)),
			personal: fmt.Appendf(nil, `{"who":"%s"}`, strings.Repeat("someone ", i)),
		}
		k := subjectKey(r.subject)
		r.commit, _ = commitRecord(&k, origin, r.index, r.frame, r.personal, nil)
		records = append(records, r)
		in.personal.add(r.subject, r.personal)
		in.entries = append(in.entries, entry{entryRecord, r.commit})
	}
	in.header.count = uint64(len(in.entries))
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	defer p.enc.Close()
	var b memWriter
	if err := buildSegment(newFileWriter(&b, func() {}), in, testCodec{}, keys, p); err != nil {
		t.Fatal(err)
	}
	u, err := newUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.dec.Close)
	return &builtSegment{in, records, keys, b, u}
}

// read opens everything and returns what it holds, record by record.
func (s *builtSegment) read(b []byte, keys Keys) ([]Sealed, error) {
	f, err := parseSegment(b, nil)
	if err != nil {
		return nil, err
	}
	key, err := keys.FileKey(UseSegment, f.header.keyID)
	if err != nil {
		return nil, &KeyError{What: "the segment", Err: err}
	}
	var out []Sealed
	err = f.each(&key, testCodec{}, keys, s.unpack, func(s *Sealed) error {
		out = append(out, *s)
		return nil
	})
	return out, err
}

func TestSegmentRoundTrip(t *testing.T) {
	for _, n := range []int{1, 2, 9, 10, 11, 300} {
		s := buildTestSegment(t, "log.example/n", 65536*3, n)
		got, err := s.read(s.bytes, s.keys)
		if err != nil {
			t.Fatalf("%d leaves: %v", n, err)
		}
		if len(got) != n {
			t.Fatalf("%d leaves came back as %d", n, len(got))
		}
		r := 0
		for i, g := range got {
			if g.Index != s.in.header.first+uint64(i) || g.Manifest != (i%10 == 9) || g.PersonalErr != nil {
				t.Fatalf("leaf %d of %d comes back as %+v", i, n, g)
			}
			if g.Manifest {
				continue
			}
			want := s.records[r]
			if g.Subject != want.subject || !bytes.Equal(g.Frame, want.frame) || !bytes.Equal(g.Personal, want.personal) {
				t.Fatalf("record %d comes back as %+v", i, g)
			}
			r++
		}
	}
}

// reseal replaces block 0 of the columns by raw, sealed under key at a place
// of the caller's choice. fresh says whether the key commitment in the footer
// is the new one; otherwise the old one stays.
func (s *builtSegment) reseal(t *testing.T, key [32]byte, h *segmentHeader, section byte, block uint32, fresh bool) []byte {
	t.Helper()
	f, err := parseSegment(s.bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	defer p.enc.Close()
	cols, err := testCodec{}.EncodeColumns(s.in.frames, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed, b, err := p.seal(nil, cols[0], &key, h, section, block, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) != int(f.foot.columns[0].sealed) {
		t.Fatalf("the block has %d bytes, had %d", len(sealed), f.foot.columns[0].sealed)
	}
	out := bytes.Clone(s.bytes)
	copy(out[f.hdrSize:], sealed)
	if fresh {
		f.foot.columns[0].commit = b.commit
	}
	_, at, err := decodeSegmentFooter(f.b)
	if err != nil {
		t.Fatal(err)
	}
	return sumAgain(f.foot.encode(out[:at]))
}

// sumAgain ends a file with the SHA-256 of what stands before it.
func sumAgain(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(bytes.Clone(b), sum[:]...)
}

// TestBlockIsBoundToItsPlace re-seals the first column under the right and
// under other keys and places. Only the block of this place under this key
// with this commitment may open.
func TestBlockIsBoundToItsPlace(t *testing.T) {
	s := buildTestSegment(t, "log.example/n", 65536, 40)
	right := s.in.key
	other := sha256.Sum256([]byte("another key"))
	at := func(change func(*segmentHeader)) *segmentHeader {
		h := s.in.header
		change(&h)
		return &h
	}
	same := at(func(*segmentHeader) {})
	for _, c := range []struct {
		name    string
		key     [32]byte
		h       *segmentHeader
		section byte
		block   uint32
		fresh   bool
		want    error
	}{
		{"the same again", right, same, sectionColumns, 0, true, nil},
		{"another key, old commitment", other, same, sectionColumns, 0, false, errBlock},
		{"another key, its own commitment", other, same, sectionColumns, 0, true, errKeyHash},
		{"another block number", right, same, sectionColumns, 1, true, errKeyHash},
		{"another section", right, same, sectionPersonal, 0, true, errKeyHash},
		{"another segment", right, at(func(h *segmentHeader) { h.first = 0 }), sectionColumns, 0, true, errKeyHash},
		{"another log", right, at(func(h *segmentHeader) { h.origin = "log.example/m" }), sectionColumns, 0, true, errKeyHash},
		{"another file of the same range", right, at(func(h *segmentHeader) { h.salt[0] ^= 1 }), sectionColumns, 0, true, errKeyHash},
		{"another block's place, old commitment", right, same, sectionColumns, 1, false, errBlock},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.read(s.reseal(t, c.key, c.h, c.section, c.block, c.fresh), s.keys)
			if !errors.Is(err, c.want) {
				t.Errorf("reading gives %v, want %v", err, c.want)
			}
		})
	}
}

// TestSwappedCommitment exchanges the key commitments of the column and the
// directory.
func TestSwappedCommitment(t *testing.T) {
	s := buildTestSegment(t, "log.example/n", 0, 20)
	f, err := parseSegment(s.bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.foot.columns[0].commit, f.foot.directory.commit = f.foot.directory.commit, f.foot.columns[0].commit
	_, at, err := decodeSegmentFooter(f.b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.read(sumAgain(f.foot.encode(bytes.Clone(f.b[:at]))), s.keys); !errors.Is(err, errKeyHash) {
		t.Errorf("reading gives %v, want %v", err, errKeyHash)
	}
}

// TestSwappedPersonalBlocks exchanges two blocks of equal length in the file.
func TestSwappedPersonalBlocks(t *testing.T) {
	s := buildTestSegment(t, "log.example/n", 0, 9)
	f, err := parseSegment(s.bytes, nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	defer u.dec.Close()
	d, err := f.directory(&s.in.key, u)
	if err != nil {
		t.Fatal(err)
	}
	for n := range d.subjects {
		right, wrong := subjectKey(d.subjects[n]), subjectKey(d.subjects[(n+1)%3])
		if _, err := f.personal(d, n, &right, u); err != nil {
			t.Fatalf("block %d: %v", n, err)
		}
		if _, err := f.personal(d, n, &wrong, u); !errors.Is(err, errKeyHash) {
			t.Errorf("block %d under the key of another subject: %v, want %v", n, err, errKeyHash)
		}
		moved := *d
		moved.blocks, moved.at = slices.Clone(d.blocks), slices.Clone(d.at)
		moved.blocks[n], moved.at[n] = d.blocks[(n+1)%3], d.at[(n+1)%3]
		if _, err := f.personal(&moved, n, &right, u); !errors.Is(err, errKeyHash) {
			t.Errorf("block %d in place of block %d: %v, want %v", (n+1)%3, n, err, errKeyHash)
		}
	}
}

// TestTwoKeyCiphertext makes one AES-GCM message that authenticates under two
// keys (the invisible salamander of Dodis and others, CRYPTO 2018) and shows
// that the key commitment lets it open under one only.
func TestTwoKeyCiphertext(t *testing.T) {
	h := &segmentHeader{first: 7, count: 1, origin: "log.example/n"}
	keys := [2][32]byte{sha256.Sum256([]byte("one")), sha256.Sum256([]byte("two"))}
	var derived, commits [2][32]byte
	for i := range keys {
		derived[i], commits[i] = blockKey(&keys[i], h, sectionPersonal, 0)
	}
	sealed := twoKeyMessage(t, derived)
	for i := range derived {
		aead, err := gcmOnce(derived[i])
		if err != nil {
			t.Fatal(err)
		}
		var nonce [12]byte
		if _, err := aead.Open(nil, nonce[:], sealed, nil); err != nil {
			t.Fatalf("the message does not authenticate under key %d: the attack itself is wrong", i)
		}
	}
	u, err := newUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	defer u.dec.Close()
	for i := range keys {
		for j := range commits {
			_, err := u.open(sealed, sealedBlock{raw: 15, sealed: uint32(len(sealed)), commit: commits[j]}, &keys[i], h, sectionPersonal, 0)
			if got := errors.Is(err, errKeyHash); got != (i != j) {
				t.Errorf("key %d with commitment %d: %v", i, j, err)
			}
		}
	}
}

// field is an element of GF(2^128) as GCM writes it: bit 0 is the highest of
// the first byte.
type field struct{ hi, lo uint64 }

func fieldOf(b []byte) field {
	return field{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (a field) add(b field) field { return field{a.hi ^ b.hi, a.lo ^ b.lo} }

func (a field) mul(b field) (z field) {
	for i := range 128 {
		bit := a.hi >> (63 - i%64)
		if i >= 64 {
			bit = a.lo >> (63 - i%64)
		}
		if bit&1 == 1 {
			z = z.add(b)
		}
		carry := b.lo & 1
		b = field{b.hi >> 1, b.lo>>1 | b.hi<<63}
		b.hi ^= carry * 0xe1 << 56
	}
	return z
}

// inverse is a^(2^128-2).
func (a field) inverse() field {
	z := field{hi: 1 << 63}
	for range 127 {
		a = a.mul(a)
		z = z.mul(a)
	}
	return z
}

// twoKeyMessage solves for the one block of ciphertext that has the same tag
// under both keys, with nonce 0 and no associated data:
// tag = C·H² + len·H + E(1).
func twoKeyMessage(t *testing.T, keys [2][32]byte) []byte {
	t.Helper()
	var hash, mask [2]field
	for i := range keys {
		c, err := aes.NewCipher(keys[i][:])
		if err != nil {
			t.Fatal(err)
		}
		var b [16]byte
		c.Encrypt(b[:], b[:])
		hash[i] = fieldOf(b[:])
		b = [16]byte{15: 1}
		c.Encrypt(b[:], b[:])
		mask[i] = fieldOf(b[:])
	}
	length := field{lo: 128}
	sum := hash[0].add(hash[1])
	block := length.mul(sum).add(mask[0]).add(mask[1]).mul(sum.mul(sum).inverse())
	tag := block.mul(hash[0].mul(hash[0])).add(length.mul(hash[0])).add(mask[0])
	var out []byte
	for _, f := range []field{block, tag} {
		out = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(out, f.hi), f.lo)
	}
	return out
}

// A record that is carried to another place must get another commitment, even
// under the same subject.
func TestTransplantedRecord(t *testing.T) {
	key := sha256.Sum256([]byte("subject"))
	frame, personal := []byte(`{"n":1}`), []byte(`{"ip":"192.0.2.1"}`)
	home, _ := commitRecord(&key, "log.example/n", 5, frame, personal, nil)
	for _, c := range []struct {
		name   string
		origin string
		index  uint64
	}{
		{"another index", "log.example/n", 6},
		{"another log", "log.example/m", 5},
		{"digits moved from origin to index", "log.example", 5},
	} {
		if away, _ := commitRecord(&key, c.origin, c.index, frame, personal, nil); away == home {
			t.Errorf("%s: the commitment stays the same", c.name)
		}
	}
	// The boundary between frame and personal part is bound too.
	if moved, _ := commitRecord(&key, "log.example/n", 5, append(bytes.Clone(frame), personal[0]), personal[1:], nil); moved == home {
		t.Error("a byte moved from the personal part to the frame: the commitment stays the same")
	}
}

// The two derivations of a record's commitment must be the ones that
// docs/format.md names, computed here with the library's HKDF and HMAC.
func TestCommitKeyIsHKDF(t *testing.T) {
	key := sha256.Sum256([]byte("subject"))
	for _, origin := range []string{"a", "log.example/n1/0011223344556677", strings.Repeat("o", maxOrigin)} {
		info := binary.BigEndian.AppendUint64([]byte(labelCommit+origin), 1<<40+7)
		want := hkdfExpand(t, key[:], info)
		if got := CommitKey(&key, origin, 1<<40+7); got != want {
			t.Errorf("origin of %d bytes: k is %x, HKDF gives %x", len(origin), got, want)
		}
		personal := bytes.Repeat([]byte("p"), len(origin)*3)
		if got, _ := PersonalHash(&want, personal, nil); got != hmacSum(want[:], personal) {
			t.Errorf("origin of %d bytes: P is not HMAC-SHA256", len(origin))
		}
	}
}

// A block's key and the commitment to it must be the HKDF that docs/format.md
// names.
func TestBlockKeyIsHKDF(t *testing.T) {
	key := sha256.Sum256([]byte("segment"))
	for _, origin := range []string{"a", "log.example/n1/0011223344556677", strings.Repeat("o", maxOrigin)} {
		h := &segmentHeader{first: 1<<40 + 7, salt: sha256.Sum256([]byte(origin)), origin: origin}
		info := append(h.salt[:], labelSeal+origin...)
		info = binary.BigEndian.AppendUint64(info, h.first)
		info = binary.BigEndian.AppendUint32(append(info, sectionPersonal), 1<<30+9)
		want, err := hkdf.Expand(sha256.New, key[:], string(info), 64)
		if err != nil {
			t.Fatal(err)
		}
		if k, commit := blockKey(&key, h, sectionPersonal, 1<<30+9); !bytes.Equal(append(k[:], commit[:]...), want) {
			t.Errorf("origin of %d bytes: %x %x, HKDF gives %x", len(origin), k, commit, want)
		}
	}
}

// Who commits to many records of one subject must get what commitRecord gives
// for each, in whatever order subjects come.
func TestCommitter(t *testing.T) {
	for _, origin := range []string{"a", "log.example/n1/0011223344556677", strings.Repeat("o", 46), strings.Repeat("o", maxOrigin)} {
		c := newCommitter(origin)
		subjects := make([]subjectState, 3)
		for i := range subjects {
			subjects[i].key = sha256.Sum256([]byte{byte(i)})
		}
		for i := range 300 {
			s := &subjects[i*i%3]
			frame, personal := bytes.Repeat([]byte("f"), i*5), bytes.Repeat([]byte("p"), i)
			want, _ := commitRecord(&s.key, origin, uint64(i)<<33, frame, personal, nil)
			if got := c.record(s, uint64(i)<<33, frame, personal); got != want {
				t.Fatalf("origin of %d bytes, record %d: %x, want %x", len(origin), i, got, want)
			}
		}
	}
}

// A destroyed segment key must be told from damage, and the tree must still be
// checkable.
func TestDroppedSegmentKey(t *testing.T) {
	w := newWorld(t, nil).open().run()
	w.add(Durable, seqTo(30)...)
	w.halt()
	w.close()
	f, err := readSegment(w.fs, segmentName(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.keys.DropFileKey(UseSegment, f.header.keyID); err != nil {
		t.Fatal(err)
	}
	w.opt.FS, w.opt.Keys = w.fs.Clone(), w.keys
	v, err := Inspect(w.opt, w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var noKey *KeyError
	if err := v.Read(0, v.Size(), func(*Sealed) error { return nil }); !errors.As(err, &noKey) {
		t.Errorf("reading gives %v, want a KeyError", err)
	}
	rep := w.verify()
	if rep.ExitCode() == 0 || rep.Tree.Status != OK || rep.Keys.Status != Failed {
		t.Errorf("verify gives exit code %d, tree %v, keys %v", rep.ExitCode(), rep.Tree, rep.Keys)
	}
}

// A tree that grows by whole tiles and one that grows leaf by leaf are the same,
// with the same tiles of higher levels.
func TestPushTile(t *testing.T) {
	leaves := make([]tlog.Hash, 3*tileWidth+7)
	for i := range leaves {
		leaves[i] = sha256.Sum256([]byte{byte(i), byte(i >> 8)})
	}
	for start := 0; start <= tileWidth; start += tileWidth {
		var single, tiled frontier
		for i := range leaves {
			single.push(leaves[i])
		}
		for i := 0; i < len(leaves); {
			if i >= start && i%tileWidth == 0 && i+tileWidth <= len(leaves) {
				tiled.pushTile(perfectRoot(leaves[i:][:tileWidth]))
				i += tileWidth
				continue
			}
			tiled.push(leaves[i])
			i++
		}
		if single.size != tiled.size || single.root() != tiled.root() || !slices.Equal(single.levels[1], tiled.levels[1]) {
			t.Errorf("tiles from leaf %d: size %d root %x, leaf by leaf %d %x", start, tiled.size, tiled.root(), single.size, single.root())
		}
	}
}

// The roots that verify takes from whole tiles are those of coverRange, wherever
// the segment begins and ends.
func TestSegmentTreeRoots(t *testing.T) {
	for _, r := range [][2]uint64{{0, 1}, {0, 256}, {0, 65536}, {3, 200}, {200, 300}, {255, 1025}, {256, 512}, {1000, 5000}, {65535, 66000}} {
		f := &segmentFile{header: segmentHeader{first: r[0], count: r[1] - r[0]}, entries: make([]entry, r[1]-r[0])}
		for i := range f.entries {
			f.entries[i] = entry{entryRecord, sha256.Sum256(binary.BigEndian.AppendUint64(nil, r[0]+uint64(i)))}
		}
		if got, want := newSegmentTree(f).roots(), coverRange(r[0], f.leafHashes(), nil); !slices.Equal(got, want) {
			t.Errorf("leaves %d to %d: %d roots that differ from the %d of coverRange", r[0], r[1], len(got), len(want))
		}
	}
}
