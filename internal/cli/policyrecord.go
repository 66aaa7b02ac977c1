package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/server"
)

// What records write for what they do not keep.
const (
	otherName = "_other"
	noneName  = "none"
	cutMark   = "[cut]"
	// scopeMissing is the reason of a denial that no policy is responsible for.
	scopeMissing = "scope_missing"
	maxKept      = 16 // elements of a list that a record keeps
)

// recorded is the part of a record that is about its decision.
type recorded struct {
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	Kind   string    `json:"kind"`
	Route  string    `json:"route"`
	Method string    `json:"method"`
	Authn  struct {
		Method string   `json:"method"`
		Issuer string   `json:"issuer"`
		Client string   `json:"client"`
		Roles  []string `json:"roles"`
		ACR    string   `json:"acr"`
		AMR    []string `json:"amr"`
	} `json:"authn"`
	Authz struct {
		Decision string   `json:"decision"`
		Policies []string `json:"policies"`
		Set      string   `json:"set"`
	} `json:"authz"`
	TLS struct {
		Version string `json:"version"`
	} `json:"tls"`
	Error struct {
		Reason string `json:"reason"`
		Phase  string `json:"phase"`
	} `json:"error"`
	San struct {
		Masked  int `json:"masked"`
		Tripped int `json:"tripped"`
		Invalid int `json:"invalid"`
	} `json:"san"`
	personal *recordedPerson // nil: not opened, or erased
}

type recordedPerson struct {
	Sub    string         `json:"sub"`
	Tenant string         `json:"tenant_user"`
	IP     string         `json:"ip"`
	Path   string         `json:"path"`
	Claims map[string]any `json:"claims"`
}

func parseRecorded(m *query.Match) (*recorded, error) {
	r := &recorded{}
	if err := json.Unmarshal(m.Frame, r); err != nil {
		return nil, fmt.Errorf("record %d: %w", m.Index, err)
	}
	if len(m.Personal) > 0 {
		r.personal = &recordedPerson{}
		if err := json.Unmarshal(m.Personal, r.personal); err != nil {
			return nil, fmt.Errorf("record %d: %w", m.Index, err)
		}
	}
	return r, nil
}

// decision is what was decided by the policies.
func (r *recorded) decision() authz.Decision {
	allow, why := r.Authz.Decision == "allow", ""
	switch {
	case allow:
	case r.Error.Reason == scopeMissing:
		allow = true // the policies did; the route wanted more
	case r.Error.Phase == "authz":
		why = r.Error.Reason
	}
	return authz.Recorded(allow, why, r.Authz.Policies, r.Authz.Set)
}

// kept is what the records of a time keep of names, according to the set that
// was in force then; nil if that is not known.
type kept struct{ roles, acr, amr func(string) bool }

func keptBy(e *authz.Engine) *kept {
	roles, acr, amr := server.KeptNames(e)
	in := func(list []string) func(string) bool {
		return func(s string) bool { _, ok := slices.BinarySearch(list, s); return ok }
	}
	return &kept{in(roles), in(acr), in(amr)}
}

// replayer turns records into requests to policies.
type replayer struct {
	file    *config.File
	archive *authz.Archive
	sets    map[string]*pastSet // by hash
}

// pastSet is a set that once decided.
type pastSet struct {
	engine *authz.Engine
	named  authz.Named
	kept   *kept
	err    error
}

func newReplayer(f *config.File) *replayer {
	return &replayer{file: f, archive: server.PolicyArchive(f), sets: map[string]*pastSet{}}
}

// past finds the set that made a decision.
func (p *replayer) past(set string) *pastSet {
	if s := p.sets[set]; s != nil {
		return s
	}
	s := &pastSet{}
	if s.engine, s.err = p.archive.Open(set); s.err == nil {
		s.named, s.kept = s.engine.Named(), keptBy(s.engine)
	}
	p.sets[set] = s
	return s
}

