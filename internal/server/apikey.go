package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/kv"
)

// keyDesk is the API keys as administration sees them.
type keyDesk struct{ keys *authn.APIKeys }

func keyOf(i authn.KeyInfo) admin.APIKey {
	k := admin.APIKey{
		ID: i.ID, Name: i.Name, Owner: i.Owner, Tenant: i.Tenant, Roles: i.Roles, Scopes: i.Scopes, Routes: i.Routes, State: i.State,
		Created: i.Created, NotBefore: i.NotBefore, Expires: i.Expires, Revoked: i.Revoked, LastUsed: i.LastUsed, Secret: i.Number,
	}
	for _, r := range i.Replaced {
		k.Replaced = append(k.Replaced, admin.ReplacedSecret{Secret: r.Number, Until: r.Until, LastUsed: r.LastUsed})
	}
	return k
}

// keyProblem makes a wish that cannot be granted a problem on the wire.
func keyProblem(err error) error {
	var k *authn.KeyError
	switch {
	case !errors.As(err, &k):
		return err
	case k.Missing:
		return &admin.Problem{Title: k.Text, Status: http.StatusNotFound, Code: 3}
	case k.Conflict:
		return &admin.Problem{Title: k.Text, Status: http.StatusConflict, Code: 1}
	}
	return &admin.Problem{Title: k.Text, Status: http.StatusBadRequest, Code: 2}
}

// All implements admin.APIKeys.
func (d keyDesk) All() []admin.APIKey {
	out := []admin.APIKey{}
	for _, k := range d.keys.All() {
		out = append(out, keyOf(k))
	}
	return out
}

// Find implements admin.APIKeys.
func (d keyDesk) Find(id string) (admin.APIKey, error) {
	k, err := d.keys.Find(id)
	return keyOf(k), keyProblem(err)
}

// Create implements admin.APIKeys.
func (d keyDesk) Create(ctx context.Context, r admin.APIKeyRequest, note func(id, before, after string) error) (admin.IssuedAPIKey, error) {
	k, secret, err := d.keys.Create(ctx, authn.KeySpec(r), note)
	return admin.IssuedAPIKey{APIKey: keyOf(k), Key: secret}, keyProblem(err)
}

// Rotate implements admin.APIKeys.
func (d keyDesk) Rotate(ctx context.Context, id string, overlap time.Duration, note func(id, before, after string) error) (admin.IssuedAPIKey, error) {
	k, secret, err := d.keys.Rotate(ctx, id, overlap, note)
	return admin.IssuedAPIKey{APIKey: keyOf(k), Key: secret}, keyProblem(err)
}

// Revoke implements admin.APIKeys.
func (d keyDesk) Revoke(ctx context.Context, id string, note func(id, before, after string) error) (admin.APIKey, error) {
	k, err := d.keys.Revoke(ctx, id, note)
	return keyOf(k), keyProblem(err)
}

// KeyDesk changes API keys while no server runs. It has the book open, since
// each act is a record.
type KeyDesk struct {
	acts  admin.KeyActs
	book  *book.Book
	state *kv.Local
}

// OpenKeyDesk takes the locks and opens the book and the state beside it.
func OpenKeyDesk(ctx context.Context, f *config.File) (_ *KeyDesk, err error) {
	log := slog.New(slog.DiscardHandler)
	b, err := book.Open(ctx, BookConfig(f, log))
	if err != nil {
		return nil, err
	}
	d := &KeyDesk{book: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(ctx))
		}
	}()
	if d.state, err = openState(f, b); err != nil {
		return nil, err
	}
	keys, err := authn.OpenAPIKeys(ctx, authn.APIKeysConfig{Store: d.state, Issuer: f.APIKeys.Issuer, Logger: log})
	if err != nil {
		return nil, stateError(f, err)
	}
	d.acts = admin.KeyActs{Book: b, Keys: keyDesk{keys}}
	return d, nil
}

// Close lets go of the files.
func (d *KeyDesk) Close(ctx context.Context) error {
	var err error
	if d.state != nil {
		err = d.state.Close()
	}
	return errors.Join(err, d.book.Close(context.WithoutCancel(ctx)))
}

// List returns all keys.
func (d *KeyDesk) List(ctx context.Context) ([]admin.APIKey, error) {
	return d.acts.List(ctx, localActor())
}

// Show returns one key.
func (d *KeyDesk) Show(ctx context.Context, id string) (admin.APIKey, error) {
	return d.acts.Show(ctx, localActor(), id)
}

// Create makes a key.
func (d *KeyDesk) Create(ctx context.Context, r admin.APIKeyRequest) (admin.IssuedAPIKey, error) {
	return d.acts.Create(ctx, localActor(), r)
}

// Rotate gives a key a new secret.
func (d *KeyDesk) Rotate(ctx context.Context, id string, r admin.RotateRequest) (admin.IssuedAPIKey, error) {
	return d.acts.Rotate(ctx, localActor(), id, r)
}

// Revoke ends a key.
func (d *KeyDesk) Revoke(ctx context.Context, id string) (admin.APIKey, error) {
	return d.acts.Revoke(ctx, localActor(), id)
}
