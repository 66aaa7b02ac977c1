package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// adminSite is a gate whose administration is served over TCP, too.
type adminSite struct {
	*site
	env    *jwtattack.Env
	admins *authority
	addr   string
	id     string // of a request that the gate has answered
}

func newAdminSite(t *testing.T) *adminSite {
	t.Helper()
	up := newUpstream(t)
	s, env := identitySite(t, up.URL)
	a := &adminSite{site: s, env: env, admins: newAuthority(t, "admins"), addr: freeAddr(t)}
	s.write("admins.pem", a.admins.pem())
	text := string(s.read("gatebook.yaml"))
	text += fmt.Sprintf(`admin:
  address: %q
  tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}], client_ca: admins.pem}
  roles:
    reader: ["cn:ada", "email:eve@example.com", "role:corp:auditor", "cn:rev"]
    reveal: ["cn:rev"]
    operator: ["cn:ops", "sub:corp:olga"]
    privacy: ["uri:spiffe://example.com/dpo"]
    decide: ["cn:pep"]
`, a.addr)
	s.replace("gatebook.yaml", text)
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	s.start()
	t.Cleanup(s.stop)
	req, err := http.NewRequest("GET", "https://"+s.addr+"/v1/orders/7", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token(env, "ann", "clerk", nil))
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	a.id = resp.Header.Get("X-Request-Id")
	return a
}

// as is a client with a certificate of that name, or without one.
func (a *adminSite) as(names ...*x509.Certificate) *http.Client {
	a.t.Helper()
	c := a.tls()
	for _, n := range names {
		c.Certificates = append(c.Certificates, a.admins.client(n))
	}
	return a.with(c)
}

func (a *adminSite) with(c *tls.Config) *http.Client {
	tr := &http.Transport{TLSClientConfig: c}
	a.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func cn(name string) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}}
}

// adminCall is one call and its headers, as "name: value".
type adminCall struct {
	method, path string
	headers      []string
	body         string
}

