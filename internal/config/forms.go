package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// form is what a text must look like. check returns what is wrong and what to
// do, both empty if nothing is.
type form struct {
	pattern string // for the JSON Schema; "" if a pattern cannot say it
	check   func(s string) (what, hint string)
}

// forms returns the form that a tag names.
func forms(name string) form {
	switch name {
	case "text":
		return form{"", checkText}
	case "clientid":
		return form{`^[!-9;-{}~]{1,128}$`, checkClientID}
	case "name":
		return form{`^[a-z0-9][a-z0-9_-]{0,62}$`, checkName}
	case "label":
		return form{`^[^\s\x00-\x1f](.{0,126}[^\s])?$`, checkLabel}
	case "route":
		return form{`^[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*$`, checkRouteName}
	case "routes":
		return form{`^(\*|[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*(\.\*)?)$`, checkRoutePattern}
	case "node":
		return form{`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`, checkNode}
	case "origin":
		return form{`^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[A-Za-z0-9._~-]+)*$`, checkOrigin}
	case "host":
		return form{"", checkHost}
	case "address":
		return form{`^(\[[0-9a-fA-F:.]+\]|[^:\[\]/]*):[0-9]{1,5}$`, checkAddress}
	case "peer":
		return form{`^(\[[0-9a-fA-F:.]+\]|[^:\[\]/]+):[0-9]{1,5}$`, checkPeer}
	case "issuer":
		return form{`^https?://`, checkIssuer}
	case "jwksurl":
		return form{`^https?://`, checkKeySetURL}
	case "sinkurl":
		return form{`^https?://[^?#]+$`, checkSinkURL}
	case "personal":
		return form{`^[a-z][a-z0-9_]*$|^(headers|claims)\..+$`, checkPersonalField}
	case "rule":
		return form{`^[a-z][a-z0-9_]{0,47}$`, checkRuleName}
	case "fieldpath":
		return form{`^[a-z0-9_.]{1,64}$`, checkFieldPath}
	case "expression":
		return form{"", checkExpression}
	case "clock":
		return form{`^[0-2][0-9]:[0-5][0-9]$`, checkClock}
	case "zone":
		return form{"", checkZone}
	case "sinkname":
		return form{`^[a-z0-9_][a-z0-9_-]*$`, checkSinkName}
	case "datastream":
		return form{`^[a-z0-9._]+-[a-z0-9._]+-[a-z0-9._]+$`, checkDataStream}
	case "tag":
		return form{`^[A-Za-z][A-Za-z0-9_:./-]*$`, checkTag}
	case "target":
		return form{`^https?://[^/?#]+/?$`, checkTarget}
	case "file":
		return form{"", checkFile}
	case "method":
		return form{`^[A-Z][A-Z-]*$`, checkMethod}
	case "header":
		return form{`^[a-z0-9][a-z0-9-]*$`, checkHeader}
	case "keyfield":
		return form{`^[a-z0-9][a-z0-9-]*$`, checkKeyField}
	case "claim":
		return form{"", checkClaim}
	case "pointer":
		return form{`^(/([^~/]|~[01])*)+$`, checkPointer}
	case "scope":
		return form{`^[\x21\x23-\x5b\x5d-\x7e]+$`, checkScope}
	case "acr":
		return form{`^[\x21\x23-\x5b\x5d-\x7e]+$`, checkACR}
	case "resource":
		return form{`^https?://[^?#]+$`, checkResource}
	case "tokentext":
		return form{`^[A-Za-z0-9._~+/=-]+$`, checkTokenText}
	case "env":
		return form{`^[A-Za-z_][A-Za-z0-9_]*$`, checkEnv}
	case "type":
		return form{`^[A-Za-z0-9.+/-]+$`, checkType}
	case "holder":
		return form{`^((cn|dns|email|uri):.+|(role|sub):[a-z0-9][a-z0-9_-]{0,62}:.+)$`, checkHolder}
	case "trustdomain":
		return form{`^[a-z0-9._-]{1,255}$`, checkTrustDomain}
	case "identityheader":
		return form{`^[Xx]-[A-Za-z0-9-]+$`, checkIdentityHeader}
	case "checkpath":
		return form{`^/[^\s#]*$`, checkHealthPath}
	case "pattern":
		return form{`^/`, func(s string) (string, string) { _, what, hint := parsePattern(s); return what, hint }}
	}
	panic("config: no form named " + name)
}

