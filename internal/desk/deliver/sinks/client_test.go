package sinks

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// authority makes certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, form, form, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// pair is a certificate for 127.0.0.1 and localhost, as PEM.
func (a *authority) pair(t *testing.T, until time.Time) (cert, key []byte) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, form, a.cert, &own.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})
}

// serve starts a server on loopback, with TLS if conf is not nil.
func serve(t *testing.T, conf *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if conf != nil {
		s.TLS = conf
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func client(t *testing.T, s Settings) *Client {
	t.Helper()
	c, err := NewClient(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		name string
		s    Settings
		says string // "" if it is taken
	}{
		{"https", Settings{URL: "https://siem.example.com:8088/base?x=1"}, ""},
		{"http to this machine", Settings{URL: "http://127.0.0.1:8088"}, ""},
		{"http to this machine, IPv6", Settings{URL: "http://[::1]:8088"}, ""},
		{"http to this machine by name", Settings{URL: "http://localhost:8088"}, ""},
		{"http allowed", Settings{URL: "http://siem.example.com", Plain: true}, ""},
		{"http", Settings{URL: "http://siem.example.com"}, "in clear"},
		{"http to a name that only looks local", Settings{URL: "http://localhost.example.com"}, "in clear"},
		{"nothing", Settings{}, "not of the form"},
		{"no scheme", Settings{URL: "siem.example.com"}, "not of the form"},
		{"no host", Settings{URL: "https:///x"}, "not of the form"},
		{"no host but a port", Settings{URL: "https://:443/x"}, "not of the form"},
		{"another scheme", Settings{URL: "ftp://siem.example.com"}, "not of the form"},
		{"opaque", Settings{URL: "https:siem.example.com"}, "not of the form"},
		{"a password", Settings{URL: "https://u:hunter2@siem.example.com"}, "user name or password"},
		{"a fragment", Settings{URL: "https://siem.example.com/#x"}, "fragment"},
		{"unreadable", Settings{URL: "https://a b\x7f"}, "cannot be read"},
		{"a CA that is none", Settings{URL: "https://siem.example.com", CA: []byte("x")}, "CA"},
		{"an empty CA", Settings{URL: "https://siem.example.com", CA: []byte{}}, "CA"},
		{"a key without certificate", Settings{URL: "https://siem.example.com", Key: []byte("x")}, "client certificate"},
		{"a negative timeout", Settings{URL: "https://siem.example.com", Timeout: -1}, "negative"},
	} {
		_, err := NewClient(c.s)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.says)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		addr             string
		plain, open, all bool // refused: for http without Plain, by default, with Private
	}{
		{"127.0.0.1", false, false, false},
		{"127.8.9.10", false, false, false},
		{"::1", false, false, false},
		{"::ffff:127.0.0.1", false, false, false},
		{"203.0.113.9", true, false, false},
		{"10.1.2.3", true, false, false},
		{"192.168.1.1", true, false, false},
		{"fd12::1", true, false, false},
		{"2001:db8::1", true, false, false},
		{"169.254.169.254", true, true, false},
		{"::ffff:169.254.169.254", true, true, false},
		{"::169.254.169.254", true, true, false},
		{"64:ff9b::a9fe:a9fe", true, true, false},
		{"64:ff9b:1::a9fe:a9fe", true, true, false},
		{"2002:a9fe:a9fe::1", true, true, false},
		{"169.254.0.1", true, true, false},
		{"fe80::1", true, true, false},
		{"fe80::1%eth0", true, true, false},
		{"fd00:ec2::254", true, true, false},
		{"100.100.100.200", true, true, false},
		{"168.63.129.16", true, true, false},
		{"192.0.0.192", true, true, false},
		{"0.0.0.0", true, true, false},
		{"0.1.2.3", true, true, false},
		{"::", true, true, false},
		{"224.0.0.1", true, true, true},
		{"ff02::1", true, true, true},
		{"64:ff9b::e000:1", true, true, true},
		{"255.255.255.255", true, true, true},
	} {
		a := netip.MustParseAddr(c.addr)
		for _, m := range []struct {
			name string
			d    dialer
			want bool
		}{{"http", dialer{loopback: true, private: true}, c.plain}, {"default", dialer{}, c.open}, {"private", dialer{private: true}, c.all}} {
			if why := m.d.refuses(a); (why != "") != m.want {
				t.Errorf("%s, %s: refused as %q, want refused %v", c.addr, m.name, why, m.want)
			}
		}
	}
}

// A name that resolves to a forbidden address is refused when it is dialled,
// before anything leaves.
func TestGuardAtDial(t *testing.T) {
	c := client(t, Settings{URL: "https://0.0.0.0:1/"})
	_, err := c.Do(t.Context(), "POST", "", nil, []byte("x"))
	r := failed(err)
	if r.Class != deliver.Pause || r.Cause != "address" || r.Ambiguous || !strings.Contains(r.Detail, "unspecified") {
		t.Errorf("got %+v for %v", r, err)
	}
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	conf := func(a *authority, until time.Time) *tls.Config {
		cert, key := a.pair(t, until)
		p, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{p}}
	}
	soon := time.Now().Add(time.Hour)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	mutual := conf(ca, soon)
	mutual.ClientAuth, mutual.ClientCAs = tls.RequireAndVerifyClientCert, pool
	old := conf(ca, soon)
	old.MaxVersion = tls.VersionTLS11
	cert, key := ca.pair(t, soon)
	for _, c := range []struct {
		name  string
		conf  *tls.Config
		s     Settings
		cause string
		late  bool // refused after the handshake of TLS 1.3, so perhaps after the request
	}{
		{"private CA", conf(ca, soon), Settings{CA: ca.pem}, "", false},
		{"not trusted by the system", conf(ca, soon), Settings{}, "tls", false},
		{"another CA", conf(ca, soon), Settings{CA: other.pem}, "tls", false},
		{"expired", conf(ca, time.Now().Add(-time.Hour)), Settings{CA: ca.pem}, "tls", false},
		{"TLS 1.1", old, Settings{CA: ca.pem}, "tls", false},
		{"client certificate", mutual, Settings{CA: ca.pem, Cert: cert, Key: key}, "", false},
		{"no client certificate", mutual, Settings{CA: ca.pem}, "tls", true},
	} {
		var came atomic.Int32
		s := serve(t, c.conf, func(w http.ResponseWriter, r *http.Request) { came.Add(1); w.WriteHeader(202) })
		c.s.URL = s.URL
		a, err := client(t, c.s).Do(t.Context(), "POST", "/x", nil, []byte("body"))
		if c.cause == "" {
			if err != nil || a.Status != 202 {
				t.Errorf("%s: %v %v", c.name, a, err)
			}
			continue
		}
		if r := failed(err); r.Cause != c.cause || r.Ambiguous && !c.late || r.Class != deliver.Retry || came.Load() != 0 {
			t.Errorf("%s: %+v, %d came", c.name, r, came.Load())
		}
	}
}

