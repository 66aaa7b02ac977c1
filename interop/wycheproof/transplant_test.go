package wycheproof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // some vectors are made with it
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"
)

// transplant makes the vector's token say something else: the header stays byte
// by byte, the payload becomes the given one, and the signature is moved to the
// new text with all that the vector did to it. The private key that comes with
// the vectors makes that possible. A valid vector stays valid, and what makes an
// invalid one invalid stays in it, so that a payload which is no set of claims
// is not the reason why it is refused.
//
// A token that is not three segments is refused for that alone; ok is false.
func transplant(t *testing.T, key *secret, jws, payload string) (token string, ok bool) {
	t.Helper()
	parts := strings.Split(jws, ".")
	if len(parts) != 3 {
		return "", false
	}
	before := parts[0] + "." + parts[1]
	after := parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(sig) == 0 {
		return after + "." + parts[2], true
	}
	switch {
	case key.D.Sign() > 0 && key.N.Sign() > 0:
		sig = key.moveRSA(sig, before, after)
	case key.D.Sign() > 0 && key.D.BitLen() <= 256:
		sig = key.moveECDSA(t, sig, before, after)
	}
	return after + "." + base64.RawURLEncoding.EncodeToString(sig), true
}

// moveRSA opens the signature, moves what is in it and closes it again. A
// signature that was not reduced or not of the modulus' length stays so.
func (s *secret) moveRSA(sig []byte, before, after string) []byte {
	n := &s.N.Int
	size := (n.BitLen() + 7) / 8
	times, rest := new(big.Int).QuoRem(new(big.Int).SetBytes(sig), n, new(big.Int))
	em := new(big.Int).Exp(rest, &s.E.Int, n).FillBytes(make([]byte, size))
	em = moveEncoded(em, n.BitLen(), []byte(before), []byte(after))
	moved := new(big.Int).Exp(new(big.Int).SetBytes(em), &s.D.Int, n)
	moved.Add(moved, times.Mul(times, n))
	if (moved.BitLen()+7)/8 > len(sig) {
		return moved.Bytes() // a shortened one: any value will do, it stays wrong
	}
	return moved.FillBytes(make([]byte, len(sig)))
}

var hashes = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA1, crypto.SHA224}

// moveEncoded replaces the hash of one text by that of the other in an encoded
// message (RFC 8017 section 9): in place if it is in there as it is (PKCS #1
// v1.5), else as the H of PSS. If neither is to be found, the vector changed the
// hash itself and the bytes are left as they are: wrong for any text.
func moveEncoded(em []byte, modBits int, before, after []byte) []byte {
	for _, h := range hashes {
		if old := digest(h, before); bytes.Contains(em, old) {
			return bytes.Replace(em, old, digest(h, after), 1)
		}
	}
	for _, h := range hashes {
		if moved := movePSS(h, em, modBits, before, after); moved != nil {
			return moved
		}
	}
	return em
}

// movePSS does it for EMSA-PSS with that hash. The difference between the H that
// is there and the right one is kept, so that a changed H stays changed by just
// that. nil: this is not PSS with that hash.
func movePSS(h crypto.Hash, em []byte, modBits int, before, after []byte) []byte {
	size := h.Size()
	if len(em) < 2*size+2 {
		return nil
	}
	masked, there := em[:len(em)-size-1], em[len(em)-size-1:len(em)-1]
	top := byte(0xff >> (8*len(em) - (modBits - 1)))
	db := make([]byte, len(masked))
	subtle.XORBytes(db, masked, mask(h, there, len(masked)))
	db[0] &= top
	_, salt, found := bytes.Cut(db, []byte{1})
	if !found {
		return nil
	}
	right := pssHash(h, before, salt)
	if !bytes.Equal(right, there) && !zeros(db[:len(db)-len(salt)-1]) {
		return nil
	}
	moved := make([]byte, size)
	subtle.XORBytes(moved, there, right)
	subtle.XORBytes(moved, moved, pssHash(h, after, salt))
	out := make([]byte, len(em))
	subtle.XORBytes(out, db, mask(h, moved, len(db)))
	out[0] = out[0]&top | masked[0]&^top
	copy(out[len(db):], moved)
	out[len(out)-1] = em[len(em)-1]
	return out
}

func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func pssHash(h crypto.Hash, text, salt []byte) []byte {
	return digest(h, append(append(make([]byte, 8), digest(h, text)...), salt...))
}

// mask is MGF1 (RFC 8017 appendix B.2.1).
func mask(h crypto.Hash, seed []byte, n int) []byte {
	var out []byte
	for i := uint32(0); len(out) < n; i++ {
		out = append(out, digest(h, binary.BigEndian.AppendUint32(bytes.Clone(seed), i))...)
	}
	return out[:n]
}

func digest(h crypto.Hash, text []byte) []byte {
	w := h.New()
	w.Write(text)
	return w.Sum(nil)
}

// moveECDSA signs the new text and does to that signature what the vector did to
// a right one: bytes appended, or R and S off by a multiple of the order or of a
// word. A signature that was right for another text, or never (R and S zero,
// one, the order), is left as it is.
func (s *secret) moveECDSA(t *testing.T, sig []byte, before, after string) []byte {
	t.Helper()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), s.D.FillBytes(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	r, v, err := ecdsa.Sign(rand.Reader, k, digest(crypto.SHA256, []byte(after)))
	if err != nil {
		t.Fatal(err)
	}
	old := digest(crypto.SHA256, []byte(before))
	if len(sig) >= 64 && ecdsa.Verify(&k.PublicKey, old, integer(sig[:32]), integer(sig[32:64])) {
		return append(append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...), sig[64:]...)
	}
	half := len(sig) / 2
	word := new(big.Int).Lsh(big.NewInt(1), 256)
	for _, m := range []*big.Int{k.Params().N, word} {
		r0, offR := reduce(sig[:half], m)
		v0, offV := reduce(sig[half:], m)
		if !ecdsa.Verify(&k.PublicKey, old, r0, v0) {
			continue
		}
		if r.Add(r, offR).BitLen() <= 8*half && v.Add(v, offV).BitLen() <= 8*(len(sig)-half) {
			return append(r.FillBytes(make([]byte, half)), v.FillBytes(make([]byte, len(sig)-half))...)
		}
	}
	return sig
}

func integer(b []byte) *big.Int { return new(big.Int).SetBytes(b) }

// reduce splits a number into what is left of it modulo m and the multiple of m.
func reduce(b []byte, m *big.Int) (rest, multiple *big.Int) {
	n := new(big.Int).SetBytes(b)
	rest = new(big.Int).Mod(n, m)
	return rest, n.Sub(n, rest)
}
