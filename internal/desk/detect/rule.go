package detect

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a machine without its own knows the zones of hours, too

	"github.com/gatebook/gatebook/internal/desk/query"
)

// Rule says which records, in which number, are an alert. Its form follows from
// what is set: a count; with Distinct a count of different values; with Times
// a comparison with the key's own past on top of either; with New the first
// sight of a value; with After a success that comes after failures.
type Rule struct {
	// Name is what limit.rule of the alert says after "detect.": a lower-case
	// letter and up to 47 more letters, digits and underscores.
	Name string
	// Alert is event.name of the alert; empty: Name.
	Alert string
	// Severity is one of the closed list; empty: medium.
	Severity Severity
	// Where takes a record or not, in the language of search.
	Where string
	// By are the fields whose values are the key, at most three; a record without
	// a value for one of them is not counted. None: everybody together.
	By []string
	// Distinct is a field; what is counted are its different values.
	Distinct string
	// Count is the least number that makes an alert; 1 to 1e9, with Distinct to
	// MaxDistinct.
	Count int64
	// Window is the time in which it is counted: 1 s to 24 h.
	Window time.Duration
	// Times: the number must also be so many times the most that the key has ever
	// had in a window of the last one to two weeks; 0: no such demand. 2 to 1000.
	Times int64
	// Learn is how long the past is learned first. Until then every key of a rule
	// with Times counts as having had Count already, and a rule with New tells
	// nothing. 0 to 30 days.
	Learn time.Duration
	// After is an expression: Count of the records that it takes must have come in
	// the window before the one that Where takes, and none that Where takes.
	After string
	// New is a field: an alert for each value that the key has not had before; with
	// After, none for a value that it has had before.
	New string
	// Hours, if not nil: only what happens outside of them is counted.
	Hours *Hours
	// Unless is event.name of alerts of other parts; a key that one of them was
	// about within the window makes none here.
	Unless string
}

// Hours are the hours of a week in which something is expected.
type Hours struct {
	Zone string // "Europe/Berlin"; empty: UTC
	Days []time.Weekday
	From time.Duration // since midnight, by the wall clock
	To   time.Duration // exclusive, after From, at most 24 h
}

// Severity says how soon somebody should look.
type Severity string

// The closed list of severities.
const (
	Low      Severity = "low"
	Medium   Severity = "medium"
	High     Severity = "high"
	Critical Severity = "critical"
)

// Bounds of rules.
const (
	MaxRules    = 64
	MaxDistinct = 1024
	maxBy       = 3
	minWindow   = time.Second
	maxWindow   = 24 * time.Hour
	maxLearn    = 30 * 24 * time.Hour
	maxCount    = 1_000_000_000
	maxTimes    = 1000
)

// RuleError says what of a rule cannot be used.
type RuleError struct {
	Rule  string
	Field string // "where", "by", ...
	What  string
}

func (e *RuleError) Error() string {
	return fmt.Sprintf("detect rule %q: %s: %s", e.Rule, e.Field, e.What)
}

