package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notifier tells the service manager how the server is, by the protocol of
// sd_notify(3): one datagram for each change, to the socket that NOTIFY_SOCKET
// names. Without that variable nobody asked and nothing is sent. A manager that
// does not listen is logged and never stops the gate. Safe for concurrent use.
type notifier struct {
	to       *net.UnixAddr // nil: nobody asked
	watchdog time.Duration // the manager restarts a service that is silent for so long; 0: it does not watch
	log      *slog.Logger
}

// newNotifier reads what the manager put into the environment, and fails on
// what cannot be meant: the unit would never become active.
func newNotifier(getenv func(string) string, log *slog.Logger) (*notifier, error) {
	n := &notifier{log: log}
	name := getenv("NOTIFY_SOCKET")
	if name == "" {
		return n, nil
	}
	if name[0] != '/' && name[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET is %q; only paths and abstract names (@...) are understood", name)
	}
	n.to = &net.UnixAddr{Name: name, Net: "unixgram"}
	if pid := getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n, nil // it watches somebody else
	}
	if text := getenv("WATCHDOG_USEC"); text != "" {
		usec, err := strconv.ParseInt(text, 10, 64)
		if err != nil || usec <= 0 || usec > int64(maxWatchdog/time.Microsecond) {
			return nil, fmt.Errorf("WATCHDOG_USEC is %q; it is a positive number of microseconds, at most a day", text)
		}
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n, nil
}

// maxWatchdog is far above what makes sense and far below an overflow.
const maxWatchdog = 24 * time.Hour

// ready says that everything listens, at the start and after a reload.
func (n *notifier) ready(status string) { n.send("READY=1", "STATUS="+status) }

// tellReady tells the service manager which configuration is in force.
func (s *Server) tellReady() { s.notify.ready("serving, snapshot " + s.now.Load().parts.snapshot.ID()) }

// reloading says that a reload has begun; ready must follow, whatever became of it. The
// time lets the manager tell this reload from an earlier one.
func (n *notifier) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		n.log.Warn("the service manager was not told of the reload", "err", err)
		return
	}
	n.send("RELOADING=1", "MONOTONIC_USEC="+strconv.FormatInt(now.Nano()/1000, 10), "STATUS=reloading")
}

// stopping says that the server drains and will end.
func (n *notifier) stopping() { n.send("STOPPING=1", "STATUS=draining") }

// run feeds the manager's watchdog until ctx ends. Before each sign of life it
// calls probe, which should take the locks that everything needs: a server that
// is stuck falls silent. What probe finds out is not asked; a full disk, say, is
// no reason for a restart.
func (n *notifier) run(ctx context.Context, probe func()) error {
	if n.watchdog == 0 {
		return nil
	}
	tick := time.NewTicker(n.watchdog / 3)
	defer tick.Stop()
	for {
		probe()
		n.send("WATCHDOG=1")
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// send sends one datagram. Values must be of one line.
func (n *notifier) send(lines ...string) {
	if n.to == nil {
		return
	}
	c, err := net.DialUnix("unixgram", nil, n.to)
	if err == nil {
		_ = c.SetWriteDeadline(time.Now().Add(notifyWait))
		_, err = c.Write([]byte(strings.Join(lines, "\n")))
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		n.log.Warn("the service manager was not told", "what", lines[0], "err", err)
	}
}

// notifyWait bounds the wait for a manager whose queue is full.
const notifyWait = 5 * time.Second