// only reports whether every byte of s is an ASCII letter, digit or one of
// others.
func only(s, letters, others string) bool {
	for i := range len(s) {
		if strings.IndexByte(letters, s[i]) < 0 && !isDigit(s[i]) && strings.IndexByte(others, s[i]) < 0 {
			return false
		}
	}
	return true
}

const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func checkText(s string) (string, string) {
	switch {
	case s == "":
		return "empty text", "give it a value or remove the key"
	case len(s) > 1024:
		return fmt.Sprintf("text of %d bytes", len(s)), "the longest allowed is 1024"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "text with control characters: " + quote(s), "write it on one line"
	case strings.TrimSpace(s) != s:
		return "text with white space around it: " + quote(s), "remove the white space"
	}
	return "", ""
}

func checkName(s string) (string, string) {
	if s == "" || len(s) > 63 || !only(s, lower, "_-") || s[0] == '_' || s[0] == '-' {
		return "not a name: " + quote(s), "use up to 63 lower case letters, digits, _ and -, a letter or digit first"
	}
	return "", ""
}

func checkLabel(s string) (string, string) {
	if what, hint := checkText(s); what != "" {
		return what, hint
	}
	if len(s) > 128 {
		return fmt.Sprintf("a name of %d bytes", len(s)), "the longest allowed is 128"
	}
	return "", ""
}

func checkRouteName(s string) (string, string) {
	for part := range strings.SplitSeq(s, ".") {
		if len(s) > 63 || part == "" || !only(part, lower, "_-") || s[0] == '_' || s[0] == '-' {
			return "not a route name: " + quote(s), "use up to 63 lower case letters, digits, _ and -, grouped by dots, such as orders.read"
		}
	}
	return "", ""
}

func checkRoutePattern(s string) (string, string) {
	if what, _ := checkRouteName(strings.TrimSuffix(s, ".*")); what != "" && s != "*" {
		return "not a route name: " + quote(s), "name a route, write the part before a dot and .*, such as orders.*, or * for all"
	}
	return "", ""
}

func checkNode(s string) (string, string) {
	if s == "" || len(s) > 63 || !only(s, lower, "-") || s[0] == '-' || s[len(s)-1] == '-' {
		return "not a node name: " + quote(s), "use up to 63 lower case letters, digits and -, such as gate-1"
	}
	return "", ""
}

// checkOrigin keeps origins inside the C2SP tlog-checkpoint recommendation: a
// schema-less URL, no white space and no plus sign.
func checkOrigin(s string) (string, string) {
	const hint = "write a host name that you own and a path, without scheme, such as log.example.com/gates"
	host, path, slash := strings.Cut(s, "/")
	if _, after, ok := strings.Cut(s, "://"); ok {
		return "an origin with a scheme: " + quote(s), "did you mean " + shorten(after) + "?"
	}
	if h, port, ok := strings.Cut(host, ":"); ok {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "not an origin: " + quote(s), hint
		}
		host = h
	}
	if what, _ := checkHost(host); what != "" || len(s) > 200 {
		return "not an origin: " + quote(s), hint
	}
	for part := range strings.SplitSeq(path, "/") {
		if slash && (part == "" || part == "." || part == ".." || !only(part, letters, "._~-")) {
			return "not an origin: " + quote(s), hint
		}
	}
	return "", ""
}

