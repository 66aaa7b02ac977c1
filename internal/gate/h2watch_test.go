package gate

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
)

// handedOver is a listener of connections that somebody else accepted.
type handedOver struct {
	conns chan net.Conn
	done  chan struct{}
	addr  net.Addr
	once  sync.Once
}

func (l *handedOver) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *handedOver) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *handedOver) Addr() net.Addr { return l.addr }

// h2House is a gate whose HTTP/2 connections go through H2Conn, behind TLS or
// in the clear.
type h2House struct {
	*house
	engine  *HTTPEngine
	srv     *http.Server
	addr    string
	secure  bool
	gone    chan struct{} // one for each connection that net/http has closed
	running sync.WaitGroup
}

func newH2House(t *testing.T, secure bool, c houseConfig) *h2House {
	t.Helper()
	if c.book == nil {
		c.book = &fakeBook{done: make(chan committed, 1<<14), entered: make(chan struct{}, 256)}
	}
	h := &h2House{house: newHouse(t, c), secure: secure, gone: make(chan struct{}, 64)}
	e := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public", TLS: secure, ReadIdle: c.engine.ReadIdle, HeadTime: c.engine.HeadTime})
	h.engine = e
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	handed := &handedOver{conns: make(chan net.Conn), done: make(chan struct{}), addr: ln.Addr()}
	h.srv = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.running.Add(1)
			defer h.running.Done()
			e.ServeHTTP(w, r)
		}),
		ConnContext: ConnContext, Protocols: new(http.Protocols), MaxHeaderBytes: 48 << 10, ReadHeaderTimeout: 3 * time.Second,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100, MaxReadFrameSize: 16 << 10}, DisableGeneralOptionsHandler: true,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				h.gone <- struct{}{}
			}
		},
	}
	h.srv.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { _ = h.srv.Serve(handed) })
	wg.Go(func() { h.accept(ln, e, handed) })
	t.Cleanup(func() {
		ln.Close()
		h.srv.Close()
		wg.Wait()
	})
	return h
}

func (h *h2House) accept(ln net.Listener, e *HTTPEngine, to *handedOver) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		f := &ConnFacts{Listener: "public", Remote: netip.MustParseAddrPort(c.RemoteAddr().String()), Start: time.Now()}
		if h.secure {
			tc := tls.Server(c, &tls.Config{Certificates: h.server.TLS.Certificates, NextProtos: []string{"h2"}})
			if tc.HandshakeContext(h.t.Context()) != nil {
				c.Close()
				continue
			}
			state := tc.ConnectionState()
			f.TLS, c = &state, tc
		}
		select {
		case to.conns <- e.H2Conn(c, f):
		case <-to.done:
			c.Close()
		}
	}
}

// records waits until a connection has ended and everything on it, and returns
// what was recorded, as "kind reason".
func (h *h2House) records(t *testing.T) []committed { return h.recordsOf(t, 0) }

// recordsOf waits a while for records that are due: the last may be on its way
// when the connection is gone.
func (h *h2House) recordsOf(t *testing.T, due int) []committed {
	t.Helper()
	select {
	case <-h.gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection did not end")
	}
	h.running.Wait()
	var all []committed
	ids := map[record.ID]bool{}
	for {
		select {
		case c := <-h.book.done:
			if ids[c.rec.ID] {
				t.Error("one id twice")
			}
			ids[c.rec.ID] = true
			all = append(all, c)
			continue
		default:
		}
		if len(all) >= due {
			return all
		}
		select {
		case c := <-h.book.done:
			ids[c.rec.ID] = true
			all = append(all, c)
		case <-time.After(5 * time.Second):
			return all
		}
	}
}

// tally counts records by kind, reason and phase of failure.
func tally(all []committed) map[string]int {
	m := map[string]int{}
	for _, c := range all {
		key := strings.TrimSpace(string(c.rec.Kind) + " " + c.rec.Error.Reason)
		if c.rec.Kind == record.KindMalformed || c.rec.Error.Phase == phaseStream {
			key += " " + c.rec.Error.Phase
		}
		m[key]++
	}
	return m
}

// rawH2 is a client that says whatever it is told to.
type rawH2 struct {
	t *testing.T
	net.Conn
	frames chan rawFrame // what came, closed at the end
}

