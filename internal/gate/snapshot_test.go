package gate

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/ratelimit"
)

func goodRoute() *Route {
	return &Route{
		Name: "r", Path: "/", Authenticators: []Authenticator{tokenAuth}, Engine: allowAll, Upstream: answers(204, 0, nil), UpstreamName: "u",
	}
}

// TestUnsetIsRefused: a snapshot that would let somebody through by omission,
// or do something else than it says, is not built.
func TestUnsetIsRefused(t *testing.T) {
	rule := func(key string) []*ratelimit.Rule { return []*ratelimit.Rule{oneRule(key)} }
	for want, change := range map[string]func(s *SnapshotConfig, r *Route){
		"no authenticator":            func(_ *SnapshotConfig, r *Route) { r.Authenticators = nil },
		"no policy engine":            func(_ *SnapshotConfig, r *Route) { r.Engine = nil },
		"public and authenticated":    func(_ *SnapshotConfig, r *Route) { r.Public = true },
		"cannot demand scopes":        func(_ *SnapshotConfig, r *Route) { r.Public, r.Authenticators, r.Scopes = true, nil, []string{"x"} },
		"nil authenticator":           func(_ *SnapshotConfig, r *Route) { r.Authenticators = []Authenticator{nil} },
		"no upstream":                 func(_ *SnapshotConfig, r *Route) { r.Upstream = nil },
		"needs a name":                func(_ *SnapshotConfig, r *Route) { r.Name = "none" },
		"negative body limit":         func(_ *SnapshotConfig, r *Route) { r.MaxBody = -1 },
		"exact name in lower case":    func(_ *SnapshotConfig, r *Route) { r.Host = "A.example" },
		"write methods in upper case": func(_ *SnapshotConfig, r *Route) { r.Methods = []string{"get"} },
		"CONNECT is never forwarded":  func(_ *SnapshotConfig, r *Route) { r.Methods = []string{"CONNECT"} },
		"must be in lower case":       func(_ *SnapshotConfig, r *Route) { r.CredentialFields = []string{"X-Api-Key"} },
		"holds a secret":              func(_ *SnapshotConfig, r *Route) { r.RecordHeaders = []string{"cookie"} },
		"field \"x-k\" holds a secret": func(_ *SnapshotConfig, r *Route) {
			r.CredentialFields, r.RecordHeaders = []string{"x-k"}, []string{"x-k"}
		},
		"rate 0 is out of range":        func(_ *SnapshotConfig, r *Route) { r.Limits = rule("subject"); r.Limits[0].Rate = 0 },
		"must begin with a slash":       func(_ *SnapshotConfig, r *Route) { r.Path = "x" },
		"listener \"x\" does not exist": func(_ *SnapshotConfig, r *Route) { r.Listeners = []string{"x"} },
		"a recorder, a snapshot id":     func(s *SnapshotConfig, _ *Route) { s.Recorder = nil },
		"a node name":                   func(s *SnapshotConfig, _ *Route) { s.Node = "" },
		"declared twice":                func(s *SnapshotConfig, r *Route) { s.Routes = append(s.Routes, r) },
		"listener \"l\" has no name or": func(s *SnapshotConfig, _ *Route) { s.Listeners = append(s.Listeners, Listener{Name: "l"}) },
		"must be keyed by prefix":       func(s *SnapshotConfig, _ *Route) { s.Listeners[0].PreAuth = rule("subject") },
		"prefix length 33":              func(s *SnapshotConfig, _ *Route) { s.RecordBits4 = 33 },
		"prefix length -1":              func(s *SnapshotConfig, _ *Route) { s.LimitBits6 = -1 },
		"/ is already taken by route":   func(s *SnapshotConfig, _ *Route) { r := goodRoute(); r.Name = "r2"; s.Routes = append(s.Routes, r) },
		"limit \"tight\": rate 0 is out of": func(s *SnapshotConfig, _ *Route) {
			s.Listeners[0].PreAuth = rule("prefix")
			s.Listeners[0].PreAuth[0].Rate = 0
		},
	} {
		r := goodRoute()
		s := SnapshotConfig{ID: "id", Node: "n", Recorder: newFakeBook(), Listeners: []Listener{{Name: "l"}}, Routes: []*Route{r}}
		if _, err := NewSnapshot(s); err != nil {
			t.Fatal(err)
		}
		change(&s, r)
		if _, err := NewSnapshot(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	r := goodRoute()
	r.Path, r.Authenticators, r.MaxBody = "x", nil, -1
	_, err := NewSnapshot(SnapshotConfig{ID: "id", Node: "n", Recorder: newFakeBook(), Listeners: []Listener{{Name: "l"}}, Routes: []*Route{r}})
	if err == nil || !strings.Contains(err.Error(), "negative") || !strings.Contains(err.Error(), "authenticator") || !strings.Contains(err.Error(), "slash") {
		t.Errorf("not every problem is reported at once: %v", err)
	}
}

// TestListeners: a route answers only on its listeners, and a listener that
// the snapshot does not know routes nothing.
func TestListeners(t *testing.T) {
	a, b := goodRoute(), goodRoute()
	a.Name, a.Listeners = "a", []string{"one"}
	b.Name, b.Listeners = "b", []string{"two"}
	s, err := NewSnapshot(SnapshotConfig{ID: "id", Node: "n", Recorder: newFakeBook(), Listeners: []Listener{{Name: "one"}, {Name: "two"}, {Name: "three"}}, Routes: []*Route{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"one": "a", "two": "b", "three": "", "four": ""} {
		op, _, _ := s.listener(name).router.match("h", "GET", nil, nil, nil)
		got := ""
		if op != nil {
			got = op.route.Name
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestNewNeeds(t *testing.T) {
	s, err := NewSnapshot(SnapshotConfig{ID: "id", Node: "n", Recorder: newFakeBook()})
	if err != nil {
		t.Fatal(err)
	}
	full := Config{NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{})}
	if _, err := New(full, s); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]Config{"no id": {Limiter: full.Limiter}, "no limiter": {NewID: full.NewID}} {
		if _, err := New(c, s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(full, nil); err == nil {
		t.Error("no snapshot: accepted")
	}
}

func TestPrefix(t *testing.T) {
	s := &Snapshot{recordBits4: 24, recordBits6: 32, limitBits4: 32, limitBits6: 64}
	for in, want := range map[string]string{"203.0.113.9": "203.0.113.0/24 203.0.113.9/32", "2001:db8:1:2:3::4": "2001:db8::/32 2001:db8:1:2::/64"} {
		a := netip.MustParseAddr(in)
		if got := s.recordPrefix(a).String() + " " + s.limitPrefix(a).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if s.recordPrefix(netip.Addr{}).IsValid() {
		t.Error("no address has a prefix")
	}
	for port, want := range map[uint16]string{0: "", 1: "system", 1023: "system", 1024: "user", 49151: "user", 49152: "dynamic", 65535: "dynamic"} {
		if got := portClass(port); got != want {
			t.Errorf("port %d: %q", port, got)
		}
	}
}

// TestPhases: the parts of the duration are recorded on demand only.
func TestPhases(t *testing.T) {
	for _, on := range []bool{false, true} {
		h := newHouse(t, houseConfig{tune: func(r *Route) { r.Audit.Phases = on }})
		now := epoch
		h.gate.now = func() time.Time { now = now.Add(time.Millisecond); return now }
		if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
			t.Fatal(err)
		}
		p := h.one(t).rec.Phase
		if got := p.Auth > 0 && p.Limit > 0 && p.Policy > 0 && p.Open > 0 && p.TTFB > 0 && p.Body > 0; got != on {
			t.Errorf("phases %v: %+v", on, p)
		}
	}
}

// TestNoRecorder: a gate whose snapshot lost its recorder lets nothing
// through.
func TestNoRecorder(t *testing.T) {
	h := newHouse(t, houseConfig{})
	h.gate.Snapshot().recorder = nil
	resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil))
	if err != nil || resp.StatusCode != 503 {
		t.Errorf("%v %v", resp, err)
	}
}
