package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gatebook/gatebook/internal/server"
)

// manCommand writes the manual pages. They are made from the commands
// themselves when a package is built, so no copy can fall behind; and by this
// program, so that making them needs no further dependency.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the manual pages into a folder",
		Example: "  gatebook man /usr/local/share/man/man1",
		Hidden:  true, // for packagers
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeMan(args[0], c.Root())
		},
	}
}

// writeMan writes the page of a command and those of the commands below it.
func writeMan(dir string, c *cobra.Command) error {
	if c.Name() == "help" || c.Hidden {
		return nil
	}
	name := filepath.Join(dir, manName(c)+".1")
	if err := os.WriteFile(name, []byte(manPage(c)), 0o644); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w; run this as a user who may write there", err)
		}
		return err
	}
	for _, sub := range c.Commands() {
		if err := writeMan(dir, sub); err != nil {
			return err
		}
	}
	return nil
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is one page in the man macros of man(7), without a date, so that the
// same commands always make the same page.
func manPage(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"Gatebook %s\" \"Gatebook manual\"\n.nh\n.ad l\n", strings.ToUpper(roff(manName(c))), roff(server.Version().Version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(manName(c)), roff(c.Short))
	b.WriteString(".SH SYNOPSIS\n")
	if c.Runnable() && !c.HasAvailableSubCommands() { // those above others only help
		fmt.Fprintf(&b, ".B %s\n", roff(c.UseLine()))
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, ".br\n.B %s\nCOMMAND [flags]\n", roff(c.CommandPath()))
	}
	b.WriteString(".SH DESCRIPTION\n")
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	for i, paragraph := range strings.Split(strings.TrimSpace(long), "\n\n") {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		b.WriteString(roffText(paragraph))
	}
	manCommands(&b, c)
	manFlags(&b, "OPTIONS", c.NonInheritedFlags().FlagUsagesWrapped(0))
	manFlags(&b, "GLOBAL OPTIONS", c.InheritedFlags().FlagUsagesWrapped(0))
	if c.Example != "" {
		fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s.fi\n", roffText(c.Example))
	}
	manSeeAlso(&b, c)
	return b.String()
}

func manCommands(b *strings.Builder, c *cobra.Command) {
	if !c.HasAvailableSubCommands() {
		return
	}
	b.WriteString(".SH COMMANDS\n")
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			fmt.Fprintf(b, ".TP\n.BR %s (1)\n%s\n", roff(manName(sub)), roff(sub.Short))
		}
	}
}

// manFlags turns the help text of flags, one line each, into a list: name and
// type, three spaces or more, meaning.
func manFlags(b *strings.Builder, title, usages string) {
	if usages == "" {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	for line := range strings.Lines(usages) {
		name, meaning, _ := strings.Cut(strings.TrimSpace(line), "   ")
		fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(name), roff(strings.TrimSpace(meaning)))
	}
}

func manSeeAlso(b *strings.Builder, c *cobra.Command) {
	if !c.HasParent() {
		b.WriteString(".SH FILES\n.TP\n.I /etc/gatebook/gatebook.yaml\nThe configuration, unless \\fB\\-\\-config\\fR names another.\n")
		return
	}
	fmt.Fprintf(b, ".SH SEE ALSO\n.BR %s (1)\n", roff(manName(c.Parent())))
}

// roffText is text of several lines; none of them can be taken for a request.
func roffText(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(roff(strings.TrimSuffix(line, "\n")) + "\n")
	}
	return b.String()
}

// roff escapes one line: backslashes, hyphens that people copy, and a dot or an
// apostrophe in the first place.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `'`, `\(aq`, "`", "\\(ga").Replace(line)
	if strings.HasPrefix(line, ".") {
		line = `\&` + line
	}
	return line
}
