package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/config"
)

// certPoll is how often certificate files are looked at.
const certPoll = 3 * time.Second

// certStore holds the certificates of one listener. New ones are checked before
// they are used; those before stay in use if they are no good. Safe for
// concurrent use.
type certStore struct {
	what      string // whose they are, for messages
	protocols []string
	log       *slog.Logger
	now       atomic.Pointer[certSet]
	wrong     atomic.Pointer[string] // why the files as they are now are not used; nil if they are

	mu   sync.Mutex // held while files are read
	seen []fileMark // mu; of the files of now
}

// tlsFiles is what the TLS of a listener is made of.
type tlsFiles struct {
	certs         []config.Certificate
	clientCA, crl config.Path
	auth          string // config.ClientAuth*; empty is off
}

func filesOf(t *config.TLS) tlsFiles {
	return tlsFiles{t.Certificates, t.ClientCA, t.CRL, t.ClientAuth}
}

// asks reports whether clients are asked for certificates.
func (f tlsFiles) asks() bool { return f.auth != "" && f.auth != config.ClientAuthOff }

// certSet is what was read at one time. It is immutable.
type certSet struct {
	files  tlsFiles
	config *tls.Config
	trust  *clientTrust        // nil: clients are not asked for certificates
	sums   [][sha256.Size]byte // of each file
}

// same reports whether two sets do the same.
func (set *certSet) same(other *certSet) bool {
	return slices.Equal(set.files.certs, other.files.certs) && set.files.auth == other.files.auth &&
		set.files.clientCA == other.files.clientCA && set.files.crl == other.files.crl && slices.Equal(set.sums, other.sums)
}

// newCertStore reads the certificates and fails if they cannot be used.
func newCertStore(what string, files tlsFiles, protocols []string, log *slog.Logger) (*certStore, error) {
	s := &certStore{what: what, protocols: protocols, log: log}
	seen := marks(files)
	set, err := s.read(files)
	if err != nil {
		return nil, err
	}
	s.use(set, seen)
	return s, nil
}

// read reads every pair.
func (s *certStore) read(files tlsFiles) (*certSet, error) {
	set := &certSet{files: files, config: &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: s.protocols}}
	for _, f := range files.certs {
		cert, err := os.ReadFile(string(f.Cert))
		if err != nil {
			return nil, err
		}
		key, err := os.ReadFile(string(f.Key))
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", f.Cert, f.Key, err)
		}
		set.config.Certificates = append(set.config.Certificates, pair)
		set.sums = append(set.sums, sha256.Sum256(cert), sha256.Sum256(key))
	}
	trust, content, err := readClientTrust(files)
	if err != nil {
		return nil, err
	}
	for _, b := range content {
		set.sums = append(set.sums, sha256.Sum256(b))
	}
	if set.trust = trust; trust != nil {
		trust.ask(set.config)
	}
	return set, nil
}

// check refuses certificates that no client would take now, and revocation
// lists that would take no client.
func (set *certSet) check(now time.Time, inUse *certSet) error {
	for i, pair := range set.config.Certificates {
		switch {
		case now.After(pair.Leaf.NotAfter):
			return fmt.Errorf("%s expired on %s", set.files.certs[i].Cert, day(pair.Leaf.NotAfter))
		case now.Before(pair.Leaf.NotBefore):
			return fmt.Errorf("%s is not valid before %s", set.files.certs[i].Cert, day(pair.Leaf.NotBefore))
		}
	}
	if set == inUse {
		return nil // lists that have run out keep clients out, but not a new configuration
	}
	return set.trust.check(now, inUse.trust)
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// use puts a set in force; the caller holds mu or owns the store.
func (s *certStore) use(set *certSet, seen []fileMark) {
	s.now.Store(set)
	s.seen = seen
	s.wrong.Store(nil)
}

// prepare reads the files of a new configuration. The result is put in force by
// calling it, which cannot fail.
func (s *certStore) prepare(files tlsFiles) (adopt func(), err error) {
	seen := marks(files)
	set, err := s.read(files)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.what, err)
	}
	was := s.now.Load()
	if set.same(was) {
		set = was // sessions and what was found of connections go on
	}
	if err := set.check(time.Now(), was); err != nil {
		return nil, fmt.Errorf("%s: %w", s.what, err)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.use(set, seen)
	}, nil
}

// config implements tls.Config.GetConfigForClient. What a client's certificate
// is found to be goes to the connection, which must be a *helloConn.
func (s *certStore) config(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	set := s.now.Load()
	seen, ok := hello.Conn.(*helloConn)
	switch {
	case ok:
		seen.standing = &standing{store: s}
		seen.standing.good.Store(&verdict{trust: set.trust})
	case set.trust != nil:
		return nil, errors.New("a connection that cannot keep whom its certificate names")
	}
	if set.trust == nil {
		return set.config, nil
	}
	c := set.config.Clone()
	c.VerifyConnection = func(state tls.ConnectionState) error {
		return seen.standing.judge(set.trust, state.PeerCertificates, time.Now())
	}
	return c, nil
}

