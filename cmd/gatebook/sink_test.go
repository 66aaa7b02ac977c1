package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// plainly starts a receiver without TLS.
func plainly(s *httptest.Server) { s.Start() }

// sinkPair is a webhook with a token and a file.
func (s *site) sinkPair(r *receiver) {
	s.t.Helper()
	s.write("hook.token", "first-token\n")
	s.withSinks(
		fmt.Sprintf("{name: hook, type: webhook, url: %q, token: {file: hook.token}}", r.URL+"/in"),
		"{name: disk, type: file, path: out.jsonl}")
}

// TestSinks: everything in the book is at the sinks, under ids of its own, and
// nothing personal is.
func TestSinks(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r := newReceiver(t, plainly)
	s.sinkPair(r)
	s.start()
	for n := range 20 {
		s.get(fmt.Sprintf("/v1/orders/%d?secret=hunter2", n))
	}
	hook, disk := s.caughtUp("hook"), s.caughtUp("disk")
	if hook.Grade != "G1" || disk.Grade != "G2" || len(hook.Fields) != 0 {
		t.Errorf("hook %+v, disk %+v", hook, disk)
	}
	below := min(hook.Cursor, disk.Cursor)
	book := s.inBook()
	delivered(t, book, r.held(t), below)
	delivered(t, book, fileHolds(t, filepath.Join(s.dir, "out.jsonl")), below)
	text := string(s.read("out.jsonl"))
	if strings.Contains(text, "hunter2") || strings.Contains(text, "/v1/orders/7") || strings.Contains(text, "127.0.0.1/32") {
		t.Error("something personal left that nobody named")
	}
	if !strings.Contains(text, `"kind":"request"`) {
		t.Errorf("no request among the records: %.300s", text)
	}
	if n := len(s.search(`kind == "delivery" && event.name == "sink_declared"`)); n != 2 {
		t.Errorf("%d sinks declared", n)
	}
	s.stop()
	s.command(0, "verify")
}

// fields is what tests look at of what a sink got.
type leaving struct {
	Subject  string
	Kind     string
	Personal struct {
		IP, Path string
		UA       string
	}
}

// TestSinkFields: what is named leaves, and that is on record; pseudonyms are
// different for each sink.
func TestSinkFields(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.withSinks("{name: a, type: file, path: a.jsonl, fields: [ip, path]}", "{name: b, type: file, path: b.jsonl}")
	s.start()
	s.get("/v1/orders/7")
	s.caughtUp("a")
	s.caughtUp("b")
	read := func(name string) (out leaving) {
		for line := range strings.Lines(string(s.read(name))) {
			var l leaving
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			if l.Kind == "request" {
				out = l
			}
		}
		return out
	}
	a, b := read("a.jsonl"), read("b.jsonl")
	if a.Personal.IP != "127.0.0.1" || a.Personal.Path != "/v1/orders/7" || a.Personal.UA != "" || b.Personal.IP != "" {
		t.Errorf("a %+v, b %+v", a, b)
	}
	own := s.command(0, "search", `kind == "request"`, "--json")
	if a.Subject == b.Subject || a.Subject == "" || strings.Contains(own, a.Subject) {
		t.Errorf("subjects %q and %q are not the sinks' own", a.Subject, b.Subject)
	}
	out := s.command(0, "search", `event.name == "sink_declared" && event.target == "a"`, "--json")
	if !strings.Contains(out, "field:ip") || !strings.Contains(out, "field:path") {
		t.Errorf("the record does not say what leaves: %s", out)
	}
	// More fields, by a reload: a warning and a record.
	s.withSinks("{name: a, type: file, path: a.jsonl, fields: [ip, path, ua]}", "{name: b, type: file, path: b.jsonl}")
	if out := s.command(0, "reload"); !strings.Contains(out, "the personal field ua leaves from now on") {
		t.Errorf("reload says %s", out)
	}
	if out := s.command(0, "search", `event.name == "sink_declared" && event.target == "a"`, "--json"); !strings.Contains(out, "field:ua") {
		t.Errorf("the reload is not on record: %s", out)
	}
	s.get("/v1/orders/8")
	s.caughtUp("a")
	if a := read("a.jsonl"); !strings.HasPrefix(a.Personal.UA, "Go-http-client") {
		t.Errorf("after the reload: %+v", a)
	}
	s.stop()
}

// TestSinkCredential: a sink that refuses a credential pauses, and goes on by
// itself when it has been replaced.
func TestSinkCredential(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r := newReceiver(t, plainly)
	r.behave(func(q *http.Request) int {
		if q.Header.Get("Authorization") != "Bearer second-token" {
			return 401
		}
		return 200
	}, false)
	s.sinkPair(r)
	s.start()
	s.get("/a")
	st := s.sinkUntil("hook", "paused by the sink", func(st sinkStatus) bool { return st.State == "paused_by_sink" })
	if st.Cursor != 0 || len(st.Alarms) == 0 {
		t.Errorf("status %+v", st)
	}
	if _, code := s.try("sink", "status", "hook"); code != 1 {
		t.Errorf("exit code %d of the status of a paused sink", code)
	}
	s.caughtUp("disk") // another sink does not mind
	s.write("hook.token", "second-token\n")
	s.caughtUp("hook")
	delivered(t, s.inBook(), r.held(t), s.sink("hook").Cursor-1)
	if n := len(s.search(`event.name == "sink_paused" && event.target == "hook"`)); n != 1 {
		t.Errorf("%d records of the pause", n)
	}
	s.stop()
}

