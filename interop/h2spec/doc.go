// Package h2spec runs the conformance suite of that name against a whole gate,
// its program with a book, and compares what fails with testdata/expected.txt,
// where each line says why it may. It is a module of its own so that the suite
// becomes no dependency of the gate.
package h2spec
