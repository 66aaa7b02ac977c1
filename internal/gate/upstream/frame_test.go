package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// framed feeds raw in pieces of size, then ends the connection.
func framed(f *framer, raw []byte, size int) (taken int, err error) {
	for taken < len(raw) && f.phase != phaseDone {
		n, err := f.feed(raw[taken:min(taken+size, len(raw))])
		taken += n
		if err != nil {
			return taken, err
		}
	}
	if f.phase != phaseDone {
		return taken, f.eof()
	}
	return taken, nil
}

// TestFramerPieces makes sure that it does not matter how the bytes arrive.
func TestFramerPieces(t *testing.T) {
	for _, raw := range seeds {
		var first framer
		first.reset(false, "")
		wantTaken, wantErr := framed(&first, []byte(raw), len(raw)+1)
		wantHeads := headText(first.heads)
		for _, size := range []int{1, 2, 3, 7, 16} {
			var f framer
			f.reset(false, "")
			taken, err := framed(&f, []byte(raw), size)
			if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() || err == nil && taken != wantTaken || headText(f.heads) != wantHeads {
				t.Errorf("%q by %d: %d bytes, %v, %s; want %d, %v, %s", raw, size, taken, err, headText(f.heads), wantTaken, wantErr, wantHeads)
			}
		}
	}
}

func headText(heads []head) string {
	var b strings.Builder
	for _, h := range heads {
		b.WriteString(http.StatusText(h.status) + ":" + fieldText(h.fields) + "|")
	}
	return b.String()
}

