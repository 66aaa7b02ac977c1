package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// reloadConfig is the site's configuration with changes that a reload makes.
type reloadConfig struct {
	upstream string
	maxIdle  int    // another pool
	route    string // another snapshot
	more     string // further lines
}

func (s *site) configure(c reloadConfig) {
	s.t.Helper()
	if c.route == "" {
		c.route = "all"
	}
	text := fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
upstreams:
  app: {targets: [%q], max_idle: %d}
routes:
  - {name: %s, path: "/{rest...}", upstream: app, public: true}
policies: {dir: policies}
%s
`, s.addr, c.upstream, 64+c.maxIdle, c.route, c.more)
	s.replace("gatebook.yaml", text)
}

// replace writes a file whole, as editors and deployments do.
func (s *site) replace(name, text string) {
	s.t.Helper()
	s.write(name+".new", text)
	if err := os.Rename(filepath.Join(s.dir, name+".new"), filepath.Join(s.dir, name)); err != nil {
		s.t.Fatal(err)
	}
}

// statusNow is what the server says of itself.
type statusNow struct {
	Snapshot   string `json:"snapshot"`
	Ready      bool   `json:"ready"`
	LastReload struct {
		Outcome, Cause, Error string
	} `json:"last_reload"`
	Listeners []struct {
		Name         string `json:"name"`
		Certificates []struct {
			Names    []string  `json:"names"`
			NotAfter time.Time `json:"not_after"`
			State    string    `json:"state"`
			Wrong    string    `json:"wrong"`
		} `json:"certificates"`
	} `json:"listeners"`
}

func (s *site) status() (st statusNow) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.command(0, "status", "--json")), &st); err != nil {
		s.t.Fatal(err)
	}
	return st
}

// until waits for a condition; a minute is long enough on a busy machine.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			s.t.Fatalf("%s: not within a minute\n%s", what, s.stderr)
		}
	}
}

// configRecord is a record of a reload.
type configRecord struct {
	Frame struct {
		Outcome string `json:"outcome"`
		Snap    string `json:"snap"`
		Subject string `json:"subject"`
		Event   struct {
			Name, Before, After, Target, Cause string
		} `json:"event"`
	} `json:"frame"`
	Personal struct {
		Sub string `json:"sub"`
	} `json:"personal"`
}

func (s *site) reloads() (out []configRecord) {
	s.t.Helper()
	dec := json.NewDecoder(strings.NewReader(s.command(0, "search", `kind == "config" && event.name == "reload"`, "--json", "--reveal")))
	for {
		var r configRecord
		err := dec.Decode(&r)
		if err == io.EOF {
			return out
		}
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, r)
	}
}

// Fifty reloads while HTTP/1 and HTTP/2 clients ask without a pause: no request
// fails, and each has its one record under one of the snapshots.
func TestReloadUnderLoad(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.configure(reloadConfig{upstream: up.URL})
	s.start()

	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var asked, failed atomic.Int64
	for n := range 8 {
		tr := &http.Transport{TLSClientConfig: s.tls(), MaxConnsPerHost: 1, Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(n%2 == 0)
		tr.Protocols.SetHTTP2(n%2 == 1)
		wg.Go(func() {
			defer tr.CloseIdleConnections()
			c := &http.Client{Transport: tr, Timeout: time.Minute}
			for ctx.Err() == nil {
				asked.Add(1)
				resp, err := c.Get("https://" + s.addr + "/some/path")
				if err != nil {
					failed.Add(1)
					t.Errorf("HTTP/%d: %v", 1+n%2, err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(body) != "hello from /some/path\n" || resp.ProtoMajor != 1+n%2 {
					failed.Add(1)
					t.Errorf("HTTP/%d: %v %d %q", 1+n%2, err, resp.StatusCode, body)
					return
				}
			}
		})
	}
	const reloads = 50
	snaps := map[string]bool{s.status().Snapshot: true}
	for n := range reloads {
		// Another pool each time, another name of the route, and now and then
		// another policy set.
		s.configure(reloadConfig{upstream: up.URL, maxIdle: n % 7, route: fmt.Sprintf("all%d", n%5)})
		if n%3 == 0 {
			s.replace("policies/open.cedar", fmt.Sprintf("@id(\"open%d\")\npermit (principal, action, resource);\n", n))
		}
		before := asked.Load()
		var done struct{ Before, After string }
		if err := json.Unmarshal([]byte(s.command(0, "reload", "--json")), &done); err != nil {
			t.Fatal(err)
		}
		snaps[done.After] = true
		s.until("some requests under the new snapshot", func() bool { return asked.Load() > before+8 || failed.Load() > 0 })
	}
	stop()
	wg.Wait()
	var records []struct {
		Value string
		Count int64
	}
	if err := json.Unmarshal([]byte(s.command(0, "count", "--by", "snap", `kind == "request" && status == 200 && outcome == "success"`, "--json")), &records); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, r := range records {
		total += r.Count
		if !snaps[r.Value] {
			t.Errorf("%d records under the snapshot %s, which never was in force", r.Count, r.Value)
		}
	}
	if total != asked.Load() || len(records) < reloads/2 {
		t.Errorf("%d requests, %d records under %d of %d snapshots", asked.Load(), total, len(records), len(snaps))
	}
	got := s.reloads()
	if len(got) != reloads {
		t.Fatalf("%d records of %d reloads", len(got), reloads)
	}
	for n, r := range got {
		f := r.Frame
		if f.Outcome != "success" || !snaps[f.Event.Before] || !snaps[f.Event.After] || r.Personal.Sub != fmt.Sprintf("uid:%d", os.Getuid()) || n > 0 && f.Event.Before != got[n-1].Frame.Event.After {
			t.Errorf("reload %d: %+v", n, r)
		}
	}
	s.stop()
	s.command(0, "verify")
}

// What is wrong with a new configuration leaves the old one in force, says why,
// and is a record.
func TestReloadRefused(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	good := reloadConfig{upstream: up.URL}
	s.configure(good)
	s.start()
	defer s.stop()
	text := string(s.read("gatebook.yaml"))
	snap := s.status().Snapshot
	swap := func(from, to string) func() {
		return func() {
			changed := strings.Replace(text, from, to, 1)
			if changed == text {
				t.Fatalf("%q is not in the configuration", from)
			}
			s.replace("gatebook.yaml", changed)
		}
	}
	rows := []struct {
		name   string
		change func()
		cause  string
		target string
		says   string
	}{
		{"no YAML", swap("node:", "node"), "invalid", "", "gatebook.yaml"},
		{"unknown key", swap("routes:", "rutes:"), "invalid", "", "did you mean routes"},
		{"no routes", swap("  - {name: all, path: \"/{rest...}\", upstream: app, public: true}", "  []"), "invalid", "routes", "list is empty"},
		{"a route that says nothing of who may ask", swap(", public: true", ""), "invalid", "routes[0]", "neither who may ask"},
		{"another data folder", swap("data: data", "data: data2"), "fixed", "data", "only a restart can change data"},
		{"another node", swap("node: gate-1", "node: gate-2"), "fixed", "node", "only a restart"},
		{"another origin", swap("example.com/test", "example.com/best"), "fixed", "origin", "only a restart"},
		{"other keys", swap("file: keys", "file: keys2"), "fixed", "keys", "only a restart"},
		{"another address", swap(s.addr, freeAddr(t)), "fixed", "listen.public.address", "only a restart"},
		{"a certificate that is not there", swap("tls/localhost.crt", "tls/gone.crt"), "invalid", "listen[0].tls.certificates[0].cert", "no such file"},
		{"a policy that cannot be read", func() { s.replace("policies/open.cedar", "permit (principal") }, "policies", "", "open.cedar"},
		{"a policy against the schema", func() {
			s.replace("policies/open.cedar", "@id(\"x\")\npermit (principal, action, resource) when { context.colour == \"red\" };\n")
		}, "policies", "", "open.cedar"},
		{"policies that allow nothing", func() { s.replace("policies/open.cedar", "// nothing\n") }, "denies_all", "", "every request would be denied"},
		{"no policy folder", func() { os.RemoveAll(filepath.Join(s.dir, "policies")) }, "invalid", "policies.dir", "no such directory"},
		{"no file", func() { os.Remove(filepath.Join(s.dir, "gatebook.yaml")) }, "unreadable", "", "no such file"},
	}
	elsewhere := filepath.Join(t.TempDir(), "same.yaml") // the command needs a configuration to find the socket
	if err := os.WriteFile(elsewhere, []byte(strings.ReplaceAll(text, "data: data", "data: "+filepath.Join(s.dir, "data"))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		row.change()
		s.run(2, "reload", "-c", elsewhere)
		if !strings.Contains(s.said, row.says) || !strings.Contains(s.said, "stays in force") {
			t.Errorf("%s: the command says %s", row.name, s.said)
		}
		s.replace("gatebook.yaml", text)
		s.replace("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
		st := s.status()
		if st.Snapshot != snap || st.LastReload.Outcome != "failure" || st.LastReload.Cause != row.cause || !strings.Contains(st.LastReload.Error, row.says) {
			t.Errorf("%s: status %+v", row.name, st)
		}
		if resp := s.get("/x"); resp.StatusCode != 200 {
			t.Errorf("%s: then a request is answered %d", row.name, resp.StatusCode)
		}
	}
	got := s.reloads()
	if len(got) != len(rows) {
		t.Fatalf("%d records of %d refused reloads", len(got), len(rows))
	}
	for n, r := range got {
		e := r.Frame.Event
		if r.Frame.Outcome != "failure" || e.Cause != rows[n].cause || e.Before != snap || rows[n].target != "" && !strings.Contains(e.Target, rows[n].target) {
			t.Errorf("%s: %+v", rows[n].name, r)
		}
	}
	if !s.stderr.shows("the configuration was not reloaded") {
		t.Error("the log does not say so")
	}
	if out := s.command(0, "reload"); !strings.Contains(out, "nothing that is declared has changed") {
		t.Errorf("a reload of the same says %s", out)
	}
}

// What a new configuration gives up is done, for it says so plainly, and told.
func TestReloadWarnings(t *testing.T) {
	up := newUpstream(t)
	s, _ := identitySite(t, up.URL)
	s.start()
	defer s.stop()
	text := string(s.read("gatebook.yaml"))
	s.replace("gatebook.yaml", strings.NewReplacer(
		`{name: orders.read, path: "/v1/orders/{id}", methods: [GET], upstream: app, authn: [{jwt: corp}]}`, `{name: orders.read, path: "/v1/orders/{id}", methods: [GET], upstream: app, public: true, audit: {on_failure: allow, intent: none}}`,
		`, limits: [slow]`, ``, `, scopes: ["admin:all"]`, ``, `  - {name: reports, path: "/v1/reports", methods: [GET], upstream: gone, authn: [{jwt: corp}]}`+"\n", ``, `[\"orders.read\", reports,`, `[`, `reports, `, ``,
	).Replace(text))
	out := s.command(0, "reload")
	for _, want := range []string{
		"route orders.read: it is public now", "route orders.read: it answers even if", "route orders.read: not every request is noted",
		"route burst: it has no limits", "route scoped: it demands no scopes", "route reports: it is gone",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no warning %q in:\n%s", want, out)
		}
	}
}

