package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/obs"
	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "serve",
		Short:   "Serve what the configuration declares, until SIGTERM or Ctrl-C; SIGHUP reloads",
		Example: "  gatebook serve -c /etc/gatebook/gatebook.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			// Caught before anything else: a hang-up must never end the gate.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			if err := quietLibraries(os.Getenv("GODEBUG")); err != nil {
				return err
			}
			f, err := a.load()
			if err != nil {
				return err
			}
			if p := config.Check(f); p != nil {
				return p
			}
			s, err := server.New(c.Context(), f, obs.NewLogger(a.Err))
			if err != nil {
				return err
			}
			for _, l := range f.Listen {
				fmt.Fprintf(a.Err, "listening on %s (%s)\n", s.Addr(l.Name), l.Name)
			}
			if f.Admin.Address != "" {
				fmt.Fprintf(a.Err, "listening on %s (administration)\n", s.Addr("admin"))
			}
			ctx, cancel := context.WithCancel(c.Context())
			var reloads sync.WaitGroup
			defer reloads.Wait()
			defer cancel()
			reloads.Go(func() { s.ReloadOn(ctx, hup) })
			return s.Run(ctx)
		},
	}
}

// quietLibraries refuses to serve while the HTTP library is told to print every
// field that it reads and writes.
func quietLibraries(godebug string) error {
	for setting := range strings.SplitSeq(godebug, ",") {
		if name, value, _ := strings.Cut(setting, "="); strings.TrimSpace(name) == "http2debug" && value != "0" {
			return usagef("GODEBUG has http2debug, which prints all header fields to the log, secrets and personal data included; remove it")
		}
	}
	return nil
}

func (a *app) checkCommand() *cobra.Command {
	var schema, probe bool
	var token string
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration and its policies; name every problem at once",
		Long: `Check a configuration, the files it names and its policies, and name every
problem at once, each with its line and what to do about it.

With --probe the issuers are asked for their metadata and keys, and those that
introspect tokens for an answer, in the way the gate will ask them; what would be
refused is named with the line that decides about it. --token takes a sample token
from a file, or from standard input for "-" (never from the command line, which
others on the machine can read), and says whether it would be taken.`,
		Example: "  gatebook check /etc/gatebook/gatebook.yaml\n  gatebook check --probe --token - < access.token\n  gatebook check --print-schema > gatebook.schema.json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if schema {
				_, err := a.Out.Write(config.PrintSchema())
				return err
			}
			if len(args) == 1 {
				a.configFile = args[0]
			}
			if token != "" && !probe {
				return usagef("--token needs --probe")
			}
			if err := a.check(probe && a.json); err != nil || !probe {
				return err
			}
			return a.probe(c, token)
		},
	}
	c.Flags().BoolVar(&schema, "print-schema", false, "print a JSON Schema for editors and exit")
	c.Flags().BoolVar(&probe, "probe", false, "ask the issuers for metadata, keys and answers")
	c.Flags().StringVar(&token, "token", "", "with --probe: file of a sample token, - for standard input")
	return c
}

// maxSample bounds what is read as a sample token, in bytes.
const maxSample = 64 << 10

// probe asks the issuers.
func (a *app) probe(c *cobra.Command, token string) error {
	f, err := a.load()
	if err != nil {
		return err
	}
	sample := ""
	if token != "" {
		in := c.InOrStdin()
		if token != "-" {
			file, err := os.Open(token)
			if err != nil {
				return usagef("sample token: %w", err)
			}
			defer file.Close()
			in = file
		}
		b, err := io.ReadAll(io.LimitReader(in, maxSample))
		if err != nil {
			return fmt.Errorf("sample token: %w", err)
		}
		if sample = strings.TrimSpace(string(b)); sample == "" {
			return usagef("the sample token is empty")
		}
	}
	found, problems := server.Probe(c.Context(), f, sample)
	if a.json {
		if err := a.printJSON(map[string]any{"file": f.Name(), "issuers": found, "ok": problems == nil}); err != nil {
			return err
		}
	} else {
		for _, i := range found {
			a.printf("issuer %s: %d usable keys%s%s\n", i.Name, i.Keys, when(i.Introspection, ", introspection answers"), when(i.Sample, ", takes the sample token"))
			for _, why := range i.Refused {
				a.printf("  not used: %s\n", why)
			}
		}
	}
	if problems != nil {
		return problems
	}
	return nil
}

