//go:build race

package main

// raceFactor is how much more memory a gate may take than usual: the race
// detector keeps a history of every byte. "make test" looks at memory without
// it too.
const raceFactor = 16

// raceShare is the part, one in so many, that is made of what takes long: the race
// detector makes it several times slower and finds no more in more of the same.
// "make test" makes all of it without the detector.
const raceShare = 8
