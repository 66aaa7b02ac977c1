package canon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// h2Rising is an H2Events for which every HEADERS on a higher stream opens it.
type h2Rising struct {
	max uint32
	log []H2Frame
}

func (e *h2Rising) Frame(f H2Frame) (bool, *H2Error) {
	e.log = append(e.log, f)
	if f.Type != H2Headers || f.Stream <= e.max {
		return false, nil
	}
	e.max = f.Stream
	return true, nil
}

func frame(t H2Type, flags uint8, stream uint32, payload string) string {
	return string(H2Header{Length: uint32(len(payload)), Type: t, Flags: flags, Stream: stream}.append(nil)) + payload
}

// chunks gives its bytes in pieces of a size that repeats from sizes.
type chunks struct {
	rest  string
	sizes []byte
	at    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.rest == "" {
		return 0, io.EOF
	}
	n := len(p)
	if len(c.sizes) > 0 {
		n = min(n, 1+int(c.sizes[c.at%len(c.sizes)]))
		c.at++
	}
	n = copy(p[:n], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// through reads everything that comes out for in, with pieces of the sizes
// given on the way in and room bytes of room on the way out.
func through(in string, sizes []byte, room int) (out string, log []H2Frame, end *H2Error) {
	ev := &h2Rising{}
	r := NewH2Reader(&chunks{rest: in, sizes: sizes}, ev)
	var b strings.Builder
	p := make([]byte, room)
	for {
		n, err := r.Read(p)
		b.Write(p[:n])
		if err != nil {
			errors.As(err, &end)
			return b.String(), ev.log, end
		}
	}
}

// ours is the field as it stands on the wire.
func ours(stream uint32, letter string) string {
	return "\x00\x11x-gatebook-stream\x09" + fmt.Sprintf("%08x", stream) + letter
}

// largeField is a field that takes n bytes in a block.
func largeField(n int) string {
	const front = "\x00\x01a"
	v := n - len(front) - 3 // three bytes of length: 127 and 14 bits
	return front + "\x7f" + string([]byte{byte(v-127)&0x7f | 0x80, byte((v - 127) >> 7)}) + strings.Repeat("b", v)
}

const getBlock = "\x82\x87\x84\x41\x01a" // GET https / with :authority a

func TestH2Reader(t *testing.T) {
	settings := frame(H2Settings, 0, 0, "")
	big := largeField(h2LeastFrame - len(ours(1, "s")) + 1)
	less := largeField(len(big) - 2)
	for _, tc := range []struct{ name, in, want string }{
		{"plain", frame(H2Headers, 5, 1, getBlock), frame(H2Headers, 5, 1, getBlock+ours(1, "s"))},
		{"large id", frame(H2Headers, 5, 0x7fffffff, getBlock), frame(H2Headers, 5, 0x7fffffff, getBlock+ours(0x7fffffff, "s"))},
		{"padded", frame(H2Headers, 0xd, 3, "\x04"+getBlock+"\x00\x00\x00\x00"), frame(H2Headers, 0xd, 3, "\x04"+getBlock+ours(3, "s")+"\x00\x00\x00\x00")},
		{"priority", frame(H2Headers, 0x25, 3, "\x80\x00\x00\x01\x10"+getBlock), frame(H2Headers, 0x25, 3, "\x80\x00\x00\x01\x10"+getBlock+ours(3, "s"))},
		{"padded priority", frame(H2Headers, 0x2d, 3, "\x01\x80\x00\x00\x01\x10"+getBlock+"\x00"), frame(H2Headers, 0x2d, 3, "\x01\x80\x00\x00\x01\x10"+getBlock+ours(3, "s")+"\x00")},
		{"nothing but padding", frame(H2Headers, 0xd, 3, "\x02\x00\x00"), frame(H2Headers, 0xd, 3, "\x02"+ours(3, "s")+"\x00\x00")},
		{"empty block", frame(H2Headers, 5, 3, ""), frame(H2Headers, 5, 3, ours(3, "s"))},
		{"continuation", frame(H2Headers, 1, 1, getBlock[:4]) + frame(H2Continuation, 4, 1, getBlock[4:]), frame(H2Headers, 1, 1, getBlock[:4]) + frame(H2Continuation, 4, 1, getBlock[4:]+ours(1, "s"))},
		{"padded continuation", frame(H2Headers, 9, 1, "\x02"+getBlock+"\x00\x00") + frame(H2Continuation, 4, 1, ""), frame(H2Headers, 9, 1, "\x02"+getBlock+"\x00\x00") + frame(H2Continuation, 4, 1, ours(1, "s"))},
		{"no room", frame(H2Headers, 5, 1, big), frame(H2Headers, 1, 1, big) + frame(H2Continuation, 4, 1, ours(1, "s"))},
		{"no room, padded", frame(H2Headers, 0xd, 1, "\x01"+less+"\x00"), frame(H2Headers, 9, 1, "\x01"+less+"\x00") + frame(H2Continuation, 4, 1, ours(1, "s"))},
		{"trailers", frame(H2Headers, 4, 1, getBlock) + frame(H2Data, 0, 1, "x") + frame(H2Headers, 5, 1, "\x00\x01a\x01b"), frame(H2Headers, 4, 1, getBlock+ours(1, "s")) + frame(H2Data, 0, 1, "x") + frame(H2Headers, 5, 1, "\x00\x01a\x01b")},
		{"data, padded", frame(H2Data, 8, 1, "\x03ab\x00\x00\x00") + frame(H2Ping, 0, 0, "12345678"), frame(H2Data, 8, 1, "\x03ab\x00\x00\x00") + frame(H2Ping, 0, 0, "12345678")},
		{"unknown frame", frame(0xfa, 0xff, 9, "abc"), frame(0xfa, 0xff, 9, "abc")},
		{"scheme http", frame(H2Headers, 5, 1, "\x86"), frame(H2Headers, 5, 1, "\x86"+ours(1, "p"))},
		{"scheme literal", frame(H2Headers, 5, 1, "\x06\x05https"), frame(H2Headers, 5, 1, "\x06\x05https"+ours(1, "s"))},
		{"scheme literal other", frame(H2Headers, 5, 1, "\x17\x04http"), frame(H2Headers, 5, 1, "\x17\x04http"+ours(1, "p"))},
		{"scheme named", frame(H2Headers, 5, 1, "\x00\x07:scheme\x04http"), frame(H2Headers, 5, 1, "\x00\x07:scheme\x04http"+ours(1, "p"))},
		{"scheme named, https", frame(H2Headers, 5, 1, "\x00\x07:scheme\x05https"), frame(H2Headers, 5, 1, "\x00\x07:scheme\x05https"+ours(1, "s"))},
		{"scheme empty", frame(H2Headers, 5, 1, "\x06\x00"), frame(H2Headers, 5, 1, "\x06\x00"+ours(1, "p"))},
		{"scheme long", frame(H2Headers, 5, 1, "\x06\x08httpshtt"), frame(H2Headers, 5, 1, "\x06\x08httpshtt"+ours(1, "p"))},
		{"scheme Huffman", frame(H2Headers, 5, 1, "\x00\x85"+h2SchemeHuff+"\x84"+h2HTTPSHuff), frame(H2Headers, 5, 1, "\x00\x85"+h2SchemeHuff+"\x84"+h2HTTPSHuff+ours(1, "s"))},
		{"scheme Huffman other", frame(H2Headers, 5, 1, "\x00\x85"+h2SchemeHuff+"\x83\x9d\x29\xaf"), frame(H2Headers, 5, 1, "\x00\x85"+h2SchemeHuff+"\x83\x9d\x29\xaf"+ours(1, "p"))},
		{"another name of that length", frame(H2Headers, 5, 1, "\x00\x07:schema\x04http"), frame(H2Headers, 5, 1, "\x00\x07:schema\x04http"+ours(1, "s"))},
		{"scheme stored", frame(H2Headers, 5, 1, "\x46\x04http") + frame(H2Headers, 5, 3, "\xbe"), frame(H2Headers, 5, 1, "\x46\x04http"+ours(1, "p")) + frame(H2Headers, 5, 3, "\xbe"+ours(3, "p"))},
		{"scheme not stored", frame(H2Headers, 5, 1, "\x06\x04http") + frame(H2Headers, 5, 3, "\x87"), frame(H2Headers, 5, 1, "\x06\x04http"+ours(1, "p")) + frame(H2Headers, 5, 3, "\x87"+ours(3, "s"))},
		{"long numbers", frame(H2Headers, 5, 1, "\x3f\xe1\x1f\x7f\x80\x01\x01a\x0f\x2f\x7f\x01"+strings.Repeat("v", 128)), frame(H2Headers, 5, 1, "\x3f\xe1\x1f\x7f\x80\x01\x01a\x0f\x2f\x7f\x01"+strings.Repeat("v", 128)+ours(1, "s"))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, want := H2Preface+settings+tc.in, H2Preface+settings+tc.want
			for _, room := range []int{1, 9, 4096, 1 << 20} {
				for _, sizes := range [][]byte{nil, {0}, {1, 0, 6}, {200}} {
					got, _, err := through(in, sizes, room)
					if err != nil || got != want {
						t.Fatalf("room %d pieces %v: %v\n got %.200x\nwant %.200x", room, sizes, err, got, want)
					}
				}
			}
		})
	}
}

func TestH2ReaderRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		code     H2Code
		reason   string
	}{
		{"frame too large", frame(H2Data, 0, 1, strings.Repeat("x", h2LeastFrame+1)), H2FrameSizeError, MalformedRequest},
		{"data inside a block", frame(H2Headers, 0, 1, getBlock) + frame(H2Data, 0, 1, "x"), H2ProtocolError, MalformedRequest},
		{"another block inside a block", frame(H2Headers, 0, 1, getBlock) + frame(H2Continuation, 4, 3, ""), H2ProtocolError, MalformedRequest},
		{"continuation alone", frame(H2Continuation, 4, 1, ""), H2ProtocolError, MalformedRequest},
		{"push", frame(H2PushPromise, 4, 1, "\x00\x00\x00\x02"), H2ProtocolError, MalformedRequest},
		{"stream 0", frame(H2Headers, 4, 0, getBlock), H2ProtocolError, MalformedRequest},
		{"even stream", frame(H2Headers, 4, 2, getBlock), H2ProtocolError, MalformedRequest},
		{"no padding length", frame(H2Data, 8, 1, ""), H2FrameSizeError, MalformedRequest},
		{"no priority", frame(H2Headers, 0x24, 1, "\x00\x00\x00\x00"), H2FrameSizeError, MalformedRequest},
		{"no room for priority", frame(H2Headers, 0x2c, 1, "\x00\x00\x00\x00\x00"), H2FrameSizeError, MalformedRequest},
		{"too much padding", frame(H2Headers, 0xc, 1, "\x05abcd"), H2ProtocolError, MalformedRequest},
		{"too much padding with priority", frame(H2Headers, 0x2c, 1, "\x01\x00\x00\x00\x00\x00"), H2ProtocolError, MalformedRequest},
		{"too much padding of data", frame(H2Data, 8, 1, "\x05abcd"), H2ProtocolError, MalformedRequest},
		{"block ends inside a value", frame(H2Headers, 4, 1, "\x00\x01x\x1d"), H2CompressionError, MalformedRequest},
		{"block ends before a value", frame(H2Headers, 4, 1, "\x00\x01x"), H2CompressionError, MalformedRequest},
		{"block ends inside a number", frame(H2Headers, 4, 1, "\xff"), H2CompressionError, MalformedRequest},
		{"trailers end inside a value", frame(H2Headers, 4, 1, getBlock) + frame(H2Headers, 5, 1, "\x00\x01x\x1d"), H2CompressionError, MalformedRequest},
		{"endless number", frame(H2Headers, 4, 1, "\xff\x80\x80\x80\x80\x80"), H2CompressionError, MalformedRequest},
		{"many frames", frame(H2Headers, 0, 1, "") + strings.Repeat(frame(H2Continuation, 0, 1, ""), h2MaxFrames), H2Calm, MalformedRequest},
		{"large block", frame(H2Headers, 0, 1, "\x82") + strings.Repeat(frame(H2Continuation, 0, 1, strings.Repeat("\x82", h2LeastFrame)), 4), H2Calm, HeaderTooLarge},
		{"many fields", frame(H2Headers, 4, 1, strings.Repeat("\x82", h2MaxFields+1)), H2Calm, HeaderTooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, sizes := range [][]byte{nil, {0}, {2, 5}} {
				out, _, err := through(H2Preface+tc.in, sizes, 4096)
				if err == nil || err.Code != tc.code || err.Reason != tc.reason {
					t.Fatalf("%v", err)
				}
				if strings.HasSuffix(out, ours(1, "s")) {
					t.Error("a refused block was completed")
				}
			}
		})
	}
	if _, _, err := through("GET / HTTP/1.1\r\n\r\n", nil, 24); err == nil || err.Code != H2ProtocolError {
		t.Errorf("preface: %v", err)
	}
}

