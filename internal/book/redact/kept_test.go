package redact

import (
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
)

// What comes after the first look is looked at all the same, wherever it
// stands, and what Apply makes of it does not depend on Kept.
func TestApplyKept(t *testing.T) {
	u := mustNew(t, testConfig())
	other := mustNew(t, Config{})
	for kind, secret := range planted {
		for where, plant := range positions {
			for by, first := range map[string]*Rules{"same rules": u, "other rules": other} {
				r := matched()
				first.Apply(r)
				kept := *r
				plant(r, secret)
				r.Error.Phase, r.Upstream.Target, r.Authz.Policies = secret, secret, []string{"orders.read", secret}
				plain := *r
				u.Apply(&plain)
				r.Raw.Kept = &kept
				u.Apply(r)
				if got, want := output(r), output(&plain); got != want {
					t.Fatalf("%s, %s, kept by %s:\n%s\nwithout Kept\n%s", kind, where, by, got, want)
				}
				if r.Raw.Kept != nil {
					t.Fatal("Kept stays")
				}
				checkIdempotent(t, u, r)
			}
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
	kept := *proto
	var r record.Record
	b.ReportAllocs()
	for b.Loop() {
		r = *proto
		r.Raw.Kept = &kept
		u.Apply(&r)
	}
}
