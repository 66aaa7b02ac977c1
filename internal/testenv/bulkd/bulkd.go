// Package bulkd is an Elasticsearch or OpenSearch for tests: the part of one that
// a sender of records meets, with the rules of the real thing enforced, and with
// everything that can go wrong between the two on a script.
//
// What is not here answers as the real thing does for a path that it does not
// know, so that a test cannot pass by leaning on something that was made up.
package bulkd

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Product is which of them it is.
type Product int

const (
	Elasticsearch Product = iota
	OpenSearch
	Serverless // Elasticsearch without the cluster
)

// Config says how the server is set up.
type Config struct {
	Product Product
	Version string // "": a recent one
	// Principals are who may come in; none: security is off.
	Principals []Principal
	// MaxBody is http.max_content_length in bytes; 0: 100 MiB.
	MaxBody int64
	// FailureStore is data_streams.failure_store.enabled for every stream.
	FailureStore bool
	// NoHeader leaves X-Elastic-Product out of answers.
	NoHeader bool
	// RolloverAt is how many documents a backing index takes; 0: no end.
	RolloverAt int
	// NoAutoCreate is action.auto_create_index: false.
	NoAutoCreate bool
}

// Request is one that arrived.
type Request struct {
	Method, URI, Principal string
	Header                 http.Header
	Body                   []byte // decompressed
	Fault                  string // name of the fault that was played
}

// Server is one node that runs until the test ends.
type Server struct {
	URL string

	cfg  Config
	http *httptest.Server
	stop chan struct{}

	mu       sync.Mutex
	store    *store
	faults   []Fault   // owned by mu
	requests []Request // owned by mu
	denied   map[string]bool
}

// Start runs one.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.Version == "" {
		cfg.Version = map[Product]string{Elasticsearch: "9.1.3", OpenSearch: "3.2.0", Serverless: "8.11.0"}[cfg.Product]
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 100 << 20
	}
	s := &Server{cfg: cfg, stop: make(chan struct{}), store: newStore(cfg), denied: map[string]bool{}}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.http.URL
	t.Cleanup(func() {
		close(s.stop)
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// Requests are all that arrived, in order, those of a path with this suffix (before the query).
func (s *Server) Requests(suffix string) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Request
	for _, r := range s.requests {
		path, _, _ := strings.Cut(r.URI, "?")
		if strings.HasSuffix(path, suffix) {
			out = append(out, r)
		}
	}
	return out
}

// Deny makes a principal unknown from now on (on false: known again).
func (s *Server) Deny(name string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[name] = on
}

// failure is an answer that is an error, as the real thing writes it.
type failure struct {
	status       int
	kind, reason string
}

func (f *failure) Error() string { return f.kind + ": " + f.reason }

func fail(status int, kind, reason string) *failure { return &failure{status, kind, reason} }

func (f *failure) body() map[string]any {
	cause := map[string]any{"type": f.kind, "reason": f.reason}
	return map[string]any{
		"error":  map[string]any{"root_cause": []any{cause}, "type": f.kind, "reason": f.reason},
		"status": f.status,
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Product != OpenSearch && !s.cfg.NoHeader {
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
	}
	if r.ContentLength > s.cfg.MaxBody {
		// Netty answers by the length that is announced and reads nothing.
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, s.cfg.MaxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		panic(http.ErrAbortHandler)
	}
	body, bad := s.decode(r, raw)
	who, refused := s.authenticate(r)
	bulk := strings.HasSuffix(r.URL.Path, "/_bulk") && (r.Method == http.MethodPost || r.Method == http.MethodPut)
	fault := s.note(r, body, who, bulk)
	if fault != nil && fault.play(s, w, r) {
		return
	}
	switch {
	case refused != nil:
		s.unauthorized(w, r, refused)
	case bad != nil:
		s.answer(w, r, bad.status, bad.body(), nil)
	case bulk:
		status, doc := s.bulk(r, body, who, fault)
		s.answer(w, r, status, doc, fault)
	default:
		status, doc := s.route(r, body, who)
		s.answer(w, r, status, doc, fault)
	}
}

func (s *Server) note(r *http.Request, body []byte, who *Principal, bulk bool) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := Request{Method: r.Method, URI: r.RequestURI, Header: r.Header.Clone(), Body: body}
	if who != nil {
		seen.Principal = who.Name
	}
	var fault *Fault
	for i := range s.faults {
		if s.faults[i].Path == "" && bulk || s.faults[i].Path != "" && strings.HasSuffix(r.URL.Path, s.faults[i].Path) {
			f := s.faults[i]
			s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
			fault, seen.Fault = &f, f.Name
			break
		}
	}
	s.requests = append(s.requests, seen)
	return fault
}

// decode undoes the encoding and judges the type of the content.
func (s *Server) decode(r *http.Request, raw []byte) ([]byte, *failure) {
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, fail(400, "parse_exception", "not gzip")
		}
		if raw, err = io.ReadAll(z); err != nil {
			return nil, fail(400, "parse_exception", "damaged gzip")
		}
	default:
		return nil, fail(400, "illegal_argument_exception", "content encoding "+enc)
	}
	if len(raw) == 0 {
		return raw, nil
	}
	kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch kind = strings.TrimSpace(kind); kind {
	case "application/json", "application/x-ndjson":
		return raw, nil
	case "application/vnd.elasticsearch+json", "application/vnd.elasticsearch+x-ndjson":
		if s.cfg.Product != OpenSearch {
			return raw, nil
		}
	}
	return raw, fail(http.StatusNotAcceptable, "media_type_header_exception", "Content-Type header ["+kind+"] is not supported")
}

