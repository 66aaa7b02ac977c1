package main

import (
	"slices"
	"testing"
)

// controls are what keeps a token from being used by others, too long or too
// often, and the tests that try to get around each.
var controls = map[string][]string{
	"lifetime bounded":               {"internal/gate/authn.TestAttackTable", "cmd/gatebook.TestEvents"},
	"age bounded":                    {"internal/gate/authn.TestDemand", "internal/gate/authn.TestMaxAgeHoldsForACachedToken"},
	"one small skew":                 {"internal/gate/authn.TestAttackTable", "internal/gate/authn.TestClockSetBack"},
	"pinned to an audience":          {"internal/gate/authn.TestDemand", "internal/gate/authn.TestSharedCache"},
	"bound to its sender":            {"cmd/gatebook.TestProofsEndToEnd", "cmd/gatebook.TestCertificateBound"},
	"proofs are good once":           {"internal/gate/authn.TestProofStore", "internal/gate/authn.TestReplayRestart"},
	"one-time tokens":                {"cmd/gatebook.TestOneTimeTokenInParallel", "cmd/gatebook.TestTwoNodesShareWhatWasUsed"},
	"reuse is told":                  {"cmd/gatebook.TestTokenReuse", "cmd/gatebook.TestTokenReuseIsToldOnly"},
	"sessions and families rotate":   {"internal/gate/authn.TestSessionRotation", "cmd/gatebook.TestTokenServiceKilled"},
	"subjects have an epoch":         {"internal/gate/authn.TestSubjectEpoch", "cmd/gatebook.TestRevokeWhileHotInCache"},
	"keys rotate":                    {"internal/gate/authn.TestRotationUnderLoad", "internal/gate/authn.TestUnknownKeyIDsCauseOneFetchPerInterval"},
	"what is remembered obeys these": {"internal/gate/authn.TestVerdictIsRememberedNoLongerThan", "internal/gate/authn.TestCachedVerdictEndsWithStaleKeys"},
}

func TestControlsHaveTests(t *testing.T) {
	all := testNames(t)
	for control, tests := range controls {
		for _, name := range tests {
			if !slices.Contains(all, name) {
				t.Errorf("%s: there is no test %s", control, name)
			}
		}
	}
}
