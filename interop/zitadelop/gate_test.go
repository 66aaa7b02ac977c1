package zitadelop

import (
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

var binary program.Shared

func TestMain(m *testing.M) { binary.Main(m) }

// startGate returns when a gate with the configuration and the files serves.
func startGate(t *testing.T, rest string, files map[string]string) *program.Inner {
	t.Helper()
	g := program.NewInner(t, binary.Path(t))
	g.Configure(rest)
	for name, text := range files {
		g.Write(name, text)
	}
	g.Start()
	return g
}
