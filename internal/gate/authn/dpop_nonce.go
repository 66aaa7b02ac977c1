package authn

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// defaultNonceTime is how long a server nonce is the newest one.
const defaultNonceTime = 5 * time.Minute

// nonceBytes are the number of the period and a truncated MAC of it.
const nonceBytes = 8 + 16

// Nonces hands out the nonces that clients must put into their DPoP proofs (RFC
// 9449 section 8) and knows them again without keeping any: a nonce is the
// number of a period and a MAC over it. That of the period before is taken too.
// Nodes that share the key take each other's. Safe for concurrent use.
type Nonces struct {
	key    [32]byte
	period time.Duration
}

// NewNonces makes nonces that change once a period; 0 means 5 min, and a whole
// number of seconds is wanted.
func NewNonces(key [32]byte, period time.Duration) *Nonces {
	if period < time.Second {
		period = defaultNonceTime
	}
	return &Nonces{key, period}
}

// At returns the nonce of a time.
func (n *Nonces) At(now time.Time) string { return n.of(n.number(now)) }

func (n *Nonces) number(now time.Time) uint64 {
	return uint64(max(now.Unix(), 0)) / uint64(n.period/time.Second)
}

func (n *Nonces) of(number uint64) string {
	var b [8 + sha256.Size]byte
	binary.BigEndian.PutUint64(b[:8], number)
	m := hmac.New(sha256.New, n.key[:])
	m.Write([]byte("gatebook dpop nonce"))
	m.Write(b[:8])
	m.Sum(b[8:8])
	return base64.RawURLEncoding.EncodeToString(b[:nonceBytes])
}

// check says whether a nonce is one of ours that still counts; fresh is what
// the client should use from now on, "" if it has that.
func (n *Nonces) check(nonce string, now time.Time) (ok bool, fresh string) {
	number := n.number(now)
	current := n.of(number)
	if hmac.Equal([]byte(nonce), []byte(current)) {
		return true, ""
	}
	return number > 0 && hmac.Equal([]byte(nonce), []byte(n.of(number-1))), current
}
