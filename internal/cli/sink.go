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
cursor stays. What is under way is not called back.`, "paused"),
		a.sinkActCommand("resume", "Deliver to a sink again", `Deliver to a sink again that was paused, by "gatebook sink pause" or because it
refused a credential or has lost its index, with what it lacks.`, "resumed"),
		a.sinkReplayCommand(), a.sinkRequeueCommand(), a.sinkWaiveCommand(), a.sinkSetupCommand())
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
accepted, G2 durable by its own protocol), the cursor, how many records it lacks
and how old the oldest of them is, what is in quarantine, and why it is not
delivering if it is not. The exit code is 1 if a sink takes nothing until somebody
has acted, has records in quarantine or lags beyond alarm_after.`,
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
			if err == nil && slices.ContainsFunc(all, func(s admin.SinkStatus) bool { return len(s.Alarms) > 0 }) {
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
		for _, why := range s.Alarms {
			a.printf("  look after it: %s\n", why)
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
				a.printf("%s  %s  %s  %s %d, tried %d times: %s\n", q.ID, q.Kind, q.Time.Format(time.RFC3339), q.Cause, q.Status, q.Attempts, q.Detail)
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
	switch {
	case out.From != nil:
		done += " " + strconv.FormatUint(*out.From, 10) + " on"
	case call == "requeue" || call == "waive":
		done = records(uint64(out.Count)) + " " + done
	}
	a.printf("%s: %s\n", out.Sink, done)
	return nil
}

func (a *app) sinkReplayCommand() *cobra.Command {
	var from uint64
	var since string
	c := &cobra.Command{
		Use:   "replay NAME --from INDEX | --since TIME",
		Short: "Send records to a sink again",
		Long: `Set the cursor of a sink back, to an index or to the first record of a time, and
send everything from there once more: after a sink has lost what it had, or was
replaced. Each record has the id that it had, so a sink that tells by ids keeps no
second copy; others do. It is also how a sink goes on whose cursor is damaged.`,
		Example: `  gatebook sink replay siem --from 120000
  gatebook sink replay siem --since 2026-11-01T00:00:00Z`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			var req admin.SinkReplay
			if c.Flags().Changed("from") {
				req.From = &from
			}
			if since != "" {
				if req.Since, err = time.Parse(time.RFC3339, since); err != nil {
					return usagef("--since: not a time such as 2026-11-01T00:00:00Z: %q", since)
				}
			}
			if (req.From == nil) == (since == "") {
				return usagef("say from where on: --from INDEX or --since TIME")
			}
			return a.sinkAct(c, args[0], "replay", req, "is sent everything again from index")
		},
	}
	c.Flags().Uint64Var(&from, "from", 0, "first index")
	c.Flags().StringVar(&since, "since", "", "time of the first record")
	return c
}

func (a *app) sinkRequeueCommand() *cobra.Command {
	return a.sinkPickCommand("requeue", "Send quarantined records again", `Send records from the quarantine of a sink again, after what it disliked was put
right there. They stay listed until they were delivered. The exit code is 3 if an id
is not in quarantine; then none is sent.`, "sent again", false)
}

func (a *app) sinkWaiveCommand() *cobra.Command {
	return a.sinkPickCommand("waive", "Give quarantined records up", `Give up delivering records of the quarantine of a sink. They stay in the book; the
record of this act says that the sink does not have them, and why. The exit code is
3 if an id is not in quarantine; then none is given up.`, "given up", true)
}

func (a *app) sinkPickCommand(use, short, long, done string, reasoned bool) *cobra.Command {
	var pick admin.SinkPick
	because := ""
	if reasoned {
		because = ` --reason "test data"`
	}
	c := &cobra.Command{
		Use:     use + " NAME ID...",
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  gatebook sink %[1]s siem 59f2a81bd0c4e6f3-4711%[2]s\n  gatebook sink %[1]s siem --all%[2]s", use, because),
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			pick.IDs = args[1:]
			if pick.All == (len(pick.IDs) > 0) {
				return usagef("name quarantined records by id, or give --all")
			}
			if reasoned && strings.TrimSpace(pick.Reason) == "" {
				return usagef("say why with --reason; it is recorded")
			}
			return a.sinkAct(c, args[0], use, pick, done)
		},
	}
	c.Flags().BoolVar(&pick.All, "all", false, "all that are in quarantine")
	if reasoned {
		c.Flags().StringVar(&pick.Reason, "reason", "", "why they need not be delivered")
	}
	return c
}
