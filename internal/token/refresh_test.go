package token

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/reason"
)

// offline exchanges alice's token for one with a refresh token.
func (h *house) offline(client string, more ...string) *reply {
	h.t.Helper()
	r := h.as(client, PathToken, append([]string{
		"grant_type", string(Exchange), "subject_token", unsigned(`{"sub":"alice"}`), "subject_token_type", TypeAccessToken,
		"audience", orders, "scope", "read offline_access",
	}, more...)...)
	if r.status != 200 || r.RefreshToken == "" {
		h.t.Fatalf("%d %s", r.status, r.raw)
	}
	return r
}

func (h *house) again(client, token string, more ...string) *reply {
	h.t.Helper()
	return h.as(client, PathToken, append([]string{"grant_type", "refresh_token", "refresh_token", token}, more...)...)
}

// active asks the service about a token for its own client.
func (h *house) active(client, token string) bool {
	h.t.Helper()
	r := h.as(client, PathIntrospect, "token", token)
	if r.status != 200 {
		h.t.Fatalf("%d %s", r.status, r.raw)
	}
	return r.Active
}

// TestRefresh is the life of a family over time: rotation, the lost answer, the
// replay after the grace, and the end.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		one := h.offline("shop")
		if one.IssuedType != TypeAccessToken || one.Scope != "read" || one.rec.Personal.Family == "" || one.rec.Raw.IssuerSub != "corp|"+aliceSub {
			t.Errorf("%s %+v", one.raw, one.rec.Personal)
		}
		first := h.claimsOf(one.AccessToken)
		if first.Expires-first.IssuedAt != 120 {
			t.Errorf("a token of %d s from one that had 120 s left", first.Expires-first.IssuedAt)
		}

		time.Sleep(time.Hour)
		two := h.again("shop", one.RefreshToken)
		if two.status != 200 || two.RefreshToken == one.RefreshToken || two.RefreshToken == "" || two.rec.Event.Cause != "rotated" {
			t.Fatalf("%d %s %+v", two.status, two.raw, two.rec.Event)
		}
		c := h.claimsOf(two.AccessToken)
		if c.Subject != first.Subject || c.Scope != "read" || c.Expires-c.IssuedAt != 300 || string(c.Actor) != string(first.Actor) || !slices.Equal(c.Roles, first.Roles) || c.ID == first.ID {
			t.Errorf("%+v, first %+v", c, first)
		}
		if two.rec.Raw.IssuerSub != "corp|"+aliceSub || two.rec.Personal.Family != one.rec.Personal.Family || two.rec.Authn.Client != "shop" {
			t.Errorf("%+v %+v", two.rec.Raw, two.rec.Personal)
		}

		time.Sleep(grace - 100*time.Millisecond) // writing took a little, too
		lost := h.again("shop", one.RefreshToken)
		if lost.status != 200 || lost.RefreshToken != two.RefreshToken || lost.rec.Event.Cause != "again" || lost.AccessToken == "" {
			t.Fatalf("a retry: %d %s %+v", lost.status, lost.raw, lost.rec.Event)
		}
		three := h.again("shop", lost.RefreshToken)
		if three.status != 200 || len(h.alerts) != 0 {
			t.Fatalf("%d %s %v", three.status, three.raw, h.alerts)
		}
		if !h.active("shop", three.RefreshToken) || h.active("shop", two.RefreshToken) {
			t.Error("not exactly the newest refresh token is active")
		}

		time.Sleep(grace + 100*time.Millisecond)
		stolen := h.again("shop", two.RefreshToken)
		if stolen.status != 400 || stolen.Error != invalidGrant || stolen.rec.Error.Reason != string(reason.TokenReuseDetected) || stolen.rec.Event.Cause != "reused" {
			t.Errorf("%d %s %+v", stolen.status, stolen.raw, stolen.rec.Error)
		}
		if want := "shop " + stolen.rec.ID.String(); len(h.alerts) != 1 || h.alerts[0] != want {
			t.Errorf("alerts %q, want %q", h.alerts, want)
		}
		if stolen.rec.Raw.Fold || stolen.rec.Raw.IssuerSub != "corp|"+aliceSub {
			t.Errorf("%+v", stolen.rec.Raw)
		}
		after := h.again("shop", three.RefreshToken)
		if after.status != 400 || after.Error != invalidGrant || after.raw != stolen.raw || after.rec.Error.Reason != string(reason.TokenRevoked) || len(h.alerts) != 1 {
			t.Errorf("%d %s %+v %v", after.status, after.raw, after.rec.Error, h.alerts)
		}
		if h.active("shop", three.RefreshToken) || !h.state.revoked(h.claimsOf(three.AccessToken).ID) {
			t.Error("the family lives on")
		}
	})
}

