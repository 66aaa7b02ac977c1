// Package oidcprovider puts the gate behind a certified OpenID provider, npm's
// oidc-provider, that runs as a child process on the loopback interface. See
// provider.mjs for what it can be told, and harness_test.go for how. It is a
// module of its own so that nothing of it becomes a dependency of the gate.
package oidcprovider