// leaves are the certificates in use.
func (s *certStore) leaves() []*x509.Certificate {
	pairs := s.now.Load().config.Certificates
	out := make([]*x509.Certificate, len(pairs))
	for i := range pairs {
		out[i] = pairs[i].Leaf
	}
	return out
}

// run looks at the files until ctx ends.
func (s *certStore) run(ctx context.Context) error {
	tick := time.NewTicker(certPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.poll(time.Now())
		}
	}
}

// poll takes changed files if they are good. A certificate and its key are
// written one after the other, so files that are no good are looked at again
// and again.
func (s *certStore) poll(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.now.Load()
	seen := marks(was.files)
	if slices.Equal(seen, s.seen) {
		return
	}
	set, err := s.read(was.files)
	if err == nil && set.same(was) {
		s.seen = seen // touched, no more
		s.wrong.Store(nil)
		return
	}
	if err == nil {
		err = set.check(now, was)
	}
	if err != nil {
		text := err.Error()
		if known := s.wrong.Swap(&text); known == nil || *known != text {
			s.log.Error("changed certificates were not taken; those before stay in use", "of", s.what, "err", err)
		}
		return
	}
	s.use(set, seen)
	s.log.Info("certificates were read again", "of", s.what)
}

// fileMark tells one state of a file from another.
type fileMark struct {
	size          int64
	inode         uint64
	changed, kept int64 // ctime and mtime in nanoseconds
}

func markOf(name string) (m fileMark) {
	st, err := os.Stat(name)
	if err != nil {
		return fileMark{size: -1}
	}
	m.size, m.kept = st.Size(), st.ModTime().UnixNano()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		m.inode, m.changed = sys.Ino, sys.Ctim.Nano()
	}
	return m
}

func marks(files tlsFiles) []fileMark {
	var out []fileMark
	for _, f := range files.certs {
		out = append(out, markOf(string(f.Cert)), markOf(string(f.Key)))
	}
	for _, f := range []config.Path{files.clientCA, files.crl} {
		if f != "" {
			out = append(out, markOf(string(f)))
		}
	}
	return out
}

// CertificateStatus is what people should know of a certificate in use.
type CertificateStatus struct {
	File     string    `json:"file"`
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"not_after"`
	// State is "ok", "expiring" or "expired".
	State string `json:"state"`
	// Wrong says why the file as it is now is not used.
	Wrong string `json:"wrong,omitempty"`
}

// The states of a certificate.
const (
	certOK       = "ok"
	certExpiring = "expiring"
	certExpired  = "expired"
)

func (s *certStore) status(now time.Time) []CertificateStatus {
	set := s.now.Load()
	wrong := ""
	if w := s.wrong.Load(); w != nil {
		wrong = *w
	}
	var out []CertificateStatus
	for i, pair := range set.config.Certificates {
		c := CertificateStatus{File: string(set.files.certs[i].Cert), Names: slices.Clone(pair.Leaf.DNSNames), NotAfter: pair.Leaf.NotAfter.UTC(), State: stateOf(pair.Leaf, now), Wrong: wrong}
		for _, ip := range pair.Leaf.IPAddresses {
			c.Names = append(c.Names, ip.String())
		}
		out = append(out, c)
	}
	return out
}

// noticeTime is how long before its end a certificate is called expiring; for
// short-lived ones it is a fifth of their life.
const noticeTime = 14 * 24 * time.Hour

func stateOf(c *x509.Certificate, now time.Time) string {
	left := c.NotAfter.Sub(now)
	switch {
	case left < 0:
		return certExpired
	case left < min(noticeTime, c.NotAfter.Sub(c.NotBefore)/5):
		return certExpiring
	}
	return certOK
}

// left is the time until the first of the certificates ends.
func (s *certStore) left(now time.Time) time.Duration {
	first := time.Duration(1<<63 - 1)
	for _, c := range s.leaves() {
		first = min(first, c.NotAfter.Sub(now))
	}
	return first
}

// notes are what readiness says about the certificates.
func (s *certStore) notes(now time.Time) (out []string) {
	for _, c := range s.status(now) {
		switch {
		case c.Wrong != "":
			out = append(out, fmt.Sprintf("%s: changed certificates are not used: %s", s.what, c.Wrong))
		case c.State == certExpired:
			out = append(out, fmt.Sprintf("%s: the certificate expired on %s", s.what, day(c.NotAfter)))
		case c.State == certExpiring:
			out = append(out, fmt.Sprintf("%s: the certificate expires on %s", s.what, day(c.NotAfter)))
		}
	}
	if trust := s.now.Load().trust; trust != nil {
		for _, n := range trust.notes(now) {
			out = append(out, s.what+": "+n)
		}
	}
	return out
}

// verifies reports whether a client that asked for host would take one of the
// certificates for it.
func (s *certStore) verifies(host string) bool {
	return slices.ContainsFunc(s.leaves(), func(c *x509.Certificate) bool { return c.VerifyHostname(host) == nil })
}
