package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// story is the scripted part and what it remembers.
type story struct {
	*house
	o      *Options
	print  *printer
	http   *http.Client
	denied struct {
		id    string
		index string // as search printed it
		place place  // of its record
	}
	beforeBurst wal // as it was before scene 4
	scenes      int
}

func newStory(h *house, o *Options) (*story, error) {
	c, err := h.client()
	if err != nil {
		return nil, err
	}
	s := &story{house: h, o: o, http: c, print: &printer{w: o.Out, colour: o.Colour}}
	if o.Quiet {
		s.print.w = io.Discard
	}
	return s, nil
}

// tell plays everything from the first scene to the truncated copy.
func (s *story) tell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storyTime)
	defer cancel()
	defer s.http.CloseIdleConnections()
	s.introduce()
	for _, step := range []func(context.Context) error{
		s.allowed, s.deniedWrite, s.expired, s.throttled, s.upstreamDown, s.exchanged, s.moreTraffic,
		s.records, s.signed, s.verification, s.proof, s.copies, s.tampered, s.truncated,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return s.print.err
}

func (s *story) introduce() {
	p := s.print
	p.linef("%s", p.sgr(bold, "A gate, its book and everything around them, on this machine only."))
	p.linef("")
	end := "removed at the end; --keep DIR keeps one"
	if s.o.Keep != "" {
		end = "stays"
	}
	p.linef("  folder     %s (%s)", s.dir, end)
	p.linef("  gate       %s, certificate %s", s.gateURL, certFile)
	p.linef("  upstreams  orders %s, reports %s (down on purpose)", s.house.orders, s.reports())
	p.linef("  issuer     %s, tokens for the admin Ada, the clerk Cleo, the auditor Otto", s.issuer.url)
	p.linef("  anchor     none: whoever owns this machine could roll back the newest checkpoints")
	p.linef("")
	p.linef("Below, \"gatebook\" stands for")
	p.linef("  %s -c %s", quote(s.o.Program), quote(s.dir.path(configFile)))
	p.linef("run in the folder.")
}

// gatebook runs a command with the demo's configuration in the demo's folder
// and demands its exit code. Words that begin with "./" name files in the
// folder.
func (s *story) gatebook(ctx context.Context, want int, args ...string) (string, error) {
	real := []string{"-c", s.dir.path(configFile)}
	shown := make([]string, len(args))
	for i, a := range args {
		name, inFolder := strings.CutPrefix(a, "./")
		shown[i] = name
		if inFolder {
			a = s.dir.path(name)
		}
		real = append(real, a)
	}
	s.print.command("gatebook " + quoteAll(shown))
	return s.run1(ctx, want, real)
}

func (s *story) run1(ctx context.Context, want int, args []string) (string, error) {
	var out, errs bytes.Buffer
	if got := s.o.Command(ctx, args, &out, &errs); got != want {
		return "", fmt.Errorf("gatebook %s ended with exit code %d, not %d: %s%s", quoteAll(args), got, want, out.Bytes(), errs.Bytes())
	}
	return out.String(), nil
}

// request sends one request, shows it and demands the status.
func (s *story) request(ctx context.Context, who person, method, path, body string, want int) (reply, error) {
	r, err := s.ask(ctx, s.http, who, method, path, body)
	if err != nil {
		return r, err
	}
	s.print.linef("  > %s %s as %s", method, strings.TrimSpace(path+" "+body), who)
	s.print.linef("  < %d %s", r.status, strings.TrimSpace(r.body))
	if r.status != want || r.id == "" {
		return r, fmt.Errorf("%s %s as %s: status %d with request id %q, not %d", method, path, who, r.status, r.id, want)
	}
	return r, nil
}

