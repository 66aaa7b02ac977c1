package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// past writes what a site is to have lived through into its book, which no
// server has open. The book's clock stands where the past does.
type past struct {
	t    *testing.T
	book *book.Book
	rec  *book.Recorder
	now  atomic.Int64 // µs
}

// lived opens the site's book at a time, lets do write and closes it again.
func (s *site) lived(from time.Time, do func(*past)) {
	s.t.Helper()
	ctx := context.Background()
	p := &past{t: s.t}
	p.now.Store(from.UnixMicro())
	must := func(err error) {
		if err != nil {
			s.t.Helper()
			s.t.Fatal(err)
		}
	}
	var err error
	p.book, err = book.Open(ctx, book.Config{
		Dir: filepath.Join(s.dir, "data"), KeyDir: filepath.Join(s.dir, "keys"), Prefix: "log.example.com/test", Node: "gate-1",
		Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.UnixMicro(p.now.Load()) },
	})
	must(err)
	running, end := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.book.Run(running) }()
	rules, err := redact.New(redact.Config{Names: redact.Names{Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Issuers: []string{"corp"}}})
	must(err)
	p.rec = p.book.Recorder(rules, strings.Repeat("0", 32))
	do(p)
	end()
	must(errors.Join(<-done, p.book.Close(ctx)))
}

// wrote keeps a record of an exchange: of somebody who was let through, or of a
// key that nobody knows.
func (p *past) wrote(at time.Time, who, address string) {
	p.t.Helper()
	p.now.Store(at.UnixMicro())
	r := record.Record{
		ID: p.book.NewID(at), Time: at.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success, Route: "orders.read",
		Op: "GET /v1/orders/{id}", Method: "GET", Template: "/v1/orders/{id}", Status: 200,
		Authn: record.Authn{Method: "jwt", Issuer: "corp", Outcome: "ok"}, Authz: record.Authz{Decision: "allow"},
		Personal: record.Personal{Sub: who}, Raw: record.Raw{IssuerSub: "corp|" + who, RemoteAddr: address},
	}
	if who == "" {
		r.Outcome, r.Status, r.Raw.IssuerSub = record.Failure, 401, ""
		r.Authn, r.Authz = record.Authn{Method: "apikey", Outcome: "failed", Reason: "key_unknown"}, record.Authz{}
		r.Error = record.Error{Origin: "identity", Reason: "key_unknown"}
	}
	if err := p.rec.Commit(context.Background(), record.Ref{}, &r, record.Written); err != nil {
		p.t.Fatal(err)
	}
}

// aDayAndMore is what the site has lived through: every other hour an export, a
// courier on the road, a few who mistype their keys, and one who reads a little.
func (p *past) aDayAndMore(from, to time.Time) {
	for at := from; at.Before(to); at = at.Add(2 * time.Hour) {
		for i := range 600 {
			p.wrote(at.Add(time.Duration(i)*500*time.Millisecond), "export", "127.100.1.1")
		}
		for i := range 6 {
			p.wrote(at.Add(time.Duration(i)*time.Minute), "courier", fmt.Sprintf("127.101.%d.1", i))
			p.wrote(at.Add(time.Duration(i)*time.Minute), "", fmt.Sprintf("127.102.%d.1", i))
		}
		for i := range 20 {
			p.wrote(at.Add(time.Duration(i)*10*time.Second), "mallory", "127.103.1.1")
		}
	}
}

