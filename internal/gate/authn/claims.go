package authn

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/gatebook/gatebook/internal/reason"
)

// claimPath leads to a claim: one member name, or the reference tokens of a
// JSON pointer (RFC 6901). Empty means that no such claim is configured.
type claimPath []string

// parseClaimPath reads a configured claim name. With a leading '/' it is a
// JSON pointer, otherwise the exact member name (which may hold '/', as the
// URL-shaped names of some issuers do).
func parseClaimPath(s string) (claimPath, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return claimPath{s}, nil
	}
	parts := strings.Split(s[1:], "/")
	for i, p := range parts {
		plain := strings.NewReplacer("~0", "", "~1", "").Replace(p)
		if strings.Contains(plain, "~") {
			return nil, fmt.Errorf("claim %q: '~' must be written ~0 and '/' ~1 in a JSON pointer", s)
		}
		parts[i] = strings.ReplaceAll(strings.ReplaceAll(p, "~1", "/"), "~0", "~")
	}
	if parts[0] == "" {
		return nil, fmt.Errorf("claim %q: empty name", s)
	}
	return parts, nil
}

// in returns the value that the path leads to, or nil.
func (c claimPath) in(v *value) *value {
	if len(c) == 0 {
		return nil
	}
	for _, name := range c {
		switch v.kind {
		case kindObject:
			v = v.get(name)
		case kindArray:
			i, err := strconv.ParseUint(name, 10, 16)
			if err != nil || name != strconv.FormatUint(i, 10) || i >= uint64(len(v.elems)) {
				return nil
			}
			v = &v.elems[i]
		default:
			return nil
		}
		if v == nil {
			return nil
		}
	}
	return v
}

// profile is what an issuer's access tokens must look like: the validated form
// of JWTConfig.
type profile struct {
	audiences                           map[string]struct{}
	maxLifetime, maxAge, skew           time.Duration
	audience, roles, groups, scope, ten claimPath
	clients, refuse                     []claimPath
	require                             []requirement
	pass                                []namedPath
	names                               *nameSet

	// introspected tokens need not say when they were issued and end, nor whom
	// they speak for if that is the client (RFC 7662 section 2.2).
	introspected bool
}

type namedPath struct {
	name string
	path claimPath
}

type requirement struct {
	path   claimPath
	values []string // any of them; empty: any value
}

// times are the checked date claims, in seconds since the Unix epoch, -1 if
// absent.
type times struct {
	iat, exp, nbf, auth int64
}

// check validates the claims of a token whose signature is good, in a fixed
// order: shape, kind of token, audience, time, binding. The Principal lacks
// what the header and the configuration know.
func (p *profile) check(c *value, now time.Time) (*Principal, times, *Failure) {
	pr, t, detail := p.read(c)
	if detail != "" {
		return nil, t, fail(reason.TokenMalformed, detail)
	}
	for _, path := range p.refuse {
		if path.in(c) != nil {
			return nil, t, fail(reason.TokenType, "token has a claim that marks another kind of token")
		}
	}
	for _, r := range p.require {
		if f := r.check(c); f != nil {
			return nil, t, f
		}
	}
	var f *Failure
	if pr.Audiences, f = p.checkAudience(c); f != nil {
		return nil, t, f
	}
	if f := p.checkTimes(t, now); f != nil {
		return nil, t, f
	}
	var ok bool
	if pr.Confirm, ok = confirmation(c.get("cnf")); !ok {
		return nil, t, fail(reason.BindingRequired, "token is bound (cnf) in a way that is not one jkt or one x5t#S256")
	}
	return pr, t, nil
}

// confirmation reads cnf (RFC 7800): exactly one member, jkt (RFC 9449 section
// 6.1) or x5t#S256 (RFC 8705 section 3.1), a SHA-256 in base64url. A binding
// that is not understood must not turn into none: what else there is gives
// false.
func confirmation(cnf *value) (c Confirmation, ok bool) {
	if cnf == nil {
		return c, true
	}
	if cnf.kind != kindObject || len(cnf.members) != 1 {
		return c, false
	}
	m := &cnf.members[0]
	if m.escaped || m.value.kind != kindString || !isThumbprint(m.value.text) {
		return c, false
	}
	switch m.name {
	case "jkt":
		c.JKT = m.value.text
	case "x5t#S256":
		c.X5T = m.value.text
	default:
		return c, false
	}
	return c, true
}

