package record

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

var kinds = []Kind{
	KindRequest, KindHandshake, KindMalformed, KindSession, KindToken, KindAdmin,
	KindAccess, KindConfig, KindPolicy, KindKey, KindErasure, KindRetention,
	KindHold, KindDelivery, KindGap, KindClock, KindStart, KindStop,
	KindUncleanStop, KindHeartbeat, KindInterrupted, KindAlert,
}

var outcomes = []Outcome{Success, Failure, Unknown}

// hostile are strings that break careless encoders.
var hostile = []string{
	"", "none", "_other", `"`, `\`, `\"`, `\u0000`, "\x00", "\n", "\r\n", "\t", "\x1b[2J", "\x7f",
	"<script>&amp;</script>", "\u0080", "\u009b", "\u2028", "\u2029", "\u202e", "\u2066", "\ufeff",
	"\ufffd", "\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\xffb", "é", "日本語", "😀", "\U000e0041",
	`{"v":1}`, `],"x":[`, "/v1/orders/{id}", "0", "null", "true", "\xf0\x9f\x98", "null,\"id\":",
}

func randomString(rng *rand.Rand) string {
	switch rng.IntN(4) {
	case 0:
		return hostile[rng.IntN(len(hostile))]
	case 1:
		b := make([]byte, rng.IntN(20))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return string(b)
	case 2:
		return hostile[rng.IntN(len(hostile))] + hostile[rng.IntN(len(hostile))]
	}
	return fmt.Sprintf("name-%d", rng.IntN(50))
}

func randomInt(rng *rand.Rand) int64 {
	switch rng.IntN(5) {
	case 0:
		return 0
	case 1:
		return []int64{1, -1, math.MaxInt64, math.MinInt64, math.MinInt64 + 1}[rng.IntN(5)]
	case 2:
		return rng.Int64() - rng.Int64()
	}
	return rng.Int64N(1000)
}

// randomRecord fills every field of a record by reflection, so a field that is
// added is exercised at once. About density of the fields are set.
func randomRecord(rng *rand.Rand) *Record {
	r := new(Record)
	density := rng.Float64()
	fillRandom(rng, reflect.ValueOf(r).Elem(), density)
	r.Kind = kinds[rng.IntN(len(kinds))]
	r.Outcome = outcomes[rng.IntN(len(outcomes))]
	r.Time = rng.Int64N(maxTime + 1)
	if rng.IntN(10) == 0 {
		r.Time = []int64{0, maxTime, 951782400000000, 951868799999999, 4107542400000000}[rng.IntN(5)]
	}
	for i := range r.ID {
		r.ID[i] = byte(rng.Uint32())
	}
	r.Raw = Raw{}
	return r
}

func fillRandom(rng *rand.Rand, v reflect.Value, density float64) {
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			fillRandom(rng, f, density)
			continue
		}
		if rng.Float64() > density {
			continue
		}
		switch p := f.Addr().Interface().(type) {
		case *string:
			*p = randomString(rng)
		case *int:
			*p = int(randomInt(rng))
		case *int64:
			*p = randomInt(rng)
		case *bool:
			*p = rng.IntN(2) == 0
		case *[]string:
			for range rng.IntN(5) {
				*p = append(*p, randomString(rng))
			}
		case *[]Pair:
			for range rng.IntN(6) {
				*p = append(*p, Pair{clean(randomString(rng)), randomString(rng)})
			}
			slices.SortStableFunc(*p, func(a, b Pair) int { return strings.Compare(a.Name, b.Name) })
		case *Kind, *Outcome, *ID, **Kept: // set by the caller
		default:
			panic(fmt.Sprintf("no random value for %T", p))
		}
	}
}

// clean replaces each invalid byte by U+FFFD: what a string is after a round
// trip.
func clean(s string) string {
	var b strings.Builder
	for _, r := range s { // ranging gives U+FFFD for each invalid byte
		b.WriteRune(r)
	}
	return b.String()
}

// normal gives the record that decoding gives for r: strings clean, empty
// lists nil, mandatory facts explicit.
func normal(r *Record) *Record {
	n := *r
	normalValue(reflect.ValueOf(&n).Elem())
	for _, p := range []*string{&n.Subject, &n.Op, &n.Client.Prefix} {
		if *p == "" {
			*p = None
		}
	}
	return &n
}

func normalValue(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			normalValue(v.Field(i))
		}
	case reflect.Slice:
		if v.Len() == 0 {
			v.SetZero()
			return
		}
		fresh := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(fresh, v)
		v.Set(fresh)
		for i := range v.Len() {
			normalValue(v.Index(i))
		}
	case reflect.String:
		if s := v.String(); !utf8.ValidString(s) {
			v.SetString(clean(s))
		}
	}
}

// traffic makes records as a gate with 10,000 subjects sees them.
type traffic struct {
	rng     *rand.Rand
	zipf    *rand.Zipf
	ids     *IDMaker
	now     int64
	subject []person
}

