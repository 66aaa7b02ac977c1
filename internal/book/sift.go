package book

import (
	"github.com/gatebook/gatebook/internal/book/record"
)

// Sift hands out records [from, to) in order, without personal parts, as Each
// does, but leaves out those of sealed segments whose row keep does not want:
// putting a frame together costs more than looking at a few of its fields.
// Records that are not sealed yet are handed out without being asked for. An
// error from fn ends the reading and is returned.
func (r *Reader) Sift(from, to uint64, fields []string, keep func(*record.Row) bool, fn func(*Entry) error) error {
	return r.frames(from, to, sieve{fields: fields, keep: keep}, fn)
}

// sieve is the codec of a reader that wants few of many frames.
type sieve struct {
	codec
	fields []string
	keep   func(*record.Row) bool
}

// DecodeColumns implements ledger.Codec; frames that are not wanted are nil.
func (s sieve) DecodeColumns(cols [][]byte, n int, _ func()) ([][]byte, error) {
	return s.SieveColumns(cols, n, s.fields, s.keep)
}
