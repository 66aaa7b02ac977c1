// Package admin is the API through which people and commands read the book and
// steer the server. Every call that reads or changes something is itself a
// record, written before anything is handed out.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

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
	Book Book
	// Status is what the status call answers; nil: the book's.
	Status func() any
	// Reload puts the configuration as it is on the disk in force and says what
	// that changed. It records the call itself. nil: there is no such call.
	Reload func(ctx context.Context, who *Caller) (any, error)
	// Calls are further calls, of others.
	Calls []Call
	// Revoke makes credentials count no more and says which. It records the call
	// itself. nil: there is no such call.
	Revoke func(ctx context.Context, who *Caller, r Revocation) (any, error)
	// Keys keeps the API keys. nil: there are no calls about them.
	Keys APIKeys
	// Sinks is delivery. nil: there are no calls about it.
	Sinks Sinks
	// Plain makes what is written through it fit for a terminal; nil: as it is.
	Plain  func(io.Writer) io.Writer
	Logger *slog.Logger
}

// API answers on the admin socket and on the administration's TCP listener.
// Safe for concurrent use.
type API struct {
	book      Book
	statusOf  func() any
	reloading func(ctx context.Context, who *Caller) (any, error)
	revoking  func(ctx context.Context, who *Caller, r Revocation) (any, error)
	keys      APIKeys
	sinks     Sinks
	plain     func(io.Writer) io.Writer
	log       *slog.Logger
	mux       *http.ServeMux
	changing  []string      // acts that change something
	tails     chan struct{} // a place for each tail
	wait      time.Duration // for the reader of a tail
}

// The acts, as records name them.
const (
	actStatus = "status"
	actReload = "reload"
	actRevoke = "token_revoke"
)

// New makes an API.
func New(c Config) *API {
	a := &API{
		book: c.Book, statusOf: c.Status, reloading: c.Reload, revoking: c.Revoke, keys: c.Keys, sinks: c.Sinks, plain: c.Plain, log: c.Logger,
		mux: http.NewServeMux(), changing: []string{actReload, actRevoke, actKeyCreate, actKeyRotate, actKeyRevoke, actSinkPause, actSinkResume, actSinkReplay, actSinkRequeue, actSinkWaive}, tails: make(chan struct{}, maxTails), wait: tailWait,
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.plain == nil {
		a.plain = func(w io.Writer) io.Writer { return w }
	}
	if a.statusOf == nil {
		a.statusOf = func() any { return a.book.Status() }
	}
	a.handle("GET /api/v1/status", actStatus, Reader, a.status)
	a.handle("GET /api/v1/records", "search", Reader, a.records)
	a.handle("GET /api/v1/records/{id}", "show", Reader, a.record)
	a.handle("GET /api/v1/records/{id}/proof", "prove", Reader, a.proof)
	a.handle("GET /api/v1/counts", "count", Reader, a.counts)
	a.handle("GET /api/v1/tail", "tail", Reader, a.tail)
	a.handle("POST /api/v1/verify", "verify", Reader, a.verify)
	a.handle("POST /api/v1/backup", "backup", Operator, a.backup)
	if a.reloading != nil {
		a.handle("POST /api/v1/reload", actReload, Operator, a.reload)
	}
	for _, c := range c.Calls {
		if c.Changes {
			a.changing = append(a.changing, c.Act)
		}
		a.handle(c.Pattern, c.Act, c.Role, func(w http.ResponseWriter, r *http.Request) error { return a.other(w, r, c.Do) })
	}
	if a.revoking != nil {
		a.handle("POST /api/v1/tokens/revoke", actRevoke, Operator, a.revoke)
	}
	if a.keys != nil {
		a.keyCalls()
	}
	if a.sinks != nil {
		a.sinkCalls()
	}
	a.mux.HandleFunc("GET /log/checkpoint", a.checkpoint)
	return a
}

// Call is a call that somebody else answers.
type Call struct {
	Pattern string // as http.ServeMux takes it
	Act     string // in records
	Role    Role
	Changes bool // something: a refusal is a record of kind admin, not access
	// Do answers with what is written as JSON. It keeps the record of what it
	// does. A *Problem tells the caller what is wrong.
	Do func(r *http.Request, who *Caller, body []byte) (any, error)
}

// other answers a Call. The request id of the caller comes back, as AuthZEN wants
// it.
func (a *API) other(w http.ResponseWriter, r *http.Request, do func(*http.Request, *Caller, []byte) (any, error)) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err != nil || len(body) > maxRequest {
		return &Problem{Title: "the body cannot be read, or is too long", Status: http.StatusBadRequest, Code: exitUsage}
	}
	out, err := do(r, callerOf(r), body)
	if err != nil {
		return err
	}
	if id := r.Header.Get("X-Request-Id"); id != "" && len(id) <= maxEcho {
		w.Header().Set("X-Request-Id", id)
	}
	w.Header().Set("Cache-Control", "no-store")
	return a.writeJSON(w, out)
}

// maxEcho is the longest request id that is sent back.
const maxEcho = 128

// handler answers one call. An error before the first byte becomes a problem.
type handler func(w http.ResponseWriter, r *http.Request) error

