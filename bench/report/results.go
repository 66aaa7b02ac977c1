package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
)

// run is one line of the load generator.
type run struct {
	Label   string  `json:"label"`
	Peer    string  `json:"peer"`
	Level   string  `json:"level"`
	Mode    string  `json:"mode"`
	RPS     float64 `json:"rps"`
	Unsent  float64 `json:"unsent"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
	P999    float64 `json:"p999_us"`
	CPU     float64 `json:"proxy_cpu_us_per_req"`
	Settled float64 `json:"proxy_cpu_settled_us_per_req"`
	Core1   float64 `json:"core1_busy"`
	RSSKiB  float64 `json:"rss_kib"`
}

// results are all lines of one run of the benchmark.
type results struct {
	machine machine
	runs    []run
	stored  []stored
	micro   []micro
}

func read(file string) (*results, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parse(b)
}

func parse(b []byte) (*results, error) {
	out := &results{}
	for n, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
		var k struct{ Kind string }
		err := json.Unmarshal(line, &k)
		if err == nil {
			switch k.Kind {
			case kindMachine:
				err = json.Unmarshal(line, &out.machine)
			case kindStored:
				out.stored, err = more(out.stored, line)
			case kindMicro:
				out.micro, err = more(out.micro, line)
			case "":
				out.runs, err = more(out.runs, line)
			default:
				err = fmt.Errorf("unknown kind %q", k.Kind)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	if out.machine.Kind == "" {
		return nil, fmt.Errorf("no line says on which machine this was")
	}
	return out, nil
}

func more[T any](all []T, line []byte) ([]T, error) {
	var v T
	err := json.Unmarshal(line, &v)
	return append(all, v), err
}

// span is a median with its smallest and largest value.
type span struct {
	min, mid, max float64
	n             int
}

func spanOf(v []float64) span {
	if len(v) == 0 {
		return span{}
	}
	v = slices.Sorted(slices.Values(v))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return span{v[0], mid, v[len(v)-1], len(v)}
}

func (s span) format(verb string) string {
	if s.n == 0 {
		return "-"
	}
	return fmt.Sprintf(verb+" ["+verb+"-"+verb+"]", s.mid, s.min, s.max)
}

// rounds are the values of one peer at one level, by round.
func (r *results) rounds(peer, level string, open bool, get func(*run) float64) map[string]float64 {
	out := map[string]float64{}
	for i := range r.runs {
		if x := &r.runs[i]; x.Peer == peer && x.Level == level && (x.Mode != "closed") == open {
			out[x.Label] = get(x)
		}
	}
	return out
}

func (r *results) span(peer, level string, open bool, get func(*run) float64) span {
	return spanOf(slices.Collect(maps.Values(r.rounds(peer, level, open, get))))
}

// pairs compares two peers round by round: what was measured in the same round
// met the same machine.
func (r *results) pairs(a, b, levelA, levelB string, open bool, get func(*run) float64, with func(a, b float64) float64) span {
	left, right := r.rounds(a, levelA, open, get), r.rounds(b, levelB, open, get)
	var v []float64
	for round, x := range left {
		if y, ok := right[round]; ok {
			v = append(v, with(x, y))
		}
	}
	return spanOf(v)
}

func ratio(a, b float64) float64 { return a / b }
func minus(a, b float64) float64 { return a - b }

func rps(x *run) float64     { return x.RPS }
func p50(x *run) float64     { return x.P50 }
func p99(x *run) float64     { return x.P99 }
func p999(x *run) float64    { return x.P999 }
func settled(x *run) float64 { return x.Settled }
func rss(x *run) float64     { return x.RSSKiB / 1024 }

// levels and peers in the order in which they were first measured.
func (r *results) levels(open bool) []string {
	return r.first(open, func(x *run) string { return x.Level })
}
func (r *results) peers(level string, open bool) []string {
	return slices.Sorted(slices.Values(r.first(open, func(x *run) string {
		if x.Level == level {
			return x.Peer
		}
		return ""
	})))
}

func (r *results) first(open bool, name func(*run) string) []string {
	var out []string
	for i := range r.runs {
		if n := name(&r.runs[i]); (r.runs[i].Mode != "closed") == open && n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// value is a figure of a micro-benchmark over all rounds.
func (r *results) value(pkg, name, unit string) span {
	var v []float64
	for _, m := range r.micro {
		if m.Package == pkg && m.Name == name {
			if x, ok := m.Values[unit]; ok {
				v = append(v, x)
			}
		}
	}
	return spanOf(v)
}