// TestH2ReaderMaxFrame: what SETTINGS promise is allowed, and holds our field.
func TestH2ReaderMaxFrame(t *testing.T) {
	block := largeField(h2LeastFrame)
	in := H2Preface + frame(H2Headers, 5, 1, block)
	r := NewH2Reader(strings.NewReader(in), &h2Rising{})
	r.SetMaxFrame(1 << 20)
	r.SetMaxFrame(0)
	got, err := io.ReadAll(r)
	if err != nil || string(got) != H2Preface+frame(H2Headers, 5, 1, block+ours(1, "s")) {
		t.Errorf("%d bytes of %d, %v", len(got), len(in), err)
	}
}

func TestH2ReaderMidway(t *testing.T) {
	in := H2Preface + frame(H2Settings, 0, 0, "") + frame(H2Headers, 0, 1, "\x82") + frame(H2Continuation, 4, 1, "\x87") + frame(H2Data, 0, 1, "abc")
	at := len(H2Preface) + 9
	for n := range len(in) + 1 {
		r := NewH2Reader(strings.NewReader(in[:n]), &h2Rising{})
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		inData := n >= at+20+9 // the fixed part of DATA is in
		boundary := n == 0 || n == len(H2Preface) || n == at || n == at+20 || inData
		if r.Midway() == boundary {
			t.Errorf("after %d bytes: midway %v", n, r.Midway())
		}
	}
}

