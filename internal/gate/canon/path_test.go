package canon

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

// pathCases: want is the normal form, or "" when the path must be refused.
var pathCases = []struct{ raw, want, segments string }{
	{"/", "/", ""},
	{"/a", "/a", "a"},
	{"/a/", "/a/", "a/"},
	{"/a/b", "/a/b", "a/b"},
	{"/v1/orders/42", "/v1/orders/42", "v1/orders/42"},
	{"/%61", "/a", "a"},
	{"/%41%5a", "/AZ", "AZ"},
	{"/%7Euser", "/~user", "~user"},
	{"/%2d%5f", "/-_", "-_"},
	{"/a%2eb", "/a.b", "a.b"},
	{"/...", "/...", "..."},
	{"/..a", "/..a", "..a"},
	{"/a..", "/a..", "a.."},
	{"/.well-known/x", "/.well-known/x", ".well-known/x"},
	{"/%2ewell-known/x", "/.well-known/x", ".well-known/x"},
	{"/a%20b", "/a%20b", "a b"},
	{"/a+b", "/a+b", "a+b"},
	{"/a%2bb", "/a%2Bb", "a+b"},
	{"/a%3ab", "/a%3Ab", "a:b"},
	{"/a:b@c", "/a:b@c", "a:b@c"},
	{"/a=b&c,d!e$f'g(h)i*j", "/a=b&c,d!e$f'g(h)i*j", "a=b&c,d!e$f'g(h)i*j"},
	{"/c%23", "/c%23", "c#"},
	{"/why%3f", "/why%3F", "why?"},
	{"/100%25", "/100%25", "100%"},
	{"/100%25/x", "/100%25/x", "100%/x"},
	{"/5%25%20off", "/5%25%20off", "5% off"},
	{"/a%25zz", "/a%25zz", "a%zz"},
	{"/a%25g1", "/a%25g1", "a%g1"},
	{"/caf%c3%a9", "/caf%C3%A9", "café"},
	{"/%e2%82%ac", "/%E2%82%AC", "€"},
	{"/%f0%9f%98%80", "/%F0%9F%98%80", "😀"},
	{"/%C2%A0", "/%C2%A0", "\u00a0"},
	{"/%ef%bc%8e%ef%bc%8e", "/%EF%BC%8E%EF%BC%8E", "．．"},
	{"/[0]", "/%5B0%5D", "[0]"},
	{"/%5b0%5d", "/%5B0%5D", "[0]"},
	{"/a|b", "/a%7Cb", "a|b"},
	{"/{x}", "/%7Bx%7D", "{x}"},
	{"/a^b`c", "/a%5Eb%60c", "a^b`c"},
	{`/"<>"`, "/%22%3C%3E%22", `"<>"`},
	{"/A/a", "/A/a", "A/a"},

	{"", "", ""},
	{"a", "", ""},
	{"*", "", ""},
	{"%2f", "", ""},
	{"/.", "", ""},
	{"/..", "", ""},
	{"/./a", "", ""},
	{"/../a", "", ""},
	{"/a/.", "", ""},
	{"/a/..", "", ""},
	{"/a/./b", "", ""},
	{"/a/../b", "", ""},
	{"/public/../admin", "", ""},
	{"/%2e", "", ""},
	{"/%2E%2e", "", ""},
	{"/%2e%2e/admin", "", ""},
	{"/.%2e/admin", "", ""},
	{"/%2e./admin", "", ""},
	{"/a/%2e%2e", "", ""},
	{"/a/%2e/b", "", ""},
	{"/a/..%2fadmin", "", ""},
	{"/a/..%5cadmin", "", ""},
	{"/a/..;/admin", "", ""},
	{"/a/.;x", "", ""},
	{"/..;", "", ""},
	{"/..%3bx/admin", "", ""},
	{"/..%3B/admin", "", ""},
	{"/a%2f..%2fb", "", ""},
	{"/a%2f..", "", ""},
	{"/..%2f", "", ""},
	{"/.%2Fa", "", ""},
	{"/a%2f.", "", ""},
	{"/a%2f%2e%2e%2fb", "", ""},
	{"/a%2f..;x%2fb", "", ""},
	{"/a//../b", "", ""},
	{"/a;x/../b", "", ""},
	{"/a;b=%2f..%2f", "", ""},
	{"/a;%00", "", ""},
	{"/a//%00", "", ""},
	{"/a%2fb%5cc", "", ""},
	{"/a;\\b", "", ""},
	{"/a//#b", "", ""},
	{"/a;#", "", ""},
	{"/a%2f%c0%af", "", ""},
	{"/a%252e", "", ""},
	{"/a.%252Eb", "", ""},
	{"/a%25252e", "", ""},
	{"/..%252fadmin", "", ""},
	{"/..%252f..%252fadmin", "", ""},
	{"/..%25252fadmin", "", ""},
	{"/%2e%2e%252fadmin", "", ""},
	{"/..%253badmin", "", ""},
	{"/a%255c..", "", ""},
	{"/a%250a", "", ""},
	{"/a%25250d", "", ""},
	{"/a%25c0%25af", "", ""},
	{"/a%25ff", "", ""},
	{"/a%2525252541", "", ""},
	{"/a%252525252541", "", ""},
	{"/a%2f%25u002f", "", ""},
	{"/a%2f%u002f", "", ""},
	{"/a%5cb", "", ""},
	{"/a%5Cb", "", ""},
	{`/a\b`, "", ""},
	{`/\evil`, "", ""},
	{`\a`, "", ""},
	{"/a%00", "", ""},
	{"/a%00.txt", "", ""},
	{"/a\x00b", "", ""},
	{"/a%01b", "", ""},
	{"/a%0ab", "", ""},
	{"/a%0d%0aX-Y:z", "", ""},
	{"/a%1fb", "", ""},
	{"/a%7fb", "", ""},
	{"/a\tb", "", ""},
	{"/a\nb", "", ""},
	{"/a\rb", "", ""},
	{"/a\x7fb", "", ""},
	{"/a b", "", ""},
	{"/caf\xc3\xa9", "", ""},
	{"/caf\xe9", "", ""},
	{"/\xff", "", ""},
	{"/a#b", "", ""},
	{"/admin#x", "", ""},
	{"/a%", "", ""},
	{"/a%2", "", ""},
	{"/a%zz", "", ""},
	{"/a%2g", "", ""},
	{"/a%g2", "", ""},
	{"/%", "", ""},
	{"/%%", "", ""},
	{"/%%32%66", "", ""},
	{"/a%u002fb", "", ""},
	{"/%252e%252e/admin", "", ""},
	{"/a%255cb", "", ""},
	{"/a%2500", "", ""},
	{"/%25%32%65%25%32%65", "", ""},
	{"/a%25u002f", "", ""},
	{"/a%25U002f", "", ""},
	{"/a%25%75002f", "", ""},
	{"/%c0%af", "", ""},
	{"/%c0%ae%c0%ae/admin", "", ""},
	{"/%e0%80%af", "", ""},
	{"/%f0%80%80%af", "", ""},
	{"/%c1%9c", "", ""},
	{"/%ed%a0%80", "", ""},
	{"/%f4%90%80%80", "", ""},
	{"/%80", "", ""},
	{"/%c3", "", ""},
	{"/%c3/%a9", "", ""},
	{"/%ff", "", ""},
	{"/%fe%ff", "", ""},
	{"/a?b", "", ""}, // the query is cut off before; a '?' here is a mistake of ours
}

