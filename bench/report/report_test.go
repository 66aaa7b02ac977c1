package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

const lines = `{"kind":"machine","date":"2026-01-02 03:04 UTC","cpu":"C","cores":2,"load_before":0.1,"rounds":3,"secs":5,"rate":2000,"command":"bench/run.sh"}
{"label":"round1","peer":"gatebook","level":"W4c","mode":"closed","rps":8000,"proxy_cpu_settled_us_per_req":90}
{"label":"round1","peer":"gonet","level":"W4c","mode":"closed","rps":10000}
{"label":"round2","peer":"gonet","level":"W4c","mode":"closed","rps":20000}
{"label":"round2","peer":"gatebook","level":"W4c","mode":"closed","rps":14000,"proxy_cpu_settled_us_per_req":80}
{"label":"round3","peer":"gatebook","level":"W4c","mode":"closed","rps":9000,"proxy_cpu_settled_us_per_req":85}
{"label":"round3","peer":"gonet","level":"W4c","mode":"closed","rps":10000}
{"label":"round1","peer":"direct","level":"W4c","mode":"open-2000","p99_us":100}
{"label":"round1","peer":"gatebook","level":"W4c","mode":"open-2000","p99_us":900}
{"kind":"stored","level":"W4c","bytes":6900000,"records":100000}
{"kind":"micro","round":1,"package":"bench/micro","name":"Book/written/32","values":{"ns/op":9000,"cpu-us/op":14.5,"allocs/op":3}}
{"kind":"micro","round":1,"package":"bench/micro","name":"Seal","values":{"records/s":90000,"cpu-us/record":5}}
{"kind":"micro","round":2,"package":"bench/micro","name":"Seal","values":{"records/s":80000,"cpu-us/record":8}}
{"kind":"micro","round":3,"package":"bench/micro","name":"Seal","values":{"records/s":70000,"cpu-us/record":6.25}}
{"kind":"micro","round":1,"package":"bench/micro","name":"Verify","values":{"records/s":190000,"cpu-us/record":5.5}}
{"kind":"micro","round":1,"package":"bench/micro","name":"Search","values":{"records/s":2000000}}
`

func parsed(t *testing.T) *results {
	t.Helper()
	r, err := parse([]byte(lines))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPairs demands that ratios are taken inside a round: the medians' ratio
// would be 0.9.
func TestPairs(t *testing.T) {
	got := parsed(t).pairs("gatebook", "gonet", "W4c", "W4c", false, rps, ratio)
	if want := (span{0.7, 0.8, 0.9, 3}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSpanOf(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want span
	}{
		{nil, span{}},
		{[]float64{3}, span{3, 3, 3, 1}},
		{[]float64{3, 1}, span{1, 2, 3, 2}},
		{[]float64{9, 1, 4}, span{1, 4, 9, 3}},
	} {
		if got := spanOf(c.in); got != c.want {
			t.Errorf("%v: got %v, want %v", c.in, got, c.want)
		}
	}
}

func TestBudgets(t *testing.T) {
	text := parsed(t).budgets()
	for _, want := range []string{
		"| >= 0.7 x | 0.80 [0.70-0.90] | met |",
		"| <= 15 us | 14.5 [14.5-14.5] | met |",
		"| <= 500 us | 800 [800-800] | **missed** |",
		"| <= 70 B | 69.0 [69.0-69.0] | met |",
		"| <= 60 us | - | not measured |",
		"| >= 150000 records/s/core | 160000 [125000-200000]; by the clock, with waits for the disk, 80000 [70000-90000] | met |",
		"| >= 200000 records/s/core | 181818 [181818-181818]; by the clock, with waits for the disk, 190000 [190000-190000] | **missed** |",
		"| >= 1e+06 records/s/core | -; by the clock, with waits for the disk, 2000000 [2000000-2000000] | not measured |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestParseMicro(t *testing.T) {
	const out = "goos: linux\npkg: github.com/gatebook/gatebook/internal/gate\nBenchmarkServe \t 1234\t  950.5 ns/op\t 320 B/op\t 7 allocs/op\nPASS\n"
	ms, err := parseMicro(strings.NewReader(out), 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(ms) != 1 || ms[0].Package != "internal/gate" || ms[0].Name != "Serve" || ms[0].Round != 2 || ms[0].Values["ns/op"] != 950.5 || ms[0].Values["allocs/op"] != 7 {
		t.Errorf("got %+v", ms)
	}
	if _, err := parseMicro(strings.NewReader("PASS\n"), 1); err == nil {
		t.Error("output without a benchmark was taken")
	}
}

func TestBetween(t *testing.T) {
	got, err := between("a\n"+beginMark+"\nold\n"+endMark+"\nz\n", "new\n")
	if want := "a\n" + beginMark + "\nnew\n" + endMark + "\nz\n"; err != nil || got != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := between("no markers", "new"); err == nil {
		t.Error("a file without markers was overwritten")
	}
}

func TestPlotIsXML(t *testing.T) {
	text := parsed(t).plot()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
	if n := strings.Count(text, "<rect"); n != 2 {
		t.Errorf("%d bars, want 2", n)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{"{", `{"kind":"other"}`, `{"peer":"gonet"}`} {
		if _, err := parse([]byte(in)); err == nil {
			t.Errorf("took %s", in)
		}
	}
}
