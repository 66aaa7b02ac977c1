package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/klauspost/compress/zstd"
)

// faultyDisk fails the nth use of one operation.
type faultyDisk struct {
	osDisk
	op    string
	nth   int // from 1; counted down
	times int
	err   error
	seen  bool
}

func (d *faultyDisk) fails(op string) bool {
	if op != d.op || d.times == 0 {
		return false
	}
	if d.nth--; d.nth > 0 {
		return false
	}
	d.seen = true
	d.times--
	return true
}

func (d *faultyDisk) Open(name string) (diskFile, error) {
	if d.fails("open") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: d.err}
	}
	h, err := d.osDisk.Open(name)
	if err != nil {
		return nil, err
	}
	return &faultyFile{h, d}, nil
}

func (d *faultyDisk) Rename(from, to string) error {
	if d.fails("rename") {
		return d.err
	}
	if err := d.osDisk.Rename(from, to); err != nil || !d.fails("renamed") {
		return err
	}
	return d.err
}

func (d *faultyDisk) SyncDir(name string) error {
	if d.fails("syncdir") {
		return d.err
	}
	return d.osDisk.SyncDir(name)
}

func (d *faultyDisk) Compress(name string) error {
	if d.fails("compress") {
		return d.err
	}
	return d.osDisk.Compress(name)
}

type faultyFile struct {
	diskFile
	d *faultyDisk
}

func (f *faultyFile) Write(b []byte) (int, error) {
	for op, n := range map[string]int{"write": 0, "write half": len(b) / 2, "write a line": bytes.IndexByte(b, '\n') + 1, "write most": len(b) - 1, "write all": len(b), "tear": len(b) / 3} {
		if f.d.fails(op) {
			n, _ := f.diskFile.Write(b[:n])
			return n, f.d.err
		}
	}
	return f.diskFile.Write(b)
}

func (f *faultyFile) Sync() error {
	if f.d.fails("sync") || f.d.fails("sync untaken") {
		return f.d.err
	}
	return f.diskFile.Sync()
}

// Truncate fails for the operations that end with a file in an unknown state.
func (f *faultyFile) Truncate(n int64) error {
	if f.d.op == "truncate" && f.d.fails("truncate") || f.d.seen && (f.d.op == "tear" || f.d.op == "sync untaken") {
		f.d.seen = false
		return f.d.err
	}
	return f.diskFile.Truncate(n)
}

func (f *faultyFile) Stat() (fs.FileInfo, error) {
	if f.d.fails("stat") {
		return nil, f.d.err
	}
	return f.diskFile.Stat()
}

func (f *faultyFile) ReadAt(b []byte, at int64) (int, error) {
	if f.d.fails("read") {
		return 0, f.d.err
	}
	return f.diskFile.ReadAt(b, at)
}

