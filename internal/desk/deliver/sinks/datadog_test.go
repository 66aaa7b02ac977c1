package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/datadogd"
	"github.com/gatebook/gatebook/internal/testenv/scripted"
)

func fixed(s string) *Credential {
	c, err := NewCredential(func() (string, error) { return s, nil })
	if err != nil {
		panic(err)
	}
	return c
}

// datadogWorld is an account, a script before it and a sink.
func datadogWorld(t *testing.T, change func(*DatadogConfig)) (*datadogd.Server, *scripted.Server, deliver.Sink) {
	t.Helper()
	account := datadogd.New("api-key", "app-key")
	script := scripted.New(account)
	s := httptest.NewServer(script)
	t.Cleanup(s.Close)
	at := Settings{URL: s.URL, Gzip: true, Timeout: time.Minute}
	c := DatadogConfig{Intake: at, API: at, Key: fixed("api-key"), AppKey: fixed("app-key"), Hostname: "gate-1", Tags: []string{"env:test"}}
	if change != nil {
		change(&c)
	}
	sink, err := NewDatadog(c)
	if err != nil {
		t.Fatal(err)
	}
	return account, script, sink
}

func datadogHeld(s *datadogd.Server) map[string]int {
	held := map[string]int{}
	for _, l := range s.Logs() {
		held[l.EventID()]++
	}
	return held
}

func TestDatadogFaults(t *testing.T) {
	rows := webRows(202)
	for _, n := range []int{200, 201, 204} {
		rows = append(rows, row{Fault: scripted.Fault{Name: fmt.Sprintf("status %d", n), Status: n}, class: deliver.Pause, cause: fmt.Sprintf("http_%d", n), maybe: true})
	}
	rows = append(rows, row{Fault: scripted.Fault{Name: "status 422", Status: 422}, class: deliver.Poison, cause: "http_422"})
	play(t, rows, func(t *testing.T, wait time.Duration) (deliver.Sink, *scripted.Server, func() map[string]int) {
		account, script, sink := datadogWorld(t, func(c *DatadogConfig) { c.Intake.Timeout = wait })
		return sink, script, func() map[string]int { return datadogHeld(account) }
	})
}

// The body as the format is documented, byte for byte.
func TestDatadogGolden(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	_, _, sink := datadogWorld(t, func(c *DatadogConfig) {
		c.Now = func() time.Time { return now }
		c.Intake.Gzip = false
		c.Source, c.Service, c.Tags = "gatebook", `orders "eu"`, []string{"env:prod", "team:<a>"}
	})
	items := []deliver.Item{
		{Index: 7, ID: "00112233445566ff-7", Time: now.Add(-time.Second), Kind: "request", Body: []byte(`{"a":1}`)},
		{Index: 8, ID: "00112233445566ff-8", Time: now.Add(-17*time.Hour - time.Nanosecond), Kind: "gap", Body: []byte(`{}`)},
		{Index: 9, ID: "00112233445566ff-9", Time: now.Add(-17 * time.Hour), Kind: "alert", Body: []byte(`{}`)},
		{Index: 10, ID: "00112233445566ff-10", Time: now, Kind: "handshake", Body: []byte(`{}`), Late: true},
	}
	got, bad := sink.(*datadogFinder).encode(&deliver.Batch{Items: items}, http.Header{})
	if bad != nil {
		t.Fatal(bad)
	}
	want, err := os.ReadFile(filepath.Join("testdata", "datadog", "body.json"))
	if err != nil {
		t.Fatal(err)
	}
	var flat bytes.Buffer
	if err := json.Compact(&flat, want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, flat.Bytes()) {
		t.Errorf("got  %s\nwant %s", got, flat.Bytes())
	}
}

