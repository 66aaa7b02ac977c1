package gate

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

const allForms = canon.EncodedSlash | canon.Semicolon | canon.EmptySegment | canon.Percent

// formHouse has a route for each form, one that takes none, one that takes all,
// one that only observes, and specific routes that must not be reached through
// the others.
type formHouse struct {
	t      *testing.T
	book   *fakeBook
	engine *HTTPEngine
	up     mirror
	asked  []authz.Request // what the policies were asked
	policy policy
	routes []*Route
}

func newFormHouse(t *testing.T) *formHouse {
	h := &formHouse{t: t}
	h.policy = allowAll
	decide := policy(func(r *authz.Request) authz.Decision {
		q := *r
		q.Params = slices.Clone(r.Params) // its memory is used again
		q.Header = nil                    // where it lies says nothing
		h.asked = append(h.asked, q)
		return h.policy(r)
	})
	var routes []*Route
	add := func(name, path string, forms canon.PathForms, observe bool) {
		routes = append(routes, &Route{
			Name: name, Path: path, Methods: []string{"GET"}, Authenticators: []Authenticator{tokenAuth}, Engine: decide,
			Upstream: &h.up, UpstreamName: "u", Forms: forms, ObserveForms: observe,
		})
	}
	add("strict", "/strict/{rest...}", 0, false)
	add("slash", "/encoded_slash/{rest...}", canon.EncodedSlash, false)
	add("semicolon", "/semicolon/{rest...}", canon.Semicolon, false)
	add("empty", "/empty_segment/{rest...}", canon.EmptySegment, false)
	add("percent", "/percent/{rest...}", canon.Percent, false)
	add("all", "/all/{rest...}", allForms, false)
	add("observe", "/observe/{rest...}", 0, true)
	add("some", "/some/{rest...}", canon.Semicolon, true)
	add("admin", "/all/admin/{rest...}", 0, false)
	add("admin.seen", "/observe/admin", 0, false)
	add("issues", "/projects/{id}/issues", canon.EncodedSlash, false)
	add("exact", "/exact", allForms, false)
	add("wide", "/{rest...}", 0, false)
	h.book, h.routes = newFakeBook(), routes
	snap, err := NewSnapshot(SnapshotConfig{
		ID: "00112233445566778899aabbccddeeff", Node: "gate-1", Listeners: []Listener{{Name: "public", Trusted: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}},
		Routes: routes, Recorder: h.book, AcceptRequestIDs: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{NewID: counter(), Limiter: noLimits{}, Now: func() time.Time { return epoch }}, snap)
	if err != nil {
		t.Fatal(err)
	}
	h.engine = NewHTTPEngine(g, HTTPConfig{Listener: "public"})
	return h
}

// noLimits is a Limiter that nobody asks.
type noLimits struct{ Limiter }

// get asks for a path as it is and returns the status and the record.
func (h *formHouse) get(path string, fields ...string) (int, record.Record) {
	h.t.Helper()
	return h.from("192.0.2.7:4711", path, fields...)
}

func (h *formHouse) from(peer, path string, fields ...string) (int, record.Record) {
	h.t.Helper()
	raw := "GET " + path + " HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer good\r\n"
	for _, f := range fields {
		raw += f + "\r\n"
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + "\r\n")))
	if err != nil {
		h.t.Fatalf("%s: %v", path, err)
	}
	r.RemoteAddr = peer
	h.up.got, h.asked = upstream.Request{}, nil
	resp := httptest.NewRecorder()
	h.engine.ServeHTTP(resp, r)
	c := <-h.book.done
	return resp.Code, c.rec
}

// TestShadowLeavesTwoReadings: a path that can be read in two ways is not tried,
// and counted.
func TestShadowLeavesTwoReadings(t *testing.T) {
	h := newFormHouse(t)
	var counts authz.ShadowCounts
	for _, r := range h.routes {
		r.Shadow = authz.NewShadow(authz.ShadowConfig{Sample: 100, Queue: 1, Counts: &counts})
	}
	if status, rec := h.get("/semicolon/x;v=1"); status != 204 {
		t.Fatalf("status %d, record %+v", status, rec.Error)
	}
	if n := counts.Readings.Load(); n != 1 || counts.Skipped.Load() != 0 {
		t.Errorf("%d paths of two readings, %d skipped", n, counts.Skipped.Load())
	}
}

