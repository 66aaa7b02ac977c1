package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/obs"
	"github.com/gatebook/gatebook/internal/server"
)

// keyDesk is where API keys are administered: a running server, or the files.
type keyDesk interface {
	List(ctx context.Context) ([]admin.APIKey, error)
	Show(ctx context.Context, id string) (admin.APIKey, error)
	Create(ctx context.Context, r admin.APIKeyRequest) (admin.IssuedAPIKey, error)
	Rotate(ctx context.Context, id string, r admin.RotateRequest) (admin.IssuedAPIKey, error)
	Revoke(ctx context.Context, id string) (admin.APIKey, error)
	Close(ctx context.Context) error
}

// askKeys asks the running server, or the files if none runs, and prints the
// answer.
func askKeys[T any](ctx context.Context, a *app, ask func(d keyDesk) (T, error), show func(T) error) error {
	f, err := a.load()
	if err != nil {
		return err
	}
	var d keyDesk
	if c := dial(ctx, f); c != nil {
		d = remoteKeys{c}
	} else {
		holdsBook()
		if d, err = server.OpenKeyDesk(ctx, f); err != nil {
			return err
		}
	}
	answer, err := ask(d)
	if err == nil {
		err = show(answer)
	}
	var p *admin.Problem
	if errors.As(err, &p) {
		err = &exitError{p.Code, err}
	}
	return errors.Join(err, d.Close(ctx))
}

// remoteKeys asks the running server.
type remoteKeys struct{ c *client }

const keysPath = "/api/v1/apikeys"

func (r remoteKeys) List(context.Context) (out []admin.APIKey, err error) {
	err = r.c.call("GET", keysPath, nil, decodeInto(&out))
	return out, err
}

func (r remoteKeys) Show(_ context.Context, id string) (out admin.APIKey, err error) {
	err = r.c.call("GET", keysPath+"/"+url.PathEscape(id), nil, decodeInto(&out))
	return out, err
}

func (r remoteKeys) Create(_ context.Context, req admin.APIKeyRequest) (out admin.IssuedAPIKey, err error) {
	err = r.post(keysPath, req, &out)
	return out, err
}

func (r remoteKeys) Rotate(_ context.Context, id string, req admin.RotateRequest) (out admin.IssuedAPIKey, err error) {
	err = r.post(keysPath+"/"+url.PathEscape(id)+"/rotate", req, &out)
	return out, err
}

func (r remoteKeys) Revoke(_ context.Context, id string) (out admin.APIKey, err error) {
	err = r.post(keysPath+"/"+url.PathEscape(id)+"/revoke", struct{}{}, &out)
	return out, err
}

func (r remoteKeys) Close(context.Context) error { return nil }

func (r remoteKeys) post(path string, req, out any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return r.c.call("POST", path, body, decodeInto(out))
}

func (a *app) apikeyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "apikey",
		Short: "Issue, list, replace and revoke API keys",
		Long: `Issue, list, replace and revoke API keys, through the running server, where a
change counts at once, or in the files if none runs. Each of these is a record
that names the key by its id.

A key is printed once, when it is made, on standard output and nowhere else;
what is kept is a hash. Clients send it as "X-API-Key: gbk_..." or as
"Authorization: Bearer gbk_..." to routes with authn: [{apikey: {}}].`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.keyCreateCommand(), a.keyListCommand(), a.keyShowCommand(), a.keyRotateCommand(), a.keyRevokeCommand())
	return c
}

