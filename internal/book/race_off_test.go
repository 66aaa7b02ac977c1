//go:build !race

package book

// flipStep is how far apart flips are.
const flipStep = 16

// sweepStep is how many times as far as usual the moments of a sweep are apart.
const sweepStep = 1
