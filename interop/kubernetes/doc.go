// Package kubernetes reads the manifests in packaging/kubernetes with the types
// of Kubernetes itself. It is a module of its own so that those become no
// dependency of the gate.
package kubernetes
