package deliver

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/pace"
)

// source is the book as the feed reads it.
type source interface {
	// Open returns what can be read now.
	Open() (view, error)
}

// view is the book at one moment; it belongs to one goroutine at a time.
type view interface {
	Signed() (origin string, size uint64)
	Forward(from, to uint64, reveal bool, fn func(*book.Entry) error) error
	Close() error
}

// readers makes a source of a Book.
type readers struct{ b Book }

// Open implements source.
func (r readers) Open() (view, error) { return r.b.Reader() }

const (
	chunkItems  = 1024
	chunkBytes  = 1 << 20
	entryCost   = 2 << 10         // of a decoded record, about, beside its bytes
	streamsMost = 4               // readings that stand open
	streamIdle  = 5 * time.Second // after which one is closed
	chunkIdle   = time.Minute     // after which nothing is remembered
	placeIdle   = 3 * time.Second // after which nothing is remembered for one who was not there
)

// chunk is some consecutive leaves of the book, decoded. It does not change as long
// as anybody reads it.
type chunk struct {
	from, to uint64 // leaves that it answers for, those without a record included
	entries  []book.Entry
	bytes    int
	room     *room

	users int  // under feed.mu; readings that are in it
	gone  bool // under feed.mu; not remembered any more
}

// room is what the entries of a chunk stand in. It is used again for another one
// when nobody reads the first any more: making it anew for a thousand records costs
// two megabytes of garbage, and collecting that costs whoever is asking.
type room struct {
	blocks  []*[roomBlock]record.Record // a Record is large, so there is no one slice that grows
	entries []book.Entry                // Frame and Personal are set at the end
	ends    []int                       // in arena, two for each entry
	arena   []byte
}

// roomBlock is how many records are made room for at once.
const roomBlock = 32

// place is how far somebody is who reads on from there.
type place struct {
	reveal bool
	at     uint64    // under feed.mu
	seen   time.Time // under feed.mu; when it was there
}

// stream is a reading that stands open so that the next chunk costs no search.
type stream struct {
	reveal bool
	at, to uint64
	busy   bool
	used   time.Time
	view   view
	pull   func() (*chunk, error, bool)
	stop   func()
}

// feed hands out chunks of one log to all sinks and remembers the newest, so
// that sinks that are near each other share the work. It is safe for concurrent
// use.
type feed struct {
	src    source
	origin string
	most   int // bytes of remembered chunks
	pace   *pace.Group
	rooms  sync.Pool // of *room
	blocks sync.Pool // of *block

	mu      sync.Mutex
	change  sync.Cond
	chunks  map[bool][]*chunk // by reveal, oldest use first
	held    int
	places  map[*place]struct{}
	streams []*stream
	opened  int       // streams so far, for tests of what reading costs
	asked   time.Time // when anything was last wanted
	ended   bool      // the engine has: whoever reads still, stops
}

func newFeed(src source, origin string, most int, group *pace.Group) *feed {
	f := &feed{src: src, origin: origin, most: most, pace: group, chunks: map[bool][]*chunk{}, places: map[*place]struct{}{}}
	f.rooms.New = func() any { return &room{} }
	f.change.L = &f.mu
	return f
}

var errOtherLog = errors.New("the book is another log than the engine was started with")

// chunk returns leaves that begin at or before `from` and end behind it, and no
// later than `to`, which is signed. The caller says done when it has read it. An
// error is about the whole read; nothing is left out.
func (f *feed) chunk(from, to uint64, reveal bool) (*chunk, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = time.Now()
	for {
		if f.ended {
			return nil, errEnded
		}
		if c := f.remembered(from, reveal); c != nil {
			c.users++
			return c, nil
		}
		s := f.streamAt(from, reveal)
		if s == nil {
			break
		}
		if !s.busy {
			return f.read(s)
		}
		f.change.Wait() // somebody reads just this
	}
	s, err := f.open(from, to, reveal)
	if err != nil {
		return nil, err
	}
	return f.read(s)
}

func (f *feed) remembered(from uint64, reveal bool) *chunk {
	list := f.chunks[reveal]
	for i, c := range list {
		if c.from <= from && from < c.to {
			copy(list[i:], list[i+1:])
			list[len(list)-1] = c
			return c
		}
	}
	return nil
}

