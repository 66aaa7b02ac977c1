package authz

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// maxZenAnswer bounds the answer of a decision point, in bytes.
const maxZenAnswer = 64 << 10

// PointConfig says how to ask an outside decision point.
type PointConfig struct {
	Name    string         // in records
	URL     string         // of its access evaluation endpoint
	Timeout time.Duration  // for a whole question, waiting for a connection included
	Conns   int            // connections at once
	RootCAs *x509.CertPool // nil: the system's
	Token   string         // bearer token to show; empty: none
}

// Point is an outside decision point that speaks AuthZEN 1.0. Safe for
// concurrent use.
type Point struct {
	c    PointConfig
	ids  []string // what stands among the determining policies
	http *http.Client
}

// NewPoint makes a Point; nothing is connected yet.
func NewPoint(c PointConfig) *Point {
	t := &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.RootCAs},
		MaxConnsPerHost: c.Conns, MaxIdleConnsPerHost: c.Conns, IdleConnTimeout: time.Minute,
		MaxResponseHeaderBytes: 16 << 10, DisableCompression: true,
	}
	return &Point{c: c, ids: []string{OutsidePrefix + c.Name}, http: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close lets go of idle connections.
func (p *Point) Close() { p.http.CloseIdleConnections() }

// ask puts a request to the decision point. Everything but a clear answer is an
// error, whose text holds nothing of the request and nothing of the answer.
func (p *Point) ask(r *Request) (allow bool, err error) {
	question, err := r.zenQuestion()
	if err != nil {
		return false, errors.New("the request cannot be written as a question")
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.c.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.c.URL, bytes.NewReader(question))
	if err != nil {
		return false, errors.New("its URL is none")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if p.c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+p.c.Token)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return false, plainCause(ctx, "it cannot be reached")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("it answered with status %d", resp.StatusCode)
	}
	if typ, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(typ), "application/json") {
		return false, errors.New("its answer is not application/json")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxZenAnswer+1))
	if err != nil {
		return false, plainCause(ctx, "its answer was cut off")
	}
	if len(body) > maxZenAnswer {
		return false, fmt.Errorf("its answer is longer than %d bytes", maxZenAnswer)
	}
	if allow, err = parseZenDecision(body); err != nil {
		return false, errors.New("its answer is no decision")
	}
	return allow, nil
}

func plainCause(ctx context.Context, otherwise string) error {
	if ctx.Err() != nil {
		return errors.New("it did not answer in time")
	}
	return errors.New(otherwise)
}

// Both decides by the policies and by an outside decision point: both must
// allow. The point is asked only about what the policies allow, and only on
// the routes that it is for.
type Both struct {
	Engine *Engine
	Point  *Point
}

// Decide answers a request. A point that gives no clear answer in time denies.
func (b *Both) Decide(r *Request) Decision {
	d := b.Engine.Decide(r)
	if !d.Allow || len(d.Errors) > 0 {
		return d
	}
	allow, err := b.Point.ask(r)
	switch {
	case err != nil:
		return Decision{Reason: reason.PolicyUnavailable, Set: d.Set, Policies: b.Point.ids, Errors: []string{"decision point " + b.Point.c.Name + ": " + err.Error()}}
	case !allow:
		return Decision{Reason: reason.DeniedByPolicy, Set: d.Set, Policies: b.Point.ids}
	}
	d.Policies = slices.Concat(d.Policies, b.Point.ids)
	slices.Sort(d.Policies)
	return d
}
