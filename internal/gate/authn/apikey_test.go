package authn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
)

// keyHouse is API keys in a file, with a clock of its own.
type keyHouse struct {
	t     testing.TB
	path  string
	store *kv.Local
	keys  *APIKeys
	mu    sync.Mutex
	at    time.Time // under mu
	acts  []string  // "id before after"
}

func newKeyHouse(t testing.TB) *keyHouse {
	h := &keyHouse{t: t, path: filepath.Join(t.TempDir(), "live.db"), at: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)}
	h.open()
	t.Cleanup(func() { h.store.Close() })
	return h
}

func (h *keyHouse) open() {
	h.t.Helper()
	var err error
	if h.store, err = kv.OpenLocal(h.path, [32]byte{7}, nil); err != nil {
		h.t.Fatal(err)
	}
	if h.keys, err = OpenAPIKeys(context.Background(), APIKeysConfig{Store: h.store, Issuer: "keys", Now: h.now}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *keyHouse) reopen() {
	h.t.Helper()
	if err := h.store.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
}

func (h *keyHouse) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

func (h *keyHouse) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = h.at.Add(d)
}

func (h *keyHouse) note(id, before, after string) error {
	h.acts = append(h.acts, id+" "+before+" "+after)
	return nil
}

func (h *keyHouse) create(s KeySpec) (KeyInfo, string) {
	h.t.Helper()
	if s.Name == "" {
		s.Name = "test"
	}
	if s.Owner == "" {
		s.Owner = "robot"
	}
	k, secret, err := h.keys.Create(h.t.Context(), s, h.note)
	if err != nil {
		h.t.Fatal(err)
	}
	return k, secret
}

func (h *keyHouse) auth(t testing.TB, fields ...string) *APIKey {
	t.Helper()
	if len(fields) == 0 {
		fields = []string{"x-api-key", "authorization"}
	}
	a, err := NewAPIKey(h.keys, fields)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// request has header lines "name: value".
func request(lines ...string) *canon.Request {
	r := &canon.Request{}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Fields = append(r.Fields, canon.Field{Name: name, Value: value})
	}
	return r
}

// verdict is "ok", "not mine", or the reason of a refusal.
func verdict(a *APIKey, lines ...string) string {
	p, err := a.Authenticate(context.Background(), request(lines...))
	var f *Failure
	switch {
	case err == nil && p != nil:
		return "ok"
	case errors.Is(err, ErrNoCredential):
		return "not mine"
	case errors.As(err, &f):
		return string(f.Reason)
	}
	return fmt.Sprintf("%v, %v", p, err)
}

func TestAPIKeyFields(t *testing.T) {
	h := newKeyHouse(t)
	_, k := h.create(KeySpec{})
	_, other := h.create(KeySpec{})
	both, header, bearerOnly, own := h.auth(t), h.auth(t, "x-api-key"), h.auth(t, "authorization"), h.auth(t, "x-acme-key")
	for _, row := range []struct {
		name  string
		a     *APIKey
		lines []string
		want  string
	}{
		{"header", both, []string{"x-api-key: " + k}, "ok"},
		{"bearer", both, []string{"authorization: Bearer " + k}, "ok"},
		{"scheme in another case", both, []string{"authorization: bearer " + k}, "ok"},
		{"the same in both", both, []string{"x-api-key: " + k, "authorization: Bearer " + k}, "ok"},
		{"two different", both, []string{"x-api-key: " + k, "authorization: Bearer " + other}, "two_credentials"},
		{"twice in one field", both, []string{"x-api-key: " + k, "x-api-key: " + k}, "two_credentials"},
		{"two bearer fields", both, []string{"authorization: Bearer " + k, "authorization: Bearer " + k}, "two_credentials"},
		{"a list", both, []string{"x-api-key: " + k + ", " + other}, "token_malformed"},
		{"nothing", both, nil, "not mine"},
		{"empty", both, []string{"x-api-key: "}, "not mine"},
		{"a token of somebody else", both, []string{"authorization: Bearer eyJhbGciOiJFUzI1NiJ9.e30.AAAA"}, "not mine"},
		{"an opaque token", both, []string{"authorization: Bearer 2YotnFZFEjr1zCsicMWpAA"}, "not mine"},
		{"another scheme", both, []string{"authorization: Basic " + k}, "not mine"},
		{"no scheme", both, []string{"authorization: " + k}, "not mine"},
		{"two spaces", both, []string{"authorization: Bearer  " + k}, "not mine"},
		{"something else in the header", both, []string{"x-api-key: 0123456789abcdef"}, "token_malformed"},
		{"a scheme in the header", both, []string{"x-api-key: Bearer " + k}, "token_malformed"},
		{"a typing error", both, []string{"authorization: Bearer " + k[:52] + "_"}, "token_malformed"},
		{"unknown", both, []string{"x-api-key: " + newAPIKey()}, "key_unknown"},
		{"only a header: bearer", header, []string{"authorization: Bearer " + k}, "not mine"},
		{"only bearer: header", bearerOnly, []string{"x-api-key: " + k}, "not mine"},
		{"own header", own, []string{"x-acme-key: " + k}, "ok"},
		{"own header: usual one", own, []string{"x-api-key: " + k}, "not mine"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := verdict(row.a, row.lines...); got != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
		})
	}
}

