package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// APIKey is what there is to know of an API key; never its secret.
type APIKey struct {
	ID        string           `json:"id"`
	Name      string           `json:"name"`
	Owner     string           `json:"owner"`
	Tenant    string           `json:"tenant,omitempty"`
	Roles     []string         `json:"roles,omitempty"`
	Scopes    []string         `json:"scopes,omitempty"`
	Routes    []string         `json:"routes,omitempty"` // empty: all
	State     string           `json:"state"`            // active, pending, expired or revoked
	Created   time.Time        `json:"created"`
	NotBefore time.Time        `json:"not_before"`
	Expires   time.Time        `json:"expires,omitzero"`
	Revoked   time.Time        `json:"revoked,omitzero"`
	LastUsed  time.Time        `json:"last_used,omitzero"` // of the newest secret, to the minute
	Secret    int              `json:"secret"`             // number of the newest secret
	Replaced  []ReplacedSecret `json:"replaced,omitempty"`
}

// ReplacedSecret is a secret of a key that a newer one has replaced.
type ReplacedSecret struct {
	Secret   int       `json:"secret"`
	Until    time.Time `json:"until"`
	LastUsed time.Time `json:"last_used,omitzero"`
}

// IssuedAPIKey is a key with the secret that nobody can be told again.
type IssuedAPIKey struct {
	APIKey
	Key string `json:"key"`
}

// APIKeyRequest is what a new key is to be.
type APIKeyRequest struct {
	Name      string    `json:"name"`
	Owner     string    `json:"owner"`
	Tenant    string    `json:"tenant,omitempty"`
	Roles     []string  `json:"roles,omitempty"`
	Scopes    []string  `json:"scopes,omitempty"`
	Routes    []string  `json:"routes,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"` // zero: now
	Expires   time.Time `json:"expires,omitzero"`    // zero: never
}

// RotateRequest is how a key is to get a new secret.
type RotateRequest struct {
	OverlapS int64 `json:"overlap_s"` // how long the one before stays valid, 0 to a year
}

const maxOverlapS = 366 * 24 * 3600

// APIKeys keeps API keys. Who changes one calls note with the key's id and
// digests of its state before and after; if that fails nothing is changed.
// Errors that the caller is to blame for are *Problem.
type APIKeys interface {
	All() []APIKey
	Find(id string) (APIKey, error)
	Create(ctx context.Context, r APIKeyRequest, note func(id, before, after string) error) (IssuedAPIKey, error)
	Rotate(ctx context.Context, id string, overlap time.Duration, note func(id, before, after string) error) (IssuedAPIKey, error)
	Revoke(ctx context.Context, id string, note func(id, before, after string) error) (APIKey, error)
}

// The acts upon API keys, as records name them.
const (
	actKeyList   = "apikey_list"
	actKeyShow   = "apikey_show"
	actKeyCreate = "apikey_create"
	actKeyRotate = "apikey_rotate"
	actKeyRevoke = "apikey_revoke"
)

// KeyActs is what administration does with API keys, each act with its record:
// kind access for reading, kind key for changing. It is used by the API and by
// commands that have opened the book themselves.
type KeyActs struct {
	Book interface {
		Note(ctx context.Context, r *record.Record) error
	}
	Keys APIKeys
}

// List returns all keys.
func (a KeyActs) List(ctx context.Context, who *Caller) ([]APIKey, error) {
	if err := NoteAccess(ctx, a.Book, who, actKeyList, "", true); err != nil {
		return nil, err
	}
	return a.Keys.All(), nil
}

// Show returns one key.
func (a KeyActs) Show(ctx context.Context, who *Caller, id string) (APIKey, error) {
	k, err := a.Keys.Find(id)
	if err != nil {
		return k, err
	}
	return k, NoteAccess(ctx, a.Book, who, actKeyShow, k.ID, true)
}

// Create makes a key.
func (a KeyActs) Create(ctx context.Context, who *Caller, r APIKeyRequest) (k IssuedAPIKey, err error) {
	err = a.act(ctx, who, actKeyCreate, func(note func(id, before, after string) error) (err error) {
		k, err = a.Keys.Create(ctx, r, note)
		return err
	})
	return k, err
}

