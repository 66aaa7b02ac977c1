package config

import "strings"

// suggest returns the candidate nearest to name, or "" if none is near enough
// to be what was meant. Candidates at the same distance go by their order.
func suggest(name string, candidates []string) string {
	if len(name) > 64 {
		return ""
	}
	lower := strings.ToLower(strings.ReplaceAll(name, "-", "_"))
	best, distance := "", 1+max(1, min(len(lower)/3, 3))
	for _, c := range candidates {
		if len(c) > 64 || max(len(c)-len(lower), len(lower)-len(c)) >= distance {
			continue // further apart than their lengths allow
		}
		d := editDistance(lower, strings.ToLower(c))
		if d < distance {
			best, distance = c, d
		}
	}
	if best != "" {
		return best
	}
	// Words that begin alike: cert for certificates, policy for policies.
	for _, c := range candidates {
		if n := commonPrefix(lower, strings.ToLower(c)); n >= 3 && n >= min(len(lower), len(c))-1 {
			return c
		}
	}
	return ""
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// didYouMean turns suggest's answer into a hint, or returns otherwise.
func didYouMean(name string, candidates []string, otherwise string) string {
	if s := suggest(name, candidates); s != "" {
		return "did you mean " + s + "?"
	}
	return otherwise
}

// editDistance counts the insertions, deletions, substitutions and swaps of
// neighbours that turn a into b (optimal string alignment, over bytes: keys
// are ASCII).
func editDistance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}

// list joins names for a message: "a, b or c".
func list(names []string) string {
	switch n := len(names); n {
	case 0:
		return ""
	case 1:
		return names[0]
	default:
		return strings.Join(names[:n-1], ", ") + " or " + names[n-1]
	}
}
