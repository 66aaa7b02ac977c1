package jwtattack

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	_ "crypto/sha1" // a mask hash that must be refused
	"encoding/base64"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/reason"
)

func (t *table) genuine(alg string) {
	e := t.env
	t.add("genuine", alg, e.Token(alg, Header(alg), Claims()), "")
	if strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS") {
		t.add("genuine", alg+" by a key without alg", e.Token(alg, Header(alg).Set("kid", `"rsa-any"`), Claims()), "")
	}
}

func cut(token string) (signed string, sig []byte) {
	i := strings.LastIndexByte(token, '.')
	sig, err := base64.RawURLEncoding.DecodeString(token[i+1:])
	if err != nil {
		panic(err) // only genuine tokens are cut
	}
	return token[:i], sig
}

func (t *table) damagedSignature(alg string) {
	signed, sig := cut(t.env.Token(alg, Header(alg), Claims()))
	with := func(name string, want reason.Reason, sig []byte) {
		t.add("signature", alg+" "+name, signed+"."+b64(sig), want)
	}
	flip := func(i int) []byte {
		c := slices.Clone(sig)
		c[i] ^= 1
		return c
	}
	with("first byte flipped", reason.TokenSignature, flip(0))
	with("middle byte flipped", reason.TokenSignature, flip(len(sig)/2))
	with("last byte flipped", reason.TokenSignature, flip(len(sig)-1))
	with("one byte short", reason.TokenSignature, sig[:len(sig)-1])
	with("one byte long", reason.TokenSignature, append(slices.Clone(sig), 0))
	with("zero byte in front", reason.TokenSignature, append([]byte{0}, sig...))
	with("twice", reason.TokenSignature, append(slices.Clone(sig), sig...))
	with("half", reason.TokenSignature, sig[:len(sig)/2])
	with("zeros", reason.TokenSignature, make([]byte, len(sig)))
	with("ones", reason.TokenSignature, slices.Repeat([]byte{0xff}, len(sig)))
	with("one byte", reason.TokenSignature, []byte{0})
	with("empty", reason.TokenMalformed, nil)
}

func (t *table) swapped(alg string) {
	e := t.env
	token := e.Token(alg, Header(alg), Claims())
	parts := strings.Split(token, ".")
	admin := b64([]byte(Claims().Set("sub", `"admin"`).String()))
	t.add("swapped", alg+" other claims", parts[0]+"."+admin+"."+parts[2], reason.TokenSignature)
	header := b64([]byte(Header(alg).Add("x", "1").String()))
	t.add("swapped", alg+" other header", header+"."+parts[1]+"."+parts[2], reason.TokenSignature)
}

// encoding spells the segments of a genuine token differently; the signature
// covers the spelling wherever the attacker would need the issuer's help, so
// that only the encoding is wrong.
func (t *table) encoding(alg string) {
	e := t.env
	const bad = reason.TokenMalformed
	h, c := segments(alg)
	signed, sig := cut(e.TokenRaw(alg, h, c))
	s := b64(sig)
	add := func(name, token string) { t.add("encoding", alg+" "+name, token, bad) }

	add("spare bits in the header", e.TokenRaw(alg, spare(h), c))
	add("spare bits in the claims", e.TokenRaw(alg, h, spare(c)))
	if len(s)%4 != 0 {
		add("spare bits in the signature", signed+"."+spare(s))
		add("padded signature", signed+"."+s+strings.Repeat("=", 4-len(s)%4))
	}
	add("padded header", e.TokenRaw(alg, h+"==", c))
	add("padded claims", e.TokenRaw(alg, h, c+"=="))
	add("padding too long", signed+"."+s+"====")
	for _, ws := range []string{"\n", "\r", "\r\n", " ", "\t", "\x00"} {
		add(fmt.Sprintf("%q inside the signature", ws), signed+"."+s[:8]+ws+s[8:])
		add(fmt.Sprintf("%q at the end", ws), signed+"."+s+ws)
	}
	add("LF inside the claims", e.TokenRaw(alg, h, c[:8]+"\n"+c[8:]))
	add("LF inside the header", e.TokenRaw(alg, h[:8]+"\n"+h[8:], c))
	add("standard alphabet", standard(e, alg))
	add("one character left over", signed+"."+s+"A"+strings.Repeat("A", (4-len(s)%4)%4))
	add("not base64 at all", signed+".~~~~"+s)
}

