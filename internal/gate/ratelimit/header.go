package ratelimit

import (
	"strconv"
	"time"
)

// maxInteger is the largest Integer of a structured field (RFC 9651 section
// 3.3.1).
const maxInteger = 999_999_999_999_999

// Policy is the rule as an item of the RateLimit-Policy field,
// `"per_subject";q=200;w=2`: the quota is the burst, the window the time in
// which a spent burst comes back, in seconds rounded up
// (draft-ietf-httpapi-ratelimit-headers-11 sections 3.1.1 and 3.1.3). Items of
// several rules are joined by a comma. An invalid rule has quota 0.
func (r *Rule) Policy() string {
	b := appendString(make([]byte, 0, 96), r.Name)
	b = append(b, ";q="...)
	if !r.valid() {
		return string(append(b, '0'))
	}
	b = strconv.AppendInt(b, r.Burst, 10)
	b = append(b, ";w="...)
	window := time.Duration(r.window().divCeil(uint64(r.Rate)))
	return string(strconv.AppendInt(b, max(seconds(window), 1), 10))
}

// Header is the result as an item of the RateLimit field,
// `"per_subject";r=50;t=30` (draft-ietf-httpapi-ratelimit-headers-11 section
// 4.1). The effective window t is the time until the bucket is full again, or
// for a refused request the time until the next one is admitted.
func (r *Rule) Header(res Result) string {
	b := appendString(make([]byte, 0, 96), r.Name)
	b = append(b, ";r="...)
	b = strconv.AppendInt(b, min(max(res.Remaining, 0), maxInteger), 10)
	b = append(b, ";t="...)
	return string(strconv.AppendInt(b, res.effectiveWindow(), 10))
}

// RetryAfterSeconds is the value of the Retry-After field of a refused
// request: whole seconds, rounded up, at least 1 and never before the end of
// the effective window that Header shows (section 6 of the draft).
func (res Result) RetryAfterSeconds() int64 {
	return max(seconds(res.RetryAfter), res.effectiveWindow(), 1)
}

func (res Result) effectiveWindow() int64 {
	if res.Allowed {
		return seconds(res.Reset)
	}
	return max(seconds(res.RetryAfter), 1)
}

// seconds rounds up and stays within an Integer.
func seconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	n := int64(d / time.Second)
	if d%time.Second > 0 {
		n++
	}
	return min(n, maxInteger)
}

// appendString writes an RFC 9651 String (section 4.1.6). Validate refuses
// names with other bytes; a field must stay well-formed all the same, so those
// become '_'.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c > 0x7e:
			b = append(b, '_')
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
