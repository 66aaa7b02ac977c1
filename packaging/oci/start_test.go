package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	// The program is built by a command of its own. With its parts in this test
	// too, a result of an older program is never taken from the test cache.
	_ "github.com/gatebook/gatebook/internal/cli"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// unpacked is the root file system of the image for this machine, with what a
// container engine adds.
func unpacked(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("an image is started with a root folder of its own, which takes root: run this as root, as make test does in CI")
	}
	program := filepath.Join(t.TempDir(), "gatebook")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "../../cmd/gatebook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	o := bare(t)
	o.binaries = map[string]string{runtime.GOARCH: program}
	if _, err := write(o); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	l := &opened{t, o.out, map[string]bool{}}
	l.images("1.2.3")
	for _, layer := range l.layers(runtime.GOARCH) {
		unpack(t, root, layer)
	}
	for _, dir := range []string{"proc", "dev"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	null := filepath.Join(root, "dev", "null")
	if err := syscall.Mknod(null, syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	return root
}

func unpack(t *testing.T, root string, layer []byte) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(root, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(name, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(name, b, 0o600)
			}
		}
		if err == nil {
			err = os.Chown(name, h.Uid, h.Gid)
		}
		if err == nil {
			err = os.Chmod(name, h.FileInfo().Mode())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// inside is a command in the image, as the image's user.
func inside(root string, args ...string) *exec.Cmd {
	user := fmt.Sprint(userID)
	return exec.Command("unshare", append([]string{"--mount", "--mount-proc", "--root=" + root, "--setuid", user, "--setgid", user, "--wd=/", "/usr/bin/gatebook"}, args...)...)
}

const imageConfig = `
data: /var/lib/gatebook/book
node: gate-1
origin: log.example.com/image
keys: {wrapper: {file: /var/lib/gatebook/keys}}
listen:
  - {name: inner, address: %q, plaintext: behind_proxy, trusted: ["127.0.0.0/8"]}
health: {address: %q}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, public: true}
policies: {dir: policies}
`

// The image runs as it is: version, the whole demo, and a gate that answers
// from outside, whose book is made and verified in there.
func TestStarts(t *testing.T) {
	root := unpacked(t)
	if out, err := inside(root, "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "gatebook ") {
		t.Fatalf("version: %v\n%s", err, out)
	}
	if out, err := inside(root, "demo", "--once").CombinedOutput(); err != nil || !strings.Contains(string(out), "All as promised") {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello from %s", r.URL.Path) }))
	defer up.Close()
	gate, health := program.FreeAddr(t), program.FreeAddr(t)
	etc := filepath.Join(root, "etc", "gatebook")
	if err := os.Mkdir(filepath.Join(etc, "policies"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"gatebook.yaml":       fmt.Sprintf(imageConfig, gate, health, up.URL),
		"policies/open.cedar": "@id(\"open\")\npermit (principal, action, resource);\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var made struct{ Key string }
	if out, err := inside(root, "book", "create", "--json").CombinedOutput(); err != nil || json.Unmarshal(out, &made) != nil {
		t.Fatalf("book create: %v\n%s", err, out)
	}
	if out, err := inside(root, "book", "create").CombinedOutput(); err == nil {
		t.Fatalf("a book was made over a book:\n%s", out)
	}
	stop := serve(t, root)
	for url, want := range map[string]string{"http://" + gate + "/v1/x": "hello from /v1/x", "http://" + health + "/readyz": "ready\n"} {
		if got := fetch(t, url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
	stop()
	if out, err := inside(root, "verify", "--key", made.Key).CombinedOutput(); err != nil {
		t.Errorf("verify: %v\n%s", err, out)
	}
	if out, err := inside(root, "count", "--by", "status", `kind == "request"`).CombinedOutput(); err != nil || !strings.Contains(string(out), "200") {
		t.Errorf("count: %v\n%s", err, out)
	}
}

// serve runs the image's default command and returns when it serves; what is
// returned stops it and demands that it ends well.
func serve(t *testing.T, root string) (stop func()) {
	t.Helper()
	cmd := inside(root, "serve")
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	up, ended := make(chan bool, 1), make(chan string, 1)
	go func() {
		var said strings.Builder
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), `"serving"`) {
				up <- true
			}
		}
		ended <- said.String()
	}()
	select {
	case <-up:
	case said := <-ended:
		t.Fatalf("it does not serve:\n%s", said)
	case <-time.After(time.Minute):
		t.Fatal("it does not serve after a minute")
	}
	return func() {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		said := <-ended
		if err := cmd.Wait(); err != nil {
			t.Fatalf("stop: %v\n%s", err, said)
		}
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
