package server

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// hello is what a TLS ClientHello offers, read without believing that it is
// one that crypto/tls takes: the hellos that fail are those of interest.
type hello struct {
	legacy     uint16   // the version field of old
	versions   []uint16 // of supported_versions, without GREASE
	ciphers    []uint16 // without GREASE
	extensions []uint16 // without GREASE, in their order
	signatures []uint16 // without GREASE, in their order
	alpn       string   // the first protocol
	sni        string
}

// The extensions that are looked into (IANA TLS ExtensionType Values).
const (
	extServerName          = 0
	extSignatureAlgorithms = 13
	extALPN                = 16
	extSupportedVersions   = 43
)

// offered are the versions that the client would speak.
func (h *hello) offered() []uint16 {
	if len(h.versions) > 0 {
		return h.versions
	}
	return []uint16{h.legacy}
}

// grease reports the values that clients send to keep servers tolerant
// (RFC 8701).
func grease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// take cuts n bytes off the front of *b. It is nil if there are not as many.
func take(b *[]byte, n int) []byte {
	if n < 0 || n > len(*b) {
		*b = nil
		return nil
	}
	out := (*b)[:n]
	*b = (*b)[n:]
	return out
}

// vector cuts a vector off the front of *b whose length stands before it in
// size bytes.
func vector(b *[]byte, size int) []byte {
	n := 0
	for _, c := range take(b, size) {
		n = n<<8 | int(c)
	}
	return take(b, n)
}

// numbers reads a list of 16-bit values and leaves GREASE out.
func numbers(b []byte) (out []uint16) {
	for ; len(b) >= 2; b = b[2:] {
		if v := binary.BigEndian.Uint16(b); !grease(v) {
			out = append(out, v)
		}
	}
	return out
}

// parseHello reads the ClientHello at the front of what a client sent: a
// handshake message in one or more records (RFC 8446 sections 4.1.2 and 5.1).
// Of a hello in the form of SSL 2.0 only the version is known. Nil: there is
// none, or not all of it.
func parseHello(raw []byte) *hello {
	if len(raw) >= 5 && raw[0]&0x80 != 0 && raw[2] == 1 {
		return &hello{legacy: binary.BigEndian.Uint16(raw[3:5])}
	}
	msg := handshakeMessage(raw)
	if len(msg) < 4 || msg[0] != 1 {
		return nil
	}
	msg = msg[4:]
	h := new(hello)
	if v := take(&msg, 2); v != nil {
		h.legacy = binary.BigEndian.Uint16(v)
	}
	take(&msg, 32)  // random
	vector(&msg, 1) // session id
	h.ciphers = numbers(vector(&msg, 2))
	vector(&msg, 1) // compression
	for ext := vector(&msg, 2); len(ext) >= 4; {
		id := binary.BigEndian.Uint16(take(&ext, 2))
		body := vector(&ext, 2)
		if !grease(id) {
			h.extensions = append(h.extensions, id)
			h.extension(id, body)
		}
	}
	return h
}

// handshakeMessage joins the records of the first handshake message. It is nil
// if not all of it is there.
func handshakeMessage(raw []byte) []byte {
	var msg []byte
	for len(raw) >= 5 && raw[0] == 22 && raw[1] == 3 {
		size := int(binary.BigEndian.Uint16(raw[3:5]))
		raw = raw[5:]
		msg = append(msg, raw[:min(size, len(raw))]...)
		if len(msg) >= 4 {
			want := 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
			if len(msg) >= want {
				return msg[:want]
			}
		}
		if size == 0 || size >= len(raw) {
			return nil
		}
		raw = raw[size:]
	}
	return nil
}

func (h *hello) extension(id uint16, body []byte) {
	switch id {
	case extServerName:
		list := vector(&body, 2)
		if kind := take(&list, 1); len(kind) == 1 && kind[0] == 0 {
			h.sni = string(vector(&list, 2))
		}
	case extSignatureAlgorithms:
		h.signatures = numbers(vector(&body, 2))
	case extALPN:
		list := vector(&body, 2)
		h.alpn = string(vector(&list, 1))
	case extSupportedVersions:
		h.versions = numbers(vector(&body, 1))
	}
}

// ja4 is the JA4 fingerprint of a hello over TCP (FoxIO, "JA4: TLS Client
// Fingerprinting", technical details).
func (h *hello) ja4() string {
	sni := byte('i')
	if slices.Contains(h.extensions, extServerName) {
		sni = 'd'
	}
	a := fmt.Sprintf("t%s%c%02d%02d%s", ja4Version(slices.Max(h.offered())), sni, min(len(h.ciphers), 99), min(len(h.extensions), 99), ja4ALPN(h.alpn))
	b, c := ja4None, ja4None
	rest := slices.DeleteFunc(slices.Clone(h.extensions), func(v uint16) bool { return v == extServerName || v == extALPN })
	if len(rest) > 0 {
		slices.Sort(rest)
		text := hexList(rest)
		if len(h.signatures) > 0 {
			text += "_" + hexList(h.signatures)
		}
		c = ja4Hash(text)
	}
	if len(h.ciphers) > 0 {
		b = ja4Hash(hexList(slices.Sorted(slices.Values(h.ciphers))))
	}
	return a + "_" + b + "_" + c
}

// ja4None stands for the hash of an empty list.
const ja4None = "000000000000"

func ja4Version(v uint16) string {
	switch v {
	case 0x0304:
		return "13"
	case 0x0303:
		return "12"
	case 0x0302:
		return "11"
	case 0x0301:
		return "10"
	case 0x0300:
		return "s3"
	case 0x0002, 0x0200:
		return "s2"
	}
	return "00"
}

// ja4ALPN is the first and last character of the first protocol, or of its
// hexadecimal form if either is no letter or digit.
func ja4ALPN(p string) string {
	if p == "" {
		return "00"
	}
	if first, last := p[0], p[len(p)-1]; alnum(first) && alnum(last) {
		return string([]byte{first, last})
	}
	x := hex.EncodeToString([]byte(p))
	return x[:1] + x[len(x)-1:]
}

func alnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func hexList(values []uint16) string {
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = fmt.Sprintf("%04x", v)
	}
	return strings.Join(parts, ",")
}

func ja4Hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}
