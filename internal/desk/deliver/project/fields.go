package project

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
)

// personalField is one field of the personal half that can be let out by name.
type personalField struct {
	name string
	copy func(dst, src *record.Personal)
	// rekey: the value is a keyed hash that is the same everywhere. It leaves as
	// a pseudonym of the sink.
	rekey func(*record.Personal) *string
}

// personalFields is every field but headers and claims, which are let out one
// by one.
func personalFields() []personalField {
	type P = record.Personal
	text := func(name string, at func(*P) *string) personalField {
		return personalField{name: name, copy: func(d, s *P) { *at(d) = *at(s) }}
	}
	hash := func(name string, at func(*P) *string) personalField {
		f := text(name, at)
		f.rekey = at
		return f
	}
	return []personalField{
		text("sub", func(p *P) *string { return &p.Sub }),
		text("name", func(p *P) *string { return &p.Name }),
		text("email", func(p *P) *string { return &p.Email }),
		text("tenant_user", func(p *P) *string { return &p.TenantUser }),
		text("claimed", func(p *P) *string { return &p.Claimed }),
		text("ip", func(p *P) *string { return &p.IP }),
		{name: "port", copy: func(d, s *P) { d.Port = s.Port }},
		{name: "fwd", copy: func(d, s *P) { d.Fwd = s.Fwd }},
		text("ua", func(p *P) *string { return &p.UA }),
		text("path", func(p *P) *string { return &p.Path }),
		text("query", func(p *P) *string { return &p.Query }),
		text("referer", func(p *P) *string { return &p.Referer }),
		text("cert_subject", func(p *P) *string { return &p.CertSubject }),
		hash(fieldSession, func(p *P) *string { return &p.Session }),
		hash(fieldToken, func(p *P) *string { return &p.Token }),
		hash(fieldFamily, func(p *P) *string { return &p.Family }),
		text("client_request_id", func(p *P) *string { return &p.ClientRequestID }),
		text("traceparent", func(p *P) *string { return &p.Traceparent }),
		text("body_sha256", func(p *P) *string { return &p.BodySHA256 }),
		text("ja4", func(p *P) *string { return &p.JA4 }),
		{name: "bytes_in", copy: func(d, s *P) { d.BytesIn = s.BytesIn }},
		{name: "bytes_out", copy: func(d, s *P) { d.BytesOut = s.BytesOut }},
	}
}

// FieldNames lists what Options.Fields may name, besides headers.NAME and
// claims.NAME.
func FieldNames() []string {
	var out []string
	for _, f := range personalFields() {
		out = append(out, f.name)
	}
	return out
}

const (
	headersPrefix = "headers."
	claimsPrefix  = "claims."
)

// fields is what may leave.
type fields struct {
	named   []personalField
	headers []string
	claims  []string
}

func (f *fields) any() bool { return len(f.named)+len(f.headers)+len(f.claims) > 0 }

func parseFields(names []string) (f fields, err error) {
	known := personalFields()
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return f, fmt.Errorf("field %q is named twice", name)
		}
		if h, ok := strings.CutPrefix(name, headersPrefix); ok {
			if h == "" || h != strings.ToLower(h) {
				return f, fmt.Errorf("field %q: write the header's name in lower case after %q, such as headers.accept-language", name, headersPrefix)
			}
			f.headers = append(f.headers, h)
			continue
		}
		if c, ok := strings.CutPrefix(name, claimsPrefix); ok {
			if c == "" {
				return f, fmt.Errorf("field %q: write the claim's name after %q, such as claims.dept", name, claimsPrefix)
			}
			f.claims = append(f.claims, c)
			continue
		}
		k := slices.IndexFunc(known, func(p personalField) bool { return p.name == name })
		switch {
		case k >= 0:
			f.named = append(f.named, known[k])
		case name == "headers" || name == "claims":
			return f, fmt.Errorf("field %q: name each one that may leave, such as %s.NAME", name, name)
		default:
			return f, fmt.Errorf("field %q is not part of the personal half%s; it has %s, headers.NAME and claims.NAME",
				name, nearest(name, FieldNames()), strings.Join(FieldNames(), ", "))
		}
	}
	return f, nil
}

// keep writes into dst what may leave of src. rekey makes pseudonyms.
func (f *fields) keep(dst, src *record.Personal, rekey func(field, value string) string) {
	for i := range f.named {
		n := &f.named[i]
		n.copy(dst, src)
		if n.rekey != nil {
			at := n.rekey(dst)
			*at = rekey(n.name, *at)
		}
	}
	dst.Headers = keepPairs(dst.Headers, src.Headers, f.headers)
	dst.Claims = keepPairs(dst.Claims, src.Claims, f.claims)
}

func keepPairs(dst, src []record.Pair, names []string) []record.Pair {
	if len(names) == 0 {
		return dst
	}
	for _, p := range src {
		if slices.Contains(names, p.Name) {
			dst = append(dst, p)
		}
	}
	return dst
}

// nearest suggests the name that was meant, if one is at most two letters away.
func nearest(name string, among []string) string {
	best, at := "", 3
	for _, n := range among {
		if d := distance(name, n); d < at {
			best, at = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance is the Levenshtein distance of short names.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diag
			if a[i] != b[j] {
				d++
			}
			diag = row[j+1]
			row[j+1] = min(d, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
