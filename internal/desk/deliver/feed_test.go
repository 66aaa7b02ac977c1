package deliver

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/gatebook/gatebook/internal/book"
)

// slowSource is a book of which a reading stands still in the middle.
type slowSource struct {
	*fakeBook
	reading, goOn chan struct{}
	open          atomic.Int64
}

func (s *slowSource) Open() (view, error) {
	v, err := s.fakeBook.Open()
	s.open.Add(1)
	return &slowView{v, s}, err
}

type slowView struct {
	view
	s *slowSource
}

func (v *slowView) Forward(from, to uint64, reveal bool, fn func(*book.Entry) error) error {
	close(v.s.reading)
	<-v.s.goOn
	return v.view.Forward(from, to, reveal, fn)
}

func (v *slowView) Close() error {
	v.s.open.Add(-1)
	return v.view.Close()
}

// Whoever is reading when the engine ends, because a search goes on that nobody
// could stop, leaves no reader open and opens no other.
func TestFeedEndsUnderAReader(t *testing.T) {
	s := &slowSource{fakeBook: newBook(5000), reading: make(chan struct{}), goOn: make(chan struct{})}
	f := newFeed(s, testOrigin, 1<<20, nil)
	f.begin()
	got := make(chan error, 1)
	go func() {
		_, err := f.chunk(0, 5000, false)
		got <- err
	}()
	<-s.reading
	f.end()
	close(s.goOn)
	if err := <-got; !errors.Is(err, errEnded) {
		t.Errorf("the reading ended with %v", err)
	}
	if _, err := f.chunk(0, 5000, false); !errors.Is(err, errEnded) {
		t.Errorf("another one with %v", err)
	}
	if n := s.open.Load(); n != 0 || len(f.streams) != 0 || len(f.chunks) != 0 {
		t.Errorf("%d readers are open, %d streams and %d chunks are kept", n, len(f.streams), len(f.chunks))
	}
	s.reading, s.goOn = make(chan struct{}), make(chan struct{})
	close(s.goOn)
	f.begin()
	if _, err := f.chunk(0, 5000, false); err != nil {
		t.Errorf("the next run: %v", err)
	}
	f.end()
	if n := s.open.Load(); n != 0 {
		t.Errorf("%d readers are open", n)
	}
}