func when(yes bool, text string) string {
	if yes {
		return text
	}
	return ""
}

// check says that all is well, unless it is to be silent about that.
func (a *app) check(silent bool) error {
	f, err := a.load()
	if err != nil {
		return err
	}
	if p := config.Check(f); p != nil {
		return p
	}
	engine, err := server.BuildEngine(f)
	if err != nil {
		return &usageError{err}
	}
	if _, err := server.BuildShadow(f); err != nil {
		return &usageError{err}
	}
	if err := server.CheckDetect(f); err != nil {
		return err
	}
	if err := server.CheckPoints(f); err != nil {
		return &usageError{err}
	}
	if silent {
		return nil
	}
	if a.json {
		return a.printJSON(map[string]any{"file": f.Name(), "ok": true, "routes": len(f.Routes), "policies": len(engine.Policies()), "policy_set": engine.SetHash()})
	}
	a.printf("%s: ok, %d routes, %d policies (set %s)\n%s", f.Name(), len(f.Routes), len(engine.Policies()), engine.SetHash(), server.Describe(f))
	return nil
}

func (a *app) initCommand() *cobra.Command {
	var o config.InitOptions
	c := &cobra.Command{
		Use:     "init DIR",
		Short:   "Make a new gate: a commented configuration, keys and an empty book",
		Example: "  gatebook init /etc/gatebook --upstream http://127.0.0.1:9000 --issuer https://idp.example.com",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return a.init(c, args[0], o) },
	}
	f := c.Flags()
	f.StringVar(&o.Upstream, "upstream", "", "base URL of the service behind the gate")
	f.StringVar(&o.Issuer, "issuer", "", "issuer of the access tokens")
	f.StringVar(&o.Preset, "preset", "", "what makes the tokens: rfc9068, keycloak, entra, auth0, okta, cognito")
	f.StringVar(&o.Audience, "audience", "", "audience that tokens must name")
	f.StringVar(&o.Name, "node", "", "name of this node")
	f.StringVar(&o.Origin, "origin", "", "prefix of the log's name: a host name that you own and a path")
	f.StringVar(&o.CertFile, "cert", "", "certificate of the listener, PEM")
	f.StringVar(&o.KeyFile, "key", "", "its private key, PEM")
	f.BoolVar(&o.SelfSigned, "self-signed", false, "make a certificate for localhost, for trying out only")
	return c
}

func (a *app) init(c *cobra.Command, dir string, o config.InitOptions) error {
	created, err := config.Init(dir, o)
	if err != nil {
		return &usageError{err}
	}
	f, err := config.Load(filepath.Join(dir, "gatebook.yaml"))
	if err != nil {
		return err
	}
	vkey, err := server.CreateBook(c.Context(), f)
	if err != nil {
		return fmt.Errorf("the configuration was written, the book was not made: %w; when that is mended, run: gatebook book create -c %s", err, f.Name())
	}
	keyFile := filepath.Join(dir, "log.vkey")
	if err := writeNew(keyFile, vkey+"\n"); err != nil {
		return fmt.Errorf("the book was made, but its verifier key could not be put beside the configuration; copy %s there: %w", server.KeyFile(f), err)
	}
	created = append(created, string(f.Data), keyFile) // the keys are in it
	if a.json {
		return a.printJSON(map[string]any{"created": created, "key": vkey, "config": filepath.Join(dir, "gatebook.yaml")})
	}
	for _, name := range created {
		a.printf("created %s\n", name)
	}
	a.printf("\nverifier key of this log (give it to your auditor, keep a copy elsewhere):\n  %s\n\nnext: gatebook check %s && gatebook serve -c %s\n",
		vkey, filepath.Join(dir, "gatebook.yaml"), filepath.Join(dir, "gatebook.yaml"))
	return nil
}

func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  gatebook version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := server.Version()
			if a.json {
				return a.printJSON(v)
			}
			a.printf("gatebook %s (%s)\nrecord schema v%d, file formats v1\n", v.Version, v.Go, v.Schema)
			if v.FIPS {
				a.printf("cryptographic module in FIPS 140-3 mode\n")
			}
			return nil
		},
	}
}
