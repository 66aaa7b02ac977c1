//go:build race

package book

// flipStep is how far apart flips are: the race detector makes them five times
// slower and has nothing to find in them. "make test" makes them without it too.
const flipStep = 256

// sweepStep is how many times as far as usual the moments of a sweep are apart, at
// which power is cut, a process killed or an operation fails: as with flips, for
// such a story is told by one goroutine.
const sweepStep = 5
