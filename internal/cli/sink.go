package cli

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/desk/admin"
)

func (a *app) sinkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "sink",
		Short: "Delivery of records to outside systems",
		Long: `See and steer how the running server delivers records to its sinks. The book is
the queue: a sink owns a cursor, the first record that is not settled, so one
that is paused or away loses nothing. Whatever changes something is recorded
first, with who did it.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.sinkStatusCommand(), a.sinkQuarantineCommand(), a.sinkTestCommand(),
		a.sinkActCommand("pause", "Stop delivering to a sink", `Deliver nothing to a sink until it is resumed, restarts of the server included. Its
cursor stays. The command returns when nothing is under way any more.`, "paused"),
		a.sinkActCommand("resume", "Deliver to a sink again", `Deliver to a sink again that was paused, by "gatebook sink pause" or because it
refused a credential or has lost its index, with what it lacks.`, "resumed"),
		a.sinkReplayCommand(), a.sinkRequeueCommand(), a.sinkWaiveCommand())
	return c
}

const sinksPath = "/api/v1/sinks"

// sinkPath is the path of a call about one sink.
func sinkPath(name, call string) string {
	p := sinksPath + "/" + url.PathEscape(name)
	if call != "" {
		p += "/" + call
	}
	return p
}

// sinkPost does an act upon a sink.
func (c *client) sinkPost(name, call string, req any) (out admin.SinkActed, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return out, err
	}
	return out, c.call("POST", sinkPath(name, call), body, decodeInto(&out))
}

func (a *app) sinkStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show how delivery to all sinks, or to one, stands",
		Long: `Show how delivery stands: the grade that the sink can confirm (G0 sent, G1
accepted, G2 durable by its own protocol, G3 read back and compared), the cursor,
how many records it lacks and how old the oldest of them is, what is in
quarantine, and why it is not delivering if it is not. The exit code is 1 if a
sink is paused by its own fault, has records in quarantine or lags beyond
alarm_after.`,
		Example: `  gatebook sink status
  gatebook sink status siem --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			all := []admin.SinkStatus{}
			if len(args) == 0 {
				err = cl.call("GET", sinksPath, nil, decodeInto(&all))
			} else {
				all = append(all, admin.SinkStatus{})
				err = cl.call("GET", sinkPath(args[0], ""), nil, decodeInto(&all[0]))
			}
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(all)
			} else {
				a.printSinks(all)
			}
			if err == nil && slices.ContainsFunc(all, func(s admin.SinkStatus) bool { return s.Alarm != "" }) {
				err = &exitError{ExitFailure, nil}
			}
			return err
		},
	}
}

func (a *app) printSinks(all []admin.SinkStatus) {
	if len(all) == 0 {
		a.printf("no sinks are configured\n")
	}
	for i := range all {
		s := &all[i]
		a.printf("%s  %s  %s  %s\n", s.Name, s.Type, s.Grade, sinkState(s))
		a.printf("  cursor %d, %s behind%s\n", s.Cursor, records(s.Lag), oldest(s.Oldest))
		a.printf("  project %s, personal fields %s\n", s.Project, cmpJoin(s.Fields))
		if s.Quarantine > 0 {
			a.printf("  quarantine %s; see gatebook sink quarantine %s\n", records(uint64(s.Quarantine)), s.Name)
		}
		if n := counts(s.Delivered); n != "" {
			a.printf("  delivered %s, last %s\n", n, s.LastDone.Format(time.RFC3339))
		}
		if n := counts(s.Retries); n != "" {
			a.printf("  tries that failed: %s; %s may have arrived twice\n", n, records(s.Duplicates))
		}
		if s.LastError != "" {
			a.printf("  last error: %s\n", s.LastError)
		}
		if s.Alarm != "" {
			a.printf("  look after it: %s\n", s.Alarm)
		}
	}
}

// sinkState is the state with its reason.
func sinkState(s *admin.SinkStatus) string {
	if s.Why != "" {
		return s.State + " (" + s.Why + ")"
	}
	return s.State
}

func records(n uint64) string {
	if n == 1 {
		return "1 record"
	}
	return strconv.FormatUint(n, 10) + " records"
}

func oldest(seconds float64) string {
	if seconds <= 0 {
		return ""
	}
	return fmt.Sprintf(", the oldest of them %s old", (time.Duration(seconds * float64(time.Second))).Round(time.Second))
}

