package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time as the file writes it: whole numbers with
// units, largest first, such as "15ms", "90s", "1h30m" or "365d". A day is 24
// hours. It is never negative.
type Duration time.Duration

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// durationUnits lists the units, largest first.
var durationUnits = []struct {
	name string
	size time.Duration
}{
	{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second},
	{"ms", time.Millisecond}, {"us", time.Microsecond},
}

// String writes d in the form that ParseDuration reads. Parts below a
// microsecond, which ParseDuration never produces, are dropped.
func (d Duration) String() string {
	if d < Duration(time.Microsecond) {
		return "0s"
	}
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range durationUnits {
		if n := rest / u.size; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest -= n * u.size
		}
	}
	return b.String()
}

// ParseDuration reads a Duration. A number without a unit is an error, since
// readers disagree on what it would mean.
func ParseDuration(s string) (Duration, error) {
	const hint = "write a whole number with a unit (us, ms, s, m, h, d), such as 30s or 1h30m"
	if s == "" {
		return 0, errors.New("no duration; " + hint)
	}
	var total time.Duration
	last := -1
	for rest := s; rest != ""; {
		n, unit, tail := leadingNumber(rest)
		if n == "" {
			return 0, fmt.Errorf("not a duration: %s; %s", quote(s), hint)
		}
		if unit == "" {
			return 0, fmt.Errorf("a duration without a unit: %s; %s", quote(s), hint)
		}
		i := unitIndex(unit)
		if i < 0 {
			return 0, fmt.Errorf("unknown unit %s in duration %s; %s", quote(unit), quote(s), hint)
		}
		if i <= last {
			return 0, fmt.Errorf("units out of order in duration %s; %s", quote(s), hint)
		}
		v, err := strconv.ParseInt(n, 10, 64)
		if err != nil || v > int64((math.MaxInt64-total)/durationUnits[i].size) {
			return 0, fmt.Errorf("duration %s is too long; the longest is about 292 years", quote(s))
		}
		total += time.Duration(v) * durationUnits[i].size
		last, rest = i, tail
	}
	return Duration(total), nil
}

func unitIndex(unit string) int {
	for i, u := range durationUnits {
		if u.name == unit {
			return i
		}
	}
	return -1
}

