// Package webhook lets the verifiers of Standard Webhooks, in Go and in
// JavaScript, judge what our webhook signs. It is a module of its own so that
// they become no dependency of the gate.
package webhook