// handle registers a call that needs a role; one that reveals personal parts
// needs that role too.
func (a *API) handle(pattern, act string, role Role, h handler) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out := &answer{ResponseWriter: w}
		needed := []Role{role}
		if v := r.URL.Query(); v.Get("reveal") == "true" || v.Get("with_keys") == "true" {
			needed = append(needed, Reveal)
		}
		err := a.need(r, act, needed...)
		if err == nil && r.Method == http.MethodPost {
			err = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
		}
		if err == nil {
			err = h(out, r)
		}
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

// Unwrap is for http.ResponseController.
func (w *answer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

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
	exitDenied   = 4
)

func writeError(w http.ResponseWriter, err error) {
	p := problemOf(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

// problemOf is an error as it is told to a caller.
func problemOf(err error) Problem {
	p := Problem{Title: err.Error(), Status: http.StatusInternalServerError, Code: exitFailure}
	var asked *Problem
	var damage *ledger.Damage
	var key *ledger.KeyError
	var own interface{ Problem() *Problem }
	var given *ledger.GivenError
	switch {
	case errors.As(err, &asked):
		p = *asked
	case errors.As(err, &own):
		p = *own.Problem()
	case query.IsUsage(err), errors.As(err, &given):
		p.Status, p.Code = http.StatusBadRequest, exitUsage
	case errors.Is(err, book.ErrNotFound):
		p.Status, p.Code = http.StatusNotFound, exitNotFound
	case errors.Is(err, ledger.ErrNotSigned):
		p.Status, p.Code = http.StatusConflict, exitFailure
	case errors.As(err, &damage):
		if p.Code = ledger.ExitDamaged; damage.Kind == ledger.Truncated {
			p.Code = ledger.ExitTruncated
		}
	case errors.As(err, &key):
		p.Code = ledger.ExitKeyless
	}
	return p
}

// access records that somebody is about to read. Nothing is handed out if that
// fails.
func (a *API) access(r *http.Request, act, target string, reveal bool) error {
	return NoteAccess(r.Context(), a.book, callerOf(r), act, target, reveal)
}

// status is not recorded when it is granted: like metrics it says nothing of
// what is in the book, is asked for every few seconds, and must answer when the
// book takes no records.
func (a *API) status(w http.ResponseWriter, r *http.Request) error {
	return a.writeJSON(w, a.statusOf())
}

func (a *API) reload(w http.ResponseWriter, r *http.Request) error {
	out, err := a.reloading(r.Context(), callerOf(r))
	if err != nil {
		return err
	}
	return a.writeJSON(w, out)
}

// checkpoint hands out the newest signed tree head (C2SP tlog-tiles). It tells
// how many leaves there are and is made to be seen, so it is not recorded.
func (a *API) checkpoint(w http.ResponseWriter, r *http.Request) {
	if callerOf(r) == nil {
		writeError(w, &Problem{Title: "the caller is not known", Status: http.StatusForbidden, Code: exitDenied})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, a.book.Status().Checkpoint)
}

func (a *API) writeJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(a.plain(w)).Encode(v)
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

// actOf is what a caller says that it reads for, if it is one of those known.
func actOf(r *http.Request, usual string, others ...string) string {
	if act := r.URL.Query().Get("act"); slices.Contains(others, act) {
		return act
	}
	return usual
}

func (a *API) records(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	if err := a.access(r, actOf(r, "search", "policy_replay", "detect_test"), "", q.Reveal); err != nil {
		return err
	}
	rd, err := a.book.Reader()
	if err != nil {
		return err
	}
	defer rd.Close()
	w.Header().Set("Content-Type", "application/jsonl")
	enc, sent := json.NewEncoder(a.plain(w)), false
	err = query.Search(rd, q, func(m *query.Match) error {
		sent = true
		return enc.Encode(m)
	})
	if err != nil && sent {
		// What was sent cannot be taken back; the last line says why there is no more.
		last := enc.Encode(CutShort{problemOf(err)})
		err = errors.Join(err, last, http.NewResponseController(w).Flush())
	}
	return err
}

// CutShort is the last line of matches that are not all, because of an error
// while they were being sent. The answer ends without its end after it.
type CutShort struct {
	Problem Problem `json:"problem"`
}

func (a *API) record(w http.ResponseWriter, r *http.Request) error {
	id, err := requestID(r)
	if err != nil {
		return err
	}
	reveal := r.URL.Query().Get("reveal") == "true"
	act := actOf(r, "show", "doctor", "policy_explain")
	if err := a.access(r, act, id.String(), reveal); err != nil {
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
	return a.writeJSON(w, m)
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
	counts, err := query.CountBy(rd, r.URL.Query().Get("by"), q, r.URL.Query().Get("records") == "true")
	if err != nil {
		return err
	}
	return a.writeJSON(w, counts)
}

// VerifyRequest is the body of a verify call.
type VerifyRequest struct {
	Key   string `json:"key,omitempty"`
	Saved []byte `json:"saved,omitempty"`
}

// What a request's body may take.
const (
	maxRequest = 1 << 20
	bodyTime   = 30 * time.Second
)

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
	return a.writeJSON(w, rep)
}