// request makes the request that was decided, as far as the record keeps it.
// why says what makes it useless altogether.
func (p *replayer) request(r *recorded, e *authz.Engine) (q *authz.Request, g *authz.Gaps, why string) {
	if slices.ContainsFunc(r.Authz.Policies, func(id string) bool { return strings.HasPrefix(id, authz.OutsidePrefix) }) {
		return nil, nil, "an outside decision point took part in it"
	}
	action, method, ok := e.ActionOf(r.Route, r.Method)
	if !ok {
		return nil, nil, "the route or its method is not in the policy set"
	}
	past := p.past(r.Authz.Set)
	q = &authz.Request{
		Issuer: r.Authn.Issuer, Client: r.Authn.Client, Roles: known(r.Authn.Roles), AMR: known(r.Authn.AMR), ACR: r.Authn.ACR,
		Route: r.Route, Action: action, Method: method, TLSVersion: r.TLS.Version, Now: r.Time, BodySize: -1,
	}
	g = &authz.Gaps{Headers: true, Body: true}
	if r.Authn.Method == noneName {
		q.Issuer, q.Client, q.ACR = "", "", ""
	} else {
		p.gapsOfName(r, q, g, past)
	}
	p.openPersonal(r, q, g, past)
	if !q.RemoteIP.IsValid() {
		g.Address, q.RemoteIP = true, unknownAddress
	}
	if !g.Path {
		if q.Params, ok = authz.ParamsOf(e.TemplateOf(r.Route), q.Path); !ok {
			g.Path = true
		}
	}
	if g.Path {
		q.Path, q.Params = "", e.AnyParams(action, r.Route)
	}
	return q, g, ""
}

// unknownAddress stands for one that no policy looks at (RFC 5737).
var unknownAddress = netip.AddrFrom4([4]byte{192, 0, 2, 0})

// gapsOfName notes which names were not kept.
func (p *replayer) gapsOfName(r *recorded, q *authz.Request, g *authz.Gaps, past *pastSet) {
	g.Groups, g.Claims = true, true
	g.Client = r.Authn.Client == otherName
	g.Roles = lacks(r.Authn.Roles)
	g.AMR = lacks(r.Authn.AMR)
	g.ACR = r.Authn.ACR == otherName
	if past.kept != nil {
		if len(r.Authn.Roles) < maxKept {
			g.RoleKept = past.kept.roles
		}
		if len(r.Authn.AMR) < maxKept {
			g.AMRKept = past.kept.amr
		}
		g.ACRKept = past.kept.acr
	}
	if q.Issuer == otherName {
		g.Subject = true
	}
}

// lacks tells whether a list of names is not whole.
func lacks(names []string) bool { return slices.Contains(names, otherName) || len(names) >= maxKept }

func known(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == otherName })
}

// openPersonal takes what the personal part holds, and notes what it lacks.
func (p *replayer) openPersonal(r *recorded, q *authz.Request, g *authz.Gaps, past *pastSet) {
	who := r.Authn.Method != noneName
	if r.personal == nil {
		g.Path = true
		if who {
			// Somebody stands for whoever it was; no policy that cares is asked.
			q.Subject = "unknown"
			g.Subject, g.Scopes, g.Age, g.Tenant = true, true, true, true
		}
		return
	}
	in := r.personal
	masked := r.San.Masked+r.San.Tripped+r.San.Invalid > 0
	q.RemoteIP, _ = netip.ParseAddr(in.IP)
	q.Path = in.Path
	g.Path = masked || unusualPath(in.Path) || p.looseRoute(r.Route)
	if !who {
		return
	}
	q.Subject, q.Tenant = in.Sub, in.Tenant
	if q.Subject == "" || masked || strings.HasSuffix(q.Subject, cutMark) {
		q.Subject, g.Subject = "unknown", true
	}
	g.Tenant = masked || strings.HasSuffix(in.Tenant, cutMark)
	if masked {
		g.Scopes, g.Age = true, true
		return
	}
	q.Claims = map[string]string{}
	for name, v := range in.Claims {
		if text, ok := v.(string); ok && !strings.HasSuffix(text, cutMark) && !strings.HasPrefix(name, keptPrefix) {
			q.Claims[name] = text
		}
	}
	p.inputs(in, q, g, past)
}

