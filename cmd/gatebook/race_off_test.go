//go:build !race

package main

const raceFactor = 1

// raceShare is the part, one in so many, that is made of what takes long.
const raceShare = 1
