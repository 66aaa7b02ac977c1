//go:build !race

package verifier2_test

// flipShare is the part of the flips that is made.
const flipShare = 1
