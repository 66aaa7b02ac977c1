package authn

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

func allAlgorithms() (list []*algorithm) {
	for i := range algorithms {
		list = append(list, &algorithms[i])
	}
	return list
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// rsaJWK makes the JWK of an RSA key that nobody holds.
func rsaJWK(bits int, e int64, more string) string {
	n := new(big.Int).SetBit(new(big.Int), bits-1, 1)
	n.Add(n, big.NewInt(12345)) // odd
	return fmt.Sprintf(`{"kty":"RSA","n":%q,"e":%q%s}`, encode(n.Bytes()), encode(big.NewInt(e).Bytes()), more)
}

func ecJWK(t testing.TB, c elliptic.Curve, more string) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := jwtattack.JWK(k.Public())
	return fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q%s}`, m["crv"], m["x"], m["y"], more)
}

func edJWK(t testing.TB) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return `{"kty":"OKP","crv":"Ed25519","kid":"a","x":"` + encode(pub) + `"}`
}

func TestKeySet(t *testing.T) {
	ec := ecJWK(t, elliptic.P256(), `,"kid":"a"`)
	ec2 := ecJWK(t, elliptic.P256(), `,"kid":"a"`)
	with := func(more string) string { return ecJWK(t, elliptic.P256(), `,"kid":"a"`+more) }
	for _, row := range []struct {
		name string
		keys string // elements
		kids string // usable ones
		algs string // of the first
	}{
		{"EC", ec, "a", "ES256"},
		{"EC with alg", with(`,"alg":"ES256"`), "a", "ES256"},
		{"EC with the alg of another curve", with(`,"alg":"ES384"`), "", ""},
		{"EC with the alg of another type", with(`,"alg":"RS256"`), "", ""},
		{"alg of encryption", with(`,"alg":"ECDH-ES"`), "", ""},
		{"alg HMAC", with(`,"alg":"HS256"`), "", ""},
		{"alg none", with(`,"alg":"none"`), "", ""},
		{"alg in other case", with(`,"alg":"es256"`), "", ""},
		{"alg null", with(`,"alg":null`), "", ""},
		{"P-384", ecJWK(t, elliptic.P384(), `,"kid":"a"`), "a", "ES384"},
		{"P-521", ecJWK(t, elliptic.P521(), `,"kid":"a"`), "a", "ES512"},
		{"P-224", ecJWK(t, elliptic.P224(), `,"kid":"a"`), "", ""},
		{"curve that is not the point's", strings.Replace(ec, "P-256", "P-384", 1), "", ""},
		{"point off the curve", `{"kty":"EC","crv":"P-256","kid":"a","x":"` + encode(make([]byte, 32)) + `","y":"` + encode(make([]byte, 32)) + `"}`, "", ""},
		{"Ed25519", edJWK(t), "a", "EdDSA"},
		{"Ed25519 of low order", `{"kty":"OKP","crv":"Ed25519","kid":"a","x":"` + encode(make([]byte, 32)) + `"}`, "", ""},
		{"Ed25519 short", `{"kty":"OKP","crv":"Ed25519","kid":"a","x":"` + encode(make([]byte, 31)) + `"}`, "", ""},
		{"X25519", `{"kty":"OKP","crv":"X25519","kid":"a","x":"` + encode(make([]byte, 32)) + `"}`, "", ""},
		{"Ed448", `{"kty":"OKP","crv":"Ed448","kid":"a","x":"` + encode(make([]byte, 57)) + `"}`, "", ""},
		{"RSA without alg", rsaJWK(2048, 65537, `,"kid":"a"`), "a", "RS256 RS384 RS512 PS256 PS384 PS512"},
		{"RSA pinned", rsaJWK(2048, 65537, `,"kid":"a","alg":"PS384"`), "a", "PS384"},
		{"RSA 8192", rsaJWK(8192, 65537, `,"kid":"a"`), "a", "RS256 RS384 RS512 PS256 PS384 PS512"},
		{"RSA 2047", rsaJWK(2047, 65537, `,"kid":"a"`), "", ""},
		{"RSA 1024", rsaJWK(1024, 65537, `,"kid":"a"`), "", ""},
		{"RSA 8200", rsaJWK(8200, 65537, `,"kid":"a"`), "", ""},
		{"RSA exponent 3", rsaJWK(2048, 3, `,"kid":"a"`), "", ""},
		{"RSA exponent 1", rsaJWK(2048, 1, `,"kid":"a"`), "", ""},
		{"RSA exponent even", rsaJWK(2048, 65538, `,"kid":"a"`), "", ""},
		{"RSA exponent large", rsaJWK(2048, 1<<31-1, `,"kid":"a"`), "a", "RS256 RS384 RS512 PS256 PS384 PS512"},
		{"RSA exponent too large", rsaJWK(2048, 1<<31+1, `,"kid":"a"`), "", ""},
		{"RSA exponent wraps", rsaJWK(2048, 1<<32+65537, `,"kid":"a"`), "", ""},
		{"symmetric", `{"kty":"oct","kid":"a","k":"AAAA"}`, "", ""},
		{"symmetric without k", `{"kty":"oct","kid":"a"}`, "", ""},
		{"private", with(`,"d":"AAAA"`), "", ""},
		{"private, null", with(`,"d":null`), "", ""},
		{"use sig", with(`,"use":"sig"`), "a", "ES256"},
		{"use enc", with(`,"use":"enc"`), "", ""},
		{"use null", with(`,"use":null`), "", ""},
		{"key_ops verify", with(`,"key_ops":["verify"]`), "a", "ES256"},
		{"key_ops both", with(`,"key_ops":["sign","verify"]`), "a", "ES256"},
		{"key_ops sign", with(`,"key_ops":["sign"]`), "", ""},
		{"key_ops encrypt", with(`,"key_ops":["encrypt"]`), "", ""},
		{"key_ops empty", with(`,"key_ops":[]`), "", ""},
		{"key_ops twice", with(`,"key_ops":["verify","verify"]`), "", ""},
		{"key_ops string", with(`,"key_ops":"verify"`), "", ""},
		{"use and key_ops disagree", with(`,"use":"enc","key_ops":["verify"]`), "", ""},
		{"no kid", ecJWK(t, elliptic.P256(), ""), "", ""},
		{"empty kid", ecJWK(t, elliptic.P256(), `,"kid":""`), "", ""},
		{"kid not a string", ecJWK(t, elliptic.P256(), `,"kid":1`), "", ""},
		{"kid not printable", ecJWK(t, elliptic.P256(), `,"kid":"a\n"`), "", ""},
		{"no kty", `{"kid":"a"}`, "", ""},
		{"unknown kty", `{"kty":"AKP","kid":"a","alg":"ML-DSA-44","pub":"AAAA"}`, "", ""},
		{"not an object", `"x"`, "", ""},
		{"two kids", ec + "," + ecJWK(t, elliptic.P384(), `,"kid":"b"`), "a b", "ES256"},
		{"one key twice", ec + "," + ec, "a", "ES256"},
		{"one kid, two keys", ec + "," + ec2, "", ""},
		{"one kid, three keys, two the same", ec + "," + ec2 + "," + ec, "", ""},
		{"one kid, two types", ec + "," + rsaJWK(2048, 65537, `,"kid":"a"`), "", ""},
		{"one kid, one key, two algorithms", rsaJWK(2048, 65537, `,"kid":"a","alg":"RS256"`) + "," + rsaJWK(2048, 65537, `,"kid":"a","alg":"PS256"`), "", ""},
		{"one kid, the other for encryption", ec + "," + ecJWK(t, elliptic.P256(), `,"kid":"a","use":"enc"`), "a", "ES256"},
		{"bad beside good", `{"kid":"x"},` + ec + `,7`, "a", "ES256"},
		{"none", "", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			set, err := parseKeySet([]byte(`{"keys":[`+row.keys+`]}`), allAlgorithms())
			if err != nil {
				t.Fatal(err)
			}
			var algs []string
			if k := set.keys["a"]; k != nil {
				for _, a := range k.algs {
					algs = append(algs, a.name)
				}
			}
			want := strings.Fields(row.kids)
			for _, kid := range want {
				if set.keys[kid] == nil {
					t.Errorf("no key %q: %q", kid, set.refused)
				}
			}
			if len(set.keys) != len(want) || strings.Join(algs, " ") != row.algs {
				t.Errorf("got %d keys, first for %q; refused %q", len(set.keys), algs, set.refused)
			}
			if len(want) == 0 && row.keys != "" && len(set.refused) == 0 {
				t.Error("a key was left out without a word")
			}
		})
	}
}

func TestKeySetDocuments(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat("{},", maxKeys+1), ",")
	for _, doc := range []string{
		"", "null", "[]", "{}", `{"keys":null}`, `{"keys":{}}`, `{"Keys":[]}`, `{"keys":[],"keys":[]}`, `{"keys":[{"kid":"a","kid":"b"}]}`,
		`{"keys":[]`, `{"keys":[]} x`, "\ufeff" + `{"keys":[]}`, `{"keys":[` + many + `]}`, `{"x":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `,"keys":[]}`,
	} {
		if set, err := parseKeySet([]byte(doc), allAlgorithms()); err == nil {
			t.Errorf("%.40q: accepted with %d keys", doc, len(set.keys))
		}
	}
}