func (a *app) keyCreateCommand() *cobra.Command {
	var r admin.APIKeyRequest
	var expires, notBefore string
	c := &cobra.Command{
		Use:   "create --owner OWNER --name NAME",
		Short: "Make a key and print it, once",
		Long: `Make a key and print it, once, on standard output; all else goes to standard
error. The owner is the subject that policies, limits and records see, the key's
id is the client. Without roles a key may do what policies allow to anybody with
a key; --route narrows it to the routes named, whatever policies allow.`,
		Example: `  gatebook apikey create --owner billing --name "nightly export" --role clerk --expires 90d > key
  gatebook apikey create --owner ci --name deploy --role deployer --scope write --route orders.write --expires never`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			now := time.Now()
			if r.Expires, err = keyTime("--expires", expires, now); err != nil {
				return err
			}
			if r.NotBefore, err = keyTime("--not-before", notBefore, now); err != nil {
				return err
			}
			return askKeys(c.Context(), a, func(d keyDesk) (admin.IssuedAPIKey, error) { return d.Create(c.Context(), r) }, a.printIssued)
		},
	}
	f := c.Flags()
	f.StringVar(&r.Owner, "owner", "", "who it is for: the subject in policies and records")
	f.StringVar(&r.Name, "name", "", "what it is for")
	f.StringVar(&r.Tenant, "tenant", "", "tenant of the owner")
	f.StringArrayVar(&r.Roles, "role", nil, "role that it bears; may be given again")
	f.StringArrayVar(&r.Scopes, "scope", nil, "scope that it has; may be given again")
	f.StringArrayVar(&r.Routes, "route", nil, "route that it is good for; may be given again; none: all")
	f.StringVar(&expires, "expires", "365d", "when it ends: a duration such as 90d, a time, or never")
	f.StringVar(&notBefore, "not-before", "", "when it begins: a duration from now or a time (now)")
	return c
}

// keyTime reads a time, or a duration from now.
func keyTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" || s == "never" && flag == "--expires" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC(), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, time.UTC); err == nil {
		return t, nil
	}
	d, err := config.ParseDuration(s)
	if err != nil {
		return time.Time{}, usagef("%s: neither a duration such as 90d nor a time such as 2027-01-31 or 2027-01-31T12:00:00Z: %q", flag, s)
	}
	return now.Add(d.Std()).UTC().Truncate(time.Second), nil
}

// printIssued prints a new key. The key stands alone on standard output, so that
// it can be sent where it belongs.
func (a *app) printIssued(k admin.IssuedAPIKey) error {
	if a.json {
		return a.printJSON(k)
	}
	fmt.Fprintf(obs.PlainWriter(a.Err), "API key %s of %s, secret %d, %s. It is not shown again:\n", k.ID, k.Owner, k.Secret, until(k.Expires))
	for _, r := range k.Replaced {
		if r.Until.After(time.Now()) {
			fmt.Fprintf(a.Err, "secret %d stays valid until %s\n", r.Secret, r.Until.Format(time.RFC3339))
		}
	}
	_, err := fmt.Fprintln(a.Out, k.Key)
	return err
}

func until(t time.Time) string {
	if t.IsZero() {
		return "without end"
	}
	return "until " + t.Format(time.RFC3339)
}

func (a *app) keyListCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the keys that are or will be valid",
		Example: "  gatebook apikey list --all --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return askKeys(c.Context(), a, func(d keyDesk) ([]admin.APIKey, error) { return d.List(c.Context()) },
				func(list []admin.APIKey) error { return a.printKeys(list, all) })
		},
	}
	c.Flags().BoolVar(&all, "all", false, "list expired and revoked keys too")
	return c
}

func (a *app) printKeys(list []admin.APIKey, all bool) error {
	shown := []admin.APIKey{}
	for _, k := range list {
		if all || k.State == "active" || k.State == "pending" {
			shown = append(shown, k)
		}
	}
	if a.json {
		return a.printJSON(shown)
	}
	for _, k := range shown {
		a.printf("%s  %-8s  %-20s  last used %-20s  %s: %s\n", k.ID, k.State, until(k.Expires), orNever(k.LastUsed), obs.Plain(k.Owner), obs.Plain(k.Name))
	}
	if n := len(list) - len(shown); n > 0 {
		fmt.Fprintf(a.Err, "%d expired or revoked ones are left out; --all lists them\n", n)
	}
	return nil
}

