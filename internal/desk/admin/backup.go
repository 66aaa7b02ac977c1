package admin

import (
	"net/http"
)

// backup hands out the book as a tar archive. That somebody takes the whole
// book, perhaps with the keys to it, is on record before the first byte.
func (a *API) backup(w http.ResponseWriter, r *http.Request) error {
	withKeys := r.URL.Query().Get("with_keys") == "true"
	target := ""
	if withKeys {
		target = "with_keys"
	}
	if err := a.access(r, "backup", target, withKeys); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	_, err := a.book.Backup(w, withKeys)
	return err
}
