package keys

import (
	"errors"
	"io"

	bolt "go.etcd.io/bbolt"
)

// Copy writes the file of a store that OpenBolt opened, as it is at one moment.
// Updates that make the file larger wait for it to end, so w must be fast.
func Copy(w io.Writer, from Store) error {
	s, ok := from.(*boltStore)
	if !ok {
		return errors.New("only a key store on disk can be copied")
	}
	return closedErr(s.db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(w)
		return err
	}))
}
