package record

// refValue is a value of the frame that the next one is compared with.
type refValue struct {
	row    int // of the table
	model  int
	lo, hi int32
	typ    fieldType
	text   bool // its model is mSymbol
}

// likeness takes frames that have the same values, present and absent, as the
// one before it in columns: most have. What stands between the values that
// differ now and then is compared at once, and only those are looked at one by
// one.
type likeness struct {
	ref    []byte // the frame that began this likeness; empty before there is one
	id     ID     // of ref
	us     int64  // its time
	values []refValue
	loose  []int              // of values: those that differ now and then, in order
	differ [len(spans{})]bool // by row: it differed from the frame before at some time
}

// begin makes frame the one to compare with.
func (k *likeness) begin(l *layout, frame []byte, sp *spans, id ID, us int64) {
	k.ref, k.id, k.us = append(k.ref[:0], frame...), id, us
	k.values, k.loose = k.values[:0], k.loose[:0]
	for i := range l.tab {
		m := l.byRow[i]
		if m < 0 || sp[i].hi == 0 {
			continue
		}
		f := &l.tab[i]
		if k.differ[i] || f.typ == tID || f.typ == tTime {
			k.loose = append(k.loose, len(k.values))
		}
		k.values = append(k.values, refValue{i, m, sp[i].lo, sp[i].hi, f.typ, l.models[m].kind == mSymbol})
	}
}

// gap takes what stands before the n-th loose value, or at the end. What differs
// there becomes loose, and is then the n-th itself.
func (k *likeness) gap(s *scanner, from int32, n int) bool {
	to := int32(len(k.ref))
	if n < len(k.loose) {
		to = k.values[k.loose[n]].lo
	}
	want := k.ref[from:to]
	if len(s.b)-s.pos >= len(want) && string(s.b[s.pos:s.pos+len(want)]) == string(want) {
		s.pos += len(want)
		return n < len(k.loose) || s.pos == len(s.b)
	}
	return k.loosen(s, from, n)
}

// loosen finds the value before the n-th loose one in which a frame differs. It
// reports false if it is none: then other values are present.
func (k *likeness) loosen(s *scanner, from int32, n int) bool {
	first, end := 0, len(k.values)
	if n > 0 {
		first = k.loose[n-1] + 1
	}
	if n < len(k.loose) {
		end = k.loose[n]
	}
	at := from + int32(common(s.b[s.pos:], k.ref[from:]))
	for i := first; i < end; i++ {
		v := &k.values[i]
		if at < v.lo {
			return false
		}
		// A number may go on where that in ref ends.
		if at < v.hi || at == v.hi && (v.typ == tInt || v.typ == tSmall) {
			k.differ[v.row] = true
			k.loose = append(k.loose, 0)
			copy(k.loose[n+1:], k.loose[n:])
			k.loose[n] = i
			s.pos += int(v.lo - from)
			return true
		}
	}
	return false
}
