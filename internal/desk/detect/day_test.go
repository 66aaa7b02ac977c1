package detect

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// town makes the traffic of days: 10,000 subjects by Zipf with nights and noons,
// retries, credentials that fail now and then, people who press buttons that are
// not for them, deploys, an issuer that changes its keys, a batch job at night,
// probers, offices behind one address with a client that is broken all night,
// phones that change their network and fleets that come from a dozen.
type town struct {
	rnd      *rand.Rand
	zipf     *rand.Zipf
	see      func(*record.Record)
	rec      record.Record
	subjects []string
	prefixes []string
	ops      []string
}

const (
	peopleOfTown = 10_000
	fleets       = 5  // the busiest subjects are machines
	fleetPlaces  = 12 // from so many networks
	peakRate     = 10 // exchanges a second at noon
)

func newTown(see func(*record.Record)) *town {
	c := &town{rnd: rand.New(rand.NewPCG(7, 11)), see: see}
	c.zipf = rand.NewZipf(c.rnd, 1.1, 3, peopleOfTown-1)
	for i := range peopleOfTown {
		c.subjects = append(c.subjects, fmt.Sprintf("subject-%05d", i))
	}
	for i := range 4000 {
		c.prefixes = append(c.prefixes, fmt.Sprintf("10.%d.%d.0/24", i>>8, i&0xff))
	}
	for i := range 40 {
		c.ops = append(c.ops, fmt.Sprintf("GET /v1/things%d/{id}", i))
	}
	return c
}

// where is the network that a subject comes from just now.
func (c *town) where(who int, at int64) string {
	switch {
	case who < fleets:
		return c.prefixes[who*100+c.rnd.IntN(fleetPlaces)]
	case who%4 == 0: // one of five offices
		return c.prefixes[3000+who%20/4]
	case who%10 == 1: // a phone: the carrier's gateways, another one every few minutes
		return c.prefixes[3100+(who*7+int(at/180_000_000))%6]
	}
	return c.prefixes[who%2900]
}

// exchange sends one record and, if it is of the kind that is tried again, two
// more.
func (c *town) exchange(at int64, who int) {
	r := &c.rec
	*r = record.Record{
		Time: at, Kind: record.KindRequest, Outcome: record.Success, Route: "things", Op: c.ops[c.rnd.IntN(20)], Method: "GET", Status: 200,
		DurUS: int64(c.rnd.ExpFloat64() * 40_000), Subject: c.subjects[who], Client: record.Client{Prefix: c.where(who, at)},
		Authn: record.Authn{Method: "jwt", Issuer: "corp", Outcome: "ok"}, Authz: record.Authz{Decision: "allow"},
	}
	switch p := c.rnd.Float64(); {
	case p < 0.010:
		c.unauthenticated()
	case p < 0.025:
		// Of the operations that are not for them people meet the same few.
		c.fail(403, "denied_by_default")
		r.Authz.Decision, r.Op = "deny", c.ops[20+who%10+c.rnd.IntN(6)]
	case p < 0.035:
		for range 2 {
			c.fail(502, "connect_refused")
			c.see(r)
			r.Time += 1_000_000
		}
		r.Outcome, r.Status, r.Error = record.Success, 200, record.Error{}
	case p < 0.15:
		r.Method, r.Op = "POST", "POST /v1/things"
	}
	c.see(r)
}

func (c *town) fail(status int, why string) {
	c.rec.Outcome, c.rec.Status, c.rec.Error.Reason = record.Failure, status, why
}

// unauthenticated makes of the exchange one with a credential that fails.
func (c *town) unauthenticated() {
	why := "token_expired"
	switch p := c.rnd.Float64(); {
	case p < 0.15:
		why = "no_credential"
	case p < 0.25:
		why = "token_malformed"
	case p < 0.35:
		why = "key_unknown"
	case p < 0.40:
		why = "token_signature"
	case p < 0.45:
		why = "stepup_required"
	}
	c.fail(401, why)
	c.rec.Subject, c.rec.Authn.Outcome, c.rec.Authz = "stranger "+c.rec.Client.Prefix, "failed", record.Authz{}
}

// machine sends one record of a machine.
func (c *town) machine(at int64, who, prefix, method string, status int, why string) {
	c.rec = record.Record{
		Time: at, Kind: record.KindRequest, Outcome: record.Success, Route: "things", Op: method + " /v1/export", Method: method, Status: status,
		DurUS: 5000, Subject: who, Client: record.Client{Prefix: prefix}, Authn: record.Authn{Method: "apikey", Outcome: "ok"}, Authz: record.Authz{Decision: "allow"},
	}
	if why != "" {
		c.fail(status, why)
		c.rec.Authn.Outcome, c.rec.Authz = "failed", record.Authz{}
	}
	c.see(&c.rec)
}

// day makes one day that begins at a time; more adds to each second of it.
func (c *town) day(number int, start int64, more func(second int, at int64)) {
	for s := range 24 * 3600 {
		at := start + int64(s)*1_000_000
		hour := float64(s) / 3600
		rate := peakRate * (0.08 + 0.92*math.Pow(math.Sin(math.Pi*hour/24), 4))
		n := int(rate)
		if c.rnd.Float64() < rate-float64(n) {
			n++
		}
		for range n {
			who := int(c.zipf.Uint64())
			if who%4 == 0 && who >= fleets && (hour < 7 || hour > 19) {
				continue // the offices are empty
			}
			c.exchange(at+c.rnd.Int64N(1_000_000), who)
		}
		c.clockwork(number, s, at)
		if more != nil {
			more(s, at)
		}
	}
}

