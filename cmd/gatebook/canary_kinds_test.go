package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
)

// canary is one thing that must not be found where it does not belong.
type canary struct {
	name  string
	value string
	core  string // what is looked for; "" is the whole value
	class canaryClass
}

type canaryClass uint8

const (
	// shaped secrets are known by their form: nothing keeps them anywhere.
	shaped canaryClass = iota
	// placed secrets are known by where they stand only (a password in a
	// cookie, a code in a query). They are not planted in what is kept, such as
	// a path.
	placed
	// personal data may be in the personal part, in its own fields, and nowhere
	// in clear.
	personal
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// canaries are the planted things. They are made up, or examples from the
// documentation of those who issue such.
func canaries() []canary {
	jwt := func(head, claims, sig string) string { return b64(head) + "." + b64(claims) + "." + sig }
	return []canary{
		{"access token", jwt(`{"alg":"ES256","typ":"at+jwt","kid":"c1"}`, `{"sub":"canary-access-1","exp":1795428000}`, "Zm9yZ2VkLXNpZ25hdHVyZS1vZi1hY2Nlc3M"), b64(`{"sub":"canary-access-1"`)[:28], shaped},
		{"id token", jwt(`{"typ":"JWT","alg":"RS256"}`, `{"nonce":"n-0S6_WzA2Mj","sub":"canary-id-2"}`, "c2lnbmF0dXJlLW9mLWlkLXRva2Vu"), b64(`{"nonce":"n-0S6_WzA2Mj"`)[:28], shaped},
		{"token with odd head", b64("{\"x\":\"\xff\xfe\xfb\",\"alg\":\"none\"}") + ".eyJzdWIiOiJjYW5hcnktbm9uZS0zIn0.", "eyJzdWIiOiJjYW5hcnktbm9uZS0zIn0", shaped},
		{"encrypted token", "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6ji.XFBoMYUZodetZdvTiFvSkQ", "5eym8TW_c8SuK0ltJ3rpYIzO", shaped},
		{"refresh token", "8xLOxBtZp8dKq3W0vYc7uR2mN5jT1hG9sF4aE6iP-Qk", "", shaped},
		{"aws access key id", "AKIAIOSFODNN7CANARY1", "", shaped},
		{"aws session key id", "ASIAIOSFODNN7CANARY2", "", shaped},
		{"aws secret key", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYCANARYKEY1", "", shaped},
		{"aws session token", "FwoGZXIvYXdzEBYaDCanaryTokenX7qP2mVb9Zk1sT4yR8wL0nC3", "", shaped},
		{"github token", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "", shaped},
		{"github fine token", "github_pat_11CANARY00aBcDeFgHiJkL_0123456789", "", shaped},
		{"github oauth token", "gho_93kdF83jdkCanary7710c838347Ae1781x2z", "", shaped},
		{"slack token", "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy", "pdFZKVeTuE8sk7oOcHrzqqgy", shaped},
		{"slack hook", "https://hooks.slack.example/services/T0CANARY1/B0CANARY2/Xq9Wm3Zk7Rt1Yp5Lv8Bn2Jc4", "Xq9Wm3Zk7Rt1Yp5Lv8Bn2Jc4", shaped},
		{"stripe key", "sk_" + "live_4eC39HqLyjWDarjtT1zdp7cn", "4eC39HqLyjWDarjtT1zdp7cn", shaped},
		{"webhook secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", shaped},
		{"google key", "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namCaNaRy", "", shaped},
		{"google token", "ya29.a0AfH6SMBcanary7x9Kd2Lm", "a0AfH6SMBcanary7x9Kd2Lm", shaped},
		{"google client secret", "GOCSPX-canary4x8Rk2Zp6Tn0Vb", "", shaped},
		{"gitlab token", "glpat-canaryDEF123456789_xyz0", "", shaped},
		{"npm token", "npm_canaryA1b2C3d4E5f6G7h8I9j0K1l2M3n4", "", shaped},
		{"pypi token", "pypi-AgEIcHlwaS5vcmcCANARY0123456789abcdef", "", shaped},
		{"digitalocean token", "dop_v1_5d1e0c4b7a9f8e3d2c6b1a0f9e8d7c6b5a4f3e2d1c0b9a8f7e6d5c4b3a2f1e0d", "5d1e0c4b7a9f8e3d2c6b1a0f9e8d7c6b", shaped},
		{"vault token", "hvs.CAESIcanaryJ9x7LmK2pQ", "", shaped},
		{"sendgrid key", "SG.canaryngeVfQFYQlKU0uf.o8TYxwM5yJ8Pt", "", shaped},
		{"anthropic key", "sk-ant-api03-canary0Xy9Zw8Vu7", "", shaped},
		{"openai key", "sk-proj-canaryT3BlbkFJ0123456789", "", shaped},
		{"shop key", "shpat_0a1b2c3d4e5fcanary7f8e9d0c1b2a3f", "", shaped},
		{"azure account key", "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCANARYDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq==", "Eby8vdM02xNOcqFlqUwJPLlmEtl", shaped},
		{"azure access signature", "SharedAccessSignature=sv2024sigCanary0x1", "", shaped},
		{"gatebook key", "gbk_canary1d_s3cr3ts3cr3t", "", shaped},
		{"gatebook API key", "gbk_7Canary0ApiKeyQ2w9Xz4Lm8Rt1Vb6Np3Hs5Jd0Gf1C2Jx1zu", "", shaped},
		{"private key", "-----BEGIN PRIVATE KEY-----MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCANARY", "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49", shaped},
		{"basic credentials", "Basic Y2FuYXJ5LXVzZXI6aHVudGVyMi1jYW5hcnk=", "Y2FuYXJ5LXVzZXI6aHVudGVyMi1jYW5hcnk", shaped},
		{"bearer credentials", "Bearer mF_9.canary5f-4.1JqM", "mF_9.canary5f-4.1JqM", shaped},
		{"user in a url", "https://canaryuser:hunter2canary@db.internal/", "hunter2canary", shaped},
		{"database url", "postgres://svc_canary:pa55canary@db.internal:5432/app", "pa55canary", shaped},
		{"hex session", "9f86d081884c7d659a2feaa0c55acafe", "", shaped},
		{"sha256 signature", "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118cafe"[:64], "", shaped},
		{"random password", "q3Zt8XbL0vK2mN7pR4sW9yCn", "", shaped},
		{"pkce verifier", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjCN", "", shaped},
		{"saml response", "PHNhbWxwOlJlc3BvbnNlIHhtbG5zOnNhbWxwPSJ1cm46b2FzaXM6Q0FOQVJZIj4", "", shaped},
		{"visa card", "4111111111111111", "", shaped},
		{"amex card", "3782-822463-10005", "", shaped},
		{"mastercard spaced", "5555 5555 5555 4444", "", shaped},
		{"iban", "DE89370400440532013000", "", shaped},
		{"iban spaced", "GB82 WEST 1234 5698 7654 32", "", shaped},
		{"social security number", "219-09-9999", "", shaped},

		{"password", "Tr0ub4dor&3-Canary", "", placed},
		{"one-time password", "482917365", "", placed},
		{"oauth code", "SplxlOBeZQQYbYS6WxSbCN", "", placed},
		{"oauth state", "af0ifjsldkj-canary1", "", placed},
		{"client secret", "gX1fBat3bVCanary", "", placed},
		{"short session", "31d4d96e407aadcn", "", placed},
		{"csrf token", "csrf-9f3kCanary2d", "", placed},
		{"device code", "GmRhmhcxhwCanaryE", "", placed},
		{"magic link", "ml-Xk93Canary77", "", placed},
		{"license key", "AB12-CANA-RY34-CD56", "", placed},
		{"recovery code", "kqzv-cnry-mnbx", "", placed},
		{"graphql secret", `mutation{login(pw:"gqlCanary77"){t}}`, "gqlCanary77", placed},

		{"e-mail", "ana.canary+x@mail.example.co.uk", "", personal},
		{"short e-mail", "z.cn@qx.example", "", personal},
		{"name", "Zebulon Quackenbush-Canary", "", personal},
		{"phone", "+49 170 5550142 ext 7", "5550142", personal},
		{"address", "77 Canary Wharf Lane, Flat 9b", "Canary Wharf Lane", personal},
		{"birth date", "born-1984-02-29-canary", "", personal},
		{"passport", "P<UTOCANARY<<ERIKA", "UTOCANARY", personal},
		{"ipv4", "198.51.100.213", "", personal},
		{"ipv6 with hardware address", "2001:db8:77:1:211:22ff:fe33:4455", "", personal},
		{"device id", "IMEI-356938035643809-cn", "", personal},
		{"licence plate", "KA-PA-777-canary", "", personal},
		{"customer number", "cust-0077-canary", "", personal},
		{"place", "48.85837N-2.29448E-cn", "", personal},
		{"user name", "zquackcanary77", "", personal},
		{"diagnosis", "icd10-F32.1-canary", "", personal},
	}
}

// needle is what is looked for.
func (c canary) needle() string {
	if c.core != "" {
		return c.core
	}
	return c.value
}

// folds reports whether the value means the same in other case.
func (c canary) folds() bool {
	switch c.name {
	case "e-mail", "short e-mail", "iban", "iban spaced", "hex session", "sha256 signature", "ipv6 with hardware address", "license key", "recovery code":
		return true
	}
	return c.class == personal
}

// canaryEncoding is one way to write a value. Whoever decodes it gets the value back, or
// the value in another case if fold is set.
type canaryEncoding struct {
	name string
	f    func(string) string
	fold bool
	text bool // only within text: not in a path or query, where it would be encoded again
}

func canaryEncodings() []canaryEncoding {
	each := func(format string) func(string) string {
		return func(s string) string {
			var b strings.Builder
			for i := range len(s) {
				fmt.Fprintf(&b, format, s[i])
			}
			return b.String()
		}
	}
	percent := each("%%%02X")
	return []canaryEncoding{
		{name: "plain", f: func(s string) string { return s }},
		{name: "percent", f: percent},
		{name: "percent in lower case", f: each("%%%02x")},
		{name: "percent of one character", f: func(s string) string { return fmt.Sprintf("%s%%%02X%s", s[:3], s[3], s[4:]) }},
		{name: "double percent", f: func(s string) string { return percent(percent(s)) }},
		{name: "base64", f: func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }},
		{name: "base64url", f: b64},
		{name: "base64 in percent", f: func(s string) string { return url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(s))) }},
		{name: "hex", f: func(s string) string { return hex.EncodeToString([]byte(s)) }},
		{name: "json escapes", f: each(`\u00%02x`), text: true},
		{name: "hex escapes", f: each(`\x%02x`), text: true},
		{name: "upper case", f: strings.ToUpper, fold: true},
		{name: "lower case", f: strings.ToLower, fold: true},
	}
}