func TestAPIKeyPrincipal(t *testing.T) {
	h := newKeyHouse(t)
	k, secret := h.create(KeySpec{
		Name: "export", Owner: "billing", Tenant: "acme", Roles: []string{"clerk"}, Scopes: []string{"read"}, Routes: []string{"orders.read"},
		Expires: h.now().Add(time.Hour),
	})
	p, err := h.auth(t).Authenticate(t.Context(), request("x-api-key: "+secret))
	if err != nil {
		t.Fatal(err)
	}
	if p.Method != "apikey" || p.Issuer != "keys" || p.Subject != "billing" || p.Client != k.ID || p.KID != k.ID+".1" || p.Tenant != "acme" ||
		!slices.Equal(p.Roles, []string{"clerk"}) || !slices.Equal(p.Scopes, []string{"read"}) || !slices.Equal(p.Routes, []string{"orders.read"}) ||
		!p.IssuedAt.Equal(h.now()) || !p.Expires.Equal(h.now().Add(time.Hour)) || p.Confirm.Bound() != "" {
		t.Errorf("%+v", p)
	}
	if !h.keys.Knows(k.ID) || h.keys.Knows("nobody") || !h.keys.KnowsSecret(k.ID+".1") || h.keys.KnowsSecret(k.ID+".2") || h.keys.KnowsSecret(k.ID) {
		t.Error("what may stand in records is not told")
	}
}

func TestAPIKeyLife(t *testing.T) {
	h := newKeyHouse(t)
	k, first := h.create(KeySpec{NotBefore: h.now().Add(time.Minute), Expires: h.now().Add(10 * time.Hour)})
	a := h.auth(t)
	expect := func(what, secret, want string) {
		t.Helper()
		if got := verdict(a, "x-api-key: "+secret); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
		// What is on the disk says the same.
		h.reopen()
		a = h.auth(t)
		if got := verdict(a, "x-api-key: "+secret); got != want {
			t.Errorf("%s, after a restart: %s, want %s", what, got, want)
		}
	}
	expect("before its time", first, "token_not_yet")
	h.pass(time.Minute)
	expect("at its time", first, "ok")
	_, second, err := h.keys.Rotate(t.Context(), k.ID, time.Hour, h.note)
	if err != nil {
		t.Fatal(err)
	}
	expect("the new secret", second, "ok")
	expect("the old one in the overlap", first, "ok")
	h.pass(time.Hour - time.Nanosecond)
	expect("at the end of the overlap", first, "ok")
	h.pass(time.Nanosecond)
	expect("after the overlap", first, "key_expired")
	expect("the new one after the overlap", second, "ok")
	_, third, err := h.keys.Rotate(t.Context(), k.ID, 0, h.note)
	if err != nil {
		t.Fatal(err)
	}
	expect("replaced without overlap", second, "key_expired")
	expect("the third", third, "ok")
	h.pass(10 * time.Hour)
	expect("after its end", third, "key_expired")
	if _, _, err := h.keys.Rotate(t.Context(), k.ID, 0, h.note); err == nil {
		t.Error("an expired key was given a new secret")
	}
	if _, err := h.keys.Revoke(t.Context(), k.ID, h.note); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{first, second, third} {
		expect("revoked", s, "key_revoked")
	}
	if _, err := h.keys.Revoke(t.Context(), k.ID, h.note); err == nil {
		t.Error("revoked twice")
	}
	if len(h.acts) != 4 {
		t.Fatalf("acts: %q", h.acts)
	}
	last := ""
	for i, act := range h.acts {
		id, rest, _ := strings.Cut(act, " ")
		before, after, _ := strings.Cut(rest, " ")
		if id != k.ID || before != last || len(after) != 32 || i > 0 && after == before {
			t.Errorf("act %d: %q after %q", i, act, last)
		}
		last = after
	}
}

