package detect

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// TestTrial: a trial tells what detection would have told, whatever it told then.
func TestTrial(t *testing.T) {
	denied := func(person string, after time.Duration) record.Record {
		return record.Record{
			Time: begin + after.Microseconds(), Kind: record.KindRequest, Outcome: record.Failure, Op: "GET /a", Subject: person,
			Authn: record.Authn{Outcome: "ok"}, Authz: record.Authz{Decision: "deny"}, Client: record.Client{Prefix: record.None},
		}
	}
	told := record.Record{Time: begin, Kind: record.KindAlert, Outcome: record.Failure, Limit: record.Limit{Rule: "detect.probing"}, Event: record.Event{Name: AlertProbing, Target: "ann", First: begin, Last: begin + 1}}
	gate := told
	gate.Limit.Rule, gate.Subject, gate.Event.Target = "", "bob", ""
	rules := probing()
	rules[0].Unless = AlertProbing
	trial, err := NewTrial(rules, false)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []record.Record{
		told, gate,
		denied("ann", 0), denied("bob", 0), denied("cat", 0),
		denied("ann", time.Second), denied("bob", time.Second),
		denied("ann", time.Minute), denied("bob", time.Minute), denied("ann", 2*time.Minute),
	} {
		if err := trial.See(uint64(i), record.AppendFrame(nil, &r)); err != nil {
			t.Fatal(err)
		}
	}
	rep := trial.Report()
	if len(rep.Alerts) != 1 {
		t.Fatalf("alerts %+v, want one", rep.Alerts)
	}
	a := rep.Alerts[0]
	if a.Rule != "probing" || a.Target != "ann" || a.Count != 3 || !a.Exact || a.Severity != High || !a.First.Equal(time.UnixMicro(begin)) || !a.Last.Equal(time.UnixMicro(begin).Add(time.Minute)) || len(a.Links) != 3 {
		t.Errorf("the alert is %+v", a)
	}
	if rep.Records != 10 || !rep.First.Equal(time.UnixMicro(begin)) || !rep.Last.Equal(time.UnixMicro(begin).Add(2*time.Minute)) || len(rep.Rules) != 1 || rep.Rules[0].Alerts != 1 {
		t.Errorf("the report is %+v", rep)
	}
	if err := trial.See(10, []byte("{}")); err == nil || !strings.Contains(err.Error(), "record 10") {
		t.Errorf("what is no frame gives %v", err)
	}
}

// TestTrialLearns: without a past a rule tells what is far above its count, and
// says that it learns; when it is said to have learned it tells at its count.
func TestTrialLearns(t *testing.T) {
	rule := Rule{Name: "much", Where: "true", By: []string{"subject"}, Count: 10, Window: time.Minute, Times: 3, Learn: 24 * time.Hour}
	for learned, want := range map[bool]int64{false: 30, true: 10} {
		trial, err := NewTrial([]Rule{rule}, learned)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 40 {
			r := record.Record{Time: begin + int64(i), Kind: record.KindRequest, Outcome: record.Success, Subject: "ann"}
			if err := trial.See(uint64(i), record.AppendFrame(nil, &r)); err != nil {
				t.Fatal(err)
			}
		}
		rep := trial.Report()
		if len(rep.Alerts) != 1 || rep.Alerts[0].Count != want || rep.Rules[0].Learning == learned {
			t.Errorf("learned %v: %+v", learned, rep)
		}
	}
}

// TestTrialEnds: a rule that asks for too little ends the trial with a reason, not
// with all memory.
func TestTrialEnds(t *testing.T) {
	trial, err := NewTrial([]Rule{{Name: "all", Where: "true", Count: 1, Window: time.Second}}, false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxTrialAlerts + 10 {
		r := record.Record{Time: begin + int64(i)*2_000_000, Kind: record.KindRequest, Outcome: record.Success}
		if err = trial.See(uint64(i), record.AppendFrame(nil, &r)); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "asks for too little") {
		t.Errorf("it ends with %v", err)
	}
}

func TestOnTop(t *testing.T) {
	rules, err := OnTop([]byte(`{"off": ["scraping"], "rules": [{"name": "big", "where": "true", "count": 3, "window": "10s"}]}`), Builtin())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range rules {
		names = append(names, r.Name)
	}
	if fmt.Sprint(names) != "[credential_stuffing guessed_credential privilege_probing token_replay big]" {
		t.Errorf("the rules are %q", names)
	}
	for _, bad := range []string{"", "{} {}", `{"else": 1}`, `{"off": ["nobody"]}`, `{"rules": [{"name": "X"}]}`} {
		_, err := OnTop([]byte(bad), Builtin())
		var c *CaseError
		var r *RuleError
		if !errors.As(err, &c) && !errors.As(err, &r) {
			t.Errorf("%s gives %v", bad, err)
		}
	}
	if _, err := NewTrial(slices.Concat(Builtin(), Builtin()), false); err == nil {
		t.Error("rules of one name twice are taken")
	}
}
