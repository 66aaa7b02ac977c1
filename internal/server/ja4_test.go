package server

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"net"
	"slices"
	"testing"
)

// rawHello builds a ClientHello in records of at most size bytes.
type rawHello struct {
	legacy     uint16
	ciphers    []uint16
	extensions []rawExtension
}

type rawExtension struct {
	id   uint16
	body []byte
}

func be16(values ...uint16) (out []byte) {
	for _, v := range values {
		out = binary.BigEndian.AppendUint16(out, v)
	}
	return out
}

func sized(width int, b []byte) []byte {
	var n [4]byte
	binary.BigEndian.PutUint32(n[:], uint32(len(b)))
	return append(slices.Clone(n[4-width:]), b...)
}

func (h rawHello) bytes(size int) []byte {
	body := be16(h.legacy)
	body = append(body, make([]byte, 32)...)
	body = append(body, sized(1, nil)...)
	body = append(body, sized(2, be16(h.ciphers...))...)
	body = append(body, sized(1, []byte{0})...)
	if h.extensions != nil {
		var ext []byte
		for _, e := range h.extensions {
			ext = append(append(ext, be16(e.id)...), sized(2, e.body)...)
		}
		body = append(body, sized(2, ext)...)
	}
	msg := append([]byte{1}, sized(3, body)...)
	var out []byte
	for len(msg) > 0 {
		n := min(size, len(msg))
		out = append(append(out, 22, 3, 1), sized(2, msg[:n])...)
		msg = msg[n:]
	}
	return out
}

// ids makes extensions without content.
func ids(values ...uint16) (out []rawExtension) {
	for _, v := range values {
		out = append(out, rawExtension{id: v})
	}
	return out
}

// published is the worked example of the JA4 description: Chrome over TCP.
func published() rawHello {
	h := rawHello{
		legacy:     0x0303,
		ciphers:    []uint16{0x3a3a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c, 0x009d, 0x002f, 0x0035},
		extensions: ids(0xeaea, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023, 0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015, 0x1a1a),
	}
	for i := range h.extensions {
		e := &h.extensions[i]
		switch e.id {
		case 0x0000:
			e.body = sized(2, append([]byte{0}, sized(2, []byte("Api.Example.com"))...))
		case 0x0010:
			e.body = sized(2, append(sized(1, []byte("h2")), sized(1, []byte("http/1.1"))...))
		case 0x002b:
			e.body = sized(1, be16(0x6a6a, 0x0304, 0x0303))
		case 0x000d:
			e.body = sized(2, be16(0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601))
		}
	}
	return h
}

func TestJA4(t *testing.T) {
	without := func(id uint16) rawHello {
		h := published()
		h.extensions = slices.DeleteFunc(h.extensions, func(e rawExtension) bool { return e.id == id })
		return h
	}
	noAlgorithms := published()
	for i, e := range noAlgorithms.extensions {
		if e.id == 0x000d {
			noAlgorithms.extensions[i].body = nil
		}
	}
	for name, tc := range map[string]struct {
		h    rawHello
		want string
	}{
		"published":               {published(), "t13d1516h2_8daaf6152771_e5627efa2ab1"},
		"no algorithms":           {noAlgorithms, "t13d1516h2_8daaf6152771_6d807ffa2a79"},
		"no server name":          {without(0), "t13i1515h2_8daaf6152771_e5627efa2ab1"},
		"no ALPN":                 {without(16), "t13d151500_8daaf6152771_e5627efa2ab1"},
		"no versions":             {without(43), "t12d1515h2_8daaf6152771_8d4582d59f63"},
		"SSL 3.0":                 {rawHello{legacy: 0x0300, ciphers: []uint16{0x002f}}, "ts3i010000_" + ja4Hash("002f") + "_000000000000"},
		"TLS 1.0, only GREASE":    {rawHello{legacy: 0x0301, ciphers: []uint16{0x0a0a}, extensions: ids(0x0a0a)}, "t10i000000_000000000000_000000000000"},
		"TLS 1.1, only the names": {rawHello{legacy: 0x0302, ciphers: []uint16{0x00ff}, extensions: ids(0, 16)}, "t11d010200_" + ja4Hash("00ff") + "_000000000000"},
		"unknown version":         {rawHello{legacy: 0x0505, ciphers: []uint16{0x002f}}, "t00i010000_" + ja4Hash("002f") + "_000000000000"},
	} {
		for _, size := range []int{16384, 7, 1} {
			h := parseHello(append(tc.h.bytes(size), "more"...))
			if h == nil {
				t.Fatalf("%s in records of %d: nothing", name, size)
			}
			if got := h.ja4(); got != tc.want {
				t.Errorf("%s in records of %d: %s, want %s", name, size, got, tc.want)
			}
		}
	}
	if h := parseHello(published().bytes(100)); h.sni != "Api.Example.com" || !slices.Equal(h.offered(), []uint16{0x0304, 0x0303}) {
		t.Errorf("%q %x", h.sni, h.offered())
	}
}

