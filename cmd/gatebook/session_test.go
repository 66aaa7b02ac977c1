package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestSessions runs what a person would type.
func TestSessions(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/session"})
}