func TestH2Field(t *testing.T) {
	for _, stream := range []uint32{1, 0x12abcdef, 0x7fffffff} {
		for _, secure := range []bool{false, true} {
			b := appendH2Stream(nil, stream, secure)
			if len(b) != h2FieldSize {
				t.Errorf("%d bytes", len(b))
			}
			got, s, ok := ParseH2Stream(string(b[len(b)-h2ValueSize:]))
			if got != stream || s != secure || !ok {
				t.Errorf("%x %v: %x %v %v", stream, secure, got, s, ok)
			}
		}
	}
	for _, v := range []string{"", "1", "0000000as ", "0000000g", "0000000gs", "0000000As", "00000001x"} {
		if _, _, ok := ParseH2Stream(v); ok {
			t.Errorf("%q was taken", v)
		}
	}
	if !Reserved(H2StreamField) {
		t.Error("a client could send the field to an upstream")
	}
}

func TestH2Observer(t *testing.T) {
	wire := frame(H2Settings, 0, 0, "\x00\x03\x00\x00\x00\x64\x00\x05\x00\x10\x00\x00") + frame(H2Settings, 1, 0, "") +
		frame(H2Headers, 4, 1, "\x8c") + frame(H2Data, 1, 1, strings.Repeat("x", 300)) +
		frame(H2Reset, 0, 3, "\x00\x00\x00\x07") + frame(H2GoAway, 0, 0, "\x80\x00\x00\x05\x00\x00\x00\x0bdebug") + frame(H2Data, 0, 1, "")
	for size := 1; size <= len(wire); size += 1 + size/3 {
		var o H2Observer
		var got []string
		for rest := wire; rest != ""; {
			p := []byte(rest[:min(size, len(rest))])
			rest = rest[len(p):]
			for len(p) > 0 {
				n, f, ok := o.Next(p)
				if n == 0 {
					t.Fatal("no progress")
				}
				p = p[n:]
				if ok {
					last, code := f.GoAway()
					got = append(got, fmt.Sprint(f.Type, f.Stream, f.Status(), f.Reset(), last, code, f.MaxFrame()))
				}
			}
		}
		want := []string{"4 0 0 0 0 0 1048576", "4 0 0 0 0 0 0", "1 1 400 0 0 0 0", "0 1 0 0 0 0 0", "3 3 0 7 0 0 0", "7 0 0 0 5 11 0", "0 1 0 0 0 0 0"}
		if !o.Between() || strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("pieces of %d: %q", size, got)
		}
	}
}

