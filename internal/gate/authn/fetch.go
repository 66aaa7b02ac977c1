package authn

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"
)

// maxDocument bounds a metadata or key set document, in bytes.
const maxDocument = 1 << 20

// fetchFunc gets the current key set document.
type fetchFunc func(ctx context.Context) ([]byte, error)

// checkURL wants https; plain http only to this machine and only if allowed.
func checkURL(raw string, allowLoopback bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%q is not a URL", raw)
	}
	if u.Host == "" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return nil, fmt.Errorf("%q must be an absolute URL without user information or fragment", raw)
	}
	switch {
	case u.Scheme == "https":
		return u, nil
	case u.Scheme == "http" && allowLoopback && isLoopback(u.Hostname()):
		return u, nil
	}
	return nil, fmt.Errorf("%q must use https (http is taken only to a loopback address, and only if the configuration allows it)", raw)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// newClient makes the client that talks to an issuer and nobody else: no
// proxy from the environment, no cookies, TLS 1.2 or later, and redirects
// only to the same scheme, host and port.
func newClient(roots *x509.CertPool, timeout time.Duration, conns int) *http.Client {
	return &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: timeout}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSHandshakeTimeout:    timeout,
			ResponseHeaderTimeout:  timeout,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConns:           conns,
			MaxIdleConnsPerHost:    conns,
			MaxConnsPerHost:        conns,
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true, // a small body must not grow past its bound
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("more than 3 redirects")
			}
			if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
				return errors.New("redirect to another host or scheme")
			}
			return nil
		},
	}
}

// get reads one document, whole and bounded.
func get(ctx context.Context, c *http.Client, u string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json, application/jwk-set+json")
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, &statusError{u, res.StatusCode}
	}
	return readBounded(res.Body, u, maxDocument)
}

// statusError is an answer other than 200.
type statusError struct {
	url  string
	code int
}

func (e *statusError) Error() string { return fmt.Sprintf("%s answered %d", e.url, e.code) }

func readBounded(r io.Reader, name string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: longer than %d bytes", name, limit)
	}
	return b, nil
}

func fetchURL(c *http.Client, u string) fetchFunc {
	return func(ctx context.Context) ([]byte, error) { return get(ctx, c, u) }
}

func fetchFile(path string) fetchFunc {
	return func(context.Context) ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readBounded(f, path, maxDocument)
	}
}

// fetchDiscovered asks the issuer's metadata where its keys are, each time, so
// that a moved key set is followed. OpenID Connect Discovery 1.0 section 4 is
// tried first, then RFC 8414 section 3 if that document does not exist.
func fetchDiscovered(c *http.Client, issuer *url.URL, raw string, allowLoopback bool) fetchFunc {
	return func(ctx context.Context) ([]byte, error) {
		openid, oauth := metadataURLs(issuer)
		doc, err := get(ctx, c, openid)
		if se := (*statusError)(nil); errors.As(err, &se) {
			var err2 error
			if doc, err2 = get(ctx, c, oauth); err2 != nil {
				return nil, fmt.Errorf("issuer metadata: %w; %w", err, err2)
			}
		} else if err != nil {
			return nil, fmt.Errorf("issuer metadata: %w", err)
		}
		keys, err := keysURL(doc, raw)
		if err != nil {
			return nil, fmt.Errorf("issuer metadata: %w", err)
		}
		if _, err := checkURL(keys, allowLoopback); err != nil {
			return nil, fmt.Errorf("issuer metadata: jwks_uri: %w", err)
		}
		return get(ctx, c, keys)
	}
}

// metadataURLs builds the two well-known addresses: OpenID appends to the
// issuer, RFC 8414 section 3.1 inserts between host and path.
func metadataURLs(issuer *url.URL) (openid, oauth string) {
	path := strings.TrimSuffix(issuer.EscapedPath(), "/")
	base := issuer.Scheme + "://" + issuer.Host
	return base + path + "/.well-known/openid-configuration",
		base + "/.well-known/oauth-authorization-server" + path
}

// keysURL takes jwks_uri from metadata that names exactly our issuer (RFC 8414
// section 3.3: otherwise it must not be used).
func keysURL(doc []byte, issuer string) (string, error) {
	v, err := parseObject(bytes.Trim(doc, jsonSpace), maxDepth)
	if err != nil {
		return "", err
	}
	if iss := v.get("issuer"); iss == nil || iss.kind != kindString || iss.text != issuer {
		other := &IssuerMismatch{}
		if iss != nil && iss.kind == kindString {
			other.Found = iss.text
		}
		return "", other
	}
	keys := v.get("jwks_uri")
	if keys == nil || keys.kind != kindString {
		return "", errors.New("no jwks_uri")
	}
	return keys.text, nil
}