// TestPathRules: every form on every route. A form passes where it is allowed
// or observed and nowhere else; what passes is sent as received and recorded in
// its normal form.
func TestPathRules(t *testing.T) {
	h := newFormHouse(t)
	forms := []struct {
		forms             canon.PathForms
		raw, normal, rest string // rest: the parameter
	}{
		{0, "x/%7ey", "x/~y", "x/~y"},
		{canon.EncodedSlash, "x%2fy", "x%2Fy", "x/y"},
		{canon.EncodedSlash, "x%2Fy/z", "x%2Fy/z", "x/y/z"},
		{canon.Semicolon, "x;v=1/%61", "x;v=1/a", "x;v=1/a"},
		{canon.Semicolon, "x%3bv", "x%3Bv", "x;v"},
		{canon.EmptySegment, "x//y", "x//y", "x//y"},
		{canon.EmptySegment, "/y", "/y", "/y"},
		{canon.Percent, "x%2541", "x%2541", "x%41"},
		{canon.Percent | canon.EncodedSlash, "x%252fy", "x%252fy", "x%2fy"},
		{allForms, "x;v%2f//%2541|", "x;v%2F//%2541%7C", "x;v///%41|"},
	}
	routes := []struct {
		name, prefix string
		allowed      canon.PathForms
		observe      bool
	}{
		{"strict", "/strict/", 0, false},
		{"slash", "/encoded_slash/", canon.EncodedSlash, false},
		{"semicolon", "/semicolon/", canon.Semicolon, false},
		{"empty", "/empty_segment/", canon.EmptySegment, false},
		{"percent", "/percent/", canon.Percent, false},
		{"all", "/all/", allForms, false},
		{"observe", "/observe/", 0, true},
		{"some", "/some/", canon.Semicolon, true},
		{"wide", "/other/", 0, false},
	}
	for _, rt := range routes {
		for _, f := range forms {
			path := rt.prefix + f.raw
			status, rec := h.get(path)
			refused := f.forms &^ rt.allowed
			if refused != 0 && !rt.observe {
				wantRefused(t, path, status, &rec)
				if h.asked != nil || h.up.got.Path != "" {
					t.Errorf("%s: refused and yet %v %q", path, h.asked, h.up.got.Path)
				}
				continue
			}
			sent := path
			if f.forms == 0 {
				sent = rt.prefix + f.normal
			}
			sent = strings.ReplaceAll(sent, "|", "%7C")
			if status != 204 || h.up.got.Path != sent || rec.Route != rt.name || rec.Raw.Path != rt.prefix+f.normal || rec.Raw.Unmatched {
				t.Errorf("%s: status %d, sent %q, recorded %q on %s", path, status, h.up.got.Path, rec.Raw.Path, rec.Route)
			}
			if len(h.asked) == 0 || h.asked[0].Path != rt.prefix+f.normal {
				t.Errorf("%s: the policies were asked about %+v", path, h.asked)
			} else if rest := h.asked[0].Params[0].Value; rest != f.rest && rt.name != "wide" {
				t.Errorf("%s: parameter %q, want %q", path, rest, f.rest)
			}
			want := record.Event{}
			if refused != 0 {
				want = record.Event{Name: "would_refuse", Target: refused.String(), Cause: "bad_path"}
			}
			if rec.Event != want || rec.Error.Reason != "" {
				t.Errorf("%s: event %+v error %+v", path, rec.Event, rec.Error)
			}
		}
	}
}

func wantRefused(t *testing.T, path string, status int, rec *record.Record) {
	t.Helper()
	if status != 400 || rec.Error != (record.Error{Origin: "client", Reason: "bad_path", Phase: "parse"}) || rec.Kind != record.KindMalformed ||
		rec.Route != record.None || !rec.Raw.Unmatched || rec.Event.Name != "" {
		t.Errorf("%s: status %d %+v %s on %s, event %+v", path, status, rec.Error, rec.Kind, rec.Route, rec.Event)
	}
}

// TestNeverAllowed: what no route can allow is refused on routes that allow or
// observe everything.
func TestNeverAllowed(t *testing.T) {
	h := newFormHouse(t)
	for _, prefix := range []string{"/all/", "/observe/", "/exact;"} {
		for _, p := range []string{
			"..", ".", "../x", "x/../y", "x/./y", "%2e%2e/x", ".%2e", "x/%2E", "..%2fx", "x%2f..%2fy", "x%2f.", "x%2f%2e%2e%2fy", "x/..;/y", "x/..;v=1", "x/.;", "x%2f..;y",
			"..%3by/z", "x//../y", "%252e%252e/x", "..%252fx", "x%252f..", "a%252eb", "x%25252e", "..%253bx", "x;y/../z", "x;%2f..%2f",
			"x%00", "x%0a", "x%0d%0a", "x%7f", "x%2500", "x%250a", "x//%00", "x;%1f",
			`x\y`, "x%5cy", "x%5Cy", "x%255cy", `x//..\y`, "x#y", "x//y#z", "x;#", "x%2f#",
			"x%c0%af", "x%25c0%25af", "x%ff//", "x%25u002f", "x\xc3\xa9", "x//\xff", "x%2525252541",
		} {
			status, rec := h.get(prefix + p)
			wantRefused(t, prefix+p, status, &rec)
			if h.up.got.Path != "" {
				t.Errorf("%s: sent as %q", prefix+p, h.up.got.Path)
			}
		}
	}
}

