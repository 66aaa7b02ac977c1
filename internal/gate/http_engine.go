package gate

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// HTTPConfig is what an HTTPEngine needs. Zero times mean the default.
type HTTPConfig struct {
	Listener string // name, as in the snapshot
	// TLS says that every connection of the listener is TLS: a request that
	// claims another scheme (:scheme http in HTTP/2) is then refused.
	TLS bool
	// Redirect says that the listener serves nothing but sends its clients to
	// the https form of what they ask for (Gate.Redirect).
	Redirect bool
	// ReadIdle is how long a client may take for the next byte of its body, and
	// WriteIdle for taking the next piece of an answer. Default 30 s.
	ReadIdle, WriteIdle time.Duration
	// MinRate is the least rate, in bytes a second, at which a body of known
	// length must come after its first ReadIdle. Default 1024.
	MinRate int64
	// HeadTime is how long an HTTP/1 head may take from its first byte to its
	// last, behind H1Conn. Default 5 s.
	HeadTime time.Duration
}

// HTTPEngine runs exchanges over net/http: HTTP/1.1 and HTTP/2. It is an
// http.Handler and safe for concurrent use. The http.Server around it should
// set ReadHeaderTimeout, IdleTimeout and MaxHeaderBytes, but neither
// ReadTimeout nor WriteTimeout, which would cut long streams.
type HTTPEngine struct {
	gate  *Gate
	cfg   HTTPConfig
	stats FrontStats
	spare sync.Pool // of *httpExchange
}

// NewHTTPEngine makes an engine for one listener.
func NewHTTPEngine(g *Gate, c HTTPConfig) *HTTPEngine {
	if c.ReadIdle <= 0 {
		c.ReadIdle = 30 * time.Second
	}
	if c.WriteIdle <= 0 {
		c.WriteIdle = 30 * time.Second
	}
	if c.MinRate <= 0 {
		c.MinRate = 1024
	}
	if c.HeadTime <= 0 {
		c.HeadTime = 5 * time.Second
	}
	e := &HTTPEngine{gate: g, cfg: c}
	e.spare.New = func() any { return new(httpExchange) }
	return e
}

// Stats are the counts of the connections from H1Conn and H2Conn.
func (e *HTTPEngine) Stats() *FrontStats { return &e.stats }

// Cut is Gate.Cut of the engine's gate.
func (e *HTTPEngine) Cut() { e.gate.Cut() }

// ServeHTTP implements http.Handler. An aborted exchange leaves by
// http.ErrAbortHandler, which closes the connection or resets the stream.
func (e *HTTPEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := factsOf(r.Context())
	if f != nil {
		if f.watch != nil {
			f.watch.begin(r)
			defer f.watch.end()
		}
		f.complete(r)
	}
	x := e.spare.Get().(*httpExchange)
	x.begin(e, w, r, f)
	if e.cfg.Redirect {
		e.gate.Redirect(r.Context(), x)
	} else {
		e.gate.Serve(r.Context(), x)
	}
	x.body.close()
	aborted := x.aborted || !x.finished
	req := x.req
	*x = httpExchange{}
	x.req.Fields, x.req.Segments = req.Fields[:0], req.Segments[:0]
	e.spare.Put(x)
	if aborted {
		panic(http.ErrAbortHandler)
	}
}

// httpExchange is one exchange over net/http. The goroutine of ServeHTTP owns
// it, but for body, which is never reused.
type httpExchange struct {
	engine  *HTTPEngine
	w       http.ResponseWriter
	r       *http.Request
	rc      http.ResponseController
	req     canon.Request
	refusal *canon.Error
	body    *httpBody
	taken   bool // Body has been called

	head      bool  // Head has been called
	length    int64 // of the answer, -1 unknown
	written   int64 // given to net/http or held
	held      [1]byte
	holding   bool
	due       time.Time // write deadline in force
	finished  bool
	aborted   bool
	interimMu sync.Mutex // Interim comes from another goroutine
}

