package obs

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Plain makes any text fit for one line on a terminal: what is not printable,
// such as control characters, line breaks, direction marks and bytes that are
// no UTF-8, is written as \u and four hexadecimal digits (two such for
// characters that need them). Plain JSON stays JSON of the same meaning.
func Plain(s string) string { return plain(s, false) }

// PlainLines is Plain for text of several lines: line breaks and tabs stay.
func PlainLines(s string) string { return plain(s, true) }

func plain(s string, lines bool) string {
	at := strings.IndexFunc(s, func(c rune) bool { return c == utf8.RuneError || !shown(c, lines) })
	if at < 0 {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:at])
	for i := at; i < len(s); {
		c, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case shown(c, lines) && !(c == utf8.RuneError && n == 1):
			b.WriteString(s[i : i+n])
		case c > 0xffff:
			unit(&b, 0xd800+(c-0x10000)>>10)
			unit(&b, 0xdc00+(c-0x10000)&0x3ff)
		default:
			unit(&b, c)
		}
		i += n
	}
	return b.String()
}

func shown(c rune, lines bool) bool {
	return unicode.IsPrint(c) || lines && (c == '\n' || c == '\t')
}

// unit writes one UTF-16 code unit.
func unit(b *strings.Builder, c rune) {
	const digits = "0123456789abcdef"
	b.WriteString(`\u`)
	for shift := 12; shift >= 0; shift -= 4 {
		b.WriteByte(digits[c>>shift&15])
	}
}

// PlainWriter writes whole texts through PlainLines. It holds nothing back, so
// each Write must end at the end of a character.
func PlainWriter(w io.Writer) io.Writer { return plainWriter{w} }

type plainWriter struct{ w io.Writer }

// Write implements io.Writer.
func (p plainWriter) Write(b []byte) (int, error) {
	if bytes.IndexFunc(b, func(c rune) bool { return c == utf8.RuneError || !shown(c, true) }) < 0 {
		return p.w.Write(b)
	}
	if _, err := io.WriteString(p.w, PlainLines(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// plainAttr keeps what others chose from speaking to the terminal on which the
// log is read. The JSON form alone would let C1 controls and direction marks
// through.
func plainAttr(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(PlainLines(a.Value.String()))
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error:
			a.Value = slog.StringValue(PlainLines(v.Error()))
		case []string:
			clean := make([]string, len(v))
			for i := range v {
				clean[i] = PlainLines(v[i])
			}
			a.Value = slog.AnyValue(clean)
		}
	}
	return a
}