// Rotation never makes an older secret live longer, and never forgets one that
// is still valid.
func TestAPIKeyRotations(t *testing.T) {
	h := newKeyHouse(t)
	k, secret := h.create(KeySpec{})
	secrets := []string{secret}
	for range maxSecrets - 1 {
		_, s, err := h.keys.Rotate(t.Context(), k.ID, time.Hour, h.note)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, s)
	}
	var conflict *KeyError
	if _, _, err := h.keys.Rotate(t.Context(), k.ID, time.Hour, h.note); !errors.As(err, &conflict) || !conflict.Conflict {
		t.Fatalf("the ninth: %v", err)
	}
	if _, _, err := h.keys.Rotate(t.Context(), k.ID, -1, h.note); err == nil {
		t.Error("a negative overlap")
	}
	a := h.auth(t)
	for i, s := range secrets {
		if got := verdict(a, "x-api-key: "+s); got != "ok" {
			t.Errorf("secret %d: %s", i+1, got)
		}
	}
	// No overlap ends the older ones, too: that is what one does when a secret is known to others.
	h.pass(time.Second)
	_, last, err := h.keys.Rotate(t.Context(), k.ID, 0, h.note)
	if err == nil {
		for i, s := range secrets[1:] {
			if got := verdict(a, "x-api-key: "+s); got != "key_expired" {
				t.Errorf("secret %d after a rotation without overlap: %s", i+2, got)
			}
		}
		if got := verdict(a, "x-api-key: "+last); got != "ok" {
			t.Errorf("the newest: %s", got)
		}
		return
	}
	t.Fatal(err)
}

func TestAPIKeySpecs(t *testing.T) {
	h := newKeyHouse(t)
	now := h.now()
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprint("r", i)
	}
	for name, s := range map[string]KeySpec{
		"no name":               {Owner: "o"},
		"no owner":              {Name: "n"},
		"long name":             {Name: strings.Repeat("n", 129), Owner: "o"},
		"long owner":            {Name: "n", Owner: strings.Repeat("o", 257)},
		"control character":     {Name: "n", Owner: "o\x1b[2J"},
		"white space":           {Name: "n", Owner: " o"},
		"line break":            {Name: "n\nm", Owner: "o"},
		"invalid UTF-8":         {Name: "n", Owner: "o\xff"},
		"bidi":                  {Name: "n", Owner: "o\u202ex"},
		"a key as a name":       {Name: newAPIKey(), Owner: "o"},
		"empty role":            {Name: "n", Owner: "o", Roles: []string{""}},
		"role twice":            {Name: "n", Owner: "o", Roles: []string{"a", "a"}},
		"too many roles":        {Name: "n", Owner: "o", Roles: many},
		"scope with a space":    {Name: "n", Owner: "o", Scopes: []string{"a b"}},
		"ended":                 {Name: "n", Owner: "o", Expires: now},
		"ends before it begins": {Name: "n", Owner: "o", NotBefore: now.Add(time.Hour), Expires: now.Add(time.Minute)},
	} {
		var bad *KeyError
		if _, secret, err := h.keys.Create(t.Context(), s, h.note); !errors.As(err, &bad) || bad.Missing || bad.Conflict || secret != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(h.acts) != 0 || len(h.keys.All()) != 0 {
		t.Errorf("something was noted or kept: %q, %+v", h.acts, h.keys.All())
	}
	for _, do := range []func() error{
		func() error { _, err := h.keys.Find("2222222222"); return err },
		func() error { _, _, err := h.keys.Rotate(t.Context(), "2222222222", 0, h.note); return err },
		func() error { _, err := h.keys.Revoke(t.Context(), "", h.note); return err },
	} {
		var missing *KeyError
		if err := do(); !errors.As(err, &missing) || !missing.Missing {
			t.Errorf("a key that is not there: %v", err)
		}
	}
}

