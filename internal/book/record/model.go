package record

import "math/bits"

// modelKind says how a column is stored and predicted.
type modelKind uint8

const (
	mPlain  modelKind = iota // number: predicted to be 0
	mLast                    // number: as the last one in its context
	mTime                    // the time: an exchange ends after the one before it, so time + dur_us rises evenly
	mTTFB                    // close to dur_us if an upstream was called
	mAge                     // token age: the token was issued when the subject's last one was
	mTTL                     // token lifetime (age_s + ttl_s) as the last one of its issuer
	mSymbol                  // text: dictionary, as the last one in its context
	mID
)

// A model is a column of the frame table.
type model struct {
	kind  modelKind
	field int // row of the frame table
	ctx   int // model that is the context, -1 for the column itself
}

// layout joins a frame table with its columns.
type layout struct {
	tab    []field
	models []model
	byRow  []int // row of the table -> model, -1 for none
	order  []int // models, each after those that predict it
	place  []int // of each model in order
	heirs  []set // by model: the places of those whose context it is
	time, dur, age, upstream,
	id int // models that predictions read
}

var layoutV1 = newLayout(frameV1, map[string]modelSpec{
	"time":            {kind: mTime, needs: []string{"dur_us"}},
	"id":              {kind: mID, needs: []string{"time"}},
	"outcome":         {ctx: "status"},
	"op":              {ctx: "route"},
	"method":          {ctx: "op"},
	"host":            {ctx: "route"},
	"proto":           {ctx: "subject"},
	"template":        {ctx: "op"},
	"status":          {kind: mSymbol, ctx: "op"},
	"upstream_status": {kind: mSymbol, ctx: "status"},

	"authn.method":  {ctx: "authn.issuer"},
	"authn.issuer":  {ctx: "subject"},
	"authn.client":  {ctx: "subject"},
	"authn.roles":   {ctx: "subject"},
	"authn.acr":     {ctx: "authn.issuer"},
	"authn.amr":     {ctx: "subject"},
	"authn.age_s":   {kind: mAge, ctx: "subject", needs: []string{"time"}},
	"authn.ttl_s":   {kind: mTTL, ctx: "authn.issuer", needs: []string{"authn.age_s"}},
	"authn.bound":   {ctx: "authn.issuer"},
	"authn.kid":     {ctx: "authn.issuer"},
	"authn.alg":     {ctx: "authn.kid"},
	"authn.outcome": {ctx: "status"},
	"authn.reason":  {ctx: "status"},

	"authz.decision":        {ctx: "status"},
	"authz.policies":        {ctx: "op"},
	"authz.set":             {ctx: "authz.decision"},
	"authz.shadow.decision": {ctx: "op"},
	"authz.shadow.policies": {ctx: "op"},

	"limit.rule":      {ctx: "route"},
	"limit.outcome":   {ctx: "status"},
	"limit.remaining": {kind: mLast, ctx: "subject"},
	"limit.mode":      {ctx: "limit.rule"},

	"tls.version":     {ctx: "tls.ja4"},
	"tls.cipher":      {ctx: "tls.ja4"},
	"tls.group":       {ctx: "tls.ja4"},
	"tls.alpn":        {ctx: "tls.ja4"},
	"tls.sni":         {ctx: "host"},
	"tls.ja4":         {ctx: "subject"},
	"tls.client_cert": {ctx: "subject"},

	"client.prefix":     {ctx: "subject"},
	"client.port_class": {ctx: "kind"},
	"client.hops":       {kind: mLast, ctx: "kind"},

	"upstream.name":     {ctx: "route"},
	"upstream.target":   {ctx: "upstream.name"},
	"upstream.attempts": {kind: mLast, ctx: "upstream.name"},
	"upstream.reused":   {kind: mLast, ctx: "upstream.name"},
	"upstream.breaker":  {ctx: "upstream.target"},
	"upstream.ttfb_us":  {kind: mTTFB, needs: []string{"upstream.name", "dur_us"}},

	"error.origin": {ctx: "error.reason"},
	"error.reason": {ctx: "status"},
	"error.phase":  {ctx: "error.reason"},

	"san.dropped": {kind: mLast, ctx: "op"},

	"event.name":   {ctx: "kind"},
	"event.clock":  {ctx: "kind"},
	"event.before": {ctx: "kind"},
	"event.after":  {ctx: "kind"},
	"event.target": {ctx: "kind"},
	"event.cause":  {ctx: "kind"},
})

// modelSpec is a model as it is written down above. Fields that are not named
// there are mPlain or, if text, mSymbol without a context.
type modelSpec struct {
	kind  modelKind
	ctx   string
	needs []string // what else must be known before
}

