package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

const (
	beginMark = "<!-- results: written by run.sh -->"
	endMark   = "<!-- end of results -->"
)

func writeMain(args []string) error {
	f := flag.NewFlagSet("write", flag.ExitOnError)
	in := f.String("in", "results.jsonl", "results")
	md := f.String("md", "RESULTS.md", "file with markers")
	svg := f.String("svg", "results.svg", "plot")
	if err := f.Parse(args); err != nil {
		return err
	}
	r, err := read(*in)
	if err != nil {
		return fmt.Errorf("%s: %w", *in, err)
	}
	old, err := os.ReadFile(*md)
	if errors.Is(err, os.ErrNotExist) {
		old, err = []byte("# Results\n\n"+beginMark+"\n"+endMark+"\n"), nil
	}
	if err != nil {
		return err
	}
	text, err := between(string(old), r.markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", *md, err)
	}
	if err := os.WriteFile(*md, []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(*svg, []byte(r.plot()), 0o644); err != nil {
		return err
	}
	fmt.Print(r.ratios())
	fmt.Print(r.budgets())
	return nil
}

// between puts text between the markers.
func between(old, text string) (string, error) {
	head, rest, ok := strings.Cut(old, beginMark)
	_, tail, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return "", errors.New("lacks the markers between which results are written")
	}
	return head + beginMark + "\n" + text + endMark + tail, nil
}

func (r *results) markdown() string {
	var b strings.Builder
	m := &r.machine
	fmt.Fprintf(&b, "\n%s. %s, %d cores, %s, kernel %s. Load average before the run: %.2f.\n", m.Date, m.CPU, m.Cores, m.OS, m.Kernel, m.Load)
	if m.Load > 0.5 {
		b.WriteString("**Something else was running on the machine: the ratios say something, the absolute figures do not.**\n")
	}
	fmt.Fprintf(&b, "\n- %s\n- gonet, gofast: %s\n- %s\n- %s\n\n", m.Gatebook, m.Go, m.Nginx, m.HAProxy)
	fmt.Fprintf(&b, "Command: `%s`: %d rounds of %g s, %d connections, %s tokens. Figures are medians with the smallest and largest.\n", m.Command, m.Rounds, m.Secs, m.Conns, m.Alg)
	b.WriteString("\n![requests per second by level](results.svg)\n\n### Budgets\n\n")
	b.WriteString(r.budgets())
	b.WriteString("\n### Requests per second on one core\n\n")
	b.WriteString(r.throughput())
	fmt.Fprintf(&b, "\n### Latency at %g requests per second\n\n", m.Rate)
	b.WriteString(r.latency())
	b.WriteString("\n### Micro-benchmarks, one core\n\n")
	b.WriteString(r.micros())
	b.WriteString("\n")
	return b.String()
}

func (r *results) throughput() string {
	var b strings.Builder
	b.WriteString("| level | proxy | req/s | x gonet | x nginx | CPU us/req | p50 ms | p99 ms | RSS MiB |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.levels(false) {
		for _, p := range r.peers(l, false) {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %.2f | %.2f | %.0f |\n", l, p, r.span(p, l, false, rps).format("%.0f"),
				r.pairs(p, "gonet", l, l, false, rps, ratio).short(), r.pairs(p, "nginx", l, l, false, rps, ratio).short(),
				r.span(p, l, false, settled).format("%.1f"), r.span(p, l, false, p50).mid/1e3, r.span(p, l, false, p99).mid/1e3, r.span(p, l, false, rss).mid)
		}
	}
	return b.String()
}

func (s span) short() string {
	if s.n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", s.mid)
}

func (r *results) latency() string {
	var b strings.Builder
	b.WriteString("| level | proxy | p50 us | p99 us | p99.9 us | added p50 us | added p99 us | CPU us/req | unsent |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, l := range r.levels(true) {
		for _, p := range r.peers(l, true) {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %.0f | %s | %s | %.1f | %.0f |\n", l, p,
				r.span(p, l, true, p50).format("%.0f"), r.span(p, l, true, p99).format("%.0f"), r.span(p, l, true, p999).mid,
				r.pairs(p, direct, l, l, true, p50, minus).format("%.0f"), r.pairs(p, direct, l, l, true, p99, minus).format("%.0f"),
				r.span(p, l, true, settled).mid, r.span(p, l, true, func(x *run) float64 { return x.Unsent }).max)
		}
	}
	return b.String()
}

// direct is the load on the upstream itself, without any proxy.
const direct = "direct"

func (r *results) micros() string {
	var b strings.Builder
	b.WriteString("| benchmark | ns/op | allocs/op | more |\n|---|---|---|---|\n")
	seen := map[string]bool{}
	for _, m := range r.micro {
		if seen[m.Package+m.Name] {
			continue
		}
		seen[m.Package+m.Name] = true
		var extra []string
		for _, unit := range []string{"p50-us", "p99-us", "cpu-us/op", "records/s"} {
			if s := r.value(m.Package, m.Name, unit); s.n > 0 {
				verb := "%.1f"
				if unit == "records/s" {
					verb = "%.0f"
				}
				extra = append(extra, unit+" "+s.format(verb))
			}
		}
		fmt.Fprintf(&b, "| %s %s | %s | %s | %s |\n", m.Package, m.Name, r.value(m.Package, m.Name, "ns/op").format("%.0f"), r.value(m.Package, m.Name, "allocs/op").alone(), strings.Join(extra, "; "))
	}
	return b.String()
}

func (s span) alone() string {
	if s.n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", s.mid)
}

// ratios is what people compare, for the terminal.
func (r *results) ratios() string {
	var b strings.Builder
	for _, l := range r.levels(false) {
		fmt.Fprintf(&b, "%-4s gatebook / gonet %s, / nginx %s\n", l,
			r.pairs("gatebook", "gonet", l, l, false, rps, ratio).format("%.2f"), r.pairs("gatebook", "nginx", l, l, false, rps, ratio).format("%.2f"))
	}
	b.WriteString("\n")
	return b.String()
}