// formCases: paths that are fit only for routes that allow the forms. segments
// are joined by '|'; plain is the reading that gives every form its second
// meaning.
var formCases = []struct {
	raw, want, segments string
	forms               PathForms
	plain               string
}{
	{"/a%2fb", "/a%2Fb", "a/b", EncodedSlash, "/a/b"},
	{"/a%2Fb/c", "/a%2Fb/c", "a/b|c", EncodedSlash, "/a/b/c"},
	{"/a%2F", "/a%2F", "a/", EncodedSlash, "/a/"},
	{"/p/group%2fproject%2Fx/issues", "/p/group%2Fproject%2Fx/issues", "p|group/project/x|issues", EncodedSlash, "/p/group/project/x/issues"},
	{"/%2fa", "/%2Fa", "/a", EncodedSlash | EmptySegment, "/a"},
	{"/%2f%2fevil", "/%2F%2Fevil", "//evil", EncodedSlash | EmptySegment, "/evil"},
	{"/a/%2fb", "/a/%2Fb", "a|/b", EncodedSlash | EmptySegment, "/a/b"},
	{"/a%2f/b", "/a%2F/b", "a/|b", EncodedSlash | EmptySegment, "/a/b"},
	{"/a;b", "/a;b", "a;b", Semicolon, "/a"},
	{"/a;jsessionid=1/b", "/a;jsessionid=1/b", "a;jsessionid=1|b", Semicolon, "/a/b"},
	{"/a;x=1;y=2/b;z", "/a;x=1;y=2/b;z", "a;x=1;y=2|b;z", Semicolon, "/a/b"},
	{"/;/admin", "/;/admin", ";|admin", Semicolon, "/admin"},
	{"/a/;x", "/a/;x", "a|;x", Semicolon, "/a/"},
	{"/a%3bb", "/a%3Bb", "a;b", Semicolon, "/a"},
	{"/a%3Bb=c", "/a%3Bb=c", "a;b=c", Semicolon, "/a"},
	{"/;", "/;", ";", Semicolon, "/"},
	{"//", "//", "|", EmptySegment, "/"},
	{"///", "///", "||", EmptySegment, "/"},
	{"//a", "//a", "|a", EmptySegment, "/a"},
	{"/a//b", "/a//b", "a||b", EmptySegment, "/a/b"},
	{"/a//", "/a//", "a||", EmptySegment, "/a/"},
	{"/a///b//", "/a///b//", "a|||b||", EmptySegment, "/a/b/"},
	{"/caf%c3%a9//x", "/caf%C3%A9//x", "café||x", EmptySegment, "/caf%C3%A9/x"},
	{"/%61//b", "/a//b", "a||b", EmptySegment, "/a/b"},
	{"/a|b//", "/a%7Cb//", "a|b||", EmptySegment, "/a%7Cb/"},
	{"/a%2541", "/a%2541", "a%41", Percent, "/aA"},
	{"/a%25%34%31", "/a%2541", "a%41", Percent, "/aA"},
	{"/a%252541", "/a%252541", "a%2541", Percent, "/aA"},
	{"/50%2525", "/50%2525", "50%25", Percent, "/50%25"},
	{"/a%25u/", "/a%25u/", "a%u|", Percent, "/a%25u/"},
	{"/a%25252541", "/a%25252541", "a%252541", Percent, "/aA"},
	{"/a%252fb", "/a%252fb", "a%2fb", EncodedSlash | Percent, "/a/b"},
	{"/a%252Fb", "/a%252Fb", "a%2Fb", EncodedSlash | Percent, "/a/b"},
	{"/a%25%32%66b", "/a%252fb", "a%2fb", EncodedSlash | Percent, "/a/b"},
	{"/a%25%32fb", "/a%252fb", "a%2fb", EncodedSlash | Percent, "/a/b"},
	{"/a%252%66b", "/a%252fb", "a%2fb", EncodedSlash | Percent, "/a/b"},
	{"/a%25252f", "/a%25252f", "a%252f", EncodedSlash | Percent, "/a/"},
	{"/a%252f%252fb", "/a%252f%252fb", "a%2f%2fb", EncodedSlash | EmptySegment | Percent, "/a/b"},
	{"/a%253bb", "/a%253bb", "a%3bb", Semicolon | Percent, "/a"},
	{"//a;x%2fb%2541", "//a;x%2Fb%2541", "|a;x/b%41", EncodedSlash | Semicolon | EmptySegment | Percent, "/a/bA"},
}

