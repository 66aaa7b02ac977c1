package authn_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/reason"
)

// What a route asks of a credential; silence of the credential is a no.
func TestDemand(t *testing.T) {
	now := time.Unix(introspectNow, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	type p = authn.Principal
	type c = authn.DemandConfig
	for _, row := range []struct {
		name string
		ask  c
		who  p
		want reason.Reason
	}{
		{"audience", c{Audiences: []string{"a", "b"}}, p{Audiences: []string{"x", "b"}}, ""},
		{"other audience", c{Audiences: []string{"a"}}, p{Audiences: []string{"A", "a ", "ab"}}, reason.TokenAudience},
		{"no audience", c{Audiences: []string{"a"}}, p{}, reason.TokenAudience},
		{"young token", c{TokenMaxAge: time.Minute}, p{IssuedAt: ago(time.Minute)}, ""},
		{"old token", c{TokenMaxAge: time.Minute}, p{IssuedAt: ago(time.Minute + 1)}, reason.TokenTooOld},
		{"token without age", c{TokenMaxAge: time.Minute}, p{}, reason.TokenTooOld},
		{"class", c{ACR: []string{"gold", "silver"}}, p{ACR: "silver"}, ""},
		{"other class", c{ACR: []string{"gold", "silver"}}, p{ACR: "bronze"}, reason.StepupRequired},
		{"class that begins alike", c{ACR: []string{"gold"}}, p{ACR: "gold silver"}, reason.StepupRequired},
		{"no class", c{ACR: []string{"gold"}}, p{}, reason.StepupRequired},
		{"fresh login", c{MaxAge: time.Minute}, p{AuthTime: ago(time.Minute)}, ""},
		{"old login", c{MaxAge: time.Minute}, p{AuthTime: ago(time.Minute + time.Second)}, reason.StepupRequired},
		{"unknown login", c{MaxAge: time.Minute}, p{}, reason.StepupRequired},
		{"a step-up does not mend the audience", c{ACR: []string{"gold"}, Audiences: []string{"a"}}, p{}, reason.TokenAudience},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.ask.Now = func() time.Time { return now }
			row.who.Issuer, row.who.KID, row.who.Alg, row.who.Subject = "corp", "k1", "ES256", "ann"
			d, err := authn.NewDemand(row.ask)
			if err != nil {
				t.Fatal(err)
			}
			err = d.Check(context.Background(), nil, &row.who)
			if reasonOf(err) != row.want {
				t.Fatalf("%v, want %q", err, row.want)
			}
			var f *authn.Failure
			if row.want == "" || !errors.As(err, &f) {
				return
			}
			if f.Issuer != "corp" || f.KID != "k1" || f.Alg != "ES256" || f.Claimed != "ann" {
				t.Errorf("%+v", f)
			}
			if stepup := f.Reason == reason.StepupRequired; stepup != (f.ACRValues != "" || f.MaxAge != 0) {
				t.Errorf("step-up %q %v", f.ACRValues, f.MaxAge)
			}
		})
	}
	if d, err := authn.NewDemand(c{}); d != nil || err != nil {
		t.Errorf("nothing asked: %v, %v", d, err)
	}
	for _, bad := range []c{{Audiences: []string{""}}, {ACR: []string{"a", ""}}, {MaxAge: -1}, {TokenMaxAge: -1}} {
		if _, err := authn.NewDemand(bad); err == nil {
			t.Errorf("taken: %+v", bad)
		}
	}
}

// All that a route asks of a login is named at once, so that one more is enough.
func TestStepUpNamesEverything(t *testing.T) {
	d, err := authn.NewDemand(authn.DemandConfig{ACR: []string{"gold", "silver"}, MaxAge: 90 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var f *authn.Failure
	if err := d.Check(context.Background(), nil, &authn.Principal{ACR: "gold"}); !errors.As(err, &f) || f.ACRValues != "gold silver" || f.MaxAge != 90*time.Second {
		t.Errorf("%+v", f)
	}
}

// BenchmarkDemand is on the way of every request to a route that asks.
func BenchmarkDemand(b *testing.B) {
	d, err := authn.NewDemand(authn.DemandConfig{Audiences: []string{"api"}, ACR: []string{"gold"}, MaxAge: time.Hour, TokenMaxAge: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	p := &authn.Principal{Audiences: []string{"x", "api"}, ACR: "gold", IssuedAt: time.Now(), AuthTime: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Check(context.Background(), nil, p); err != nil {
			b.Fatal(err)
		}
	}
}
