package faultyup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Faults returns the handlers by path. A path that ends in "/*" takes a
// parameter in its place. All faults read only the head of the request, except
// where it says that the body is read.
//
// Connection faults:
//
//	/rst            resets before the response
//	/close          closes before the response
//	/rst-mid-head   sends half a head, then resets
//	/stall-head     never answers
//	/stall-mid-head sends half a head, then nothing
//	/stall-body     sends 10 of 100 bytes, then nothing
//	/stall-chunk    sends a chunk, then nothing
//	/short-body     sends 10 of 100 bytes, then closes
//	/short-chunk    sends a chunk, then closes
//	/rst-body       sends 10 of 100 bytes, then resets
//	/stall-read     never reads the request body, never answers
//	/drop-reused    answers the first request of a connection, closes at the next
//	/rst-reused     the same with a reset
//
// Head faults: /garbage /bare-lf /obs-fold /space-name /nul-value /bare-cr
// /bad-status /status-999 /two-lengths /same-lengths /bad-length /plus-length
// /length-and-chunked /two-chunked /gzip-chunked /http10-chunked /http2-line
// /huge-head /many-fields /head-ok-then-junk
//
// Framing faults: /bad-chunk /lf-chunk /space-chunk /huge-chunk-line
// /long-chunk /bad-trailer /huge-trailers /excess /excess-chunked
// /no-content-body /not-modified-body /head-with-body (an answer to HEAD with a
// body)
//
// Odd but legal: /early-hints /continue /processing /chunked /chunk-ext
// /trailers /hop-by-hop /close-delimited /conn-close /http10 /empty-chunked
// /early and /early-empty (413 before the body is read; the connection is kept
// if the whole of it comes) /early-close (413, then close with the body
// unread) /no-content-length /not-modified /status/* /bytes/* /chunks/* /echo
// (reads the body and sends it back)
//
// Interim faults: /flood-1xx /101 /interim-length
func Faults() map[string]Handler {
	m := map[string]Handler{
		"/echo": echo, "/status/*": status, "/bytes/*": sized, "/chunks/*": chunks,
		"/rst":         func(c *Conn, _ *Seen) bool { c.Reset(); return false },
		"/close":       func(*Conn, *Seen) bool { return false },
		"/stall-head":  func(c *Conn, _ *Seen) bool { c.Hold(); return false },
		"/stall-read":  func(c *Conn, _ *Seen) bool { c.HoldUnread(); return false },
		"/drop-reused": func(c *Conn, s *Seen) bool { return s.Nth == 1 && ok(c, s) },
		"/rst-reused": func(c *Conn, s *Seen) bool {
			if s.Nth == 1 {
				return ok(c, s)
			}
			c.Reset()
			return false
		},
		"/rst-mid-head":   thenReset("HTTP/1.1 200 OK\r\nContent-Le"),
		"/rst-body":       thenReset("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789"),
		"/stall-mid-head": thenHold("HTTP/1.1 200 OK\r\nContent-Le"),
		"/stall-body":     thenHold("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789"),
		"/stall-chunk":    thenHold("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n"),
		"/early":          thenDrain("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large"),
		"/early-empty":    thenDrain("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"),
		"/early-close":    earlyClose,
		"/head-with-body": headWithBody,
	}
	for path, text := range closing() {
		m[path] = thenClose(text)
	}
	for path, text := range keeping() {
		m[path] = thenKeep(text)
	}
	return m
}

// closing are answers after which the connection is closed.
func closing() map[string]string {
	const okay = "HTTP/1.1 200 OK\r\n"
	return map[string]string{
		"/short-body":         okay + "Content-Length: 100\r\n\r\n0123456789",
		"/short-chunk":        okay + "Transfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n",
		"/garbage":            "\x16\x03\x01 SSH-2.0 garbage\r\n\r\n",
		"/bare-lf":            okay + "X-A: b\nContent-Length: 0\r\n\r\n",
		"/obs-fold":           okay + "X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"/space-name":         okay + "Content-Length : 0\r\n\r\n",
		"/nul-value":          okay + "X-A: b\x00c\r\nContent-Length: 0\r\n\r\n",
		"/bare-cr":            okay + "X-A: b\rX-B: c\r\nContent-Length: 0\r\n\r\n",
		"/bad-status":         "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
		"/status-999":         "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
		"/http2-line":         "HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
		"/two-lengths":        okay + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
		"/same-lengths":       okay + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"/bad-length":         okay + "Content-Length: 3, 3\r\n\r\nabc",
		"/plus-length":        okay + "Content-Length: +3\r\n\r\nabc",
		"/length-and-chunked": okay + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"/two-chunked":        okay + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"/gzip-chunked":       okay + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"/http10-chunked":     "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"/huge-head":          okay + "X-A: " + strings.Repeat("a", 70<<10) + "\r\nContent-Length: 0\r\n\r\n",
		"/many-fields":        okay + strings.Repeat("X-A: b\r\n", 1000) + "Content-Length: 0\r\n\r\n",
		"/bad-chunk":          okay + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
		"/lf-chunk":           okay + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
		"/space-chunk":        okay + "Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
		"/long-chunk":         okay + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
		"/huge-chunk-line":    okay + "Transfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("a", 5000) + "\r\nabc\r\n0\r\n\r\n",
		"/bad-trailer":        okay + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX A: b\r\n\r\n",
		"/huge-trailers":      okay + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-A: " + strings.Repeat("a", 70<<10) + "\r\n\r\n",
		"/interim-length":     "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello" + okay + "Content-Length: 0\r\n\r\n",
		"/flood-1xx":          strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 1000) + okay + "Content-Length: 0\r\n\r\n",
		"/101":                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"/close-delimited":    okay + "\r\nuntil the end",
		"/conn-close":         okay + "Connection: close\r\nContent-Length: 3\r\n\r\nabc",
		"/http10":             "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc",
	}
}

