// Package redact decides what of an exchange may be kept. It denies by
// default: a field exists only if the class table names it, a query key, header
// or claim only if the route allows it, a name from outside only if it equals a
// configured one. Detectors then run over what remains as a tripwire.
package redact

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Config says what a snapshot's configuration allows. The zero value allows
// nothing from outside and coarsens addresses to /24 and /32.
type Config struct {
	// ClientPrefix4 and ClientPrefix6 are the lengths to which a client
	// address is cut in the frame: 1 to 32 and 1 to 128. 0 means the default
	// of 24 and 32, -1 keeps no prefix.
	ClientPrefix4, ClientPrefix6 int

	// QueryKeys, Headers and Claims list, by route name, what may go into
	// the personal part. Query keys are compared after one percent-decoding,
	// headers in lower case, claims as they are. Names of secrets are
	// refused.
	QueryKeys, Headers, Claims map[string][]string

	// Names are the names that may appear in a frame.
	Names Names

	// Minimal moves client prefix, JA4 and byte counts from the frame to the
	// personal part.
	Minimal bool
}

// Names are the configured names. A name from outside that is not among them
// is written as record.Other.
type Names struct {
	Routes, Templates, Hosts, SNI []string
	Issuers, Clients, Roles       []string
	ACR, AMR, KIDs                []string

	// Loaded, if not nil, is asked about a client, role or kid that is not
	// listed, such as a key id from a fetched key set. It must be fast and
	// safe for concurrent use, and is not part of the digest.
	Loaded func(what Name, value string) bool
}

// Name is a sort of name that Names.Loaded is asked about.
type Name string

// The sorts of loaded names.
const (
	ClientName Name = "client"
	RoleName   Name = "role"
	KIDName    Name = "kid"
)

type set map[string]struct{}

func (s set) has(v string) bool {
	_, ok := s[v]
	return ok
}

// Rules is a compiled Config. It is immutable but for what it remembers, and
// safe for concurrent use.
type Rules struct {
	bits4, bits6             int // -1: no prefix
	minimal                  bool
	query, headers, claims   map[string]set // by route
	routes, templates, hosts set
	sni, issuers, clients    set
	roles, acr, amr, kids    set
	loaded                   func(Name, string) bool
	exchanges, others        []frameGroup // of records with names from outside, and without
	endings                  []frameGroup // of exchanges: those that record.Kept.Same does not speak of
	digest                   string
	harmless                 harmless
	usual                    usual
}

// frameString is a string of the frame that is bounded and scanned.
type frameString struct {
	record.StringField
	limit int
}

// frameGroup is strings of the frame that stand together. Most of the groups
// have nothing in them or are as they were, which one look tells.
type frameGroup struct {
	name    string                             // first part of their paths; "" for strings of no group
	same    func(now, was *record.Record) bool // nil without a name
	strings []frameString
}

// sameGroup compares whole groups. One that changes with every exchange is not
// worth it.
var sameGroup = map[string]func(now, was *record.Record) bool{
	"limit": func(now, was *record.Record) bool { return now.Limit == was.Limit },
	"tls":   func(now, was *record.Record) bool { return now.TLS == was.TLS },
	"error": func(now, was *record.Record) bool { return now.Error == was.Error },
	"event": func(now, was *record.Record) bool { return now.Event == was.Event },
}

// group adds a string to its group, or to those of none.
func group(groups []frameGroup, f frameString) []frameGroup {
	name, _, _ := strings.Cut(f.Path, ".")
	same := sameGroup[name]
	if same == nil {
		name = ""
	}
	n := len(groups) - 1
	if n < 0 || groups[n].name != name {
		groups = append(groups, frameGroup{name: name, same: same})
		n++
	}
	groups[n].strings = append(groups[n].strings, f)
	return groups
}

// named are the paths that names and path check against sets: in exchanges they
// are of a closed or configured set already.
var named = toSet([]string{
	"route", "op", "method", "host", "proto", "template", "authn.issuer", "authn.client", "authn.acr", "authn.kid",
	"authn.alg", "tls.sni", "trace",
})

