package upstream

import (
	"bytes"
	"fmt"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Limits of what an upstream may send around a body.
const (
	maxHead      = 64 << 10 // all heads of one exchange together, interim ones included
	maxTrailers  = 8 << 10  // what net/http takes, on whichever way
	maxFields    = 256      // per head
	maxChunkLine = 256      // chunk size and extensions
	maxInterim   = 8        // 1xx answers per exchange (reference/security.md D2)
)

// framePhase is where in a response the next byte belongs.
type framePhase uint8

const (
	phaseStatus framePhase = iota
	phaseField
	phaseLength
	phaseChunkSize
	phaseChunkData
	phaseChunkEnd
	phaseTrailer
	phaseUntilClose
	phaseTunnel
	phaseDone
)

func (p framePhase) inHead() bool { return p <= phaseField }

// frameError is a response that breaks the rules of its own framing.
type frameError struct {
	reason reason.Reason
	text   string
}

func (e *frameError) Error() string { return e.text }

func badFrame(format string, args ...any) error {
	return &frameError{reason.BadResponse, fmt.Sprintf(format, args...)}
}

// span is a field in framer.buf: name in [name, colon), value in [from, to).
type span struct{ name, colon, from, to int32 }

// head is one complete response head, or the trailer section when status is 0.
type head struct {
	status int
	fields []canon.Field
	length int64 // declared or implied body length, -1 unknown
	body   bool  // bytes follow
}

// framer is a strict HTTP/1 response reader that is fed what comes from the
// connection before net/http sees it. It decides nothing that net/http does
// not decide too; it refuses what net/http would forgive (bare LF, obs-fold,
// Content-Length beside Transfer-Encoding, repeated lengths, bytes after the
// end), so that both always agree where a response ends and no byte of one
// response can be taken for the start of the next (RFC 9112 sections 2.2, 5,
// 6.3, 7.1). It keeps its buffers from one response to the next.
type framer struct {
	phase    framePhase
	isHead   bool   // the request was HEAD: no body whatever the fields say
	upgrade  string // the protocol that a 101 may switch to, "" none
	started  bool   // a byte of this response was read
	interims int
	headLeft int
	buf      []byte // the head or trailer section so far, names in lower case
	line     int    // where in buf the current line starts
	spans    []span
	status   int
	http10   bool
	length   int64 // Content-Length, -1 absent
	chunked  bool
	left     int64 // bytes left of the body or chunk
	taken    int   // bytes of the response until now
	headEnd  int   // of those, bytes up to the end of the final head; 0 before
	heads    []head
}

// reset prepares for the response to the next request.
func (f *framer) reset(isHead bool, upgrade string) {
	f.isHead, f.upgrade = isHead, upgrade
	f.started = false
	f.interims = 0
	f.taken, f.headEnd = 0, 0
	f.headLeft = maxHead
	f.heads = f.heads[:0]
	f.startHead()
}

func (f *framer) startHead() {
	f.phase = phaseStatus
	f.buf = f.buf[:0]
	f.line = 0
	f.spans = f.spans[:0]
	f.length = -1
	f.chunked = false
	f.left = 0
}

// feed takes the next bytes of the response. It returns how many belong to
// it: fewer than len(p) only when the response ended before the end of p.
// Complete heads are appended to f.heads.
func (f *framer) feed(p []byte) (int, error) {
	f.started = f.started || len(p) > 0
	n := 0
	for n < len(p) && f.phase != phaseDone {
		switch f.phase {
		case phaseLength, phaseChunkData:
			take := min(int64(len(p)-n), f.left)
			f.left -= take
			n += int(take)
			f.taken += int(take)
			if f.left == 0 {
				f.bodyPieceDone()
			}
		case phaseUntilClose, phaseTunnel:
			n = len(p)
		default:
			k, err := f.feedLine(p[n:])
			if err != nil {
				return n, err
			}
			n += k
			f.taken += k
			if f.headEnd == 0 && !f.phase.inHead() {
				f.headEnd = f.taken
			}
		}
	}
	return n, nil
}

func (f *framer) bodyPieceDone() {
	if f.phase == phaseLength {
		f.phase = phaseDone
		return
	}
	f.phase = phaseChunkEnd
	f.buf, f.line = f.buf[:0], 0
}

// feedLine takes bytes up to the end of the current line and, if the line is
// complete, the line.
func (f *framer) feedLine(p []byte) (int, error) {
	k := bytes.IndexByte(p, '\n') + 1
	complete := k > 0
	if !complete {
		k = len(p)
	}
	if f.phase.inHead() || f.phase == phaseTrailer {
		if f.headLeft -= k; f.headLeft < 0 {
			return 0, badFrame("response head or trailers exceed %d bytes", maxHead)
		}
	} else if len(f.buf)+k > maxChunkLine {
		return 0, badFrame("chunk line exceeds %d bytes", maxChunkLine)
	}
	f.buf = append(f.buf, p[:k]...)
	if !complete {
		return k, nil
	}
	end := len(f.buf) - 2
	if end < f.line || f.buf[end] != '\r' {
		return 0, badFrame("line ends in a bare LF")
	}
	return k, f.takeLine(f.buf[f.line:end])
}

func (f *framer) takeLine(line []byte) error {
	switch f.phase {
	case phaseStatus:
		if err := f.statusLine(line); err != nil {
			return err
		}
		f.phase = phaseField
		f.buf, f.line = f.buf[:0], 0
	case phaseField, phaseTrailer:
		if len(line) == 0 {
			return f.endSection()
		}
		if err := f.fieldLine(line); err != nil {
			return err
		}
		f.line = len(f.buf)
	case phaseChunkSize:
		return f.chunkSize(line)
	case phaseChunkEnd:
		if len(line) != 0 {
			return badFrame("chunk data is longer than its size")
		}
		f.phase = phaseChunkSize
		f.buf, f.line = f.buf[:0], 0
	}
	return nil
}

// statusLine obeys RFC 9112 section 4, with exactly one space and a status
// from 100 to 599 (RFC 9110 section 15).
func (f *framer) statusLine(line []byte) error {
	if len(line) < len("HTTP/1.1 200") || string(line[:7]) != "HTTP/1." || line[7] != '1' && line[7] != '0' || line[8] != ' ' {
		return badFrame("malformed status line")
	}
	f.http10 = line[7] == '0'
	status := 0
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return badFrame("malformed status code")
		}
		status = status*10 + int(c-'0')
	}
	if status < 100 || status > 599 {
		return badFrame("status %d is outside 100 to 599", status)
	}
	if rest := line[12:]; len(rest) > 0 && (rest[0] != ' ' || !textBytes(rest)) {
		return badFrame("malformed reason phrase")
	}
	f.status = status
	return nil
}