// TestRefreshEnds: a family ends when its time is over, whatever was done with
// it, and what the configuration takes away is gone at once.
func TestRefreshEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t)
		one := h.offline("web")
		time.Sleep(time.Hour - time.Second)
		two := h.again("web", one.RefreshToken)
		if two.status != 200 {
			t.Fatal(two.raw)
		}
		time.Sleep(time.Second)
		if r := h.again("web", two.RefreshToken); r.status != 400 || r.rec.Error.Reason != string(reason.TokenInactive) {
			t.Errorf("%d %s %+v", r.status, r.raw, r.rec.Error)
		}
		shop := h.offline("shop")
		for name, tune := range map[string]func(c *Client){
			"audience": func(c *Client) { c.Audiences = []string{apiURL} },
			"source":   func(c *Client) { c.Subjects = []string{"partner"} },
			"time":     func(c *Client) { c.Offline = time.Nanosecond },
		} {
			time.Sleep(time.Second)
			cl := clients()
			tune(&cl[0])
			h.serve(cl, subjects())
			if r := h.again("shop", shop.RefreshToken); r.status != 400 || r.rec.Error.Reason != string(reason.DeniedByDefault) {
				t.Errorf("%s: %d %s %+v", name, r.status, r.raw, r.rec.Error)
			}
		}
		cl := clients()
		cl[0].Scopes, cl[0].Roles = []string{"write"}, nil
		h.serve(cl, subjects())
		r := h.again("shop", shop.RefreshToken)
		if r.status != 200 || r.Scope != "" || h.claimsOf(r.AccessToken).Roles != nil {
			t.Errorf("%d %s", r.status, r.raw)
		}
	})
}

// TestRefreshRefused: whose it is not, and what it was not given for.
func TestRefreshRefused(t *testing.T) {
	h := newHouse(t)
	one := h.offline("shop")
	mine := one.RefreshToken
	made := []byte(mine)
	if made[len(made)-2] == 'A' {
		made[len(made)-2] = 'B'
	} else {
		made[len(made)-2] = 'A'
	}
	for _, c := range []struct {
		name, client, token string
		more                []string
		code                string
		why                 reason.Reason
	}{
		{"another client", "web", mine, nil, invalidGrant, reason.BindingMismatch},
		{"a made-up one", "shop", string(made), nil, invalidGrant, reason.TokenInactive},
		{"cut", "shop", mine[:len(mine)-1], nil, invalidGrant, reason.TokenInactive},
		{"without its prefix", "shop", strings.TrimPrefix(mine, refreshPrefix), nil, invalidGrant, reason.TokenInactive},
		{"an access token", "shop", one.AccessToken, nil, invalidGrant, reason.TokenInactive},
		{"another audience", "shop", mine, []string{"audience", apiURL}, invalidTarget, reason.TokenAudience},
		{"more scope", "shop", mine, []string{"scope", "read write"}, invalidScope, reason.ScopeMissing},
	} {
		r := h.again(c.client, c.token, c.more...)
		if r.status != 400 || r.Error != c.code || r.rec.Error.Reason != string(c.why) || r.rec.Raw.Fold {
			t.Errorf("%s: %d %s %+v", c.name, r.status, r.raw, r.rec.Error)
		}
	}
	if r := h.again("shop", mine, "audience", orders, "scope", "read"); r.status != 200 || len(h.alerts) != 0 {
		t.Errorf("after all that: %d %s", r.status, r.raw)
	}
}

