package main

import (
	"fmt"
	"strings"
)

// budget is one promise about speed or size.
type budget struct {
	what   string
	how    string
	limit  float64
	least  bool // limit is a lower bound
	verb   string
	unit   string
	actual span
	beside string // another figure that belongs to it, not judged
}

const (
	atMost  = false
	atLeast = true
)

const (
	microPkg = "bench/micro"
	gatePkg  = "internal/gate"
)

// enough records that a folder's fixed size does not matter.
const enough = 50_000

// list is every budget that this benchmark can judge.
func (r *results) list() []budget {
	book := func(name, unit string) span { return r.value(microPkg, name, unit) }
	perRecord := span{}
	for _, s := range r.stored {
		if s.Level == "W4c" && s.Records >= enough {
			v := float64(s.Bytes) / float64(s.Records)
			perRecord = span{v, v, v, 1}
		}
	}
	allocs := book("Book/written/1", "allocs/op").plus(r.value(gatePkg, "Serve", "allocs/op"))
	return []budget{
		{"requests/s at W4c against gonet at W4c", "paired by round", 0.7, atLeast, "%.2f", "x", r.pairs("gatebook", "gonet", "W4c", "W4c", false, rps, ratio), ""},
		{"audit CPU for a request", "the book alone, written, 32 under way, until all is sealed", 15, atMost, "%.1f", "us", book("Book/written/32", "cpu-us/op"), ""},
		{"open mark + commit, written, p50", "one at a time", 60, atMost, "%.1f", "us", book("Book/written/1", "p50-us"), ""},
		{"added latency at W1, p99", "p99 minus p99 without a proxy, by round", 500, atMost, "%.0f", "us", r.pairs("gatebook", direct, "W1", "W1", true, p99, minus), ""},
		{"added latency at W4c, p99", "p99 minus p99 without a proxy, by round", 500, atMost, "%.0f", "us", r.pairs("gatebook", direct, "W4c", "W4c", true, p99, minus), ""},
		{"of which above a bare Go proxy at W1", "p99 minus p99 of gonet, by round", 500, atMost, "%.0f", "us", r.pairs("gatebook", "gonet", "W1", "W1", true, p99, minus), ""},
		{"of which above a bare Go proxy at W4c", "p99 minus p99 of gonet, by round", 500, atMost, "%.0f", "us", r.pairs("gatebook", "gonet", "W4c", "W4c", true, p99, minus), ""},
		{"allocations on the allow path, book excluded", "gate benchmark Serve", 15, atMost, "%.0f", "", r.value(gatePkg, "Serve", "allocs/op"), ""},
		{"allocations on the allow path, book included", "Serve and the book's open mark and commit", 15, atMost, "%.0f", "", allocs, ""},
		{"stored bytes per record, 200 subjects", "whole folder after the W4c runs", 70, atMost, "%.1f", "B", perRecord, ""},
		r.perCore("seal", "with read-back, manifest and checkpoint", 150e3, "Seal"),
		r.perCore("verify", "everything opened and hashed again", 200e3, "Verify"),
		r.perCore("search scan", "status >= 500, opening the book included", 1e6, "Search"),
	}
}

// perCore is a budget of records per second of processor time. What the clock
// says, with waits for the disk and for processors, stands beside it.
func (r *results) perCore(what, how string, limit float64, name string) budget {
	cpu := r.value(microPkg, name, "cpu-us/record")
	b := budget{what: what, how: how + "; by processor time", limit: limit, least: atLeast, verb: "%.0f", unit: "records/s/core"}
	if cpu.n > 0 && cpu.min > 0 {
		b.actual = span{1e6 / cpu.max, 1e6 / cpu.mid, 1e6 / cpu.min, cpu.n}
	}
	if clock := r.value(microPkg, name, "records/s"); clock.n > 0 {
		b.beside = "by the clock, with waits for the disk, " + clock.format(b.verb)
	}
	return b
}

// plus adds two figures that were measured apart.
func (s span) plus(o span) span {
	if s.n == 0 || o.n == 0 {
		return span{}
	}
	return span{s.min + o.min, s.mid + o.mid, s.max + o.max, min(s.n, o.n)}
}

func (b *budget) verdict() string {
	switch {
	case b.actual.n == 0:
		return "not measured"
	case b.least && b.actual.mid >= b.limit, !b.least && b.actual.mid <= b.limit:
		return "met"
	}
	return "**missed**"
}

func (r *results) budgets() string {
	var b strings.Builder
	b.WriteString("| budget | wanted | measured | |\n|---|---|---|---|\n")
	for _, x := range r.list() {
		sign := "<="
		if x.least {
			sign = ">="
		}
		measured := x.actual.format(x.verb)
		if x.beside != "" {
			measured += "; " + x.beside
		}
		fmt.Fprintf(&b, "| %s (%s) | %s %s | %s | %s |\n", x.what, x.how, sign, strings.TrimSpace(fmt.Sprintf("%g %s", x.limit, x.unit)), measured, x.verdict())
	}
	return b.String()
}