// What cannot be recorded is not done, and what cannot be stored is not in force.
func TestAPIKeyUnrecorded(t *testing.T) {
	h := newKeyHouse(t)
	k, secret := h.create(KeySpec{})
	a := h.auth(t)
	full := errors.New("the book is full")
	refuse := func(string, string, string) error { return full }
	if _, s, err := h.keys.Create(t.Context(), KeySpec{Name: "n", Owner: "o"}, refuse); !errors.Is(err, full) || s != "" {
		t.Errorf("create: %q, %v", s, err)
	}
	if _, s, err := h.keys.Rotate(t.Context(), k.ID, 0, refuse); !errors.Is(err, full) || s != "" {
		t.Errorf("rotate: %q, %v", s, err)
	}
	if _, err := h.keys.Revoke(t.Context(), k.ID, refuse); !errors.Is(err, full) {
		t.Errorf("revoke: %v", err)
	}
	if got := verdict(a, "x-api-key: "+secret); got != "ok" || len(h.keys.All()) != 1 {
		t.Errorf("%s, %d keys", got, len(h.keys.All()))
	}
	h.store.Close() // from here on nothing can be stored
	if _, err := h.keys.Revoke(t.Context(), k.ID, h.note); err == nil {
		t.Error("revoked without storing it")
	}
	if got := verdict(a, "x-api-key: "+secret); got != "ok" {
		t.Errorf("a revocation that failed is half done: %s", got)
	}
	h.open()
}

// The store holds no key, in clear or sealed.
func TestAPIKeySecretsAreNotKept(t *testing.T) {
	h := newKeyHouse(t)
	k, secret := h.create(KeySpec{Owner: "owner-in-clear"})
	_, next, err := h.keys.Rotate(t.Context(), k.ID, time.Hour, h.note)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := h.store.Copy(&file); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{secret, next, secret[4:], "owner-in-clear", k.ID} {
		if bytes.Contains(file.Bytes(), []byte(s)) {
			t.Errorf("the file has %q", s)
		}
	}
	err = h.store.Range(t.Context(), keyTableName, func(_ string, value []byte) error {
		for _, s := range []string{secret[4:30], next[4:30]} {
			if bytes.Contains(value, []byte(s)) {
				t.Errorf("the entry has the key: %s", value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := json.Marshal(h.keys.All())
	if err != nil || bytes.Contains(info, []byte(secret[4:])) || bytes.Contains(info, []byte(next[4:])) {
		t.Errorf("%s, %v", info, err)
	}
}

// A store that has something wrong in it gives no keys at all.
func TestAPIKeysDamaged(t *testing.T) {
	h := newKeyHouse(t)
	k, _ := h.create(KeySpec{})
	other, _ := h.create(KeySpec{})
	value, err := h.store.Get(t.Context(), keyTableName, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func() error{
		"no JSON":          func() error { return h.store.Put(t.Context(), keyTableName, k.ID, []byte("{"), time.Time{}) },
		"under another id": func() error { return h.store.Put(t.Context(), keyTableName, other.ID, value, time.Time{}) },
		"no secret": func() error {
			return h.store.Put(t.Context(), keyTableName, k.ID, []byte(`{"id":"`+k.ID+`"}`), time.Time{})
		},
		"a short hash": func() error {
			return h.store.Put(t.Context(), keyTableName, k.ID, bytes.Replace(value, []byte(`"sha256":"`), []byte(`"sha256":"0`), 1), time.Time{})
		},
		"the secret of another": func() error {
			return h.store.Put(t.Context(), keyTableName, "3333333333", bytes.Replace(value, []byte(k.ID), []byte("3333333333"), 1), time.Time{})
		},
		"uses": func() error { return h.store.Put(t.Context(), useTableName, k.ID, []byte("[1]"), time.Time{}) },
	} {
		before := map[string][]byte{}
		for _, id := range []string{k.ID, other.ID} {
			if before[id], err = h.store.Get(t.Context(), keyTableName, id); err != nil {
				t.Fatal(err)
			}
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenAPIKeys(t.Context(), APIKeysConfig{Store: h.store, Issuer: "keys"}); !errors.Is(err, kv.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		for id, v := range before {
			if err := h.store.Put(t.Context(), keyTableName, id, v, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		for table, id := range map[string]string{keyTableName: "3333333333", useTableName: k.ID} {
			if err := h.store.Delete(t.Context(), table, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.reopen()
}