func TestParsePath(t *testing.T) {
	for _, tc := range pathCases {
		p, err := parsePath(tc.raw, nil)
		if tc.want == "" {
			if err == nil {
				t.Errorf("%q: accepted as %+v", tc.raw, p)
			} else if e := err.(*Error); e.Reason != BadPath || e.Detail == "" {
				t.Errorf("%q: refused with %v", tc.raw, e)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.raw, err)
			continue
		}
		var want []string
		if tc.want != "/" {
			want = strings.Split(tc.segments, "/")
		}
		if p.normal != tc.want || !slices.Equal(p.segs, want) || p.forms != 0 {
			t.Errorf("%q: got %+v, want %q %q", tc.raw, p, tc.want, want)
		}
	}
}

func TestPathForms(t *testing.T) {
	for _, tc := range formCases {
		p, err := parsePath(tc.raw, nil)
		if err != nil {
			t.Errorf("%q: %v", tc.raw, err)
			continue
		}
		if got := strings.Join(p.segs, "|"); p.normal != tc.want || got != tc.segments || p.forms != tc.forms {
			t.Errorf("%q: got %q %q %v, want %q %q %v", tc.raw, p.normal, got, p.forms, tc.want, tc.segments, tc.forms)
		}
		r := Request{Path: p.normal, Segments: p.segs, Forms: p.forms, RawPath: sendable(tc.raw)}
		if plain, _ := r.Plain(); plain != tc.plain {
			t.Errorf("%q: plain %q, want %q", tc.raw, plain, tc.plain)
		}
		if want := strings.ReplaceAll(tc.raw, "|", "%7C"); r.Sent() != want {
			t.Errorf("%q: %q is sent", tc.raw, r.Sent())
		}
	}
	all := EncodedSlash | Semicolon | EmptySegment | Percent
	if got := all.String(); got != "encoded_slash,semicolon,empty_segment,percent" {
		t.Errorf("all forms: %q", got)
	}
	var back PathForms
	for name := range strings.SplitSeq(all.String(), ",") {
		back |= PathForm(name)
	}
	if back != all || PathForm("") != 0 || PathForm("dots") != 0 {
		t.Errorf("names do not read back: %v", back)
	}
}

