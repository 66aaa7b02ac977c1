package keys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"
)

// bbolt maps its file into memory and follows what the pages say: one damaged
// byte makes it panic, read beyond the end of the file, which kills the
// process, or count to four billion. So the pages are read here first, in the
// ordinary way and with every number checked. The content of rows is none of
// this check's business; their wrapping authenticates it.
//
// The layout is that of bbolt's internal/common (page.go, meta.go, bucket.go),
// in the byte order of the machine.
const (
	pageHead     = 16 // id (uint64), flags (uint16), count (uint16), overflow (uint32)
	pageElem     = 16
	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10
	metaLen      = 64
	metaMagic    = 0xED0CDAED
	metaV2       = 2
	noFreelist   = 1<<64 - 1
	elemBucket   = 1
	bucketHead   = 16 // root page, 0 if inline (uint64), sequence (uint64)
	maxDepth     = 32
)

// ErrStoreDamaged: the key store's file is not what was written.
var ErrStoreDamaged = errors.New("key store is damaged; restore it from a backup")

var pageOrder = binary.NativeEndian

// inspect checks the pages of the file at path while nobody writes to it. A
// file that is empty or not there is left to who opens it.
func inspect(path string, open func(string, int, os.FileMode) (*os.File, error)) (err error) {
	f, err := open(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	limit := time.NewTimer(lockWait)
	defer limit.Stop()
	for again := 5 * time.Millisecond; ; {
		ok, err := lockShared(f)
		if err != nil {
			return err
		}
		if ok {
			break
		}
		select {
		case <-limit.C:
			return ErrLocked
		case <-time.After(again):
		}
	}
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	if err := checkPages(f, st.Size()); err != nil {
		return fmt.Errorf("%w: %w", ErrStoreDamaged, err)
	}
	return nil
}

// pages walks one file.
type pages struct {
	r    io.ReaderAt
	page int64  // bytes per page
	high uint64 // pages from here on do not belong to the database
	seen []bool // by page: it is in use
	free []bool // by page: bbolt will write to it
}

// meta is the head of the database: where everything begins.
type metaPage struct {
	page                       int64
	root, freelist, high, txid uint64
}

// checkPages checks everything that the newest valid head leads to.
func checkPages(r io.ReaderAt, size int64) error {
	m, err := newestMeta(r, size)
	if err != nil {
		return err
	}
	if m.high < 3 || m.high > uint64(size/m.page) {
		return fmt.Errorf("%d pages of %d bytes do not fit a file of %d bytes", m.high, m.page, size)
	}
	p := &pages{r: r, page: m.page, high: m.high, seen: make([]bool, m.high), free: make([]bool, m.high)}
	p.seen[0], p.seen[1] = true, true
	if m.freelist != noFreelist {
		if err := p.freelist(m.freelist); err != nil {
			return err
		}
	}
	if err := p.tree(m.root, bounds{}); err != nil {
		return err
	}
	for n := range p.seen {
		if m.freelist != noFreelist && p.seen[n] == p.free[n] {
			return fmt.Errorf("page %d is both in use and free, or neither", n)
		}
	}
	return nil
}

// bounds are where the keys of a page lie, and how deep the page.
type bounds struct {
	from, to []byte // to excluded; nil: no bound
	depth    int
}

func (b bounds) hold(key []byte) bool {
	return bytes.Compare(key, b.from) >= 0 && (b.to == nil || bytes.Compare(key, b.to) < 0)
}

// newestMeta reads both heads and returns the valid one that counts. The page
// size is known only from them, so the second is looked for.
func newestMeta(r io.ReaderAt, size int64) (best metaPage, err error) {
	found := false
	for _, at := range metaPlaces(size) {
		b := make([]byte, pageHead+metaLen)
		if _, err := r.ReadAt(b, at); err != nil {
			continue
		}
		m, ok := parseMeta(b[pageHead:])
		if ok && (at == 0 || at == m.page) && (!found || m.txid > best.txid) {
			best, found = m, true
		}
	}
	if !found {
		return best, errors.New("neither of its two heads is valid")
	}
	return best, nil
}

func metaPlaces(size int64) []int64 {
	at := []int64{0}
	for p := int64(1024); p < size && p <= 1024<<14; p *= 2 {
		at = append(at, p)
	}
	return at
}

func parseMeta(b []byte) (m metaPage, ok bool) {
	sum := fnv.New64a()
	sum.Write(b[:56])
	if pageOrder.Uint32(b) != metaMagic || pageOrder.Uint32(b[4:]) != metaV2 || pageOrder.Uint64(b[56:]) != sum.Sum64() {
		return m, false
	}
	m = metaPage{
		page: int64(pageOrder.Uint32(b[8:])), root: pageOrder.Uint64(b[16:]), freelist: pageOrder.Uint64(b[32:]),
		high: pageOrder.Uint64(b[40:]), txid: pageOrder.Uint64(b[48:]),
	}
	return m, m.page >= 1024
}

// read returns a page with its overflow. No page may be met twice.
func (p *pages) read(id uint64) ([]byte, error) {
	if id < 2 || id >= p.high {
		return nil, fmt.Errorf("page %d is out of range", id)
	}
	head := make([]byte, pageHead)
	if _, err := p.r.ReadAt(head, int64(id)*p.page); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	more := uint64(pageOrder.Uint32(head[12:]))
	if pageOrder.Uint64(head) != id || more >= p.high-id {
		return nil, fmt.Errorf("page %d calls itself %d, with %d more behind it", id, pageOrder.Uint64(head), more)
	}
	for n := id; n <= id+more; n++ {
		if p.seen[n] {
			return nil, fmt.Errorf("page %d is used twice", n)
		}
		p.seen[n] = true
	}
	b := make([]byte, (more+1)*uint64(p.page))
	if _, err := p.r.ReadAt(b, int64(id)*p.page); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return b, nil
}

func pageKind(b []byte) (flags uint16, count int) {
	return pageOrder.Uint16(b[8:]), int(pageOrder.Uint16(b[10:]))
}

func (p *pages) freelist(id uint64) error {
	b, err := p.read(id)
	if err != nil {
		return err
	}
	flags, count := pageKind(b)
	ids := b[pageHead:]
	n := uint64(count)
	if n == 0xFFFF {
		n, ids = pageOrder.Uint64(ids), ids[8:]
	}
	if flags != pageFreelist || n > uint64(len(ids)/8) {
		return fmt.Errorf("page %d is no list of free pages", id)
	}
	for i := range n {
		free := pageOrder.Uint64(ids[8*i:])
		if free < 2 || free >= p.high || p.free[free] {
			return fmt.Errorf("page %d calls page %d free, which is out of range or there twice", id, free)
		}
		p.free[free] = true
	}
	return nil
}

// tree checks the pages from id down.
func (p *pages) tree(id uint64, in bounds) error {
	b, err := p.read(id)
	if err != nil {
		return err
	}
	if in.depth++; in.depth > maxDepth {
		return fmt.Errorf("page %d is nested too deeply", id)
	}
	switch flags, _ := pageKind(b); flags {
	case pageLeaf:
		err = p.leaf(b, in)
	case pageBranch:
		err = p.branch(b, in)
	default:
		err = fmt.Errorf("unknown flags %#x", flags)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (p *pages) branch(b []byte, in bounds) error {
	_, count := pageKind(b)
	if count == 0 || pageHead+count*pageElem > len(b) {
		return fmt.Errorf("%d branches do not fit", count)
	}
	keys := make([][]byte, count)
	for i := range keys {
		at := pageHead + i*pageElem
		key, ok := within(b, at, pageOrder.Uint32(b[at:]), pageOrder.Uint32(b[at+4:]))
		if !ok || !in.hold(key) || i > 0 && bytes.Compare(keys[i-1], key) >= 0 {
			return errors.New("a key is outside its page or out of order")
		}
		keys[i] = key
	}
	for i, key := range keys {
		child := bounds{key, in.to, in.depth}
		if i+1 < count {
			child.to = keys[i+1]
		}
		if err := p.tree(pageOrder.Uint64(b[pageHead+i*pageElem+8:]), child); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the rows of a leaf page, which may be inside a row of another.
func (p *pages) leaf(b []byte, in bounds) error {
	_, count := pageKind(b)
	if pageHead+count*pageElem > len(b) {
		return fmt.Errorf("%d rows do not fit", count)
	}
	var prev []byte
	for i := range count {
		at := pageHead + i*pageElem
		flags, keyLen := pageOrder.Uint32(b[at:]), pageOrder.Uint32(b[at+8:])
		row, ok := within(b, at, pageOrder.Uint32(b[at+4:]), keyLen, pageOrder.Uint32(b[at+12:]))
		if !ok || flags > elemBucket || keyLen == 0 {
			return errors.New("a row is outside its page, or of an unknown kind")
		}
		key := row[:keyLen]
		if !in.hold(key) || bytes.Compare(prev, key) >= 0 {
			return errors.New("a row is out of order")
		}
		prev = key
		if flags == elemBucket {
			if err := p.bucket(row[keyLen:], in.depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// bucket checks a table, which has pages of its own or, while it is small, one
// within its row.
func (p *pages) bucket(b []byte, depth int) error {
	if len(b) < bucketHead {
		return errors.New("a table without a head")
	}
	if root := pageOrder.Uint64(b); root != 0 {
		return p.tree(root, bounds{depth: depth})
	}
	inline := b[bucketHead:]
	if len(inline) < pageHead || depth > maxDepth {
		return errors.New("a table without a page")
	}
	if flags, _ := pageKind(inline); flags != pageLeaf {
		return errors.New("a table whose page is no leaf")
	}
	return p.leaf(inline, bounds{depth: depth + 1})
}

// within returns the bytes that an element at `at` says are its own: pos bytes
// behind it, as long as the parts together.
func within(b []byte, at int, pos uint32, parts ...uint32) ([]byte, bool) {
	from := uint64(at) + uint64(pos)
	to := from
	for _, n := range parts {
		to += uint64(n)
	}
	if to > uint64(len(b)) {
		return nil, false
	}
	return b[from:to], true
}