// linesOf are the lines of a file sink, those of full files first.
func linesOf(t *testing.T, path string) (lines []string) {
	t.Helper()
	ext := filepath.Ext(path)
	names, err := filepath.Glob(strings.TrimSuffix(path, ext) + "-*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	for _, name := range append(names, path) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".part") {
			t.Errorf("%s was left", name)
		}
		if strings.HasSuffix(name, ".zst") {
			z, err := zstd.NewReader(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if b, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
			z.Close()
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			t.Errorf("%s ends within a line", name)
		}
		for line := range strings.Lines(string(b)) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// wantLines compares a file with the bodies of items, in order and once each.
func wantLines(t *testing.T, got []string, items []deliver.Item) {
	t.Helper()
	if len(got) != len(items) {
		t.Errorf("%d lines, want %d", len(got), len(items))
	}
	for i := range min(len(got), len(items)) {
		if got[i] != string(items[i].Body) {
			t.Fatalf("line %d is %s, want %s", i, got[i], items[i].Body)
		}
	}
}

// Whatever the disk answers, and whenever: every record is there once, in order.
func TestFileFaults(t *testing.T) {
	items := testItems(100, 12, time.Now())
	rows := 0
	for _, op := range []string{"open", "stat", "read", "write", "write half", "write a line", "write most", "write all", "tear", "sync", "sync untaken", "rename", "renamed", "syncdir", "compress"} {
		for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO, syscall.EROFS, syscall.EACCES} {
			for _, nth := range []int{1, 2} {
				rows++
				name := fmt.Sprintf("%s/%d/%d", op, int(errno), nth)
				d := &faultyDisk{op: op, nth: nth, times: 2, err: errno}
				f := &File{conf: FileConfig{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxBytes: 300, Now: time.Now}, disk: d}
				var bad []deliver.Result
				for chunk := range slices.Chunk(items, 3) {
					for attempt := 1; ; attempt++ {
						r := f.Send(t.Context(), &deliver.Batch{Items: chunk, Attempt: attempt})
						if r.Class == deliver.Done {
							break
						}
						if bad = append(bad, r); attempt > 5 {
							t.Fatalf("%s: no end: %+v", name, r)
						}
					}
				}
				want := map[syscall.Errno]string{syscall.ENOSPC: "disk_full", syscall.EIO: "io", syscall.EACCES: "permission"}[errno]
				if want == "" {
					want = "file"
				}
				for _, r := range bad {
					torn := op == "tear" || op == "sync untaken"
					if r.Cause != want || (r.Class == deliver.Pause) != (errno == syscall.EACCES) || r.Ambiguous && !torn || r.Detail == "" {
						t.Errorf("%s: %+v", name, r)
					}
				}
				if len(bad) == 0 {
					t.Errorf("%s: nothing went wrong", name)
				}
				wantLines(t, linesOf(t, f.conf.Path), items)
			}
		}
	}
	if rows < 60 {
		t.Errorf("only %d rows", rows)
	}
}

// However much of a batch a kill or a power cut left: after a restart it is
// there once, and what was before is untouched.
func TestFileTorn(t *testing.T) {
	items := testItems(0, 6, time.Now())
	var whole []byte
	for _, it := range items {
		whole = append(append(whole, it.Body...), '\n')
	}
	settled := bytes.Index(whole, items[3].Body)
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for cut := settled; cut <= len(whole); cut += 2 {
		for _, tail := range []string{"", "\x00\x00\x00", "\x00\n\x00\x00\n"} {
			if err := os.WriteFile(path, append(slices.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := NewFile(FileConfig{Path: path})
			if err != nil {
				t.Fatal(err)
			}
			if r := f.Send(t.Context(), &deliver.Batch{Items: items[3:], Attempt: 2}); r.Class != deliver.Done || r.Grade != deliver.Durable {
				t.Fatalf("cut at %d with %q: %+v", cut, tail, r)
			}
			wantLines(t, linesOf(t, path), items)
		}
	}
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, _ := NewFile(FileConfig{Path: path})
	newDriver(t, f).run(items, 6)
	wantLines(t, linesOf(t, path), items)
}

func TestFileNotOurs(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string, mode fs.FileMode) {
		if err := os.WriteFile(at(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(at(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("text", "a note of somebody's", 0o600)
	write("open", "", 0o604)
	write("long", "{"+strings.Repeat("x", fileWindow+10), 0o600)
	write("good", `{"of":"somebody else"}`+"\n", 0o640)
	if err := os.Symlink(at("good"), at("link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		class deliver.Class
		cause string
	}{
		{"text", deliver.Pause, "not_ours"}, {"open", deliver.Pause, "not_ours"}, {"long", deliver.Pause, "not_ours"}, {"link", deliver.Pause, "not_ours"},
		{"pipe", deliver.Pause, "not_ours"}, {".", deliver.Retry, "file"}, {"none/x", deliver.Retry, "missing"}, {"good", deliver.Done, "synced"},
	} {
		var before []byte
		if c.name != "pipe" {
			before, _ = os.ReadFile(at(c.name))
		}
		f, err := NewFile(FileConfig{Path: at(c.name)})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Test(t.Context()); (err == nil) != (c.class == deliver.Done) {
			t.Errorf("%s: Test says %v", c.name, err)
		}
		r := f.Send(t.Context(), &deliver.Batch{Items: testItems(0, 1, time.Now())})
		if r.Class != c.class || r.Cause != c.cause || r.Ambiguous {
			t.Errorf("%s: %+v", c.name, r)
		}
		if c.name == "pipe" {
			continue
		}
		if after, _ := os.ReadFile(at(c.name)); !bytes.HasPrefix(after, before) || c.class != deliver.Done && len(after) != len(before) {
			t.Errorf("%s: it was changed", c.name)
		}
	}
	for name, c := range map[string]FileConfig{"no path": {}, "a directory": {Path: "/var/log/"}, "tiny files": {Path: "x", MaxBytes: 10}, "short times": {Path: "x", MaxAge: time.Second}} {
		if _, err := NewFile(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

// Two processes do not write to one file at once, and neither loses anything.
func TestFileLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	other, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	a, _ := NewFile(FileConfig{Path: path})
	b, _ := NewFile(FileConfig{Path: path})
	items := testItems(0, 6, time.Now())
	if r := a.Send(t.Context(), &deliver.Batch{Items: items[:2]}); r.Class != deliver.Retry || r.Cause != "locked" || r.Ambiguous {
		t.Errorf("%+v", r)
	}
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	for i, f := range []*File{a, b, a} {
		if r := f.Send(t.Context(), &deliver.Batch{Items: items[2*i : 2*i+2]}); r.Class != deliver.Done {
			t.Errorf("%d: %+v", i, r)
		}
	}
	wantLines(t, linesOf(t, path), items)
}

// A full file is put aside, all but the newest of those are compressed, and a
// file that somebody moved away is begun anew.
func TestFileRotation(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	now := time.Now()
	f := &File{conf: FileConfig{Path: path, MaxBytes: 500, Now: func() time.Time { return now }}, disk: osDisk{}}
	items := testItems(0, 60, now)
	newDriver(t, f).run(items, 4)
	packed, _ := filepath.Glob(filepath.Join(dir, "*.zst"))
	plain, _ := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
	if len(packed) < 5 || len(plain) != 1 {
		t.Errorf("%d compressed, %d not", len(packed), len(plain))
	}
	wantLines(t, linesOf(t, path), items)

	byAge := &File{conf: FileConfig{Path: path, MaxAge: 24 * time.Hour, Now: func() time.Time { return now }}, disk: osDisk{}}
	more := testItems(60, 8, now)
	newDriver(t, byAge).run(more[:4], 4)
	now = now.Add(24 * time.Hour)
	newDriver(t, byAge).run(more[4:], 4)
	if after, _ := filepath.Glob(filepath.Join(dir, "audit-*")); len(after) != len(packed)+len(plain)+1 {
		t.Errorf("%d files, want one more than %d", len(after), len(packed)+len(plain))
	}
	wantLines(t, linesOf(t, path), append(slices.Clone(items), more...))

	if err := os.Rename(path, filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	last := testItems(68, 2, now)
	newDriver(t, byAge).run(last, 2)
	b, err := os.ReadFile(path)
	if err != nil || string(b) != string(last[0].Body)+"\n"+string(last[1].Body)+"\n" {
		t.Errorf("after it was moved: %s, %v", b, err)
	}
}

// The sink is killed again and again at any point, rotation included. Its engine
// remembers a batch only after it was delivered.
func TestFileKill(t *testing.T) {
	const size, want = 7, 2100
	if path := os.Getenv("GATEBOOK_TEST_FILE"); path != "" {
		fileChild(t, path, size, want)
		return
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	kills := 0
	for run := 0; ; run++ {
		if run > 500 {
			t.Fatal("no end")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestFileKill$")
		cmd.Env = append(os.Environ(), "GATEBOOK_TEST_FILE="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err == nil && run < 40 { // it has begun
			time.AfterFunc(time.Duration(rand.Int64N(int64(8*time.Millisecond))), cancel)
		}
		_, _ = io.Copy(io.Discard, out)
		err = cmd.Wait()
		cancel()
		if err == nil {
			break
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("the child: %v", err)
		}
		kills++
	}
	if kills == 0 {
		t.Error("it was never killed")
	}
	lines := linesOf(t, path)
	if len(lines) != want {
		t.Errorf("%d lines after %d kills, want %d", len(lines), kills, want)
	}
	for i, line := range lines {
		var v struct {
			Seq int `json:"seq"`
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Seq != i {
			t.Fatalf("line %d after %d kills is %s", i, kills, line)
		}
	}
}

// fileChild goes on where the cursor is.
func fileChild(t *testing.T, path string, size, want int) {
	cursor := path + ".cursor"
	b, _ := os.ReadFile(cursor)
	next, _ := strconv.Atoi(string(b))
	f := &File{conf: FileConfig{Path: path, MaxBytes: 8000, Now: time.Now}, disk: osDisk{}}
	fmt.Println("begun")
	for next < want {
		if r := f.Send(t.Context(), &deliver.Batch{Items: testItems(uint64(next), size, time.Unix(1_770_000_000, 0)), Attempt: 1}); r.Class != deliver.Done {
			t.Fatalf("%+v", r)
		}
		next += size
		if err := os.WriteFile(cursor+".new", []byte(strconv.Itoa(next)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(cursor+".new", cursor); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLinePoison(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	f, _ := NewFile(FileConfig{Path: path})
	var out bytes.Buffer
	for name, s := range map[string]deliver.Sink{"file": f, "stdout": NewStdout(&out)} {
		items := testItems(0, 8, time.Now())
		items[2].Body, items[6].Body = []byte("{\n}"), nil
		d := newDriver(t, s)
		d.run(items, 8)
		if len(d.waste) != 2 || d.waste[items[2].ID] != "line" || d.waste[items[6].ID] != "line" || len(d.settled) != 6 {
			t.Errorf("%s: %v", name, d.waste)
		}
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, out.Bytes()) || bytes.Count(b, []byte("\n")) != 6 {
		t.Errorf("file %s, stdout %s, %v", b, &out, err)
	}
}

// shortWriter takes n bytes once, with an error.
type shortWriter struct {
	bytes.Buffer
	n   int
	err error
}

func (w *shortWriter) Write(b []byte) (int, error) {
	if w.n < 0 || w.n > len(b) {
		return w.Buffer.Write(b)
	}
	n, _ := w.Buffer.Write(b[:w.n])
	w.n = -1
	return n, w.err
}

// Wherever a stream breaks, what comes after it begins on a line of its own.
func TestStdoutTorn(t *testing.T) {
	items := testItems(0, 2, time.Now())
	whole := len(items[0].Body) + len(items[1].Body) + 2
	for n := range whole + 1 {
		for _, c := range []struct {
			err   error
			cause string
		}{{syscall.EPIPE, "closed"}, {syscall.EIO, "io"}, {syscall.ENOSPC, "disk_full"}, {nil, "file"}} {
			w := &shortWriter{n: n, err: c.err}
			d := newDriver(t, NewStdout(w))
			d.run(items, 2)
			if c.err == nil && n == whole {
				continue
			}
			if d.first.Class != deliver.Retry || d.first.Cause != c.cause || d.first.Ambiguous != (n > 0) {
				t.Fatalf("after %d bytes: %+v", n, *d.first)
			}
			held := map[string]int{}
			for line := range strings.Lines(w.String()) {
				var v struct{ ID string }
				if json.Unmarshal([]byte(line), &v) == nil {
					held[v.ID]++
				}
			}
			d.check(items, held)
		}
	}
}

// namingDisk counts how often a directory was synced.
type namingDisk struct {
	osDisk
	n int
}

func (d *namingDisk) SyncDir(name string) error {
	d.n++
	return d.osDisk.SyncDir(name)
}

// The process before may have been killed between making the file and syncing its
// directory: then a power cut would take the file away with everything that was
// written since. So the first batch of a process syncs the directory, and the others
// do not.
func TestFileNameIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.jsonl")
	if err := os.WriteFile(path, []byte("{\"a\":0}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := NewFile(FileConfig{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	d := &namingDisk{}
	f.disk = d
	for i, want := range []int{1, 1, 1, 2, 2} {
		if i == 3 { // somebody has moved it away
			if err := os.Rename(path, path+".old"); err != nil {
				t.Fatal(err)
			}
		}
		b := &deliver.Batch{Attempt: 1, Items: []deliver.Item{{Index: uint64(i), Body: fmt.Appendf(nil, `{"a":%d}`, i)}}}
		if r := f.Send(t.Context(), b); r.Class != deliver.Done {
			t.Fatalf("%+v", r)
		}
		if d.n != want {
			t.Errorf("batch %d: the directory was synced %d times, want %d", i, d.n, want)
		}
	}
}