func TestDo(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	var hops atomic.Int32
	s := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/base/moved":
			w.Header().Set("Location", "/base/elsewhere")
			w.WriteHeader(307)
		case "/base/elsewhere":
			hops.Add(1)
		case "/base/cookie":
			if c, err := r.Cookie("route"); err == nil {
				w.Header().Set("Saw", c.Value)
			}
			http.SetCookie(w, &http.Cookie{Name: "route", Value: "a"})
		case "/base/bomb":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			for range 8 {
				_, _ = z.Write(make([]byte, 1<<20))
			}
			_ = z.Close()
		case "/base/long":
			for range 6 {
				_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
			}
		case "/base/zipped":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write([]byte(`{"ok":true}`))
			_ = z.Close()
		default:
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Got", r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Content-Encoding")+" "+r.Header.Get("Accept-Encoding")+" "+r.Header.Get("X"))
			_, _ = w.Write(b)
		}
	})
	for _, jar := range []bool{false, true} {
		c := client(t, Settings{URL: s.URL + "/base?k=v", Jar: jar})
		for _, row := range []struct{ path, got string }{
			{"", "POST /base?k=v  identity y"},
			{"/p", "POST /base/p?k=v  identity y"},
			{"p?q=1&r=2", "POST /base/p?k=v&q=1&r=2  identity y"},
		} {
			a, err := c.Do(t.Context(), "POST", row.path, http.Header{"X": {"y"}}, []byte("hello"))
			if err != nil || a.Header.Get("Got") != row.got || string(a.Body) != "hello" || a.Cut {
				t.Errorf("%q: %+v, %v", row.path, a, err)
			}
		}
		if a, err := c.Do(t.Context(), "POST", "/moved", nil, []byte("x")); err != nil || a.Status != 307 || hops.Load() != 0 {
			t.Errorf("redirect: %+v, %v, %d followed", a, err, hops.Load())
		}
		for _, path := range []string{"/bomb", "/long"} {
			if a, err := c.Do(t.Context(), "GET", path, nil, nil); err != nil || !a.Cut || len(a.Body) != maxReply {
				t.Errorf("%s: %d bytes, %v", path, len(a.Body), err)
			}
		}
		if a, err := c.Do(t.Context(), "GET", "/zipped", nil, nil); err != nil || string(a.Body) != `{"ok":true}` {
			t.Errorf("zipped: %+v, %v", a, err)
		}
		_, _ = c.Do(t.Context(), "GET", "/cookie", nil, nil)
		if a, err := c.Do(t.Context(), "GET", "/cookie", nil, nil); err != nil || (a.Header.Get("Saw") == "a") != jar {
			t.Errorf("jar %v: %+v, %v", jar, a, err)
		}
	}
}

