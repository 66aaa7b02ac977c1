package main

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// refuses makes a receiver that will not have any request with the record of an
// index in it.
func refuses(index uint64) func(*http.Request) int {
	return func(q *http.Request) int {
		parts := strings.Split(q.Header.Get("Webhook-Id"), "-") // log, first, last
		if len(parts) != 3 {
			return 500
		}
		first, err1 := strconv.ParseUint(parts[1], 10, 64)
		last, err2 := strconv.ParseUint(parts[2], 10, 64)
		if err1 != nil || err2 != nil || first <= index && index <= last {
			return 400
		}
		return 200
	}
}

// TestSinkQuarantine: one record that a sink will not have holds up no other; it
// is sent again or given up when somebody says so, and both are on record.
func TestSinkQuarantine(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r := newReceiver(t, plainly)
	r.behave(refuses(2), false)
	s.sinkPair(r)
	s.start()
	for range 5 {
		s.get("/a")
	}
	st := s.caughtUp("hook")
	held := r.held(t)
	if st.Quarantine != 1 || len(st.Alarms) != 1 || held[2] != 0 || held[1] != 1 || held[3] != 1 {
		t.Fatalf("status %+v, held %v", st, held)
	}
	var list []struct {
		ID    string
		Index uint64
		Cause string
	}
	if err := json.Unmarshal([]byte(s.command(0, "sink", "quarantine", "hook", "--json")), &list); err != nil || len(list) != 1 || list[0].Index != 2 {
		t.Fatalf("%v: %+v", err, list)
	}
	// What is not there is not found, whatever is asked for.
	for _, id := range []string{strings.TrimSuffix(list[0].ID, "2") + "3", "0000000000000000-2", "nonsense"} {
		s.command(3, "sink", "requeue", "hook", id)
		s.command(3, "sink", "waive", "hook", id, "--reason", "is there already")
	}
	s.command(3, "sink", "quarantine", "no_such_sink")
	// The sink still does not want it: it stays.
	before := r.refusals()
	s.command(0, "sink", "requeue", "hook", list[0].ID)
	r.refusing(t, before)
	if st := s.sink("hook"); st.Quarantine != 1 {
		t.Errorf("after a refused requeue: %+v", st)
	}
	r.behave(nil, false)
	s.command(0, "sink", "requeue", "hook", "--all")
	s.sinkUntil("hook", "out of quarantine", func(st sinkStatus) bool { return st.Quarantine == 0 })
	if held := r.held(t); held[2] != 1 {
		t.Errorf("the record is there %d times", held[2])
	}
	// Given up, with a reason.
	r.behave(refuses(2), false)
	s.command(0, "sink", "replay", "hook", "--from", "0")
	s.sinkUntil("hook", "in quarantine again", func(st sinkStatus) bool { return st.Quarantine == 1 })
	s.command(0, "sink", "waive", "hook", list[0].ID, "--reason", "is there already")
	if st := s.sink("hook"); st.Quarantine != 0 {
		t.Errorf("after waiving: %+v", st)
	}
	out := s.command(0, "search", `event.name == "sink_waive"`, "--json")
	if !strings.Contains(out, list[0].ID) || !strings.Contains(out, "is there already") {
		t.Errorf("the record of waiving says %s", out)
	}
	s.stop()
}