// New compiles the rules. It reports every name in an allow-list that must
// never be stored, and lengths out of range.
func New(c Config) (*Rules, error) {
	u := &Rules{minimal: c.Minimal, loaded: c.Names.Loaded, harmless: harmless{seed: maphash.MakeSeed()}}
	var errs []error
	add := func(err error) { errs = append(errs, err) }
	u.bits4 = prefixBits("IPv4", c.ClientPrefix4, 24, 32, add)
	u.bits6 = prefixBits("IPv6", c.ClientPrefix6, 32, 128, add)
	u.query = allowList("query key", c.QueryKeys, checkQueryKey, add)
	u.headers = allowList("header", c.Headers, checkHeader, add)
	u.claims = allowList("claim", c.Claims, checkClaim, add)
	n := c.Names
	for _, s := range []struct {
		to   *set
		from []string
	}{
		{&u.routes, n.Routes}, {&u.templates, n.Templates}, {&u.hosts, n.Hosts}, {&u.sni, n.SNI},
		{&u.issuers, n.Issuers}, {&u.clients, n.Clients}, {&u.roles, n.Roles},
		{&u.acr, n.ACR}, {&u.amr, n.AMR}, {&u.kids, n.KIDs},
	} {
		*s.to = toSet(s.from)
		for _, name := range s.from {
			if err := checkName(name); err != nil {
				add(err)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, f := range record.FrameStrings() {
		limit := capName
		switch f.Path {
		case "subject", "client.prefix", "san.set": // pseudonym, address and our digest have forms of their own
			continue
		case "op", "template":
			limit = capTemplate
		}
		u.others = group(u.others, frameString{f, limit})
		if !named.has(f.Path) {
			u.exchanges = group(u.exchanges, frameString{f, limit})
			if !record.SameCovers(f.Path) {
				u.endings = group(u.endings, frameString{f, limit})
			}
		}
	}
	u.digest = u.sum()
	return u, nil
}

func prefixBits(family string, bits, unset, longest int, fail func(error)) int {
	switch {
	case bits == 0:
		return unset
	case bits < -1 || bits > longest:
		fail(fmt.Errorf("redact: client prefix /%d for %s: want 1 to %d, 0 for /%d or -1 for none", bits, family, longest, unset))
	}
	return bits
}

// allowList compiles one allow-list; check gives the form in which a name is
// compared, or why it may not be stored.
func allowList(what string, from map[string][]string, check func(string) (string, error), fail func(error)) map[string]set {
	to := make(map[string]set, len(from))
	for _, route := range slices.Sorted(maps.Keys(from)) {
		names := make(set, len(from[route]))
		for _, name := range from[route] {
			name, err := check(name)
			if err != nil {
				fail(fmt.Errorf("redact: route %q: %s %w", route, what, err))
				continue
			}
			names[name] = struct{}{}
		}
		to[route] = names
	}
	return to
}

func toSet(names []string) set {
	s := make(set, len(names))
	for _, n := range names {
		s[n] = struct{}{}
	}
	return s
}

// checkName refuses a configured name that Apply would mask or cut.
func checkName(name string) error {
	if mark := Detect(name); mark != "" {
		return fmt.Errorf("redact: name %q: it looks like %s and would be masked in every record: rename it", name, mark)
	}
	if n := record.EscapedLen(name); n > capItem {
		return fmt.Errorf("redact: name %.40q... takes %d bytes: shorten it to %d", name, n, capItem)
	}
	return nil
}

// Digest identifies the rules: 32 hex digits of the SHA-256 over a canonical
// form of configuration, class table and detectors' version.
func (u *Rules) Digest() string { return u.digest }

func (u *Rules) sum() string {
	var b []byte
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	names := func(s set) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		for _, n := range slices.Sorted(maps.Keys(s)) {
			text(n)
		}
	}
	text(version)
	for _, f := range Fields() {
		text(f.Path)
		text(string(f.Class))
	}
	b = binary.AppendVarint(binary.AppendVarint(b, int64(u.bits4)), int64(u.bits6))
	if u.minimal {
		text("minimal")
	}
	for _, list := range []map[string]set{u.query, u.headers, u.claims} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, route := range slices.Sorted(maps.Keys(list)) {
			text(route)
			names(list[route])
		}
	}
	for _, s := range []set{u.routes, u.templates, u.hosts, u.sni, u.issuers, u.clients, u.roles, u.acr, u.amr, u.kids} {
		names(s)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:16])
}

// version changes with anything that Apply does differently: the class table,
// the caps, the shapes, the detectors.
const version = "gatebook/redact/v3"

// Caps on what a string takes once it is encoded, in bytes. What is longer is
// cut and ends in cutMark. They keep both halves under record.MaxPart.
const (
	capName     = 256  // each string of the frame but op and template
	capTemplate = 384  // op and template
	capItem     = 256  // element of a list, or a configured name
	maxItems    = 16   // elements of a list
	capID       = 512  // identifying strings of the personal part
	capUA       = 512  // user agent
	capPath     = 4096 // concrete path
	capQuery    = 2048
	capReferer  = 2048
	capValue    = 512 // header or claim
	capField    = 96  // name of a header or claim
	maxPairs    = 32  // headers, and claims
	maxFwd      = 16

	// maxScanned is the longest string that is looked at; what is longer is
	// masked whole.
	maxScanned = 16 << 10
)

