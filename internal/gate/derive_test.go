package gate

import (
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
)

// What is derived from a remembered principal is derived once, and never taken
// over by a changed copy of it or by another gate.
func TestDerive(t *testing.T) {
	hashed := 0
	gate := func(key string) *Gate {
		return &Gate{tokenHash: func(issuer, id string) string { hashed++; return key + issuer + "/" + id }}
	}
	a, b := gate("a:"), gate("b:")
	p := *alice
	p.Memo = new(authn.Memo)
	copied := p
	copied.TokenID, copied.Subject, copied.Roles = "", "bob", nil
	unremembered := *alice
	for _, c := range []struct {
		name              string
		g                 *Gate
		p                 *authn.Principal
		who, token, roles string
		hashed            int
	}{
		{"first", a, &p, "corp|alice", "a:corp/t-1", "clerk,auditor", 1},
		{"again", a, &p, "corp|alice", "a:corp/t-1", "clerk,auditor", 0},
		{"a changed copy", a, &copied, "corp|bob", "", "", 0},
		{"the original after its copy", a, &p, "corp|alice", "a:corp/t-1", "clerk,auditor", 1},
		{"another gate", b, &p, "corp|alice", "b:corp/t-1", "clerk,auditor", 1},
		{"not remembered", a, &unremembered, "corp|alice", "a:corp/t-1", "clerk,auditor", 1},
		{"not remembered again", a, &unremembered, "corp|alice", "a:corp/t-1", "clerk,auditor", 1},
	} {
		hashed = 0
		d := c.g.derive(c.p)
		if d.who != c.who || d.token != c.token || d.roles != c.roles || hashed != c.hashed {
			t.Errorf("%s: %q %q %q after %d hashes, want %q %q %q after %d", c.name, d.who, d.token, d.roles, hashed, c.who, c.token, c.roles, c.hashed)
		}
	}
}