// keptPrefix begins the names of what records keep for this purpose.
const keptPrefix = "gatebook."

// inputs reads what the gate kept because the policies of the time read it.
func (p *replayer) inputs(in *recordedPerson, q *authz.Request, g *authz.Gaps, past *pastSet) {
	// The gate writes both whatever the token holds, so one that is not there
	// was dropped, and one that is no single text came from elsewhere.
	scopes, there := in.Claims[server.ScopeClaim].(string)
	g.Scopes = !there || past.engine == nil || !past.named.Scopes || strings.HasSuffix(scopes, cutMark)
	q.Scopes = strings.Fields(scopes)
	age, there := in.Claims[server.AgeClaim].(string)
	n, err := strconv.ParseInt(age, 10, 32)
	g.Age = !there || err != nil || n < 0 || past.engine == nil || !past.named.Age
	if !g.Age {
		q.AuthAge = time.Duration(n) * time.Second
	}
}

// unusualPath: the decision was made over two readings of it.
func unusualPath(path string) bool {
	lower := strings.ToLower(path)
	return path == "" || strings.HasSuffix(path, cutMark) || strings.Contains(path, ";") || strings.Contains(path, "//") ||
		strings.Contains(lower, "%2f") || strings.Contains(lower, "%25") || strings.Contains(lower, "%3b")
}

// looseRoute: what its records show of a path need not be all of it.
func (p *replayer) looseRoute(name string) bool {
	i := slices.IndexFunc(p.file.Routes, func(r config.Route) bool { return r.Name == name })
	return i < 0 || len(p.file.Routes[i].PathRules.Allow) > 0 || p.file.Routes[i].PathRules.Strict == config.StrictObserve
}

// again makes a recorded decision again by a set.
func (p *replayer) again(r *recorded, e *authz.Engine) (d authz.Decision, why, by string) {
	q, g, why := p.request(r, e)
	if why != "" {
		return d, why, ""
	}
	return e.Recompute(q, g)
}

// asRecorded makes a decision again by the set that made it.
func (p *replayer) asRecorded(r *recorded) (d authz.Decision, why, by string) {
	past := p.past(r.Authz.Set)
	switch {
	case errors.Is(past.err, authz.ErrNotArchived):
		return d, "the policy set is not in the archive", ""
	case past.err != nil:
		return d, "the policy set in the archive cannot be used: " + past.err.Error(), ""
	}
	return p.again(r, past.engine)
}

// sameAsRecorded compares, as far as a record keeps determining policies.
func sameAsRecorded(was, is *authz.Decision) bool {
	if len(was.Policies) == maxKept && len(is.Policies) > maxKept {
		cut := *is
		cut.Policies = is.Policies[:maxKept]
		return was.Same(&cut)
	}
	return was.Same(is)
}

// routeScopes tells whether the scopes that a route demands were there.
func (p *replayer) routeScopes(r *recorded, q *authz.Request, g *authz.Gaps) (ok, sure bool) {
	i := slices.IndexFunc(p.file.Routes, func(c config.Route) bool { return c.Name == r.Route })
	if i < 0 || len(p.file.Routes[i].Scopes) == 0 {
		return true, true
	}
	switch {
	case r.Error.Reason == scopeMissing:
		return false, true
	case r.Authz.Decision == "allow":
		return true, true
	case g.Scopes:
		return false, false
	}
	for _, s := range p.file.Routes[i].Scopes {
		if !slices.Contains(q.Scopes, s) {
			return false, true
		}
	}
	return true, true
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
