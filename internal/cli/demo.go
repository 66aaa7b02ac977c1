package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/gatebook/gatebook/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a whole gate at work on this machine, with nothing to prepare",
		Long: `Show a whole gate at work on this machine, with nothing to prepare: a TLS gate,
an API behind it, an issuer with three people, policies, a limit and a book, all
on loopback and in a temporary folder. Six scenes are played, their records
found, verified and proved, and two spoiled copies found out. Then the gate
serves on, with command lines to paste, until Ctrl-C.

With --once it ends there: exit code 0 means that all went as promised.`,
		Example: "  gatebook demo\n  gatebook demo --once --keep /tmp/demo",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.json {
				return usagef("the demo is for people to read; there is no --json")
			}
			if c.Flag("config").Changed {
				return usagef("the demo makes a configuration of its own; there is no --config")
			}
			// A reader that goes away, such as head, must not leave the
			// folder behind: the write fails instead of ending the process.
			signal.Ignore(unix.SIGPIPE)
			var err error
			if o.Program, err = programPath(); err != nil {
				return err
			}
			o.Out, o.Colour, o.NoProxy = a.Out, colourful(a.Out), proxied()
			o.Command = func(ctx context.Context, args []string, out, errs io.Writer) int {
				return Run(ctx, args, IO{In: a.In, Out: out, Err: errs})
			}
			err = demo.Run(c.Context(), o)
			var usage *demo.UsageError
			if errors.As(err, &usage) {
				return &usageError{err}
			}
			return err
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Once, "once", false, "end after the scripted part")
	f.BoolVar(&o.Quiet, "quiet", false, "do not print the scripted part")
	f.StringVar(&o.Keep, "keep", "", "folder to put everything into and to leave, new or empty")
	return c
}

// programPath is where this program can be called: the path that was typed or
// found in PATH if that is this program, since a link may have a better name
// than the file behind it.
func programPath() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	found, err := exec.LookPath(os.Args[0])
	if err != nil {
		return self, nil
	}
	if found, err = filepath.Abs(found); err != nil {
		return self, nil
	}
	one, err1 := os.Stat(self)
	other, err2 := os.Stat(found)
	if err1 == nil && err2 == nil && os.SameFile(one, other) {
		return found, nil
	}
	return self, nil
}

// colourful tells whether w is a terminal whose user has not asked for plain
// text (no-color.org).
func colourful(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// proxied tells whether curl would send https requests through a proxy.
func proxied() bool {
	for _, name := range []string{"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}
