package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// maxBuffered is the size of a request body that is read before it is sent:
// it goes out with the head in one write and a slow client does not occupy
// the upstream. Longer bodies and those of unknown length are streamed.
const maxBuffered = 16 << 10

// Request is what is sent to one of a pool's targets. It must not change
// until RoundTrip has returned.
type Request struct {
	Method    string // a token; CONNECT is refused
	Authority string // sent as Host if Config.PreserveHost
	// Path (it begins with '/') and Query go out byte for byte; bytes that
	// cannot stand in a request target make RoundTrip fail.
	Path     string
	Query    string
	HasQuery bool // a '?' follows Path even if Query is empty
	// Fields go out exactly as given, those of one name in their order, with
	// nothing added but Host and the framing. Names are in lower case. Fields
	// of one connection (RFC 9110 section 7.6.1), host, content-length and
	// expect are left out.
	Fields []canon.Field
	// Body is read until Length bytes or, if Length is -1, its end; it may be
	// nil if Length is 0 and is never closed. It is read by one goroutine at a
	// time, which may still be inside one Read when the exchange has ended
	// early: whoever owns the body ends that Read (a deadline, closing the
	// client's connection).
	Body   io.Reader
	Length int64 // bytes of Body; 0 none, -1 unknown (sent in chunks)
	// Upgrade, if not empty, asks to switch to that protocol (RFC 9110
	// section 7.8). Only then a 101 is an answer.
	Upgrade string
	// Interim, if not nil, gets the interim answers but 100, at most 8, while
	// RoundTrip waits. Its error ends the exchange and is returned as it is.
	Interim func(code int, fields []canon.Field) error
}

// exchange is one Request on its way. It is reused for later requests when
// net/http is known to have let go of it.
type exchange struct {
	pool   *Pool
	req    *Request
	target *target // of the current attempt

	// What net/http is given; rebuilt by prepare.
	tmpl      http.Request
	url       url.URL
	header    http.Header
	values    []string
	upgrade   string // in lower case
	buffered  []byte
	loaded    bool
	direct    bool   // goes the direct way
	fieldText []byte // the fields as they go out
	wire      []byte // the request as it goes out
	bufReader bytes.Reader
	bufBody   io.ReadCloser // io.NopCloser(&bufReader): net/http knows it to be in memory
	streams   bool          // the body is streamed
	pump      *pump         // the streamed body of the current attempt
	trace     httptrace.ClientTrace
	sent      atomic.Bool // net/http has written the request and lets go of it
	traced    bool        // the caller's context has a trace: trace was merged with it

	interimMu sync.Mutex
	over      bool  // interimMu; RoundTrip has returned, Interim may not be called
	interErr  error // interimMu

	mu       sync.Mutex
	conn     *conn // mu; of the current attempt
	reused   bool  // mu
	why      *cause
	answered bool // mu; a byte of the response was read
	final    head // mu
	gotFinal bool // mu
	trailers []canon.Field
}

func newExchange(p *Pool) *exchange {
	ex := &exchange{pool: p, header: make(http.Header, 24)}
	ex.bufBody = io.NopCloser(&ex.bufReader)
	ex.trace = httptrace.ClientTrace{
		GotConn:      ex.gotConn,
		WroteRequest: func(httptrace.WroteRequestInfo) { ex.sent.Store(true) },
	}
	return ex
}

