package cli

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) sessionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "session",
		Short: "Browser sessions",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.sessionListCommand(), a.sessionRevokeCommand())
	return c
}

func (a *app) sessionListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the browser sessions of the running server",
		Long: `Show the sessions that have not ended, the oldest first: the keyed hash by which
records name each (personal.session), the pseudonym of its subject, and when it
began, was last used and ends. The call is recorded.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			all, err := cl.sessions()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(all)
			}
			for _, s := range all {
				a.printf("%s  %s  subject %s  issuer %s  since %s  used %s  until %s\n", s.Hash, s.Session, s.Subject, s.Issuer,
					s.Created.Format(time.RFC3339), s.Seen.Format(time.RFC3339), s.Expires.Format(time.RFC3339))
			}
			return nil
		},
	}
}

func (a *app) sessionRevokeCommand() *cobra.Command {
	var r server.SessionRevocation
	c := &cobra.Command{
		Use:   "revoke",
		Short: "End browser sessions",
		Long: `Ask the running server to end the sessions of a subject, or a single one. They
have ended when the command returns. The person can log in again; end the
session at the issuer too if that is not meant. The call is recorded first.`,
		Example: `  gatebook session revoke --subject s-4TqmZ0cV
  gatebook session revoke --session 9nUq2l0Zb6xW3hYp7QdZ8A`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.running(c.Context())
			if err != nil {
				return err
			}
			done, err := cl.revokeSessions(r)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			a.printf("sessions ended: %d\n", done.Count)
			return nil
		},
	}
	c.Flags().StringVar(&r.Subject, "subject", "", "all sessions of the subject with this pseudonym")
	c.Flags().StringVar(&r.Hash, "session", "", "the session with this keyed hash")
	return c
}
