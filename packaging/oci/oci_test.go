package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// bareELF is the smallest file that is a static program by its header.
func bareELF(t *testing.T, machine elf.Machine) string {
	t.Helper()
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64,
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	return put(t, b.Bytes())
}

func put(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// certificate makes a certificate and its key, both PEM.
func certificate(t *testing.T, name string, ca bool) (cert, key []byte) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: ca, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// bare is the options of an image of programs that do nothing.
func bare(t *testing.T) options {
	ca, _ := certificate(t, "one", true)
	return options{
		out: filepath.Join(t.TempDir(), "image"), ca: put(t, ca), version: "1.2.3", source: "https://example.com", created: time.Unix(1700000000, 0).UTC(),
		binaries: map[string]string{"amd64": bareELF(t, elf.EM_X86_64), "arm64": bareELF(t, elf.EM_AARCH64)},
	}
}

// contents is every file of a folder by its name.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		out[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The same input makes the same image; another time, another one.
func TestReproducible(t *testing.T) {
	o := bare(t)
	one, _ := certificate(t, "one", true)
	two, _ := certificate(t, "two", true)
	o.ca = put(t, slices.Concat(one, two))
	first, err := write(o)
	if err != nil {
		t.Fatal(err)
	}
	again := o
	again.out = filepath.Join(t.TempDir(), "image")
	// Order, comments and doubles are the machine's, not the bundle's.
	again.ca = put(t, slices.Concat([]byte("# authorities\n"), two, one, two))
	second, err := write(again)
	if err != nil {
		t.Fatal(err)
	}
	a, b := contents(t, o.out), contents(t, again.out)
	if first != second || len(a) != len(b) {
		t.Fatalf("%s with %d files, then %s with %d", first, len(a), second, len(b))
	}
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s differs", name)
		}
	}
	later := o
	later.out, later.created = filepath.Join(t.TempDir(), "image"), o.created.Add(time.Second)
	if third, err := write(later); err != nil || third == first {
		t.Errorf("a second later: %s, %v", third, err)
	}
}

// opened is a layout that is checked while it is read.
type opened struct {
	t    *testing.T
	dir  string
	seen map[string]bool
}

func (o *opened) blob(d descriptor) []byte {
	o.t.Helper()
	b, err := os.ReadFile(filepath.Join(o.dir, "blobs", "sha256", strings.TrimPrefix(d.Digest, "sha256:")))
	if err != nil {
		o.t.Fatal(err)
	}
	if digestOf(b) != d.Digest || int64(len(b)) != d.Size {
		o.t.Errorf("blob %s: digest %s, %d bytes of %d", d.Digest, digestOf(b), len(b), d.Size)
	}
	o.seen[strings.TrimPrefix(d.Digest, "sha256:")] = true
	return b
}

func (o *opened) decode(b []byte, v any) {
	o.t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		o.t.Fatalf("%s: %v", b, err)
	}
}

// images returns the manifest and configuration of each architecture.
func (o *opened) images(version string) map[string]image {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join(o.dir, "index.json"))
	if err != nil {
		o.t.Fatal(err)
	}
	var top, all index
	o.decode(text, &top)
	if len(top.Manifests) != 1 || top.Manifests[0].MediaType != typeIndex || top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != version {
		o.t.Fatalf("index.json: %s", text)
	}
	o.decode(o.blob(top.Manifests[0]), &all)
	out := map[string]image{}
	for _, d := range all.Manifests {
		var m manifest
		var c image
		o.decode(o.blob(d), &m)
		o.decode(o.blob(m.Config), &c)
		if d.Platform == nil || *d.Platform != c.platform || m.SchemaVersion != 2 || d.MediaType != typeManifest || m.Config.MediaType != typeConfig {
			o.t.Errorf("image %+v of %+v", d, c)
		}
		if len(m.Layers) != len(c.RootFS.DiffIDs) || len(m.Layers) != len(c.History) {
			o.t.Fatalf("%d layers, %d diff ids, %d of history", len(m.Layers), len(c.RootFS.DiffIDs), len(c.History))
		}
		for i, l := range m.Layers {
			if got := digestOf(gunzip(o.t, o.blob(l))); got != c.RootFS.DiffIDs[i] || l.MediaType != typeLayer {
				o.t.Errorf("layer %d: diff id %s, says %s", i, got, c.RootFS.DiffIDs[i])
			}
		}
		out[c.Architecture] = c
	}
	return out
}

