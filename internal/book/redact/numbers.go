package redact

import "strings"

// entropyMin is the shortest run of characters that is taken for a random
// string: 24 characters of base64url carry 144 bits.
const entropyMin = 24

// detectNumbers finds payment cards, IBANs and national ids.
func detectNumbers(s string, digits int) finding {
	if digits >= 13 && hasCard(s) {
		return foundCard
	}
	if digits >= 9 && hasSSN(s) {
		return foundNationalID
	}
	if hasIBAN(s) {
		return foundIBAN
	}
	return nothing
}

// hasCard reports whether s holds a card number: 13 to 19 digits in one group,
// or in groups of four or more set apart by one space, plus or dash, that
// begin as card numbers do and pass the Luhn check (ISO/IEC 7812-1 annex B).
func hasCard(s string) bool {
	for i := 0; i < len(s); {
		if !isDigit(s[i]) {
			i++
			continue
		}
		if cardAt(s[i:]) {
			return true
		}
		for i < len(s) && isDigit(s[i]) {
			i++
		}
	}
	return false
}

// cardAt looks at the groups of digits that start s, at most 19 digits.
func cardAt(s string) bool {
	var d [19]byte
	n := 0
	for i := 0; ; {
		start := i
		for i < len(s) && isDigit(s[i]) {
			if n == len(d) {
				return false
			}
			d[n] = s[i] - '0'
			n++
			i++
		}
		if n >= 13 && cardPrefix(d[:n]) && luhn(d[:n]) {
			return true
		}
		if i-start < 4 || i+1 >= len(s) || strings.IndexByte(" -+", s[i]) < 0 || !isDigit(s[i+1]) {
			return false
		}
		i++
	}
}

// cardPrefix reports whether the digits begin and are as many as those of a
// card scheme.
func cardPrefix(d []byte) bool {
	two := int(d[0])*10 + int(d[1])
	four := two*100 + int(d[2])*10 + int(d[3])
	switch n := len(d); {
	case d[0] == 4: // Visa
		return n == 13 || n == 16 || n == 19
	case two >= 51 && two <= 55, four >= 2221 && four <= 2720: // Mastercard
		return n == 16
	case two == 34, two == 37: // American Express
		return n == 15
	case two == 30, two == 36, two == 38, two == 39: // Diners Club
		return n >= 14
	case two == 35, d[0] == 6, two == 50, two >= 56 && two <= 58, two == 22, two == 81: // JCB, Discover, UnionPay, Maestro, Mir, RuPay
		return n >= 16
	}
	return false
}

