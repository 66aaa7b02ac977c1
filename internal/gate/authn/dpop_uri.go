package authn

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// uri is an http or https URI in the normal form of RFC 3986 sections 6.2.2 and
// 6.2.3, without query and fragment: what RFC 9449 section 4.3 compares.
type uri struct {
	origin string // scheme://host[:port], default port left out
	path   string
}

// maxURI bounds a URI in bytes.
const maxURI = 4 << 10

// parseURI reads an absolute URI. It refuses what two readers could take for
// two URIs: other schemes, user information, back slashes, white space, bytes
// beyond ASCII and broken percent-encodings.
func parseURI(s string) (uri, error) {
	if len(s) > maxURI {
		return uri{}, errors.New("longer than 4096 bytes")
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '\\' {
			return uri{}, errors.New("a byte that no URI has")
		}
	}
	if i := strings.IndexByte(s, '#'); i >= 0 {
		s = s[:i]
	}
	if i := strings.IndexByte(s, '?'); i >= 0 {
		s = s[:i]
	}
	scheme, rest, ok := strings.Cut(s, "://")
	scheme = strings.ToLower(scheme)
	if !ok || scheme != "https" && scheme != "http" {
		return uri{}, errors.New("not an absolute http or https URI")
	}
	authority, path := rest, "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	authority, err := normalAuthority(scheme, authority)
	if err != nil {
		return uri{}, err
	}
	path, err = normalURIPath(path)
	return uri{scheme + "://" + authority, path}, err
}

// normalAuthority lowers the host and drops the scheme's default port.
func normalAuthority(scheme, s string) (string, error) {
	if strings.IndexByte(s, '@') >= 0 {
		return "", errors.New("user information")
	}
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && strings.IndexByte(s[i:], ']') < 0 {
		host, port = s[:i], s[i+1:]
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return "", errors.New("not a port")
		}
		if scheme == "https" && n == 443 || scheme == "http" && n == 80 {
			port = ""
		}
	}
	host, ok := normalHost(host)
	if !ok {
		return "", errors.New("not a host")
	}
	if port != "" {
		host += ":" + port
	}
	return host, nil
}

func normalHost(s string) (string, bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !strings.HasSuffix(s, "]") || !a.Is6() || a.Zone() != "" {
			return "", false
		}
		return "[" + a.String() + "]", true
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return "", false
	}
	for i := range len(s) {
		if c := s[i]; !isAlphaNum(c) && c != '-' && c != '.' && c != '_' {
			return "", false
		}
	}
	return s, true
}

// sentRaw are characters that a path must not have and that browsers send all
// the same; package canon encodes them in the path of the request.
const sentRaw = "\"<>[]^`{|}"

const upperHex = "0123456789ABCDEF"

// normalURIPath writes percent-encodings in upper case, decodes those of
// unreserved characters and removes dot segments (RFC 3986 section 5.2.4).
func normalURIPath(s string) (string, error) {
	if plainPath(s) {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			if strings.IndexByte(sentRaw, s[i]) >= 0 {
				b = append(b, '%', upperHex[s[i]>>4], upperHex[s[i]&15])
			} else {
				b = append(b, s[i])
			}
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("broken percent-encoding")
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", errors.New("broken percent-encoding")
		}
		i += 2
		if c := byte(n); isAlphaNum(c) || c == '-' || c == '.' || c == '_' || c == '~' {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return withoutDots(string(b)), nil
}

// plainPath reports a path that is its own normal form for certain.
func plainPath(s string) bool {
	return !strings.ContainsAny(s, "%"+sentRaw) && !strings.Contains(s, "/.")
}

// withoutDots removes dot segments from a path that begins with a slash.
func withoutDots(s string) string {
	if !strings.Contains(s, "/.") {
		return s
	}
	segs := strings.Split(s[1:], "/")
	out := segs[:0]
	for i, seg := range segs {
		last := i == len(segs)-1
		switch seg {
		case ".":
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
		default:
			out = append(out, seg)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}