// fieldLine obeys RFC 9112 section 5: a token, a colon at once, a value
// without control characters; no line folding.
func (f *framer) fieldLine(line []byte) error {
	if len(f.spans) >= maxFields {
		return badFrame("more than %d fields in a response head", maxFields)
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return badFrame("field line without a name or folded line")
	}
	for i, c := range line[:colon] {
		lower := tokenLower[c]
		if lower == 0 {
			return badFrame("invalid byte %#02x in a field name", c)
		}
		line[i] = lower
	}
	from, to := colon+1, len(line)
	for from < to && (line[from] == ' ' || line[from] == '\t') {
		from++
	}
	for to > from && (line[to-1] == ' ' || line[to-1] == '\t') {
		to--
	}
	value := line[from:to]
	if !textBytes(value) {
		return badFrame("invalid byte in the value of field %q", line[:colon])
	}
	base := f.line
	f.spans = append(f.spans, span{int32(base), int32(base + colon), int32(base + from), int32(base + to)})
	if f.phase == phaseTrailer {
		return nil
	}
	return f.framingField(line[:colon], value)
}

// framingField notes the two fields that say where the body ends.
func (f *framer) framingField(name, value []byte) error {
	switch string(name) {
	case "content-length":
		if f.length >= 0 {
			return badFrame("more than one content-length")
		}
		n, ok := parseDigits(value, 10)
		if !ok {
			return badFrame("malformed content-length")
		}
		f.length = n
	case "transfer-encoding":
		if f.chunked || !equalFoldASCII(value, "chunked") {
			return badFrame("transfer-encoding other than one chunked")
		}
		f.chunked = true
	}
	return nil
}

// endSection ends a head or the trailers.
func (f *framer) endSection() error {
	if f.phase == phaseTrailer {
		f.heads = append(f.heads, head{fields: f.fields()})
		f.phase = phaseDone
		return nil
	}
	if f.chunked && f.length >= 0 {
		return badFrame("content-length beside transfer-encoding")
	}
	if f.chunked && f.http10 {
		return badFrame("transfer-encoding in an HTTP/1.0 response")
	}
	if f.status < 200 {
		return f.endInterim()
	}
	if f.status == 204 && (f.chunked || f.length > 0) {
		return badFrame("a 204 response with a body")
	}
	h := head{status: f.status, fields: f.fields(), length: f.length}
	f.buf, f.line = f.buf[:0], 0
	switch {
	case f.isHead || f.status == 304:
		f.phase = phaseDone
	case f.status == 204 || f.length == 0:
		h.length = 0
		f.phase = phaseDone
	case f.chunked:
		h.body = true
		f.phase = phaseChunkSize
	case f.length > 0:
		h.body = true
		f.left = f.length
		f.phase = phaseLength
	default:
		h.body = true
		f.phase = phaseUntilClose
	}
	f.heads = append(f.heads, h)
	return nil
}