// ruleName is what a rule may be called.
var ruleName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,47}$`)

// setDefaults fills in what is empty.
func (r *Rule) setDefaults() {
	if r.Alert == "" {
		r.Alert = r.Name
	}
	if r.Severity == "" {
		r.Severity = Medium
	}
	if r.New != "" && r.After == "" && r.Count == 0 {
		r.Count = 1
	}
}

// Check says what of the rule cannot be used: a *RuleError, or nil.
func (r Rule) Check() error {
	r.setDefaults()
	_, err := newRule(r)
	return err
}

// check looks at everything but the expressions.
func (r *Rule) check() error {
	bad := func(field, what string, args ...any) error {
		return &RuleError{r.Name, field, fmt.Sprintf(what, args...)}
	}
	if !ruleName.MatchString(r.Name) {
		return bad("name", "a name is a lower-case letter and at most 47 more letters, digits and underscores")
	}
	if !ruleName.MatchString(r.Alert) {
		return bad("alert", "%q is not a word of lower-case letters, digits and underscores", r.Alert)
	}
	if !slices.Contains([]Severity{Low, Medium, High, Critical}, r.Severity) {
		return bad("severity", "%q is none of low, medium, high, critical", r.Severity)
	}
	if len(r.By) > maxBy {
		return bad("by", "at most %d fields", maxBy)
	}
	for i, f := range r.By {
		if textField(f) == nil {
			return bad("by", "%q is no field of text of the frame; subject, client.prefix, authn.client, route, authn.issuer, host, op and tls.ja4 are", f)
		}
		if slices.Contains(r.By[:i], f) {
			return bad("by", "%q is there twice", f)
		}
	}
	if r.Window < minWindow || r.Window > maxWindow {
		return bad("window", "%v is not from %v to %v", r.Window, minWindow, maxWindow)
	}
	if r.Learn < 0 || r.Learn > maxLearn {
		return bad("learn", "%v is not from 0 to %v", r.Learn, maxLearn)
	}
	if err := r.checkForm(bad); err != nil {
		return err
	}
	return r.Hours.check(bad)
}

func (r *Rule) checkForm(bad func(field, what string, args ...any) error) error {
	switch {
	case r.Count < 1 || r.Count > maxCount:
		return bad("count", "%d is not from 1 to %d", r.Count, maxCount)
	case r.Distinct != "" && textField(r.Distinct) == nil:
		return bad("distinct", "%q is no field of text of the frame", r.Distinct)
	case r.Distinct != "" && r.Count > MaxDistinct:
		return bad("count", "%d different values cannot be told apart; at most %d", r.Count, MaxDistinct)
	case r.Times != 0 && (r.Times < 2 || r.Times > maxTimes):
		return bad("times", "%d is not from 2 to %d", r.Times, maxTimes)
	case r.After != "" && (r.Distinct != "" || r.Times != 0):
		return bad("after", "it does not go with distinct or times")
	case r.New != "" && textField(r.New) == nil:
		return bad("new", "%q is no field of text of the frame", r.New)
	case r.New != "" && (r.Distinct != "" || r.Times != 0 || r.Count != 1 && r.After == ""):
		return bad("new", "it does not go with distinct or times, and with count only beside after")
	case r.Learn != 0 && r.Times == 0 && (r.New == "" || r.After != ""):
		return bad("learn", "it is for times, and for new without after")
	}
	return nil
}

func (h *Hours) check(bad func(field, what string, args ...any) error) error {
	if h == nil {
		return nil
	}
	if _, err := time.LoadLocation(h.Zone); err != nil {
		return bad("hours", "the time zone %q is not known here: %v", h.Zone, err)
	}
	if len(h.Days) == 0 {
		return bad("hours", "no days are named")
	}
	for _, d := range h.Days {
		if d < time.Sunday || d > time.Saturday {
			return bad("hours", "%d is no day of the week", d)
		}
	}
	if h.From < 0 || h.To <= h.From || h.To > 24*time.Hour {
		return bad("hours", "the day must begin before it ends, both from 00:00 to 24:00")
	}
	return nil
}

// digest tells whether what was learned for a rule is still about it.
func (r *Rule) digest() string {
	b, _ := json.Marshal(r) // strings, numbers and slices of them
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Names of the alerts of built-in rules. All but the last are of the OWASP
// Application Logging Vocabulary, which has none for somebody who takes much.
const (
	AlertStuffing = "authn_login_fail_max"
	AlertReplay   = "authn_token_reuse"
	AlertGuessed  = "authn_login_successafterfail"
	AlertProbing  = "authz_fail"
	AlertVolume   = "excess_volume"
)

// guessed takes the failures that guessing makes. Those are missing that good
// credentials meet in the course of their life, and those that a mistake in the
// configuration of a gate or an issuer gives to everybody at once (token_issuer,
// token_audience, token_key_unknown, token_type).
const guessed = `error.reason in ["key_unknown", "token_malformed", "token_signature", "token_algorithm", "token_inactive"]`

// known takes what was done by somebody who is known.
const known = `authn.outcome == "ok"`

// Builtin are the rules that are on unless they are turned off. The slice is the
// caller's. docs/detection.md says what each is for and what it mistakes.
func Builtin() []Rule {
	const day = 24 * time.Hour
	return []Rule{
		{
			Name: "credential_stuffing", Alert: AlertStuffing, Severity: High,
			Where: guessed, Distinct: "client.prefix", Count: 50, Window: 10 * time.Minute, Times: 4, Learn: day,
		},
		{
			Name: "guessed_credential", Alert: AlertGuessed, Severity: High,
			Where: known, By: []string{"client.prefix"}, After: guessed, Count: 20, Window: time.Hour, New: "subject",
		},
		{
			Name: "privilege_probing", Alert: AlertProbing, Severity: Medium,
			Where: known + ` && authz.decision == "deny"`, By: []string{"subject"}, Distinct: "op", Count: 8, Window: 10 * time.Minute,
		},
		{
			Name: "scraping", Alert: AlertVolume, Severity: Medium,
			Where: known + ` && method == "GET" && status < 400`, By: []string{"subject"}, Count: 2000, Window: 10 * time.Minute, Times: 5, Learn: day,
		},
		{
			Name: "token_replay", Alert: AlertReplay, Severity: High,
			Where: known + ` && authn.bound == ""`, By: []string{"subject"}, Distinct: "client.prefix", Count: 8, Window: 10 * time.Minute,
			Times: 3, Learn: day, Unless: AlertReplay,
		},
	}
}

// Select is the list of rules that a configuration asks for: the built-in ones
// without those named in off, with those of own that have the same name in their
// place, and the rest of own. It is an error if off names no built-in rule, if a
// name is there twice, or if a rule cannot be used.
func Select(off []string, own []Rule) ([]Rule, error) {
	out := Builtin()
	for _, name := range off {
		i := slices.IndexFunc(out, func(r Rule) bool { return r.Name == name })
		if i < 0 {
			return nil, &RuleError{name, "off", "there is no built-in rule of this name, or it is named twice; there are " + strings.Join(builtinNames(), ", ")}
		}
		out = slices.Delete(out, i, i+1)
	}
	seen := map[string]bool{}
	for _, r := range own {
		if err := r.Check(); err != nil {
			return nil, err
		}
		if seen[r.Name] {
			return nil, &RuleError{r.Name, "name", "there are two rules of this name"}
		}
		seen[r.Name] = true
		if slices.Contains(off, r.Name) {
			return nil, &RuleError{r.Name, "off", "it is turned off and declared; do one of both"}
		}
		if i := slices.IndexFunc(out, func(b Rule) bool { return b.Name == r.Name }); i >= 0 {
			out[i] = r
		} else {
			out = append(out, r)
		}
	}
	if len(out) > MaxRules {
		return nil, &RuleError{"", "rules", fmt.Sprintf("at most %d rules, there are %d", MaxRules, len(out))}
	}
	return out, nil
}

func builtinNames() (names []string) {
	for _, r := range Builtin() {
		names = append(names, r.Name)
	}
	return names
}

// condition compiles an expression of a rule.
func (r *Rule) condition(field, text string) (*condition, error) {
	c, err := query.NewCondition(text)
	if err != nil {
		return nil, &RuleError{r.Name, field, err.Error()}
	}
	return newCondition(c), nil
}
