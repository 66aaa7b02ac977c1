package gate

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// guardAuth judges "Bearer NAME:VERDICT": good, known (good, and found so
// before), or a reason. It counts how often it was asked to judge.
type guardAuth struct {
	judged atomic.Int64
}

func (a *guardAuth) parts(r *canon.Request) (name, verdict string) {
	v, _ := r.Get("authorization")
	name, verdict, _ = strings.Cut(strings.TrimPrefix(v, "Bearer "), ":")
	return name, verdict
}

func (a *guardAuth) Authenticate(_ context.Context, r *canon.Request) (*authn.Principal, error) {
	name, verdict := a.parts(r)
	if verdict == "" {
		return nil, authn.ErrNoCredential
	}
	a.judged.Add(1)
	if verdict == "good" || verdict == "known" {
		return &authn.Principal{Method: "jwt", Issuer: "corp", Subject: name, IssuedAt: epoch}, nil
	}
	return nil, &authn.Failure{Reason: reason.Reason(verdict), Claimed: name, Issuer: "corp"}
}

func (a *guardAuth) Known(r *canon.Request) bool {
	_, verdict := a.parts(r)
	return verdict == "known"
}

func (a *guardAuth) Claims(r *canon.Request) (issuer, name string) {
	name, _ = a.parts(r)
	return "corp", name
}

// guardHouse is a gate that limits failures, with a clock and clients at will.
type guardHouse struct {
	*house
	auth *guardAuth
	past atomic.Int64 // ns since epoch
}

func newGuardHouse(t *testing.T, l FailureLimits, a AlertRules) *guardHouse {
	g := &guardHouse{auth: &guardAuth{}}
	g.house = newHouse(t, houseConfig{
		tune: func(r *Route) { r.Authenticators = []Authenticator{g.auth} },
		snap: func(c *SnapshotConfig) {
			c.Listeners[0].Trusted = append(c.Listeners[0].Trusted, netip.MustParsePrefix("127.0.0.0/8"))
			c.Failures, c.Alerts = l, a
		},
	})
	g.gate.now = func() time.Time { return epoch.Add(time.Duration(g.past.Load())) }
	return g
}

func (g *guardHouse) pass(d time.Duration) { g.past.Add(int64(d)) }

// ask sends a request from an address and returns the status and its record.
func (g *guardHouse) ask(t *testing.T, from, credential string) (*http.Response, record.Record) {
	t.Helper()
	fields := []string{"X-Forwarded-For", from, "Authorization", ""}
	if credential != "" {
		fields[3] = "Bearer " + credential
	}
	resp, _, err := do(t, g.h1, g.request(t, "GET", "/v1/orders/7", nil, fields...))
	if err != nil {
		t.Fatal(err)
	}
	return resp, g.one(t).rec
}

func failLimits() FailureLimits {
	rule := func(name string, n int64) *ratelimit.Rule {
		return &ratelimit.Rule{Name: "failed_logins." + name, Key: ratelimit.KeyPrefix, Rate: n, Per: time.Minute, Burst: n}
	}
	return FailureLimits{Prefix: rule("rate", 10), Name: rule("name", 4), Spread: rule("spread", 30)}
}

// times asks n times and demands one status.
func (g *guardHouse) times(t *testing.T, n int, from, credential string, status int) {
	t.Helper()
	for i := range n {
		if resp, rec := g.ask(t, from, credential); resp.StatusCode != status {
			t.Fatalf("%s from %s, %d of %d: status %d (%s), want %d", credential, from, i+1, n, resp.StatusCode, rec.Error.Reason, status)
		}
	}
}

