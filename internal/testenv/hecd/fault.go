package hecd

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Op is what a client may ask for.
type Op string

// The operations.
const (
	Events Op = "event"
	Ack    Op = "ack"
	Health Op = "health"
	Export Op = "export"
)

func opOf(path string) Op {
	switch strings.TrimSuffix(path, "/1.0") {
	case "/services/collector", "/services/collector/event":
		return Events
	case "/services/collector/ack":
		return Ack
	case "/services/collector/health":
		return Health
	case "/services/search/jobs/export", "/services/search/v2/jobs/export":
		return Export
	}
	return ""
}

// Reset says when a connection is cut.
type Reset int

// Ways to cut it.
const (
	None   Reset = iota
	Before       // before the request is read
	After        // after the request was done, without an answer
	Half         // in the middle of the answer, after the request was done
)

// Fault bends one request. The zero value bends nothing.
type Fault struct {
	Reset Reset
	// Status and Body are the answer; nothing is taken unless Do.
	Status int
	Body   string
	Header map[string]string
	// Do: the request is done before it is answered with Status and Body.
	Do bool
	// Code is answered in the documented form after Take events were taken.
	Code int
	Take int
	// Slow is waited for before the answer, after what is done.
	Slow time.Duration
	// Late is added to the delay of indexing, NeverAck keeps the request's
	// acknowledgement from ever being told.
	Late     time.Duration
	NeverAck bool
	// Restart comes behind what is done and before the answer; RestartAfter
	// behind the answer.
	Restart, RestartAfter bool
	// ForgetCookies removes the client's cookies on the way.
	ForgetCookies bool
}

// Script puts faults behind those that wait for the next requests of op.
func (s *Server) Script(op Op, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script[op] = append(s.script[op], faults...)
}

// Left is how many faults were not used.
func (s *Server) Left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, f := range s.script {
		n += len(f)
	}
	return n
}

func (s *Server) next(op Op) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.script[op]
	if len(q) == 0 {
		return Fault{}, false
	}
	s.script[op] = q[1:]
	return q[0], true
}

// abort cuts the connection.
func abort(http.ResponseWriter) { panic(http.ErrAbortHandler) }

func (s *Server) fault(w http.ResponseWriter, r *http.Request, op Op, body []byte, f Fault) {
	if f.ForgetCookies {
		r = r.Clone(r.Context())
		r.Header.Del("Cookie")
	}
	status, v := f.Status, any(nil)
	if f.Status == 0 || f.Do {
		var done int
		done, v = s.do(w.Header(), r, op, body, &f)
		if f.Status == 0 {
			status = done
		}
	}
	if f.Restart {
		s.Restart()
	}
	if f.Slow > 0 {
		select {
		case <-time.After(f.Slow):
		case <-r.Context().Done():
			abort(w)
		}
	}
	if f.Reset == After {
		abort(w)
	}
	for k, value := range f.Header {
		w.Header().Set(k, value)
	}
	out := []byte(f.Body)
	if f.Status == 0 && f.Body == "" {
		w.Header().Set("Content-Type", jsonType)
		out = encode(v)
	}
	if f.Reset == Half {
		w.Header().Set("Content-Length", strconv.Itoa(len(out)+1))
		w.WriteHeader(status)
		w.Write(out[:len(out)/2])
		http.NewResponseController(w).Flush()
		abort(w)
	}
	w.WriteHeader(status)
	w.Write(out)
	if f.RestartAfter {
		s.Restart()
	}
}

const jsonType = "application/json; charset=UTF-8"

func encode(v any) []byte {
	if b, ok := v.([]byte); ok {
		return b
	}
	var buf bytes.Buffer
	json.NewEncoder(&buf).Encode(v)
	return bytes.TrimSpace(buf.Bytes())
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(status)
	w.Write(encode(v))
}