// layers returns the archives of one architecture, in order.
func (o *opened) layers(arch string) [][]byte {
	o.t.Helper()
	var top, all index
	text, err := os.ReadFile(filepath.Join(o.dir, "index.json"))
	if err != nil {
		o.t.Fatal(err)
	}
	o.decode(text, &top)
	o.decode(o.blob(top.Manifests[0]), &all)
	var out [][]byte
	for _, d := range all.Manifests {
		if d.Platform.Architecture != arch {
			continue
		}
		var m manifest
		o.decode(o.blob(d), &m)
		for _, l := range m.Layers {
			out = append(out, gunzip(o.t, o.blob(l)))
		}
	}
	return out
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLayout(t *testing.T) {
	o := bare(t)
	if _, err := write(o); err != nil {
		t.Fatal(err)
	}
	l := &opened{t, o.out, map[string]bool{}}
	images := l.images("1.2.3")
	for _, arch := range []string{"amd64", "arm64"} {
		c := images[arch].Config
		if c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/usr/bin/gatebook"}) || c.StopSignal != "SIGTERM" || c.Labels["org.opencontainers.image.version"] != "1.2.3" {
			t.Errorf("%s: %+v", arch, c)
		}
		l.checkFiles(arch)
	}
	blobs, err := os.ReadDir(filepath.Join(o.out, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if !l.seen[b.Name()] {
			t.Errorf("blob %s belongs to nothing", b.Name())
		}
	}
	marker, err := os.ReadFile(filepath.Join(o.out, "oci-layout"))
	if err != nil || string(marker) != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s, %v", marker, err)
	}
}

// checkFiles demands that nothing is in the image but what is known, that only
// two folders can be written to, and that folders come before what is in them.
func (o *opened) checkFiles(arch string) {
	o.t.Helper()
	var writable, programs []string
	dirs := map[string]bool{"./": true}
	for _, layer := range o.layers(arch) {
		r := tar.NewReader(bytes.NewReader(layer))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				o.t.Fatal(err)
			}
			if parent := filepath.Dir(strings.TrimSuffix(h.Name, "/")) + "/"; !dirs[parent] {
				o.t.Errorf("%s: %s comes before its folder", arch, h.Name)
			}
			if h.Typeflag == tar.TypeDir {
				dirs[h.Name] = true
			} else if h.Mode&0o111 != 0 {
				programs = append(programs, h.Name)
			}
			if h.Uid != 0 || h.Mode&0o022 != 0 {
				writable = append(writable, h.Name)
			}
			if h.Mode&0o6000 != 0 {
				o.t.Errorf("%s: %s has mode %04o", arch, h.Name, h.Mode)
			}
		}
	}
	slices.Sort(writable)
	if !slices.Equal(writable, []string{"tmp/", "var/lib/gatebook/"}) || !slices.Equal(programs, []string{"usr/bin/gatebook"}) {
		o.t.Errorf("%s: can be written to: %v; programs: %v", arch, writable, programs)
	}
}

func TestRefusals(t *testing.T) {
	ca, key := certificate(t, "ca", true)
	leaf, _ := certificate(t, "leaf", false)
	for _, c := range []struct {
		name string
		make func(*options)
		want string
	}{
		{"a private key in the bundle", func(o *options) { o.ca = put(t, slices.Concat(ca, key)) }, "only certificates"},
		{"a server's certificate in the bundle", func(o *options) { o.ca = put(t, slices.Concat(ca, leaf)) }, "no authority"},
		{"an empty bundle", func(o *options) { o.ca = put(t, []byte("# nothing\n")) }, "no certificate"},
		{"no bundle", func(o *options) { o.ca = filepath.Join(t.TempDir(), "none") }, "-ca"},
		{"a binary of the other architecture", func(o *options) { o.binaries["arm64"] = o.binaries["amd64"] }, "EM_X86_64"},
		{"a binary that needs libraries", func(o *options) { o.binaries = map[string]string{"amd64": dynamicELF(t)} }, "CGO_ENABLED=0"},
		{"a script", func(o *options) { o.binaries["amd64"] = put(t, []byte("#!/bin/sh\n")) }, "amd64"},
		{"a folder in use", func(o *options) { o.out = filepath.Dir(put(t, nil)) }, "not empty"},
	} {
		o := bare(t)
		c.make(&o)
		if _, err := write(o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, args := range [][]string{
		nil, {"-o", "x"}, {"-o", "x", "-version", "1"}, {"-binary", "amd64"}, {"-binary", "mips=x"}, {"-binary", "amd64=x", "-binary", "amd64=y"},
	} {
		if err := run(args); err == nil {
			t.Errorf("arguments %q are taken", args)
		}
	}
	for _, epoch := range []string{"x", "-1", "1.5"} {
		if _, err := sourceDate(epoch); err == nil {
			t.Errorf("SOURCE_DATE_EPOCH=%s is taken", epoch)
		}
	}
}

// dynamicELF is a program by its header that asks for an interpreter.
func dynamicELF(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phoff: 64, Phentsize: 56, Phnum: 1,
	}
	for _, part := range []any{h, elf.Prog64{Type: uint32(elf.PT_INTERP)}} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return put(t, b.Bytes())
}
