package backends

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// sighting is what an origin understood of one request, as its log tells.
type sighting struct {
	id     string // X-Gatebook-Request-Id, "" if it saw none
	conn   string // names the connection
	line   string // request line, if the log tells it
	status int
	read   bool // it got as far as to understand the request

	method, host  string
	target        string // as received
	path          string // decoded, as access rules of the origin see it
	zone          string // "admin" if the origin's own rule for the guarded folders took it
	fields        map[string][]string
	body          string
	hash          string // instead of body: SHA-256 in lower-case hexadecimal
	hasBody       bool   // the log tells the body
	merged        bool   // fields of one name are one value with commas
	withoutLength bool   // the log leaves out how the body was framed
}

// adminPattern is the rule that every origin has for the folders which no route
// of the gate leads to.
const adminPattern = `^/(?:[a-z]+/)?admin(?:/|$)`

// origin is a server that is not ours.
type origin struct {
	name    string
	program string // full path, or a name to look up
	args    func(dir string) []string
	files   func(dir, addr string) map[string]string
	quit    syscall.Signal // ends it when all is in its log
	parse   func(line string) (sighting, error)

	dir, addr string
	cmd       *exec.Cmd
	printed   *os.File
	stop      func() // returns when it has ended
}

func origins() []*origin { return []*origin{nginx(), haproxy(), apache(), caddy()} }