type person struct {
	name, prefix, ja4, client string
	roles                     []string
	issued                    int64
}

const b64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

func newTraffic(seed uint64, subjects int, ids *IDMaker) *traffic {
	t := &traffic{rng: newRand(seed), ids: ids}
	t.now = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC).UnixMicro()
	t.zipf = rand.NewZipf(t.rng, 1.1, 8, uint64(subjects-1))
	ja4 := make([]string, 40)
	for i := range ja4 {
		ja4[i] = fmt.Sprintf("t13d1516h2_%012x_%012x", t.rng.Uint64()>>16, t.rng.Uint64()>>16)
	}
	for range subjects {
		name := make([]byte, 22)
		for i := range name {
			name[i] = b64[t.rng.IntN(64)]
		}
		name[21] = "AQgw"[t.rng.IntN(4)]
		t.subject = append(t.subject, person{
			name:   string(name),
			prefix: fmt.Sprintf("%d.%d.%d.0/24", t.rng.IntN(223)+1, t.rng.IntN(256), t.rng.IntN(256)),
			ja4:    ja4[t.rng.IntN(len(ja4))],
			client: []string{"web", "mobile", "batch"}[t.rng.IntN(3)],
			roles:  [][]string{{"clerk"}, {"clerk", "auditor"}, {"admin"}}[t.rng.IntN(3)],
			issued: t.now/usPerSecond - t.rng.Int64N(3000),
		})
	}
	return t
}

// mix is the work on the routes of a typical API.
var mix = []struct {
	route, method, template string
	size, us                float64
	weight                  int
}{
	{"orders.read", "GET", "/v1/orders/{id}", 900, 4000, 50},
	{"orders.list", "GET", "/v1/orders", 12000, 15000, 20},
	{"orders.write", "POST", "/v1/orders", 300, 12000, 10},
	{"customers.read", "GET", "/v1/customers/{id}", 700, 3000, 15},
	{"reports", "GET", "/v1/reports/{year}/{month}", 90000, 120000, 5},
}

func (t *traffic) next(r *Record) {
	rng := t.rng
	p := &t.subject[t.zipf.Uint64()]
	w := rng.IntN(100)
	k := 0
	for ; w >= mix[k].weight; k++ {
		w -= mix[k].weight
	}
	m := mix[k]
	t.now += int64(rng.ExpFloat64() * 500)
	dur := int64(m.us*math.Exp(rng.NormFloat64()*0.5)) + 200
	start := t.now - dur
	*r = Record{
		ID: t.ids.Next(start), Time: start, Kind: KindRequest, Outcome: Success,
		Node: "gate-1", Snap: "0d4e1c9ab2f35a7788aa12fe6cd01b34", Route: m.route, Op: m.method + " " + m.template,
		Method: m.method, Host: "api.example.com", Proto: "HTTP/2", Template: m.template,
		Status: 200, UpstreamStatus: 200, BytesOut: int64(m.size * math.Exp(rng.NormFloat64()*0.3)), DurUS: dur,
		Subject: p.name,
		Authn: Authn{Method: "jwt", Issuer: "corp", Client: p.client, Roles: p.roles, Outcome: "ok",
			AgeS: start/usPerSecond - p.issued, TTLS: 3600 - start/usPerSecond + p.issued, KID: "2026-11-k1", Alg: "ES256"},
		Authz:    Authz{Decision: "allow", Policies: []string{"allow-" + m.route}, Set: "9c1185a5c5e9fc54612808977ee8f548"},
		Limit:    Limit{Rule: "per_subject", Outcome: "ok", Remaining: 199, Mode: "local"},
		TLS:      TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2", JA4: p.ja4},
		Client:   Client{Prefix: p.prefix},
		Upstream: Upstream{Name: "orders", Target: fmt.Sprintf("10.0.0.%d:8080", 5+rng.IntN(2)), Attempts: 1, Reused: true, TTFBUS: dur - 150 - rng.Int64N(200)},
		San:      San{Set: "77c05cd4b2a5d0b1f15f1b2a30a4dd11"},
	}
	if m.method == "POST" {
		r.BytesIn = int64(400 * math.Exp(rng.NormFloat64()*0.3))
		r.Status, r.UpstreamStatus = 201, 201
	}
	switch n := rng.IntN(100); {
	case n < 2:
		r.Outcome, r.Status, r.UpstreamStatus = Failure, 403, 0
		r.Authz.Decision, r.Authz.Policies = "deny", nil
		r.Upstream = Upstream{}
		r.Error = Error{Origin: "policy", Reason: "denied_by_default"}
	case n < 4:
		r.Status, r.UpstreamStatus = 404, 404
	case n == 4:
		r.Outcome, r.Status, r.UpstreamStatus = Failure, 429, 0
		r.Limit.Outcome, r.Limit.Remaining, r.Limit.RetryS = "limited", 0, 1
		r.Upstream = Upstream{}
		r.Error = Error{Origin: "limit", Reason: "rate_limited"}
	}
}
