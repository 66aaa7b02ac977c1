package canon

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
)

// The size of a head that is read at all (reference/security.md C4).
const (
	MaxFields    = 100
	MaxHeadBytes = 32 << 10
)

// hopByHop are the fields that belong to one connection and never go on
// (RFC 9110 section 7.6.1), and those that FromHTTP turns into members.
var hopByHop = map[string]bool{
	"connection":          true,
	"keep-alive":          true,
	"proxy-connection":    true,
	"proxy-authorization": true,
	"proxy-authenticate":  true,
	"te":                  true,
	"trailer":             true,
	"transfer-encoding":   true,
	"upgrade":             true,
	"http2-settings":      true,
	"host":                true,
	"content-length":      true,
	"expect":              true,
}

// connectionOptions are the only names that Connection may hold. Any other
// would make the next hop drop a field that somebody decides on
// (reference/security.md E, "Connection token x each header").
var connectionOptions = map[string]bool{
	"close":             true,
	"keep-alive":        true,
	"proxy-connection":  true,
	"te":                true,
	"trailer":           true,
	"transfer-encoding": true,
	"upgrade":           true,
	"http2-settings":    true,
}

// decided are fields that somebody decides on: no obs-text in their values, so
// that a pattern cannot be slipped past with a byte that is not text.
var decided = map[string]bool{
	"authorization":       true,
	"connection":          true,
	"content-encoding":    true,
	"content-length":      true,
	"content-type":        true,
	"dpop":                true,
	"expect":              true,
	"host":                true,
	"origin":              true,
	"proxy-authorization": true,
	"range":               true,
	"te":                  true,
	"traceparent":         true,
	"transfer-encoding":   true,
	"upgrade":             true,
	"x-api-key":           true,
}

// single are fields that may come once only: two readers may pick different
// ones.
var single = map[string]bool{
	"content-type": true,
	"expect":       true,
	"host":         true,
}

// Reserved reports whether name, in any case and with any separator, is one
// that never reaches an upstream as the client sent it: what the gate sets or
// believes only from a trusted peer (X-Gatebook-*, X-Request-Id, traceparent,
// Forwarded and the many names of a forwarded address or user) and what makes
// an upstream see another request than the one authorized (method and path
// overrides). Upstreams that fold names to environment variables cannot tell
// X_Real_Ip from X-Real-Ip, so neither does Reserved.
func Reserved(name string) bool {
	if len(name) == 0 {
		return false
	}
	switch name[0] | 0x20 {
	case 'x', 'f', 't', 'c', 'r', 's', 'p':
	default:
		return false
	}
	var buf [32]byte
	if len(name) > len(buf) {
		name = name[:len(buf)] // the longest name below is shorter; prefixes still match
	}
	for i := 0; i < len(name); i++ {
		buf[i] = foldByte(name[i])
	}
	folded := string(buf[:len(name)])
	return reservedNames[folded] || hasReservedPrefix(folded)
}

// foldByte makes alike what an upstream may take for the same in a name.
func foldByte(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c | 0x20
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return c
	}
	return '-'
}

// SameField reports whether an upstream could take two names for one: it does
// not tell case or separators apart.
func SameField(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if foldByte(a[i]) != foldByte(b[i]) {
			return false
		}
	}
	return true
}

// Credential reports whether name, in any spelling, is that of a field in which
// clients send what proves who they are.
func Credential(name string) bool {
	if name == "" {
		return false
	}
	var all []string
	switch name[0] | 0x20 {
	case 'a':
		all = credentialsA
	case 'd', 'p', 'x':
		all = credentialsX
	default:
		return false
	}
	for _, n := range all {
		if SameField(n, name) {
			return true
		}
	}
	return false
}

var (
	credentialsA = []string{"authorization", "api-key", "apikey"}
	credentialsX = []string{"dpop", "proxy-authorization", "x-api-key", "x-apikey", "x-authorization"}
)

func hasReservedPrefix(folded string) bool {
	for _, p := range reservedPrefixes[folded[0]] {
		if strings.HasPrefix(folded, p) {
			return true
		}
	}
	return false
}

// reservedPrefixes are the beginnings of reserved names, by their first letter.
var reservedPrefixes = func() (t ['z' + 1][]string) {
	for _, p := range []string{
		"x-gatebook", "x-forwarded", "x-original-", "x-envoy-",
		// What some proxies say of a client certificate that they have seen,
		"x-ssl-client", "ssl-client", "x-client-cert", "x-amzn-mtls",
		// and of a person whom they have logged in: oauth2-proxy, Grafana,
		// Kubernetes and Authelia, Kong, Pomerium and what runs in clouds.
		"x-auth-request-", "x-webauth-", "x-remote-", "remote-", "x-authenticated-", "x-consumer-", "x-pomerium-",
		"x-goog-authenticated-user-", "x-goog-iap-", "cf-access-", "x-amzn-oidc-", "x-ms-client-principal", "x-ms-token-", "tailscale-user-",
	} {
		t[p[0]] = append(t[p[0]], p)
	}
	return t
}()

