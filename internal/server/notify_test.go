package server

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// manager is the socket of a service manager.
func manager(t *testing.T, name string) func() string {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() string {
		t.Helper()
		buf := make([]byte, 4096)
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestNotifierSays(t *testing.T) {
	abstract := "@gatebook-test-" + strconv.Itoa(os.Getpid())
	for _, name := range []string{filepath.Join(t.TempDir(), "s"), abstract} {
		heard := manager(t, name)
		n, err := newNotifier(environment("NOTIFY_SOCKET", name), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			say  func()
			want string
		}{
			{func() { n.ready("2 listeners") }, `^READY=1\nSTATUS=2 listeners$`},
			{n.reloading, `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\nSTATUS=reloading$`},
			{n.stopping, `^STOPPING=1\nSTATUS=draining$`},
		} {
			c.say()
			if got := heard(); !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("%s: heard %q, want %s", name, got, c.want)
			}
		}
		if n.watchdog != 0 {
			t.Errorf("a watchdog of %v that nobody asked for", n.watchdog)
		}
	}
}

func TestNotifierWatchdog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	heard := manager(t, name)
	n, err := newNotifier(environment("NOTIFY_SOCKET", name, "WATCHDOG_USEC", "3000", "WATCHDOG_PID", strconv.Itoa(os.Getpid())), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	probes, stuck, ended := make(chan int), make(chan bool), make(chan error)
	go func() {
		i := 0
		ended <- n.run(ctx, func() {
			select {
			case probes <- i:
				i++
			case <-stuck:
			}
		})
	}()
	for range 3 {
		<-probes
		if got := heard(); got != "WATCHDOG=1" {
			t.Fatalf("heard %q", got)
		}
	}
	cancel()
	close(stuck)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestNotifierEnvironment(t *testing.T) {
	for _, c := range []struct {
		name string
		env  []string
		fail string
	}{
		{"nobody asked", nil, ""},
		{"watchdog without a socket", []string{"WATCHDOG_USEC", "nonsense"}, ""},
		{"somebody else is watched", []string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "nonsense", "WATCHDOG_PID", "1"}, ""},
		{"relative", []string{"NOTIFY_SOCKET", "run/s"}, "NOTIFY_SOCKET"},
		{"vsock", []string{"NOTIFY_SOCKET", "vsock:2:1234"}, "NOTIFY_SOCKET"},
		{"no number", []string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "1s"}, "WATCHDOG_USEC"},
		{"zero", []string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "0"}, "WATCHDOG_USEC"},
		{"too long", []string{"NOTIFY_SOCKET", "/s", "WATCHDOG_USEC", "9223372036854775807"}, "WATCHDOG_USEC"},
	} {
		n, err := newNotifier(environment(c.env...), slog.New(slog.DiscardHandler))
		switch {
		case c.fail == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.fail == "" && n.watchdog != 0:
			t.Errorf("%s: watchdog %v", c.name, n.watchdog)
		case c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)):
			t.Errorf("%s: error %v", c.name, err)
		}
	}
}

// A manager that went away is logged, and that is all.
func TestNotifierUnheard(t *testing.T) {
	var log strings.Builder
	n, err := newNotifier(environment("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody")), slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	n.ready("x")
	if !strings.Contains(log.String(), "READY=1") {
		t.Errorf("log: %q", log.String())
	}
}
