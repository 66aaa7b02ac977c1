package authn

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// plainVerify is the simplest reading of a token that the standard library
// offers. It is laxer than ours in every way, so it must accept what we do.
func plainVerify(e *jwtattack.Env, token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%d segments", len(parts))
	}
	var decoded [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil {
			return err
		}
		decoded[i] = b
	}
	var header struct{ Alg, Kid string }
	var claims struct {
		Iss, Sub string
		Exp, Iat int64
		Aud      any
	}
	if err := json.Unmarshal(decoded[0], &header); err != nil {
		return err
	}
	if err := json.Unmarshal(decoded[1], &claims); err != nil {
		return err
	}
	now := jwtattack.Now.Unix()
	if claims.Iss != jwtattack.Issuer || claims.Sub == "" || claims.Exp <= now-10 || claims.Iat > now+10 ||
		!strings.Contains(fmt.Sprint(claims.Aud), jwtattack.Audience) {
		return fmt.Errorf("claims %+v", claims)
	}
	if header.Kid != strings.ToLower(header.Alg) && header.Kid != "rsa-any" {
		return fmt.Errorf("key %q for %q", header.Kid, header.Alg)
	}
	signed, sig, h := []byte(parts[0]+"."+parts[1]), decoded[2], jwtattack.Hash(header.Alg)
	sum := signed
	if h != 0 {
		hh := h.New()
		hh.Write(signed)
		sum = hh.Sum(nil)
	}
	switch k := e.Public(header.Alg).(type) {
	case *rsa.PublicKey:
		if header.Alg[0] == 'P' {
			return rsa.VerifyPSS(k, h, sum, sig, nil)
		}
		return rsa.VerifyPKCS1v15(k, h, sum, sig)
	case *ecdsa.PublicKey:
		n := len(sig) / 2
		if !ecdsa.Verify(k, sum, new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])) {
			return fmt.Errorf("signature")
		}
		return nil
	case ed25519.PublicKey:
		return ed25519.VerifyWithOptions(k, sum, sig, &ed25519.Options{Hash: crypto.Hash(0)})
	}
	return fmt.Errorf("no key")
}

// What is accepted has one spelling and one meaning: the segments encode back
// to themselves, and the plainest reader accepts it too.
func FuzzToken(f *testing.F) {
	e, err := AttackEnv()
	if err != nil {
		f.Fatal(err)
	}
	now := jwtattack.Now
	j, _ := internalJWT(f, &now, nil)
	accepted := 0
	for _, c := range e.Cases() {
		f.Add(c.Token)
		if c.Want == "" {
			accepted++
			if err := plainVerify(e, c.Token); err != nil {
				f.Fatalf("%s: the plain reader refuses a genuine token: %v", c.ID(), err)
			}
		}
	}
	if accepted < 50 {
		f.Fatalf("only %d genuine seeds", accepted)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if tok, err := parseToken(raw, j.profile.names); err == nil {
			for i, part := range strings.Split(raw, ".") {
				b, err := base64.RawURLEncoding.DecodeString(part)
				if err != nil || encode(b) != part {
					t.Errorf("segment %d does not encode back to itself", i)
				}
			}
			if tok.signed+"."+encode(tok.sig) != raw {
				t.Error("parts do not make the whole")
			}
		}
		p, err := j.Authenticate(context.Background(), bearerRequest(raw))
		if (p == nil) == (err == nil) {
			t.Fatalf("principal %v with error %v", p, err)
		}
		if err == nil {
			if err := plainVerify(e, raw); err != nil {
				t.Errorf("we accept what the plain reader refuses: %v", err)
			}
		}
	})
}

// toAny turns a value into what encoding/json makes of the same text.
func toAny(v *value) any {
	switch v.kind {
	case kindBool:
		return v.truth
	case kindNumber:
		return json.Number(v.text)
	case kindString:
		return v.text
	case kindArray:
		list := make([]any, len(v.elems))
		for i := range v.elems {
			list[i] = toAny(&v.elems[i])
		}
		return list
	case kindObject:
		m := make(map[string]any, len(v.members))
		for i := range v.members {
			m[v.members[i].name] = toAny(&v.members[i].value)
		}
		return m
	}
	return nil
}