func luhn(d []byte) bool {
	sum := 0
	for i := range d {
		v := int(d[len(d)-1-i])
		if i%2 == 1 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

// hasSSN reports whether s holds a United States social security number with
// its dashes, which are what sets it apart from other numbers.
func hasSSN(s string) bool {
	for i := 0; i+11 <= len(s); i++ {
		if s[i+3] != '-' || s[i+6] != '-' || i > 0 && (isAlnum(s[i-1]) || s[i-1] == '-') ||
			i+11 < len(s) && (isAlnum(s[i+11]) || s[i+11] == '-') {
			continue
		}
		ok := true
		for _, k := range [...]int{0, 1, 2, 4, 5, 7, 8, 9, 10} {
			ok = ok && isDigit(s[i+k])
		}
		if ok && s[i:i+3] != "000" && s[i:i+3] != "666" && s[i] != '9' && s[i+4:i+6] != "00" && s[i+7:i+11] != "0000" {
			return true
		}
	}
	return false
}

// ibanLengths gives the length of each country's IBAN (SWIFT IBAN registry),
// as country code and two digits.
const ibanLengths = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30"

// hasIBAN reports whether s holds an IBAN with the length of its country and
// a right checksum (ISO 13616), in either case and with single spaces or plus
// signs between groups.
func hasIBAN(s string) bool {
	for i := 0; i+15 <= len(s); i++ {
		if isDigit(s[i]) || !isAlnum(s[i]) || isDigit(s[i+1]) || !isAlnum(s[i+1]) || !isDigit(s[i+2]) || !isDigit(s[i+3]) {
			continue
		}
		if ibanAt(s[i:]) {
			return true
		}
	}
	return false
}

func ibanAt(s string) bool {
	size := 0
	for k := 0; k < len(ibanLengths); k += 4 {
		if s[0]&^0x20 == ibanLengths[k] && s[1]&^0x20 == ibanLengths[k+1] {
			size = int(ibanLengths[k+2]-'0')*10 + int(ibanLengths[k+3]-'0')
		}
	}
	if size == 0 {
		return false
	}
	var b [34]byte
	n := 0
	for i := 0; i < len(s) && n < size; i++ {
		switch c := s[i]; {
		case isAlnum(c):
			b[n] = c
			n++
		case (c == ' ' || c == '+') && i+1 < len(s) && isAlnum(s[i+1]):
		default:
			return false
		}
	}
	if n < size {
		return false
	}
	mod := 0
	for i := range size {
		c := b[(i+4)%size] // the first four go to the end
		if isDigit(c) {
			mod = (mod*10 + int(c-'0')) % 97
		} else {
			mod = (mod*100 + int(c&^0x20-'A') + 10) % 97
		}
	}
	return mod == 1
}

// highEntropy reports whether s holds a run that looks random. UUIDs and ULIDs
// do not count: they are identifiers everywhere.
func highEntropy(s string) bool {
	for i := 0; i < len(s); {
		if class[s[i]]&cToken == 0 {
			i++
			continue
		}
		n := tokenRun(s[i:], len(s))
		if randomRun(s[i : i+n]) {
			return true
		}
		i += n
	}
	return false
}

// randomRun looks at a run of token characters, UUIDs taken out.
func randomRun(run string) bool {
	from := 0
	for j := 0; j+36 <= len(run); j++ {
		if (j == 0 || !isHex(run[j-1])) && isUUID(run[j:j+36]) && (j+36 == len(run) || !isHex(run[j+36])) {
			if randomPart(run[from:j]) {
				return true
			}
			from = j + 36
			j += 35
		}
	}
	return randomPart(run[from:])
}

// randomPart judges by how often neighbours change between digit, small and
// capital letter: half of the time or more in base64, rarely in words, dates
// and CamelCase (where the step from capital to small letter is not counted).
func randomPart(s string) bool {
	s = strings.Trim(s, "-_+=")
	if len(s) < entropyMin || isULID(s) {
		return false
	}
	var seen [2]uint64
	all, steps, distinct := uint8(0xff), 0, 0
	digits := 0
	for i := range len(s) {
		c := s[i]
		all &= class[c]&^(cDigit|cLower|cUpper) | hexClass(c)
		if seen[c>>6]&(1<<(c&63)) == 0 {
			seen[c>>6] |= 1 << (c & 63)
			distinct++
		}
		digits += int(class[c] & cDigit)
		if i > 0 && isAlnum(c) && isAlnum(s[i-1]) {
			was, is := class[s[i-1]]&(cDigit|cLower|cUpper), class[c]&(cDigit|cLower|cUpper)
			if was != is && !(was == cUpper && is == cLower) {
				steps++
			}
		}
	}
	if all&cHexLetter != 0 { // hex digits only
		return len(s) >= 32 && digits < len(s) && digits > 0
	}
	return distinct >= 10 && steps*5 >= len(s)-1
}

// hexClass is cHexLetter for a hex digit.
func hexClass(c byte) uint8 {
	if isHex(c) {
		return cHexLetter
	}
	return 0
}

// isUUID reports whether s has the form of RFC 9562 section 4, in either case.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return false
			}
		} else if !isHex(s[i]) {
			return false
		}
	}
	return true
}

// isULID reports whether s is a ULID: 26 characters of Crockford's base32, the
// first at most 7.
func isULID(s string) bool {
	if len(s) != 26 || s[0] > '7' {
		return false
	}
	for i := range len(s) {
		if c := s[i] &^ 0x20; !isDigit(s[i]) && (c < 'A' || c > 'Z' || c == 'I' || c == 'L' || c == 'O' || c == 'U') {
			return false
		}
	}
	return true
}