// answer writes a document, filtered as filter_path asks, errors too.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, status int, doc any, fault *Fault) {
	if paths := r.URL.Query().Get("filter_path"); paths != "" {
		doc = filter(doc, paths)
	}
	body, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	if doc == nil {
		body = nil
	}
	if fault != nil {
		fault.write(s, w, r, status, body)
		return
	}
	kind := "application/json"
	if accept := r.Header.Get("Accept"); strings.HasPrefix(accept, "application/vnd.elasticsearch+json") && s.cfg.Product != OpenSearch {
		kind = accept
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

// reset ends the connection the hard way.
func reset(w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// filter keeps what one of the comma-separated paths names; * is one step, ** any number.
func filter(doc any, list string) any {
	var paths [][]string
	for _, p := range strings.Split(list, ",") {
		paths = append(paths, strings.Split(strings.TrimSpace(p), "."))
	}
	// Through JSON, so that every value is a map, a list or a scalar.
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		panic(err)
	}
	if kept, ok := keep(v, paths); ok {
		return kept
	}
	return map[string]any{}
}

func keep(v any, paths [][]string) (any, bool) {
	for _, p := range paths {
		if len(p) == 0 || len(p) == 1 && p[0] == "**" {
			return v, true
		}
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, child := range v {
			var next [][]string
			for _, p := range paths {
				switch {
				case p[0] == "**":
					next = append(next, p)
					if len(p) > 1 && match(p[1], k) {
						next = append(next, p[2:])
					}
				case match(p[0], k):
					next = append(next, p[1:])
				}
			}
			if kept, ok := keep(child, next); ok {
				out[k] = kept
			}
		}
		return out, len(out) > 0
	case []any:
		var out []any
		for _, child := range v {
			if kept, ok := keep(child, paths); ok {
				out = append(out, kept)
			}
		}
		return out, len(out) > 0
	}
	return nil, false
}

// match compares with a pattern in which * stands for any characters.
func match(pattern, name string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == name
	}
	if !strings.HasPrefix(name, head) {
		return false
	}
	name = name[len(head):]
	for i := 0; i <= len(name); i++ {
		if match(rest, name[i:]) {
			return true
		}
	}
	return false
}
