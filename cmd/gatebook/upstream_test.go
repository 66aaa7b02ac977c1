package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// services replaces the site's upstreams and routes. Each line of upstreams is
// an entry; each becomes a route of its name below /name/.
func (s *site) services(max string, upstreams ...string) {
	s.t.Helper()
	var ups, routes strings.Builder
	for _, u := range upstreams {
		name, _, _ := strings.Cut(u, ":")
		fmt.Fprintf(&ups, "  %s\n", u)
		fmt.Fprintf(&routes, "  - {name: %s, path: \"/%s/{rest...}\", upstream: %s, public: true, max_body: %s}\n", name, name, name, max)
	}
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
upstreams:
%sroutes:
%spolicies: {dir: policies}
`, s.addr, ups.String(), routes.String()))
}

// told is what a record tells of an exchange with an upstream.
type told struct {
	ID             string `json:"id"`
	Kind           string `json:"kind"`
	Outcome        string `json:"outcome"`
	Status         int    `json:"status"`
	UpstreamStatus int    `json:"upstream_status"`
	BytesIn        int64  `json:"bytes_in"`
	BytesOut       int64  `json:"bytes_out"`
	Route          string `json:"route"`
	Upstream       struct {
		Name     string `json:"name"`
		Target   string `json:"target"`
		Attempts int    `json:"attempts"`
		Reused   bool   `json:"reused"`
		Breaker  string `json:"breaker"`
	} `json:"upstream"`
	Error struct {
		Origin string `json:"origin"`
		Reason string `json:"reason"`
		Phase  string `json:"phase"`
	} `json:"error"`
}

// told returns the records of exchanges that match, by request id. There must
// be one for each.
func (s *site) told(expr string) map[string]told {
	s.t.Helper()
	out := map[string]told{}
	dec := json.NewDecoder(strings.NewReader(s.command(0, "search", expr, "--json")))
	for {
		var r struct {
			Frame told `json:"frame"`
		}
		err := dec.Decode(&r)
		if err == io.EOF {
			return out
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if was, twice := out[r.Frame.ID]; twice {
			s.t.Fatalf("two records of one request: %+v and %+v", was, r.Frame)
		}
		out[r.Frame.ID] = r.Frame
	}
}

// until waits for a condition that something else brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-late:
			t.Fatalf("not within a minute: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// deafAddr is an address where a connection is never completed: the queue of
// its socket is full.
func deafAddr(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 8 {
		c, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of a socket does not fill")
	return ""
}

// failing is one way for an upstream to fail.
type failing struct {
	reason   reason.Reason
	service  string // below which
	path     string
	phase    string
	cut      bool // the answer had begun: it is cut off
	attempts int
	breaker  string
}

// TestUpstreamReasons brings about every reason that an upstream can be blamed
// with, and compares what the client got with what the book keeps.
func TestUpstreamReasons(t *testing.T) {
	up := faultyup.Start(t)
	own := faultyup.NewAuthority(t)
	secure := faultyup.Start(t, faultyup.WithTLS(own.Server(t, "127.0.0.1", time.Now().Add(time.Hour))))
	stranger := faultyup.NewAuthority(t).File(t)
	second := faultyup.Start(t)
	s := newSite(t, up.URL())
	refused := func() string { return "http://" + faultyup.RefusedAddr(t) }
	s.services("1MiB",
		`name: {targets: ["http://nowhere.invalid:80"], timeouts: {connect: 30s}}`,
		fmt.Sprintf(`refused: {targets: [%q]}`, refused()),
		fmt.Sprintf(`deaf: {targets: ["http://%s"], timeouts: {connect: 300ms}}`, deafAddr(t)),
		fmt.Sprintf(`verify: {targets: [%q], timeouts: {connect: 30s}, tls: {ca: %q}}`, secure.URL(), stranger),
		fmt.Sprintf(`handshake: {targets: ["https://%s"], timeouts: {connect: 30s}}`, up.Addr()),
		fmt.Sprintf(`faulty: {targets: [%q], ejection: {failures: 0}}`, up.URL()),
		fmt.Sprintf(`hasty: {targets: [%q], timeouts: {response: 200ms, idle_body: 200ms}, ejection: {failures: 0}}`, up.URL()),
		fmt.Sprintf(`breaker: {targets: [%q], ejection: {failures: 1, for: 1h}}`, up.URL()),
		fmt.Sprintf(`pair: {targets: [%q, %q], ejection: {failures: 1, for: 1h}}`, up.URL(), second.URL()),
		fmt.Sprintf(`three: {targets: [%q, %q, %q]}`, refused(), refused(), refused()),
		fmt.Sprintf(`sick: {targets: [%q], health: {path: /status/500, interval: 100ms, unhealthy: 1}}`, second.URL()),
	)
	for _, path := range []string{"/rst", "/close", "/stall-head", "/garbage", "/two-lengths", "/excess", "/rst-body", "/short-body", "/stall-body", "/bad-chunk", "/short-chunk"} {
		h := faultyup.Faults()[path]
		for _, prefix := range []string{"/faulty", "/hasty", "/breaker", "/pair"} {
			up.Handle(prefix+path, h)
			second.Handle(prefix+path, h)
		}
	}
	s.client.Transport.(*http.Transport).DisableKeepAlives = true // or it would ask again by itself
	s.start()
	until(t, "the health check", func() bool { return strings.Contains(s.stderr.String(), "upstream target is unhealthy") })
	// The targets of these are ejected first.
	for _, path := range []string{"/breaker/rst", "/pair/rst", "/pair/rst"} {
		if resp := s.get(path); resp.StatusCode != 502 {
			t.Fatalf("%s: status %d", path, resp.StatusCode)
		}
	}
	cases := []failing{
		{reason.DNS, "name", "", "dns", false, 1, "closed"},
		{reason.ConnectRefused, "refused", "", "connect", false, 1, "closed"},
		{reason.ConnectTimeout, "deaf", "", "connect", false, 1, "closed"},
		{reason.TLSVerify, "verify", "", "tls", false, 1, "closed"},
		{reason.TLSHandshakeUpstream, "handshake", "", "tls", false, 1, "closed"},
		{reason.ResetBeforeResponse, "faulty", "rst", "head", false, 1, "closed"},
		{reason.ResetBeforeResponse, "faulty", "close", "head", false, 1, "closed"},
		{reason.ResponseTimeout, "hasty", "stall-head", "head", false, 1, "closed"},
		{reason.BadResponse, "faulty", "garbage", "head", false, 1, "closed"},
		{reason.BadResponse, "faulty", "two-lengths", "head", false, 1, "closed"},
		{reason.BadResponse, "faulty", "bad-chunk", "body", false, 1, "closed"},
		{reason.BodyLengthMismatch, "faulty", "excess", "body", false, 1, "closed"},
		{reason.BodyLengthMismatch, "faulty", "short-body", "body", true, 1, "closed"},
		{reason.ResetMidBody, "faulty", "short-chunk", "body", true, 1, "closed"},
		{reason.ResetMidBody, "faulty", "rst-body", "body", true, 1, "closed"},
		{reason.BodyStalled, "hasty", "stall-body", "body", true, 1, "closed"},
		{reason.BreakerOpen, "breaker", "", "pick", false, 0, "open"},
		{reason.NoHealthyTarget, "pair", "", "pick", false, 0, ""},
		{reason.NoHealthyTarget, "sick", "", "pick", false, 0, ""},
		{reason.RetriesExhausted, "three", "", "connect", false, 2, "closed"},
	}
	covered := map[reason.Reason]bool{}
	ids := make([]string, len(cases))
	for i, c := range cases {
		covered[c.reason] = true
		if ids[i] = s.fails(c); ids[i] == "" { // cut off so early that no head came
			for _, r := range up.Seen() {
				if r.Path == "/"+c.service+"/"+c.path {
					ids[i] = r.ID
				}
			}
		}
	}
	for _, r := range reason.All() {
		if r.Origin() == reason.OriginUpstream && !covered[r] {
			t.Errorf("no test of %s", r)
		}
	}
	records := s.told(`kind == "request"`)
	if len(records) != len(cases)+3 {
		t.Errorf("%d records of %d requests", len(records), len(cases)+3)
	}
	for i, c := range cases {
		c.recorded(t, records[ids[i]])
	}
	s.stop()
	s.run(0, "verify", filepath.Join(s.dir, "data"), "--key-file", filepath.Join(s.dir, "log.vkey"), "--keys", filepath.Join(s.dir, "keys"))
}

// fails makes the exchange, looks at what the client gets and returns its id.
func (s *site) fails(c failing) string {
	s.t.Helper()
	at := "/" + c.service + "/" + c.path
	resp, err := s.client.Get("https://" + s.addr + at)
	if err != nil && c.cut {
		return ""
	}
	if err != nil {
		s.t.Fatalf("%s: %v", at, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	id := resp.Header.Get("X-Request-Id")
	if c.cut {
		if err == nil || resp.StatusCode != http.StatusOK {
			s.t.Errorf("%s: status %d, error %v, want an answer that is cut off", at, resp.StatusCode, err)
		}
		return id
	}
	if err != nil || resp.StatusCode != c.reason.Status() {
		s.t.Errorf("%s: status %d, error %v, want %d", at, resp.StatusCode, err, c.reason.Status())
	}
	var p struct {
		Title  string
		Status int
	}
	if err := json.Unmarshal(body, &p); err != nil || p.Title != c.reason.Public() || p.Status != c.reason.Status() {
		s.t.Errorf("%s: answer %q, want the title %q", at, body, c.reason.Public())
	}
	text := strings.ToLower(fmt.Sprint(resp.Header, string(body)))
	for _, private := range []string{"127.0.0.1", "invalid", string(c.reason), "target", "x509", "dial", "refused", "faulty", `"phase"`, "retry of", c.service + `"`} {
		if strings.Contains(text, private) {
			s.t.Errorf("%s: the client is told %q: %s", at, private, text)
		}
	}
	return id
}