func TestGzip(t *testing.T) {
	var raw [][]byte
	s := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("encoding %q", r.Header.Get("Content-Encoding"))
		}
		raw = append(raw, b)
	})
	body := bytes.Repeat([]byte(`{"event":"x"}`+"\n"), 5000)
	c := client(t, Settings{URL: s.URL, Gzip: true})
	for range 3 {
		if _, err := c.Do(t.Context(), "POST", "", nil, body); err != nil {
			t.Fatal(err)
		}
	}
	if len(raw) != 3 || !bytes.Equal(raw[0], raw[1]) || !bytes.Equal(raw[0], raw[2]) {
		t.Fatal("the same body did not give the same bytes")
	}
	z, err := gzip.NewReader(bytes.NewReader(raw[0]))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || !bytes.Equal(b, body) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// raw answers each connection with a function of its own.
func raw(t *testing.T, f func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); f(c) }()
		}
	}()
	return l.Addr().String()
}

func reset(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); c.Close() }

// request reads one request with its body.
func request(c net.Conn) {
	if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
}

// What is Unsent is exact: every failure before the first byte of the request,
// none after it.
func TestUnsent(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	silent := func(net.Conn) { <-hold }
	for _, c := range []struct {
		name, scheme string
		f            func(net.Conn)
		header       http.Header
		cause        string
		maybe        bool
	}{
		{"nobody there", "http", nil, nil, "refused", false},
		{"a header that is none", "http", request, http.Header{"X": {"a\nb"}}, "broken", false},
		{"closed in the handshake", "https", func(c net.Conn) { c.Close() }, nil, "tls", false},
		{"reset in the handshake", "https", func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); reset(c) }, nil, "tls", false},
		{"not TLS", "https", func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 no\r\n\r\n")) }, nil, "tls", false},
		{"silent in the handshake", "https", silent, nil, "timeout", false},
		{"reset after the request", "http", func(c net.Conn) { request(c); reset(c) }, nil, "reset", true},
		{"closed after the request", "http", func(c net.Conn) { request(c); c.Close() }, nil, "closed", true},
		{"silent after the request", "http", func(c net.Conn) { request(c); <-hold }, nil, "timeout", true},
		{"no HTTP", "http", func(c net.Conn) { request(c); _, _ = c.Write([]byte("SSH-2.0-x\r\n\r\n")) }, nil, "broken", true},
		{"another protocol", "http", func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			<-hold // its body never ends, and no deadline ends it
		}, nil, "broken", true},
		{"another protocol that has no name", "http", func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
			<-hold
		}, nil, "broken", true},
		{"a head without end", "http", func(c net.Conn) { request(c); _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nA: b\r\n")) }, nil, "closed", true},
		{"a head too long", "http", func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
		}, nil, "broken", true},
		{"a body cut short", "http", func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\n{}")
		}, nil, "closed", true},
		{"a chunk that is none", "http", func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
		}, nil, "broken", true},
		{"gzip that is none", "http", func(c net.Conn) {
			request(c)
			_, _ = io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nno")
		}, nil, "closed", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := nobody
			if c.f != nil {
				addr = raw(t, c.f)
			}
			wait := time.Minute
			if c.cause == "timeout" {
				wait = 300 * time.Millisecond
			}
			cl := client(t, Settings{URL: c.scheme + "://" + addr, Timeout: wait})
			a, err := cl.Do(t.Context(), "POST", "/x", c.header, []byte("body"))
			if err == nil {
				t.Fatalf("no error: %+v", a)
			}
			var u *Unsent
			if r := failed(err); r.Cause != c.cause || r.Ambiguous != c.maybe || errors.As(err, &u) == c.maybe || r.Class != deliver.Retry {
				t.Errorf("%v gives %+v", err, r)
			}
			if strings.HasPrefix(c.name, "a body") && (a == nil || a.Status != 202) {
				t.Errorf("the head is not told: %+v", a)
			}
		})
	}
}

