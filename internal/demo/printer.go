package demo

import (
	"fmt"
	"io"
	"strings"
)

// printer writes for people. The first error of the writer stays.
type printer struct {
	w      io.Writer
	colour bool
	err    error
}

func (p *printer) linef(format string, a ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", a...)
	}
}

// SGR parameters (ECMA-48): bold and faint say enough, and can be read on any
// background.
const (
	bold  = "1"
	faint = "2"
)

func (p *printer) sgr(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// heading starts a step: its name and, below, what happens in it.
func (p *printer) heading(name, what string) {
	p.linef("")
	p.linef("%s", p.sgr(bold, name))
	for line := range strings.Lines(what) {
		p.linef("  %s", strings.TrimSuffix(line, "\n"))
	}
}

// command shows a command line that is run.
func (p *printer) command(line string) { p.linef("  %s", p.sgr(faint, "$ "+line)) }

// output shows what a command printed.
func (p *printer) output(text string) {
	for line := range strings.Lines(text) {
		p.linef("  %s", strings.TrimSuffix(line, "\n"))
	}
}

// quote makes a word for a POSIX shell. It leaves plain words as they are.
func quote(s string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("/._-+:=@%,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// quoteAll makes a command line.
func quoteAll(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quote(w)
	}
	return strings.Join(out, " ")
}
