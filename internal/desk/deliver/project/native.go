package project

import (
	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// native is the frame as the book has it, after what names the record in the
// log, with the named personal fields under "personal".
func (p *projection) native(s *scratch, e *enc, id string, entry *book.Entry) {
	r := &s.rec
	p.envelope(e, id, entry)
	// The frame's keys follow in the same object.
	at := len(e.b)
	e.b = record.AppendFrame(e.b, r)
	e.b[at] = ','
	e.b = e.b[:len(e.b)-1]
	if p.fields.any() {
		at := len(e.b)
		e.key(`"personal":`)
		start := len(e.b)
		if e.b = record.AppendPersonal(e.b, r); len(e.b) == start {
			e.b = e.b[:at]
		}
	}
	if s.erased {
		e.lit(`"erased":`, "true")
	}
	e.end()
}

func (p *projection) envelope(e *enc, id string, entry *book.Entry) {
	e.begin()
	e.must(`"event_id":`, id)
	e.uint(`"index":`, entry.Index)
	e.must(`"origin":`, p.origin)
}

func (p *projection) nativeStub(s *scratch, e *enc, id string, entry *book.Entry, size int) {
	r := &s.rec
	p.envelope(e, id, entry)
	e.num(`"v":`, record.Version)
	e.id(`"id":`, r.ID)
	e.time(`"time":`, r.Time)
	e.must(`"kind":`, string(r.Kind))
	e.must(`"outcome":`, string(r.Outcome))
	e.str(`"node":`, r.Node)
	e.must(`"subject":`, r.Subject)
	at := e.open(`"authz":`)
	e.str(`"decision":`, r.Authz.Decision)
	e.close(at)
	at = e.open(`"error":`)
	e.str(`"reason":`, r.Error.Reason)
	e.close(at)
	e.lit(`"truncated":`, "true")
	e.num(`"size":`, int64(size))
	e.end()
}
