package gate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// client makes a client of net/http for the house.
func (h *h2House) client(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: h.tlsConfig("h2"), Protocols: new(http.Protocols), DisableCompression: true}
	if h.secure {
		tr.Protocols.SetHTTP2(true)
	} else {
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (h *h2House) url(path string) string {
	if h.secure {
		return "https://" + h.addr + path
	}
	return "http://" + h.addr + path
}

// TestH2ConnTraffic: Go's own client, in the clear and behind TLS, with many
// streams at once, bodies, trailers and large fields; one record each.
func TestH2ConnTraffic(t *testing.T) {
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			var mu sync.Mutex
			leaked := ""
			h := newH2House(t, secure, houseConfig{up: backend(func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
				for _, f := range r.Fields {
					if strings.Contains(f.Name, "gatebook-stream") {
						mu.Lock()
						leaked = f.Value
						mu.Unlock()
					}
				}
				b, err := io.ReadAll(r.Body)
				if err != nil {
					return nil, err
				}
				return response(200, int64(len(b)), nil, io.EOF, string(b)), nil
			})})
			c := h.client(t)
			const n = 60
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					body := bytes.Repeat([]byte{byte('a' + i%26)}, 1000*(i+1))
					r, err := http.NewRequestWithContext(t.Context(), "POST", h.url("/v1/orders/1"), io.MultiReader(bytes.NewReader(body)))
					if err != nil {
						t.Error(err)
						return
					}
					r.Host = "example.com"
					r.Header.Set("Authorization", "Bearer good")
					r.Header.Set("X-Gatebook-Stream", "00000001s")
					r.Header.Set("X-Large", strings.Repeat("v", 400*i))
					r.Trailer = http.Header{"X-Sum": {"1"}, "X-Gatebook-Stream": {"1"}}
					resp, err := c.Do(r)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					got, err := io.ReadAll(resp.Body)
					if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, body) {
						t.Errorf("%d: %d bytes of %d, %s, %v", i, len(got), len(body), resp.Status, err)
					}
				})
			}
			wg.Wait()
			c.CloseIdleConnections()
			if got := tally(h.records(t)); got["request"] != n || len(got) != 1 {
				t.Errorf("%v", got)
			}
			if leaked != "" {
				t.Errorf("the upstream saw %q", leaked)
			}
		})
	}
}

// TestH2ConnCurl: a client that is not Go's, with prior knowledge and behind
// TLS. Its fields of 20 KB come in CONTINUATION frames.
func TestH2ConnCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Log("no curl here; Go's client and the raw one have to do")
		return
	}
	for _, secure := range []bool{false, true} {
		h := newH2House(t, secure, houseConfig{})
		args := []string{"-sS", "-H", "Authorization: Bearer good", "-H", "Host: example.com", "-H", "X-Large: " + strings.Repeat("v", 20<<10),
			"-w", "%{http_code} %{http_version}\n", "--data", "abc", h.url("/v1/orders/1")}
		want := 1
		if secure {
			args = append(args, "--insecure", "--http2", h.url("/v1/orders/2"))
			want = 2
		} else {
			args = append(args, "--http2-prior-knowledge")
		}
		out, err := exec.CommandContext(t.Context(), curl, args...).CombinedOutput()
		if err != nil || string(out) != strings.Repeat("hello200 2\n", want) {
			t.Errorf("tls %v: %q %v", secure, out, err)
		}
		if got := tally(h.records(t)); got["request"] != want || len(got) != 1 {
			t.Errorf("tls %v: %v", secure, got)
		}
	}
}

// TestH2ConnOwnField: what a client sends under the name of our field reaches
// nobody and confuses nothing.
func TestH2ConnOwnField(t *testing.T) {
	seen := make(chan []canon.Field, 2)
	h := newH2House(t, true, houseConfig{up: backend(func(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
		seen <- append([]canon.Field(nil), r.Fields...)
		return answers(200, 2, nil, "ok")(ctx, &upstream.Request{})
	})})
	c := h.raw(t)
	// The first stream names the second, in the hope that it is taken for it.
	c.send(begun, headers(1, get+lit("x-gatebook-stream", "00000003s")), headers(3, get+lit("x-gatebook-stream", "00000001p", "x-gatebook-stream", "x")))
	c.until(allEnd(2))
	c.Close()
	if got := tally(h.records(t)); got["request"] != 2 || len(got) != 1 {
		t.Errorf("%v", got)
	}
	for range 2 {
		for _, f := range <-seen {
			if f.Name == canon.H2StreamField {
				t.Errorf("the upstream saw %v", f)
			}
		}
	}
}
