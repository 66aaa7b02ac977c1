package record

import (
	"bytes"
	"slices"
	"unsafe"
)

// Kept is what is remembered of a record from its open mark to its end: the
// record as redaction left it and how it was written. Most of a record is known
// when the mark is made, so that it need not be looked at or written again. What
// of it is about nobody serves the exchange after it too. The zero value
// remembers nothing. A Kept belongs to one goroutine at a time.
type Kept struct {
	// Record is the record of the open mark. What its slices hold must not change
	// meanwhile: as everywhere, a slice is replaced and not written into.
	Record Record
	// Owner is whose this is. It stays when all else is forgotten.
	Owner any

	frame, personal []byte         // as they were written
	runs            [runCount]span // where the runs stand in them; hi is 0 for one that is not known
	next            [runCount]span // of what Append wrote last
}

// A run is fields that stand together in the record as they do in the frame or
// personal part: if the memory is the same, so are the bytes written.
type run struct {
	half     *[]field
	from, to string // keys of the first and last field or object
	off, end uintptr
	shared   bool // about nobody: what configuration and connections say
}

// The runs, in the order in which they are written. What stands between them
// is known only when an exchange ends.
const (
	runID = iota
	runNames
	runWho
	runAuthz
	runLimit
	runTLS
	runClient
	runSan
	runPersonal
	runCount
)

var keptRuns = [runCount]run{
	runID:       {&frameV1, "v", "kind", unsafe.Offsetof(Record{}.ID), unsafe.Offsetof(Record{}.Outcome), false},
	runNames:    {&frameV1, "node", "template", unsafe.Offsetof(Record{}.Node), unsafe.Offsetof(Record{}.Status), true},
	runWho:      {&frameV1, "subject", "authn", unsafe.Offsetof(Record{}.Subject), unsafe.Offsetof(Record{}.Authz), false},
	runAuthz:    {&frameV1, "authz", "authz", unsafe.Offsetof(Record{}.Authz), unsafe.Offsetof(Record{}.Limit), true},
	runLimit:    {&frameV1, "limit", "limit", unsafe.Offsetof(Record{}.Limit), unsafe.Offsetof(Record{}.TLS), false},
	runTLS:      {&frameV1, "tls", "tls", unsafe.Offsetof(Record{}.TLS), unsafe.Offsetof(Record{}.Client), true},
	runClient:   {&frameV1, "client", "client", unsafe.Offsetof(Record{}.Client), unsafe.Offsetof(Record{}.Upstream), false},
	runSan:      {&frameV1, "san", "san", unsafe.Offsetof(Record{}.San), unsafe.Offsetof(Record{}.Trace), true},
	runPersonal: {&personalV1, "sub", "bytes_out", unsafe.Offsetof(Record{}.Personal), unsafe.Offsetof(Record{}.Raw), false},
}

// piece is some rows of a table that are written as one: a run, or what stands
// between two of them.
type piece struct{ first, end, run int }

var framePieces, personalPieces = pieces(frameV1), pieces(personalV1)

const noRun = -1

// pieces cuts a table up.
func pieces(tab []field) []piece {
	var out []piece
	for i := 0; i < len(tab); {
		p := piece{first: i, run: noRun}
		for i < len(tab) && startsRun(tab, i) == noRun {
			i = tab[i].next
		}
		if i > p.first {
			p.end = i
			out = append(out, p)
		}
		if i == len(tab) {
			break
		}
		p = piece{first: i, run: startsRun(tab, i)}
		for !tab[i].named(keptRuns[p.run].to) {
			i = tab[i].next
		}
		i = tab[i].next
		p.end = i
		out = append(out, p)
	}
	return out
}

// startsRun tells which run starts at a row of the outermost object.
func startsRun(tab []field, row int) int {
	for n := range keptRuns {
		if w := &keptRuns[n]; &(*w.half)[0] == &tab[0] && tab[row].named(w.from) {
			return n
		}
	}
	return noRun
}

// named tells whether a row is that of a key, an object's or a value's.
func (f *field) named(key string) bool {
	return f.lit == `"`+key+`":` || f.lit == `"`+key+`":{`
}

