package main

import (
	"fmt"
	"strings"
	"testing"
)

// TestSinkAlerts: a rule of the configuration makes an alert of the book, which goes
// to the webhook for alerts, and nothing else does; a reload changes the rules.
func TestSinkAlerts(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r := newReceiver(t, plainly)
	s.write("hook.key", strings.Repeat("k", 40)+"\n")
	base := string(s.read("gatebook.yaml"))
	detect := func(rule string) {
		s.write("gatebook.yaml", base+fmt.Sprintf("detect: {rules: [%s], webhook: {url: %q, signing_key: {file: hook.key}}}\n", rule, r.URL+"/alerts"))
	}
	detect(`{name: eager, severity: low, where: 'kind == "request" && status == 200', by: [route], count: 5, window: 1h}`)
	s.start()
	for n := range 8 {
		s.get(fmt.Sprintf("/a/%d", n))
	}
	r.holding(t, 1)
	alerts := s.search(`kind == "alert" && limit.rule == "detect.eager"`)
	if len(alerts) != 1 || alerts[0].Frame.Event.Name != "eager" {
		t.Fatalf("alerts in the book: %+v", alerts)
	}
	if held := r.held(t); len(held) != 1 || held[alerts[0].Index] != 1 {
		t.Errorf("the webhook has %v, the alert is record %d", held, alerts[0].Index)
	}
	// A rule that cannot be used leaves those before in force, and check names it.
	detect(`{name: eager, where: 'no_such_field == 1', count: 1, window: 1h}`)
	s.command(2, "reload")
	s.command(2, "check", s.dir+"/gatebook.yaml")
	if !strings.Contains(s.said, "detect.rules[0].where") {
		t.Errorf("check says %s", s.said)
	}
	detect(`{name: other, where: 'kind == "request" && status == 200', by: [route], count: 2, window: 1h}`)
	s.command(0, "reload")
	for n := range 4 {
		s.get(fmt.Sprintf("/b/%d", n))
	}
	r.holding(t, 2)
	if n := len(s.search(`limit.rule == "detect.other"`)); n != 1 {
		t.Errorf("%d alerts of the new rule", n)
	}
	// The cursor of the webhook passes what is no alert.
	st := s.caughtUp("alerts")
	if st.Quarantine != 0 || len(r.held(t)) != 2 {
		t.Errorf("status %+v, holds %v", st, r.held(t))
	}
	s.stop()
}
