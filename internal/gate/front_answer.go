package gate

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// The phases of a refusal in front of the pipeline.
const (
	phaseHead    = "head"    // the front's own parser
	phaseForeign = "nethttp" // net/http answered by itself
)

const (
	answerTime = time.Second            // for the client to take the answer
	lingerTime = 500 * time.Millisecond // for it to close after that
	lingerMost = 256 << 10              // bytes that it may still send meanwhile
)

// AppendAnswer adds a whole HTTP/1.1 answer for a reason, which ends the
// connection. id is the record's, "" if there is none.
func AppendAnswer(b []byte, r reason.Reason, id string) []byte {
	var body [256]byte
	text := appendProblem(body[:0], r, id)
	status := r.Status()
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\nContent-Type: application/problem+json\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"...)
	if id != "" {
		b = append(b, "X-Request-Id: "...)
		b = append(b, id...)
		b = append(b, "\r\n"...)
	}
	b = append(b, "Date: "...)
	b = time.Now().UTC().AppendFormat(b, http.TimeFormat)
	b = append(b, "\r\nConnection: close\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(text)), 10)
	b = append(b, "\r\n\r\n"...)
	return append(b, text...)
}

// answer writes the answer and ends the connection so that the client gets to
// read it: closing with bytes unread would make the kernel take it back.
func (c *h1Conn) answer(r reason.Reason, id string) {
	_ = c.Conn.SetWriteDeadline(time.Now().Add(answerTime))
	if _, err := c.Conn.Write(AppendAnswer(nil, r, id)); err != nil {
		return // it is gone
	}
	if c.CloseWrite() != nil {
		return
	}
	c.mu.Lock()
	idle := !c.reading && !c.closed
	c.mu.Unlock()
	if !idle {
		return // closing; the reader below is somebody else's
	}
	_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.Conn, lingerMost)
}
