package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// sinkBase is a configuration to which sinks are put.
const sinkBase = `
data: data
node: gate-1
origin: log.example.com/gates
keys: {wrapper: {file: keys}}
listen: [{name: public, address: ":8443", plaintext: behind_proxy, trusted: ["10.0.0.0/8"]}]
upstreams: {api: {targets: ["http://10.0.0.1"]}}
routes: [{name: a, path: /a, upstream: api, public: true}]
policies: {dir: policies}
sinks:
`

// TestSinkKeys: the table of types names keys that exist, and every type can be
// given all of its keys and none of another's.
func TestSinkKeys(t *testing.T) {
	rows := map[string]field{}
	for _, f := range fieldsOf(reflect.TypeFor[Sink]()) {
		rows[f.key] = f
	}
	kinds := sinkKeys()
	for _, k := range kinds {
		if !slices.Contains(rows["type"].enum, k.name) {
			t.Errorf("%s is in the table and not a type", k.name)
		}
		for _, key := range slices.Concat(k.needs, k.has) {
			if _, ok := rows[key]; !ok {
				t.Errorf("%s: no key %s", k.name, key)
			}
		}
	}
	if len(kinds) != len(rows["type"].enum) {
		t.Errorf("%d types in the table, %d in the file's form", len(kinds), len(rows["type"].enum))
	}
}

func TestSinkDefaults(t *testing.T) {
	f := mustParse(t, "/srv/gate/gatebook.yaml", sinkBase+`
- {name: a, type: splunk_hec, url: "https://x.example.com", token: {env: A}}
- {name: b, type: elasticsearch, url: "https://x.example.com"}
- {name: c, type: opensearch, url: "https://x.example.com", data_stream: logs-x-y}
- {name: d, type: datadog, site: datadoghq.eu, token: {env: A}}
- {name: e, type: webhook, url: "https://x.example.com", token: {env: A}}
- {name: f, type: file, path: out.jsonl}
- {name: g, type: stdout, project: ocsf}
`)
	for i, want := range []struct{ project, gzip, stream, source, sourcetype, service string }{
		{"ecs", "gzip", "", "gatebook", "gatebook:ecs", ""},
		{"ecs", "gzip", "logs-gatebook.audit-default", "", "", ""},
		{"ecs", "gzip", "logs-x-y", "", "", ""},
		{"native", "gzip", "", "gatebook", "", "gatebook"},
		{"native", "", "", "", "", ""},
		{"native", "", "", "", "", ""},
		{"ocsf", "", "", "", "", ""},
	} {
		s := &f.Sinks[i]
		got := want
		got.project, got.gzip, got.stream, got.source, got.sourcetype, got.service = s.Project, s.Gzip, s.Stream, s.Source, s.SrcType, s.Service
		if got != want {
			t.Errorf("%s: %+v, want %+v", s.Name, got, want)
		}
		if len(s.Fields) != 0 || s.Paused || s.Plain {
			t.Errorf("%s: something is open that was not asked for: %+v", s.Name, s)
		}
	}
	if p := string(f.Sinks[5].Path); p != "/srv/gate/out.jsonl" {
		t.Errorf("path %s", p)
	}
}

// TestSinkFiles: what a sink names is looked at.
func TestSinkFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"keys", "policies"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write("policies/a.cedar", "permit (principal, action, resource);", 0o600)
	write("good", strings.Repeat("s", 32)+"\n", 0o600)
	write("open", "secret", 0o644)
	write("short", "secret", 0o600)
	write("notpem", "x", 0o600)
	for _, c := range []struct{ sink, want string }{
		{`{name: a, type: webhook, url: "https://x.example.com", token: {file: good}, signing_key: {file: good}}`, ""},
		{`{name: a, type: webhook, url: "https://x.example.com", token: {file: none}}`, "no such file"},
		{`{name: a, type: webhook, url: "https://x.example.com", token: {file: open}}`, "others may read"},
		{`{name: a, type: webhook, url: "https://x.example.com", signing_key: {file: short}}`, "too short"},
		{`{name: a, type: webhook, url: "https://x.example.com", token: {env: GATEBOOK_NOT_SET}}`, "is not set"},
		{`{name: a, type: webhook, url: "https://x.example.com", token: {file: good}, tls: {ca: notpem}}`, "no certificate"},
		{`{name: a, type: webhook, url: "https://x.example.com", token: {file: good}, tls: {cert: notpem, key: notpem}}`, "not a certificate with its key"},
		{`{name: a, type: opensearch, url: "https://x.example.com", username: u, password: {file: none}}`, "no such file"},
		{`{name: a, type: file, path: none/out.jsonl}`, "no such directory"},
		{`{name: a, type: file, path: out.jsonl}`, ""},
	} {
		f := mustParse(t, filepath.Join(dir, "gatebook.yaml"), sinkBase+"- "+c.sink+"\n")
		err := Check(f)
		if got := err.Error(); c.want == "" && err != nil || c.want != "" && !strings.Contains(got, c.want) {
			t.Errorf("%s: %v, want %q", c.sink, got, c.want)
		}
		if strings.Contains(err.Error(), strings.Repeat("s", 32)) {
			t.Errorf("%s: the secret is in the message", c.sink)
		}
	}
}
