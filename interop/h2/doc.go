// Package h2 reads what the gate's HTTP/2 reader lets through with another
// implementation of frames and header compression. It is a module of its own so
// that the implementation becomes no dependency of the gate.
package h2