// recorded compares the exchange's record.
func (c failing) recorded(t *testing.T, r told) {
	t.Helper()
	status, target := c.reason.Status(), c.breaker != "" // what has no target has no breaker
	if c.cut {
		status = http.StatusOK
	}
	if r.Error.Origin != reason.OriginUpstream || r.Error.Reason != string(c.reason) || r.Error.Phase != c.phase || r.Outcome != "failure" {
		t.Errorf("%s/%s: recorded as %s, %+v, want %s in phase %s", c.service, c.path, r.Outcome, r.Error, c.reason, c.phase)
	}
	u := r.Upstream
	if r.Status != status || r.Route != c.service || u.Name != c.service || (u.Target != "") != target || u.Attempts != c.attempts || u.Breaker != c.breaker || u.Reused && c.attempts == 0 {
		t.Errorf("%s/%s: the record says %+v", c.service, c.path, r)
	}
	if c.cut != (r.UpstreamStatus == http.StatusOK) {
		t.Errorf("%s/%s: upstream status %d", c.service, c.path, r.UpstreamStatus)
	}
}

// TestBackEndsComeAndGo kills and restarts two of three back ends while
// requests flow. What needs another attempt and may have one gets it; the only
// failures are of exchanges that a back end had taken when it died.
func TestBackEndsComeAndGo(t *testing.T) {
	servers := []*faultyup.Server{faultyup.Start(t), faultyup.Start(t), faultyup.Start(t)}
	addrs := make([]string, len(servers))
	for i, s := range servers {
		addrs[i] = s.Addr()
	}
	s := newSite(t, servers[0].URL())
	s.services("1MiB", fmt.Sprintf(`app: {targets: ["http://%s", "http://%s", "http://%s"], balance: round_robin, ejection: {failures: 2, for: 100ms}, health: {path: /check, interval: 100ms, unhealthy: 2, healthy: 1}}`, addrs[0], addrs[1], addrs[2]))
	s.start()
	var whole, failed sync.Map // by request id
	var done, refusals atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := s.client.Get("https://" + s.addr + "/app/work")
				if err != nil {
					t.Error(err) // the gate itself never fails
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				id := resp.Header.Get("X-Request-Id")
				if err == nil && resp.StatusCode == http.StatusOK {
					whole.Store(id, true)
				} else {
					failed.Store(id, true)
					refusals.Add(1)
				}
				done.Add(1)
			}
		})
	}
	flow := func(n int64) {
		t.Helper()
		from := done.Load()
		until(t, "requests flow", func() bool { return done.Load() >= from+n || t.Failed() })
	}
	for round := range 6 {
		i := 1 + round%2
		flow(100)
		servers[i].Close()
		flow(100)
		servers[i] = faultyup.StartAt(t, addrs[i])
		until(t, "the back end is used again", func() bool { return servers[i].Count("/app/work") > 0 })
	}
	close(stop)
	wg.Wait()
	records := s.told(`kind == "request"`)
	n := 0
	whole.Range(func(id, _ any) bool {
		n++
		if r := records[id.(string)]; r.Status != 200 || r.Outcome != "success" || r.Upstream.Attempts > 2 {
			t.Errorf("answered whole, recorded as %+v", r)
		}
		return true
	})
	retried := 0
	for _, r := range records {
		if r.Upstream.Attempts > 1 {
			retried++
		}
	}
	failed.Range(func(id, _ any) bool {
		r := records[id.(string)]
		taken := r.Error.Reason == "reset_before_response" || r.Error.Reason == "reset_mid_body" || r.Error.Reason == "body_length_mismatch"
		if !taken {
			t.Errorf("an exchange that could have been tried again failed: %+v", r)
		}
		return true
	})
	if got := len(records); int64(got) != done.Load() {
		t.Errorf("%d records of %d requests", got, done.Load())
	}
	if retried == 0 {
		t.Error("nothing was tried again: no death met an exchange")
	}
	t.Logf("%d requests whole, %d cut off by a death, %d tried again", n, refusals.Load(), retried)
	s.command(0, "verify")
	s.stop()
}