func TestFramerReuse(t *testing.T) {
	var f framer
	for range 3 {
		for _, tt := range []struct {
			raw    string
			isHead bool
			ok     bool
		}{
			{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, true},
			{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, true},
			{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", false, false},
			{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n", false, true},
			{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n", false, false},
			{"HTTP/1.1 204 No\r\n\r\n", false, true},
			{"HTTP/1.1 200 OK\r\nA:", false, false},
		} {
			f.reset(tt.isHead, "")
			if n, err := framed(&f, []byte(tt.raw), 4); (err == nil) != tt.ok || tt.ok && n != len(tt.raw) {
				t.Errorf("%q: %d bytes, %v", tt.raw, n, err)
			}
		}
	}
}

func TestFramerUpgrade(t *testing.T) {
	for raw, ok := range map[string]bool{
		"Connection: upgrade\r\nUpgrade: WebSocket\r\n":                      true,
		"Connection: a, Upgrade\r\nupgrade: websocket\r\n":                   true,
		"Connection: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n":     true,
		"Upgrade: websocket\r\n":                                             false,
		"Connection: upgrade\r\n":                                            false,
		"Connection: upgrade\r\nUpgrade: h2c\r\n":                            false,
		"Connection: upgrade\r\nUpgrade: websocket, h2c\r\n":                 false,
		"Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n":      false,
		"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n": false,
	} {
		var f framer
		f.reset(false, "websocket")
		_, err := f.feed([]byte("HTTP/1.1 101 Switching\r\n" + raw + "\r\nrest"))
		if (err == nil) != ok || ok && f.phase != phaseTunnel {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func TestFramerLimits(t *testing.T) {
	feed := func(raw string) error {
		var f framer
		f.reset(false, "")
		_, err := f.feed([]byte(raw))
		return err
	}
	long := func(n int) string { return "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", n) }
	if err := feed(long(maxHead-len("HTTP/1.1 200 OK\r\nX-A: \r\n\r\n")) + "\r\n\r\n"); err != nil {
		t.Errorf("head at the limit: %v", err)
	}
	if err := feed(long(maxHead-len("HTTP/1.1 200 OK\r\nX-A: \r\n\r\n")+1) + "\r\n\r\n"); err == nil {
		t.Error("no error for a head over the limit")
	}
	if err := feed(long(maxHead + 1)); err == nil {
		t.Error("no error for a line without an end")
	}
	if err := feed("HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxFields) + "\r\n"); err != nil {
		t.Errorf("fields at the limit: %v", err)
	}
	if err := feed("HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n"); err == nil {
		t.Error("no error for too many fields")
	}
	interim := "HTTP/1.1 103 Early\r\n\r\n"
	if err := feed(strings.Repeat(interim, maxInterim) + "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		t.Errorf("interim responses at the limit: %v", err)
	}
	if err := feed(strings.Repeat(interim, maxInterim+1)); err == nil {
		t.Error("no error for too many interim responses")
	}
	for raw, ok := range map[string]bool{"999999999999999": true, "9999999999999999": false, "18446744073709551617": false, "": false, "-1": false} {
		if err := feed("HTTP/1.1 200 OK\r\nContent-Length: " + raw + "\r\n\r\n"); (err == nil) != ok {
			t.Errorf("content-length %q: %v", raw, err)
		}
	}
	for raw, ok := range map[string]bool{"fffffffffffffff": true, "ffffffffffffffff": false, "": false, "0x1": false, "-1": false, "1;a": true, "1 ;a": false, ";a": false, "1;\x01": false} {
		if err := feed("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw + "\r\n"); (err == nil) != ok {
			t.Errorf("chunk size %q: %v", raw, err)
		}
	}
}

// seeds are well-formed and malformed responses.
var seeds = func() []string {
	out := []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 200\r\n\r\n",
		"HTTP/1.1 200 \r\nA:b\r\nB: \t c \t\r\n\r\nuntil the end",
		"HTTP/1.0 200 OK\r\n\r\nabc",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\nhello\r\n00\r\nA: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\nA\r\n0123456789\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX-\xe9: a\r\n\r\n", "HTTP/1.1 200 OK\r\nX: \xe9\r\n\r\n", "HTTP/1.1 200 OK\r\n: a\r\n\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n",
	}
	for _, text := range faultyup.Raw() {
		if len(text) < 2000 {
			out = append(out, text)
		}
	}
	return out
}()

// FuzzFramer holds the framer against net/http: whatever it accepts, net/http
// reads in the same way, to the same end.
func FuzzFramer(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, raw []byte, isHead bool) {
		var fr framer
		fr.reset(isHead, "")
		taken, err := framed(&fr, raw, 5)
		if err != nil {
			var fe *frameError
			if !errors.As(err, &fe) || !fe.reason.Valid() || fe.reason.Origin() != reason.OriginUpstream {
				t.Fatalf("error %v has no upstream reason", err)
			}
			return
		}
		method := "GET"
		if isHead {
			method = "HEAD"
		}
		br := bufio.NewReaderSize(bytes.NewReader(raw[:taken]), 4096)
		var resp *http.Response
		i := 0
		for ; ; i++ {
			if resp, err = http.ReadResponse(br, &http.Request{Method: method}); err != nil {
				if strings.Contains(err.Error(), "bad trailer key") {
					return // refused by both in the end
				}
				t.Fatalf("net/http refuses what the framer accepts: %v", err)
			}
			if resp.StatusCode >= 200 {
				break
			}
		}
		h := fr.heads[i]
		if h.status != resp.StatusCode || h.body != (resp.Body != http.NoBody) || h.body && h.length != resp.ContentLength {
			t.Fatalf("framer reads %+v, net/http %d %d %v", h, resp.StatusCode, resp.ContentLength, resp.TransferEncoding)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil && !strings.Contains(err.Error(), "suspiciously long trailer") {
			t.Fatalf("net/http refuses the body: %v", err)
		}
		if rest, err := io.ReadAll(br); err != nil || len(rest) != 0 {
			t.Fatalf("net/http leaves %q, %v", rest, err)
		}
		for _, h := range fr.heads {
			for _, field := range h.fields {
				if strings.ContainsAny(field.Name+field.Value, "\r\n\x00") || field.Name == "" || field.Name != strings.ToLower(field.Name) {
					t.Fatalf("field %q: %q", field.Name, field.Value)
				}
			}
		}
	})
}

func BenchmarkFramer(b *testing.B) {
	raw := []byte("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 17:30:00 GMT\r\nContent-Type: application/json\r\nContent-Length: 1024\r\nCache-Control: no-store\r\n\r\n" + strings.Repeat("x", 1024))
	var f framer
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		f.reset(false, "")
		if n, err := f.feed(raw); n != len(raw) || err != nil {
			b.Fatal(n, err)
		}
	}
}