// keeping are answers after which the connection is kept.
func keeping() map[string]string {
	const okay = "HTTP/1.1 200 OK\r\n"
	return map[string]string{
		"/early-hints":       "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n" + okay + "Content-Length: 3\r\n\r\nabc",
		"/continue":          "HTTP/1.1 100 Continue\r\n\r\n" + okay + "Content-Length: 3\r\n\r\nabc",
		"/processing":        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + okay + "Content-Length: 3\r\n\r\nabc",
		"/chunked":           okay + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
		"/empty-chunked":     okay + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"/chunk-ext":         okay + "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0;c\r\n\r\n",
		"/trailers":          okay + "Trailer: Grpc-Status, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nGrpc-Status: 0\r\nX-Sum: one\r\nX-Sum: two\r\nContent-Length: 9\r\nSet-Cookie: a=b\r\n\r\n",
		"/hop-by-hop":        okay + "Connection: X-Secret, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Secret: 1\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: one\r\nVary: a\r\nX-Kept: two\r\nContent-Length: 3\r\n\r\nabc",
		"/excess":            okay + "Content-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Poison: 1\r\n\r\nwrong",
		"/excess-chunked":    okay + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
		"/head-ok-then-junk": okay + "Content-Length: 0\r\n\r\njunk",
		"/no-content-body":   "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
		"/no-content-length": "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
		"/not-modified-body": "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
		"/not-modified":      "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n",
	}
}

func thenReset(text string) Handler {
	return func(c *Conn, _ *Seen) bool {
		c.Send(text)
		c.Reset()
		return false
	}
}

func thenHold(text string) Handler {
	return func(c *Conn, _ *Seen) bool {
		c.Send(text)
		c.Hold()
		return false
	}
}

func thenDrain(text string) Handler {
	return func(c *Conn, s *Seen) bool {
		if !c.Send(text) {
			return false
		}
		_, err := c.ReadBody(s)
		return err == nil
	}
}

func thenClose(text string) Handler {
	return func(c *Conn, _ *Seen) bool {
		c.Send(text)
		return false
	}
}

func thenKeep(text string) Handler {
	return func(c *Conn, _ *Seen) bool { return c.Send(text) }
}

// earlyClose answers and closes with the request body unread, which makes the
// kernel send a reset after the answer.
func earlyClose(c *Conn, _ *Seen) bool {
	c.Send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")
	return false
}

func headWithBody(c *Conn, s *Seen) bool {
	return c.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
}

// ok is the proper answer: it reads the body and tells what it saw.
func ok(c *Conn, s *Seen) bool {
	if _, err := c.ReadBody(s); err != nil {
		return false
	}
	text := "ok " + s.Method + " " + s.Target
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nX-Conn: %d\r\n\r\n", len(text), s.Conn)
	if s.Method == "HEAD" {
		text = ""
	}
	return c.Send(head + text)
}

// OK is the handler of all paths that are no fault.
func OK(c *Conn, s *Seen) bool { return ok(c, s) }

func echo(c *Conn, s *Seen) bool {
	body, err := c.ReadBody(s)
	if err != nil {
		return false
	}
	return c.Send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body)) + string(body))
}

// parameter is the number at the end of the path, 0 if there is none.
func parameter(s *Seen) int {
	n, err := strconv.Atoi(s.Path[strings.LastIndexByte(s.Path, '/')+1:])
	if err != nil || n < 0 {
		return 0
	}
	return n
}

func status(c *Conn, s *Seen) bool {
	if _, err := c.ReadBody(s); err != nil {
		return false
	}
	code := parameter(s)
	if code == 204 || code == 304 {
		return c.Send(fmt.Sprintf("HTTP/1.1 %d Status\r\n\r\n", code))
	}
	return c.Send(fmt.Sprintf("HTTP/1.1 %d Status\r\nContent-Length: 0\r\n\r\n", code))
}

func sized(c *Conn, s *Seen) bool {
	n := parameter(s)
	return c.Send(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", n) + strings.Repeat("x", n))
}

// chunks sends so many chunks of one byte.
func chunks(c *Conn, s *Seen) bool {
	if !c.Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") {
		return false
	}
	for range parameter(s) {
		if !c.Send("1\r\nx\r\n") {
			return false
		}
	}
	return c.Send("0\r\n\r\n")
}

// Raw returns the fixed answers, byte for byte: seeds for a parser's tests.
func Raw() []string {
	var out []string
	for _, m := range []map[string]string{closing(), keeping()} {
		for _, path := range slices.Sorted(maps.Keys(m)) {
			out = append(out, m[path])
		}
	}
	return out
}
