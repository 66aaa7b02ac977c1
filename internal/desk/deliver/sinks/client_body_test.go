package sinks

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// A body is the parts one behind the other, however they lie across the pieces
// that are compressed, and the same bytes every time.
func TestComposer(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, sizes := range map[string][]int{
		"nothing":             {},
		"empty":               {0, 0},
		"small":               {10, 20, 30},
		"one piece":           {zipPiece},
		"more and less":       {zipPiece - 1, 1, 1, zipPiece + 1, 2},
		"many in a part":      {3, 5*zipPiece + 7, 9},
		"beyond what is kept": {zipKept * 3, 1},
		"many":                bytesOf(2000, 300),
	} {
		parts, whole := make([][]byte, len(sizes)), []byte(nil)
		for i, n := range sizes {
			for len(parts[i]) < n {
				parts[i] = fmt.Appendf(parts[i], "%x,", rng.Uint64())
			}
			parts[i] = parts[i][:n]
			whole = append(whole, parts[i]...)
		}
		for _, zip := range []bool{false, true} {
			c := composer{gzip: zip}
			var first []byte
			for range 3 {
				body, raw := c.body(len(parts), len(whole), func(dst []byte, i int) []byte { return append(dst, parts[i]...) })
				if first == nil {
					first = body
				}
				if raw != len(whole) || !bytes.Equal(body, first) {
					t.Fatalf("%s: raw %d of %d, the same bytes: %t", name, raw, len(whole), bytes.Equal(body, first))
				}
			}
			if zip {
				z, err := gzip.NewReader(bytes.NewReader(first))
				if err != nil {
					t.Fatal(err)
				}
				if first, err = io.ReadAll(z); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(first, whole) {
				t.Errorf("%s, gzip %t: %d bytes of %d", name, zip, len(first), len(whole))
			}
		}
	}
}

func bytesOf(n, each int) (out []int) {
	for range n {
		out = append(out, each)
	}
	return out
}

// What comes between two pauses is short: a piece that is compressed, and an item
// of an answer.
func TestPausesBetweenPieces(t *testing.T) {
	z := newZipper()
	z.w.Reset(io.Discard)
	z.piece = bytes.Repeat([]byte("x"), 10*zipPiece+5)
	yields := 0
	z.full(func() { yields++ })
	if yields != 10 || len(z.piece) != 5 {
		t.Errorf("%d pauses in 10 pieces, %d bytes left", yields, len(z.piece))
	}
	body := []byte(`{"errors":false,"items":[`)
	sent := make([]deliver.Item, 1000)
	for i := range sent {
		if sent[i].ID = fmt.Sprint(i); i > 0 {
			body = append(body, ',')
		}
		body = fmt.Appendf(body, `{"create":{"_index":"x","_id":"%d","status":201,"result":"created"}}`, i)
	}
	yields = 0
	seen := 0
	if cause := parseBulk(append(body, "]}"...), sent, func() { yields++ }, func(int, *bulkItem) { seen++ }); cause != "" || yields < len(sent) || seen != len(sent) {
		t.Errorf("%q, %d pauses for %d items, %d seen", cause, yields, len(sent), seen)
	}
}
