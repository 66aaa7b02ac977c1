// Gobase is the plainest Go reverse proxy for each work level, as a floor to
// compare with: -engine nethttp is httputil.ReverseProxy over a tuned
// Transport, -engine fasthttp is a fasthttp handler over one HostClient. What
// the levels add (a JSON log line, a JWT check, a rate limit) is written the
// straightforward way: one write a line, and tokens are remembered only with -cache.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"flag"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"
)

var (
	engine   = flag.String("engine", "nethttp", "nethttp or fasthttp")
	addr     = flag.String("addr", "127.0.0.1:9915", "listen address")
	upstream = flag.String("upstream", "127.0.0.1:9901", "upstream host:port")
	logFile  = flag.String("log", "", "JSON access log file")
	keyFile  = flag.String("jwt", "", "PEM public key; checks a bearer token when set")
	alg      = flag.String("alg", "ES256", "accepted token algorithm")
	issuer   = flag.String("issuer", "http://127.0.0.1:9901", "expected issuer")
	cached   = flag.Bool("cache", false, "remember verified tokens until they expire")
	limit    = flag.Float64("limit", 0, "requests a second for each client")
	certFile = flag.String("cert", "", "TLS certificate")
	certKey  = flag.String("key", "", "TLS key")
)

type limiters struct {
	mu sync.Mutex
	m  map[string]*rate.Limiter
}

func (l *limiters) allow(key string) bool {
	l.mu.Lock()
	r := l.m[key]
	if r == nil {
		r = rate.NewLimiter(rate.Limit(*limit), int(*limit))
		l.m[strings.Clone(key)] = r
	}
	l.mu.Unlock()
	return r.Allow()
}

type checks struct {
	log    *slog.Logger
	parser *jwt.Parser
	key    any
	lim    *limiters
	mu     sync.Mutex
	seen   map[[32]byte]known
}

type known struct {
	sub string
	exp time.Time
}

var errToken = errors.New("no bearer token")

func (c *checks) subject(auth string) (string, error) {
	tok, ok := strings.CutPrefix(auth, "Bearer ")
	if !ok {
		return "", errToken
	}
	var sum [32]byte
	if *cached {
		sum = sha256.Sum256([]byte(tok))
		c.mu.Lock()
		e, hit := c.seen[sum]
		c.mu.Unlock()
		if hit && time.Now().Before(e.exp) {
			return e.sub, nil
		}
	}
	var claims jwt.RegisteredClaims
	_, err := c.parser.ParseWithClaims(tok, &claims, func(*jwt.Token) (any, error) { return c.key, nil })
	if err == nil && *cached {
		c.mu.Lock()
		if len(c.seen) > 10_000 {
			clear(c.seen)
		}
		c.seen[sum] = known{claims.Subject, claims.ExpiresAt.Time}
		c.mu.Unlock()
	}
	return claims.Subject, err
}

// admit applies the token check and the limit; status 0 means go on.
func (c *checks) admit(auth string) (sub string, status int) {
	sub = auth
	if c.parser != nil {
		var err error
		if sub, err = c.subject(auth); err != nil {
			return "", 401
		}
	}
	if c.lim != nil && !c.lim.allow(sub) {
		return sub, 429
	}
	return sub, 0
}

func (c *checks) line(start time.Time, sub, remote, method, host, uri, ua, rid string, status int, n int64) {
	c.log.LogAttrs(context.Background(), slog.LevelInfo, "request",
		slog.String("remote", remote), slog.String("method", method), slog.String("host", host), slog.String("uri", uri),
		slog.Int("status", status), slog.Int64("bytes", n), slog.Duration("took", time.Since(start)),
		slog.String("user_agent", ua), slog.String("request_id", rid), slog.String("sub", sub))
}

