package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// userID is the user and group that the gate runs as. 65532 is what other
// images without a shell use, and no host gives it to a person.
const userID = 65532

// file is a file, or a folder if its name ends in a slash.
type file struct {
	name  string
	mode  int64
	owner int // of user and group alike
	data  []byte
}

// layer is a tar archive, packed, with the digest of the archive itself.
type layer struct {
	packed []byte
	diffID string
}

// baseFiles is all but the program: who runs it, where it may write, and whom
// it believes. There is no shell and nothing else to run.
func baseFiles(bundle []byte) []file {
	passwd := fmt.Sprintf("root:x:0:0:root:/:/sbin/nologin\ngatebook:x:%d:%d:Gatebook:/var/lib/gatebook:/sbin/nologin\n", userID, userID)
	group := fmt.Sprintf("root:x:0:\ngatebook:x:%d:\n", userID)
	return []file{
		{name: "etc/", mode: 0o755},
		{name: "etc/gatebook/", mode: 0o755},
		{name: "etc/group", mode: 0o644, data: []byte(group)},
		{name: "etc/passwd", mode: 0o644, data: []byte(passwd)},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o644, data: bundle},
		{name: "tmp/", mode: 0o1777},
		{name: "usr/", mode: 0o755},
		{name: "var/", mode: 0o755},
		{name: "var/lib/", mode: 0o755},
		{name: "var/lib/gatebook/", mode: 0o700, owner: userID},
	}
}

// pack makes a layer that depends on nothing but its input.
func pack(files []file, at time.Time) (*layer, error) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.data)),
			ModTime: at, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR,
		}
		if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := z.Write(plain.Bytes())
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	return &layer{packed.Bytes(), digestOf(plain.Bytes())}, nil
}

// authorities reads a bundle and writes it again sorted and without comments,
// so that machines with the same authorities make the same image. Whatever is
// not a certificate of an authority is an error: a private key must not end up
// in an image.
func authorities(name string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("%w; install ca-certificates or name a bundle with -ca", err)
	}
	var all [][]byte
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s: has a %q; only certificates may be in it", name, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if cert.BasicConstraintsValid && !cert.IsCA {
			return nil, fmt.Errorf("%s: %s is no authority", name, cert.Subject)
		}
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}))
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no certificate in it", name)
	}
	slices.SortFunc(all, bytes.Compare)
	return bytes.Join(slices.CompactFunc(all, bytes.Equal), nil), nil
}

// machines are the architectures that images are made for.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkBinary refuses what could not start in an image without libraries.
func checkBinary(b []byte, arch string) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return err
	}
	if f.Machine != machines[arch] {
		return fmt.Errorf("is for %s", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("is not static; build it with CGO_ENABLED=0")
		}
	}
	return nil
}
