package server

import (
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/obs"
)

// failureLimits are the limits on failed authentication. Their names have a dot,
// which that of no configured limit has.
func failureLimits(d *config.Detect) gate.FailureLimits {
	rule := func(name string, r config.Rate) *ratelimit.Rule {
		return &ratelimit.Rule{Name: "failed_logins." + name, Key: ratelimit.KeyPrefix, Rate: r.Count, Per: r.Per, Burst: r.Count}
	}
	l := &d.FailedLogins
	return gate.FailureLimits{
		Prefix: rule("rate", l.Rate), Name: rule("name", l.Name), Spread: rule("spread", l.Spread),
		CountOnly: l.Action == config.ActionCount,
	}
}

func alertRules(d *config.Detect) gate.AlertRules {
	a := &d.Alerts
	return gate.AlertRules{Window: d.Window.Std(), Least: map[string]int64{
		gate.AlertLoginFail: int64(a.LoginFail), gate.AlertLoginFailMax: int64(a.LoginFailMax), gate.AlertTokenReuse: int64(a.TokenReuse),
		gate.AlertAuthzFail: int64(a.AuthzFail), gate.AlertRateLimit: int64(a.RateLimit), gate.AlertInput: int64(a.Input),
		gate.AlertExcess404: int64(a.Excess404), gate.AlertCrash: int64(a.Crash),
	}}
}

// authnCounters are what authentication cost and what was not spent on it.
func (s *Server) authnCounters() []obs.Counter {
	one := func(read func() uint64) func(func(float64, ...string)) {
		return func(add func(value float64, labels ...string)) { add(float64(read())) }
	}
	return []obs.Counter{
		{
			Name: "gatebook_alerts_total", Labels: []string{"name"}, Help: "Alert records, by name.",
			Read: func(add func(value float64, labels ...string)) {
				s.book.Alerts(func(name string, n uint64) { add(float64(n), name) })
			},
		},
		{Name: "gatebook_authn_held_back_total", Help: "Requests answered 429 before their credential was looked at, because too many had failed.", Read: one(s.gate.HeldBack)},
		{
			Name: "gatebook_authn_verifications_total", Labels: []string{"turn"},
			Help: "Signatures of tokens and proofs that were checked (at_once, or waited for their turn), and requests for which no turn came (refused).",
			Read: func(add func(value float64, labels ...string)) {
				c := s.guards.slots.Costs()
				add(float64(c.AtOnce), "at_once")
				add(float64(c.Waited), "waited")
				add(float64(c.Refused), "refused")
			},
		},
		{
			Name: "gatebook_authn_fetches_total", Labels: []string{"issuer", "outcome"},
			Help: "Fetches of an issuer's keys: good, failed, and withheld because the budget for unknown key ids or for retries was spent.",
			Read: func(add func(value float64, labels ...string)) {
				for name, j := range s.now.Load().parts.issuers {
					c := j.Costs()
					add(float64(c.Good), name, "good")
					add(float64(c.Failed), name, "failed")
					add(float64(c.Withheld), name, "withheld")
				}
			},
		},
	}
}

// verifyingGauges are how many signatures are being checked.
func (s *Server) verifyingGauges() []obs.Gauge {
	return []obs.Gauge{
		{Name: "gatebook_authn_verifying", Help: "Signatures of tokens and proofs that are being checked.", Read: func() float64 {
			return float64(s.guards.slots.Costs().Running)
		}},
		{Name: "gatebook_alerts_window_seconds", Help: "Of one kind and key there is at most one alert in this time.", Read: func() float64 {
			return time.Duration(s.now.Load().file.Detect.Window).Seconds()
		}},
	}
}
