// Package hecd is a Splunk HTTP Event Collector for tests, as far as its
// documentation says how one behaves: tokens, channels, indexer acknowledgement,
// several indexers behind a load balancer that sticks by cookie, the documented
// codes, what 10.2 added (429, cookies enforced, 404 while restarting) and the
// search export that reads back. It answers 200 before it has indexed, and a
// restart loses what was only queued, as the real one does. Faults are scripted.
package hecd

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Token is what a client sends behind "Authorization: Splunk ".
type Token struct {
	Disabled bool
	Ack      bool     // useACK
	Indexes  []string // that events may name; nil: any
}

// Event is what was sent, as it was taken.
type Event struct {
	ID         string // fields.event_id
	Time       json.Number
	Host       string
	Source     string
	Sourcetype string
	Index      string
	Fields     map[string]any
	Event      json.RawMessage
	ready      time.Time // when it is indexed
	node       int
	kept       bool // survives a restart though it is not indexed yet
}

// Request is what a client asked, for tests that look at the bytes.
type Request struct {
	Path   string
	Header http.Header
	Body   []byte // decompressed
}

// Server is the collector. Its exported fields are set before it is used, or
// under Set.
type Server struct {
	Tokens map[string]Token
	// Indexes that exist; nil: every one does.
	Indexes []string
	// Delay lies between taking an event and indexing it.
	Delay time.Duration
	// Nodes is how many indexers there are; 0: one, without a load balancer.
	Nodes int
	// RequireCookie is headerEnforcementMode=block: requests with a channel and
	// without the balancer's cookie are 400.
	RequireCookie bool
	// NoCookies: the balancer sets none.
	NoCookies bool
	// OneBased counts invalid events from 1 rather than from 0: sources differ.
	OneBased bool
	// Busy429 is backpressureState=warn_at_80.
	Busy429 bool
	// Bad tells the code for an event that the indexer will not have, or 0.
	Bad func(e *Event) int
	// MaxBody is the most bytes of a request; 0: no limit.
	MaxBody int
	// Health is the code of the health check; 0: 17.
	Health int
	// Search is the bearer credential of the search; "": nobody may.
	Search string
	// Keep: what is queued survives a restart.
	Keep bool

	mu       sync.Mutex
	nodes    []node         // mu
	round    int            // mu: the node of the next client without a cookie
	events   []*Event       // mu: everything taken
	lost     int            // mu: how many were taken and lost by restarts
	script   map[Op][]Fault // mu
	counts   map[Op]int     // mu: how often each was asked
	requests []Request      // mu
}

// node is one indexer: what it knows of channels dies with it.
type node struct {
	channels map[string]*channelState
}

type channelState struct {
	next uint64
	acks map[uint64]*ack
}

// ack is the status of one request; it is deleted once it was told.
type ack struct {
	events []*Event
	ready  time.Time
	never  bool
}

// Tokens of a new server: one with indexer acknowledgement and one without.
const (
	AckToken   = "5f0b6c1e-ack"
	PlainToken = "5f0b6c1e-plain"
)

// New is a collector with those tokens.
func New() *Server {
	return &Server{Tokens: map[string]Token{AckToken: {Ack: true}, PlainToken: {}}, script: map[Op][]Fault{}, counts: map[Op]int{}}
}

// Set changes the server's fields while it is used.
func (s *Server) Set(change func(*Server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// Restart is what a restart of the indexers does: acknowledgements are
// forgotten, and with them what was queued and not indexed, unless Keep.
func (s *Server) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restart()
}

func (s *Server) restart() {
	s.nodes = nil
	now := time.Now()
	s.events = slices.DeleteFunc(s.events, func(e *Event) bool {
		dead := e.ready.After(now) && !s.Keep && !e.kept
		if dead {
			s.lost++
		}
		return dead
	})
}

// Indexed is everything that a search finds now, in the order it was taken.
func (s *Server) Indexed() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Event
	now := time.Now()
	for _, e := range s.events {
		if !e.ready.After(now) {
			out = append(out, *e)
		}
	}
	return out
}

// Copies says of every event id how often it is or will be indexed.
func (s *Server) Copies() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{}
	for _, e := range s.events {
		out[e.ID]++
	}
	return out
}

