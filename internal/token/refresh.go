package token

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// family is a refresh token and all that replaced it. Generation n of it is
// n and an HMAC of n under the family's key, so that whoever shows a generation
// that is past proves to have had it: a made-up token revokes nothing. The
// store's copy is sealed.
type family struct {
	ID         string    `json:"id"`
	Key        []byte    `json:"key"`
	Client     string    `json:"client"`
	Source     string    `json:"source"` // of the subject token
	Issuer     string    `json:"issuer"` // its issuer, as records name it
	Of         string    `json:"of"`     // its subject
	Subject    string    `json:"subject"`
	Audience   string    `json:"audience"`
	Scopes     []string  `json:"scopes,omitempty"`
	Roles      []string  `json:"roles,omitempty"`
	ACR        string    `json:"acr,omitempty"`
	AMR        []string  `json:"amr,omitempty"`
	AuthTime   time.Time `json:"auth_time,omitzero"`
	Actor      []byte    `json:"actor,omitempty"`
	Bound      string    `json:"bound,omitempty"` // kind of key that its access tokens are bound to
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`
	Generation uint32    `json:"generation"`
	Replaced   time.Time `json:"replaced,omitzero"` // when generation became what it is
	Revoked    string    `json:"revoked,omitempty"` // why, "" if it is not

	stored []byte // as the store has it
}

// Why a family was revoked.
const (
	revokedReuse    = "reuse"
	revokedClient   = "client"
	revokedOperator = "operator"
)

// grace is how long the token before the newest may be shown once more by a
// client that did not get the answer (FAPI 2.0 Security Profile section
// 5.3.2.1): it gets the newest again.
const grace = 30 * time.Second

// Sizes in a refresh token, in bytes.
const (
	familyIDSize = 16
	familyMAC    = 32
)

// refreshPrefix tells refresh tokens from others, for people and for scanners of
// secrets.
const refreshPrefix = "gbrt_"

// familyHash is what stands for an issuer in the hash of a family's id.
const familyHash = "family"

// newFamilyID draws an id that does not begin with "-": operators give it to
// commands, where that would begin an option.
func newFamilyID() string {
	var id [familyIDSize]byte
	for {
		rand.Read(id[:]) // never fails (crypto/rand)
		if text := b64.EncodeToString(id[:]); text[0] != '-' {
			return text
		}
	}
}

func newFamily(g *grant, source string, p *authn.Principal, now time.Time) *family {
	key := make([]byte, 32)
	rand.Read(key)
	return &family{
		ID: newFamilyID(), Key: key, Client: g.client.ID, Source: source, Issuer: p.Issuer, Of: p.Subject, Subject: g.subject,
		Audience: g.audience, Scopes: g.scopes, Roles: g.roles, ACR: g.acr, AMR: g.amr, AuthTime: g.authTime, Actor: g.actor, Bound: g.confirm.kind(),
		Created: now.UTC(), Expires: now.Add(g.client.Offline).UTC(),
	}
}

// kind is the kind of key, as authn names it.
func (c *confirmation) kind() string {
	if c == nil {
		return ""
	}
	return authn.Confirmation{JKT: c.JKT, X5T: c.X5T}.Bound()
}

func (f *family) mac(purpose byte, n uint32) []byte {
	m := hmac.New(sha256.New, f.Key)
	m.Write([]byte("gatebook/v1/refresh"))
	m.Write(binary.BigEndian.AppendUint32([]byte{purpose}, n))
	return m.Sum(nil)
}

// Purposes of mac.
const (
	macToken = 1
	macTag   = 2
)

// token is a generation as its client has it.
func (f *family) token(n uint32) string {
	id, err := b64.DecodeString(f.ID)
	if err != nil {
		return ""
	}
	b := binary.BigEndian.AppendUint32(id, n)
	return refreshPrefix + b64.EncodeToString(append(b, f.mac(macToken, n)...))
}

// tag stands for the family in the ids of its access tokens.
func (f *family) tag() string { return b64.EncodeToString(f.mac(macTag, 0)[:15]) }

// dead tells when the last access token of the family has expired everywhere,
// if none is given from now on.
func dead(now time.Time) time.Time { return now.Add(keepReplaced) }

// parts of a refresh token.
type refreshParts struct {
	id         string
	generation uint32
	mac        []byte
}

func parseRefresh(raw string) (refreshParts, bool) {
	body, ok := strings.CutPrefix(raw, refreshPrefix)
	if !ok || len(body) != b64.EncodedLen(familyIDSize+4+familyMAC) || strings.ContainsAny(body, "\r\n") {
		return refreshParts{}, false
	}
	b, err := b64.DecodeString(body)
	if err != nil {
		return refreshParts{}, false
	}
	return refreshParts{
		b64.EncodeToString(b[:familyIDSize]), binary.BigEndian.Uint32(b[familyIDSize:]), b[familyIDSize+4:],
	}, true
}

// find returns the family of a refresh token that was once given out: nil if it
// was not, or is long gone.
func (s *State) find(ctx context.Context, raw string) (*family, uint32, error) {
	p, ok := parseRefresh(raw)
	if !ok {
		return nil, 0, nil
	}
	f, err := s.family(ctx, p.id)
	if err != nil || f == nil || !hmac.Equal(p.mac, f.mac(macToken, p.generation)) {
		return nil, 0, err
	}
	return f, p.generation, nil
}

// family returns a family by its id, nil if there is none.
func (s *State) family(ctx context.Context, id string) (*family, error) {
	value, err := s.store.Get(ctx, tableFamily, id)
	if errors.Is(err, kv.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := &family{stored: value}
	return f, json.Unmarshal(value, f)
}

// keep stores a new family.
func (s *Service) keep(ctx context.Context, f *family) error {
	value, err := json.Marshal(f)
	if err != nil {
		return err
	}
	created, err := s.state.store.Create(context.WithoutCancel(ctx), tableFamily, f.ID, value, f.Expires)
	if err == nil && !created {
		err = errors.New("token: a family's random id is taken")
	}
	return err
}

// update stores what edit makes of a family, however many others do the same
// at that moment. edit may be called again, with what the others have made of
// it; false leaves it as it is.
func (s *State) update(ctx context.Context, f *family, edit func(f *family) bool) (*family, error) {
	ctx = context.WithoutCancel(ctx)
	for {
		old := f.stored
		if !edit(f) {
			return f, nil
		}
		value, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		err = s.store.Swap(ctx, tableFamily, f.ID, old, value, f.Expires)
		if err == nil {
			f.stored = value
			return f, nil
		}
		if !errors.Is(err, kv.ErrChanged) {
			return nil, err
		}
		id := f.ID
		if f, err = s.family(ctx, id); err != nil {
			return nil, err
		}
		if f == nil {
			return nil, kv.ErrNotFound
		}
	}
}

// refresh is RFC 6749 section 6 with rotation (RFC 9700 section 4.14.2).
func (s *Service) refresh(ctx context.Context, c *gate.Call, cl *Client, bound *confirmation, fm form) (*issued, *refusal) {
	raw := fm.get("refresh_token")
	if raw == "" {
		return nil, malformed("refresh_token is missing")
	}
	f, n, err := s.state.find(ctx, raw)
	if err != nil {
		return nil, s.away(err)
	}
	if f == nil {
		return nil, refused(invalidGrant, reason.TokenInactive)
	}
	if f.Client != cl.ID {
		// Not the client that it was given to: whoever this is has stolen it, but
		// the owner did nothing wrong and keeps it (RFC 6749 section 10.4).
		return nil, refused(invalidGrant, reason.BindingMismatch)
	}
	whose := &authn.Principal{
		Issuer: f.Issuer, Subject: f.Of, Roles: f.Roles, ACR: f.ACR, AMR: f.AMR, Family: s.hash(familyHash, f.ID), IssuedAt: f.Created,
	}
	s.speaksFor(c, cl, whose)
	if why := s.revokedBy(ctx, whose); why != nil {
		return nil, refused(invalidGrant, why.Reason)
	}
	if f.Bound != bound.kind() {
		return nil, refused(invalidGrant, reason.BindingRequired) // tokens that were bound once stay so
	}
	g, r := again(c.Start, f, cl, fm)
	if r != nil {
		return nil, r
	}
	g.confirm = bound
	if !c.Mark() {
		return nil, nil
	}
	f, r = s.rotate(ctx, c, f, n)
	if r != nil {
		return nil, r
	}
	out, r := s.mint(c, g)
	if r == nil {
		out.RefreshToken = f.token(f.Generation)
	}
	return out, r
}

// again is what the next access token of a family is made of: no more than the
// first, and no more than the client may have by now.
func again(now time.Time, f *family, cl *Client, fm form) (*grant, *refusal) {
	if !slices.Contains(cl.Audiences, f.Audience) || !slices.Contains(cl.Subjects, f.Source) || !now.Before(f.Created.Add(cl.Offline)) {
		return nil, refused(invalidGrant, reason.DeniedByDefault) // the configuration has changed
	}
	g := &grant{
		client: cl, subject: f.Subject, audience: f.Audience, roles: common(f.Roles, cl.Roles), actor: f.Actor,
		acr: f.ACR, amr: f.AMR, authTime: f.AuthTime, tag: f.tag(), scopes: common(f.Scopes, cl.Scopes),
	}
	for _, name := range []string{"audience", "resource"} {
		if a := fm.get(name); a != "" && a != f.Audience {
			return nil, refused(invalidTarget, reason.TokenAudience)
		}
	}
	asked, ok := parseScope(fm.get("scope"))
	if !ok || !subset(asked, g.scopes) {
		return nil, refused(invalidScope, reason.ScopeMissing)
	}
	if len(asked) > 0 {
		g.scopes = asked
	}
	return g, nil
}

// rotate makes the next generation, or finds that this is a retry, or that the
// token was used before and the family cannot be trusted any more.
func (s *Service) rotate(ctx context.Context, c *gate.Call, f *family, n uint32) (*family, *refusal) {
	now := s.state.now()
	ev := &c.Record.Event
	f, err := s.state.update(ctx, f, func(f *family) bool {
		switch {
		case f.Revoked != "":
			ev.Cause = causeRevoked
			return false
		case n == f.Generation:
			f.Generation, f.Replaced = n+1, now.UTC()
			ev.Cause = causeRotated
			return true
		case n+1 == f.Generation && now.Sub(f.Replaced).Abs() <= grace:
			ev.Cause = causeAgain
			return false
		}
		f.Revoked = revokedReuse
		ev.Cause = causeReused
		return true
	})
	switch {
	case errors.Is(err, kv.ErrNotFound):
		return nil, refused(invalidGrant, reason.TokenInactive)
	case err != nil:
		return nil, s.away(err)
	case ev.Cause == causeRevoked:
		return nil, refused(invalidGrant, reason.TokenRevoked)
	case ev.Cause != causeReused:
		return f, nil
	}
	if err := s.state.deny(context.WithoutCancel(ctx), f.tag(), dead(now)); err != nil {
		s.log.Error("access tokens of a revoked family stay valid until they expire", "err", err)
	}
	if err := s.alert(context.WithoutCancel(ctx), f.Client, c.ID); err != nil {
		s.log.Error("the reuse of a refresh token could not be recorded as an alert", "err", err)
	}
	return nil, refused(invalidGrant, reason.TokenReuseDetected)
}