// Failures up to the limit are judged; the next is answered 429 with nothing
// judged, in the record and to the client as any other limit.
func TestFailuresAreHeldBack(t *testing.T) {
	g := newGuardHouse(t, failLimits(), AlertRules{})
	for i := range 10 { // a name each, so that only the prefix counts
		g.times(t, 1, "192.0.2.1", fmt.Sprintf("user%d:token_signature", i), 401)
	}
	judged := g.auth.judged.Load()
	resp, rec := g.ask(t, "192.0.2.1", "user99:token_signature")
	if resp.StatusCode != 429 || g.auth.judged.Load() != judged {
		t.Fatalf("status %d, judged %d more", resp.StatusCode, g.auth.judged.Load()-judged)
	}
	if resp.Header.Get("Retry-After") != "6" || resp.Header.Get("WWW-Authenticate") != "" || !strings.Contains(resp.Header.Get("RateLimit-Policy"), "failed_logins.rate") {
		t.Errorf("%v", resp.Header)
	}
	if rec.Error != (record.Error{Origin: "limit", Reason: "rate_limited", Phase: "authn"}) || rec.Limit.Rule != "failed_logins.rate" || rec.Limit.RetryS != 6 ||
		rec.Authn.Outcome != "failed" || rec.Authn.Method != record.None || !rec.Raw.Fold || rec.Personal.Claimed != "" {
		t.Errorf("record %+v", rec)
	}
	if g.gate.HeldBack() != 1 {
		t.Errorf("held back: %d", g.gate.HeldBack())
	}
	// Good credentials that nobody has seen yet wait with the others; those that
	// were found good before, and requests without any, do not.
	g.times(t, 1, "192.0.2.1", "alice:good", 429)
	g.times(t, 3, "192.0.2.1", "alice:known", 200)
	g.times(t, 3, "192.0.2.1", "", 401)
	// Another address, and another of the same network.
	g.times(t, 1, "192.0.2.2", "alice:good", 200)
	// A place comes free after a tenth of the minute, and all after all of it.
	g.pass(6 * time.Second)
	g.times(t, 1, "192.0.2.1", "mallory:token_signature", 401)
	g.times(t, 1, "192.0.2.1", "mallory:token_signature", 429)
	g.pass(time.Minute)
	g.times(t, 1, "192.0.2.1", "alice:good", 200)
	// IPv6 counts by the network that a site is given.
	for i := range 10 {
		g.times(t, 1, fmt.Sprintf("2001:db8:0:1::%d", i+1), fmt.Sprintf("v%d:token_signature", i), 401)
	}
	g.times(t, 1, "2001:db8:0:1:ffff::1", "alice:good", 429)
	g.times(t, 1, "2001:db8:0:2::1", "alice:good", 200)
}

// A success in between does not give the guesser new tries.
func TestSuccessForgivesNothing(t *testing.T) {
	g := newGuardHouse(t, failLimits(), AlertRules{})
	for i := range 10 {
		g.times(t, 1, "192.0.2.1", fmt.Sprintf("user%d:token_signature", i), 401)
		g.times(t, 1, "192.0.2.1", "accomplice:known", 200)
	}
	g.times(t, 1, "192.0.2.1", "user:token_signature", 429)
}

// Which failures count: every reason of the origin identity is in one list.
func TestWhichFailuresCount(t *testing.T) {
	no := strings.Fields("no_credential token_expired token_not_yet token_too_old key_expired session_expired binding_required dpop_nonce stepup_required issuer_unavailable cross_site")
	yes := strings.Fields("two_credentials token_malformed token_algorithm token_key_unknown token_signature token_lifetime_exceeded token_audience token_issuer token_type token_replayed token_reuse_detected token_revoked token_inactive binding_mismatch dpop_proof key_unknown key_revoked")
	for _, r := range reason.All() {
		if r.Origin() != reason.OriginIdentity {
			if guesses(r) {
				t.Errorf("%s counts as a guess", r)
			}
			continue
		}
		if in, out := slices.Contains(yes, string(r)), slices.Contains(no, string(r)); in == out || guesses(r) != in {
			t.Errorf("%s: counts %v, in the lists %v %v", r, guesses(r), in, out)
		}
	}
	g := newGuardHouse(t, failLimits(), AlertRules{})
	for _, r := range no[1:] {
		resp, _ := g.ask(t, "192.0.2.1", "alice:"+r)
		g.times(t, 15, "192.0.2.1", "alice:"+r, resp.StatusCode)
	}
	g.times(t, 1, "192.0.2.1", "alice:good", 200)
}

