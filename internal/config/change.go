package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Fixed returns the keys whose values differ between two configurations and
// cannot change while a server runs: what the book is, and what was opened at
// the start. Everything else can be reloaded.
func Fixed(was, is *File) []string {
	var keys []string
	differ := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			keys = append(keys, key)
		}
	}
	differ("data", was.Data, is.Data)
	differ("node", was.Node, is.Node)
	differ("origin", was.Origin, is.Origin)
	differ("keys", was.Keys, is.Keys)
	differ("book", was.Book, is.Book)
	differ("detect.verifiers", was.Detect.Verifiers, is.Detect.Verifiers)
	differ("apikeys.issuer", was.APIKeys.Issuer, is.APIKeys.Issuer)
	differ("health.address", was.Health.Address, is.Health.Address)
	differ("admin.socket", was.Admin.Socket, is.Admin.Socket)
	differ("admin.address", was.Admin.Address, is.Admin.Address)
	differ("valkey", was.Valkey, is.Valkey)
	return append(keys, fixedListeners(was.Listen, is.Listen)...)
}

// fixedListeners compares what a listener is; its certificates and whom it
// trusts can change.
func fixedListeners(was, is []Listener) (keys []string) {
	find := func(in []Listener, name string) *Listener {
		if i := slices.IndexFunc(in, func(l Listener) bool { return l.Name == name }); i >= 0 {
			return &in[i]
		}
		return nil
	}
	for i := range was {
		if find(is, was[i].Name) == nil {
			keys = append(keys, "listen."+was[i].Name)
		}
	}
	for i := range is {
		a, b := find(was, is[i].Name), &is[i]
		switch {
		case a == nil:
			keys = append(keys, "listen."+b.Name)
		case a.Address != b.Address:
			keys = append(keys, "listen."+b.Name+".address")
		case (a.TLS == nil) != (b.TLS == nil) || a.RedirectToHTTPS != b.RedirectToHTTPS || a.Plaintext != b.Plaintext || a.ProxyProtocol != b.ProxyProtocol:
			keys = append(keys, "listen."+b.Name)
		}
	}
	return keys
}

// Fingerprint is a digest of a part of the configuration, given by pointer, and
// of the content of the files that it names.
func (f *File) Fingerprint(part any) ([32]byte, error) {
	h := sha256.New()
	v := reflect.ValueOf(part).Elem()
	canonical{h, &f.source}.write("", v)
	var errs []error
	for _, name := range pathsIn(v) {
		b, err := readBounded(name)
		errs = append(errs, err)
		sum := sha256.Sum256(b)
		h.Write(sum[:])
	}
	return [32]byte(h.Sum(nil)), errors.Join(errs...)
}

// pathsIn lists the files that a value names, without changing it.
func pathsIn(v reflect.Value) (names []string) {
	switch {
	case v.Type() == typePath:
		if v.String() != "" {
			names = append(names, v.String())
		}
	case v.Kind() == reflect.Pointer && !v.IsNil():
		return pathsIn(v.Elem())
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			names = append(names, pathsIn(v.Index(i))...)
		}
	case v.Kind() == reflect.Map:
		for it := v.MapRange(); it.Next(); {
			names = append(names, pathsIn(it.Value())...)
		}
		slices.Sort(names)
	case v.Kind() == reflect.Struct && shapeOf(v.Type()) == shapeStruct:
		for _, f := range fieldsOf(v.Type()) {
			names = append(names, pathsIn(v.Field(f.index))...)
		}
	}
	return names
}

// Sources are the files and folders on whose content a reload depends, the
// configuration first. Certificates are not among them: they are looked after
// by themselves.
func (f *File) Sources() []string {
	names := []string{f.source.name}
	names = append(names, pathsIn(reflect.ValueOf(&f.Issuers).Elem())...)
	names = append(names, pathsIn(reflect.ValueOf(&f.Upstreams).Elem())...)
	if f.Admin.TLS != nil && f.Admin.TLS.ClientCA != "" {
		names = append(names, string(f.Admin.TLS.ClientCA))
	}
	names = append(names, pathsIn(reflect.ValueOf(&f.Points).Elem())...)
	if f.TokenService != nil {
		names = append(names, pathsIn(reflect.ValueOf(f.TokenService))...)
	}
	if f.Policies != nil {
		names = append(names, pathsIn(reflect.ValueOf(f.Policies))...)
	}
	for i := range f.Sinks {
		s := f.Sinks[i]
		s.Path = "" // it is written
		names = append(names, pathsIn(reflect.ValueOf(&s))...)
	}
	if f.Detect.Webhook != nil {
		names = append(names, pathsIn(reflect.ValueOf(f.Detect.Webhook))...)
	}
	return names
}

// maxWatched bounds how many files below the folders are looked at.
const maxWatched = 10_000

// ContentOf is a digest of all files and of all that is in folders among the
// names. A file that is not there counts as such.
func ContentOf(names []string) ([32]byte, error) {
	h := sha256.New()
	n := 0
	add := func(name string) error {
		if n++; n > maxWatched {
			return fmt.Errorf("more than %d files to watch", maxWatched)
		}
		file, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(h, "%q none\n", name)
			return nil
		}
		if err != nil {
			return err
		}
		defer file.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, io.LimitReader(file, maxFileSize+1)); err != nil {
			return err
		}
		_, err = fmt.Fprintf(h, "%q %x\n", name, sum.Sum(nil))
		return err
	}
	for _, root := range names {
		if err := eachFile(root, add); err != nil {
			return [32]byte{}, err
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

// eachFile calls do for a file, or for all visible files below a folder.
// Symbolic links are followed where the name itself is one.
func eachFile(root string, do func(name string) error) error {
	st, err := os.Stat(root)
	if err != nil || !st.IsDir() {
		return do(root)
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return err
	}
	return filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone since it was listed: the next look will tell
		case err != nil:
			return err
		case name == root:
			return nil
		case strings.HasPrefix(e.Name(), ".") && e.IsDir():
			return fs.SkipDir
		case strings.HasPrefix(e.Name(), ".") || e.IsDir():
			return nil
		}
		return do(name)
	})
}