// clockwork is what comes by the clock.
func (c *town) clockwork(number, s int, at int64) {
	hour := s / 3600
	if s%5 == 0 {
		c.machine(at, "stranger 10.200.0.0/24", "10.200.0.0/24", "GET", 200, "")
	}
	if s%10 == 0 {
		c.machine(at, "prober", "10.200.1.0/24", "GET", 200, "")
	}
	if hour == 2 && s%3600 < 1800 { // the batch job
		for i := range 8 {
			c.machine(at+int64(i)*100_000, "batch", "10.200.2.0/24", "GET", 200, "")
		}
	}
	if number > 0 && s%30 == 0 { // an old key in an office, all day and night
		c.machine(at, "stranger", c.prefixes[3000], "GET", 401, "key_unknown")
	}
	if (hour == 11 || hour == 16) && s%3600 < 90 { // a deploy: what is refused is tried again by everybody
		for range 20 {
			c.machine(at, c.subjects[c.rnd.IntN(500)], c.prefixes[c.rnd.IntN(500)], "GET", 503, "no_healthy_target")
		}
	}
	if hour == 13 && s%3600 < 300 && number%2 == 1 { // the issuer has new keys
		for range 5 {
			c.machine(at, "stranger", c.prefixes[c.rnd.IntN(2900)], "GET", 401, "token_key_unknown")
		}
	}
}

// TestNormalDays: three normal days, from the first hour on that detection knows,
// raise no alert. The fourth has five attacks: each is told in time, and nothing
// else is.
func TestNormalDays(t *testing.T) {
	g, err := newEngine(Builtin())
	if err != nil {
		t.Fatal(err)
	}
	var index uint64
	var found []finding
	c := newTown(func(r *record.Record) {
		index++
		r.ID[15], r.ID[14], r.ID[13] = byte(index), byte(index>>8), byte(index>>16)
		g.see(index, r)
		found = append(found, g.findings...)
		g.findings = g.findings[:0]
	})
	midnight := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC).UnixMicro()
	day := int64(24 * 3600 * 1_000_000)
	for n := range 3 {
		c.day(n, midnight+int64(n)*day, nil)
		for _, f := range found {
			t.Errorf("day %d: %s about %s, %d from %s to %s", n, f.rule.Name, f.key, f.count, time.UnixMicro(f.first).UTC(), time.UnixMicro(f.last).UTC())
		}
		found = nil
	}
	t.Logf("%d records in three days", index)
	start := midnight + 3*day
	c.day(3, start, c.attacks)
	want := []attack{
		{"credential_stuffing", "*", 9 * 3600, 600},
		{"token_replay", c.subjects[4321], 10*3600 + 1800, 600},
		{"scraping", c.subjects[777], 12 * 3600, 600},
		{"privilege_probing", c.subjects[2222], 15 * 3600, 600},
		{"guessed_credential", "10.250.0.0/24", 17 * 3600, 3600},
	}
	have := make([]bool, len(want))
	for _, f := range found {
		after := (f.last - start) / 1_000_000
		t.Logf("%s about %s, %d after %ds", f.rule.Name, f.key, f.count, after)
		i := slices.IndexFunc(want, func(a attack) bool { // it may go on, and is told again then
			return a.rule == f.rule.Name && a.key == f.key && after >= a.begin && after < a.begin+5400
		})
		if i < 0 {
			t.Errorf("%s about %s is no attack", f.rule.Name, f.key)
			continue
		}
		have[i] = have[i] || after <= want[i].begin+want[i].window
	}
	for i, a := range want {
		if !have[i] {
			t.Errorf("%s about %s was not told", a.rule, a.key)
		}
	}
}

// attack is one that must be told within its window, in seconds.
type attack struct {
	rule, key     string
	begin, window int64
}

// attacks are those of the fourth day.
func (c *town) attacks(s int, at int64) {
	switch hour := s / 3600; {
	case hour == 9 && s%2 == 0: // a botnet: every address tries once in a while
		c.machine(at, "stranger", fmt.Sprintf("172.%d.%d.0/24", 16+s%15, s/15%250), "POST", 401, "key_unknown")
	case hour == 10 && s%3600 >= 1800 && s%3600 < 2400 && s%20 == 0: // a token that is shared on many machines
		c.machine(at, c.subjects[4321], fmt.Sprintf("172.20.%d.0/24", s/20%250), "GET", 200, "")
	case hour == 12 && s%3600 < 900: // a scraper
		for i := range 8 {
			c.machine(at+int64(i)*100_000, c.subjects[777], c.prefixes[777], "GET", 200, "")
		}
	case hour == 15 && s%3600 < 600 && s%30 == 0: // who looks for what is open
		c.machine(at, c.subjects[2222], c.prefixes[1], "GET", 200, "")
		c.rec.Authz.Decision, c.rec.Op = "deny", fmt.Sprintf("GET /v1/admin%d", s/30)
		c.fail(403, "denied_by_default")
		c.see(&c.rec)
	case hour == 17 && s%120 == 0 && s%3600 < 3000: // slow guesses from one address
		c.machine(at, "stranger", "10.250.0.0/24", "POST", 401, "key_unknown")
	case s == 17*3600+3001: // one of which is right
		c.machine(at, c.subjects[99], "10.250.0.0/24", "POST", 200, "")
	}
}
