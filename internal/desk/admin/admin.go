// Package admin is the API through which people and commands read the book and
// steer the server. Every call that reads or changes something is itself a
// record, written before anything is handed out.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/evidence"
	"github.com/gatebook/gatebook/internal/desk/query"
)

// Book is what the API needs of the book.
type Book interface {
	Reader() (*book.Reader, error)
	Note(ctx context.Context, r *record.Record) error
	Verify(key string, saved []byte) (*ledger.Report, error)
	Status() book.Status
	Backup(w io.Writer, withKeys bool) (*book.BackupInfo, error)
	// Sign signs a checkpoint over everything recorded so far.
	Sign(ctx context.Context) error
}

// Config makes an API.
type Config struct {
	Book   Book
	Logger *slog.Logger
}

// API answers on the admin socket. Safe for concurrent use.
type API struct {
	book Book
	log  *slog.Logger
	mux  *http.ServeMux
}

// New makes an API.
func New(c Config) *API {
	a := &API{book: c.Book, log: c.Logger, mux: http.NewServeMux()}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	a.handle("GET /api/v1/status", a.status)
	a.handle("GET /api/v1/records", a.records)
	a.handle("GET /api/v1/records/{id}", a.record)
	a.handle("GET /api/v1/records/{id}/proof", a.proof)
	a.handle("GET /api/v1/counts", a.counts)
	a.handle("POST /api/v1/verify", a.verify)
	a.handle("POST /api/v1/backup", a.backup)
	return a
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// handler answers one call. An error before the first byte becomes a problem.
type handler func(w http.ResponseWriter, r *http.Request) error

func (a *API) handle(pattern string, h handler) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out := &answer{ResponseWriter: w}
		err := h(out, r)
		if err == nil {
			return
		}
		if out.begun {
			// The answer cannot be taken back; it must not look complete.
			a.log.Warn("an answer was cut short", "err", err)
			panic(http.ErrAbortHandler)
		}
		writeError(w, err)
	})
}

// answer notes whether anything was sent.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (w *answer) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// Problem is an error on the wire (RFC 9457). Code is the exit code that a
// command ends with.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Code   int    `json:"exit_code"`
}

func (p *Problem) Error() string { return p.Title }

// Exit codes of commands (spec/interface.md).
const (
	exitFailure  = 1
	exitUsage    = 2
	exitNotFound = 3
)

func writeError(w http.ResponseWriter, err error) {
	p := Problem{Title: err.Error(), Status: http.StatusInternalServerError, Code: exitFailure}
	var asked *Problem
	var damage *ledger.Damage
	var key *ledger.KeyError
	switch {
	case errors.As(err, &asked):
		p = *asked
	case query.IsUsage(err):
		p.Status, p.Code = http.StatusBadRequest, exitUsage
	case errors.Is(err, book.ErrNotFound):
		p.Status, p.Code = http.StatusNotFound, exitNotFound
	case errors.Is(err, ledger.ErrNotSigned):
		p.Status, p.Code = http.StatusConflict, exitFailure
	case errors.As(err, &damage):
		p.Code = ledger.ExitDamaged
	case errors.As(err, &key):
		p.Code = ledger.ExitKeyless
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

// actorKey is the context key of the caller's name.
type actorKey struct{}

// access records that somebody is about to read. Nothing is handed out if that
// fails.
func (a *API) access(r *http.Request, act, target string, reveal bool) error {
	actor, _ := r.Context().Value(actorKey{}).(string)
	return NoteAccess(r.Context(), a.book, actor, act, target, reveal)
}

// NoteAccess records that actor is about to read through act ("search",
// "show", ...), with personal parts if reveal is set.
func NoteAccess(ctx context.Context, b interface {
	Note(ctx context.Context, r *record.Record) error
}, actor, act, target string, reveal bool) error {
	if actor == "" {
		return errors.New("the caller is not known, so the access cannot be recorded; it is refused")
	}
	scope := "frames"
	if reveal {
		scope = "reveal"
	}
	rec := &record.Record{
		Kind: record.KindAccess, Outcome: record.Success,
		Event:    record.Event{Name: act, Target: target, Cause: scope},
		Personal: record.Personal{Sub: actor},
		Raw:      record.Raw{IssuerSub: "local|" + actor},
	}
	if err := b.Note(context.WithoutCancel(ctx), rec); err != nil {
		return fmt.Errorf("the access could not be recorded and is refused: %w", err)
	}
	return nil
}

func (a *API) status(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, a.book.Status())
}

func writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// parseQuery reads the parameters that searches share.
func parseQuery(r *http.Request) (q query.Query, err error) {
	v := r.URL.Query()
	q.Expr, q.Reveal = v.Get("q"), v.Get("reveal") == "true"
	for name, at := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if s := v.Get(name); s != "" {
			if *at, err = time.Parse(time.RFC3339Nano, s); err != nil {
				return q, &Problem{Title: name + ": not an RFC 3339 time: " + s, Status: http.StatusBadRequest, Code: exitUsage}
			}
		}
	}
	if s := v.Get("limit"); s != "" {
		if q.Limit, err = strconv.Atoi(s); err != nil || q.Limit < 0 {
			return q, &Problem{Title: "limit: not a number: " + s, Status: http.StatusBadRequest, Code: exitUsage}
		}
	}
	return q, nil
}

