// Package query finds records by an expression over their fields.
package query

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// maxNodes and maxText bound an expression, so that nobody can ask for more
// work than reading the book takes. See frugal for what they do not bound.
const (
	maxNodes = 200
	maxText  = 4096
)

// MaxLimit is the largest Limit: so many matches are kept in memory.
const MaxLimit = 100_000

// Query says which records are wanted.
type Query struct {
	Expr   string    // over the frame's fields; empty: all
	Since  time.Time // zero: from the beginning
	Until  time.Time // zero: to the end; exclusive
	Reveal bool      // open personal parts; their fields may then be used too
	Limit  int       // newest so many, at most MaxLimit; 0: all
}

// Match is one record that was found.
type Match struct {
	Index    uint64          `json:"index"`
	Frame    json.RawMessage `json:"frame"`
	Personal json.RawMessage `json:"personal,omitempty"`
	Sealed   string          `json:"sealed,omitempty"`
}

// filter is a compiled query.
type filter struct {
	q    Query
	prog *vm.Program
	vm   vm.VM
	env  env
}

func compile(q Query) (*filter, error) {
	f := &filter{q: q}
	if q.Limit > MaxLimit {
		return nil, &Error{fmt.Sprintf("at most the newest %d are kept, not %d; without a limit all are handed out as they are found", MaxLimit, q.Limit)}
	}
	if strings.TrimSpace(q.Expr) == "" {
		return f, nil
	}
	var err error
	f.prog, err = compileExpr(q.Expr, q.Reveal, expr.AsBool())
	return f, err
}

func compileExpr(text string, reveal bool, want expr.Option) (*vm.Program, error) {
	if len(text) > maxText {
		return nil, &Error{fmt.Sprintf("an expression may have %d bytes, this one has %d", maxText, len(text))}
	}
	if why := frugal(text); why != "" {
		return nil, &Error{"expression: " + why}
	}
	var loops noLoops
	opts := []expr.Option{expr.DisableAllBuiltins(), expr.MaxNodes(maxNodes), expr.Patch(&loops)}
	if want != nil {
		opts = append(opts, want)
	}
	if reveal {
		opts = append(opts, expr.Env(openEnv{}))
	} else {
		opts = append(opts, expr.Env(env{}))
	}
	p, err := expr.Compile(text, opts...)
	if err != nil {
		text := err.Error()
		if !reveal && strings.Contains(text, "unknown name personal") {
			text += "\npersonal parts are opened only with --reveal, which is recorded"
		}
		return nil, &Error{"expression: " + text}
	}
	if loops.found != "" {
		return nil, &Error{fmt.Sprintf("expression: %q goes through a list, which is not allowed here; use \"in\", comparisons, and, or, not", loops.found)}
	}
	return p, nil
}

// noLoops looks for what expr does not switch off with its builtins: loops over
// lists, which nested a few times take longer than anybody has, and ranges,
// which make a list of a million numbers for every record.
type noLoops struct{ found string }

// Visit implements ast.Visitor.
func (v *noLoops) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.BuiltinNode:
		v.found = n.Name
	case *ast.PredicateNode:
		v.found = "#"
	case *ast.BinaryNode:
		if n.Operator == ".." {
			v.found = n.Operator
		}
	}
}

// Error means that the question cannot be used; its text says why and where.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// match evaluates the filter for one record.
func (f *filter) match(e *book.Entry) (bool, error) {
	at := e.Record.At()
	if !f.q.Since.IsZero() && at.Before(f.q.Since) || !f.q.Until.IsZero() && !at.Before(f.q.Until) {
		return false, nil
	}
	if f.prog == nil {
		return true, nil
	}
	out, err := f.run(f.prog, e)
	if err != nil {
		return false, err
	}
	return out.(bool), nil
}

func (f *filter) run(p *vm.Program, e *book.Entry) (any, error) {
	f.env.set(e.Index, e.Record)
	var in any = &f.env // a pointer, since the VM would be given a copy in memory of its own
	if f.q.Reveal {
		in = openEnv{f.env, personalOf(&e.Record.Personal)}
	}
	out, err := f.vm.Run(p, in)
	if err != nil {
		return nil, &Error{"expression: " + err.Error()}
	}
	return out, nil
}

