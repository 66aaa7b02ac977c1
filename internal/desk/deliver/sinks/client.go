// Package sinks speaks the protocols of the systems that records go to, one file
// each, over plain HTTP: no vendor's client, because those hide what a lossless
// sender must see.
package sinks

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Settings say how to reach a sink. TLS is always verified.
type Settings struct {
	URL string // https, or http to loopback unless Plain
	// Plain allows http to another machine.
	Plain bool
	// Private allows addresses that are link-local (cloud metadata) or unspecified, which
	// are refused otherwise whatever a name resolves to.
	Private bool
	// CA is PEM to trust instead of the system's; nil: the system's.
	CA []byte
	// Cert and Key are PEM of a client certificate; nil: none.
	Cert, Key []byte
	// Timeout bounds one request with its answer; 0: 30 s.
	Timeout time.Duration
	// Gzip compresses bodies.
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
type Client struct{}

// NewClient checks the settings.
func NewClient(s Settings) (*Client, error) { return nil, errors.New("not made") }

// Unsent wraps an error that came before a byte of the request can have left:
// then nothing is ambiguous.
type Unsent struct{ Err error }

func (u *Unsent) Error() string { return u.Err.Error() }
func (u *Unsent) Unwrap() error { return u.Err }

// Do sends one request to the URL of the settings with path put behind it, and
// reads the answer. Errors: *Unsent, or anything else when the request may have
// arrived.
func (c *Client) Do(ctx context.Context, method, path string, header http.Header, body []byte) (*Answer, error) {
	return nil, errors.New("not made")
}
