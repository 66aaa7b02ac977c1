package keys

import (
	"fmt"
	"path/filepath"
	"testing"
)

const benchName = "https://idp.example.com/realms/corp|6f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0"

func BenchmarkPersonHit(b *testing.B) {
	r, _, _ := newRing(b)
	settle(b, r, person1(b, r, benchName).Birth)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Person(benchName); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPersonHitParallel(b *testing.B) {
	r, _, _ := newRing(b)
	settle(b, r, person1(b, r, benchName).Birth)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.Person(benchName); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkPersonFirstSight(b *testing.B) {
	s := value[Store](b)(OpenBolt(filepath.Join(b.TempDir(), "keys.db"), false))
	r := value[*Ring](b)(Create(b.Context(), s, newTestWrapper()))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		s, err := r.Person(fmt.Sprint("corp|", n))
		if err != nil {
			b.Fatal(err)
		}
		r.Written(s.Birth)
		if n%1024 == 0 {
			must(b, r.Project(r.Pending()))
		}
	}
}

func BenchmarkAnonymousHit(b *testing.B) {
	r, _, _ := newRing(b)
	settle(b, r, anon(b, r, "192.0.2.0/24", noon).Birth)
	anon(b, r, "192.0.2.0/24", noon)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Anonymous("192.0.2.0/24", noon); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSubjectKeyHit(b *testing.B) {
	r, _, _ := newRing(b)
	s := person1(b, r, benchName)
	settle(b, r, s.Birth)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.SubjectKey(s.ID); err != nil {
			b.Fatal(err)
		}
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	r, _, _ := newRing(t)
	p := person1(t, r, benchName)
	a := anon(t, r, "192.0.2.0/24", noon)
	settle(t, r, p.Birth)
	settle(t, r, a.Birth)
	for name, hit := range map[string]func() error{
		"Person":     func() error { _, err := r.Person(benchName); return err },
		"Anonymous":  func() error { _, err := r.Anonymous("192.0.2.0/24", noon); return err },
		"SubjectKey": func() error { _, err := r.SubjectKey(p.ID); return err },
		"Written":    func() error { r.Written(nil); return nil },
	} {
		must(t, hit())
		if n := testing.AllocsPerRun(100, func() { must(t, hit()) }); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
