package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) doctorCommand() *cobra.Command {
	var reveal bool
	c := &cobra.Command{
		Use:   "doctor ID",
		Short: "Tell in plain words what happened to one request, why, and what to do about it",
		Long: `Tell in plain words what happened to one request: what came, who it was, which
rule decided, what the upstream did, what the client saw, and the exact reason,
which clients are not told. The id is in every answer's X-Request-Id.`,
		Example: "  gatebook doctor 019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			src, done, err := a.open(c.Context(), "doctor", args[0], reveal)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, done()) }()
			m, err := src.Find(args[0], reveal)
			if err != nil {
				return asUsage(err)
			}
			lines, err := query.Story(m, a.policyPlaces())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(lines)
			}
			for _, l := range lines {
				a.printf("%-10s %s\n", l.About, l.Text)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&reveal, "reveal", false, "open the personal part; this is recorded")
	return c
}

// policyPlaces finds where policies are written, as far as the policies on the
// disk are still those that decided.
func (a *app) policyPlaces() func(policy, set string) string {
	f, err := a.load()
	if err != nil {
		return nil
	}
	engine, err := server.BuildEngine(f)
	if err != nil {
		return nil
	}
	return func(policy, set string) string {
		if set != engine.SetHash() {
			return ""
		}
		for _, p := range engine.Policies() {
			if p.ID == policy && p.File != "" {
				return fmt.Sprintf("in %s:%d", p.File, p.Line)
			}
		}
		return ""
	}
}
