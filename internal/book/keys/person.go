package keys

import "fmt"

// person is a remembered subject whose birth is in the WAL or the store.
type person struct {
	id        ID
	pseudonym string
	key       Key
}

func (p *person) subject() Subject {
	return Subject{ID: p.id, Pseudonym: p.pseudonym, Key: p.key}
}

// Person returns the subject of a person, named by issuer and subject joined
// with '|' (1 to 4096 bytes). At first sight it makes a random key; concurrent
// first sights get the same one, each with its Birth, until Written. Any
// failure to look the person up is an error, never a substitute key.
// A remembered person costs one hash and no allocation.
func (r *Ring) Person(issuerSub string) (Subject, error) {
	h := r.hash(hashPerson, 0, issuerSub)
	if p, ok := r.people.get(h); ok {
		return p.subject(), nil
	}
	if s, ok := r.births.person(h); ok {
		return s, nil
	}
	if err := checkValue(issuerSub); err != nil {
		return Subject{}, err
	}
	inner := blindInner(&r.root, FieldIdentity, issuerSub)
	if s, ok, err := r.findPerson(h, &inner); ok || err != nil {
		return s, err
	}
	return r.bearPerson(h, &inner)
}

// Pseudonym is how frames name a person who is known; false if nobody of that
// name is. Unlike Person it makes nobody known.
func (r *Ring) Pseudonym(issuerSub string) (string, bool, error) {
	h := r.hash(hashPerson, 0, issuerSub)
	if p, ok := r.people.get(h); ok {
		return p.pseudonym, true, nil
	}
	if s, ok := r.births.person(h); ok {
		return s.Pseudonym, true, nil
	}
	if err := checkValue(issuerSub); err != nil {
		return "", false, err
	}
	inner := blindInner(&r.root, FieldIdentity, issuerSub)
	s, ok, err := r.findPerson(h, &inner)
	return s.Pseudonym, ok, err
}

// findPerson looks into the store and remembers what it finds there.
func (r *Ring) findPerson(h hash, inner *Key) (s Subject, ok bool, err error) {
	gen := r.gen.Load()
	err = r.store.View(func(tx Tx) error {
		es := r.state.Load()
		return es.targets(tx, FieldIdentity, inner, func(_ []byte, id ID) error {
			row := tx.Get(bucketKey, keyRow(KindSubject, id))
			if ok || row != nil && row[0] == tombstone || tx.Get(bucketUnbound, id[:]) != nil {
				return nil
			}
			key, err := es.openRow(KindSubject, id, row)
			if err != nil {
				return err
			}
			s, ok = Subject{ID: id, Pseudonym: id.String(), Key: key}, true
			return nil
		})
	})
	if err != nil {
		return Subject{}, false, fmt.Errorf("cannot look up a person: %w", err)
	}
	if ok {
		r.people.put(h, person{s.ID, s.Pseudonym, s.Key}, r.unchanged(gen))
	}
	return s, ok, nil
}

// bearPerson makes a subject unless another goroutine has just done so.
func (r *Ring) bearPerson(h hash, inner *Key) (Subject, error) {
	r.missMu.Lock()
	defer r.missMu.Unlock()
	if s, ok := r.births.person(h); ok {
		return s, nil
	}
	// The newborn of a moment ago may have moved to the store since.
	if s, ok, err := r.findPerson(h, inner); ok || err != nil {
		return s, err
	}
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	e := r.state.Load().current
	id, key := random()
	n := &newborn{
		birth: birth{
			typ:   birthPerson,
			id:    id,
			key:   e.seal(KindSubject, id, &key),
			inner: e.seal(kindIdentity, id, inner),
		},
		hash: h,
		key:  key,
		row:  *inner,
	}
	n.raw = n.encode()
	if err := r.births.add(n); err != nil {
		return Subject{}, err
	}
	return Subject{ID: id, Pseudonym: id.String(), Key: key, Birth: n.raw}, nil
}
