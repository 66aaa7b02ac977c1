package redact

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
)

// names replaces every name from outside that is not configured or loaded.
func (w *work) names() {
	u, r, like := w.u, w.r, w.like
	w.known(&r.Route, like.Route, u.routes)
	w.known(&r.Host, like.Host, u.hosts)
	w.known(&r.TLS.SNI, like.TLS.SNI, u.sni)
	w.known(&r.Authn.Issuer, like.Authn.Issuer, u.issuers)
	w.known(&r.Authn.ACR, like.Authn.ACR, u.acr)
	w.known(&r.Authn.Alg, like.Authn.Alg, algorithms)
	w.known(&r.Method, like.Method, methods)
	w.known(&r.Proto, like.Proto, protocols)
	w.trace()
	if r.Authn.Client != w.was.Authn.Client {
		w.loaded(&r.Authn.Client, u.clients, ClientName)
	}
	if r.Authn.KID != w.was.Authn.KID {
		w.loaded(&r.Authn.KID, u.kids, KIDName)
	}
	if !slices.Equal(r.Authn.Roles, w.was.Authn.Roles) {
		w.nameList(&r.Authn.Roles, func(s string) bool { return u.roles.has(s) || w.isLoaded(RoleName, s) })
	}
	if !slices.Equal(r.Authn.AMR, w.was.Authn.AMR) {
		w.nameList(&r.Authn.AMR, u.amr.has)
	}
}

// trace keeps a trace id of the usual form.
func (w *work) trace() {
	if t := &w.r.Trace; *t != w.was.Trace && (len(*t) > 64 || !isHexOrDash(*t)) {
		w.drop(t)
	}
}

var (
	methods = toSet([]string{
		"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY",
		"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH",
	})
	protocols  = toSet([]string{"HTTP/1.1", "HTTP/2", "HTTP/3"})
	algorithms = toSet([]string{
		"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA", "Ed25519", "none",
	})
)

// known replaces *p if it is not in the set. An empty string, None, Other and
// what has passed there before pass.
func (w *work) known(p *string, passed string, s set) {
	switch *p {
	case passed, "", record.None, record.Other:
		return
	}
	if !s.has(*p) {
		*p = record.Other
		w.dropped++
	}
}

func (w *work) loaded(p *string, s set, what Name) {
	switch *p {
	case "", record.None, record.Other:
		return
	}
	if !s.has(*p) && !w.isLoaded(what, *p) {
		*p = record.Other
		w.dropped++
	}
}

// isLoaded asks about a name that is not configured. One that would be masked
// or cut is not kept at all.
func (w *work) isLoaded(what Name, s string) bool {
	return w.u.loaded != nil && checkName(s) == nil && w.u.loaded(what, s)
}

// Keepable reports whether a configured name can stand in a record as it is:
// one that New accepts.
func Keepable(name string) bool { return checkName(name) == nil }

// nameList replaces unknown names of a list; several become one Other.
func (w *work) nameList(l *[]string, known func(string) bool) {
	other := false
	w.list(l, maxItems, func(s string) string {
		if s != record.Other {
			if known(s) {
				return s
			}
			w.dropped++
		}
		if other {
			return ""
		}
		other = true
		return record.Other
	})
}

func isHexOrDash(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isHex(c) && c != '-' {
			return false
		}
	}
	return true
}

var errNeverStored = errors.New("is never stored, whatever the configuration says: remove it")

// Words that make a name one of a secret, wherever they stand in it.
var secretWords = toSet([]string{
	"authorization", "auth", "authentication", "bearer", "cookie", "cookies", "credential", "credentials",
	"dpop", "jwt", "otp", "totp", "passcode", "passphrase", "passwd", "password", "passwords", "pin", "pwd",
	"saml", "secret", "secrets", "session", "sessionid", "sid", "sig", "signature", "signed", "token", "tokens",
	"accesstoken", "refreshtoken", "idtoken", "clientsecret", "apikey", "accesskey", "secretkey", "privatekey",
	"jsessionid", "phpsessid", "assertion", "csrf", "xsrf", "nonce", "verifier", "ticket",
})

// Words that make one of a secret together with "key".
var keyWords = toSet([]string{
	"access", "api", "app", "auth", "client", "consumer", "encryption", "functions", "goog", "host", "master",
	"private", "secret", "security", "service", "shared", "signing", "subscription", "user",
})

