package cli

import (
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/server"
)

// tokenServiceCommands are about the built-in token service.
func (a *app) tokenServiceCommands() []*cobra.Command {
	return []*cobra.Command{a.tokenIssueCommand(), a.tokenFamiliesCommand(), a.tokenRevokeFamilyCommand(), a.tokenRotateKeysCommand()}
}

func (a *app) tokenIssueCommand() *cobra.Command {
	var r server.IssueRequest
	c := &cobra.Command{
		Use:   "issue CLIENT",
		Short: "Make an access token of the token service, for a test",
		Long: `Make an access token for a client of the token service, with the grant
client_credentials and within what the configuration gives it. Only the token is
printed. It is recorded before it is shown.`,
		Example: `  curl -H "Authorization: Bearer $(gatebook token issue batch)" https://api.example.com/v1/orders`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r.Client = args[0]
			body, err := json.Marshal(r)
			if err != nil {
				return err
			}
			var out server.Issued
			if err := a.tokenCall(c, "POST", "issue", body, &out); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(&out)
			}
			a.printf("%s\n", out.Token)
			return nil
		},
	}
	c.Flags().StringVar(&r.Audience, "audience", "", "whom it is for; needed if the client has several")
	c.Flags().StringVar(&r.Scope, "scope", "", "scopes, separated by spaces; default: all of the client")
	return c
}

func (a *app) tokenFamiliesCommand() *cobra.Command {
	var client string
	var reveal bool
	c := &cobra.Command{
		Use:     "families",
		Short:   "List the refresh tokens of the token service, each with all that replaced it",
		Example: "  gatebook token families --client shop",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v := url.Values{"reveal": {strconv.FormatBool(reveal)}}
			if client != "" {
				v.Set("client", client)
			}
			var out []server.Family
			if err := a.tokenCall(c, "GET", "families?"+v.Encode(), nil, &out); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			for _, f := range out {
				state := "until " + f.Expires.Format(time.RFC3339)
				if f.Revoked != "" {
					state = "revoked (" + f.Revoked + ")"
				}
				who := f.Issuer
				if f.Subject != "" {
					who += " " + f.Subject
				}
				a.printf("%s  %-12s %s -> %s  %s  rotated %d times, %s\n", f.ID, f.Client, who, f.Audience, strings.Join(f.Scopes, " "), f.Rotated, state)
			}
			return nil
		},
	}
	c.Flags().StringVar(&client, "client", "", "only those of this client")
	c.Flags().BoolVar(&reveal, "reveal", false, "name the people; this is recorded")
	return c
}

func (a *app) tokenRevokeFamilyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke-family FAMILY",
		Short: "End a refresh token of the token service and all that came from it",
		Long: `End a refresh token of the token service and all that came from it: it cannot be
used any more, and this gate takes the access tokens of it no more, at once. Ids
are those of "gatebook token families".`,
		Example: "  gatebook token revoke-family 3q2-7wAAAAAAAAAAAAAAAA",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var out map[string]string
			if err := a.tokenCall(c, "POST", "families/"+url.PathEscape(args[0])+"/revoke", nil, &out); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			a.printf("revoked (recorded as %s)\n", out["recorded_as"])
			return nil
		},
	}
}

func (a *app) tokenRotateKeysCommand() *cobra.Command {
	var atOnce bool
	c := &cobra.Command{
		Use:   "rotate-keys",
		Short: "Make a new signing key for the token service",
		Long: `Make a new signing key for the token service. It is published now and signs in ten
minutes, when everybody who keeps the key set has fetched it again. The key before
stays published until its last token has expired, so that no valid token stops
verifying. Keys also rotate by themselves (rotate_keys).

With --at-once the new key signs now. That is for a key that others may know:
whoever keeps the key set refuses the new tokens until the next fetch.`,
		Example: "  gatebook token rotate-keys",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var out server.RotatedKey
			if err := a.tokenCall(c, "POST", "rotate-keys?at_once="+strconv.FormatBool(atOnce), nil, &out); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(&out)
			}
			a.printf("key %s signs from %s\n", out.KID, out.From.Format(time.RFC3339))
			return nil
		},
	}
	c.Flags().BoolVar(&atOnce, "at-once", false, "sign with it now")
	return c
}

func (a *app) tokenCall(c *cobra.Command, method, path string, body []byte, out any) error {
	cl, err := a.running(c.Context())
	if err != nil {
		return err
	}
	return cl.call(method, "/api/v1/token-service/"+path, body, decodeInto(out))
}