func TestH2Status(t *testing.T) {
	for in, want := range map[string]int{
		"\x88": 200, "\x8c": 400, "\x8e": 500, "\x8f": 0, "\x82": 0, "\xbe": 0, "": 0, "\x48": 0,
		"\x48\x03431": 431, "\x08\x03431rest": 431, "\x18\x03431": 431, "\x4e\x03999": 999, "\x48\x0343": 0, "\x48\x82\x10\x01": 0,
		"\x20\x48\x03431": 431, "\x3f\xe1\x1f\x8c": 400, "\x20\x3f\xe1\x1f\x48\x03431": 431, "\x3f\xe1": 0, "\x47\x03431": 0, "\x48\x034x1": 0,
	} {
		if got := h2Status([]byte(in)); got != want {
			t.Errorf("%x: %d, want %d", in, got, want)
		}
	}
}

func TestH2GoAway(t *testing.T) {
	var o H2Observer
	b := AppendH2GoAway(nil, 7, H2Calm)
	n, f, ok := o.Next(b)
	if last, code := f.GoAway(); n != len(b) || !ok || last != 7 || code != H2Calm {
		t.Errorf("%d %v %d %d", n, ok, last, code)
	}
}

// naive rewrites a whole connection at once, by another way than H2Reader: it
// cuts the bytes into frames first and puts the blocks together.
func naive(in string, most int) (out string, refused bool) {
	if !strings.HasPrefix(in, H2Preface) {
		return in, !strings.HasPrefix(H2Preface, in)
	}
	var b strings.Builder
	b.WriteString(H2Preface)
	in = in[len(H2Preface):]
	var open, highest uint32
	var ofRequest bool
	var block string
	var frames int
	w := &naiveBlocks{}
	for len(in) >= 9 {
		h := parseH2Header([]byte(in))
		if int(h.Length) > most {
			return "", true
		}
		if len(in) < 9+int(h.Length) {
			break
		}
		payload := in[9 : 9+h.Length]
		in = in[9+h.Length:]
		if open != 0 && (h.Type != H2Continuation || h.Stream != open) || open == 0 && h.Type == H2Continuation || h.Type == H2PushPromise {
			return "", true
		}
		front, body, pad := "", payload, ""
		if h.Has(H2Padded) && (h.Type == H2Headers || h.Type == H2Data) {
			if body == "" || int(body[0]) > len(body)-1 {
				return "", true
			}
			cut := len(body) - int(body[0])
			front, body, pad = body[:1], body[1:cut], body[cut:]
		}
		if h.Has(H2HasPriority) && h.Type == H2Headers {
			if len(body) < 5 {
				return "", true
			}
			front, body = front+body[:5], body[5:]
		}
		if h.Type == H2Headers {
			if h.Stream%2 == 0 {
				return "", true
			}
			open, ofRequest, block, frames = h.Stream, h.Stream > highest, "", 0
			highest = max(highest, h.Stream)
		}
		if h.Type != H2Headers && h.Type != H2Continuation {
			b.WriteString(frame(h.Type, h.Flags, h.Stream, payload))
			continue
		}
		block, frames = block+body, frames+1
		if len(block) > h2MaxBlock || frames > h2MaxFrames {
			return "", true
		}
		if !h.Has(H2EndHeaders) {
			b.WriteString(frame(h.Type, h.Flags, h.Stream, payload))
			continue
		}
		open = 0
		secure, whole := w.block(block)
		if !whole {
			return "", true
		}
		letter := "p"
		if secure {
			letter = "s"
		}
		switch add := ours(h.Stream, letter); {
		case !ofRequest:
			b.WriteString(frame(h.Type, h.Flags, h.Stream, payload))
		case len(payload)+len(add) <= most:
			b.WriteString(frame(h.Type, h.Flags, h.Stream, front+body+add+pad))
		default:
			b.WriteString(frame(h.Type, h.Flags&^H2EndHeaders, h.Stream, payload) + frame(H2Continuation, H2EndHeaders, h.Stream, add))
		}
	}
	if open != 0 { // a number that never ends is seen before the block ends
		w.block(block)
	}
	return b.String(), w.endless
}

