package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Digest returns the id of the snapshot that this configuration declares: the
// first 32 hex digits of a SHA-256 over all effective values and over extra,
// in the order given (policy files, redaction rules). It does not depend on
// the order of keys, on comments, on defaults being spelled out, or on the
// directory of the file.
func (f *File) Digest(extra ...[]byte) string {
	h := sha256.New()
	h.Write([]byte("gatebook/v1/snapshot\n"))
	c := canonical{h, &f.source}
	c.write("", reflect.ValueOf(f).Elem())
	for _, e := range extra {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(e)))
		h.Write(n[:])
		h.Write(e)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// canonical writes values as lines "path value", keys in order of their names.
type canonical struct {
	h   hash.Hash
	src *source
}

func (c canonical) write(path string, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer && v.IsNil():
		return
	case v.Kind() == reflect.Pointer:
		c.line(path, "{}")
		c.write(path, v.Elem())
		return
	}
	switch shapeOf(v.Type()) {
	case shapeStruct:
		fields := fieldsOf(v.Type())
		slices.SortFunc(fields, func(a, b field) int { return strings.Compare(a.key, b.key) })
		for _, f := range fields {
			c.write(join(path, f.key), v.Field(f.index))
		}
	case shapeMap:
		keys := map[string]reflect.Value{}
		for it := v.MapRange(); it.Next(); {
			keys[it.Key().String()] = it.Value()
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			// Quoted, since a role's name may hold dots.
			c.line(path, "key "+strconv.Quote(k))
			c.write(path+"."+strconv.Quote(k), keys[k])
		}
	case shapeList:
		c.line(path, "["+strconv.Itoa(v.Len())+"]")
		for i := range v.Len() {
			c.write(path+"["+strconv.Itoa(i)+"]", v.Index(i))
		}
	case shapeScalar:
		c.line(path, strconv.Quote(c.text(v)))
	case shapeLater:
	}
}

func (c canonical) line(path, value string) {
	c.h.Write([]byte(path + " " + value + "\n"))
}

func (c canonical) text(v reflect.Value) string {
	s := fmt.Sprint(v.Interface())
	if v.Type() == typePath && c.src.relative[Path(s)] {
		if rel, err := filepath.Rel(c.src.dir, s); err == nil {
			return rel
		}
	}
	return s
}
