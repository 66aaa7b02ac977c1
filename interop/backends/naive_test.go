package backends

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// naive is what stands in many places where the gate could: it guards folders
// by the path as it reads it, keeps an account, and passes everything on with
// the standard library's reverse proxy.
type naive struct {
	proxy *httputil.ReverseProxy
	guard *regexp.Regexp
	last  atomic.Uint64

	mu       sync.Mutex
	accounts []account // under mu
}

func newNaive(o *origin) *naive {
	p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: o.addr})
	p.ErrorLog = log.New(nowhere{}, "", 0)
	p.ModifyResponse = func(r *http.Response) error {
		r.Header.Set("X-Request-Id", r.Request.Header.Get("X-Gatebook-Request-Id"))
		return nil
	}
	return &naive{proxy: p, guard: regexp.MustCompile(adminPattern)}
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// ServeHTTP implements http.Handler.
func (p *naive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		panic(err)
	}
	n := p.last.Add(1)
	a := account{id: fmt.Sprintf("00000000-0000-7000-8000-%012x", n), kind: "request", method: r.Method, path: r.URL.EscapedPath(), from: from.Addr().String(), status: 403, reason: "guarded"}
	host, _, _ := strings.Cut(r.Host, ":")
	a.host = strings.ToLower(host)
	if !p.guard.MatchString(r.URL.Path) {
		r.Header.Set("X-Gatebook-Request-Id", a.id)
		seen := &watched{ResponseWriter: w}
		p.proxy.ServeHTTP(seen, r)
		a.forwarded, a.status, a.reason = true, seen.status, "passed"
		if seen.status != http.StatusBadGateway {
			a.upstream = seen.status
		}
	} else {
		w.WriteHeader(http.StatusForbidden)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accounts = append(p.accounts, a)
}

type watched struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *watched) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// TestNaiveProxy proves that the comparison can fail: a proxy that is no gate
// gets the same samples, and what the origins make of them must not pass for
// what it understood.
func TestNaiveProxy(t *testing.T) {
	var samples []*sample
	for _, s := range generate(seed, 1200) {
		if !s.secure {
			s.n = len(samples)
			samples = append(samples, withToken(s, "no.token.here"))
		}
	}
	all := []*origin{nginx(), apache()}
	var runs []*run
	open := map[string]string{}
	var proxies []*naive
	var servers []*httptest.Server
	for _, o := range all {
		o.start(t)
		p := newNaive(o)
		server := httptest.NewUnstartedServer(p)
		server.Config.ErrorLog = p.proxy.ErrorLog
		server.Start()
		t.Cleanup(server.Close)
		open[o.name] = server.Listener.Addr().String()
		proxies, servers = append(proxies, p), append(servers, server)
		runs = append(runs, &run{origin: o.name, samples: samples, answers: make([][]answer, len(samples))})
	}
	sendAll(t, runs, open, nil)
	var accounts []account
	for i, server := range servers {
		server.Close()
		accounts = append(accounts, proxies[i].accounts...)
	}
	sort(runs, accounts)
	for i, c := range runs {
		c.sightings = all[i].sightings(t)
		whats := map[string]int{}
		for _, strict := range []bool{false, true} {
			c.strict, c.found, c.unread, c.cutOff = strict, nil, 0, 0
			c.check()
			for _, d := range c.found {
				whats[d.what]++
			}
		}
		for _, what := range []string{"in the guarded folder of the origin", "path", "forwarded although it has no canonical form", "field x-gatebook-subject", "field x-original-url", "host"} {
			if whats[what] == 0 {
				t.Errorf("%s: nothing found of the kind %q: %v", c.origin, what, whats)
			}
		}
		t.Logf("%s: %d kinds of disagreement, %d times in the guarded folder", c.origin, len(whats), whats["in the guarded folder of the origin"])
	}
}
