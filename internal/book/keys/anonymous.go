package keys

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"
)

const (
	anonymousLabel = "gatebook/v1/anonymous"
	secondsPerDay  = 24 * 60 * 60
	// daysHeld is how many days are kept in memory: today, yesterday for what
	// began before midnight, tomorrow for a clock that is ahead.
	daysHeld = 3
)

// stranger is a remembered anonymous subject.
type stranger struct {
	id        ID
	pseudonym string
	key       Key
	day       uint32
}

// day is one UTC day of anonymous traffic. All fields are guarded by dayMu.
type day struct {
	num      uint32
	key      Key
	subjects [256]*keyed // by bucket; nil if none yet
	claims   int         // claimed names indexed, newborns included
	full     bool        // the mark that claims is exceeded is in the store
}

func (d *day) holds(id ID) bool {
	for _, s := range d.subjects {
		if s != nil && s.id == id {
			return true
		}
	}
	return false
}

// dayOf counts days since 1970-01-01 UTC.
func dayOf(t time.Time) (uint32, error) {
	s := t.Unix()
	if s < 0 || s/secondsPerDay > 1<<32-1 {
		return 0, fmt.Errorf("time %v is out of range", t)
	}
	return uint32(s / secondsPerDay), nil
}

// Anonymous returns the subject for traffic without a person from an address
// prefix (1 to 4096 bytes). There are at most 256 keys a UTC day, whatever
// strangers send, while the pseudonym stays per prefix and day:
//
//	m = HMAC-SHA256(day key, "gatebook/v1/anonymous" · prefix)
//	bucket = m[0], pseudonym = base64url(m[16:32])
//
// The first use of a day writes its random day key to the store and fails if
// that fails. A remembered prefix costs one hash and no allocation.
func (r *Ring) Anonymous(prefix string, now time.Time) (Subject, error) {
	num, err := dayOf(now)
	if err != nil {
		return Subject{}, err
	}
	h := r.hash(hashStranger, num, prefix)
	if s, ok := r.strangers.get(h); ok {
		return Subject{ID: s.id, Pseudonym: s.pseudonym, Key: s.key}, nil
	}
	if err := checkValue(prefix); err != nil {
		return Subject{}, err
	}
	r.dayMu.Lock()
	defer r.dayMu.Unlock()
	d, err := r.loadDay(num)
	if err != nil {
		return Subject{}, fmt.Errorf("cannot resolve an anonymous subject: %w", err)
	}
	bucket, pseudonym := d.place(prefix)
	if d.subjects[bucket] == nil {
		if err := r.bearBucket(d, bucket); err != nil {
			return Subject{}, err
		}
	}
	k := d.subjects[bucket]
	s := Subject{ID: k.id, Pseudonym: pseudonym.String(), Key: k.key}
	if n, ok := r.births.subject(k.id); ok && n.Birth != nil {
		s.Birth = n.Birth
		return s, nil
	}
	r.strangers.put(h, stranger{s.ID, s.Pseudonym, s.Key, num}, always)
	return s, nil
}

// place returns a prefix's bucket and pseudonym.
func (d *day) place(prefix string) (bucket uint8, pseudonym ID) {
	m := hmac.New(sha256.New, d.key[:])
	m.Write([]byte(anonymousLabel))
	m.Write([]byte(prefix))
	sum := m.Sum(nil)
	return sum[0], ID(sum[16:])
}

// bearBucket makes the key of a bucket. The caller holds dayMu.
func (r *Ring) bearBucket(d *day, bucket uint8) error {
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	id, key := random()
	n := &newborn{
		birth: birth{
			typ:    birthAnonymous,
			id:     id,
			key:    r.state.Load().current.seal(KindSubject, id, &key),
			day:    d.num,
			bucket: bucket,
		},
		key: key,
	}
	n.raw = n.encode()
	if err := r.births.add(n); err != nil {
		return err
	}
	d.subjects[bucket] = &keyed{id, key}
	return nil
}