// Lost is how many events were answered with 200 and never indexed.
func (s *Server) Lost() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Asked is how often an operation was asked for.
func (s *Server) Asked(op Op) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

// Requests is what was asked so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	op := opOf(r.URL.Path)
	if op == "" {
		answer(w, http.StatusNotFound, reply{Text: "The requested URL was not found on this server.", Code: 404})
		return
	}
	f, scripted := s.next(op)
	if scripted && f.Reset == Before {
		abort(w)
	}
	body, err := readBody(r)
	s.mu.Lock()
	s.counts[op]++
	s.requests = append(s.requests, Request{Path: r.URL.RequestURI(), Header: r.Header.Clone(), Body: body})
	s.mu.Unlock()
	switch {
	case errors.Is(err, errEncoding):
		answer(w, http.StatusUnsupportedMediaType, reply{Text: "Unsupported Media Type", Code: 415})
		return
	case err != nil:
		answer(w, http.StatusBadRequest, reply{Text: "Invalid data format", Code: 6})
		return
	}
	if scripted {
		s.fault(w, r, op, body, f)
		return
	}
	status, v := s.do(w.Header(), r, op, body, nil)
	answer(w, status, v)
}

var errEncoding = errors.New("unknown content encoding")

func readBody(r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
		return b, nil
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	return nil, errEncoding
}

// do is what the collector does when nothing is scripted. f, if not nil, bends
// how events are taken.
func (s *Server) do(h http.Header, r *http.Request, op Op, body []byte, f *Fault) (int, any) {
	switch op {
	case Health:
		s.mu.Lock()
		s.balance(h, r, "")
		s.mu.Unlock()
		return s.health()
	case Export:
		return s.export(r, body)
	}
	token, v := s.authorize(r)
	if v != nil {
		return statusOf(v.Code), v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := channelOf(r)
	n, ok := s.balance(h, r, id)
	if !ok {
		return http.StatusBadRequest, map[string]string{"text": "A required load balancer cookie is missing"}
	}
	if op == Ack {
		return s.ask(n, id, token, body)
	}
	return s.take(n, id, token, r.URL.Path, body, f)
}

func (s *Server) health() (int, any) {
	s.mu.Lock()
	code := cmp.Or(s.Health, 17)
	s.mu.Unlock()
	v := fail(code)
	return statusOf(code), v
}

// authorize finds the token: codes 1 to 4, 16.
func (s *Server) authorize(r *http.Request) (Token, *reply) {
	head := r.Header.Get("Authorization")
	scheme, name, _ := strings.Cut(head, " ")
	switch {
	case head == "" && r.URL.Query().Has("token"):
		return Token{}, fail(16)
	case head == "":
		return Token{}, fail(2)
	case scheme != "Splunk" || strings.TrimSpace(name) == "":
		return Token{}, fail(3)
	}
	s.mu.Lock()
	t, ok := s.Tokens[strings.TrimSpace(name)]
	s.mu.Unlock()
	switch {
	case !ok:
		return Token{}, fail(4)
	case t.Disabled:
		return Token{}, fail(1)
	}
	return t, nil
}

func channelOf(r *http.Request) string {
	return cmp.Or(r.Header.Get("X-Splunk-Request-Channel"), r.URL.Query().Get("channel"))
}

const cookie = "AWSALB"

// balance chooses the indexer: by cookie, otherwise the next one. It runs under
// mu.
func (s *Server) balance(h http.Header, r *http.Request, channel string) (n int, ok bool) {
	nodes := max(s.Nodes, 1)
	for len(s.nodes) < nodes {
		s.nodes = append(s.nodes, node{channels: map[string]*channelState{}})
	}
	has := false
	n = -1
	if c, err := r.Cookie(cookie); err == nil {
		has = true
		if k, err := strconv.Atoi(strings.TrimPrefix(c.Value, "node")); err == nil && k >= 0 && k < nodes {
			n = k
		}
	}
	if n < 0 {
		n = s.round % nodes
		s.round++
	}
	if (s.Nodes > 0 || s.RequireCookie) && !s.NoCookies {
		h.Add("Set-Cookie", cookie+"=node"+strconv.Itoa(n)+"; Path=/; Max-Age=604800")
	}
	if s.RequireCookie && channel != "" && !has {
		return 0, false
	}
	return n, true
}
