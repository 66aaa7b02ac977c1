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
	"strconv"
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
	Count(field string, q query.Query) ([]query.Count, error)
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
		return c, func() error { return nil }, nil
	}
	o, err := server.OpenOffline(ctx, f, act, target, reveal)
	if err != nil {
		return nil, nil, err
	}
	return o, func() error { return o.Close(context.WithoutCancel(ctx)) }, nil
}

// client calls the admin socket.
type client struct {
	ctx  context.Context
	http *http.Client
}

// dial returns a client if a server answers on the socket, else nil.
func dial(ctx context.Context, f *config.File) *client {
	path := server.SocketPath(f)
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil
	}
	conn.Close()
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	return &client{ctx: ctx, http: &http.Client{Transport: t}}
}

// call sends one request and hands out the body of a good answer.
func (c *client) call(method, path string, body []byte, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(c.ctx, method, "http://admin"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, syscall.EACCES) || errors.Is(err, fs.ErrPermission) {
			return &exitError{ExitDenied, err}
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return read(resp.Body)
	}
	var p admin.Problem
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&p); err != nil {
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

// maxLine is the longest line of an answer: a frame and a personal part.
const maxLine = 256 << 10

// Search implements source.
func (c *client) Search(q query.Query, fn func(*query.Match) error) error {
	return c.call("GET", "/api/v1/records?"+parameters(q).Encode(), nil, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var m query.Match
			if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
				return err
			}
			if err := fn(&m); err != nil {
				return err
			}
		}
		return lines.Err()
	})
}

// Find implements source.
func (c *client) Find(id string, reveal bool) (*query.Match, error) {
	var m query.Match
	err := c.call("GET", "/api/v1/records/"+url.PathEscape(id)+"?reveal="+strconv.FormatBool(reveal), nil, decodeInto(&m))
	return &m, err
}

func decodeInto(v any) func(io.Reader) error {
	return func(r io.Reader) error { return json.NewDecoder(r).Decode(v) }
}

// Count implements source.
func (c *client) Count(field string, q query.Query) ([]query.Count, error) {
	v := parameters(q)
	v.Set("by", field)
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
