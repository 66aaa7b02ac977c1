package canon

import (
	"encoding/binary"
	"fmt"
)

// H2Type is the type of a frame (RFC 9113 section 6).
type H2Type uint8

// The types that a connection is watched for; others pass.
const (
	H2Data         H2Type = 0x0
	H2Headers      H2Type = 0x1
	H2Priority     H2Type = 0x2
	H2Reset        H2Type = 0x3
	H2Settings     H2Type = 0x4
	H2PushPromise  H2Type = 0x5
	H2Ping         H2Type = 0x6
	H2GoAway       H2Type = 0x7
	H2WindowUpdate H2Type = 0x8
	H2Continuation H2Type = 0x9
)

// The flags of RFC 9113 section 6; H2Ack and H2EndStream share a bit.
const (
	H2Ack         = 0x1
	H2EndStream   = 0x1
	H2EndHeaders  = 0x4
	H2Padded      = 0x8
	H2HasPriority = 0x20
)

// H2Code is an error code (RFC 9113 section 7).
type H2Code uint32

// The codes that are sent or told apart.
const (
	H2NoError          H2Code = 0x0
	H2ProtocolError    H2Code = 0x1
	H2FrameSizeError   H2Code = 0x6
	H2RefusedStream    H2Code = 0x7
	H2CompressionError H2Code = 0x9
	H2Calm             H2Code = 0xb // ENHANCE_YOUR_CALM
)

// H2Preface opens every HTTP/2 connection (RFC 9113 section 3.4).
const H2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// h2Fixed is the size of the fixed part of a frame (RFC 9113 section 4.1).
const h2Fixed = 9

// h2LeastFrame is the payload that every peer must take (RFC 9113 section 4.2).
const h2LeastFrame = 1 << 14

// H2Header is the fixed part of a frame.
type H2Header struct {
	Length uint32 // of the payload, padding included
	Type   H2Type
	Flags  uint8
	Stream uint32 // without the reserved bit
}

// Has reports whether every bit of flag is set.
func (h H2Header) Has(flag uint8) bool { return h.Flags&flag == flag }

func parseH2Header(b []byte) H2Header {
	return H2Header{
		Length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		Type:   H2Type(b[3]), Flags: b[4],
		Stream: binary.BigEndian.Uint32(b[5:]) &^ (1 << 31),
	}
}

func (h H2Header) append(b []byte) []byte {
	b = append(b, byte(h.Length>>16), byte(h.Length>>8), byte(h.Length), byte(h.Type), h.Flags)
	return binary.BigEndian.AppendUint32(b, h.Stream)
}

// AppendH2GoAway appends a GOAWAY frame (RFC 9113 section 6.8) to b. last is
// the highest stream that may have been acted upon.
func AppendH2GoAway(b []byte, last uint32, code H2Code) []byte {
	b = H2Header{Length: 8, Type: H2GoAway}.append(b)
	b = binary.BigEndian.AppendUint32(b, last)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

// H2Error is why a connection cannot go on. Detail names the rule and never
// quotes what the client sent.
type H2Error struct {
	Code   H2Code // for GOAWAY
	Reason string // MalformedRequest or HeaderTooLarge
	Detail string
}

// Error implements error.
func (e *H2Error) Error() string {
	return fmt.Sprintf("http/2 connection refused: %s (%s, code %d)", e.Detail, e.Reason, e.Code)
}

func h2Refuse(code H2Code, detail string) *H2Error {
	return &H2Error{Code: code, Reason: MalformedRequest, Detail: detail}
}

// H2StreamField is the field that H2Reader appends to the header block of each
// request. Reserved covers it, so that a value of the client's own never means
// anything: the last value is ours.
const H2StreamField = "x-gatebook-stream"

// h2ValueSize is the length of its value, always the same, so that the length
// of a frame is known before its block has been read: eight digits of the
// stream and one letter for the scheme.
const h2ValueSize = 8 + 1

// h2FieldSize is the length of the whole field as appended.
const h2FieldSize = 1 + 1 + len(H2StreamField) + 1 + h2ValueSize

const hexDigits = "0123456789abcdef"

// appendH2Stream appends the field as a literal without indexing with a new
// name and without Huffman coding (RFC 7541 section 6.2.2): at the end of a
// block it leaves the dynamic table as it is.
func appendH2Stream(b []byte, stream uint32, secure bool) []byte {
	b = append(b, 0, byte(len(H2StreamField)))
	b = append(b, H2StreamField...)
	b = append(b, h2ValueSize)
	for shift := 28; shift >= 0; shift -= 4 {
		b = append(b, hexDigits[stream>>shift&0xf])
	}
	if secure {
		return append(b, 's')
	}
	return append(b, 'p')
}

// ParseH2Stream reads the value of H2StreamField. secure is false when the
// block said that :scheme is something other than https.
func ParseH2Stream(v string) (stream uint32, secure, ok bool) {
	if len(v) != h2ValueSize {
		return 0, false, false
	}
	for i := range 8 {
		switch c := v[i]; {
		case '0' <= c && c <= '9':
			stream = stream<<4 | uint32(c-'0')
		case 'a' <= c && c <= 'f':
			stream = stream<<4 | uint32(c-'a'+10)
		default:
			return 0, false, false
		}
	}
	return stream, v[8] == 's', v[8] == 's' || v[8] == 'p'
}