// memory gives the memory of a run, to be compared.
func (w *run) memory(r *Record) string {
	return unsafe.String((*byte)(unsafe.Add(unsafe.Pointer(r), w.off)), w.end-w.off)
}

// same tells whether a run of r is what is remembered. It may say no of what is
// the same but stands elsewhere in memory.
func (k *Kept) same(n int, r *Record) bool {
	w := &keptRuns[n]
	return k.runs[n].hi > 0 && w.memory(r) == w.memory(&k.Record)
}

// early are the runs that are known when an open mark is made.
var early = [...]int{runNames, runWho, runAuthz, runTLS, runClient, runPersonal}

// Same reports that of r everything about the request, its sender and what was
// decided is as it is remembered: of the frame what SameCovers says, and the
// personal part. It may err towards no.
func (k *Kept) Same(r *Record) bool {
	for _, n := range early {
		if !k.same(n, r) {
			return false
		}
	}
	return true
}

// SameCovers tells whether Same speaks of a field of the frame.
func SameCovers(path string) bool {
	for _, c := range framePieces {
		if slices.Contains(early[:], c.run) && slices.ContainsFunc(frameV1[c.first:c.end], func(f field) bool { return f.path == path }) {
			return true
		}
	}
	return false
}

// Append is Append of this package, with what is as it is remembered copied.
func (k *Kept) Append(frame, personal []byte, r *Record) (f, p []byte) {
	r.San.Invalid = 0
	f, p = k.appendFrame(frame, r), k.appendPersonal(personal, r)
	if !bytes.Contains(f[len(frame):], replaced) && !bytes.Contains(p[len(personal):], replaced) {
		return f, p
	}
	if r.San.Invalid = CountInvalid(r); r.San.Invalid > 0 {
		f = k.appendFrame(frame, r)
	}
	return f, p
}

func (k *Kept) appendFrame(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = append(dst, '{')
	for i := range framePieces {
		dst = k.appendPiece(dst, start, &framePieces[i], k.frame, frameV1, frameSteps, r)
	}
	return append(dst, '}')
}

func (k *Kept) appendPersonal(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = append(dst, '{')
	for i := range personalPieces {
		dst = k.appendPiece(dst, start, &personalPieces[i], k.personal, personalV1, personalSteps, r)
	}
	if len(dst) == start+len("{") {
		return dst[:start]
	}
	return append(dst, '}')
}

// appendPiece appends one piece and notes where its run stands, counted from
// start.
func (k *Kept) appendPiece(dst []byte, start int, c *piece, was []byte, tab []field, steps []step, r *Record) []byte {
	lo := int32(len(dst) - start)
	switch {
	case c.run == noRun:
		return appendRows(dst, tab, steps, c.first, c.end, r)
	case k.same(c.run, r):
		if s := k.runs[c.run]; s.hi > s.lo { // the personal part may be of no bytes
			dst = append(dst, was[s.lo:s.hi]...)
		}
	default:
		dst = appendRows(dst, tab, steps, c.first, c.end, r)
	}
	k.next[c.run] = span{lo, int32(len(dst) - start)}
	return dst
}

// Keep remembers r, which Append just turned into frame and personal. They are
// copied.
func (k *Kept) Keep(r *Record, frame, personal []byte) {
	k.Record = *r
	k.Record.Raw = Raw{}
	k.frame = append(k.frame[:0], frame...)
	k.personal = append(k.personal[:0], personal...)
	k.runs = k.next
}

// Forget forgets what is about somebody.
func (k *Kept) Forget() {
	for n := range keptRuns {
		if !keptRuns[n].shared {
			k.runs[n] = span{}
		}
	}
	r := &k.Record
	r.ID, r.Time, r.Kind = ID{}, 0, ""
	r.Subject, r.Authn, r.Limit, r.Client = "", Authn{}, Limit{}, Client{}
	r.Upstream, r.Error, r.Trace, r.Links, r.Event = Upstream{}, Error{}, "", nil, Event{}
	r.Personal = Personal{}
	k.personal = k.personal[:0]
}
