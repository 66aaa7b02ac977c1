package authn

import (
	"crypto/rand"
	"hash/crc32"
	"math/big"
)

// An API key is "gbk_", 43 base62 digits that hold 256 random bits, and 6 that
// hold the CRC-32 (IEEE) of all before them. The prefix and the checksum let
// scanners of source code and logs know a key from other text, and let the gate
// refuse a typing error without looking anything up.
const (
	keyPrefix   = "gbk_"
	keyDigits   = 43 // base62 digits of 256 bits
	keySum      = 6  // base62 digits of 32 bits
	keyLen      = len(keyPrefix) + keyDigits + keySum
	keyAlphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// newAPIKey makes the text of a key.
func newAPIKey() string {
	var secret [32]byte
	rand.Read(secret[:])
	b := make([]byte, keyLen)
	copy(b, keyPrefix)
	// The number has keyDigits digits at most, since 62^43 > 2^256.
	n, base, digit := new(big.Int).SetBytes(secret[:]), big.NewInt(int64(len(keyAlphabet))), new(big.Int)
	for i := len(keyPrefix) + keyDigits - 1; i >= len(keyPrefix); i-- {
		n.DivMod(n, base, digit)
		b[i] = keyAlphabet[digit.Int64()]
	}
	sum := appendKeySum(nil, string(b[:keyLen-keySum]))
	copy(b[keyLen-keySum:], sum)
	return string(b)
}

// appendKeySum appends the checksum of a key's beginning.
func appendKeySum(to []byte, s string) []byte {
	// By hand, because crc32.Update would put its argument on the heap.
	sum := ^uint32(0)
	for i := range len(s) {
		sum = crc32.IEEETable[byte(sum)^s[i]] ^ sum>>8
	}
	sum = ^sum
	var digits [keySum]byte
	for i := keySum - 1; i >= 0; i-- {
		digits[i] = keyAlphabet[sum%uint32(len(keyAlphabet))]
		sum /= uint32(len(keyAlphabet))
	}
	return append(to, digits[:]...)
}

// HasKeyPrefix reports whether a credential says of itself that it is an API
// key, well formed or not. No other method may send such a thing anywhere.
func HasKeyPrefix(s string) bool {
	return len(s) >= len(keyPrefix) && s[:len(keyPrefix)] == keyPrefix
}

// wellFormed reports whether s has the form of an API key and its checksum.
func wellFormed(s string) bool {
	if len(s) != keyLen || !HasKeyPrefix(s) {
		return false
	}
	for i := len(keyPrefix); i < len(s); i++ {
		if !isAlphaNum(s[i]) {
			return false
		}
	}
	var buf [keySum]byte
	return string(appendKeySum(buf[:0], s[:keyLen-keySum])) == s[keyLen-keySum:]
}

// idAlphabet has no letters or digits that are mistaken for one another.
const idAlphabet = "23456789abcdefghjkmnpqrstuvwxyz"

// keyIDLen is the length of a key's public id, 49 bits.
const keyIDLen = 10

// newKeyID makes a public id.
func newKeyID() string {
	b := make([]byte, 0, keyIDLen)
	var one [1]byte
	for len(b) < keyIDLen {
		rand.Read(one[:])
		if n := int(one[0] & 31); n < len(idAlphabet) {
			b = append(b, idAlphabet[n])
		}
	}
	return string(b)
}

// isKeyID reports whether s has the form of a public id.
func isKeyID(s string) bool {
	if len(s) != keyIDLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '2' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