func newLayout(tab []field, specs map[string]modelSpec) layout {
	l := layout{tab: tab}
	byPath := make(map[string]int)
	for i := range tab {
		l.byRow = append(l.byRow, -1)
		f := &tab[i]
		if f.typ == tOpen || f.typ == tClose || f.typ == tVersion {
			continue
		}
		l.byRow[i] = len(l.models)
		byPath[f.path] = len(l.models)
		l.models = append(l.models, model{field: i, ctx: -1})
	}
	var deps [][]int
	for k := range l.models {
		m := &l.models[k]
		f := &tab[m.field]
		spec := specs[f.path]
		switch f.typ {
		case tString, tFact, tList, tKind, tOutcome:
			m.kind = mSymbol
		default:
			m.kind = spec.kind
		}
		var d []int
		if spec.ctx != "" {
			m.ctx = byPath[spec.ctx]
			d = append(d, m.ctx)
		}
		for _, path := range spec.needs {
			d = append(d, byPath[path])
		}
		deps = append(deps, d)
	}
	l.order = sortModels(deps)
	l.place, l.heirs = make([]int, len(l.models)), make([]set, len(l.models))
	for i, k := range l.order {
		l.place[k] = i
		if ctx := l.models[k].ctx; ctx >= 0 {
			l.heirs[ctx].add(i)
		}
	}
	l.id, l.time, l.dur = byPath["id"], byPath["time"], byPath["dur_us"]
	l.age, l.upstream = byPath["authn.age_s"], byPath["upstream.name"]
	return l
}

// set is a set of places in layout.order, to be gone through in order: what a
// place adds comes after it.
type set [2]uint64

func (s *set) add(i int) { s[i>>6] |= 1 << (i & 63) }

func (s *set) has(i int) bool { return s[i>>6]>>(i&63)&1 != 0 }

func (s *set) remove(i int) { s[i>>6] &^= 1 << (i & 63) }

// take removes the first place of word w, which has one.
func (s *set) take(w int) int {
	b := bits.TrailingZeros64(s[w])
	s[w] &= s[w] - 1
	return w<<6 | b
}

// addBoth adds the places that are in both a and b.
func (s *set) addBoth(a, b *set) {
	s[0] |= a[0] & b[0]
	s[1] |= a[1] & b[1]
}

// sortModels orders models so that each comes after those it needs.
func sortModels(deps [][]int) []int {
	var order []int
	done := make([]bool, len(deps))
	var visit func(k int)
	visit = func(k int) {
		if done[k] {
			return
		}
		done[k] = true
		for _, d := range deps[k] {
			visit(d)
		}
		order = append(order, k)
	}
	for k := range deps {
		visit(k)
	}
	return order
}

// predictor holds what encoder and decoder know alike before a value. Both
// call guess before and learn after each value, in the same order.
type predictor struct {
	val  []int64    // numbers of this row, by model
	sym  []uint32   // symbols of this row, by model: 0 absent, n+1 dictionary entry n
	nums [][]int64  // by model and context: the last number, or what the model makes of it
	syms [][]uint32 // by model and context: the last symbol
	end  int64      // time + dur_us of the row before
}

func newPredictor(l *layout) predictor {
	n := len(l.models)
	return predictor{
		val: make([]int64, n), sym: make([]uint32, n),
		nums: make([][]int64, n), syms: make([][]uint32, n),
	}
}

// context gives the place of a model's row in nums or syms.
func (p *predictor) context(m *model) uint32 {
	if m.ctx < 0 {
		return 0
	}
	return p.sym[m.ctx]
}

// guess predicts a number. All arithmetic wraps, so any int64 comes back.
func (p *predictor) guess(l *layout, k int) int64 {
	m := &l.models[k]
	switch m.kind {
	case mLast:
		return *cell(&p.nums[k], p.context(m))
	case mTime:
		return p.end - p.val[l.dur]
	case mTTFB:
		if p.sym[l.upstream] != 0 {
			return p.val[l.dur]
		}
	case mAge:
		if issued := *cell(&p.nums[k], p.context(m)); issued != 0 {
			return p.val[l.time]/usPerSecond - issued
		}
	case mTTL:
		if sum := *cell(&p.nums[k], p.context(m)); sum != 0 && p.val[l.age] != 0 {
			return sum - p.val[l.age]
		}
	}
	return 0
}

// learn takes in a number after it was coded.
func (p *predictor) learn(l *layout, k int, v int64) {
	m := &l.models[k]
	p.val[k] = v
	switch m.kind {
	case mLast:
		*cell(&p.nums[k], p.context(m)) = v
	case mTime:
		p.end = v + p.val[l.dur]
	case mAge:
		if v != 0 {
			*cell(&p.nums[k], p.context(m)) = p.val[l.time]/usPerSecond - v
		}
	case mTTL:
		if v != 0 {
			*cell(&p.nums[k], p.context(m)) = v + p.val[l.age]
		}
	}
}