// A yes to what was not sent yet is nobody's word that it was taken. A refusal is: it
// may come as early as it likes.
func TestEarlyAnswer(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	body := make([]byte, 64<<20) // more than lies between two programs
	for _, c := range []struct {
		name, head string
		status     int // 0: it is an error
	}{
		{"a yes with a body", "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}", 0},
		{"a yes without", "HTTP/1.1 204 No Content\r\n\r\n", 0},
		{"a yes whose body breaks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 0},
		{"a refusal", "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}", 413},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := raw(t, func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 1)) // it has begun
				_, _ = io.WriteString(conn, c.head)
				<-hold
			})
			a, err := client(t, Settings{URL: "http://" + addr}).Do(t.Context(), "POST", "/x", nil, body)
			if c.status != 0 {
				if err != nil || a.Status != c.status {
					t.Errorf("%+v, %v", a, err)
				}
				return
			}
			if err == nil {
				t.Fatalf("it is believed: %+v", a)
			}
			if r := failed(err); a != nil || r.Cause != "early" || !r.Ambiguous || r.Class != deliver.Retry {
				t.Errorf("%+v, %v gives %+v", a, err, r)
			}
		})
	}
}

func TestDNS(t *testing.T) {
	d, err := newDialer(Settings{}, false)
	if err != nil {
		t.Fatal(err)
	}
	d.net.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no resolver") }}
	c := client(t, Settings{URL: "https://sink.example.com"})
	c.http.Transport.(*http.Transport).DialTLSContext = d.dialTLS
	_, err = c.Do(t.Context(), "POST", "", nil, []byte("x"))
	if r := failed(err); r.Cause != "dns" || r.Ambiguous || r.Class != deliver.Retry {
		t.Errorf("%v gives %+v", err, r)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr := raw(t, func(c net.Conn) { request(c); cancel(); _, _ = c.Read(make([]byte, 1)) })
	_, err := client(t, Settings{URL: "http://" + addr}).Do(ctx, "POST", "", nil, []byte("x"))
	if r := failed(err); r.Cause != "canceled" || !r.Ambiguous {
		t.Errorf("%v gives %+v", err, r)
	}
	_, err = client(t, Settings{URL: "http://" + addr}).Do(ctx, "POST", "", nil, []byte("x"))
	if r := failed(err); r.Cause != "canceled" || r.Ambiguous {
		t.Errorf("before it began: %v gives %+v", err, r)
	}
}

// A request that may have arrived is not sent again by the transport, whatever
// its header says of idempotency.
func TestOneAttempt(t *testing.T) {
	var came atomic.Int32
	addr := raw(t, func(c net.Conn) {
		b := bufio.NewReader(c)
		for n := 0; ; n++ {
			r, err := http.ReadRequest(b)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			if came.Add(1) > 1 {
				reset(c)
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	c := client(t, Settings{URL: "http://" + addr})
	h := http.Header{"Idempotency-Key": {"k"}}
	if _, err := c.Do(t.Context(), "POST", "", h, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Do(t.Context(), "POST", "", h, []byte("x")); err == nil || !failed(err).Ambiguous {
		t.Errorf("got %v", err)
	}
	if came.Load() != 2 {
		t.Errorf("%d requests came, want 2", came.Load())
	}
}

// A connection that was closed while it was idle costs no attempt.
func TestStale(t *testing.T) {
	gone := make(chan struct{}, 1)
	var came atomic.Int32
	addr := raw(t, func(c net.Conn) {
		request(c)
		came.Add(1)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		c.Close()
		gone <- struct{}{}
	})
	c := client(t, Settings{URL: "http://" + addr})
	for i := range 20 {
		if _, err := c.Do(t.Context(), "POST", "", nil, []byte("x")); err != nil && !failed(err).Ambiguous {
			t.Errorf("request %d: %v", i, err)
			break
		} else if err == nil {
			<-gone
		}
	}
	if came.Load() < 10 {
		t.Errorf("only %d came", came.Load())
	}
}
