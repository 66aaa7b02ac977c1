package detect

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// everybody is the key of a rule that has none, and of the alert that says that
// there are too many keys to name.
const everybody = "*"

// storm is how many keys of a rule make an alert of their own in a window. The
// next alert is about everybody, and then there is none until the window is over:
// what so many do at once was done by whoever changed a policy, or needs no list.
const storm = 20

// recents is how many values a rule remembers beside its filter, by their hashes.
const recents = 1 << 15

// maxTold is how many alerts are remembered before old ones are looked for.
const maxTold = 256

// finding is an alert that is to be written.
type finding struct {
	rule   *rule
	key    string   // as event.target has it
	values []string // of the fields in By
	count  int64
	exact  bool
	first  int64 // µs
	last   int64 // µs
	links  []string

	tried, written bool
	from           uint64    // how long the book was before it was tried first
	id             record.ID // with which it was tried
}

// engine evaluates rules. It knows nothing of the book. It belongs to one
// goroutine.
type engine struct {
	rules    []*rule
	seed     maphash.Seed
	findings []finding
	key      []byte
	quiet    bool  // records are read again: what they led to is written already
	at       int64 // µs: when the last record that is no alert ended
}

// rule is a Rule at work. It is owned by its engine.
type rule struct {
	Rule
	where, after *condition
	by           []func(*record.Record) *string
	distinct     func(*record.Record) *string
	fresh        func(*record.Record) *string
	window       int64 // µs
	hours        *hours
	table        *table
	past         *past
	filter       *filter
	recent       []uint64           // of filter: some of what it was asked last, so that it need not be asked
	since        int64              // µs: when the first record was seen; 0: none yet
	told         map[string][]int64 // by key: when the last record of each alert was, µs
	tolds        int                // times in told
	most         int                // of them, before old ones are looked for

	alerts   uint64
	withheld uint64 // alerts that a storm kept from being written
	failed   uint64 // records for which an expression had no answer
	failure  string // the last of them
}

// newRule checks a rule, whose defaults are set, and compiles it.
func newRule(r Rule) (*rule, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	out := &rule{Rule: r, window: r.Window.Microseconds(), told: map[string][]int64{}, most: maxTold, distinct: textField(r.Distinct), fresh: textField(r.New)}
	var err error
	if out.where, err = r.condition("where", r.Where); err != nil {
		return nil, err
	}
	if r.After != "" {
		if out.after, err = r.condition("after", r.After); err != nil {
			return nil, err
		}
	}
	for _, f := range r.By {
		out.by = append(out.by, textField(f))
	}
	if out.hours, err = r.Hours.compile(); err != nil {
		return nil, &RuleError{r.Name, "hours", err.Error()}
	}
	out.reset()
	return out, nil
}

// reset forgets all that was counted and learned.
func (ru *rule) reset() {
	var leave func(*slot)
	if ru.Times > 0 {
		ru.past = &past{window: ru.window, least: max(ru.Count/ru.Times, 1), peaks: map[string]peak{}}
		leave = ru.past.leave
	}
	if ru.New != "" {
		ru.filter, ru.recent = &filter{}, make([]uint64, recents)
	}
	apart := min(2*ru.Count, MaxDistinct)
	if ru.Times > 0 {
		apart = MaxDistinct
	}
	ru.table, ru.since = newTable(ru.window, apart, leave), 0
}

func newEngine(rules []Rule) (*engine, error) {
	g := &engine{seed: maphash.MakeSeed()}
	for _, r := range rules {
		r.setDefaults()
		c, err := newRule(r)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(g.rules, func(have *rule) bool { return have.Name == r.Name }) {
			return nil, &RuleError{r.Name, "name", "there are two rules of this name"}
		}
		g.rules = append(g.rules, c)
	}
	return g, nil
}

// forgetCounts makes the rules as they were when they were new.
func (g *engine) forgetCounts() {
	for _, ru := range g.rules {
		ru.reset()
	}
}

// rulePrefix begins limit.rule of alerts of this package.
const rulePrefix = "detect."

// see takes the next record. What it leads to is in findings afterwards.
func (g *engine) see(index uint64, r *record.Record) {
	if r.Kind == record.KindAlert {
		g.alerted(r)
		for _, ru := range g.rules {
			ru.forget(g.at) // not by the time of the alert, which may be about records of long ago
		}
		return // it bears the reason of what it is about, which would count twice
	}
	if r.Kind == record.KindDelivery {
		return // a receipt of an alert must not lead to the next one
	}
	g.at = r.Time + r.DurUS
	for _, ru := range g.rules {
		g.ask(ru, index, r, g.at)
	}
}

