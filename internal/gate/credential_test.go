package gate

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// hostile are the ways in which a field's name can be written that some reader
// takes for the field.
func hostile(name string) []string {
	return []string{
		name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"), strings.Replace(name, "-", "_", 1),
		strings.ToLower(strings.ReplaceAll(name, "-", "_")), strings.ReplaceAll(name, "-", "."), strings.ReplaceAll(name, "-", "~"), strings.ReplaceAll(name, "-", "!"),
	}
}

// TestCredentialsStay: no credential leaves the gate, however it is spelled,
// repeated or named in Connection, unless the route says so. What is said of a
// client's certificate never does.
func TestCredentialsStay(t *testing.T) {
	for _, pass := range []bool{false, true} {
		m := &mirror{}
		h := newHouse(t, houseConfig{up: m, tune: func(r *Route) {
			r.Authenticators, r.Public, r.Engine = nil, true, nil
			r.CredentialFields = []string{"x-partner-key"}
			r.PassCredential = pass
		}})
		engine := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public"})
		forwarded := 0
		for _, row := range []struct {
			name  string
			never bool // not even with pass_credential
		}{
			{name: "Authorization"}, {name: "DPoP"}, {name: "X-Api-Key"}, {name: "Api-Key"}, {name: "X-Partner-Key"}, {name: "X-Authorization"},
			{name: "Proxy-Authorization", never: true}, {name: "Client-Cert", never: true}, {name: "Client-Cert-Chain", never: true},
			{name: "X-Forwarded-Client-Cert", never: true}, {name: "X-SSL-Client-Cert", never: true}, {name: "X-SSL-Client-S-DN", never: true},
			{name: "SSL-Client-Verify", never: true}, {name: "X-Client-Cert", never: true}, {name: "X-Client-DN", never: true},
			{name: "X-Amzn-Mtls-Clientcert", never: true}, {name: "X-ARR-ClientCert", never: true}, {name: "X-Gatebook-Identity", never: true},
		} {
			for i, variant := range hostile(row.name) {
				for _, more := range []string{"", variant + ": evil\r\n", "Connection: " + row.name + "\r\n", "Connection: close, " + strings.ToLower(row.name) + "\r\n"} {
					r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\n" + variant + ": evil\r\n" + more + "\r\n")))
					if err != nil {
						t.Fatal(err)
					}
					m.got = upstream.Request{}
					resp := httptest.NewRecorder()
					engine.ServeHTTP(resp, r)
					<-h.book.done
					if strings.HasPrefix(more, "Connection") && resp.Code != 400 {
						t.Errorf("%q with %q: %d", variant, more, resp.Code)
					}
					got := 0
					for _, f := range m.got.Fields {
						if strings.Contains(f.Value, "evil") {
							got++
						}
					}
					forwarded += got
					if got > 0 && (!pass || row.never) {
						t.Errorf("pass %t: %q %q reaches the upstream", pass, variant, more)
					}
					if pass && !row.never && i == 0 && more == "" && got != 1 {
						t.Errorf("%q does not reach the upstream, though the route passes credentials", variant)
					}
				}
			}
		}
		if (forwarded > 0) != pass {
			t.Errorf("pass %t: %d fields", pass, forwarded)
		}
	}
}

// TestOurCookiesStay: the upstream gets the cookies of its own.
func TestOurCookiesStay(t *testing.T) {
	m := &mirror{}
	h := newHouse(t, houseConfig{up: m, tune: func(r *Route) {
		r.Authenticators, r.Public, r.Engine, r.PassCredential = nil, true, nil, true
	}})
	for sent, want := range map[string]string{
		"a=b":                                 "a=b",
		"a=b; c=d":                            "a=b; c=d",
		"a=b;c=d;  e":                         "a=b;c=d;  e", // untouched if none is ours
		"about=gatebook":                      "about=gatebook",
		"__Host-gatebook=s":                   "",
		"a=b; __Host-gatebook-login-x=s; c=d": "a=b; c=d",
		"a=b;__HOST-GateBook=s;c=d":           "a=b;c=d",
		" __Host-gatebook = s ;a=b":           "a=b",
		"my-gatebook=kept; gatebook=kept":     "my-gatebook=kept; gatebook=kept", // the application's
		"__Host-a=gatebook; __Host-gatebook=gatebook": "__Host-a=gatebook",
	} {
		if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil, "Cookie", sent)); err != nil {
			t.Fatal(err)
		}
		h.one(t)
		if got := strings.Join(m.get("cookie"), "|"); got != want {
			t.Errorf("%q became %q, want %q", sent, got, want)
		}
	}
}