// endInterim ends a 1xx head (RFC 9110 section 15.2). A 101 is an answer only
// to a request that asked for that protocol (section 7.8).
func (f *framer) endInterim() error {
	if f.chunked || f.length > 0 {
		return badFrame("a %d response with a body", f.status)
	}
	if f.status == 101 {
		if f.upgrade == "" || !f.switchesTo(f.upgrade) {
			return badFrame("a 101 response that was not asked for")
		}
		f.heads = append(f.heads, head{status: 101, fields: f.fields(), length: -1, body: true})
		f.phase = phaseTunnel
		return nil
	}
	if f.interims++; f.interims > maxInterim {
		return badFrame("more than %d interim responses", maxInterim)
	}
	f.heads = append(f.heads, head{status: f.status, fields: f.fields()})
	f.startHead()
	return nil
}

func (f *framer) switchesTo(protocol string) bool {
	var named, listed bool
	for _, s := range f.spans {
		value := f.buf[s.from:s.to]
		switch string(f.buf[s.name:s.colon]) {
		case "upgrade":
			if named || !equalFoldASCII(value, protocol) {
				return false
			}
			named = true
		case "connection":
			for token := range bytes.SplitSeq(value, []byte{','}) {
				listed = listed || equalFoldASCII(bytes.TrimSpace(token), "upgrade")
			}
		}
	}
	return named && listed
}

// chunkSize obeys RFC 9112 section 7.1: hexadecimal digits, then nothing or
// extensions, which are ignored.
func (f *framer) chunkSize(line []byte) error {
	digits := line
	if i := bytes.IndexByte(line, ';'); i >= 0 {
		digits = line[:i]
		if !textBytes(line[i:]) {
			return badFrame("invalid byte in a chunk extension")
		}
	}
	n, ok := parseDigits(digits, 16)
	if !ok {
		return badFrame("malformed chunk size")
	}
	f.buf, f.line = f.buf[:0], 0
	f.left = n
	f.phase = phaseChunkData
	if n == 0 {
		f.phase = phaseTrailer
		f.headLeft = maxTrailers
		f.spans = f.spans[:0]
	}
	return nil
}

// eof says what the end of the connection means here; nil means that the
// response is complete.
func (f *framer) eof() error {
	switch f.phase {
	case phaseDone, phaseTunnel:
		return nil
	case phaseUntilClose:
		f.phase = phaseDone
		return nil
	case phaseLength:
		return &frameError{reason.BodyLengthMismatch, fmt.Sprintf("connection closed %d bytes short of content-length", f.left)}
	case phaseStatus, phaseField:
		return &frameError{reason.ResetBeforeResponse, "connection closed before the response head was complete"}
	default:
		return &frameError{reason.ResetMidBody, "connection closed before the last chunk"}
	}
}

// fields copies the section's fields into one string and slices it.
func (f *framer) fields() []canon.Field {
	if len(f.spans) == 0 {
		return nil
	}
	text := string(f.buf)
	fields := make([]canon.Field, len(f.spans))
	for i, s := range f.spans {
		fields[i] = canon.Field{Name: text[s.name:s.colon], Value: text[s.from:s.to]}
	}
	return fields
}

// parseDigits reads an unsigned number of at most 15 digits, so that it cannot
// overflow.
func parseDigits(p []byte, base int64) (int64, bool) {
	if len(p) == 0 || len(p) > 15 {
		return 0, false
	}
	var n int64
	for _, c := range p {
		var d int64
		switch {
		case '0' <= c && c <= '9':
			d = int64(c - '0')
		case base == 16 && 'a' <= c && c <= 'f':
			d = int64(c-'a') + 10
		case base == 16 && 'A' <= c && c <= 'F':
			d = int64(c-'A') + 10
		default:
			return 0, false
		}
		n = n*base + d
	}
	return n, true
}

// tokenLower maps the bytes of a token (RFC 9110 section 5.6.2) to their lower
// case and all others to 0.
var tokenLower = func() (t [256]byte) {
	for c := range t {
		switch b := byte(c); {
		case 'A' <= b && b <= 'Z':
			t[c] = b | 0x20
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9', bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), b) >= 0:
			t[c] = b
		}
	}
	return t
}()

// textBytes reports whether p holds no control character but tabs.
func textBytes(p []byte) bool {
	for _, c := range p {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func equalFoldASCII(p []byte, lower string) bool {
	if len(p) != len(lower) {
		return false
	}
	for i, c := range p {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
