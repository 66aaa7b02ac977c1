package authn

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// RootCAs are trusted for https instead of the system's.
type RootCAs = *x509.CertPool

// endpoint puts questions within a budget: so many at once, so many a second,
// and none for a while after several failed in a row.
type endpoint struct {
	issuer  string // configured name, for the log
	url     string
	auth    ClientAuth
	aud     string // issuer identifier, the audience of a client assertion
	client  *http.Client
	timeout time.Duration
	slots   chan struct{} // one token per question under way
	rate    float64
	now     func() time.Time
	log     *slog.Logger

	mu       sync.Mutex
	budget   float64   // guarded by mu: questions that may be put now
	refilled time.Time // guarded by mu
	fails    int       // guarded by mu: failed questions in a row
	until    time.Time // guarded by mu: no question before, after failures
	asked    uint64    // guarded by mu
	failed   uint64    // guarded by mu
	lastErr  error     // guarded by mu
}

func newEndpoint(c *IntrospectConfig) (*endpoint, error) {
	client := newClient(c.RootCAs, c.Timeout, c.Concurrency)
	// A redirect would send the token and the client's secret elsewhere.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &endpoint{
		issuer: c.Token.Name, url: c.URL, auth: c.Client, aud: c.Token.Issuer, client: client, timeout: c.Timeout,
		slots: make(chan struct{}, c.Concurrency), rate: c.Rate, budget: c.Rate, refilled: c.Token.Now(),
		now: c.Token.Now, log: c.Token.Logger,
	}, nil
}

// Failures in a row after which the endpoint is left alone, and for how long.
const (
	askFailures = 3
	askPause    = time.Second
	askPauseMax = 10 * time.Second
)

// admit takes one question out of the budget.
func (e *endpoint) admit() *Failure {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	if now.Before(e.until) {
		f := fail(reason.IssuerUnavailable, "the introspection endpoint failed and is left alone for a moment")
		f.Err = e.lastErr
		return f
	}
	if d := now.Sub(e.refilled); d > 0 {
		e.budget = min(e.budget+d.Seconds()*e.rate, max(e.rate, 1))
		e.refilled = now
	}
	if e.budget < 1 {
		return fail(reason.Overloaded, "too many tokens to ask about")
	}
	e.budget--
	if e.fails >= askFailures {
		e.until = now.Add(e.timeout) // this one tries; the others wait for what it finds
	}
	e.asked++
	return nil
}

// settle notes how a question went.
func (e *endpoint) settle(ctx context.Context, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.lastErr
	e.lastErr = err
	if err == nil {
		e.fails, e.until = 0, time.Time{}
		if was != nil {
			e.log.InfoContext(ctx, "introspection works again", "issuer", e.issuer)
		}
		return
	}
	e.failed++
	e.fails++
	if e.fails >= askFailures {
		e.until = e.now().Add(min(askPause<<min(e.fails-askFailures, 8), askPauseMax))
	}
	if was == nil || e.fails == askFailures {
		e.log.WarnContext(ctx, "introspection failed", "issuer", e.issuer, "error", err.Error())
	}
}

func (e *endpoint) status() IntrospectStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	return IntrospectStatus{Asked: e.asked, Failed: e.failed, Away: e.now().Before(e.until), Err: e.lastErr}
}

// ask puts one question. The failure is that the endpoint cannot be asked now,
// or that it will not judge the token.
func (e *endpoint) ask(ctx context.Context, raw string) (*value, *Failure) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	select {
	case e.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fail(reason.Overloaded, "too many tokens to ask about at once")
	}
	defer func() { <-e.slots }()
	if f := e.admit(); f != nil {
		return nil, f
	}
	said, err := e.post(ctx, raw)
	if errors.Is(err, errNotJudged) {
		e.settle(ctx, nil)
		f := fail(reason.TokenInactive, "the issuer refuses to judge the token")
		f.Err = err
		return nil, f
	}
	e.settle(ctx, err)
	if err != nil {
		f := fail(reason.IssuerUnavailable, "the introspection endpoint gives no usable answer")
		f.Err = err
		return nil, f
	}
	return said, nil
}

// errNotJudged is an answer that says something is wrong with this token, not
// with us or the endpoint: whoever sends odd tokens must not be able to make
// the endpoint look broken for everybody.
var errNotJudged = errors.New("the endpoint answered 400")

func (e *endpoint) post(ctx context.Context, raw string) (*value, error) {
	form := url.Values{"token": {raw}, "token_type_hint": {"access_token"}}
	header := http.Header{}
	if err := e.auth.apply(form, header, e.aud, e.now()); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	res, err := e.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() {
		io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer)) // so that the connection serves again
		res.Body.Close()
	}()
	body, err := readBounded(res.Body, e.url, maxAnswer)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusBadRequest && notOurFault(body) {
		return nil, errNotJudged
	}
	if res.StatusCode != http.StatusOK {
		return nil, &statusError{e.url, res.StatusCode}
	}
	if kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, fmt.Errorf("%s answered something other than application/json", e.url)
	}
	v, err := parseObject(bytes.Trim(body, jsonSpace), maxDepth)
	return v, wrap(e.url, err)
}

// notOurFault reads the error of a 400 (RFC 6749 section 5.2): those about the
// client are for the operator to mend.
func notOurFault(body []byte) bool {
	v, err := parseObject(bytes.Trim(body, jsonSpace), maxDepth)
	if err != nil {
		return false
	}
	code := v.get("error")
	if code == nil || code.kind != kindString {
		return false
	}
	switch code.text {
	case "invalid_request", "unsupported_token_type", "invalid_token":
		return true
	}
	return false
}
