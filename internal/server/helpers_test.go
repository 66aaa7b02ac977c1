package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// fakeBook is a Recorder that gives the records to the test.
type fakeBook struct{ done chan record.Record }

func (b *fakeBook) Open(_ context.Context, r *record.Record, _ record.Level) (record.Ref, error) {
	return r.ID, nil
}

func (b *fakeBook) Commit(_ context.Context, _ record.Ref, r *record.Record, _ record.Level) error {
	b.done <- *r
	return nil
}

type policy func(*authz.Request) authz.Decision

func (p policy) Decide(r *authz.Request) authz.Decision { return p(r) }

type backend func(context.Context, *upstream.Request) (*upstream.Response, error)

func (f backend) RoundTrip(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	return f(ctx, r)
}

// house is one line with fakes behind it.
type house struct {
	*line
	t       *testing.T
	book    *fakeBook
	gate    *gate.Gate
	addr    string
	pool    *x509.CertPool
	started chan struct{} // gets a value when the upstream is asked
	release chan struct{} // if not nil, the upstream waits for it
	stopped bool
	served  chan error
}

type houseConfig struct {
	listener config.Listener
	caps     func(*caps)
	wait     bool
	tls      func(*config.TLS) // changes what the listener's TLS is made of
}

func newHouse(t *testing.T, c houseConfig) *house {
	t.Helper()
	h := &house{t: t, book: &fakeBook{done: make(chan record.Record, 1024)}, started: make(chan struct{}, 1024), served: make(chan error, 1)}
	if c.wait {
		h.release = make(chan struct{})
	}
	h.newGate()
	limits := defaultCaps()
	if c.caps != nil {
		c.caps(&limits)
	}
	c.listener.Name, c.listener.Address = "public", "127.0.0.1:0"
	if c.listener.Plaintext == "" && !c.listener.RedirectToHTTPS {
		c.listener.TLS = h.certificate()
		if c.tls != nil {
			c.tls(c.listener.TLS)
		}
	}
	s := &Server{gate: h.gate, table: newConnTable(limits), log: slog.New(slog.DiscardHandler)}
	var err error
	if h.line, err = s.newLine(&c.listener); err != nil {
		t.Fatal(err)
	}
	h.addr = h.socket.Addr().String()
	go func() { h.served <- h.serve() }()
	t.Cleanup(h.end)
	return h
}

// end stops the line and demands that nothing of it is left.
func (h *house) end() {
	if h.stopped {
		return
	}
	h.stopped = true
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := h.shutdown(ctx); err != nil {
		h.t.Errorf("shutdown: %v", err)
	}
	if err := <-h.served; !errors.Is(err, http.ErrServerClosed) {
		h.t.Errorf("serve: %v", err)
	}
	// The last connection may be closed by a goroutine that runs after shutdown's look.
	for late := time.Now().Add(10 * time.Second); h.table.open() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			h.t.Errorf("%d connections are still counted", h.table.open())
			break
		}
	}
}

func (h *house) newGate() {
	up := backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
		h.started <- struct{}{}
		if h.release != nil {
			<-h.release
		}
		return &upstream.Response{Status: 200, Length: 5, Body: io.NopCloser(strings.NewReader("hello")), Target: "10.0.0.5:80", Attempts: 1}, nil
	})
	snap, err := gate.NewSnapshot(gate.SnapshotConfig{
		ID: "00112233445566778899aabbccddeeff", Node: "gate-1", Recorder: h.book, Listeners: []gate.Listener{{Name: "public"}},
		Routes: []*gate.Route{{
			Name: "all", Host: "api.example.com", Path: "/{rest...}", Methods: []string{"GET"}, Public: true, Upstream: up, UpstreamName: "app",
			Engine: policy(func(*authz.Request) authz.Decision { return authz.Decision{Allow: true} }),
		}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	var n atomic.Uint64
	h.gate, err = gate.New(gate.Config{Limiter: ratelimit.NewTable(ratelimit.Config{}), NewID: func(time.Time) (id record.ID) {
		binary.BigEndian.PutUint64(id[8:], n.Add(1))
		id[6], id[8] = 0x70, id[8]&0x3f|0x80
		return id
	}}, snap)
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) certificate() *config.TLS {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "api.example.com"}, DNSNames: []string{"api.example.com", "other.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		h.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	dir := h.t.TempDir()
	write := func(name, kind string, b []byte) config.Path {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			h.t.Fatal(err)
		}
		return config.Path(path)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		h.t.Fatal(err)
	}
	h.pool = x509.NewCertPool()
	h.pool.AddCert(cert)
	return &config.TLS{Certificates: []config.Certificate{{Cert: write("c.pem", "CERTIFICATE", der), Key: write("k.pem", "PRIVATE KEY", private)}}}
}

// client is a TLS client that trusts the house.
func (h *house) client(protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: h.pool, ServerName: "api.example.com", NextProtos: protocols, MinVersion: tls.VersionTLS12}
}

// dial opens a bare connection.
func (h *house) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// next returns the next record.
func (h *house) next(t *testing.T) record.Record {
	t.Helper()
	select {
	case r := <-h.book.done:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("no record")
		panic("unreachable")
	}
}

func (h *house) quiet(t *testing.T) {
	t.Helper()
	select {
	case r := <-h.book.done:
		t.Errorf("one record too many: %s %+v", r.Kind, r.Error)
	default:
	}
}

// scripted is a listener whose Accept follows a script and then waits for its
// end.
type scripted struct {
	steps []error // owned by Accept
	done  chan struct{}
	once  sync.Once
}

func (s *scripted) Accept() (net.Conn, error) {
	if len(s.steps) > 0 {
		err := s.steps[0]
		s.steps = s.steps[1:]
		return nil, err
	}
	<-s.done
	return nil, net.ErrClosed
}

func (s *scripted) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (*scripted) Addr() net.Addr { return &net.TCPAddr{} }
