package jwtattack

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/gatebook/gatebook/internal/reason"
)

// headerMembers are parameters with which a token would change how it is
// processed.
func (t *table) headerMembers() {
	const bad = reason.TokenMalformed
	h := Header("ES256")
	for _, v := range []string{`["exp"]`, `["x-unknown"]`, `["b64"]`, `[]`, `null`, `"exp"`, `["alg"]`, `{}`, `[""]`} {
		t.header("crit", v, h.Add("crit", v), bad)
	}
	t.header("crit", "with the named member there", h.Add("crit", `["x"]`).Add("x", "1"), bad)
	t.header("crit", "b64 false", h.Add("b64", "false").Add("crit", `["b64"]`), bad)
	// RFC 7797: with b64=false the signature covers the raw payload.
	raw := b64([]byte(h.Add("b64", "false").Add("crit", `["b64"]`).String())) + "." + "payload"
	t.add("crit", "unencoded payload", raw+"."+b64(t.env.Sign("ES256", raw)), bad)
	for name, values := range map[string][]string{
		"b64":  {"true", "false", "null"},
		"zip":  {`"DEF"`, `""`, "null"},
		"enc":  {`"A128GCM"`},
		"p2c":  {"1000000000"},
		"epk":  {`{"kty":"EC"}`},
		"jku":  {`"https://evil.example/jwks"`, `"http://169.254.169.254/"`, `"file:///etc/passwd"`, "null", `""`},
		"x5u":  {`"https://evil.example/cert"`, "null"},
		"x5c":  {`["MIIB"]`, "[]", "null"},
		"jwk":  {"{}", "null", `"x"`},
		"iv":   {`"AAAA"`},
		"tag":  {`"AAAA"`},
		"p2s":  {`"AAAA"`},
		"ALG":  {`"none"`},
		"Kid":  {`"es256"`},
		"TYP":  {`"JWT"`},
		"cRiT": {`["x"]`},
	} {
		for _, v := range values {
			t.header("parameter", name+" "+v, h.Add(name, v), bad)
		}
	}
	t.header("parameter", "unknown one is ignored", h.Add("x-trace", `"1"`), "")
	t.header("parameter", "x5t is ignored", h.Add("x5t", `"AAAA"`).Add("x5t#S256", `"AAAA"`), "")
	for _, v := range []string{"null", "1", "true", "[]", "{}", `["ES256"]`} {
		t.header("parameter", "alg "+v, h.Set("alg", v), bad)
	}
	t.header("parameter", "alg missing", h.Del("alg"), bad)
	for _, v := range []string{"es256", "ES256 ", " ES256", "ES256\\u0000", "ES256\\n", "RS256,ES256"} {
		want := reason.TokenAlgorithm
		if strings.Contains(v, "u0000") {
			want = bad
		}
		t.header("confusion", fmt.Sprintf("alg spelt %q", v), h.Set("alg", quote(v)), want)
	}
	t.header("parameter", "alg value escaped", h.Set("alg", `"\u0045S256"`), "")
	t.header("parameter", "alg name escaped", h.Rename("alg", `\u0061lg`), bad)
	t.header("parameter", "kid name escaped", h.Rename("kid", `k\u0069d`), bad)
}

// ownKey carries the attacker's key, or says where to get it.
func (t *table) ownKey() {
	jwk := JWK(t.env.attacker.Public())
	for _, kid := range []string{"es256", "attacker", ""} {
		jwk["kid"], jwk["alg"] = kid, "ES256"
		text, err := json.Marshal(jwk)
		if err != nil {
			panic(err) // strings marshal
		}
		base := Header("ES256").Set("kid", quote(kid))
		for _, m := range []Member{
			{"jwk", string(text)},
			{"jku", `"https://idp.example.com.evil.example/jwks"`},
			{"jku", `"data:application/json,{}"`},
			{"x5u", `"https://evil.example/chain.pem"`},
		} {
			t.add("own-key", fmt.Sprintf("%s with kid %q", m.Name+" "+clip(m.Value), kid), t.bySomeone(base.Add(m.Name, m.Value)), reason.TokenMalformed)
		}
	}
	t.add("own-key", "plain, under the issuer's kid", t.bySomeone(Header("ES256")), reason.TokenSignature)
	t.add("own-key", "plain, under its own kid", t.bySomeone(Header("ES256").Set("kid", `"attacker"`)), reason.TokenKeyUnknown)
}

