package book

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// owner is whose files are to be that root makes for somebody else. nil: they
// stay the maker's.
type owner struct{ uid, gid int }

// ownerFor is the owner of a folder, or of the nearest one above that is there,
// if root asks and it is another's.
func ownerFor(dir string) (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for {
		st, err := os.Stat(dir)
		if err == nil {
			sys, ok := st.Sys().(*syscall.Stat_t)
			if !ok {
				return nil, fmt.Errorf("%s: cannot tell its owner on this file system", dir)
			}
			if sys.Uid == 0 {
				return nil, nil
			}
			return &owner{int(sys.Uid), int(sys.Gid)}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			return nil, err
		}
		dir = filepath.Dir(dir)
	}
}

// take gives a name to the owner, a link itself and not what it points to.
func (o *owner) take(name string) error {
	if o == nil {
		return nil
	}
	return os.Lchown(name, o.uid, o.gid)
}

// takeFolders gives a folder and those below it to the owner.
func (o *owner) takeFolders(root string) error {
	if o == nil {
		return nil
	}
	return filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if e.Name() == lostFound {
			return fs.SkipDir
		}
		return o.take(name)
	})
}

// takeFile gives a file that was just made to the owner.
func (o *owner) takeFile(f *os.File) error {
	if o == nil {
		return nil
	}
	return f.Chown(o.uid, o.gid)
}
