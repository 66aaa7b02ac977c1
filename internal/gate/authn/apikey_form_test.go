package authn

import (
	"hash/crc32"
	"math/big"
	"strings"
	"testing"
)

func TestAPIKeyForm(t *testing.T) {
	seen := map[string]bool{}
	for range 500 {
		k := newAPIKey()
		if len(k) != 53 || !strings.HasPrefix(k, "gbk_") || !wellFormed(k) || seen[k] {
			t.Fatalf("key %q", k)
		}
		seen[k] = true
		// The checksum is that of the standard library over all before it.
		var want string
		for n, i := crc32.ChecksumIEEE([]byte(k[:47])), 0; i < 6; i++ {
			want = string(keyAlphabet[n%62]) + want
			n /= 62
		}
		if k[47:] != want {
			t.Fatalf("checksum of %q is %q, want %q", k, k[47:], want)
		}
	}
	// The digits hold 256 bits: none of 62^43 > 2^256 is cut.
	top := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	if n := len(top.Text(62)); n != keyDigits {
		t.Errorf("256 bits take %d digits", n)
	}
}

// A key with any one character changed, left out, added or swapped with its
// neighbour is refused by its form alone.
func TestAPIKeyTypos(t *testing.T) {
	k := newAPIKey()
	bad := []string{"", "gbk_", k + "0", "0" + k, k[:52], " " + k, k + " ", k + "\n", strings.ToUpper(k), strings.Replace(k, "gbk_", "gbx_", 1), strings.Repeat(k, 2), k + "\x00"}
	for i := range len(k) {
		bad = append(bad, k[:i]+k[i+1:], k[:i]+"é"+k[i+1:])
		for _, c := range []byte("0Az_-. ") {
			if k[i] != c {
				bad = append(bad, k[:i]+string(c)+k[i+1:])
			}
		}
		if i+1 < len(k) && k[i] != k[i+1] {
			bad = append(bad, k[:i]+k[i+1:i+2]+k[i:i+1]+k[i+2:])
		}
	}
	for _, s := range bad {
		if wellFormed(s) {
			t.Errorf("%q is taken for a key (of %q)", s, k)
		}
	}
}

func FuzzAPIKeyForm(f *testing.F) {
	k := newAPIKey()
	for _, s := range []string{k, k[:10], k + "x", "gbk_", "", strings.Repeat("0", 53), "gbk_" + strings.Repeat("0", 49), "gbk_" + strings.Repeat("z", 49)} {
		f.Add(s)
	}
	h := newKeyHouse(f)
	h.create(KeySpec{})
	a := h.auth(f)
	f.Fuzz(func(t *testing.T, s string) {
		ok := wellFormed(s)
		if ok {
			// What is well formed has one reading: take it apart and put it together.
			var sum [keySum]byte
			if len(s) != 53 || string(appendKeySum(sum[:0], s[:47])) != s[47:] || strings.Trim(s[4:], keyAlphabet) != "" {
				t.Fatalf("%q is well formed", s)
			}
		}
		want := "token_malformed"
		switch {
		case s == "":
			want = "not mine"
		case ok:
			want = "key_unknown"
		}
		if got := verdict(a, "x-api-key: "+s); got != want && !strings.Contains(s, ": ") {
			t.Fatalf("%q: %s, want %s", s, got, want)
		}
		if got := verdict(a, "authorization: Bearer "+s); got == "ok" {
			t.Fatalf("%q is taken", s)
		}
	})
}
