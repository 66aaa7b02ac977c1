package redact

import (
	"encoding/base64"
	"strings"
)

// finding is what a detector found.
type finding uint8

const (
	nothing finding = iota
	foundJWT
	foundKey
	foundPEM
	foundBearer
	foundUserinfo
	foundEmail
	foundCard
	foundIBAN
	foundNationalID
	foundEntropy
	foundEncoding // encoded more often than is looked into
	foundLong     // longer than is looked at
	foundShape    // not of the shape that the field has
)

var marks = [...]string{
	"", "[masked:jwt]", "[masked:key]", "[masked:pem]", "[masked:bearer]", "[masked:userinfo]",
	"[masked:email]", "[masked:card]", "[masked:iban]", "[masked:nid]", "[masked:secret]",
	"[masked:encoding]", "[masked:long]", "[masked:shape]",
}

// mark is what stands in place of a masked value. No detector finds anything
// in a mark.
func (f finding) mark() string { return marks[f] }

// exempt says what a field may hold.
type exempt uint8

const (
	butEmail   exempt = 1 << iota
	butEntropy        // random strings: the field holds an identifier
	butNumbers        // card numbers, IBANs, national ids: the field holds an identifier
)

// Detect runs the detectors over a configured name, such as a role, a route or
// a policy id, and gives the mark of what was found or "". Names that trip it
// would be masked in every record.
func Detect(name string) string { return detect(name, butEntropy|butNumbers).mark() }

// detect looks at s, at s decoded once and at s decoded twice (see unescape).
// What could be decoded a third time is refused as it is, since nobody has
// looked into it. Time is linear in len(s).
func detect(s string, but exempt) finding {
	if len(s) < len("u:p@h") {
		return nothing
	}
	if len(s) > maxScanned {
		return foundLong
	}
	if len(s) < len("219-09-9999") && strings.IndexByte(s, '@') < 0 && strings.IndexByte(s, '%') < 0 {
		return nothing // the shortest of all the rest
	}
	return detectDeep(s, but, maxHidden)
}

// detectDeep is detect for a string that is long enough.
func detectDeep(s string, but exempt, depth int) finding {
	for range 3 {
		if f := detectPlain(s, but, depth); f != nothing {
			return f
		}
		next, changed := unescape(s)
		if !changed {
			return nothing
		}
		s = next
	}
	return foundEncoding
}

// unpercent decodes each %XX once. changed is false if there was none.
func unpercent(s string) (decoded string, changed bool) {
	i := strings.IndexByte(s, '%')
	if i < 0 {
		return s, false
	}
	var b []byte
	for ; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
			if b == nil {
				b = append(make([]byte, 0, len(s)), s[:i]...)
			}
			b = append(b, hexValue(s[i+1])<<4|hexValue(s[i+2]))
			i += 2
		} else if b != nil {
			b = append(b, s[i])
		}
	}
	if b == nil {
		return s, false
	}
	return string(b), true
}

// Character classes of the first look.
const (
	cDigit = 1 << iota
	cLower
	cUpper
	cToken // part of a run: letter, digit, '-', '_', '+', '='
	cAt
	cHexLetter
)

var class = func() (t [256]uint8) {
	for c := range t {
		switch b := byte(c); {
		case b >= '0' && b <= '9':
			t[c] = cDigit | cToken
		case b >= 'a' && b <= 'z':
			t[c] = cLower | cToken
		case b >= 'A' && b <= 'Z':
			t[c] = cUpper | cToken
		case b == '-' || b == '_' || b == '+' || b == '=':
			t[c] = cToken
		case b == '@':
			t[c] = cAt
		}
		if b := byte(c) | 0x20; b >= 'a' && b <= 'f' && c < 0x80 && c >= 'A' {
			t[c] |= cHexLetter
		}
	}
	return t
}()

func isDigit(c byte) bool { return class[c]&cDigit != 0 }
func isLower(c byte) bool { return class[c]&cLower != 0 }
func isUpper(c byte) bool { return class[c]&cUpper != 0 }
func isAlnum(c byte) bool { return class[c]&(cDigit|cLower|cUpper) != 0 }
func isHex(c byte) bool   { return class[c]&(cDigit|cHexLetter) != 0 }