// naiveBlocks takes whole header blocks apart.
type naiveBlocks struct {
	taint   bool
	endless bool // a number was longer than any that makes sense
}

func (w *naiveBlocks) block(s string) (secure, whole bool) {
	number := func(bits int) (int, bool) {
		most := 1<<bits - 1
		n := int(s[0]) & most
		s = s[1:]
		if n < most {
			return n, true
		}
		for i := 0; i < 4; i++ {
			if s == "" {
				return 0, false
			}
			c := s[0]
			s = s[1:]
			n += int(c&0x7f) << (7 * i)
			if c < 0x80 {
				return n, true
			}
		}
		w.endless = w.endless || s != ""
		return 0, false
	}
	text := func() (v string, huff, ok bool) {
		if s == "" {
			return "", false, false
		}
		huff = s[0] >= 0x80
		n, ok := number(7)
		if !ok || n > len(s) {
			return "", false, false
		}
		v, s = s[:n], s[n:]
		return v, huff, true
	}
	plain, fields := false, 0
	for s != "" {
		first := s[0]
		bits := 4
		switch {
		case first >= 0x80:
			bits = 7
		case first >= 0x40:
			bits = 6
		case first >= 0x20:
			bits = 5
		}
		n, ok := number(bits)
		if !ok {
			return false, false
		}
		if bits == 5 {
			continue
		}
		fields++
		if bits == 7 {
			plain = plain || n == 6
			continue
		}
		scheme := n == 6 || n == 7
		if n == 0 {
			v, huff, ok := text()
			if !ok {
				return false, false
			}
			scheme = !huff && v == ":scheme" || huff && v == h2SchemeHuff
		}
		v, huff, ok := text()
		if !ok {
			return false, false
		}
		if scheme && (huff || v != "https") && (!huff || v != h2HTTPSHuff) {
			plain = true
			w.taint = w.taint || bits == 6
		}
	}
	return !plain && !w.taint, fields <= h2MaxFields
}