// start writes the configuration and returns when the origin takes
// connections.
func (o *origin) start(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath(o.program)
	if err != nil {
		t.Fatalf("%v: install what make deps installs", err)
	}
	// Not t.TempDir, which keeps out the unprivileged user that a server
	// started by root changes to.
	if o.dir, err = os.MkdirTemp("", "gatebook-"+o.name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(o.dir) })
	if err := os.Chmod(o.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	o.addr = program.FreeAddr(t)
	for name, text := range o.files(o.dir, o.addr) {
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if o.printed, err = os.Create(filepath.Join(o.dir, "printed")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.printed.Close() })
	o.cmd = exec.Command(path, o.args(o.dir)...)
	o.cmd.Dir, o.cmd.Stdout, o.cmd.Stderr = o.dir, o.printed, o.printed
	o.cmd.Env = append(os.Environ(), "HOME="+o.dir, "XDG_DATA_HOME="+o.dir, "XDG_CONFIG_HOME="+o.dir)
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- o.cmd.Wait() }()
	t.Cleanup(func() {
		// With the processes that it has started, should one be left.
		_ = syscall.Kill(-o.cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	o.await(t, ended)
	o.stop = func() {
		if err := o.cmd.Process.Signal(o.quit); err != nil {
			t.Error(err)
		}
		select {
		case err := <-ended:
			ended <- err
		case <-time.After(time.Minute):
			t.Errorf("%s does not stop", o.name)
		}
	}
}

// await returns when the origin takes connections.
func (o *origin) await(t *testing.T, ended chan error) {
	t.Helper()
	for late := time.Now().Add(time.Minute); ; {
		c, err := net.DialTimeout("tcp", o.addr, time.Second)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			ended <- nil
			t.Fatalf("%s did not start:\n%s", o.name, o.text("printed"))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(late) {
			t.Fatalf("%s does not listen:\n%s", o.name, o.text("printed"))
		}
	}
}

func (o *origin) text(name string) string {
	b, err := os.ReadFile(filepath.Join(o.dir, name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// sightings stops the origin and reads its log.
func (o *origin) sightings(t *testing.T) []sighting {
	t.Helper()
	o.stop()
	b, err := os.ReadFile(filepath.Join(o.dir, "seen"))
	if err != nil {
		if b, err = os.ReadFile(filepath.Join(o.dir, "printed")); err != nil {
			t.Fatal(err)
		}
	}
	var all []sighting
	for line := range bytes.Lines(b) {
		s, err := o.parse(strings.TrimSuffix(string(line), "\n"))
		if err != nil {
			t.Errorf("%s: %v in its log: %.300q", o.name, err, line)
			continue
		}
		all = append(all, s)
	}
	return all
}

// words reads a log line "conn TAB status TAB id TAB k=v k=v ...", and perhaps
// another TAB and the request line.
func words(line string) (s sighting, kv map[string]string, err error) {
	parts := strings.Split(line, "\t")
	if len(parts) == 5 {
		s.line, parts = parts[4], parts[:4]
	}
	if len(parts) != 4 {
		return s, nil, fmt.Errorf("%d columns", len(parts))
	}
	s.conn = parts[0]
	if s.status, err = strconv.Atoi(parts[1]); err != nil {
		return s, nil, err
	}
	if s.id = parts[2]; s.id == "-" {
		s.id = ""
	}
	kv = map[string]string{}
	for word := range strings.FieldsSeq(parts[3]) {
		if k, v, ok := strings.Cut(word, "="); ok && v != "-" {
			kv[k] = v
		}
	}
	s.read = kv["m"] != ""
	for k, to := range map[string]*string{"m": &s.method, "t": &s.target, "p": &s.path, "h": &s.host} {
		b, err := hex.DecodeString(kv[k])
		if err != nil {
			return s, nil, fmt.Errorf("%s: %w", k, err)
		}
		*to = string(b)
	}
	s.zone = kv["z"]
	return s, kv, nil
}

// pairs reads "name:value,name:value", both in hexadecimal.
func pairs(text string) (map[string][]string, error) {
	fields := map[string][]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if pair == "" {
			continue
		}
		n, v, _ := strings.Cut(pair, ":")
		name, err := hex.DecodeString(n)
		if err != nil {
			return nil, err
		}
		value, err := hex.DecodeString(v)
		if err != nil {
			return nil, err
		}
		key := strings.ToLower(string(name))
		fields[key] = append(fields[key], string(value))
	}
	return fields, nil
}

const luaHex = `
local function hex(s) return (string.gsub(s or "", ".", function(c) return string.format("%02x", string.byte(c)) end)) end
`

// nginx tells through its Lua module what it understood, in its access log.
func nginx() *origin {
	return &origin{
		name: "nginx", program: "/usr/sbin/nginx", quit: syscall.SIGQUIT,
		args: func(dir string) []string {
			return []string{"-p", dir, "-e", filepath.Join(dir, "error"), "-c", filepath.Join(dir, "conf")}
		},
		files: func(dir, addr string) map[string]string {
			return map[string]string{
				"conf": `
load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; master_process off; worker_processes 1; pid pid; error_log error warn;
events { worker_connections 1024; }
http {
	client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
	client_body_buffer_size 1m; client_max_body_size 16m; large_client_header_buffers 8 64k;
	underscores_in_headers on; ignore_invalid_headers off; keepalive_requests 1000000; lua_socket_log_errors off;
	log_format seen escape=none '$connection\t$status\t$http_x_gatebook_request_id\t$sight';
	access_log seen seen;
	server {
		listen ` + addr + `; set $sight ""; set $zone open;
		location ~ "` + adminPattern + `" { set $zone admin; content_by_lua_file ` + dir + `/seen.lua; }
		location / { content_by_lua_file ` + dir + `/seen.lua; }
	}
}`,
				"seen.lua": luaHex + `
ngx.req.read_body()
local f = {}
for name, v in pairs(ngx.req.get_headers(0, true)) do
	if type(v) ~= "table" then v = {v} end
	for _, one in ipairs(v) do f[#f+1] = hex(name) .. ":" .. hex(one == true and "" or one) end
end
ngx.var.sight = "m=" .. hex(ngx.var.request_method) .. " t=" .. hex(ngx.var.request_uri) .. " p=" .. hex(ngx.var.uri) ..
	" h=" .. hex(ngx.var.http_host) .. " z=" .. ngx.var.zone .. " b=" .. hex(ngx.req.get_body_data()) .. " f=" .. table.concat(f, ",")
ngx.header["Content-Type"] = "text/plain"
ngx.say("seen")
`}
		},
		parse: luaLine,
	}
}

// luaLine reads a line of nginx or Apache.
func luaLine(line string) (sighting, error) {
	s, kv, err := words(line)
	if err != nil {
		return s, err
	}
	body, err := hex.DecodeString(kv["b"])
	if err != nil {
		return s, err
	}
	s.body, s.hasBody = string(body), s.read
	s.fields, err = pairs(kv["f"])
	return s, err
}

// haproxy tells through its sample fetches, in its log.
func haproxy() *origin {
	return &origin{
		name: "haproxy", program: "/usr/sbin/haproxy", quit: syscall.SIGTERM,
		args: func(dir string) []string { return []string{"-db", "-f", filepath.Join(dir, "conf")} },
		files: func(_, addr string) map[string]string {
			return map[string]string{"conf": `
global
	log stdout len 65535 format raw local0
	tune.bufsize 131072
	tune.http.maxhdr 256
	nbthread 1
defaults
	mode http
	timeout client 60s
	timeout server 60s
	timeout connect 60s
	timeout http-request 60s
frontend seen
	bind ` + addr + `
	log global
	option dontlognull
	option http-buffer-request
	http-request wait-for-body time 60s
	http-request set-var(txn.id) req.hdr(x-gatebook-request-id)
	http-request set-var(txn.m) method,hex
	http-request set-var(txn.t) url,hex
	http-request set-var(txn.p) path,url_dec,hex
	http-request set-var(txn.h) req.hdr(host),hex
	http-request set-var(txn.f) req.hdrs,base64
	http-request set-var(txn.b) req.body,sha2(256),hex
	http-request set-var(txn.z) str(open)
	http-request set-var(txn.z) str(admin) if { path,url_dec -m reg ` + adminPattern + ` }
	log-format "%cp\t%ST\t%[var(txn.id)]\tm=%[var(txn.m)] t=%[var(txn.t)] p=%[var(txn.p)] h=%[var(txn.h)] z=%[var(txn.z)] b=%[var(txn.b)] f=%[var(txn.f)]"
	http-request return status 200 content-type text/plain string "seen"
`}
		},
		parse: func(line string) (sighting, error) {
			s, kv, err := words(line)
			if err != nil {
				return s, err
			}
			s.hash, s.hasBody = strings.ToLower(kv["b"]), kv["b"] != ""
			head, err := base64.StdEncoding.DecodeString(kv["f"])
			s.fields = map[string][]string{}
			for line := range strings.SplitSeq(string(head), "\r\n") {
				if n, v, ok := strings.Cut(line, ": "); ok {
					s.fields[n] = append(s.fields[n], v)
				}
			}
			return s, err
		},
	}
}