// loadDay returns a day from memory or the store, or begins it. The caller
// holds dayMu.
func (r *Ring) loadDay(num uint32) (*day, error) {
	if d := r.days[num]; d != nil {
		return d, nil
	}
	d, err := r.readDay(num)
	if err != nil {
		return nil, err
	}
	if d == nil {
		if d, err = r.beginDay(num); err != nil {
			return nil, err
		}
	}
	for _, n := range r.births.collect(func(n *newborn) bool { return n.day == num }) {
		switch {
		case n.typ == birthAnonymous && d.subjects[n.bucket] == nil:
			if s, ok := r.births.subject(n.id); ok {
				d.subjects[n.bucket] = &keyed{s.ID, s.Key}
			}
		case n.typ == birthClaimed:
			d.claims++ // one just projected counts twice, which makes the bound stricter only
		}
	}
	for len(r.days) >= daysHeld {
		oldest := num
		for n := range r.days {
			oldest = min(oldest, n)
		}
		if oldest == num {
			return d, nil // older than all that are held: not worth holding
		}
		delete(r.days, oldest)
	}
	r.days[num] = d
	return d, nil
}

// readDay returns nil if the store does not have the day.
func (r *Ring) readDay(num uint32) (*day, error) {
	d := &day{num: num}
	found := false
	err := r.store.View(func(tx Tx) error {
		es := r.state.Load()
		b := tx.Get(bucketDay, be32(num))
		if b == nil {
			return nil
		}
		if len(b) != len(ID{}) {
			return fmt.Errorf("%w: malformed row of day %d", ErrKeyDamaged, num)
		}
		var err error
		if d.key, err = es.openRow(KindState, ID(b), tx.Get(bucketKey, keyRow(KindState, ID(b)))); err != nil {
			return err
		}
		found = true
		d.full = tx.Get(bucketFull, be32(num)) != nil
		if err := es.readBuckets(tx, d); err != nil {
			return err
		}
		return tx.Scan(bucketBlind, []byte{byte(FieldClaimed)}, func(k, v []byte) error {
			row, err := parseBlindRow(k, v)
			if err == nil && row.day == num {
				d.claims++
			}
			return err
		})
	})
	if !found || err != nil {
		return nil, err
	}
	return d, nil
}

// readBuckets fills in the keys of a day, those destroyed left out.
func (es *epochs) readBuckets(tx Tx, d *day) error {
	return tx.Scan(bucketBucket, bucketRow(d.num, 0), func(k, v []byte) error {
		if len(k) != 5 || len(v) != len(ID{}) {
			return fmt.Errorf("%w: malformed anonymous row %x", ErrKeyDamaged, k)
		}
		if binary.BigEndian.Uint32(k) != d.num {
			return ErrStop
		}
		row := tx.Get(bucketKey, keyRow(KindSubject, ID(v)))
		if row != nil && row[0] == tombstone {
			return nil
		}
		key, err := es.openRow(KindSubject, ID(v), row)
		if err != nil {
			return err
		}
		d.subjects[k[4]] = &keyed{ID(v), key}
		return nil
	})
}

// beginDay stores a new day key.
func (r *Ring) beginDay(num uint32) (*day, error) {
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	id, key := random()
	w := r.state.Load().current.seal(KindState, id, &key)
	err := r.store.Update(func(tx Tx) error {
		if err := tx.Put(bucketKey, keyRow(KindState, id), w); err != nil {
			return err
		}
		return tx.Put(bucketDay, be32(num), id[:])
	})
	if err != nil {
		return nil, fmt.Errorf("cannot store the key of day %d: %w", num, err)
	}
	return &day{num: num, key: key}, nil
}

// DropDay destroys a UTC day's key, which alone leads from a prefix to its
// pseudonym, its bucket table and its claimed names in the blind index. The
// subject keys stay: the day's records are sealed under them until retention
// ends. It is durable when it returns and may be repeated. Anonymous traffic
// dated on a dropped day begins that day afresh.
func (r *Ring) DropDay(t time.Time) error {
	num, err := dayOf(t)
	if err != nil {
		return err
	}
	r.rewrapMu.Lock()
	defer r.rewrapMu.Unlock()
	r.dayMu.Lock()
	defer r.dayMu.Unlock()
	if err := r.project(r.births.waiting()); err != nil {
		return err
	}
	err = r.store.Update(func(tx Tx) error { return dropDay(tx, num) })
	if err == nil {
		_, err = r.deleteRows(func(row blindRow) bool { return row.field == FieldClaimed && row.day == num })
	}
	// After an unknown outcome the store is asked again, too.
	r.gen.Add(1)
	delete(r.days, num)
	r.strangers.removeIf(func(s *stranger) bool { return s.day == num })
	if err != nil {
		return fmt.Errorf("cannot drop day %d: %w", num, err)
	}
	return nil
}