func TestFingerprint(t *testing.T) {
	a, b := ecJWK(t, elliptic.P256(), `,"kid":"a"`), ecJWK(t, elliptic.P256(), `,"kid":"b"`)
	sum := func(keys string) [sha256.Size]byte {
		set, err := parseKeySet([]byte(`{"keys":[`+keys+`]}`), allAlgorithms())
		if err != nil {
			t.Fatal(err)
		}
		return set.sum
	}
	if sum(a+","+b) != sum(b+", "+a) {
		t.Error("order or white space changes the fingerprint")
	}
	if sum(a+`,{"kty":"oct"}`) != sum(a) {
		t.Error("an unusable key changes the fingerprint")
	}
	renamed := strings.Replace(a, `"kid":"a"`, `"kid":"b"`, 1)
	pinned := rsaJWK(2048, 65537, `,"kid":"r","alg":"RS256"`)
	for name, pair := range map[string][2]string{
		"key added": {a, a + "," + b}, "kid changed": {a, renamed},
		"algorithm pinned": {rsaJWK(2048, 65537, `,"kid":"r"`), pinned}, "key replaced": {renamed, b}, "none left": {a, ""},
	} {
		if sum(pair[0]) == sum(pair[1]) {
			t.Errorf("%s: same fingerprint", name)
		}
	}
}

