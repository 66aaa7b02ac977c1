package authn

import (
	"net/url"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

func TestStripCookies(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"a=1":                     "a=1",
		"a=1; b=2":                "a=1; b=2",
		"__Host-gatebook=x":       "",
		"__Host-gatebook":         "",
		"a=1; __Host-gatebook=x":  "a=1",
		"__Host-gatebook=x; a=1":  "a=1",
		"a=1;__Host-gatebook=x;b": "a=1;b",
		"a=1; __host-GATEBOOK=x":  "a=1",
		"a=1; __Host-gatebook =x": "a=1",
		"a=1;\t__Host-gatebook=x; __Host-gatebook-login-AbCd=y; c=3": "a=1; c=3",
		"__Host-gatebookish=app; __Host-gate=app":                    "__Host-gatebookish=app; __Host-gate=app",
		"a=__Host-gatebook=x":                                        "a=__Host-gatebook=x",
		`a="q; __Host-gatebook=x; r"`:                                `a="q; r"`,
		"=__Host-gatebook=x":                                         "=__Host-gatebook=x",
		"; ; __Host-gatebook=x; ;":                                   "; ; ;",
		"  a=1  ;  b=2 ":                                             "  a=1  ;  b=2 ",
	} {
		if got := StripCookies(in); got != want {
			t.Errorf("%q gives %q, want %q", in, got, want)
		}
	}
}

func TestLocalPath(t *testing.T) {
	for _, s := range []string{"/", "/a", "/a/b?c=d&e=//f", "/a%20b", "/_gatebookish", "/a?return=https://x.example/"} {
		if !localPath(s) {
			t.Errorf("%q is refused", s)
		}
	}
	for _, s := range []string{
		"", "a", "//evil.example", "///evil.example", "/\\evil.example", "/\tevil", "/%5cevil.example", "/a\r\nb", "/a%0d%0ab", "https://evil.example/",
		"/..//evil.example", "/../a", "/./a", "/a/%2e%2e/b", "/%2f/evil.example", "/%2Fevil.example", "/a//b", "/_gatebook/login", "/_gatebook", "/%5fgatebook/logout", "/a#b", "/ä", "/a b",
		"/" + strings.Repeat("a", maxReturn), "javascript:alert(1)", "/%zz",
	} {
		if localPath(s) {
			t.Errorf("%q is taken", s)
		}
	}
}

func FuzzSessionCookie(f *testing.F) {
	keys, err := newSessionKeys([32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	genuine := keys.sessionID("web", sessionFamily{7}, 3)
	for _, seed := range []string{"", genuine, sessionCookie + "=" + genuine, "a=1; " + sessionCookie + "=" + genuine + "; b", strings.Repeat("A", 48), sessionCookie + "=x;" + sessionCookie + "=y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := &canon.Request{Fields: []canon.Field{{Name: "cookie", Value: s}}}
		text, found, _ := cookie(r, sessionCookie)
		if left := StripCookies(s); found && strings.Contains(left, sessionCookie+"="+text) && text != "" && strings.Count(s, text) == 1 {
			t.Errorf("%q leaves %q", s, left)
		}
		if again := StripCookies(StripCookies(s)); again != StripCookies(s) {
			t.Errorf("%q is stripped twice", s)
		}
		for _, v := range []string{s, text} {
			if fam, gen, ok := keys.readSessionID("web", v); ok && keys.sessionID("web", fam, gen) != v {
				t.Errorf("%q is another spelling of an id", v)
			}
			if _, err := keys.openLogin("web", "state", v); err == nil {
				t.Errorf("%q opens", v)
			}
		}
	})
}

func FuzzCallbackQuery(f *testing.F) {
	for _, seed := range []string{"code=a&state=b&iss=https%3A%2F%2Fidp", "code=a&code=b", "%63ode=a", "a;b", "state=%zz", "state&0=%", "error=x&state=y", "&&=", "return=%2F%2Fevil.example"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := parseParams(raw, "code", "state", "iss", "error", "return")
		if err != nil {
			return
		}
		q, err := url.ParseQuery(raw)
		for name, v := range p {
			if err != nil || len(q[name]) != 1 || q[name][0] != v {
				t.Errorf("%q: %s is %q, others read %q (%v)", raw, name, v, q[name], err)
			}
		}
		if back := p["return"]; localPath(back) {
			u, err := url.Parse("https://app.example.com" + back)
			if err != nil || u.Host != "app.example.com" || strings.HasPrefix(back, "//") {
				t.Errorf("%q leads to another host", back)
			}
			if ref, err := (&url.URL{Scheme: "https", Host: "app.example.com", Path: "/x"}).Parse(back); err != nil || ref.Host != "app.example.com" {
				t.Errorf("%q resolves to %v", back, ref)
			}
		}
	})
}
