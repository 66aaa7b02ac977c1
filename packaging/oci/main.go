// Oci writes an OCI image layout of Gatebook without a container engine: from
// static binaries and a bundle of certificate authorities, by the standard
// library alone. The same input always gives the same digests.
//
//	go run ./packaging/oci -binary amd64=PATH -binary arm64=PATH -o DIR
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "oci:", err)
		os.Exit(1)
	}
}

// options is what an image is made of.
type options struct {
	out      string
	binaries map[string]string // architecture to file
	ca       string            // PEM bundle
	version  string
	source   string    // URL of the project
	created  time.Time // of everything in it
}

func run(args []string) error {
	o := options{binaries: map[string]string{}}
	f := flag.NewFlagSet("oci", flag.ContinueOnError)
	f.StringVar(&o.out, "o", "", "folder of the layout; must be new or empty")
	f.StringVar(&o.ca, "ca", "/etc/ssl/certs/ca-certificates.crt", "certificate authorities, PEM")
	f.StringVar(&o.version, "version", "", "version of the binaries; also the tag in the layout")
	f.StringVar(&o.source, "source", "https://github.com/gatebook/gatebook", "where the source is")
	f.Func("binary", "ARCH=PATH of a static Linux binary; once for each architecture", func(s string) error {
		arch, path, ok := strings.Cut(s, "=")
		if _, known := machines[arch]; !ok || !known || o.binaries[arch] != "" {
			return fmt.Errorf("%q is not ARCH=PATH, with amd64 or arm64, each once", s)
		}
		o.binaries[arch] = path
		return nil
	})
	f.SetOutput(io.Discard) // errors are printed once, by main
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		f.SetOutput(os.Stderr)
		f.Usage()
		return err
	} else if err != nil {
		return fmt.Errorf("%w; see -help", err)
	}
	if o.out == "" || o.version == "" || len(o.binaries) == 0 || f.NArg() > 0 {
		return fmt.Errorf("-o, -version and -binary are needed, and nothing else")
	}
	var err error
	if o.created, err = sourceDate(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	digest, err := write(o)
	if err != nil {
		return err
	}
	fmt.Println(digest)
	return nil
}

// sourceDate is the time that reproducible builds give to everything.
func sourceDate(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	sec, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || sec < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q; it is a number of seconds since 1970", epoch)
	}
	return time.Unix(sec, 0).UTC(), nil
}