// A hang-up reloads; so does a changed file if that is asked for.
func TestReloadBySignalAndWatch(t *testing.T) {
	t.Parallel()
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.configure(reloadConfig{upstream: up.URL})
	s.start()
	defer s.stop()
	first := s.status().Snapshot

	s.configure(reloadConfig{upstream: up.URL, route: "signalled"})
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.until("a reload by SIGHUP", func() bool { return s.status().Snapshot != first })
	second := s.status().Snapshot

	// A file that is wrong changes nothing and does not end the server.
	s.replace("gatebook.yaml", "nonsense\n")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.until("a refused reload", func() bool { return s.stderrShows(`"cause":"invalid"`) })
	s.configure(reloadConfig{upstream: up.URL, route: "watched", more: "reload: {watch: true}"})
	s.command(0, "reload")
	third := s.status().Snapshot
	if second == first || third == second {
		t.Fatalf("snapshots %s %s %s", first, second, third)
	}

	// From now on nobody needs to ask.
	s.configure(reloadConfig{upstream: up.URL, route: "changed", more: "reload: {watch: true}"})
	s.until("a reload by a changed configuration", func() bool { return s.status().Snapshot != third })
	fourth := s.status().Snapshot
	s.replace("policies/more.cedar", "@id(\"more\")\npermit (principal, action, resource);\n")
	s.until("a reload by a new policy", func() bool { return s.status().Snapshot != fourth })
	fifth := s.status().Snapshot
	s.replace("policies/more.cedar", "permit (")
	s.until("a refusal of a wrong policy", func() bool { return s.status().LastReload.Cause == "policies" })
	if s.status().Snapshot != fifth {
		t.Error("a wrong policy changed the snapshot")
	}
	by := map[string]int{}
	for _, r := range s.reloads() {
		by[r.Personal.Sub+" "+r.Frame.Outcome]++
	}
	me := fmt.Sprintf("uid:%d", os.Getuid())
	for who, n := range map[string]int{"signal success": 1, "signal failure": 1, me + " success": 1, "watch success": 2, "watch failure": 1} {
		if by[who] != n {
			t.Errorf("%d records by %q, want %d: %v", by[who], who, n, by)
		}
	}
}