type rawFrame struct {
	canon.H2Header
	payload string
}

func (h *h2House) raw(t *testing.T) *rawH2 {
	t.Helper()
	var c net.Conn
	var err error
	if h.secure {
		c, err = tls.Dial("tcp", h.addr, h.tlsConfig("h2"))
	} else {
		c, err = net.Dial("tcp", h.addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := &rawH2{t: t, Conn: c, frames: make(chan rawFrame, 1<<14)}
	var wg sync.WaitGroup
	wg.Go(r.read)
	t.Cleanup(func() { c.Close(); wg.Wait() })
	return r
}

// read takes in all frames, so that the server never waits for the client.
func (r *rawH2) read() {
	defer close(r.frames)
	for {
		var b [9]byte
		if _, err := io.ReadFull(r.Conn, b[:]); err != nil {
			return
		}
		f := rawFrame{H2Header: canon.H2Header{
			Length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]), Type: canon.H2Type(b[3]), Flags: b[4], Stream: binary.BigEndian.Uint32(b[5:]),
		}}
		p := make([]byte, f.Length)
		if _, err := io.ReadFull(r.Conn, p); err != nil {
			return
		}
		f.payload = string(p)
		r.frames <- f
	}
}

func wire(t canon.H2Type, flags uint8, stream uint32, payload string) string {
	n := len(payload)
	b := append([]byte{byte(n >> 16), byte(n >> 8), byte(n), byte(t), flags}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[5:], stream)
	return string(b) + payload
}

// lit is a literal field without indexing.
func lit(pairs ...string) (b string) {
	num := func(n int) string {
		if n < 127 {
			return string([]byte{byte(n)})
		}
		n -= 127
		s := []byte{127}
		for ; n >= 128; n >>= 7 {
			s = append(s, byte(n)|0x80)
		}
		return string(append(s, byte(n)))
	}
	for i := 0; i < len(pairs); i += 2 {
		b += "\x00" + num(len(pairs[i])) + pairs[i] + num(len(pairs[i+1])) + pairs[i+1]
	}
	return b
}

// begun is the beginning of an orderly connection.
var begun = canon.H2Preface + wire(canon.H2Settings, 0, 0, "") + wire(canon.H2Settings, canon.H2Ack, 0, "")

// get and post are heads of requests that will be answered.
var (
	get  = "\x82\x87" + lit(":path", "/v1/orders/1", ":authority", "example.com", "authorization", "Bearer good")
	post = "\x83\x87" + lit(":path", "/v1/orders/1", ":authority", "example.com", "authorization", "Bearer good")
)

func headers(stream uint32, block string) string { return wire(canon.H2Headers, 5, stream, block) }

func (r *rawH2) send(parts ...string) {
	// A server that has had enough may be gone in the middle.
	_, _ = io.WriteString(r.Conn, strings.Join(parts, ""))
}

// until reads frames until one matches, or the end.
func (r *rawH2) until(match func(f rawFrame) bool) (f rawFrame, ok bool) {
	for f := range r.frames {
		if match(f) {
			return f, true
		}
	}
	return rawFrame{}, false
}

func of(typ canon.H2Type, stream uint32) func(rawFrame) bool {
	return func(f rawFrame) bool { return f.Type == typ && f.Stream == stream }
}

// ends matches the end of an answer, or of a stream.
func ends(stream uint32) func(rawFrame) bool {
	return func(f rawFrame) bool {
		return f.Stream == stream && (f.Type == canon.H2Reset || (f.Type == canon.H2Data || f.Type == canon.H2Headers) && f.Flags&1 != 0)
	}
}

// allEnd matches the end of the last of n streams.
func allEnd(n int) func(rawFrame) bool {
	return func(f rawFrame) bool {
		if ends(f.Stream)(f) {
			n--
		}
		return n == 0
	}
}

// end matches nothing, so that frames are read to the end.
var end = func(rawFrame) bool { return false }

