package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/evidence"
	"github.com/gatebook/gatebook/internal/server"
)

// verifyFlags say what to verify against.
type verifyFlags struct {
	key, keyFile string
	keys         string
	checkpoint   string
}

func (a *app) verifyCommand() *cobra.Command {
	var v verifyFlags
	c := &cobra.Command{
		Use:   "verify [DIR or PROOF]",
		Short: "Check evidence offline: a book's folder, or a proof file",
		Long: `Check evidence offline. DIR is the data folder of a book or a copy of it; with
no argument, the book of the configuration, through the server if one runs.
PROOF is a file that "gatebook prove" wrote.

Exit codes: 0 fine, 10 damaged, 11 truncated or rolled back, 12 trusted only as
far as the folder itself (no --key), 13 in use by a server, 14 key missing.`,
		Example: `  gatebook verify /srv/evidence/gate-1 --key-file log.vkey --keys /srv/evidence/keys
  gatebook verify order.tlog-proof --key-file log.vkey
  gatebook verify --checkpoint last-audit.checkpoint`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.verify(c.Context(), args, &v) },
	}
	f := c.Flags()
	f.StringVar(&v.key, "key", "", "verifier key of the log, as printed by init")
	f.StringVar(&v.keyFile, "key-file", "", "file with the verifier key")
	f.StringVar(&v.keys, "keys", "", "folder of the wrapping keys, to check the content of records too")
	f.StringVar(&v.checkpoint, "checkpoint", "", "file with a checkpoint saved earlier; the log must contain it")
	return c
}

func (a *app) verify(ctx context.Context, args []string, v *verifyFlags) error {
	if v.keyFile != "" {
		b, err := os.ReadFile(v.keyFile)
		if err != nil {
			return &usageError{err}
		}
		v.key = strings.TrimSpace(string(b))
	}
	var saved []byte
	if v.checkpoint != "" {
		var err error
		if saved, err = os.ReadFile(v.checkpoint); err != nil {
			return &usageError{err}
		}
	}
	if len(args) == 1 {
		st, err := os.Stat(args[0])
		if err != nil && strings.Contains(args[0], "://") {
			return usagef("%s is not fetched; name a folder or a file on this machine, such as a backup or a proof", args[0])
		}
		if err != nil {
			return &usageError{err}
		}
		if !st.IsDir() {
			return a.verifyProof(args[0], v.key)
		}
	}
	rep, err := a.verifyBook(ctx, args, v, saved)
	if err != nil {
		return err
	}
	return a.printReport(rep)
}

// verifyBook verifies a folder, or the configured book.
func (a *app) verifyBook(ctx context.Context, args []string, v *verifyFlags, saved []byte) (*ledger.Report, error) {
	if len(args) == 1 {
		return server.Verify(ctx, args[0], v.keys, v.key, saved)
	}
	f, err := a.load()
	if err != nil {
		return nil, err
	}
	if v.key == "" {
		// The key that init left beside the configuration is as good as the
		// configuration, and better than the folder that is to be verified.
		if b, err := os.ReadFile(filepath.Join(f.Dir(), "log.vkey")); err == nil {
			v.key = strings.TrimSpace(string(b))
		}
	}
	if c := dial(ctx, f); c != nil {
		return c.verify(v.key, saved)
	}
	return server.Verify(ctx, string(f.Data), keysOf(f, v), v.key, saved)
}

func keysOf(f *config.File, v *verifyFlags) string {
	if v.keys != "" {
		return v.keys
	}
	return string(f.Keys.Wrapper.File)
}

// printReport answers verify's questions one by one.
func (a *app) printReport(rep *ledger.Report) error {
	code := rep.ExitCode()
	if a.json {
		if err := a.printJSON(struct {
			*ledger.Report
			Code int `json:"exit_code"`
		}{rep, code}); err != nil {
			return err
		}
	} else {
		a.printf("log         %s\ntrust       %s\n", rep.Origin, trust(rep.Trust))
		for _, q := range []struct {
			name string
			ans  ledger.Answer
		}{{"tree", rep.Tree}, {"bytes", rep.Bytes}, {"signatures", rep.Signatures}, {"range", rep.Range}, {"anchored", rep.Anchored}, {"keys", rep.Keys}} {
			a.printf("%-11s %s%s\n", q.name, q.ans.Status, dash(q.ans.Detail))
		}
		a.printf("leaves      %d, %d signed, %d sealed; %d records opened\n", rep.Leaves, rep.Signed, rep.Sealed, rep.Records)
		for _, f := range rep.Findings {
			a.printf("FOUND       %s\n", f.Error())
		}
		a.printf("%s\n", verdict(code))
	}
	if code == 0 {
		return nil
	}
	return &exitError{code, nil}
}

func dash(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

func trust(t string) string {
	if t == ledger.TrustSelf {
		return "self: the verifier key was taken from the folder itself; give --key or --key-file"
	}
	return t
}

func verdict(code int) string {
	switch code {
	case 0:
		return "verified"
	case ExitTruncated:
		return "NOT verified: truncated or rolled back"
	case ExitUnsure:
		return "verified only as far as the folder is trusted"
	case ExitKeyless:
		return "NOT verified: a key is missing"
	}
	return "NOT verified: the evidence is damaged"
}

func (a *app) verifyProof(name, key string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if !evidence.IsProof(b) {
		return usagef("%s is neither a folder nor a proof file", name)
	}
	if key == "" {
		return usagef("a proof is checked against the log's verifier key: give --key or --key-file")
	}
	p, err := evidence.Verify(b, key)
	if errors.Is(err, evidence.ErrProof) {
		return err
	}
	if err != nil {
		return &usageError{err}
	}
	if a.json {
		return a.printJSON(struct {
			*evidence.Proved
			Frame    string `json:"frame"`
			Personal string `json:"personal,omitempty"`
		}{p, string(p.Frame), string(p.Personal)})
	}
	a.printf("verified: record %d of log %s, in the signed tree of %d leaves\nframe     %s\n", p.Index, p.Origin, p.Size, indent(p.Frame))
	if p.Personal != nil {
		a.printf("personal  %s\n", indent(p.Personal))
	} else {
		a.printf("personal  not disclosed; its hash is bound\n")
	}
	return nil
}

// indent shows JSON over several lines; what is no JSON is shown as it is.
func indent(b []byte) string {
	var out bytes.Buffer
	if json.Indent(&out, b, "", "  ") != nil {
		return strconv.Quote(string(b))
	}
	return out.String()
}
