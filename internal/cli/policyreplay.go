package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/obs"
)

// decisionsOnly leaves what no policies decided, and what only tells of shadow
// policies, out.
const decisionsOnly = `authz.set != "" and kind in ["request", "interrupted"]`

// replayJob says what recorded decisions are compared with.
type replayJob struct {
	is   *authz.Engine // nil: each with the set that made it
	was  *authz.Engine // nil: the recorded decision itself
	read *readFlags
}

// replayReport is what became of recorded decisions.
type replayReport struct {
	Decisions  int64   `json:"decisions"`
	Recomputed int64   `json:"recomputed"`
	Flipped    int64   `json:"flipped"`
	Changed    int64   `json:"other_policies"` // the same answer for other reasons
	Missing    []tally `json:"not_recomputable"`
	Flips      []flip  `json:"flips"` // by what flips and why
	Set        string  `json:"set,omitempty"`
	Seconds    float64 `json:"seconds"`
}

type tally struct {
	Why   string   `json:"why"`
	By    []string `json:"wanted_by,omitempty"` // policies
	Count int64    `json:"count"`
}

type flip struct {
	Was      string   `json:"was"`
	Is       string   `json:"is"`
	Policies []string `json:"policies"` // that make the difference; none: a denial by default
	Count    int64    `json:"count"`
	IDs      []string `json:"ids"` // the first few
}

// maxIDs is how many ids of flips are named.
const maxIDs = 10

func (a *app) policyReplayCommand() *cobra.Command {
	var cand candidate
	var r readFlags
	var asRecorded bool
	c := &cobra.Command{
		Use:   "replay --candidate DIR | --as-recorded",
		Short: "Make recorded decisions again by other policies, and tell which flip and by which policy",
		Long: `Make recorded decisions again: by candidate policies, to see what would change, or
with --as-recorded each by the very set that made it, to see that it comes out the
same. Only what the record keeps is used. A decision that could depend on anything
else is counted as not recomputable, with what is missing and which policy wants
it; nothing is guessed. Without --reveal that is all that depends on a person's
id, address, path or claims; --reveal is recorded.

The exit code is 1 if a decision flips, or with --as-recorded comes out otherwise.`,
		Example: "  gatebook policy replay --candidate policies-next --since 24h --reveal\n  gatebook policy replay --as-recorded --reveal",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if (cand.dir != "") == asRecorded {
				return usagef("name either --candidate or --as-recorded")
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			job := &replayJob{read: &r}
			if cand.dir != "" {
				if job.is, err = cand.build(f, ""); err != nil {
					return err
				}
			}
			rep, err := a.replay(c, f, job)
			if err != nil {
				return err
			}
			if a.json {
				err = json.NewEncoder(obs.PlainWriter(a.Out)).Encode(rep)
			} else {
				a.printReplay(rep)
			}
			if err == nil && (rep.Flipped > 0 || asRecorded && rep.Changed > 0) {
				err = &exitError{ExitFailure, nil}
			}
			return err
		},
	}
	cand.add(c, "policies to replay with")
	r.add(c)
	c.Flags().BoolVar(&asRecorded, "as-recorded", false, "make each decision again by the set that made it")
	return c
}

// replay reads the decisions and makes them again, a batch at a time on every
// processor.
func (a *app) replay(c *cobra.Command, f *config.File, job *replayJob) (_ *replayReport, err error) {
	start := time.Now()
	q, err := job.read.query([]string{decisionsOnly}, start)
	if err != nil {
		return nil, err
	}
	src, done, err := a.open(c.Context(), "policy_replay", "", q.Reveal)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	r := newReplay(f, job)
	if err := r.run(src, q); err != nil {
		return nil, asUsage(err)
	}
	rep := r.total.report()
	if job.is != nil {
		rep.Set = job.is.SetHash()
	}
	rep.Seconds = time.Since(start).Seconds()
	return rep, nil
}

// replayRun is one replay under way.
type replayRun struct {
	file  *config.File
	job   *replayJob
	mu    sync.Mutex // of total and err
	total *sums
	err   error
}

