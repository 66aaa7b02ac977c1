package canon

import (
	"io"
	"sync/atomic"
)

// The size of a header block that is let through at all. What is above
// MaxHeadBytes and MaxFields but below these is answered 431 on its own
// stream; above them, reading on costs more than the connection is worth
// (reference/security.md C4, CVE-2023-45288).
const (
	h2MaxBlock  = 2 * MaxHeadBytes
	h2MaxFields = 4 * MaxFields
	h2MaxFrames = 8
)

// H2Frame is a frame that a client has begun to send.
type H2Frame struct {
	H2Header
	Content uint32 // bytes of payload without padding
}

// H2Events is told of every frame of a client before any of it is let through.
type H2Events interface {
	// Frame reports whether a HEADERS frame opens a stream, and returns an
	// error if the connection must end.
	Frame(f H2Frame) (opens bool, err *H2Error)
}

// H2Reader reads a client's side of an HTTP/2 connection from another reader.
// It checks the order and the outer form of the frames, and appends
// H2StreamField to the header block of every request; all else comes out as it
// went in. Payloads are read straight into the caller's buffer. It is used by
// one goroutine, but for SetMaxFrame.
type H2Reader struct {
	src io.Reader
	ev  H2Events
	max atomic.Uint32 // largest payload allowed
	err *H2Error      // the end

	preface int // bytes of H2Preface still to come
	fixed   [10]byte
	have    int    // bytes in fixed
	need    int    // bytes of fixed to wait for: 10 with a padding length
	out     []byte // to be delivered before anything else; in store
	store   [h2Fixed + 1 + h2Fixed + h2FieldSize]byte

	inFrame  bool
	head     H2Header
	priority uint32 // bytes before the fragment, counted in left
	left     uint32 // bytes of payload before the padding
	pad      uint32 // bytes of padding
	extra    bool   // our field goes into a CONTINUATION of its own

	block  uint32 // stream whose header block is open, 0: none
	opens  bool   // and it is a request's
	frames int    // of the block
	size   uint32 // of the block so far
	scan   h2Scan
}

// NewH2Reader makes a reader of the bytes that a client sends, preface first.
func NewH2Reader(src io.Reader, ev H2Events) *H2Reader {
	r := &H2Reader{src: src, ev: ev, preface: len(H2Preface), need: h2Fixed}
	r.max.Store(h2LeastFrame)
	return r
}

// SetMaxFrame raises the payload that a client may send in one frame to what
// SETTINGS_MAX_FRAME_SIZE promises it. Safe for concurrent use.
func (r *H2Reader) SetMaxFrame(n uint32) {
	if n > h2LeastFrame {
		r.max.Store(n)
	}
}

// Began reports whether the preface is complete.
func (r *H2Reader) Began() bool { return r.preface == 0 }

// Missing is how many bytes of the preface have not come.
func (r *H2Reader) Missing() int { return r.preface }

// Midway reports whether a client that sends nothing now keeps something from
// being whole: the preface, a header block, or a frame other than DATA, whose
// progress its exchange watches.
func (r *H2Reader) Midway() bool {
	switch {
	case r.preface > 0:
		return r.preface < len(H2Preface)
	case r.block != 0 || r.have > 0:
		return true
	}
	return r.inFrame && r.head.Type != H2Data
}

// Read implements io.Reader. A *H2Error means that the client broke a rule;
// nothing of the frame that did comes out, or no more of it.
func (r *H2Reader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.err != nil:
			return 0, r.err
		case len(r.out) > 0 || len(p) == 0:
			n := copy(p, r.out)
			r.out = r.out[n:]
			return n, nil
		case r.preface > 0:
			return r.readPreface(p)
		case r.inFrame:
			return r.readPayload(p)
		}
		n, err := r.src.Read(r.fixed[r.have:r.need])
		if r.have += n; r.have == r.need {
			r.err = r.fixedDone()
			continue // what ended the source says so again
		}
		if err != nil {
			return 0, err
		}
	}
}

func (r *H2Reader) readPreface(p []byte) (int, error) {
	n, err := r.src.Read(p[:min(len(p), r.preface)])
	at := len(H2Preface) - r.preface
	if string(p[:n]) != H2Preface[at:at+n] {
		r.err = h2Refuse(H2ProtocolError, "wrong connection preface")
		return 0, r.err
	}
	r.preface -= n
	return n, err
}

// fixedDone looks at a fixed part, or a fixed part and the padding length.
func (r *H2Reader) fixedDone() *H2Error {
	if r.have == h2Fixed {
		r.head = parseH2Header(r.fixed[:])
		if err := r.order(r.head); err != nil {
			return err
		}
		if r.head.Has(H2Padded) && (r.head.Type == H2Headers || r.head.Type == H2Data) {
			r.need = h2Fixed + 1
			return nil
		}
	}
	return r.start()
}