// TestBypassAutheliaCVE202524806: there is one bucket for a name, however it is
// written, and for the names of one issuer only (Authelia counted name and e-mail
// apart, and CVE-2026-47203 had names in other case).
func TestBypassAutheliaCVE202524806(t *testing.T) {
	g := newGuardHouse(t, failLimits(), AlertRules{})
	for _, name := range []string{"Alice@Example.com", "alice@example.com", " ALICE@EXAMPLE.COM", "aLICE@example.com"} {
		g.times(t, 1, "192.0.2.1", name+":token_signature", 401)
	}
	for _, name := range []string{"alice@example.com", "ALICE@example.com ", "alice@EXAMPLE.com"} {
		g.times(t, 1, "192.0.2.1", name+":token_signature", 429)
	}
	_, rec := g.ask(t, "192.0.2.1", "ALICE@example.com:token_signature")
	if rec.Limit.Rule != "failed_logins.name" || rec.Personal.Claimed != "ALICE@example.com" {
		t.Errorf("record %+v %+v", rec.Limit, rec.Personal)
	}
	for _, same := range [][2]string{{"\u212aelvin", "kelvin"}, {"STRASSE", "strasse"}, {"ſ", "s"}, {"Σ", "ς"}, {"al\u200bice", "alice"}} {
		if failureKey("p", "i", same[0]) != failureKey("p", "i", same[1]) {
			t.Errorf("%q and %q have a bucket each", same[0], same[1])
		}
	}
	for _, other := range [][2]string{{"alice", "alic"}, {"a|b", "a b"}} {
		if failureKey("p", "i", other[0]) == failureKey("p", "i", other[1]) {
			t.Errorf("%q and %q share a bucket", other[0], other[1])
		}
	}
	if failureKey("p", "i", "a") == failureKey("p", "j", "a") || failureKey("p", "i", "a") == failureKey("q", "i", "a") {
		t.Error("two issuers or two prefixes share a bucket")
	}
}

// TestStrangersLockNobodyOut: a stranger who uses somebody's name, from anywhere
// and as often as they like, never keeps that person out; of one address only
// those requests wait that claim that name.
func TestStrangersLockNobodyOut(t *testing.T) {
	g := newGuardHouse(t, failLimits(), AlertRules{Window: time.Minute, Least: DefaultAlerts()})
	for i := range 20 { // from twenty addresses, up to the limit of each
		g.times(t, 4, fmt.Sprintf("198.51.100.%d", i+1), "alice:token_signature", 401)
		g.times(t, 1, fmt.Sprintf("198.51.100.%d", i+1), "alice:token_signature", 429)
	}
	g.times(t, 5, "192.0.2.1", "alice:good", 200)
	// Behind the address that the stranger shares with others, the others go on.
	g.times(t, 5, "198.51.100.1", "bob:good", 200)
	g.times(t, 1, "198.51.100.1", "alice:known", 200)
	// That so many claimed the name is an alert of its own, without an address.
	alert := g.alerts(t)
	var spread []record.Record
	for _, r := range alert {
		if r.Personal.Claimed != "" {
			spread = append(spread, r)
		}
	}
	if len(spread) != 1 || spread[0].Event.Name != AlertLoginFailMax || spread[0].Personal.Claimed != "alice" || spread[0].Client.Prefix != record.None || spread[0].Event.Count != 51 {
		t.Errorf("alerts of the name: %+v", spread)
	}
}

// Without failures nobody is asked about, and with count only nobody is refused.
func TestFailureLimitModes(t *testing.T) {
	g := newGuardHouse(t, FailureLimits{}, AlertRules{})
	g.times(t, 30, "192.0.2.1", "u:token_signature", 401)
	l := failLimits()
	l.CountOnly = true
	g = newGuardHouse(t, l, AlertRules{Window: time.Minute, Least: DefaultAlerts()})
	g.times(t, 29, "192.0.2.1", "u:token_signature", 401)
	if got := g.alertCounts(t)[AlertLoginFailMax]; got != 26 {
		t.Errorf("%d requests at or over the limit, want those from the fourth of the name on", got)
	}
	bad := failLimits()
	bad.Prefix.Key = ratelimit.KeySubject
	if _, err := NewSnapshot(SnapshotConfig{ID: "x", Node: "n", Recorder: newFakeBook(), Failures: bad}); err == nil {
		t.Error("a limit on failures among those of subjects is taken")
	}
}

// alerts writes what is due and returns it.
func (g *guardHouse) alerts(t *testing.T) (out []record.Record) {
	t.Helper()
	g.gate.writeAlerts(context.Background(), false)
	for {
		select {
		case c := <-g.book.done:
			if c.rec.Kind != record.KindAlert || c.err != nil {
				t.Fatalf("%+v, %v", c.rec, c.err)
			}
			out = append(out, c.rec)
		default:
			return out
		}
	}
}

