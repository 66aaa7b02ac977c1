package jwtattack

import (
	"cmp"
	"slices"

	"github.com/gatebook/gatebook/internal/reason"
)

// Cases generates the whole table, sorted by ID under fixed names;
// only keys and signatures differ from one Env to the next.
func (e *Env) Cases() []Case {
	t := &table{env: e}
	for _, alg := range Algorithms {
		t.genuine(alg)
		t.damagedSignature(alg)
		t.swapped(alg)
		t.encoding(alg)
		t.otherAlgorithm(alg)
	}
	t.none()
	t.hmac()
	t.pss()
	t.pkcs1()
	t.ecdsa()
	t.eddsa()
	t.headerMembers()
	t.ownKey()
	t.keyIDs()
	t.types()
	t.jsonText()
	t.repeated()
	t.wrongCase()
	t.missingOrOdd()
	t.times()
	t.audiences()
	t.issuers()
	t.subjects()
	t.lists()
	t.otherTokens()
	t.bound()
	t.shapes()
	t.sizes()
	slices.SortFunc(t.cases, func(a, b Case) int { return cmp.Compare(a.ID(), b.ID()) })
	return t.cases
}

type table struct {
	env   *Env
	cases []Case
}

func (t *table) add(class, name, token string, want reason.Reason) {
	t.cases = append(t.cases, Case{class, name, token, want})
}

// header adds a row whose header differs from the genuine one.
func (t *table) header(class, name string, h Object, want reason.Reason) {
	t.add(class, name, t.env.Token("ES256", h, Claims()), want)
}

// claims adds a row whose claims differ from the genuine ones.
func (t *table) claims(class, name string, c Object, want reason.Reason) {
	t.add(class, name, t.env.Token("ES256", Header("ES256"), c), want)
}