// checkHost takes a host as it is compared: lower case, no port, no final dot;
// an IPv6 address in brackets.
func checkHost(s string) (string, string) {
	const hint = "write a name such as api.example.com"
	if inner, ok := strings.CutPrefix(s, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !strings.HasSuffix(s, "]") || !a.Is6() || a.Zone() != "" || "["+a.String()+"]" != s {
			return "not a host: " + quote(s), "write an IPv6 address in its short form in brackets, such as [::1]"
		}
		return "", ""
	}
	switch l := strings.ToLower(s); {
	case strings.Contains(s, "*"):
		return "a host with a wildcard: " + quote(s), "wildcards are not supported; name one host"
	case strings.Contains(s, ":"):
		return "a host with a port: " + quote(s), "leave the port out; write an IPv6 address in brackets"
	case l != s:
		return "a host not in lower case: " + quote(s), "did you mean " + shorten(l) + "?"
	case strings.HasSuffix(s, "."):
		return "a host with a final dot: " + quote(s), "did you mean " + shorten(strings.TrimRight(s, ".")) + "?"
	case s == "" || len(s) > 253:
		return "not a host: " + quote(s), hint
	}
	if a, err := netip.ParseAddr(s); err == nil && a.String() == s {
		return "", ""
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || len(part) > 63 || !only(part, lower, "-_") || part[0] == '-' || part[len(part)-1] == '-' {
			return "not a host: " + quote(s), hint + "; write names beyond ASCII in their xn-- form"
		}
	}
	if last := s[strings.LastIndexByte(s, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "not a host: " + quote(s), "a name whose last part is a number would be taken for an address"
	}
	return "", ""
}

func checkAddress(s string) (string, string) {
	const hint = `write host:port, such as "127.0.0.1:8443", or ":8443" for all addresses`
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "not an address to listen on: " + quote(s), hint
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "not a port: " + quote(port), hint
	}
	if host == "" {
		return "", ""
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Is4In6() {
			return "an IPv4 address written as IPv6: " + quote(s), "did you mean " + netip.AddrPortFrom(a.Unmap(), 0).Addr().String() + ":" + port + "?"
		}
		return "", ""
	}
	if what, _ := checkHost(host); what != "" {
		return "not an address to listen on: " + quote(s), hint
	}
	return "", ""
}

// checkPeer takes an address to connect to.
func checkPeer(s string) (string, string) {
	const hint = `write host:port, such as "cache.example.com:6379"`
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "0" {
		return "not an address to connect to: " + quote(s), hint
	}
	if what, _ := checkAddress(s); what != "" {
		return "not an address to connect to: " + quote(s), hint
	}
	return "", ""
}

// checkURL reads an http or https URL without the parts that no URL of ours
// has.
func checkURL(s string) (u *url.URL, what, hint string) {
	if what, hint := checkText(s); what != "" {
		return nil, what, hint
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, "not an http or https URL: " + quote(s), "write it in full, such as https://idp.example.com"
	}
	if u.User != nil {
		return nil, "a URL with a user name or password", "secrets are never written into the file; remove the part before @"
	}
	if u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#") {
		return nil, "a URL with a query or fragment: " + quote(s), "remove the part from ? or # on"
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if what, hint := checkHost(host); what != "" {
		return nil, what + " in URL " + quote(s), hint
	}
	if p := u.Port(); strings.HasSuffix(u.Host, ":") || p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != p {
			return nil, "not a port in URL " + quote(s), "use a number from 1 to 65535"
		}
	}
	return u, "", ""
}

// secureURL is checkURL for URLs whose answers decide whom we trust: plain
// http only on this machine.
func secureURL(s string) (what, hint string) {
	u, what, hint := checkURL(s)
	if what == "" && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return "an http URL: " + quote(s), "use https; http is allowed on loopback addresses only, since whoever sits between could hand out keys of their own"
	}
	return what, hint
}

