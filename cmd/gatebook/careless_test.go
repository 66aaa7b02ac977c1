package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// smallDisk mounts a disk of so many bytes at dir, which needs root.
func smallDisk(t *testing.T, dir, size string) {
	t.Helper()
	if err := syscall.Mount("gatebook-test", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mounting a small disk at %s (are you root?): %v", dir, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// readyText is what /readyz says.
func readyText(t *testing.T, health string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + health + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestFullDisk fills a real disk under a running gate: requests are refused with
// the reason, readiness says why, what came meanwhile is counted to the last one,
// and it goes on by itself when there is room.
func TestFullDisk(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	health := freeAddr(t)
	s.write("gatebook.yaml", strings.Replace(string(s.read("gatebook.yaml")), "data: data\n", "data: small/data\n", 1)+"health: {address: "+health+"}\n")
	small := filepath.Join(s.dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	smallDisk(t, small, "160m")
	if err := os.CopyFS(filepath.Join(small, "data"), os.DirFS(filepath.Join(s.dir, "data"))); err != nil {
		t.Fatal(err)
	}
	s.privateTree(filepath.Join(small, "data"))
	s.start()
	until(t, "ready", func() bool { code, _ := readyText(t, health); return code == 200 })
	for range 5 {
		if code := s.get("/before").StatusCode; code != 200 {
			t.Fatalf("status %d", code)
		}
	}

	filler, err := os.Create(filepath.Join(small, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	var st syscall.Statfs_t
	// The ballast and the WAL's own room come first, so this goes on until full.
	until(t, "full", func() bool {
		if err := syscall.Statfs(small, &st); err != nil {
			t.Fatal(err)
		}
		if left := int64(st.Bavail)*st.Bsize - 2<<20; left > 0 {
			end, err := filler.Seek(0, io.SeekEnd)
			if err != nil {
				t.Fatal(err)
			}
			// The gate may have been faster.
			if err := syscall.Fallocate(int(filler.Fd()), 0, end, left); err != nil && err != syscall.ENOSPC {
				t.Fatal(err)
			}
		}
		code, text := readyText(t, health)
		return code == 503 && strings.Contains(text, "full")
	})
	refused := 0
	for range 20 {
		if code := s.get("/meanwhile").StatusCode; code == 503 {
			refused++
		}
	}
	if refused != 20 {
		t.Errorf("%d of 20 refused on a full disk", refused)
	}
	if out := s.command(1, "status"); !strings.Contains(out, "full") {
		t.Errorf("status does not say that the disk is full:\n%s", out)
	}

	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	filler.Close()
	until(t, "ready again", func() bool { code, _ := readyText(t, health); return code == 200 })
	if code := s.get("/after").StatusCode; code != 200 {
		t.Errorf("status %d when there is room again", code)
	}
	until(t, "told", func() bool { return len(s.search(`kind == "gap"`)) > 0 })
	lost := 0
	for _, f := range s.search(`kind == "gap"`) {
		lost += f.Frame.Event.Count
	}
	if lost != refused {
		t.Errorf("the gap records tell of %d exchanges, %d were refused", lost, refused)
	}
	s.stop()
	s.command(0, "verify")
}

// privateTree gives a copy of the data the modes that it must have.
func (s *site) privateTree(dir string) {
	s.t.Helper()
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.Chmod(name, 0o700)
		}
		return os.Chmod(name, 0o600)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestCareless is what happens to people: each mistake gets an exit code, says
// what is wrong and where, and what to do; and what was right before still is.
func TestCareless(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.start()
	s.get("/a")
	keys := filepath.Join(s.dir, "keys")

	// A second process.
	if s.command(13, "serve"); !strings.Contains(s.said, "another process") {
		t.Errorf("a second server says %q", s.said)
	}
	// A configuration that is being edited.
	good := s.read("gatebook.yaml")
	s.write("gatebook.yaml", string(good)+"routes:\n  - {name: half")
	if s.command(2, "reload"); !strings.Contains(s.said, "gatebook.yaml:") {
		t.Errorf("a half-edited configuration says %q", s.said)
	}
	if code := s.get("/b").StatusCode; code != 200 {
		t.Errorf("status %d after a refused reload", code)
	}
	s.write("gatebook.yaml", string(good))
	s.stop()

	// Permissions that are too wide, on the folder and on a file in it.
	files, err := filepath.Glob(keys + "/*.key")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, c := range []struct {
		name       string
		wide, good os.FileMode
		code       int
	}{{keys, 0o755, 0o700, 2}, {files[0], 0o644, 0o600, 14}, {filepath.Join(s.dir, "data", "state", "keys.db"), 0o640, 0o600, 14}} {
		if err := os.Chmod(c.name, c.wide); err != nil {
			t.Fatal(err)
		}
		if s.command(c.code, "serve"); !strings.Contains(s.said, "chmod") || !strings.Contains(s.said, filepath.Base(c.name)) {
			t.Errorf("%s of mode %o: it says %q", c.name, c.wide, s.said)
		}
		if err := os.Chmod(c.name, c.good); err != nil {
			t.Fatal(err)
		}
	}
	// The keys are not mounted.
	if err := os.Rename(keys, keys+".away"); err != nil {
		t.Fatal(err)
	}
	if s.command(2, "serve"); !strings.Contains(s.said, "keys.wrapper.file") {
		t.Errorf("without keys it says %q", s.said)
	}
	if err := os.Rename(keys+".away", keys); err != nil {
		t.Fatal(err)
	}
	// The log's name in the configuration was changed.
	s.write("gatebook.yaml", strings.Replace(string(good), "\nnode: ", "\nnode: other-", 1))
	if s.command(10, "serve"); !strings.Contains(s.said, "node") {
		t.Errorf("under another name it says %q", s.said)
	}
	s.write("gatebook.yaml", string(good))
	s.start()
	s.get("/c")
	s.stop()
	s.command(0, "verify")
	if n := len(s.search(`kind == "request"`)); n != 3 {
		t.Errorf("%d requests are recorded of 3", n)
	}
}
