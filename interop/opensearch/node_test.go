package opensearch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// node is OpenSearch with a folder of its own. One goroutine uses it.
type node struct {
	t     *testing.T
	dir   string
	port  string
	url   string
	cmd   *exec.Cmd
	in    io.Closer
	ended chan error
	asked *http.Client
}

// newNode starts a server that takes requests of so many bytes, until the test ends.
func newNode(t *testing.T, most string) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), port: "0", asked: &http.Client{Timeout: 30 * time.Second}}
	t.Cleanup(func() {
		if n.cmd != nil {
			n.stop()
		}
	})
	n.start(most)
	return n
}

// start starts the server, at the port that it had, and returns when it is up.
func (n *node) start(most string) {
	n.t.Helper()
	n.cmd = exec.Command("java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", "jars/*", "Server.java", n.dir, n.port, most)
	var said bytes.Buffer
	n.cmd.Stderr = &said
	in, err := n.cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("%v (Java 17 is needed, and what make deps fetches)", err)
	}
	n.in, n.ended = in, make(chan error, 1)
	up := make(chan string, 1)
	go func(cmd *exec.Cmd, ended chan<- error) {
		lines := bufio.NewScanner(out)
		if lines.Scan() {
			up <- lines.Text()
		}
		_, _ = io.Copy(io.Discard, out) // what it says after the port is nothing to us
		ended <- cmd.Wait()
	}(n.cmd, n.ended)
	select {
	case n.port = <-up:
	case err := <-n.ended:
		n.cmd = nil
		n.t.Fatalf("the server ended: %v\n%s", err, said.String())
	case <-time.After(2 * time.Minute):
		n.t.Fatal("the server is not up within two minutes")
	}
	n.url = "http://127.0.0.1:" + n.port
}

// stop ends the server as an operator would.
func (n *node) stop() {
	n.t.Helper()
	n.in.Close()
	select {
	case err := <-n.ended:
		if err != nil {
			n.t.Errorf("the server did not end well: %v", err)
		}
	case <-time.After(time.Minute):
		n.cmd.Process.Kill()
		<-n.ended
		n.t.Error("the server did not end within a minute")
	}
	n.cmd = nil
}

// kill ends it with SIGKILL.
func (n *node) kill() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(os.Kill); err != nil {
		n.t.Fatal(err)
	}
	<-n.ended
	n.cmd = nil
}

// ask sends a request and demands the status of the answer, which it decodes into out.
func (n *node) ask(want int, method, path, body string, out any) {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), method, n.url+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := n.asked.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	if resp.StatusCode != want {
		n.t.Fatalf("%s %s: answer %d: %s", method, path, resp.StatusCode, b)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(b, out); err != nil {
		n.t.Fatalf("%s %s: %v: %s", method, path, err, b)
	}
}

// document is what is looked at of one that the server holds.
type document struct {
	Backing string `json:"_index"`
	ID      string `json:"_id"`
	Source  struct {
		Event struct {
			ID       string
			Outcome  string
			Sequence uint64
		}
		HTTP struct {
			Request  struct{ ID string }
			Response struct {
				Status int `json:"status_code"`
			}
		}
		Gatebook struct {
			ID    string
			Kind  string
			Authz struct{ Decision string }
		}
	} `json:"_source"`
}

// held is every document of a stream, in whatever backing index, by the index of its
// record, told by the server's own search.
func (n *node) held(stream string) map[uint64][]document {
	n.t.Helper()
	n.ask(200, "POST", "/"+stream+"/_refresh", "", nil)
	out := map[uint64][]document{}
	total := 0
	for after := -1; ; {
		var page struct {
			Hits struct {
				Hits []struct {
					document
					Sort []int
				}
			}
		}
		n.ask(200, "POST", "/"+stream+"/_search", fmt.Sprintf(
			`{"size":1000,"query":{"range":{"event.sequence":{"gt":%d}}},"sort":[{"event.sequence":"asc"}]}`, after), &page)
		for _, h := range page.Hits.Hits {
			out[h.Source.Event.Sequence] = append(out[h.Source.Event.Sequence], h.document)
			after = h.Sort[0]
		}
		total += len(page.Hits.Hits)
		if len(page.Hits.Hits) < 1000 {
			break
		}
	}
	if all := n.count(stream, `{"match_all":{}}`); all != total {
		n.t.Errorf("%s: %d documents, %d of them found in order", stream, all, total)
	}
	return out
}

// count is how many documents a query finds.
func (n *node) count(stream, query string) int {
	n.t.Helper()
	var out struct{ Count int }
	n.ask(200, "POST", "/"+stream+"/_count", `{"query":`+query+`}`, &out)
	return out.Count
}
