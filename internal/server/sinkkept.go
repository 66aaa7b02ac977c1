package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/kv"
)

// sinkTable is where the state beside the book keeps what sinks are.
const sinkTable = "sinks"

// sinkKept is what outlives the process of a sink, beside its cursor. Destroying
// it cuts what the sink holds off from the book: its pseudonyms come from Key.
type sinkKept struct {
	Type   string `json:"type"`
	Target string `json:"target"` // digest of where it is
	Key    []byte `json:"key"`
}

// sinkTarget is a digest of where a sink puts records: the cursor says what is
// there.
func sinkTarget(c *config.Sink) string {
	h := sha256.New()
	for _, s := range []string{c.URL, c.Site, string(c.Path), c.Index, c.Stream} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// keptOf reads what is kept of a sink, or makes it. A name that was of another
// type is refused: its cursor says what another system has.
func keptOf(ctx context.Context, store kv.Store, c *config.Sink) (*sinkKept, error) {
	b, err := store.Get(ctx, sinkTable, c.Name)
	if errors.Is(err, kv.ErrNotFound) {
		k := &sinkKept{Type: c.Type, Target: sinkTarget(c), Key: make([]byte, 32)}
		rand.Read(k.Key) // never fails
		return k, k.put(ctx, store, c.Name)
	}
	if err != nil {
		return nil, err
	}
	k := &sinkKept{}
	if err := decodeStrict(b, k); err != nil || len(k.Key) != 32 {
		return nil, errors.New("what is kept of it is damaged; put the state beside the book back from a backup")
	}
	if k.Type != c.Type {
		return nil, fmt.Errorf("it was of the type %s, and its cursor says what that system has; give the sink of the type %s another name", k.Type, c.Type)
	}
	return k, nil
}

func (k *sinkKept) put(ctx context.Context, store kv.Store, name string) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return store.Put(ctx, sinkTable, name, b, time.Time{})
}

// sinkPrint is a digest of all that a sink is made of: a sink that is declared
// as before goes on untouched.
func sinkPrint(f *config.File, c *config.Sink, k *sinkKept) (string, error) {
	plain := *c
	plain.Path = "" // it is written and not read
	print, err := f.Fingerprint(&struct {
		Sink *config.Sink `key:"sink"`
		At   string       `key:"at"`
	}{&plain, string(c.Path)})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(append(print[:], k.Key...), f.Node...))
	return hex.EncodeToString(sum[:16]), nil
}
