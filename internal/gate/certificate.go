package gate

import (
	"crypto/sha256"
	"crypto/x509"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// Certificate notes the client's certificate, the leaf first as verified, for
// all exchanges of a connection: what its records say of it is made here, once.
// An empty chain notes nothing.
func (g *Gate) Certificate(t *canon.TLS, chain []*x509.Certificate) {
	if len(chain) == 0 {
		return
	}
	t.Client, t.ClientSubject = chain, chain[0].Subject.String()
	for _, u := range chain[0].URIs {
		if t.ClientSubject == "" {
			t.ClientSubject = u.String() // a workload's certificate has no other name
		}
	}
	if g.tokenHash != nil {
		// No issuer has the empty name, so this is no token's hash.
		sum := sha256.Sum256(chain[0].Raw)
		t.ClientHash = g.tokenHash("", string(sum[:]))
	}
}
