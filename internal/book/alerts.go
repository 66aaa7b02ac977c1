package book

import "sync"

// alertCounts is how many alerts have been recorded since the start, by name.
// Alerts are rare and their names a closed list of the parts that raise them.
type alertCounts struct {
	mu sync.Mutex
	n  map[string]uint64 // under mu
}

func (c *alertCounts) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]uint64{}
	}
	c.n[name]++
}

// Alerts calls each for every name of which an alert has been recorded since the
// start: those of floods and whatever others raise. It is safe for concurrent
// use.
func (b *Book) Alerts(each func(name string, n uint64)) {
	b.alerts.mu.Lock()
	defer b.alerts.mu.Unlock()
	for name, n := range b.alerts.n {
		each(name, n)
	}
}