// What we read, encoding/json reads the same; the reverse does not hold.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1}`, `{"a":[1,2.5e-3,true,false,null,"x"]}`, `{"a":{"b":{"c":[]}}}`, `{"a":"\u00e9\ud83d\ude00\n\/"}`, `{"a":1,"a":2}`,
		`{"a":-0}`, `{"a":01}`, `{"a":1} `, ` {"a":1}`, `{"a":"\ud800"}`, "{\"a\":\"\xff\"}", `{"\u0061":1,"b":2}`, `{"a":1,}`, `[1]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := parseObject(in, maxDepth)
		if err != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(in))
		d.UseNumber()
		var want any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses what we accept: %v", err)
		}
		if got := toAny(v); !reflect.DeepEqual(got, want) {
			t.Fatalf("we read %#v, encoding/json %#v", got, want)
		}
	})
}

func FuzzJWKS(f *testing.F) {
	e, err := AttackEnv()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.JWKS)
	for _, s := range []string{
		`{"keys":[]}`, `{"keys":[{}]}`, `{"keys":[` + rsaJWK(2048, 3, `,"kid":"a"`) + `]}`, `{"keys":[` + rsaJWK(8192, 65537, `,"kid":"a"`) + `]}`,
		`{"keys":[` + ecJWK(f, allAlgorithms()[6].curve, `,"kid":"a","key_ops":["verify"],"use":"sig"`) + `]}`,
		`{"keys":[{"kty":"oct","k":"AAAA","kid":"a"}]}`, `{"keys":[` + edJWK(f) + "," + edJWK(f) + `]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		set, err := parseKeySet(doc, allAlgorithms())
		if err != nil {
			return
		}
		again, err := parseKeySet(doc, allAlgorithms())
		if err != nil || again.sum != set.sum {
			t.Fatal("the same document gives another set")
		}
		var plain struct{ Keys []json.RawMessage }
		if err := json.Unmarshal(doc, &plain); err != nil || len(set.keys) > len(plain.Keys) {
			t.Fatalf("%d keys of %d, %v", len(set.keys), len(plain.Keys), err)
		}
		for kid, k := range set.keys {
			if kid != k.kid || !validKID(kid) || len(k.algs) == 0 {
				t.Errorf("key %q under %q for %d algorithms", k.kid, kid, len(k.algs))
			}
			if err := checkPublicKey(k.pub); err != nil {
				t.Error(err)
			}
			for _, a := range k.algs {
				if !a.fits(k.pub) {
					t.Errorf("%s with a %T", a.name, k.pub)
				}
			}
		}
	})
}

func FuzzAuthorization(f *testing.F) {
	now := jwtattack.Now
	j, e := internalJWT(f, &now, nil)
	token := e.Token("EdDSA", jwtattack.Header("EdDSA"), jwtattack.Claims())
	for _, s := range []string{"", "Bearer", "Bearer ", "Bearer " + token, "bearer  x", "Basic eDp5", "Bearer\tx", "=", "Bearer a.b.c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		r := bearerRequest("")
		r.Fields[0].Value = v
		raw, err := bearer(r)
		if err == nil && !strings.EqualFold(v, "bearer "+raw) {
			t.Errorf("%q gave the token %q", v, raw)
		}
		if p, err := j.Authenticate(context.Background(), r); err == nil && (p.Subject != "alice" || !strings.HasSuffix(v, token)) {
			t.Errorf("%q is %q", v, p.Subject)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	now := jwtattack.Now
	j, e := internalJWT(b, &now, nil)
	for _, alg := range jwtattack.Algorithms {
		token := e.Token(alg, jwtattack.Header(alg), jwtattack.Claims())
		if _, err := j.Authenticate(context.Background(), bearerRequest(token)); err != nil {
			b.Fatal(err)
		}
		b.Run(alg, func(b *testing.B) {
			b.ReportAllocs()
			k := cacheKey{token: sha256.Sum256([]byte(token))}
			var n uint64
			for b.Loop() {
				n++
				binary.LittleEndian.PutUint64(k.config[:], n) // never an entry that is cached
				t, err := parseToken(token, j.profile.names)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := j.judge(context.Background(), t, k); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	now := jwtattack.Now
	j, e := internalJWT(b, &now, nil)
	token := e.Token("RS256", jwtattack.Header("RS256"), jwtattack.Claims())
	b.ReportAllocs()
	b.SetBytes(int64(len(token)))
	for b.Loop() {
		if _, err := parseToken(token, j.profile.names); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCacheHit(b *testing.B) {
	now := jwtattack.Now
	j, e := internalJWT(b, &now, nil)
	token := e.Token("RS256", jwtattack.Header("RS256"), jwtattack.Claims().Set("fill", `"`+strings.Repeat("x", 130)+`"`))
	r := bearerRequest(token)
	b.ReportAllocs()
	b.SetBytes(int64(len(token)))
	for b.Loop() {
		if _, err := j.Authenticate(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCacheHitParallel(b *testing.B) {
	now := jwtattack.Now
	j, e := internalJWT(b, &now, nil)
	r := bearerRequest(e.Token("RS256", jwtattack.Header("RS256"), jwtattack.Claims()))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := j.Authenticate(context.Background(), r); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkRefusedAgain(b *testing.B) {
	now := jwtattack.Now
	j, e := internalJWT(b, &now, nil)
	r := bearerRequest(e.Token("RS256", jwtattack.Header("RS256"), jwtattack.Claims().Set("aud", `"x"`)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := j.Authenticate(context.Background(), r); err == nil {
			b.Fatal("accepted")
		}
	}
}
