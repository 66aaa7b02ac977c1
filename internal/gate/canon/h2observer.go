package canon

import "encoding/binary"

// h2Peek is how much of a payload is looked at: enough for the SETTINGS of
// net/http.
const h2Peek = 64

// H2Observer follows the frames that a server writes. The zero value is ready;
// it is used by one goroutine at a time.
type H2Observer struct {
	head H2Header
	buf  [h2Fixed + h2Peek]byte
	have int    // bytes in buf
	left uint32 // bytes of payload that are of no interest
}

// H2Written is a frame of a server: its fixed part and the beginning of its
// payload, as far as that matters. It is valid until the next call of Next.
type H2Written struct {
	H2Header
	payload []byte
}

// Between reports whether a frame could be put in here.
func (o *H2Observer) Between() bool { return o.have == 0 && o.left == 0 }

// Next takes bytes from the beginning of p, at least one, and says how many. ok
// reports that f is a frame of which enough is known.
func (o *H2Observer) Next(p []byte) (n int, f H2Written, ok bool) {
	if o.left > 0 {
		n = min(len(p), int(o.left))
		o.left -= uint32(n)
		return n, H2Written{}, false
	}
	if o.have < h2Fixed {
		n = copy(o.buf[o.have:h2Fixed], p)
		if o.have += n; o.have < h2Fixed {
			return n, H2Written{}, false
		}
		o.head = parseH2Header(o.buf[:])
	}
	want := h2Fixed + o.peek()
	m := copy(o.buf[o.have:want], p[n:])
	n += m
	if o.have += m; o.have < want {
		return n, H2Written{}, false
	}
	o.left, o.have = o.head.Length-uint32(want-h2Fixed), 0
	return n, H2Written{H2Header: o.head, payload: o.buf[h2Fixed:want]}, true
}

// peek is how much of the payload at hand is wanted.
func (o *H2Observer) peek() int {
	most := 0
	switch o.head.Type {
	case H2Reset, H2GoAway, H2Settings:
		most = h2Peek
	case H2Headers:
		most = 24
	}
	return min(most, int(o.head.Length))
}

// Status is :status of a HEADERS frame, 0 if it cannot be told without a
// dynamic table. net/http writes it first and pads nothing.
func (f H2Written) Status() int {
	if f.Type != H2Headers || f.Flags&(H2Padded|H2HasPriority) != 0 {
		return 0
	}
	return h2Status(f.payload)
}

// Reset is the error code of a RST_STREAM frame.
func (f H2Written) Reset() H2Code {
	if f.Type != H2Reset || len(f.payload) < 4 {
		return H2NoError
	}
	return H2Code(binary.BigEndian.Uint32(f.payload))
}

// GoAway is what a GOAWAY frame says.
func (f H2Written) GoAway() (last uint32, code H2Code) {
	if f.Type != H2GoAway || len(f.payload) < 8 {
		return 0, H2NoError
	}
	return binary.BigEndian.Uint32(f.payload) &^ (1 << 31), H2Code(binary.BigEndian.Uint32(f.payload[4:]))
}

// MaxFrame is SETTINGS_MAX_FRAME_SIZE of a SETTINGS frame, 0 if it says none.
func (f H2Written) MaxFrame() uint32 {
	if f.Type != H2Settings {
		return 0
	}
	for p := f.payload; len(p) >= 6; p = p[6:] {
		if binary.BigEndian.Uint16(p) == 5 {
			return binary.BigEndian.Uint32(p[2:])
		}
	}
	return 0
}
