package verifier2

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// verifierKey is a parsed verifier key (section 3).
type verifierKey struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func parseVerifierKey(s string) (verifierKey, error) {
	parts := strings.SplitN(s, "+", 3)
	if len(parts) != 3 || parts[0] == "" {
		return verifierKey{}, errors.New("verifier key: not name+hash+key")
	}
	h, err := strconv.ParseUint(parts[1], 16, 32)
	if err != nil || len(parts[1]) != 8 {
		return verifierKey{}, errors.New("verifier key: hash")
	}
	raw, err := decodeBase64(parts[2])
	if err != nil || len(raw) != 33 || raw[0] != 1 {
		return verifierKey{}, errors.New("verifier key: not an Ed25519 key")
	}
	sum := sha256.Sum256([]byte(parts[0] + "\n" + string(raw)))
	if binary.BigEndian.Uint32(sum[:]) != uint32(h) {
		return verifierKey{}, errors.New("verifier key: hash and key differ")
	}
	return verifierKey{parts[0], uint32(h), raw[1:]}, nil
}

// decodeBase64 refuses what the library skips: line breaks.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(s)
}

// openNote returns the text of a note that the key has signed.
func openNote(b []byte, key verifierKey) (string, error) {
	if len(b) > 1_000_000 || !utf8.Valid(b) {
		return "", errors.New("too long or not UTF-8")
	}
	if bytes.ContainsFunc(b, func(r rune) bool { return r < 0x20 && r != '\n' }) {
		return "", errors.New("control character")
	}
	at := strings.LastIndex(string(b), "\n\n")
	if at < 0 {
		return "", errors.New("no empty line")
	}
	text, lines := string(b[:at+1]), string(b[at+2:])
	if !strings.HasSuffix(lines, "\n") {
		return "", errors.New("no line break at the end")
	}
	good := false
	for n, line := range strings.Split(strings.TrimSuffix(lines, "\n"), "\n") {
		rest, ok := strings.CutPrefix(line, "— ")
		name, sig64, ok2 := strings.Cut(rest, " ")
		sig, err := base64.StdEncoding.DecodeString(sig64)
		if !ok || !ok2 || name == "" || strings.Contains(name, "+") || err != nil || len(sig) < 5 || n >= 100 {
			return "", fmt.Errorf("signature line %q", line)
		}
		if name != key.name || binary.BigEndian.Uint32(sig) != key.hash {
			continue
		}
		if len(sig) != 4+ed25519.SignatureSize || !ed25519.Verify(key.key, []byte(text), sig[4:]) {
			return "", errors.New("wrong signature")
		}
		good = true
	}
	if !good {
		return "", errors.New("not signed by the key")
	}
	return text, nil
}
