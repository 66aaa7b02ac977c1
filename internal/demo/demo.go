// Package demo shows the product at work on one machine: a gate with a
// certificate of its own, an orders API behind it, an issuer with three people,
// policies, a limit and a book, all on loopback and in one folder. It plays
// six scenes over real sockets, finds their records, verifies and proves them,
// and shows that a changed copy and a cut copy are found out. The gate is
// started from its configuration file as serve does it, and all reading is done
// by the commands that people have.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how a demo goes.
type Options struct {
	Keep    string // folder to make and to leave; empty: a temporary one, removed at the end
	Once    bool   // end after the story instead of serving on
	Quiet   bool   // do not print the story
	Program string // absolute path under which people can call this program

	// Command runs a command line of this program and returns its exit code.
	Command func(ctx context.Context, args []string, out, errs io.Writer) int

	Out     io.Writer
	Colour  bool // Out is a terminal that shows colours
	NoProxy bool // tell curl to use no proxy: the environment names one
}

// storyTime bounds the scripted part.
const storyTime = 2 * time.Minute

// Run plays the demo. Without Once it then serves until ctx ends, which is no
// error; before the story's end it is. If something is not as it must be, that
// is an error, and the folder stays. A *UsageError means that the options
// cannot be.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := makeFolder(o.Keep)
	if err != nil {
		return err
	}
	defer func() { err = leave(dir, &o, err) }()
	h, err := openHouse(ctx, dir)
	if err != nil {
		return orStopped(ctx, err)
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return play(ctx, h, &o)
}

// errStopped means that somebody ended the demo before it had shown all.
var errStopped = errors.New("stopped before the end")

// orStopped tells an end that was asked for, by a signal or because nobody
// reads the output any more, from a failure.
func orStopped(ctx context.Context, err error) error {
	if err != nil && (ctx.Err() != nil || errors.Is(err, unix.EPIPE)) {
		return errStopped
	}
	return err
}

// leave removes the folder unless it was asked for or shows what went wrong.
func leave(dir folder, o *Options, err error) error {
	switch {
	case err != nil && !errors.Is(err, errStopped):
		return fmt.Errorf("%w\nthe folder %s is left for a look; the gate's log is %s", err, dir, logFile)
	case o.Keep != "":
		return err
	}
	return errors.Join(err, os.RemoveAll(string(dir)))
}

// play runs the house around the story.
func play(ctx context.Context, h *house, o *Options) error {
	inner, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- h.run(inner) }()

	s, err := newStory(h, o)
	if err == nil {
		err = s.tell(inner)
	}
	if err == nil && !o.Once {
		err = s.invite()
	}
	if err != nil {
		stop()
		if end := <-ended; end != nil {
			return errors.Join(err, end)
		}
		return orStopped(ctx, err)
	}
	if !o.Once {
		select {
		case <-ctx.Done():
		case err := <-ended:
			return errors.Join(errors.New("the demo stopped by itself"), err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		return err
	}
	if err := s.epilogue(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return orStopped(ctx, s.print.err)
}
