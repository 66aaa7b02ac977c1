package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// rising takes every HEADERS on a higher stream for a request.
type rising struct{ max uint32 }

func (e *rising) Frame(f canon.H2Frame) (bool, *canon.H2Error) {
	if f.Type != canon.H2Headers || f.Stream <= e.max {
		return false, nil
	}
	e.max = f.Stream
	return true, nil
}

// rewrite sends wire through the gate's reader. Refused says that the reader
// ended the connection.
func rewrite(wire []byte) (out []byte, refused bool) {
	r := canon.NewH2Reader(bytes.NewReader(wire), &rising{})
	out, err := io.ReadAll(r)
	return out, err != nil
}

// frame is what another implementation makes of one frame.
type frame struct {
	text   string // header and payload, header blocks apart
	fields []hpack.HeaderField
	opens  bool
	stream uint32
	err    string
}

// read takes a connection apart, up to its first error that ends it.
func read(wire []byte) (all []frame) {
	rest, ok := bytes.CutPrefix(wire, []byte(canon.H2Preface))
	if !ok {
		return nil
	}
	fr := http2.NewFramer(io.Discard, bytes.NewReader(rest))
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.MaxHeaderListSize = 1 << 24
	fr.SetMaxReadFrameSize(1 << 14)
	var highest uint32
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return all
			}
			all = append(all, frame{err: err.Error()})
			if !errors.As(err, new(http2.StreamError)) {
				return all
			}
			continue
		}
		one := frame{stream: f.Header().StreamID}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			one.fields = f.Fields
			one.opens = one.stream > highest
			highest = max(highest, one.stream)
			one.text = fmt.Sprint("HEADERS ", f.StreamEnded(), f.Priority, f.Truncated)
		case *http2.DataFrame:
			one.text = fmt.Sprint(f.Header(), string(f.Data()))
		default:
			one.text = fmt.Sprint(f.Header())
		}
		all = append(all, one)
	}
}

// same checks that after is before, with our field at the end of each request.
func same(t *testing.T, before, after []frame) {
	t.Helper()
	if len(before) != len(after) {
		t.Fatalf("%d frames became %d\n%v\n%v", len(before), len(after), before, after)
	}
	for i, b := range before {
		a := after[i]
		if a.text != b.text || a.stream != b.stream || a.err != b.err {
			t.Fatalf("frame %d: %v became %v", i, b, a)
		}
		if b.opens {
			last := len(a.fields) - 1
			if last < 0 || a.fields[last].Name != canon.H2StreamField || a.fields[last].Sensitive {
				t.Fatalf("frame %d: our field is missing: %v", i, a.fields)
			}
			stream, secure, ok := canon.ParseH2Stream(a.fields[last].Value)
			if !ok || stream != b.stream {
				t.Fatalf("frame %d on stream %d says %q", i, b.stream, a.fields[last].Value)
			}
			for _, f := range b.fields {
				if f.Name == ":scheme" && f.Value != "https" && secure {
					t.Fatalf("frame %d: :scheme %s taken for https", i, f.Value)
				}
			}
			a.fields = a.fields[:last]
		}
		if fmt.Sprint(a.fields) != fmt.Sprint(b.fields) {
			t.Fatalf("frame %d:\n%v\nbecame\n%v", i, b.fields, a.fields)
		}
	}
}

// connection makes an orderly connection by chance: fields that are stored,
// reused, never stored, tables that change in size, padding, priorities and
// header blocks in pieces.
func connection(rnd *rand.Rand) (wire []byte, secure map[uint32]bool) {
	var out, block bytes.Buffer
	out.WriteString(canon.H2Preface)
	fr := http2.NewFramer(&out, nil)
	enc := hpack.NewEncoder(&block)
	_ = fr.WriteSettings()
	secure = map[uint32]bool{}
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(' ' + 1 + rnd.IntN(94))
		}
		return string(b)
	}
	field := func(name, value string) {
		_ = enc.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: rnd.IntN(6) == 0})
	}
	head := func(stream uint32, ended bool) {
		p := http2.HeadersFrameParam{StreamID: stream, EndStream: ended}
		if rnd.IntN(3) == 0 {
			p.PadLength = uint8(rnd.IntN(256))
		}
		if rnd.IntN(3) == 0 {
			p.Priority = http2.PriorityParam{StreamDep: stream + 2, Weight: 7, Exclusive: rnd.IntN(2) == 0}
		}
		b := block.Bytes()
		n := min(len(b), 1<<14-300)
		if rnd.IntN(2) == 0 {
			n = rnd.IntN(n + 1)
		}
		p.BlockFragment, p.EndHeaders = b[:n], n == len(b)
		_ = fr.WriteHeaders(p)
		for b, parts := b[n:], 0; !p.EndHeaders; parts++ {
			n := min(len(b), 1<<14)
			if rnd.IntN(2) == 0 && parts < 3 {
				n = rnd.IntN(n + 1)
			}
			p.EndHeaders = n == len(b)
			_ = fr.WriteContinuation(stream, p.EndHeaders, b[:n])
			b = b[n:]
		}
		block.Reset()
	}
	stream := uint32(1)
	for range 1 + rnd.IntN(8) {
		if rnd.IntN(4) == 0 {
			enc.SetMaxDynamicTableSize(uint32(rnd.IntN(4097)))
		}
		secure[stream] = rnd.IntN(4) > 0
		field(":method", "POST")
		if secure[stream] {
			field(":scheme", "https")
		} else {
			field(":scheme", "http")
		}
		field(":path", "/"+text(rnd.IntN(20)))
		field(":authority", "example.com")
		for range rnd.IntN(20) {
			size := rnd.IntN(60)
			if rnd.IntN(20) == 0 {
				size = rnd.IntN(18_000)
			}
			field(fmt.Sprint("x-", rnd.IntN(10)), text(size))
		}
		body := rnd.IntN(2) == 0
		head(stream, !body)
		if body {
			_ = fr.WriteDataPadded(stream, false, []byte(text(rnd.IntN(100))), make([]byte, rnd.IntN(20)))
			field("x-sum", text(8))
			head(stream, true)
		}
		_ = fr.WritePing(rnd.IntN(2) == 0, [8]byte{1})
		stream += 2 * uint32(1+rnd.IntN(3))
	}
	return out.Bytes(), secure
}