func (a *API) records(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	if err := a.access(r, "search", "", q.Reveal); err != nil {
		return err
	}
	rd, err := a.book.Reader()
	if err != nil {
		return err
	}
	defer rd.Close()
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	return query.Search(rd, q, func(m *query.Match) error { return enc.Encode(m) })
}

func (a *API) record(w http.ResponseWriter, r *http.Request) error {
	id, err := requestID(r)
	if err != nil {
		return err
	}
	reveal := r.URL.Query().Get("reveal") == "true"
	if err := a.access(r, "show", id.String(), reveal); err != nil {
		return err
	}
	rd, err := a.book.Reader()
	if err != nil {
		return err
	}
	defer rd.Close()
	m, err := query.Find(rd, id.String(), reveal)
	if err != nil {
		return err
	}
	return writeJSON(w, m)
}

func (a *API) proof(w http.ResponseWriter, r *http.Request) error {
	id, err := requestID(r)
	if err != nil {
		return err
	}
	reveal := r.URL.Query().Get("reveal") == "true"
	if err := a.access(r, "prove", id.String(), reveal); err != nil {
		return err
	}
	b, err := a.prove(id, reveal)
	if errors.Is(err, ledger.ErrNotSigned) {
		if err = a.book.Sign(r.Context()); err == nil {
			b, err = a.prove(id, reveal)
		}
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err = w.Write(b)
	return err
}

// requestID reads the id in a path, so that nothing but ids gets into records.
func requestID(r *http.Request) (record.ID, error) {
	return query.ParseID(r.PathValue("id"))
}

func (a *API) prove(id record.ID, reveal bool) ([]byte, error) {
	rd, err := a.book.Reader()
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	return Prove(rd, id, reveal)
}

// Prove makes the proof file of a record.
func Prove(rd *book.Reader, id record.ID, reveal bool) ([]byte, error) {
	p, d, err := rd.Prove(id, reveal)
	if err != nil {
		return nil, err
	}
	return evidence.Encode(p, d)
}

func (a *API) counts(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	if err := a.access(r, "count", "", q.Reveal); err != nil {
		return err
	}
	rd, err := a.book.Reader()
	if err != nil {
		return err
	}
	defer rd.Close()
	counts, err := query.CountBy(rd, r.URL.Query().Get("by"), q)
	if err != nil {
		return err
	}
	return writeJSON(w, counts)
}

// VerifyRequest is the body of a verify call.
type VerifyRequest struct {
	Key   string `json:"key,omitempty"`
	Saved []byte `json:"saved,omitempty"`
}

// maxRequest bounds request bodies.
const maxRequest = 1 << 20

func (a *API) verify(w http.ResponseWriter, r *http.Request) error {
	var req VerifyRequest
	dec := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return &Problem{Title: "request: " + err.Error(), Status: http.StatusBadRequest, Code: exitUsage}
	}
	if err := a.access(r, "verify", "", false); err != nil {
		return err
	}
	rep, err := a.book.Verify(req.Key, req.Saved)
	if err != nil {
		return err
	}
	return writeJSON(w, rep)
}

// ListenSocket opens the admin socket at path, mode 0600. A socket that is
// left over from a dead process is replaced; the caller holds the book's lock,
// so no living one can be behind it.
func ListenSocket(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("admin socket: the path %s has %d bytes, the system allows %d; choose a shorter data folder or set admin: {socket: false}", path, len(path), maxSocketPath)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

// maxSocketPath is what fits into a socket address (unix(7)).
const maxSocketPath = 107

// Serve answers on the socket until ctx ends.
func (a *API) Serve(ctx context.Context, l net.Listener) error {
	s := &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, actorKey{}, peerName(c))
		}}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// peerName is who the kernel says is at the other end.
func peerName(c net.Conn) string {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ""
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ""
	}
	return fmt.Sprintf("uid:%d", cred.Uid)
}
