package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// canaryPosition is one place of a request. Its text has %V for the value as
// it is, %P for the value in a path, %Q in a query, %T as a token.
type canaryPosition struct {
	name  string
	text  string
	field string // those of the personal part that keep it
}

// requestIDPosition keeps what a proxy takes for an id, random strings included.
const requestIDPosition = "request id of a proxy"

const canaryHead = "Host: localhost\r\n%F\r\n"

// canaryPositions are all places, the kept ones first.
func canaryPositions() []canaryPosition {
	get := func(target string) string { return "GET " + target + " HTTP/1.1\r\n" + canaryHead + "\r\n" }
	field := func(line string) string {
		return "GET /open/x HTTP/1.1\r\n" + canaryHead + line + "\r\n\r\n"
	}
	post := func(fields, body string) string {
		return "POST /open/x HTTP/1.1\r\n" + canaryHead + fields + "\r\n\r\n" + body
	}
	out := []canaryPosition{
		{"path of a route", get("/open/x/%P/y"), "path"},
		{"path inside a segment", get("/open/x,id=%P,y"), "path"},
		{"path in other forms", get("/relaxed//x%%2fy/%P"), "path"},
		{"path parameter behind a semicolon", get("/relaxed/x;t=%P/y"), ""},
		{"query value that is kept", get("/open/x?page=1&note=%Q&z"), "query"},
		{"query value inside a text", get("/open/x?note=see,%Q,there"), "query"},
		{"query value with a url", get("/open/x?note=https%%3A%%2F%%2Fa.example%%2F%%3Ft%%3D%Q"), "query"},
		{"kept headers", field("User-Agent: client/1.0 (%V)\r\nReferer: https://app.example/x/%P\r\nX-Order: %V\r\nAccept-Language: de\r\nAccept-Language: %V\r\nFrom: %V"), "ua referer headers"},
		{"referer host", field("Referer: https://%P/x"), "referer"},
		{"folded field", field("X-Order: a\r\n %V"), "headers"},
		{requestIDPosition, field("X-Request-Id: %V"), "client_request_id"},
		{"forwarded for", strings.Replace(field("User-Agent: x"), "%F", "X-Forwarded-For: %V", 1), "ip fwd"},

		{"unmatched path", get("/nowhere/%P/x"), ""},
		{"refused path", get("/open/../%P"), ""},
		{"encoded slash before it", get("/open/x%%2f%P"), ""},
		{"query key", get("/open/x?%Q=1"), ""},
		{"bare query", get("/open/x?%Q"), ""},
		{"query of an unmatched path", get("/nowhere?note=%Q"), ""},
		{"query of secrets", get("/open/x?access_token=%Q&code=%Q&state=%Q&api_key=%Q&sig=%Q&X-Amz-Signature=%Q&SAMLResponse=%Q"), ""},
		{"query behind a semicolon", get("/open/x?page=1;token=%Q"), ""},
		{"fragment", get("/open/x#%Q"), ""},
		{"referer query", field("Referer: https://app.example/x?t=%Q"), ""},
		{"referer fragment", field("Referer: https://app.example/x#%Q"), ""},
		{"referer user", field("Referer: https://%P:%P@app.example/x"), ""},
		{"traceparent", field("traceparent: 00-%V-01"), ""},
		{"method", "%T /open/x HTTP/1.1\r\n" + canaryHead + "\r\n", ""},
		{"version", "GET /open/x HTTP/%V\r\n" + canaryHead + "\r\n", ""},
		{"request line", "GET %V /open/x HTTP/1.1\r\n" + canaryHead + "\r\n", ""},
		{"no request", "%V\r\n\r\n", ""},
		{"host", "GET /open/x HTTP/1.1\r\nHost: %V\r\n%F\r\n\r\n", ""},
		{"second host", "GET /open/x HTTP/1.1\r\nHost: localhost\r\nHost: %V\r\n%F\r\n\r\n", ""},
		{"host name", "GET /open/x HTTP/1.1\r\nHost: %T.example\r\n%F\r\n\r\n", ""},
		{"absolute target", "GET http://%P/open/x HTTP/1.1\r\n" + canaryHead + "\r\n", ""},
		{"absolute target with a user", "GET http://%P:%P@localhost/open/x HTTP/1.1\r\n" + canaryHead + "\r\n", ""},
		{"connect", "CONNECT %T:443 HTTP/1.1\r\nHost: %T:443\r\n%F\r\n\r\n", ""},
		{"field name", field("X-%T: 1"), ""},
		{"field name with a space", field("X %V: 1"), ""},
		{"line without a colon", field("%V"), ""},
		{"connection", field("Connection: %V"), ""},
		{"transfer coding", field("Transfer-Encoding: %V"), ""},
		{"length", field("Content-Length: %V"), ""},
		{"expectation", field("Expect: %V"), ""},
		{"alias", field("X_Forwarded_User: %V"), ""},
		{"underscore", field("X_Token: %V"), ""},
		{"two types", field("Content-Type: a/b\r\nContent-Type: %V"), ""},
		{"upgrade", field("Connection: upgrade\r\nUpgrade: %V\r\nSec-WebSocket-Key: %V\r\nSec-WebSocket-Protocol: %V"), ""},
		{"body", post("Content-Type: application/json\r\nContent-Length: %L", `{"q":"%V"}`), ""},
		{"form", post("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %L", "password=%V&note=%V"), ""},
		{"parts", post("Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %L", "--b\r\nContent-Disposition: form-data; name=\"%V\"; filename=\"%V\"\r\n\r\n%V\r\n--b--\r\n"), ""},
		{"trailers", post("Transfer-Encoding: chunked\r\nTrailer: X-T", "2\r\nok\r\n0\r\nX-T: %V\r\nAuthorization: Bearer %V\r\n\r\n"), ""},
		{"chunk extension", post("Transfer-Encoding: chunked", "2;x=%V\r\nok\r\n0\r\n\r\n"), ""},
		{"chunk size", post("Transfer-Encoding: chunked", "%Vz\r\nok\r\n0\r\n\r\n"), ""},
		{"body in two framings", post("Transfer-Encoding: chunked\r\nContent-Length: 5", "%Vz\r\n"), ""},
		{"upstream down", get("/gone/x?code=%Q"), ""},
	}
	for _, auth := range []string{"Bearer %V", "Basic %V", "%V", "DPoP %V", "Token token=%V", "Bearer a.%V.c"} {
		out = append(out, canaryPosition{"authorization " + auth, "GET /guarded/x HTTP/1.1\r\n" + canaryHead + "Authorization: " + auth + "\r\n\r\n", ""})
	}
	for _, line := range []string{"X-Api-Key: %V", "Authorization: Bearer %V", "X-Api-Key: %V\r\nAuthorization: Bearer %V", "X-Api-Key: gbk_%V"} {
		out = append(out, canaryPosition{"API key " + line, "GET /keyed/x HTTP/1.1\r\n" + canaryHead + line + "\r\n\r\n", ""})
	}
	for _, line := range []string{"DPoP: %V", "X-Api-Key: %V", "Cookie: session=%V", "Authorization: Bearer %V\r\nAuthorization: Basic %V", "Proxy-Authorization: Basic %V"} {
		out = append(out, canaryPosition{"credential " + line, "GET /guarded/x HTTP/1.1\r\n" + canaryHead + line + "\r\n\r\n", ""})
	}
	return out
}