const cutMark = "[cut]"

// Apply turns what the gate filled in into what may be kept: it empties r.Raw
// into r.Personal, sanitises both halves and writes r.San but for Invalid. Whoever needs
// Raw.IssuerSub takes it before. Applying the same rules again changes
// nothing. r is not used by others meanwhile; slices that it shares are
// replaced, not written into.
//
// What has not changed since Raw.Kept, if that was left by the same rules, is
// not looked at again.
func (u *Rules) Apply(r *record.Record) {
	w := work{u: u, r: r, was: &unseen}
	raw := r.Raw
	r.Raw = record.Raw{}
	if k := raw.Kept; k != nil && k.Record.San.Set == u.digest && k.Record.Kind == r.Kind {
		w.was = &k.Record
	}
	w.like = w.was
	if w.was != &unseen && isExchange(r.Kind) && !brings(&raw) && raw.Kept.Same(r) {
		w.ended()
	} else {
		w.all(&raw)
	}
	r.San.Set = u.digest
	r.San.Dropped += w.dropped
	r.San.Masked += w.masked
	r.San.Tripped += w.tripped
}

// all looks at everything.
func (w *work) all(raw *record.Raw) {
	u, r := w.u, w.r
	if isExchange(r.Kind) {
		if w.was == &unseen {
			w.like = u.usual.get()
		}
		w.names()
	}
	w.path(raw)
	w.query(raw)
	w.text(raw)
	w.pairs(raw)
	w.identity()
	w.address(raw)
	if u.minimal {
		w.minimal()
	}
	groups := u.others
	if isExchange(r.Kind) {
		groups = u.exchanges
	}
	w.strings(groups)
	w.lists()
	if w.was == &unseen && w.looked > 0 && isExchange(r.Kind) {
		u.usual.offer(r)
	}
}

// ended is all when everything but how an exchange ended was looked at before.
func (w *work) ended() {
	w.trace()
	if w.u.minimal {
		w.minimal()
	}
	w.strings(w.u.endings)
	w.shortList(&w.r.Links, w.was.Links)
}

// brings reports whether there is anything that is not yet in a record.
func brings(raw *record.Raw) bool {
	return raw.Path != "" || raw.Unmatched || raw.Query != "" || raw.UA != "" || raw.Referer != "" ||
		len(raw.Headers) > 0 || len(raw.Claims) > 0 || raw.RemoteAddr != ""
}

// unseen is what w.was is when nothing was looked at before. It is only read.
var unseen record.Record

// isExchange reports whether records of the kind carry names from outside. The
// others are made by the book and the operator's commands.
func isExchange(k record.Kind) bool {
	switch k {
	case record.KindAdmin, record.KindAccess, record.KindConfig, record.KindPolicy, record.KindKey,
		record.KindErasure, record.KindRetention, record.KindHold, record.KindDelivery, record.KindGap,
		record.KindClock, record.KindStart, record.KindStop, record.KindUncleanStop,
		record.KindHeartbeat, record.KindAlert:
		return false
	}
	return true
}

// work is one Apply.
type work struct {
	u                        *Rules
	r                        *record.Record
	was                      *record.Record // what these rules made of r before
	like                     *record.Record // strings of a frame that these rules have let pass
	looked                   int            // strings of the frame that are not as there
	dropped, masked, tripped int
}

// mask replaces *p by the mark of what was found in it.
func (w *work) mask(p *string, f finding) {
	*p = f.mark()
	w.tripped++
	w.masked++
}

// drop empties *p and counts it.
func (w *work) drop(p *string) {
	if *p != "" {
		*p = ""
		w.dropped++
	}
}

// bound masks *p if a detector finds something, and cuts it so that it takes
// at most limit bytes when encoded. What a cut leaves is looked at again: a cut
// can make a number or an address of what was none.
func (w *work) bound(p *string, limit int, but exempt) {
	if f := detect(*p, but); f != nothing {
		w.mask(p, f)
		return
	}
	w.cut(p, limit, but)
}

// name is bound for a string of the frame.
func (w *work) name(p *string, limit int) {
	s := *p
	if w.u.harmless.has(s) {
		return
	}
	w.bound(p, limit, butEntropy|butNumbers)
	if *p == s && limit <= maxHarmless {
		w.u.harmless.add(s)
	}
}

// cut is bound for a string in which no detector finds anything.
func (w *work) cut(p *string, limit int, but exempt) {
	s := *p
	if len(s)*len(`\ufffd`) <= limit || len(s) <= limit && record.EscapedLen(s) <= limit {
		return
	}
	size, end := len(cutMark), 0
	for end < len(s) {
		_, n := utf8.DecodeRuneInString(s[end:])
		if size += record.EscapedLen(s[end : end+n]); size > limit {
			break
		}
		end += n
	}
	*p = s[:end] + cutMark
	w.masked++
	if f := detect(*p, but); f != nothing {
		w.mask(p, f)
	}
}

