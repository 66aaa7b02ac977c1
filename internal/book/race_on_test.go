//go:build race

package book

// flipStep is how far apart flips are: the race detector makes them five times
// slower and has nothing to find in them.
const flipStep = 64
