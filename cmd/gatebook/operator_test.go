package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestReadOnlyDisk: evidence on a disk that takes no writes is verified, read and
// proved; what would write says why it cannot, and changes nothing.
func TestReadOnlyDisk(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	s.write("gatebook.yaml", strings.Replace(string(s.read("gatebook.yaml")), "data: data\n", "data: disk/data\n", 1))
	disk := filepath.Join(s.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	smallDisk(t, disk, "256m")
	if err := os.CopyFS(filepath.Join(disk, "data"), os.DirFS(filepath.Join(s.dir, "data"))); err != nil {
		t.Fatal(err)
	}
	s.privateTree(filepath.Join(disk, "data"))
	s.start()
	id := s.get("/a").Header.Get("X-Request-Id")
	s.stop()
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, lock := range []string{"with its lock file", "without one"} {
		if lock == "without one" {
			if err := os.Remove(filepath.Join(disk, "data", "lock")); err != nil {
				t.Fatal(err)
			}
		}
		remount(syscall.MS_RDONLY)
		s.command(0, "verify")
		if n := len(s.search(`kind == "request"`)); n != 1 {
			t.Errorf("%s: %d requests are found", lock, n)
		}
		s.command(0, "show", id)
		s.command(0, "prove", id, "-o", filepath.Join(t.TempDir(), "proof"))
		s.command(0, "backup", filepath.Join(t.TempDir(), "backup"))
		for _, args := range [][]string{{"serve"}, {"search", "--reveal"}, {"apikey", "create", "--owner", "a", "--name", "b"}} {
			if s.command(1, args...); !strings.Contains(s.said, "read-only file system") {
				t.Errorf("%s: %s says %q", lock, args[0], s.said)
			}
		}
		remount(0)
		s.command(0, "verify")
	}
}

// TestReaderGoesAway: a command that has the book open for writing survives a
// reader that goes away, such as head: the book ends with a clean stop.
func TestReaderGoesAway(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	s.start()
	s.get("/a")
	s.stop()
	for _, args := range [][]string{{"search", "--reveal"}, {"apikey", "create", "--owner", "a", "--name", "b"}, {"apikey", "list", "--json"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		cmd := exec.Command("gatebook", append(args, "-c", filepath.Join(s.dir, "gatebook.yaml"))...)
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = w, &said
		err = cmd.Run()
		w.Close()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(said.String(), "broken pipe") {
			t.Errorf("%q: %v, %q", args, err, said.String())
		}
	}
	if n := len(s.search(`kind == "unclean_stop"`)); n != 0 {
		t.Errorf("%d unclean stops", n)
	}
	s.command(0, "verify")
}

// TestFullOutput: an answer that could not be written is no success.
func TestFullOutput(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	s.start()
	s.get("/a")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"search"}, {"search", "--json"}, {"count"}, {"count", "--json"}, {"status"}, {"verify"}, {"check"}, {"version"}, {"apikey", "list", "--json"}, {"prove", s.search(`kind == "request"`)[0].Frame.ID}} {
		cmd := exec.Command("gatebook", append(args, "-c", filepath.Join(s.dir, "gatebook.yaml"))...)
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = full, &said
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(said.String(), "no space left") {
			t.Errorf("%q: %v, %q", args, err, said.String())
		}
	}
	s.stop()
}

// TestOtherOwner: whoever comes as another user is told as whom to come, and not
// to give the files away.
func TestOtherOwner(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	name := filepath.Join(s.dir, "data", "state", "keys.db")
	if err := os.Chown(name, 12345, 12345); err != nil {
		t.Fatalf("giving a file away needs root: %v", err)
	}
	for _, args := range [][]string{{"serve"}, {"search"}, {"backup", filepath.Join(t.TempDir(), "b")}, {"apikey", "list"}} {
		if s.command(14, args...); !strings.Contains(s.said, "belongs to user 12345") || !strings.Contains(s.said, "runuser -u 12345 -- gatebook") {
			t.Errorf("%s says %q", args[0], s.said)
		}
	}
}

// TestLostTwice: the verifier key of each log that was lost stays beside the
// configuration.
func TestLostTwice(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	var keys []string
	for range 2 {
		keys = append(keys, string(s.read("log.vkey")))
		for _, dir := range []string{"data", "keys"} {
			if err := os.RemoveAll(filepath.Join(s.dir, dir)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(filepath.Join(s.dir, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		s.command(0, "book", "new", "--reason", "lost")
	}
	for _, key := range keys {
		origin, _, _ := strings.Cut(key, "+")
		if got := string(s.read("log-" + filepath.Base(origin) + ".vkey")); got != key {
			t.Errorf("of log %s there is %q", origin, got)
		}
	}
	s.command(0, "verify")
}

// TestDamageOnTheWay: a search that meets damage when it has printed something
// says what it met and has its exit code, through a server and without one.
func TestDamageOnTheWay(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	for range 2 { // two segments
		s.start()
		for range 10 {
			s.get("/a")
		}
		s.stop()
	}
	segments, err := filepath.Glob(filepath.Join(s.dir, "data/segments/*.seg"))
	if err != nil || len(segments) != 2 {
		t.Fatal(segments, err)
	}
	name, err := filepath.Rel(s.dir, segments[1])
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	was := s.read(name)
	broken := append([]byte(nil), was...)
	broken[len(broken)/2] ^= 4
	s.write(name, string(broken))
	for _, how := range []string{"by the server", "offline"} {
		if out := s.command(10, "search"); !strings.Contains(out, "GET /{rest...}") || !strings.Contains(s.said, "edited: records") || !strings.Contains(s.said, name[len("data/"):]) {
			t.Errorf("%s: %q, and %q", how, s.said, out)
		}
		if how == "by the server" {
			s.kill() // a stop would seal; the damage is not its concern here
		}
	}
	s.write(name, string(was))
	s.start()
	s.command(0, "verify")
	s.stop()
}

// TestBackupInsideData: a backup is not made where it would be lost with the data.
func TestBackupInsideData(t *testing.T) {
	s := newSite(t, newUpstream(t).URL)
	data, link := filepath.Join(s.dir, "data"), filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{data, filepath.Join(data, "segments", "b"), filepath.Join(link, "b"), filepath.Join(data, "state", "..", "b")} {
		if s.command(2, "backup", dir); !strings.Contains(s.said, "inside of the data folder") {
			t.Errorf("%s: %q", dir, s.said)
		}
		if _, err := os.Stat(filepath.Join(dir, "backup.json")); err == nil {
			t.Errorf("%s: there is a backup", dir)
		}
	}
	s.command(0, "backup", filepath.Join(s.dir, "data-backup"))
	s.command(0, "verify")
}
