// Package backends sends odd requests through a whole gate, its program with a
// book, to servers that are not ours (nginx, HAProxy, Apache httpd and Caddy)
// and demands that each either was refused, with a record and nothing behind
// the gate, or was understood there as the record and the canonical request
// say. What differs for a reason that can be defended stands in
// testdata/explained.txt. It is a module of its own beside the others that hold
// the gate against foreign code.
package backends
