package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// The ways to choose among targets.
const (
	RoundRobin    = "round_robin"
	LeastRequests = "least_requests"
)

const (
	maxTargets  = 64
	maxAttempts = 8
)

// Config describes a pool. Zero values are the defaults given.
type Config struct {
	Name    string   // for logs; required
	Targets []string // scheme://host[:port], http or https; 1 to 64, required
	Balance string   // RoundRobin (default) or LeastRequests

	ConnectTimeout   time.Duration // resolving and connecting, and once more the TLS handshake; 1 s
	ResponseTimeout  time.Duration // from the request's last byte to the response head; an upstream may refuse to take request bytes as long; 30 s
	IdleBody         time.Duration // a read of the body may wait; 30 s
	MaxIdlePerTarget int           // kept connections; 64
	MaxIdleTime      time.Duration // a kept connection may be unused; 30 s
	MaxAttempts      int           // per exchange; 2, at most 8

	CAFile     string      // PEM file of the authorities trusted instead of the system's
	ServerName string      // name to verify and send as SNI instead of the target's
	TLSConfig  *tls.Config // base for certificates and the like; cannot turn verification off

	PreserveHost bool // send Request.Authority as Host, not the target's
	Ejection     Ejection
	Health       Health // active checks; none

	Now      func() time.Time // clock of ejections; time.Now
	Resolver *net.Resolver    // the system's
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	Logger   *slog.Logger // discards
}

// Ejection says when a target is left out: after Failures failures in a row
// (connect, TLS, reset or time-out before the response head), for BaseTime,
// twice as long each time a probe fails, up to MaxTime.
type Ejection struct {
	Failures int           // 5; negative: never
	BaseTime time.Duration // 5 s
	MaxTime  time.Duration // 60 s
}

func (c *Config) setDefaults() {
	setDefault(&c.Balance, RoundRobin)
	setDefault(&c.ConnectTimeout, time.Second)
	setDefault(&c.ResponseTimeout, 30*time.Second)
	setDefault(&c.IdleBody, 30*time.Second)
	setDefault(&c.MaxIdlePerTarget, 64)
	setDefault(&c.MaxIdleTime, 30*time.Second)
	setDefault(&c.MaxAttempts, 2)
	setDefault(&c.Ejection.Failures, 5)
	setDefault(&c.Ejection.BaseTime, 5*time.Second)
	setDefault(&c.Ejection.MaxTime, max(time.Minute, c.Ejection.BaseTime))
	c.Health.setDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (c *Config) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		fail("name is missing")
	}
	if n := len(c.Targets); n == 0 || n > maxTargets {
		fail("%d targets; give 1 to %d", n, maxTargets)
	}
	if c.Balance != RoundRobin && c.Balance != LeastRequests {
		fail("balance %q is neither %s nor %s", c.Balance, RoundRobin, LeastRequests)
	}
	for _, d := range []struct {
		name string
		d    time.Duration
	}{
		{"connect timeout", c.ConnectTimeout}, {"response timeout", c.ResponseTimeout}, {"idle body timeout", c.IdleBody},
		{"maximum idle time", c.MaxIdleTime}, {"ejection base time", c.Ejection.BaseTime},
	} {
		if d.d < 0 {
			fail("%s %v is negative", d.name, d.d)
		}
	}
	if c.MaxIdlePerTarget < 0 {
		fail("maximum of idle connections %d is negative", c.MaxIdlePerTarget)
	}
	if c.MaxAttempts < 1 || c.MaxAttempts > maxAttempts {
		fail("maximum of attempts %d is not in 1 to %d", c.MaxAttempts, maxAttempts)
	}
	if c.Ejection.MaxTime < c.Ejection.BaseTime {
		fail("ejection needs a maximum time of at least the base time")
	}
	return errors.Join(append(errs, c.Health.validate())...)
}

// parseTarget reads scheme://host[:port] and nothing more.
func parseTarget(s string) (*target, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("target %q is not a URL: write scheme://host:port", s)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("target %q: scheme is neither http nor https", s)
	}
	if u.Opaque != "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(s, "#") {
		return nil, fmt.Errorf("target %q: write scheme://host:port and nothing more", s)
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if err := checkTargetHost(host); err != nil {
		return nil, fmt.Errorf("target %q: %w", s, err)
	}
	implied := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	if port == "" {
		if strings.HasSuffix(u.Host, ":") {
			return nil, fmt.Errorf("target %q: port is empty", s)
		}
		port = implied
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, fmt.Errorf("target %q: port is not in 1 to 65535", s)
	}
	t := &target{name: strings.TrimSuffix(s, "/"), scheme: u.Scheme, addr: net.JoinHostPort(host, port)}
	t.hostField = t.addr
	if port == implied {
		t.hostField = strings.TrimSuffix(t.addr, ":"+port)
	}
	return t, nil
}

func checkTargetHost(host string) error {
	if host == "" {
		return errors.New("host is missing")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return errors.New("address with a zone, which no Host field can hold")
		}
		return nil
	}
	for _, c := range []byte(host) {
		plain := 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_'
		if !plain {
			return errors.New("host is neither an address nor a plain name; write international names in their xn-- form")
		}
	}
	return nil
}

// tlsConfig makes the configuration for one target. Verification is always on
// and nothing below TLS 1.2 is spoken.
func (c *Config) tlsConfig(host string, roots *x509.CertPool) *tls.Config {
	t := &tls.Config{}
	if c.TLSConfig != nil {
		t = c.TLSConfig.Clone()
	}
	t.MinVersion = max(t.MinVersion, tls.VersionTLS12)
	t.NextProtos = []string{"http/1.1"}
	if roots != nil {
		t.RootCAs = roots
	}
	if c.ServerName != "" {
		t.ServerName = c.ServerName
	}
	if t.ServerName == "" {
		t.ServerName = host
	}
	return t
}

func (c *Config) checkTLS() error {
	t := c.TLSConfig
	switch {
	case t == nil:
		return nil
	case t.InsecureSkipVerify:
		return errors.New("TLS verification cannot be turned off; name the authority in the CA file instead")
	case t.MaxVersion != 0 && t.MaxVersion < tls.VersionTLS12:
		return errors.New("TLS below 1.2 is not spoken")
	case t.KeyLogWriter != nil:
		return errors.New("TLS session keys are not written out")
	}
	return nil
}

// loadRoots reads a CA file. A file without a single certificate is an error,
// never an empty or the system's pool.
func loadRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s holds no PEM certificate", path)
	}
	return roots, nil
}
