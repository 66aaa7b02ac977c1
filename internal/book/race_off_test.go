//go:build !race

package book

// flipStep is how far apart flips are.
const flipStep = 16
