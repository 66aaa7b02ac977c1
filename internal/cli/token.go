package cli

import (
	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/desk/admin"
)

func (a *app) tokenCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Tokens that callers show",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(append(a.tokenServiceCommands(), a.tokenRevokeCommand())...)
	return c
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	var r admin.Revocation
	c := &cobra.Command{
		Use:   "revoke",
		Short: "Take tokens no more that were issued up to now",
		Long: `Ask the running server to take tokens no more, though their issuer signed them
and they have not expired: all that were issued up to now to a subject or to an
OAuth client, or a single one by its id. It acts when the command returns, and
stays over restarts. What is issued from the next second on is taken again; tell
the issuer too.

It acts on this node. The record of it names a subject by pseudonym and a token
by a keyed hash.`,
		Example: `  gatebook token revoke --issuer corp --subject 7f3a
  gatebook token revoke --client batch
  gatebook token revoke --jti 0c41b9`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			done, err := cl.revoke(r)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			a.printf("revoked: %s of issuer %s (recorded as %s)\n", done.Kind, done.Issuer, done.Target)
			return nil
		},
	}
	c.Flags().StringVar(&r.Issuer, "issuer", "", "configured name of the issuer; needed if there are several")
	c.Flags().StringVar(&r.Subject, "subject", "", "everything issued to this subject")
	c.Flags().StringVar(&r.Client, "client", "", "everything issued to this OAuth client")
	c.Flags().StringVar(&r.TokenID, "jti", "", "the token with this id")
	return c
}