func TestRewritten(t *testing.T) {
	for seed := range uint64(2000) {
		wire, secure := connection(rand.New(rand.NewPCG(seed, 1)))
		out, refused := rewrite(wire)
		if refused {
			// Only for its size, which the reader bounds at 64 KiB.
			if !large(wire) {
				t.Fatalf("seed %d: refused", seed)
			}
			continue
		}
		before, after := read(wire), read(out)
		same(t, before, after)
		for _, f := range after {
			if f.fields == nil || f.fields[0].Name != ":method" {
				continue
			}
			if _, said, _ := canon.ParseH2Stream(f.fields[len(f.fields)-1].Value); said != secure[f.stream] {
				t.Fatalf("seed %d: stream %d secure %v", seed, f.stream, said)
			}
		}
	}
}

// large reports whether a header block has more than 64 KiB.
func large(wire []byte) bool {
	for rest, n := wire[len(canon.H2Preface):], 0; len(rest) >= 9; {
		size := int(rest[0])<<16 | int(rest[1])<<8 | int(rest[2])
		switch rest[3] {
		case 1:
			n = size
		case 9:
			n += size
		}
		if n > 64<<10 {
			return true
		}
		rest = rest[9+size:]
	}
	return false
}

// TestScheme: every way to write :scheme is read, Huffman coded or not.
func TestScheme(t *testing.T) {
	huff := func(s string) string {
		b := hpack.AppendHuffmanString(nil, s)
		return string(append([]byte{0x80 | byte(len(b))}, b...))
	}
	plain := func(s string) string { return string([]byte{byte(len(s))}) + s }
	for _, name := range []string{"\x06", "\x07", "\x16", "\x17", "\x46", "\x47", "\x00" + plain(":scheme"), "\x00" + huff(":scheme"), "\x10" + huff(":scheme"), "\x40" + huff(":scheme")} {
		for _, scheme := range []string{"https", "http", "httpz", "", "HTTPS", "ftp"} {
			for _, value := range []string{plain(scheme), huff(scheme)} {
				block := "\x82" + name + value
				var out bytes.Buffer
				out.WriteString(canon.H2Preface)
				_ = http2.NewFramer(&out, nil).WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte(block)})
				got, refused := rewrite(out.Bytes())
				all := read(got)
				if refused || len(all) != 1 || len(all[0].fields) != 3 || all[0].fields[1] != (hpack.HeaderField{Name: ":scheme", Value: scheme, Sensitive: name[0]&0xf0 == 0x10}) {
					t.Fatalf("%x: %v", block, all)
				}
				if _, secure, ok := canon.ParseH2Stream(all[0].fields[2].Value); !ok || secure != (scheme == "https") {
					t.Errorf("%x: %s, secure %v", block, scheme, secure)
				}
			}
		}
	}
}

// FuzzRewritten: whatever bytes come, what another implementation makes of them
// is the same afterwards, but for our field.
func FuzzRewritten(f *testing.F) {
	for seed := range uint64(20) {
		wire, _ := connection(rand.New(rand.NewPCG(seed, 2)))
		if len(wire) < 4000 {
			f.Add(wire[len(canon.H2Preface):])
		}
	}
	f.Add([]byte(strings.Repeat("\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82", 2)))
	f.Fuzz(func(t *testing.T, in []byte) {
		wire := append([]byte(canon.H2Preface), in...)
		out, refused := rewrite(wire)
		if refused {
			return // it is stricter, and the connection ends
		}
		before, after := read(wire), read(out)
		for i, b := range before {
			if b.err == "" {
				continue
			}
			// What is an error stays one; in pieces another, since a piece more
			// than what was invalid ends the connection.
			if len(after) <= i || after[i].err == "" {
				t.Fatalf("frame %d: %s went away: %v", i, b.err, after)
			}
			before, after = before[:i], after[:i]
			break
		}
		same(t, before, after)
	})
}
