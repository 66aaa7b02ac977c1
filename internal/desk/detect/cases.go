package detect

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Rules are tried on cases: records that are made of a few lines, and the alerts
// that must come of them and no others. The form is JSON and in
// docs/detection.md.

// CaseResult says how a case went.
type CaseResult struct {
	Name string   `json:"name"`
	Got  []string `json:"alerts"`             // as "rule target count at"
	Want []string `json:"missing,omitempty"`  // those that were wanted and did not come
	More []string `json:"unwanted,omitempty"` // those that came and were not wanted
}

// OK reports whether everything came as wanted.
func (c *CaseResult) OK() bool { return len(c.Want) == 0 && len(c.More) == 0 }

// CaseError says what of a file of cases cannot be used.
type CaseError struct{ text string }

func (e *CaseError) Error() string { return e.text }

// Bounds of files of cases.
const (
	maxCases       = 1000
	maxCaseRecords = 1_000_000 // of all cases
)

type caseFile struct {
	Rules []ruleText `json:"rules"`
	Off   []string   `json:"off"`
	Cases []caseText `json:"cases"`
}

type ruleText struct {
	Name     string     `json:"name"`
	Alert    string     `json:"alert"`
	Severity Severity   `json:"severity"`
	Where    string     `json:"where"`
	By       []string   `json:"by"`
	Distinct string     `json:"distinct"`
	Count    int64      `json:"count"`
	Window   span       `json:"window"`
	Times    int64      `json:"times"`
	Learn    span       `json:"learn"`
	After    string     `json:"after"`
	New      string     `json:"new"`
	Hours    *hoursText `json:"hours"`
	Unless   string     `json:"unless"`
}

type hoursText struct {
	Zone string   `json:"zone"`
	Days []string `json:"days"`
	From string   `json:"from"`
	To   string   `json:"to"`
}

type caseText struct {
	Name string `json:"name"`
	// Start is the time that offsets count from.
	Start time.Time `json:"start"`
	// Learned: the rules have learned for long enough.
	Learned bool         `json:"learned"`
	Records []recordText `json:"records"`
	Alerts  []alertText  `json:"alerts"`
}

// recordText stands for Repeat records, Every apart from At on.
type recordText struct {
	At     span                       `json:"at"`
	Repeat int                        `json:"repeat"`
	Every  span                       `json:"every"`
	Late   span                       `json:"late"` // they are written so long after their time
	Set    map[string]json.RawMessage `json:"set"`
}

type alertText struct {
	Rule   string `json:"rule"`
	Target string `json:"target"`
	Count  int64  `json:"count"`  // 0: any
	Within span   `json:"within"` // of the start; 0: any
}

