package redact

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// The secrets here are made up or come from the documentation of those who
// issue such.
const plantedJWT = "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJhbmEiLCJleHAiOjE3OTU0Mjgw-_0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"

var planted = map[string]string{
	"jwt":          plantedJWT,
	"jwt unsigned": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbmEifQ.",
	"jwt spaced":   base64.RawURLEncoding.EncodeToString([]byte(`{ "alg" : "ES256" }`)) + ".eyJzdWIiOiJhbmEifQ.c2ln",
	"jwt cut":      "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdW",
	"jwe":          "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6ji.XFBoMYUZodetZdvTiFvSkQ",
	"aws":          "AKIAIOSFODNN7EXAMPLE",
	"aws session":  "ASIAIOSFODNN7EXAMPLE",
	"aws secret":   "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
	"github":       "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
	"github pat":   "github_pat_11ABCDEFG0aBcDeFgHiJkL_0123456789",
	"slack":        "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcHrzqqgy",
	"stripe":       "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc",
	"google":       "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
	"gitlab":       "glpat-abcDEF123456789_xyz0",
	"gatebook":     "gbk_k3y1d_s3cr3ts3cr3t",
	"pem":          "-----BEGIN PRIVATE KEY-----MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg",
	"email":        "ana.mueller+x@mail.example.co.uk",
	"card":         "4111111111111111",
	"card spaced":  "5555 5555 5555 4444",
	"card dashed":  "3782-822463-10005",
	"iban":         "DE89370400440532013000",
	"iban spaced":  "GB82 WEST 1234 5698 7654 32",
	"ssn":          "219-09-9999",
	"hex":          "9f86d081884c7d659a2feaa0c55ad015",
	"sha256":       "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08",
	"base64url":    "dGhpcyBpcyBhIHNlY3JldCB0b2tlbi1fX3g",
	"random":       "q3Zt8XbL0vK2mN7pR4sW9yD1",
	"bearer":       "Bearer mF_9.B5f-4.1JqM",
	"bearer2":      "bearer abcdefghijkl",
	"basic":        "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
	"userinfo":     "https://ana:hunter2@db.internal/",
	"refresh":      "gbrt_" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
	"comma":        "amqp://ana:hun,ter2@broker/",
	"brackets":     "https://ana:h(un)ter2@db/",
	"semicolon":    "https://ana:hunter;2@db/",
}

var encodings = map[string]func(string) string{
	"plain":             func(s string) string { return s },
	"percent":           url.PathEscape,
	"query":             url.QueryEscape,
	"all":               percentAll,
	"lower":             func(s string) string { return strings.ToLower(percentAll(s)) },
	"twice":             func(s string) string { return percentAll(percentAll(s)) },
	"thrice":            func(s string) string { return percentAll(percentAll(percentAll(s))) },
	"one":               func(s string) string { return fmt.Sprintf("%%%02x", s[0]) + s[1:] },
	"base64":            func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"base64url":         func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) },
	"base64 in percent": func(s string) string { return percentAll(base64.StdEncoding.EncodeToString([]byte(s))) },
	"base64 twice": func(s string) string {
		return base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte(s))))
	},
	"percent in base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(percentAll(s))) },
	"hex":               func(s string) string { return hex.EncodeToString([]byte(s)) },
	"HEX":               func(s string) string { return strings.ToUpper(hex.EncodeToString([]byte(s))) },
	"json":              func(s string) string { return escapeAll(`\u%04x`, s) },
	"JSON":              func(s string) string { return escapeAll(`\u%04X`, s) },
	"escapes":           func(s string) string { return escapeAll(`\x%02x`, s) },
	"json of one":       func(s string) string { return fmt.Sprintf(`\u%04x`, s[0]) + s[1:] },
	"json in percent":   func(s string) string { return percentAll(escapeAll(`\u%04x`, s)) },
	"last":              func(s string) string { return s[:len(s)-1] + fmt.Sprintf("%%%02X", s[len(s)-1]) },
}