// TestReadings: the readings hold what another server would make of the path.
func TestReadings(t *testing.T) {
	for _, tc := range []struct{ raw, want string }{
		{"/v1/orders%2F7", "/v1/orders/7"},
		{"/v1//orders/7", "/v1/orders/7"},
		{"/v1;x/orders/7", "/v1/orders/7"},
		{"/v1;x//orders/7", "/v1//orders/7"}, // cuts parameters, keeps empty segments
		{"/v1;x//orders/7", "/v1;x/orders/7"},
		{"/v1;x//orders/7", "/v1/orders/7"},
		{"/;x/v1/orders/7", "/v1/orders/7"},
		{"/v1/orders%252f7", "/v1/orders/7"},
		{"/v1/orders%252f7", "/v1/orders%2f7"}, // decodes twice, splits before: one segment "orders/7"
		{"/v1/o%2572ders/7", "/v1/orders/7"},
		{"//host/v1/orders/7", "/v1/orders/7"}, // an authority
		{"//v1/orders/7", "/v1/orders/7"},
		{"/v1;a%2Fb/orders", "/v1/orders"}, // cuts before it decodes
		{"/v1;a%2Fb/orders", "/v1/b/orders"},
	} {
		p, err := parsePath(tc.raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		want, err := parsePath(tc.want, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := Request{Path: p.normal, Segments: p.segs, Forms: p.forms}
		found := false
		for segs := range r.Readings() {
			found = found || slices.Equal(segs, want.segs)
		}
		if !found {
			t.Errorf("%q is not read as %q", tc.raw, tc.want)
		}
	}
}

// FuzzPath: what is accepted has one normal form, which parses to itself, is
// read by net/url as the same segments, and hides no dot segment from anybody
// who decodes or splits it further. So does what is sent.
func FuzzPath(f *testing.F) {
	for _, tc := range pathCases {
		f.Add(tc.raw)
	}
	for _, tc := range formCases {
		f.Add(tc.raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := parsePath(raw, nil)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("%q: error of type %T", raw, err)
			}
			return
		}
		sent := p.normal
		if p.forms != 0 {
			sent = sendable(raw)
		}
		for _, same := range []string{p.normal, sent} {
			again, err := parsePath(same, nil)
			if err != nil || again.normal != p.normal || again.forms != p.forms || !slices.Equal(p.segs, again.segs) {
				t.Fatalf("%q: %+v, but %q parses to %+v %v", raw, p, same, again, err)
			}
		}
		u, err := url.ParseRequestURI(sent)
		if err != nil {
			t.Fatalf("%q: net/url refuses %q: %v", raw, sent, err)
		}
		if want := "/" + strings.Join(p.segs, "/"); u.Path != want {
			t.Fatalf("%q: net/url reads %q, we read %q", raw, u.Path, want)
		}
		if u.RawQuery != "" || u.Fragment != "" || u.Host != "" {
			t.Fatalf("%q: net/url finds more than a path in %q", raw, sent)
		}
		if p.forms == 0 && u.JoinPath().EscapedPath() != u.EscapedPath() {
			t.Fatalf("%q: %q is not clean", raw, p.normal)
		}
		noneHidden(t, raw, &Request{Path: p.normal, Segments: p.segs, Forms: p.forms})
	})
}