func (a *adminSite) call(c *http.Client, k adminCall) (status int, body string) {
	a.t.Helper()
	req, err := http.NewRequest(k.method, "https://"+a.addr+k.path, strings.NewReader(k.body))
	if err != nil {
		a.t.Fatal(err)
	}
	for _, h := range k.headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Add(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		a.t.Fatalf("%s %s: %v", k.method, k.path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", k.method, k.path, err)
	}
	return resp.StatusCode, string(b)
}

// callRecord is the record of a call.
type callRecord struct {
	Index uint64
	Frame struct {
		Kind, Outcome string
		Status        int
		Event         struct{ Name, Cause, Target string }
		Authn         struct{ Method, Issuer, Reason string }
		Client        struct{ Prefix string }
		Error         struct{ Origin, Reason string }
	}
	Personal struct {
		Sub  string
		IP   string
		Cert string `json:"cert_subject"`
	}
}

// calls returns the records of calls over TCP that were made after the index.
func (a *adminSite) calls(after int) (out []callRecord) {
	a.t.Helper()
	text := a.command(0, "search", fmt.Sprintf(`index > %d && kind in ["access", "admin", "config"] && client.prefix != "none" && client.prefix != ""`, after), "--json", "--reveal")
	dec := json.NewDecoder(strings.NewReader(text))
	for {
		var r callRecord
		err := dec.Decode(&r)
		if err == io.EOF {
			return out
		}
		if err != nil {
			a.t.Fatal(err)
		}
		out = append(out, r)
	}
}

// Who may do what over TCP, by certificate and by token; every call is a record
// with its caller, whether it was granted or not.
func TestAdminRoles(t *testing.T) {
	a := newAdminSite(t)
	bearer := func(sub, role string) []string {
		return []string{"Authorization: Bearer " + token(a.env, sub, role, nil)}
	}
	post := func(h []string) []string { return append([]string{"Content-Type: application/json"}, h...) }
	ada, rev, ops := a.as(cn("ada")), a.as(cn("rev")), a.as(cn("ops"))
	eve := a.as(&x509.Certificate{EmailAddresses: []string{"eve@example.com"}})
	uri, _ := url.Parse("spiffe://example.com/dpo")
	dpo := a.as(&x509.Certificate{URIs: []*url.URL{uri}})
	none, pep := a.as(), a.as(cn("pep"))
	const question = `{"subject":{"type":"user","id":"corp|ann"},"action":{"name":"GET"},"resource":{"type":"route","id":"orders"}}`
	changing := []string{"reload", "session_revoke", "refused", "token_issue", "token_revoke_family", "token_rotate_keys"}
	last := -1
	for _, row := range []struct {
		name   string
		client *http.Client
		call   adminCall
		status int
		event  string // of its record
		cause  string
		method string
		sub    string
	}{
		{"reader searches", ada, adminCall{method: "GET", path: "/api/v1/records?q=kind+%3D%3D+%22request%22"}, 200, "search", "frames", "mtls", "cn:ada"},
		{"reader by e-mail", eve, adminCall{method: "GET", path: "/api/v1/records/" + a.id}, 200, "show", "frames", "mtls", "email:eve@example.com"},
		{"reader counts", ada, adminCall{method: "GET", path: "/api/v1/counts?by=status"}, 200, "count", "frames", "mtls", "cn:ada"},
		{"reader proves", ada, adminCall{method: "GET", path: "/api/v1/records/" + a.id + "/proof"}, 200, "prove", "frames", "mtls", "cn:ada"},
		{"reader asks doctor", ada, adminCall{method: "GET", path: "/api/v1/records/" + a.id + "?act=doctor"}, 200, "doctor", "frames", "mtls", "cn:ada"},
		{"auditor by token", none, adminCall{method: "GET", path: "/api/v1/records/" + a.id, headers: bearer("aud", "auditor")}, 200, "show", "frames", "jwt", "aud"},
		{"reader must not reveal", ada, adminCall{method: "GET", path: "/api/v1/records/" + a.id + "?reveal=true"}, 403, "show", "without_reveal", "mtls", "cn:ada"},
		{"revealer reveals", rev, adminCall{method: "GET", path: "/api/v1/records/" + a.id + "?reveal=true"}, 200, "show", "reveal", "mtls", "cn:rev"},
		{"reader must not reload", ada, adminCall{method: "POST", path: "/api/v1/reload", headers: post(nil)}, 403, "reload", "without_operator", "mtls", "cn:ada"},
		{"operator reloads", ops, adminCall{method: "POST", path: "/api/v1/reload", headers: post(nil)}, 200, "reload", "", "mtls", "cn:ops"},
		{"operator by subject reloads", none, adminCall{method: "POST", path: "/api/v1/reload", headers: post(bearer("olga", "clerk"))}, 200, "reload", "", "jwt", "olga"},
		{"operator must not read", ops, adminCall{method: "GET", path: "/api/v1/records"}, 403, "search", "without_reader", "mtls", "cn:ops"},
		{"operator must not take the keys", ops, adminCall{method: "POST", path: "/api/v1/backup?with_keys=true", headers: post(nil)}, 403, "backup", "without_reveal", "mtls", "cn:ops"},
		{"privacy must not read", dpo, adminCall{method: "GET", path: "/api/v1/records"}, 403, "search", "without_reader", "mtls", "uri:spiffe://example.com/dpo"},
		{"operator must not decide", ops, adminCall{method: "POST", path: "/access/v1/evaluation", headers: post(nil), body: question}, 403, "evaluate", "without_decide", "mtls", "cn:ops"},
		{"reader must not decide for many", ada, adminCall{method: "POST", path: "/access/v1/evaluations", headers: post(nil), body: question}, 403, "evaluate", "without_decide", "mtls", "cn:ada"},
		{"reader must not learn where", ada, adminCall{method: "GET", path: "/.well-known/authzen-configuration"}, 403, "metadata", "without_decide", "mtls", "cn:ada"},
		{"a decider must not read", pep, adminCall{method: "GET", path: "/api/v1/records"}, 403, "search", "without_reader", "mtls", "cn:pep"},
		{"reader must not issue tokens", ada, adminCall{method: "POST", path: "/api/v1/token-service/issue", headers: post(nil), body: "{}"}, 403, "token_issue", "without_operator", "mtls", "cn:ada"},
		{"reader must not revoke families", ada, adminCall{method: "POST", path: "/api/v1/token-service/families/x/revoke", headers: post(nil)}, 403, "token_revoke_family", "without_operator", "mtls", "cn:ada"},
		{"reader must not rotate keys", ada, adminCall{method: "POST", path: "/api/v1/token-service/rotate-keys", headers: post(nil)}, 403, "token_rotate_keys", "without_operator", "mtls", "cn:ada"},
		{"reader must not end sessions", ada, adminCall{method: "POST", path: "/api/v1/sessions/revoke", headers: post(nil), body: "{}"}, 403, "session_revoke", "without_operator", "mtls", "cn:ada"},
		{"operator must not list families", ops, adminCall{method: "GET", path: "/api/v1/token-service/families"}, 403, "token_families", "without_reader", "mtls", "cn:ops"},
		{"reader verifies", ada, adminCall{method: "POST", path: "/api/v1/verify", headers: post(nil), body: "{}"}, 200, "verify", "frames", "mtls", "cn:ada"},
		{"somebody without a role", a.as(cn("mallory")), adminCall{method: "GET", path: "/api/v1/records"}, 403, "refused", "", "mtls", "cn:mallory"},
		{"a clerk's token", none, adminCall{method: "GET", path: "/api/v1/records", headers: bearer("ann", "clerk")}, 403, "refused", "", "jwt", "ann"},
		{"no such id", ada, adminCall{method: "GET", path: "/api/v1/records/019ab3c5-7a1e-7c3f-9d42-51f0c2a7e88b"}, 404, "show", "frames", "mtls", "cn:ada"},
	} {
		status, body := a.call(row.client, row.call)
		if status != row.status {
			t.Errorf("%s: status %d, want %d: %s", row.name, status, row.status, body)
		}
		if status != 200 {
			var p struct {
				Title string
				Code  int `json:"exit_code"`
			}
			if err := json.Unmarshal([]byte(body), &p); err != nil || p.Title == "" || status == 403 && p.Code != 4 || status == 404 && p.Code != 3 {
				t.Errorf("%s: answer %s", row.name, body)
			}
		}
		recs := a.calls(last)
		if len(recs) != 1 {
			t.Fatalf("%s: %d records: %+v", row.name, len(recs), recs)
		}
		last = int(recs[0].Index)
		f, p := recs[0].Frame, recs[0].Personal
		good := f.Event.Name == row.event && f.Event.Cause == row.cause && f.Authn.Method == row.method && p.Sub == row.sub && p.IP == "127.0.0.1" && f.Client.Prefix == "127.0.0.0/24"
		if !good || (f.Outcome == "success") != (status == 200 || status == 404) || row.method == "jwt" && f.Authn.Issuer != "corp" {
			t.Errorf("%s: record %+v", row.name, recs[0])
		}
		if status == 403 && (f.Kind == "admin") != slices.Contains(changing, row.event) {
			t.Errorf("%s: refused in a record of kind %s", row.name, f.Kind)
		}
	}
	for _, path := range []string{"/api/v1/status", "/log/checkpoint"} {
		if status, body := a.call(ada, adminCall{method: "GET", path: path}); status != 200 || !strings.Contains(body, "log.example.com/test/gate-1/") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if recs := a.calls(last); len(recs) != 0 {
		t.Errorf("records of the status or the checkpoint: %+v", recs)
	}
}

// What nobody may call with: each such call is refused and a record that says
// why.
func TestAdminRefusesStrangers(t *testing.T) {
	a := newAdminSite(t)
	with := func(certs ...tls.Certificate) *http.Client {
		c := a.tls()
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil // whoever the server says that it takes
		}
		return a.with(c)
	}
	none, ada := with(), with(a.admins.client(cn("ada")))
	expired := cn("ada")
	expired.NotBefore, expired.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	server := cn("ada")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	good := "Authorization: Bearer " + token(a.env, "aud", "auditor", nil)
	old := "Authorization: Bearer " + token(a.env, "aud", "auditor", func(c jwtattack.Object) jwtattack.Object {
		return c.Set("iat", fmt.Sprint(time.Now().Unix()-900)).Set("exp", fmt.Sprint(time.Now().Unix()-600))
	})
	get := func(headers ...string) adminCall {
		return adminCall{method: "GET", path: "/api/v1/records", headers: headers}
	}
	last := -1
	for _, row := range []struct {
		name   string
		client *http.Client
		call   adminCall
		status int
		reason string
	}{
		{"nothing", none, get(), 401, "no_credential"},
		{"nothing, for the checkpoint", none, adminCall{method: "GET", path: "/log/checkpoint"}, 401, "no_credential"},
		{"nothing, for the status", none, adminCall{method: "GET", path: "/api/v1/status"}, 401, "no_credential"},
		{"nothing, for a path that is not there", none, adminCall{method: "GET", path: "/../../etc/passwd"}, 401, "no_credential"},
		{"a password", none, get("Authorization: Basic YWRhOmFkYQ=="), 401, "no_credential"},
		{"a broken token", none, get("Authorization: Bearer x.y.z"), 401, "token_malformed"},
		{"an expired token", none, get(old), 401, "token_expired"},
		{"a forged token", none, get(good[:len(good)-4] + "AAAA"), 401, "token_signature"},
		{"two tokens", none, get(good, good), 401, "two_credentials"},
		{"a certificate and a token", ada, get(good), 400, "two_credentials"},
		{"a certificate of others", with(newAuthority(t, "admins").client(cn("ada"))), get(), 401, "tls_bad_client_cert"},
		{"an expired certificate", with(a.admins.client(expired)), get(), 401, "tls_bad_client_cert"},
		{"a server's certificate", with(a.admins.client(server)), get(), 401, "tls_bad_client_cert"},
		{"a nameless certificate", with(a.admins.client(&x509.Certificate{Subject: pkix.Name{Organization: []string{"ada"}}})), get(), 401, "tls_bad_client_cert"},
		{"another host", ada, get("Host: evil.example"), 421, "bad_host"},
		{"a host that begins right", ada, get("Host: localhost.evil.example"), 421, "bad_host"},
		{"a page", ada, get("Origin: https://evil.example"), 403, "malformed_request"},
		{"a page of no origin", ada, get("Origin: null"), 403, "malformed_request"},
		{"a picture in a page", ada, get("Sec-Fetch-Site: cross-site"), 403, "malformed_request"},
		{"a form", with(a.admins.client(cn("ops"))), adminCall{method: "POST", path: "/api/v1/reload", headers: []string{"Content-Type: application/x-www-form-urlencoded"}}, 415, "malformed_request"},
		{"a form without a type", with(a.admins.client(cn("ops"))), adminCall{method: "POST", path: "/api/v1/reload"}, 415, "malformed_request"},
	} {
		status, body := a.call(row.client, row.call)
		if status != row.status || strings.Contains(body, "index") || !strings.Contains(body, "title") {
			t.Errorf("%s: status %d, want %d: %s", row.name, status, row.status, body)
		}
		recs := a.calls(last)
		if len(recs) != 1 {
			t.Fatalf("%s: %d records: %+v", row.name, len(recs), recs)
		}
		last = int(recs[0].Index)
		if f := recs[0].Frame; f.Kind != "admin" || f.Outcome != "failure" || f.Error.Reason != row.reason || f.Status != row.status || f.Event.Name != "refused" || recs[0].Personal.IP != "127.0.0.1" {
			t.Errorf("%s: record %+v", row.name, recs[0])
		}
	}
	// A good caller is served all the same.
	if status, _ := a.call(ada, get("Host: "+a.addr)); status != 200 {
		t.Errorf("then a reader is answered %d", status)
	}
}

// Bytes that are no call: the listener closes, answers an error, or refuses,
// and goes on.
func TestAdminHostileBytes(t *testing.T) {
	a := newAdminSite(t)
	ada := a.admins.client(cn("ada"))
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	secure := func() net.Conn {
		t.Helper()
		conf := a.tls()
		conf.Certificates = []tls.Certificate{ada}
		c := tls.Client(dial(), conf)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	const head = " HTTP/1.1\r\nHost: localhost\r\n"
	for name, row := range map[string]struct {
		plain bool
		send  string
		want  string // beginning of the answer, "" for none
	}{
		"plain HTTP":          {true, "GET /api/v1/records" + head + "\r\n", "HTTP/1.0 400"},
		"noise":               {true, strings.Repeat("\x00\xff\x16\x03", 100), ""},
		"noise inside":        {false, "\x00\x01\x02\r\n\r\n", "HTTP/1.1 400"},
		"two hosts":           {false, "GET /api/v1/records" + head + "Host: evil\r\n\r\n", "HTTP/1.1 400"},
		"no host":             {false, "GET /api/v1/records HTTP/1.1\r\n\r\n", "HTTP/1.1 400"},
		"huge head":           {false, "GET /api/v1/records" + head + "X: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "HTTP/1.1 431"},
		"length and chunks":   {false, "POST /api/v1/verify" + head + "Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400"},
		"body of no JSON":     {false, "POST /api/v1/verify" + head + "Content-Type: application/json\r\nContent-Length: 3\r\n\r\n{{{", "HTTP/1.1 400"},
		"unknown field":       {false, "POST /api/v1/verify" + head + "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"x\":\"y\"}", "HTTP/1.1 400"},
		"endless body":        {false, "POST /api/v1/verify" + head + "Content-Type: application/json\r\nContent-Length: 9999999\r\n\r\n{\"key\":\"" + strings.Repeat("x", 2<<20), "HTTP/1.1 400"},
		"OPTIONS":             {false, "OPTIONS *" + head + "\r\n", "HTTP/1.1 400"},
		"CONNECT":             {false, "CONNECT localhost:1" + head + "\r\n", "HTTP/1.1 404"},
		"an id that is none":  {false, "GET /api/v1/records/..%2f..%2fetc" + head + "\r\n", "HTTP/1.1 400"},
		"a hostile question":  {false, "GET /api/v1/records?q=" + url.QueryEscape(`all(1..1000000, true)`) + head + "\r\n", "HTTP/1.1 400"},
		"a negative limit":    {false, "GET /api/v1/records?limit=-1" + head + "\r\n", "HTTP/1.1 400"},
		"a time that is none": {false, "GET /api/v1/records?since=yesterday" + head + "\r\n", "HTTP/1.1 400"},
		"change by GET":       {false, "GET /api/v1/reload" + head + "\r\n", "HTTP/1.1 405"},
		"a preflight":         {false, "OPTIONS /api/v1/reload" + head + "Access-Control-Request-Method: POST\r\n\r\n", "HTTP/1.1 405"},
	} {
		t.Run(name, func(t *testing.T) {
			c := net.Conn(nil)
			if row.plain {
				c = dial()
			} else {
				c = secure()
			}
			go io.WriteString(c, row.send) // the other side may close before it is through
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if row.want == "" {
				if b, err := io.ReadAll(c); len(b) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%q %v, want an end", b, err)
				}
				return
			}
			got := make([]byte, len(row.want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != row.want {
				t.Errorf("%q %v, want %q", got, err, row.want)
			}
		})
	}
	for range 80 { // more than there are places for
		dial()
	}
	// The socket is not concerned.
	s := a.site
	if st := s.status(); !st.Ready {
		t.Errorf("status %+v", st)
	}
}

// A reload changes who holds which role at once, on connections that are open
// as well.
func TestAdminRolesReload(t *testing.T) {
	a := newAdminSite(t)
	ada, bob := a.as(cn("ada")), a.as(cn("bob"))
	get := adminCall{method: "GET", path: "/api/v1/counts?by=kind"}
	check := func(c *http.Client, who string, want int) {
		t.Helper()
		if status, body := a.call(c, get); status != want {
			t.Errorf("%s: %d, want %d: %s", who, status, want, body)
		}
	}
	check(ada, "ada", 200)
	check(bob, "bob", 403)
	a.replace("gatebook.yaml", strings.Replace(string(a.read("gatebook.yaml")), `reader: ["cn:ada"`, `reader: ["cn:bob"`, 1))
	a.command(0, "reload")
	check(ada, "ada", 403)
	check(bob, "bob", 200)
	// Another authority: nobody of the one before.
	others := newAuthority(t, "others")
	a.replace("admins.pem", others.pem())
	a.command(0, "reload")
	check(bob, "bob", 401)
	a.admins = others
	check(a.as(cn("bob")), "the other bob", 200)
}

// Tails: records as they come, one record at the start and one at the end.
func TestTail(t *testing.T) {
	a := newAdminSite(t)
	resp, err := a.as(cn("ada")).Get("https://" + a.addr + "/api/v1/tail?q=" + url.QueryEscape(`kind == "request"`))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	lines := bufio.NewScanner(resp.Body)
	next := func() (index int, data string) {
		t.Helper()
		for lines.Scan() {
			if v, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				fmt.Sscan(v, &index)
			}
			if v, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return index, v
			}
		}
		t.Fatalf("the tail ended: %v", lines.Err())
		return 0, ""
	}
	for n := range 3 {
		id := a.get(fmt.Sprintf("/nowhere/%d", n)).Header.Get("X-Request-Id")
		index, data := next()
		var f frame
		if err := json.Unmarshal([]byte(data), &f); err != nil || f.Frame.ID != id || int(f.Index) != index || f.Frame.Kind != "request" {
			t.Errorf("request %s: %d %s %v", id, index, data, err)
		}
	}
	resp.Body.Close()
	a.until("the record of the end", func() bool { return len(a.search(`event.name == "tail_end"`)) == 1 })
	end := a.search(`event.name in ["tail", "tail_end"]`)
	if len(end) != 2 || end[0].Frame.Event.Name != "tail" || end[1].Frame.Event.Count != 3 {
		t.Errorf("records of the tail: %+v", end)
	}
	if status, _ := a.call(a.as(cn("ada")), adminCall{method: "GET", path: "/api/v1/tail?reveal=true"}); status != 403 {
		t.Errorf("a reader who wants personal parts is answered %d", status)
	}
	if status, _ := a.call(a.as(cn("ada")), adminCall{method: "GET", path: "/api/v1/tail?q=nonsense"}); status != 400 {
		t.Errorf("nonsense is answered %d", status)
	}
}

// A tail ends with the server, and says so, and is on record.
func TestTailEndsWithServer(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.start()
	conn := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(s.dir, "data/admin.sock"))
	}
	c := &http.Client{Transport: &http.Transport{DialContext: conn}}
	resp, err := c.Get("http://admin/api/v1/tail?q=" + url.QueryEscape(`kind == "alert"`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.stop()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(b), "event: end\ndata: {\"cause\":\"stopping\"}\n\n") {
		t.Errorf("%q %v", b, err)
	}
	if n := len(s.search(`event.name == "tail_end" && event.cause == "stopping"`)); n != 1 {
		t.Errorf("%d records of the end", n)
	}
	s.command(0, "verify")
}

// The socket works in a folder whose path no socket address can hold, and what
// it answers is fit for a terminal.
func TestAdminLongPath(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	deep := filepath.Join(s.dir, strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks(filepath.Join(s.dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(target, filepath.Join(deep, "data")); err != nil {
		t.Fatal(err)
	}
	s.replace("gatebook.yaml", strings.Replace(string(s.read("gatebook.yaml")), "data: data", "data: "+filepath.Join(deep, "data"), 1))
	for range 2 { // the second start meets what the first left
		s.start()
		s.get("/x")
		if got := s.search(`kind == "request"`); len(got) == 0 {
			t.Error("no record")
		}
		if st := s.status(); !st.Ready {
			t.Errorf("status %+v", st)
		}
		sock := filepath.Join(deep, "data/admin.sock")
		if info, err := os.Lstat(sock); err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
			t.Errorf("socket: %v %v", info, err)
		}
		s.stop()
		if _, err := os.Lstat(sock); !os.IsNotExist(err) {
			t.Errorf("the socket is left behind: %v", err)
		}
	}
	// Offline and online readers are told apart.
	s.command(0, "show", s.search(`kind == "request"`)[0].Frame.ID, "--reveal")
	out := s.command(0, "search", `kind == "access"`, "--reveal", "--json")
	if !strings.Contains(out, `"method":"socket"`) || !strings.Contains(out, `"method":"offline"`) || !strings.Contains(out, fmt.Sprintf(`"sub":"uid:%d"`, os.Getuid())) {
		t.Errorf("access records:\n%s", out)
	}
}
