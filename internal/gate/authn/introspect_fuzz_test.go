package authn

import (
	"bytes"
	"slices"
	"testing"
	"time"
)

// FuzzIntrospectionAnswer: whatever an endpoint says, somebody is let in only
// by an active, well-formed answer about an access token for our audience.
func FuzzIntrospectionAnswer(f *testing.F) {
	const good = `{"active":true,"sub":"ann","client_id":"web","aud":["x","api"],"token_type":"Bearer","iat":1779999900,"exp":1780000300,"scope":"read"}`
	for _, s := range []string{
		good, `{"active":false}`, `{"active":true}`, "", "[]", "null", `{"active":true,"active":false}`,
		`{"active":true,"sub":"ann","aud":"api","token_type":"DPoP","cnf":{"jkt":"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}`,
		`{"active":true,"client_id":"web","aud":"api","token_type":"bearer","iss":"https://idp.example.com"}`,
		`{"active":true,"sub":"ann","aud":"api","token_type":"refresh_token"}`, `{"active":true,"Sub":"ann","aud":"api","token_type":"Bearer"}`,
	} {
		f.Add([]byte(s))
	}
	now := time.Unix(1_780_000_000, 0)
	i, err := NewIntrospector(IntrospectConfig{
		Token: JWTConfig{Name: "corp", Issuer: "https://idp.example.com", Audiences: []string{"api"}, MaxLifetime: time.Hour, Now: func() time.Time { return now }},
		URL:   "https://idp.example.com/introspect", Client: ClientAuth{Method: ClientBasic, ID: "gate", Secret: "s"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		said, err := parseObject(bytes.Trim(text, jsonSpace), maxDepth)
		if err != nil {
			return
		}
		p, times, failure := i.read(said)
		if (p == nil) == (failure == nil) {
			t.Fatalf("principal %v, failure %v", p, failure)
		}
		if p == nil {
			if !failure.Reason.Valid() {
				t.Errorf("%q is no reason", failure.Reason)
			}
			return
		}
		kind := said.get("token_type")
		if p.Subject == "" || p.Issuer != "corp" || !said.get("active").truth || !slices.Contains(p.Audiences, "api") || kind == nil || kind.kind != kindString {
			t.Errorf("%q lets in %+v", text, p)
		}
		if times.exp >= 0 && !now.Add(-i.profile.skew).Before(p.Expires) {
			t.Errorf("%q lets in an expired token", text)
		}
		if said.get("cnf") != nil && p.Confirm.Bound() == "" {
			t.Errorf("%q loses its binding", text)
		}
	})
}