// noneHidden checks every reading of an accepted path.
func noneHidden(t *testing.T, raw string, r *Request) {
	check := func(segs []string) {
		for _, s := range segs {
			deeper := s
			for changed := true; changed; {
				deeper, changed = decodeAll(deeper)
			}
			for part := range strings.SplitSeq(deeper, "/") {
				name, _, _ := strings.Cut(part, ";")
				if name == "." || name == ".." || strings.ContainsAny(part, "\\\x00\n\r\x7f") {
					t.Fatalf("%q: segment %q", raw, s)
				}
			}
			if r.Forms == 0 && (strings.ContainsAny(s, "/;") || deeper != s) {
				t.Fatalf("%q: segment %q without a form", raw, s)
			}
		}
	}
	check(r.Segments)
	for segs := range r.Readings() {
		check(segs)
	}
	text, segs := r.Plain()
	plain, err := parsePath(text, nil)
	if err != nil || plain.forms&^Percent != 0 || plain.normal != text || !slices.Equal(plain.segs, segs) { // %25u stays
		t.Fatalf("%q: plain %q %q: %+v %v", raw, text, segs, plain, err)
	}
}

func TestCheckQuery(t *testing.T) {
	for _, q := range []string{"", "a=b", "a=b&c=%2F..%00", "?", "a=/../x", `a=\`, "x=%zz", "[]{}|", "a=%C0%AF"} {
		if err := checkQuery(q); err != nil {
			t.Errorf("%q: %v", q, err)
		}
	}
	for _, q := range []string{"a b", "a#b", "a\tb", "a\x00", "a\r\nX:y", "\x7f", "\xc3\xa9", "\xff"} {
		if err := checkQuery(q); err == nil {
			t.Errorf("%q: accepted", q)
		}
	}
}

func BenchmarkParsePath(b *testing.B) {
	for _, p := range []string{"/v1/orders/1234567890", "/v1/orders/caf%c3%a9/%41", "/v1/group%2Fproject/x;v=1"} {
		b.Run(p, func(b *testing.B) {
			b.ReportAllocs()
			segs := make([]string, 0, 8)
			for b.Loop() {
				if _, err := parsePath(p, segs[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