// checkHeader refuses names of headers that carry credentials and gives the
// lower-case form.
func checkHeader(name string) (string, error) {
	lower := strings.ToLower(name)
	for i := range len(lower) {
		if c := lower[i]; !isAlnum(c) && c != '-' && c != '_' {
			return "", fmt.Errorf("%q is no header name: want letters, digits, '-' and '_'", name)
		}
	}
	switch {
	case lower == "" || len(lower) > capField:
		return "", fmt.Errorf("%q: want 1 to %d bytes", name, capField)
	case secretName(name), secretHeaders.has(lower):
		return "", fmt.Errorf("%q %w", name, errNeverStored)
	}
	return lower, nil
}

// secretHeaders carry secrets or whole URLs under innocent names.
var secretHeaders = toSet([]string{
	"x-forwarded-client-cert", "sec-websocket-protocol", "sec-websocket-key", "location", "referer", "link",
	"x-original-url", "x-rewrite-url", "x-forwarded-uri", "forwarded", "baggage", "tracestate", "grpc-message",
	"x-amz-security-token", "x-ms-copy-source", "x-amz-copy-source", "x-key", "key",
})

// checkQueryKey refuses keys under which secrets travel: RFC 6749, OpenID
// Connect, SAML, signed URLs.
func checkQueryKey(name string) (string, error) {
	if name == "" || len(name) > capField {
		return "", fmt.Errorf("%q: want 1 to %d bytes", name, capField)
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && !strings.ContainsRune("-._~[]", rune(c)) {
			return "", fmt.Errorf("%q is no query key that can be allowed: want letters, digits and -._~[]", name)
		}
	}
	lower := strings.ToLower(name)
	if secretName(name) || secretQueryKeys.has(lower) || strings.HasPrefix(lower, "x-amz-") ||
		strings.HasPrefix(lower, "x-goog-") || strings.HasPrefix(lower, "x-ms-") {
		return "", fmt.Errorf("%q %w", name, errNeverStored)
	}
	return name, nil
}

var secretQueryKeys = toSet([]string{
	"code", "state", "key", "samlresponse", "samlrequest", "relaystate", "request", "request_uri", "redirect_uri",
	"code_challenge", "device_code", "user_code", "login_hint", "googleaccessid", "awsaccesskeyid", "key-pair-id",
	"policy", "se", "sp", "sv", "sr", "st", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv", "hmac", "hash", "mac",
})

// checkClaim refuses claims that are credentials or stand for a token.
func checkClaim(name string) (string, error) {
	if name == "" || len(name) > capField {
		return "", fmt.Errorf("%q: want 1 to %d bytes", name, capField)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f {
			return "", fmt.Errorf("%q is no claim that can be allowed: want printable ASCII", name)
		}
	}
	lower := strings.ToLower(name)
	if i := strings.LastIndexByte(lower, '/'); i >= 0 { // names in the form of a URL
		lower = lower[i+1:]
	}
	if secretName(name) || secretClaims.has(lower) {
		return "", fmt.Errorf("%q %w", name, errNeverStored)
	}
	return name, nil
}

var secretClaims = toSet([]string{"jti", "cnf", "at_hash", "c_hash", "s_hash", "act", "may_act", "code", "state", "key"})

// secretParts make a name one of a secret even inside a word.
var secretParts = []string{"token", "password", "passwd", "apikey", "signature", "credential", "cookie", "authoriz"}

// secretName reports whether a name says that it carries a secret: one of its
// words does, or two in a row, or a part of it without separators.
func secretName(name string) bool {
	prev := ""
	for rest := name; rest != ""; {
		var word string
		word, rest = cutWord(rest)
		word = strings.ToLower(word)
		if secretWords.has(word) || word == "key" && keyWords.has(prev) {
			return true
		}
		if word != "" {
			prev = word
		}
	}
	squeezed := strings.ToLower(strings.Map(func(c rune) rune {
		if c < 0x80 && isAlnum(byte(c)) {
			return c
		}
		return -1
	}, name))
	return secretWords.has(squeezed) || slices.ContainsFunc(secretParts, func(p string) bool {
		return strings.Contains(squeezed, p)
	})
}

// cutWord splits off the first word of a name: at a separator, or before a
// capital that follows a small letter.
func cutWord(s string) (word, rest string) {
	for i := range len(s) {
		if !isAlnum(s[i]) {
			return s[:i], s[i+1:]
		}
		if i > 0 && isUpper(s[i]) && isLower(s[i-1]) {
			return s[:i], s[i:]
		}
	}
	return s, ""
}
