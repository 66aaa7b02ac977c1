package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/server"
)

// running connects to the server of the configuration.
func (a *app) running(ctx context.Context) (*client, error) {
	f, err := a.load()
	if err != nil {
		return nil, err
	}
	if c := dial(ctx, f); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no server answers for %s; start one with \"gatebook serve -c %s\"", f.Data, a.configFile)
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Ask the running server to take the configuration as it is on the disk now",
		Long: `Ask the running server to take the configuration as it is on the disk now. It is
read, checked and built whole before anything changes; if something is wrong the
server goes on as before and the reason is printed here, logged and recorded.
Requests under way end with the configuration that they began with.

Only a restart can change data, node, origin, keys, book, apikeys.issuer,
detect.verifiers, the addresses and kinds of listeners, health.address, admin.socket and admin.address.`,
		Example: "  gatebook check && gatebook reload",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			done, err := cl.reload()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			if done.Before == done.After {
				a.printf("reloaded; nothing that is declared has changed (snapshot %s)\n", done.After)
			} else {
				a.printf("reloaded: snapshot %s, before %s\n", done.After, done.Before)
			}
			for _, w := range done.Warnings {
				a.printf("warning: %s\n", w)
			}
			return nil
		},
	}
}

func (a *app) tailCommand() *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:   "tail [EXPR]",
		Short: "Print matching records as they are made, until Ctrl-C",
		Example: `  gatebook tail 'status >= 500'
  gatebook tail 'kind in ["config", "access", "admin"]' --json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			err = cl.tail(query.Query{Expr: strings.Join(args, " "), Reveal: reveal}, a.printMatch)
			if errors.Is(c.Context().Err(), context.Canceled) {
				return nil // ended by whoever started it
			}
			return err
		},
	}
	c.Flags().BoolVar(&reveal, "reveal", false, "open personal parts; this is recorded")
	return c
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Ask the running server how it and its book are",
		Long: `Ask the running server how it and its book are. The exit code is 1 if it should
get no traffic, or if no server answers.`,
		Example: "  gatebook status --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			s, err := cl.status()
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(s)
			} else {
				a.printStatus(s)
			}
			if err == nil && !s.Ready {
				err = &exitError{ExitFailure, nil}
			}
			return err
		},
	}
}

// printStatus prints what needs no looking after first and what does last.
func (a *app) printStatus(s *server.Status) {
	row := func(name, format string, args ...any) {
		a.printf("%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	row("log", "%s", s.Origin)
	row("leaves", "%d, %d of them signed%s", s.Leaves, s.Signed, age(s.CheckpointAge))
	row("anchor", "%s", s.Anchor)
	row("key", "%s", s.Key)
	row("since", "%s, version %s", s.Since, s.Version)
	row("snapshot", "%s, loaded %s, policies %s", s.Snapshot, s.LoadedAt.Format(time.RFC3339), s.PolicySet)
	if s.FreeBytes >= 0 {
		row("free", "%s for the data", bytesText(s.FreeBytes))
	}
	row("state", "%s, %s: %s", s.State.File, bytesText(s.State.Bytes), apiKeyCounts(s.State.APIKeys))
	row("open", "%d connections", s.Connections)
	for _, l := range s.Listeners {
		row("listener", "%s %s %s", l.Name, l.Serves, l.Address)
		for _, c := range l.Certificates {
			row("", "certificate %s until %s (%s)", strings.Join(c.Names, " "), c.NotAfter.Format(time.RFC3339), c.State)
			if c.Wrong != "" {
				row("", "its changed file is not used: %s", c.Wrong)
			}
		}
	}
	for _, i := range s.Issuers {
		a.printIssuer(row, i)
	}
	for _, u := range s.Upstreams {
		for _, t := range u.Targets {
			state := ""
			if t.Ejected {
				state = ", left out for now"
			}
			row("upstream", "%s %s: %d in flight, %d sent, %d failed%s", u.Name, t.Target, t.InFlight, t.Total, t.Failures, state)
		}
	}
	for i := range s.Sinks {
		k := &s.Sinks[i]
		row("sink", "%s %s %s: %s, %s behind%s", k.Name, k.Type, k.Grade, sinkState(k), records(k.Lag), oldest(k.Oldest))
		for _, why := range k.Alarms {
			row("", "%s", why)
		}
	}
	if s.Floods > 0 || s.Folded > 0 {
		row("floods", "%d under way, %d refusals counted instead of written", s.Floods, s.Folded)
	}
	if l := s.LastReload; l != nil && l.Error != "" {
		row("reload", "refused at %s (%s): %s", l.Time.Format(time.RFC3339), l.Cause, l.Error)
	}
	if s.Lost > 0 {
		row("lost", "%d exchanges wait for a gap record", s.Lost)
	}
	for _, trouble := range [][2]string{{"failed", s.Failed}, {"full", s.Book.Full}, {"keys", s.Book.Keys}, {"sealing", s.Book.Sealing}} {
		if trouble[1] != "" {
			row(trouble[0], "%s", trouble[1])
		}
	}
	if s.Book.Low {
		row("disk", "low: %d MB of %d MB are free", s.Book.Free>>20, s.Book.Total>>20)
	}
	if !s.Ready {
		row("not ready", "%s", s.NotReady)
	}
}

func (a *app) printIssuer(row func(string, string, ...any), i server.IssuerStatus) {
	switch {
	case i.Usable && i.Fetched != nil:
		row("issuer", "%s: %d keys, fetched %s", i.Name, i.Keys, i.Fetched.Format(time.RFC3339))
	default:
		row("issuer", "%s: NO usable keys; its tokens are refused", i.Name)
	}
	for _, r := range i.Refused {
		row("", "key not used: %s", r)
	}
	if i.Error != "" {
		row("", "last fetch failed: %s", i.Error)
	}
}

func age(seconds float64) string {
	if seconds < 0 {
		return ""
	}
	return fmt.Sprintf("; checkpoint %.1f s old", seconds)
}

// bytesText says a size to people.
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
