package detect

import "time"

// begin is when records of tests begin, in µs.
var begin = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC).UnixMicro()