// TestSinkTLS: a sink with a CA of its own, that wants a client certificate.
func TestSinkTLS(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	ca := newAuthority(t, "sinks")
	server, gate := ca.pair(t, "localhost"), ca.pair(t, "gate")
	r := newReceiver(t, func(h *httptest.Server) { ca.demand(h, server) })
	s.write("ca.pem", ca.pem())
	s.write("gate.crt", certPEM(gate.Certificate[0]))
	s.write("gate.key", keyOf(t, gate))
	s.write("hook.token", "token-token\n")
	sink := "{name: hook, type: webhook, url: %q, token: {file: hook.token}, tls: {%s}}"
	s.withSinks(fmt.Sprintf(sink, r.URL+"/in", "ca: ca.pem"))
	s.start()
	s.get("/a")
	s.sinkUntil("hook", "retrying", func(st sinkStatus) bool { return st.State == "retrying" })
	if len(r.held(t)) != 0 {
		t.Error("records went to a sink that had refused the gate")
	}
	s.withSinks(fmt.Sprintf(sink, r.URL+"/in", "ca: ca.pem, cert: gate.crt, key: gate.key"))
	s.command(0, "reload")
	st := s.caughtUp("hook")
	delivered(t, s.inBook(), r.held(t), st.Cursor)
	s.command(0, "sink", "test", "hook")
	// Another CA: nothing is sent.
	s.write("ca.pem", newAuthority(t, "others").pem())
	s.command(0, "reload")
	s.get("/b")
	s.sinkUntil("hook", "retrying", func(st sinkStatus) bool { return st.State == "retrying" })
	s.command(1, "sink", "test", "hook")
	s.stop()
}

// TestSinkReload: sinks come, change and go; the cursor stays with the name.
func TestSinkReload(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r, r2 := newReceiver(t, plainly), newReceiver(t, plainly)
	s.write("hook.token", "token-token\n")
	s.start()
	s.get("/a")
	hook := func(at *receiver, more string) string {
		return fmt.Sprintf("{name: hook, type: webhook, url: %q, token: {file: hook.token}%s}", at.URL+"/in", more)
	}
	s.withSinks(hook(r, ""))
	s.command(0, "reload")
	first := s.caughtUp("hook")
	delivered(t, s.inBook(), r.held(t), first.Cursor)

	// Gone: the cursor stays.
	s.withSinks()
	if out := s.command(0, "reload"); !strings.Contains(out, "sink hook: it is gone; its cursor stays") {
		t.Errorf("reload says %s", out)
	}
	s.get("/b")
	if st := s.sinkUntil("hook", "not configured", func(st sinkStatus) bool { return st.State == "not_configured" }); st.Cursor < first.Cursor {
		t.Errorf("cursor %d, was %d", st.Cursor, first.Cursor)
	}

	// Back, elsewhere: told, and what was delivered before is not sent again.
	s.withSinks(hook(r2, ""))
	if out := s.command(0, "reload"); !strings.Contains(out, "sink hook: it is elsewhere now") {
		t.Errorf("reload says %s", out)
	}
	second := s.caughtUp("hook")
	held := r2.held(t)
	if held[0] != 0 {
		t.Error("the new place has the first record")
	}
	book := s.inBook()
	for i := range book {
		if i >= first.Cursor+10 && i < second.Cursor && held[i] == 0 {
			t.Errorf("record %d is not at the new place", i)
		}
	}
	s.command(0, "sink", "replay", "hook", "--from", "0")
	s.caughtUp("hook")
	delivered(t, s.inBook(), r2.held(t), s.sink("hook").Cursor)

	// Another type under the same name is refused, also by a start.
	s.withSinks("{name: hook, type: file, path: out.jsonl}")
	s.command(2, "reload")
	if !strings.Contains(s.said, "it was of the type webhook") {
		t.Errorf("reload says %s", s.said)
	}
	s.get("/c")
	s.withSinks(hook(r2, ", paused: true"))
	s.command(0, "reload")
	s.sinkUntil("hook", "paused", func(st sinkStatus) bool { return st.State == "paused" })
	s.command(1, "sink", "resume", "hook")
	s.stop()
	s.withSinks("{name: hook, type: file, path: out.jsonl}")
	out, code := s.try("serve")
	if code == 0 || !strings.Contains(s.said, "it was of the type webhook") {
		t.Errorf("serve: exit code %d: %s%s", code, out, s.said)
	}
}
