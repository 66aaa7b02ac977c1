package token

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// signedBy is the key id in a token's header.
func signedBy(t *testing.T, raw string) string {
	t.Helper()
	head, _, _ := strings.Cut(raw, ".")
	b, err := b64.DecodeString(head)
	if err != nil {
		t.Fatal(err)
	}
	var h struct{ Alg, Typ, Kid string }
	if err := json.Unmarshal(b, &h); err != nil || h.Typ != "at+jwt" {
		t.Fatalf("%s: %v", b, err)
	}
	return h.Kid
}

// TestKeyRotation: over two months of requests every minute or so no token is
// ever signed with a key that was not published at least publishAhead before, and
// none that is valid ever fails to verify; keys that are of no use go away.
func TestKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		terms := Terms{Algorithm: EdDSA, Rotate: 24 * time.Hour}
		if err := h.state.SetTerms(terms); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var run sync.WaitGroup
		run.Go(func() {
			if err := h.state.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		published := map[string]time.Time{}
		signers := map[string]bool{}
		var valid []string
		begin := time.Now()
		for time.Since(begin) < 5*24*time.Hour {
			set := h.state.keys.Load()
			for _, k := range set.keys {
				if _, ok := published[k.kid]; !ok {
					published[k.kid] = time.Now()
				}
			}
			if len(set.keys) > 3 {
				t.Fatalf("%d keys are published", len(set.keys))
			}
			tok, _, _, err := h.svc.Issue("shop", apiURL, "", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			kid := signedBy(t, tok)
			if since := time.Since(published[kid]); len(signers) > 0 && !signers[kid] && since < publishAhead-2*tendEvery {
				t.Errorf("a key signs %v after it was published", since)
			}
			signers[kid] = true
			valid = append(valid, tok)
			for len(valid) > 0 && h.svc.own(valid[0], time.Now()) == nil {
				if c := h.claimsOf(valid[0]); time.Now().Before(time.Unix(c.Expires, 0)) {
					t.Fatal("a valid token does not verify any more")
				}
				valid = valid[1:]
			}
			time.Sleep(150 * time.Second)
		}
		if len(signers) != 6 {
			t.Errorf("%d keys have signed, want the first one and five more", len(signers))
		}
		stop()
		run.Wait()
	})
}

// TestRotateKeys: a new key waits, or signs at once; tokens made before stay
// valid; nobody can pile keys up.
func TestRotateKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		issue := func() string {
			tok, _, _, err := h.svc.Issue("shop", apiURL, "read", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return tok
		}
		old := issue()
		kid, from, err := h.state.RotateKeys(t.Context(), false)
		if err != nil || time.Until(from) < publishAhead-time.Second || !h.state.HasKey(kid) || !strings.Contains(string(h.state.JWKS()), kid) {
			t.Fatalf("%s %v %v", kid, from, err)
		}
		if signedBy(t, issue()) != signedBy(t, old) {
			t.Error("the new key signs already")
		}
		now, _, err := h.state.RotateKeys(t.Context(), true)
		if err != nil || signedBy(t, issue()) != now {
			t.Errorf("the newest key does not sign at once: %v", err)
		}
		if h.svc.own(old, time.Now()) == nil {
			t.Error("a valid token does not verify any more")
		}
		time.Sleep(publishAhead + time.Second)
		if signedBy(t, issue()) != now {
			t.Error("the key that waited has overtaken the newest")
		}
		for range maxWaiting {
			if _, _, err := h.state.RotateKeys(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := h.state.RotateKeys(t.Context(), false); !errors.Is(err, ErrTooManyKeys) {
			t.Errorf("%v", err)
		}
		h.reopen()
		if signedBy(t, issue()) != now {
			t.Error("another key signs after a restart")
		}
	})
}

// TestAlgorithmChanges: after a change of the algorithm the new kind of key is
// published first and signs later.
func TestAlgorithmChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		time.Sleep(time.Minute)
		terms := Terms{Algorithm: EdDSA, Rotate: time.Hour}
		for range 3 {
			if err := h.state.tend(t.Context(), terms); err != nil {
				t.Fatal(err)
			}
		}
		set := h.state.keys.Load()
		if len(set.keys) != 2 || set.newest().alg != EdDSA || set.signer(time.Now()).alg != ES256 || set.signer(time.Now().Add(publishAhead)).alg != EdDSA {
			t.Errorf("%d keys, newest %s", len(set.keys), set.newest().alg)
		}
	})
}

