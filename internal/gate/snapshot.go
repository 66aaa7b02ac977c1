package gate

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
)

// Intent says for which requests of a route an open mark is made.
type Intent uint8

// The zero value is the safe one.
const (
	IntentAll    Intent = iota // every request
	IntentUnsafe               // all but GET, HEAD, OPTIONS and TRACE
	IntentNone                 // none
)

// OnFailure says what happens when the book cannot take a record.
type OnFailure uint8

// The zero value is the safe one.
const (
	Refuse OnFailure = iota // no complete answer without its record
	Allow                   // the answer goes on; the Recorder counts the loss
)

// Audit is how firmly a route's exchanges are recorded.
type Audit struct {
	Level     record.Level
	Intent    Intent
	OnFailure OnFailure
	Phases    bool // record the parts of the duration
}

// Route is what one configured route declares. NewSnapshot takes it over; it
// must not be changed afterwards.
type Route struct {
	Name      string
	Listeners []string // names; empty: all
	Host      string   // exact, in canonical form; empty: any
	Path      string   // pattern, see parsePattern
	Methods   []string // empty: DELETE GET HEAD PATCH POST PUT

	// Forms of a path that the route takes. ObserveForms takes the others too
	// and notes in the record that they would have been refused.
	Forms        canon.PathForms
	ObserveForms bool

	// Public routes ask for no credential. Others need at least one
	// authenticator.
	Public         bool
	Authenticators []Authenticator
	// Demands are made of whoever was authenticated, in this order.
	Demands []Demand
	// Engine decides; nil is possible for a Public route only and allows it.
	Engine Authorizer
	// Shadow is told of every decision and changes none; nil: there is none.
	Shadow *authz.Shadow
	// Scopes that a principal must all have, whatever the policies say.
	Scopes []string
	// CredentialFields are the fields, in lower case, in which the route's
	// methods look for credentials; "authorization" is always one. Two
	// different values among them are refused, and they are not forwarded.
	CredentialFields []string
	PassCredential   bool // forward them, and what canon.Credential names, all the same
	// Identity is what the upstream gets to know for certain; nil: nothing.
	Identity *Identity
	// Challenge goes into WWW-Authenticate; see Challenge.
	Challenge Challenge

	// Limits are taken after authentication, in this order.
	Limits []*ratelimit.Rule

	Upstream     Upstream
	UpstreamName string
	// Responder answers in the place of an upstream. Kind is what its records
	// are, "" for request.
	Responder Responder
	Kind      record.Kind
	MaxBody   int64 // bytes; 0: no limit

	Audit         Audit
	RecordHeaders []string // fields to put into the record, in lower case
	RecordClaims  []string // claims to put into the record
	// RecordScopes and RecordAge put into the record what policies read of a
	// token and records have no field for, so that the decision can be made
	// again; see ScopeClaim and AgeClaim.
	RecordScopes, RecordAge bool
}

// Challenge is what WWW-Authenticate says besides the scheme and the error
// (RFC 6750 section 3, RFC 9728 section 5.1).
type Challenge struct {
	Realm            string // empty: "gatebook"
	ResourceMetadata string // URL; empty: not sent
	DPoPAlgorithms   string // space-separated, for DPoP challenges; empty: "ES256"
	DPoP             DPoPMode
}

// DPoPMode says whether tokens bound to a key are asked for.
type DPoPMode uint8

// With DPoPOptional the challenge names both schemes, with DPoPRequired only
// DPoP.
const (
	DPoPOff DPoPMode = iota
	DPoPOptional
	DPoPRequired
)

// Listener is what one listener declares.
type Listener struct {
	Name string
	// Trusted are the ranges of peers whose forwarding fields are believed;
	// empty: nobody's.
	Trusted []netip.Prefix
	// ClientCert: the trusted peers end the TLS and give the client's certificate
	// in Client-Cert (RFC 9440).
	ClientCert bool
	// ClientAuth tells listeners that ask for client certificates in different
	// ways apart: what they ask, and whose they take. Empty: none are asked for.
	ClientAuth string
	// PreAuth limits are taken by address prefix before anything else.
	PreAuth []*ratelimit.Rule
}

// SnapshotConfig is what NewSnapshot needs.
type SnapshotConfig struct {
	ID        string // first 32 hex digits of the SHA-256 of what is declared
	Node      string
	Listeners []Listener
	Routes    []*Route
	Recorder  Recorder // bound to the snapshot's redaction rules
	// Audit applies to exchanges that reach no route.
	Audit Audit
	// Lengths in bits of the prefix that a record keeps of an address and that
	// limits count by. 0 means the default: 24 and 32 for records, 32 and 64
	// for limits.
	RecordBits4, RecordBits6 int
	LimitBits4, LimitBits6   int
	// Challenge applies where a route sets none.
	Challenge Challenge
	// AcceptRequestIDs keeps the X-Request-Id of trusted peers in the personal
	// part of the record; nobody's is kept otherwise.
	AcceptRequestIDs bool
	// Failures limits failed authentication, Alerts says when a series of
	// refusals is an alert.
	Failures FailureLimits
	Alerts   AlertRules
}

