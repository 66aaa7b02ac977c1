package redact

import "strings"

const (
	// hiddenMin is the shortest run that is decoded: 11 characters are the
	// shortest thing of interest, and base64 makes 15 of them.
	hiddenMin = 12
	// maxHidden is how often an encoding within an encoding is looked into.
	maxHidden = 2
	// awsSecret is the length of a secret access key of AWS, the one well-known
	// key without a mark of its own that may hold slashes.
	awsSecret = 40
)

// detectHidden looks into the parts of s that are readable text in hexadecimal
// or base64, all of them together.
func detectHidden(s string, but exempt, depth int) finding {
	var buf [256]byte
	texts := buf[:0]
	for i := 0; i < len(s); {
		if !base64Char(s[i]) {
			i++
			continue
		}
		n := i + 1
		for n < len(s) && base64Char(s[n]) {
			n++
		}
		run := s[i:n]
		i = n
		if len(run) < hiddenMin {
			continue
		}
		if but&butEntropy == 0 && hasAWSSecret(run) {
			return foundEntropy
		}
		for part := range strings.SplitSeq(run, "/") {
			texts = appendDecoded(texts, part)
		}
		if strings.IndexByte(run, '/') >= 0 {
			texts = appendDecoded(texts, run)
		}
	}
	if len(texts) == 0 {
		return nothing
	}
	return detectDeep(string(texts), but, depth-1)
}

// appendDecoded appends the text that a run stands for, and a line break, which
// no detector looks across.
func appendDecoded(b []byte, run string) []byte {
	if len(run) < hiddenMin {
		return b
	}
	n := len(b)
	b, ok := appendUnhex(b, run)
	if !ok {
		b, ok = appendUnbase64(b[:n], run)
	}
	if !ok {
		return b[:n]
	}
	return append(b, '\n')
}

// base64Char reports the characters of both alphabets (RFC 4648 sections 4 and
// 5) without the padding.
func base64Char(c byte) bool { return isAlnum(c) || c == '+' || c == '/' || c == '-' || c == '_' }

// printable reports whether c is a character of a text.
func printable(c byte) bool { return c >= ' ' && c < 0x7f || c == '\t' || c == '\r' || c == '\n' }

// appendUnhex decodes a run of hexadecimal digits if that gives text.
func appendUnhex(b []byte, run string) ([]byte, bool) {
	if len(run)%2 != 0 {
		return b, false
	}
	for i := 0; i < len(run); i += 2 {
		if !isHex(run[i]) || !isHex(run[i+1]) {
			return b, false
		}
		c := hexValue(run[i])<<4 | hexValue(run[i+1])
		if !printable(c) {
			return b, false
		}
		b = append(b, c)
	}
	return b, true
}

// appendUnbase64 decodes a run of base64 of either alphabet if that gives text.
// It gives up at the first group that does not.
func appendUnbase64(b []byte, run string) ([]byte, bool) {
	if len(run)%4 == 1 {
		return b, false
	}
	for i := 0; i < len(run); i += 4 {
		group, n := base64Group(run[i:])
		for k := range n {
			c := byte(group >> (16 - 8*k))
			if !printable(c) {
				return b, false
			}
			b = append(b, c)
		}
	}
	return b, true
}

// base64Group decodes up to four characters into n bytes, the first in bits 16
// to 23.
func base64Group(s string) (group uint32, n int) {
	chars := min(len(s), 4)
	for i := range chars {
		group |= uint32(base64Value(s[i])) << (18 - 6*i)
	}
	return group, chars * 6 / 8
}

func base64Value(c byte) byte {
	switch {
	case isUpper(c):
		return c - 'A'
	case isLower(c):
		return c - 'a' + 26
	case isDigit(c):
		return c - '0' + 52
	case c == '+' || c == '-':
		return 62
	}
	return 63
}

// hasAWSSecret looks for a secret access key between slashes or the ends of a
// run.
func hasAWSSecret(run string) bool {
	for i := 0; i+awsSecret <= len(run); i++ {
		end := i + awsSecret
		if (i == 0 || run[i-1] == '/') && (end == len(run) || run[end] == '/') && isAWSSecret(run[i:end]) {
			return true
		}
	}
	return false
}

// isAWSSecret judges like randomPart, but with slashes and plus signs in it.
func isAWSSecret(s string) bool {
	seen, steps, was := uint8(0), 0, uint8(0)
	for i := range len(s) {
		c := class[s[i]] & (cDigit | cLower | cUpper)
		if c == 0 && s[i] != '/' && s[i] != '+' {
			return false
		}
		seen |= c
		if c != was && c != 0 && was != 0 && !(was == cUpper && c == cLower) {
			steps++
		}
		was = c
	}
	return seen == cDigit|cLower|cUpper && steps*5 >= len(s)-1
}

// unescape decodes each %XX, \xXX and \uXXXX (in either case) once. changed is
// false if there was none.
func unescape(s string) (decoded string, changed bool) {
	if strings.IndexByte(s, '\\') < 0 {
		return unpercent(s)
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		c, n := escapeAt(s[i:])
		if n == 0 {
			b = append(b, s[i])
			i++
			continue
		}
		b = append(b, string(c)...)
		i += n
		changed = true
	}
	if !changed {
		return s, false
	}
	return string(b), true
}

// escapeAt reads the escape that s starts with and says how long it is, 0 if
// there is none. %XX and \xXX above 0x7f stand for a byte of some character;
// which one does not matter to any detector.
func escapeAt(s string) (c rune, n int) {
	digits := 0
	switch {
	case s[0] == '%':
		n, digits = 1, 2
	case s[0] == '\\' && len(s) > 1 && s[1]|0x20 == 'x':
		n, digits = 2, 2
	case s[0] == '\\' && len(s) > 1 && s[1]|0x20 == 'u':
		n, digits = 2, 4
	default:
		return 0, 0
	}
	if len(s) < n+digits {
		return 0, 0
	}
	for _, d := range []byte(s[n : n+digits]) {
		if !isHex(d) {
			return 0, 0
		}
		c = c<<4 | rune(hexValue(d))
	}
	return c, n + digits
}
