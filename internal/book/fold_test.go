package book

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/testenv/verifier2"
)

// refusalSort is what refusals have in common.
type refusalSort struct {
	kind           record.Kind
	reason, origin string
	status         int
}

var sorts = []refusalSort{
	{record.KindRequest, "rate_limited", "limit", 429},
	{record.KindRequest, "no_route", "client", 404},
	{record.KindRequest, "token_expired", "identity", 401},
	{record.KindMalformed, "ambiguous_framing", "client", 400},
	{record.KindMalformed, "timeout_reading", "client", 408},
	{record.KindHandshake, "tls_handshake", "client", 0},
}

// refusedOne is what the gate says of a stranger that it refused.
func refusedOne(b *Book, addr string, s refusalSort) *record.Record {
	now := b.cfg.Now()
	r := &record.Record{
		ID: b.NewID(now), Time: now.UnixMicro(), Kind: s.kind, Outcome: record.Failure, Route: record.None, Op: record.None,
		Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1", Status: s.status, DurUS: 120,
		Error: record.Error{Origin: s.origin, Reason: s.reason, Phase: "accept"},
		Raw:   record.Raw{Path: "/admin/12345", Unmatched: true, UA: "scanner/1.0", RemoteAddr: addr, RemotePort: 4711, Fold: true},
	}
	r.Authn.Method = record.None
	if s.origin == "identity" {
		r.Authn = record.Authn{Method: "jwt", Issuer: "corp", Outcome: "failed", Reason: s.reason}
		r.Personal.Claimed = "mallory"
	}
	return r
}

// address is in network n of many, as far as /16s go of few.
func address(n int) string { return fmt.Sprintf("127.%d.%d.%d", n/256%8, n%256, n%251) }

func refuse(rec *Recorder, addr string, s refusalSort, l record.Level) error {
	return rec.Commit(context.Background(), record.Ref{}, refusedOne(rec.book, addr, s), l)
}

// sums are exchanges by reason, in folded records and one by one.
type sums struct{ folded, single map[string]int64 }

func (s sums) of(reason string) int64 { return s.folded[reason] + s.single[reason] }

// total adds up the records of exchanges; no id may come twice.
func total(t testing.TB, when string, ks []kept) sums {
	t.Helper()
	out := sums{map[string]int64{}, map[string]int64{}}
	seen := map[record.ID]bool{}
	for _, k := range ks {
		switch k.kind {
		case record.KindRequest, record.KindHandshake, record.KindMalformed:
		default:
			continue
		}
		if seen[k.id] {
			t.Fatalf("%s: exchange %v has two records", when, k.id)
		}
		seen[k.id] = true
		if k.rec.Event.Name == eventFold {
			out.folded[k.rec.Error.Reason] += k.rec.Event.Count
			continue
		}
		out.single[k.rec.Error.Reason]++
	}
	return out
}

// events are the records with an event of this name.
func events(ks []kept, name string) []kept {
	var out []kept
	for _, k := range ks {
		if k.rec.Event.Name == name {
			out = append(out, k)
		}
	}
	return out
}

// folding begins to fold without the loop: the test is the loop.
func folding(t testing.TB, b *Book) {
	t.Helper()
	if err := b.startFolds(); err != nil {
		t.Fatal(err)
	}
}

func tick(t testing.TB, b *Book, all bool) {
	t.Helper()
	if err := b.foldTick(context.Background(), all); err != nil {
		t.Fatal(err)
	}
}