// record finds the one record of a request through search, shows it, and
// demands words in it. It returns the record's index.
func (s *story) record(ctx context.Context, id string, words ...string) (string, error) {
	out, err := s.gatebook(ctx, 0, "search", fmt.Sprintf("id == %q", id))
	if err != nil {
		return "", err
	}
	s.print.output(out)
	fields := strings.Fields(out)
	if strings.Count(out, "\n") != 1 || len(fields) == 0 {
		return "", fmt.Errorf("request %s has not exactly one record:\n%s", id, out)
	}
	for _, w := range words {
		if !strings.Contains(" "+strings.Join(fields, " ")+" ", " "+w+" ") {
			return "", fmt.Errorf("the record of request %s does not say %q: %s", id, w, out)
		}
	}
	return fields[0], nil
}

// scene plays one request of one scene.
func (s *story) scene(name, what string) {
	s.scenes++
	s.print.heading(fmt.Sprintf("Scene %d: %s", s.scenes, name), what)
}

func (s *story) allowed(ctx context.Context) error {
	s.scene("allowed", "The clerk reads an order. The role clerk allows it; the API is told who asks.")
	r, err := s.request(ctx, clerk, "GET", "/v1/orders/1042", "", http.StatusOK)
	if err != nil {
		return err
	}
	_, err = s.record(ctx, r.id, "200", "allow")
	return err
}

func (s *story) deniedWrite(ctx context.Context) error {
	s.scene("denied", "The clerk changes it. The policy clerks-only-look forbids that, so the API never sees it.\nThe answer tells no more than it must; the record names the reason.")
	before, err := readWAL(s.dir.path("data"))
	if err != nil {
		return err
	}
	r, err := s.request(ctx, clerk, "POST", "/v1/orders/1042", `{"status":"gone"}`, http.StatusForbidden)
	if err != nil {
		return err
	}
	after, err := readWAL(s.dir.path("data"))
	if err != nil {
		return err
	}
	s.denied.id = r.id
	if s.denied.place, err = grown(before, after); err != nil {
		return err
	}
	s.denied.index, err = s.record(ctx, r.id, "403", "deny", "denied_by_policy")
	return err
}

func (s *story) expired(ctx context.Context) error {
	s.scene("expired", "The clerk comes with yesterday's token.")
	r, err := s.request(ctx, late, "GET", "/v1/orders/1042", "", http.StatusUnauthorized)
	if err != nil {
		return err
	}
	_, err = s.record(ctx, r.id, "401", "token_expired")
	return err
}

// burst is how many requests scene 4 sends, and how many the limit lets pass.
const (
	burst       = 8
	burstPasses = 5
)

func (s *story) throttled(ctx context.Context) (err error) {
	s.scene("throttled", fmt.Sprintf("The clerk lists the orders %d times at once. The limit lets %d pass, then one more every five\nseconds. The requests that are refused have their records too.", burst, burstPasses))
	if s.beforeBurst, err = readWAL(s.dir.path("data")); err != nil {
		return err
	}
	counts := map[int]int{}
	last := ""
	for range burst {
		r, err := s.ask(ctx, s.http, clerk, "GET", "/v1/orders", "")
		if err != nil {
			return err
		}
		counts[r.status]++
		if r.status == http.StatusTooManyRequests {
			last = r.id
		}
	}
	s.print.linef("  > %d times GET /v1/orders as clerk", burst)
	s.print.linef("  < %d times 200, %d times 429", counts[http.StatusOK], counts[http.StatusTooManyRequests])
	if counts[http.StatusOK] != burstPasses || counts[http.StatusTooManyRequests] != burst-burstPasses {
		return fmt.Errorf("the burst was answered %v, not %d times 200 and then 429", counts, burstPasses)
	}
	out, err := s.gatebook(ctx, 0, "count", "--by", "status", `op == "GET /v1/orders"`)
	if err != nil {
		return err
	}
	s.print.output(out)
	_, err = s.record(ctx, last, "429", "rate_limited")
	return err
}

func (s *story) upstreamDown(ctx context.Context) error {
	s.scene("upstream down", "The admin asks for reports. The gate allows it, but nothing listens at that upstream.")
	r, err := s.request(ctx, admin, "GET", "/v1/reports", "", http.StatusBadGateway)
	if err != nil {
		return err
	}
	_, err = s.record(ctx, r.id, "502", "allow", "connect_refused")
	return err
}