var reservedNames = map[string]bool{
	"cf-connecting-ip":       true,
	"cf-connecting-ipv6":     true,
	"client-cert":            true, // RFC 9440
	"client-cert-chain":      true,
	"client-ip":              true,
	"fastly-client-ip":       true,
	"forwarded":              true, // RFC 7239
	"forwarded-for":          true,
	"proxy-authorization":    true, // in any other spelling
	"traceparent":            true,
	"tracestate":             true,
	"true-client-ip":         true,
	"x-arr-clientcert":       true,
	"x-client-dn":            true,
	"x-client-ip":            true,
	"x-client-verify":        true,
	"x-cluster-client-ip":    true,
	"x-host":                 true,
	"x-http-method":          true,
	"x-http-method-override": true,
	"x-method-override":      true,
	"x-originating-ip":       true,
	"x-proxyuser-ip":         true,
	"x-real-ip":              true,
	"x-request-id":           true,
	"x-rewrite-url":          true,
}

// common gives the lower-case form of the names that most requests have, so
// that they cost no allocation.
var common = func() map[string]string {
	m := make(map[string]string)
	for _, n := range []string{
		"accept", "accept-encoding", "accept-language", "accept-charset", "accept-datetime", "access-control-request-headers",
		"access-control-request-method", "authorization", "cache-control", "connection", "content-encoding", "content-language",
		"content-length", "content-type", "cookie", "date", "dnt", "dpop", "early-data", "expect", "forwarded", "from", "grpc-accept-encoding",
		"grpc-encoding", "grpc-timeout", "host", "idempotency-key", "if-match", "if-modified-since", "if-none-match", "if-range",
		"if-unmodified-since", "keep-alive", "last-event-id", "max-forwards", "origin", "pragma", "prefer", "priority", "proxy-authorization",
		"proxy-connection", "range", "referer", "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-mode",
		"sec-fetch-site", "sec-fetch-user", "sec-gpc", "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol",
		"sec-websocket-version", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade",
		"upgrade-insecure-requests", "user-agent", "via", "x-api-key", "x-correlation-id", "x-csrf-token", "x-forwarded-for",
		"x-forwarded-host", "x-forwarded-proto", "x-real-ip", "x-request-id", "x-requested-with",
	} {
		m[http.CanonicalHeaderKey(n)] = n
	}
	return m
}()

func lowerName(name string) string {
	if n, ok := common[name]; ok {
		return n
	}
	return strings.ToLower(name)
}

// tchar reports the characters of a token (RFC 9110 section 5.6.2).
func tchar(c byte) bool {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
		return true
	}
	return strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if !tchar(s[i]) {
			return false
		}
	}
	return s != ""
}

// fields checks every field of h and appends the end-to-end ones to req.Fields
// in the order of their names.
func (req *Request) fields(h http.Header, size int) error {
	count := 0
	for key, values := range h {
		name := lowerName(key)
		keep, err := req.checkName(name)
		if err != nil {
			return err
		}
		if len(values) > 1 && single[name] {
			return refuse(MalformedRequest, "a field that may come once comes twice")
		}
		for _, v := range values {
			count++
			size += len(name) + len(v) + 4
			if count > MaxFields || size > MaxHeadBytes {
				return refuse(HeaderTooLarge, "more than 100 fields or 32 KiB of head")
			}
			if err := checkValue(name, v); err != nil {
				return err
			}
			if keep {
				req.Fields = append(req.Fields, Field{Name: name, Value: trimOWS(v)})
			}
		}
		if !keep && !hopByHop[name] {
			req.DroppedNames += len(values)
		}
	}
	if size > MaxHeadBytes {
		return refuse(HeaderTooLarge, "more than 32 KiB of head")
	}
	slices.SortStableFunc(req.Fields, func(a, b Field) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// checkName says whether a field may go on, and refuses names that are no
// token or that alias one of ours.
func (req *Request) checkName(name string) (keep bool, err error) {
	odd := false
	for i := 0; i < len(name); i++ {
		c := name[i]
		if 'a' <= c && c <= 'z' || c == '-' || '0' <= c && c <= '9' {
			continue
		}
		if !tchar(c) {
			return false, refuse(MalformedRequest, "field name that is not a token")
		}
		odd = true
	}
	if name == "" {
		return false, refuse(MalformedRequest, "empty field name")
	}
	if odd && Reserved(name) {
		return false, refuse(MalformedRequest, "field name that aliases one set by the gate")
	}
	if odd && strings.IndexByte(name, '_') >= 0 {
		return false, nil
	}
	return !hopByHop[name], nil
}

// checkValue refuses bytes that no value may have (RFC 9110 section 5.5), and
// obs-text where somebody decides on the value.
func checkValue(name, v string) error {
	obs := false
	for i := 0; i < len(v); i++ {
		c := v[i]
		if c >= 0x80 {
			obs = true
		} else if c < ' ' && c != '\t' || c == 0x7f {
			return refuse(MalformedRequest, "control character in a field value")
		}
	}
	if obs && (decided[name] || Reserved(name)) {
		return refuse(MalformedRequest, "non-ASCII byte in a field that is decided on")
	}
	return nil
}

func trimOWS(v string) string { return strings.Trim(v, " \t") }
