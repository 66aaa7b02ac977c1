// Package tokenservice lets clients that are not ours talk to the token service
// of a real gate: npm's openid-client and oauth4webapi (client.mjs), and
// zitadel/oidc, x/oauth2 and go-oidc in Go. It is a module of its own so that
// nothing of them becomes a dependency of the gate.
package tokenservice
