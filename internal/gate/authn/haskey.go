package authn

// HasKey tells whether a key with this id is loaded: such ids may be written
// into records, others come from strangers. It is fast and safe for concurrent
// use.
func (j *JWT) HasKey(kid string) bool {
	ks := j.keys.loaded.Load()
	return ks != nil && ks.keys[kid] != nil
}