// leadingNumber splits "30s1m" into "30", "s" and "1m".
func leadingNumber(s string) (number, unit, tail string) {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	j := i
	for j < len(s) && !isDigit(s[j]) {
		j++
	}
	return s[:i], s[i:j], s[j:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// Size is a number of bytes, written with a unit: "512B", "64KiB", "10MiB" or
// "1GiB". It is never negative.
type Size int64

var sizeUnits = []struct {
	name string
	size int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// String writes s in the largest unit that needs no fraction.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if int64(s) >= u.size && int64(s)%u.size == 0 {
			return strconv.FormatInt(int64(s)/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// ParseSize reads a Size. Decimal units (kB, MB) are refused because they are
// so often meant as binary ones.
func ParseSize(s string) (Size, error) {
	const hint = "write a whole number with a unit (B, KiB, MiB, GiB), such as 10MiB"
	n, unit, tail := leadingNumber(s)
	if n == "" || tail != "" {
		return 0, fmt.Errorf("not a size: %s; %s", quote(s), hint)
	}
	if unit == "" {
		return 0, fmt.Errorf("a size without a unit: %s; %s", quote(s), hint)
	}
	for _, u := range sizeUnits {
		if u.name != unit {
			continue
		}
		v, err := strconv.ParseInt(n, 10, 64)
		if err != nil || v > math.MaxInt64/u.size {
			return 0, fmt.Errorf("size %s is too large; %s", quote(s), hint)
		}
		return Size(v * u.size), nil
	}
	return 0, fmt.Errorf("unknown unit %s in size %s; %s", quote(unit), quote(s), hint)
}

// Rate is so many events per second, minute or hour, written "100/s", "20/m"
// or "1000/h".
type Rate struct {
	Count int64         // 1 to 1,000,000,000
	Per   time.Duration // one second, minute or hour
}

// maxRateCount keeps Count times a nanosecond interval far from overflow.
const maxRateCount = 1_000_000_000

// String writes r in the form that ParseRate reads.
func (r Rate) String() string {
	unit := "s"
	switch r.Per {
	case time.Minute:
		unit = "m"
	case time.Hour:
		unit = "h"
	}
	return strconv.FormatInt(r.Count, 10) + "/" + unit
}

// ParseRate reads a Rate. A rate of zero is an error: to deny a route, remove
// it or its roles.
func ParseRate(s string) (Rate, error) {
	const hint = "write a whole number per s, m or h, such as 100/s"
	n, unit, ok := strings.Cut(s, "/")
	if !ok {
		return Rate{}, fmt.Errorf("not a rate: %s; %s", quote(s), hint)
	}
	var per time.Duration
	switch unit {
	case "s":
		per = time.Second
	case "m":
		per = time.Minute
	case "h":
		per = time.Hour
	default:
		return Rate{}, fmt.Errorf("unknown unit %s in rate %s; %s", quote(unit), quote(s), hint)
	}
	if n == "" || strings.Trim(n, "0123456789") != "" {
		return Rate{}, fmt.Errorf("not a rate: %s; %s", quote(s), hint)
	}
	v, err := strconv.ParseInt(n, 10, 64)
	if err != nil || v < 1 || v > maxRateCount {
		return Rate{}, fmt.Errorf("rate %s is out of range; the number is 1 to %d", quote(s), maxRateCount)
	}
	return Rate{Count: v, Per: per}, nil
}

// Prefixes says how much of a client address stays in a record's frame: the
// leading bits of an IPv4 and of an IPv6 address, written "/24,/32", or "none"
// to keep no part of it. The zero value keeps nothing.
type Prefixes struct {
	V4, V6 int // bits kept, 0 to 32 and 0 to 128; both 0: none
}

// String writes p in the form that ParsePrefixes reads.
func (p Prefixes) String() string {
	if p == (Prefixes{}) {
		return "none"
	}
	return fmt.Sprintf("/%d,/%d", p.V4, p.V6)
}

// ParsePrefixes reads Prefixes.
func ParsePrefixes(s string) (Prefixes, error) {
	const hint = `write the bits kept of IPv4 and of IPv6, such as "/24,/32", or none`
	if s == "none" {
		return Prefixes{}, nil
	}
	a, b, ok := strings.Cut(s, ",")
	if !ok {
		return Prefixes{}, fmt.Errorf("not a pair of prefixes: %s; %s", quote(s), hint)
	}
	v4, err4 := prefixBits(strings.TrimSpace(a), 32)
	v6, err6 := prefixBits(strings.TrimSpace(b), 128)
	if err := errors.Join(err4, err6); err != nil {
		return Prefixes{}, fmt.Errorf("not a pair of prefixes: %s; %s", quote(s), hint)
	}
	return Prefixes{V4: v4, V6: v6}, nil
}

func prefixBits(s string, most int) (int, error) {
	digits, ok := strings.CutPrefix(s, "/")
	if !ok || digits == "" || len(digits) > 3 || strings.Trim(digits, "0123456789") != "" {
		return 0, errors.New("not a prefix length")
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n > most {
		return 0, errors.New("prefix length out of range")
	}
	return n, nil
}

// Path is the name of a file or directory. A relative one is resolved against
// the directory of the configuration file when that file is read.
type Path string

// quote makes a value from the file fit for one line of a message: quoted,
// without control characters, and cut when long.
func quote(s string) string {
	const most = 60
	cut := false
	if len(s) > 4*most {
		s, cut = s[:4*most], true
	}
	if r := []rune(s); len(r) > most {
		s, cut = string(r[:most]), true
	}
	if cut {
		s += "…"
	}
	return strconv.Quote(s)
}
