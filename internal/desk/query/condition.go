package query

import (
	"strings"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// Condition is an expression over the frame that is asked of one record after
// the other, in the language that Search takes. It belongs to one goroutine.
type Condition struct {
	f      *filter
	fields []string
}

// NewCondition compiles an expression, which must not be empty and gives true or
// false. The error is an *Error.
func NewCondition(text string) (*Condition, error) {
	if strings.TrimSpace(text) == "" {
		return nil, &Error{"expression: it is empty; \"true\" takes every record"}
	}
	f, err := compile(Query{Expr: text})
	if err != nil {
		return nil, err
	}
	return &Condition{f, fieldsOf(f.prog)}, nil
}

// Fields are the paths of the fields that decide: records that are equal in
// these get the same answer. The slice is the Condition's.
func (c *Condition) Fields() []string { return c.fields }

// Match asks of the record with this index. The error is an *Error: the
// expression has no answer, because of a division by zero for example.
func (c *Condition) Match(index uint64, r *record.Record) (bool, error) {
	return c.f.match(&book.Entry{Index: index, Record: r})
}
