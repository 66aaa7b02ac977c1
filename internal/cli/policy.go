package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/obs"
	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Test, explain, compare and replay policies",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.policyTestCommand(), a.policyExplainCommand(), a.policyDiffCommand(), a.policyReplayCommand())
	return c
}

// candidate are policies named on the command line.
type candidate struct{ dir, schema string }

func (c *candidate) add(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&c.dir, "candidate", "", what)
	cmd.Flags().StringVar(&c.schema, "schema", "", "schema of the candidate (default: its schema.cedarschema, else one made from the routes)")
}

// build loads them over the configuration's roles and routes.
func (c *candidate) build(f *config.File, tests string) (*authz.Engine, error) {
	e, err := server.BuildCandidate(f, c.dir, c.schema, tests)
	if err != nil {
		return nil, &usageError{err}
	}
	return e, nil
}

// inForce loads the configuration's policies without running their tests.
func inForce(f *config.File) (*authz.Engine, error) {
	var c candidate
	if f.Policies != nil {
		c = candidate{string(f.Policies.Dir), string(f.Policies.Schema)}
	}
	return c.build(f, "")
}

func testsOf(f *config.File, given string) string {
	if given == "" && f.Policies != nil {
		return string(f.Policies.Tests)
	}
	return given
}

func (a *app) policyTestCommand() *cobra.Command {
	var cand candidate
	var tests string
	c := &cobra.Command{
		Use:   "test [--tests DIR] [--candidate DIR]",
		Short: "Run the test cases of the policies, and name policies that determine none",
		Long: `Run the test cases of the policies (policies.tests) against the policies in
policies.dir, or against a candidate. Every case is run; those that fail are
named with what was decided, and so are the policies that determine no case. The
exit code is 1 if a case fails. What would not load is exit code 2.`,
		Example: "  gatebook policy test\n  gatebook policy test --candidate policies-next --tests policies/tests",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			f, err := a.load()
			if err != nil {
				return err
			}
			dir := testsOf(f, tests)
			if dir == "" {
				return usagef("no test cases: set policies.tests, or name a directory with --tests")
			}
			engine, err := inForce(f)
			if cand.dir != "" {
				engine, err = cand.build(f, "")
			}
			if err != nil {
				return err
			}
			rep, err := engine.RunCases(dir)
			if err != nil {
				return &usageError{err}
			}
			return a.printTests(rep)
		},
	}
	cand.add(c, "policies to test instead of those of the configuration")
	c.Flags().StringVar(&tests, "tests", "", "directory of test cases (default: policies.tests)")
	return c
}

func (a *app) printTests(rep *authz.Report) error {
	if a.json {
		if err := a.printJSON(rep); err != nil {
			return err
		}
	} else {
		for _, r := range rep.Results {
			if r.Fault != "" {
				a.printf("FAIL %s: case %q: %s\n", r.File, r.Name, r.Fault)
			}
		}
		for _, id := range rep.Untested {
			a.printf("never determining: %s\n", id)
		}
		a.printf("%d cases, %d failed; %d of %d policies determined one (set %s)\n",
			len(rep.Results), rep.Failed, rep.Policies-len(rep.Untested), rep.Policies, rep.Set)
	}
	if rep.Failed > 0 {
		return &exitError{ExitFailure, nil}
	}
	return nil
}