func percentAll(s string) string { return escapeAll("%%%02X", s) }

func escapeAll(format, s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, format, s[i])
	}
	return b.String()
}

// positions plant a secret into one place of a request.
var positions = map[string]func(r *record.Record, s string){
	"path segment":       func(r *record.Record, s string) { r.Raw.Path = "/v1/orders/" + s },
	"path inside":        func(r *record.Record, s string) { r.Raw.Path = "/v1/" + s + "/orders" },
	"path after text":    func(r *record.Record, s string) { r.Raw.Path = "/v1/orders/id=" + s + ",x" },
	"behind a semicolon": func(r *record.Record, s string) { r.Raw.Query = "q=1;token=" + s },
	"matrix parameter":   func(r *record.Record, s string) { r.Raw.Path = "/v1/orders;t=" + s + "/x" },
	"query value":        func(r *record.Record, s string) { r.Raw.Query = "q=" + s },
	"query value inside": func(r *record.Record, s string) { r.Raw.Query = "page=1&q=" + s + "&size=2" },
	"query value text":   func(r *record.Record, s string) { r.Raw.Query = "q=see," + s + ",x" },
	"query key":          func(r *record.Record, s string) { r.Raw.Query = s + "=1" },
	"other query key":    func(r *record.Record, s string) { r.Raw.Query = "access_token=" + s },
	"no query key":       func(r *record.Record, s string) { r.Raw.Query = s },
	"referer path":       func(r *record.Record, s string) { r.Raw.Referer = "https://app.example.com/x/" + s },
	"referer query":      func(r *record.Record, s string) { r.Raw.Referer = "https://app.example.com/x?t=" + s },
	"referer fragment":   func(r *record.Record, s string) { r.Raw.Referer = "https://app.example.com/x#" + s },
	"referer host":       func(r *record.Record, s string) { r.Raw.Referer = "https://" + s + "/" },
	"user agent":         func(r *record.Record, s string) { r.Raw.UA = "client/1.0 (" + s + ")" },
	"header":             func(r *record.Record, s string) { r.Raw.Headers = []record.Pair{{Name: "x-tag", Value: "v " + s}} },
	"other header":       func(r *record.Record, s string) { r.Raw.Headers = []record.Pair{{Name: "cookie", Value: s}} },
	"claim":              func(r *record.Record, s string) { r.Raw.Claims = []record.Pair{{Name: "dept", Value: s}} },
	"unmatched path": func(r *record.Record, s string) {
		r.Raw.Path, r.Raw.Unmatched, r.Route = "/v1/"+s+"/x", true, record.None
	},
}

// A secret is never kept, wherever it stands and however it is encoded.
func TestPlantedSecrets(t *testing.T) {
	u := mustNew(t, testConfig())
	for kind, secret := range planted {
		for enc, encode := range encodings {
			for where, plant := range positions {
				hidden := encode(secret)
				r := matched()
				plant(r, hidden)
				u.Apply(r)
				if out := decodedOutput(r); strings.Contains(out, secret) || strings.Contains(out, hidden) {
					t.Errorf("%s, %s, %s: kept in\n%.1500s", kind, where, enc, out[strings.IndexByte(out, '\n'):])
				}
				checkIdempotent(t, u, r)
			}
		}
	}
}

// decodedOutput is all that is kept of a record, with percent-encoding undone
// as often as it goes.
func decodedOutput(r *record.Record) string {
	s := output(r)
	for range 4 {
		next, changed := unpercent(s)
		if !changed {
			break
		}
		s = next
	}
	return s
}

