package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of the administration's connections.
const (
	headerTime = 5 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 16 << 10
	stopTime   = 5 * time.Second // for calls under way when the server stops
)

// Serve answers on the socket until ctx ends and calls under way have ended.
func (a *API) Serve(ctx context.Context, l net.Listener) error {
	return a.serve(ctx, l, a.mux, func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, callerKey{}, peer(c))
	})
}

// Remote says who is served on a TCP listener.
type Remote struct {
	// TLS is the listener's side. It must ask for client certificates if such
	// are taken, but leave their judgement to Authenticate, so that a refusal
	// has its record and its answer.
	TLS *tls.Config
	// Authenticate finds the caller. Its error is a *Refusal.
	Authenticate func(r *http.Request) (*Caller, error)
	// Host reports whether a host is a name of this listener.
	Host func(host string) bool
}

// ServeRemote answers with TLS on a listener until ctx ends and calls under way
// have ended. Every call is authenticated.
func (a *API) ServeRemote(ctx context.Context, l net.Listener, c Remote) error {
	door := &door{api: a, Remote: c, pace: make(chan struct{}, 1)}
	return a.serve(ctx, tls.NewListener(&capped{Listener: l, places: make(chan struct{}, maxRemote)}, c.TLS), door, nil)
}

func (a *API) serve(ctx context.Context, l net.Listener, h http.Handler, conn func(context.Context, net.Conn) context.Context) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug), ConnContext: conn,
		// Tails end with the server.
		BaseContext:                  func(net.Listener) context.Context { return context.WithValue(ctx, stopKey{}, ctx) },
		DisableGeneralOptionsHandler: true,
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	})
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	<-ended // the book must stay open until the last call has its record
	return nil
}

// maxRemote bounds the connections of a TCP listener.
const maxRemote = 64

// capped closes connections for which there is no place.
type capped struct {
	net.Listener
	places chan struct{}
}

// Accept implements net.Listener.
func (l *capped) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.places <- struct{}{}:
			return &placed{Conn: c, leave: sync.OnceFunc(func() { <-l.places })}, nil
		default:
			c.Close()
		}
	}
}

// placed gives its place back when it is closed.
type placed struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *placed) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// door is what calls from outside pass before the API.
type door struct {
	api *API
	Remote
	pace chan struct{} // holds a value while a refusal is being recorded
}

// refusalPause is the time between two refusals of strangers. Each of them is
// a record, so they come no faster than the book can bear for months.
const refusalPause = 100 * time.Millisecond

// ServeHTTP implements http.Handler.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who, err := d.admit(r)
	if err == nil {
		d.api.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
		return
	}
	var refused *Refusal
	if !errors.As(err, &refused) {
		writeError(w, err)
		return
	}
	select {
	case d.pace <- struct{}{}:
	case <-r.Context().Done():
		panic(http.ErrAbortHandler) // gone before its turn: nothing was answered
	}
	pause := time.NewTimer(refusalPause)
	defer pause.Stop()
	if err := d.api.stranger(r.Context(), refused); err != nil {
		d.api.log.Error("a refused call could not be recorded", "reason", refused.Reason, "err", err)
	}
	<-pause.C
	<-d.pace
	w.Header().Set("Connection", "close")
	if refused.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="gatebook admin"`)
	}
	writeError(w, &Problem{Title: refused.Text, Status: refused.Status, Code: exitDenied})
}

// admit lets callers in whose credential is good and whose call no web page can
// have made for them: a page can neither name our host after a change of its
// own DNS nor send a browser's client certificate along unnoticed.
func (d *door) admit(r *http.Request) (*Caller, error) {
	who, err := d.Authenticate(r)
	var refused *Refusal
	if err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	bad := func(status int, reason, text string) error {
		out := &Refusal{Status: status, Origin: "client", Reason: reason, Text: text, Caller: who}
		if refused != nil {
			out.Caller = refused.Caller
		}
		return out
	}
	host, _, splitErr := net.SplitHostPort(r.Host)
	if splitErr != nil {
		host = r.Host
	}
	switch {
	case !d.Host(strings.Trim(host, "[]")):
		return nil, bad(http.StatusMisdirectedRequest, "bad_host", "the host is none of this listener's certificates")
	case r.Header.Get("Origin") != "" || fetched(r.Header.Get("Sec-Fetch-Site")):
		return nil, bad(http.StatusForbidden, "malformed_request", "calls of web pages are not taken")
	case r.Method == http.MethodPost && !isJSON(r.Header.Get("Content-Type")):
		return nil, bad(http.StatusUnsupportedMediaType, "malformed_request", "a POST needs Content-Type: application/json")
	case err != nil:
		return nil, err
	}
	return who, nil
}

// fetched reports a page as the origin (W3C Fetch Metadata); a person at the
// address bar is "none".
func fetched(site string) bool { return site != "" && site != "none" }

func isJSON(t string) bool {
	t, _, _ = strings.Cut(t, ";")
	return strings.EqualFold(strings.TrimSpace(t), "application/json")
}