// segments encodes header and claims so that both have spare bits.
func segments(alg string) (h, c string) {
	pad := func(o Object) string {
		for fill := ""; ; fill += "x" {
			text := o.Add("fill", quote(fill)).String()
			if len(text)%3 == 1 { // four spare bits, and two '=' of padding
				return b64([]byte(text))
			}
		}
	}
	return pad(Header(alg)), pad(Claims())
}

// spare sets the lowest bit of the last character, which decodes to nothing.
func spare(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	i := strings.IndexByte(alphabet, s[len(s)-1])
	return s[:len(s)-1] + string(alphabet[i|1])
}

// standard writes a signature in the alphabet of plain base64.
func standard(e *Env, alg string) string {
	for i := range 1000 {
		token := e.Token(alg, Header(alg), Claims().Set("jti", quote(fmt.Sprint(i))))
		at := strings.LastIndexByte(token, '.')
		if sig := token[at:]; strings.ContainsAny(sig, "-_") {
			return token[:at] + strings.NewReplacer("-", "+", "_", "/").Replace(sig)
		}
	}
	panic("no signature of 1000 holds '-' or '_'")
}

// otherAlgorithm names each other algorithm in the header, under the key id of
// this one: once signed as this key would, once as the named one would.
func (t *table) otherAlgorithm(alg string) {
	for _, other := range Algorithms {
		if other == alg {
			continue
		}
		h := Header(other).Set("kid", quote(strings.ToLower(alg)))
		t.add("confusion", other+" named under the key of "+alg, t.env.Token(alg, h, Claims()), reason.TokenAlgorithm)
		t.add("confusion", other+" used under the key of "+alg, t.env.Token(other, h, Claims()), reason.TokenAlgorithm)
	}
}

func (t *table) none() {
	for _, name := range []string{"none", "None", "NONE", "nOnE", "nonE", "none ", " none", "none\\u0000x", "", "null", "n\\u006fne"} {
		for _, kid := range []string{"es256", "rsa-any"} {
			want := reason.TokenAlgorithm
			if strings.Contains(name, "u0000") {
				want = reason.TokenMalformed
			}
			h := Header("ES256").Set("alg", quote(name)).Set("kid", quote(kid))
			token := t.env.Token("ES256", h, Claims())
			signed, _ := cut(token)
			label := fmt.Sprintf("%q with key %s", name, kid)
			t.add("none", label+", signed", token, want)
			t.add("none", label+", no signature", signed+".", reason.TokenMalformed)
			t.add("none", label+", no third segment", signed, reason.TokenMalformed)
		}
	}
}

// hmac signs with what is public, hoping that the verifier takes the key's
// bytes for a shared secret.
func (t *table) hmac() {
	hashes := map[string]crypto.Hash{"HS256": crypto.SHA256, "HS384": crypto.SHA384, "HS512": crypto.SHA512}
	for _, key := range []string{"RS256", "PS256", "ES256", "ES512", "EdDSA"} {
		forms := t.env.publicForms(key)
		for _, form := range slices.Sorted(maps.Keys(forms)) {
			for _, alg := range []string{"HS256", "HS384", "HS512"} {
				h := Header(key).Set("alg", quote(alg))
				signed := b64([]byte(h.String())) + "." + b64([]byte(Claims().String()))
				mac := hmac.New(hashes[alg].New, forms[form])
				mac.Write([]byte(signed))
				t.add("hmac", fmt.Sprintf("%s with the %s of %s as secret", alg, form, key),
					signed+"."+b64(mac.Sum(nil)), reason.TokenAlgorithm)
			}
		}
	}
}