func (s *site) stderrShows(text string) bool { return strings.Contains(s.stderr.String(), text) }

// An exchange ends with the configuration that it began with, even if its
// upstream is gone from the new one.
func TestReloadKeepsExchange(t *testing.T) {
	began, end := make(chan struct{}), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		close(began)
		<-end
		io.WriteString(w, "old")
	}))
	defer slow.Close()
	up := newUpstream(t)
	s := newSite(t, slow.URL)
	s.configure(reloadConfig{upstream: slow.URL})
	s.start()
	defer s.stop()
	before := s.status().Snapshot
	answer := make(chan string, 1)
	go func() {
		resp, err := s.client.Get("https://" + s.addr + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		answer <- fmt.Sprint(string(b), " ", err)
	}()
	<-began
	s.configure(reloadConfig{upstream: up.URL, route: "new"})
	s.command(0, "reload")
	s.get("/quick")
	close(end)
	if got := <-answer; got != "old <nil>" {
		t.Errorf("the exchange under way ended as %q", got)
	}
	out := s.command(0, "search", `kind == "request"`, "--json")
	dec := json.NewDecoder(strings.NewReader(out))
	for range 2 {
		var r struct{ Frame struct{ Snap, Route string } }
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if (r.Frame.Snap == before) != (r.Frame.Route == "all") {
			t.Errorf("route %s under snapshot %s", r.Frame.Route, r.Frame.Snap)
		}
	}
}

