package canon

import (
	"bytes"
	"strings"
)

// H1Part is what H1.Next has found at the front of its bytes.
type H1Part uint8

// The parts of a message, in the order in which they come.
const (
	H1More  H1Part = iota // not enough bytes yet to say anything
	H1Skip                // the one empty line that may stand before a request
	H1Head                // a whole request head; Head describes it
	H1Data                // bytes of the body
	H1Frame               // chunk sizes, line ends and trailers: bytes between the data
)

// MaxTrailerBytes bounds the last chunk and the trailer section together.
const MaxTrailerBytes = 2 << 10

// H1 reads the requests of one HTTP/1.1 connection (RFC 9112) strictly: what
// two readers could take for different requests is refused, and so is all that
// net/http would repair on the way. Incremental: bytes may come in pieces of
// any size and the verdict does not depend on how they were cut. It allocates
// nothing for a request that is well formed and names the host that the one
// before it named.
//
// The zero value reads plaintext connections. One goroutine at a time.
type H1 struct {
	// Secure says that the connection is TLS: the scheme of absolute-form
	// targets, and which port a Host may leave out.
	Secure bool

	state h1State
	head  H1Request
	left  int64  // of the body or chunk
	at    int    // offset up to which the current unit has been looked at
	line  int    // offset of the line that is being looked at
	lines int    // lines of the current unit that are complete
	host  string // the Host value that was valid last
	err   error  // the verdict, once it is no
}

type h1State uint8

const (
	h1Start    h1State = iota // before the head; an empty line may come
	h1Head                    // in the head, or before it without that
	h1Length                  // in a body of known length
	h1Size                    // before a chunk size
	h1Chunk                   // in the data of a chunk
	h1ChunkEnd                // before the line end after the data
	h1Trailer                 // after the size of the last chunk
	h1Done                    // the message is complete
)

// H1Span is a part of the head: offsets from its first byte.
type H1Span struct{ From, To uint16 }

// Of cuts the span out of the head's bytes.
func (s H1Span) Of(head []byte) []byte { return head[s.From:s.To] }

// H1Field is one field line: name as sent, value without the white space
// around it.
type H1Field struct{ Name, Value H1Span }

// H1Request describes a head. It holds offsets, no bytes.
type H1Request struct {
	Method, Target H1Span
	Host           H1Span
	Fields         []H1Field // all, in the order of arrival
	Length         int64     // of the body; -1: chunked
	Close          bool      // Connection: close
	Continue       bool      // Expect: 100-continue
	Absolute       bool      // the target is in absolute-form; its authority equals Host

	hosts, lengths, codings uint8
}

// Head is the request that was read last. It is valid until the next message
// begins.
func (h *H1) Head() *H1Request { return &h.head }

// Done reports whether the last message is complete. The next call of Next
// begins another.
func (h *H1) Done() bool { return h.state == h1Done }

// Between reports whether nothing of a message has been accepted yet.
func (h *H1) Between() bool { return h.state <= h1Head || h.state == h1Done }

// Next looks at b, which begins with the first byte that has not been accepted
// yet, and says what its first n bytes are. With H1More n is 0: the caller
// comes again with the same bytes and more. The error is an *Error and final.
func (h *H1) Next(b []byte) (part H1Part, n int, err error) {
	if h.err != nil {
		return H1More, 0, h.err
	}
	if h.state == h1Done {
		h.state = h1Start
	}
	if len(b) == 0 {
		return H1More, 0, nil
	}
	switch h.state {
	case h1Start:
		if part, n, err = h.emptyLine(b); part == H1More && err == nil && h.state == h1Head {
			part, n, err = h.readHead(b)
		}
	case h1Head:
		part, n, err = h.readHead(b)
	case h1Length, h1Chunk:
		part, n = H1Data, h.data(b)
	case h1Size:
		part, n, err = h.chunkSize(b)
	case h1ChunkEnd:
		part, n, err = h.chunkEnd(b)
	case h1Trailer:
		part, n, err = h.trailers(b)
	}
	h.err = err
	return part, n, err
}