// TestFloods sends many refusals of six kinds from many networks to a book on
// a real disk, from several goroutines while everything in the background runs:
// every one is counted, and the disk hardly notices.
func TestFloods(t *testing.T) {
	sent := 100_000
	if soak() {
		sent = 1_000_000
	}
	ctx := context.Background()
	c := testConfig()
	c.Dir, c.KeyDir, c.FoldWindow = t.TempDir(), filepath.Join(t.TempDir(), "keys"), 200*time.Millisecond
	vkey, err := Create(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	empty := diskUse(t, c.Dir)
	stop := background(b)
	rec := b.Recorder(testRules(t), testSnap)
	want := make(map[string]*atomic.Int64)
	for _, s := range sorts {
		want[s.reason] = new(atomic.Int64)
	}
	begun := time.Now()
	var wg sync.WaitGroup
	const workers = 8
	for g := range workers {
		wg.Go(func() {
			for n := g; n < sent; n += workers {
				s := sorts[n/7%len(sorts)]
				if err := refuse(rec, address(n%11*3), s, record.Written); err != nil {
					t.Error(err)
					return
				}
				want[s.reason].Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(begun)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got := b.Status(); got.Floods != 0 || got.Folded < int64(sent)/2 {
		t.Errorf("status: %+v", got)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	rd, err := OpenReader(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	have := all(t, rd)
	if err := rd.Close(); err != nil {
		t.Fatal(err)
	}
	got := total(t, "after the floods", have)
	for _, s := range sorts {
		if n := want[s.reason].Load(); got.of(s.reason) != n || got.folded[s.reason] == 0 {
			t.Errorf("%s: %d folded and %d single, %d were sent", s.reason, got.folded[s.reason], got.single[s.reason], n)
		}
	}
	grown := diskUse(t, c.Dir) - empty
	t.Logf("%d exchanges in %v: %d records, %d bytes more on the disk", sent, took, len(have), grown)
	if grown > 5<<20 {
		t.Errorf("the disk grew by %d bytes", grown)
	}
	if rep, err := Verify(ctx, VerifyOptions{Dir: c.Dir, KeyDir: c.KeyDir, Key: vkey}); err != nil || rep.ExitCode() != 0 {
		t.Errorf("verify: %+v %v", rep, err)
	}
	if n, err := verifier2.Verify(c.Dir, c.KeyDir, vkey); err != nil || n != len(have) {
		t.Errorf("the second verifier: %d records of %d, %v", n, len(have), err)
	}
}

func diskUse(t testing.TB, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFloodByTheClock follows one flood of 100 a second for 25 s and a trickle
// beside it: the first ten are written, the rest is in three folded records, its
// begin and end are told, and the trickle is written one by one.
func TestFloodByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, small(4096))
		b := r.open()
		stop := background(b)
		rec := b.Recorder(testRules(t), testSnap)
		time.Sleep(time.Second + 500*time.Microsecond) // off the loop's ticks
		synctest.Wait()
		begun := time.Now()
		for n := range 2500 {
			if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
				t.Fatal(err)
			}
			if n%25 == 0 {
				if err := refuse(rec, "198.51.100.7", sorts[0], record.Written); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(10 * time.Millisecond)
			if n == 100 {
				synctest.Wait()
				if b.Status().Floods != 1 {
					t.Errorf("%d floods after a second", b.Status().Floods)
				}
			}
		}
		last := time.Now().Add(-10 * time.Millisecond)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s := b.Status(); s.Floods != 0 {
			t.Errorf("%d floods after half a minute of quiet", s.Floods)
		}
		if b.folds.slots[0].key != (foldKey{}) || len(b.folds.table) != 0 {
			t.Error("slots that are not needed are not free")
		}
		have := all(t, r.reader())
		got := total(t, "flood", have)
		// About the first ten, and the trickle.
		if n := got.single["rate_limited"] - 100; got.of("rate_limited") != 2600 || n < 10 || n > 12 {
			t.Errorf("%d folded, %d single", got.folded["rate_limited"], got.single["rate_limited"])
		}
		folds := events(have, eventFold)
		if len(folds) != 3 {
			t.Fatalf("%d folded records", len(folds))
		}
		at := begun.Add(100 * time.Millisecond).UnixMicro()
		for i, k := range folds {
			e := k.rec.Event
			// One after the other without a gap; each second a window may end.
			if span := time.Duration(e.Last-e.First) * time.Microsecond; !e.Exact || e.First < at || e.First > at+20_000 || span > 11*time.Second || i < 2 && span < 9*time.Second {
				t.Errorf("fold %d spans %v: %+v, the one before ended at %d", i, span, e, at)
			}
			at = e.Last
		}
		if at > last.UnixMicro() || at < last.UnixMicro()-20_000 {
			t.Errorf("the last one is of %d, the flood ended at %d", at, last.UnixMicro())
		}
		first := folds[0].rec
		if first.Kind != record.KindRequest || first.Status != 429 || first.Error != (record.Error{Origin: "limit", Reason: "rate_limited", Phase: "accept"}) ||
			first.Client.Prefix != "203.0.113.0/24" || first.Template != "/{word}/{int}" || first.Outcome != record.Failure || first.Personal.IP != "203.0.113.9" ||
			first.Personal.UA != "scanner/1.0" || first.Snap != testSnap {
			t.Errorf("the sample: %s %s", folds[0].frame, folds[0].personal)
		}
		for _, k := range have { // the same stranger
			if k.rec.Personal.IP == "203.0.113.9" && k.subject != first.Subject {
				t.Errorf("subject %s, want %s", k.subject, first.Subject)
			}
		}
		begins, ends := events(have, eventFloodBegin), events(have, eventFloodEnd)
		if len(begins) != 1 || len(ends) != 1 || begins[0].kind != record.KindAlert || ends[0].kind != record.KindAlert {
			t.Fatalf("%d alerts of the begin, %d of the end", len(begins), len(ends))
		}
		if begins[0].index > folds[0].index || ends[0].index < folds[2].index {
			t.Error("the alerts are not around the flood")
		}
		for _, k := range []kept{begins[0], ends[0]} {
			if k.rec.Event.Cause != "rate_limited" || k.rec.Error.Reason != "rate_limited" || k.rec.Client.Prefix != "203.0.113.0/24" ||
				len(k.rec.Links) != 1 || k.rec.Links[0] != folds[0].id.String() {
				t.Errorf("alert %s", k.frame)
			}
		}
		if e := ends[0].rec.Event; e.Count != got.folded["rate_limited"] || !e.Exact || e.First != first.Event.First || e.Last != folds[2].rec.Event.Last {
			t.Errorf("the end: %+v", e)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.mustVerify(nil)
	})
}

// TestNotFolded: whoever is known, whatever has an open mark or another level
// of trust, and everything while nothing folds, is written one by one.
func TestNotFolded(t *testing.T) {
	type tweak = func(r *record.Record)
	for name, c := range map[string]struct {
		tweak tweak
		ref   bool
		above int
		off   bool
	}{
		"a subject":          {tweak: func(r *record.Record) { r.Raw.IssuerSub, r.Personal.Sub = "corp|alice", "alice" }},
		"a subject by name":  {tweak: func(r *record.Record) { r.Personal.Sub = "alice" }},
		"not asked for":      {tweak: func(r *record.Record) { r.Raw.Fold = false }},
		"no reason":          {tweak: func(r *record.Record) { r.Error = record.Error{} }},
		"another kind":       {tweak: func(r *record.Record) { r.Kind = record.KindAdmin }},
		"been here before":   {tweak: func(r *record.Record) { r.Subject = "AAAAAAAAAAAAAAAAAAAAAA" }},
		"an open mark":       {ref: true},
		"never":              {above: -1},
		"before the loop is": {off: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t, small(4096))
			r.cfg.FoldAbove = c.above
			if c.above == 0 {
				r.cfg.FoldAbove = 10
			}
			b := r.open()
			if !c.off {
				folding(t, b)
			}
			rec := b.Recorder(testRules(t), testSnap)
			for range 100 {
				x := refusedOne(b, "203.0.113.9", sorts[0])
				if c.tweak != nil {
					c.tweak(x)
				}
				ref := record.Ref{}
				if c.ref {
					ref = x.ID
				}
				if err := rec.Commit(context.Background(), ref, x, record.Written); err != nil {
					t.Fatal(err)
				}
			}
			tick(t, b, true)
			have := all(t, r.reader())
			if n := len(events(have, eventFold)); n != 0 || b.Status().Folded != 0 {
				t.Errorf("%d folded records", n)
			}
			n := 0
			for _, k := range have {
				if k.rec.Status == 429 {
					n++
				}
			}
			if n != 100 {
				t.Errorf("%d records of 100", n)
			}
		})
	}
}

// TestTooManyFloods has more networks in flood than slots: they are counted
// together by wider prefixes, and those records are about nobody.
func TestTooManyFloods(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := newRoom(t, small(4096))
	r.cfg.FoldSlots = 64
	r.cfg.Now = func() time.Time { return now }
	b := r.open()
	folding(t, b)
	rec := b.Recorder(testRules(t), testSnap)
	const networks, each = 300, 12
	var sent int64
	for n := range networks * each {
		addr := fmt.Sprintf("10.%d.%d.1", n%networks/10, n%networks%10)
		if n%3 == 0 {
			addr = fmt.Sprintf("2001:%x:%x::1", 0xd00+n%networks/100, n%networks)
		}
		if err := refuse(rec, addr, sorts[n%2], record.Written); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	if err := refuse(rec, "", sorts[5], record.Written); err != nil { // of an unknown address
		t.Fatal(err)
	}
	tick(t, b, true)
	have := all(t, r.reader())
	got := total(t, "all slots taken", have)
	if n := got.of("rate_limited") + got.of("no_route"); n != sent {
		t.Errorf("%d counted, %d sent", n, sent)
	}
	widths := map[string]int{}
	own := b.ring.System().Pseudonym
	for _, k := range events(have, eventFold) {
		_, bits, _ := strings.Cut(k.rec.Client.Prefix, "/")
		widths[bits]++
		wide := k.rec.Client.Prefix == record.None || bits == "16" || bits == "20"
		if wide != (k.subject == own) || wide != (k.personal == "") {
			t.Errorf("%s is of subject %s with %q", k.rec.Client.Prefix, k.subject, k.personal)
		}
	}
	if widths["24"]+widths["32"] == 0 || widths["16"] == 0 || widths["20"] == 0 || widths[""] == 0 {
		t.Errorf("folds by prefix length: %v", widths)
	}
	if n := len(b.folds.table); n != len(b.folds.slots)-len(b.folds.free) {
		t.Errorf("%d keys in the table, %d of %d slots free", n, len(b.folds.free), len(b.folds.slots))
	}
	now = now.Add(time.Minute)
	tick(t, b, false)
	if len(b.folds.table) != 0 || len(b.folds.free) != 64 {
		t.Errorf("%d keys are left, %d slots are free", len(b.folds.table), len(b.folds.free))
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.mustVerify(nil)
}

// TestFoldKeys gives the prefixes that are counted together.
func TestFoldKeys(t *testing.T) {
	for addr, want := range map[string][]string{
		"203.0.113.9":          {"203.0.113.0/24", "203.0.0.0/16", ""},
		"::ffff:203.0.113.9":   {"203.0.113.0/24", "203.0.0.0/16", ""},
		"2001:db8:ffff::1":     {"2001:db8::/32", "2001::/20", ""},
		"fe80::1%eth0":         {"fe80::/32", "fe80::/20", ""},
		"":                     {""},
		"not an address":       {""},
		"203.0.113.9:80":       {""},
		"255.255.255.255":      {"255.255.255.0/24", "255.255.0.0/16", ""},
		"ffff:ffff:ffff::ffff": {"ffff:ffff::/32", "ffff:f000::/20", ""},
	} {
		k, ok := foldKeyOf(&record.Record{Kind: record.KindRequest, Error: record.Error{Reason: "no_route"}, Raw: record.Raw{RemoteAddr: addr}})
		for i, prefix := range want {
			text := ""
			if k.prefix.IsValid() {
				text = k.prefix.String()
			}
			if !ok || text != prefix || k.coarse() != (i > 0 || prefix == "") {
				t.Errorf("%q, step %d: %q (coarse: %v), want %q", addr, i, text, k.coarse(), prefix)
			}
			k, ok = k.coarser()
		}
		if ok {
			t.Errorf("%q goes on to %v", addr, k)
		}
	}
}

func rulesWithPrefix(t testing.TB, bits int) *redact.Rules {
	t.Helper()
	rules, err := redact.New(redact.Config{ClientPrefix4: bits})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// TestWidePrefix: a fold's prefix is never narrower than what it stands for,
// nor narrower than the configuration allows.
func TestWidePrefix(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		bits int
		want string
	}{{32, "203.0.113.0/24"}, {24, "203.0.113.0/24"}, {8, "203.0.0.0/8"}, {-1, record.None}} {
		r := newRoom(t, small(4096))
		r.cfg.Now = func() time.Time { return now }
		b := r.open()
		folding(t, b)
		rec := b.Recorder(rulesWithPrefix(t, c.bits), testSnap)
		for range 20 {
			if err := refuse(rec, "203.0.113.9", sorts[1], record.Written); err != nil {
				t.Fatal(err)
			}
		}
		tick(t, b, true)
		have := all(t, r.reader())
		for _, name := range []string{eventFold, eventFloodBegin, eventFloodEnd} {
			ks := events(have, name)
			if len(ks) != 1 || ks[0].rec.Client.Prefix != c.want {
				t.Errorf("/%d: %d records %s, of %q", c.bits, len(ks), name, ks[0].rec.Client.Prefix)
			}
		}
	}
}
