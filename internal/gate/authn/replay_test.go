package authn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// turning is a clock that is set by hand.
type turning struct{ sec atomic.Int64 }

func (c *turning) now() time.Time { return time.Unix(c.sec.Load(), 0) }

func newTurning(sec int64) *turning {
	c := &turning{}
	c.sec.Store(sec)
	return c
}

func use(id string, issued, expires int64) Use {
	return Use{Kind: kindToken, Owner: "corp", ID: id, Issued: time.Unix(issued, 0), Expires: time.Unix(expires, 0)}
}

func openSet(t *testing.T, c ReplayConfig) *ReplaySet {
	t.Helper()
	s, err := OpenReplaySet(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// took demands an answer.
func took(t *testing.T, s Once, u Use, want bool, wantErr error) {
	t.Helper()
	got, err := s.Use(t.Context(), u)
	if got != want || !errors.Is(err, wantErr) {
		t.Errorf("%s: %v, %v; want %v, %v", u.ID, got, err, want, wantErr)
	}
}

// A mark counts until it expires and not longer, however often generations
// change in between, and marks of other kinds and owners are others.
func TestReplayGenerations(t *testing.T) {
	c := newTurning(1000)
	s := openSet(t, ReplayConfig{Now: c.now, Path: filepath.Join(t.TempDir(), "r")})
	took(t, s, use("a", 990, 1100), true, nil)
	for now := int64(1000); now <= 1100; now += 5 {
		c.sec.Store(now)
		took(t, s, use("a", 990, 1100), false, nil)
		took(t, s, use(fmt.Sprint(now), now, now+7), true, nil)
		took(t, s, use(fmt.Sprint(now), now, now+7), false, nil)
	}
	other := use("a", 990, 1100)
	other.Owner = "other"
	took(t, s, other, true, nil)
	other.Kind = kindProof
	took(t, s, other, true, nil)
	c.sec.Store(1102)
	took(t, s, use("a", 1101, 1200), true, nil)
	c.sec.Store(2000)
	for i := range 5 {
		took(t, s, use(fmt.Sprint("late", i), 2000, 2001), true, nil)
		c.sec.Add(10)
	}
	if n := s.Len(); n > 3 {
		t.Errorf("%d marks are held, though all but a few have expired", n)
	}
}

// A full set refuses; it gives up nothing that counts, and takes up again when
// something has expired.
func TestReplayFull(t *testing.T) {
	c := newTurning(1000)
	s := openSet(t, ReplayConfig{Now: c.now, Path: filepath.Join(t.TempDir(), "r"), Most: 100})
	for i := range 100 {
		took(t, s, use(fmt.Sprint(i), 1000, 1060+int64(i)), true, nil)
	}
	took(t, s, use("more", 1000, 1100), false, ErrFull)
	for i := range 100 {
		took(t, s, use(fmt.Sprint(i), 1000, 1060+int64(i)), false, nil)
	}
	c.sec.Store(1062)
	took(t, s, use("more", 1000, 1100), true, nil)
	for i := 5; i < 100; i++ {
		took(t, s, use(fmt.Sprint(i), 1000, 1060+int64(i)), false, nil)
	}
}

// What was used stays used over a clean stop and over one that only the process
// did not survive. After a power cut what may be missing is refused.
func TestReplayRestart(t *testing.T) {
	for _, row := range []struct {
		name   string
		clean  bool
		boot   string // of the second start
		begun  bool
		damage func(t *testing.T, path string)
		forgot bool // things made before the second start are not known
		lost   bool // the mark itself is
	}{
		{name: "clean", clean: true, boot: "two"},
		{name: "kill -9", boot: "one"},
		{name: "power cut", boot: "two", forgot: true},
		{name: "no boot id", boot: "", forgot: true},
		{name: "clean without boot id", clean: true, boot: ""},
		{name: "files gone", boot: "one", begun: true, forgot: true, lost: true, damage: remove},
		{name: "never begun", boot: "one", lost: true, damage: remove},
		{name: "cut in an entry", boot: "one", damage: func(t *testing.T, path string) { grow(t, path, []byte{1, 2, 3}) }},
		{name: "zeros at the end", boot: "one", forgot: true, damage: func(t *testing.T, path string) { grow(t, path, make([]byte, replayEntry)) }},
		{name: "zeros at the end of a clean one", clean: true, boot: "two", forgot: true, damage: func(t *testing.T, path string) { grow(t, path, make([]byte, replayEntry)) }},
		{name: "head gone", boot: "one", forgot: true, lost: true, damage: func(t *testing.T, path string) {
			if err := os.WriteFile(path+"-0", []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "flipped", clean: true, boot: "one", forgot: true, lost: true, damage: func(t *testing.T, path string) {
			b, err := os.ReadFile(path + "-0")
			if err != nil {
				t.Fatal(err)
			}
			b[replayHead] ^= 1
			if err := os.WriteFile(path+"-0", b, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newTurning(1000)
			path := filepath.Join(t.TempDir(), "r")
			s := openSet(t, ReplayConfig{Now: c.now, Path: path, Boot: "one"})
			took(t, s, use("a", 990, 1100), true, nil)
			if row.clean {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if row.damage != nil {
				row.damage(t, path)
			}
			c.sec.Store(1010)
			s = openSet(t, ReplayConfig{Now: c.now, Path: path, Boot: row.boot, Begun: row.begun})
			switch {
			case row.lost && row.forgot:
				took(t, s, use("a", 990, 1100), false, ErrForgot)
			case row.lost:
				took(t, s, use("a", 990, 1100), true, nil)
			default:
				took(t, s, use("a", 990, 1100), false, nil)
			}
			if row.forgot {
				took(t, s, use("b", 1009, 1100), false, ErrForgot)
			} else {
				took(t, s, use("b", 1009, 1100), true, nil)
			}
			took(t, s, use("c", 1010, 1100), true, nil)
			// It is as good as new after that.
			c.sec.Store(1020)
			s = openSet(t, ReplayConfig{Now: c.now, Path: path, Boot: row.boot, Begun: true})
			took(t, s, use("c", 1010, 1100), false, nil)
		})
	}
}

func remove(t *testing.T, path string) {
	for _, i := range []string{"-0", "-1"} {
		if err := os.Remove(path + i); err != nil {
			t.Fatal(err)
		}
	}
}

func grow(t *testing.T, path string, b []byte) {
	f, err := os.OpenFile(path+"-0", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
}

// The files stay small, however many marks come and go, and a rewrite loses
// none of those that count.
func TestReplayFilesStaySmall(t *testing.T) {
	c := newTurning(1000)
	path := filepath.Join(t.TempDir(), "r")
	s := openSet(t, ReplayConfig{Now: c.now, Path: path, Most: 50, Boot: "b"})
	took(t, s, use("keep-old", 1000, 9000), true, nil)
	took(t, s, use("x", 1000, 9001), true, nil) // turns the generation
	took(t, s, use("keep-new", 1000, 9000), true, nil)
	for i := range 2000 {
		took(t, s, use(fmt.Sprint(i), c.sec.Load(), c.sec.Load()+1), true, nil)
		c.sec.Add(1)
	}
	for _, i := range []string{"-0", "-1"} {
		fi, err := os.Stat(path + i)
		if err != nil {
			t.Fatal(err)
		}
		if most := int64(replayHead + 3*50*replayEntry); fi.Size() > most {
			t.Errorf("%s has %d bytes, more than %d", i, fi.Size(), most)
		}
	}
	s = openSet(t, ReplayConfig{Now: c.now, Path: path, Most: 50, Boot: "b"})
	for _, id := range []string{"keep-old", "x", "keep-new"} {
		took(t, s, use(id, 1000, 9000), false, nil)
	}
}

// A disk that does not take the mark refuses, and nothing passes by that.
func TestReplayDiskFails(t *testing.T) {
	c := newTurning(1000)
	s := openSet(t, ReplayConfig{Now: c.now, Path: filepath.Join(t.TempDir(), "r")})
	took(t, s, use("a", 990, 1100), true, nil)
	s.cur.file.f.Close()
	s.old.file.f.Close()
	if ok, err := s.Use(t.Context(), use("b", 990, 1100)); ok || err == nil || errors.Is(err, ErrForgot) {
		t.Errorf("%v, %v", ok, err)
	}
	took(t, s, use("a", 990, 1100), false, nil)
}

func TestReplayOnce(t *testing.T) {
	s := openSet(t, ReplayConfig{Path: filepath.Join(t.TempDir(), "r")})
	var won atomic.Int32
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			if ok, err := s.Use(context.Background(), Use{Kind: kindProof, Owner: "k", ID: "j", Issued: time.Now(), Expires: time.Now().Add(time.Minute)}); err != nil {
				t.Error(err)
			} else if ok {
				won.Add(1)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 64", won.Load())
	}
}

// FuzzReplayFile: whatever the file holds, what is read of it is in it, and it
// can be written on.
func FuzzReplayFile(f *testing.F) {
	dir := f.TempDir()
	s, err := OpenReplaySet(ReplayConfig{Path: filepath.Join(dir, "seed"), Boot: "b"})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := s.Use(context.Background(), use("a", 0, 4_000_000_000)); err != nil {
		f.Fatal(err)
	}
	s.Close()
	for _, i := range []string{"-0", "-1"} {
		b, err := os.ReadFile(filepath.Join(dir, "seed"+i))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "r")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openReplayFile(path, "b")
		if err != nil {
			t.Fatal(err)
		}
		if !r.created && !r.lost && len(b) < replayHead {
			t.Fatal("less than a head is taken for whole")
		}
		n := len(r.loaded)
		m := mark{1, 2, 3}
		delete(r.loaded, m)
		if err := r.append(m, 5_000); err != nil {
			t.Fatal(err)
		}
		r.f.Close()
		again, err := openReplayFile(path, "b")
		if err != nil || again.lost || again.loaded[m] != 5_000 || len(again.loaded) < n {
			t.Fatalf("%v, lost %v, %d of %d", err, again.lost, len(again.loaded), n)
		}
		again.f.Close()
		if got, err := os.ReadFile(path); err != nil || len(got)%replayEntry != 0 || binary.BigEndian.Uint32(got[len(got)-8:]) != 5_000 {
			t.Fatalf("%v: %x", err, got)
		}
	})
}

// sharedStub is a store of all nodes.
type sharedStub struct {
	taken map[string]bool
	err   error
}

func (s *sharedStub) Once(_ context.Context, name string, _, _ time.Time) (bool, error) {
	if s.err != nil {
		return false, s.err
	}
	if s.taken[name] {
		return false, nil
	}
	s.taken[name] = true
	return true, nil
}

// Two nodes share what was used; without the store each knows its own.
func TestSharedOnce(t *testing.T) {
	c := newTurning(1000)
	store := &sharedStub{taken: map[string]bool{}}
	node := func(local bool) *SharedOnce {
		var l Once
		if local {
			l = openSet(t, ReplayConfig{Now: c.now})
		}
		return NewSharedOnce(store, [32]byte{7}, l)
	}
	a, b := node(true), node(true)
	took(t, a, use("1", 990, 1100), true, nil)
	took(t, b, use("1", 990, 1100), false, nil)
	took(t, a, use("1", 990, 1100), false, nil)
	var alone *LocalOnly
	for _, err := range []error{errors.New("away"), kv.ErrForgot} {
		store.err = err
		for _, n := range []*SharedOnce{a, b} {
			id := use(err.Error(), 990, 1100)
			if ok, err := n.Use(t.Context(), id); !ok || !errors.As(err, &alone) {
				t.Errorf("%v, %v", ok, err)
			}
			took(t, n, id, false, nil)
		}
		took(t, a, use("1", 990, 1100), false, nil)
	}
	strict := node(false)
	took(t, strict, use("2", 990, 1100), false, ErrForgot)
	store.err = errors.New("away")
	took(t, strict, use("2", 990, 1100), false, store.err)
	store.err = nil
	took(t, strict, use("2", 990, 1100), true, nil)
	took(t, strict, use("1", 990, 1100), false, nil)
}

func stateFile(t *testing.T, c *turning) *kv.Local {
	t.Helper()
	l, err := kv.OpenLocal(filepath.Join(t.TempDir(), "s.db"), [32]byte{1}, c.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Subject epochs, client epochs and the list of single tokens, and what they
// leave alone.
func TestSubjectEpoch(t *testing.T) {
	c := newTurning(1000)
	store := stateFile(t, c)
	v := NewRevocations(store, c.now)
	ctx := t.Context()
	p := func(sub, client, jti string, iat int64) *Principal {
		return &Principal{Issuer: "corp", Subject: sub, Client: client, TokenID: jti, IssuedAt: time.Unix(iat, 0)}
	}
	check := func(v *Revocations, p *Principal, want reason.Reason) {
		t.Helper()
		var f *Failure
		err := v.Check(ctx, nil, p)
		if errors.As(err, &f); reasonOf(f) != want || (err == nil) != (want == "") {
			t.Errorf("%s/%s/%s of %d: %v, want %q", p.Subject, p.Client, p.TokenID, p.IssuedAt.Unix(), err, want)
		}
	}
	check(v, p("ann", "web", "1", 1000), "")
	for _, do := range []func() error{
		func() error { return v.Subject(ctx, "corp", "ann", 100*time.Second) },
		func() error { return v.Client(ctx, "corp", "batch", 100*time.Second) },
		func() error { return v.Token(ctx, "corp", "t1", 100*time.Second, false) },
		func() error { return v.Token(ctx, "corp", "t2", 100*time.Second, true) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	again := NewRevocations(store, c.now)
	if err := again.Load(ctx); err != nil {
		t.Fatal(err)
	}
	for _, v := range []*Revocations{v, again} {
		check(v, p("ann", "web", "1", 999), reason.TokenRevoked)
		check(v, p("ann", "web", "1", 1000), reason.TokenRevoked) // the same second may be before
		check(v, p("ann", "web", "1", 1001), "")
		check(v, p("bob", "batch", "1", 1000), reason.TokenRevoked)
		check(v, p("bob", "batch", "1", 1001), "")
		check(v, p("bob", "web", "t1", 1001), reason.TokenRevoked)
		check(v, p("bob", "web", "t2", 1001), reason.TokenReuseDetected)
		check(v, p("bob", "", "", 0), "")
		other := p("ann", "batch", "t1", 0)
		other.Issuer = "other"
		check(v, other, "")
	}
	// A later epoch does not bring anything back, an older one neither.
	c.sec.Store(1050)
	if err := v.Subject(ctx, "corp", "ann", time.Second); err != nil {
		t.Fatal(err)
	}
	check(v, p("ann", "web", "1", 1050), reason.TokenRevoked)
	c.sec.Store(1099)
	check(v, p("ann", "web", "1", 1050), reason.TokenRevoked)
	c.sec.Store(1101)
	if v.Sweep(); v.count.Load() != 0 {
		t.Errorf("%d revocations are left", v.count.Load())
	}
	if err := v.Subject(ctx, "", "ann", time.Hour); err == nil {
		t.Error("a revocation without an issuer is taken")
	}
	v.most = 1
	if err := errors.Join(v.Subject(ctx, "corp", "a", time.Hour), v.Subject(ctx, "corp", "b", time.Hour)); err == nil {
		t.Error("there is no bound")
	}
}

// What is kept is what acts: a later and shorter revocation does not bring back
// after a restart what an earlier one had ended.
func TestRevocationsKeptAsTheyAct(t *testing.T) {
	c := newTurning(1000)
	store := stateFile(t, c)
	v := NewRevocations(store, c.now)
	ctx := t.Context()
	for _, do := range []func() error{
		func() error { return v.Subject(ctx, "corp", "ann", time.Hour) },
		func() error { return v.Subject(ctx, "corp", "ann", time.Second) },
		func() error { return v.Token(ctx, "corp", "t1", time.Hour, true) },
		func() error { return v.Token(ctx, "corp", "t1", time.Second, false) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	c.sec.Store(1100)
	again := NewRevocations(store, c.now)
	if err := again.Load(ctx); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]*Revocations{"at once": v, "after a restart": again} {
		for want, p := range map[reason.Reason]*Principal{
			reason.TokenRevoked:       {Issuer: "corp", Subject: "ann", IssuedAt: time.Unix(900, 0)},
			reason.TokenReuseDetected: {Issuer: "corp", Subject: "bob", TokenID: "t1", IssuedAt: time.Unix(1050, 0)},
		} {
			if err := v.Check(ctx, nil, p); reasonOf(asFailure(err)) != want {
				t.Errorf("%s, %s: %v, want %q", name, p.Subject, err, want)
			}
		}
	}
}

func asFailure(err error) *Failure {
	var f *Failure
	errors.As(err, &f)
	return f
}

// A token that says of no time that it ends then stays blocked, and one that
// cannot be written down as blocked is refused all the same.
func TestReuseBlocksForGood(t *testing.T) {
	c := newTurning(1000)
	for _, full := range []bool{false, true} {
		v := NewRevocations(nil, c.now)
		if full {
			v.most = 0
		}
		u := NewReuse(ReuseConfig{Places: 1, Block: true, Revocations: v, Entries: 8, Now: c.now, Tell: func(ReuseAlert) bool { return true }})
		p := &Principal{Issuer: "corp", Subject: "ann", TokenID: "opaque"}
		ask := func(addr string) error {
			if err := v.Check(t.Context(), nil, p); err != nil {
				return err
			}
			return u.Check(t.Context(), &canon.Request{Client: netip.MustParseAddr(addr)}, p)
		}
		if err := ask("192.0.2.1"); err != nil {
			t.Errorf("full %v: from one place: %v", full, err)
		}
		for _, at := range []int64{1000, 1061, 1000 + 30*86400} {
			c.sec.Store(at)
			for _, addr := range []string{"198.51.100.1", "192.0.2.1", "198.51.100.1"} {
				if err := ask(addr); reasonOf(asFailure(err)) != reason.TokenReuseDetected {
					t.Errorf("full %v, at %d from %s: %v", full, at, addr, err)
				}
			}
		}
		c.sec.Store(1000)
	}
}

// Marks that are gone are not forgotten: when the clock is set back, what they
// were of does not count as new.
func TestReplayClockSetBack(t *testing.T) {
	for name, most := range map[string]int{"a generation is dropped": 0, "a full set is searched": 3} {
		c := newTurning(1000)
		s := openSet(t, ReplayConfig{Now: c.now, Path: filepath.Join(t.TempDir(), "r"), Most: most})
		took(t, s, use("a", 990, 1050), true, nil)
		if most > 0 {
			took(t, s, use("long", 990, 9000), true, nil)
		}
		c.sec.Store(4600)
		took(t, s, use("b", 4590, 4700), true, nil)
		took(t, s, use("c", 4590, 4700), true, nil)
		if s.Len() != 2 && most == 0 || s.Len() != 3 && most > 0 {
			t.Fatalf("%s: %d marks", name, s.Len())
		}
		c.sec.Store(1010)
		took(t, s, use("a", 990, 1050), false, ErrForgot)
		took(t, s, use("b", 990, 4700), false, nil)
		c.sec.Store(4701)
		took(t, s, use("d", 4690, 4750), true, nil)
	}
	// Nor are those that were over at the start.
	c, path := newTurning(1000), filepath.Join(t.TempDir(), "r")
	s := openSet(t, ReplayConfig{Now: c.now, Path: path})
	took(t, s, use("a", 990, 1050), true, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c.sec.Store(4600)
	s = openSet(t, ReplayConfig{Now: c.now, Path: path})
	c.sec.Store(1010)
	took(t, s, use("a", 990, 1050), false, ErrForgot)
	took(t, s, use("z", 990, 4700), true, nil)
}

// Damage in what was kept stops the start: somebody would be let in again.
func TestRevocationsDamaged(t *testing.T) {
	c := newTurning(1000)
	store := stateFile(t, c)
	if err := store.Put(t.Context(), revocationTable, "odd", []byte("{}"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := NewRevocations(store, c.now).Load(t.Context()); err == nil {
		t.Error("an entry that cannot be read is ignored")
	}
}

// Forgetting tokens that were seen is bounded and never tells twice.
func TestReuseTable(t *testing.T) {
	c := newTurning(1000)
	told := map[string]int{}
	u := NewReuse(ReuseConfig{Places: 2, Entries: 8, Now: c.now, Tell: func(a ReuseAlert) bool { told[a.TokenID]++; return true }})
	from := func(id, addr string) {
		r := &canon.Request{Client: netip.MustParseAddr(addr)}
		if err := u.Check(t.Context(), r, &Principal{Issuer: "corp", TokenID: id, Expires: time.Unix(2000, 0)}); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		for i := range 6 {
			from("many", fmt.Sprintf("192.0.%d.1", i))
			from("v6", fmt.Sprintf("2001:db8:%d::1", i))
			from("two", fmt.Sprintf("192.0.%d.%d", i%2, i))
			from("two6", fmt.Sprintf("2001:db8:%d:%d::1", i%2, i))
		}
	}
	if fmt.Sprint(told) != "map[many:1 v6:1]" {
		t.Errorf("told of %v", told)
	}
	for i := range 1000 {
		from(fmt.Sprint("flood", i), "192.0.2.1")
	}
	if n := len(u.buckets) * reuseWays; n > 8 {
		t.Errorf("%d entries", n)
	}
	from("", "192.0.2.1") // without an id there is nothing to watch
}