// Scan accepts as many of the first bytes of b as are good, up to the end of
// the message. An error stands beside what was good before it.
func (h *H1) Scan(b []byte) (n int, err error) {
	for {
		part, m, err := h.Next(b[n:])
		n += m
		if part == H1More || err != nil || h.Done() {
			return n, err
		}
	}
}

// emptyLine takes one CRLF before a request line (RFC 9112 section 2.2).
func (h *H1) emptyLine(b []byte) (H1Part, int, error) {
	if b[0] != '\r' {
		h.beginHead()
		return H1More, 0, nil
	}
	if len(b) == 1 {
		return H1More, 0, nil
	}
	if b[1] != '\n' {
		return H1More, 0, refuse(MalformedRequest, "bare CR")
	}
	h.beginHead()
	return H1Skip, 2, nil
}

func (h *H1) beginHead() {
	h.state = h1Head
	h.head = H1Request{Fields: h.head.Fields[:0]}
	h.at, h.line, h.lines = 0, 0, 0
}

// readHead goes on where it stopped, line by line.
func (h *H1) readHead(b []byte) (H1Part, int, error) {
	for {
		line, found, err := h.nextLine(b, MaxHeadBytes, MalformedRequest)
		if err != nil || !found {
			return H1More, 0, err
		}
		switch {
		case h.lines == 1:
			err = h.requestLine(line)
		case len(line) > 0:
			err = h.fieldLine(b, line)
		default:
			n := h.at
			if err = h.endHead(b[:n]); err == nil {
				return H1Head, n, nil
			}
		}
		if err != nil {
			return H1More, 0, err
		}
	}
}

// lineByte are the bytes that a line may have before its CRLF: no control
// characters but the tab. DEL and NUL are control characters.
var lineByte = func() (t [256]bool) {
	for c := range t {
		t[c] = c == '\t' || c >= ' ' && c != 0x7f
	}
	return t
}()

// nextLine finds the end of the line that begins at h.line. A line ends with
// CRLF and nothing else (RFC 9112 section 2.2 allows to read a bare LF; two
// readers then see two different messages).
func (h *H1) nextLine(b []byte, most int, why string) (line []byte, found bool, err error) {
	end := min(len(b), most)
	i := h.at
	for i < end && lineByte[b[i]] {
		i++
	}
	h.at = i
	switch {
	case i == most:
		return nil, false, refuse(HeaderTooLarge, "head or trailers larger than the limit")
	case i == end:
		return nil, false, nil
	case b[i] == '\n':
		return nil, false, refuse(why, "bare LF")
	case b[i] != '\r':
		return nil, false, refuse(why, "control character in a line")
	case i+1 == most:
		return nil, false, refuse(HeaderTooLarge, "head or trailers larger than the limit")
	case i+1 == len(b):
		return nil, false, nil
	case b[i+1] != '\n':
		return nil, false, refuse(why, "bare CR")
	}
	line = b[h.line:i]
	h.at = i + 2
	h.line = h.at
	h.lines++
	return line, true, nil
}

// endHead judges the head as a whole and sets how the body is framed (RFC 9112
// section 6).
func (h *H1) endHead(head []byte) error {
	r := &h.head
	if err := h.checkHost(head); err != nil {
		return err
	}
	method := r.Method.Of(head)
	switch {
	case r.codings > 0 && r.lengths > 0:
		return refuse(AmbiguousFraming, "Content-Length beside Transfer-Encoding")
	case r.codings > 0 && (string(method) == "GET" || string(method) == "HEAD"):
		return refuse(AmbiguousFraming, "chunked body of a GET or HEAD")
	case string(method) == "TRACE" && (r.codings > 0 || r.Length > 0):
		return refuse(AmbiguousFraming, "body of a TRACE") // RFC 9110 section 9.3.8
	}
	switch {
	case r.codings > 0:
		r.Length, h.state = -1, h1Size
	case r.Length > 0:
		h.left, h.state = r.Length, h1Length
	default:
		h.state = h1Done
	}
	return nil
}

