// Package cedar compares the policy engine with Cedar's own implementation and
// with the official corpus. It is a module of its own so that none of that
// becomes a dependency of the gate.
package cedar
