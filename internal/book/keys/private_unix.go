//go:build unix

package keys

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// noFollow makes an open fail on a symbolic link in the last place.
const noFollow = syscall.O_NOFOLLOW

// checkPrivate refuses an open file or directory that anyone else can use:
// want is the widest mode allowed, 0600 or 0700.
func checkPrivate(f *os.File, name string, want os.FileMode) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if want == 0o700 && !fi.IsDir() {
		return fmt.Errorf("%s is not a directory", name)
	}
	if want == 0o600 && !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file (%s)", name, fi.Mode().Type())
	}
	if extra := fi.Mode().Perm() &^ want; extra != 0 {
		return fmt.Errorf("%s has mode %04o and may be used by others; run: chmod %04o %s",
			name, fi.Mode().Perm(), want, name)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: cannot tell its owner on this file system", name)
	}
	if uid := os.Geteuid(); int(st.Uid) != uid {
		return fmt.Errorf("%s belongs to user %d, but this process runs as user %d; run this as its owner: runuser -u %s -- gatebook ... (if the gate itself is to run as user %d: chown %d %s)",
			name, st.Uid, uid, userName(st.Uid), uid, uid, name)
	}
	return nil
}

// userName is what a user is called, or the number of one without a name.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// lockShared takes the lock that keeps writers of a key store away, if none
// has the file; it ends when f is closed.
func lockShared(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return true, nil
}
