package redact

import (
	"hash/maphash"
	"sync/atomic"
)

// harmless remembers strings of the frame in which no detector finds anything
// and that need no cut. The frame holds names of the configuration and words of
// closed lists, so that the same few strings come with every record. It keeps
// nothing that may not be in clear, is bounded, and safe for concurrent use.
type harmless struct {
	seed  maphash.Seed
	slots [1 << 8]atomic.Pointer[string]
}

const (
	minHarmless = len("219-09-9999") // shorter ones are as quick to look at as to look up
	maxHarmless = min(capName, capItem)
)

// has reports whether s is known. A collision makes it forget, never err.
func (h *harmless) has(s string) bool {
	if len(s) < minHarmless || len(s) > maxHarmless {
		return false
	}
	p := h.slot(s).Load()
	return p != nil && *p == s
}

func (h *harmless) add(s string) {
	if len(s) >= minHarmless && len(s) <= maxHarmless {
		kept := s
		h.slot(s).Store(&kept)
	}
}

func (h *harmless) slot(s string) *atomic.Pointer[string] {
	return &h.slots[maphash.String(h.seed, s)%uint64(len(h.slots))]
}
