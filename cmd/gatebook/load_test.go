package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// loadClients is how many connections the load keeps busy.
const loadClients = 64

// loadUpstream is a service behind the gate that answers in every way that
// matters for where the last byte is held back. It remembers every request
// that it saw by its id.
type loadUpstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int // by X-Gatebook-Request-Id; under mu
}

func newLoadUpstream(t *testing.T) *loadUpstream {
	t.Helper()
	u := &loadUpstream{seen: map[string]int{}}
	u.Server = httptest.NewServer(u)
	t.Cleanup(func() {
		u.Server.CloseClientConnections() // those that hang
		u.Server.Close()
	})
	return u
}

// saw returns how often each request arrived.
func (u *loadUpstream) saw() map[string]int {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := make(map[string]int, len(u.seen))
	for id, n := range u.seen {
		out[id] = n
	}
	return out
}

// filler returns n bytes.
func filler(n int) []byte {
	return []byte(strings.Repeat("0123456789abcdef", n/16+1)[:n])
}

// ServeHTTP implements http.Handler. The path says how: /way/bytes/....
func (u *loadUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.seen[r.Header.Get("X-Gatebook-Request-Id")]++
	u.mu.Unlock()
	parts := strings.Split(r.URL.Path, "/")
	size, err := strconv.Atoi(parts[2])
	if err != nil {
		http.Error(w, "bad size", http.StatusBadRequest)
		return
	}
	switch parts[1] {
	case "length":
		w.Header().Set("Content-Length", strconv.Itoa(size))
		w.Write(filler(size))
	case "chunks":
		for _, piece := range [][]byte{filler(size / 2), filler(size - size/2)} {
			w.Write(piece)
			w.(http.Flusher).Flush()
		}
	case "trailer":
		w.Header().Set("Trailer", "X-Sum")
		w.Write(filler(size))
		w.Header().Set("X-Sum", "done")
	case "empty":
		w.WriteHeader(http.StatusNoContent)
	case "echo":
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%d", n)
	case "slow":
		pause(r.Context(), time.Duration(size)*time.Millisecond)
		io.WriteString(w, "slow")
	case "drip":
		for range 4 {
			w.Write(filler(16))
			w.(http.Flusher).Flush()
			pause(r.Context(), time.Duration(size)*time.Millisecond)
		}
	case "hang": // until whoever asked is gone
		w.Header().Set("Content-Length", "100")
		w.Write(filler(50))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case "broken":
		w.Header().Set("Content-Length", strconv.Itoa(size))
		w.Write(filler(size / 2))
		panic(http.ErrAbortHandler)
	default:
		http.NotFound(w, r)
	}
}

// pause is the slowness of an upstream.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// answered is a response as its client got it.
type answered struct {
	id     string
	status int
	bytes  int64
	path   string
}

// load is what 64 clients did until the server was gone.
type load struct {
	site  *site
	whole chan answered // every response received whole
	tick  chan struct{} // one for each of them, for who waits for a number
	part  chan answered // those that began and were not
	asked atomic.Int64  // how often refusedPath was put on the wire
	stop  context.CancelFunc
	ctx   context.Context
	wg    sync.WaitGroup
}

// refusedPath is refused by the gate itself, so often that it counts the
// refusals of a flood in one record.
const refusedPath = "/length/a%2Fb"

// startLoad sets the clients to work.
func startLoad(s *site, seed uint64) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{site: s, ctx: ctx, stop: cancel, whole: make(chan answered, 1<<16), tick: make(chan struct{}, 1<<16), part: make(chan answered, 1<<16)}
	for n := range loadClients {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		l.wg.Go(func() { l.client(n, rng) })
	}
	return l
}

// client sends one request after another over a connection of its own: HTTP/2
// if n is odd.
func (l *load) client(n int, rng *rand.Rand) {
	tr := &http.Transport{TLSClientConfig: l.site.tls(), MaxConnsPerHost: 1, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(n%2 == 0)
	tr.Protocols.SetHTTP2(n%2 == 1)
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	for l.ctx.Err() == nil {
		if !l.request(c, n, rng) {
			return // the server is gone, or was told to hang
		}
	}
}

// request does one exchange; false ends the client.
func (l *load) request(c *http.Client, n int, rng *rand.Rand) bool {
	method, path, body := l.pick(n, rng)
	ctx := l.ctx
	if path == refusedPath {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { l.asked.Add(1) }})
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+l.site.addr+path, body)
	if err != nil {
		l.site.t.Error(err)
		return false
	}
	// The upstream breaks off some answers; anything else ends with the server.
	broken := strings.HasPrefix(path, "/broken/")
	resp, err := c.Do(req)
	if err != nil {
		return broken && l.ctx.Err() == nil
	}
	defer resp.Body.Close()
	a := answered{id: resp.Header.Get("X-Request-Id"), status: resp.StatusCode, path: path}
	if a.bytes, err = io.Copy(io.Discard, resp.Body); err != nil {
		if a.id != "" {
			l.part <- a
		}
		return broken && l.ctx.Err() == nil
	}
	if a.id == "" {
		l.site.t.Errorf("%s: a whole answer %d without a request id", path, a.status)
	}
	l.whole <- a
	l.tick <- struct{}{}
	return true
}

// pick chooses what to ask for. Two clients end up hanging, so that every kill
// meets exchanges whose upstream has begun to answer.
func (l *load) pick(n int, rng *rand.Rand) (method, path string, body io.Reader) {
	size := rng.IntN(3000)
	switch k := rng.IntN(16); {
	case n < 2 && k == 0:
		return "GET", "/hang/0", nil
	case k < 4:
		return "GET", fmt.Sprintf("/length/%d/x", size), nil
	case k < 6:
		return "GET", fmt.Sprintf("/chunks/%d", size), nil
	case k < 7:
		return "GET", fmt.Sprintf("/length/%d", 70_000+size), nil // more than one buffer
	case k < 8:
		return "GET", fmt.Sprintf("/trailer/%d", size), nil
	case k < 9:
		return "DELETE", "/empty/0", nil
	case k < 10:
		return "HEAD", fmt.Sprintf("/length/%d", size), nil
	case k < 11:
		return "POST", "/echo/0", io.MultiReader(strings.NewReader("ab"), strings.NewReader(string(filler(size)))) // chunked
	case k < 12:
		return "PUT", "/echo/0", strings.NewReader(string(filler(size)))
	case k < 13:
		return "GET", fmt.Sprintf("/slow/%d", size%40), nil
	case k < 14:
		return "GET", fmt.Sprintf("/drip/%d", size%10), nil
	case k < 15:
		return "GET", fmt.Sprintf("/broken/%d", 4+size), nil
	default:
		return "GET", refusedPath, nil
	}
}

// wait returns after n whole responses.
func (l *load) wait(n int) error {
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for range n {
		select {
		case <-l.tick:
		case <-limit.C:
			return errors.New("the load came to a halt")
		}
	}
	return nil
}

// end waits for the clients, which a killed server has cut off. asked is how
// often refusedPath was asked for.
func (l *load) end() (whole, part []answered, asked int) {
	l.stop()
	l.wg.Wait()
	close(l.whole)
	close(l.part)
	for a := range l.whole {
		whole = append(whole, a)
	}
	for a := range l.part {
		part = append(part, a)
	}
	return whole, part, int(l.asked.Load())
}

// tls is how clients trust the site.
func (s *site) tls() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.read("tls/localhost.crt"))
	return &tls.Config{RootCAs: pool, ServerName: "localhost"}
}
