package token

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// FuzzForm: what our reader takes, the standard library reads the same way; and
// what is read is written and read back unchanged.
func FuzzForm(f *testing.F) {
	for _, s := range []string{
		"", "a=b", "a=b&c=d", "a=", "a=b&a=c", "a=b&A=c", "a", "=b", "a=%41+b", "a=%4", "a=%zz", "a=%00", "a=%ff", "a=b;c=d", "a=b=c", "a=b&&c=d",
		"grant_type=client_credentials&scope=read+write", "a=\n", "a=%0a", "a=b#c", "%61=b&a=c",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		got, err := parseForm(body)
		if err != nil {
			return
		}
		std, err := url.ParseQuery(body)
		if err != nil {
			t.Fatalf("%q was taken and the standard library refuses it: %v", body, err)
		}
		n := 0
		for name, values := range std {
			if len(values) != 1 || got.get(name) != values[0] {
				t.Fatalf("%q: %q is %q here and %q there", body, name, got.get(name), values)
			}
			if values[0] != "" {
				n++
			}
		}
		if n != len(got) {
			t.Fatalf("%q: %d parameters here, %d there", body, len(got), n)
		}
		var pairs []string
		for _, p := range got {
			pairs = append(pairs, p.name, p.value)
		}
		again, err := parseForm(encode(pairs...))
		if err != nil || len(again) != len(got) {
			t.Fatalf("%q: not read back: %v", body, err)
		}
		for i := range got {
			if again[i] != got[i] {
				t.Fatalf("%q: %q became %q", body, got[i], again[i])
			}
		}
	})
}

// FuzzScope: what is taken is what it is put together to.
func FuzzScope(f *testing.F) {
	for _, s := range []string{"", "a", "a b", " a", "a ", "a  b", "a a", "\"", "é", "a\tb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, ok := parseScope(s)
		if ok && strings.Join(list, " ") != s {
			t.Fatalf("%q was read as %q", s, list)
		}
	})
}

// FuzzPresent: no request names its client in two ways, and none makes the
// reader fail.
func FuzzPresent(f *testing.F) {
	f.Add("Basic "+base64.StdEncoding.EncodeToString([]byte("a:b")), "client_id=a", true)
	f.Add("", "client_id=a&client_secret=b", false)
	f.Add("", "client_assertion_type="+url.QueryEscape(assertionType)+"&client_assertion="+unsigned(`{"sub":"a"}`), false)
	f.Add("Basic", "", false)
	f.Add("basic !", "", false)
	f.Fuzz(func(t *testing.T, field, body string, sent bool) {
		fm, err := parseForm(body)
		if err != nil {
			return
		}
		r := &canon.Request{}
		if sent {
			r.Fields = []canon.Field{{Name: "authorization", Value: field}}
		}
		p, refusal := present(r, fm)
		if (p == nil) == (refusal == nil) {
			t.Fatalf("%+v %+v", p, refusal)
		}
		if p == nil {
			return
		}
		if p.id == "" || len(p.id) > maxClientID || !isText(p.id) || fm.get("client_id") != "" && fm.get("client_id") != p.id {
			t.Fatalf("%+v", p)
		}
		if p.method == SecretBasic && (fm.get("client_secret") != "" || fm.get("client_assertion") != "") {
			t.Fatalf("%+v and a secret in the body", p)
		}
	})
}

// FuzzRefresh: of a refresh token there is one spelling.
func FuzzRefresh(f *testing.F) {
	fam := &family{ID: b64.EncodeToString(make([]byte, familyIDSize)), Key: make([]byte, 32)}
	f.Add(fam.token(0))
	f.Add(fam.token(1<<32 - 1))
	f.Add("gbrt_")
	f.Fuzz(func(t *testing.T, raw string) {
		p, ok := parseRefresh(raw)
		if !ok {
			return
		}
		if len(p.mac) != familyMAC {
			t.Fatalf("%q", raw)
		}
		id, err := b64.DecodeString(p.id)
		if err != nil {
			t.Fatal(err)
		}
		n := p.generation
		if refreshPrefix+b64.EncodeToString(append(append(id, byte(n>>24), byte(n>>16), byte(n>>8), byte(n)), p.mac...)) != raw {
			t.Fatalf("%q has two spellings", raw)
		}
	})
}
