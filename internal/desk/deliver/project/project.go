// Package project makes of a record the JSON object that an outside system
// gets: as it stands in the book (native), in the Elastic Common Schema (ecs)
// or in the Open Cybersecurity Schema Framework (ocsf). docs/projections.md has
// the tables.
//
// What leaves is decided here and nowhere else. Of the personal part nothing
// does unless it is named; every stable pseudonym is replaced by one that only
// this sink has, so that the copies of two sinks cannot be joined on it and a
// sink is cut off from everything else by destroying its key.
package project

import (
	"errors"
	"fmt"
	"sync"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// The names of the projections.
const (
	Native = "native"
	ECS    = "ecs"
	OCSF   = "ocsf"
)

// Names lists the projections.
func Names() []string { return []string{Native, ECS, OCSF} }

// The published versions that the projections are made for and checked against.
const (
	ECSVersion  = "9.4.0"
	OCSFVersion = "1.8.0"
)

// Options say what to make of records for one sink.
type Options struct {
	Name string // Native, ECS or OCSF
	// Key makes this sink's pseudonyms. It is random, the sink's own and not
	// zero; whoever destroys it unlinks what the sink holds from the book and
	// from what it will get.
	Key [32]byte
	// Fields are the parts of the personal half that may leave, by the names of
	// spec/record.md: "sub", "ip", "headers.accept-language", "claims.dept".
	// Without any, personal parts are not opened.
	Fields []string
	Origin string // of the log
	// Node names the node in records that name none.
	Node    string
	Version string // of the product
}

// projection is a deliver.Projection. It is not changed after it was made.
type projection struct {
	name    string
	version int
	key     [32]byte
	fields  fields
	origin  string
	node    string
	product string
	write   func(*scratch, *enc, string, *book.Entry)
	stub    func(*scratch, *enc, string, *book.Entry, int)
	pool    sync.Pool // *scratch
}

// New makes a projection. An error says which option is wrong and what it may
// be.
func New(o Options) (deliver.Projection, error) {
	p := &projection{name: o.Name, version: 1, key: o.Key, origin: o.Origin, node: o.Node, product: o.Version}
	switch o.Name {
	case Native:
		p.write, p.stub = p.native, p.nativeStub
	case ECS:
		p.write, p.stub = p.ecs, p.ecsStub
	case OCSF:
		p.write, p.stub = p.ocsf, p.ocsfStub
	default:
		return nil, fmt.Errorf("projection %q: there are %v%s", o.Name, Names(), nearest(o.Name, Names()))
	}
	if o.Key == [32]byte{} {
		return nil, fmt.Errorf("projection %s: the sink's pseudonym key is missing", o.Name)
	}
	if o.Origin == "" {
		return nil, fmt.Errorf("projection %s: the origin of the log is missing", o.Name)
	}
	var err error
	if p.fields, err = parseFields(o.Fields); err != nil {
		return nil, fmt.Errorf("projection %s: %w", o.Name, err)
	}
	p.pool.New = func() any { return newScratch(p) }
	return p, nil
}

func (p *projection) Name() string { return p.name }
func (p *projection) Version() int { return p.version }
func (p *projection) Reveal() bool { return p.fields.any() }

// ErrSealed means that named personal fields could not be read, though they were
// not erased. The error wraps deliver.ErrNotNow too if that may pass, because a
// key is away; then the record must wait: without them it would be another record.
var ErrSealed = errors.New("the personal part cannot be opened")

// Append appends the object for e. If the person was erased it has no personal
// fields and says so; if the personal part cannot be opened for any other reason
// the error is ErrSealed, with deliver.ErrNotNow if the record can be opened later.
// dst is unchanged then.
func (p *projection) Append(dst []byte, id string, e *book.Entry) ([]byte, error) {
	s := p.pool.Get().(*scratch)
	defer p.pool.Put(s)
	if err := s.prepare(p, e); err != nil {
		return dst, fmt.Errorf("record %d: %w", e.Index, err)
	}
	out := enc{b: dst}
	p.write(s, &out, id, e)
	return out.b, nil
}

// Stub appends the object that stands for one of size bytes that the sink would
// not take. It holds nothing that can be long, and nothing personal.
func (p *projection) Stub(dst []byte, id string, e *book.Entry, size int) ([]byte, error) {
	s := p.pool.Get().(*scratch)
	defer p.pool.Put(s)
	s.prepareStub(p, e)
	out := enc{b: dst}
	p.stub(s, &out, id, e, size)
	return out.b, nil
}

// nodeOf is the node that a record is of.
func (p *projection) nodeOf(r *record.Record) string {
	if r.Node != "" {
		return r.Node
	}
	return p.node
}
