package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/server"
)

func (a *app) backupCommand() *cobra.Command {
	var withKeys bool
	c := &cobra.Command{
		Use:   "backup DIR",
		Short: "Copy the book, as it is at one moment, to a new folder",
		Long: `Copy the book, as it is at one moment, to DIR, which must be new or empty. A
running server goes on meanwhile. DIR can be verified and read like the data
folder itself. The wrapping keys are left out unless asked for: who has both can
read everything, so keep them apart.`,
		Example: `  gatebook backup /srv/backup/gate-1-2026-11-23
  gatebook verify /srv/backup/gate-1-2026-11-23 --key-file log.vkey`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return a.backup(c.Context(), args[0], withKeys) },
	}
	c.Flags().BoolVar(&withKeys, "with-keys", false, "copy the wrapping keys too")
	return c
}

func (a *app) backup(ctx context.Context, dir string, withKeys bool) error {
	f, err := a.load()
	if err != nil {
		return err
	}
	if inside(string(f.Data), dir) {
		return usagef("%s is inside of the data folder %s, with which it would be lost; name a folder elsewhere", dir, f.Data)
	}
	archive, out := io.Pipe()
	go func() { out.CloseWithError(writeBackup(ctx, f, out, withKeys)) }()
	info, err := server.SaveBackup(archive, dir)
	archive.CloseWithError(errors.New("the backup was not taken"))
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(info)
	}
	a.printf("backed up %d leaves of %s to %s, %d files\n", info.Leaves, info.Origin, dir, len(info.Files))
	if !info.WithKeys {
		a.printf("the wrapping keys in %s are not in it; without them it can be verified, not read\n", f.Keys.Wrapper.File)
	}
	return nil
}

// inside tells whether a path is a folder's or leads into it, links followed as
// far as they are there.
func inside(folder, name string) bool {
	root, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return false
	}
	root, err1 := filepath.Abs(root)
	name, err2 := filepath.Abs(name)
	if err1 != nil || err2 != nil {
		return false
	}
	for at := name; ; at = filepath.Dir(at) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			rel, err := filepath.Rel(root, filepath.Join(real, strings.TrimPrefix(name, at)))
			return err == nil && filepath.IsLocal(rel)
		}
		if at == filepath.Dir(at) {
			return false
		}
	}
}

// writeBackup asks the running server, or copies the book itself.
func writeBackup(ctx context.Context, f *config.File, w io.Writer, withKeys bool) error {
	if c := dial(ctx, f); c != nil {
		return c.backup(w, withKeys)
	}
	return server.BackupOffline(ctx, f, w, withKeys)
}

func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore DIR",
		Short: "Put a backup where the configuration says that the data is",
		Long: `Put the backup DIR where the configuration says that the data is; the data
folder must be new or empty. Every file is compared with the backup's list. Keys
that the backup has are restored if there are none. If it is interrupted, run it
again. What root restores belongs to the owner of the data folder, or of the
folder that it is made in.

A restored book can be read and verified. It does not go on under its old name,
for what was recorded after the backup would be signed a second time; see
"gatebook book new --help".`,
		Example: `  gatebook restore /srv/backup/gate-1-2026-11-23 -c gatebook.yaml
  gatebook book new --reason restored --continues last.checkpoint -c gatebook.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f, err := a.load()
			if err != nil {
				return err
			}
			info, err := server.Restore(f, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(info)
			}
			a.printf("restored %d leaves of %s, as of %s\n", info.Leaves, info.Origin, info.Time.Format(time.RFC3339))
			switch {
			case info.Keys:
				a.printf("its wrapping keys are in %s\n", f.Keys.Wrapper.File)
			case info.WithKeys:
				a.printf("its wrapping keys were not restored, since there are some in %s; those must be of the same book\n", f.Keys.Wrapper.File)
			}
			if info.HasState() {
				a.printf("API keys and revoked tokens are as they were then: \"gatebook apikey list\" shows the keys; revoke again what was revoked since\n")
			}
			a.printf("next: gatebook book new --reason restored --continues CHECKPOINT\n")
			return nil
		},
	}
}

func (a *app) bookCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "book",
		Short: "Make the first book, or begin a new log where the old one cannot go on",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.bookCreateCommand(), a.bookNewCommand())
	return c
}

func (a *app) bookNewCommand() *cobra.Command {
	var reason, continues string
	c := &cobra.Command{
		Use:   "new --reason WORD",
		Short: "Begin a new log, under a new key, that names the old one and what is lost",
		Long: `Begin a new log, under a new key and hence a new name, in the data folder of one
that cannot go on. The old log's files stay as evidence in the folder "before";
its records can still be read. The first record of the new log names the old
one, its newest known checkpoint, the reason, and how many leaves are lost.

WORD is one of: ` + strings.Join(server.RenewReasons(), ", ") + `.
--continues takes the newest checkpoint of the old log that anybody has kept;
a restored book demands it.`,
		Example: `  gatebook book new --reason restored --continues last.checkpoint
  gatebook book new --reason damaged`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.bookNew(c.Context(), reason, continues) },
	}
	c.Flags().StringVar(&reason, "reason", "", "why, in one word")
	c.Flags().StringVar(&continues, "continues", "", "file with a checkpoint of the old log")
	return c
}

func (a *app) bookNew(ctx context.Context, reason, continues string) error {
	if !slices.Contains(server.RenewReasons(), reason) {
		return usagef("--reason must be one of %s", strings.Join(server.RenewReasons(), ", "))
	}
	f, err := a.load()
	if err != nil {
		return err
	}
	var saved []byte
	if continues != "" {
		if saved, err = os.ReadFile(continues); err != nil {
			return &usageError{err}
		}
	}
	r, err := server.RenewBook(ctx, f, reason, saved)
	if err != nil {
		return err
	}
	keyFile, err := replaceKey(f)
	if err != nil {
		return fmt.Errorf("the new log is ready, but its verifier key could not be put beside the configuration; copy %s there yourself: %w", server.KeyFile(f), err)
	}
	if a.json {
		return a.printJSON(r)
	}
	a.printf("new log %s\n", r.New)
	if r.Origin != "" {
		a.printf("continues %s, whose files are in %s\n", r.Origin, r.Folder())
	}
	switch {
	case r.Damage != "":
		a.printf("the old log cannot tell all that it held: %s\n", r.Damage)
	case r.Lost() > 0:
		a.printf("%d of its %d leaves are lost\n", r.Lost(), r.Known)
	}
	a.printf("give the new verifier key to whoever verifies: it is in %s\n", keyFile)
	return nil
}

// replaceKey puts the new log's verifier key beside the configuration, where
// init left the old one, which is kept under the incarnation of its log.
func replaceKey(f *config.File) (string, error) {
	key, err := os.ReadFile(server.KeyFile(f))
	if err != nil {
		return "", err
	}
	name := filepath.Join(f.Dir(), "log.vkey")
	if have, err := os.ReadFile(name); err == nil && !bytes.Equal(have, key) {
		if err := os.Rename(name, filepath.Join(f.Dir(), "log-"+incarnation(have)+".vkey")); err != nil {
			return "", err
		}
	}
	return name, os.WriteFile(name, key, 0o644)
}

// incarnation is the last part of the name of the log that a verifier key is of,
// or for what is none a digest of it.
func incarnation(vkey []byte) string {
	origin, _, _ := strings.Cut(string(vkey), "+")
	last := path.Base(origin)
	if b, err := hex.DecodeString(last); err == nil && len(b) == 8 {
		return last
	}
	sum := sha256.Sum256(vkey)
	return hex.EncodeToString(sum[:8])
}