// TestRefreshTogether: of 64 uses of one token at the same time there is one
// outcome for the family, and whoever has the answer can go on.
func TestRefreshTogether(t *testing.T) {
	h := newHouse(t)
	one := h.offline("shop")
	var all sync.WaitGroup
	replies := make([]*reply, 64)
	for i := range replies {
		all.Go(func() { replies[i] = h.again("shop", one.RefreshToken) })
	}
	all.Wait()
	next, causes := map[string]int{}, map[string]int{}
	ids := map[string]bool{}
	for _, r := range replies {
		if r.status != 200 {
			t.Fatalf("%d %s", r.status, r.raw)
		}
		next[r.RefreshToken]++
		causes[r.rec.Event.Cause]++
		ids[h.claimsOf(r.AccessToken).ID] = true
	}
	if len(next) != 1 || causes["rotated"] != 1 || causes["again"] != 63 || len(ids) != 64 {
		t.Errorf("%d successors, %v, %d access tokens", len(next), causes, len(ids))
	}
	f, n, err := h.state.find(t.Context(), replies[0].RefreshToken)
	if err != nil || f == nil || n != 1 || f.Generation != 1 {
		t.Errorf("%+v %d %v", f, n, err)
	}
	// Late, they all are a replay, and again there is one outcome.
	if _, err := h.state.update(t.Context(), f, func(f *family) bool { f.Replaced = f.Replaced.Add(-time.Hour); return true }); err != nil {
		t.Fatal(err)
	}
	for i := range replies {
		all.Go(func() { replies[i] = h.again("shop", one.RefreshToken) })
	}
	all.Wait()
	why := map[string]int{}
	for _, r := range replies {
		why[fmt.Sprint(r.status, " ", r.rec.Error.Reason)]++
	}
	if why["400 token_reuse_detected"] != 1 || why["400 token_revoked"] != 63 || len(h.alerts) != 1 {
		t.Errorf("%v, alerts %v", why, h.alerts)
	}
}

// TestRefreshRestart: what was rotated, revoked and seen once stays so.
func TestRefreshRestart(t *testing.T) {
	h := newHouse(t)
	jwt := encode("grant_type", "client_credentials", "client_assertion_type", assertionType, "client_assertion", unsigned(`{"sub":"signer","aud":"`+issuer+`","jti":"a"}`))
	if r := h.send("POST", PathToken, jwt, nil, "content-type", formType); r.status != 200 {
		t.Fatal(r.raw)
	}
	one := h.offline("shop")
	two := h.again("shop", one.RefreshToken)
	gone := h.offline("shop")
	if r := h.as("shop", PathRevoke, "token", gone.RefreshToken); r.status != 200 || r.raw != "" || r.rec.Event.Cause != "family" {
		t.Fatalf("%d %q", r.status, r.raw)
	}
	single := h.as("shop", PathToken, "grant_type", "client_credentials", "audience", apiURL)
	if r := h.as("shop", PathRevoke, "token", single.AccessToken); r.status != 200 || r.rec.Event.Cause != "token" {
		t.Fatal(r.raw)
	}
	keys := string(h.state.JWKS())
	h.reopen()
	if string(h.state.JWKS()) != keys {
		t.Error("other keys after a restart")
	}
	if lost := h.again("shop", one.RefreshToken); lost.status != 200 || lost.RefreshToken != two.RefreshToken {
		t.Errorf("the answer lost in the crash: %d %s", lost.status, lost.raw)
	}
	if r := h.again("shop", gone.RefreshToken); r.rec.Error.Reason != string(reason.TokenRevoked) {
		t.Errorf("%+v", r.rec.Error)
	}
	if r := h.send("POST", PathToken, jwt, nil, "content-type", formType); r.status != 401 || r.rec.Error.Reason != string(reason.TokenReplayed) {
		t.Errorf("%d %+v", r.status, r.rec.Error)
	}
	for name, raw := range map[string]string{"token": single.AccessToken, "token of a family": gone.AccessToken} {
		if !h.state.revoked(h.claimsOf(raw).ID) {
			t.Errorf("%s: no longer revoked", name)
		}
	}
}