// FuzzH2Frames: however the bytes are cut, the same comes out, and it is what
// the naive way gives. Where one of them refuses, the other does.
func FuzzH2Frames(f *testing.F) {
	seed := func(frames ...string) {
		f.Add([]byte(H2Preface+strings.Join(frames, "")), []byte{0, 3})
	}
	seed(frame(H2Settings, 0, 0, ""), frame(H2Headers, 5, 1, getBlock))
	seed(frame(H2Headers, 0xd, 1, "\x02"+getBlock+"\x00\x00"), frame(H2Headers, 0x25, 3, "\x00\x00\x00\x00\x10"+getBlock))
	seed(frame(H2Headers, 0, 1, getBlock[:4]), frame(H2Continuation, 4, 1, getBlock[4:]), frame(H2Data, 9, 1, "\x01a\x00"))
	seed(frame(H2Headers, 4, 1, getBlock), frame(H2Headers, 5, 1, "\x00\x01a\x01b"), frame(H2Reset, 0, 1, "\x00\x00\x00\x08"))
	seed(frame(H2Headers, 5, 1, "\x00\x85"+h2SchemeHuff+"\x84"+h2HTTPSHuff), frame(H2Headers, 5, 3, "\x46\x04http"), frame(H2Headers, 5, 5, "\xbe"))
	seed(frame(H2Headers, 5, 1, "\x00\x01x\x1d"))
	seed(frame(H2Headers, 5, 1, strings.Repeat("\x82", 300)), frame(0x10, 0, 0, "\x00\x00\x00\x01u=1"))
	f.Fuzz(func(t *testing.T, in, sizes []byte) {
		whole, _, end := through(string(in), nil, 1<<16)
		for i, s := range [][]byte{{0}, sizes} {
			got, _, err := through(string(in), s, []int{7, 1 << 16}[i])
			if (err == nil) != (end == nil) || err != nil && (err.Code != end.Code || err.Reason != end.Reason) {
				t.Fatalf("pieces %v: %v, else %v", s, err, end)
			}
			if end == nil && got != whole {
				t.Fatalf("pieces %v:\n%x\n%x", s, got, whole)
			}
		}
		// The reader judges frames by their beginning, too, so that only what is
		// complete can be compared.
		full := complete(string(in))
		whole, _, end = through(full, nil, 1<<16)
		want, refused := naive(full, h2LeastFrame)
		if refused != (end != nil) || !refused && whole != want {
			t.Fatalf("refused %v, reader: %v\n got %x\nwant %x", refused, end, whole, want)
		}
	})
}

