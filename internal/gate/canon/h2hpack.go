package canon

// h2Scan walks over header blocks (RFC 7541 section 6) as they come, without
// decoding them: it has no dynamic table and reads no Huffman code. It knows
// where a field ends, how many there are, and what :scheme was said to be. The
// zero value is ready.
type h2Scan struct {
	step   uint8
	kind   uint8
	part   uint8
	shift  uint8
	scheme bool // the literal under way is named :scheme
	huff   bool // the string under way is Huffman coded
	plain  bool // this block says a :scheme other than https
	taint  bool // the dynamic table may hold a :scheme other than https
	n      uint32
	fields int // of this block so far
	have   int // bytes in text, -1: the string is of no interest
	text   [len(":scheme")]byte
}

// What the next byte is.
const (
	h2AtField  = iota // the first of a field
	h2InNumber        // more of a number
	h2AtLength        // the first of a string's length
	h2InString        // of a string
)

// The kinds of field (RFC 7541 section 6).
const (
	h2Indexed = iota
	h2Stored  // literal with incremental indexing
	h2Plain   // literal that is not indexed, or never
	h2Resize  // dynamic table size update: no field
)

// The parts of a field that a number belongs to.
const (
	h2PartIndex = iota
	h2PartName
	h2PartValue
)

// The Huffman codes of the only strings that matter (RFC 7541 appendix B).
const (
	h2SchemeHuff = "\xb8\x82\x4e\x5a\x4b"
	h2HTTPSHuff  = "\x9d\x29\xad\x1f"
)

// begin starts a block.
func (s *h2Scan) begin() { s.fields, s.plain = 0, false }

// whole reports whether the block may end here.
func (s *h2Scan) whole() bool { return s.step == h2AtField }

// secure reports whether nothing in the block says that :scheme is not https.
// An encoder that stores :scheme under a dynamic index and then reuses that
// name for another value is not seen through; nobody gains by it, since the
// scheme that is authorized and forwarded is the connection's.
func (s *h2Scan) secure() bool { return !s.plain && !s.taint }

// scan takes the next piece of a block; false means that no decoder of sound
// mind would go on.
func (s *h2Scan) scan(p []byte) bool {
	for len(p) > 0 {
		if s.step == h2InString {
			n := min(len(p), int(s.n))
			if s.have >= 0 {
				s.have += copy(s.text[s.have:], p[:n])
			}
			p = p[n:]
			if s.n -= uint32(n); s.n == 0 {
				s.stringDone()
			}
			continue
		}
		b := p[0]
		p = p[1:]
		switch s.step {
		case h2AtField:
			s.field(b)
		case h2AtLength:
			s.huff = b&0x80 != 0
			s.number(b, 7)
		case h2InNumber:
			if s.shift > 21 { // 2^28 is more than any length or index here
				return false
			}
			s.n += uint32(b&0x7f) << s.shift
			s.shift += 7
			if b&0x80 == 0 {
				s.numberDone()
			}
		}
	}
	return true
}

func (s *h2Scan) field(b byte) {
	s.part, s.scheme = h2PartIndex, false
	switch {
	case b&0x80 != 0:
		s.kind = h2Indexed
		s.number(b, 7)
	case b&0x40 != 0:
		s.kind = h2Stored
		s.number(b, 6)
	case b&0x20 != 0:
		s.kind = h2Resize
		s.number(b, 5)
	default:
		s.kind = h2Plain
		s.number(b, 4)
	}
}

// number starts a number whose first byte has bits of it (RFC 7541 section 5.1).
func (s *h2Scan) number(b byte, bits uint8) {
	most := uint32(1)<<bits - 1
	s.n = uint32(b) & most
	if s.n < most {
		s.numberDone()
		return
	}
	s.step, s.shift = h2InNumber, 0
}

func (s *h2Scan) numberDone() {
	if s.part == h2PartIndex {
		s.indexDone()
		return
	}
	s.have = -1
	switch {
	case s.n == 0:
		s.stringDone()
		return
	case s.part == h2PartName && (int(s.n) == len(":scheme") || int(s.n) == len(h2SchemeHuff)),
		s.part == h2PartValue && s.scheme && int(s.n) <= len(s.text):
		s.have = 0
	}
	s.step = h2InString
}

func (s *h2Scan) indexDone() {
	switch {
	case s.kind == h2Resize:
		s.step = h2AtField
	case s.kind == h2Indexed:
		s.plain = s.plain || s.n == 6 // :scheme http; 7 is :scheme https
		s.fields++
		s.step = h2AtField
	case s.n == 0:
		s.step, s.part = h2AtLength, h2PartName
	default:
		s.scheme = s.n == 6 || s.n == 7
		s.step, s.part = h2AtLength, h2PartValue
	}
}

func (s *h2Scan) stringDone() {
	if s.part == h2PartName {
		s.scheme = s.is(":scheme", h2SchemeHuff)
		s.step, s.part = h2AtLength, h2PartValue
		return
	}
	if s.scheme && !s.is("https", h2HTTPSHuff) {
		s.plain = true
		s.taint = s.taint || s.kind == h2Stored
	}
	s.fields++
	s.step = h2AtField
}

func (s *h2Scan) is(text, huff string) bool {
	if s.have < 0 {
		return false
	}
	if s.huff {
		return string(s.text[:s.have]) == huff
	}
	return string(s.text[:s.have]) == text
}

// h2Digits is the length of :status.
const h2Digits = 3

// h2Status reads :status from the beginning of a response's header block as
// net/http writes it, first and unpadded. It is 0 when the value is in the
// dynamic table, Huffman coded or not all there.
func h2Status(b []byte) int {
	for len(b) > 0 && b[0]&0xe0 == 0x20 { // dynamic table size updates
		more := b[0]&0x1f == 0x1f
		b = b[1:]
		for more && len(b) > 0 {
			more = b[0]&0x80 != 0
			b = b[1:]
		}
	}
	if len(b) == 0 {
		return 0
	}
	// RFC 7541 appendix A, 8 to 14.
	static := [...]int{200, 204, 206, 304, 400, 404, 500}
	if b[0]&0x80 != 0 {
		if i := int(b[0]&0x7f) - 8; i >= 0 && i < len(static) {
			return static[i]
		}
		return 0
	}
	index := b[0] & 0x0f
	if b[0]&0x40 != 0 {
		index = b[0] & 0x3f
	}
	if index < 8 || int(index-8) >= len(static) {
		return 0
	}
	if len(b) < 2+h2Digits || b[1] != h2Digits {
		return 0
	}
	status := 0
	for _, c := range b[2 : 2+h2Digits] {
		if c < '0' || c > '9' {
			return 0
		}
		status = status*10 + int(c-'0')
	}
	return status
}