func (g *guardHouse) alertCounts(t *testing.T) map[string]int64 {
	t.Helper()
	out := map[string]int64{}
	for _, r := range g.alerts(t) {
		out[r.Event.Name] += r.Event.Count
	}
	return out
}

func TestAlerts(t *testing.T) {
	rules := AlertRules{Window: time.Minute, Least: map[string]int64{AlertLoginFail: 5, AlertAuthzFail: 3, AlertTokenReuse: 1}}
	g := newGuardHouse(t, FailureLimits{}, rules)
	denied := atomic.Bool{}
	g.routes[0].Engine = policy(func(r *authz.Request) authz.Decision {
		if denied.Load() {
			return authz.Decision{Reason: reason.DeniedByPolicy, Policies: []string{"p"}, Set: "s"}
		}
		return allowAll(r)
	})
	expect := func(what string, want map[string]int64) []record.Record {
		t.Helper()
		got := g.alerts(t)
		sums := map[string]int64{}
		for _, r := range got {
			sums[r.Event.Name] += r.Event.Count
		}
		if !maps.Equal(sums, want) {
			t.Errorf("%s: %v, want %v", what, sums, want)
		}
		return got
	}
	g.times(t, 4, "192.0.2.1", "a:token_signature", 401)
	expect("below the threshold", map[string]int64{})
	g.pass(10 * time.Second)
	_, fifth := g.ask(t, "192.0.2.77", "b:token_malformed") // another address of the same network
	_ = fifth
	got := expect("at the threshold", map[string]int64{AlertLoginFail: 5})
	if len(got) == 1 {
		r := got[0]
		if r.Client.Prefix != "192.0.2.0/24" || r.Event.First != epoch.UnixMicro() || r.Event.Last != epoch.Add(10*time.Second).UnixMicro() || !r.Event.Exact ||
			r.Event.Cause != "token_signature" || r.Error.Reason != "token_signature" || r.Error.Origin != "identity" || len(r.Links) != 1 ||
			r.Outcome != record.Failure || r.Personal.Sub != "" || r.Personal.IP != "" || r.Raw.IssuerSub != "" {
			t.Errorf("%+v", r)
		}
	}
	// A flood of it makes one more when the window is over, with all of them.
	for range 5 {
		g.times(t, 20, "192.0.2.1", "a:token_signature", 401)
		g.pass(5 * time.Second)
		expect("in the window", map[string]int64{})
	}
	g.pass(40 * time.Second)
	expect("after the window", map[string]int64{AlertLoginFail: 100})
	// What is left over is told, even if it is less than the threshold.
	g.times(t, 2, "192.0.2.1", "a:token_signature", 401)
	g.pass(time.Minute)
	expect("the rest", map[string]int64{AlertLoginFail: 2})
	g.pass(time.Minute)
	expect("nothing new", map[string]int64{})
	if n := len(g.gate.alerts.table); n != 0 {
		t.Errorf("%d keys are remembered of what is over", n)
	}
	// Few, and slowly: no alert.
	for range 6 {
		g.times(t, 1, "192.0.2.1", "a:token_signature", 401)
		g.pass(20 * time.Second)
		expect("slowly", map[string]int64{})
	}
	g.pass(2 * time.Minute)
	expect("", map[string]int64{})

	// Somebody who is known is told by subject, wherever they come from.
	denied.Store(true)
	for i := range 3 {
		g.times(t, 1, fmt.Sprintf("203.0.113.%d", 100*i/2+1), "carol:good", 403)
	}
	g.times(t, 2, "203.0.113.1", "dave:good", 403)
	got = expect("denied", map[string]int64{AlertAuthzFail: 3})
	if len(got) == 1 && (got[0].Raw.IssuerSub != "corp|carol" || got[0].Personal.Sub != "carol" || got[0].Client.Prefix != record.None || got[0].Event.Cause != "denied_by_policy") {
		t.Errorf("%+v", got[0])
	}
	g.times(t, 1, "203.0.113.9", "x:token_replayed", 401)
	expect("reuse", map[string]int64{AlertTokenReuse: 1})
}