func orNever(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

func (a *app) keyShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "Show what there is to know of a key, but for the key",
		Example: "  gatebook apikey show 7k3m9x2q4d",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := keyID(args[0])
			if err != nil {
				return err
			}
			return askKeys(c.Context(), a, func(d keyDesk) (admin.APIKey, error) { return d.Show(c.Context(), id) }, a.printKey)
		},
	}
}

// keyID takes the id of a key. Somebody may paste a key instead, which must not
// go anywhere.
func keyID(s string) (string, error) {
	if strings.HasPrefix(s, "gbk_") {
		return "", usagef("that is a key; name it by its id, which \"gatebook apikey list\" shows, and take the key out of your shell's history")
	}
	return s, nil
}

func (a *app) printKey(k admin.APIKey) error {
	if a.json {
		return a.printJSON(k)
	}
	row := func(name, text string) {
		if text != "" {
			a.printf("%-10s %s\n", name, obs.Plain(text))
		}
	}
	row("id", k.ID)
	row("state", k.State)
	row("owner", k.Owner)
	row("name", k.Name)
	row("tenant", k.Tenant)
	row("roles", strings.Join(k.Roles, ", "))
	row("scopes", strings.Join(k.Scopes, ", "))
	row("routes", strings.Join(k.Routes, ", "))
	row("created", k.Created.Format(time.RFC3339))
	row("valid", "from "+k.NotBefore.Format(time.RFC3339)+" "+until(k.Expires))
	if !k.Revoked.IsZero() {
		row("revoked", k.Revoked.Format(time.RFC3339))
	}
	row("secret", fmt.Sprintf("%d, last used %s", k.Secret, orNever(k.LastUsed)))
	for _, r := range k.Replaced {
		row("", fmt.Sprintf("%d, valid until %s, last used %s", r.Secret, r.Until.Format(time.RFC3339), orNever(r.LastUsed)))
	}
	return nil
}

func (a *app) keyRotateCommand() *cobra.Command {
	var overlap string
	c := &cobra.Command{
		Use:   "rotate ID",
		Short: "Give a key a new secret and print it, once",
		Long: `Give a key a new secret and print it, once, on standard output. Owner, roles,
limits and end stay the same. The secret before stays valid for --overlap;
"gatebook apikey show" tells when it was last used. Rotate with --overlap 0s when
a secret has become known.`,
		Example: "  gatebook apikey rotate 7k3m9x2q4d --overlap 2d > key",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := keyID(args[0])
			if err != nil {
				return err
			}
			d, err := config.ParseDuration(overlap)
			if err != nil {
				return usagef("--overlap: %v", err)
			}
			r := admin.RotateRequest{OverlapS: int64(d.Std() / time.Second)}
			return askKeys(c.Context(), a, func(d keyDesk) (admin.IssuedAPIKey, error) { return d.Rotate(c.Context(), id, r) }, a.printIssued)
		},
	}
	c.Flags().StringVar(&overlap, "overlap", "1d", "how long the secret before stays valid")
	return c
}

func (a *app) keyRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "End a key with all its secrets, at once and for good",
		Example: "  gatebook apikey revoke 7k3m9x2q4d",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := keyID(args[0])
			if err != nil {
				return err
			}
			return askKeys(c.Context(), a, func(d keyDesk) (admin.APIKey, error) { return d.Revoke(c.Context(), id) }, a.printRevoked)
		},
	}
}

func (a *app) printRevoked(k admin.APIKey) error {
	if a.json {
		return a.printJSON(k)
	}
	a.printf("revoked %s of %s\n", k.ID, obs.Plain(k.Owner))
	return nil
}

// apiKeyCounts says how many keys there are.
func apiKeyCounts(by map[string]int) string {
	var parts []string
	for _, state := range []string{"active", "pending", "expired", "revoked"} {
		if n := by[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(parts) == 0 {
		return "no API keys"
	}
	return "API keys: " + strings.Join(parts, ", ")
}
