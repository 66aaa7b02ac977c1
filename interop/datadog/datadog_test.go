package datadog

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
	"github.com/gatebook/gatebook/internal/testenv/datadogd"
)

const origin = "log.example/n1"

// client is the foreign client as a child process, and the account it talks to.
type client struct {
	t       *testing.T
	account *datadogd.Server
	url     string
	in      io.Writer
	out     *bufio.Reader
}

func start(t *testing.T) *client {
	t.Helper()
	c := &client{t: t, account: datadogd.New("api-key", "app-key")}
	s := httptest.NewServer(c.account)
	t.Cleanup(s.Close)
	c.url = s.URL
	cmd := exec.CommandContext(t.Context(), "node", "client.mjs")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (node is needed)", err)
	}
	c.in, c.out = in, bufio.NewReader(out)
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("the client: %v: %s", err, &complaints)
		}
	})
	return c
}

type object map[string]any

// ask lets the client do something and wants this status.
func (c *client) ask(what object, status int) json.RawMessage {
	c.t.Helper()
	if what["key"] == nil {
		what["key"] = "api-key"
	}
	what["url"] = c.url
	b, err := json.Marshal(what)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		c.t.Fatalf("the client ended: %v (npm ci in this folder installs it)", err)
	}
	var said struct {
		Status int
		Error  string
		Data   json.RawMessage
	}
	if err := json.Unmarshal(line, &said); err != nil {
		c.t.Fatal(err)
	}
	if said.Status != status {
		c.t.Errorf("%v: status %d (%s), want %d", what["do"], said.Status, said.Error, status)
	}
	return said.Data
}

// found is a log as the client reads it.
type found struct {
	Host, Service, Status, Message string
	Timestamp                      time.Time
	Attributes                     map[string]json.RawMessage
}

func (c *client) search(query string, back time.Duration, page int) (logs []found) {
	c.t.Helper()
	b := c.ask(object{"do": "search", "query": query, "from": time.Now().Add(-back).UTC().Format(time.RFC3339), "page": page}, 200)
	if err := json.Unmarshal(b, &logs); err != nil {
		c.t.Fatal(err)
	}
	return logs
}

func item(id, message string) object {
	return object{"ddsource": "nginx", "ddtags": "env:prod,team:a", "hostname": "h", "service": "s", "message": message, "additionalProperties": object{"event_id": id}}
}

// What the foreign client sends is taken, in each of its encodings, and what it
// asks for is found.
func TestClientSends(t *testing.T) {
	c := start(t)
	want := map[string]bool{}
	for _, encoding := range []string{"identity", "gzip", "deflate"} {
		c.ask(object{"do": "send", "encoding": encoding, "logs": []object{item(encoding+"-a", "one"), item(encoding+"-b", "two")}}, 200)
		want[encoding+"-a"], want[encoding+"-b"] = true, true
	}
	if n := len(c.account.Logs()); n != len(want) {
		t.Fatalf("%d logs", n)
	}
	for _, l := range c.search("env:prod source:nginx", time.Minute, 2) {
		var id string
		if err := json.Unmarshal(l.Attributes["event_id"], &id); err != nil || !want[id] || l.Host != "h" || l.Service != "s" {
			t.Errorf("%+v", l)
		}
		delete(want, id)
	}
	if len(want) != 0 {
		t.Errorf("not found: %v", want)
	}
	if n := len(c.search("env:prod -team:a", time.Minute, 2)); n != 0 {
		t.Errorf("%d found that are excluded", n)
	}
}

func TestClientIsRefused(t *testing.T) {
	c := start(t)
	c.ask(object{"do": "send", "key": "another", "logs": []object{item("x", "m")}}, 403)
	c.ask(object{"do": "validate", "key": "another"}, 403)
	c.ask(object{"do": "search", "key": "another", "query": "*", "from": "now", "page": 1}, 403)
	c.ask(object{"do": "validate"}, 200)
	many := make([]object, datadogd.MaxEntries+1)
	for i := range many {
		many[i] = item("x", "m")
	}
	c.ask(object{"do": "send", "logs": many}, 400)
	var large []object
	for range 6 {
		large = append(large, item("x", strings.Repeat("m", 900_000)))
	}
	c.ask(object{"do": "send", "logs": large, "encoding": "gzip"}, 413)
	if n := len(c.account.Logs()); n != 0 {
		t.Errorf("%d logs were kept", n)
	}
	c.ask(object{"do": "send", "logs": []object{item("x", strings.Repeat("m", 1_100_000))}}, 200)
	if logs := c.account.Logs(); len(logs) != 1 || !logs[0].Truncated {
		t.Error("a long log was not cut off")
	}
}

// What our sink sends, the foreign client finds and reads.
func TestClientReadsOurs(t *testing.T) {
	c := start(t)
	key, err := sinks.NewCredential(func() (string, error) { return "api-key", nil })
	if err != nil {
		t.Fatal(err)
	}
	sink, err := sinks.NewDatadog(sinks.DatadogConfig{Intake: sinks.Settings{URL: c.url, Gzip: true}, Key: key, Hostname: "gate-1", Tags: []string{"env:test"}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	want := map[string]deliver.Item{}
	var items []deliver.Item
	for i := range uint64(25) {
		it := deliver.Item{Index: i, ID: deliver.EventID(origin, i), Time: now.Add(-time.Duration(i) * time.Hour), Kind: "request", Body: fmt.Appendf(nil, `{"seq":%d}`, i)}
		items, want[it.ID] = append(items, it), it
	}
	if r := sink.Send(t.Context(), &deliver.Batch{Items: items}); r.Class != deliver.Done {
		t.Fatalf("%+v", r)
	}
	for _, l := range c.search("service:gatebook env:test", 48*time.Hour, 4) {
		var id string
		err := json.Unmarshal(l.Attributes["event_id"], &id)
		it, ok := want[id]
		delete(want, id)
		if err != nil || !ok || string(l.Attributes["record"]) != string(it.Body) || l.Host != "gate-1" || l.Service != "gatebook" || l.Status != "info" || l.Message != "request "+id {
			t.Errorf("%+v", l)
		}
		late := now.Sub(it.Time) >= 17*time.Hour
		if (l.Attributes["late"] != nil) != late || !late && !l.Timestamp.Equal(it.Time) || late && time.Since(l.Timestamp) > time.Minute {
			t.Errorf("%s: late %s, at %s, want %s", id, l.Attributes["late"], l.Timestamp, it.Time)
		}
	}
	if len(want) != 0 || c.account.Dropped() != 0 {
		t.Errorf("not found: %v; %d thrown away", want, c.account.Dropped())
	}
}