// Each reason looks like one thing or like nothing.
func TestAlertNames(t *testing.T) {
	known := DefaultAlerts()
	for _, r := range reason.All() {
		name := alertOf(r)
		if _, ok := known[name]; !ok && name != "" {
			t.Errorf("%s: %q is no name of an alert", r, name)
		}
		want := ""
		switch r.Origin() {
		case reason.OriginIdentity:
			if guesses(r) {
				want = AlertLoginFail
			}
			if r == reason.TokenReplayed || r == reason.TokenReuseDetected {
				want = AlertTokenReuse
			}
		case reason.OriginUpstream, reason.OriginBook:
		default:
			continue // one by one, in alertOf
		}
		if name != want {
			t.Errorf("%s is %q, want %q", r, name, want)
		}
	}
}

// What the book does not take is told later and not lost; what is left at the end
// is told then.
func TestAlertsAreTriedAgain(t *testing.T) {
	g := newGuardHouse(t, FailureLimits{}, AlertRules{Window: time.Minute, Least: DefaultAlerts()})
	g.times(t, 25, "192.0.2.1", "a:token_signature", 401)
	g.book.mu.Lock()
	g.book.commitErr = io.ErrShortWrite
	g.book.mu.Unlock()
	g.gate.writeAlerts(context.Background(), false)
	<-g.book.done
	g.book.mu.Lock()
	g.book.commitErr = nil
	g.book.mu.Unlock()
	g.times(t, 5, "192.0.2.1", "a:token_signature", 401)
	if got := g.alertCounts(t)[AlertLoginFail]; got != 30 {
		t.Errorf("%d events are told, want 30", got)
	}
	g.times(t, 5, "192.0.2.1", "a:token_signature", 401)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.gate.RunAlerts(ctx); err != nil {
		t.Fatal(err)
	}
	if c := g.one(t); c.rec.Kind != record.KindAlert || c.rec.Event.Count != 5 {
		t.Errorf("at the end: %+v", c.rec)
	}
}

// A flood of keys takes bounded memory, and every event is in some alert.
func TestAlertsAreBounded(t *testing.T) {
	a := alerts{table: map[alertKey]*alertEvents{}}
	rules := AlertRules{Window: time.Minute, Least: map[string]int64{AlertInput: 1}}
	const n = 3 * maxAlertKeys
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := w; i < n; i += 3 {
				a.add(&rules, alertKey{name: AlertInput, prefix: netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255))}, &alertEvents{count: 1, first: 1, last: 1, why: reason.BadPath, sub: "x"})
			}
		})
	}
	wg.Wait()
	if len(a.table) > maxAlertKeys+1 {
		t.Errorf("%d keys", len(a.table))
	}
	sum := int64(0)
	for key, e := range a.due(&rules, 2, false) {
		sum += e.count
		if key == (alertKey{name: AlertInput}) && (e.sub != "" || e.count < n-maxAlertKeys) {
			t.Errorf("everybody's: %+v", e)
		}
	}
	if sum != n {
		t.Errorf("%d events of %d", sum, n)
	}
}

// A reload that asks for no alerts forgets what was counted.
func TestAlertsOff(t *testing.T) {
	a := alerts{table: map[alertKey]*alertEvents{}}
	on := AlertRules{Window: time.Minute, Least: map[string]int64{AlertInput: 1}}
	a.add(&on, alertKey{name: AlertInput}, &alertEvents{count: 1, first: 1, last: 1})
	for _, off := range []AlertRules{{}, {Window: time.Minute}} {
		a.add(&off, alertKey{name: AlertInput}, &alertEvents{count: 1})
		if got := a.due(&off, time.Now().UnixMicro(), true); len(got) != 0 || len(a.table) != 0 {
			t.Errorf("%v, %v", got, a.table)
		}
	}
}

// On the way of a request that nobody failed before, the guard costs nothing.
func BenchmarkHeldBack(b *testing.B) {
	l := failLimits()
	l.complete()
	snap := &Snapshot{failures: l, limitBits4: 32, limitBits6: 64}
	for name, failed := range map[string]bool{"no failures": false, "some failures elsewhere": true} {
		b.Run(name, func(b *testing.B) {
			g := &Gate{limiter: ratelimit.NewTable(ratelimit.Config{Start: epoch})}
			if failed {
				g.failures.last.Store(epoch.UnixNano())
			}
			x := &exchange{g: g, snap: snap, start: epoch, client: loopback, req: &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: "Bearer x"}}},
				route: &Route{CredentialFields: []string{"authorization"}, Authenticators: []Authenticator{&guardAuth{}}}}
			b.ReportAllocs()
			for b.Loop() {
				if x.heldBack() {
					b.Fatal("held back")
				}
			}
		})
	}
}
