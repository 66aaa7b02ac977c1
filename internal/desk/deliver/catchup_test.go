package deliver_test

import (
	"testing"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/project"
)

// BenchmarkCatchUp is what a sink gets that was away, in every form there is. At
// least 20,000 records a second on one core are wanted.
func BenchmarkCatchUp(b *testing.B) {
	for _, name := range project.Names() {
		b.Run(name, func(b *testing.B) {
			deliver.CatchUp(b, func(origin string) deliver.Projection {
				p, err := project.New(project.Options{Name: name, Key: [32]byte{1}, Origin: origin, Node: "n1", Version: "test"})
				if err != nil {
					b.Fatal(err)
				}
				return p
			})
		})
	}
}