func hexValue(c byte) byte {
	if isDigit(c) {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

// detectPlain runs the detectors over s as it is, and over what is hidden in it
// up to that depth. One look over the bytes says which of them can find
// anything at all.
func detectPlain(s string, but exempt, depth int) finding {
	var seen uint8
	digits, run, longest := 0, 0, 0
	for i := range len(s) {
		c := class[s[i]]
		seen |= c
		digits += int(c & cDigit)
		if c&cToken != 0 {
			run++
			longest = max(longest, run)
		} else {
			run = 0
		}
	}
	if longest >= 5 {
		if f := detectSecrets(s); f != nothing {
			return f
		}
	}
	if seen&cAt != 0 {
		if f := detectAt(s, but); f != nothing {
			return f
		}
		if oddAuthority(s, strings.LastIndexByte(s, '@')) {
			return foundUserinfo
		}
	}
	if digits >= 4 && but&butNumbers == 0 {
		if f := detectNumbers(s, digits); f != nothing {
			return f
		}
	}
	if longest >= entropyMin && but&butEntropy == 0 && highEntropy(s) {
		return foundEntropy
	}
	if longest >= hiddenMin && depth > 0 {
		return detectHidden(s, but, depth)
	}
	return nothing
}

// keyForm is a well-known form of a key: a prefix and at least min characters
// more.
type keyForm struct {
	prefix string
	min    int
	found  finding
	upper  bool // capitals and digits only
}

// keyForms are sought anywhere, not only at the start of a word.
var keyForms = []keyForm{
	{"AKIA", 16, foundKey, true}, {"ASIA", 16, foundKey, true}, // AWS access key ids
	{"ghp_", 20, foundKey, false}, {"gho_", 20, foundKey, false}, {"ghu_", 20, foundKey, false}, {"ghs_", 20, foundKey, false}, {"ghr_", 20, foundKey, false},
	{"github_pat_", 20, foundKey, false},
	{"xoxa-", 10, foundKey, false}, {"xoxb-", 10, foundKey, false}, {"xoxe-", 10, foundKey, false}, {"xoxe.", 10, foundKey, false},
	{"xoxo-", 10, foundKey, false}, {"xoxp-", 10, foundKey, false}, {"xoxr-", 10, foundKey, false}, {"xoxs-", 10, foundKey, false}, {"xapp-1-", 10, foundKey, false},
	{"sk_live_", 10, foundKey, false}, {"sk_test_", 10, foundKey, false}, {"rk_live_", 10, foundKey, false}, {"rk_test_", 10, foundKey, false}, {"whsec_", 16, foundKey, false},
	{"AIza", 30, foundKey, false}, {"ya29.", 16, foundKey, false}, {"GOCSPX-", 16, foundKey, false},
	{"glpat-", 16, foundKey, false}, {"gldt-", 16, foundKey, false}, {"glrt-", 16, foundKey, false},
	{"npm_", 30, foundKey, false}, {"pypi-AgE", 16, foundKey, false}, {"dop_v1_", 32, foundKey, false}, {"hvs.", 16, foundKey, false}, {"hvb.", 16, foundKey, false},
	{"SG.", 16, foundKey, false}, {"sk-ant-", 16, foundKey, false}, {"sk-proj-", 16, foundKey, false}, {"shpat_", 16, foundKey, false},
	{"AccountKey=", 16, foundKey, false}, {"SharedAccessSignature=", 8, foundKey, false},
	{"gbk_", 8, foundKey, false}, {"gbrt_", 8, foundKey, false}, // ours: API keys, refresh tokens
	{"-----BEGIN", 0, foundPEM, false},
}

// keysBy are the key forms by their first byte.
var keysBy = func() (t [256][]keyForm) {
	for _, k := range keyForms {
		t[k.prefix[0]] = append(t[k.prefix[0]], k)
	}
	return t
}()

// secretStart has a bit for each second byte of the beginnings that
// detectSecrets knows, by first byte.
var secretStart = func() (t [256]*[4]uint64) {
	add := func(first, second byte) {
		if t[first] == nil {
			t[first] = new([4]uint64)
		}
		t[first][second>>6] |= 1 << (second & 63)
	}
	for _, k := range keyForms {
		add(k.prefix[0], k.prefix[1])
	}
	for _, start := range []string{"ey", "ew", "be", "bE", "Be", "BE", "ba", "bA", "Ba", "BA"} {
		add(start[0], start[1])
	}
	return t
}()

// detectSecrets finds JWTs, key formats and authentication schemes.
func detectSecrets(s string) finding {
	end := 0 // of the run of token characters that i is in, where it was asked for
	for i := range len(s) - 1 {
		next := secretStart[s[i]]
		if next == nil || next[s[i+1]>>6]&(1<<(s[i+1]&63)) == 0 {
			continue
		}
		switch c := s[i]; c {
		case 'e':
			if !jwtHead(s[i:]) {
				continue
			}
			if i >= end {
				end = i + tokenRun(s[i:], len(s))
			}
			if jwtAt(s[i:], end-i) {
				return foundJWT
			}
		case 'b', 'B':
			if schemeAt(s[i:]) {
				return foundBearer
			}
		default:
			for _, k := range keysBy[c] {
				if strings.HasPrefix(s[i:], k.prefix) && k.follows(s[i+len(k.prefix):]) {
					return k.found
				}
			}
		}
	}
	return nothing
}

// follows reports whether s starts with what follows the prefix.
func (k *keyForm) follows(s string) bool {
	if tokenRun(s, k.min) < k.min {
		return false
	}
	for i := range k.min {
		if k.upper && !isUpper(s[i]) && !isDigit(s[i]) {
			return false
		}
	}
	return true
}

// tokenRun counts the token characters at the start of s, up to limit.
func tokenRun(s string, limit int) int {
	n := 0
	for n < len(s) && n < limit && class[s[n]]&cToken != 0 {
		n++
	}
	return n
}

// jwtHead reports whether s, which starts with 'e', starts like a base64url
// part that decodes to '{' and then '"' or white space.
func jwtHead(s string) bool {
	if len(s) < 4 {
		return false
	}
	switch s[1] {
	case 'y': // 0x7b 0x2?: a space or a quote
		return s[2] >= 'A' && s[2] <= 'D' || s[2] >= 'I' && s[2] <= 'L'
	case 'w': // 0x7b 0x0?: tab, line feed, carriage return
		return s[2] >= 'k' && s[2] <= 'r' || s[2] >= '0' && s[2] <= '3'
	}
	return false
}

// jwtAt reports whether a JWT, whole or cut short, starts s: a first part of n
// characters, a dot, and the start of a second part (RFC 7519 section 3, RFC
// 7516 section 3 with its empty second part).
func jwtAt(s string, n int) bool {
	const least = 10
	return n >= least && n+1 < len(s) && s[n] == '.' && (s[n+1] == '.' || class[s[n+1]]&cToken != 0)
}

// schemeAt reports whether s starts with credentials of the schemes Bearer
// (RFC 6750) or Basic (RFC 7617).
func schemeAt(s string) bool {
	const least = 8
	scheme, size := "basic", 5
	if s[1]|0x20 == 'e' {
		scheme, size = "bearer", 6
	}
	if len(s) <= size+least || !strings.EqualFold(s[:size], scheme) || strings.IndexByte(" +:\t", s[size]) < 0 {
		return false
	}
	rest := strings.TrimLeft(s[size:], " +:\t")
	n := 0
	for n < len(rest) && (class[rest[n]]&cToken != 0 || strings.IndexByte("./~", rest[n]) >= 0) {
		n++
	}
	if n < least || scheme == "bearer" {
		return n >= least
	}
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(rest[:n], "="))
	return err == nil && strings.IndexByte(string(b), ':') >= 0
}

// detectAt finds userinfo of URLs (RFC 3986 section 3.2.1) and e-mail
// addresses. In userinfo may stand, unlike in what is before the '@' of an
// address, brackets, commas and semicolons.
func detectAt(s string, but exempt) finding {
	from := 0  // first byte that can belong to what is before the '@'
	auth := -1 // of the authority of a URL, -1 outside of one
	for i := range len(s) {
		switch c := s[i]; {
		case c == '/':
			from, auth = i+1, -1
			if i > 0 && s[i-1] == '/' {
				auth = i + 1
			}
			continue
		case strings.IndexByte(" \t\r\n?#\"<>", c) >= 0:
			from, auth = i+1, -1
			continue
		case strings.IndexByte("(),;", c) >= 0:
			from = i + 1
			continue
		case c != '@':
			continue
		}
		before := s[from:i]
		from = i + 1
		if auth >= 0 && i > auth {
			return foundUserinfo
		}
		if before == "" {
			continue
		}
		if but&butEmail == 0 && strings.IndexByte(before, ':') > 0 && !strings.HasPrefix(before, "mailto:") {
			return foundUserinfo
		}
		if but&butEmail == 0 && domainAt(s[i+1:]) {
			return foundEmail
		}
	}
	return nothing
}

// oddAuthority reports whether the authority of some URL in s ends before the
// byte at last and is none, because what is there for a port is no number: a
// character of a password, written as it is, ends it before its '@'.
func oddAuthority(s string, last int) bool {
	for from := 0; ; {
		i := strings.Index(s[from:], "://")
		if i < 0 || from+i > last {
			return false
		}
		from += i + len("://")
		end := len(s)
		if i := strings.IndexAny(s[from:], "/?# \t\r\n\"<>"); i >= 0 {
			end = from + i
		}
		if end < last && strings.IndexByte(s[from:end], ':') >= 0 && !isHost(s[from:end]) {
			return true
		}
		from = max(from, end-1) // it may be the name of the next one's scheme
	}
}

// domainAt reports whether s starts with a domain name of two labels or more.
func domainAt(s string) bool {
	label, labels := 0, 0
	last := byte(0) // first character of the last label
	for n := 0; n < len(s); n++ {
		c := s[n]
		if isAlnum(c) || c >= 0x80 || c == '-' {
			if label++; label == 1 {
				last = c
			}
		} else if c == '.' && label > 0 {
			labels++
			label = 0
		} else {
			break
		}
	}
	if label == 0 { // a dot at the end belongs to the sentence
		labels--
	}
	return labels >= 1 && !isDigit(last)
}
