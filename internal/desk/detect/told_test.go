package detect

import (
	"fmt"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// shared is a rule that is silent about whom the gate has told of.
func shared() Rule {
	return Rule{Name: "shared", Where: "true", By: []string{"subject"}, Count: 1, Window: 10 * time.Minute, Unless: AlertReplay}
}

// TestToldIsForgotten: alerts of the gate, of many and of one again and again, are
// remembered no longer than they matter, although the rule itself tells nothing.
func TestToldIsForgotten(t *testing.T) {
	g, err := newEngine([]Rule{shared()})
	if err != nil {
		t.Fatal(err)
	}
	ru := g.rules[0]
	gate := record.Record{Kind: record.KindAlert, Event: record.Event{Name: AlertReplay}}
	index, most := uint64(0), 0
	for i := range 20_000 {
		g.see(index, &record.Record{Kind: record.KindHeartbeat, Time: begin + int64(i)*time.Minute.Microseconds()})
		for _, who := range []string{fmt.Sprintf("s%d", i), "always"} {
			gate.Subject, gate.Time = who, begin+int64(i)*time.Minute.Microseconds()
			gate.Event.First, gate.Event.Last = gate.Time, gate.Time
			g.see(index, &gate)
			index++
		}
		sum := 0
		for _, times := range ru.told {
			sum += len(times)
		}
		most = max(most, sum, len(ru.told))
	}
	if most > 2*maxTold {
		t.Errorf("%d alerts were remembered at a time, of which 20 minutes hold 40", most)
	}
	// What matters is remembered: of whom the gate told nine minutes ago, not of
	// whom it told eleven minutes ago.
	r := record.Record{Kind: record.KindRequest, Time: gate.Time}
	for _, back := range []int{11, 9} {
		r.Subject = fmt.Sprintf("s%d", 19_999-back)
		g.see(index, &r)
		index++
	}
	if len(g.findings) != 1 || g.findings[0].key != "s19988" {
		t.Errorf("found %+v, want one alert about s19988", g.findings)
	}
}

// TestToldAheadIsKept: what the book says ahead of the records, when they are read
// again, is not forgotten before they come.
func TestToldAheadIsKept(t *testing.T) {
	g, err := newEngine([]Rule{shared()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 * maxTold {
		at := begin + int64(i)*time.Minute.Microseconds()
		g.alerted(&record.Record{Kind: record.KindAlert, Time: at, Subject: fmt.Sprintf("s%d", i), Event: record.Event{Name: AlertReplay, First: at, Last: at}})
	}
	for i := range 10 * maxTold {
		g.see(uint64(i), &record.Record{Kind: record.KindRequest, Time: begin + int64(i)*time.Minute.Microseconds(), Subject: fmt.Sprintf("s%d", i)})
	}
	if len(g.findings) != 0 {
		t.Errorf("%d of %d are told again", len(g.findings), 10*maxTold)
	}
}

// TestToldLateIsKept: an alert that was written long after what it is about, because
// detection was far behind, does not let those be forgotten that matter still.
func TestToldLateIsKept(t *testing.T) {
	g, err := newEngine([]Rule{shared()})
	if err != nil {
		t.Fatal(err)
	}
	r := record.Record{Kind: record.KindRequest, Subject: record.None, Time: begin}
	g.see(0, &r)
	const n = 10 * maxTold
	for i := range n {
		at := begin + int64(i)
		g.see(uint64(i), &record.Record{Kind: record.KindAlert, Time: at + 30*24*time.Hour.Microseconds(), Limit: record.Limit{Rule: "detect.shared"}, Event: record.Event{Target: fmt.Sprintf("s%d", i), First: at, Last: at}})
	}
	for i := range n {
		r.Subject, r.Time = fmt.Sprintf("s%d", i), begin+int64(i)
		g.see(uint64(n+i), &r)
	}
	if len(g.findings) != 0 {
		t.Errorf("%d of %d are told again", len(g.findings), n)
	}
}