// strings caps and scans the strings of groups.
func (w *work) strings(groups []frameGroup) {
	r := w.r
	for i := range groups {
		g := &groups[i]
		if g.same != nil && g.same(r, w.like) {
			continue
		}
		for k := range g.strings {
			f := &g.strings[k]
			if p := f.At(r); *p != "" && *p != *f.At(w.like) {
				w.looked++
				w.name(p, f.limit)
			}
		}
	}
}

// lists caps the lists of the frame and what they hold.
func (w *work) lists() {
	r, was := w.r, w.was
	w.shortList(&r.Authn.Roles, was.Authn.Roles)
	w.shortList(&r.Authn.AMR, was.Authn.AMR)
	w.shortList(&r.Authz.Policies, was.Authz.Policies)
	w.shortList(&r.Authz.ShadowPolicies, was.Authz.ShadowPolicies)
	w.shortList(&r.Links, was.Links)
}

func (w *work) shortList(l *[]string, was []string) {
	if slices.Equal(*l, was) {
		return
	}
	w.list(l, maxItems, func(s string) string {
		w.name(&s, capItem)
		return s
	})
}

// list caps a list at limit elements and runs each through clean, which gives
// an empty string to drop an element. The slice is replaced if anything changes.
func (w *work) list(l *[]string, limit int, clean func(string) string) {
	old := *l
	if len(old) > limit {
		w.dropped += len(old) - limit
		old = old[:limit:limit]
		*l = old
	}
	var fresh []string
	for i, s := range old {
		v := clean(s)
		if fresh == nil {
			if v == s && v != "" {
				continue
			}
			fresh = append(make([]string, 0, len(old)), old[:i]...)
		}
		if v != "" {
			fresh = append(fresh, v)
		}
	}
	if fresh != nil {
		*l = fresh
	}
}

// address fills the client's address and its prefix.
func (w *work) address(raw *record.Raw) {
	p, c := &w.r.Personal, &w.r.Client
	if old := w.was; raw.RemoteAddr == "" && c.Prefix != "" && c.Prefix == old.Client.Prefix && p.IP == old.Personal.IP && slices.Equal(p.Fwd, old.Personal.Fwd) {
		return
	}
	if raw.RemoteAddr != "" {
		p.IP, p.Port = raw.RemoteAddr, raw.RemotePort
	}
	addr, err := netip.ParseAddr(p.IP)
	if err != nil || addr.Zone() != "" {
		w.drop(&p.IP)
		p.Port = 0
		addr = netip.Addr{}
	}
	w.list(&p.Fwd, maxFwd, func(s string) string {
		if a, err := netip.ParseAddr(s); err != nil || a.Zone() != "" {
			w.drop(&s)
		}
		return s
	})
	w.prefix(addr.Unmap())
	if c.Prefix == "" {
		c.Prefix = record.None
	}
}

// prefix cuts the client's address, or a prefix that is there already.
func (w *work) prefix(addr netip.Addr) {
	c := &w.r.Client
	bits := 128
	if !addr.IsValid() {
		given, err := netip.ParsePrefix(c.Prefix)
		if err != nil {
			a, err := netip.ParseAddr(c.Prefix)
			if err != nil || a.Zone() != "" {
				if c.Prefix != "" && c.Prefix != record.None {
					w.dropped++
				}
				c.Prefix = record.None
				return
			}
			given = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		}
		addr, bits = given.Addr(), given.Bits()
	}
	limit := w.u.bits6
	if addr.Is4() {
		limit = w.u.bits4
	}
	if limit < 0 {
		c.Prefix = record.None
		return
	}
	var buf [64]byte
	b := netip.PrefixFrom(addr, min(bits, limit)).Masked().AppendTo(buf[:0])
	if string(b) != c.Prefix {
		c.Prefix = string(b)
	}
}

// minimal moves to the personal part what the minimal frame leaves out. What
// was moved before is not overwritten.
func (w *work) minimal() {
	r := w.r
	r.Client.Prefix = record.None
	if r.TLS.JA4 != "" {
		r.Personal.JA4, r.TLS.JA4 = r.TLS.JA4, ""
	}
	if r.BytesIn != 0 {
		r.Personal.BytesIn, r.BytesIn = r.BytesIn, 0
	}
	if r.BytesOut != 0 {
		r.Personal.BytesOut, r.BytesOut = r.BytesOut, 0
	}
}
