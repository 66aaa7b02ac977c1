package server

import (
	"github.com/gatebook/gatebook/internal/config"
)

// watcher finds out that files have changed and are not being changed.
type watcher struct {
	server *Server
	known  [32]byte // as of the last reload
	seen   [32]byte // at the last look
	failed bool     // the last look; it is logged once
}

func newWatcher(s *Server) *watcher {
	w := &watcher{server: s}
	w.taken()
	return w
}

func (w *watcher) look() ([32]byte, bool) {
	sum, err := config.ContentOf(w.server.now.Load().file.Sources())
	if err != nil && !w.failed {
		w.server.log.Error("the configuration's files cannot be watched", "err", err)
	}
	w.failed = err != nil
	return sum, err == nil
}

// taken notes that what is on the disk now is about to be loaded.
func (w *watcher) taken() {
	if sum, ok := w.look(); ok {
		w.known, w.seen = sum, sum
	}
}

// changed reports content that is new and the same as at the last look.
func (w *watcher) changed() bool {
	sum, ok := w.look()
	if !ok {
		return false
	}
	stable := sum == w.seen
	w.seen = sum
	return stable && sum != w.known
}
