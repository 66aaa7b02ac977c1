package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/detect"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/obs"
)

// detection runs the detector with the rules in force.
type detection struct {
	book    *book.Book
	store   kv.Store
	log     *slog.Logger
	changed chan struct{} // holds one if the rules have changed

	mu    sync.Mutex
	rules []detect.Rule    // under mu
	now   *detect.Detector // under mu; nil: the state could not be read, which is tried again
}

// openDetection makes a detector, which goes on where the state says. It comes
// before the first record that it is to look at.
func openDetection(ctx context.Context, f *config.File, b *book.Book, store kv.Store, log *slog.Logger) (*detection, error) {
	rules, err := detectRules(f)
	if err != nil {
		return nil, err
	}
	d := &detection{book: b, store: store, log: log, rules: rules, changed: make(chan struct{}, 1)}
	d.now, err = d.detector(ctx, rules)
	return d, err
}

func (d *detection) detector(ctx context.Context, rules []detect.Rule) (*detect.Detector, error) {
	return detect.New(ctx, detect.Config{Book: d.book, Store: d.store, Missing: kv.ErrNotFound, Rules: rules, Log: d.log})
}

// adopt puts other rules in force. What the ones before have seen is kept where
// the new ones are the same.
func (d *detection) adopt(rules []detect.Rule) {
	d.mu.Lock()
	same := reflect.DeepEqual(rules, d.rules)
	d.rules = rules
	d.mu.Unlock()
	if same {
		return
	}
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// detectRetry is the time between two tries to begin with rules.
const detectRetry = 5 * time.Second

// run detects until ctx ends, with one detector after the other.
func (d *detection) run(ctx context.Context) error {
	for ctx.Err() == nil {
		d.mu.Lock()
		now := d.now
		d.mu.Unlock()
		if now != nil {
			d.runOne(ctx, now)
		}
		if ctx.Err() != nil {
			break
		}
		d.mu.Lock()
		rules := d.rules
		d.mu.Unlock()
		next, err := d.detector(ctx, rules)
		d.mu.Lock()
		d.now = next
		d.mu.Unlock()
		if err == nil {
			continue
		}
		d.log.Error("detection does not go on", "err", err)
		wait, cancel := context.WithTimeout(ctx, detectRetry)
		<-wait.Done()
		cancel()
	}
	return nil
}

// runOne runs a detector until the rules change or ctx ends.
func (d *detection) runOne(ctx context.Context, now *detect.Detector) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = now.Run(ctx) // it returns nil
	}()
	select {
	case <-ctx.Done():
	case <-d.changed:
		cancel()
	}
	<-ended
}

// detectRules are the rules of a configuration with the built-in ones.
func detectRules(f *config.File) ([]detect.Rule, error) {
	var own []detect.Rule
	for i := range f.Detect.Rules {
		own = append(own, detectRule(&f.Detect.Rules[i]))
	}
	return detect.Select(f.Detect.Off, own)
}

// candidateRules are the rules of a configuration, with those of a file of cases on
// top if there is one.
func candidateRules(f *config.File, file []byte) ([]detect.Rule, error) {
	rules, err := detectRules(f)
	if err != nil || file == nil {
		return rules, err
	}
	return detect.OnTop(file, rules)
}

// DetectTrial tries the rules of a configuration on records that there are. file, if
// not nil, is a file of cases whose rules are put on top. learned: they have learned
// already.
func DetectTrial(f *config.File, file []byte, learned bool) (*detect.Trial, error) {
	rules, err := candidateRules(f, file)
	if err != nil {
		return nil, err
	}
	return detect.NewTrial(rules, learned)
}

// DetectCases tries the rules of a configuration, with those of the file on top, on
// the cases of the file.
func DetectCases(f *config.File, file []byte) ([]detect.CaseResult, error) {
	rules, err := detectRules(f)
	if err != nil {
		return nil, err
	}
	return detect.Test(file, rules)
}

func detectRule(c *config.DetectRule) detect.Rule {
	r := detect.Rule{
		Name: c.Name, Alert: c.Alert, Severity: detect.Severity(c.Severity), Where: c.Where, By: c.By, Distinct: c.Distinct, Count: c.Count,
		Window: c.Window.Std(), Times: c.Times, Learn: c.Learn.Std(), After: c.After, New: c.New, Unless: c.Unless,
	}
	if h := c.Hours; h != nil {
		r.Hours = &detect.Hours{Zone: h.Zone}
		for _, day := range h.Days {
			r.Hours.Days = append(r.Hours.Days, weekdays()[day])
		}
		r.Hours.From, _ = config.ClockTime(h.From) // checked
		r.Hours.To, _ = config.ClockTime(h.To)
	}
	return r
}

func weekdays() map[string]time.Weekday {
	return map[string]time.Weekday{
		"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday, "thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday,
	}
}

// CheckDetect looks for rules of detection that cannot be used. The error says
// where each is.
func CheckDetect(f *config.File) error {
	found := f.NewFindings()
	for i := range f.Detect.Rules {
		var bad *detect.RuleError
		if err := detectRule(&f.Detect.Rules[i]).Check(); errors.As(err, &bad) {
			key, _, _ := strings.Cut(bad.Field, " ")
			found.Add(fmt.Sprintf("detect.rules[%d].%s", i, key), bad.What, "try the expression with gatebook search; docs/detection.md says how rules work")
		} else if err != nil {
			return err
		}
	}
	if p := found.Problems(); p != nil {
		return p
	}
	_, err := detectRules(f)
	return err
}

// counters are the metrics of detection, by rule.
func (d *detection) counters() []obs.Counter {
	each := func(of func(*detect.RuleStatus) float64) func(func(float64, ...string)) {
		return func(add func(float64, ...string)) {
			st := d.status()
			for i := range st.Rules {
				add(of(&st.Rules[i]), st.Rules[i].Name)
			}
		}
	}
	rule := []string{"rule"}
	return []obs.Counter{
		{Name: "gatebook_detect_lag_records", Level: true, Help: "Signed leaves that detection has not looked at.", Read: func(add func(float64, ...string)) {
			_, signed := d.book.Signed()
			add(float64(signed - min(d.status().Next, signed)))
		}},
		{Name: "gatebook_detect_alerts_total", Labels: rule, Help: "Alerts by rule, since the start.", Read: each(func(r *detect.RuleStatus) float64 { return float64(r.Alerts) })},
		{Name: "gatebook_detect_withheld_total", Labels: rule, Help: "Alerts not made because too many keys had one.", Read: each(func(r *detect.RuleStatus) float64 { return float64(r.Withheld) })},
		{Name: "gatebook_detect_failed_total", Labels: rule, Help: "Records for which the expressions of a rule had no answer.", Read: each(func(r *detect.RuleStatus) float64 { return float64(r.Failed) })},
		{Name: "gatebook_detect_keys", Labels: rule, Level: true, Help: "Keys under watch.", Read: each(func(r *detect.RuleStatus) float64 { return float64(r.Keys) })},
	}
}

func (d *detection) status() detect.Status {
	d.mu.Lock()
	now := d.now
	d.mu.Unlock()
	if now == nil {
		return detect.Status{Failed: "its state cannot be read"}
	}
	return now.Status()
}

// notes are what readiness says of detection.
func (d *detection) notes() []string {
	if st := d.status(); st.Failed != "" {
		return []string{"detection does not go on: " + st.Failed}
	}
	return nil
}