func dropDay(tx Tx, num uint32) error {
	if b := tx.Get(bucketDay, be32(num)); len(b) == len(ID{}) {
		if err := tx.Put(bucketKey, keyRow(KindState, ID(b)), []byte{tombstone}); err != nil {
			return err
		}
	}
	for bucket := range 256 {
		if err := tx.Delete(bucketBucket, bucketRow(num, uint8(bucket))); err != nil {
			return err
		}
	}
	if err := tx.Delete(bucketFull, be32(num)); err != nil {
		return err
	}
	return tx.Delete(bucketDay, be32(num))
}

// Claimed indexes the name that a failed attempt claimed under the pseudonym
// of the subject its record is about. It returns a birth to put into the WAL
// with that record, or nil if the name is indexed already. Strangers choose
// these names, so only so many are indexed per UTC day (WithDayClaims); the
// one birth after that says so, and ClaimsFull then lists the day.
func (r *Ring) Claimed(value string, s Subject, now time.Time) (birth []byte, err error) {
	num, err := dayOf(now)
	if err != nil {
		return nil, err
	}
	h := r.hash(hashClaim, num, s.Pseudonym+value)
	if _, ok := r.claims.get(h); ok {
		return nil, nil
	}
	if err := checkValue(value); err != nil {
		return nil, err
	}
	target, err := ParseID(s.Pseudonym)
	if err != nil {
		return nil, err
	}
	r.dayMu.Lock()
	defer r.dayMu.Unlock()
	if carry, ok := r.births.claim(h); ok {
		return carry, nil
	}
	d, err := r.loadDay(num)
	if err != nil {
		return nil, fmt.Errorf("cannot index a claimed name: %w", err)
	}
	inner := blindInner(&r.root, FieldClaimed, value)
	known, err := r.claimKnown(h, &inner, target)
	if known || err != nil {
		return nil, err
	}
	if d.claims >= r.limits.dayClaims {
		return r.claimsFull(d)
	}
	return r.bearClaim(d, h, target, &inner)
}

// claimKnown asks the store whether a claim is indexed.
func (r *Ring) claimKnown(h hash, inner *Key, target ID) (known bool, err error) {
	gen := r.gen.Load()
	err = r.store.View(func(tx Tx) error {
		return r.state.Load().targets(tx, FieldClaimed, inner, func(_ []byte, id ID) error {
			known = known || id == target
			return nil
		})
	})
	if err != nil {
		return false, fmt.Errorf("cannot look up a claimed name: %w", err)
	}
	if known {
		r.claims.put(h, struct{}{}, r.unchanged(gen))
	}
	return known, nil
}

func (r *Ring) bearClaim(d *day, h hash, target ID, inner *Key) ([]byte, error) {
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	n := &newborn{
		birth: birth{
			typ:   birthClaimed,
			id:    target,
			inner: r.state.Load().current.seal(kindClaimed, target, inner),
			day:   d.num,
		},
		hash: h,
		row:  *inner,
	}
	n.raw = n.encode()
	if err := r.births.add(n); err != nil {
		return nil, err
	}
	d.claims++
	return n.raw, nil
}

// claimsFull returns the birth that marks a day, until it is written.
func (r *Ring) claimsFull(d *day) ([]byte, error) {
	if d.full {
		return nil, nil
	}
	h := r.hash(hashFull, d.num, "")
	if carry, ok := r.births.claim(h); ok {
		return carry, nil
	}
	var marked bool
	err := r.store.View(func(tx Tx) error {
		marked = tx.Get(bucketFull, be32(d.num)) != nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot look up a claimed name: %w", err)
	}
	if marked {
		d.full = true
		return nil, nil
	}
	n := &newborn{birth: birth{typ: birthFull, day: d.num}, hash: h}
	n.raw = n.encode()
	return n.raw, r.births.add(n)
}

// ClaimsFull lists the UTC days (their midnights) on which more names were
// claimed than the index took: a search for a claimed name must read those
// days' failed attempts instead.
func (r *Ring) ClaimsFull() ([]time.Time, error) {
	var out []time.Time
	err := r.store.View(func(tx Tx) error {
		return tx.ForEach(bucketFull, func(k, _ []byte) error {
			if len(k) != 4 {
				return fmt.Errorf("%w: malformed row of a full day", ErrKeyDamaged)
			}
			out = append(out, time.Unix(int64(binary.BigEndian.Uint32(k))*secondsPerDay, 0).UTC())
			return nil
		})
	})
	return out, err
}
