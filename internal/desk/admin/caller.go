package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Role is what a caller may do.
type Role string

// The roles. Who can open the socket has all of them.
const (
	Reader   Role = "reader"   // frames, counts, proofs, the status
	Reveal   Role = "reveal"   // personal parts, besides Reader
	Operator Role = "operator" // reload, back up, API keys
	Privacy  Role = "privacy"  // erase, hold, prune
	Decide   Role = "decide"   // ask the policies (AuthZEN)
)

// Roles lists all of them.
func Roles() []Role { return []Role{Reader, Reveal, Operator, Privacy, Decide} }

// Caller is who a call comes from. It is not changed after it was made.
type Caller struct {
	Method   string // "socket", "mtls" or "jwt"; "" for what the server does by itself
	Name     string // what records call the caller: personal data
	Identity string // issuer and subject joined by '|': whose subject key protects that name
	Issuer   string // configured name of the issuer of a token
	Cert     string // subject of a client certificate
	Addr     netip.Addr
	Prefix   string // coarse form of Addr for frames
	Roles    []Role
}

// Local is a caller whom the machine itself names, such as "uid:1000" or
// "signal"; method is how it came.
func Local(method, name string, roles ...Role) *Caller {
	return &Caller{Method: method, Name: name, Identity: "local|" + name, Roles: roles}
}

// Has tells whether the caller holds a role.
func (c *Caller) Has(r Role) bool { return slices.Contains(c.Roles, r) }

// Describe puts the caller into a record.
func (c *Caller) Describe(r *record.Record) {
	r.Authn.Method = c.Method
	if c.Method != "" {
		r.Authn.Outcome = "ok"
	}
	r.Authn.Issuer = c.Issuer
	r.Personal.Sub, r.Raw.IssuerSub = c.Name, c.Identity
	r.Personal.CertSubject = c.Cert
	c.place(r)
}

// place notes where the call came from.
func (c *Caller) place(r *record.Record) {
	r.Client.Prefix = c.Prefix
	if c.Addr.IsValid() {
		r.Raw.RemoteAddr = c.Addr.String()
	}
}

// noter keeps records; it is the book.
type noter interface {
	Note(ctx context.Context, r *record.Record) error
}

// NoteAccess records that somebody is about to read through act ("search",
// "show", ...), with personal parts if reveal is set.
func NoteAccess(ctx context.Context, b noter, who *Caller, act, target string, reveal bool) error {
	rec := &record.Record{Kind: record.KindAccess, Outcome: record.Success, Event: record.Event{Name: act, Target: target, Cause: scope(reveal)}}
	return Note(ctx, b, who, rec)
}

func scope(reveal bool) string {
	if reveal {
		return "reveal"
	}
	return "frames"
}

// Note keeps the record of what somebody does, before it is done. An error
// means that it must not be done.
func Note(ctx context.Context, b noter, who *Caller, rec *record.Record) error {
	if who == nil || who.Name == "" {
		return errors.New("the caller is not known, so the call cannot be recorded; it is refused")
	}
	who.Describe(rec)
	if err := b.Note(context.WithoutCancel(ctx), rec); err != nil {
		return fmt.Errorf("the call could not be recorded and is refused: %w", err)
	}
	return nil
}

// notStored is the cause in the record of an act that was not done after all.
const notStored = "not_stored"

// Act records what somebody does and does it. If it then cannot be done, which
// do says, a second record of the same says so: the first must not stand alone.
func Act(ctx context.Context, b noter, who *Caller, rec record.Record, do func() error) error {
	undone := rec
	if err := Note(ctx, b, who, &rec); err != nil {
		return err
	}
	err := do()
	if err == nil {
		return nil
	}
	undone.Outcome, undone.Event.Cause = record.Failure, notStored
	undone.Error = record.Error{Origin: "gateway", Phase: "admin"}
	return errors.Join(err, Note(ctx, b, who, &undone))
}

// Refusal is why a caller on the TCP listener is not served. Its text is for
// the caller; the reason, of the closed list, is for the record only.
type Refusal struct {
	Status         int
	Origin, Reason string
	Text           string
	Caller         *Caller // as far as known; its name is believed if it has a Method
}

func (r *Refusal) Error() string { return r.Text }

// stranger records a call that was refused at the door.
func (a *API) stranger(ctx context.Context, r *Refusal) error {
	rec := &record.Record{
		Kind: record.KindAdmin, Outcome: record.Failure, Status: r.Status,
		Error: record.Error{Origin: r.Origin, Reason: r.Reason, Phase: "admin"},
		Event: record.Event{Name: "refused"},
	}
	if c := r.Caller; c != nil && c.Method != "" {
		c.Describe(rec)
	} else {
		rec.Authn = record.Authn{Method: record.None, Outcome: "failed", Reason: r.Reason}
		if c != nil {
			c.place(rec)
		}
	}
	return a.book.Note(context.WithoutCancel(ctx), rec)
}

// callerKey is the context key of the *Caller.
type callerKey struct{}

func callerOf(r *http.Request) *Caller {
	c, _ := r.Context().Value(callerKey{}).(*Caller)
	return c
}

// need refuses a call whose caller lacks a role, and records that.
func (a *API) need(r *http.Request, act string, roles ...Role) error {
	who := callerOf(r)
	for _, role := range roles {
		if who != nil && who.Has(role) {
			continue
		}
		rec := &record.Record{
			Kind: record.KindAccess, Outcome: record.Failure, Status: http.StatusForbidden,
			Error: record.Error{Origin: "policy", Reason: "denied_by_default", Phase: "admin"},
			Event: record.Event{Name: act, Cause: "without_" + string(role)},
		}
		if slices.Contains(a.changing, act) {
			rec.Kind = record.KindAdmin
		}
		if err := Note(r.Context(), a.book, who, rec); err != nil {
			return err
		}
		return &Problem{Title: fmt.Sprintf("%s needs the role %s", act, role), Status: http.StatusForbidden, Code: exitDenied}
	}
	return nil
}