func (f *feed) streamAt(from uint64, reveal bool) *stream {
	for _, s := range f.streams {
		if s.at == from && s.reveal == reveal {
			return s
		}
	}
	return nil
}

// read takes the next chunk of a stream. f.mu is let go of meanwhile.
func (f *feed) read(s *stream) (*chunk, error) {
	s.busy = true
	f.mu.Unlock()
	c, err, ok := s.pull()
	f.mu.Lock()
	s.busy, s.used = false, time.Now()
	if f.ended {
		err = errEnded // or the reading would stand open for ever
	} else if !ok && err == nil {
		err = fmt.Errorf("the book ended before index %d", s.to)
	}
	if err != nil {
		f.close(s)
		f.change.Broadcast()
		return nil, err
	}
	if s.at = c.to; s.at >= s.to {
		f.close(s)
	}
	c.users++
	f.remember(c, s.reveal)
	f.change.Broadcast()
	return c, nil
}

// done says that the caller has read a chunk and kept nothing of it.
func (f *feed) done(c *chunk) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.users--
	f.reuse(c)
}

// drop lets go of a chunk that is not in a list any more.
func (f *feed) drop(c *chunk) {
	f.held -= c.bytes
	c.gone = true
	f.reuse(c)
}

func (f *feed) reuse(c *chunk) {
	if c.gone && c.users == 0 {
		f.rooms.Put(c.room)
		c.room, c.entries = nil, nil
	}
}

// join makes the place of somebody who reads on from there.
func (f *feed) join(reveal bool) *place {
	p := &place{reveal: reveal, seen: time.Now()}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.places[p] = struct{}{}
	return p
}

func (f *feed) leave(p *place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.places, p)
}

// passed says how far somebody is. What all have read is let go of; who has not
// been there for a while, because a sink takes nothing, is not waited for.
func (f *feed) passed(p *place, at uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.at, p.seen = at, time.Now()
	low := at
	for q := range f.places {
		if q.reveal == p.reveal && p.seen.Sub(q.seen) <= placeIdle {
			low = min(low, q.at)
		}
	}
	f.chunks[p.reveal] = slices.DeleteFunc(f.chunks[p.reveal], func(c *chunk) bool {
		if c.to > low {
			return false
		}
		f.drop(c)
		return true
	})
}

// remember keeps a chunk as long as there is room.
func (f *feed) remember(c *chunk, reveal bool) {
	f.chunks[reveal] = append(f.chunks[reveal], c)
	f.held += c.bytes
	for f.held > f.most {
		side := reveal
		if len(f.chunks[side]) <= 1 {
			side = !side
		}
		if len(f.chunks[side]) == 0 {
			return
		}
		f.drop(f.chunks[side][0])
		f.chunks[side][0] = nil
		f.chunks[side] = f.chunks[side][1:]
	}
}

// forget lets go of what was read with or without personal parts, so that it is
// read anew. Readings that others are in the middle of go on.
func (f *feed) forget(reveal bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropAll(reveal)
	for i := len(f.streams) - 1; i >= 0; i-- {
		if s := f.streams[i]; !s.busy && s.reveal == reveal {
			f.close(s)
		}
	}
}

func (f *feed) dropAll(reveal bool) {
	for _, c := range f.chunks[reveal] {
		f.drop(c)
	}
	delete(f.chunks, reveal)
}

// open begins a reading of [from, to).
func (f *feed) open(from, to uint64, reveal bool) (*stream, error) {
	v, err := f.src.Open()
	if err != nil {
		return nil, err
	}
	origin, size := v.Signed()
	if origin != f.origin {
		return nil, errors.Join(errOtherLog, v.Close())
	}
	if to > size {
		return nil, errors.Join(fmt.Errorf("leaves up to %d are wanted and only %d are signed", to, size), v.Close())
	}
	f.makeRoom()
	s := &stream{reveal: reveal, at: from, to: to, view: v, used: time.Now()}
	s.pull, s.stop = iter.Pull2(f.chunksOf(v, from, to, reveal))
	f.streams = append(f.streams, s)
	f.opened++
	return s, nil
}

