package gate

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// onRecorder makes an exchange over a recorder that shows what net/http was
// given so far.
func onRecorder(method string) (*httpExchange, *httptest.ResponseRecorder) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "/", nil)
	r.RequestURI = "/"
	x := &httpExchange{}
	x.begin(NewHTTPEngine(nil, HTTPConfig{Listener: "l"}), w, r, nil)
	return x, w
}

// TestEngineHolds: net/http never has the final byte of a known length before
// Finish, however the body is cut.
func TestEngineHolds(t *testing.T) {
	const text = "0123456789"
	for size := 1; size <= len(text); size++ {
		x, w := onRecorder("GET")
		if err := x.Head(200, nil, int64(len(text))); err != nil {
			t.Fatal(err)
		}
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if _, err := x.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
			if err := x.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.Body.String(); got != text[:9] {
			t.Errorf("pieces of %d: %q before Finish", size, got)
		}
		if _, err := x.Write([]byte("x")); !errors.Is(err, http.ErrContentLength) {
			t.Errorf("pieces of %d: more than the length: %v", size, err)
		}
		if err := x.Finish(nil); err != nil || w.Body.String() != text {
			t.Errorf("pieces of %d: %q %v", size, w.Body, err)
		}
	}
}

func TestEngineOrder(t *testing.T) {
	x, _ := onRecorder("GET")
	if _, err := x.Write([]byte("x")); err == nil {
		t.Error("body before the head")
	}
	if err := x.Finish(nil); err == nil {
		t.Error("finish before the head")
	}
	if err := x.Head(200, nil, 5); err != nil {
		t.Fatal(err)
	}
	if err := x.Head(200, nil, 5); err == nil {
		t.Error("two heads")
	}
	if _, err := x.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if err := x.Finish(nil); err == nil {
		t.Error("finish before the length is reached")
	}
	if _, err := x.Tunnel(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("tunnel: %v", err)
	}
}

// TestEngineScheme: over TLS an HTTP/2 request that says :scheme http comes
// without its TLS state; it must not pass for plaintext.
func TestEngineScheme(t *testing.T) {
	h := newHouse(t, houseConfig{})
	e := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public", TLS: true})
	for _, secure := range []bool{false, true} {
		r := httptest.NewRequest("GET", "/v1/orders/1", nil)
		r.RequestURI, r.Proto, r.ProtoMajor, r.ProtoMinor = "/v1/orders/1", "HTTP/2.0", 2, 0
		r.Header.Set("Authorization", "Bearer good")
		want := 400
		if secure {
			r.TLS, want = &tls.ConnectionState{Version: tls.VersionTLS13}, 200
		}
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("secure %v: %d, want %d", secure, w.Code, want)
		}
		if got := h.one(t).rec.Error.Reason == "malformed_request"; got == secure {
			t.Errorf("secure %v: malformed %v", secure, got)
		}
	}
}

// TestEngineAborts: an exchange that is not finished leaves by a panic that
// net/http knows.
func TestEngineAborts(t *testing.T) {
	h := newHouse(t, houseConfig{up: midBody(-1, resetMidBody, "x")})
	e := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public"})
	r := httptest.NewRequest("GET", "/v1/orders/1", nil)
	r.RequestURI = "/v1/orders/1"
	r.Header.Set("Authorization", "Bearer good")
	defer func() {
		if p := recover(); p != http.ErrAbortHandler {
			t.Errorf("recovered %v", p)
		}
		<-h.book.done
	}()
	e.ServeHTTP(httptest.NewRecorder(), r)
	t.Error("the handler returned")
}

func TestBodyAfterClose(t *testing.T) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/", strings.NewReader("abcdef"))
	r.RequestURI = "/"
	x := &httpExchange{}
	x.begin(NewHTTPEngine(nil, HTTPConfig{}), w, r, nil)
	p := make([]byte, 3)
	if _, err := io.ReadFull(x.Body(), p); err != nil || !bytes.Equal(p, []byte("abc")) {
		t.Fatalf("%q %v", p, err)
	}
	x.body.close()
	if _, err := x.Body().Read(p); !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("read after close: %v", err)
	}
	x.body.close()
	none, _ := onRecorder("GET")
	none.body.close()
	if _, err := none.Body().Read(p); err != io.EOF {
		t.Errorf("no body: %v", err)
	}
}

func TestSetFields(t *testing.T) {
	h := http.Header{}
	setFields(h, []canon.Field{{Name: "x-a", Value: "1"}, {Name: "x-b", Value: "2"}, {Name: "x-a", Value: "3"}}, "")
	if got := h["X-A"]; len(got) != 2 || got[0] != "1" || got[1] != "3" || h.Get("X-B") != "2" {
		t.Errorf("%v", h)
	}
}