// alerted takes note of an alert, so that the same is not told again.
func (g *engine) alerted(r *record.Record) {
	for _, ru := range g.rules {
		switch {
		case r.Limit.Rule == rulePrefix+ru.Name:
			ru.tell(r.Event.Target, r.Event.Last)
		case ru.Unless != "" && ru.Unless == r.Event.Name && !strings.HasPrefix(r.Limit.Rule, rulePrefix):
			if g.keyOf(ru, r) {
				ru.tell(string(g.key), max(r.Event.Last, r.Event.First, r.Time))
			}
		}
	}
}

// tell remembers an alert.
func (ru *rule) tell(key string, at int64) {
	if !slices.Contains(ru.told[key], at) {
		ru.told[key] = append(ru.told[key], at)
		ru.tolds++
	}
}

// forget drops alerts that are too old for a record of a time. Those that are
// later stay: they were found in the book ahead of the records.
func (ru *rule) forget(at int64) {
	if ru.tolds < ru.most {
		return
	}
	ru.tolds = 0
	for k, times := range ru.told {
		times = slices.DeleteFunc(times, func(t int64) bool { return t < at-2*ru.window })
		ru.tolds += len(times)
		if ru.told[k] = times; len(times) == 0 {
			delete(ru.told, k)
		}
	}
	ru.most = max(maxTold, 2*ru.tolds)
}

// tells reports whether one of the times is within a window of at.
func (ru *rule) tells(times []int64, at int64) bool {
	for _, t := range times {
		if d := t - at; -ru.window < d && d < ru.window {
			return true
		}
	}
	return false
}

// keyOf puts the key of a record into g.key. It is false if it has none.
func (g *engine) keyOf(ru *rule, r *record.Record) bool {
	g.key = g.key[:0]
	if len(ru.by) == 0 {
		g.key = append(g.key, everybody...)
		return true
	}
	for i, at := range ru.by {
		v := *at(r)
		if v == "" || v == record.None {
			return false
		}
		if i > 0 {
			g.key = append(g.key, '|')
		}
		g.key = append(g.key, v...)
	}
	return true
}

// ask lets one rule look at a record.
func (g *engine) ask(ru *rule, index uint64, r *record.Record, at int64) {
	before := false
	if ru.after != nil {
		before = ru.takes(ru.after, index, r)
	}
	if !before && !ru.takes(ru.where, index, r) || ru.hours.contain(at) || !g.keyOf(ru, r) {
		return
	}
	if ru.since == 0 || at < ru.since {
		ru.since = at
	}
	switch {
	case ru.after != nil:
		g.askAfter(ru, r, at, before)
	case ru.filter != nil:
		g.askNew(ru, r, at)
	default:
		g.askCount(ru, r, at)
	}
}

func (ru *rule) takes(c *condition, index uint64, r *record.Record) bool {
	yes, err := c.match(index, r)
	if err != nil {
		ru.failed++
		ru.failure = err.Error()
	}
	return yes && err == nil
}

func (g *engine) slot(ru *rule) *slot { return ru.table.slot(maphash.Bytes(g.seed, g.key)) }

// askNew looks whether the key has a value for the first time.
func (g *engine) askNew(ru *rule, r *record.Record, at int64) {
	if !g.isNew(ru, r) || ru.learns(at) {
		return
	}
	g.find(ru, r, &finding{count: 1, exact: true, first: at, last: at, links: []string{r.ID.String()}})
}

// isNew reports whether the key has a value for the first time, and remembers it.
func (g *engine) isNew(ru *rule, r *record.Record) bool {
	v := *ru.fresh(r)
	if v == "" || v == record.None {
		return false
	}
	n := len(g.key)
	g.key = append(append(g.key, 0), v...)
	defer func() { g.key = g.key[:n] }()
	hash := maphash.Bytes(g.seed, g.key)
	recent := &ru.recent[hash%recents]
	if *recent == hash {
		return false
	}
	*recent = hash
	sum := sha256.Sum256(g.key)
	return !ru.filter.sees([2]uint64{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:]) | 1})
}

// learns reports whether the rule is still learning the past.
func (ru *rule) learns(at int64) bool { return at-ru.since < ru.Learn.Microseconds() }

