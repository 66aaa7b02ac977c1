package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
)

// sinkNotes are sinks that note what they are asked to do, with who asks.
type sinkNotes struct{ did []string }

func (s *sinkNotes) note(format string, args ...any) {
	s.did = append(s.did, fmt.Sprintf(format, args...))
}

func (s *sinkNotes) All() []SinkStatus { return []SinkStatus{{Name: "siem", Fields: []string{}}} }
func (s *sinkNotes) Find(name string) (SinkStatus, error) {
	if name != "siem" {
		return SinkStatus{}, &Problem{Title: "no such sink", Status: http.StatusNotFound, Code: exitNotFound}
	}
	return s.All()[0], nil
}
func (s *sinkNotes) Quarantine(context.Context, string) ([]QuarantinedRecord, error) {
	s.note("quarantine")
	return []QuarantinedRecord{{ID: "x-1"}}, nil
}
func (s *sinkNotes) Pause(_ context.Context, who *Caller, name string) error {
	s.note("pause %s by %s", name, who.Name)
	return nil
}
func (s *sinkNotes) Resume(_ context.Context, who *Caller, name string) error {
	s.note("resume %s by %s", name, who.Name)
	return errors.New("it is paused by the configuration")
}
func (s *sinkNotes) Replay(_ context.Context, _ *Caller, name string, r SinkReplay) (uint64, error) {
	if r.From == nil {
		s.note("replay %s since %s", name, r.Since)
		return 7, nil
	}
	s.note("replay %s from %d", name, *r.From)
	return *r.From, nil
}
func (s *sinkNotes) Requeue(_ context.Context, _ *Caller, name string, p SinkPick) (int, error) {
	s.note("requeue %s %v %t", name, p.IDs, p.All)
	return len(p.IDs), nil
}
func (s *sinkNotes) Waive(_ context.Context, _ *Caller, name string, p SinkPick) (int, error) {
	s.note("waive %s %v %t %s", name, p.IDs, p.All, p.Reason)
	return len(p.IDs), nil
}
func (s *sinkNotes) Test(_ context.Context, _ *Caller, name string) error {
	s.note("test %s", name)
	return nil
}

// TestSinkCalls: who may do what with sinks, and what of a request is refused
// before anything is done. A call without the role is a record.
func TestSinkCalls(t *testing.T) {
	b := openBook(t)
	for _, c := range []struct {
		role                     Role
		method, path, body       string
		status                   int
		did, answer, refusedAsOf string
	}{
		{Reader, "GET", "", "", 200, "", `"name":"siem"`, ""},
		{Reader, "GET", "/siem", "", 200, "", `"name":"siem"`, ""},
		{Reader, "GET", "/other", "", 404, "", "no such sink", ""},
		{Privacy, "GET", "", "", 403, "", "needs the role reader", "sink_status"},
		{Reader, "GET", "/siem/quarantine", "", 403, "", "needs the role operator", "sink_quarantine"},
		{Operator, "GET", "/siem/quarantine", "", 200, "quarantine", `"id":"x-1"`, ""},
		{Reader, "POST", "/siem/pause", "{}", 403, "", "needs the role operator", "sink_pause"},
		{Operator, "POST", "/siem/pause", "{}", 200, "pause siem by uid:7", `{"sink":"siem"}`, ""},
		{Operator, "POST", "/other/pause", "{}", 404, "", "no such sink", ""},
		{Operator, "POST", "/siem/resume", "{}", 500, "resume siem by uid:7", "paused by the configuration", ""},
		{Reader, "POST", "/siem/resume", "{}", 403, "", "needs the role operator", "sink_resume"},
		{Operator, "POST", "/siem/test", "{}", 200, "test siem", `{"sink":"siem"}`, ""},
		{Reader, "POST", "/siem/test", "{}", 403, "", "needs the role operator", "sink_test"},
		{Operator, "POST", "/siem/replay", `{"from":0}`, 200, "replay siem from 0", `"from":0`, ""},
		{Operator, "POST", "/siem/replay", `{"since":"2026-11-01T00:00:00Z"}`, 200, "replay siem since 2026-11-01 00:00:00 +0000 UTC", `"from":7`, ""},
		{Operator, "POST", "/siem/replay", `{}`, 400, "", "exactly one of from", ""},
		{Operator, "POST", "/siem/replay", `{"from":1,"since":"2026-11-01T00:00:00Z"}`, 400, "", "exactly one of from", ""},
		{Operator, "POST", "/siem/replay", `{"from":-1}`, 400, "", "request:", ""},
		{Operator, "POST", "/siem/replay", `{"fom":1}`, 400, "", "unknown field", ""},
		{Reader, "POST", "/siem/replay", `{"from":0}`, 403, "", "needs the role operator", "sink_replay"},
		{Operator, "POST", "/siem/requeue", `{"ids":["a-1","a-2"]}`, 200, "requeue siem [a-1 a-2] false", `"count":2`, ""},
		{Operator, "POST", "/siem/requeue", `{"all":true}`, 200, "requeue siem [] true", `"sink":"siem"`, ""},
		{Operator, "POST", "/siem/requeue", `{}`, 400, "", "by id, or all of them", ""},
		{Operator, "POST", "/siem/requeue", `{"all":true,"ids":["a-1"]}`, 400, "", "by id, or all of them", ""},
		{Operator, "POST", "/siem/requeue", `{"ids":[` + strings.Repeat(`"a",`, maxPicked) + `"a"]}`, 400, "", "up to 1000", ""},
		{Reader, "POST", "/siem/requeue", `{"all":true}`, 403, "", "needs the role operator", "sink_requeue"},
		{Operator, "POST", "/siem/waive", `{"ids":["a-1"],"reason":"test data"}`, 200, "waive siem [a-1] false test data", `"count":1`, ""},
		{Reader, "POST", "/siem/waive", `{"all":true}`, 403, "", "needs the role operator", "sink_waive"},
	} {
		s := &sinkNotes{}
		p := served(t, New(Config{Book: bookAlone{b}, Sinks: s}), Local("socket", "uid:7", c.role))
		before := len(events(t, b, c.refusedAsOf))
		client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(), nil }}}
		req, err := http.NewRequest(c.method, "http://admin/api/v1/sinks"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		status, body := answered(t, client, req)
		what := fmt.Sprintf("%s %s %s %.40s", c.role, c.method, c.path, c.body)
		if status != c.status || !strings.Contains(body, c.answer) {
			t.Errorf("%s: %d %s, want %d %s", what, status, body, c.status, c.answer)
		}
		if got := strings.Join(s.did, "; "); got != c.did {
			t.Errorf("%s: did %q, want %q", what, got, c.did)
		}
		if c.refusedAsOf == "" {
			continue
		}
		noted := events(t, b, c.refusedAsOf)
		if len(noted) != before+1 || noted[before].Outcome != record.Failure {
			t.Errorf("%s: the refusal is no record: %+v", what, noted)
		}
	}
	if n := len(events(t, b, "sink_quarantine")); n != 2 { // one refused, one granted
		t.Errorf("%d records of looks at the quarantine", n)
	}
}

func answered(t *testing.T, c *http.Client, req *http.Request) (int, string) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