// isThumbprint says whether s is 32 bytes in the one base64url form they have.
func isThumbprint(s string) bool {
	if len(s) != base64.RawURLEncoding.EncodedLen(sha256.Size) || strings.ContainsAny(s, "\r\n") {
		return false
	}
	_, err := strictURL.DecodeString(s)
	return err == nil
}

func (r *requirement) check(c *value) *Failure {
	v := r.path.in(c)
	if v == nil || v.kind == kindNull {
		return fail(reason.TokenMalformed, "a claim that the configuration requires is missing")
	}
	if len(r.values) == 0 {
		return nil
	}
	text, scalar := v.scalar()
	for _, want := range r.values {
		if scalar && text == want {
			return nil
		}
	}
	return fail(reason.TokenType, "a claim has none of the values that the configuration requires")
}

// checkAudience wants a string or an array of strings (RFC 7519 section 4.1.3)
// that holds one of ours, compared byte by byte, and returns all of them.
func (p *profile) checkAudience(c *value) ([]string, *Failure) {
	v := p.audience.in(c)
	list, ok := stringList(v)
	if v == nil || !ok || len(list) == 0 {
		return nil, fail(reason.TokenAudience, "audience is missing or neither a string nor an array of strings")
	}
	for _, a := range list {
		if _, mine := p.audiences[a]; mine {
			return list, nil
		}
	}
	return nil, fail(reason.TokenAudience, "audience is none of those configured")
}

// checkTimes applies RFC 7519 sections 4.1.4 to 4.1.6 with one allowance for
// clocks, and the two limits on top that keep a leaked token short-lived. The
// age is measured without the allowance: it is our own limit.
func (p *profile) checkTimes(t times, now time.Time) *Failure {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	switch latest := now.Add(p.skew); {
	case at(t.iat).After(latest):
		return fail(reason.TokenNotYet, "iat is in the future")
	case t.nbf >= 0 && at(t.nbf).After(latest):
		return fail(reason.TokenNotYet, "nbf is in the future")
	case t.auth >= 0 && at(t.auth).After(latest):
		return fail(reason.TokenNotYet, "auth_time is in the future")
	case t.exp >= 0 && !now.Add(-p.skew).Before(at(t.exp)):
		return fail(reason.TokenExpired, "exp has passed")
	case t.exp >= 0 && t.iat >= 0 && t.exp-t.iat > int64(p.maxLifetime/time.Second):
		return fail(reason.TokenLifetimeExceeded, "exp is further from iat than max_lifetime allows")
	case p.maxAge > 0 && now.Sub(at(t.iat)) > p.maxAge:
		return fail(reason.TokenTooOld, "iat is longer ago than max_age allows")
	}
	return nil
}

// read takes the claims into a Principal. detail says what is malformed.
func (p *profile) read(c *value) (pr *Principal, t times, detail string) {
	if t, detail = readTimes(c, !p.introspected); detail != "" {
		return nil, t, detail
	}
	pr = &Principal{IssuedAt: instant(t.iat), Expires: instant(t.exp), AuthTime: instant(t.auth), Memo: new(Memo)}
	var ok bool
	for _, path := range p.clients {
		if v := path.in(c); v != nil {
			if pr.Client, ok = text(v, maxText); !ok {
				return nil, t, "client id is not a short plain string"
			}
			break
		}
	}
	if sub := c.get("sub"); sub == nil && p.introspected {
		pr.Subject = pr.Client // what RFC 9068 section 2.2 puts into sub when there is no person
	} else if pr.Subject, ok = text(sub, maxSubject); !ok {
		pr.Subject = ""
	}
	if pr.Subject == "" {
		return nil, t, "sub is missing, empty, too long or holds characters that a name cannot"
	}
	for _, s := range []struct {
		to *string
		v  *value
	}{{&pr.ACR, c.get("acr")}, {&pr.TokenID, c.get("jti")}, {&pr.Tenant, p.ten.in(c)}} {
		if s.v == nil {
			continue
		}
		if *s.to, ok = text(s.v, maxText); !ok {
			return nil, t, "acr, jti or the tenant claim is not a short plain string"
		}
	}
	if pr.Roles, ok = textList(p.roles.in(c)); !ok {
		return nil, t, "roles are neither a string nor an array of short plain strings"
	}
	if pr.Groups, ok = textList(p.groups.in(c)); !ok {
		return nil, t, "groups are neither a string nor an array of short plain strings"
	}
	if pr.AMR, ok = textList(c.get("amr")); !ok {
		return nil, t, "amr is not an array of short plain strings"
	}
	if pr.Scopes, ok = scopes(p.scope.in(c)); !ok {
		return nil, t, "scope is neither a space-separated string nor an array of scope tokens"
	}
	// These two are for people to read and decide nothing: one of another
	// shape is left empty.
	pr.Name, _ = text(c.get("name"), maxText)
	pr.Email, _ = text(c.get("email"), maxText)
	pr.Claims, pr.Unfit = p.passed(c)
	return pr, t, ""
}

