package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/desk/query"
	"github.com/gatebook/gatebook/internal/server"
)

// source is where a reading command reads: a running server or the book.
type source interface {
	Search(q query.Query, fn func(*query.Match) error) error
	Find(id string, reveal bool) (*query.Match, error)
	Count(field string, q query.Query, records bool) ([]query.Count, error)
	Prove(id string, reveal bool) ([]byte, error)
}

// open connects to the running server, or opens the book offline if nobody
// answers. done must be called.
func (a *app) open(ctx context.Context, act, target string, reveal bool) (source, func() error, error) {
	f, err := a.load()
	if err != nil {
		return nil, nil, err
	}
	if c := dial(ctx, f); c != nil {
		c.act = act
		return c, func() error { return nil }, nil
	}
	if reveal {
		holdsBook()
	}
	o, err := server.OpenOffline(ctx, f, act, target, reveal)
	if err != nil {
		return nil, nil, err
	}
	return o, func() error { return o.Close(context.WithoutCancel(ctx)) }, nil
}

// holdsBook is called before the book is opened for writing: a reader that goes
// away, such as head, must not end the process, which would be an unclean stop.
// The write fails instead.
func holdsBook() { signal.Ignore(syscall.SIGPIPE) }

// client calls the admin socket.
type client struct {
	ctx  context.Context
	http *http.Client
	act  string // what is being done, for the server's record
}

// dial returns a client if a server answers on the socket, else nil.
func dial(ctx context.Context, f *config.File) *client {
	path := server.SocketPath(f)
	try, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := admin.DialSocket(try, path)
	switch {
	case err == nil:
		conn.Close()
	case !isDenied(err): // whoever may not come in is told so by the first call
		return nil
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return admin.DialSocket(ctx, path)
	}}
	return &client{ctx: ctx, http: &http.Client{Transport: t}}
}

func isDenied(err error) bool {
	return errors.Is(err, syscall.EACCES) || errors.Is(err, fs.ErrPermission)
}

// call sends one request and hands out the body of a good answer.
func (c *client) call(method, path string, body []byte, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(c.ctx, method, "http://admin"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if isDenied(err) {
			return &exitError{ExitDenied, err}
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return read(resp.Body)
	}
	if resp.StatusCode == http.StatusRequestHeaderFieldsTooLarge {
		return usagef("the request is too long for the server; an expression may have 4096 bytes")
	}
	var p admin.Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil || p.Code == 0 {
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	return &exitError{p.Code, errors.New(p.Title)}
}

func parameters(q query.Query) url.Values {
	v := url.Values{}
	if q.Expr != "" {
		v.Set("q", q.Expr)
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if !q.Until.IsZero() {
		v.Set("until", q.Until.Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	v.Set("reveal", strconv.FormatBool(q.Reveal))
	return v
}

// maxLine is the longest line of an answer: a frame and a personal part of 64 KiB
// each, in which every byte may be written as six.
const maxLine = 1 << 20

// Search implements source.
func (c *client) Search(q query.Query, fn func(*query.Match) error) error {
	v := parameters(q)
	v.Set("act", c.act)
	return c.call("GET", "/api/v1/records?"+v.Encode(), nil, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var m struct {
				query.Match
				admin.CutShort
			}
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				return err
			}
			if p := m.Problem; p.Code != 0 {
				return &exitError{p.Code, errors.New(p.Title)}
			}
			if err := fn(&m.Match); err != nil {
				return err
			}
		}
		return lines.Err()
	})
}

// Find implements source.
func (c *client) Find(id string, reveal bool) (*query.Match, error) {
	var m query.Match
	v := url.Values{"reveal": {strconv.FormatBool(reveal)}, "act": {c.act}}
	err := c.call("GET", "/api/v1/records/"+url.PathEscape(id)+"?"+v.Encode(), nil, decodeInto(&m))
	return &m, err
}

func decodeInto(v any) func(io.Reader) error {
	return func(r io.Reader) error { return json.NewDecoder(r).Decode(v) }
}

// Count implements source.
func (c *client) Count(field string, q query.Query, records bool) ([]query.Count, error) {
	v := parameters(q)
	v.Set("by", field)
	v.Set("records", strconv.FormatBool(records))
	var out []query.Count
	err := c.call("GET", "/api/v1/counts?"+v.Encode(), nil, decodeInto(&out))
	return out, err
}

// Prove implements source.
func (c *client) Prove(id string, reveal bool) (proof []byte, err error) {
	err = c.call("GET", "/api/v1/records/"+url.PathEscape(id)+"/proof?reveal="+strconv.FormatBool(reveal), nil, func(r io.Reader) (err error) {
		proof, err = io.ReadAll(r)
		return err
	})
	return proof, err
}

// backup copies the archive of a backup to w.
func (c *client) backup(w io.Writer, withKeys bool) error {
	return c.call("POST", "/api/v1/backup?with_keys="+strconv.FormatBool(withKeys), nil, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// verify asks the server to verify the book that it has open.
func (c *client) verify(key string, saved []byte) (*ledger.Report, error) {
	body, err := json.Marshal(admin.VerifyRequest{Key: key, Saved: saved})
	if err != nil {
		return nil, err
	}
	var rep ledger.Report
	err = c.call("POST", "/api/v1/verify", body, decodeInto(&rep))
	return &rep, err
}

// reload asks the server to reload.
func (c *client) reload() (*server.Reloaded, error) {
	var out server.Reloaded
	err := c.call("POST", "/api/v1/reload", nil, decodeInto(&out))
	return &out, err
}

// revoke asks the server to take credentials no more.
func (c *client) revoke(r admin.Revocation) (*server.Revoked, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var out server.Revoked
	err = c.call("POST", "/api/v1/tokens/revoke", body, decodeInto(&out))
	return &out, err
}

// sessions asks the server for its browser sessions.
func (c *client) sessions() ([]server.SessionLine, error) {
	var out []server.SessionLine
	err := c.call("GET", "/api/v1/sessions", nil, decodeInto(&out))
	return out, err
}

// revokeSessions asks the server to end browser sessions.
func (c *client) revokeSessions(r server.SessionRevocation) (*server.SessionsRevoked, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var out server.SessionsRevoked
	err = c.call("POST", "/api/v1/sessions/revoke", body, decodeInto(&out))
	return &out, err
}

func (c *client) status() (*server.Status, error) {
	var s server.Status
	if err := c.call("GET", "/api/v1/status", nil, decodeInto(&s)); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return &s, nil
}

// tail hands out what is recorded from now on. It ends with an error unless ctx
// ends it: the server sends until somebody stops it.
func (c *client) tail(q query.Query, fn func(*query.Match) error) error {
	return c.call("GET", "/api/v1/tail?"+parameters(q).Encode(), nil, func(r io.Reader) error {
		ended := false
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			text := lines.Text()
			ended = ended || text == "event: end"
			data, ok := strings.CutPrefix(text, "data: ")
			if !ok {
				continue
			}
			if ended {
				return errors.New("the server is stopping")
			}
			var m query.Match
			if err := json.Unmarshal([]byte(data), &m); err != nil {
				return err
			}
			if err := fn(&m); err != nil {
				return err
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("the tail was cut: %w", err)
		}
		return errors.New("the tail was cut")
	})
}