func TestTable(t *testing.T) {
	tab := newTable[int](64)
	key := func(i int) *cacheKey {
		return &cacheKey{token: sha256.Sum256(fmt.Append(nil, i)), keys: 1}
	}
	for i := range 1000 {
		tab.put(key(i), 0, 100, 50, i)
		if v, ok := tab.get(key(i), 50); !ok || v != i {
			t.Fatalf("entry %d was not kept", i)
		}
	}
	kept := 0
	for i := range 1000 {
		if v, ok := tab.get(key(i), 50); ok {
			kept++
			if v != i {
				t.Fatalf("entry %d answers with %d", i, v)
			}
		}
	}
	if kept == 0 || kept > 64 {
		t.Errorf("%d of 1000 kept; the bound is 64", kept)
	}

	k := key(999)
	for name, other := range map[string]cacheKey{
		"key set": {k.token, k.config, 2},
		"config":  {k.token, [32]byte{1}, 1},
		// Same bucket, one bit of the hash differs.
		"token": {func() [32]byte { c := k.token; c[31] ^= 1; return c }(), k.config, 1},
	} {
		if _, ok := tab.get(&other, 50); ok {
			t.Errorf("another %s got the entry", name)
		}
	}
	for now, want := range map[int64]bool{50: true, 99: true, 100: false, 101: false} {
		if _, ok := tab.get(k, now); ok != want {
			t.Errorf("at %d: found is %v", now, ok)
		}
	}
	tab.put(k, 60, 100, 50, 7)
	if _, ok := tab.get(k, 59); ok {
		t.Error("the entry answers before it is valid")
	}
	if v, ok := tab.get(k, 60); !ok || v != 7 {
		t.Error("the entry was not replaced")
	}
	next := *k
	next.keys = 2
	tab.put(&next, 0, 100, 50, 8)
	if _, ok := tab.get(k, 70); ok {
		t.Error("the entry of an older key set was not replaced")
	}
	tab.put(key(5000), 0, 50, 50, 1)
	if _, ok := tab.get(key(5000), 49); ok {
		t.Error("an entry that has ended was kept")
	}
}

// What is in use stays when others pass through the same bucket.
func TestTableKeepsWhatIsUsed(t *testing.T) {
	tab := newTable[int](ways)
	key := func(i int) *cacheKey { return &cacheKey{token: sha256.Sum256(fmt.Append(nil, i))} }
	tab.put(key(0), 0, 100, 1, 0)
	for i := 1; i < 200; i++ {
		tab.put(key(i), 0, 100, 1, i)
		if _, ok := tab.get(key(0), 1); !ok {
			t.Fatalf("evicted after %d others, though used each time", i)
		}
	}
}

