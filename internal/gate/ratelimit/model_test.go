package ratelimit

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"
)

// model is GCRA as in the textbook, in rational arithmetic without bounds: one
// theoretical arrival time per key, in nanoseconds since start.
type model map[string]*big.Rat

func (m model) do(r *Rule, key string, now int64, o op) Result {
	t := big.NewRat(int64(r.Per), r.Rate)
	tau := new(big.Rat).Mul(t, big.NewRat(r.Burst, 1))
	at := new(big.Rat).SetInt64(now)
	k := r.Name + "\x00" + key
	tat, ok := m[k]
	if !ok || tat.Cmp(at) < 0 {
		tat = new(big.Rat).Set(at)
	}
	res := Result{Allowed: true, Limit: r.Burst}
	next := new(big.Rat).Add(tat, t)
	over := new(big.Rat).Sub(new(big.Rat).Sub(next, at), tau)
	switch {
	case o == opRefund:
		tat = new(big.Rat).Sub(tat, t)
		if tat.Cmp(at) < 0 {
			tat = at
		}
		m[k] = tat
	case over.Sign() > 0:
		res.Allowed = false
		res.RetryAfter = time.Duration(ceil(over))
	case o == opTake:
		tat = next
		m[k] = tat
	}
	debt := new(big.Rat).Sub(tat, at)
	res.Reset = time.Duration(ceil(debt))
	left := new(big.Rat).Quo(new(big.Rat).Sub(tau, debt), t)
	if left.Sign() > 0 {
		res.Remaining = new(big.Int).Quo(left.Num(), left.Denom()).Int64()
	}
	return res
}

func ceil(x *big.Rat) int64 {
	q, rem := new(big.Int).QuoRem(x.Num(), x.Denom(), new(big.Int))
	if rem.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q.Int64()
}

var modelRules = []*Rule{
	{Name: "even", Key: KeySubject, Rate: 100, Per: time.Second, Burst: 200},
	{Name: "one", Key: KeyPrefix, Rate: 1, Per: time.Second, Burst: 1},
	{Name: "thirds", Key: KeySubject, Rate: 3, Per: time.Second, Burst: 5},
	{Name: "primes", Key: KeyPrefix, Rate: 7, Per: 11 * time.Millisecond, Burst: 13},
	{Name: "fast", Key: KeyRoute, Rate: 4294967291, Per: time.Second, Burst: 4000},
	{Name: "daily", Key: KeyClient, Rate: 1_000_003, Per: 24 * time.Hour, Burst: 1_000_003},
	{Name: "monthly", Key: KeyClient, Rate: 10_000_019, Per: 30 * 24 * time.Hour, Burst: 4_000_000_000 / 400},
}

// TestModel compares every answer of the table with the model's, to the
// nanosecond, over random schedules.
func TestModel(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		table, m := NewTable(Config{Start: start}), model{}
		var now int64
		for step := range 4000 {
			rule := modelRules[rng.IntN(len(modelRules))]
			cost := int64(rule.Per) / rule.Rate
			switch rng.IntN(4) {
			case 0:
				now += rng.Int64N(3)
			case 1:
				now += rng.Int64N(cost + 2)
			case 2:
				if rng.IntN(50) == 0 {
					now += rng.Int64N(cost*rule.Burst + 2)
				}
			}
			o := opTake
			switch rng.IntN(10) {
			case 0:
				o = opPeek
			case 1:
				o = opRefund
			}
			key := fmt.Sprint("k", rng.IntN(3))
			want := m.do(rule, key, now, o)
			at := start.Add(time.Duration(now))
			if o == opRefund {
				table.Refund(rule, key, at)
				continue
			}
			if got := table.do(rule, key, at, o); got != want {
				t.Fatalf("seed %d step %d rule %s: got %+v, want %+v", seed, step, rule.Name, got, want)
			}
		}
	}
}

// TestBurst: exactly Burst requests pass at one instant, the next one passes
// when RetryAfter has gone by and not a nanosecond earlier.
func TestBurst(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for _, rule := range modelRules {
		t.Run(rule.Name, func(t *testing.T) {
			r := *rule
			r.Burst = min(r.Burst, 5000)
			table := NewTable(Config{Start: start})
			for i := range r.Burst {
				res := table.Take(&r, "k", start)
				if !res.Allowed || res.Remaining != r.Burst-1-i {
					t.Fatalf("request %d of a burst of %d: %+v", i+1, r.Burst, res)
				}
			}
			res := table.Take(&r, "k", start)
			if res.Allowed || res.Remaining != 0 || res.RetryAfter <= 0 {
				t.Fatalf("request after the burst: %+v", res)
			}
			if early := table.Take(&r, "k", start.Add(res.RetryAfter-1)); early.Allowed {
				t.Fatalf("allowed 1 ns before the announced %v", res.RetryAfter)
			}
			if then := table.Take(&r, "k", start.Add(res.RetryAfter)); !then.Allowed {
				t.Fatalf("refused at the announced %v: %+v", res.RetryAfter, then)
			}
		})
	}
}

// TestLongRun: however requests come, no span admits more than the burst and
// what flowed back during it.
func TestLongRun(t *testing.T) {
	rule := &Rule{Name: "r", Key: KeySubject, Rate: 3, Per: 10 * time.Millisecond, Burst: 4}
	start := time.Unix(1_700_000_000, 0)
	table := NewTable(Config{Start: start})
	rng := rand.New(rand.NewPCG(7, 7))
	var now time.Duration
	var admitted []time.Duration
	for range 50_000 {
		now += time.Duration(rng.Int64N(int64(2 * time.Millisecond)))
		if table.Take(rule, "k", start.Add(now)).Allowed {
			admitted = append(admitted, now)
		}
	}
	for i := range admitted {
		for n := 2; n <= 50 && i+n <= len(admitted); n++ {
			span := admitted[i+n-1] - admitted[i]
			if most := rule.Burst + int64(span)*rule.Rate/int64(rule.Per); int64(n) > most {
				t.Fatalf("%d requests within %v, at most %d are right", n, span, most)
			}
		}
	}
	if got, most := int64(len(admitted)), rule.Burst+int64(now)*rule.Rate/int64(rule.Per); got < most*9/10 {
		t.Fatalf("admitted %d of about %d possible: the limit is too strict", got, most)
	}
}
