package detect

import (
	"slices"
	"strconv"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/query"
)

// fields gives access to the frame by the paths that expressions use.
type fields struct {
	text map[string]func(*record.Record) *string
	num  map[string]func(*record.Record) int64
	list map[string]func(*record.Record) []string
}

// frame is made once and never changes.
var frame = func() (f fields) {
	f.text = map[string]func(*record.Record) *string{}
	for _, s := range record.FrameStrings() {
		f.text[s.Path] = s.At
	}
	f.text["kind"] = func(r *record.Record) *string { return (*string)(&r.Kind) }
	f.text["outcome"] = func(r *record.Record) *string { return (*string)(&r.Outcome) }
	f.num = map[string]func(*record.Record) int64{
		"status":          func(r *record.Record) int64 { return int64(r.Status) },
		"upstream_status": func(r *record.Record) int64 { return int64(r.UpstreamStatus) },
		"authz.errors":    func(r *record.Record) int64 { return int64(r.Authz.Errors) },
		"limit.remaining": func(r *record.Record) int64 { return r.Limit.Remaining },
		"client.hops":     func(r *record.Record) int64 { return int64(r.Client.Hops) },
		"san.dropped":     func(r *record.Record) int64 { return int64(r.San.Dropped) },
		"san.masked":      func(r *record.Record) int64 { return int64(r.San.Masked) },
		"san.tripped":     func(r *record.Record) int64 { return int64(r.San.Tripped) },
		"event.count":     func(r *record.Record) int64 { return r.Event.Count },
	}
	f.list = map[string]func(*record.Record) []string{
		"authn.roles":           func(r *record.Record) []string { return r.Authn.Roles },
		"authn.amr":             func(r *record.Record) []string { return r.Authn.AMR },
		"authz.policies":        func(r *record.Record) []string { return r.Authz.Policies },
		"authz.shadow.policies": func(r *record.Record) []string { return r.Authz.ShadowPolicies },
	}
	return f
}()

// textField gives access to a field of text, nil if there is none of this path.
func textField(path string) func(*record.Record) *string { return frame.text[path] }

// always are the fields of the frame that the engine itself looks at.
func always() []string {
	return []string{"id", "time", "kind", "dur_us", "limit.rule", "event.name", "event.count", "event.first", "event.last", "event.target"}
}

// needs are the fields of the frame that the rules look at. An expression that
// names something else, as a part of the frame as a whole, needs all of them.
func (g *engine) needs() []string {
	out := always()
	for _, ru := range g.rules {
		out = append(append(out, ru.By...), ru.Distinct, ru.New)
		out = append(out, ru.where.c.Fields()...)
		if ru.after != nil {
			out = append(out, ru.after.c.Fields()...)
		}
	}
	out = slices.DeleteFunc(out, func(path string) bool { return path == "" || path == "index" })
	if slices.ContainsFunc(out, func(path string) bool { return !record.IsFramePath(path) }) {
		return record.FramePaths()
	}
	return out
}

// maxMemo bounds how many answers a condition remembers.
const maxMemo = 4096

// condition is an expression that remembers its answers: what decides are a few
// fields with few different values, and mostly those of the record before.
type condition struct {
	c     *query.Condition
	parts []func(dst []byte, r *record.Record) []byte // of the memo's key; nil: it cannot remember
	memo  map[string]bool
	key   []byte

	last   bool // the answer to what texted and nummed hold
	texts  []func(*record.Record) *string
	nums   []func(*record.Record) int64
	texted []string
	nummed []int64
	lists  bool // there are fields that are lists, so it is not looked whether all is as before
	asked  bool // there is a last answer
}

func newCondition(c *query.Condition) *condition {
	out := &condition{c: c, memo: map[string]bool{}}
	for _, path := range c.Fields() {
		part := keyPart(path)
		if part == nil {
			return &condition{c: c} // a field of which each record has another value
		}
		out.parts = append(out.parts, part)
		if at := frame.text[path]; at != nil {
			out.texts, out.texted = append(out.texts, at), append(out.texted, "")
		} else if at := frame.num[path]; at != nil {
			out.nums, out.nummed = append(out.nums, at), append(out.nummed, 0)
		} else {
			out.lists = true
		}
	}
	return out
}

// again reports whether what decides is as it was in the record before, and takes
// note of it.
func (c *condition) again(r *record.Record) bool {
	same := c.asked && !c.lists
	for i, at := range c.texts {
		if v := *at(r); v != c.texted[i] {
			c.texted[i], same = v, false
		}
	}
	for i, at := range c.nums {
		if v := at(r); v != c.nummed[i] {
			c.nummed[i], same = v, false
		}
	}
	return same
}

// keyPart appends the value of a field, and a byte that ends it.
func keyPart(path string) func([]byte, *record.Record) []byte {
	if at := frame.text[path]; at != nil {
		return func(dst []byte, r *record.Record) []byte { return append(append(dst, *at(r)...), 0) }
	}
	if at := frame.num[path]; at != nil {
		return func(dst []byte, r *record.Record) []byte { return append(strconv.AppendInt(dst, at(r), 36), 0) }
	}
	if at := frame.list[path]; at != nil {
		return func(dst []byte, r *record.Record) []byte {
			for _, s := range at(r) {
				dst = append(append(dst, s...), 1)
			}
			return append(dst, 0)
		}
	}
	return nil
}

// match asks the expression, or remembers.
func (c *condition) match(index uint64, r *record.Record) (bool, error) {
	if c.parts == nil {
		return c.c.Match(index, r)
	}
	if c.again(r) {
		return c.last, nil
	}
	c.key = c.key[:0]
	for _, part := range c.parts {
		c.key = part(c.key, r)
	}
	if yes, ok := c.memo[string(c.key)]; ok {
		c.last, c.asked = yes, true
		return yes, nil
	}
	yes, err := c.c.Match(index, r)
	if c.last, c.asked = yes, err == nil; err != nil {
		return false, err
	}
	if len(c.memo) == maxMemo {
		clear(c.memo)
	}
	c.memo[string(c.key)] = yes
	return yes, nil
}