func newReplay(f *config.File, job *replayJob) *replayRun {
	return &replayRun{file: f, job: job, total: newSums()}
}

// batch is how many records are handed over at once.
const batch = 256

func (r *replayRun) run(src source, q query.Query) error {
	work := make(chan []query.Match, 4)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { r.worker(work) })
	}
	var next []query.Match
	err := src.Search(q, func(m *query.Match) error {
		next = append(next, query.Match{Index: m.Index, Frame: slices.Clone(m.Frame), Personal: slices.Clone(m.Personal)})
		if len(next) == batch {
			work <- next
			next = make([]query.Match, 0, batch)
		}
		return nil
	})
	if err == nil && len(next) > 0 {
		work <- next
	}
	close(work)
	wg.Wait()
	return errors.Join(err, r.err)
}

// worker owns a replayer and sums of its own.
func (r *replayRun) worker(work <-chan []query.Match) {
	p, s := newReplayer(r.file), newSums()
	var failed error
	for list := range work {
		for i := range list {
			if failed != nil {
				break // only empty the channel
			}
			rec, err := parseRecorded(&list[i])
			if err != nil {
				failed = err
				break
			}
			r.one(p, s, rec)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total.merge(s)
	r.err = errors.Join(r.err, failed)
}

// one judges one decision.
func (r *replayRun) one(p *replayer, s *sums, rec *recorded) {
	s.decisions++
	if r.job.is == nil {
		is, why, by := p.asRecorded(rec)
		if why != "" {
			s.missing(why, by)
			return
		}
		was := rec.decision()
		s.compare(rec.ID, &was, &is, sameAsRecorded(&was, &is))
		return
	}
	q, g, why := p.request(rec, r.job.is)
	if why != "" {
		s.missing(why, "")
		return
	}
	is, why, by := r.job.is.Recompute(q, g)
	if why != "" {
		s.missing(why, by)
		return
	}
	was := rec.decision()
	if r.job.was != nil {
		if was, why, by = p.again(rec, r.job.was); why != "" {
			s.missing(why, by)
			return
		}
	}
	if is.Allow != was.Allow {
		switch ok, sure := p.routeScopes(rec, q, g); {
		case !sure:
			s.missing("the scopes that the route demands were not kept in the record", "")
			return
		case !ok:
			is.Allow, was.Allow = false, false
		}
	}
	s.compare(rec.ID, &was, &is, was.Same(&is))
}

// sums is what a replay counts.
type sums struct {
	decisions, recomputed, changed int64
	lack                           map[string]*tally
	flips                          map[string]*flip
}

func newSums() *sums { return &sums{lack: map[string]*tally{}, flips: map[string]*flip{}} }

func (s *sums) missing(why, by string) {
	t := s.lack[why]
	if t == nil {
		t = &tally{Why: why}
		s.lack[why] = t
	}
	t.Count++
	if by != "" && !slices.Contains(t.By, by) && len(t.By) < maxIDs {
		t.By = append(t.By, by)
	}
}

func (s *sums) compare(id string, was, is *authz.Decision, same bool) {
	s.recomputed++
	if was.Allow == is.Allow {
		if !same {
			s.changed++
		}
		return
	}
	fl := flip{Was: decisionOf(was).Decision, Is: decisionOf(is).Decision, Policies: authz.Blame(was, is)}
	key := fl.Was + ">" + fl.Is + " " + strings.Join(fl.Policies, " ")
	have := s.flips[key]
	if have == nil {
		have = &fl
		s.flips[key] = have
	}
	have.Count++
	if len(have.IDs) < maxIDs {
		have.IDs = append(have.IDs, id)
	}
}

func (s *sums) merge(o *sums) {
	s.decisions, s.recomputed, s.changed = s.decisions+o.decisions, s.recomputed+o.recomputed, s.changed+o.changed
	for why, t := range o.lack {
		n := t.Count
		for _, by := range t.By {
			s.missing(why, by)
			n--
		}
		if len(t.By) == 0 {
			s.missing(why, "")
			n--
		}
		s.lack[why].Count += n
	}
	for key, f := range o.flips {
		have := s.flips[key]
		if have == nil {
			s.flips[key] = f
			continue
		}
		have.Count += f.Count
		have.IDs = append(have.IDs, f.IDs...)
	}
}

func (s *sums) report() *replayReport {
	out := &replayReport{Decisions: s.decisions, Recomputed: s.recomputed, Changed: s.changed}
	for _, why := range sortedKeys(s.lack) {
		t := s.lack[why]
		slices.Sort(t.By)
		out.Missing = append(out.Missing, *t)
	}
	for _, key := range sortedKeys(s.flips) {
		f := s.flips[key]
		slices.Sort(f.IDs)
		f.IDs = f.IDs[:min(len(f.IDs), maxIDs)]
		out.Flipped += f.Count
		out.Flips = append(out.Flips, *f)
	}
	slices.SortStableFunc(out.Flips, func(a, b flip) int { return cmp.Compare(b.Count, a.Count) })
	slices.SortStableFunc(out.Missing, func(a, b tally) int { return cmp.Compare(b.Count, a.Count) })
	return out
}

func (a *app) printReplay(r *replayReport) {
	for _, f := range r.Flips {
		by := "by default"
		if len(f.Policies) > 0 {
			by = strings.Join(f.Policies, ", ")
		}
		a.printf("%8d  %s -> %s  %s\n", f.Count, f.Was, f.Is, by)
		a.printf("          e.g. %s\n", f.IDs[0])
	}
	for _, t := range r.Missing {
		a.printf("%8d  not recomputable: %s", t.Count, t.Why)
		if len(t.By) > 0 {
			a.printf(" (wanted by %s)", strings.Join(t.By, ", "))
		}
		a.printf("\n")
	}
	a.printf("%d decisions, %d recomputed, %d flip, %d the same answer by other policies (%.1f s)\n",
		r.Decisions, r.Recomputed, r.Flipped, r.Changed, r.Seconds)
}

// explainRecorded makes one recorded decision again and shows the policies.
func (a *app) explainRecorded(c *cobra.Command, f *config.File, id string, cand *candidate, reveal, all bool) (err error) {
	src, done, err := a.open(c.Context(), "policy_explain", id, reveal)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	m, err := src.Find(id, reveal)
	if err != nil {
		return asUsage(err)
	}
	rec, err := parseRecorded(m)
	if err != nil {
		return err
	}
	if rec.Authz.Set == "" {
		return &exitError{ExitNotFound, fmt.Errorf("%s: no policies decided it; \"gatebook doctor %s\" tells what happened", id, id)}
	}
	p := newReplayer(f)
	engine, what := (*authz.Engine)(nil), p.past(rec.Authz.Set)
	if engine = what.engine; cand.dir != "" {
		if engine, err = cand.build(f, ""); err != nil {
			return err
		}
	} else if what.err != nil {
		return what.err
	}
	return a.printExplained(explainRecord(p, rec, engine, all))
}

// explainRecord shows the determining policies of a decision even where it
// cannot be made again.
func explainRecord(p *replayer, rec *recorded, engine *authz.Engine, all bool) *explained {
	was := rec.decision()
	out := &explained{ID: rec.ID, Set: engine.SetHash(), Recorded: decisionOf(&was)}
	q, g, why := p.request(rec, engine)
	if why == "" {
		var is authz.Decision
		if is, why, out.MissedBy = engine.Recompute(q, g); why == "" {
			_, verdicts := engine.Explain(q)
			out.Decision, out.Errors, out.Policies = decisionOf(&is), is.Errors, verdictsOf(verdicts, all)
			return out
		}
	}
	out.Missing = why
	for _, po := range engine.Policies() {
		if slices.Contains(was.Policies, po.ID) {
			outcome := authz.OutcomePermit
			if po.Forbid {
				outcome = authz.OutcomeForbid
			}
			out.Policies = append(out.Policies, verdictsOf([]authz.Verdict{{Policy: po, Outcome: outcome}}, true)...)
		}
	}
	return out
}
