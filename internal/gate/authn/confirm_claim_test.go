package authn_test

import (
	"slices"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// What a token is bound to and whom it is for reach whoever checks them.
func TestPrincipalNamesBindingAndAudiences(t *testing.T) {
	const sum = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
	j := newJWT(t, tableConfig(t))
	for _, row := range []struct {
		name, cnf, aud string
		want           authn.Confirmation
		bound          string
		audiences      []string
	}{
		{"bearer", "", `"https://api.example.com"`, authn.Confirmation{}, "", []string{"https://api.example.com"}},
		{"dpop", `{"jkt":"` + sum + `"}`, `["x","https://api.example.com"]`, authn.Confirmation{JKT: sum}, authn.BoundDPoP, []string{"x", "https://api.example.com"}},
		{"mtls", `{"x5t#S256":"` + sum + `"}`, `["https://api.example.com","x"]`, authn.Confirmation{X5T: sum}, authn.BoundMTLS, []string{"https://api.example.com", "x"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := jwtattack.Claims().Set("aud", row.aud)
			if row.cnf != "" {
				c = c.Add("cnf", row.cnf)
			}
			token := env(t).Token("ES256", jwtattack.Header("ES256"), c)
			for _, pass := range []string{"first", "from the cache"} {
				p, err := authenticate(j, token)
				if err != nil {
					t.Fatal(err)
				}
				if p.Confirm != row.want || p.Confirm.Bound() != row.bound || !slices.Equal(p.Audiences, row.audiences) {
					t.Errorf("%s: confirm %+v (%s), audiences %q", pass, p.Confirm, p.Confirm.Bound(), p.Audiences)
				}
			}
		})
	}
}
