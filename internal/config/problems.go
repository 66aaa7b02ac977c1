package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxProblems bounds a listing, so that a broken file of a megabyte does not
// answer with a hundred megabytes.
const maxProblems = 100

// maxCollected bounds the work on a file in which everything is wrong.
const maxCollected = 1000

// Problem is one thing wrong with a configuration, and where.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line"`              // from 1; 0: the file as a whole
	Column  int    `json:"column"`            // from 1, in characters; 0 with Line 0
	Key     string `json:"key,omitempty"`     // path of the key, such as routes[2].upstream
	What    string `json:"what"`              // what is wrong and what was found
	Hint    string `json:"hint,omitempty"`    // what to do about it
	Excerpt string `json:"excerpt,omitempty"` // the source line and a caret under the column, without final newline
}

// String returns "file:line:column: what; hint" and, below it, the excerpt.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	if p.Excerpt != "" {
		b.WriteString("\n" + p.Excerpt)
	}
	return b.String()
}

// Problems is everything wrong with one configuration file, in the order of
// the file. It is an error; a nil *Problems means that nothing is wrong.
type Problems struct {
	list    []Problem
	omitted int // found beyond maxProblems
}

// All returns the problems, at most a hundred. The caller must not change the
// slice.
func (p *Problems) All() []Problem {
	if p == nil {
		return nil
	}
	return p.list
}

// Len returns how many problems were found, listed or not.
func (p *Problems) Len() int {
	if p == nil {
		return 0
	}
	return len(p.list) + p.omitted
}

// Error lists all problems, one paragraph each.
func (p *Problems) Error() string {
	var b strings.Builder
	for i, q := range p.All() {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(q.String())
	}
	if p != nil && p.omitted > 0 {
		fmt.Fprintf(&b, "\nand %d more", p.omitted)
	}
	return b.String()
}

// err returns p as an error that is nil when there is no problem.
func (p *Problems) err() error {
	if p.Len() == 0 {
		return nil
	}
	return p
}

// position is a place in the source, both from 1; the zero value is the file
// as a whole.
type position struct{ line, column int }

// reporter collects problems of one source. It belongs to one goroutine.
type reporter struct {
	file  string
	lines []string // the source, for excerpts

	list    []Problem
	seen    map[Problem]bool
	omitted int // beyond maxCollected
}

func newReporter(file, source string) *reporter {
	return &reporter{file: file, lines: strings.Split(source, "\n"), seen: map[Problem]bool{}}
}

// report adds a problem unless the same was already reported.
func (r *reporter) report(pos position, key, what, hint string) {
	p := Problem{File: r.file, Line: pos.line, Column: pos.column, Key: key, What: what, Hint: hint}
	if r.seen[p] {
		return
	}
	if r.full() {
		r.omitted++
		return
	}
	r.seen[p] = true
	r.list = append(r.list, p)
}

// full reports whether further problems are only counted.
func (r *reporter) full() bool { return len(r.list) >= maxCollected }

// problems returns what was collected, sorted, with excerpts; nil if nothing.
func (r *reporter) problems() *Problems {
	if len(r.list) == 0 {
		return nil
	}
	slices.SortStableFunc(r.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	out := &Problems{list: r.list, omitted: r.omitted}
	if n := len(r.list); n > maxProblems {
		out.list, out.omitted = r.list[:maxProblems:maxProblems], out.omitted+n-maxProblems
	}
	for i := range out.list {
		p := &out.list[i]
		if p.Line > 0 && p.Line <= len(r.lines) {
			p.Excerpt = excerpt(r.lines[p.Line-1], p.Line, p.Column)
		}
	}
	return out
}

// excerptWidth is how many characters of a source line an excerpt shows.
const excerptWidth = 100

// excerpt shows one source line with a caret under the column. Tabs and other
// control characters are replaced one for one, so that the caret stays true
// and a terminal is not steered by the file.
func excerpt(line string, number, column int) string {
	runes, start, cut := window(line, column)
	for i, r := range runes {
		switch {
		case r == '\t':
			runes[i] = ' '
		case !unicode.IsPrint(r):
			runes[i] = '·'
		}
	}
	if start > 0 && len(runes) > 0 {
		runes[0] = '…'
	}
	if cut {
		runes[len(runes)-1] = '…'
	}
	margin := fmt.Sprintf("%5d | ", number)
	caret := max(column-1-start, 0)
	return margin + strings.TrimRight(string(runes), " ") + "\n" +
		strings.Repeat(" ", len(margin)-2) + "| " + strings.Repeat(" ", caret) + "^"
}

// window cuts the part around column out of a long line without decoding all
// of it. It says how many characters come before the part and whether any
// come after.
func window(line string, column int) (runes []rune, start int, cut bool) {
	if column > excerptWidth-20 {
		start = column - excerptWidth/2
	}
	for range start {
		_, n := utf8.DecodeRuneInString(line)
		line = line[n:]
	}
	for len(line) > 0 && len(runes) < excerptWidth {
		r, n := utf8.DecodeRuneInString(line)
		runes, line = append(runes, r), line[n:]
	}
	return runes, start, len(line) > 0
}
