package sinks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// refusedAddress is an address that a sink's name resolved to and that nothing is
// sent to.
type refusedAddress struct {
	addr netip.Addr
	why  string
}

func (r *refusedAddress) Error() string {
	return fmt.Sprintf("the name of the sink resolves to %s, which is %s: nothing is sent there", r.addr, r.why)
}

// shakeError is an error before the end of a TLS handshake.
type shakeError struct{ err error }

func (s *shakeError) Error() string { return s.err.Error() }
func (s *shakeError) Unwrap() error { return s.err }

// dialer connects to the addresses that its settings allow. What counts is the
// address that is connected to, after resolution, so a name that changes its mind
// gains nothing.
type dialer struct {
	private  bool
	loopback bool // nothing else is allowed: http without Plain
	tls      *tls.Config
	net      net.Dialer
}

func newDialer(s Settings, clear bool) (*dialer, error) {
	d := &dialer{private: s.Private, loopback: clear && !s.Plain, tls: &tls.Config{MinVersion: tls.VersionTLS12}}
	if s.CA != nil {
		d.tls.RootCAs = x509.NewCertPool()
		if !d.tls.RootCAs.AppendCertsFromPEM(s.CA) {
			return nil, errors.New("the CA of the sink has no certificate in PEM form")
		}
	}
	if s.Cert != nil || s.Key != nil {
		pair, err := tls.X509KeyPair(s.Cert, s.Key)
		if err != nil {
			return nil, fmt.Errorf("the client certificate for the sink cannot be used: %w", err)
		}
		d.tls.Certificates = []tls.Certificate{pair}
	}
	d.net = net.Dialer{Timeout: dialTimeout, ControlContext: d.control}
	return d, nil
}

func (d *dialer) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("the address %q cannot be read: %w", address, err)
	}
	if why := d.refuses(ap.Addr()); why != "" {
		return &refusedAddress{ap.Addr(), why}
	}
	return nil
}

// Addresses at which clouds tell their machines secrets, apart from the
// link-local ones.
var metadata = []netip.Addr{
	netip.MustParseAddr("100.100.100.200"),  // Alibaba
	netip.MustParseAddr("168.63.129.16"),    // Azure's wire server
	netip.MustParseAddr("192.0.0.192"),      // Oracle
	netip.MustParseAddr("fd00:ec2::254"),    // AWS
	netip.MustParseAddr("fd20:ce::254"),     // Google
	netip.MustParseAddr("fd00:42::42"),      // Scaleway
	netip.MustParseAddr("fd00:a9fe:a9fe::"), // IBM
}

// Prefixes that carry an IPv4 address: NAT64 (RFC 6052, RFC 8215) in the last
// four bytes, 6to4 (RFC 3056) in those after the first two.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	thisNet    = netip.MustParsePrefix("0.0.0.0/8")
	compatible = netip.MustParsePrefix("::/96")
)

// refuses says why an address is not connected to; "" if it is.
func (d *dialer) refuses(a netip.Addr) string {
	a = a.WithZone("").Unmap()
	b := a.As16()
	switch {
	case nat64.Contains(a), nat64Local.Contains(a), compatible.Contains(a) && !a.IsLoopback() && !a.IsUnspecified():
		a = netip.AddrFrom4([4]byte(b[12:]))
	case sixToFour.Contains(a):
		a = netip.AddrFrom4([4]byte(b[2:6]))
	}
	switch {
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "multicast or broadcast"
	case d.loopback && !a.IsLoopback():
		return "another machine, and plain HTTP is not allowed to leave this one"
	case d.private:
		return ""
	case a.IsUnspecified(), thisNet.Contains(a):
		return "unspecified"
	case a.IsLinkLocalUnicast():
		return "link-local"
	}
	for _, m := range metadata {
		if a == m {
			return "a cloud's metadata service"
		}
	}
	return ""
}

// namesLoopback reports whether a host is this machine by its name alone.
func namesLoopback(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().IsLoopback()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := d.net.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &countedConn{Conn: c}, nil
}

func (d *dialer) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	c, err := d.net.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conf := d.tls.Clone()
	conf.ServerName = strings.TrimSuffix(host, ".")
	t := tls.Client(c, conf)
	ctx, cancel := context.WithTimeout(ctx, shakeTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, &shakeError{err}
	}
	return &countedConn{Conn: t}, nil
}

// countedConn counts what was given to the connection: bytes of requests, not of
// TLS.
type countedConn struct {
	net.Conn
	wrote atomic.Int64
}

// Write counts first: what is under way may have left.
func (c *countedConn) Write(b []byte) (int, error) {
	c.wrote.Add(int64(len(b)))
	return c.Conn.Write(b)
}

// mark remembers how much a connection had carried when a request got it.
type mark struct {
	mu     sync.Mutex
	conn   *countedConn // nil: the request got none
	wrote  int64
	reused bool
}

func (m *mark) got(c net.Conn, reused bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn, m.reused = c.(*countedConn), reused
	m.wrote = m.conn.wrote.Load()
}

// gave is how many bytes the connection was given since, of fields and body
// together.
func (m *mark) gave() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn == nil {
		return 0
	}
	return m.conn.wrote.Load() - m.wrote
}

// left reports whether a byte may have left since.
func (m *mark) left() (left, reused bool) {
	left = m.gave() != 0
	m.mu.Lock()
	defer m.mu.Unlock()
	return left, m.reused
}
