package authn

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is parsed at all, in bytes; the depth counts objects and
// arrays within each other.
const (
	maxToken     = 8 << 10
	maxHeader    = 1 << 10 // decoded
	maxSignature = 8192 / 8
	maxDepth     = 16
	maxKID       = 256
	maxSubject   = 512
	maxText      = 256 // any other single claim string
)

// token is a JWS in compact form whose structure is sound. Nothing in it is
// verified.
type token struct {
	signed string // what the signature covers: two segments and the dot
	sig    []byte
	header *value
	claims *value
}

// errNotCompact is a bearer token that is not three segments: not a JWS.
var errNotCompact = errors.New("token is not three segments, as a signed JWT has")

// strictURL is base64url without padding that refuses non-zero spare bits. It
// still skips CR and LF, which is why alphabet is checked first.
var strictURL = base64.RawURLEncoding.Strict()

// parseToken reads JWS compact serialization (RFC 7515 section 7.1) so that
// one token has exactly one spelling: every byte of it is in the base64url
// alphabet and decodes and encodes to itself, and the two JSON texts mean the
// same to any reader. With an error the token may be there in part, for the
// record only.
func parseToken(raw string, claimNames *nameSet) (*token, error) {
	if len(raw) > maxToken {
		return nil, fmt.Errorf("token is longer than %d bytes", maxToken)
	}
	if strings.Count(raw, ".") != 2 {
		return nil, errNotCompact
	}
	if i := strings.IndexFunc(raw, outsideAlphabet); i >= 0 {
		return nil, fmt.Errorf("token has a byte outside the base64url alphabet at %d", i)
	}
	h, rest, _ := strings.Cut(raw, ".")
	c, s, _ := strings.Cut(rest, ".")
	t := &token{signed: raw[:len(h)+1+len(c)]}
	var errs [5]error
	t.header, errs[0] = parseSegment("header", h, maxHeader)
	t.claims, errs[1] = parseSegment("payload", c, maxToken)
	t.sig, errs[2] = decodeSegment("signature", s, maxSignature)
	if t.header != nil {
		errs[3] = wrap("header", headerNames.check(t.header))
	}
	if t.claims != nil {
		errs[4] = wrap("payload", claimNames.check(t.claims))
	}
	for _, err := range errs {
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

func parseSegment(name, s string, limit int) (*value, error) {
	b, err := decodeSegment(name, s, limit)
	if err != nil {
		return nil, err
	}
	v, err := parseObject(b, maxDepth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

func outsideAlphabet(r rune) bool {
	return !('A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')
}

func decodeSegment(name, s string, limit int) ([]byte, error) {
	if s == "" {
		return nil, fmt.Errorf("%s segment is empty", name)
	}
	if base64.RawURLEncoding.DecodedLen(len(s)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	b, err := strictURL.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%s is not canonical base64url", name)
	}
	return b, nil
}

// nameSet is a set of member names that mean something to us. A member that
// equals one of them but for case or the way it is written, or two members
// that differ only in case, are refused: a reader that folds case (encoding/json
// into a struct does) would see another token than we do.
type nameSet struct {
	exact  map[string]struct{}
	folded map[string]struct{}
}

func newNameSet(names ...string) *nameSet {
	s := &nameSet{make(map[string]struct{}), make(map[string]struct{})}
	for _, n := range names {
		s.exact[n] = struct{}{}
		s.folded[fold(n)] = struct{}{}
	}
	return s
}

// fold maps every name to one spelling of its Unicode simple case folding: to
// the lower-case ASCII letter where there is one, so that an ordinary name is
// returned as it is.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && !('A' <= r && r <= 'Z') {
			return r
		}
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		if 'A' <= least && least <= 'Z' {
			return least + 'a' - 'A'
		}
		return least
	}, s)
}

func (s *nameSet) check(obj *value) error {
	var seen names
	for i := range obj.members {
		m := &obj.members[i]
		f := fold(m.name)
		if !seen.add(f) {
			return errors.New("two members differ only in case")
		}
		if _, known := s.folded[f]; !known {
			continue
		}
		if _, exact := s.exact[m.name]; !exact {
			return errors.New("a member is a known name in other case")
		}
		if m.escaped {
			return errors.New("a known member name is written with an escape")
		}
	}
	return nil
}

// headerNames are the header parameters registered for JWS and JWE.
var headerNames = newNameSet("alg", "typ", "cty", "kid", "crit", "jku", "jwk", "x5u", "x5c",
	"x5t", "x5t#S256", "b64", "zip", "enc", "epk", "apu", "apv", "iv", "tag", "p2s", "p2c", "url", "nonce", "ppt", "svt")

// claimNames are the claims that this package or those behind it know by name;
// NewJWT adds the configured ones.
var claimNames = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "azp", "scope",
	"acr", "amr", "auth_time", "cnf", "nonce", "at_hash", "c_hash", "sid", "events", "act", "may_act",
	"name", "email", "email_verified", "typ", "roles", "groups", "entitlements"}

// refusedHeaders are parameters with which a token would choose its own key,
// processing or encoding (RFC 8725 sections 3.6 and 3.10, RFC 7797), and those
// of encryption. Refused whatever their value.
var refusedHeaders = []string{"crit", "jku", "jwk", "x5u", "x5c", "zip", "b64", "enc", "epk", "p2s", "p2c", "iv", "tag"}

// kid returns the bounded, printable key id, or false.
func (t *token) kid() (string, bool) {
	v := t.header.get("kid")
	if v == nil || v.kind != kindString || !validKID(v.text) {
		return "", false
	}
	return v.text, true
}

// validKID is what we take as a key id, in a token and in a key set.
func validKID(s string) bool {
	if s == "" || len(s) > maxKID {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// mediaType normalises a typ or cty value: ASCII case is dropped, and so is
// the "application/" that RFC 7515 section 4.1.9 lets a producer omit.
func mediaType(s string) string {
	lower := func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}
	return strings.TrimPrefix(strings.Map(lower, s), "application/")
}
