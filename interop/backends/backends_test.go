package backends

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2/hpack"
)

const seed = 20261123

// limit is how many disagreements of one origin are told in full.
const limit = 20

// count is how many samples each origin gets.
func count() int {
	if os.Getenv("GATEBOOK_SOAK") != "" {
		return 15000
	}
	return 2400
}

// address is where a sample comes from: each from a network of its own, so that
// no flood is folded into one record and the record tells the sample.
func address(origin, n int) net.IP { return net.IPv4(127, byte(16+4*(n>>8)+origin), byte(n), 1) }

// withToken puts the token in its places.
func withToken(s *sample, token string) *sample {
	one := *s
	one.token = token
	one.wire = strings.ReplaceAll(s.wire, tokenHere, token)
	one.h2 = nil
	for _, f := range s.h2 {
		one.h2 = append(one.h2, hpack.HeaderField{Name: f.Name, Value: strings.ReplaceAll(f.Value, tokenHere, token)})
	}
	return &one
}

// sendAll sends all samples of all runs, many at a time.
func sendAll(t *testing.T, runs []*run, open, secure map[string]string) {
	t.Helper()
	type job struct{ run, n int }
	jobs := make(chan job)
	var all sync.WaitGroup
	for range 192 {
		all.Go(func() {
			for j := range jobs {
				c := runs[j.run]
				answers, err := send(c.samples[j.n], address(j.run, j.n), open[c.origin], secure[c.origin])
				if err != nil {
					t.Errorf("%s, sample %d: %v", c.origin, j.n, err)
				}
				c.answers[j.n] = answers
			}
		})
	}
	for n := range runs[0].samples {
		for i := range runs {
			jobs <- job{i, n}
		}
	}
	close(jobs)
	all.Wait()
}

// sort gives each run its accounts, by the address that the sample came from.
func sort(runs []*run, accounts []account) {
	at := map[string][2]int{}
	for i, c := range runs {
		c.accounts = make([][]account, len(c.samples))
		for n := range c.samples {
			at[address(i, n).String()] = [2]int{i, n}
		}
	}
	for _, a := range accounts {
		to, ok := at[a.from]
		if !ok {
			runs[0].strays = append(runs[0].strays, a)
			continue
		}
		c := runs[to[0]]
		c.accounts[to[1]] = append(c.accounts[to[1]], a)
	}
}

func TestBackends(t *testing.T) {
	all := origins()
	for _, o := range all {
		o.start(t)
	}
	g := newGate(t, all)
	g.Start()
	samples := generate(seed, count())
	for i, s := range samples {
		samples[i] = withToken(s, g.token)
	}
	var runs []*run
	for _, o := range all {
		runs = append(runs, &run{origin: o.name, samples: samples, answers: make([][]answer, len(samples)), strict: true})
	}
	sendAll(t, runs, g.open, g.secure)
	g.Stop()
	sort(runs, g.accounts())

	known := explanations(t)
	table := "origin    samples  passed  refused  silent  requests  connections  explained\n"
	for i, c := range runs {
		c.sightings = all[i].sightings(t)
		c.check()
		explained, failures := 0, 0
		for _, d := range c.found {
			if explains(known, d) {
				explained++
			} else if failures++; failures <= limit {
				t.Errorf("%v", d)
			}
		}
		if failures > limit {
			t.Errorf("%s: %d more disagreements", c.origin, failures-limit)
		}
		connections := map[string]bool{}
		for _, s := range c.sightings {
			connections[s.conn] = true
		}
		table += fmt.Sprintf("%-9s %7d %7d %8d %7d %9d %12d %10d\n", c.origin, len(c.samples), c.passed, c.refused, c.silent, len(c.sightings), len(connections), explained)
		if len(connections) > len(c.sightings)/2 {
			t.Errorf("%s: %d connections for %d requests: nothing could have been smuggled over one", c.origin, len(connections), len(c.sightings))
		}
		if c.passed < len(samples)/4 || c.refused < len(samples)/4 || c.silent > len(samples)/20 {
			t.Errorf("%s: the samples are not what they should be: %d passed, %d refused, %d silent", c.origin, c.passed, c.refused, c.silent)
		}
	}
	for _, e := range known {
		if e.used == 0 && !e.maybe {
			t.Errorf("explains nothing any more: %s; take it out of testdata/explained.txt", e.line)
		}
	}
	t.Logf("seed %d\n%s", seed, table)
}