// TestHealthChecks: checks can be seen in the status, are not recorded, and a
// reload changes them: the old ones end, and what they said is forgotten.
func TestHealthChecks(t *testing.T) {
	up := faultyup.Start(t)
	s := newSite(t, up.URL())
	app := `app: {targets: [%q], health: {path: %s, interval: 100ms, unhealthy: 1, healthy: 1}}`
	s.services("1MiB", fmt.Sprintf(app, up.URL(), "/status/500"))
	s.start()
	until(t, "the health check", func() bool { return strings.Contains(s.stderr.String(), "upstream target is unhealthy") })
	if resp := s.get("/app/one"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d", resp.StatusCode)
	}
	if up.Count("/app/one") != 0 {
		t.Error("an unhealthy target was asked")
	}
	shown := func(health, why string) bool {
		out := strings.ReplaceAll(s.command(0, "status", "--json"), `": `, `":`)
		return strings.Contains(out, fmt.Sprintf(`"health":%q`, health)) && strings.Contains(out, why)
	}
	until(t, "the status", func() bool { return shown("unhealthy", `"last_check":"status 500"`) })

	s.services("1MiB", fmt.Sprintf(app, up.URL(), "/status/204"))
	s.command(0, "reload")
	if resp := s.get("/app/two"); resp.StatusCode != http.StatusOK {
		t.Errorf("status %d after the reload", resp.StatusCode)
	}
	until(t, "the new check", func() bool { return shown("healthy", "") && up.Count("/status/204") > 1 })
	if n := len(s.told(`kind == "request"`)); n != 2 {
		t.Errorf("%d records of 2 requests", n)
	}
	s.command(0, "verify")
	s.stop()
}