// pss varies what RFC 7518 section 3.5 fixes: the salt is as long as the hash,
// and MGF1 uses the same hash.
func (t *table) pss() {
	for _, alg := range []string{"PS256", "PS384", "PS512"} {
		h := Hash(alg)
		signed, _ := cut(t.env.Token(alg, Header(alg), Claims()))
		top := t.env.rsa.Size() - 2 - h.Size()
		for _, salt := range []int{0, 1, 8, 20, h.Size() - 1, h.Size() + 1, top} {
			sig := t.env.signPSS(h, h, digest(h, signed), make([]byte, salt))
			t.add("pss", fmt.Sprintf("%s salt of %d bytes", alg, salt), signed+"."+b64(sig), reason.TokenSignature)
		}
		for _, mgf := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			want := reason.TokenSignature
			if mgf == h {
				want = "" // shows that signPSS is right where the others differ on purpose
			}
			sig := t.env.signPSS(h, mgf, digest(h, signed), make([]byte, h.Size()))
			t.add("pss", fmt.Sprintf("%s mask by %s", alg, mgf), signed+"."+b64(sig), want)
		}
		t.add("pss", alg+" signed as PKCS #1 v1.5", signed+"."+b64(t.env.Sign("RS"+alg[2:], signed)), reason.TokenSignature)
	}
}

// signPSS is EMSA-PSS of RFC 8017 section 9.1.1 with a free choice of salt and
// mask hash, which crypto/rsa does not offer.
func (e *Env) signPSS(h, mgf crypto.Hash, sum, salt []byte) []byte {
	n := e.rsa.N
	emBits := n.BitLen() - 1
	em := make([]byte, (emBits+7)/8)
	hh := h.New()
	hh.Write(make([]byte, 8))
	hh.Write(sum)
	hh.Write(salt)
	mHash := hh.Sum(nil)
	db := em[:len(em)-len(mHash)-1]
	db[len(db)-len(salt)-1] = 1
	copy(db[len(db)-len(salt):], salt)
	for i, counter := 0, uint32(0); i < len(db); counter++ {
		g := mgf.New()
		g.Write(mHash)
		g.Write([]byte{byte(counter >> 24), byte(counter >> 16), byte(counter >> 8), byte(counter)})
		for _, b := range g.Sum(nil) {
			if i < len(db) {
				db[i] ^= b
				i++
			}
		}
	}
	em[0] &= 0xff >> (8*len(em) - emBits)
	copy(em[len(db):], mHash)
	em[len(em)-1] = 0xbc
	s := new(big.Int).Exp(new(big.Int).SetBytes(em), e.rsa.D, n)
	return s.FillBytes(make([]byte, e.rsa.Size()))
}

func (t *table) pkcs1() {
	for _, alg := range []string{"RS256", "RS384", "RS512"} {
		h := Hash(alg)
		signed, sig := cut(t.env.Token(alg, Header(alg), Claims()))
		bare, err := rsa.SignPKCS1v15(nil, t.env.rsa, 0, digest(h, signed))
		if err != nil {
			panic(err) // a digest fits a 2048-bit key
		}
		t.add("pkcs1", alg+" without DigestInfo", signed+"."+b64(bare), reason.TokenSignature)
		t.add("pkcs1", alg+" signed as PSS", signed+"."+b64(t.env.Sign("PS"+alg[2:], signed)), reason.TokenSignature)
		for _, other := range []string{"RS256", "RS384", "RS512"} {
			if other != alg {
				t.add("pkcs1", alg+" signed over the hash of "+other, signed+"."+b64(t.env.Sign(other, signed)), reason.TokenSignature)
			}
		}
		// s + n verifies under arithmetic that does not check s < n.
		over := new(big.Int).Add(new(big.Int).SetBytes(sig), t.env.rsa.N)
		if b := over.Bytes(); len(b) == t.env.rsa.Size() {
			t.add("pkcs1", alg+" signature plus modulus", signed+"."+b64(b), reason.TokenSignature)
		} else {
			t.add("pkcs1", alg+" signature plus modulus", signed+"."+b64(over.FillBytes(make([]byte, t.env.rsa.Size()+1))), reason.TokenSignature)
		}
	}
}

