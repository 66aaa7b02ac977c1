package detect

import (
	"fmt"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Trial is a try of rules on records that there are: what they would have told. It
// keeps nothing and writes nothing. It belongs to one goroutine.
type Trial struct {
	engine  *engine
	picker  *record.Picker
	learned bool
	report  TrialReport
}

// TrialReport is what came of a trial.
type TrialReport struct {
	Records uint64       `json:"records"` // looked at
	First   time.Time    `json:"first,omitzero"`
	Last    time.Time    `json:"last,omitzero"`
	Alerts  []TrialAlert `json:"alerts"`
	Rules   []RuleStatus `json:"rules"`
	Learned bool         `json:"learned,omitempty"` // the rules were taken to have learned before
}

// TrialAlert is an alert that would have been told.
type TrialAlert struct {
	Rule     string    `json:"rule"`
	Alert    string    `json:"alert"`
	Severity Severity  `json:"severity"`
	Target   string    `json:"target"`
	Count    int64     `json:"count"`
	Exact    bool      `json:"exact"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Links    []string  `json:"links"`
}

// maxTrialAlerts bounds the alerts of a trial; a rule that makes so many is of no
// use to anybody.
const maxTrialAlerts = 100_000

// NewTrial begins a trial. learned: the rules have learned for long enough, as if
// the past had none of what they count. The error is a *RuleError.
func NewTrial(rules []Rule, learned bool) (*Trial, error) {
	g, err := newEngine(rules)
	if err != nil {
		return nil, err
	}
	p, err := record.NewPicker(g.needs())
	if err != nil {
		return nil, err
	}
	if learned {
		g.learnBefore()
	}
	return &Trial{engine: g, picker: p, learned: learned}, nil
}

// learnBefore makes the rules as if they had seen records since 1970.
func (g *engine) learnBefore() {
	for _, ru := range g.rules {
		ru.since = 1
	}
}

// See looks at the next record, in the order of the book. Alerts that detection
// told at the time are passed over; those of the gate count for rules that are
// silent about them. Errors: the frame is none, or there are too many alerts.
func (t *Trial) See(index uint64, frame []byte) error {
	r, err := t.picker.Pick(frame)
	if err != nil {
		return fmt.Errorf("record %d: %w", index, err)
	}
	rep := &t.report
	rep.Records++
	at := r.At()
	if rep.First.IsZero() || at.Before(rep.First) {
		rep.First = at
	}
	if at.After(rep.Last) {
		rep.Last = at
	}
	if r.Kind == record.KindAlert && strings.HasPrefix(r.Limit.Rule, rulePrefix) {
		return nil
	}
	t.engine.see(index, r)
	for i := range t.engine.findings {
		f := &t.engine.findings[i]
		rep.Alerts = append(rep.Alerts, TrialAlert{
			Rule: f.rule.Name, Alert: f.rule.Alert, Severity: f.rule.Severity, Target: f.key, Count: f.count, Exact: f.exact,
			First: time.UnixMicro(f.first).UTC(), Last: time.UnixMicro(f.last).UTC(), Links: f.links,
		})
	}
	t.engine.findings = t.engine.findings[:0]
	if len(rep.Alerts) > maxTrialAlerts {
		return fmt.Errorf("the rules tell more than %d alerts by record %d; a rule asks for too little", maxTrialAlerts, index)
	}
	return nil
}

// Report is what came of what was seen so far.
func (t *Trial) Report() *TrialReport {
	out := t.report
	out.Learned = t.learned
	if out.Alerts == nil {
		out.Alerts = []TrialAlert{}
	}
	out.Rules = t.engine.statuses(out.Last.UnixMicro())
	return &out
}

// OnTop puts the rules of a file of cases on top of others, as those of a
// configuration are on top of the built-in ones; the file may be without cases,
// which are not tried. Errors are a *CaseError or a *RuleError.
func OnTop(file []byte, rules []Rule) ([]Rule, error) {
	f, err := decodeRules(file)
	if err != nil {
		return nil, err
	}
	return f.onTop(rules)
}
