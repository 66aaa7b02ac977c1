package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// beside is the client that does nothing wrong.
type beside struct {
	s     *site
	asked int
}

func (b *beside) one(t *testing.T) float64 {
	t.Helper()
	begun := time.Now()
	if resp := b.s.get("/open/x"); resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	b.asked++
	return float64(time.Since(begun).Microseconds()) / 1000
}

// warm makes connections, buffers and the first files.
func (b *beside) warm(t *testing.T) {
	t.Helper()
	b.s.client.CloseIdleConnections()
	for range 200 {
		b.one(t)
	}
}

// ask asks for a while, 200 times a second at no regular time, so that it is
// not in step with anybody else.
func (b *beside) ask(t *testing.T, period time.Duration) (ms []float64) {
	t.Helper()
	end := time.Now().Add(period)
	next := time.NewTimer(0)
	defer next.Stop()
	for now := range next.C {
		if now.After(end) {
			break
		}
		ms = append(ms, b.one(t))
		next.Reset(2*time.Millisecond + rand.N(6*time.Millisecond))
	}
	return ms
}

// TestFloodBeside is the promise that a flood of strangers does not get into
// the way of others: beside it, the 99th percentile of a client that does
// nothing wrong is at most twice the quiet one.
//
// What is asked is whether the gate makes others wait, not whether a processor
// can be busy: the flood is a process of its own with the lowest priority, and
// it is paced, so that it and the gate together leave most of the machine
// alone. Quiet periods and periods beside the flood take turns, so that what
// else the machine does is in both. The bound is for a machine that does
// nothing else (GATEBOOK_SOAK=1); what others took of it is logged.
func TestFloodBeside(t *testing.T) {
	turns, period, networks, within := max(4/raceShare, 2), time.Second, 4, 0.0
	if os.Getenv("GATEBOOK_SOAK") != "" {
		turns, period, networks, within = 30, 4*time.Second, 16, 2
	}
	up := newUpstream(t)
	s, mesh, _ := floodSite(t, up.URL)
	s.start()
	b := &beside{s: s}
	b.warm(t)
	const rate = 2400
	f := startFlood(t, floodOrder{Public: s.addr, Mesh: mesh, Total: 1 << 30, Rate: rate, Networks: networks})
	var ms [2][]float64 // quiet, and beside the flood
	var used [2]shares
	var last floodReport
	for n := range 2 * turns {
		storm := n % 2
		if storm == 1 {
			f.ask("go")
		}
		before := sharesNow(t, s, f)
		ms[storm] = append(ms[storm], b.ask(t, period)...)
		used[storm].add(sharesNow(t, s, f), before)
		if storm == 1 {
			last = f.ask("hold")
		}
	}
	f.end()
	s.stop()
	s.holds(last, b.asked)
	quiet, beside := p99(ms[0]), p99(ms[1])
	sum := 0
	for _, n := range last.Sent {
		sum += n
	}
	t.Logf("%d requests of strangers, %.0f a second", sum, float64(sum)/(time.Duration(turns)*period).Seconds())
	t.Logf("quiet:            %v", used[0])
	t.Logf("beside the flood: %v", used[1])
	t.Logf("median of %d and %d requests %.2f and %.2f ms, p99 %.2f ms quiet, %.2f ms beside the flood (%.2f times)",
		len(ms[0]), len(ms[1]), quantile(ms[0], 50), quantile(ms[1], 50), quiet, beside, beside/quiet)
	if within > 0 && beside > within*quiet {
		t.Errorf("the client beside the flood waits %.2f times as long as when it is quiet", beside/quiet)
	}
}

func p99(ms []float64) float64 { return quantile(ms, 99) }

func quantile(ms []float64, percent int) float64 {
	if len(ms) == 0 {
		return 0
	}
	ms = slices.Sorted(slices.Values(ms))
	return ms[len(ms)*percent/100]
}

// shares is what was taken of the processors, in seconds.
type shares struct {
	wall, idle        float64
	gate, flood, self float64
}

func (s *shares) add(now, before shares) {
	s.wall += now.wall - before.wall
	s.gate += now.gate - before.gate
	s.flood += now.flood - before.flood
	s.self += now.self - before.self
	s.idle += now.idle - before.idle
}

func (s shares) String() string {
	part := func(v float64) float64 { return 100 * v / s.wall }
	return fmt.Sprintf("of one processor the gate took %.0f %%, the flood %.0f %%, client and upstream %.0f %%, everything else %.0f %%",
		part(s.gate), part(s.flood), part(s.self), part(float64(runtime.NumCPU())*s.wall-s.idle-s.gate-s.flood-s.self))
}

// sharesNow reads the clocks of the processes (proc_pid_stat(5), proc_stat(5)).
func sharesNow(t *testing.T, s *site, f *flood) shares {
	t.Helper()
	sum := func(path string, fields ...int) (v float64) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(b), "\n")
		_, rest, found := strings.Cut(text, ") ") // the name may hold anything
		if !found {
			rest = text
		}
		row := strings.Fields(rest)
		for _, n := range fields {
			ticks, err := strconv.ParseFloat(row[n], 64)
			if err != nil {
				t.Fatal(err)
			}
			v += ticks / 100 // USER_HZ
		}
		return v
	}
	process := func(pid int) float64 { return sum(fmt.Sprintf("/proc/%d/stat", pid), 11, 12) }
	return shares{
		wall: float64(time.Now().UnixNano()) / 1e9, gate: process(s.cmd.Process.Pid), flood: process(f.cmd.Process.Pid), self: process(os.Getpid()),
		idle: sum("/proc/stat", 4, 5),
	}
}
