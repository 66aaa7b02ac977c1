package gate

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// Alerts name in the words of the OWASP Application Logging Vocabulary what a
// series of refusals looks like. The refusals are records already, one by one or
// counted in a fold; an alert is one record that says how many there were of one
// kind by one address prefix or person, from when to when, and which was the
// first. Of each such key there is at most one alert in a window.

// Names of the alerts.
const (
	AlertLoginFail    = "authn_login_fail"           // credentials that fail
	AlertLoginFailMax = "authn_login_fail_max"       // so many that they are held back
	AlertTokenReuse   = "authn_token_reuse"          // a token that was used before
	AlertAuthzFail    = "authz_fail"                 // somebody who is known asks for what they may not do
	AlertRateLimit    = "excess_rate_limit_exceeded" // a limit is run into again and again
	AlertInput        = "input_validation_fail"      // requests that are not canonical
	AlertExcess404    = "malicious_excess_404"       // paths that do not exist
	AlertCrash        = "sys_crash"                  // a panic
)

// DefaultAlerts is how many events in a window make an alert. Less than one
// means never.
func DefaultAlerts() map[string]int64 {
	return map[string]int64{
		AlertLoginFail: 20, AlertLoginFailMax: 1, AlertTokenReuse: 1, AlertAuthzFail: 20,
		AlertRateLimit: 20, AlertInput: 20, AlertExcess404: 50, AlertCrash: 1,
	}
}

// AlertRules is what a snapshot declares about alerts. The zero value makes none.
type AlertRules struct {
	Window time.Duration    // 0: no alerts
	Least  map[string]int64 // by name, how many events in a window make an alert
}

// maxAlertKeys bounds how many keys are told apart; above that there is one for
// everybody for each name.
const maxAlertKeys = 4096

// alertKey is what the events of an alert have in common.
type alertKey struct {
	name   string
	prefix netip.Prefix // of an unknown caller
	who    string       // issuer and subject joined by '|', or a claimed name in the form of failureKey
}

// alertEvents are events of a key that no alert has told yet.
type alertEvents struct {
	count       int64
	first, last int64 // µs since the Unix epoch
	link        record.ID
	why         reason.Reason
	sub         string // of a known caller
	claimed     string

	told bool  // an alert of this series is written
	next int64 // µs: no other alert before that
}

// alerts counts events. It is live state.
type alerts struct {
	mu    sync.Mutex
	table map[alertKey]*alertEvents // under mu
}

// alertOf names what a refusal looks like, "" if like nothing.
func alertOf(why reason.Reason) string {
	switch why {
	case reason.NoRoute:
		return AlertExcess404
	case reason.Panic:
		return AlertCrash
	case reason.TokenReplayed, reason.TokenReuseDetected:
		return AlertTokenReuse
	case reason.MalformedRequest, reason.AmbiguousFraming, reason.BadPath, reason.BadHost, reason.HeaderTooLarge, reason.BodyTooLarge, reason.UnsupportedProtocol:
		return AlertInput
	case reason.DeniedByPolicy, reason.DeniedByDefault, reason.ScopeMissing:
		return AlertAuthzFail
	case reason.RateLimited, reason.QuotaExceeded, reason.ConcurrencyLimited, reason.ConnectionLimited:
		return AlertRateLimit
	}
	if guesses(why) {
		return AlertLoginFail
	}
	return ""
}

// alarm counts an exchange that did not go as asked.
func (x *exchange) alarm() {
	if x.why == "" || x.snap.alerts.Window == 0 {
		return
	}
	if x.rec.Kind == record.KindToken && x.why == reason.TokenReuseDetected {
		return // the token service has raised the alert itself, at once and for each family
	}
	if x.refusal != nil && x.refusal.Told {
		return
	}
	ev := alertEvents{count: 1, first: x.start.UnixMicro(), last: x.start.UnixMicro(), link: x.id, why: x.why}
	key := alertKey{prefix: x.snap.recordPrefix(x.client)}
	if p := x.principal; p != nil {
		key.prefix, key.who, ev.sub = netip.Prefix{}, p.Issuer+"|"+p.Subject, p.Subject
	}
	if key.name = alertOf(x.why); x.isFailureLimit(x.limited) {
		key.name = AlertLoginFailMax
	}
	x.g.alerts.add(&x.snap.alerts, key, &ev)
	if x.failMax {
		key.name = AlertLoginFailMax
		x.g.alerts.add(&x.snap.alerts, key, &ev)
	}
	if x.spread {
		ev.claimed = x.refusal.Claimed
		key = alertKey{name: AlertLoginFailMax, who: failureKey("", x.refusal.Issuer, ev.claimed)}
		x.g.alerts.add(&x.snap.alerts, key, &ev)
	}
}