// TestH2ConnRaw: one record for each stream or connection that fails, whatever
// the client sends.
func TestH2ConnRaw(t *testing.T) {
	stream := "malformed malformed_request stream"
	frame := "malformed malformed_request frame"
	for _, tc := range []struct {
		name  string
		send  string
		until func(rawFrame) bool
		want  map[string]int
	}{
		{"a request", begun + headers(1, get), ends(1), map[string]int{"request": 1}},
		{"nothing", "", nil, nil},
		{"nothing but the opening", begun, of(canon.H2Settings, 0), nil},
		{"padded and prioritised", begun + wire(canon.H2Headers, 0x2d, 1, "\x05\x00\x00\x00\x00\x10"+get+"\x00\x00\x00\x00\x00"), ends(1), map[string]int{"request": 1}},
		{"in many frames", begun + wire(canon.H2Headers, 1, 1, get[:3]) + wire(canon.H2Continuation, 0, 1, get[3:20]) + wire(canon.H2Continuation, 4, 1, get[20:]), ends(1), map[string]int{"request": 1}},
		{"trailers", begun + wire(canon.H2Headers, 4, 1, post) + wire(canon.H2Data, 0, 1, "abc") + wire(canon.H2Headers, 5, 1, lit("x-check", "1")), ends(1), map[string]int{"request": 1}},
		{"skipped streams", begun + headers(7, get) + headers(13, get), allEnd(2), map[string]int{"request": 2}},
		{"our own field", begun + headers(1, get+lit("x-gatebook-stream", "00000003s")), ends(1), map[string]int{"request": 1}},

		{"unknown pseudo header", begun + headers(1, get+lit(":color", "red")), ends(1), map[string]int{stream: 1}},
		{"pseudo header after others", begun + headers(1, "\x82\x87"+lit("a", "b", ":path", "/")), ends(1), map[string]int{stream: 1}},
		{"pseudo header of an answer", begun + headers(1, get+lit(":status", "200")), ends(1), map[string]int{stream: 1}},
		{"upper case", begun + headers(1, get+lit("X-Up", "1")), ends(1), map[string]int{stream: 1}},
		{"upper case in the first of two frames", begun + wire(canon.H2Headers, 1, 1, get+lit("X-Up", "1")) + wire(canon.H2Continuation, 4, 1, lit("a", "b")), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"line break in a value", begun + headers(1, get+lit("x", "a\r\nb")), ends(1), map[string]int{stream: 1}},
		{"no path", begun + headers(1, "\x82\x87"+lit(":authority", "example.com")), ends(1), map[string]int{stream: 1}},
		{"empty path", begun + headers(1, "\x82\x87"+lit(":path", "", ":authority", "example.com")), ends(1), map[string]int{stream: 1}},
		{"no method", begun + headers(1, "\x87"+lit(":path", "/", ":authority", "example.com")), ends(1), map[string]int{stream: 1}},
		{"two methods", begun + headers(1, "\x82\x82\x87"+lit(":path", "/", ":authority", "example.com")), ends(1), map[string]int{stream: 1}},
		{"scheme ftp", begun + headers(1, "\x82"+lit(":scheme", "ftp", ":path", "/", ":authority", "example.com")), ends(1), map[string]int{stream: 1}},
		{"connection fields", begun + headers(1, get+lit("connection", "close")), ends(1), map[string]int{stream: 1}},
		{"te", begun + headers(1, get+lit("te", "gzip")), ends(1), map[string]int{stream: 1}},
		{"several bad streams", begun + headers(1, "\x82\x87") + headers(3, get) + headers(5, get+lit("upgrade", "x")) + headers(7, get+lit("A", "b")), allEnd(4), map[string]int{stream: 3, "request": 1}},

		{"data on an idle stream", begun + wire(canon.H2Data, 0, 1, "x"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"data on a skipped stream", begun + headers(3, get) + wire(canon.H2Data, 0, 1, "x"), allEnd(2), map[string]int{stream: 1, "request": 1}},
		{"data on stream 0", begun + wire(canon.H2Data, 0, 0, "x"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"reset of an idle stream", begun + wire(canon.H2Reset, 0, 1, "\x00\x00\x00\x08"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"window of an idle stream", begun + wire(canon.H2WindowUpdate, 0, 1, "\x00\x00\x00\x01"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"priority on itself", begun + wire(canon.H2Priority, 0, 9, "\x00\x00\x00\x09\x10") + wire(canon.H2Priority, 0, 9, "\x00\x00\x00\x09\x10") + wire(canon.H2Ping, 0, 0, "12345678"), of(canon.H2Ping, 0), map[string]int{stream: 1}},
		{"a stream after its reset", begun + headers(1, "\x82\x87") + headers(1, get), of(canon.H2GoAway, 0), map[string]int{stream: 1, frame: 1}},
		{"connection window too large", begun + wire(canon.H2WindowUpdate, 0, 0, "\x7f\xff\xff\xff"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"empty window update", begun + wire(canon.H2WindowUpdate, 0, 0, "\x00\x00\x00\x00"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"frame too large", begun + wire(canon.H2Data, 0, 1, strings.Repeat("x", 16<<10+1)), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"ping of 7 bytes", begun + wire(canon.H2Ping, 0, 0, "1234567"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"push", begun + wire(canon.H2PushPromise, 4, 1, "\x00\x00\x00\x02"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"even stream", begun + headers(2, get), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"a lower stream", begun + headers(5, get) + headers(3, get), of(canon.H2GoAway, 0), map[string]int{"request": 1, frame: 1}},
		{"settings too many", begun + wire(canon.H2Settings, 0, 0, strings.Repeat("\x00\x09\x00\x00\x00\x00", 101)), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"settings acknowledged twice", begun + wire(canon.H2Settings, 1, 0, ""), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"no settings first", canon.H2Preface + headers(1, get), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"no padding length", begun + wire(canon.H2Data, 8, 1, ""), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"too much padding", begun + wire(canon.H2Headers, 0xd, 1, "\xff"+get), of(canon.H2GoAway, 0), map[string]int{frame: 1}},

		{"index out of the table", begun + headers(1, "\xff\x80\x01"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"index 0", begun + headers(1, "\x80"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"bad Huffman code", begun + headers(1, "\x00\x84\xff\xff\xff\xff\x00"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"table too large", begun + headers(1, "\x3f\xff\xff\x7f"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"block that ends early", begun + headers(1, get+"\x00\x01x\x1d"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"bad block after a good stream", begun + headers(1, get) + headers(3, "\xff\x80\x01"), of(canon.H2GoAway, 0), map[string]int{"request": 1, frame: 1}},
		{"bad trailers", begun + wire(canon.H2Headers, 4, 1, post) + headers(1, "\x80"), of(canon.H2GoAway, 0), map[string]int{"request": 1, frame: 1}},
		{"data inside a block", begun + wire(canon.H2Headers, 1, 1, get) + wire(canon.H2Data, 0, 1, "x"), of(canon.H2GoAway, 0), map[string]int{frame: 1}},
		{"half a block", begun + wire(canon.H2Headers, 1, 1, get) + wire(canon.H2Continuation, 4, 1, get)[:12], of(canon.H2Settings, 0), map[string]int{"request client_aborted stream": 1}},

		{"wrong preface", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", end, map[string]int{"malformed malformed_request preface": 1}},
		{"HTTP/1", "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", end, map[string]int{"malformed malformed_request preface": 1}},
		{"part of the preface", "PRI * HT", nil, map[string]int{"malformed malformed_request preface": 1}},
		{"part of the preface, slowly", "PRI * HT", end, map[string]int{"malformed timeout_reading preface": 1}},
		{"no settings", canon.H2Preface, end, map[string]int{"malformed timeout_reading preface": 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := newH2House(t, true, houseConfig{})
			c := h.raw(t)
			c.send(tc.send)
			if tc.until != nil {
				c.until(tc.until)
			}
			c.Close()
			due := 0
			for _, n := range tc.want {
				due += n
			}
			all := h.recordsOf(t, due)
			got := tally(all)
			if got[frame] > 0 {
				// A request before the one that ends the connection may have been
				// answered by then, forwarded, or neither.
				for key, n := range got {
					if strings.HasPrefix(key, "request ") {
						delete(got, key)
						got["request"] += n
					}
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tc.want) {
				t.Fatalf("%v, want %v", got, tc.want)
			}
			for _, c := range all {
				if c.rec.Kind == record.KindMalformed && c.rec.Error.Phase != phaseParse && c.ref != (record.Ref{}) {
					t.Error("with an open mark")
				}
			}
		})
	}
}