// prepare builds the parts of the request that are the same for each attempt.
func (ex *exchange) prepare(r *Request) error {
	if err := checkRequest(r); err != nil {
		return err
	}
	ex.req = r
	ex.upgrade = strings.ToLower(r.Upgrade)
	ex.streams = r.Length < 0 || r.Length > maxBuffered
	ex.direct = ex.pool.direct && !ex.streams && r.Upgrade == ""
	if !ex.direct || strings.HasPrefix(r.Path, "//") { // both ways refuse the same
		if err := ex.setTarget(r); err != nil {
			return err
		}
	}
	if ex.direct {
		return ex.writeFields(r)
	}
	if err := ex.setFields(r); err != nil {
		return err
	}
	ex.tmpl = http.Request{
		Method: r.Method, URL: &ex.url, Header: ex.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return nil
}

// writeFields is setFields of the direct way.
func (ex *exchange) writeFields(r *Request) error {
	if !token(r.Method) {
		return fmt.Errorf("upstream: method %q is not a token", r.Method)
	}
	b := ex.fieldText[:0]
	for i := range r.Fields {
		f := &r.Fields[i]
		if notForwarded(f.Name) {
			continue
		}
		if !lowerToken(f.Name) {
			return fmt.Errorf("upstream: request field name %q is not a token in lower case", f.Name)
		}
		if !valueText(f.Value) {
			return fmt.Errorf("upstream: the value of request field %q holds a control character", f.Name)
		}
		b = append(append(append(append(b, f.Name...), ": "...), f.Value...), "\r\n"...)
	}
	if r.Length == 0 && expectsContent(r.Method) {
		b = append(b, "content-length: 0\r\n"...)
	}
	ex.fieldText = b
	return nil
}

// expectsContent names the methods with which a length of 0 is sent (RFC 9110
// section 8.6).
func expectsContent(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

func token(s string) bool {
	for i := 0; i < len(s); i++ {
		if tokenLower[s[i]] == 0 {
			return false
		}
	}
	return s != ""
}

// valueText reports whether s holds no control character but tabs.
func valueText(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func checkRequest(r *Request) error {
	switch {
	case r.Method == "" || r.Method == http.MethodConnect:
		return fmt.Errorf("upstream: method %q cannot be forwarded", r.Method)
	case r.Length < -1:
		return fmt.Errorf("upstream: request length %d is negative", r.Length)
	case r.Length != 0 && r.Body == nil:
		return errors.New("upstream: request with a length but without a body")
	case r.Upgrade != "" && r.Length != 0:
		return errors.New("upstream: upgrade request with a body")
	case r.Path == "" || r.Path[0] != '/':
		return errors.New("upstream: request path does not begin with '/'")
	case !targetBytes(r.Path, true) || !targetBytes(r.Query, false):
		return errors.New("upstream: request path or query holds a byte that cannot stand in a request target")
	case !r.HasQuery && r.Query != "":
		return errors.New("upstream: request has a query but HasQuery is false")
	}
	return nil
}

// targetBytes reports whether s can stand in a request line as it is: visible
// ASCII, no fragment and, in a path, no query.
func targetBytes(s string, path bool) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '#' || path && c == '?' {
			return false
		}
	}
	return true
}

// setTarget makes net/http write path and query as they are. Opaque is written
// unchanged except before a second slash, where net/http would make an
// absolute form of it; there RawPath is used, and the outcome checked.
func (ex *exchange) setTarget(r *Request) error {
	ex.url = url.URL{RawQuery: r.Query, ForceQuery: r.HasQuery}
	if !strings.HasPrefix(r.Path, "//") {
		ex.url.Opaque = r.Path
		return nil
	}
	plain, err := url.PathUnescape(r.Path)
	if err != nil {
		return fmt.Errorf("upstream: request path: %w", err)
	}
	ex.url.Path, ex.url.RawPath = plain, r.Path
	if ex.url.EscapedPath() != r.Path {
		return errors.New("upstream: request path beginning with '//' holds a byte that cannot be forwarded as it is")
	}
	return nil
}

// setFields fills the header map, which is empty. The names stay in lower case on purpose:
// net/http then writes them as they are and gives no name a meaning of its own
// (Idempotency-Key would make it send a POST twice, Expect would make it
// wait). The one canonical name suppresses its User-Agent.
func (ex *exchange) setFields(r *Request) error {
	ex.values = ex.values[:0]
	ex.header["User-Agent"] = nil
	for _, f := range r.Fields {
		if notForwarded(f.Name) {
			continue
		}
		if !lowerToken(f.Name) {
			return fmt.Errorf("upstream: request field name %q is not a token in lower case", f.Name)
		}
		ex.addField(f.Name, f.Value)
	}
	if r.Length == 0 && expectsContent(r.Method) {
		ex.addField("content-length", "0")
	}
	if r.Upgrade != "" {
		ex.addField("connection", "Upgrade")
		ex.addField("upgrade", r.Upgrade)
	}
	return nil
}

func lowerToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == 0 || tokenLower[c] != c {
			return false
		}
	}
	return s != ""
}

func (ex *exchange) addField(name, value string) {
	if had, ok := ex.header[name]; ok {
		ex.header[name] = append(had, value)
		return
	}
	ex.values = append(ex.values, value)
	n := len(ex.values)
	ex.header[name] = ex.values[n-1 : n : n]
}

// notForwarded names what belongs to one connection or is written by net/http.
func notForwarded(name string) bool {
	switch name {
	case "host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection",
		"te", "trailer", "upgrade", "expect", "http2-settings", "proxy-authorization":
		return true
	}
	return false
}

// load reads a short body.
func (ex *exchange) load() error {
	if ex.streams || ex.loaded || ex.req.Length == 0 {
		return nil
	}
	if ex.buffered == nil {
		ex.buffered = make([]byte, 0, maxBuffered)
	}
	ex.buffered = ex.buffered[:ex.req.Length]
	for n := 0; n < len(ex.buffered); {
		k, err := ex.req.Body.Read(ex.buffered[n:])
		n += k
		if n >= len(ex.buffered) {
			break
		}
		if err == io.EOF {
			return ErrShortBody
		}
		if err != nil {
			return err
		}
	}
	ex.loaded = true
	return nil
}

