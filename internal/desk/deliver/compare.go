package deliver

import "time"

// maxCompare bounds a window of comparison.
const maxCompare = 1 << 20

// comparing is what a runner knows of comparisons under way.
type comparing struct{}

func (r *runner) comparable() bool { return false }

func (r *runner) compareIfDue(time.Time) {}
