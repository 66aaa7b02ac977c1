package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// from is the site's client behind another address of this machine.
func (s *site) from(address string) *http.Client {
	t := s.client.Transport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext
	s.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 20 * time.Second}
}

// alertRecord is what a test looks at in an alert.
type alertRecord struct {
	Frame struct {
		ID, Outcome, Subject string
		Client               struct{ Prefix string }
		Error                struct{ Origin, Reason string }
		Links                []string
		Event                struct {
			Name, Cause string
			Count       int64
			Exact       bool
			First, Last int64
		}
	}
	Personal struct{ Sub, Claimed, IP string }
}

// alerts waits until the alerts of a name tell of so many events.
func (s *site) alerts(name string, events int64) (out []alertRecord) {
	s.t.Helper()
	late := time.Now().Add(time.Minute)
	for {
		out = nil
		sum := int64(0)
		for line := range strings.Lines(s.command(0, "search", fmt.Sprintf("kind == \"alert\" && event.name == %q", name), "--reveal", "--json")) {
			var a alertRecord
			if err := json.Unmarshal([]byte(line), &a); err != nil {
				s.t.Fatal(err)
			}
			out = append(out, a)
			sum += a.Frame.Event.Count
		}
		if sum >= events {
			if sum > events {
				s.t.Errorf("alerts %s tell of %d events, want %d", name, sum, events)
			}
			return out
		}
		if time.Now().After(late) {
			s.t.Fatalf("alerts %s tell of %d events, want %d: %+v", name, sum, events, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestFailedLogins guesses at the real program: what is held back and what is
// not, in answers, records, metrics and alerts.
func TestFailedLogins(t *testing.T) {
	up := newUpstream(t)
	s, env := keySite(t, up.URL)
	health := freeAddr(t)
	s.replace("gatebook.yaml", string(s.read("gatebook.yaml"))+fmt.Sprintf("health: {address: %q}\ndetect: {failed_logins: {rate: 6/h, name: 4/h, spread: 8/h}}\n", health))
	s.start()
	defer s.stop()
	_, key := s.newKey("--owner", "billing", "--role", "clerk")
	ask := func(c *http.Client, credential string) (int, string) {
		t.Helper()
		req, err := http.NewRequest("GET", "https://"+s.addr+"/v1/orders/7", nil)
		if err != nil {
			t.Fatal(err)
		}
		if credential != "" {
			req.Header.Set("Authorization", "Bearer "+credential)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("X-Request-Id")
	}
	forged := func(sub string, n int) string {
		good := token(env, sub, "clerk", nil)
		return good[:len(good)-8] + fmt.Sprintf("AAAAAA%cA", 'A'+n)
	}
	mallory, office, elsewhere := s.from("127.77.1.1"), s.from("127.77.2.1"), s.from("127.77.3.1")
	good := token(env, "bob", "clerk", nil)
	if status, _ := ask(mallory, good); status != 200 {
		t.Fatalf("bob is answered %d", status)
	}
	// One name, four times; then the name is held back, and only there.
	for i := range 4 {
		if status, _ := ask(mallory, forged("ann", i)); status != 401 {
			t.Fatalf("try %d: %d", i, status)
		}
	}
	status, id := ask(mallory, forged("ANN", 9))
	if status != 429 {
		t.Errorf("the fifth: %d", status)
	}
	if got := s.command(0, "show", id, "--reveal"); !strings.Contains(got, `"rule": "failed_logins.name"`) || !strings.Contains(got, `"claimed": "ANN"`) || !strings.Contains(got, `"reason": "rate_limited"`) {
		t.Errorf("recorded %s", got)
	}
	s.command(0, "doctor", id)
	for name, c := range map[string]*http.Client{"at home": office, "on the road": elsewhere} {
		if status, _ := ask(c, token(env, "ann", "clerk", nil)); status != 200 {
			t.Errorf("ann %s is answered %d", name, status)
		}
	}
	if status, _ := ask(mallory, token(env, "carol", "clerk", nil)); status != 200 {
		t.Errorf("carol behind the same address is answered %d", status)
	}
	// Many names: then the address is held back, but for whom it is known to be good.
	for i := range 2 {
		ask(mallory, forged(fmt.Sprint("user", i), i))
	}
	if status, _ := ask(mallory, forged("user7", 7)); status != 429 {
		t.Errorf("the seventh failure: %d", status)
	}
	for name, row := range map[string]struct {
		credential string
		status     int
	}{
		"a token that was checked before": {good, 200},
		"an API key":                      {key, 200},
		"an unknown API key":              {"gbk_" + strings.Repeat("1", 43) + crcOf("gbk_"+strings.Repeat("1", 43)), 429},
		"a new token":                     {token(env, "dan", "clerk", nil), 429},
		"no credential":                   {"", 401},
	} {
		if status, _ := ask(mallory, row.credential); status != row.status {
			t.Errorf("%s: %d, want %d", name, status, row.status)
		}
	}
	if status, _ := ask(office, forged("eve", 0)); status != 401 {
		t.Errorf("another address: %d", status)
	}
	if n := metric(t, health, "gatebook_authn_held_back_total"); n != 4 {
		t.Errorf("%v requests were held back", n)
	}
	if n := metric(t, health, `gatebook_authn_verifications_total{turn="at_once"}`); n < 10 {
		t.Errorf("%v signatures were checked", n)
	}
	if n := metric(t, health, `gatebook_authn_fetches_total{issuer="corp",outcome="good"}`); n < 1 {
		t.Errorf("keys were fetched %v times", n)
	}
	// Four held back, and the fourth of the name and the sixth of the address.
	got := s.alerts("authn_login_fail_max", 6)
	if a := got[0]; a.Frame.Client.Prefix != "127.77.1.0/24" || a.Frame.Outcome != "failure" || !a.Frame.Event.Exact || a.Frame.Event.First == 0 || a.Frame.Event.Last < a.Frame.Event.First || len(a.Frame.Links) != 1 || a.Personal.IP != "" {
		t.Errorf("%+v", a)
	}
	if linked := s.search(fmt.Sprintf("id == %q", got[0].Frame.Links[0])); len(linked) != 1 || linked[0].Frame.Kind != "request" {
		t.Errorf("the alert links %+v", linked)
	}
	if n := metric(t, health, `gatebook_alerts_total{name="authn_login_fail_max"}`); int(n) != len(got) {
		t.Errorf("%v alerts are counted of %d", n, len(got))
	}
}

// TestAlertRecords brings about a series of each kind from a network of its own:
// each is told of by one alert, with the exact number, however long it goes on in
// the window.
func TestAlertRecords(t *testing.T) {
	up := newUpstream(t)
	s, env := keySite(t, up.URL)
	s.replace("gatebook.yaml", string(s.read("gatebook.yaml"))+`
detect:
  window: 1h
  failed_logins: {action: count}
  alerts: {authn_login_fail: 3, authz_fail: 3, excess_rate_limit_exceeded: 3, input_validation_fail: 3, malicious_excess_404: 3, authn_login_fail_max: 0}
`)
	s.start()
	clerk := "Bearer " + token(env, "ann", "clerk", nil)
	for i, row := range []struct {
		name, method, path, credential string
		status                         int
		reason                         string
		subject                        bool
	}{
		{"authn_login_fail", "GET", "/v1/orders/7", "Bearer nonsense", 401, "token_malformed", false},
		{"authz_fail", "POST", "/v1/orders/7", clerk, 403, "denied_by_default", true},
		{"excess_rate_limit_exceeded", "GET", "/v1/burst", clerk, 429, "rate_limited", true},
		{"input_validation_fail", "GET", "/v1/orders/../x", clerk, 400, "bad_path", false},
		{"malicious_excess_404", "GET", "/v1/wp-login.php", "", 404, "no_route", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := s.from(fmt.Sprintf("127.78.%d.1", i+1))
			hit := 0
			for hit < 40 {
				req, err := http.NewRequest(row.method, "https://"+s.addr+"/", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.URL = &url.URL{Scheme: "https", Host: s.addr, Opaque: row.path}
				if row.credential != "" {
					req.Header.Set("Authorization", row.credential)
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				switch {
				case resp.StatusCode == row.status:
					hit++
				case resp.StatusCode != 200 || hit > 0:
					t.Fatalf("status %d", resp.StatusCode)
				}
			}
		})
	}
	s.stop() // which tells what the window has not told yet
	for i, name := range []string{"authn_login_fail", "authz_fail", "excess_rate_limit_exceeded", "input_validation_fail", "malicious_excess_404"} {
		got := s.alerts(name, 40)
		if len(got) > 2 {
			t.Errorf("%s: %d alerts of one series in one window and at its end", name, len(got))
		}
		for _, a := range got {
			bySubject := name == "authz_fail" || name == "excess_rate_limit_exceeded"
			if want := fmt.Sprintf("127.78.%d.0/24", i+1); bySubject != (a.Personal.Sub == "ann") || bySubject == (a.Frame.Client.Prefix == want) || a.Frame.Event.Cause != a.Frame.Error.Reason {
				t.Errorf("%s: %+v", name, a)
			}
		}
	}
	if n := len(s.search(`kind == "alert" && event.name == "authn_login_fail_max"`)); n != 0 {
		t.Errorf("%d alerts that are switched off", n)
	}
	s.command(0, "verify")
}

// TestBypassAdmin is the part of the bypass catalogue that is about
// administration: Kong CVE-2020-11710 (its administration listened on all
// addresses by default) and Caddy GO-2026-5408, -5743 (who may do what was told
// by the beginning of a path, and by an index that had more than one spelling).
func TestBypassAdmin(t *testing.T) {
	t.Run("Kong CVE-2020-11710", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "gate")
		s := &site{t: t, dir: dir}
		s.run(0, "init", dir, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
		text := string(s.read("gatebook.yaml"))
		for _, port := range []string{":8443", "127.0.0.1:9080"} {
			text = strings.ReplaceAll(text, `"`+port+`"`, `"`+freeAddr(t)+`"`)
		}
		s.replace("gatebook.yaml", text)
		s.start()
		defer s.stop()
		if strings.Contains(s.stderr.String(), "administration") {
			t.Errorf("administration is served over TCP by default: %s", s.stderr)
		}
		st, err := os.Stat(filepath.Join(dir, "data", "admin.sock"))
		if err != nil || st.Mode().Perm() != 0o600 || st.Mode().Type() != os.ModeSocket {
			t.Errorf("the socket: %v, %v", st, err)
		}
		// Without an address nothing of it is a listener, and an address alone is refused.
		for _, extra := range []string{`address: ":9443"`, `address: "0.0.0.0:9443", roles: {operator: ["cn:x"]}`} {
			s.write("open.yaml", strings.Replace(text, "\nadmin:\n  socket: true\n", "\nadmin: {"+extra+"}\n", 1))
			s.run(2, "check", filepath.Join(dir, "open.yaml"))
		}
	})
	t.Run("Caddy GO-2026-5408, -5743", func(t *testing.T) {
		a := newAdminSite(t)
		id, _ := a.newKey("--owner", "billing")
		ops, ada := a.as(cn("ops")), a.as(cn("ada"))
		json := []string{"Content-Type: application/json"}
		if status, body := a.call(ops, adminCall{method: "GET", path: "/api/v1/apikeys/" + id}); status != 200 {
			t.Fatalf("the operator is answered %d %s", status, body)
		}
		create := `{"name":"n","owner":"o"}`
		for _, row := range []struct {
			name   string
			client *http.Client
			call   adminCall
			status []int
		}{
			{"a reader lists", ada, adminCall{method: "GET", path: "/api/v1/apikeys"}, []int{403}},
			{"a reader shows", ada, adminCall{method: "GET", path: "/api/v1/apikeys/" + id}, []int{403}},
			{"a reader creates", ada, adminCall{method: "POST", path: "/api/v1/apikeys", headers: json, body: create}, []int{403}},
			{"a reader rotates", ada, adminCall{method: "POST", path: "/api/v1/apikeys/" + id + "/rotate", headers: json, body: "{}"}, []int{403}},
			{"a reader revokes", ada, adminCall{method: "POST", path: "/api/v1/apikeys/" + id + "/revoke", headers: json, body: "{}"}, []int{403}},
			{"a reader, through a path of theirs", ada, adminCall{method: "POST", path: "/api/v1/records/../apikeys/" + id + "/revoke", headers: json}, []int{301, 307, 308, 404, 405}},
			{"a reader, with two slashes", ada, adminCall{method: "POST", path: "//api/v1/apikeys/" + id + "/revoke", headers: json}, []int{301, 307, 308, 404, 405}},
			{"a reader, with an encoded slash", ada, adminCall{method: "POST", path: "/api/v1/apikeys%2f" + id + "%2frevoke", headers: json}, []int{404, 405}},
			{"a reader, in other case", ada, adminCall{method: "GET", path: "/API/V1/apikeys"}, []int{404}},
			{"a reader, with a tail", ada, adminCall{method: "GET", path: "/api/v1/apikeysX"}, []int{404}},
			{"a reader, with a slash at the end", ada, adminCall{method: "GET", path: "/api/v1/apikeys/"}, []int{403, 404}},
			{"a reader, by another method", ada, adminCall{method: "PUT", path: "/api/v1/apikeys", headers: json, body: create}, []int{405}},
			{"a reader, HEAD", ada, adminCall{method: "HEAD", path: "/api/v1/apikeys"}, []int{403}},
			{"a reader who asks for a role", ada, adminCall{method: "GET", path: "/api/v1/apikeys?role=operator&reveal=false"}, []int{403}},
			{"somebody without a certificate", a.as(), adminCall{method: "GET", path: "/api/v1/apikeys"}, []int{401}},
			{"somebody whose name begins like the operator's", a.as(cn("ops2")), adminCall{method: "GET", path: "/api/v1/apikeys"}, []int{403}},
			{"somebody whose name is in other case", a.as(cn("OPS")), adminCall{method: "GET", path: "/api/v1/apikeys"}, []int{403}},
			{"somebody of two names", a.as(&x509.Certificate{DNSNames: []string{"ops"}}), adminCall{method: "GET", path: "/api/v1/apikeys"}, []int{403}},
			{"the operator, another spelling of an id", ops, adminCall{method: "GET", path: "/api/v1/apikeys/" + strings.ToUpper(id)}, []int{404}},
			{"the operator, an index", ops, adminCall{method: "GET", path: "/api/v1/apikeys/0"}, []int{404}},
			{"the operator, an id and more", ops, adminCall{method: "GET", path: "/api/v1/apikeys/" + id + "%00"}, []int{400, 404}},
			{"the operator, an unknown member", ops, adminCall{method: "POST", path: "/api/v1/apikeys", headers: json, body: `{"name":"n","owner":"o","id":"` + id + `"}`}, []int{400}},
			{"the operator, two values", ops, adminCall{method: "POST", path: "/api/v1/apikeys", headers: json, body: create + create}, []int{400}},
			{"the operator, a form", ops, adminCall{method: "POST", path: "/api/v1/apikeys", headers: []string{"Content-Type: text/plain"}, body: create}, []int{415}},
			{"the operator, from a page", ops, adminCall{method: "POST", path: "/api/v1/apikeys", headers: append([]string{"Origin: https://evil.example"}, json...), body: create}, []int{403}},
		} {
			client := *row.client
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			status, body := a.call(&client, row.call)
			good := false
			for _, want := range row.status {
				good = good || status == want
			}
			if !good || strings.Contains(body, "gbk_") || strings.Contains(body, "billing") {
				t.Errorf("%s: %d, want one of %v: %s", row.name, status, row.status, body)
			}
		}
		if n := len(a.search(`kind == "key" && outcome == "success"`)); n != 1 {
			t.Errorf("%d changes of keys are recorded, want the first only", n)
		}
		if n := len(a.search(`event.name in ["apikey_create", "apikey_rotate", "apikey_revoke"] && kind == "admin" && outcome == "failure"`)); n != 3 {
			t.Errorf("%d refused changes are recorded", n)
		}
		if status, body := a.call(ops, adminCall{method: "GET", path: "/api/v1/apikeys/" + id}); status != 200 || !strings.Contains(body, `"active"`) {
			t.Errorf("then the key is %s", body)
		}
	})
}
