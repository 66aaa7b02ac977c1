package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) detectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "detect",
		Short: "Try rules of detection",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.detectTestCommand())
	return c
}

// detectTry is what detect test is told.
type detectTry struct {
	rules, cases, records string
	since, until          string
	learned               bool
}

func (a *app) detectTestCommand() *cobra.Command {
	var t detectTry
	c := &cobra.Command{
		Use:   "test [--since TIME] [--records FILE] [--rules FILE] | --cases FILE",
		Short: "Tell what the rules of detection would have told, of the book or of cases",
		Long: `Tell what the rules of detection would have told of records that there are: those
of the book, or lines of "gatebook search --json" from a file (- is the standard
input). Nothing is written but the access record of a running server. The rules are
those of the configuration; a file with "rules" and "off", of the form of a file of
cases, is put on top.

Rules that compare with the past begin with what --since begins with, so begin early
enough; until "learn" is over they tell only what is far above their count. With
--learned they are taken to have learned before, and to have found nothing.

With --cases the cases of a file are tried instead, and the exit code is 1 if one
does not go as it says. docs/detection.md has the form.`,
		Example: `  gatebook detect test --since 168h
  gatebook detect test --since 24h --rules candidate.json --learned
  gatebook search --since 24h --json > day.jsonl; gatebook detect test --records day.jsonl
  gatebook detect test --cases rules_test.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if t.cases != "" && (t.rules != "" || t.records != "" || t.since != "" || t.until != "" || t.learned) {
				return usagef("--cases brings its rules and records; it goes with none of the other flags")
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			if t.cases != "" {
				return a.detectCases(f, t.cases)
			}
			return a.detectTrial(c, f, &t)
		},
	}
	fl := c.Flags()
	fl.StringVar(&t.cases, "cases", "", "file of cases to try instead of records")
	fl.StringVar(&t.rules, "rules", "", "file of rules to put on top of those of the configuration")
	fl.StringVar(&t.records, "records", "", "file of records, as \"gatebook search --json\" prints them, instead of the book")
	fl.StringVar(&t.since, "since", "", "only records from this time on: RFC 3339, or an age such as 15m")
	fl.StringVar(&t.until, "until", "", "only records before this time")
	fl.BoolVar(&t.learned, "learned", false, "take the rules to have learned the past already")
	return c
}

// detectCases tries a file of cases.
func (a *app) detectCases(f *config.File, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return &usageError{err}
	}
	results, err := server.DetectCases(f, b)
	if err != nil {
		return &usageError{fmt.Errorf("%s: %w", name, err)}
	}
	failed := 0
	for i := range results {
		r := &results[i]
		if r.OK() {
			continue
		}
		failed++
		if a.json {
			continue
		}
		for _, w := range r.Want {
			a.printf("FAIL %s: case %q: missing: %s\n", name, r.Name, w)
		}
		for _, m := range r.More {
			a.printf("FAIL %s: case %q: not wanted: %s\n", name, r.Name, m)
		}
	}
	if a.json {
		if err := a.printJSON(results); err != nil {
			return err
		}
	} else {
		a.printf("%d cases, %d failed\n", len(results), failed)
	}
	if failed > 0 {
		return &exitError{ExitFailure, nil}
	}
	return nil
}

// detectTrial tries rules on records.
func (a *app) detectTrial(c *cobra.Command, f *config.File, t *detectTry) (err error) {
	q, err := (&readFlags{since: t.since, until: t.until}).query(nil, time.Now())
	if err != nil {
		return err
	}
	var rules []byte
	if t.rules != "" {
		if rules, err = os.ReadFile(t.rules); err != nil {
			return &usageError{err}
		}
	}
	trial, err := server.DetectTrial(f, rules, t.learned)
	if err != nil {
		return &usageError{err}
	}
	see := func(m *query.Match) error { return trial.See(m.Index, m.Frame) }
	if t.records != "" {
		err = a.readLines(t.records, &q, see)
	} else {
		err = a.readBook(c, q, see)
	}
	if err != nil {
		return err
	}
	r := trial.Report()
	if a.json {
		return a.printJSON(r)
	}
	const form = "2006-01-02T15:04:05Z"
	for i := range r.Alerts {
		x := &r.Alerts[i]
		least := ""
		if !x.Exact {
			least = "at least "
		}
		a.printf("%s  %-8s  %s  %s  %s%d since %s\n", x.Last.Format(form), x.Severity, x.Rule, x.Target, least, x.Count, x.First.Format(form))
		for _, id := range x.Links {
			a.printf("          %s\n", id)
		}
	}
	for i := range r.Rules {
		u := &r.Rules[i]
		a.printf("%-24s %d alerts", u.Name, u.Alerts)
		if u.Withheld > 0 {
			a.printf(", %d more in a storm", u.Withheld)
		}
		if u.Learning {
			a.printf(", still learning")
		}
		if u.Failed > 0 {
			a.printf(", no answer for %d records: %s", u.Failed, u.Failure)
		}
		a.printf("\n")
	}
	a.printf("%d records, %d alerts", r.Records, len(r.Alerts))
	if r.Records > 0 {
		a.printf(", from %s to %s", r.First.Format(form), r.Last.Format(form))
	}
	a.printf("\n")
	return nil
}

func (a *app) readBook(c *cobra.Command, q query.Query, see func(*query.Match) error) (err error) {
	src, done, err := a.open(c.Context(), "detect_test", "", false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	return asUsage(src.Search(q, see))
}

// readLines reads records from a file, which are in the order of the book.
func (a *app) readLines(name string, q *query.Query, see func(*query.Match) error) (err error) {
	in := a.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return &usageError{err}
		}
		defer f.Close()
		in = f
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	n, before := 0, uint64(0)
	for lines.Scan() {
		n++
		m, at, err := readLine(lines.Bytes())
		if err == nil && n > 1 && m.Index <= before {
			err = fmt.Errorf("its index %d is not above %d of the line before", m.Index, before)
		}
		if err != nil {
			return usagef("%s: line %d: %w", name, n, err)
		}
		before = m.Index
		if !q.Since.IsZero() && at.Before(q.Since) || !q.Until.IsZero() && !at.Before(q.Until) {
			continue
		}
		if err := see(m); err != nil {
			return usagef("%s: line %d: %w", name, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return usagef("%s: line %d: longer than a record can be", name, n+1)
		}
		return err
	}
	if n == 0 {
		return usagef("%s: there are no records in it: %w", name, io.ErrUnexpectedEOF)
	}
	return nil
}

// readLine reads one record and its time.
func readLine(b []byte) (*query.Match, time.Time, error) {
	var m query.Match
	var frame struct{ Time time.Time }
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, frame.Time, err
	}
	if len(m.Frame) == 0 {
		return nil, frame.Time, errors.New("it has no frame; it is to be a line of \"gatebook search --json\"")
	}
	err := json.Unmarshal(m.Frame, &frame)
	return &m, frame.Time, err
}
