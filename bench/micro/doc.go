// Package micro measures parts of the book from outside of it: what an exchange
// costs, sealing, verifying and searching.
package micro