// canaryFields are headers that nothing keeps. They go out in groups.
var canaryFields = []string{
	"Authorization: Bearer %V", "Cookie: a=%V; b=%V", "DPoP: %V", "X-Api-Key: %V", "Proxy-Authorization: Basic %V", "Forwarded: for=%V;by=%V", "X-Forwarded-User: %V",
	"X-Forwarded-Client-Cert: %V", "X-Forwarded-Uri: %V", "X-Real-Ip: %V", "True-Client-Ip: %V", "Origin: https://%V", "Sec-WebSocket-Protocol: %V", "Sec-WebSocket-Key: %V",
	"tracestate: a=%V", "baggage: user=%V", "X-Correlation-Id: %V", "Via: 1.1 %V", "If-Match: %V", "Content-Type: text/%V", "Idempotency-Key: %V", "Link: <%V>",
	"X-Amz-Security-Token: %V", "X-Goog-Signature: %V", "X-Csrf-Token: %V", "Set-Cookie: a=%V", "Range: %V", "Accept: %V", "Cache-Control: %V", "Last-Event-Id: %V", "Signature: %V",
	"Client-Cert: %V", "X-Original-Url: %V", "X-Http-Method-Override: %V", "Sec-Ch-Ua: %V", "X-Device: %V", "Keep-Alive: %V", "TE: %V", "Trailer: %V", "HTTP2-Settings: %V", "Proxy-Connection: %V",
}

