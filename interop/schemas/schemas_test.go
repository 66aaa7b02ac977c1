package schemas

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// event is one line of a golden file.
type event struct {
	where string
	body  []byte
}

// events reads what a projection makes of every kind and reason, whole and as a
// stub. The tests of the projections hold these files against what they make.
func events(t *testing.T, projection string) []event {
	t.Helper()
	files, err := filepath.Glob("../../internal/desk/deliver/project/testdata/" + projection + "/*.jsonl")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d golden files of %s, %v", len(files), projection, err)
	}
	var out []event
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
			out = append(out, event{fmt.Sprintf("%s:%d", filepath.Base(f), i+1), line})
		}
	}
	return out
}

// child is a program that answers each line with one line.
type child struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, name string, args ...string) *child {
	t.Helper()
	cmd := exec.Command(name, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v; `make deps` installs it", name, err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s ended with %v: %s; `make deps` installs what it needs", name, err, stderr.String())
		}
	})
	return &child{in, bufio.NewReader(out)}
}

func (c *child) ask(t *testing.T, question []byte, answer any) {
	t.Helper()
	if _, err := c.in.Write(append(bytes.Clone(question), '\n')); err != nil {
		t.Fatal(err)
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	if err := json.Unmarshal(line, answer); err != nil {
		t.Fatal(err)
	}
}

// changed is an event with one thing changed: a path of keys and what is put
// there, nil to take it away.
func changed(t *testing.T, body []byte, path string, value any) []byte {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal(body, &root); err != nil {
		t.Fatal(err)
	}
	keys := strings.Split(path, "/")
	at := root
	for _, k := range keys[:len(keys)-1] {
		next, ok := at[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[k] = next
		}
		at = next
	}
	if last := keys[len(keys)-1]; value == nil {
		delete(at, last)
	} else {
		at[last] = value
	}
	out, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func find(t *testing.T, all []event, where string) []byte {
	t.Helper()
	i := slices.IndexFunc(all, func(e event) bool { return e.where == where })
	if i < 0 {
		t.Fatalf("no golden event %s", where)
	}
	return all[i].body
}

func TestECS(t *testing.T) {
	node := start(t, "node", "ecs.mjs")
	all := events(t, "ecs")
	for _, e := range all {
		var bad []string
		if node.ask(t, e.body, &bad); len(bad) > 0 {
			t.Errorf("%s: %s\n%s", e.where, strings.Join(bad, "; "), e.body)
		}
	}
	t.Logf("%d events", len(all))
	// The judge must be able to say no.
	good := find(t, all, "request-full.jsonl:1")
	for _, c := range []struct {
		path  string
		value any
		want  string
	}{
		{"source/ip", "203.0.113.0/24", "is no ip"},
		{"source/ip", "fe80::1%eth0", "is no ip"},
		{"http/response/status_code", "200", "is no long"},
		{"event/outcome", "ok", "is not allowed"},
		{"event/category", "web", "is no list"},
		{"event/type", []string{"indicator"}, "does not go with"},
		{"event/kind", nil, "is missing"},
		{"tls/ja4", "x", "is not a field of ECS"},
		{"user/id", []string{"a", "b"}, "is a list"},
	} {
		var bad []string
		if node.ask(t, changed(t, good, c.path, c.value), &bad); !strings.Contains(strings.Join(bad, "; "), c.want) {
			t.Errorf("%s = %v was answered with %q, want %q", c.path, c.value, bad, c.want)
		}
	}
}

// head is what of an OCSF event says which schema it wants to follow.
type head struct {
	Class    int `json:"class_uid"`
	Metadata struct {
		Version  string   `json:"version"`
		Profiles []string `json:"profiles"`
	} `json:"metadata"`
}

// judge checks OCSF events; schemas are asked for as they are needed.
type judge struct {
	python *child
	known  map[string]*jsonschema.Schema
}

func (j *judge) check(t *testing.T, body []byte) error {
	t.Helper()
	var h head
	if err := json.Unmarshal(body, &h); err != nil {
		t.Fatal(err)
	}
	question, err := json.Marshal(map[string]any{"class_uid": h.Class, "version": h.Metadata.Version, "profiles": h.Metadata.Profiles})
	if err != nil {
		t.Fatal(err)
	}
	schema := j.known[string(question)]
	if schema == nil {
		var doc any
		j.python.ask(t, question, &doc)
		c := jsonschema.NewCompiler()
		url := fmt.Sprintf("urn:ocsf:%d", len(j.known))
		delete(doc.(map[string]any), "$id")
		if err := c.AddResource(url, doc); err != nil {
			t.Fatal(err)
		}
		if schema, err = c.Compile(url); err != nil {
			t.Fatal(err)
		}
		j.known[string(question)] = schema
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return schema.Validate(v)
}

func TestOCSF(t *testing.T) {
	j := &judge{python: start(t, "venv/bin/python", "ocsf.py"), known: map[string]*jsonschema.Schema{}}
	all := events(t, "ocsf")
	for _, e := range all {
		if err := j.check(t, e.body); err != nil {
			t.Errorf("%s: %v\n%s", e.where, err, e.body)
		}
	}
	t.Logf("%d events, %d schemas", len(all), len(j.known))
	good := find(t, all, "request-full.jsonl:1")
	for _, c := range []struct {
		path  string
		value any
	}{
		{"class_uid", 6002},
		{"activity_id", 9},
		{"type_uid", 600399999},
		{"actor", nil},
		{"actor/user", map[string]any{}},
		{"api/operation", nil},
		{"src_endpoint", map[string]any{}},
		{"src_endpoint/prefix", "x"},
		{"http_response/code", "200"},
		{"tls", map[string]any{"version": "1.3"}},
		{"disposition_id", 1000},
		{"metadata/uid", 5},
	} {
		if err := j.check(t, changed(t, good, c.path, c.value)); err == nil {
			t.Errorf("%s = %v was not complained of", c.path, c.value)
		}
	}
}