// What was learned survives: the keys of issuers, and what limits have counted.
func TestReloadKeepsLiveState(t *testing.T) {
	var fetches atomic.Int64
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	var away atomic.Bool
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fetches.Add(1)
		if away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Write(env.JWKS)
	}))
	defer idp.Close()
	up := newUpstream(t)
	s, _ := identitySite(t, up.URL)
	s.replace("gatebook.yaml", strings.Replace(string(s.read("gatebook.yaml")), "jwks: {file: jwks.json}", fmt.Sprintf("jwks: {url: %q}", idp.URL), 1))
	s.start()
	defer s.stop()
	ask := func(path string) int {
		t.Helper()
		req, err := http.NewRequest("GET", "https://"+s.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token(env, "ann", "clerk", nil))
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for range 2 {
		if got := ask("/v1/burst"); got != 200 {
			t.Fatalf("status %d", got)
		}
	}
	if fetches.Load() == 0 {
		t.Fatal("nobody asked the issuer for its keys")
	}
	away.Store(true) // from here on the issuer cannot be asked
	for n, change := range []struct{ from, to string }{
		{`path: "/v1/scoped"`, `path: "/v1/scopes"`},
		{`issuer: "` + jwtattack.Issuer, `skew: 20s, issuer: "` + jwtattack.Issuer}, // the issuer itself, but not where its keys come from
	} {
		text := string(s.read("gatebook.yaml"))
		changed := strings.Replace(text, change.from, change.to, 1)
		if changed == text {
			t.Fatalf("%q is not in the configuration", change.from)
		}
		s.replace("gatebook.yaml", changed)
		if out := s.command(0, "reload"); strings.Contains(out, "warning") {
			t.Errorf("reload %d: %s", n, out)
		}
		if got := ask("/v1/orders/7"); got != 200 {
			t.Errorf("after reload %d an order is answered %d", n, got)
		}
		if got := ask("/v1/burst"); got != 429 {
			t.Errorf("after reload %d the limit's count is gone: %d", n, got)
		}
	}
}

