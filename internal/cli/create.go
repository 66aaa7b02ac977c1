package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) bookCreateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "create",
		Short: "Make the book of a configuration that has none",
		Long: `Make the data folder, the first wrapping key and an empty book for a
configuration that is there already; "gatebook init" does it for a configuration
that it writes itself. The folders above them must exist and be writable.

The verifier key of the new log is printed: give it to your auditor and keep a
copy elsewhere. A folder that holds a book is refused and left alone.`,
		Example: "  gatebook book create -c /etc/gatebook/gatebook.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := a.load()
			if err != nil {
				return err
			}
			vkey, err := server.CreateBook(c.Context(), f)
			if err != nil {
				return fmt.Errorf("no book was made in %s: %w", f.Data, err)
			}
			if a.json {
				return a.printJSON(map[string]any{"data": string(f.Data), "keys": string(f.Keys.Wrapper.File), "key": vkey})
			}
			a.printf("created %s\ncreated %s\n\nverifier key of this log (give it to your auditor, keep a copy elsewhere):\n  %s\n", f.Data, f.Keys.Wrapper.File, vkey)
			return nil
		},
	}
}