// Each secret is found by the detector that knows it.
func TestDetectorsNameWhatTheyFind(t *testing.T) {
	want := map[string]finding{
		"jwt": foundJWT, "jwt unsigned": foundJWT, "jwt spaced": foundJWT, "jwt cut": foundJWT, "jwe": foundJWT,
		"aws": foundKey, "aws session": foundKey, "github": foundKey, "github pat": foundKey, "slack": foundKey, "stripe": foundKey,
		"google": foundKey, "gitlab": foundKey, "gatebook": foundKey, "pem": foundPEM, "email": foundEmail,
		"card": foundCard, "card spaced": foundCard, "card dashed": foundCard, "iban": foundIBAN, "iban spaced": foundIBAN, "ssn": foundNationalID,
		"hex": foundEntropy, "sha256": foundEntropy, "base64url": foundEntropy, "random": foundEntropy,
		"aws secret": foundEntropy, "bearer": foundBearer, "bearer2": foundBearer, "basic": foundBearer, "userinfo": foundUserinfo,
		"refresh": foundKey, "comma": foundUserinfo, "brackets": foundUserinfo, "semicolon": foundUserinfo,
	}
	for name, secret := range planted {
		if got := detect(secret, 0); got != want[name] {
			t.Errorf("%s: found %q, want %q", name, got.mark(), want[name].mark())
		}
	}
}

// TestUserinfoInPieces: characters that end a host may stand in a password as
// they are. No part of it is kept.
func TestUserinfoInPieces(t *testing.T) {
	u := mustNew(t, testConfig())
	for _, url := range []string{
		"https://ana:hun/ter2@db/", "https://ana:hun?ter2@db/", "https://ana:hun#ter2@db/", "https://ana:hun\\ter2@db/", "https://ana:hun@ter2@db/",
		"https://ana:hun;ter2@db/", "https://ana:hun,ter2@db/x", "https://ana:(hun)ter2@db", "https://ana%3Ahun/ter2@db/", "https://:hunter2@db/",
	} {
		for where, plant := range positions {
			r := matched()
			plant(r, url)
			u.Apply(r)
			if out := decodedOutput(r); strings.Contains(out, "hun") || strings.Contains(out, "ter2") {
				t.Errorf("%s, %s: kept in\n%.1500s", url, where, out[strings.IndexByte(out, '\n'):])
			}
			checkIdempotent(t, u, r)
		}
		r := matched()
		r.Raw.Referer = url
		u.Apply(r)
		if r.Personal.Referer != "" && strings.Contains(r.Personal.Referer, "hun") {
			t.Errorf("referer %s: kept as %q", url, r.Personal.Referer)
		}
	}
}

func TestDetectorsLeaveTheRestAlone(t *testing.T) {
	for _, s := range []string{
		"", "hello", "orders.read", "/v1/orders/{id}", "GET /v1/customers/{id}/addresses", "2026-11-23T10:00:00Z",
		"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1",
		"okhttp/4.12.0", "python-requests/2.32.3", "kube-probe/1.30", "experiment-service.internal", "example.com",
		"5e1f9b4e-4b1c-4f0e-9d4c-0c8f6f5d4b3a", "order-5e1f9b4e-4b1c-4f0e-9d4c-0c8f6f5d4b3a", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
		"507f1f77bcf86cd799439011", "internationalization-and-localization-guide-2024", "getCustomerOrderHistoryByAccountNumber",
		"task-management-system-overview-page", "ASIA-PACIFIC-REGION-REPORTS", "pypi-package-index-mirror", "react@18.2.10", "@ana", "a@b", "12:30@noon"[:5],
		"1795428000123456", "4111111111111112", "1234567890123456", "2026-11-23 10-00-00", "+49 30 1234567", "DE89370400440532013001", "219-99-99999", "000-12-3456",
		"Basic information", "bearer", "basically-nothing-here", "clerks-may-read-their-own-orders", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768",
		"t13d1516h2_8daaf6152771", "SGVsbG8sIHdvcmxkIQ==", "48656c6c6f2c20776f726c6421", `C:\\Users\\u0041na`, `\u00e4rger`, "/api/v2/Customers/12345/Invoices/2024/07/a", "Zm9vYmFyYmF6cXV4",
		"https://example.com/@ana/post", "https://example.com:8080/@ana", "http://[2001:db8::1]:80/@ana", "(see //x) at 12:30 @home", "https://example.com/a:b/@x", "100%", "50%25", "iPhone14Pro-Max-256GB-Blue-v2", "eyJ.x", "[masked:jwt]", "[masked:email]",
		"de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7", "application/vnd.company.order.v2+json",
	} {
		if f := detect(s, 0); f != nothing {
			t.Errorf("%q: found %s", s, f.mark())
		}
	}
	for _, m := range marks {
		if f := detect(m, 0); f != nothing {
			t.Errorf("the mark %q trips %s", m, f.mark())
		}
	}
}

