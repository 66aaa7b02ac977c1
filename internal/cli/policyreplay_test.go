package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/server"
)

const replayConfig = `
data: data
node: gate-1
origin: log.example.com/replay
keys: {wrapper: {file: keys}}
listen: [{name: public, address: "127.0.0.1:0", plaintext: behind_proxy, trusted: [127.0.0.0/8]}]
issuers:
  - {name: corp, issuer: "https://idp.example.com", audiences: [api]}
upstreams: {orders: {targets: ["http://127.0.0.1:9"]}}
routes:
  - {name: orders.read, path: "/v1/orders/{id}", methods: [GET], upstream: orders, authn: [{jwt: corp}]}
  - {name: orders.write, path: "/v1/orders/{id}", methods: [POST], upstream: orders, authn: [{jwt: corp}]}
roles: {clerk: {allow: ["orders.*"]}}
policies: {dir: policies}
`

const replayPolicies = `
@id("auditors-look") permit (principal in Role::"auditor", action in Action::"safe", resource)
when { context.ip.isInRange(ip("10.0.0.0/8")) };
@id("strong-for-writes") forbid (principal, action in Action::"unsafe", resource)
unless { context.acr == "mfa" };
`

// replayCandidate closes orders whose number begins with hot-, which were
// planted, and forgets the auditors from one network.
const replayCandidate = `
@id("auditors-look") permit (principal in Role::"auditor", action in Action::"safe", resource)
when { context.ip.isInRange(ip("10.0.0.0/8")) && !context.ip.isInRange(ip("10.9.0.0/16")) };
@id("strong-for-writes") forbid (principal, action in Action::"unsafe", resource)
unless { context.acr == "mfa" };
@id("hot-orders") forbid (principal, action, resource) when { context.params.id like "hot-*" };
`

// house is a configuration with a book full of decisions.
type house struct {
	file   *config.File
	name   string
	dir    string
	live   *authz.Engine
	next   *authz.Engine
	book   *book.Book
	record *book.Recorder
	mu     sync.Mutex
	flips  map[string]int // expected, by "was>is"
	hot    int
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{dir: t.TempDir(), flips: map[string]int{}}
	h.name = filepath.Join(h.dir, "gatebook.yaml")
	write(t, h.name, replayConfig)
	write(t, filepath.Join(h.dir, "policies", "p.cedar"), replayPolicies)
	write(t, filepath.Join(h.dir, "next", "p.cedar"), replayCandidate)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	h.file, err = config.Load(h.name)
	must(err)
	_, err = server.CreateBook(t.Context(), h.file)
	must(err)
	h.live, err = server.BuildEngine(h.file)
	must(err)
	h.next, err = server.BuildCandidate(h.file, filepath.Join(h.dir, "next"), "", "")
	must(err)
	must(server.PolicyArchive(h.file).Keep(h.live))
	roles, acr, amr := server.KeptNames(h.live)
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read", "orders.write"}, Templates: []string{"/v1/orders/{id}"}, Issuers: []string{"corp"}, Roles: roles, ACR: acr, AMR: amr,
	}})
	must(err)
	h.book, err = book.Open(t.Context(), server.BookConfig(h.file, slog.New(slog.DiscardHandler)))
	must(err)
	h.record = h.book.Recorder(rules, strings.Repeat("0", 32))
	return h
}

