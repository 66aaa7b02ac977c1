package authz

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on what is read. They are far above real policy sets and keep a
// wrong directory from taking the process down.
const (
	maxFiles     = 2000
	maxFileBytes = 1 << 20
	maxBytes     = 16 << 20
	maxDepth     = 100 // of brackets: Cedar's parser and evaluator recurse
)

// schemaFile is the schema that Dir may hold.
const schemaFile = "schema.cedarschema"

// file is one text of a bundle. Name has forward slashes and is relative to
// the directory.
type file struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// dir reads files of one directory tree. It works through os.Root, so a
// symbolic link may lead to another place inside the tree (as Kubernetes
// mounts do) and never out of it.
type dir struct {
	root  *os.Root
	path  string
	total int
}

func openDir(name string) (*dir, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("cannot open the directory: %w", err)
	}
	return &dir{root: root, path: name}, nil
}

// files returns all files with the ending, sorted by name. Names that start
// with a dot are left out.
func (d *dir) files(ending string) ([]file, error) {
	var out []file
	err := fs.WalkDir(d.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := path.Base(name); base != "." && strings.HasPrefix(base, ".") {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.IsDir() || !strings.HasSuffix(name, ending) {
			return nil
		}
		if len(out) == maxFiles {
			return fmt.Errorf("more than %d files %q", maxFiles, "*"+ending)
		}
		text, err := d.read(name)
		if err != nil {
			return err
		}
		out = append(out, file{name, text})
		return nil
	})
	slices.SortFunc(out, func(a, b file) int { return strings.Compare(a.Name, b.Name) })
	return out, err
}

// read returns one regular file.
func (d *dir) read(name string) (string, error) {
	info, err := d.root.Stat(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(d.path, name), err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s: not a regular file", filepath.Join(d.path, name))
	}
	f, err := d.root.Open(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(d.path, name), err)
	}
	defer f.Close()
	text, err := readText(f)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(d.path, name), err)
	}
	if d.total += len(text); d.total > maxBytes {
		return "", fmt.Errorf("%s: more than %d bytes in all", d.path, maxBytes)
	}
	return text, nil
}

// readFile reads a file that the configuration names.
func readFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readText(f)
}

func readText(r io.Reader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFileBytes+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFileBytes {
		return "", fmt.Errorf("larger than %d bytes", maxFileBytes)
	}
	if !utf8.Valid(b) {
		return "", errors.New("not UTF-8")
	}
	return string(b), nil
}

// tooDeep reports where brackets are nested more than maxDepth deep, outside
// strings and comments: such a text could exhaust the stack of the parser.
func tooDeep(text string) (offset int, deep bool) {
	depth := 0
	for i := 0; i < len(text); {
		if n := opaque(text[i:]); n > 0 {
			i += n
			continue
		}
		switch text[i] {
		case '(', '[', '{':
			if depth++; depth > maxDepth {
				return i, true
			}
		case ')', ']', '}':
			depth--
		}
		i++
	}
	return 0, false
}

// opaque is the length of the string or comment that text starts with, 0 if it
// starts with neither. One without an end reaches to the end of the line, or
// for a block comment of the text; the parser refuses it.
func opaque(text string) int {
	switch {
	case strings.HasPrefix(text, "//"):
		return lineEnd(text)
	case strings.HasPrefix(text, "/*"):
		if n := strings.Index(text[2:], "*/"); n >= 0 {
			return n + 4
		}
		return len(text)
	case text[0] == '"':
		end := lineEnd(text)
		for i := 1; i < end; i++ {
			switch text[i] {
			case '\\':
				i++
			case '"':
				return i + 1
			}
		}
		return end
	}
	return 0
}

// lineEnd is the length of the first line, its line break excluded.
func lineEnd(text string) int {
	if n := strings.IndexByte(text, '\n'); n >= 0 {
		return n
	}
	return len(text)
}

// place turns a byte offset into line and column, both from 1.
func place(text string, offset int) (line, column int) {
	before := text[:offset]
	start := strings.LastIndexByte(before, '\n') + 1
	return strings.Count(before, "\n") + 1, utf8.RuneCountInString(before[start:]) + 1
}
