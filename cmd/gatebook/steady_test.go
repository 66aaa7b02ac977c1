package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSteady serves at a fixed rate and looks at what a process should not need
// more of with time: memory and goroutines. The long form is ten minutes at
// 2,000 requests a second, within 10 %.
func TestSteady(t *testing.T) {
	rate, runs, within := 300, 12*time.Second, 0.25
	if os.Getenv("GATEBOOK_SOAK") != "" {
		rate, runs, within = 2000, 10*time.Minute, 0.1
	} else {
		// As a gate is set, it would reach its second or third collection only at the
		// end: what would be seen grow is room that the heap takes once.
		t.Setenv("GOGC", "100")
	}
	up := newUpstream(t)
	s := newSite(t, up.URL)
	health := freeAddr(t)
	s.write("gatebook.yaml", string(s.read("gatebook.yaml"))+"health: {address: "+health+"}\n")
	s.start()

	var sent, failed atomic.Int64
	ticks := make(chan struct{}, rate)
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			for range ticks {
				resp, err := s.client.Get("https://" + s.addr + fmt.Sprintf("/steady/%d", n))
				if err != nil {
					failed.Add(1)
					continue
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
					failed.Add(1)
				}
				resp.Body.Close()
				sent.Add(1)
			}
		})
	}
	type look struct{ rss, goroutines float64 }
	at := func() look {
		return look{s.memory(t), metric(t, health, "go_goroutines")}
	}
	var early, late []look
	begun := time.Now()
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	due, looks := 0, 0
	for now := range every.C {
		run := now.Sub(begun)
		for ; due < int(run.Seconds()*float64(rate)); due++ {
			select {
			case ticks <- struct{}{}:
			default: // the machine is slower than that; what it can do is steady too
			}
		}
		if int(20*run/runs) > looks { // twenty times in all
			looks++
			if looks > 6 && looks <= 10 {
				early = append(early, at())
			}
			if looks > 16 {
				late = append(late, at())
			}
		}
		if run >= runs {
			break
		}
	}
	close(ticks)
	wg.Wait()
	highest := func(ls []look) (m look) {
		for _, l := range ls {
			m.rss, m.goroutines = max(m.rss, l.rss), max(m.goroutines, l.goroutines)
		}
		return m
	}
	a, b := highest(early), highest(late)
	t.Logf("%d requests in %v, %d failed; RSS %.1f MB after a third, %.1f MB at the end; goroutines %.0f and %.0f",
		sent.Load(), runs, failed.Load(), a.rss/1e6, b.rss/1e6, a.goroutines, b.goroutines)
	if failed.Load() > 0 || sent.Load() == 0 {
		t.Errorf("%d requests failed of %d", failed.Load(), sent.Load())
	}
	if b.rss > a.rss*(1+within) || b.goroutines > a.goroutines*(1+within)+4 {
		t.Errorf("grows by more than %.0f %%", 100*within)
	}
	s.stop()
	s.command(0, "verify")
}

// memory is the resident set of the server in bytes.
func (s *site) memory(t *testing.T) float64 { return s.memoryOf(t, "VmRSS") }

// memoryOf is an amount of memory of the server in bytes (proc_pid_status(5)).
func (s *site) memoryOf(t *testing.T, name string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb * 1024
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

// metric reads one number from /metrics.
func metric(t *testing.T, health, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + health + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