// moreTraffic gives the book something to count.
func (s *story) moreTraffic(ctx context.Context) error {
	for _, r := range []struct {
		who                person
		method, path, body string
		status             int
	}{
		{admin, "POST", "/v1/orders/1042", `{"status":"packed"}`, 200},
		{admin, "GET", "/v1/orders/1043", "", 200},
		{admin, "GET", "/v1/orders/9999", "", 404},
		{auditor, "GET", "/v1/orders/1042", "", 200},
		{auditor, "GET", "/v1/orders/1044", "", 200},
		{auditor, "POST", "/v1/orders/1044", `{"status":"lost"}`, 403},
		{clerk, "GET", "/v1/orders/1044", "", 200},
		{clerk, "DELETE", "/v1/orders/1044", "", 405},
		{nobody, "GET", "/v1/orders/1042", "", 401},
		{nobody, "GET", "/favicon.ico", "", 404},
	} {
		got, err := s.ask(ctx, s.http, r.who, r.method, r.path, r.body)
		if err != nil {
			return err
		}
		if got.status != r.status {
			return fmt.Errorf("%s %s as %s: status %d, not %d", r.method, r.path, r.who, got.status, r.status)
		}
	}
	return nil
}

func (s *story) records(ctx context.Context) error {
	s.print.heading("The records", "Some more requests were sent. Each left exactly one record; so does every look into the book.")
	out, err := s.gatebook(ctx, 0, "count", "--by", `error.reason == "" ? "fine" : error.reason`, `kind == "request"`)
	if err != nil {
		return err
	}
	s.print.output(out)
	return nil
}

// signedWait bounds how long a checkpoint may take; one is due every second.
const signedWait = 15 * time.Second

// signed waits until a checkpoint covers everything, so that what follows
// speaks of all of it. Asking for the status leaves no record.
func (s *story) signed(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, signedWait, errors.New("no checkpoint covers the records although one is due every second"))
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := s.run1(ctx, 0, []string{"-c", s.dir.path(configFile), "status", "--json"})
		if err != nil {
			return err
		}
		var status struct{ Leaves, Signed uint64 }
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("status: %w", err)
		}
		if status.Leaves == status.Signed {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (s *story) verification(ctx context.Context) error {
	s.print.heading("Verification", "Every record is opened and hashed again; the hashes must give the signed root.")
	out, err := s.gatebook(ctx, 0, "verify", "--key-file", "./"+vkeyFile)
	if err != nil {
		return err
	}
	s.print.output(out)
	return nil
}

func (s *story) proof(ctx context.Context) error {
	s.print.heading("A proof", "One record for somebody else, checked offline with nothing but the log's public key.")
	if _, err := s.gatebook(ctx, 0, "prove", s.denied.id, "-o", "./"+proofFile); err != nil {
		return err
	}
	out, err := s.gatebook(ctx, 0, "verify", "./"+proofFile, "--key-file", "./"+vkeyFile)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		s.print.output(cut(line, 100))
	}
	if !strings.Contains(out, "record "+s.denied.index+" of log") {
		return fmt.Errorf("the proof is not about record %s:\n%s", s.denied.index, out)
	}
	return s.signed(ctx)
}

// epilogue verifies what a clean stop left behind.
func (s *story) epilogue(ctx context.Context) error {
	p := s.print
	p.heading("Stopped", "A clean stop seals the records. The folder on the disk verifies without the gate:")
	out, err := s.gatebook(ctx, 0, "verify", "--key-file", "./"+vkeyFile)
	if err != nil {
		return err
	}
	p.output(lastLines(out, 2))
	p.linef("")
	if s.o.Keep != "" {
		p.linef("Everything is in %s; search, show, count, prove and verify go on working there.", s.dir)
	}
	if s.o.Once {
		p.w = s.o.Out // said even when quiet
		p.linef("All as promised: %d scenes recorded, verified and proved; a tampered and a truncated copy found out.", s.scenes)
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// cut shortens a long line.
func cut(line string, width int) string {
	if r := []rune(strings.TrimSuffix(line, "\n")); len(r) > width {
		return string(r[:width-3]) + "...\n"
	}
	return line
}