// reads asks for so many orders with a token, from an address, with a few
// connections at a time.
func (s *site) reads(address, credential string, n int) error {
	const side = 4
	errs := make(chan error, side)
	for k := range side {
		c := s.from(address)
		go func() {
			for i := k; i < n; i += side {
				if err := s.asks(c, fmt.Sprintf("/v1/orders/%d", i), credential, 200); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	var all []error
	for range side {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// asks demands an answer with a status.
func (s *site) asks(c *http.Client, path, credential string, want int) error {
	req, err := http.NewRequest("GET", "https://"+s.addr+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+credential)
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s is answered %d, want %d", path, resp.StatusCode, want)
	}
	return nil
}

// unknownKey is an API key of the right form that was never made.
func unknownKey(n int) string {
	body := "gbk_" + strings.Repeat("1", 39) + fmt.Sprintf("%04d", n)
	return body + crcOf(body)
}

// usualDay is traffic that comes near to each of the built-in rules and is none of
// what they are about.
func (s *site) usualDay(env *jwtattack.Env) error {
	clerk := func(sub string) string { return token(env, sub, "clerk", nil) }
	// Four times as much as ever, of one whose past is large enough.
	errs := []error{s.reads("127.100.1.1", clerk("export"), 2400)}
	one := func(address, path, credential string, want int) {
		c := s.from(address)
		errs = append(errs, s.asks(c, path, credential, want))
		c.CloseIdleConnections()
	}
	// From more networks than eight, by one who travels.
	for i := range 10 {
		one(fmt.Sprintf("127.101.%d.1", i), "/v1/orders/7", clerk("courier"), 200)
	}
	// Keys that nobody knows, from as many networks as ever and a few more.
	for i := range 12 {
		one(fmt.Sprintf("127.102.%d.1", i), "/v1/orders/7", unknownKey(i), 401)
	}
	// A broken program behind an address where somebody else is at work, and a key
	// that is right at the fifth try.
	one("127.104.1.1", "/v1/orders/7", clerk("dora"), 200)
	for i := range 22 {
		one("127.104.1.1", "/v1/orders/7", unknownKey(100+i), 401)
	}
	one("127.104.1.1", "/v1/orders/7", clerk("emil"), 200)
	for i := range 4 {
		one("127.105.1.1", "/v1/orders/7", unknownKey(200+i), 401)
	}
	one("127.105.1.1", "/v1/orders/7", clerk("fritz"), 200)
	// Twenty denials, all of the same few operations.
	for i := range 20 {
		one("127.106.1.1", fmt.Sprintf("/v1/admin/%d", i%4), clerk("gerd"), 403)
	}
	// And who will read too much reads as much as ever.
	errs = append(errs, s.reads("127.103.1.1", clerk("mallory"), 20))
	return errors.Join(errs...)
}

// looked waits until detection has looked at all that is in the book now.
func (s *site) looked() {
	s.t.Helper()
	all := s.search(`kind == "request"`)
	last := all[len(all)-1].Index
	s.until("detection has seen it", func() bool {
		var st struct {
			Detection struct {
				Next   uint64
				Failed string
			}
		}
		if err := json.Unmarshal([]byte(s.command(0, "status", "--json")), &st); err != nil || st.Detection.Failed != "" {
			s.t.Fatalf("%v: %+v", err, st)
		}
		return st.Detection.Next > last
	})
}

// TestAttacksOnAPast: rules that compare with the past, as they are built in and in
// the real program, behind a book that has one. A day as usual makes no alert;
// stuffing and scraping make one each, in time, at the webhook and at a sink.
func TestAttacksOnAPast(t *testing.T) {
	began := time.Now()
	up := newUpstream(t)
	s, env := keySite(t, up.URL)
	r := newReceiver(t, plainly)
	text := string(s.read("gatebook.yaml"))
	var more strings.Builder
	for i := range 10 {
		fmt.Fprintf(&more, "  - {name: \"admin%d\", path: \"/v1/admin/%d\", methods: [GET], upstream: app, authn: [{jwt: corp}]}\n", i, i)
	}
	text = strings.Replace(text, "routes:\n", "routes:\n"+more.String(), 1)
	s.replace("gatebook.yaml", text+fmt.Sprintf("detect: {webhook: {url: %q, signing_key: {file: hook.key}}}\nsinks:\n- {name: disk, type: file, path: out.jsonl}\n", r.URL+"/alerts"))
	s.write("hook.key", strings.Repeat("k", 40)+"\n")
	s.start() // from here on detection has a place in the book
	s.stop()
	now := time.Now()
	s.lived(now.Add(-31*time.Hour), func(p *past) { p.aDayAndMore(now.Add(-31*time.Hour), now.Add(-2*time.Hour)) })
	s.start()
	defer s.stop()
	if err := s.usualDay(env); err != nil {
		t.Fatal(err)
	}
	s.looked()
	s.subjectOf(`client.prefix == "127.100.1.0/24"`) // has the past that was written
	mallory := s.subjectOf(`client.prefix == "127.103.1.0/24"`)
	if got := s.detections(0); len(got) != 0 {
		t.Fatalf("a day as usual makes alerts: %+v", got)
	}
	// Sixty networks with one key each. Twelve have failed today already.
	for i := range 60 {
		c := s.from(fmt.Sprintf("127.120.%d.1", i))
		if err := s.asks(c, "/v1/orders/7", unknownKey(1000+i), 401); err != nil {
			t.Fatal(err)
		}
		c.CloseIdleConnections()
	}
	s.detections(1)
	if err := s.reads("127.103.1.1", token(env, "mallory", "clerk", nil), 2100); err != nil {
		t.Fatal(err)
	}
	s.detections(2)
	s.looked()
	s.tellsOfAttacks(mallory)

	// At the webhook are the alerts, the gate's too, and nothing else; at the sink
	// is everything.
	alerts := map[uint64]bool{}
	for _, a := range s.search(`kind == "alert"`) {
		alerts[a.Index] = true
	}
	hook, disk := s.caughtUp("alerts"), s.caughtUp("disk")
	if hook.Quarantine != 0 || disk.Quarantine != 0 {
		t.Errorf("webhook %+v, sink %+v", hook, disk)
	}
	delivered(t, alerts, r.held(t), hook.Cursor)
	held := fileHolds(t, filepath.Join(s.dir, "out.jsonl"))
	for i := range alerts {
		if held[i] != 1 || r.held(t)[i] != 1 {
			t.Errorf("of the alert %d there are %d copies at the sink and %d at the webhook", i, held[i], r.held(t)[i])
		}
	}
	t.Logf("%d alerts with those of the gate, after %v", len(alerts), time.Since(began).Round(time.Second))
}

// subjectOf is the pseudonym that all records of an expression are about.
func (s *site) subjectOf(expr string) string {
	s.t.Helper()
	subject := ""
	for line := range strings.Lines(s.command(0, "search", expr, "--json")) {
		var found detected
		if err := json.Unmarshal([]byte(line), &found); err != nil {
			s.t.Fatal(err)
		}
		if subject != "" && subject != found.Frame.Subject {
			s.t.Fatalf("%s is about %s and %s: the past is not that of the same person", expr, subject, found.Frame.Subject)
		}
		subject = found.Frame.Subject
	}
	return subject
}

// soon is how late an alert may be on a machine that does much else; it is made
// within two seconds of the record.
const soon = 20 * time.Second

// tellsOfAttacks demands the two alerts of TestAttacksOnAPast.
func (s *site) tellsOfAttacks(mallory string) {
	s.t.Helper()
	type alert struct {
		Frame struct {
			Time  time.Time
			Limit struct{ Rule string }
			Links []string
			Event struct {
				Name, Target, Cause string
				Count, First, Last  int64
			}
		}
	}
	var got []alert
	for line := range strings.Lines(s.command(0, "search", `kind == "alert" && limit.rule startsWith "detect."`, "--json")) {
		var a alert
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			s.t.Fatal(err)
		}
		got = append(got, a)
	}
	want := []struct {
		rule, name, target, severity string
		count                        int64
	}{
		{"detect.credential_stuffing", "authn_login_fail_max", "*", "high", 50},
		{"detect.scraping", "excess_volume", mallory, "medium", 2000},
	}
	if len(got) != len(want) {
		s.t.Fatalf("there are %d alerts, want %d: %+v", len(got), len(want), got)
	}
	for i, w := range want {
		f := got[i].Frame
		e := f.Event
		if f.Limit.Rule != w.rule || e.Name != w.name || e.Target != w.target || e.Cause != w.severity || e.Count != w.count {
			s.t.Errorf("alert %d is %+v, want %+v", i, f, w)
		}
		if took := time.Duration(e.Last-e.First) * time.Microsecond; took < 0 || took > 10*time.Minute {
			s.t.Errorf("%s is about %v, more than its window", w.rule, took)
		}
		if late := f.Time.Sub(time.UnixMicro(e.Last)); late < 0 || late > soon {
			s.t.Errorf("%s was told %v after the record that made it", w.rule, late)
		}
		if len(f.Links) == 0 || slices.Contains(f.Links, "") {
			s.t.Errorf("%s links to %q", w.rule, f.Links)
		}
		for _, id := range f.Links {
			s.command(0, "show", id)
		}
	}
}
