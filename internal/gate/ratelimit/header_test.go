package ratelimit

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{Name: "per_subject", Rate: 100, Per: time.Second, Burst: 200}, `"per_subject";q=200;w=2`},
		{Rule{Name: "one", Rate: 1000, Per: time.Second, Burst: 1}, `"one";q=1;w=1`},
		{Rule{Name: "thirds", Rate: 3, Per: time.Second, Burst: 4}, `"thirds";q=4;w=2`},
		{Rule{Name: "daily", Rate: 1000, Per: 24 * time.Hour, Burst: 1000}, `"daily";q=1000;w=86400`},
		{Rule{Name: `a"b\c`, Rate: 1, Per: time.Second, Burst: 1}, `"a\"b\\c";q=1;w=1`},
		{Rule{Name: "a\nb\x7fé", Rate: 1, Per: time.Second, Burst: 1}, `"a_b___";q=1;w=1`},
		{Rule{Name: "bad"}, `"bad";q=0`},
	} {
		if got := c.rule.Policy(); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestHeader(t *testing.T) {
	rule := &Rule{Name: "per_subject", Rate: 100, Per: time.Second, Burst: 200}
	for _, c := range []struct {
		res   Result
		want  string
		retry int64
	}{
		{Result{Allowed: true, Remaining: 50, Reset: 30 * time.Second}, `"per_subject";r=50;t=30`, 30},
		{Result{Allowed: true, Remaining: 199, Reset: time.Nanosecond}, `"per_subject";r=199;t=1`, 1},
		{Result{Allowed: true, Remaining: 200}, `"per_subject";r=200;t=0`, 1},
		{Result{RetryAfter: 1, Reset: 2 * time.Second}, `"per_subject";r=0;t=1`, 1},
		{Result{RetryAfter: 1001 * time.Millisecond, Reset: 20 * time.Second}, `"per_subject";r=0;t=2`, 2},
		{Result{RetryAfter: math.MaxInt64, Remaining: -3}, `"per_subject";r=0;t=9223372037`, 9223372037},
	} {
		if got := rule.Header(c.res); got != c.want {
			t.Errorf("%+v: got %s, want %s", c.res, got, c.want)
		}
		if got := c.res.RetryAfterSeconds(); got != c.retry {
			t.Errorf("%+v: Retry-After %d, want %d", c.res, got, c.retry)
		}
	}
}

var (
	policyItem = regexp.MustCompile(`^"(?:[ !#-\[\]-~]|\\["\\])*";q=\d{1,15}(;w=[1-9]\d{0,14})?$`)
	limitItem  = regexp.MustCompile(`^"(?:[ !#-\[\]-~]|\\["\\])*";r=\d{1,15};t=\d{1,15}$`)
)

// FuzzFields: whatever a rule or result holds, the fields are well-formed, and
// Retry-After is not before the end of the effective window.
func FuzzFields(f *testing.F) {
	f.Add("per_subject", int64(100), int64(time.Second), int64(200), int64(50), int64(30*time.Second), int64(0), true)
	f.Add("a\"\\\x00é", int64(-1), int64(math.MinInt64), int64(math.MaxInt64), int64(math.MinInt64), int64(-1), int64(math.MaxInt64), false)
	f.Fuzz(func(t *testing.T, name string, rate, per, burst, remaining, reset, retry int64, allowed bool) {
		r := &Rule{Name: name, Key: KeyRoute, Rate: rate, Per: time.Duration(per), Burst: burst}
		if p := r.Policy(); !policyItem.MatchString(p) {
			t.Errorf("policy %q", p)
		}
		res := Result{Allowed: allowed, Remaining: remaining, Reset: time.Duration(reset), RetryAfter: time.Duration(retry)}
		if h := r.Header(res); !limitItem.MatchString(h) {
			t.Errorf("header %q", h)
		}
		if res.RetryAfterSeconds() < max(res.effectiveWindow(), 1) {
			t.Errorf("Retry-After %d before t %d", res.RetryAfterSeconds(), res.effectiveWindow())
		}
		if r.Validate() == nil {
			table := NewTable(Config{Entries: 1024})
			now := time.Now()
			if first := table.Take(r, name, now); !first.Allowed || first.Remaining != burst-1 {
				t.Errorf("first request under %+v: %+v", *r, first)
			}
		}
	})
}

func TestValidate(t *testing.T) {
	good := Rule{Name: "n", Key: KeySubject, Rate: 1, Per: time.Second, Burst: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		edit func(*Rule)
		want string
	}{
		{func(r *Rule) { r.Name = "" }, "without a name"},
		{func(r *Rule) { r.Name = "ü" }, "printable ASCII"},
		{func(r *Rule) { r.Key = "ip" }, "use prefix, subject, client or route"},
		{func(r *Rule) { r.Rate = 0 }, "rate 0"},
		{func(r *Rule) { r.Rate = 1 << 32 }, "rate 4294967296"},
		{func(r *Rule) { r.Per = 0 }, "must be positive"},
		{func(r *Rule) { r.Burst = 0 }, "burst 0"},
		{func(r *Rule) { r.Burst = 1 << 32 }, "burst 4294967296"},
		{func(r *Rule) { r.Per, r.Burst = 8760*time.Hour, 200 }, "lower the burst"},
	} {
		r := good
		c.edit(&r)
		if err := r.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", r, err, c.want)
		}
	}
}