func TestJA4ALPN(t *testing.T) {
	for p, want := range map[string]string{
		"": "00", "h2": "h2", "http/1.1": "h1", "x": "xx", "\xab": "ab", "\xab\xcd": "ad", "\x30\xab": "3b",
		"\x30\x31\xab\xcd": "3d", "\x30\xab\xcd\x31": "01",
	} {
		if got := ja4ALPN(p); got != want {
			t.Errorf("%x: %s, want %s", p, got, want)
		}
	}
}

// TestHelloOfGo reads what crypto/tls sends.
func TestHelloOfGo(t *testing.T) {
	mine, theirs := net.Pipe()
	go func() {
		_ = tls.Client(theirs, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}).Handshake()
	}()
	buf := make([]byte, maxHello)
	n, err := mine.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	for h := parseHello(buf[:n]); h == nil; h = parseHello(buf[:n]) {
		m, err := mine.Read(buf[n:])
		if n += m; err != nil {
			t.Fatal(err)
		}
	}
	mine.Close()
	h := parseHello(buf[:n])
	if h.sni != "api.example.com" || h.alpn != "http/1.1" || !slices.Equal(h.offered(), []uint16{tls.VersionTLS13, tls.VersionTLS12}) || len(h.signatures) == 0 {
		t.Errorf("%+v", h)
	}
	if got := h.ja4(); len(got) != 36 || got[:4] != "t13d" || got[8:10] != "h1" {
		t.Error(got)
	}
	for cut := range n {
		if parseHello(buf[:cut]) != nil && cut < n {
			if got := parseHello(buf[:cut]); got.ja4() != h.ja4() {
				t.Fatalf("half of it at %d", cut)
			}
		}
	}
}

func TestOldHello(t *testing.T) {
	if h := parseHello([]byte("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10")); h == nil || h.offered()[0] != 2 {
		t.Errorf("%+v", h)
	}
	for _, raw := range []string{"", "\x16", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x00", "\x16\x03\x01\x00\x04\x02\x00\x00\x00", "\x15\x03\x01\x00\x02\x01\x00"} {
		if h := parseHello([]byte(raw)); h != nil {
			t.Errorf("%q: %+v", raw, h)
		}
	}
}

func FuzzHello(f *testing.F) {
	f.Add(published().bytes(16384))
	f.Add(published().bytes(3))
	f.Add([]byte("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if h := parseHello(raw); h != nil {
			if got := h.ja4(); len(got) != 36 {
				t.Errorf("%q", got)
			}
		}
		if again := parseHello(append(bytes.Clone(raw), 0)); parseHello(raw) != nil && raw[0] == 22 && again.ja4() != parseHello(raw).ja4() {
			t.Error("what follows a hello changes it")
		}
	})
}
