package redact

import (
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
)

// keep remembers r as the book does when it has written an open mark.
func keep(r *record.Record) *record.Kept {
	k := new(record.Kept)
	frame, personal := k.Append(nil, nil, r)
	k.Keep(r, frame, personal)
	return k
}

// What comes after the first look is looked at all the same, wherever it
// stands, and what Apply makes of it does not depend on Kept: not where all that
// came is how the exchange ended, and not where more is new.
func TestApplyKept(t *testing.T) {
	u := mustNew(t, testConfig())
	other := mustNew(t, Config{})
	endings := map[string]func(*record.Record, string){
		"nowhere":         func(*record.Record, string) {},
		"trace":           func(r *record.Record, s string) { r.Trace = s },
		"links":           func(r *record.Record, s string) { r.Links = []string{"a", s} },
		"limit":           func(r *record.Record, s string) { r.Limit.Rule = s },
		"upstream target": func(r *record.Record, s string) { r.Upstream.Target = s },
		"event":           func(r *record.Record, s string) { r.Event.Target = s },
		"error": func(r *record.Record, s string) {
			r.Error.Phase, r.Status, r.Outcome, r.BytesOut = s, 502, record.Failure, 17
		},
	}
	check := func(kind, where, by string, first *Rules, change func(*record.Record)) {
		t.Helper()
		r := matched()
		first.Apply(r)
		kept := keep(r)
		change(r)
		plain := *r
		u.Apply(&plain)
		r.Raw.Kept = kept
		u.Apply(r)
		if got, want := output(r), output(&plain); got != want {
			t.Fatalf("%s, %s, kept by %s:\n%s\nwithout Kept\n%s", kind, where, by, got, want)
		}
		if r.Raw.Kept != nil {
			t.Fatal("Kept stays")
		}
		checkIdempotent(t, u, r)
	}
	minimal := testConfig()
	minimal.Minimal = true
	for kind, secret := range planted {
		for by, first := range map[string]*Rules{"same rules": u, "other rules": other, "minimal rules": mustNew(t, minimal)} {
			for where, plant := range positions {
				check(kind, where, by, first, func(r *record.Record) {
					plant(r, secret)
					r.Error.Phase, r.Upstream.Target, r.Authz.Policies = secret, secret, []string{"orders.read", secret}
				})
				check(kind, where+" alone", by, first, func(r *record.Record) { plant(r, secret) })
			}
			for where, plant := range endings {
				check(kind, where, by, first, func(r *record.Record) { plant(r, secret) })
			}
		}
	}
}

// Every string of the frame is looked at when an exchange ends, or it is as it
// was.
func TestApplyKeptEveryString(t *testing.T) {
	u := mustNew(t, testConfig())
	for _, f := range record.FrameStrings() {
		r := matched()
		u.Apply(r)
		kept := keep(r)
		*f.At(r) = "ana@example.com"
		plain := *r
		u.Apply(&plain)
		r.Raw.Kept = kept
		u.Apply(r)
		if got, want := output(r), output(&plain); got != want {
			t.Errorf("%s:\n%s\nwithout Kept\n%s", f.Path, got, want)
		}
	}
}

// What Apply makes of a record does not depend on the exchanges before it.
func TestApplyUsual(t *testing.T) {
	long := mustNew(t, testConfig())
	frames := record.FrameStrings()
	check := func(what string, build func() *record.Record) {
		t.Helper()
		got, want := build(), build()
		long.Apply(got)
		mustNew(t, testConfig()).Apply(want)
		if output(got) != output(want) {
			t.Fatalf("%s:\n%s\nwith fresh rules\n%s", what, output(got), output(want))
		}
	}
	for kind, secret := range planted {
		check("nothing planted", matched)
		for where, plant := range positions {
			check(kind+", "+where, func() *record.Record {
				r := matched()
				plant(r, secret)
				return r
			})
		}
		for range 2 { // the second time it may be what is usual
			for i := range frames {
				check(kind+", "+frames[i].Path, func() *record.Record {
					r := matched()
					*frames[i].At(r) = secret
					return r
				})
				check("all in "+frames[i].Path+" and its neighbours", func() *record.Record {
					r := matched()
					for k := range frames {
						*frames[k].At(r) = *frames[(k+i)%len(frames)].At(r)
					}
					return r
				})
			}
		}
	}
	if long.usual.get() == &unseen {
		t.Error("nothing is remembered")
	}
}

func BenchmarkApplyKept(b *testing.B) {
	u := mustNew(b, testConfig())
	proto := matched()
	u.Apply(proto)
	kept := keep(proto)
	var r record.Record
	b.ReportAllocs()
	for b.Loop() {
		r = *proto
		r.Raw.Kept = kept
		u.Apply(&r)
	}
}