// complete cuts off a frame that is not complete.
func complete(in string) string {
	n := len(H2Preface)
	for len(in) >= n+h2Fixed {
		size := h2Fixed + int(parseH2Header([]byte(in[n:])).Length)
		if n+size > len(in) {
			break
		}
		n += size
	}
	return in[:min(n, len(in))]
}

// FuzzH2Observer: however the bytes are cut, the same frames are seen.
func FuzzH2Observer(f *testing.F) {
	f.Add([]byte(frame(H2Settings, 0, 0, "\x00\x05\x00\x10\x00\x00")+frame(H2Headers, 4, 1, "\x3f\xe1\x1f\x48\x03431")+frame(H2Data, 1, 1, "x")), uint8(1))
	f.Add([]byte(frame(H2GoAway, 0, 0, "\x00\x00")+frame(H2Reset, 0, 1, "")), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		look := func(size int) (seen string) {
			var o H2Observer
			for rest := in; len(rest) > 0; {
				p := rest[:min(size, len(rest))]
				rest = rest[len(p):]
				for len(p) > 0 {
					n, f, ok := o.Next(p)
					if n < 1 || n > len(p) {
						t.Fatalf("took %d of %d", n, len(p))
					}
					p = p[n:]
					if ok {
						last, code := f.GoAway()
						seen += fmt.Sprint(f.H2Header, f.Status(), f.Reset(), last, code, f.MaxFrame(), ";")
					}
				}
			}
			return seen + fmt.Sprint(o.Between())
		}
		if a, b := look(len(in)+1), look(int(size)+1); a != b {
			t.Errorf("%s\n%s", a, b)
		}
	})
}

// endless repeats a run of frames for as long as it is read.
type endless struct {
	run []byte
	at  int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.run[e.at:])
	if e.at += n; e.at == len(e.run) {
		e.at = 0
	}
	return n, nil
}

type passAll struct{}

func (passAll) Frame(f H2Frame) (bool, *H2Error) { return f.Type == H2Headers, nil }

// BenchmarkH2Reader reads as net/http does: 9 bytes, then the payload.
func BenchmarkH2Reader(b *testing.B) {
	block := getBlock + "\x40\x0aauthorized\x20" + strings.Repeat("t", 32) + "\x7a\x06curl/8\x53\x03*/*"
	for _, bc := range []struct {
		name  string
		frame string
		out   int
	}{
		{"headers", frame(H2Headers, 5, 1, block), 9 + len(block) + h2FieldSize},
		{"data", frame(H2Data, 0, 1, strings.Repeat("x", h2LeastFrame)), 9 + h2LeastFrame},
		{"ping", frame(H2Ping, 0, 0, "12345678"), 17},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := NewH2Reader(io.MultiReader(strings.NewReader(H2Preface), &endless{run: []byte(bc.frame)}), passAll{})
			p := make([]byte, h2LeastFrame+100)
			if _, err := io.ReadFull(r, p[:len(H2Preface)]); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.ReadFull(r, p[:9]); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(r, p[:bc.out-9]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkH2Observer(b *testing.B) {
	wire := []byte(frame(H2Headers, 4, 1, "\x88"+strings.Repeat("\xbe", 6)) + frame(H2Data, 1, 1, strings.Repeat("x", 1024)))
	var o H2Observer
	b.ReportAllocs()
	for b.Loop() {
		for p := wire; len(p) > 0; {
			n, _, _ := o.Next(p)
			p = p[n:]
		}
	}
	if !o.Between() || !bytes.HasPrefix(wire, []byte{0}) {
		b.Error("lost count")
	}
}