// passed picks the configured claims that are scalar and short, and names those
// that are there and are neither. null stands for a claim that is not there.
func (p *profile) passed(c *value) (m map[string]string, unfit []string) {
	for _, np := range p.pass {
		v := np.path.in(c)
		if v == nil || v.kind == kindNull {
			continue
		}
		s, ok := v.scalar()
		if !ok || v.kind == kindString && !plain(s, maxText) {
			unfit = append(unfit, np.name)
			continue
		}
		if m == nil {
			m = make(map[string]string, len(p.pass))
		}
		m[np.name] = s
	}
	return m, unfit
}

// instant is a NumericDate as time; zero for one that is absent.
func instant(s int64) time.Time {
	if s < 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

// readTimes takes the dates, all as plain integers. A JWT must have exp and iat
// (this profile; RFC 9068 section 2.2).
func readTimes(c *value, must bool) (t times, detail string) {
	for _, d := range []struct {
		name string
		to   *int64
		must bool
	}{{"exp", &t.exp, must}, {"iat", &t.iat, must}, {"nbf", &t.nbf, false}, {"auth_time", &t.auth, false}} {
		*d.to = -1
		v := c.get(d.name)
		if v == nil {
			if d.must {
				return t, "exp or iat is missing"
			}
			continue
		}
		n, ok := v.numericDate()
		if !ok {
			return t, "a date claim is not a plain integer of seconds within range"
		}
		*d.to = n
	}
	if t.exp >= 0 && (t.exp <= t.iat || t.exp <= t.nbf) {
		return t, "exp is not after iat and nbf"
	}
	return t, ""
}

// text returns the string of v if it is plain and at most limit bytes long.
func text(v *value, limit int) (string, bool) {
	if v == nil || v.kind != kindString || !plain(v.text, limit) {
		return "", false
	}
	return v.text, true
}

// plain says whether s can be a name in a header field, a policy and a record
// without changing on the way: no control or format characters, which could
// split or disguise it, and no white space at its ends, which an HTTP peer
// would trim into another name.
func plain(s string, limit int) bool {
	if len(s) > limit || strings.TrimSpace(s) != s {
		return false
	}
	for _, r := range s {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
			return false
		}
	}
	return true
}

// stringList reads a string or an array of strings; nil gives an empty list.
func stringList(v *value) ([]string, bool) {
	switch {
	case v == nil:
		return nil, true
	case v.kind == kindString:
		return []string{v.text}, true
	case v.kind != kindArray:
		return nil, false
	}
	list := make([]string, len(v.elems))
	for i := range v.elems {
		if v.elems[i].kind != kindString {
			return nil, false
		}
		list[i] = v.elems[i].text
	}
	return list, true
}

// textList is stringList with every entry plain, short and not empty.
func textList(v *value) ([]string, bool) {
	list, ok := stringList(v)
	for _, s := range list {
		ok = ok && s != "" && plain(s, maxText)
	}
	return list, ok
}

// scopes reads RFC 6749 section 3.3 (one string, single spaces), or the array
// that some issuers send instead.
func scopes(v *value) ([]string, bool) {
	list, ok := stringList(v)
	if ok && v != nil && v.kind == kindString {
		if v.text == "" {
			return nil, true
		}
		list = strings.Split(v.text, " ")
	}
	for _, s := range list {
		if s == "" || len(s) > maxText {
			return nil, false
		}
		for i := range len(s) {
			if c := s[i]; c <= 0x20 || c >= 0x7f || c == '"' || c == '\\' {
				return nil, false
			}
		}
	}
	return list, ok
}

// claimed returns the unverified subject for the record, cut to its bound.
func claimed(c *value) string {
	if c == nil {
		return ""
	}
	v := c.get("sub")
	if v == nil || v.kind != kindString {
		return ""
	}
	if len(v.text) <= maxSubject {
		return v.text
	}
	return strings.ToValidUTF8(v.text[:maxSubject], "") // only a cut last rune can be invalid
}
