// Package scripted stands before an HTTP server of a test and lets requests go
// wrong by a script.
package scripted

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
)

// Break is a way in which a connection or an answer breaks.
type Break string

// Ways to break.
const (
	Answers   Break = ""          // it does not: Status is answered
	Resets    Break = "reset"     // RST
	Closes    Break = "close"     // FIN without an answer
	Hangs     Break = "hang"      // no answer until the client gives up
	HalfHead  Break = "half head" // FIN within the head
	HalfBody  Break = "half body" // FIN within the body, after Status
	BadChunk  Break = "bad chunk" // after Status
	Garbage   Break = "garbage"   // no HTTP at all
	LongHead  Break = "long head"
	LongBody  Break = "long body" // 5 MiB, after Status
	FalseGzip Break = "false gzip"
	GzipBomb  Break = "gzip bomb"   // 5 MiB in a few bytes, after Status
	Trickles  Break = "trickle"     // Status, then a body that never ends
	Continues Break = "continue"    // 100 and 103, then Status
	Twice     Break = "two answers" // Status twice, though one was asked
)

// Fault is what becomes of one request.
type Fault struct {
	Name string
	// Keep: the request reaches the server behind before it goes wrong.
	Keep bool
	// Unread: not even the body is read.
	Unread bool
	Break  Break
	Status int
	Header map[string]string
	Body   string
	Times  int // how many requests in a row; 0: one
}

// Server plays a script before a handler. It is safe for concurrent use.
type Server struct {
	next http.Handler
	// Only, if not empty, is the one path that the script is about.
	Only string

	mu     sync.Mutex
	script []Fault // guarded by mu; what is still to come
	seen   int     // guarded by mu
}

// New puts a server before next.
func New(next http.Handler) *Server { return &Server{next: next} }

// Play puts faults at the end of the script.
func (s *Server) Play(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		for range max(f.Times, 1) {
			s.script = append(s.script, f)
		}
	}
}

// Seen is how many requests came.
func (s *Server) Seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *Server) fault() (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen++
	if len(s.script) == 0 {
		return Fault{}, false
	}
	f := s.script[0]
	s.script = s.script[1:]
	return f, true
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.Only != "" && r.URL.Path != s.Only {
		s.next.ServeHTTP(w, r)
		return
	}
	f, ok := s.fault()
	if !ok {
		s.next.ServeHTTP(w, r)
		return
	}
	if !f.Unread {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if f.Keep {
			r.Body = io.NopCloser(bytes.NewReader(body))
			s.next.ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	if f.Break == Answers {
		for k, v := range f.Header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, f.Body)
		return
	}
	if f.Break == Hangs {
		<-r.Context().Done()
		return
	}
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err) // a test server can be hijacked
	}
	defer c.Close()
	f.play(c)
}

func (f Fault) play(c net.Conn) {
	head := fmt.Sprintf("HTTP/1.1 %d Scripted\r\n", f.Status)
	for k, v := range f.Header {
		head += k + ": " + v + "\r\n"
	}
	say := func(parts ...string) { _, _ = io.WriteString(c, strings.Join(parts, "")) }
	switch f.Break {
	case Resets:
		_ = c.(*net.TCPConn).SetLinger(0)
	case Closes:
	case HalfHead:
		say("HTTP/1.1 200 OK\r\nContent-Type: applica")
	case HalfBody:
		say(head, "Content-Length: 100\r\n\r\n", f.Body)
	case BadChunk:
		say(head, "Transfer-Encoding: chunked\r\n\r\nxyz\r\n")
	case Garbage:
		say("\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n")
	case LongHead:
		say(head, "X-Long: ", strings.Repeat("x", 1<<20), "\r\n\r\n")
	case LongBody:
		say(head, "Connection: close\r\n\r\n", strings.Repeat("y", 5<<20))
	case FalseGzip:
		say(head, "Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\nno gzip")
	case GzipBomb:
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(make([]byte, 5<<20))
		_ = z.Close()
		say(head, "Content-Encoding: gzip\r\n", fmt.Sprintf("Content-Length: %d\r\n\r\n", b.Len()), b.String())
	case Trickles:
		say(head, "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
		_, _ = c.Read(make([]byte, 1)) // until the client gives up
	case Continues:
		say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", head, "Content-Length: 2\r\n\r\n{}")
	case Twice:
		one := head + "Content-Length: 2\r\n\r\n{}"
		say(one, one)
	default:
		panic("scripted: no such break: " + string(f.Break))
	}
}
