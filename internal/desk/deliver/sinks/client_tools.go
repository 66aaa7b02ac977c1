package sinks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

const (
	maxExcerpt = 512
	maxAfter   = time.Hour // however long a sink asks to be left alone
	maxSecret  = 16 << 10  // bytes of a credential
)

// failed is the result of a request without an answer. Causes: address, dns,
// refused, unreachable, tls, reset, closed, timeout, canceled, early, broken. It is
// ambiguous unless err is *Unsent. Secrets are kept out of the detail.
func failed(err error, secrets ...string) deliver.Result {
	var unsent *Unsent
	r := deliver.Result{Class: deliver.Retry, Ambiguous: !errors.As(err, &unsent), Cause: causeOf(err), Detail: excerpt([]byte(err.Error()), secrets...)}
	if r.Cause == "address" {
		r.Class = deliver.Pause // somebody has to look at where that name leads
	}
	return r
}

func causeOf(err error) string {
	var address *refusedAddress
	var dns *net.DNSError
	var shake *shakeError
	var op *net.OpError
	var timeout net.Error
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.Is(err, errEarly):
		return "early"
	case errors.As(err, &address):
		return "address"
	case errors.As(err, &dns):
		return "dns"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.As(err, &shake), errors.As(err, &cert), errors.As(err, &authority), errors.As(err, &op) && op.Op == "remote error":
		return "tls" // a client certificate may be refused after the handshake, by an alert
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "unreachable"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return "closed"
	}
	return "broken"
}

// answered is the result of an answer that means class. The grade is the
// caller's to set.
func answered(class deliver.Class, a *Answer, now time.Time, secrets ...string) deliver.Result {
	r := deliver.Result{Class: class, Status: a.Status, Cause: "http_" + strconv.Itoa(a.Status)}
	if class != deliver.Done {
		r.After = retryAfter(a.Header, now)
		r.Detail = excerpt(a.Body, secrets...)
	}
	return r
}

// classOf is what a status means if the protocol says nothing else of it. What is
// neither transient nor about the records is a Pause: somebody has to look, and
// the cursor stays. 2xx is Done only where a protocol says so.
func classOf(status int) deliver.Class {
	switch {
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity:
		return deliver.Poison
	case status == http.StatusRequestEntityTooLarge:
		return deliver.Split
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests, status >= 500:
		return deliver.Retry
	}
	return deliver.Pause
}

// retryAfter reads Retry-After (RFC 9110 section 10.2.3) in seconds or as a date.
// It is 0 if there is none or it is over, and one hour at most.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	if strings.Trim(v, "0123456789") == "" {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil || n > uint64(maxAfter/time.Second) {
			return maxAfter
		}
		return time.Duration(n) * time.Second
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxAfter)
}

// excerpt is at most 512 bytes of what a sink said, as one line of printable
// characters and without the secrets, in the forms in which a sink may repeat
// them.
func excerpt(b []byte, secrets ...string) string {
	s := string(b)
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), base64.StdEncoding.EncodeToString([]byte(secret))} {
			s = strings.ReplaceAll(s, form, "***")
		}
	}
	var out strings.Builder
	space := true // none at the beginning
	for _, r := range s {
		if r == utf8.RuneError {
			r = '?'
		}
		if !unicode.IsPrint(r) || r == ' ' {
			if space {
				continue
			}
			r = ' '
		}
		space = r == ' '
		if out.Len()+utf8.RuneLen(r) > maxExcerpt {
			break
		}
		out.WriteRune(r)
	}
	return strings.TrimSuffix(out.String(), " ")
}

// Credential is a secret that can be read again from where it is kept. It is safe
// for concurrent use.
type Credential struct {
	from func() (string, error)

	mu  sync.RWMutex
	now string // guarded by mu
}

// NewCredential reads a credential for the first time. See FromFile and FromEnv.
func NewCredential(from func() (string, error)) (*Credential, error) {
	c := &Credential{from: from}
	_, err := c.Renew()
	return c, err
}

// FromFile reads a credential from the first and only line of a file.
func FromFile(name string) func() (string, error) {
	return func() (string, error) {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
		if err != nil {
			return "", err
		}
		s, err := checkSecret(strings.TrimRight(string(b), "\r\n"))
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return s, nil
	}
}

// FromEnv reads a credential from a variable of the environment.
func FromEnv(name string) func() (string, error) {
	return func() (string, error) {
		s, err := checkSecret(os.Getenv(name))
		if err != nil {
			return "", fmt.Errorf("$%s: %w", name, err)
		}
		return s, nil
	}
}

// checkSecret wants what can be put into a header.
func checkSecret(s string) (string, error) {
	if s == "" {
		return "", errors.New("there is no credential in it")
	}
	if len(s) > maxSecret {
		return "", fmt.Errorf("the credential is longer than %d bytes", maxSecret)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return "", errors.New("the credential is not one line of printable ASCII characters without spaces")
		}
	}
	return s, nil
}

// Get is the credential as it was read last.
func (c *Credential) Get() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.now
}

// Renew reads the credential again and reports whether it has changed. If it
// cannot be read, the old one stays.
func (c *Credential) Renew() (changed bool, err error) {
	return c.renew(func(string) error { return nil })
}

// renew keeps the old one if check refuses the new one.
func (c *Credential) renew(check func(string) error) (changed bool, err error) {
	s, err := c.from()
	if err == nil {
		err = check(s)
	}
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, c.now = s != c.now, s
	return changed, nil
}