func (a *app) policyExplainCommand() *cobra.Command {
	var cand candidate
	var caseText string
	var reveal, all bool
	c := &cobra.Command{
		Use:   "explain ID | --case JSON",
		Short: "Tell why a request was or would be decided as it is, with the text of the policies",
		Long: `Tell why a request was or would be decided as it is, with the text of the
policies. ID is a recorded exchange: its decision is made again by the very set
that decided, which the policy archive keeps. A case is a JSON object as in a test
file ("expect" may be left out), or @FILE with one.

A decision that depended on a person's id, address, path or claims can be made
again only with --reveal, which is recorded.`,
		Example: `  gatebook policy explain 019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b --reveal
  gatebook policy explain --case '{"principal": {"issuer": "corp", "subject": "alice", "roles": ["clerk"]}, "route": "orders.read", "method": "GET", "params": {"id": "7"}}'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (caseText != "") {
				return usagef("name either the id of a recorded exchange or a --case")
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			if caseText == "" {
				return a.explainRecorded(c, f, args[0], &cand, reveal, all)
			}
			return a.explainCase(f, caseText, &cand, all)
		},
	}
	cand.add(c, "explain what these policies decide instead")
	c.Flags().StringVar(&caseText, "case", "", "JSON of a case, or @FILE")
	c.Flags().BoolVar(&reveal, "reveal", false, "open the personal part; this is recorded")
	c.Flags().BoolVar(&all, "all", false, "show the policies that had no part in it too")
	return c
}

func (a *app) explainCase(f *config.File, text string, cand *candidate, all bool) error {
	if name, ok := strings.CutPrefix(text, "@"); ok {
		b, err := os.ReadFile(name)
		if err != nil {
			return usagef("--case: %w", err)
		}
		text = string(b)
	}
	engine, err := inForce(f)
	if cand.dir != "" {
		engine, err = cand.build(f, "")
	}
	if err != nil {
		return err
	}
	r, err := engine.ParseCase(text)
	if err != nil {
		return usagef("--case: %w", err)
	}
	d, verdicts := engine.Explain(r)
	return a.printExplained(&explained{Decision: decisionOf(&d), Set: d.Set, Errors: d.Errors, Policies: verdictsOf(verdicts, all)})
}

// explained is an explanation, as JSON shows it.
type explained struct {
	ID       string       `json:"id,omitempty"`
	Recorded *decided     `json:"recorded,omitempty"`
	Decision *decided     `json:"decision,omitempty"`
	Set      string       `json:"set"`
	Errors   []string     `json:"errors,omitempty"`
	Missing  string       `json:"not_recomputable,omitempty"`
	MissedBy string       `json:"wanted_by,omitempty"`
	Policies []verdictOut `json:"policies,omitempty"`
}

type decided struct {
	Decision string   `json:"decision"`
	Reason   string   `json:"reason,omitempty"`
	Policies []string `json:"policies,omitempty"`
}

type verdictOut struct {
	ID      string `json:"id"`
	Place   string `json:"place,omitempty"`
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"`
	Text    string `json:"text"`
}

func decisionOf(d *authz.Decision) *decided {
	out := &decided{Decision: "deny", Reason: string(d.Reason), Policies: d.Policies}
	if d.Allow {
		out.Decision = "allow"
	}
	return out
}

func verdictsOf(verdicts []authz.Verdict, all bool) (out []verdictOut) {
	for _, v := range verdicts {
		if v.Outcome == authz.OutcomeNoMatch && !all {
			continue
		}
		o := verdictOut{ID: v.Policy.ID, Outcome: string(v.Outcome), Error: v.Error, Text: v.Policy.Text, Place: "roles"}
		if v.Policy.File != "" {
			o.Place = fmt.Sprintf("%s:%d", v.Policy.File, v.Policy.Line)
		}
		out = append(out, o)
	}
	return out
}

func (d *decided) String() string {
	s := d.Decision
	if d.Reason != "" {
		s += " (" + d.Reason + ")"
	}
	if len(d.Policies) > 0 {
		s += " by " + strings.Join(d.Policies, ", ")
	}
	return s
}

func (a *app) printExplained(e *explained) error {
	if a.json {
		return a.printJSON(e)
	}
	if e.Recorded != nil {
		a.printf("recorded: %s\n", e.Recorded)
	}
	if e.Missing != "" {
		a.printf("not recomputable: %s", e.Missing)
		if e.MissedBy != "" {
			a.printf(" (wanted by %s)", e.MissedBy)
		}
		a.printf("\n")
	}
	if e.Decision != nil {
		a.printf("decision: %s\n", e.Decision)
	}
	a.printf("set:      %s\n", e.Set)
	for _, text := range e.Errors {
		a.printf("error:    %s\n", text)
	}
	for _, p := range e.Policies {
		a.printf("\n%s: %s (%s)\n", p.Outcome, p.ID, p.Place)
		if p.Error != "" {
			a.printf("  error: %s\n", p.Error)
		}
		for line := range strings.SplitSeq(strings.TrimRight(p.Text, "\n"), "\n") {
			a.printf("    %s\n", line)
		}
	}
	return nil
}

func (a *app) policyDiffCommand() *cobra.Command {
	var cand candidate
	var r readFlags
	var against, tests string
	var recorded bool
	c := &cobra.Command{
		Use:   "diff --candidate DIR [--against DIR]",
		Short: "Compare two policy sets: which policies differ, which cases and recorded decisions flip",
		Long: `Compare two policy sets: which policies were added, removed or changed, which
test cases are decided otherwise, and with --recorded which recorded decisions
would be. The exit code is 1 if anything is decided otherwise.`,
		Example: "  gatebook policy diff --candidate policies-next --recorded --since 24h --reveal",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if cand.dir == "" {
				return usagef("name the other set with --candidate")
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			was, err := inForce(f)
			if against != "" {
				was, err = (&candidate{dir: against}).build(f, "")
			}
			if err != nil {
				return err
			}
			is, err := cand.build(f, "")
			if err != nil {
				return err
			}
			out, err := compareSets(was, is, testsOf(f, tests))
			if err != nil {
				return err
			}
			if recorded {
				if out.Replay, err = a.replay(c, f, &replayJob{is: is, was: was, read: &r}); err != nil {
					return err
				}
			}
			return a.printDiff(out)
		},
	}
	cand.add(c, "the other set")
	r.add(c)
	c.Flags().StringVar(&against, "against", "", "the first set (default: that of the configuration)")
	c.Flags().StringVar(&tests, "tests", "", "directory of test cases (default: policies.tests)")
	c.Flags().BoolVar(&recorded, "recorded", false, "look at recorded decisions too")
	return c
}

// setDiff is what differs between two sets.
type setDiff struct {
	Was      string         `json:"was"`
	Is       string         `json:"is"`
	Policies []authz.Change `json:"policies"`
	Cases    []caseFlip     `json:"cases"`
	Ran      int            `json:"cases_run"`
	Replay   *replayReport  `json:"recorded,omitempty"`
}

type caseFlip struct {
	File string   `json:"file"`
	Name string   `json:"case"`
	Was  *decided `json:"was"`
	Is   *decided `json:"is"`
}

func compareSets(was, is *authz.Engine, tests string) (*setDiff, error) {
	out := &setDiff{Was: was.SetHash(), Is: is.SetHash(), Policies: was.Changes(is)}
	if tests == "" {
		return out, nil
	}
	a, err := was.RunCases(tests)
	if err != nil {
		return nil, &usageError{err}
	}
	b, err := is.RunCases(tests)
	if err != nil {
		return nil, &usageError{err}
	}
	out.Ran = len(a.Results)
	for i := range a.Results {
		x, y := &a.Results[i], &b.Results[i] // the same files in the same order
		if !x.Decision.Same(&y.Decision) {
			out.Cases = append(out.Cases, caseFlip{x.File, x.Name, decisionOf(&x.Decision), decisionOf(&y.Decision)})
		}
	}
	return out, nil
}

func (a *app) printDiff(d *setDiff) error {
	flips := 0
	for _, c := range d.Cases {
		if c.Was.Decision != c.Is.Decision {
			flips++
		}
	}
	if a.json {
		if err := json.NewEncoder(obs.PlainWriter(a.Out)).Encode(d); err != nil {
			return err
		}
	} else {
		a.printf("set %s -> %s\n", d.Was, d.Is)
		for _, p := range d.Policies {
			a.printf("%-8s %s\n", p.What, p.ID)
		}
		for _, c := range d.Cases {
			a.printf("case %q (%s): %s -> %s\n", c.Name, c.File, c.Was, c.Is)
		}
		a.printf("%d policies differ; %d cases, %d flip\n", len(d.Policies), d.Ran, flips)
		if d.Replay != nil {
			a.printReplay(d.Replay)
		}
	}
	if flips > 0 || d.Replay != nil && d.Replay.Flipped > 0 {
		return &exitError{ExitFailure, nil}
	}
	return nil
}