// makeRoom closes the stream that was used longest ago if there are many.
func (f *feed) makeRoom() {
	if len(f.streams) < streamsMost {
		return
	}
	var old *stream
	for _, s := range f.streams {
		if !s.busy && (old == nil || s.used.Before(old.used)) {
			old = s
		}
	}
	if old != nil {
		f.close(old)
	}
}

// close ends a stream that nobody is reading.
func (f *feed) close(s *stream) {
	for i := range f.streams {
		if f.streams[i] == s {
			f.streams = append(f.streams[:i], f.streams[i+1:]...)
			break
		}
	}
	s.stop()
	_ = s.view.Close() // only files that were read
}

// errEnded means that the engine ended while somebody was reading still.
var errEnded = errors.New("delivery has ended")

// begin lets everybody read, from the beginning of a run of the engine to end.
func (f *feed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = false
}

// end lets go of everything. Who is reading still, because a search did not end in
// time, closes what it has open when it comes back, and reads no more.
func (f *feed) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.tidy(true)
}

// tidy lets go of what has not been used for a while; of all if so told.
func (f *feed) tidy(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if all || time.Since(f.asked) > chunkIdle {
		f.dropAll(false)
		f.dropAll(true)
	}
	for i := len(f.streams) - 1; i >= 0; i-- {
		if s := f.streams[i]; !s.busy && (all || time.Since(s.used) > streamIdle) {
			f.close(s)
		}
	}
}

// errStopped ends a reading that nobody wants to go on with.
var errStopped = errors.New("stopped")

// chunksOf cuts a reading into chunks. The last one answers for leaves up to
// `to`, records or not.
func (f *feed) chunksOf(v view, from, to uint64, reveal bool) iter.Seq2[*chunk, error] {
	return func(give func(*chunk, error) bool) {
		c := &cutter{from: from, rooms: &f.rooms}
		err := v.Forward(from, to, reveal, func(e *book.Entry) error {
			c.add(e)
			if len(c.room.entries) < chunkItems && c.bytes < chunkBytes {
				return nil
			}
			if !give(c.cut(e.Index+1), nil) {
				return errStopped
			}
			return nil
		})
		switch {
		case errors.Is(err, errStopped):
		case err != nil:
			give(nil, err)
		case c.from < to:
			give(c.cut(to), nil)
		}
	}
}

// cutter collects copies of entries until there are enough for a chunk.
type cutter struct {
	from  uint64
	rooms *sync.Pool
	room  *room // being filled; nil: nothing yet
	bytes int
}

func (c *cutter) begin() {
	c.room = c.rooms.Get().(*room)
	c.room.entries, c.room.ends, c.room.arena = c.room.entries[:0], c.room.ends[:0], c.room.arena[:0]
}

func (c *cutter) add(e *book.Entry) {
	if c.room == nil {
		c.begin()
	}
	r := c.room
	at := len(r.entries)
	if at/roomBlock == len(r.blocks) {
		r.blocks = append(r.blocks, new([roomBlock]record.Record))
	}
	rec := &r.blocks[at/roomBlock][at%roomBlock]
	*rec = *e.Record
	r.entries = append(r.entries, book.Entry{Index: e.Index, Record: rec, Sealed: e.Sealed})
	r.arena = append(r.arena, e.Frame...)
	r.ends = append(r.ends, len(r.arena))
	r.arena = append(r.arena, e.Personal...)
	r.ends = append(r.ends, len(r.arena))
	c.bytes += len(e.Frame) + len(e.Personal)
}

func (c *cutter) cut(to uint64) *chunk {
	if c.room == nil {
		c.begin()
	}
	r, at := c.room, 0
	for i := range r.entries {
		frame, personal := r.ends[2*i], r.ends[2*i+1]
		r.entries[i].Frame = r.arena[at:frame:frame]
		if personal > frame {
			r.entries[i].Personal = r.arena[frame:personal:personal]
		}
		at = personal
	}
	out := &chunk{from: c.from, to: to, entries: r.entries, bytes: c.bytes + entryCost*len(r.entries), room: r}
	c.from, c.room, c.bytes = to, nil, 0
	return out
}