// Search hands out what matches, oldest first. With a Limit it is the newest
// so many.
func Search(r *book.Reader, q Query, fn func(*Match) error) error {
	f, err := compile(q)
	if err != nil {
		return err
	}
	var ring []Match // with a limit
	n := 0
	err = f.each(r, func(e *book.Entry) error {
		ok, err := f.match(e)
		if err != nil || !ok {
			return err
		}
		m := NewMatch(e)
		if q.Limit <= 0 {
			return fn(m)
		}
		m.Frame, m.Personal = append(json.RawMessage(nil), m.Frame...), append(json.RawMessage(nil), m.Personal...)
		if len(ring) < q.Limit {
			ring = append(ring, *m)
		} else {
			ring[n%q.Limit] = *m
		}
		n++
		return nil
	})
	if err != nil {
		return err
	}
	for i := range ring {
		if err := fn(&ring[(n+i)%len(ring)]); err != nil {
			return err
		}
	}
	return nil
}

// NewMatch shows an entry. Its slices are the entry's.
func NewMatch(e *book.Entry) *Match {
	m := &Match{Index: e.Index, Frame: e.Frame, Personal: e.Personal}
	if e.Sealed != nil {
		m.Sealed = e.Sealed.Error()
	}
	return m
}

// Count is how many exchanges, or records, share a value.
type Count struct {
	Value string `json:"value"`
	Count int64  `json:"count"`
}

// maxGroups and maxGroupBytes, of the values together, bound the memory of a
// count.
const (
	maxGroups     = 100_000
	maxGroupBytes = 32 << 20
)

// foldName is the event of a record that stands for event.count exchanges.
const foldName = "fold"

// weight is how many exchanges a record stands for.
func weight(r *record.Record) int64 {
	if r.Event.Name == foldName {
		return r.Event.Count
	}
	return 1
}

// CountBy counts the exchanges that match by the value of a field (or any
// expression), most first. A folded record counts as often as it says; with
// records set, each record counts once.
func CountBy(r *book.Reader, field string, q Query, records bool) ([]Count, error) {
	f, err := compile(q)
	if err != nil {
		return nil, err
	}
	by, err := compileExpr(field, q.Reveal, nil)
	if err != nil {
		return nil, err
	}
	var all tally
	err = f.each(r, func(e *book.Entry) error {
		ok, err := f.match(e)
		if err != nil || !ok {
			return err
		}
		v, err := f.run(by, e)
		if err != nil {
			return err
		}
		n := int64(1)
		if !records {
			n = weight(e.Record)
		}
		return all.add(fmt.Sprint(v), n)
	})
	if err != nil {
		return nil, err
	}
	out := make([]Count, 0, len(all.counts))
	for v, n := range all.counts {
		out = append(out, Count{v, n})
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Count != out[j].Count {
			return out[i].Count > out[j].Count
		}
		return out[i].Value < out[j].Value
	})
	return out, nil
}

// tally is a count by value in bounded memory. The zero value is empty.
type tally struct {
	counts map[string]int64
	size   int // bytes of all values
}

func (t *tally) add(value string, n int64) error {
	if _, have := t.counts[value]; !have {
		if t.size += len(value); len(t.counts) == maxGroups || t.size > maxGroupBytes {
			return &Error{fmt.Sprintf("more than %d different values, or than %d bytes of them; count by something coarser", maxGroups, maxGroupBytes)}
		}
		if t.counts == nil {
			t.counts = map[string]int64{}
		}
	}
	t.counts[value] += n
	return nil
}

// IsUsage tells errors of the question from errors of the book.
func IsUsage(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// ParseID reads a request id as people give it.
func ParseID(id string) (record.ID, error) {
	rid, err := record.ParseID(id)
	if err != nil {
		return rid, &Error{fmt.Sprintf("%q is not a request id (a UUID such as 019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b)", id)}
	}
	return rid, nil
}

// Find hands out the record of one exchange.
func Find(r *book.Reader, id string, reveal bool) (*Match, error) {
	rid, err := ParseID(id)
	if err != nil {
		return nil, err
	}
	var out *Match
	err = r.Find(rid, reveal, func(e *book.Entry) error {
		out = NewMatch(e)
		out.Frame, out.Personal = append(json.RawMessage(nil), out.Frame...), append(json.RawMessage(nil), out.Personal...)
		return nil
	})
	return out, err
}
