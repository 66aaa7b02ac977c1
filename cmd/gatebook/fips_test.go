package main

import (
	"crypto/fips140"
	"strings"
	"testing"
)

// TestFIPS: the binary says whether its cryptographic module is in FIPS 140-3
// mode, and takes the mode from where the tests took theirs.
func TestFIPS(t *testing.T) {
	s := &site{t: t}
	if said := s.run(0, "version"); strings.Contains(said, "FIPS 140-3") != fips140.Enabled() {
		t.Errorf("FIPS mode is %v here, the binary says %q", fips140.Enabled(), said)
	}
}