// checkHost demands exactly one valid Host (RFC 9112 section 3.2), and that an
// absolute-form target names the same.
func (h *H1) checkHost(head []byte) error {
	r := &h.head
	if r.hosts != 1 {
		return refuse(BadHost, "not exactly one Host field")
	}
	host := r.Host.Of(head)
	if string(host) != h.host {
		value := string(host)
		if _, _, err := parseHost(value, h.scheme()); err != nil {
			return err
		}
		h.host = value
	}
	if !r.Absolute {
		return nil
	}
	target := string(r.Target.Of(head))
	authority := target[strings.Index(target, "://")+3:]
	if end := strings.IndexAny(authority, "/?"); end >= 0 {
		authority = authority[:end]
	}
	_, want, err := parseHost(authority, h.scheme())
	if err != nil {
		return err
	}
	if _, got, _ := parseHost(h.host, h.scheme()); got != want {
		return refuse(BadHost, "Host field that differs from the target's authority")
	}
	return nil
}

func (h *H1) scheme() string {
	if h.Secure {
		return "https"
	}
	return "http"
}

// requestLine reads "METHOD SP target SP HTTP/1.1" (RFC 9112 section 3), with
// single spaces only.
func (h *H1) requestLine(line []byte) error {
	sp := bytes.IndexByte(line, ' ')
	if sp <= 0 || sp > 32 || !tokenBytes(line[:sp]) {
		return refuse(MalformedRequest, "method that is not a token of at most 32 bytes")
	}
	h.head.Method = H1Span{0, uint16(sp)}
	method, rest := line[:sp], line[sp+1:]
	sp = bytes.IndexByte(rest, ' ')
	if sp <= 0 {
		return refuse(MalformedRequest, "request line without a target and a version")
	}
	target, version := rest[:sp], rest[sp+1:]
	if len(version) != 8 || string(version[:5]) != "HTTP/" || !digit(version[5]) || version[6] != '.' || !digit(version[7]) {
		return refuse(MalformedRequest, "version that does not read HTTP/n.n")
	}
	switch {
	case string(method) == "PRI":
		return refuse(MalformedRequest, "preface of HTTP/2")
	case string(version) != "HTTP/1.1":
		return refuse(UnsupportedProtocol, "version other than HTTP/1.1")
	case string(method) == "CONNECT":
		return refuse(MalformedRequest, "CONNECT")
	}
	from := len(method) + 1
	h.head.Target = H1Span{uint16(from), uint16(from + len(target))}
	return h.checkTarget(string(method) == "OPTIONS", target)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// targetByte are the bytes that a request target may have: visible ASCII
// without '#' (a fragment is never sent, RFC 9112 section 3.2). What a path
// may hold beyond that is for the canonical form to say.
var targetByte = func() (t [256]bool) {
	for c := range t {
		t[c] = c > ' ' && c < 0x7f && c != '#'
	}
	return t
}()

// checkTarget knows origin-form, absolute-form of the connection's own scheme
// and, of OPTIONS, asterisk-form. Percent-encodings in the path must be whole.
func (h *H1) checkTarget(options bool, target []byte) error {
	for _, c := range target {
		if !targetByte[c] {
			return refuse(BadPath, "byte in the request target that none may have")
		}
	}
	path := target
	if target[0] != '/' {
		if len(target) == 1 && target[0] == '*' {
			if options {
				return nil
			}
			return refuse(BadPath, "asterisk-form of a method other than OPTIONS")
		}
		scheme := h.scheme()
		if len(target) < len(scheme)+3 || !equalFold(target[:len(scheme)], scheme) || string(target[len(scheme):len(scheme)+3]) != "://" {
			return refuse(BadPath, "target that is neither a path nor an absolute URI of this scheme")
		}
		h.head.Absolute = true
		path = target[len(scheme)+3:]
		if at := bytes.IndexAny(path, "/?"); at >= 0 {
			path = path[at:]
		} else {
			path = nil
		}
	}
	if q := bytes.IndexByte(path, '?'); q >= 0 {
		path = path[:q]
	}
	for at := bytes.IndexByte(path, '%'); at >= 0; at = bytes.IndexByte(path, '%') {
		if len(path) < at+3 || unhex(path[at+1]) < 0 || unhex(path[at+2]) < 0 {
			return refuse(BadPath, "percent sign without two hexadecimal digits")
		}
		path = path[at+3:]
	}
	return nil
}
