package upstream

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// pump reads a streamed request body in a goroutine of its own, so that
// nobody who sends it ever waits in a Read of the caller's that cannot be
// interrupted: an upstream failure or a cancelled context ends the exchange at
// once, although the client may not send its next byte for a long time. The
// goroutine starts with the first byte asked for and ends with the body, with
// an error, or when the Read it is in returns after stop.
type pump struct {
	bufs   *buffers
	src    io.Reader
	length int64 // -1 unknown
	chunks chan chunk
	done   chan struct{}

	cur  chunk // owned by the reading goroutine
	read int64 // owned by the reading goroutine: bytes handed on

	whole atomic.Bool // all of the body was handed on

	mu      sync.Mutex
	started bool  // mu
	stopped bool  // mu
	err     error // mu; the caller's read error
}

// chunk is a piece of the body and what came with it.
type chunk struct {
	buf  *[copyBuf]byte
	rest []byte // of buf
	err  error
}

func newPump(bufs *buffers, src io.Reader, length int64) *pump {
	return &pump{bufs: bufs, src: src, length: length, chunks: make(chan chunk), done: make(chan struct{})}
}

// Read hands on the body and never more than its declared length.
func (b *pump) Read(p []byte) (int, error) {
	if b.whole.Load() {
		return 0, io.EOF
	}
	if len(b.cur.rest) == 0 && b.cur.err == nil {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.cur.rest)
	b.cur.rest = b.cur.rest[n:]
	b.read += int64(n)
	if b.read == b.length {
		b.whole.Store(true)
	}
	if len(b.cur.rest) > 0 {
		return n, nil
	}
	if b.cur.buf != nil {
		b.bufs.put(b.cur.buf)
		b.cur.buf = nil
	}
	if n > 0 {
		return n, nil
	}
	if b.cur.err == io.EOF {
		b.whole.Store(true)
	}
	return 0, b.cur.err
}

// next waits for the next chunk.
func (b *pump) next() error {
	b.mu.Lock()
	if b.stopped {
		b.mu.Unlock()
		return errBodyStopped
	}
	if !b.started {
		b.started = true
		go b.run()
	}
	b.mu.Unlock()
	select {
	case b.cur = <-b.chunks:
		return nil
	case <-b.done:
		return errBodyStopped
	}
}

// Close does nothing: the body belongs to the caller.
func (b *pump) Close() error { return nil }

func (b *pump) run() {
	var taken int64
	for {
		c, ok := b.readOne(taken)
		if !ok {
			return
		}
		taken += int64(len(c.rest))
		select {
		case b.chunks <- c:
		case <-b.done:
			return
		}
		if c.err != nil || taken == b.length {
			return
		}
	}
}

// readOne reads once from the source, unless stopped.
func (b *pump) readOne(taken int64) (c chunk, ok bool) {
	b.mu.Lock()
	stopped := b.stopped
	b.mu.Unlock()
	if stopped {
		return chunk{}, false
	}
	buf := b.bufs.get()
	room := buf[:]
	if b.length >= 0 {
		room = room[:min(int64(len(room)), b.length-taken)]
	}
	n, err := b.readSource(room)
	if err == io.EOF && b.length >= 0 && taken+int64(n) < b.length {
		err = ErrShortBody
	}
	if err != nil && err != io.EOF {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return chunk{buf: buf, rest: buf[:n], err: err}, true
}

// readSource turns a panic of the caller's reader into an error: in this
// goroutine it would end the process and not only the exchange.
func (b *pump) readSource(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			n, err = 0, fmt.Errorf("upstream: request body reader panicked: %v", v)
		}
	}()
	n, err = b.src.Read(p)
	if n < 0 || n > len(p) {
		return 0, fmt.Errorf("upstream: request body reader returned %d bytes for a buffer of %d", n, len(p))
	}
	return n, err
}

// stop ends the body: no Read of the pump waits any more, and of the source
// at most the one Read that has begun goes on. It may be called on nil and
// more than once.
func (b *pump) stop() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stopped {
		b.stopped = true
		close(b.done)
	}
}

// unsent reports whether some of the body has not been handed on.
func (b *pump) unsent() bool { return b != nil && !b.whole.Load() }

// untouched reports whether nothing of the body has been asked for.
func (b *pump) untouched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.started
}

// failure is the error that reading the source gave, nil if none did.
func (b *pump) failure() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