// askAfter looks whether a success comes after failures. Failures that were counted
// in one record are written some seconds later than a success may be, so they
// are looked at from both sides.
func (g *engine) askAfter(ru *rule, r *record.Record, at int64, failure bool) {
	isNew := !failure && (ru.filter == nil || g.isNew(ru, r))
	s, t := g.slot(ru), ru.table
	if failure {
		if !t.touch(s, at) {
			return
		}
		t.count(s, at, weight(r))
		s.link(r.ID)
	} else {
		fresh := s.win == 0 || at-s.win > ru.window
		s.win = max(s.win, at)
		if _, ok := t.forward(s, at); !ok || !fresh || !isNew {
			return
		}
		s.hit, s.hitBy = at, r.ID
	}
	if s.hit == 0 || at > s.hit {
		return
	}
	if n := t.sum(s, s.hit); n >= ru.Count {
		g.find(ru, r, &finding{count: n, exact: true, first: s.first, last: s.hit, links: append(s.linked(), s.hitBy.String())})
		s.hit = 0
	}
}

// askCount counts records or values.
func (g *engine) askCount(ru *rule, r *record.Record, at int64) {
	v := ""
	if ru.distinct != nil {
		if v = *ru.distinct(r); v == "" || v == record.None {
			return
		}
	}
	s, t := g.slot(ru), ru.table
	if !t.touch(s, at) {
		return
	}
	s.link(r.ID)
	var n int64
	if ru.distinct != nil {
		t.see(s, maphash.String(g.seed, v), at)
		n = t.distinct(s, at)
	} else {
		t.count(s, at, weight(r))
		n = t.sum(s, at)
	}
	need := ru.Count
	if ru.past != nil {
		need = ru.need(s, g.key, at, n)
	}
	if n >= need {
		exact := ru.distinct == nil || n < t.least
		g.find(ru, r, &finding{count: n, exact: exact, first: s.first, last: at, links: s.linked()})
	}
}

// need is the number that makes an alert of a key with its past, which n becomes
// a part of.
func (ru *rule) need(s *slot, key []byte, at, n int64) int64 {
	ru.past.settle(s, at)
	ru.past.note(s, key, at, n)
	if n < ru.Count {
		return ru.Count
	}
	base := ru.past.of(key, at)
	if ru.learns(at) {
		base = max(base, ru.Count)
	}
	need := max(ru.Count, ru.Times*base)
	if ru.distinct != nil {
		need = min(need, ru.table.least)
	}
	return need
}

// foldName is the event of a record that stands for event.count exchanges.
const foldName = "fold"

// weight is how many exchanges a record stands for.
func weight(r *record.Record) int64 {
	if r.Event.Name == foldName {
		return r.Event.Count
	}
	return 1
}

// find makes an alert of the key in g.key, unless it was told.
func (g *engine) find(ru *rule, r *record.Record, f *finding) {
	if g.quiet || ru.tells(ru.told[string(g.key)], f.last) {
		return
	}
	f.rule, f.key = ru, string(g.key)
	for _, at := range ru.by {
		f.values = append(f.values, *at(r))
	}
	if len(ru.by) > 0 {
		keys := int64(0)
		for _, times := range ru.told {
			if ru.tells(times, f.last) {
				keys++
			}
		}
		if keys >= storm {
			if ru.tells(ru.told[everybody], f.last) {
				ru.withheld++
				return
			}
			f.key, f.values, f.count, f.exact = everybody, nil, keys+1, false
		}
	}
	ru.tell(f.key, f.last)
	ru.forget(f.last)
	ru.alerts++
	g.findings = append(g.findings, *f)
}

// hours are Hours at work.
type hours struct {
	zone     *time.Location
	days     [7]bool
	from, to time.Duration
}

func (h *Hours) compile() (*hours, error) {
	if h == nil {
		return nil, nil
	}
	zone, err := time.LoadLocation(h.Zone)
	if err != nil {
		return nil, err
	}
	out := &hours{zone: zone, from: h.From, to: h.To}
	for _, d := range h.Days {
		out.days[d] = true
	}
	return out, nil
}

// contain reports whether a time, in µs, lies in the hours.
func (h *hours) contain(at int64) bool {
	if h == nil {
		return false
	}
	t := time.UnixMicro(at).In(h.zone)
	clock := time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute + time.Duration(t.Second())*time.Second
	return h.days[t.Weekday()] && h.from <= clock && clock < h.to
}
