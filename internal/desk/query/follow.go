package query

import (
	"encoding/json"
	"errors"

	"github.com/gatebook/gatebook/internal/book"
)

// Follower reads on where it stopped. It belongs to one goroutine.
type Follower struct{ f *filter }

// NewFollower checks the question. Its Limit means nothing here.
func NewFollower(q Query) (*Follower, error) {
	f, err := compile(q)
	return &Follower{f}, err
}

// errEnough ends a reading.
var errEnough = errors.New("enough")

// Read returns what matches from the index on, at most so many, and the index
// to go on from. The matches are the caller's.
func (f *Follower) Read(r *book.Reader, from uint64, most int) (found []Match, next uint64, err error) {
	next = r.Size()
	err = r.Each(from, next, f.f.q.Reveal, func(e *book.Entry) error {
		ok, err := f.f.match(e)
		if err != nil || !ok {
			return err
		}
		m := *NewMatch(e)
		m.Frame, m.Personal = append(json.RawMessage(nil), m.Frame...), append(json.RawMessage(nil), m.Personal...)
		if found = append(found, m); len(found) < most {
			return nil
		}
		next = e.Index + 1
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return found, next, err
}