func isLoopback(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func checkIssuer(s string) (string, string) {
	if what, hint := secureURL(s); what != "" {
		return what, hint
	}
	if strings.HasSuffix(s, "/.well-known/openid-configuration") {
		return "a discovery URL where the issuer is expected: " + quote(s), "leave out /.well-known/openid-configuration"
	}
	return "", ""
}

func checkKeySetURL(s string) (string, string) { return secureURL(s) }

func checkTarget(s string) (string, string) {
	u, what, hint := checkURL(s)
	if what != "" {
		return what, strings.Replace(hint, "https://idp.example.com", "http://10.0.0.5:8080", 1)
	}
	if u.Path != "" && u.Path != "/" {
		return "a target with a path: " + quote(s), "requests keep their own path; remove " + shorten(u.Path)
	}
	return "", ""
}

func checkFile(s string) (string, string) {
	switch {
	case strings.Contains(s, "-----BEGIN"):
		return "the content of a key or certificate where a file name is expected", "secrets are never written into the file; put it into a file of its own and name that"
	case strings.ContainsRune(s, 0):
		return "a file name with a zero character", "remove it"
	case strings.HasPrefix(s, "~"):
		return "a file name that a shell would expand: " + quote(s), "write the directory in full"
	case strings.Contains(s, "${") || strings.HasPrefix(s, "$"):
		return "a file name with a variable: " + quote(s), "variables are not expanded; write the directory in full"
	}
	return checkText(s)
}

// checkMethod takes method names as clients send them. CONNECT and TRACE have
// no place at this gate (RFC 9110 sections 9.3.6 and 9.3.8).
func checkMethod(s string) (string, string) {
	switch u := strings.ToUpper(s); {
	case u == "CONNECT" || u == "TRACE":
		return "the method " + u + " cannot be routed", "remove it"
	case s == "*":
		return "not a method: " + quote(s), "leave the key out to allow all methods"
	case u != s:
		return "a method not in upper case: " + quote(s), "did you mean " + shorten(u) + "?"
	case s == "" || len(s) > 32 || !only(s, letters, "-") || isDigit(s[0]) || s[0] == '-':
		return "not a method: " + quote(s), "write a name such as GET"
	}
	return "", ""
}

// checkHeader takes names of headers that a record may keep. The list of what
// is never stored is that of the record's schema.
func checkHeader(s string) (string, string) {
	if l := strings.ToLower(s); l != s {
		return "a header name not in lower case: " + quote(s), "did you mean " + shorten(l) + "?"
	}
	if s == "" || len(s) > 64 || !only(s, lower, "-") {
		return "not a header name: " + quote(s), "use lower case letters, digits and -"
	}
	switch s {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "dpop", "x-api-key", "api-key", "x-auth-token",
		"x-amz-security-token", "x-csrf-token", "x-xsrf-token", "signature", "client-cert", "x-forwarded-client-cert":
		return "the header " + s + " carries secrets", "it is never stored, whatever the configuration says; remove it"
	}
	return "", ""
}

// checkKeyField takes names of headers in which an API key may be sent. What
// proxies and browsers add by themselves is none of them.
func checkKeyField(s string) (string, string) {
	if l := strings.ToLower(s); l != s {
		return "a header name not in lower case: " + quote(s), "did you mean " + shorten(l) + "?"
	}
	if s == "" || len(s) > 64 || !only(s, lower, "-") {
		return "not a header name: " + quote(s), "use lower case letters, digits and -"
	}
	switch s {
	case "cookie", "set-cookie", "dpop", "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade",
		"keep-alive", "proxy-authorization", "proxy-connection", "forwarded", "x-request-id", "traceparent", "tracestate", "client-cert":
		return "the header " + s + " cannot carry an API key", "it has a meaning of its own; use x-api-key or authorization"
	}
	if strings.HasPrefix(s, "x-forwarded") || strings.HasPrefix(s, "x-gatebook") {
		return "the header " + s + " cannot carry an API key", "such headers are set by proxies and removed here; use x-api-key or authorization"
	}
	return "", ""
}

func checkClaim(s string) (string, string) {
	if what, hint := checkText(s); what != "" {
		return what, hint
	}
	switch s {
	case "nonce", "at_hash", "c_hash", "s_hash", "cnf", "jti":
		return "the claim " + s + " belongs to the token's security", "it is never stored; remove it"
	}
	if strings.HasPrefix(s, "gatebook.") {
		return "the claim " + s + " has a name that records use for the gate's own", "names that begin with gatebook. cannot be kept; let the issuer call it otherwise"
	}
	return "", ""
}

// checkPointer takes a JSON pointer (RFC 6901) to a claim.
func checkPointer(s string) (string, string) {
	if what, hint := checkText(s); what != "" {
		return what, hint
	}
	if s[0] != '/' || s == "/" {
		return "not a JSON pointer: " + quote(s), "did you mean /" + shorten(strings.ReplaceAll(strings.Trim(s, "/"), ".", "/")) + "?"
	}
	for i := range len(s) {
		if s[i] == '~' && (i+1 == len(s) || s[i+1] != '0' && s[i+1] != '1') {
			return "not a JSON pointer: " + quote(s), "write ~0 for ~ and ~1 for /"
		}
	}
	return "", ""
}

// checkScope takes a scope-token of RFC 6749 section 3.3.
func checkScope(s string) (string, string) {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return "not a scope: " + quote(s), "write one scope per list element, without spaces"
		}
	}
	if s == "" || len(s) > 256 {
		return "not a scope: " + quote(s), "write its name, up to 256 characters"
	}
	return "", ""
}

