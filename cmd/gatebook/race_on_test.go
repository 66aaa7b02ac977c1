//go:build race

package main

// raceFactor is how much more memory a gate may take than usual: the race
// detector keeps a history of every byte. "make test" looks at memory without
// it too.
const raceFactor = 16