// Certificates are taken when they change and are good; those that are not are
// told of, and the ones before stay.
func TestCertificatesAreWatched(t *testing.T) {
	t.Parallel()
	up := newUpstream(t)
	s := newSite(t, up.URL)
	health := freeAddr(t)
	s.configure(reloadConfig{upstream: up.URL, more: fmt.Sprintf("health: {address: %q}", health)})
	s.start()
	defer s.stop()
	other := newSite(t, up.URL) // for a second certificate
	served := func() []byte {
		t.Helper()
		c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Raw
	}
	page := func(path string) string {
		t.Helper()
		resp, err := http.Get("http://" + health + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	first := served()
	if text := page("/metrics"); !strings.Contains(text, `gatebook_certificate_expiry_seconds{listener="public"}`) {
		t.Error("no metric of the certificate")
	}
	for range 2 {
		if r := s.get("/v1/orders/1"); r.StatusCode != 200 {
			t.Fatalf("status %d", r.StatusCode)
		}
	}
	target := fmt.Sprintf(`{target=%q,upstream="app"} `, up.URL)
	for name, value := range map[string]string{"requests_total": "2", "reused_total": "1", "failures_total": "0", "in_flight": "0", "ejected": "0"} {
		if line := "\ngatebook_upstream_" + name + target + value + "\n"; !strings.Contains(page("/metrics"), line) {
			t.Errorf("no%s in\n%s", line, page("/metrics"))
		}
	}

	// A certificate without its key is half of a change.
	s.replace("tls/localhost.crt", string(other.read("tls/localhost.crt")))
	s.until("a note of the wrong pair", func() bool { return s.status().Listeners[0].Certificates[0].Wrong != "" })
	if !bytes.Equal(served(), first) {
		t.Error("a certificate without its key is served")
	}
	if text := page("/readyz"); !strings.HasPrefix(text, "ready\n") || !strings.Contains(text, "note: listener public: changed certificates are not used") {
		t.Errorf("readiness: %q", text)
	}
	s.replace("tls/localhost.key", string(other.read("tls/localhost.key")))
	s.until("the new certificate", func() bool { return !bytes.Equal(served(), first) })
	if c := s.status().Listeners[0].Certificates[0]; c.Wrong != "" || c.State != "ok" {
		t.Errorf("status %+v", c)
	}
	second := served()

	// One that nobody would take is not taken.
	cert, key := shortPair(t, -2*time.Hour, -time.Hour)
	s.replace("tls/localhost.crt", cert)
	s.replace("tls/localhost.key", key)
	s.until("a note of the expired pair", func() bool {
		return strings.Contains(s.status().Listeners[0].Certificates[0].Wrong, "expired")
	})
	if !bytes.Equal(served(), second) {
		t.Error("an expired certificate is served")
	}
	// One that will not last is taken and told of.
	cert, key = shortPair(t, -99*time.Hour, time.Hour)
	s.replace("tls/localhost.crt", cert)
	s.replace("tls/localhost.key", key)
	s.until("the short-lived certificate", func() bool { return s.status().Listeners[0].Certificates[0].State == "expiring" })
	if text := page("/readyz"); !strings.Contains(text, "the certificate expires on") {
		t.Errorf("readiness: %q", text)
	}
	if out := s.command(0, "status"); !strings.Contains(out, "(expiring)") {
		t.Errorf("status:\n%s", out)
	}
}