// fill puts a value into a position. ok is false if the value cannot stand
// there at all.
func (p *canaryPosition) fill(v string) (text string, ok bool) {
	if strings.ContainsAny(v, "\r\n") {
		return "", false
	}
	text = strings.NewReplacer("%%", "%", "%V", v, "%P", inURL(v, "-._~!$&'()*+,=:@"), "%Q", inURL(v, "-._~!$'()*,;:@/?"), "%T", asToken(v), "%L", "%L", "%F", "%F").Replace(p.text)
	if head, body, cut := strings.Cut(text, "\r\n\r\n"); cut {
		text = strings.Replace(head, "%L", fmt.Sprint(len(body)), 1) + "\r\n\r\n" + body
	}
	return text, true
}

// inURL percent-encodes what cannot stand in that part of a URL, but leaves
// percent-encodings alone.
func inURL(v, plain string) string {
	var b strings.Builder
	for i := range len(v) {
		c := v[i]
		if c == '%' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// asToken leaves out what no token and no host name has.
func asToken(v string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '-' {
			return c
		}
		return -1
	}, v)
}

// plant sends everything everywhere.
func (s *canarySite) plant(t *testing.T) {
	t.Helper()
	type shot struct {
		text string
		p    planting
	}
	some := rand.New(rand.NewPCG(5, 5))
	var shots []shot
	add := func(c canary, enc canaryEncoding, pos canaryPosition) {
		if c.class == placed && pos.field != "" || pos.name == requestIDPosition && c.class != personal && !c.hasForm() {
			return
		}
		if text, ok := pos.fill(enc.f(c.value)); ok && some.IntN(raceShare) == 0 {
			shots = append(shots, shot{text, planting{c, enc.name, pos.name, pos.field}})
		}
	}
	for _, c := range canaries() {
		for i, enc := range canaryEncodings() {
			if enc.fold && !c.folds() {
				continue
			}
			for _, pos := range canaryPositions() {
				// Who keeps nothing of it does not care how it is written.
				if pos.field != "" || i < 2 {
					add(c, enc, pos)
				}
			}
			if i < 2 {
				for _, group := range canaryGroups(len(enc.f(c.value))) {
					add(c, enc, canaryPosition{"headers " + group, "GET /open/x HTTP/1.1\r\n" + canaryHead + group + "\r\n\r\n", ""})
				}
			}
		}
	}
	t.Logf("%d requests", len(shots))
	var wg sync.WaitGroup
	const shooters = 4
	for n := range shooters {
		wg.Go(func() {
			h := &shooter{s: s}
			defer h.hangUp()
			for i := n; i < len(shots); i += shooters {
				h.fire(t, shots[i].text, shots[i].p)
			}
		})
	}
	wg.Wait()
}