func (h *house) fill(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.book.Run(ctx) }()
	const hands = 8
	var wg sync.WaitGroup
	for hand := range hands {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(hand), 1))
			for i := hand; i < n; i += hands {
				if err := h.one(rng, i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := h.book.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// one decides and records a request.
func (h *house) one(rng *rand.Rand, i int) error {
	pick := func(from ...string) string { return from[rng.IntN(len(from))] }
	q := &authz.Request{
		Issuer: "corp", Subject: fmt.Sprint("person-", rng.IntN(200)), Roles: []string{pick("clerk", "auditor", "intern")},
		ACR: pick("mfa", "pwd", ""), Route: "orders.read", Method: "GET", BodySize: -1, TLSVersion: "TLS 1.3", Now: time.Now(),
		RemoteIP: netip.AddrFrom4([4]byte{10, byte(rng.IntN(12)), 1, byte(rng.IntN(250))}),
	}
	if rng.IntN(3) == 0 {
		q.Route, q.Method = "orders.write", "POST"
	}
	id := fmt.Sprint(rng.IntN(100000))
	planted := i%5000 == 77
	if planted {
		id, q.Roles, q.ACR = fmt.Sprint("hot-", i), []string{"clerk"}, "mfa"
	}
	q.Path, q.Action, q.Params = "/v1/orders/"+id, q.Method+" /v1/orders/{id}", []authz.Param{{Name: "id", Value: id}}
	d, next := h.live.Decide(q), h.next.Decide(q)
	h.mu.Lock()
	if d.Allow != next.Allow {
		h.flips[fmt.Sprintf("%v>%v %v", d.Allow, next.Allow, authz.Blame(&d, &next))]++
	}
	if planted {
		h.hot++
	}
	h.mu.Unlock()
	r := &record.Record{
		ID: h.book.NewID(q.Now), Time: q.Now.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
		Route: q.Route, Op: q.Action, Method: q.Method, Template: "/v1/orders/{id}", Status: 200, TLS: record.TLS{Version: q.TLSVersion},
		Authn:    record.Authn{Method: "jwt", Issuer: "corp", Roles: q.Roles, ACR: q.ACR, Outcome: "ok"},
		Authz:    record.Authz{Decision: "allow", Policies: d.Policies, Set: d.Set},
		Client:   record.Client{Prefix: "10.0.0.0/8"},
		Raw:      record.Raw{IssuerSub: "corp|" + q.Subject, Path: q.Path, RemoteAddr: q.RemoteIP.String()},
		Personal: record.Personal{Sub: q.Subject},
	}
	if !d.Allow {
		r.Outcome, r.Status, r.Authz.Decision = record.Failure, 403, "deny"
		r.Error = record.Error{Origin: "policy", Reason: string(d.Reason), Phase: "authz"}
	}
	return h.record.Commit(context.Background(), record.Ref{}, r, record.Written)
}

// run runs a command and decodes what it prints.
func (h *house) run(t *testing.T, code int, args ...string) (rep replayReport) {
	t.Helper()
	var out, errs bytes.Buffer
	got := Run(t.Context(), append(args, "--json", "-c", h.name), IO{In: strings.NewReader(""), Out: &out, Err: &errs})
	if got != code {
		t.Fatalf("%v: exit code %d, want %d: %s", args, got, code, errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatalf("%v: %v in %s", args, err, out.String())
	}
	return rep
}

// TestReplay finds exactly what flips: a million decisions in a minute with
// GATEBOOK_SOAK=1, fewer otherwise.
func TestReplay(t *testing.T) {
	n, within := 20_000, time.Minute
	if os.Getenv("GATEBOOK_SOAK") == "1" {
		n = 1_000_000
	}
	h := newHouse(t)
	h.fill(t, n)
	next := filepath.Join(h.dir, "next")
	rep := h.run(t, ExitFailure, "policy", "replay", "--candidate", next, "--reveal")
	t.Logf("%d decisions in %.1f s, %d flip", rep.Decisions, rep.Seconds, rep.Flipped)
	if rep.Seconds > within.Seconds() {
		t.Errorf("took %.1f s", rep.Seconds)
	}
	if rep.Decisions != int64(n) || rep.Recomputed != int64(n) || len(rep.Missing) > 0 {
		t.Errorf("%d of %d recomputed, %d wanted; missing %+v", rep.Recomputed, rep.Decisions, n, rep.Missing)
	}
	got, hot := map[string]int{}, 0
	for _, f := range rep.Flips {
		got[fmt.Sprintf("%v>%v %v", f.Was == "allow", f.Is == "allow", f.Policies)] = int(f.Count)
		if slices.Contains(f.Policies, "hot-orders") {
			hot += int(f.Count)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(h.flips) || hot != h.hot || h.hot < n/5000 || len(h.flips) < 2 {
		t.Errorf("flips %v, planted %v; %d hot, planted %d", got, h.flips, hot, h.hot)
	}
	if n > 100_000 {
		return
	}
	// Without the personal parts no flip is made up: what needs them is counted.
	blind := h.run(t, ExitOK, "policy", "replay", "--candidate", next)
	var missing int64
	for _, m := range blind.Missing {
		missing += m.Count
	}
	if blind.Flipped != 0 || missing != int64(n) || blind.Missing[0].By[0] == "" {
		t.Errorf("without reveal: %+v", blind)
	}
	same := h.run(t, ExitOK, "policy", "replay", "--as-recorded", "--reveal")
	if same.Recomputed != int64(n) || same.Changed != 0 {
		t.Errorf("as recorded: %+v", same)
	}
}

// TestReplayKnowsOther: acr and roles that records do not name are decided
// where the set shows that they make no difference, and counted where not.
func TestReplayKnowsOther(t *testing.T) {
	h := newHouse(t)
	h.fill(t, 600)
	write(t, filepath.Join(h.dir, "other", "p.cedar"), `
@id("interns") permit (principal in Role::"intern", action, resource);
@id("passwords") forbid (principal, action, resource) when { context.acr == "pwd" };`)
	rep := h.run(t, ExitFailure, "policy", "replay", "--candidate", filepath.Join(h.dir, "other"), "--reveal", "--limit", "600")
	why := map[string]int64{}
	for _, m := range rep.Missing {
		why[m.Why] = m.Count
	}
	if why["a role was not kept in the record"] == 0 || why["the acr was not kept in the record"] == 0 || rep.Recomputed == 0 {
		t.Errorf("%+v", rep)
	}
}