// What is longest by our limits stays below what Datadog cuts off in silence, and
// what is longer by mistake is never sent.
func TestDatadogLimits(t *testing.T) {
	account, script, sink := datadogWorld(t, func(c *DatadogConfig) {
		c.Intake.Timeout = 30 * time.Second
		for i := range 100 {
			c.Tags = append(c.Tags, fmt.Sprintf("tag-%d:%s", i, strings.Repeat("v", 100)))
		}
	})
	l := sink.Limits()
	body := func(n int) []byte { return []byte(`{"x":"` + strings.Repeat("x", n-8) + `"}`) }
	items := testItems(0, 1001, time.Now())
	for i := range items {
		items[i].Kind = strings.Repeat("k", 32)
		items[i].Body = []byte(`{}`)
	}
	whole := items[:min(l.Bytes/(2+l.Overhead), l.Items)]
	if r := sink.Send(t.Context(), &deliver.Batch{Items: whole}); r.Class != deliver.Done || r.Grade != deliver.Accepted {
		t.Errorf("a batch at the limits: %+v", r)
	}
	four := testItems(2000, 4, time.Now())
	for i := range four {
		four[i].Body = body(l.Item)
	}
	if r := sink.Send(t.Context(), &deliver.Batch{Items: four}); r.Class != deliver.Done {
		t.Errorf("bodies at the limit: %+v", r)
	}
	for _, log := range account.Logs() {
		if log.Truncated {
			t.Error("a log was cut off")
		}
		if around := len(log.Raw) - len(log.Fields["record"]) + 1; around > l.Overhead {
			t.Errorf("%d bytes around a body, and %d were told", around, l.Overhead)
		}
	}
	before := script.Seen()
	if r := sink.Send(t.Context(), &deliver.Batch{Items: items}); r.Class != deliver.Split || r.Cause != "too_large" || r.Ambiguous {
		t.Errorf("1,001 entries: %+v", r)
	}
	d := newDriver(t, sink)
	four[2].Body = body(1_000_000)
	d.run(four, 4)
	if len(d.waste) != 1 || d.waste[four[2].ID] != "too_large" || len(d.settled) != 3 {
		t.Errorf("quarantine %v, settled %v", d.waste, d.settled)
	}
	if script.Seen() != before+2 {
		t.Errorf("%d requests, want 2", script.Seen()-before)
	}
}

// However long ago: nothing that Datadog would throw away for its date.
func TestDatadogLate(t *testing.T) {
	account, _, sink := datadogWorld(t, nil)
	items := testItems(0, 4, time.Now().Add(-60*time.Hour))
	items[3].Time = time.Now().Add(-16 * time.Hour)
	d := newDriver(t, sink)
	d.run(items, 4)
	d.check(items, datadogHeld(account))
	if account.Dropped() != 0 {
		t.Errorf("%d were thrown away", account.Dropped())
	}
	for i, l := range account.Logs() {
		var at time.Time
		if err := json.Unmarshal(l.Fields["event_time"], &at); err != nil || !at.Equal(items[i].Time) {
			t.Errorf("%d: event_time %s, %v", i, at, err)
		}
		late := string(l.Fields["late"]) == "true" && slices.Contains(l.Tags, "late:true")
		if late != (i < 3) || late && time.Since(l.Date) > time.Minute || !late && !l.Date.Equal(items[i].Time.Truncate(time.Millisecond)) {
			t.Errorf("%d: late %v, dated %s", i, late, l.Date)
		}
	}
}

func TestDatadogPoison(t *testing.T) {
	account, _, sink := datadogWorld(t, nil)
	items := testItems(0, 8, time.Now())
	items[5].Body = []byte(`{"broken`)
	d := newDriver(t, sink)
	d.run(items, 8)
	if len(d.waste) != 1 || d.waste[items[5].ID] != "http_400" {
		t.Errorf("quarantine: %v", d.waste)
	}
	d.check(items, datadogHeld(account))
}

// A key that was changed in its file is taken without a restart; until then
// nothing is lost, and the key is in no message.
func TestDatadogKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old-key-old-key")
	key, err := NewCredential(FromFile(file))
	if err != nil {
		t.Fatal(err)
	}
	account, script, sink := datadogWorld(t, func(c *DatadogConfig) { c.Key = key })
	script.Play(scripted.Fault{Status: 403, Body: `{"errors":["old-key-old-key is forbidden"]}`})
	items := testItems(0, 3, time.Now())
	d := newDriver(t, sink)
	fixes := 0
	d.fix = func() {
		if fixes++; fixes == 2 {
			write("api-key")
		}
		changed, err := sink.(deliver.Renewer).Renew()
		if err != nil || changed != (fixes == 2) {
			t.Errorf("renewed: %v, %v", changed, err)
		}
	}
	if err := sink.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "refuses the API key") && !strings.Contains(err.Error(), "403") {
		t.Errorf("Test with a bad key: %v", err)
	}
	d.run(items, 3)
	d.check(items, datadogHeld(account))
	if d.first.Class != deliver.Pause || strings.Contains(d.first.Detail, "old-key") || fixes != 2 {
		t.Errorf("first %+v, %d fixes", *d.first, fixes)
	}
	if err := sink.Test(t.Context()); err != nil {
		t.Errorf("Test with a good key: %v", err)
	}
}

