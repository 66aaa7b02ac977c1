// Package cli is the commands. Each talks to the admin socket of a running
// server, or takes the lock and reads the book offline.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/evidence"
	"github.com/gatebook/gatebook/internal/obs"
	"github.com/gatebook/gatebook/internal/server"
)

// Exit codes; they are documented in docs/operate.md and tested.
const (
	ExitOK        = 0
	ExitFailure   = 1
	ExitUsage     = 2
	ExitNotFound  = 3
	ExitDenied    = 4
	ExitDamaged   = 10
	ExitTruncated = 11
	ExitUnsure    = 12
	ExitLocked    = 13
	ExitKeyless   = 14
)

// IO is what a command reads and writes.
type IO struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
}

// exitError ends a command with a code of its own.
type exitError struct {
	code int
	err  error // nil: everything was said already
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

// Run runs one command line and returns the exit code.
func Run(ctx context.Context, args []string, stdio IO) int {
	a := &app{IO: stdio}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil && a.unsaid != nil {
		err = fmt.Errorf("writing the answer: %w", a.unsaid)
	}
	if err == nil {
		return ExitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	var e *exitError
	if !errors.As(err, &e) || e.err != nil {
		fmt.Fprintln(obs.PlainWriter(stdio.Err), "gatebook:", err)
	}
	return codeOf(err)
}

// codeOf maps an error to its documented exit code.
func codeOf(err error) int {
	var e *exitError
	var usage *usageError
	var damage *ledger.Damage
	var problems *config.Problems
	var given *ledger.GivenError
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &usage), errors.As(err, &problems), errors.As(err, &given):
		return ExitUsage
	case server.IsRestored(err):
		return ExitTruncated
	case server.IsLocked(err):
		return ExitLocked
	case server.IsNotFound(err):
		return ExitNotFound
	case server.IsKeyless(err):
		return ExitKeyless
	case errors.Is(err, evidence.ErrProof), server.IsDamagedState(err):
		return ExitDamaged
	case errors.As(err, &damage):
		if damage.Kind == ledger.Truncated {
			return ExitTruncated
		}
		return ExitDamaged
	}
	return ExitFailure
}

// usageError is a command line that cannot be understood.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, a ...any) error { return &usageError{fmt.Errorf(format, a...)} }

// app is what all commands share.
type app struct {
	IO
	configFile string
	json       bool
	unsaid     error // the first failure of printf
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "gatebook",
		Short:         "An identity-aware API proxy whose access log stands up in an audit",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().StringVarP(&a.configFile, "config", "c", "/etc/gatebook/gatebook.yaml", "configuration file")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	root.AddCommand(
		a.initCommand(), a.checkCommand(), a.serveCommand(), a.demoCommand(),
		a.verifyCommand(), a.searchCommand(), a.showCommand(), a.countCommand(), a.proveCommand(),
		a.backupCommand(), a.restoreCommand(), a.bookCommand(), a.apikeyCommand(),
		a.tailCommand(), a.doctorCommand(), a.reloadCommand(), a.policyCommand(), a.tokenCommand(), a.sessionCommand(), a.sinkCommand(), a.detectCommand(),
		a.statusCommand(), a.versionCommand(), a.manCommand(),
	)
	wrapArgs(root)
	return root
}

// flagError says how to give an argument that looks like an option, as ids and
// filters may.
func flagError(c *cobra.Command, err error) error {
	var no interface{ GetSpecifiedShortnames() string } // pflag's errors about -x
	if errors.As(err, &no) && no.GetSpecifiedShortnames() != "" {
		arg := "-" + no.GetSpecifiedShortnames()
		return usagef("%w; if %s is not meant as options, put -- before it: %s -- %s", err, arg, c.CommandPath(), arg)
	}
	return &usageError{err}
}

// wrapArgs makes wrong arguments of a command and those below it usage errors.
func wrapArgs(c *cobra.Command) {
	args := c.Args
	c.Args = func(c *cobra.Command, given []string) error {
		if err := args(c, given); err != nil {
			return &usageError{err}
		}
		return nil
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// load reads and checks the configuration.
func (a *app) load() (*config.File, error) {
	f, err := config.Load(a.configFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("%w; name one with --config, or make one with \"gatebook init\"", err)
	}
	return f, err
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(obs.PlainWriter(a.Out))
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printf prints for people. That it failed is told at the end.
func (a *app) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(obs.PlainWriter(a.Out), format, args...); err != nil && a.unsaid == nil {
		a.unsaid = err
	}
}
