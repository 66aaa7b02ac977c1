// Package zitadelop puts the gate behind an OpenID provider in Go, zitadel/oidc
// (package op) with the storage of its own example, that runs in the test's
// process: access tokens as JWTs and opaque ones, a change of keys, and logins
// with a browser. It is a module of its own so that nothing of it becomes a
// dependency of the gate.
package zitadelop
