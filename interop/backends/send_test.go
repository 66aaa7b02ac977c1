package backends

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// answer is one that a client got whole.
type answer struct {
	status int
	id     string // X-Request-Id
	body   string
}

// quiet is how long a client waits for more when the gate neither answers nor
// closes, as for a body that does not come whole. Nothing depends on it but how
// long a run takes.
const quiet = 5 * time.Second

// send opens a connection from an address, sends the sample and returns what
// was answered until nothing more is to come.
func send(s *sample, from net.IP, plaintext, secure string) ([]answer, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: time.Minute}
	to := plaintext
	if s.secure {
		to = secure
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if s.secure {
		cfg := &tls.Config{InsecureSkipVerify: true, ServerName: "api.example.com", NextProtos: []string{"http/1.1"}} // the gate's own certificate; nothing secret is sent
		if s.h2 != nil {
			cfg.NextProtos = []string{"h2"}
		}
		t := tls.Client(c, cfg)
		if err := t.Handshake(); err != nil {
			return nil, err
		}
		c = t
	}
	if s.h2 != nil {
		return sendH2(c, s), nil
	}
	// A gate that has refused may close while this still writes.
	go func() {
		_, _ = io.WriteString(c, s.wire)
		if s.cut {
			if w, ok := c.(interface{ CloseWrite() error }); ok {
				_ = w.CloseWrite()
			}
		}
	}()
	var all []answer
	r := bufio.NewReader(c)
	for _, method := range s.methods {
		_ = c.SetReadDeadline(time.Now().Add(quiet))
		if _, err := r.Peek(1); errors.Is(err, io.EOF) {
			return all, nil
		}
		a, more := readAnswer(r, c, method)
		if a.status != 0 {
			all = append(all, a)
		}
		if !more {
			break
		}
	}
	return all, nil
}

func readAnswer(r *bufio.Reader, c net.Conn, method string) (a answer, more bool) {
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	for err == nil && resp.StatusCode < 200 {
		resp, err = http.ReadResponse(r, &http.Request{Method: method})
	}
	if err != nil {
		return a, false
	}
	_ = c.SetReadDeadline(time.Now().Add(quiet))
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, false
	}
	return answer{resp.StatusCode, resp.Header.Get("X-Request-Id"), string(body)}, !resp.Close
}

// sendH2 asks on the first stream.
func sendH2(c net.Conn, s *sample) []answer {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range s.h2 {
		_ = enc.WriteField(f)
	}
	w := bufio.NewWriter(c)
	fr := http2.NewFramer(w, c)
	fr.AllowIllegalWrites = true
	_, _ = w.WriteString(http2.ClientPreface)
	_ = fr.WriteSettings()
	head := http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: s.body == "" && s.tail == nil}
	for rest := head.BlockFragment; len(rest) > 0; {
		n := min(len(rest), 16000)
		if head.BlockFragment, head.EndHeaders = rest[:n], n == len(rest); len(rest) == block.Len() {
			_ = fr.WriteHeaders(head)
		} else {
			_ = fr.WriteContinuation(1, n == len(rest), rest[:n])
		}
		rest = rest[n:]
	}
	for body := s.body; len(body) > 0; {
		n := min(len(body), 16000)
		_ = fr.WriteData(1, s.tail == nil && n == len(body), []byte(body[:n]))
		body = body[n:]
	}
	if s.tail != nil {
		block.Reset()
		for _, f := range s.tail {
			_ = enc.WriteField(f)
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	}
	if w.Flush() != nil {
		return nil
	}
	return readH2(c)
}

func readH2(c net.Conn) []answer {
	fr := http2.NewFramer(io.Discard, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var a answer
	for {
		_ = c.SetReadDeadline(time.Now().Add(quiet))
		f, err := fr.ReadFrame()
		if err != nil {
			return nil
		}
		ended := false
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				switch h.Name {
				case ":status":
					a.status = int(h.Value[0]-'0')*100 + int(h.Value[1]-'0')*10 + int(h.Value[2]-'0')
				case "x-request-id":
					a.id = h.Value
				}
			}
			ended = f.StreamEnded() && a.status >= 200
		case *http2.DataFrame:
			a.body += string(f.Data())
			ended = f.StreamEnded()
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return nil
		}
		if ended {
			return []answer{a}
		}
	}
}