func TestTableConcurrently(t *testing.T) {
	tab := newTable[int](64)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				n := (i*7 + w) % 300
				k := &cacheKey{token: sha256.Sum256(fmt.Append(nil, n))}
				tab.put(k, 0, 100, 1, n)
				if v, ok := tab.get(k, 1); ok && v != n {
					t.Errorf("%d answered %d", n, v)
				}
			}
		})
	}
	wg.Wait()
}

// AttackEnv is made once for all tests of this directory: generating its RSA
// key is what takes time.
var AttackEnv = sync.OnceValues(jwtattack.New)

// internalJWT returns a JWT on a clock that the test moves.
func internalJWT(t testing.TB, now *time.Time, set func(*JWTConfig)) (*JWT, *jwtattack.Env) {
	t.Helper()
	e, err := AttackEnv()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, e.JWKS, 0o600); err != nil {
		t.Fatal(err)
	}
	c := JWTConfig{
		Name: "corp", Issuer: jwtattack.Issuer, Audiences: []string{jwtattack.Audience}, Algorithms: jwtattack.Algorithms,
		RolesClaim: jwtattack.RolesClaim, MaxAge: jwtattack.MaxAge, Keys: KeySource{File: path},
		Now: func() time.Time { return *now },
	}
	if set != nil {
		set(&c)
	}
	j, err := NewJWT(c)
	if err != nil {
		t.Fatal(err)
	}
	return j, e
}

func bearerRequest(token string) *canon.Request {
	return &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: "Bearer " + token}}}
}

func failed(err error) reason.Reason {
	if f, ok := err.(*Failure); ok {
		return f.Reason
	}
	return ""
}

func TestVerdictIsRememberedNoLongerThan(t *testing.T) {
	unix := jwtattack.Now.Unix()
	for _, row := range []struct {
		name     string
		iat, exp int64 // from now
		until    time.Duration
	}{
		{"a minute", -1, 300, time.Minute},
		{"exp", -1, 20, 20 * time.Second},
		{"max age", -590, 300, 10 * time.Second},
		{"max age at its end", -600, 60, 0},
		{"exp within the skew", -60, -5, 0},
		{"exp now", -60, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			now := jwtattack.Now
			j, e := internalJWT(t, &now, nil)
			token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims().
				Set("iat", fmt.Sprint(unix+row.iat)).Set("exp", fmt.Sprint(unix+row.exp)))
			if _, err := j.Authenticate(context.Background(), bearerRequest(token)); err != nil {
				t.Fatal(err)
			}
			k := cacheKey{token: sha256.Sum256([]byte(token)), config: j.id, keys: j.keys.current(now).mark()}
			at := func(d time.Duration) bool {
				_, ok := j.cache.good.get(&k, now.Add(d).UnixNano())
				return ok
			}
			if at(row.until) || row.until > 0 && !at(row.until-1) {
				t.Errorf("not remembered for exactly %v", row.until)
			}
			if row.until > 0 && (at(time.Duration(row.iat)*time.Second-10*time.Second-1) || !at(time.Duration(row.iat)*time.Second-10*time.Second)) {
				t.Error("answers before iat, or not from there on")
			}
		})
	}
}

func TestMaxAgeHoldsForACachedToken(t *testing.T) {
	now := jwtattack.Now
	j, e := internalJWT(t, &now, func(c *JWTConfig) { c.MaxAge = 40 * time.Second })
	token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims())
	for _, step := range []struct {
		by   time.Duration
		want reason.Reason
	}{{0, ""}, {10 * time.Second, ""}, {1, reason.TokenTooOld}, {-time.Second, ""}} {
		now = now.Add(step.by)
		if _, err := j.Authenticate(context.Background(), bearerRequest(token)); failed(err) != step.want {
			if step.by < 0 && failed(err) == reason.TokenTooOld {
				continue // the refusal is remembered: closed, not open, when a clock steps back
			}
			t.Fatalf("after %v: %v, want %q", step.by, err, step.want)
		}
	}
}

func TestClockSetBack(t *testing.T) {
	now := jwtattack.Now
	j, e := internalJWT(t, &now, nil)
	token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims())
	if _, err := j.Authenticate(context.Background(), bearerRequest(token)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(-41 * time.Second) // 11 s before iat
	if _, err := j.Authenticate(context.Background(), bearerRequest(token)); failed(err) != reason.TokenNotYet {
		t.Fatalf("got %v", err)
	}
	now = now.Add(time.Second) // a refusal for being early is not remembered
	if _, err := j.Authenticate(context.Background(), bearerRequest(token)); err != nil {
		t.Fatal(err)
	}
}

