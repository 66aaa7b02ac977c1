package authn_test

import (
	"context"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// What is known and what is claimed is told without a signature being checked.
func TestKnownAndClaims(t *testing.T) {
	slots := authn.NewSlots(2)
	c := tableConfig(t)
	c.Slots = slots
	j := newJWT(t, c)
	req := func(value string) *canon.Request {
		return &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: value}}}
	}
	good := genuine(t, "ES256")
	forged := good[:len(good)-8] + "AAAAAAAA"
	others := env(t).Token("ES256", jwtattack.Header("ES256"), jwtattack.Claims().Set("iss", `"https://others.example"`))
	for name, r := range map[string]*canon.Request{"before": req("Bearer " + good), "forged": req("Bearer " + forged), "nothing": {}, "basic": req("Basic x"), "noise": req("Bearer x")} {
		if j.Known(r) {
			t.Errorf("%s: known", name)
		}
	}
	if n, k := slots.Costs(), j.Costs(); n.AtOnce != 0 || k.Good != 0 {
		t.Errorf("asking cost %+v, %+v", n, k)
	}
	if _, err := j.Authenticate(context.Background(), req("Bearer "+good)); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Authenticate(context.Background(), req("Bearer "+forged)); err == nil {
		t.Fatal("a forged token is taken")
	}
	before, keys := slots.Costs(), j.Costs()
	if before != (authn.VerifyCosts{AtOnce: 2}) || keys != (authn.FetchCosts{Good: 1}) {
		t.Errorf("costs %+v, %+v", before, keys)
	}
	if !j.Known(req("Bearer "+good)) || j.Known(req("Bearer "+forged)) {
		t.Error("known are not those that were found good")
	}
	for _, row := range []struct{ name, value, issuer, claimed string }{
		{"good", "Bearer " + good, "corp", "alice"},
		{"forged", "Bearer " + forged, "corp", "alice"},
		{"of others", "Bearer " + others, "", ""},
		{"noise", "Bearer x.y.z", "", ""},
		{"opaque", "Bearer abc", "", ""},
		{"no bearer", "Basic abc", "", ""},
	} {
		if issuer, claimed := j.Claims(req(row.value)); issuer != row.issuer || claimed != row.claimed {
			t.Errorf("%s: claims %q, %q", row.name, issuer, claimed)
		}
	}
	if after := slots.Costs(); after != before {
		t.Errorf("asking cost %+v, before %+v", after, before)
	}
	// An unknown key id wants a fetch, which the budget does not allow so soon.
	odd := env(t).Token("ES256", jwtattack.Header("ES256").Set("kid", `"nobody"`), jwtattack.Claims())
	for range 3 {
		j.Authenticate(context.Background(), req("Bearer "+odd))
	}
	if n := j.Costs(); n.Good+n.Failed > 2 || n.Withheld == 0 {
		t.Errorf("three unknown keys: %+v", n)
	}
}
