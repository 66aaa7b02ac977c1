package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/server"
)

// house is everything that a demo runs. openHouse opens all sockets, run
// serves them, close lets go of what run does not.
type house struct {
	dir     folder
	file    *config.File
	issuer  *issuer
	parts   []part // issuer and orders API
	down    *downPort
	orders  string // URL
	gate    *server.Server
	gateURL string
	log     *os.File
	vkey    string
}

// part is a plain HTTP server on loopback.
type part struct {
	name   string
	socket net.Listener
	http   *http.Server
}

func newPart(name string) (part, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return part{}, fmt.Errorf("%s: %w", name, err)
	}
	return part{name, l, &http.Server{ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}}, nil
}

func (p *part) url() string { return "http://" + p.socket.Addr().String() }

// openHouse makes everything in the folder and opens it, in the order in which
// one part needs another.
func openHouse(ctx context.Context, dir folder) (_ *house, err error) {
	h := &house{dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if err := h.openNeighbours(); err != nil {
		return nil, err
	}
	listen, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p := places{Listen: listen, Gate: "https://" + listen, Issuer: h.issuer.url, Audience: audience, Orders: h.orders, Reports: h.reports()}
	now := time.Now()
	if err := dir.write(p, now); err != nil {
		return nil, err
	}
	if err := h.issuer.writeTokens(dir.path("tokens"), now); err != nil {
		return nil, err
	}
	return h, h.openGate(ctx)
}

// freeAddress is one on loopback at which nothing listens now. The gate has to
// know it before it listens: it is in the tokens that it issues.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// openNeighbours opens what is around the gate.
func (h *house) openNeighbours() error {
	issuerPart, err := newPart("issuer")
	if err != nil {
		return err
	}
	h.parts = append(h.parts, issuerPart)
	if h.issuer, err = newIssuer(issuerPart.url()); err != nil {
		return err
	}
	if issuerPart.http.Handler, err = h.issuer.handler(); err != nil {
		return err
	}
	api, err := newPart("orders API")
	if err != nil {
		return err
	}
	api.http.Handler = newOrders().handler()
	h.parts = append(h.parts, api)
	h.orders = api.url()
	h.down, err = holdDownPort()
	return err
}

func (h *house) reports() string { return "http://" + h.down.addr }

// openGate takes the way of the commands: the file is loaded and checked, the
// book is made as init makes it, and the server is that of serve.
func (h *house) openGate(ctx context.Context) (err error) {
	if h.file, err = config.Load(h.dir.path(configFile)); err != nil {
		return err
	}
	if p := config.Check(h.file); p != nil {
		return p
	}
	if h.vkey, err = server.CreateBook(ctx, h.file); err != nil {
		return err
	}
	if err := os.WriteFile(h.dir.path(vkeyFile), []byte(h.vkey+"\n"), 0o600); err != nil {
		return err
	}
	if h.log, err = os.OpenFile(h.dir.path(logFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	if h.gate, err = server.New(ctx, h.file, slog.New(slog.NewJSONHandler(h.log, nil))); err != nil {
		return err
	}
	h.gateURL = "https://" + h.gate.Addr("public").String()
	return nil
}

// run serves until ctx ends. The gate stops before what is behind it.
func (h *house) run(ctx context.Context) error {
	failed := make(chan error, len(h.parts)+1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i := range h.parts {
		p := &h.parts[i]
		wg.Go(func() {
			if err := p.http.Serve(p.socket); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s: %w", p.name, err)
				cancel()
			}
		})
	}
	wg.Go(func() {
		if err := h.renewTokens(ctx); err != nil {
			failed <- err
			cancel()
		}
	})
	err := h.gate.Run(ctx)
	cancel()
	for i := range h.parts {
		err = errors.Join(err, h.parts[i].http.Close())
	}
	wg.Wait()
	close(failed)
	for e := range failed {
		err = errors.Join(err, e)
	}
	return err
}

// renewTokens replaces the tokens before they expire, until ctx ends.
func (h *house) renewTokens(ctx context.Context) error {
	tick := time.NewTicker(tokenRenew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if err := h.issuer.writeTokens(h.dir.path("tokens"), now); err != nil {
				return err
			}
		}
	}
}

// close lets go of what is still open after run, or without it.
func (h *house) close() error {
	var errs []error
	for i := range h.parts {
		if err := h.parts[i].socket.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if h.down != nil {
		errs = append(errs, h.down.close())
	}
	if h.log != nil {
		errs = append(errs, h.log.Close())
	}
	return errors.Join(errs...)
}

// client trusts the certificate in the folder and nothing else.
func (h *house) client() (*http.Client, error) {
	b, err := os.ReadFile(h.dir.path(certFile))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, errNoCertificate
	}
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}, // and no proxy
		Timeout:   10 * time.Second,
	}, nil
}

// reply is what the gate answered.
type reply struct {
	status int
	id     string // X-Request-Id
	body   string
}

// maxReply bounds what is read of an answer.
const maxReply = 64 << 10

// ask sends one request as a person, with the token from that person's file.
func (h *house) ask(ctx context.Context, c *http.Client, who person, method, path, body string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.gateURL+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if who != nobody {
		token, err := os.ReadFile(h.dir.path("tokens/" + who.File))
		if err != nil {
			return reply{}, err
		}
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
	return do(c, req)
}

func do(c *http.Client, req *http.Request) (reply, error) {
	resp, err := c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return reply{}, fmt.Errorf("%s %s: %w", req.Method, req.URL.Path, err)
	}
	return reply{resp.StatusCode, resp.Header.Get("X-Request-Id"), string(b)}, nil
}