// checkType takes a value of the typ header (RFC 7515 section 4.1.9).
func checkType(s string) (string, string) {
	if s == "" {
		return "an empty type", "write absent for tokens without a typ header"
	}
	if len(s) > 64 || !only(s, letters, ".+/-") {
		return "not a token type: " + quote(s), "write a value of the typ header, such as at+jwt"
	}
	return "", ""
}

// checkHolder takes who holds an administrative role.
func checkHolder(s string) (string, string) {
	if what, hint := checkText(s); what != "" {
		return what, hint
	}
	if h := ParseHolder(s); h.Kind == "" {
		return "not a holder of a role: " + quote(s), "write cn:NAME, dns:NAME, email:NAME or uri:NAME of a client certificate, or role:ISSUER:ROLE or sub:ISSUER:SUBJECT of a token"
	}
	return "", ""
}

// checkTrustDomain takes a trust domain name (SPIFFE ID section 2.1).
func checkTrustDomain(s string) (string, string) {
	if rest, ok := strings.CutPrefix(s, "spiffe://"); ok {
		return "a SPIFFE id where a trust domain is expected: " + quote(s), "did you mean " + shorten(strings.SplitN(rest, "/", 2)[0]) + "?"
	}
	if s == "" || len(s) > 255 || !only(s, lower, ".-_") {
		return "not a trust domain: " + quote(s), "use lower case letters, digits, '.', '-' and '_', such as example.org"
	}
	return "", ""
}

// checkIdentityHeader takes the name of a header that only the gate sets.
func checkIdentityHeader(s string) (string, string) {
	l := strings.ToLower(s)
	if len(l) < 3 || len(l) > 64 || !strings.HasPrefix(l, "x-") || !only(l, lower, "-") {
		return "not a header for the identity: " + quote(s), "use a name that begins with X-, of letters, digits and -"
	}
	switch {
	case strings.HasPrefix(l, "x-forwarded-"), l == "x-request-id", l == "x-api-key", l == "x-gatebook-subject", l == "x-gatebook-issuer",
		l == "x-gatebook-client", l == "x-gatebook-roles", l == "x-gatebook-request-id":
		return "a header that has another meaning: " + quote(s), "use one that nothing else sets, such as X-Gatebook-Identity"
	}
	return "", ""
}

// checkHealthPath takes what can be sent as a request target as it is.
func checkHealthPath(s string) (string, string) {
	bad := len(s) > 1024 || !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//")
	for i := range len(s) {
		c := s[i]
		bad = bad || c <= ' ' || c > '~' || strings.IndexByte("#\"<>\\", c) >= 0
	}
	if bad {
		return "not a path to ask for: " + quote(s), "write an absolute path such as /healthz, with other characters percent-encoded"
	}
	return "", ""
}
