// Package bench compares Gatebook with other proxies at the same work; see
// README.md.
package bench
