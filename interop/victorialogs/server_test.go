package victorialogs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const program = "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs"

// built is the server, made once.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// TestMain removes what build made.
func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(built.dir)
	os.Exit(code)
}

func build(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "gatebook-victorialogs"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-o", filepath.Join(built.dir, "victoria-logs"), program)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "victoria-logs")
}

// server is one VictoriaLogs with a storage of its own.
type server struct {
	t   *testing.T
	url string
}

func start(t *testing.T) *server {
	t.Helper()
	bin := build(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	cmd := exec.Command(bin, "-httpListenAddr="+addr, "-storageDataPath="+t.TempDir(), "-retentionPeriod=100y", "-loggerLevel=ERROR")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	})
	s := &server{t, "http://" + addr}
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		res, err := http.Get(s.url + "/health")
		if err == nil {
			res.Body.Close()
			return s
		}
		select {
		case err := <-ended:
			t.Fatalf("the server ended: %v", err)
		default:
		}
		if time.Now().After(until) {
			t.Fatalf("the server does not answer: %v", err)
		}
	}
}

// held asks for everything that the server holds.
func (s *server) held() []map[string]string {
	s.t.Helper()
	res, err := http.Get(s.url + "/internal/force_flush")
	if err != nil {
		s.t.Fatal(err)
	}
	res.Body.Close()
	res, err = http.PostForm(s.url+"/select/logsql/query", url.Values{"query": {"*"}})
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		s.t.Fatalf("query: %s", res.Status)
	}
	var out []map[string]string
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(nil, 4<<20)
	for sc.Scan() {
		if strings.TrimSpace(sc.Text()) == "" {
			continue
		}
		var row map[string]string
		if err := json.Unmarshal(sc.Bytes(), &row); err != nil {
			s.t.Fatalf("%v: %s", err, sc.Text())
		}
		out = append(out, row)
	}
	if err := sc.Err(); err != nil {
		s.t.Fatal(err)
	}
	return out
}