// canaryGroups joins the headers so that each head stays small enough.
func canaryGroups(size int) []string {
	var out []string
	group, n := "", 0
	for _, line := range canaryFields {
		if n += len(line) + 2*size; n > 24<<10 && group != "" {
			out, group, n = append(out, group), "", len(line)+2*size
		}
		if group != "" {
			group += "\r\n"
		}
		group += line
	}
	return append(out, group)
}

// plantIdentities sends tokens that name the canaries.
func (s *canarySite) plantIdentities(t *testing.T) {
	t.Helper()
	h := &shooter{s: s}
	defer h.hangUp()
	send := func(c canary, how, field, token string) {
		h.fire(t, "GET /guarded/x HTTP/1.1\r\n"+canaryHead+"Authorization: Bearer "+token+"\r\n\r\n", planting{c, "json", how, field})
	}
	for _, c := range canaries() {
		v, err := json.Marshal(c.value)
		if err != nil {
			t.Fatal(err)
		}
		escaped := `"` + canaryEncodings()[9].f(c.value) + `"`
		set := func(names ...string) func(jwtattack.Object) jwtattack.Object {
			return func(o jwtattack.Object) jwtattack.Object {
				for _, n := range names {
					o = o.Set(n, string(v))
				}
				return o
			}
		}
		if c.class == personal || c.hasForm() {
			send(c, "sub", "sub", token(s.env, "x", "r", set("sub")))
			send(c, "sub with escapes", "sub", token(s.env, "x", "r", func(o jwtattack.Object) jwtattack.Object { return o.Set("sub", escaped) }))
			send(c, "email", "email", token(s.env, "person", "r", set("email")))
			send(c, "name", "name", token(s.env, "person", "r", set("name")))
			send(c, "recorded claim", "claims", token(s.env, "person", "r", set("department")))
			send(c, "claimed", "claimed", token(s.env, "x", "r", func(o jwtattack.Object) jwtattack.Object {
				return set("sub")(o).Set("exp", fmt.Sprint(time.Now().Unix()-600)).Set("iat", fmt.Sprint(time.Now().Unix()-900))
			}))
			send(c, "claimed without a signature", "claimed", token(s.env, "x", "r", set("sub"))+"AAAA")
		}
		send(c, "other claims", "", token(s.env, "person", "r", set("phone_number", "address", "birthdate", "tid", "preferred_username", "nonce_", "upn", "ip")))
		send(c, "names", "", token(s.env, "person", "r", func(o jwtattack.Object) jwtattack.Object {
			return set("client_id", "acr", "jti")(o).Set("roles", "["+string(v)+"]").Set("amr", "["+string(v)+"]").Set("scope", `"a b"`)
		}))
		send(c, "issuer", "", token(s.env, "person", "r", set("iss")))
		send(c, "audience", "", token(s.env, "person", "r", set("aud")))
		send(c, "confirmation", "", token(s.env, "person", "r", func(o jwtattack.Object) jwtattack.Object { return o.Set("cnf", `{"jkt":`+string(v)+`}`) }))
		for _, member := range []string{"kid", "typ", "alg", "jku", "x5u", "crit"} {
			now := time.Now().Unix()
			claims := jwtattack.Claims().Set("iat", fmt.Sprint(now-5)).Set("exp", fmt.Sprint(now+300)).Del("nbf").Del("auth_time")
			send(c, "head "+member, "", s.env.Token("ES256", jwtattack.Header("ES256").Set(member, string(v)), claims))
		}
	}
}

// hasForm reports whether a secret is known even where random strings and
// numbers are ordinary, as in the name of a subject.
func (c canary) hasForm() bool {
	switch c.name {
	case "refresh token", "aws secret key", "aws session token", "slack hook", "hex session", "sha256 signature", "random password", "pkce verifier", "saml response",
		"visa card", "amex card", "mastercard spaced", "iban", "iban spaced", "social security number", "azure account key":
		return false
	}
	return c.class == shaped
}