// Rotate gives a key a new secret.
func (a KeyActs) Rotate(ctx context.Context, who *Caller, id string, r RotateRequest) (k IssuedAPIKey, err error) {
	if r.OverlapS < 0 || r.OverlapS > maxOverlapS {
		return k, &Problem{Title: "the overlap must be from 0 to 366 days", Status: http.StatusBadRequest, Code: exitUsage}
	}
	err = a.act(ctx, who, actKeyRotate, func(note func(id, before, after string) error) (err error) {
		k, err = a.Keys.Rotate(ctx, id, time.Duration(r.OverlapS)*time.Second, note)
		return err
	})
	return k, err
}

// Revoke ends a key for good.
func (a KeyActs) Revoke(ctx context.Context, who *Caller, id string) (k APIKey, err error) {
	err = a.act(ctx, who, actKeyRevoke, func(note func(id, before, after string) error) (err error) {
		k, err = a.Keys.Revoke(ctx, id, note)
		return err
	})
	return k, err
}

// act records a change before it is made, and a second time if it then could not
// be made. A wish that is refused before that changes nothing and is no record.
func (a KeyActs) act(ctx context.Context, who *Caller, name string, do func(note func(id, before, after string) error) error) error {
	var noted *record.Event
	err := do(func(id, before, after string) error {
		ev := record.Event{Name: name, Target: id, Before: before, After: after}
		if err := Note(ctx, a.Book, who, &record.Record{Kind: record.KindKey, Outcome: record.Success, Event: ev}); err != nil {
			return err
		}
		noted = &ev
		return nil
	})
	if err == nil || noted == nil {
		return err
	}
	noted.After, noted.Cause = noted.Before, notStored
	return errors.Join(err, Note(ctx, a.Book, who, &record.Record{
		Kind: record.KindKey, Outcome: record.Failure, Event: *noted,
		Error: record.Error{Origin: "gateway", Phase: "admin"},
	}))
}

// keyCalls registers the calls about API keys. All need the role operator.
func (a *API) keyCalls() {
	acts := KeyActs{a.book, a.keys}
	a.handle("GET /api/v1/apikeys", actKeyList, Operator, func(w http.ResponseWriter, r *http.Request) error {
		list, err := acts.List(r.Context(), callerOf(r))
		if err != nil {
			return err
		}
		return a.writeJSON(w, list)
	})
	a.handle("GET /api/v1/apikeys/{id}", actKeyShow, Operator, func(w http.ResponseWriter, r *http.Request) error {
		k, err := acts.Show(r.Context(), callerOf(r), r.PathValue("id"))
		if err != nil {
			return err
		}
		return a.writeJSON(w, k)
	})
	a.handle("POST /api/v1/apikeys", actKeyCreate, Operator, func(w http.ResponseWriter, r *http.Request) error {
		var req APIKeyRequest
		if err := readJSON(r, &req); err != nil {
			return err
		}
		k, err := acts.Create(r.Context(), callerOf(r), req)
		if err != nil {
			return err
		}
		return a.writeSecret(w, k)
	})
	a.handle("POST /api/v1/apikeys/{id}/rotate", actKeyRotate, Operator, func(w http.ResponseWriter, r *http.Request) error {
		var req RotateRequest
		if err := readJSON(r, &req); err != nil {
			return err
		}
		k, err := acts.Rotate(r.Context(), callerOf(r), r.PathValue("id"), req)
		if err != nil {
			return err
		}
		return a.writeSecret(w, k)
	})
	a.handle("POST /api/v1/apikeys/{id}/revoke", actKeyRevoke, Operator, func(w http.ResponseWriter, r *http.Request) error {
		k, err := acts.Revoke(r.Context(), callerOf(r), r.PathValue("id"))
		if err != nil {
			return err
		}
		return a.writeJSON(w, k)
	})
}

// writeSecret hands out what nobody between may keep.
func (a *API) writeSecret(w http.ResponseWriter, k IssuedAPIKey) error {
	w.Header().Set("Cache-Control", "no-store")
	return a.writeJSON(w, k)
}

// readJSON reads a body of exactly one value without unknown members.
func readJSON(r *http.Request, into any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return &Problem{Title: "request: " + err.Error(), Status: http.StatusBadRequest, Code: exitUsage}
	}
	if _, err := dec.Token(); err != io.EOF {
		return &Problem{Title: "request: more than one value", Status: http.StatusBadRequest, Code: exitUsage}
	}
	return nil
}
