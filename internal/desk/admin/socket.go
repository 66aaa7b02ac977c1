package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into a socket address (unix(7)).
const maxSocketPath = 107

// shortened calls do with a name of the socket at path that fits into a socket
// address. A path that does not fit is reached through a handle on its folder.
func shortened(path string, do func(name string) error) error {
	if len(path) <= maxSocketPath {
		return do(path)
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("admin socket: %w", err)
	}
	defer dir.Close()
	name := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path))
	if _, err := os.Stat(filepath.Dir(name)); err != nil {
		return fmt.Errorf("admin socket: the path %s has %d bytes, an address takes %d, and without /proc there is no way around that; choose a shorter data folder or set admin: {socket: false}", path, len(path), maxSocketPath)
	}
	if len(name) > maxSocketPath {
		return fmt.Errorf("admin socket: the name of %s is too long", path)
	}
	return do(name)
}

// socket is a listener that takes its file away with it.
type socket struct {
	*net.UnixListener
	path string
}

// Close implements net.Listener.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	if gone := os.Remove(s.path); !errors.Is(gone, fs.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// ListenSocket opens the admin socket at path, mode 0600. A socket that is
// left over from a dead process is replaced; the caller holds the book's lock,
// so no living one can be behind it.
func ListenSocket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var l *net.UnixListener
	err := shortened(path, func(name string) (err error) {
		old := unix.Umask(0o177)
		defer unix.Umask(old)
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"}); err != nil {
			return fmt.Errorf("admin socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name may be one that means another file by then
	return &socket{l, path}, nil
}

// DialSocket connects to the admin socket at path.
func DialSocket(ctx context.Context, path string) (c net.Conn, err error) {
	err = shortened(path, func(name string) (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, "unix", name)
		return err
	})
	return c, err
}

// peer is who the kernel says is at the other end of a socket. Whoever could
// open it holds all roles.
func peer(c net.Conn) *Caller {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return nil
	}
	return Local("socket", fmt.Sprintf("uid:%d", cred.Uid), Roles()...)
}