func TestRefusalIsRememberedBriefly(t *testing.T) {
	now := jwtattack.Now
	j, e := internalJWT(t, &now, nil)
	token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims().Set("aud", `"x"`))
	ask := func() error {
		_, err := j.Authenticate(context.Background(), bearerRequest(token))
		if failed(err) != reason.TokenAudience {
			t.Fatal(err)
		}
		return err
	}
	first := ask()
	now = now.Add(maxRememberBad - 1)
	if ask() != first {
		t.Error("not remembered")
	}
	now = now.Add(1)
	if ask() == first {
		t.Error("remembered for longer than 10 s")
	}
}

// Two configurations that share a cache never answer for one another.
func TestSharedCache(t *testing.T) {
	now := jwtattack.Now
	shared := NewCache(64)
	a, e := internalJWT(t, &now, func(c *JWTConfig) { c.Cache = shared })
	b, _ := internalJWT(t, &now, func(c *JWTConfig) { c.Cache, c.Audiences = shared, []string{"https://b.example"} })
	for i := range 20 {
		token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims().Set("jti", fmt.Sprintf(`"%d"`, i)))
		for range 2 {
			if _, err := a.Authenticate(context.Background(), bearerRequest(token)); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Authenticate(context.Background(), bearerRequest(token)); failed(err) != reason.TokenAudience {
				t.Fatalf("got %v", err)
			}
		}
	}
}

func TestTooManySignatures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := jwtattack.Now
		j, e := internalJWT(t, &now, func(c *JWTConfig) { c.Verifiers = 1 })
		token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims())
		j.slots.taken <- struct{}{}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := j.Authenticate(ctx, bearerRequest(token)); failed(err) != reason.ClientAborted {
			t.Errorf("ended request: %v", err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := j.Authenticate(ctx, bearerRequest(token)); failed(err) != reason.Overloaded {
			t.Errorf("deadline: %v", err)
		}
		if _, err := j.Authenticate(context.Background(), bearerRequest(token)); failed(err) != reason.Overloaded {
			t.Errorf("full: %v", err)
		}
		got := make(chan error)
		go func() {
			_, err := j.Authenticate(context.Background(), bearerRequest(token))
			got <- err
		}()
		synctest.Wait()
		<-j.slots.taken
		if err := <-got; err != nil {
			t.Errorf("waiting request: %v", err)
		}
	})
}

func TestFetcherPanicsDoNotLock(t *testing.T) {
	now := jwtattack.Now
	j, e := internalJWT(t, &now, nil)
	fetch := j.keys.fetch
	j.keys.fetch = func(context.Context) ([]byte, error) { panic("boom") }
	token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims())
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		j.Authenticate(context.Background(), bearerRequest(token))
	}()
	j.keys.fetch = fetch
	now = now.Add(minBackoff)
	if _, err := j.Authenticate(context.Background(), bearerRequest(token)); err != nil {
		t.Fatal(err)
	}
}

func TestMemoryOfUnknownKeyIDsIsBounded(t *testing.T) {
	now := jwtattack.Now
	j, _ := internalJWT(t, &now, nil)
	ks := j.keys.demand(context.Background())
	for i := range 3 * maxUnknownKIDs {
		now = now.Add(30 * time.Second)
		if _, k := j.keys.lookup(context.Background(), ks, fmt.Sprint(i)); k != nil {
			t.Fatal("found a key that is not there")
		}
	}
	if n := len(j.keys.unknown); n > maxUnknownKIDs {
		t.Errorf("%d key ids remembered", n)
	}
}

// Only so many requests wait for one fetch; the rest are refused at once.
func TestWaitersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := jwtattack.Now
		j, e := internalJWT(t, &now, nil)
		token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims())
		fetch, release := j.keys.fetch, make(chan struct{})
		j.keys.fetch = func(ctx context.Context) ([]byte, error) {
			<-release
			return fetch(ctx)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		got := make(map[reason.Reason]int)
		for range 1 + maxWaiters + 10 {
			wg.Go(func() {
				_, err := j.Authenticate(context.Background(), bearerRequest(token))
				mu.Lock()
				got[failed(err)]++
				mu.Unlock()
			})
		}
		synctest.Wait()
		mu.Lock()
		if len(got) != 1 || got[reason.IssuerUnavailable] != 10 {
			t.Errorf("while fetching: %v", got)
		}
		mu.Unlock()
		close(release)
		wg.Wait()
		if got[""] != 1+maxWaiters {
			t.Errorf("in the end: %v", got)
		}
		if j.keys.waiting != 0 {
			t.Errorf("%d still counted as waiting", j.keys.waiting)
		}
	})
}
