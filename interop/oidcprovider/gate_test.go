package oidcprovider

import (
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

var binary program.Shared

func TestMain(m *testing.M) { binary.Main(m) }

func newGate(t *testing.T, rest string) *program.Inner {
	t.Helper()
	g := program.NewInner(t, binary.Path(t))
	g.Configure(rest)
	return g
}