// bySomeone signs genuine claims with the attacker's key.
func (t *table) bySomeone(h Object) string {
	signed := b64([]byte(h.String())) + "." + b64([]byte(Claims().String()))
	sig, err := signRaw(t.env.attacker, digest(Hash("ES256"), signed))
	if err != nil {
		panic(err) // signing with a generated key does not fail
	}
	return signed + "." + b64(sig)
}

// clip keeps row names short and free of keys.
func clip(s string) string {
	if strings.HasPrefix(s, "{") {
		return "{...}"
	}
	return s
}

func (t *table) keyIDs() {
	h := Header("ES256")
	for _, kid := range []string{
		"../../../../dev/null", "/dev/null", "/proc/sys/kernel/randomize_va_space", "file:///etc/passwd",
		"C:\\\\Windows\\\\win.ini", "es256/../es256", "es256\\u002f..", "' OR '1'='1", "x' UNION SELECT 'secret';--",
		"es256; sleep 10", "es256|id", "$(id)", "`id`", "%00", "es256%00", "ES256", "Es256", "es256 ", " es256",
		"{{7*7}}", "${jndi:ldap://evil}", "*", "es25", "es2566", "0", "-1", "null", "https://evil.example/key",
		strings.Repeat("k", 256),
	} {
		t.header("kid", fmt.Sprintf("%.40q", kid), h.Set("kid", quote(kid)), reason.TokenKeyUnknown)
	}
	for _, kid := range []string{
		"", "es256\\u0000", "\\u0000", "es256\\n", "\\r\\nX: y", "es256\\u200b", "\\u0435s256", "é", "es256\\ud83d\\ude00", "\\ud800", "\\u007f",
		strings.Repeat("k", 257),
	} {
		t.header("kid", fmt.Sprintf("%.40q of %d", kid, len(kid)), h.Set("kid", quote(kid)), reason.TokenMalformed)
	}
	t.header("kid", "10 kB", h.Set("kid", quote(strings.Repeat("k", 10<<10))), reason.TokenMalformed)
	for _, v := range []string{"null", "1", "0", "true", `["es256"]`, `{"es256":1}`, "[]", "1e3"} {
		t.header("kid", "value "+v, h.Set("kid", v), reason.TokenMalformed)
	}
	t.header("kid", "missing", h.Del("kid"), reason.TokenMalformed)
	t.header("kid", "value escaped", h.Set("kid", `"es\u0032\u00356"`), "")
}

func (t *table) types() {
	h := Header("ES256")
	for _, v := range []string{"at+jwt", "AT+JWT", "At+Jwt", "application/at+jwt", "APPLICATION/AT+JWT"} {
		t.header("typ", fmt.Sprintf("%q", v), h.Set("typ", quote(v)), "")
	}
	for _, v := range []string{
		"JWT", "jwt", "application/jwt", "dpop+jwt", "logout+jwt", "secevent+jwt", "introspection-response+jwt",
		"token-introspection+jwt", "oauth-authz-req+jwt", "kb+jwt", "JOSE", "JOSE+JSON", "", "at", "at+jwt ", " at+jwt",
		"at+jwt; charset=utf-8", "at+jwt,JWT", "application/application/at+jwt", "text/at+jwt", "at+jwt\\n", "x-at+jwt", "\\u0430t+jwt",
	} {
		t.header("typ", fmt.Sprintf("%q", v), h.Set("typ", quote(v)), reason.TokenType)
	}
	t.header("typ", "missing", h.Del("typ"), reason.TokenType)
	for _, v := range []string{"null", "1", "[]", `["at+jwt"]`, "{}"} {
		t.header("typ", "value "+v, h.Set("typ", v), reason.TokenMalformed)
	}
	for _, v := range []string{`"JWT"`, `"jwt"`, `"application/jwt"`, "null", "1"} {
		t.header("typ", "cty "+v, h.Add("cty", v), reason.TokenType)
	}
	t.header("typ", "cty of something else", h.Add("cty", `"json"`), "")
}
