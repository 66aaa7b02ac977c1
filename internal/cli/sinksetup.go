package cli

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) sinkSetupCommand() *cobra.Command {
	var s server.SinkSetup
	c := &cobra.Command{
		Use:   "setup NAME",
		Short: "Prepare the system behind a sink, once",
		Long: `Put what Elasticsearch or OpenSearch needs before it takes records: templates with
a type for every field, if asked for a lifecycle policy, and the data stream. It
takes a credential of its own, which may do that and which the sink does not
have; withdraw it afterwards. What is newer or was made by somebody else is left
alone, and calling it again changes nothing. No server has to run.`,
		Example: "  gatebook sink setup siem --auth basic --credential /run/secrets/es-setup --lifecycle --keep-days 400",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if s.Auth != "" && !slices.Contains([]string{"basic", "api_key", "bearer"}, s.Auth) {
				return usagef("--auth is basic, api_key or bearer, not %q", s.Auth)
			}
			if (s.Auth == "") != (s.Credential == "") {
				return usagef("--auth and --credential go together")
			}
			if s.KeepDays < 0 || s.KeepDays > 0 && !s.Lifecycle {
				return usagef("--keep-days is a number of days, and needs --lifecycle")
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			s.Name = args[0]
			did, err := server.SetUpSink(c.Context(), f, s)
			if a.json && err == nil {
				return a.printJSON(did)
			}
			for _, line := range did {
				a.printf("%s\n", line)
			}
			return err
		},
	}
	c.Flags().StringVar(&s.Auth, "auth", "", "kind of the credential: basic, api_key or bearer")
	c.Flags().StringVar(&s.Credential, "credential", "", "file with the credential: user:password, id:key or a token")
	c.Flags().BoolVar(&s.Lifecycle, "lifecycle", false, "put a policy that begins a new index each 30 days or 50 GB")
	c.Flags().IntVar(&s.KeepDays, "keep-days", 0, "delete an index after so many days (0: never)")
	return c
}
