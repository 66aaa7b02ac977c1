package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/obs"
)

// line is what of a record stands on a line for people.
type line struct {
	ID       string `json:"id"`
	Time     string `json:"time"`
	Kind     string `json:"kind"`
	Outcome  string `json:"outcome"`
	Op       string `json:"op"`
	Template string `json:"template"`
	Status   int    `json:"status"`
	DurUS    int64  `json:"dur_us"`
	Subject  string `json:"subject"`
	Route    string `json:"route"`
	Authz    struct {
		Decision string `json:"decision"`
	} `json:"authz"`
	Error struct {
		Reason string `json:"reason"`
	} `json:"error"`
	Event struct {
		Name  string `json:"name"`
		Count int64  `json:"count"`
	} `json:"event"`
}

// oneLine shows a record to people, on one line whatever is in it.
func oneLine(m *query.Match) string {
	var l line
	if err := json.Unmarshal(m.Frame, &l); err != nil {
		return obs.Plain(fmt.Sprintf("%d unreadable frame: %v", m.Index, err))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%6d %s %-11s", m.Index, l.Time, l.Kind)
	if l.Status != 0 {
		what := l.Op
		if what == "none" || what == "" {
			what = "(unmatched) " + l.Template
		}
		fmt.Fprintf(&b, " %d %s %s", l.Status, what, duration(l.DurUS))
	}
	if l.Authz.Decision != "" {
		fmt.Fprintf(&b, " %s", l.Authz.Decision)
	}
	if l.Error.Reason != "" {
		fmt.Fprintf(&b, " %s", l.Error.Reason)
	}
	if l.Event.Name != "" {
		fmt.Fprintf(&b, " %s", l.Event.Name)
		if l.Event.Count != 0 {
			fmt.Fprintf(&b, " %d", l.Event.Count)
		}
	}
	fmt.Fprintf(&b, " %s", l.ID)
	if len(m.Personal) > 0 {
		fmt.Fprintf(&b, " %s", m.Personal)
	}
	if m.Sealed != "" {
		fmt.Fprintf(&b, " (sealed: %s)", m.Sealed)
	}
	return obs.Plain(b.String())
}

func duration(us int64) string {
	if us < 1000 {
		return fmt.Sprintf("%dus", us)
	}
	return fmt.Sprintf("%.1fms", float64(us)/1000)
}