// canaryNeedles are the bytes by which a value is recognised in a heap of bytes.
func canaryNeedles(c canary) map[string]string {
	v := c.needle()
	out := map[string]string{"plain": v, "hex": hex.EncodeToString([]byte(v)), "json escapes": canaryEncodings()[9].f(v), "hex escapes": canaryEncodings()[10].f(v)}
	for i, e := range canaryEncodings()[1:5] {
		out[fmt.Sprintf("percent %d", i)] = e.f(v)
	}
	if c.folds() {
		out["upper case"], out["lower case"] = strings.ToUpper(v), strings.ToLower(v)
	}
	// Base64 of anything that holds the value: at each of the three alignments,
	// without the characters that neighbours have a part in.
	for shift := range 3 {
		for alphabet, enc := range map[string]*base64.Encoding{"std": base64.RawStdEncoding, "url": base64.RawURLEncoding} {
			s := enc.EncodeToString(append(make([]byte, shift), v...))
			from := []int{0, 2, 3}[shift]
			to := len(s)
			if (shift+len(v))%3 != 0 {
				to--
			}
			out[fmt.Sprintf("base64 %s %d", alphabet, shift)] = s[from:to]
		}
	}
	for i := range len(v) { // one character encoded
		if i == 3 {
			out["one"] = fmt.Sprintf("%s%%%02X%s", v[:3], v[3], v[4:])
		}
	}
	return out
}
