package query

import (
	"strings"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// each reads the records that may match, in order: all of them, or those that
// are left of sealed segments when the filter has looked at the fields that it
// uses. Who gets them filters them again.
func (f *filter) each(r *book.Reader, fn func(*book.Entry) error) error {
	s := newSieve(f)
	if s == nil {
		return r.Each(0, r.Size(), f.q.Reveal, fn)
	}
	return r.Sift(0, r.Size(), s.fields, s.keep, fn)
}

// sieve decides for the rows of a segment whether the filter may want them.
// Fields of text are few different ones: what they decide is remembered.
type sieve struct {
	f       *filter
	fields  []string
	texts   []int // indexes of fields that are text
	numbers []int // and of those that are numbers
	since   int64 // microseconds; 0: no bound
	until   int64

	row  *record.Row // the segment that memo is about
	memo map[string]*verdict
	key  []byte
}

// verdict is what the texts of a row decide.
type verdict struct {
	known, keep bool // without numbers in the expression
	env         env  // with the texts, to put the numbers into
}

// maxVerdicts bounds the memory of a sieve.
const maxVerdicts = 1 << 14

// newSieve makes the sieve of a filter; nil if it would not help, or if the
// filter uses what a row does not tell.
func newSieve(f *filter) *sieve {
	if f.q.Reveal {
		return nil
	}
	s := &sieve{f: f, memo: map[string]*verdict{}}
	if !f.q.Since.IsZero() {
		s.since = f.q.Since.UnixMicro()
	}
	if !f.q.Until.IsZero() {
		s.until = f.q.Until.UnixMicro()
	}
	if f.prog == nil {
		if s.since == 0 && s.until == 0 {
			return nil
		}
		return s
	}
	for _, path := range fieldsOf(f.prog) {
		switch record.RowFieldOf(path) {
		case record.RowText:
			s.texts = append(s.texts, len(s.fields))
		case record.RowNumber:
			if new(env).number(path) == nil {
				return nil
			}
			s.numbers = append(s.numbers, len(s.fields))
		default:
			return nil
		}
		s.fields = append(s.fields, path)
	}
	return s
}

// fieldsOf lists the fields that an expression names, each once.
func fieldsOf(p *vm.Program) []string {
	var c fieldCollector
	node := p.Node()
	ast.Walk(&node, &c)
	return c.paths
}

type fieldCollector struct{ paths []string }

// Visit implements ast.Visitor. The parts of a name are visited before the
// whole, so "authn.method" takes the place of "authn".
func (c *fieldCollector) Visit(node *ast.Node) {
	path := pathOf(*node)
	if path == "" {
		return
	}
	if at := strings.LastIndexByte(path, '.'); at > 0 && len(c.paths) > 0 && c.paths[len(c.paths)-1] == path[:at] {
		c.paths = c.paths[:len(c.paths)-1]
	}
	for _, have := range c.paths {
		if have == path {
			return
		}
	}
	c.paths = append(c.paths, path)
}

// pathOf is the name that a node spells, "" if it is none.
func pathOf(n ast.Node) string {
	switch n := n.(type) {
	case *ast.IdentifierNode:
		return n.Value
	case *ast.MemberNode:
		base := pathOf(n.Node)
		name, ok := n.Property.(*ast.StringNode)
		if base == "" || !ok {
			return ""
		}
		return base + "." + name.Value
	}
	return ""
}

// keep looks at one row.
func (s *sieve) keep(r *record.Row) bool {
	if at := r.Time(); s.since != 0 && at < s.since || s.until != 0 && at >= s.until {
		return false
	}
	if s.f.prog == nil {
		return true
	}
	if r != s.row || len(s.memo) >= maxVerdicts {
		s.row = r
		clear(s.memo)
	}
	s.key = s.key[:0]
	for _, i := range s.texts {
		v := r.Symbol(i)
		s.key = append(s.key, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	v := s.memo[string(s.key)]
	if v == nil {
		v = &verdict{}
		s.memo[string(s.key)] = v
		var rec record.Record
		if record.Decode(r.AppendFrame(nil), nil, &rec) != nil {
			return true
		}
		v.env.set(0, &rec)
	}
	if v.known {
		return v.keep
	}
	for _, i := range s.numbers {
		*v.env.number(s.fields[i]) = int(r.Number(i))
	}
	out, err := s.f.vm.Run(s.f.prog, &v.env)
	keep := err != nil || out.(bool) // an error is left to whoever filters again
	if len(s.numbers) == 0 {
		v.known, v.keep = true, keep
	}
	return keep
}

// number is the place of a number that a row tells; nil for others.
func (v *env) number(path string) *int {
	switch path {
	case "bytes_in":
		return &v.BytesIn
	case "bytes_out":
		return &v.BytesOut
	case "dur_us":
		return &v.DurUS
	case "authn.age_s":
		return &v.Authn.AgeS
	case "authn.ttl_s":
		return &v.Authn.TTLS
	case "authz.errors":
		return &v.Authz.Errors
	case "limit.remaining":
		return &v.Limit.Remaining
	case "limit.retry_s":
		return &v.Limit.RetryS
	case "client.hops":
		return &v.Client.Hops
	case "upstream.attempts":
		return &v.Upstream.Attempts
	case "upstream.ttfb_us":
		return &v.Upstream.TTFBUS
	case "san.dropped":
		return &v.San.Dropped
	case "san.masked":
		return &v.San.Masked
	case "san.tripped":
		return &v.San.Tripped
	case "san.invalid":
		return &v.San.Invalid
	case "event.count":
		return &v.Event.Count
	}
	return nil
}