// span is a duration as people write it: "10m", "1d".
type span time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *span) UnmarshalText(b []byte) error {
	if days, ok := strings.CutSuffix(string(b), "d"); ok {
		n, err := strconv.ParseUint(days, 10, 12)
		if err != nil {
			return fmt.Errorf("%q is not a number of days", b)
		}
		*s = span(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(string(b))
	if err != nil || d < 0 || d > 366*24*time.Hour {
		return fmt.Errorf("%q is not a duration such as 90s, 10m or 1d", b)
	}
	*s = span(d)
	return nil
}

func (r *ruleText) rule() (Rule, error) {
	out := Rule{
		Name: r.Name, Alert: r.Alert, Severity: r.Severity, Where: r.Where, By: r.By, Distinct: r.Distinct, Count: r.Count,
		Window: time.Duration(r.Window), Times: r.Times, Learn: time.Duration(r.Learn), After: r.After, New: r.New, Unless: r.Unless,
	}
	if r.Hours == nil {
		return out, nil
	}
	h, err := ParseHours(r.Hours.Zone, r.Hours.Days, r.Hours.From, r.Hours.To)
	if err != nil {
		return out, &RuleError{r.Name, "hours", err.Error()}
	}
	out.Hours = h
	return out, nil
}

// ParseHours reads hours as people write them: days by their first three
// letters, times as "07:30", the last of which may be "24:00".
func ParseHours(zone string, days []string, from, to string) (*Hours, error) {
	h := &Hours{Zone: zone}
	names := []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}
	for _, d := range days {
		i := slices.Index(names, d)
		if i < 0 {
			return nil, fmt.Errorf("%q is none of %s", d, strings.Join(names, ", "))
		}
		h.Days = append(h.Days, time.Weekday(i))
	}
	var err error
	if h.From, err = clock(from); err == nil {
		h.To, err = clock(to)
	}
	return h, err
}

func clock(text string) (time.Duration, error) {
	hour, minute, ok := strings.Cut(text, ":")
	h, err := strconv.ParseUint(hour, 10, 8)
	m, err2 := strconv.ParseUint(minute, 10, 8)
	d := time.Duration(h)*time.Hour + time.Duration(m)*time.Minute
	if !ok || err != nil || err2 != nil || len(hour) != 2 || len(minute) != 2 || m > 59 || d > 24*time.Hour {
		return 0, fmt.Errorf("%q is not a time of day from 00:00 to 24:00", text)
	}
	return d, nil
}

// Test tries rules on a file of cases. Rules and off in the file are put on top
// of rules, as those of a configuration are on top of the built-in ones. Errors
// are a *CaseError or a *RuleError; a case that does not go as wanted is none.
func Test(file []byte, rules []Rule) ([]CaseResult, error) {
	f, err := decodeCases(file)
	if err != nil {
		return nil, err
	}
	if rules, err = f.onTop(rules); err != nil {
		return nil, err
	}
	left := maxCaseRecords
	var out []CaseResult
	for i := range f.Cases {
		c := &f.Cases[i]
		res, err := c.try(rules, &left)
		if err != nil {
			return nil, &CaseError{fmt.Sprintf("case %d (%s): %v", i+1, c.Name, err)}
		}
		out = append(out, *res)
	}
	return out, nil
}

func decodeCases(b []byte) (*caseFile, error) {
	f, err := decodeRules(b)
	if err == nil && (len(f.Cases) == 0 || len(f.Cases) > maxCases) {
		err = &CaseError{fmt.Sprintf("a file has 1 to %d cases, this one has %d", maxCases, len(f.Cases))}
	}
	return f, err
}

// decodeRules reads a file that may be without cases.
func decodeRules(b []byte) (*caseFile, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var f caseFile
	if err := dec.Decode(&f); err != nil {
		return nil, &CaseError{fmt.Sprintf("not a file of cases: at byte %d: %v", dec.InputOffset(), err)}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, &CaseError{fmt.Sprintf("not a file of cases: something follows its end at byte %d", dec.InputOffset())}
	}
	return &f, nil
}

// onTop gives the rules with those of the file.
func (f *caseFile) onTop(rules []Rule) ([]Rule, error) {
	out := slices.Clone(rules)
	for _, name := range f.Off {
		i := slices.IndexFunc(out, func(r Rule) bool { return r.Name == name })
		if i < 0 {
			return nil, &RuleError{name, "off", "there is no rule of this name"}
		}
		out = slices.Delete(out, i, i+1)
	}
	for i := range f.Rules {
		r, err := f.Rules[i].rule()
		if err == nil {
			err = r.Check()
		}
		if err != nil {
			return nil, err
		}
		if at := slices.IndexFunc(out, func(b Rule) bool { return b.Name == r.Name }); at >= 0 {
			out[at] = r
		} else {
			out = append(out, r)
		}
	}
	if len(out) > MaxRules {
		return nil, &CaseError{fmt.Sprintf("at most %d rules", MaxRules)}
	}
	return out, nil
}

// try runs one case; left is how many records may still be made.
func (c *caseText) try(rules []Rule, left *int) (*CaseResult, error) {
	g, err := newEngine(rules)
	if err != nil {
		return nil, err
	}
	if c.Start.IsZero() {
		c.Start = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	}
	if c.Learned {
		g.learnBefore()
	}
	recs, err := c.make(left)
	if err != nil {
		return nil, err
	}
	for i := range recs {
		g.see(uint64(i), &recs[i])
	}
	for _, ru := range g.rules {
		if ru.failed > 0 {
			return nil, fmt.Errorf("the rule %s has no answer for %d records: %s", ru.Name, ru.failed, ru.failure)
		}
	}
	return c.compare(g.findings), nil
}

func (c *caseText) compare(found []finding) *CaseResult {
	res := &CaseResult{Name: c.Name}
	taken := make([]bool, len(found))
	for _, w := range c.Alerts {
		got := false
		for i := range found {
			if got = !taken[i] && w.is(&found[i], c.Start); got {
				taken[i] = true
				break
			}
		}
		if !got {
			res.Want = append(res.Want, fmt.Sprintf("%s %s %d", w.Rule, w.Target, w.Count))
		}
	}
	for i := range found {
		f := &found[i]
		text := fmt.Sprintf("%s %s %d at %v", f.rule.Name, f.key, f.count, time.UnixMicro(f.last).Sub(c.Start))
		res.Got = append(res.Got, text)
		if !taken[i] {
			res.More = append(res.More, text)
		}
	}
	return res
}

func (w *alertText) is(f *finding, start time.Time) bool {
	at := time.UnixMicro(f.last).Sub(start)
	return f.rule.Name == w.Rule && f.key == w.Target && (w.Count == 0 || w.Count == f.count) && (w.Within == 0 || at <= time.Duration(w.Within))
}

// make makes the records of a case, in the order in which they are written.
func (c *caseText) make(left *int) ([]record.Record, error) {
	type written struct {
		at  int64
		rec record.Record
	}
	var all []written
	for i := range c.Records {
		t := &c.Records[i]
		n := max(t.Repeat, 1)
		if n > *left {
			return nil, fmt.Errorf("a file may make %d records", maxCaseRecords)
		}
		*left -= n
		if time.Duration(t.Every) > 0 && n > int(366*24*time.Hour/time.Duration(t.Every)) {
			return nil, fmt.Errorf("records[%d]: they take longer than a year", i)
		}
		for k := range n {
			at := c.Start.Add(time.Duration(t.At) + time.Duration(k)*time.Duration(t.Every))
			r := record.Record{Time: at.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success, Status: 200}
			for path, v := range t.Set {
				if err := setField(&r, path, v, k); err != nil {
					return nil, fmt.Errorf("records[%d].set: %s: %w", i, path, err)
				}
			}
			if r.Error.Reason != "" {
				r.Outcome = record.Failure
			}
			all = append(all, written{r.Time + time.Duration(t.Late).Microseconds(), r})
		}
	}
	slices.SortStableFunc(all, func(a, b written) int { return cmp.Compare(a.at, b.at) })
	out := make([]record.Record, len(all))
	for i := range out {
		out[i] = all[i].rec
		for k := range 8 { // an id for links
			out[i].ID[15-k] = byte((i + 1) >> (8 * k))
		}
	}
	return out, nil
}

// setField sets a field of the frame. In text {n} is the number of the
// repetition, from 0, and {n%7} the rest of it by 7.
func setField(r *record.Record, path string, v json.RawMessage, n int) error {
	if at := textField(path); at != nil {
		var s string
		if err := json.Unmarshal(v, &s); err != nil {
			return errors.New("it is text")
		}
		s, err := fill(s, n)
		*at(r) = s
		return err
	}
	switch path {
	case "authn.roles":
		return json.Unmarshal(v, &r.Authn.Roles)
	case "authn.amr":
		return json.Unmarshal(v, &r.Authn.AMR)
	case "authz.policies":
		return json.Unmarshal(v, &r.Authz.Policies)
	}
	var num int64
	if err := json.Unmarshal(v, &num); err != nil || num < 0 {
		return errors.New("it is no field of text, and this is no number")
	}
	switch path {
	case "status":
		r.Status = int(num)
	case "upstream_status":
		r.UpstreamStatus = int(num)
	case "bytes_in":
		r.BytesIn = num
	case "bytes_out":
		r.BytesOut = num
	case "dur_us":
		r.DurUS = min(num, 366*24*3600*1_000_000)
	case "event.count":
		r.Event.Count = num
	case "event.first":
		r.Event.First = num
	case "event.last":
		r.Event.Last = num
	case "san.tripped":
		r.San.Tripped = int(num)
	default:
		return errors.New("there is no such field in a frame")
	}
	return nil
}

func fill(s string, n int) (string, error) {
	for range 8 {
		i := strings.Index(s, "{n")
		if i < 0 {
			return s, nil
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			return s, fmt.Errorf("%q: { has no }", s)
		}
		v, by := n, s[i+2:i+end]
		if by != "" {
			k, err := strconv.Atoi(strings.TrimPrefix(by, "%"))
			if by[0] != '%' || err != nil || k < 1 {
				return s, fmt.Errorf("%q: it is {n} or {n%%7}", s)
			}
			v %= k
		}
		s = s[:i] + strconv.Itoa(v) + s[i+end+1:]
	}
	return s, errors.New("too many {n}")
}
