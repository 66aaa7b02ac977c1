// Package sinks speaks the protocols of the systems that records go to, one file
// each, over plain HTTP: no vendor's client, because those hide what a lossless
// sender must see.
package sinks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/gatebook/gatebook/internal/pace"
)

// Bounds of one request. A sink's answer is not believed, so neither its head
// nor its body may be as long as it likes.
const (
	defaultTimeout = 30 * time.Second
	dialTimeout    = 10 * time.Second
	shakeTimeout   = 10 * time.Second
	maxReply       = 4 << 20  // bytes of a body, after gzip
	maxReplyHead   = 64 << 10 // bytes of a head
)

// Settings say how to reach a sink. TLS is always verified.
type Settings struct {
	URL string // https, or http to loopback unless Plain
	// Plain allows http to another machine.
	Plain bool
	// Private allows addresses that are link-local (cloud metadata) or unspecified, which
	// are refused otherwise whatever a name resolves to. Loopback and private
	// networks (RFC 1918, RFC 4193) are always allowed: receivers live there, and
	// the URL is the operator's. Multicast is never allowed.
	Private bool
	// CA is PEM to trust instead of the system's; nil: the system's.
	CA []byte
	// Cert and Key are PEM of a client certificate; nil: none.
	Cert, Key []byte
	// Timeout bounds one request with its answer; 0: 30 s.
	Timeout time.Duration
	// Pace is other long work of the process, with which compressing gives way to
	// requests; nil: none.
	Pace *pace.Group
	// Gzip compresses bodies. The same body gives the same bytes.
	Gzip bool
	// Jar keeps cookies of the sink between requests.
	Jar bool
}

// Answer is what a sink said, bounded and not believed.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Cut: the body was longer than what is read of an answer (4 MiB).
	Cut bool
}

// Client sends requests to one sink. It follows no redirect and uses no proxy of
// the environment. It is safe for concurrent use.
type Client struct {
	base    *url.URL
	http    *http.Client
	timeout time.Duration
	bodies  composer
}

// NewClient checks the settings.
func NewClient(s Settings) (*Client, error) {
	base, err := checkURL(s)
	if err != nil {
		return nil, err
	}
	d, err := newDialer(s, base.Scheme == "http")
	if err != nil {
		return nil, err
	}
	c := &Client{base: base, timeout: s.Timeout, bodies: composer{gzip: s.Gzip, pace: s.Pace}}
	if c.timeout == 0 {
		c.timeout = defaultTimeout
	}
	if c.timeout < 0 {
		return nil, errors.New("the timeout is negative")
	}
	// HTTP/1.1 alone: one request has one connection, so what has left is known to
	// the byte.
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:            d.dial,
			DialTLSContext:         d.dialTLS,
			DisableCompression:     true, // what comes is decoded here, bounded
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxReplyHead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if s.Jar {
		c.http.Jar, _ = cookiejar.New(nil) // fails for no options
	}
	return c, nil
}

func checkURL(s Settings) (*url.URL, error) {
	u, err := url.Parse(s.URL)
	switch {
	case err != nil:
		return nil, errors.New("the URL of the sink cannot be read: write https://HOST[:PORT][/PATH]")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return nil, errors.New("the URL of the sink is not of the form https://HOST[:PORT][/PATH]")
	case u.User != nil:
		return nil, errors.New("the URL of the sink has a user name or password; name the credential apart from it")
	case u.Fragment != "":
		return nil, errors.New("the URL of the sink has a fragment; remove the part from # on")
	case u.Scheme == "http" && !s.Plain && !namesLoopback(u.Hostname()):
		return nil, fmt.Errorf("the URL of the sink is http to another machine (%s): records would cross the network in clear; use https, or allow plain HTTP for this sink", u.Hostname())
	}
	return u, nil
}

// Unsent wraps an error that came before a byte of the request can have left:
// then nothing is ambiguous.
type Unsent struct{ Err error }

func (u *Unsent) Error() string { return u.Err.Error() }
func (u *Unsent) Unwrap() error { return u.Err }

