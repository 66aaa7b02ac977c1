package book

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"sync"
	"testing"
)

// A token's hash is one of the form that records have always had, whoever asks
// at the same time.
func TestTokenHash(t *testing.T) {
	b := &Book{tokens: [32]byte{1, 2, 3}}
	b.makePools()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			issuer, id := fmt.Sprintf("https://idp.example/%d", i%7), fmt.Sprint("jti-", i)
			m := hmac.New(sha256.New, b.tokens[:])
			fmt.Fprintf(m, "%d|%s%s", len(issuer), issuer, id)
			want := base64.RawURLEncoding.EncodeToString(m.Sum(nil)[:16])
			if got := b.TokenHash(issuer, id); got != want {
				t.Errorf("%s %s: %s, want %s", issuer, id, got, want)
			}
		})
	}
	wg.Wait()
}
