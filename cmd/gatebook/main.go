// Gatebook is an identity-aware API proxy whose access log stands up in an
// audit.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/gatebook/gatebook/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	code := cli.Run(ctx, os.Args[1:], cli.IO{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
