package canon

import (
	"net/netip"
	"strconv"
	"strings"
)

// parseHost checks an authority (RFC 9110 section 7.2, without userinfo) and
// returns the bare host and the authority in canonical form: lower case, no
// trailing dot, no default port of the scheme.
func parseHost(raw, scheme string) (host, authority string, err error) {
	if raw == "" {
		return "", "", refuse(BadHost, "no host")
	}
	name, port := raw, ""
	if raw[0] == '[' {
		end := strings.IndexByte(raw, ']')
		if end < 0 {
			return "", "", refuse(BadHost, "address literal without its closing bracket")
		}
		name, port = raw[:end+1], raw[end+1:]
		if port != "" && port[0] != ':' {
			return "", "", refuse(BadHost, "text after the address literal")
		}
	} else if colon := strings.IndexByte(raw, ':'); colon >= 0 {
		name, port = raw[:colon], raw[colon:]
	}
	if port, err = canonicalPort(port, scheme); err != nil {
		return "", "", err
	}
	if name == "" {
		return "", "", refuse(BadHost, "no host before the port")
	}
	if name[0] == '[' {
		return literalHost(name, port)
	}
	if host, err = canonicalName(name); err != nil {
		return "", "", err
	}
	if port == "" {
		return host, host, nil
	}
	return host, host + port, nil
}

// canonicalPort checks ":port" and drops the default one of the scheme.
func canonicalPort(port, scheme string) (string, error) {
	if port == "" {
		return "", nil
	}
	n, err := strconv.ParseUint(port[1:], 10, 16)
	if err != nil || n == 0 || port[1] == '0' || port[1] == '+' {
		return "", refuse(BadHost, "port that is not a number from 1 to 65535")
	}
	if scheme == "https" && n == 443 || scheme == "http" && n == 80 {
		return "", nil
	}
	return port, nil
}

// literalHost checks a bracketed address: only IPv6 has that form, and a zone
// means something on the sender's machine only.
func literalHost(name, port string) (host, authority string, err error) {
	addr, err := netip.ParseAddr(name[1 : len(name)-1])
	if err != nil || !addr.Is6() || addr.Zone() != "" {
		return "", "", refuse(BadHost, "address literal that is not a plain IPv6 address")
	}
	host = addr.String()
	return host, "[" + host + "]" + port, nil
}

// canonicalName checks a host name or an IPv4 address. Names are ASCII only
// (RFC 5890 A-labels); '_' is taken since container networks use it.
func canonicalName(name string) (string, error) {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 253 {
		return "", refuse(BadHost, "host name that is empty or longer than 253 bytes")
	}
	upper, start := false, 0
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if err := checkLabel(name[start:i]); err != nil {
				return "", err
			}
			start = i + 1
			continue
		}
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			upper = true
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '@':
			return "", refuse(BadHost, "userinfo in the host")
		default:
			return "", refuse(BadHost, "character that no host name has")
		}
	}
	if upper {
		name = strings.ToLower(name)
	}
	if numericEnd(name) {
		if addr, err := netip.ParseAddr(name); err != nil || !addr.Is4() {
			return "", refuse(BadHost, "number that is not a dotted IPv4 address")
		}
	}
	return name, nil
}

func checkLabel(label string) error {
	n := len(label)
	switch {
	case n == 0:
		return refuse(BadHost, "empty label in the host name")
	case n > 63:
		return refuse(BadHost, "label longer than 63 bytes in the host name")
	case label[0] == '-' || label[n-1] == '-':
		return refuse(BadHost, "label that begins or ends with a hyphen")
	case n >= 4 && label[2:4] == "--" && (!strings.EqualFold(label[:2], "xn") || n == 4):
		// RFC 5891 section 4.2.3.1: only A-labels have hyphens there.
		return refuse(BadHost, "label with a reserved prefix")
	}
	return nil
}

// numericEnd reports whether URL parsers take the name for an IPv4 address:
// its last label is a number, in any notation (WHATWG URL "ends in a number").
func numericEnd(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if len(last) > 1 && last[0] == '0' && last[1] == 'x' {
		_, err := strconv.ParseUint(last[2:], 16, 64)
		return err == nil || len(last) == 2
	}
	for i := 0; i < len(last); i++ {
		if last[i] < '0' || last[i] > '9' {
			return false
		}
	}
	return true
}
