package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// put writes files below a new directory and returns it.
func put(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const onDisk = `
data: data
node: gate-1
origin: log.example.com/gates
keys: {wrapper: {file: keys}}
listen:
  - name: public
    address: ":8443"
    tls:
      certificates:
        - {cert: api.crt, key: api.key}
issuers:
  - {name: corp, issuer: "https://idp.example.com", audiences: [api], jwks: {file: keys.json}}
  - {name: other, issuer: "https://sso.example.com", audiences: [api], ca: ca.pem}
upstreams: {api: {targets: ["https://10.0.0.1"], tls: {ca: ca.pem}}}
routes: [{name: all, path: "/{rest...}", upstream: api, authn: [{jwt: corp}]}]
policies: {dir: policies, schema: policies/schema.cedarschema, tests: policies/tests}
`

func TestCheck(t *testing.T) {
	cert, key, err := selfSigned(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	expired, expiredKey, err := selfSigned(time.Now().Add(-2 * selfSignedLife))
	if err != nil {
		t.Fatal(err)
	}
	future, futureKey, err := selfSigned(time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	good := map[string]string{
		"gatebook.yaml": onDisk, "api.crt": string(cert), "api.key": string(key), "ca.pem": string(cert),
		"keys.json": `{"keys": [{"kty": "EC"}]}`, "keys/x": "", "data/x": "",
		"policies/sub/a.cedar": "", "policies/schema.cedarschema": "", "policies/tests/a.json": "",
	}
	for _, c := range []struct {
		name   string
		change map[string]string // "-": remove
		mode   map[string]os.FileMode
		want   []string // "line: words"; nothing: no problem
	}{
		{name: "good"},
		{name: "no data yet", change: map[string]string{"data": "-"}},
		{name: "nothing there", change: map[string]string{"api.crt": "-", "api.key": "-", "ca.pem": "-", "keys.json": "-", "keys": "-", "policies": "-"}, want: []string{
			`5:24: keys.wrapper.file: no such directory: "keys"`, `11:18: listen[0].tls.certificates[0].cert: no such file: "api.crt"`, `11:32: listen[0].tls.certificates[0].key: no such file: "api.key"`,
			`13:84: issuers[0].jwks.file: no such file: "keys.json"`, `14:76: issuers[1].ca: no such file`, `upstreams.api.tls.ca: no such file`,
			`policies.dir: no such directory`, `policies.schema: no such file`, `policies.tests: no such directory`}},
		{name: "wrong key", change: map[string]string{"api.key": string(expiredKey)}, want: []string{`11:18: listen[0].tls.certificates[0].cert: not a certificate with its key (private key does not match public key)`}},
		{name: "not PEM", change: map[string]string{"api.crt": "hello"}, want: []string{`not a certificate with its key (failed to find any PEM data`}},
		{name: "expired", change: map[string]string{"api.crt": string(expired), "api.key": string(expiredKey)}, want: []string{`the certificate expired on`}},
		{name: "not yet", change: map[string]string{"api.crt": string(future), "api.key": string(futureKey)}, want: []string{`the certificate is not valid before`}},
		{name: "open key", mode: map[string]os.FileMode{"api.key": 0o644}, want: []string{`11:32: listen[0].tls.certificates[0].key: others may read or change the private key (mode 0644): "api.key"; chmod 600 it`}},
		{name: "key for a group", mode: map[string]os.FileMode{"api.key": 0o640}},
		{name: "open key directory", mode: map[string]os.FileMode{"keys": 0o750}, want: []string{`others may enter the key directory (mode 0750)`}},
		{name: "open data", mode: map[string]os.FileMode{"data": 0o777}, want: []string{`2:7: data: others may write to the data directory (mode 0777)`}},
		{name: "no keys", change: map[string]string{"keys": "-"}, want: []string{`no such directory: "keys"`}},
		{name: "directory as file", change: map[string]string{"ca.pem": "-", "ca.pem/x": ""}, want: []string{`issuers[1].ca: a directory where a file is expected`, `upstreams.api.tls.ca: a directory where a file is expected`}},
		{name: "empty ca", change: map[string]string{"ca.pem": ""}, want: []string{`issuers[1].ca: no certificate: "ca.pem"`, `upstreams.api.tls.ca: no certificate`}},
		{name: "key as ca", change: map[string]string{"ca.pem": string(key)}, want: []string{`issuers[1].ca: no certificate`, `upstreams.api.tls.ca: no certificate`}},
		{name: "broken ca", change: map[string]string{"ca.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}, want: []string{`a certificate that cannot be read`, `a certificate that cannot be read`}},
		{name: "key set of text", change: map[string]string{"keys.json": "x"}, want: []string{`not a JSON Web Key Set`}},
		{name: "key set without keys", change: map[string]string{"keys.json": "{}"}, want: []string{`a key set without keys`}},
		{name: "shared secret", change: map[string]string{"keys.json": `{"keys": [{"kty": "oct"}]}`}, want: []string{`a key set with a shared secret`}},
		{name: "huge key set", change: map[string]string{"keys.json": strings.Repeat(" ", maxFileSize+1)}, want: []string{`larger than 1048576 bytes`}},
		{name: "no policies", change: map[string]string{"policies/sub/a.cedar": "-"}, want: []string{`17:17: policies.dir: no policy files: "policies"`}},
		{name: "hidden policies", change: map[string]string{"policies/sub/a.cedar": "-", "policies/.git/a.cedar": "", "policies/.b.cedar": ""}, want: []string{`no policy files`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := put(t, good)
			for _, d := range []string{"keys", "data"} {
				if err := os.Chmod(filepath.Join(dir, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for name, text := range c.change {
				full := filepath.Join(dir, name)
				if text == "-" {
					if err := os.RemoveAll(full); err != nil {
						t.Fatal(err)
					}
				}
			}
			for name, text := range c.change {
				full := filepath.Join(dir, name)
				if text == "-" {
					continue
				}
				if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(full, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for name, mode := range c.mode {
				if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
					t.Fatal(err)
				}
			}
			f, err := Load(filepath.Join(dir, "gatebook.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			problems := Check(f)
			if problems.Len() != len(c.want) {
				t.Fatalf("%d problems, want %d:\n%v", problems.Len(), len(c.want), problems)
			}
			for i, p := range problems.All() {
				if !strings.Contains(p.String(), c.want[i]) {
					t.Errorf("problem %d is\n%v\nwant %s", i, p, c.want[i])
				}
				if p.Line == 0 || p.Excerpt == "" {
					t.Errorf("problem without place: %v", p)
				}
			}
		})
	}
}

// TestCheckData: a file where the data directory belongs.
func TestCheckData(t *testing.T) {
	dir := put(t, map[string]string{"data": "", "keys/x": ""})
	if err := os.Chmod(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	f := mustParse(t, filepath.Join(dir, "gatebook.yaml"), `
data: data
node: gate-1
origin: log.example.com/gates
keys: {wrapper: {file: keys}}
listen: [{name: a, address: ":80", plaintext: behind_proxy, trusted: [10.0.0.0/8]}]
upstreams: {api: {targets: ["http://10.0.0.1"]}}
routes: [{name: all, path: "/{rest...}", upstream: api, public: true}]
`)
	if p := Check(f); p.Len() != 1 || !strings.Contains(p.Error(), "a file where a directory is expected") {
		t.Errorf("problems: %v", p)
	}
}
