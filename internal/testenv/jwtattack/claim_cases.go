package jwtattack

import (
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// jsonText damages the JSON of the header and of the claims.
func (t *table) jsonText() {
	e, h, c := t.env, Header("ES256"), Claims()
	damage := func(name string, f func(string) string, want reason.Reason) {
		t.add("json", "header: "+name, e.TokenText("ES256", f(h.String()), c.String()), want)
		t.add("json", "claims: "+name, e.TokenText("ES256", h.String(), f(c.String())), want)
	}
	const bad = reason.TokenMalformed
	wrap := func(before, after string) func(string) string {
		return func(s string) string { return before + s + after }
	}
	member := func(m string) func(string) string {
		return func(s string) string { return s[:len(s)-1] + "," + m + "}" }
	}
	damage("space inside", func(s string) string { return strings.NewReplacer(":\"", " : \"", ",\"", "\r\n,\t\"").Replace(s) }, "")
	damage("space before the end", func(s string) string { return s[:len(s)-1] + " \n}" }, "")
	damage("space after", wrap("", " "), bad)
	damage("LF after", wrap("", "\n"), bad)
	damage("space in front", wrap(" ", ""), bad)
	damage("LF in front", wrap("\n", ""), bad)
	damage("BOM in front", wrap("\ufeff", ""), bad)
	damage("BOM after", wrap("", "\ufeff"), bad)
	damage("NUL after", wrap("", "\x00"), bad)
	damage("second object after", wrap("", `{"sub":"admin","alg":"none"}`), bad)
	damage("brace after", wrap("", "}"), bad)
	damage("text after", wrap("", "x"), bad)
	damage("array around", wrap("[", "]"), bad)
	damage("array of two", func(s string) string { return "[" + s + "," + s + "]" }, bad)
	damage("string", func(string) string { return `"x"` }, bad)
	damage("number", func(string) string { return "1" }, bad)
	damage("null", func(string) string { return "null" }, bad)
	damage("empty text", func(string) string { return "" }, bad)
	damage("not closed", func(s string) string { return s[:len(s)-1] }, bad)
	damage("trailing comma", func(s string) string { return s[:len(s)-1] + ",}" }, bad)
	damage("leading comma", func(s string) string { return "{," + s[1:] }, bad)
	damage("missing comma", func(s string) string { return s[:len(s)-1] + ` "x":1}` }, bad)
	damage("comment", func(s string) string { return "{/* */" + s[1:] }, bad)
	damage("line comment", func(s string) string { return "{//\n" + s[1:] }, bad)
	damage("single quotes", func(s string) string { return strings.ReplaceAll(s, `"`, `'`) }, bad)
	damage("UTF-16", func(s string) string {
		var b strings.Builder
		for _, r := range s {
			b.WriteByte(0)
			b.WriteByte(byte(r))
		}
		return b.String()
	}, bad)
	for name, m := range map[string]string{
		"invalid UTF-8": "\"x\":\"\xff\"", "overlong UTF-8": "\"x\":\"\xc0\xaf\"", "encoded surrogate": "\"x\":\"\xed\xa0\x80\"",
		"invalid UTF-8 in a name": "\"x\xff\":1", "lone surrogate": `"x":"\ud800"`, "low surrogate first": `"x":"\udc00\ud800"`,
		"surrogate and text": `"x":"\ud800x"`, "NUL escape": `"x":"\u0000"`, "NUL escape in a name": `"sub\u0000":"x"`,
		"raw control character": "\"x\":\"\x01\"", "raw LF in a string": "\"x\":\"a\nb\"", "raw tab in a name": "\"x\t\":1",
		"unknown escape": `"x":"\x41"`, "short escape": `"x":"\u41"`, "no value": `"x":`, "no name": `:1`, "name not a string": `1:1`,
		"bare name": `x:1`, "NaN": `"x":NaN`, "Infinity": `"x":Infinity`, "minus Infinity": `"x":-Infinity`, "undefined": `"x":undefined`,
		"True": `"x":True`, "hexadecimal": `"x":0x10`, "octal": `"x":010`, "leading plus": `"x":+1`, "leading point": `"x":.5`,
		"trailing point": `"x":1.`, "empty exponent": `"x":1e`, "minus alone": `"x":-`, "underscore": `"x":1_0`, "semicolon": `"x":1;`,
		"number of 401 digits": `"x":1` + strings.Repeat("0", 400), "number of 310 digits": `"x":1` + strings.Repeat("0", 309), "huge exponent": `"x":1e309`, "huge negative": `"x":-2e308`,
		"nested duplicate": `"x":{"a":1,"a":2}`, "deep duplicate": `"x":[{"y":{"a":1,"b":2,"a":3}}]`,
		"nested duplicate by escape": `"x":{"a":1,"\u0061":2}`,
	} {
		damage(name, member(m), bad)
	}
	for name, m := range map[string]string{
		"float elsewhere": `"x":1.5e-3`, "long number elsewhere": `"x":1` + strings.Repeat("0", 308), "long fraction elsewhere": `"x":0.` + strings.Repeat("3", 400), "surrogate pair": `"x":"\ud83d\ude00"`,
		"nested other case": `"x":{"a":1,"A":2}`, "escaped solidus": `"x":"a\/b"`, "unicode": `"x":"日本語"`, "empty name": `"":1`,
	} {
		damage(name, member(m), "")
	}
	for _, depth := range []int{15, 16, 200} {
		want := reason.Reason("")
		if depth > 15 { // the object itself is the first of 16 levels
			want = bad
		}
		damage(fmt.Sprintf("arrays nested %d deep", depth), member(`"x":`+strings.Repeat("[", depth)+strings.Repeat("]", depth)), want)
		damage(fmt.Sprintf("objects nested %d deep", depth-1), member(`"x":`+strings.Repeat(`{"a":`, depth-1)+"{}"+strings.Repeat("}", depth-1)), want)
	}
}

// repeated puts a member twice, so that two readers could see two tokens.
func (t *table) repeated() {
	for _, m := range Header("ES256") {
		for _, v := range []string{m.Value, `"none"`} {
			t.header("repeated", "header "+m.Name+" again as "+v, Header("ES256").Add(m.Name, v), reason.TokenMalformed)
			first := append(Object{{m.Name, v}}, Header("ES256")...)
			t.header("repeated", "header "+m.Name+" before as "+v, first, reason.TokenMalformed)
		}
	}
	for _, m := range Claims() {
		for _, v := range []string{m.Value, `"admin"`, "null"} {
			t.claims("repeated", "claim "+m.Name+" again as "+v, Claims().Add(m.Name, v), reason.TokenMalformed)
		}
		t.claims("repeated", "claim "+m.Name+" again by escape", Claims().Add(escapeName(m.Name), m.Value), reason.TokenMalformed)
	}
	t.claims("repeated", "unknown claim twice", Claims().Add("x", "1").Add("x", "1"), reason.TokenMalformed)
}

// escapeName writes the first letter as an escape.
func escapeName(s string) string { return fmt.Sprintf(`\u%04x%s`, s[0], s[1:]) }

// wrongCase uses names that only a reader who folds case takes for claims.
func (t *table) wrongCase() {
	// U+017F folds to s, U+212A folds to k.
	long := strings.NewReplacer("s", "\u017f", "k", "\u212a")
	for _, m := range append(Claims(), Member{"nbf", "0"}, Member{"cnf", "{}"}, Member{"acr", `"1"`}, Member{"auth_time", "0"}) {
		variants := []string{strings.ToUpper(m.Name), strings.ToUpper(m.Name[:1]) + m.Name[1:]}
		if l := long.Replace(m.Name); l != m.Name {
			variants = append(variants, l)
		}
		for _, v := range variants {
			t.claims("case", "claim "+v+" beside "+m.Name, Claims().Add(v, m.Value), reason.TokenMalformed)
			t.claims("case", "claim "+v+" instead of "+m.Name, Claims().Rename(m.Name, v).Set(v, m.Value), reason.TokenMalformed)
		}
		t.claims("case", "claim "+m.Name+" by escape", Claims().Del(m.Name).Add(escapeName(m.Name), m.Value), reason.TokenMalformed)
	}
	t.claims("case", "two unknown claims differ in case", Claims().Add("abc", "1").Add("ABC", "2"), reason.TokenMalformed)
	for _, m := range Header("ES256") {
		for _, v := range []string{strings.ToUpper(m.Name), strings.ToUpper(m.Name[:1]) + m.Name[1:], long.Replace(m.Name)} {
			if v != m.Name {
				t.header("case", "header "+v+" beside "+m.Name, Header("ES256").Add(v, m.Value), reason.TokenMalformed)
				t.header("case", "header "+v+" instead of "+m.Name, Header("ES256").Rename(m.Name, v), reason.TokenMalformed)
			}
		}
	}
}

// missingOrOdd drops each claim and gives it values of other types.
func (t *table) missingOrOdd() {
	const bad = reason.TokenMalformed
	for _, name := range []string{"exp", "iat", "sub"} {
		t.claims("odd", name+" missing", Claims().Del(name), bad)
	}
	t.claims("odd", "iss missing", Claims().Del("iss"), reason.TokenIssuer)
	t.claims("odd", "aud missing", Claims().Del("aud"), reason.TokenAudience)
	for _, name := range []string{"jti", "client_id", "scope", "roles"} {
		t.claims("odd", name+" missing", Claims().Del(name), "")
	}
	for _, name := range []string{"exp", "iat", "nbf", "auth_time"} {
		now := Now.Unix()
		for _, v := range []string{
			"null", "true", `""`, quote(num(now)), quote("x"), "[]", "{}", fmt.Sprintf("[%d]", now),
			num(now) + ".0", num(now) + ".5", num(now) + "e0", "1.7e9", "17E8", "-1", "-0", num(-now),
			"253402300800", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + strings.Repeat("0", 300),
		} {
			t.claims("odd", name+" "+strings.ReplaceAll(clipZeros(v), num(now), "now"), Claims().Set(name, v), bad)
		}
	}
	for _, name := range []string{"sub", "jti", "client_id", "acr"} {
		for _, v := range []string{"null", "1", "true", "[]", "{}", `["x"]`, quote(strings.Repeat("x", 513)), `" x"`, `"x "`, `"a\nb"`, `"a\u0007"`, `"a\u200bb"`, `"a\u202eb"`, `"a\u2028b"`} {
			t.claims("odd", name+" "+clipZeros(v), Claims().Set(name, v), bad)
		}
	}
	for _, name := range []string{"roles", "scope", "amr"} {
		for _, v := range []string{"1", "true", "{}", "null", "[1]", `["a",null]`, `["a",["b"]]`, `[""]`, `["a\n"]`} {
			t.claims("odd", name+" "+v, Claims().Set(name, v), bad)
		}
	}
	t.claims("odd", "name of another type is ignored", Claims().Add("name", "1").Add("email", "[]"), "")
}

// clipZeros keeps row names short.
func clipZeros(v string) string {
	if len(v) > 40 {
		return fmt.Sprintf("%s... of %d", v[:4], len(v))
	}
	return v
}

// times puts each date one second to either side of its limit.
func (t *table) times() {
	now, skew := Now.Unix(), int64(Skew/time.Second)
	life, age := int64(MaxLifetime/time.Second), int64(MaxAge/time.Second)
	for d := int64(-1); d <= 1; d++ {
		row := func(name string, c Object, accepted bool, want reason.Reason) {
			if accepted {
				want = ""
			}
			t.claims("time", fmt.Sprintf("%s%+d s", name, d), c, want)
		}
		row("exp at now-skew", Claims().Set("exp", num(now-skew+d)).Set("iat", num(now-60)), d > 0, reason.TokenExpired)
		row("exp at now", Claims().Set("exp", num(now+d)), true, "")
		row("nbf at now+skew", Claims().Set("nbf", num(now+skew+d)), d <= 0, reason.TokenNotYet)
		row("nbf at now", Claims().Set("nbf", num(now+d)), true, "")
		row("iat at now+skew", Claims().Set("iat", num(now+skew+d)), d <= 0, reason.TokenNotYet)
		row("auth_time at now+skew", Claims().Set("auth_time", num(now+skew+d)), d <= 0, reason.TokenNotYet)
		row("iat at now-max age", Claims().Set("iat", num(now-age+d)).Set("exp", num(now+60)), d >= 0, reason.TokenTooOld)
		row("lifetime at its maximum", Claims().Set("iat", num(now)).Set("exp", num(now+life+d)), d <= 0, reason.TokenLifetimeExceeded)
		row("exp at iat", Claims().Set("iat", num(now)).Set("exp", num(now+d)), d > 0, reason.TokenMalformed)
		row("exp at nbf", Claims().Set("nbf", num(now)).Set("exp", num(now+d)), d > 0, reason.TokenMalformed)
	}
	t.claims("time", "expired an hour ago", Claims().Set("iat", num(now-3900)).Set("exp", num(now-3600)), reason.TokenExpired)
	t.claims("time", "iat an hour ahead", Claims().Set("iat", num(now+3600)).Set("exp", num(now+3900)), reason.TokenNotYet)
	t.claims("time", "good for an hour", Claims().Set("exp", num(now+3570)), reason.TokenLifetimeExceeded)
	t.claims("time", "good for a thousand years", Claims().Set("exp", num(now+31536000000)), reason.TokenLifetimeExceeded)
	t.claims("time", "milliseconds", Claims().Set("iat", num(now*1000)).Set("exp", num((now+300)*1000)), reason.TokenMalformed)
	t.claims("time", "exp zero", Claims().Set("exp", "0"), reason.TokenMalformed)
	t.claims("time", "iat zero", Claims().Set("iat", "0"), reason.TokenLifetimeExceeded)
	t.claims("time", "nbf zero", Claims().Set("nbf", "0"), "")
}

func (t *table) audiences() {
	const bad = reason.TokenAudience
	other := quote("https://other.example.com")
	for _, row := range []struct {
		v    string
		want reason.Reason
	}{
		{quote(Audience), ""}, {"[" + quote(Audience) + "]", ""}, {"[" + other + "," + quote(Audience) + "]", ""},
		{other, bad}, {"[]", bad}, {"null", bad}, {`""`, bad}, {`[""]`, bad}, {"1", bad}, {"true", bad}, {"{}", bad},
		{"{" + quote(Audience) + ":1}", bad}, {"[[" + quote(Audience) + "]]", bad}, {"[" + quote(Audience) + ",1]", bad},
		{"[null," + quote(Audience) + "]", bad}, {"[" + other + "]", bad}, {quote(Audience + "/"), bad}, {quote(strings.ToUpper(Audience)), bad},
		{quote(Audience + "," + "x"), bad}, {quote("x " + Audience), bad}, {quote(Audience + " "), bad}, {quote(Audience[:len(Audience)-1]), bad},
		{quote(Audience + ".evil.example"), bad}, {quote("*"), bad}, {quote("https:\\/\\/api.example.com"), ""},
	} {
		t.claims("aud", row.v, Claims().Set("aud", row.v), row.want)
	}
}

func (t *table) issuers() {
	for _, v := range []string{
		Issuer + "/", strings.ToUpper(Issuer), "https://IDP.example.com/realms/a", "http://idp.example.com/realms/a",
		"https://idp.example.com:443/realms/a", "https://idp.example.com/realms/b", "https://idp.example.com/realms/a/../a",
		"https://idp.example.com/realms/%61", Issuer + "?", Issuer + "#", " " + Issuer, Issuer + " ", Issuer + "\\n", "",
		"https://evil.example/" + Issuer, "https://idp.example.com@evil.example/realms/a", Issuer + ".evil.example", Issuer[:len(Issuer)-1],
		"https://\\u0456dp.example.com/realms/a", "*",
	} {
		t.claims("iss", fmt.Sprintf("%q", v), Claims().Set("iss", quote(v)), reason.TokenIssuer)
	}
	for _, v := range []string{"null", "1", "true", "{}", "[" + quote(Issuer) + "]"} {
		t.claims("iss", "value "+v, Claims().Set("iss", v), reason.TokenMalformed)
	}
}

func (t *table) subjects() {
	for _, v := range []string{"alice", "auth0|5f7c", "a@b.example", "Ünï cödé", "日本", "a|b|c", "0", "null", "..", "a/b", strings.Repeat("x", 512)} {
		t.claims("sub", fmt.Sprintf("%.20q", v), Claims().Set("sub", quote(v)), "")
	}
	t.claims("sub", "empty", Claims().Set("sub", `""`), reason.TokenMalformed)
	t.claims("sub", "513 bytes", Claims().Set("sub", quote(strings.Repeat("x", 513))), reason.TokenMalformed)
}

func (t *table) lists() {
	for _, row := range []struct {
		name, v string
		want    reason.Reason
	}{
		{"scope", `""`, ""}, {"scope", `"one"`, ""}, {"scope", `["a","b"]`, ""}, {"scope", `[]`, ""},
		{"scope", `"a  b"`, reason.TokenMalformed}, {"scope", `" a"`, reason.TokenMalformed}, {"scope", `"a\tb"`, reason.TokenMalformed},
		{"scope", `["a b"]`, reason.TokenMalformed}, {"scope", `"é"`, reason.TokenMalformed}, {"scope", `"a\"b"`, reason.TokenMalformed},
		{"roles", `"admin"`, ""}, {"roles", `[]`, ""}, {"roles", `["a b"]`, ""}, {"roles", `[" a"]`, reason.TokenMalformed},
		{"amr", `["pwd","otp"]`, ""}, {"amr", `[]`, ""},
	} {
		t.claims("list", row.name+" "+row.v, Claims().Set(row.name, row.v), row.want)
	}
}

// otherTokens are well signed and meant for something else.
func (t *table) otherTokens() {
	for _, name := range []string{"nonce", "at_hash", "c_hash"} {
		for _, v := range []string{`"x"`, "null", "1"} {
			t.claims("other-token", "ID token mark "+name+" "+v, Claims().Add(name, v), reason.TokenType)
		}
	}
	t.claims("other-token", "logout token", Claims().Add("events", `{"http://schemas.openid.net/event/backchannel-logout":{}}`), reason.TokenType)
}

// bound tokens are genuine if one key or certificate is named in the one way
// it can be; whoever takes them has to see the proof.
func (t *table) bound() {
	const (
		sum    = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
		spare  = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4J" // the same bytes to a lax reader
		padded = sum + "="
	)
	for _, v := range []string{`{"jkt":"` + sum + `"}`, `{"x5t#S256":"` + sum + `"}`, ` { "jkt" : "` + sum + `" } `} {
		t.claims("bound", "cnf "+v, Claims().Add("cnf", v), "")
	}
	for _, v := range []string{
		`{"jwk":{}}`, `{"kid":"k"}`, `{"jku":"https://a.example"}`, `{"x5t":"` + sum + `"}`, "{}", "null", `""`, "[]", "1", "true",
		`"` + sum + `"`, `["` + sum + `"]`, `{"jkt":null}`, `{"jkt":""}`, `{"jkt":1}`, `{"jkt":["` + sum + `"]}`, `{"jkt":{}}`,
		`{"jkt":"` + sum[1:] + `"}`, `{"jkt":"A` + sum + `"}`, `{"jkt":"` + spare + `"}`, `{"jkt":"` + padded + `"}`,
		`{"jkt":"` + sum[:42] + `\n"}`, `{"jkt":"` + sum[:41] + `+/"}`, `{"jkt":" ` + sum[1:] + `"}`,
		`{"jkt":"` + sum + `","x5t#S256":"` + sum + `"}`, `{"jkt":"` + sum + `","jwk":{}}`, `{"jkt":"` + sum + `","x":1}`,
		`{"JKT":"` + sum + `"}`, `{"x5t#s256":"` + sum + `"}`, `{"\u006akt":"` + sum + `"}`, `{"jkt ":"` + sum + `"}`,
		`{"x5t#S256":"` + spare + `"}`, `{"x5t#S256":null}`,
	} {
		t.claims("bound", "cnf "+v, Claims().Add("cnf", v), reason.BindingRequired)
	}
}

// shapes are not one compact JWS.
func (t *table) shapes() {
	const bad = reason.TokenMalformed
	e := t.env
	token := e.Token("ES256", Header("ES256"), Claims())
	p := strings.Split(token, ".")
	for name, v := range map[string]string{
		"one segment": p[0], "two segments": p[0] + "." + p[1], "four segments": token + "." + p[2], "five segments": token + "..",
		"leading dot": "." + token, "trailing dot": token + ".", "two dots": "..", "three dots": "...", "one dot": ".",
		"dots inside": p[0] + ".." + p[2], "no header": "." + p[1] + "." + p[2], "opaque": "mF_9.B5f-4.1JqM", "opaque without dots": "gbk_live_0123456789",
		"API key": "AKIAIOSFODNN7EXAMPLE", "1000 dots": strings.Repeat(".", 1000), "8000 dots": strings.Repeat(".", 8000),
		"two tokens": token + "." + token, "token and comma": token + "," + token,
		"JWE": b64([]byte(`{"alg":"dir","enc":"A128GCM"}`)) + "..AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA",
		"JWE by password": b64([]byte(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2s":"AAAA","p2c":2147483647}`)) +
			".AAAA.AAAAAAAAAAAAAAAA.AAAA.AAAAAAAAAAAAAAAAAAAAAA",
		"flattened JSON":  fmt.Sprintf(`{"protected":"%s","payload":"%s","signature":"%s"}`, p[0], p[1], p[2]),
		"general JSON":    fmt.Sprintf(`{"payload":"%s","signatures":[{"protected":"%s","signature":"%s"}]}`, p[1], p[0], p[2]),
		"JSON in base64":  base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"protected":"%s","payload":"%s","signature":"%s"}`, p[0], p[1], p[2]))),
		"polyglot":        fmt.Sprintf(`{"payload":"%s","x":"`, p[1]) + token + `"}`,
		"whole in quotes": quote(token), "percent-encoded dot": strings.ReplaceAll(token, ".", "%2e"),
	} {
		t.add("shape", name, v, bad)
	}
	t.add("shape", "token as payload", e.TokenText("ES256", Header("ES256").String(), token), bad)
	t.add("shape", "token as payload, cty JWT", e.TokenText("ES256", Header("ES256").Add("cty", `"JWT"`).String(), token), bad)
	t.add("shape", "token as a JSON string", e.TokenText("ES256", Header("ES256").String(), quote(token)), bad)
	t.add("shape", "detached payload", p[0]+".."+b64(e.Sign("ES256", p[0]+"."+p[1])), bad)
}

// sizes sit on either side of the bounds.
func (t *table) sizes() {
	e := t.env
	for _, n := range []int{1023, 1024, 1025} {
		h := Header("ES256").Add("x", `""`)
		fill := n - len(h.String())
		want := reason.Reason("")
		if n > 1024 {
			want = reason.TokenMalformed
		}
		t.add("size", fmt.Sprintf("header of %d bytes", n), e.Token("ES256", h.Set("x", quote(strings.Repeat("x", fill))), Claims()), want)
	}
	for _, n := range []int{8190, 8191, 8192, 8193, 8194, 20000} {
		want := reason.Reason("")
		if n > 8192 {
			want = reason.TokenMalformed
		}
		h, c := ofSize(n)
		t.add("size", fmt.Sprintf("token of %d bytes", n), e.Token("ES256", h, c), want)
	}
	t.add("size", "roles in plenty", e.Token("ES256", Header("ES256"), Claims().Set("roles", `["r"`+strings.Repeat(`,"r"`, 1000)+"]")), "")
	t.add("size", "members in plenty", e.Token("ES256", Header("ES256"), many(400)), "")
	t.add("size", "members in plenty, one repeated", e.Token("ES256", Header("ES256"), many(400).Add("m7", "1")), reason.TokenMalformed)
}

// ofSize fills header and claims so that an ES256 token of them is n bytes. Not
// every length is one of base64, so the header takes what the claims cannot.
func ofSize(n int) (h, c Object) {
	enc := base64.RawURLEncoding.EncodedLen
	empty := len(Claims().Add("x", `""`).String())
	for hf := 0; ; hf++ {
		h = Header("ES256").Add("x", quote(strings.Repeat("x", hf)))
		for cf := range n {
			if enc(len(h.String()))+enc(empty+cf)+enc(64)+2 == n {
				return h, Claims().Add("x", quote(strings.Repeat("x", cf)))
			}
		}
	}
}

func many(n int) Object {
	c := Claims()
	for i := range n {
		c = c.Add(fmt.Sprintf("m%d", i), "1")
	}
	return c
}
