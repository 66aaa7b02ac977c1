package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/obs"
)

// readFlags are what searches share.
type readFlags struct {
	since, until string
	reveal       bool
	limit        int
}

func (r *readFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&r.since, "since", "", "only records from this time on: RFC 3339, a day (UTC), or an age such as 15m or 7d")
	f.StringVar(&r.until, "until", "", "only records before this time")
	f.BoolVar(&r.reveal, "reveal", false, "open personal parts; this is recorded")
	f.IntVar(&r.limit, "limit", 0, "only the newest so many")
}

func (r *readFlags) query(expr []string, now time.Time) (q query.Query, err error) {
	q = query.Query{Expr: strings.Join(expr, " "), Reveal: r.reveal, Limit: r.limit}
	if q.Since, err = parseTime(r.since, now); err != nil {
		return q, fmt.Errorf("--since: %w", err)
	}
	if q.Until, err = parseTime(r.until, now); err != nil {
		return q, fmt.Errorf("--until: %w", err)
	}
	if q.Limit < 0 {
		return q, usagef("--limit must not be negative")
	}
	return q, nil
}

func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(s); err == nil {
		if age < 0 {
			return time.Time{}, usagef("%q lies ahead; ages are written without a sign", s)
		}
		return now.Add(-age), nil
	}
	if age, err := config.ParseDuration(s); err == nil {
		return now.Add(-age.Std()), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("%q is neither an age such as 15m or 7d nor a time such as 2027-01-31 or 2027-01-31T12:00:00Z", s)
}

func (a *app) searchCommand() *cobra.Command {
	var r readFlags
	c := &cobra.Command{
		Use:   "search [EXPR]",
		Short: "Print the records that match an expression over their fields",
		Example: `  gatebook search 'status >= 400 && route == "orders.read"' --since 1h
  gatebook search 'authz.decision == "deny"' --json
  gatebook search 'personal.ip == "203.0.113.7"' --reveal`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) (err error) {
			q, err := r.query(args, time.Now())
			if err != nil {
				return err
			}
			src, done, err := a.open(c.Context(), "search", "", r.reveal)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			return asUsage(src.Search(q, a.printMatch))
		},
	}
	r.add(c)
	return c
}

// asUsage gives a bad expression the exit code of a bad command line.
func asUsage(err error) error {
	if query.IsUsage(err) {
		return &usageError{err}
	}
	return err
}

// printMatch prints one record: JSON lines, or a line for people.
func (a *app) printMatch(m *query.Match) error {
	if a.json {
		return json.NewEncoder(obs.PlainWriter(a.Out)).Encode(m)
	}
	_, err := fmt.Fprintln(a.Out, oneLine(m))
	return err
}

func (a *app) showCommand() *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:     "show ID",
		Short:   "Print the record of one exchange",
		Example: "  gatebook show 019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b --reveal",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			src, done, err := a.open(c.Context(), "show", args[0], reveal)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			m, err := src.Find(args[0], reveal)
			if err != nil {
				return asUsage(err)
			}
			return a.printJSON(m)
		},
	}
	c.Flags().BoolVar(&reveal, "reveal", false, "open the personal part; this is recorded")
	return c
}

func (a *app) countCommand() *cobra.Command {
	var r readFlags
	var by string
	var records bool
	c := &cobra.Command{
		Use:   "count [EXPR] --by FIELD",
		Short: "Count matching exchanges by the value of a field",
		Long: `Count matching exchanges by the value of a field. A record into which a flood
of refusals was folded counts as often as it says; with --records each record
counts once.`,
		Example: "  gatebook count --by error.reason 'status == 401' --since 24h",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) (err error) {
			q, err := r.query(args, time.Now())
			if err != nil {
				return err
			}
			src, done, err := a.open(c.Context(), "count", "", r.reveal)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			counts, err := src.Count(by, q, records)
			if err != nil {
				return asUsage(err)
			}
			if a.json {
				return a.printJSON(counts)
			}
			for _, n := range counts {
				a.printf("%8d  %s\n", n.Count, obs.Plain(orNone(n.Value)))
			}
			return nil
		},
	}
	r.add(c)
	c.Flags().StringVar(&by, "by", "route", "field, or expression, to count by")
	c.Flags().BoolVar(&records, "records", false, "count records, not exchanges")
	return c
}

// orNone names the value of a field that is absent.
func orNone(value string) string {
	if value == "" {
		return "(none)"
	}
	return value
}

func (a *app) proveCommand() *cobra.Command {
	var reveal bool
	var out string
	c := &cobra.Command{
		Use:   "prove ID",
		Short: "Write a proof that a record is in the log, with the record; verify accepts it offline",
		Example: `  gatebook prove 019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b -o order.tlog-proof
  gatebook verify order.tlog-proof --key "$(cat log.vkey)"`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			src, done, err := a.open(c.Context(), "prove", args[0], reveal)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			b, err := src.Prove(args[0], reveal)
			if err != nil {
				return asUsage(err)
			}
			if out == "" || out == "-" {
				_, err = a.Out.Write(b)
				return err
			}
			return os.WriteFile(out, b, 0o600)
		},
	}
	c.Flags().BoolVar(&reveal, "reveal", false, "disclose the personal part too; this is recorded")
	c.Flags().StringVarP(&out, "output", "o", "", "file to write (standard output)")
	return c
}