// compose makes a body of parts as composer.body does, and says in the header
// how it is compressed.
func (c *Client) compose(header http.Header, n, size int, part func(dst []byte, i int) []byte) (body []byte, raw int) {
	if c.bodies.gzip {
		header.Set("Content-Encoding", "gzip")
	}
	return c.bodies.body(n, size, part)
}

// Do sends one request to the URL of the settings with path put behind it, and
// reads the answer. A query of path is added to that of the URL; an empty path
// leaves the URL as it is. A body that says that it is compressed goes as it is.
// Errors: *Unsent, or anything else when the request may
// have arrived. If the head of an answer came and its body broke, both an answer
// and an error are returned.
func (c *Client) Do(ctx context.Context, method, path string, header http.Header, body []byte) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	header = header.Clone()
	if header == nil {
		header = http.Header{}
	}
	header.Set("Accept-Encoding", "identity")
	header.Set("User-Agent", "gatebook")
	if c.bodies.gzip && len(body) > 0 && header.Get("Content-Encoding") == "" {
		body, _ = c.bodies.body(1, len(body), func(dst []byte, _ int) []byte { return append(dst, body...) })
		header.Set("Content-Encoding", "gzip")
	}
	a, reused, err := c.once(ctx, method, path, header, body)
	var unsent *Unsent
	if reused && errors.As(err, &unsent) && ctx.Err() == nil {
		// The connection had been closed while it was idle. Nothing left, so this
		// is no second attempt.
		c.http.CloseIdleConnections()
		a, _, err = c.once(ctx, method, path, header, body)
	}
	return a, err
}

// once sends on one connection. The request has no GetBody and the transport
// therefore never sends a body twice by itself.
func (c *Client) once(ctx context.Context, method, path string, header http.Header, body []byte) (a *Answer, reused bool, err error) {
	var sent mark
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { sent.got(i.Conn, i.Reused) }})
	var r io.Reader
	if len(body) > 0 {
		r = io.NopCloser(bytes.NewReader(body))
	}
	req, err := http.NewRequestWithContext(ctx, method, c.at(path), r)
	if err != nil {
		return nil, false, &Unsent{err}
	}
	req.Header, req.ContentLength = header, int64(len(body))
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // it repeats the URL, which may have a secret in its query
		}
		left, reused := sent.left()
		if !left {
			return nil, reused, &Unsent{err}
		}
		return nil, reused, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// Its body is the connection, and reading that heeds no deadline.
		return nil, false, errSwitched
	}
	a = &Answer{Status: resp.StatusCode, Header: resp.Header}
	a.Body, a.Cut, err = readReply(resp)
	if a.Status < 300 && sent.gave() < int64(len(body)) {
		return nil, false, errEarly
	}
	return a, false, err
}

// Answers that are not believed.
var (
	errSwitched = errors.New("the sink changes to another protocol, which nobody asked for")
	errEarly    = errors.New("the sink said yes before it had got the whole request")
)

// at is the URL of the settings with path, which may have a query, behind it.
func (c *Client) at(path string) string {
	if path == "" {
		return c.base.String()
	}
	u := *c.base
	path, query, _ := strings.Cut(path, "?")
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + strings.TrimPrefix(path, "/")
	u.RawPath = ""
	if u.RawQuery != "" && query != "" {
		query = u.RawQuery + "&" + query
	} else if query == "" {
		query = u.RawQuery
	}
	u.RawQuery = query
	return u.String()
}

// readReply reads a body up to the bound, which holds after decompression too:
// some middle boxes compress what nobody asked them to.
func readReply(resp *http.Response) (b []byte, cut bool, err error) {
	var r io.Reader = resp.Body
	if strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		z, err := gzip.NewReader(io.LimitReader(r, maxReply))
		if err != nil {
			return nil, false, fmt.Errorf("the answer says gzip and is not: %w", err)
		}
		r = z
	}
	b, err = io.ReadAll(io.LimitReader(r, maxReply+1))
	if len(b) > maxReply {
		return b[:maxReply], true, nil
	}
	return b, false, err
}