func (x *exchange) isFailureLimit(rule *ratelimit.Rule) bool {
	return rule != nil && (rule == x.snap.failures.Prefix || rule == x.snap.failures.Name)
}

// add counts an event; without room it counts with everybody's.
func (a *alerts) add(rules *AlertRules, key alertKey, ev *alertEvents) {
	if key.name == "" || rules.Least[key.name] < 1 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	have := a.table[key]
	if have == nil {
		if len(a.table) >= maxAlertKeys {
			key = alertKey{name: key.name}
			have = a.table[key]
		}
		if have == nil {
			have = &alertEvents{}
			key.who = strings.Clone(key.who)
			a.table[key] = have
		}
	}
	have.merge(ev, key == alertKey{name: key.name})
}

// merge adds what ev counted. What is about everybody is about nobody.
func (e *alertEvents) merge(ev *alertEvents, everybody bool) {
	if e.count == 0 {
		e.first, e.link, e.why = ev.first, ev.link, ev.why
		if !everybody {
			e.sub, e.claimed = strings.Clone(ev.sub), strings.Clone(ev.claimed)
		}
	}
	e.count += ev.count
	e.first, e.last = min(e.first, ev.first), max(e.last, ev.last)
}

// due takes out what is to be told at now, or all of it.
func (a *alerts) due(rules *AlertRules, now int64, all bool) map[alertKey]alertEvents {
	window := rules.Window.Microseconds()
	out := map[alertKey]alertEvents{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, e := range a.table {
		least := rules.Least[key.name]
		switch {
		case window == 0 || least < 1:
			delete(a.table, key) // not asked for any more
		case e.count > 0 && (e.told || e.count >= least):
			if all || now >= e.next {
				out[key] = *e
				*e = alertEvents{told: true, next: now + window}
			}
		case e.told && now >= e.next, !e.told && now-e.first >= window:
			delete(a.table, key) // over, or never enough
		}
	}
	return out
}

// giveBack returns events of which the alert could not be written.
func (a *alerts) giveBack(events map[alertKey]alertEvents) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, e := range events {
		have := a.table[key]
		if have == nil {
			have = &alertEvents{}
			a.table[key] = have
		}
		later := *have
		*have = e
		have.told, have.next = later.told, 0
		if later.count > 0 {
			have.merge(&later, true)
		}
	}
}

// alertEvery is how often it is looked whether an alert is due.
const alertEvery = time.Second

// RunAlerts writes alerts until ctx ends; then those that are left. The book
// must stay open until it returns.
func (g *Gate) RunAlerts(ctx context.Context) error {
	tick := time.NewTicker(alertEvery)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-tick.C:
		}
		g.writeAlerts(context.WithoutCancel(ctx), !running)
	}
	return nil
}

// writeAlerts writes the alerts that are due, or all. What cannot be written is
// tried again.
func (g *Gate) writeAlerts(ctx context.Context, all bool) {
	snap := g.snapshot.Load()
	events := g.alerts.due(&snap.alerts, g.now().UnixMicro(), all)
	for key, e := range maps.Clone(events) {
		if err := g.writeAlert(ctx, snap, key, &e); err != nil {
			g.log.Error("an alert could not be recorded yet", "alert", key.name, "events", e.count, "err", err)
			break
		}
		delete(events, key)
	}
	if len(events) > 0 {
		g.alerts.giveBack(events)
	}
}

func (g *Gate) writeAlert(ctx context.Context, snap *Snapshot, key alertKey, e *alertEvents) error {
	if snap.recorder == nil {
		return errors.New("the snapshot has no recorder")
	}
	now := g.now()
	rec := &record.Record{
		ID: g.newID(now), Time: now.UnixMicro(), Kind: record.KindAlert, Outcome: record.Failure, Node: snap.node, Snap: snap.id,
		Route: record.None, Op: record.None, Authn: record.Authn{Method: record.None}, Client: record.Client{Prefix: record.None},
		Error: record.Error{Origin: e.why.Origin(), Reason: string(e.why)}, Links: []string{e.link.String()},
		Event: record.Event{Name: key.name, Count: e.count, Exact: true, First: e.first, Last: e.last, Cause: string(e.why)},
	}
	if key.prefix.IsValid() {
		rec.Client.Prefix = key.prefix.String()
	}
	if e.sub != "" {
		rec.Raw.IssuerSub, rec.Personal.Sub = key.who, e.sub
	}
	rec.Personal.Claimed = e.claimed
	return snap.recorder.Commit(ctx, record.Ref{}, rec, record.Written)
}