func TestDatadogTest(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault *scripted.Fault
		api   bool
		says  string
	}{
		{"fine", nil, true, ""},
		{"fine without API", nil, false, ""},
		{"forbidden", &scripted.Fault{Status: 403}, true, "refuses the API key"},
		{"forbidden without API", &scripted.Fault{Status: 403}, false, "refuses the API key"},
		{"somebody else", &scripted.Fault{Status: 200, Body: "<html>"}, true, "does not call"},
		{"not valid", &scripted.Fault{Status: 200, Body: `{"valid":false}`}, true, "does not call"},
		{"somebody else without API", &scripted.Fault{Status: 200, Body: "<html>"}, false, "not Datadog"},
		{"moved", &scripted.Fault{Status: 302}, true, "not Datadog"},
		{"gone", &scripted.Fault{Break: scripted.Resets}, true, "reset"},
	} {
		account, script, sink := datadogWorld(t, func(cfg *DatadogConfig) {
			if !c.api {
				cfg.API, cfg.AppKey = Settings{}, nil
			}
		})
		if c.fault != nil {
			script.Play(*c.fault)
		}
		err := sink.Test(t.Context())
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(account.Logs()) != 0 {
			t.Errorf("%s: something was kept", c.name)
		}
		if _, can := sink.(deliver.Finder); can != c.api {
			t.Errorf("%s: finder %v", c.name, can)
		}
	}
}

func TestDatadogFind(t *testing.T) {
	account, script, sink := datadogWorld(t, nil)
	script.Only = "/api/v2/logs/events/search"
	now := time.Now()
	items := append(testItems(0, 20, now.Add(-40*time.Hour)), testItems(20, 30, now.Add(-time.Hour))...)
	d := newDriver(t, sink)
	d.run(items, 7)
	d.run(items[3:5], 2) // copies are told
	w := deliver.Window{Origin: testOrigin, From: 0, To: 50, Since: items[0].Time, Until: items[49].Time}
	f := sink.(*datadogFinder)
	var waited []time.Duration
	f.wait = func(_ context.Context, d time.Duration) error { waited = append(waited, d); return nil }
	find := func() (map[string]int, error) {
		held := map[string]int{}
		return held, f.Find(t.Context(), w, func(id string) error { held[id]++; return nil })
	}
	account.SetPage(4)
	script.Play(
		scripted.Fault{Status: 429, Header: map[string]string{"X-RateLimit-Reset": "9"}}, scripted.Fault{Break: scripted.Resets},
		scripted.Fault{Break: scripted.LongBody, Status: 200}, scripted.Fault{Status: 503, Header: map[string]string{"Retry-After": "3"}},
	)
	held, err := find()
	if err != nil || len(held) != 50 || held[items[3].ID] != 2 || held[items[5].ID] != 1 {
		t.Errorf("found %d, %v", len(held), err)
	}
	if !slices.Equal(waited, []time.Duration{9 * time.Second, 2 * time.Second, 3 * time.Second}) {
		t.Errorf("waited %v", waited)
	}
	account.Warn("an index is away")
	if _, err := find(); err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("with a warning: %v", err)
	}
	account.Warn("")
	for _, c := range []struct {
		fault scripted.Fault
		says  string
	}{
		{scripted.Fault{Status: 403, Body: "app-key is no key"}, "*** is no key"},
		{scripted.Fault{Status: 200, Body: "{"}, "cannot be read"},
		{scripted.Fault{Status: 200, Body: `{"data":[],"meta":{"status":"timeout"}}`}, "incomplete"},
		{scripted.Fault{Status: 500, Times: datadogTries}, "refused (500)"},
		{scripted.Fault{Status: 200, Body: `{"data":[],"meta":{"page":{"after":"MA"}}}`, Times: 2}, "does not get past"},
	} {
		script.Play(c.fault)
		if _, err := find(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c.fault, err)
		}
	}
	stop := fmt.Errorf("enough")
	if err := f.Find(t.Context(), w, func(string) error { return stop }); err != stop {
		t.Errorf("an error of fn: %v", err)
	}
}

func TestDatadogConfig(t *testing.T) {
	good := func() DatadogConfig {
		c := DatadogConfig{Key: fixed("k")}
		c.DatadogSite("datadoghq.eu")
		return c
	}
	if c := good(); c.Intake.URL != "https://http-intake.logs.datadoghq.eu" || c.API.URL != "https://api.datadoghq.eu" {
		t.Errorf("%+v", c)
	}
	for name, change := range map[string]func(*DatadogConfig){
		"no key":               func(c *DatadogConfig) { c.Key = nil },
		"no URL":               func(c *DatadogConfig) { c.Intake.URL = "" },
		"a bad API":            func(c *DatadogConfig) { c.API.URL = "http://api.example.com" },
		"nothing to search in": func(c *DatadogConfig) { c.API.URL, c.AppKey = "", fixed("a") },
		"a tag with a comma":   func(c *DatadogConfig) { c.Tags = []string{"a,b"} },
		"an empty tag":         func(c *DatadogConfig) { c.Tags = []string{""} },
	} {
		c := good()
		change(&c)
		if _, err := NewDatadog(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := NewDatadog(good()); err != nil {
		t.Error(err)
	}
}