// TestOtherRoute: a relaxed path is refused if another reading of it belongs to
// a route that would not take it as it was sent, observed or not.
func TestOtherRoute(t *testing.T) {
	h := newFormHouse(t)
	for _, tc := range []struct{ path, route string }{
		{"/all/x//y", "all"},
		{"/all//admin/x", ""},
		{"/all/admin%2fx", ""},
		{"/all/admin%252fx", ""},
		{"/all/%2fadmin/x", ""},
		{"/all/admin;v/x", ""},
		{"/all;v/admin/x", ""}, // the wide route, which takes no form
		{"/all/;v/admin/x", ""},
		{"/all/a%2564min/x", ""},
		{"/all/a%2564min;v//x", ""},
		{"/all/x;%2fadmin/y", "all"}, // nobody reads /all/admin here
		{"/all/x%2fadmin", "all"},
		{"/observe/admin;x", ""},
		{"/observe//admin", ""},
		{"/observe/%2fadmin", ""},
		{"/observe/a//dmin", "observe"},
		{"//all/admin/x", ""},
		{"/all//all/admin/x", "all"},                         // one slash less is another resource of the same route
		{"/projects/group%2fproject/issues", "issues"},       // other readings belong to the wide route
		{"/projects/group%2fproject%2fsub/issues", "issues"}, // likewise
		{"/projects/group%2fproject/issues%2fx", ""},         // the wide route
		{"/projects/..%2fissues/issues", ""},                 // never
		{"/projects/%2fstrict/issues", ""},                   // an empty segment too
		{"/exact;x", ""}, {"/exact%2f", ""}, {"//exact", ""}, // the wide route takes them as sent
		{"/nothing//here", ""}, {"/x;y", ""}, {"/x%2fy", ""}, // the wide route
		{"/strict%2fx", ""}, {"//strict/x", ""}, {"//", ""}, {"/;", ""}, {"/%2f", ""},
	} {
		status, rec := h.get(tc.path)
		if tc.route == "" {
			wantRefused(t, tc.path, status, &rec)
			continue
		}
		if status != 204 || rec.Route != tc.route {
			t.Errorf("%s: status %d on %s (%s)", tc.path, status, rec.Route, rec.Error.Reason)
		}
	}
}

// TestNoRouteForForms: with no route, or no method, an unusual path is bad.
func TestNoRouteForForms(t *testing.T) {
	m := &mirror{}
	h := newHouse(t, houseConfig{up: m, tune: func(r *Route) { r.Forms = allForms }})
	for _, tc := range []struct {
		method, path string
		status       int
		want         reason.Reason
	}{
		{"GET", "/v1/orders/a;b", 204, ""},
		{"HEAD", "/v1/orders/a;b", 204, ""},
		{"DELETE", "/v1/orders/a", 405, reason.MethodNotAllowed},
		{"DELETE", "/v1/orders/a;b", 400, reason.BadPath},
		{"GET", "/elsewhere", 404, reason.NoRoute},
		{"GET", "/elsewhere//x", 400, reason.BadPath},
	} {
		h.both(func(t *testing.T, c *http.Client, _ string) {
			r := h.request(t, tc.method, "/", nil)
			r.URL.Opaque = tc.path
			resp, _, err := do(t, c, r)
			if err != nil {
				t.Fatal(err)
			}
			rec := h.one(t).rec
			if resp.StatusCode != tc.status || rec.Error.Reason != string(tc.want) {
				t.Errorf("%s %s: %d %q", tc.method, tc.path, resp.StatusCode, rec.Error.Reason)
			}
		})
	}
}

