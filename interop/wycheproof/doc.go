// Package wycheproof shows the gate's token verifier the vectors of project
// Wycheproof for JSON Web Signatures and Keys. It is a module of its own so
// that the vectors, which it reads from theirs, become no dependency of the
// gate.
package wycheproof