func main() {
	flag.Parse()
	c := &checks{seen: map[[32]byte]known{}}
	if *logFile != "" {
		f, err := os.OpenFile(*logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			log.Fatal(err)
		}
		c.log = slog.New(slog.NewJSONHandler(f, nil))
	}
	if *keyFile != "" {
		b, err := os.ReadFile(*keyFile)
		if err != nil {
			log.Fatal(err)
		}
		if strings.HasPrefix(*alg, "ES") {
			var k *ecdsa.PublicKey
			k, err = jwt.ParseECPublicKeyFromPEM(b)
			c.key = k
		} else {
			c.key, err = jwt.ParseRSAPublicKeyFromPEM(b)
		}
		if err != nil {
			log.Fatal(err)
		}
		c.parser = jwt.NewParser(jwt.WithValidMethods([]string{*alg}), jwt.WithIssuer(*issuer), jwt.WithAudience("bench"), jwt.WithExpirationRequired())
	}
	if *limit > 0 {
		c.lim = &limiters{m: map[string]*rate.Limiter{}}
	}
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	if *certFile != "" {
		crt, err := tls.LoadX509KeyPair(*certFile, *certKey)
		if err != nil {
			log.Fatal(err)
		}
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{crt}, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}})
	}
	if *engine == "fasthttp" {
		log.Fatal(serveFast(ln, c))
	}
	log.Fatal(serveNet(ln, c))
}

type pool struct{ p sync.Pool }

func (p *pool) Get() []byte  { return *p.p.Get().(*[]byte) }
func (p *pool) Put(b []byte) { p.p.Put(&b) }

type counter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (w *counter) WriteHeader(s int) { w.status = s; w.ResponseWriter.WriteHeader(s) }
func (w *counter) Write(b []byte) (int, error) {
	w.n += int64(len(b))
	return w.ResponseWriter.Write(b)
}
func (w *counter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func serveNet(ln net.Listener, c *checks) error {
	u, err := url.Parse("http://" + *upstream)
	if err != nil {
		return err
	}
	rp := &httputil.ReverseProxy{
		Rewrite:    func(r *httputil.ProxyRequest) { r.SetURL(u); r.SetXForwarded() },
		Transport:  &http.Transport{MaxIdleConns: 1024, MaxIdleConnsPerHost: 1024, IdleConnTimeout: 90 * time.Second, DisableCompression: true},
		BufferPool: &pool{sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}},
	}
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		sub, bad := c.admit(r.Header.Get("Authorization"))
		if c.log == nil {
			if bad != 0 {
				http.Error(w, http.StatusText(bad), bad)
				return
			}
			rp.ServeHTTP(w, r)
			return
		}
		cw := &counter{ResponseWriter: w, status: 200}
		if bad != 0 {
			http.Error(cw, http.StatusText(bad), bad)
		} else {
			rp.ServeHTTP(cw, r)
		}
		if c.parser == nil {
			sub = ""
		}
		c.line(start, sub, r.RemoteAddr, r.Method, r.Host, r.RequestURI, r.UserAgent(), r.Header.Get("X-Request-Id"), cw.status, cw.n)
	}))
}

func serveFast(ln net.Listener, c *checks) error {
	up := &fasthttp.HostClient{Addr: *upstream, MaxConns: 1024, NoDefaultUserAgentHeader: true, DisablePathNormalizing: true}
	s := &fasthttp.Server{NoDefaultServerHeader: true, NoDefaultDate: true, Handler: func(x *fasthttp.RequestCtx) {
		start := time.Now()
		sub, bad := c.admit(string(x.Request.Header.Peek("Authorization")))
		if bad != 0 {
			x.Error(http.StatusText(bad), bad)
		} else {
			x.Request.URI().SetScheme("http") // the server sets https on a TLS connection
			x.Request.Header.Del("Connection")
			x.Request.Header.Set("X-Forwarded-For", x.RemoteIP().String())
			if err := up.Do(&x.Request, &x.Response); err != nil {
				x.Error("upstream", 502)
			}
			x.Response.Header.Del("Connection")
		}
		if c.log != nil {
			if c.parser == nil {
				sub = ""
			}
			c.line(start, sub, x.RemoteAddr().String(), string(x.Method()), string(x.Host()), string(x.RequestURI()), string(x.UserAgent()), string(x.Request.Header.Peek("X-Request-Id")), x.Response.StatusCode(), int64(len(x.Response.Body())))
		}
	}, Logger: log.New(io.Discard, "", 0)}
	return s.Serve(ln)
}