func cmpJoin(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}

// counts writes numbers by name in the order of the names.
func counts(m map[string]uint64) string {
	var parts []string
	for name, n := range m {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func (a *app) sinkQuarantineCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "quarantine NAME",
		Short: "List the records that a sink would not take",
		Long: `List the records that a sink refused for good, with what it said. They hold up
nothing; each waits until it is sent again (requeue) or given up (waive). The
call is recorded.`,
		Example: "  gatebook sink quarantine siem --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			list := []admin.QuarantinedRecord{}
			if err := cl.call("GET", sinkPath(args[0], "quarantine"), nil, decodeInto(&list)); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(list)
			}
			for _, q := range list {
				a.printf("%d  %s  %s  %s (%d), tried %d times: %s\n", q.Index, q.ID, q.Time.Format(time.RFC3339), q.Cause, q.Status, q.Attempts, q.Detail)
			}
			return nil
		},
	}
}

func (a *app) sinkTestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "test NAME",
		Short: "Ask a sink whether records could be sent",
		Long: `Reach a sink as delivery would, with its certificate and credential, and send
nothing that it would keep. The exit code is 1 if records could not be sent. The
call is recorded.`,
		Example: "  gatebook sink test siem",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.sinkAct(c, args[0], "test", struct{}{}, "records could be sent")
		},
	}
}

func (a *app) sinkActCommand(use, short, long, done string) *cobra.Command {
	return &cobra.Command{
		Use:     use + " NAME",
		Short:   short,
		Long:    long,
		Example: "  gatebook sink " + use + " siem",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.sinkAct(c, args[0], use, struct{}{}, done)
		},
	}
}

// sinkAct does an act upon a sink and says so.
func (a *app) sinkAct(c *cobra.Command, name, call string, req any, done string) error {
	cl, err := a.running(c.Context())
	if err != nil {
		return err
	}
	out, err := cl.sinkPost(name, call, req)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(out)
	}
	if out.Count > 0 {
		done = records(out.Count) + " " + done
	}
	a.printf("%s: %s\n", out.Sink, done)
	return nil
}

func (a *app) sinkReplayCommand() *cobra.Command {
	var from, to uint64
	c := &cobra.Command{
		Use:   "replay NAME --from INDEX [--to INDEX]",
		Short: "Send records to a sink again",
		Long: `Send the records from one index up to another (without it), or up to the cursor,
to a sink once more: after a sink has lost what it had, or was replaced. Each has
the id that it had, so a sink that tells by ids keeps no second copy; others do.`,
		Example: `  gatebook sink replay siem --from 0
  gatebook sink replay siem --from 120000 --to 130000`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("to") && to <= from {
				return usagef("nothing to replay: --to must be greater than --from")
			}
			return a.sinkAct(c, args[0], "replay", admin.SinkReplay{From: from, To: to}, "are sent again")
		},
	}
	c.Flags().Uint64Var(&from, "from", 0, "first index")
	c.Flags().Uint64Var(&to, "to", 0, "index behind the last (the cursor)")
	if err := c.MarkFlagRequired("from"); err != nil {
		panic(err) // the flag is defined above
	}
	return c
}

func (a *app) sinkRequeueCommand() *cobra.Command {
	return a.sinkPickCommand("requeue", "Send quarantined records again", `Send records from the quarantine of a sink again, after what it disliked was put
right there. Those that it refuses again come back.`, "are sent again")
}

func (a *app) sinkWaiveCommand() *cobra.Command {
	return a.sinkPickCommand("waive", "Give quarantined records up", `Give up delivering records of the quarantine of a sink. They stay in the book; the
record of this act says that the sink does not have them.`, "given up")
}

func (a *app) sinkPickCommand(use, short, long, done string) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     use + " NAME INDEX...",
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  gatebook sink %[1]s siem 4711 4712\n  gatebook sink %[1]s siem --all", use),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			pick := admin.SinkPick{All: all}
			for _, s := range args[1:] {
				n, err := strconv.ParseUint(s, 10, 64)
				if err != nil {
					return usagef("not an index: %q", s)
				}
				pick.Indexes = append(pick.Indexes, n)
			}
			if all == (len(pick.Indexes) > 0) {
				return usagef("name quarantined records by index, or give --all")
			}
			return a.sinkAct(c, args[0], use, pick, done)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all that are in quarantine")
	return c
}