func (x *httpExchange) begin(e *HTTPEngine, w http.ResponseWriter, r *http.Request, f *ConnFacts) {
	x.engine, x.w, x.r = e, w, r
	x.rc = *http.NewResponseController(w)
	var seen *canon.TLS
	if f != nil {
		seen = f.Seen
	}
	err := x.req.ReadOver(seen, r)
	if err == nil && e.cfg.TLS && r.TLS == nil {
		err = &canon.Error{Reason: canon.MalformedRequest, Detail: "scheme that is not the listener's"}
		x.req.Fields, x.req.Segments = x.req.Fields[:0], x.req.Segments[:0]
	}
	if err != nil && !errors.As(err, &x.refusal) {
		x.refusal = &canon.Error{Reason: canon.MalformedRequest, Detail: "unknown"}
	}
	if r.Body != nil && r.Body != http.NoBody {
		x.body = &httpBody{src: r.Body, rc: x.rc, cfg: &e.cfg, known: r.ContentLength >= 0}
		x.body.idle.L = &x.body.mu
	}
}

// Listener implements Exchange.
func (x *httpExchange) Listener() string { return x.engine.cfg.Listener }

// Request implements Exchange.
func (x *httpExchange) Request() *canon.Request { return &x.req }

// Refusal implements Exchange.
func (x *httpExchange) Refusal() *canon.Error { return x.refusal }

// Body implements Exchange. net/http sends 100 Continue when it is first read,
// which is after the request was authorized.
func (x *httpExchange) Body() io.Reader {
	if x.body == nil {
		return http.NoBody
	}
	x.taken = true
	if x.req.ExpectContinue {
		// The 100 must not meet the deadline of an earlier exchange.
		_ = x.extend()
	}
	return x.body
}