// Snapshot is what one configuration declares. It is immutable; an exchange
// uses exactly one.
type Snapshot struct {
	id, node  string
	listeners map[string]*listener
	recorder  Recorder
	audit     Audit
	challenge Challenge
	hosts     map[string]bool // configured host names: others are not recorded
	methods   map[string]bool // likewise

	acceptIDs bool
	failures  FailureLimits
	alerts    AlertRules

	identities []string // fields of all identities: nobody's but ours go on

	recordBits4, recordBits6 int
	limitBits4, limitBits6   int
}

// listener is a Listener with its routes.
type listener struct {
	name    string
	trusted []netip.Prefix
	preAuth []*ratelimit.Rule
	router  *router

	clientCert bool
	clientAuth string
	strictSNI  bool // the host asked for must be the one that the connection was made to

	// foreign are hosts that this listener has no routes for by name, but one
	// that asks for client certificates in another way has.
	foreign map[string]bool
}

// ID is the snapshot's id.
func (s *Snapshot) ID() string { return s.id }

// NewSnapshot checks c as a whole and reports every problem at once.
func NewSnapshot(c SnapshotConfig) (*Snapshot, error) {
	s := &Snapshot{
		id: c.ID, node: c.Node, recorder: c.Recorder, audit: c.Audit, challenge: c.Challenge,
		acceptIDs: c.AcceptRequestIDs, listeners: map[string]*listener{}, hosts: map[string]bool{}, methods: map[string]bool{"OPTIONS": true},
		recordBits4: orDefault(c.RecordBits4, 24), recordBits6: orDefault(c.RecordBits6, 32),
		limitBits4: orDefault(c.LimitBits4, 32), limitBits6: orDefault(c.LimitBits6, 64),
	}
	s.failures, s.alerts = c.Failures, c.Alerts
	s.failures.complete()
	if s.challenge.Realm == "" {
		s.challenge.Realm = "gatebook"
	}
	if s.challenge.DPoPAlgorithms == "" {
		s.challenge.DPoPAlgorithms = "ES256"
	}
	var errs []error
	if c.Recorder == nil || c.ID == "" || c.Node == "" {
		errs = append(errs, errors.New("a recorder, a snapshot id and a node name are required"))
	}
	for _, bits := range []struct{ n, most int }{{s.recordBits4, 32}, {s.limitBits4, 32}, {s.recordBits6, 128}, {s.limitBits6, 128}} {
		if bits.n < 1 || bits.n > bits.most {
			errs = append(errs, fmt.Errorf("prefix length %d is not from 1 to %d", bits.n, bits.most))
		}
	}
	for _, m := range defaultMethods {
		s.methods[m] = true
	}
	for _, r := range s.failures.rules() {
		if err := r.Validate(); err != nil {
			errs = append(errs, err)
		} else if r.Key != ratelimit.KeyPrefix {
			errs = append(errs, errors.New("limits on failed authentication are kept with those by prefix, since strangers choose their keys"))
		}
	}
	errs = append(errs, s.addRoutes(c.Routes)...)
	errs = append(errs, s.addListeners(c)...)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	return s, nil
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

func (s *Snapshot) addRoutes(routes []*Route) (errs []error) {
	names := map[string]bool{}
	for _, r := range routes {
		if names[r.Name] {
			errs = append(errs, fmt.Errorf("route %q is declared twice", r.Name))
		}
		names[r.Name] = true
		if err := r.check(); err != nil {
			errs = append(errs, fmt.Errorf("route %q: %w", r.Name, err))
			continue
		}
		if !slices.Contains(r.CredentialFields, "authorization") {
			r.CredentialFields = append(slices.Clone(r.CredentialFields), "authorization")
		}
		if r.Host != "" {
			s.hosts[r.Host] = true
		}
		for _, m := range r.Methods {
			s.methods[m] = true
		}
		if id := r.Identity; id != nil && !slices.Contains(s.identities, id.Field) {
			s.identities = append(s.identities, id.Field)
		}
	}
	return errs
}

// check refuses a route that would let somebody through by omission.
func (r *Route) check() error {
	var errs []error
	add := func(text string) { errs = append(errs, errors.New(text)) }
	if r.Name == "" || r.Name == record.None {
		add("a route needs a name other than \"none\"")
	}
	switch {
	case r.Responder != nil && (r.Upstream != nil || r.UpstreamName != ""):
		add("an upstream and a responder at once: choose one")
	case r.Responder != nil && r.MaxBody <= 0:
		add("a responder needs a limit on the body that it reads")
	case r.Responder == nil && (r.Upstream == nil || r.UpstreamName == ""):
		add("no upstream")
	}
	if r.Kind != "" && (r.Responder == nil || r.Kind != record.KindToken && r.Kind != record.KindSession && r.Kind != record.KindRequest) {
		errs = append(errs, fmt.Errorf("records of kind %q are not made here", r.Kind))
	}
	if r.Public && len(r.Authenticators) > 0 {
		add("public and authenticated at once: choose one")
	}
	if !r.Public && len(r.Authenticators) == 0 {
		add("no authenticator: name one, or say that the route is public")
	}
	if !r.Public && r.Engine == nil {
		add("no policy engine")
	}
	if r.Public && len(r.Scopes) > 0 {
		add("a public route cannot demand scopes")
	}
	if slices.Contains(r.Authenticators, nil) || slices.Contains(r.Demands, nil) || slices.Contains(r.Limits, nil) {
		add("nil authenticator, demand or limit")
	}
	if r.Public && len(r.Demands) > 0 {
		add("a public route cannot demand anything of a caller")
	}
	if r.Identity != nil {
		if err := r.Identity.check(); err != nil {
			errs = append(errs, err)
		}
	}
	if r.MaxBody < 0 {
		add("negative body limit")
	}
	if r.Host != "" && (r.Host != strings.ToLower(r.Host) || strings.HasSuffix(r.Host, ".") || strings.ContainsAny(r.Host, "*/@[] ")) {
		add("the host must be an exact name in lower case, without port, brackets or trailing dot")
	}
	for _, m := range r.Methods {
		if m == "" || m != strings.ToUpper(m) || m == "CONNECT" {
			errs = append(errs, fmt.Errorf("method %q: write methods in upper case; CONNECT is never forwarded", m))
		}
	}
	for _, f := range slices.Concat(r.CredentialFields, r.RecordHeaders) {
		if f == "" || f != strings.ToLower(f) {
			errs = append(errs, fmt.Errorf("field name %q must be in lower case", f))
		}
	}
	for _, f := range r.RecordHeaders {
		if neverRecorded[f] || slices.Contains(r.CredentialFields, f) {
			errs = append(errs, fmt.Errorf("field %q holds a secret and is never recorded", f))
		}
	}
	for _, l := range r.Limits {
		if l == nil {
			continue
		}
		if err := l.Validate(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// neverRecorded are secrets whatever the configuration says (spec/record.md).
var neverRecorded = map[string]bool{
	"authorization": true, "cookie": true, "set-cookie": true, "dpop": true,
	"proxy-authorization": true, "x-api-key": true,
}

func (s *Snapshot) addListeners(c SnapshotConfig) (errs []error) {
	for _, l := range c.Listeners {
		if l.Name == "" || s.listeners[l.Name] != nil {
			errs = append(errs, fmt.Errorf("listener %q has no name or is declared twice", l.Name))
			continue
		}
		var routes []*Route
		for _, r := range c.Routes {
			if len(r.Listeners) == 0 || slices.Contains(r.Listeners, l.Name) {
				routes = append(routes, r)
			}
		}
		for _, rule := range l.PreAuth {
			if rule == nil || rule.Key != ratelimit.KeyPrefix {
				errs = append(errs, fmt.Errorf("listener %q: a limit before authentication must be keyed by prefix", l.Name))
			} else if err := rule.Validate(); err != nil {
				errs = append(errs, fmt.Errorf("listener %q: %w", l.Name, err))
			}
		}
		rt, err := newRouter(routes)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %q: %w", l.Name, err))
			continue
		}
		s.listeners[l.Name] = &listener{name: l.Name, trusted: slices.Clone(l.Trusted), preAuth: l.PreAuth, router: rt, clientCert: l.ClientCert, clientAuth: l.ClientAuth, strictSNI: l.ClientAuth != ""}
	}
	s.findForeign()
	for _, r := range c.Routes {
		for _, name := range r.Listeners {
			if s.listeners[name] == nil {
				errs = append(errs, fmt.Errorf("route %q: listener %q does not exist", r.Name, name))
			}
		}
	}
	return errs
}

// findForeign tells each listener which hosts belong to others.
func (s *Snapshot) findForeign() {
	for _, l := range s.listeners {
		for _, other := range s.listeners {
			if other.clientAuth == l.clientAuth {
				continue
			}
			for host := range other.router.hosts {
				if l.router.hosts[host] == nil {
					if l.foreign == nil {
						l.foreign = map[string]bool{}
					}
					l.foreign[host] = true
				}
			}
		}
	}
}

// nowhere is the listener of an exchange whose listener the snapshot does not
// know: it trusts nobody and routes nothing.
var nowhere = &listener{router: &router{any: &node{}}}

func (s *Snapshot) listener(name string) *listener {
	if l := s.listeners[name]; l != nil {
		return l
	}
	return nowhere
}

// hostName is what a record may say of a host: only names that were
// configured.
func (s *Snapshot) hostName(host string) string {
	if s.hosts[host] {
		return host
	}
	return record.Other
}

func (s *Snapshot) methodName(method string) string {
	if s.methods[method] {
		return method
	}
	return record.Other
}

// recordPrefix and limitPrefix coarsen an address.
func (s *Snapshot) recordPrefix(a netip.Addr) netip.Prefix {
	return prefix(a, s.recordBits4, s.recordBits6)
}

func (s *Snapshot) limitPrefix(a netip.Addr) netip.Prefix {
	return prefix(a, s.limitBits4, s.limitBits6)
}

// prefix is invalid for an invalid address; all such share one bucket.
func prefix(a netip.Addr, bits4, bits6 int) netip.Prefix {
	bits := bits6
	if a.Is4() {
		bits = bits4
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
