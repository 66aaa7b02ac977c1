package wycheproof

import (
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"math/big"
	"testing"

	vectors "github.com/c2sp/wycheproof"
)

// vector is one token. The file it is from names it together with its number.
type vector struct {
	ID      int    `json:"tcId"`
	Comment string `json:"comment"`
	JWS     string `json:"jws"`
	Result  string `json:"result"` // valid or invalid
}

// group is some vectors for one key or key set.
type group struct {
	Comment string          `json:"comment"`
	Public  json.RawMessage `json:"public"`
	Private json.RawMessage `json:"private"`
	Tests   []vector        `json:"tests"`
}

// load reads one file of the vectors' module and wants it to hold as many as
// it says.
func load(t *testing.T, name string) []group {
	t.Helper()
	b, err := fs.ReadFile(vectors.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		NumberOfTests int     `json:"numberOfTests"`
		TestGroups    []group `json:"testGroups"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, g := range file.TestGroups {
		n += len(g.Tests)
	}
	if n == 0 || n != file.NumberOfTests {
		t.Fatalf("%s: %d vectors, the file says %d", name, n, file.NumberOfTests)
	}
	return file.TestGroups
}

// keySet is the group's key, or keys, as an issuer would publish them. Of a
// symmetric key there is only the one to publish by mistake.
func (g *group) keySet(t *testing.T) []byte {
	t.Helper()
	doc := g.Public
	if doc == nil {
		doc = g.Private
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err != nil {
		t.Fatal(err)
	}
	if set.Keys == nil {
		set.Keys = []json.RawMessage{doc}
	}
	b, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// number is an unsigned integer of a JWK (RFC 7518 section 2).
type number struct{ big.Int }

func (n *number) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return err
	}
	n.SetBytes(raw)
	return nil
}

// secret is the group's first private key: RSA if it has a modulus, else a
// scalar on P-256 or, if that is all zero, something symmetric.
type secret struct {
	N number `json:"n"`
	E number `json:"e"`
	D number `json:"d"`
}

func (g *group) secret(t *testing.T) *secret {
	t.Helper()
	doc := g.Private
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(doc, &set); err == nil && len(set.Keys) > 0 {
		doc = set.Keys[0]
	}
	var s secret
	if err := json.Unmarshal(doc, &s); err != nil {
		t.Fatalf("%s: %v", g.Comment, err)
	}
	return &s
}