// unread prepares an answer that begins before the body has been read. Over
// HTTP/1 net/http would read the rest first and throw it away. That is right
// when nobody wants it, and bounded here in time; but an upstream may answer
// while it reads. Then net/http is told to leave the body alone, and that the
// connection ends here, since it could no longer tell where the next request
// begins.
func (x *httpExchange) unread(h http.Header) error {
	if x.body == nil || x.r.ProtoMajor != 1 || x.body.atEnd() || !x.taken {
		return nil
	}
	h["Connection"] = []string{"close"}
	if err := x.rc.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// setFields gives net/http the fields, in one allocation for all values. Names
// get their canonical case, which HTTP/2 lowers again.
func setFields(h http.Header, fields []canon.Field, prefix string) {
	values := make([]string, len(fields))
	for i, f := range fields {
		key := prefix + http.CanonicalHeaderKey(f.Name)
		if had := h[key]; had != nil {
			h[key] = append(had, f.Value)
			continue
		}
		values[i] = f.Value
		h[key] = values[i : i+1 : i+1]
	}
}

// Interim implements Exchange.
func (x *httpExchange) Interim(code int, fields []canon.Field) error {
	x.interimMu.Lock()
	defer x.interimMu.Unlock()
	if err := x.r.Context().Err(); err != nil {
		return err
	}
	if err := x.extend(); err != nil {
		return err
	}
	h := x.w.Header()
	setFields(h, fields, "")
	x.w.WriteHeader(code)
	clear(h)
	return nil
}

// Head implements Exchange. net/http keeps the head until the first write or
// flush, or the end of the handler, so a head without a body goes out with
// Finish.
func (x *httpExchange) Head(status int, fields []canon.Field, length int64) error {
	x.interimMu.Lock()
	defer x.interimMu.Unlock()
	if x.head {
		return errors.New("http engine: second head")
	}
	x.head, x.length = true, length
	h := x.w.Header()
	setFields(h, fields, "")
	if h["Content-Type"] == nil {
		h["Content-Type"] = nil // keeps net/http from guessing one
	}
	if length >= 0 && status != http.StatusNoContent && status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	if x.refusal != nil && x.r.ProtoMajor == 1 {
		// Where the next request begins is in doubt.
		h["Connection"] = []string{"close"}
	}
	if err := x.unread(h); err != nil {
		return err
	}
	if err := x.extend(); err != nil {
		return err
	}
	x.w.WriteHeader(status)
	return nil
}

// extend moves the write deadline, not for each write but when a quarter of it
// has passed.
func (x *httpExchange) extend() error {
	now := time.Now()
	idle := x.engine.cfg.WriteIdle
	if x.due.Sub(now) > idle*3/4 {
		return nil
	}
	x.due = now.Add(idle)
	err := x.rc.SetWriteDeadline(x.due)
	if errors.Is(err, http.ErrNotSupported) {
		return nil // a writer without a connection, as in tests of a handler
	}
	return err
}

// Write implements Exchange: the last byte of a known length stays here.
func (x *httpExchange) Write(p []byte) (int, error) {
	switch {
	case !x.head:
		return 0, errors.New("http engine: body before the head")
	case len(p) == 0:
		return 0, nil
	case x.length >= 0 && x.written+int64(len(p)) > x.length:
		return 0, http.ErrContentLength
	}
	if err := x.extend(); err != nil {
		return 0, err
	}
	out := p
	if x.length >= 0 && x.written+int64(len(p)) == x.length {
		out = p[:len(p)-1]
		x.held[0], x.holding = p[len(p)-1], true
	}
	if len(out) > 0 {
		if n, err := x.w.Write(out); err != nil {
			return n, err
		}
	}
	x.written += int64(len(p))
	return len(p), nil
}

// Flush implements Exchange.
func (x *httpExchange) Flush() error {
	if err := x.extend(); err != nil {
		return err
	}
	return x.rc.Flush()
}

// Finish implements Exchange. The terminator or END_STREAM goes out when the
// handler returns.
func (x *httpExchange) Finish(trailers []canon.Field) error {
	if !x.head {
		return errors.New("http engine: finish without a head")
	}
	if x.written > 0 && x.length >= 0 && x.written != x.length {
		return errors.New("http engine: finish before the declared length")
	}
	if x.holding {
		if err := x.extend(); err != nil {
			return err
		}
		if _, err := x.w.Write(x.held[:]); err != nil {
			return err
		}
		x.holding = false
	}
	setFields(x.w.Header(), trailers, http.TrailerPrefix)
	x.finished = true
	return nil
}

// Abort implements Exchange.
func (x *httpExchange) Abort() { x.aborted = true }

// Tunnel implements Exchange: this engine switches no protocols, and the
// pipeline refuses upgrades.
func (x *httpExchange) Tunnel() (io.ReadWriteCloser, error) {
	return nil, errors.ErrUnsupported
}

// httpBody is the request body with progress deadlines. The upstream may still
// be inside one Read when the exchange ends; close ends that Read.
type httpBody struct {
	src   io.Reader
	rc    http.ResponseController
	cfg   *HTTPConfig
	known bool // the length is known: MinRate applies

	start time.Time // of the first Read; owned by the reader
	n     int64     // owned by the reader

	mu      sync.Mutex
	idle    sync.Cond // signalled when reading becomes false
	reading bool      // mu
	closed  bool      // mu
	eof     bool      // mu; the end has been read
}

// Read implements io.Reader.
func (b *httpBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	b.reading = true
	// Set under the lock, so that it cannot undo the deadline that close sets.
	err := b.setDeadline()
	b.mu.Unlock()
	n := 0
	if err == nil {
		n, err = b.src.Read(p)
	}
	b.n += int64(n)
	b.mu.Lock()
	b.reading = false
	b.eof = b.eof || err == io.EOF // net/http has then cleared the deadline itself
	b.idle.Broadcast()
	b.mu.Unlock()
	return n, err
}

func (b *httpBody) atEnd() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eof
}

// setDeadline gives the next byte ReadIdle, and a body of known length no more
// than MinRate allows in all. The caller holds mu.
func (b *httpBody) setDeadline() error {
	now := time.Now()
	if b.start.IsZero() {
		b.start = now
	}
	due := now.Add(b.cfg.ReadIdle)
	if b.known {
		most := b.start.Add(b.cfg.ReadIdle + time.Duration(b.n/b.cfg.MinRate)*time.Second)
		if most.Before(due) {
			due = most
		}
	}
	err := b.rc.SetReadDeadline(due)
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// linger is how long the rest of a body that nobody wants may take to come.
const linger = time.Second

// close makes further reads fail and waits for one that is under way, after
// making it end. What net/http still reads to get past the body has linger.
func (b *httpBody) close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	switch {
	case b.reading:
		_ = b.rc.SetReadDeadline(time.Unix(1, 0))
	case !b.eof:
		_ = b.rc.SetReadDeadline(time.Now().Add(linger))
	}
	for b.reading {
		b.idle.Wait()
	}
}
