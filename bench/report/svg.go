package main

import (
	"fmt"
	"slices"
	"strings"
)

// Sizes of the plot, in pixels.
const (
	plotWidth = 760
	labelCol  = 130
	barHeight = 14
	barGap    = 4
	groupGap  = 22
	topSpace  = 28
)

// colours are of middle lightness, so that they can be seen on a light and on a
// dark ground.
var colours = map[string]string{"gatebook": "#d9822b", "gonet": "#4f8fc0", "gofast": "#7fb3d5", "nginx": "#5da271", "haproxy": "#a07cb5"}

const textColour = "#808080"

// plot is a bar for each peer at each level: the median, and a line from the
// smallest to the largest value.
func (r *results) plot() string {
	most := 1.0
	for _, l := range r.levels(false) {
		for _, p := range r.peers(l, false) {
			most = max(most, r.span(p, l, false, rps).max)
		}
	}
	scale := (plotWidth - labelCol - 90) / most
	var b strings.Builder
	y := topSpace
	for _, l := range r.levels(false) {
		fmt.Fprintf(&b, `<text x="0" y="%d" font-weight="bold">%s</text>`+"\n", y+barHeight-3, l)
		for _, p := range r.peers(l, false) {
			s := r.span(p, l, false, rps)
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelCol-8, y+barHeight-3, p)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, labelCol, y, s.mid*scale, barHeight, colourOf(p))
			fmt.Fprintf(&b, `<path d="M%.1f %dH%.1f" stroke="%s"/>`, labelCol+s.min*scale, y+barHeight/2, labelCol+s.max*scale, textColour)
			fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.0f</text>`+"\n", labelCol+max(s.mid, s.max)*scale+6, y+barHeight-3, s.mid)
			y += barHeight + barGap
		}
		y += groupGap - barGap
	}
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="sans-serif" font-size="12" fill="%s">`, plotWidth, y, plotWidth, y, textColour)
	title := `<title>Requests per second on one core, by level of work</title>` + "\n" +
		`<text x="0" y="14">requests per second on one core: median, with a line from the smallest to the largest value</text>`
	return head + "\n" + title + "\n" + b.String() + "</svg>\n"
}

func colourOf(peer string) string {
	if c, ok := colours[peer]; ok {
		return c
	}
	spare := []string{"#b08d57", "#6b8e9e", "#9e6b7b"}
	return spare[slices.Max([]byte(peer))%byte(len(spare))]
}
