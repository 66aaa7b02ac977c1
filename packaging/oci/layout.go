package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Media types of the OCI image specification, version 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// descriptor points to a blob (descriptor.md).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// index lists the images of all architectures (image-index.md).
type index struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []descriptor      `json:"manifests"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// manifest is one image (manifest.md).
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// image is how it is run (config.md).
type image struct {
	Created time.Time `json:"created"`
	platform
	Config  execution `json:"config"`
	RootFS  rootFS    `json:"rootfs"`
	History []history `json:"history"`
}

type execution struct {
	User         string              `json:"User"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts"`
	Env          []string            `json:"Env"`
	Entrypoint   []string            `json:"Entrypoint"`
	Cmd          []string            `json:"Cmd"`
	Volumes      map[string]struct{} `json:"Volumes"`
	WorkingDir   string              `json:"WorkingDir"`
	Labels       map[string]string   `json:"Labels"`
	StopSignal   string              `json:"StopSignal"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type history struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// layout is the folder being written (image-layout.md).
type layout struct {
	dir string
	options
	annotations map[string]string // of the index and of every image
}

// write makes the layout and returns the digest of the image index.
func write(o options) (string, error) {
	if names, err := os.ReadDir(o.out); err == nil && len(names) > 0 {
		return "", fmt.Errorf("%s is not empty", o.out)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	bundle, err := authorities(o.ca)
	if err != nil {
		return "", err
	}
	l := &layout{dir: o.out, options: o}
	l.annotations = map[string]string{
		"org.opencontainers.image.title":       "gatebook",
		"org.opencontainers.image.description": "An identity-aware API proxy whose access log stands up in an audit",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      o.source,
		"org.opencontainers.image.version":     o.version,
		"org.opencontainers.image.created":     o.created.Format(time.RFC3339),
		// Which authorities are in it, so that an image can be made again.
		"com.github.gatebook.ca-bundle": digestOf(bundle),
	}
	if err := os.MkdirAll(filepath.Join(o.out, "blobs", "sha256"), 0o755); err != nil {
		return "", err
	}
	base, err := pack(baseFiles(bundle), o.created)
	if err != nil {
		return "", err
	}
	all := index{SchemaVersion: 2, MediaType: typeIndex, Annotations: l.annotations}
	for _, arch := range slices.Sorted(maps.Keys(o.binaries)) {
		d, err := l.image(arch, base)
		if err != nil {
			return "", fmt.Errorf("%s: %w", arch, err)
		}
		all.Manifests = append(all.Manifests, d)
	}
	d, err := l.blobJSON(typeIndex, all)
	if err != nil {
		return "", err
	}
	d.Annotations = map[string]string{"org.opencontainers.image.ref.name": o.version}
	return d.Digest, l.finish(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{d}})
}

// image writes the blobs of one architecture.
func (l *layout) image(arch string, base *layer) (descriptor, error) {
	binary, err := os.ReadFile(l.binaries[arch])
	if err != nil {
		return descriptor{}, err
	}
	if err := checkBinary(binary, arch); err != nil {
		return descriptor{}, fmt.Errorf("%s: %w", l.binaries[arch], err)
	}
	program, err := pack([]file{{name: "usr/bin/", mode: 0o755}, {name: "usr/bin/gatebook", mode: 0o755, data: binary}}, l.created)
	if err != nil {
		return descriptor{}, err
	}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest, Annotations: l.annotations}
	config := image{
		Created: l.created, platform: platform{arch, "linux"},
		Config: execution{
			User: fmt.Sprintf("%d:%d", userID, userID),
			// Above 1023, so that no capability is needed.
			ExposedPorts: map[string]struct{}{"8443/tcp": {}, "9080/tcp": {}},
			Env:          []string{"PATH=/usr/bin"},
			Entrypoint:   []string{"/usr/bin/gatebook"},
			Cmd:          []string{"serve"},
			Volumes:      map[string]struct{}{"/var/lib/gatebook": {}},
			WorkingDir:   "/",
			Labels:       l.annotations,
			StopSignal:   "SIGTERM",
		},
		RootFS: rootFS{Type: "layers"},
	}
	for _, part := range []struct {
		*layer
		what string
	}{{base, "users, folders, certificate authorities"}, {program, "gatebook " + l.version}} {
		d, err := l.blob(typeLayer, part.packed)
		if err != nil {
			return descriptor{}, err
		}
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, part.diffID)
		config.History = append(config.History, history{l.created, part.what})
	}
	if m.Config, err = l.blobJSON(typeConfig, config); err != nil {
		return descriptor{}, err
	}
	d, err := l.blobJSON(typeManifest, m)
	d.Platform = &config.platform
	return d, err
}

// finish writes the two files by which a layout is known.
func (l *layout) finish(top index) error {
	text, err := encode(top)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(l.dir, "index.json"), text, 0o644),
		os.WriteFile(filepath.Join(l.dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

func (l *layout) blobJSON(mediaType string, v any) (descriptor, error) {
	text, err := encode(v)
	if err != nil {
		return descriptor{}, err
	}
	return l.blob(mediaType, text)
}

func (l *layout) blob(mediaType string, content []byte) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Digest: digestOf(content), Size: int64(len(content))}
	name := filepath.Join(l.dir, "blobs", "sha256", d.Digest[len("sha256:"):])
	return d, os.WriteFile(name, content, 0o644)
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// encode leaves < and > as they are: names must be found as they were written.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
