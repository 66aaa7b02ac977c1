package packaging

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// What is handed out is linked so that the Go runtime's monitor thread need not be
// woken whenever the gate comes back from idle (docs/decisions.md). A release of Go
// in which that has no effect fails here.
func TestMonitorSleeps(t *testing.T) {
	const requests = 2000
	shipped := monitorWakes(t, requests)
	plain := monitorWakes(t, requests, "GODEBUG=schedtrace=0")
	t.Logf("the monitor thread woke %d times in %d requests, without the setting %d", shipped, requests, plain)
	if shipped > plain/3 {
		t.Errorf("the monitor thread woke %d times in %d requests, without the setting %d: the setting in packaging/ldflags has lost its effect", shipped, requests, plain)
	}
}

// monitorWakes is how often the monitor thread of a gate on one processor went to
// sleep while so many requests came one after the other.
func monitorWakes(t *testing.T, requests int, env ...string) int {
	t.Helper()
	gate, health := filepath.Join(t.TempDir(), "gate"), program.FreeAddr(t)
	out(t, exec.Command(gatebook(t), "init", gate, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1"))
	config := filepath.Join(gate, "gatebook.yaml")
	text := strings.ReplaceAll(read(t, config), `"127.0.0.1:8081"`, strconv.Quote(health))
	write(t, config, strings.ReplaceAll(text, `"127.0.0.1:9080"`, `"127.0.0.1:0"`))
	cmd := exec.Command(gatebook(t), "serve", "-c", config)
	cmd.Env = slices.Concat(os.Environ(), []string{"GOMAXPROCS=1"}, env)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	ask := func() error {
		res, err := client.Get("http://" + health + "/healthz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	for late := time.Now().Add(time.Minute); ask() != nil; time.Sleep(10 * time.Millisecond) { // until it listens
		if time.Now().After(late) {
			t.Fatal("it does not serve after a minute")
		}
	}
	before := monitorSwitches(t, cmd.Process.Pid)
	for range requests {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	return monitorSwitches(t, cmd.Process.Pid) - before
}

// monitorSwitches is how often the first thread that the runtime starts, its monitor,
// gave its processor up by itself.
func monitorSwitches(t *testing.T, pid int) int {
	t.Helper()
	tasks := filepath.Join("/proc", strconv.Itoa(pid), "task")
	entries, err := os.ReadDir(tasks)
	if err != nil {
		t.Fatal(err)
	}
	var threads []int
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		threads = append(threads, id)
	}
	slices.Sort(threads)
	if len(threads) < 2 {
		t.Fatalf("process %d has %d threads", pid, len(threads))
	}
	const field = "voluntary_ctxt_switches:"
	for line := range strings.Lines(read(t, filepath.Join(tasks, strconv.Itoa(threads[1]), "status"))) {
		if n, found := strings.CutPrefix(line, field); found {
			v, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no %s", field)
	return 0
}