// order checks what can be said of a frame without its payload (RFC 9113
// sections 4.2, 4.3, 5.1.1, 6.1, 6.2, 6.6, 6.10).
func (r *H2Reader) order(h H2Header) *H2Error {
	if h.Length > r.max.Load() {
		return h2Refuse(H2FrameSizeError, "frame larger than allowed")
	}
	if r.block != 0 && (h.Type != H2Continuation || h.Stream != r.block) {
		return h2Refuse(H2ProtocolError, "another frame inside a header block")
	}
	switch h.Type {
	case H2Continuation:
		if r.block == 0 {
			return h2Refuse(H2ProtocolError, "CONTINUATION without a header block")
		}
	case H2PushPromise:
		return h2Refuse(H2ProtocolError, "PUSH_PROMISE from a client")
	case H2Headers:
		if h.Stream%2 == 0 {
			return h2Refuse(H2ProtocolError, "HEADERS on a stream that is not a client's")
		}
	}
	least := uint32(0)
	if h.Has(H2Padded) && (h.Type == H2Headers || h.Type == H2Data) {
		least++
	}
	if h.Has(H2HasPriority) && h.Type == H2Headers {
		least += 5
	}
	if h.Length < least {
		return h2Refuse(H2FrameSizeError, "frame too short for its flags")
	}
	return nil
}

// start takes up the frame whose fixed part is complete.
func (r *H2Reader) start() *H2Error {
	h := r.head
	r.left, r.pad, r.priority, r.extra = h.Length, 0, 0, false
	if r.have > h2Fixed {
		r.pad = uint32(r.fixed[h2Fixed])
		r.left--
	}
	if h.Type == H2Headers && h.Has(H2HasPriority) {
		r.priority = 5
	}
	if r.left < r.priority+r.pad {
		return h2Refuse(H2ProtocolError, "more padding than payload")
	}
	r.left -= r.pad
	opens, err := r.ev.Frame(H2Frame{H2Header: h, Content: r.left})
	if err != nil {
		return err
	}
	if h.Type == H2Headers {
		r.block, r.opens, r.frames, r.size = h.Stream, opens, 0, 0
		r.scan.begin()
	}
	if h.Type == H2Headers || h.Type == H2Continuation {
		r.frames++
		if r.size += r.left - r.priority; r.size > h2MaxBlock {
			return &H2Error{Code: H2Calm, Reason: HeaderTooLarge, Detail: "header block too large"}
		}
		if r.frames > h2MaxFrames {
			return h2Refuse(H2Calm, "header block in too many frames")
		}
	}
	pad := r.have - h2Fixed
	r.out = r.makeRoom().append(r.store[:0])
	r.out = append(r.out, r.fixed[h2Fixed:h2Fixed+pad]...)
	r.inFrame, r.have, r.need = true, 0, h2Fixed
	return r.advance()
}

// makeRoom returns the fixed part of the frame with room for our field, if the
// frame ends the block of a request.
func (r *H2Reader) makeRoom() H2Header {
	h := r.head
	if r.block == 0 || !r.opens || !h.Has(H2EndHeaders) {
		return h
	}
	if h.Length+uint32(h2FieldSize) > r.max.Load() {
		r.extra = true
		h.Flags &^= H2EndHeaders
		return h
	}
	h.Length += uint32(h2FieldSize)
	return h
}

// readPayload reads a piece of payload, or of padding.
func (r *H2Reader) readPayload(p []byte) (int, error) {
	if r.left > 0 {
		n, err := r.src.Read(p[:min(len(p), int(r.left))])
		r.left -= uint32(n)
		if r.block != 0 && !r.fragment(p[:n]) {
			r.err = h2Refuse(H2CompressionError, "header block that cannot be decoded")
			return 0, r.err
		}
		if r.err = r.advance(); r.err != nil {
			return 0, r.err
		}
		return n, err
	}
	n, err := r.src.Read(p[:min(len(p), int(r.pad))])
	r.pad -= uint32(n)
	if r.err = r.advance(); r.err != nil {
		return 0, r.err
	}
	return n, err
}

// fragment scans a piece of a header block.
func (r *H2Reader) fragment(p []byte) bool {
	skip := min(len(p), int(r.priority))
	r.priority -= uint32(skip)
	return r.scan.scan(p[skip:])
}

// advance does what is due when the payload, and then the padding, is through.
func (r *H2Reader) advance() *H2Error {
	if r.left > 0 {
		return nil
	}
	if r.block != 0 && r.head.Has(H2EndHeaders) {
		if err := r.endBlock(); err != nil {
			return err
		}
	}
	if r.pad > 0 {
		return nil
	}
	r.inFrame = false
	if r.extra {
		r.extra = false
		r.room()
		r.out = H2Header{Length: uint32(h2FieldSize), Type: H2Continuation, Flags: H2EndHeaders, Stream: r.head.Stream}.append(r.out)
		r.out = appendH2Stream(r.out, r.head.Stream, r.scan.secure())
	}
	return nil
}

// endBlock ends a header block. A block that stops inside a field would take
// what is appended for the rest of that field.
func (r *H2Reader) endBlock() *H2Error {
	if !r.scan.whole() {
		return h2Refuse(H2CompressionError, "header block that ends inside a field")
	}
	if r.scan.fields > h2MaxFields {
		return &H2Error{Code: H2Calm, Reason: HeaderTooLarge, Detail: "too many header fields"}
	}
	r.block = 0
	if r.opens && !r.extra {
		r.room()
		r.out = appendH2Stream(r.out, r.head.Stream, r.scan.secure())
	}
	return nil
}

// room makes store free unless something in it is still to be delivered.
func (r *H2Reader) room() {
	if len(r.out) == 0 {
		r.out = r.store[:0]
	}
}
