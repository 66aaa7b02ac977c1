//go:build !unix

package keys

import (
	"errors"
	"fmt"
	"os"
)

const noFollow = 0

// checkPrivate refuses everything: without Unix owners and modes nobody can
// say who else reads the file.
func checkPrivate(_ *os.File, name string, _ os.FileMode) error {
	return fmt.Errorf("%s: key files need Unix file permissions: %w", name, errors.ErrUnsupported)
}

func lockShared(f *os.File) (bool, error) {
	return false, fmt.Errorf("%s: key files need Unix file locks: %w", f.Name(), errors.ErrUnsupported)
}