// TestForbiddenInAnyForm: what a policy forbids stays forbidden in every way to
// write it, and what it permits must be permitted as written.
func TestForbiddenInAnyForm(t *testing.T) {
	h := newFormHouse(t)
	h.policy = func(r *authz.Request) authz.Decision {
		value := ""
		for _, p := range r.Params {
			value = p.Value
		}
		switch {
		case strings.HasPrefix(r.Path, "/all/frozen"), strings.HasPrefix(value, "iced"):
			return authz.Decision{Reason: reason.DeniedByPolicy, Policies: []string{"freeze"}}
		case strings.HasPrefix(r.Path, "/all/broken"):
			return authz.Decision{Allow: true, Errors: []string{"x"}}
		case strings.Contains(r.Path, "%2F"), strings.HasPrefix(r.Path, "/all/x"), strings.Contains(r.Path, "//"), strings.Contains(r.Path, ";"), strings.Contains(r.Path, "%25"):
			return authz.Decision{Allow: true, Policies: []string{"p"}}
		}
		return authz.Decision{Reason: reason.DeniedByDefault}
	}
	for path, want := range map[string]reason.Reason{
		"/all/frozen":        reason.DeniedByPolicy,
		"/all//frozen":       reason.DeniedByPolicy,
		"/all/frozen;v":      reason.DeniedByPolicy,
		"/all/%2ffrozen":     reason.DeniedByPolicy,
		"/all/;x/frozen":     reason.DeniedByPolicy,
		"/all/f%2572ozen":    reason.DeniedByPolicy,
		"/all/f%2572ozen;/x": reason.DeniedByPolicy,
		"/all/iced":          reason.DeniedByPolicy,
		"/all//iced":         reason.DeniedByPolicy,
		"/all/i%2563ed/x":    reason.DeniedByPolicy,
		"/all//broken":       reason.DeniedByDefault, // an error is a deny, whoever made it
		"/all/x":             "",
		"/all/x//y":          "",
		"/all/y%2fz":         "", // as written it is permitted, as another reads it nothing is said
		"/all/y":             reason.DeniedByDefault,
	} {
		_, rec := h.get(path)
		if rec.Error.Reason != string(want) || (rec.Authz.Decision == "allow") != (want == "") || (h.up.got.Path != "") != (want == "") {
			t.Errorf("%s: %q %+v, sent %q", path, rec.Error.Reason, rec.Authz, h.up.got.Path)
		}
	}
}

// TestRawAndNormalAgree: whoever sends the normal form of a path gets the same
// route, the same question to the policies and the same answer as whoever sends
// the path itself.
func TestRawAndNormalAgree(t *testing.T) {
	h := newFormHouse(t)
	h.policy = func(r *authz.Request) authz.Decision {
		if strings.Contains(r.Path, "b") {
			return authz.Decision{Reason: reason.DeniedByPolicy}
		}
		return authz.Decision{Allow: true}
	}
	pieces := []string{"a", "%61", "%62", "b", "%2f", "%2F", ";", "%3b", "/", "//", "%2541", "%252f", "%25", "~", "%7e", "%20", "%c3%a9", "|", "%7c", "..", "%2e", "admin", ";/"}
	prefixes := []string{"/all/", "/observe/", "/strict/", "/encoded_slash/", "/all/admin", "/", "//"}
	passed, refused := 0, 0
	var walk func(path string, depth int)
	walk = func(path string, depth int) {
		status, rec := h.get(path)
		asked := fmt.Sprint(h.asked)
		if rec.Raw.Path == "" || rec.Kind == record.KindMalformed {
			refused++
		} else {
			passed++
			again, rec2 := h.get(rec.Raw.Path)
			if again != status || rec2.Route != rec.Route || rec2.Error != rec.Error || rec2.Raw.Path != rec.Raw.Path || rec2.Event != rec.Event || fmt.Sprint(h.asked) != asked {
				t.Fatalf("%v: %d %s %+v %s\n%s: %d %s %+v %s", path, status, rec.Route, rec.Error, asked, rec.Raw.Path, again, rec2.Route, rec2.Error, fmt.Sprint(h.asked))
			}
		}
		if depth == 0 {
			return
		}
		for _, p := range pieces {
			walk(path+p, depth-1)
		}
	}
	for _, p := range prefixes {
		walk(p, 2)
	}
	if passed < 500 || refused < 500 {
		t.Errorf("%d paths passed and %d were refused: too few of one kind", passed, refused)
	}
}

// TestRequestIDs: the request id of a stranger is nobody's business.
func TestRequestIDs(t *testing.T) {
	h := newFormHouse(t)
	for peer, want := range map[string]string{"192.0.2.7:1": "", "198.51.100.7:1": "mine"} {
		if _, rec := h.from(peer, "/strict/x", "X-Request-Id: mine"); rec.Personal.ClientRequestID != want {
			t.Errorf("from %s: %q", peer, rec.Personal.ClientRequestID)
		}
	}
	h.engine.gate.Snapshot().acceptIDs = false
	if _, rec := h.from("198.51.100.7:1", "/strict/x", "X-Request-Id: mine"); rec.Personal.ClientRequestID != "" {
		t.Errorf("not asked for, and yet %q", rec.Personal.ClientRequestID)
	}
}