func (t *table) ecdsa() {
	for _, alg := range []string{"ES256", "ES384", "ES512"} {
		key, h := t.env.ec[alg], Hash(alg)
		size := (key.Params().BitSize + 7) / 8
		signed, sig := cut(t.env.Token(alg, Header(alg), Claims()))
		add := func(name string, sig []byte, want reason.Reason) {
			t.add("ecdsa", alg+" "+name, signed+"."+b64(sig), want)
		}
		der, err := ecdsa.SignASN1(nil, key, digest(h, signed))
		if err != nil {
			panic(err) // signing with a generated key does not fail
		}
		add("DER", der, reason.TokenSignature)
		pair := func(r, s *big.Int) []byte {
			return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
		}
		r, s := new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])
		n, zero, one := key.Params().N, new(big.Int), big.NewInt(1)
		add("r zero", pair(zero, s), reason.TokenSignature)
		add("s zero", pair(r, zero), reason.TokenSignature)
		add("r and s the order", pair(n, n), reason.TokenSignature)
		add("r and s the prime", pair(key.Params().P, key.Params().P), reason.TokenSignature)
		add("r and s one", pair(one, one), reason.TokenSignature)
		add("r one, s zero", pair(one, zero), reason.TokenSignature)
		add("r and s exchanged", pair(s, r), reason.TokenSignature)
		// (r, n-s) is as good as (r, s) by the mathematics; RFC 7518 allows it,
		// so nothing may take the token's bytes for its identity.
		add("s negated", pair(r, new(big.Int).Sub(n, s)), "")
		add("zero byte between", slices.Concat(sig[:size], []byte{0}, sig[size:]), reason.TokenSignature)
		add("leading zeros", append(append(make([]byte, 1), sig[:size]...), append(make([]byte, 1), sig[size:]...)...), reason.TokenSignature)
		for _, other := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
			if other == h {
				continue
			}
			raw, err := signRaw(key, digest(other, signed))
			if err != nil {
				panic(err) // as above
			}
			add("over "+other.String(), raw, reason.TokenSignature)
		}
		for _, curve := range []string{"ES256", "ES384", "ES512"} {
			if curve == alg {
				continue
			}
			// A key of another curve signs with the hash of this algorithm.
			hdr := Header(alg).Set("kid", quote(strings.ToLower(curve)))
			text, _ := cut(t.env.Token(alg, hdr, Claims()))
			raw, err := signRaw(t.env.ec[curve], digest(h, text))
			if err != nil {
				panic(err) // as above
			}
			t.add("ecdsa", alg+" with the curve of "+curve, text+"."+b64(raw), reason.TokenAlgorithm)
		}
	}
}

func (t *table) eddsa() {
	signed, sig := cut(t.env.Token("EdDSA", Header("EdDSA"), Claims()))
	add := func(name string, sig []byte) {
		t.add("eddsa", name, signed+"."+b64(sig), reason.TokenSignature)
	}
	// S + L: malleable under a verifier that does not follow RFC 8032 section 5.1.7.
	l, ok := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	if !ok {
		panic("the order of the base point is a decimal number")
	}
	le := slices.Clone(sig[32:])
	slices.Reverse(le)
	over := new(big.Int).Add(new(big.Int).SetBytes(le), l).FillBytes(make([]byte, 32))
	slices.Reverse(over)
	add("S plus L", append(slices.Clone(sig[:32]), over...))
	d := digest(crypto.SHA512, signed)
	ph, err := t.env.ed.Sign(nil, d, &ed25519.Options{Hash: crypto.SHA512})
	if err != nil {
		panic(err) // a SHA-512 digest is what Ed25519ph takes
	}
	add("Ed25519ph", ph)
	ctx, err := t.env.ed.Sign(nil, []byte(signed), &ed25519.Options{Context: "jws"})
	if err != nil {
		panic(err) // a short context is allowed
	}
	add("Ed25519ctx", ctx)
	for _, name := range []string{"Ed25519", "Ed448", "EDDSA", "eddsa", "ES256K", "RS1", "PS1", "ML-DSA-44"} {
		t.add("confusion", name+" is not an algorithm of the profile",
			t.env.Token("EdDSA", Header("EdDSA").Set("alg", quote(name)), Claims()), reason.TokenAlgorithm)
	}
}
