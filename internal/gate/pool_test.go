package gate

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// TestRealPool: the pipeline and the real upstream pool together, a server
// behind them.
func TestRealPool(t *testing.T) {
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/orders/echo":
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("X-Subject", r.Header.Get("X-Gatebook-Subject"))
			_, _ = io.Copy(w, r.Body)
		case "/v1/orders/empty":
			w.WriteHeader(204)
		case "/v1/orders/big":
			fmt.Fprint(w, strings.Repeat("0123456789", 50_000))
		case "/v1/orders/trailers":
			w.Header().Set("Trailer", "X-Sum")
			fmt.Fprint(w, "data")
			_ = http.NewResponseController(w).Flush()
			w.Header().Set("X-Sum", "7")
		case "/v1/orders/hints":
			w.Header().Set("Link", "</a>")
			w.WriteHeader(103)
			fmt.Fprint(w, "done")
		case "/v1/orders/cut":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "short")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	defer back.Close()
	pool, err := upstream.NewPool(upstream.Config{Name: "orders", Targets: []string{back.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	h := newHouse(t, houseConfig{up: pool})
	used := map[bool]bool{} // whether a body was streamed, which goes its own way
	h.both(func(t *testing.T, c *http.Client, proto string) {
		for _, tc := range []struct {
			method, path string
			body         io.Reader
			status       int
			text         string
			trailer      string
		}{
			{"GET", "empty", nil, 204, "", ""},
			{"GET", "empty", nil, 204, "", ""},
			{"HEAD", "big", nil, 200, "", ""},
			{"POST", "echo", body(1000), 200, strings.Repeat("b", 1000), ""},
			{"POST", "echo", body(100_000), 200, strings.Repeat("b", 100_000), ""},
			{"POST", "echo", chunked(100_000), 200, strings.Repeat("b", 100_000), ""},
			{"GET", "big", nil, 200, strings.Repeat("0123456789", 50_000), ""},
			{"GET", "trailers", nil, 200, "data", "7"},
			{"GET", "hints", nil, 200, "done", ""},
			{"GET", "echo", nil, 200, "", ""},
		} {
			resp, text, err := do(t, c, h.request(t, tc.method, "/v1/orders/"+tc.path, tc.body))
			if err != nil || resp.StatusCode != tc.status || text != tc.text || resp.Trailer.Get("X-Sum") != tc.trailer {
				t.Errorf("%s %s: %v, %d bytes, %v", tc.method, tc.path, resp, len(text), err)
			}
			rec := h.one(t).rec
			if rec.BytesOut != int64(len(tc.text)) || rec.UpstreamStatus != tc.status || rec.Error.Reason != "" {
				t.Errorf("%s %s: %+v", tc.method, tc.path, rec)
			}
			streamed := rec.BytesIn > 16<<10
			if rec.Upstream.Reused != used[streamed] {
				t.Errorf("%s %s %s: upstream connection used again: %t, want %t", proto, tc.method, tc.path, rec.Upstream.Reused, used[streamed])
			}
			used[streamed] = true
		}
		// A POST, since clients try a GET again by themselves.
		if _, _, err := do(t, c, h.request(t, "POST", "/v1/orders/cut", nil)); err == nil {
			t.Error("a cut answer looks whole")
		}
		// Which of the two is found first depends on how the connection ends.
		if rec := h.one(t).rec; rec.Error.Origin != "upstream" || rec.Error.Phase != "body" || rec.BytesOut != 5 {
			t.Errorf("cut: %+v %d", rec.Error, rec.BytesOut)
		}
		if resp, _, err := do(t, c, h.request(t, "GET", "/v1/orders/echo", nil)); err != nil || resp.StatusCode != 200 {
			t.Errorf("after the cut: %v %v", resp, err)
		}
		h.one(t)
	})
	back.Close()
	resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/echo", nil))
	if err != nil || resp.StatusCode != 502 {
		t.Errorf("without a server: %v %v", resp, err)
	}
	if rec := h.one(t).rec; rec.Error.Origin != "upstream" || rec.Error.Phase != "connect" {
		t.Errorf("without a server: %+v", rec.Error)
	}
}
