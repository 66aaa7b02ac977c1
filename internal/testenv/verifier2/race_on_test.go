//go:build race

package verifier2_test

// flipShare is the part of the flips that is made: the race detector makes them
// five times slower and has nothing to find in them.
const flipShare = 4
