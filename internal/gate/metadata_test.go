package gate

import (
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

func TestMetadataURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://api.example.com":           "https://api.example.com/.well-known/oauth-protected-resource",
		"https://api.example.com/":          "https://api.example.com/.well-known/oauth-protected-resource",
		"https://api.example.com/v1/orders": "https://api.example.com/.well-known/oauth-protected-resource/v1/orders",
		"https://api.example.com:8443/v1":   "https://api.example.com:8443/.well-known/oauth-protected-resource/v1",
		"https://api.example.com/?a":        "", "https://u@api.example.com/": "", "https://api.example.com/%41": "", "/v1": "", "": "",
	} {
		got, err := (&Resource{Identifier: in}).MetadataURL()
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

// The metadata are served to everybody, at exactly the address of the resource,
// recorded, and named in challenges.
func TestMetadataRoute(t *testing.T) {
	const at = "/.well-known/oauth-protected-resource/v1"
	res := Resource{Identifier: "https://api.example.com:8443/v1", Servers: []string{"https://idp.example.com"}, Scopes: []string{"read"}}
	h := newHouse(t, houseConfig{
		tune: func(r *Route) {
			r.Path, r.Challenge.ResourceMetadata = "/{rest...}", "https://api.example.com:8443"+at
		},
		snap: func(s *SnapshotConfig) {
			m, err := MetadataRoute("gatebook.resource-metadata", nil, res)
			if err != nil {
				t.Fatal(err)
			}
			s.Routes = append(s.Routes, m)
		},
	})
	for _, row := range []struct {
		name, method, host, path string
		status                   int
		want                     reason.Reason
	}{
		{"get", "GET", "api.example.com:8443", at, 200, ""},
		{"head", "HEAD", "api.example.com:8443", at, 200, ""},
		{"host in other case", "GET", "API.example.com:8443", at, 200, ""},
		{"with a query", "GET", "api.example.com:8443", at + "?x=1", 200, ""},
		{"other port", "GET", "api.example.com", at, 404, reason.NoRoute},
		{"post", "POST", "api.example.com:8443", at, 405, reason.MethodNotAllowed},
		{"other host", "GET", "other.example.com:8443", at, 401, reason.NoCredential},
		{"deeper", "GET", "api.example.com:8443", at + "/x", 401, reason.NoCredential},
		{"less deep", "GET", "api.example.com:8443", strings.TrimSuffix(at, "/v1"), 401, reason.NoCredential},
		{"other spelling", "GET", "api.example.com:8443", strings.ToUpper(at), 401, reason.NoCredential},
	} {
		t.Run(row.name, func(t *testing.T) {
			req := h.request(t, row.method, row.path, nil, "Authorization", "")
			req.Host = row.host
			resp, text, err := do(t, h.h1, req)
			if err != nil {
				t.Fatal(err)
			}
			rec := h.one(t).rec
			if resp.StatusCode != row.status || rec.Status != row.status || rec.Error.Reason != string(row.want) {
				t.Fatalf("status %d, recorded %d %q", resp.StatusCode, rec.Status, rec.Error.Reason)
			}
			if row.status == 401 && !strings.Contains(resp.Header.Get("WWW-Authenticate"), `resource_metadata="https://api.example.com:8443`+at+`"`) {
				t.Errorf("challenge %q", resp.Header.Get("WWW-Authenticate"))
			}
			if row.status != 200 {
				return
			}
			if rec.Route != "gatebook.resource-metadata" || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("route %s, fields %v", rec.Route, resp.Header)
			}
			if row.method == http.MethodHead {
				return
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
			want := map[string]any{
				"resource": res.Identifier, "authorization_servers": []any{"https://idp.example.com"},
				"scopes_supported": []any{"read"}, "bearer_methods_supported": []any{"header"},
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%v", got)
			}
		})
	}
	if _, err := MetadataRoute("m", nil, Resource{Identifier: res.Identifier}); err == nil {
		t.Error("metadata without authorization server")
	}
}

// Of several methods that did not take a request the most telling reason is
// kept, whatever their order.
func TestMostTellingReason(t *testing.T) {
	notMine := func(r reason.Reason) Authenticator {
		return fakeAuth(func(*canon.Request) (*authn.Principal, error) {
			return nil, &authn.NotMine{Failure: authn.Failure{Reason: r}}
		})
	}
	none := fakeAuth(func(*canon.Request) (*authn.Principal, error) { return nil, authn.ErrNoCredential })
	broken := fakeAuth(func(*canon.Request) (*authn.Principal, error) { return nil, errors.New("x") })
	for _, row := range []struct {
		name string
		all  []Authenticator
		want reason.Reason
	}{
		{"nothing", []Authenticator{none, none}, reason.NoCredential},
		{"no JWT, inactive", []Authenticator{notMine(reason.TokenMalformed), notMine(reason.TokenInactive)}, reason.TokenInactive},
		{"inactive, no JWT", []Authenticator{notMine(reason.TokenInactive), notMine(reason.TokenMalformed)}, reason.TokenInactive},
		{"inactive, away", []Authenticator{notMine(reason.TokenInactive), notMine(reason.IssuerUnavailable)}, reason.IssuerUnavailable},
		{"away, inactive", []Authenticator{notMine(reason.IssuerUnavailable), notMine(reason.TokenInactive)}, reason.IssuerUnavailable},
		{"the first of equals", []Authenticator{notMine(reason.TokenIssuer), notMine(reason.TokenInactive)}, reason.TokenIssuer},
		{"no JWT", []Authenticator{none, notMine(reason.TokenMalformed)}, reason.TokenMalformed},
		{"away, then taken", []Authenticator{notMine(reason.IssuerUnavailable), tokenAuth}, ""},
		{"away, then broken", []Authenticator{notMine(reason.TokenInactive), broken, tokenAuth}, reason.IssuerUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := newHouse(t, houseConfig{tune: func(r *Route) { r.Authenticators = row.all }})
			if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
				t.Fatal(err)
			}
			if rec := h.one(t).rec; rec.Error.Reason != string(row.want) {
				t.Errorf("%q, want %q", rec.Error.Reason, row.want)
			}
		})
	}
}
