package sinks

import (
	"bytes"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/gatebook/gatebook/internal/pace"
)

// composer makes bodies of requests beside the traffic. It is safe for concurrent
// use.
type composer struct {
	gzip bool
	pace *pace.Group
	kept sync.Pool // of *zipper
}

// zipper is what compressing one body needs.
type zipper struct {
	w     *gzip.Writer
	piece []byte // not compressed yet
}

const (
	// zipPiece is how much is compressed without a pause. What was written is
	// flushed behind each: otherwise 64 KiB gather and are compressed in one go.
	// That costs 8 % of length.
	zipPiece = 8 << 10
	// zipKept is how large a buffer of pieces may be that is kept.
	zipKept = 8 * zipPiece
)

// body makes a body of n parts, of about size bytes together. part appends one of
// them; between two, and between two pieces that are compressed, requests come
// first. It is deterministic: no name, no time, one level, the same pieces. raw is
// the length before compression.
func (c *composer) body(n, size int, part func(dst []byte, i int) []byte) (body []byte, raw int) {
	slice := c.pace.New(time.Now)
	defer slice.Close()
	if !c.gzip {
		// What is sent as it is may be read by the connection still when there is an
		// answer, or none came in time: it is never used again.
		body = make([]byte, 0, size)
		for i := range n {
			body = part(body, i)
			slice.Yield()
		}
		return body, len(body)
	}
	z, ok := c.kept.Get().(*zipper)
	if !ok {
		z = newZipper()
	}
	out := bytes.NewBuffer(make([]byte, 0, size/8+512))
	z.w.Reset(out)
	z.piece = z.piece[:0]
	for i := range n {
		before := len(z.piece)
		z.piece = part(z.piece, i)
		raw += len(z.piece) - before
		z.full(slice.Yield)
		slice.Yield()
	}
	_, _ = z.w.Write(z.piece) // a Buffer takes everything
	_ = z.w.Close()
	z.w.Reset(nil)
	if cap(z.piece) <= zipKept {
		c.kept.Put(z)
	}
	return out.Bytes(), raw
}

func newZipper() *zipper {
	w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is a good one
	return &zipper{w: w}
}

// full compresses all whole pieces.
func (z *zipper) full(yield func()) {
	rest := z.piece
	for len(rest) >= zipPiece {
		_, _ = z.w.Write(rest[:zipPiece])
		_ = z.w.Flush()
		rest = rest[zipPiece:]
		yield()
	}
	if len(rest) < len(z.piece) {
		z.piece = z.piece[:copy(z.piece, rest)]
	}
}
