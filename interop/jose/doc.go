// Package jose shows the tokens of the attack table to other JOSE libraries, and
// lets them verify the tokens that the gate signs.
// It is a module of its own so that none of them becomes a dependency of the
// gate.
package jose