// plantAnswers makes upstreams answer with the canaries.
func (s *canarySite) plantAnswers(t *testing.T) {
	t.Helper()
	h := &shooter{s: s}
	defer h.hangUp()
	for i, c := range canaries() {
		for _, status := range []int{200, 302, 401, 500} {
			h.fire(t, fmt.Sprintf("GET /open/reply/%d/%d HTTP/1.1\r\n", status, i)+canaryHead+"\r\n", planting{c, "plain", fmt.Sprintf("answer %d", status), ""})
		}
		for mode := range rawAnswers {
			h.fire(t, fmt.Sprintf("GET /raw/%s/%d HTTP/1.1\r\n", mode, i)+canaryHead+"\r\n", planting{c, "plain", "raw answer " + mode, ""})
			h.hangUp()
		}
	}
}

// plantConnections puts the canaries where TLS and HTTP/2 have places of their
// own.
func (s *canarySite) plantConnections(t *testing.T) {
	t.Helper()
	s.client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	for _, c := range canaries() {
		s.handshake(c.value)
		s.handshake(asToken(c.value) + ".example")
		s.notTLS("GET /" + c.value + " HTTP/1.1\r\nAuthorization: " + c.value + "\r\n\r\n")
		s.notTLS("\x16\x03\x01\x00\xf0" + c.value)
		req, err := http.NewRequest("POST", "https://"+s.addr+"/", strings.NewReader(c.value))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = "/open/x?token=" + inURL(c.value, "")
		req.Trailer = http.Header{"X-T": {c.value}}
		for _, name := range []string{"Authorization", "Cookie", "X-Token", "X-Request-Id", "Sec-Websocket-Protocol"} {
			req.Header.Set(name, c.value)
		}
		if resp, err := s.client.Do(req); err == nil {
			if resp.ProtoMajor != 2 {
				t.Fatalf("%s was spoken", resp.Proto)
			}
			s.took(t, resp, planting{c, "plain", "http/2", ""})
		} else {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestCanaries plants secrets and personal data in every place of the traffic,
// each in many encodings, and looks for them in everything that is not sealed,
// and then in what is. (reference: secrets nowhere, personal data in the
// personal fields of the schema only.)
func TestCanaries(t *testing.T) {
	if n := len(canaries()); n < 60 {
		t.Fatalf("only %d canaries", n)
	}
	s := newCanarySite(t, newCanaryUpstream(t))
	s.launch()
	s.plant(t)
	s.plantIdentities(t)
	s.plantAnswers(t)
	s.plantConnections(t)

	seen := s.surfaces(t, "running:")
	for _, page := range []string{"/metrics", "/healthz", "/readyz"} {
		seen[page] = s.ask(t, page)
	}
	s.stop()
	maps.Copy(seen, s.surfaces(t, "stopped:"))
	seen["answers of the gate"] = s.answers.Bytes()
	for _, args := range [][]string{{"search"}, {"search", "--json"}, {"count", "--by", "template"}, {"verify", "--json"}} {
		seen["gatebook "+strings.Join(args, " ")] = []byte(s.command(0, args...))
	}
	leaks := map[string]int{}
	for _, c := range canaries() {
		for how, needle := range canaryNeedles(c) {
			for where, text := range seen {
				if bytes.Contains(text, []byte(needle)) {
					leaks[fmt.Sprintf("in clear in %s: %s (%s)", where, c.name, how)]++
				}
			}
		}
	}
	records := parseOpened(t, s.command(0, "search", "--reveal", "--json"))
	s.checkOpened(t, records, leaks)
	for _, leak := range slices.Sorted(maps.Keys(leaks)) {
		t.Errorf("%s, %d times", leak, leaks[leak])
	}
	// The search itself finds what is there.
	kept := map[string]bool{}
	for _, o := range records {
		for field := range o.Personal {
			kept[field] = true
		}
	}
	for _, field := range []string{"sub", "name", "email", "claimed", "ip", "fwd", "ua", "path", "query", "referer", "client_request_id", "headers", "claims"} {
		if !kept[field] {
			t.Errorf("nothing is kept in %q, so nothing was proved about it", field)
		}
	}
	t.Logf("%d records", len(records))
}

// checkOpened looks at every record with its personal part open.
func (s *canarySite) checkOpened(t *testing.T, records []opened, leaks map[string]int) {
	t.Helper()
	all := canaries()
	needles := make([]map[string]string, len(all))
	byName := map[string]int{}
	for i, c := range all {
		needles[i], byName[c.name] = canaryNeedles(c), i
	}
	found := 0
	for _, o := range records {
		if o.Sealed != "" {
			t.Fatalf("record %d cannot be opened: %s", o.Index, o.Sealed)
		}
		var frame struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(o.Frame, &frame); err != nil {
			t.Fatal(err)
		}
		p, known := s.sent[frame.ID]
		look := func(c int, field, text string) {
			for how, needle := range needles[c] {
				if !strings.Contains(text, needle) {
					continue
				}
				if all[c].class == personal && field != "" && (!known || slices.Contains(strings.Fields(p.field), field)) {
					found++
					continue
				}
				leaks[fmt.Sprintf("in the %s: %s (%s), planted in %s as %s", fieldName(field), all[c].name, how, p.position, p.encoding)]++
			}
		}
		for field, text := range o.texts() {
			if known {
				look(byName[p.canary.name], field, text)
				continue
			}
			for c := range all {
				look(c, field, text)
			}
		}
	}
	if found == 0 {
		t.Error("no personal data was found in the personal parts: the test looks at nothing")
	}
}

func fieldName(field string) string {
	if field == "" {
		return "frame"
	}
	return "personal field " + field
}

// texts gives what a record says by field, "" for the frame, with
// percent-encodings undone as far as they go beside the text itself.
func (o *opened) texts() map[string]string {
	out := map[string]string{"": string(o.Frame)}
	for field, v := range o.Personal {
		b, _ := json.Marshal(v)
		var plain any
		json.Unmarshal(b, &plain)
		out[field] = fmt.Sprint(plain)
	}
	for field, text := range out {
		whole := text
		for range 4 {
			next, err := url.PathUnescape(text)
			if err != nil || next == text {
				break
			}
			whole += "\n" + next
			text = next
		}
		out[field] = whole
	}
	return out
}

// TestCrashSaysNothing: the stacks of a process that was told to dump them
// while requests with secrets are under way hold none of them.
func TestCrashSaysNothing(t *testing.T) {
	u := newCanaryUpstream(t)
	arrived := make(chan struct{})
	u.app.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or nobody notices that the client is gone
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	s := newCanarySite(t, u)
	s.launch()
	list := canaries()
	for _, c := range list {
		conn, err := net.Dial("tcp", s.mesh)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "POST /open/%s?note=%s HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: %s\r\nCookie: %s\r\nX-Order: %s\r\nContent-Length: %d\r\n\r\n%s",
			asToken(c.value), inURL(c.value, ""), s.forwarded(), c.value, c.value, len(c.value), c.value); err != nil {
			t.Fatal(err)
		}
	}
	for range list {
		<-arrived
	}
	s.cmd.Process.Signal(syscall.SIGQUIT)
	s.cmd.Wait()
	text := s.stderr.String()
	if !strings.Contains(text, "SIGQUIT") || strings.Count(text, "goroutine ") < len(list) || !strings.Contains(text, "RoundTrip") {
		t.Fatalf("no stacks of the requests under way:\n%.2000s", text)
	}
	for _, c := range list {
		for how, needle := range canaryNeedles(c) {
			if strings.Contains(text, needle) {
				t.Errorf("%s (%s) is in the crash output", c.name, how)
			}
		}
	}
	for where, b := range s.surfaces(t, "crashed:") {
		for _, c := range list {
			for how, needle := range canaryNeedles(c) {
				if bytes.Contains(b, []byte(needle)) {
					t.Errorf("%s: %s (%s)", where, c.name, how)
				}
			}
		}
	}
}
