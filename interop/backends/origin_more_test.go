package backends

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
)

// apache tells through its Lua module: a handler notes what was understood and
// declines, so that the default one discards the body, which a filter notes.
func apache() *origin {
	return &origin{
		name: "apache", program: "/usr/sbin/apache2", quit: syscall.SIGTERM,
		args: func(dir string) []string { return []string{"-f", filepath.Join(dir, "conf"), "-D", "FOREGROUND"} },
		files: func(dir, addr string) map[string]string {
			return map[string]string{
				"conf": apacheConf(dir, addr),
				"seen.lua": luaHex + `
function filter(r)
	coroutine.yield()
	while bucket do
		r.notes["body"] = (r.notes["body"] or "") .. hex(bucket)
		coroutine.yield(bucket)
	end
end
function handle(r)
	local f = {}
	for k, v in pairs(r:headers_in_table()) do f[#f+1] = hex(k) .. ":" .. hex(v) end
	r.notes["sight"] = "m=" .. hex(r.method) .. " t=" .. hex(r.unparsed_uri) .. " p=" .. hex(r.uri) ..
		" h=" .. hex(r.headers_in["Host"]) .. " z=" .. (r.subprocess_env["zone"] or "open") .. " f=" .. table.concat(f, ",")
	return apache2.DECLINED
end
`}
		},
		parse: func(line string) (sighting, error) {
			s, err := luaLine(line)
			s.merged = true
			return s, err
		},
	}
}

func apacheConf(dir, addr string) string {
	return `
ServerRoot ` + dir + `
DefaultRuntimeDir ` + dir + `
PidFile pid
Listen ` + addr + `
ServerName origin
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule env_module /usr/lib/apache2/modules/mod_env.so
LoadModule lua_module /usr/lib/apache2/modules/mod_lua.so
<IfModule unixd_module>
	User www-data
	Group www-data
</IfModule>
StartServers 1
ServerLimit 1
ThreadsPerChild 64
MaxRequestWorkers 64
MaxKeepAliveRequests 0
KeepAliveTimeout 60
LimitRequestLine 65536
LimitRequestFieldSize 65536
LimitRequestFields 200
ErrorLog error
LogFormat "%{remote}p\t%>s\t%{X-Gatebook-Request-Id}i\t%{sight}n b=%{body}n\t%r" seen
CustomLog seen seen
AllowEncodedSlashes On
LuaScope thread
LuaMapHandler "^" ` + dir + `/seen.lua handle
LuaInputFilter seen ` + dir + `/seen.lua filter
<Location "/">
	SetInputFilter seen
</Location>
<LocationMatch "` + adminPattern + `">
	SetEnv zone admin
</LocationMatch>
`
}

// caddy tells in its access log, but for the body, whose digest is its answer.
func caddy() *origin {
	return &origin{
		name: "caddy", program: "/usr/bin/caddy", quit: syscall.SIGTERM,
		args: func(dir string) []string {
			return []string{"run", "--config", filepath.Join(dir, "conf"), "--adapter", "caddyfile"}
		},
		files: func(dir, addr string) map[string]string {
			_, port, _ := strings.Cut(addr, ":")
			return map[string]string{"conf": `
{
	admin off
	auto_https off
	servers {
		log_credentials
	}
}
http://:` + port + ` {
	bind 127.0.0.1
	log {
		output file ` + dir + `/seen {
			roll_disabled
		}
		format json
	}
	header Content-Type text/plain
	header X-Seen-Path {http.request.uri.path}
	@admin path_regexp ` + adminPattern + `
	header X-Seen-Zone open
	header @admin X-Seen-Zone admin
	templates {
		mime text/plain
	}
	respond ` + "`" + `{{sha256sum (placeholder "http.request.body")}}` + "`" + `
}
`}
		},
		parse: caddyLine,
	}
}

func caddyLine(line string) (sighting, error) {
	var l struct {
		Request struct {
			Port    string `json:"remote_port"`
			Method  string
			Host    string
			URI     string
			Headers map[string][]string
		}
		Status      int
		RespHeaders map[string][]string `json:"resp_headers"`
	}
	if err := json.Unmarshal([]byte(line), &l); err != nil {
		return sighting{}, err
	}
	s := sighting{
		conn: l.Request.Port, status: l.Status, read: true, method: l.Request.Method, host: l.Request.Host, target: l.Request.URI,
		path: strings.Join(l.RespHeaders["X-Seen-Path"], ","), zone: strings.Join(l.RespHeaders["X-Seen-Zone"], ","),
		fields: map[string][]string{}, withoutLength: true,
	}
	for name, values := range l.Request.Headers {
		s.fields[strings.ToLower(name)] = values
	}
	s.id = strings.Join(s.fields["x-gatebook-request-id"], ",")
	return s, nil
}