// attempt makes the net/http request for one attempt at t. The body is never
// nil, so that net/http never sends a request a second time on its own
// account: the attempts are RoundTrip's to count and to decide on. A body of
// no bytes is declared as "identity", which makes net/http write no framing.
func (ex *exchange) attempt(ctx context.Context, t *target) *http.Request {
	ex.url.Scheme, ex.url.Host = t.scheme, t.addr
	ex.tmpl.Host = t.hostField
	if ex.pool.cfg.PreserveHost && ex.req.Authority != "" {
		ex.tmpl.Host = ex.req.Authority
	}
	if ex.streams && ex.bodyUntouched() {
		// The one of the attempt before was stopped with its connection.
		ex.pump = newPump(&ex.pool.bufs, ex.req.Body, ex.req.Length)
	}
	switch {
	case !ex.streams:
		ex.bufReader.Reset(ex.buffered)
		ex.tmpl.Body = ex.bufBody
		ex.tmpl.ContentLength = ex.req.Length
		ex.tmpl.TransferEncoding = nil
		if ex.req.Length == 0 {
			ex.tmpl.TransferEncoding = identityCoding
		}
	default:
		ex.tmpl.Body = ex.pump
		ex.tmpl.ContentLength = ex.req.Length
		ex.tmpl.TransferEncoding = nil
		if ex.req.Length < 0 {
			ex.tmpl.TransferEncoding = chunkedCoding
		}
	}
	ex.fresh()
	ex.traced = ex.traced || httptrace.ContextClientTrace(ctx) != nil
	return ex.tmpl.WithContext(httptrace.WithClientTrace(ctx, &ex.trace))
}

// fresh forgets what the attempt before has left.
func (ex *exchange) fresh() {
	ex.sent.Store(false)
	ex.mu.Lock()
	ex.conn, ex.reused, ex.why, ex.answered, ex.gotFinal = nil, false, nil, false, false
	ex.mu.Unlock()
}

// identityCoding and chunkedCoding are never written to.
var (
	identityCoding = []string{"identity"}
	chunkedCoding  = []string{"chunked"}
)

func (ex *exchange) gotConn(info httptrace.GotConnInfo) {
	c, ok := info.Conn.(*conn)
	if !ok {
		return
	}
	ex.mu.Lock()
	ex.conn, ex.reused = c, info.Reused
	ex.mu.Unlock()
	if info.Reused {
		ex.target.reused.Add(1)
	}
	c.begin(ex)
}

// note keeps the first cause of failure of the current attempt.
func (ex *exchange) note(why *cause) {
	ex.mu.Lock()
	if ex.why == nil {
		ex.why = why
	}
	ex.mu.Unlock()
}

func (ex *exchange) gotByte() {
	ex.mu.Lock()
	ex.answered = true
	ex.mu.Unlock()
}

// gotHead takes the final head or, when status is 0, the trailers.
func (ex *exchange) gotHead(h head) {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if h.status == 0 {
		ex.trailers = h.fields
		return
	}
	ex.final, ex.gotFinal = h, true
}

// interim hands one interim answer to the caller.
func (ex *exchange) interim(h head) error {
	if h.status == http.StatusContinue || ex.req.Interim == nil {
		return nil // Expect is never forwarded: a 100 answers nothing
	}
	ex.interimMu.Lock()
	defer ex.interimMu.Unlock()
	if ex.over {
		return errBodyStopped
	}
	if err := ex.req.Interim(h.status, endToEnd(h.fields)); err != nil {
		ex.interErr = err
		return err
	}
	return nil
}

// endInterims makes sure that Interim is not called any more and returns its
// error.
func (ex *exchange) endInterims() error {
	ex.interimMu.Lock()
	defer ex.interimMu.Unlock()
	ex.over = true
	return ex.interErr
}

// recycle returns ex to the pool's store if nothing can still be using it:
// the request was written whole (net/http calls no hook and reads no field
// after that), the body was not streamed, and the response is complete.
func (ex *exchange) recycle() {
	if ex.streams || ex.traced || !ex.sent.Load() {
		return
	}
	clear(ex.header)
	clear(ex.values)
	clear(ex.buffered)
	ex.req = nil
	ex.tmpl = http.Request{}
	ex.url = url.URL{}
	ex.loaded = false
	ex.buffered = ex.buffered[:0]
	ex.bufReader.Reset(nil)
	ex.interimMu.Lock()
	ex.over, ex.interErr = false, nil
	ex.interimMu.Unlock()
	ex.mu.Lock()
	ex.conn, ex.why, ex.final, ex.trailers = nil, nil, head{}, nil
	ex.reused, ex.answered, ex.gotFinal = false, false, false
	ex.mu.Unlock()
	ex.pool.spare.Put(ex)
}
