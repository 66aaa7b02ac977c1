package keys

// Inspect checks the pages of a bbolt file that lies beside the key store, as
// OpenBolt checks those of the key store itself: a file that is empty or not
// there is fine, ErrLocked means that somebody has it open, ErrStoreDamaged that
// it must not be given to bbolt.
func Inspect(path string) error { return inspect(path, openPrivate) }
