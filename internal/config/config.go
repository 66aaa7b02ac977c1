// Package config reads the one configuration file: it decodes strictly,
// applies defaults, and finds everything that is wrong in one run, each
// problem with its place in the file and a hint. It knows the words of the
// file and nothing of the parts that they configure.
package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
)

// DefaultFile is where the configuration is looked for when no file is named.
const DefaultFile = "/etc/gatebook/gatebook.yaml"

// Load reads and checks a configuration file. If the file can be read but not
// used, the error is a *Problems. Load looks at no other file; see Check.
func Load(path string) (*File, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	f, problems := Parse(path, data)
	return f, problems.err()
}

// readBounded reads no more of a file than shows that it is too large.
func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxFileSize+1))
}

// Parse checks a configuration given as text. The name is for messages, and
// relative file names are resolved against its directory. Exactly one of the
// results is nil.
func Parse(name string, data []byte) (*File, *Problems) {
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		dir = filepath.Dir(name)
	}
	r := newReporter(name, "")
	root, text := readYAML(r, data)
	if root == nil {
		return nil, r.problems()
	}
	d := &decoder{reporter: r, at: map[string]position{}, keyAt: map[string]position{}}
	f := new(File)
	d.mapping(root, position{1, 1}, "", reflect.ValueOf(f).Elem())
	relative := resolvePaths(dir, f)
	f.setDefaults()
	d.validate(f)
	if p := r.problems(); p != nil {
		return nil, p
	}
	f.source = source{name: name, dir: dir, text: text, at: d.at, keyAt: d.keyAt, relative: relative}
	return f, nil
}

// setDefaults completes what depends on other values; defaults of single
// values come from the table while decoding.
func (f *File) setDefaults() {
	for i := range f.Issuers {
		f.Issuers[i].applyPreset()
	}
	for name, l := range f.Limits {
		if l.Burst == 0 {
			l.Burst = l.Rate.Count
			f.Limits[name] = l
		}
	}
	f.setIdentityDefaults()
	f.setSinkDefaults()
	var serving []string
	for i := range f.Listen {
		if l := &f.Listen[i]; !l.RedirectToHTTPS && l.Name != "" {
			serving = append(serving, l.Name)
		}
	}
	for i := range f.Routes {
		if len(f.Routes[i].Listeners) == 0 {
			f.Routes[i].Listeners = serving
		}
	}
}

// setIdentityDefaults names the audience and the issuer of signed identities.
func (f *File) setIdentityDefaults() {
	if f.Identity.Issuer == "" {
		f.Identity.Issuer = "https://" + f.Origin
	}
	name := func(id *Identity, upstream string) {
		if id != nil && id.JWT != nil && id.JWT.Audience == "" {
			id.JWT.Audience = upstream
		}
	}
	for u := range f.Upstreams {
		name(f.Upstreams[u].Identity, u)
	}
	for i := range f.Routes {
		name(f.Routes[i].Identity, f.Routes[i].Upstream)
	}
}

// resolvePaths makes all file names absolute and returns those that were not.
func resolvePaths(dir string, f *File) map[Path]bool {
	relative := map[Path]bool{}
	eachPath(reflect.ValueOf(f).Elem(), func(v reflect.Value) {
		if p := v.String(); p != "" && !filepath.IsAbs(p) {
			v.SetString(filepath.Join(dir, p))
			relative[Path(v.String())] = true
		}
	})
	return relative
}

// eachPath calls do, which may set it, for every Path within v.
func eachPath(v reflect.Value, do func(reflect.Value)) {
	switch {
	case v.Type() == typePath:
		do(v)
	case v.Kind() == reflect.Pointer && !v.IsNil():
		eachPath(v.Elem(), do)
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			eachPath(v.Index(i), do)
		}
	case v.Kind() == reflect.Map:
		for it := v.MapRange(); it.Next(); {
			e := reflect.New(v.Type().Elem()).Elem() // values in a map cannot be set
			e.Set(it.Value())
			eachPath(e, do)
			v.SetMapIndex(it.Key(), e)
		}
	case shapeOf(v.Type()) == shapeStruct && v.Kind() == reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			eachPath(v.Field(f.index), do)
		}
	}
}

// Name returns the name under which the file was read.
func (f *File) Name() string { return f.source.name }

// Dir returns the absolute directory of the file.
func (f *File) Dir() string { return f.source.dir }