// TestStateRefuses: a state that cannot be read, or terms that make no sense.
func TestStateRefuses(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	for _, terms := range []Terms{{"RS256", time.Hour}, {"", time.Hour}, {ES256, time.Minute}} {
		if _, err := OpenState(ctx, h.store, terms, nil, nil); err == nil {
			t.Errorf("%+v was taken", terms)
		}
	}
	good := Terms{ES256, time.Hour}
	if err := h.store.Put(ctx, tableKeys, entryKeys, []byte(`[{"alg":"EdDSA","private":"AAAA"}]`), time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenState(ctx, h.store, good, nil, nil); err == nil {
		t.Error("a key that is none was taken")
	}
	k, err := newKey(ES256, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	k.Alg = EdDSA
	value, err := json.Marshal([]storedKey{*k})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.store.Put(ctx, tableKeys, entryKeys, value, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenState(ctx, h.store, good, nil, nil); err == nil {
		t.Error("a key under another algorithm's name was taken")
	}
	if err := h.store.Delete(ctx, tableKeys, entryKeys); err != nil {
		t.Fatal(err)
	}
	if err := h.store.Put(ctx, tableDenied, "x", []byte("x"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenState(ctx, h.store, good, nil, nil); err == nil {
		t.Error("a revocation that cannot be read was passed over")
	}
	other, err := kv.OpenLocal(h.file+"2", [32]byte{9}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := OpenState(ctx, &faulty{Store: other}, good, nil, nil); err != nil {
		t.Errorf("an empty store: %v", err)
	}
}

// TestOneSpelling: of a token of ours nothing but the exact text is taken.
func TestOneSpelling(t *testing.T) {
	h := newHouse(t)
	for _, alg := range []string{ES256, EdDSA} {
		stored, err := newKey(alg, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		set, err := openKeys([]storedKey{*stored})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := set.keys[0].sign([]byte(`{"iss":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		if b, ok := set.open(raw); !ok || string(b) != `{"iss":"x"}` {
			t.Fatalf("%q %v", b, ok)
		}
		if _, ok := h.state.keys.Load().open(raw); ok {
			t.Error("a token of another service was taken")
		}
		for i := range raw {
			if _, ok := set.open(raw[:i]); ok {
				t.Fatalf("cut at %d it was taken", i)
			}
			for _, c := range []string{"\n", "=", "A", "."} {
				if _, ok := set.open(raw[:i] + c + raw[i:]); ok {
					t.Fatalf("with %q at %d it was taken", c, i)
				}
				if changed := raw[:i] + c + raw[i+1:]; changed != raw {
					if _, ok := set.open(changed); ok {
						t.Fatalf("with %q in the place of %q at %d it was taken", c, raw[i], i)
					}
				}
			}
		}
	}
}

// TestDemand: the gate itself refuses what was revoked, and nothing else.
func TestDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		r := h.as("shop", PathToken, "grant_type", "client_credentials", "audience", apiURL)
		id := h.claimsOf(r.AccessToken).ID
		d := Demand{h.state, "own"}
		ask := func(issuer, id string) error {
			return d.Check(t.Context(), nil, &authn.Principal{Issuer: issuer, TokenID: id, Subject: "shop"})
		}
		if err := ask("own", id); err != nil {
			t.Error(err)
		}
		h.as("shop", PathRevoke, "token", r.AccessToken)
		var f *authn.Failure
		if err := ask("own", id); !errors.As(err, &f) || f.Reason != reason.TokenRevoked {
			t.Errorf("%v", err)
		}
		if err := ask("corp", id); err != nil {
			t.Errorf("the same id of another issuer: %v", err)
		}
		time.Sleep(keepReplaced)
		h.state.forget()
		if len(h.state.denied) != 0 {
			t.Error("it is never forgotten")
		}
	})
}

// TestOperator: what an operator can issue, see and end.
func TestOperator(t *testing.T) {
	h := newHouse(t)
	if _, _, _, err := h.svc.Issue("nobody", "", "", time.Now()); !errors.Is(err, ErrNoClient) {
		t.Error(err)
	}
	for _, c := range []struct{ client, audience, scope string }{{"web", "", ""}, {"shop", "", ""}, {"shop", "https://x", ""}, {"shop", apiURL, "admin"}, {"idle", "", ""}} {
		if _, _, _, err := h.svc.Issue(c.client, c.audience, c.scope, time.Now()); !errors.Is(err, ErrNotGiven) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	tok, hash, until, err := h.svc.Issue("shop", apiURL, "read", time.Now())
	if c := h.claimsOf(tok); err != nil || hash != h.svc.hash("own", c.ID) || until.Unix() != c.Expires || c.Scope != "read" {
		t.Errorf("%+v %v", c, err)
	}
	one := h.offline("shop")
	h.offline("web")
	list, err := h.state.Families(t.Context(), "shop", 10)
	if err != nil || len(list) != 1 || list[0].Client != "shop" || list[0].Subject != aliceSub || list[0].Revoked != "" {
		t.Fatalf("%+v %v", list, err)
	}
	if all, err := h.state.Families(t.Context(), "", 1); err != nil || len(all) != 1 || all[0].Client != "web" {
		t.Errorf("%+v %v", all, err)
	}
	if h.svc.FamilyHash(list[0].ID) != one.rec.Personal.Family {
		t.Error("records call the family something else")
	}
	if err := h.state.RevokeFamily(t.Context(), "x"); !errors.Is(err, ErrNoFamily) {
		t.Error(err)
	}
	if err := h.state.RevokeFamily(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	if r := h.again("shop", one.RefreshToken); r.status != 400 || len(h.alerts) != 0 {
		t.Errorf("%d %s", r.status, r.raw)
	}
}