// TestRolledBack: a store from before a rotation cannot make a newer token
// valid again, nor go on with an older one.
func TestRolledBack(t *testing.T) {
	h := newHouse(t)
	one := h.offline("shop")
	f, _, err := h.state.find(t.Context(), one.RefreshToken)
	if err != nil || f == nil {
		t.Fatal(err)
	}
	ahead := f.token(f.Generation + 3)
	if r := h.again("shop", ahead); r.status != 400 || r.rec.Error.Reason != string(reason.TokenReuseDetected) {
		t.Errorf("%d %s %+v", r.status, r.raw, r.rec.Error)
	}
	if r := h.again("shop", one.RefreshToken); r.status != 400 {
		t.Errorf("%d %s", r.status, r.raw)
	}
}

// TestRevokeForeign: one client cannot end what is another's, nor look at it.
func TestRevokeForeign(t *testing.T) {
	h := newHouse(t)
	one := h.offline("shop")
	for _, raw := range []string{one.RefreshToken, one.AccessToken} {
		if r := h.as("web", PathRevoke, "token", raw); r.status != 400 || r.Error != unauthorizedClient || r.rec.Event.Cause != "foreign" {
			t.Errorf("%d %s", r.status, r.raw)
		}
		if h.active("web", raw) {
			t.Error("another client may look at it")
		}
	}
	if !h.active("shop", one.RefreshToken) {
		t.Error("it was revoked all the same")
	}
}

// TestIntrospect: a resource server learns of the tokens for it.
func TestIntrospect(t *testing.T) {
	h := newHouse(t)
	mine := h.as("shop", PathToken, "grant_type", "client_credentials", "audience", apiURL)
	other := h.as("shop", PathToken, "grant_type", "client_credentials", "audience", orders)
	r := h.as("api", PathIntrospect, "token", mine.AccessToken)
	c := h.claimsOf(mine.AccessToken)
	want := fmt.Sprintf(`{"active":true,"scope":"read write","client_id":"shop","token_type":"Bearer","exp":%d,"iat":%d,"sub":"shop","aud":%q,"iss":%q,"jti":%q,"roles":["clerk","robot"]}`, c.Expires, c.IssuedAt, apiURL, issuer, c.ID)
	if r.raw != want || r.rec.Event.Cause != "active" || r.rec.Outcome != record.Success || r.rec.Personal.Token != mine.rec.Personal.Token {
		t.Errorf("%s\n%s %+v", r.raw, want, r.rec.Event)
	}
	for name, raw := range map[string]string{"for another": other.AccessToken, "rubbish": "x", "changed": mine.AccessToken[:len(mine.AccessToken)-4] + "AAAA"} {
		if r := h.as("api", PathIntrospect, "token", raw); r.raw != `{"active":false}` {
			t.Errorf("%s: %s", name, r.raw)
		}
	}
	h.as("shop", PathRevoke, "token", mine.AccessToken)
	if r := h.as("api", PathIntrospect, "token", mine.AccessToken); r.raw != `{"active":false}` || r.rec.Event.Cause != "revoked" {
		t.Errorf("%s %+v", r.raw, r.rec.Event)
	}
}

// TestFamilyIDs draws ids until one in 64 would begin with "-" for certain.
func TestFamilyIDs(t *testing.T) {
	for range 5000 {
		if id := newFamilyID(); id[0] == '-' {
			t.Fatalf("%q would be an option of a command", id)
		}
	}
}