func TestDetectIsLinear(t *testing.T) {
	for _, unit := range []string{"eyJ", "a@", "@", "%41", "%25", "4111 ", "de89", "bearer ", "basic ", "AKIA", "a:", "//", "5e1f9b4e-", "9", "-", "xoxb-", ".", "eyJhbGciOi.", "4a4a", "SGVs", "SGVsSGVsSGVs ", `\u0041`, `\x41`, `\\`, "a/B3", "://", "://a:b/", "//a,"} {
		s := strings.Repeat(unit, maxScanned/len(unit))
		if n := testing.AllocsPerRun(1, func() { detect(s, 0) }); n > 100 {
			t.Errorf("%q: %v allocations", unit, n)
		}
		// In linear time 16 KiB take a fraction of a millisecond, in
		// quadratic time some hundred; the bound leaves room for a busy
		// machine.
		best := time.Hour
		for range 3 {
			start := time.Now()
			detect(s, 0)
			best = min(best, time.Since(start))
		}
		if best > 30*time.Millisecond {
			t.Errorf("%q repeated takes %v", unit, best)
		}
	}
	if detect(strings.Repeat("a", maxScanned+1), 0) != foundLong {
		t.Error("a string beyond the limit was scanned")
	}
}

func FuzzApply(f *testing.F) {
	names := []string{"jwt", "aws", "github", "slack", "google", "gitlab", "gatebook", "jwe", "stripe"}
	f.Add("/v1/orders/17", "page=2&q=x", "curl/8", "https://a.example/x", "tag", "sub", uint8(0), uint8(1), false)
	f.Add("/a;b/%41", "q=%41%2541", "x@y.zz", "http://u:p@h/?q", "\xff\u2028", "", uint8(3), uint8(7), true)
	f.Fuzz(func(t *testing.T, path, query, ua, referer, tag, sub string, which, where uint8, twice bool) {
		u := mustNew(t, testConfig())
		secret := planted[names[int(which)%len(names)]]
		hidden := secret
		if twice {
			hidden = percentAll(percentAll(secret))
		}
		in := []*string{&path, &query, &ua, &referer, &tag, &sub}
		p := in[int(where)%len(in)]
		cut := len(*p) / 2
		*p = (*p)[:cut] + " " + hidden + (*p)[cut:]
		r := matched()
		r.Raw.Path, r.Raw.Query, r.Raw.UA, r.Raw.Referer = path, query, ua, referer
		r.Raw.Headers = []record.Pair{{Name: "x-tag", Value: tag}, {Name: tag, Value: ua}}
		r.Raw.Claims = []record.Pair{{Name: "dept", Value: tag}}
		r.Personal.Sub, r.Personal.CertSubject, r.Personal.Claimed = sub, tag, tag
		r.Authn.Roles, r.Error.Phase, r.Host = []string{tag, sub}, tag, referer
		r.Raw.Unmatched = len(path)%3 == 0
		u.Apply(r)
		if out := decodedOutput(r); strings.Contains(out, secret) {
			t.Fatalf("%q is kept in\n%s", secret, out)
		}
		checkIdempotent(t, u, r)
	})
}

func FuzzDetect(f *testing.F) {
	for _, s := range planted {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, but := range []exempt{0, butEmail, butEntropy, butNumbers, butEmail | butEntropy | butNumbers} {
			detect(s, but)
		}
	})
}

func BenchmarkDetect(b *testing.B) {
	s := matched().Raw.UA
	b.SetBytes(int64(len(s)))
	b.ReportAllocs()
	for b.Loop() {
		detect(s, 0)
	}
}
