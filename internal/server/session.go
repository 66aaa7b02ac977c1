package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/kv"
)

// printSession is the kind of the prints of sessions.
const printSession = "session "

// sessionHash is the issuer's place in the keyed hash of a session's name; no
// issuer is called so.
const sessionHash = "session family"

// openSessions reads the sessions that were kept.
func openSessions(ctx context.Context, b *book.Book, state *kv.Local, log *slog.Logger) (*authn.SessionStore, error) {
	secret, err := b.StateKey("session")
	if err != nil {
		return nil, err
	}
	s, err := authn.NewSessionStore(authn.SessionStoreConfig{
		Store: state, Secret: secret, Hash: func(family string) string { return b.TokenHash(sessionHash, family) }, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if err := s.Load(ctx); err != nil {
		return nil, fmt.Errorf("sessions: %w", err)
	}
	return s, nil
}

// addSessions makes the logins, or takes over those from before.
func (p *parts) addSessions(f *config.File, prev *parts, log *slog.Logger) error {
	var errs []error
	for i := range f.Sessions {
		if err := p.addSession(f, &f.Sessions[i], prev, log); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (p *parts) addSession(f *config.File, c *config.Session, prev *parts, log *slog.Logger) error {
	is, err := issuerNamed(f, c.Issuer)
	if err != nil {
		return err
	}
	pass := p.passedClaims(f, "")
	for _, r := range f.Routes {
		if slices.ContainsFunc(r.Authn, func(a config.Authn) bool { return a.Session == c.Name }) {
			pass = append(pass, r.Record.Claims...)
		}
	}
	slices.Sort(pass)
	pass = slices.Compact(pass)
	print, err := f.Fingerprint(&struct {
		Session *config.Session `key:"session"`
		Issuer  *config.Issuer  `key:"issuer"`
		Pass    []string        `key:"pass"`
	}{c, is, pass})
	if err != nil {
		return fmt.Errorf("session %q: %w", c.Name, err)
	}
	p.prints[printSession+c.Name] = print
	was := prev.sessions[c.Name]
	if was != nil && prev.prints[printSession+c.Name] == print {
		p.sessions[c.Name] = was
		return nil
	}
	conf, err := p.sessionConfig(c, is, pass, log)
	if err != nil {
		return fmt.Errorf("session %q: %w", c.Name, err)
	}
	s, err := authn.NewSessions(*conf)
	if err != nil {
		return err
	}
	if was != nil && prev.prints[printKeys+is.Name] == p.prints[printKeys+is.Name] {
		s.Inherit(was)
	}
	p.sessions[c.Name] = s
	return nil
}

// sessionConfig reads what is configured, secrets included.
func (p *parts) sessionConfig(c *config.Session, is *config.Issuer, pass []string, log *slog.Logger) (*authn.SessionConfig, error) {
	keys, err := keySource(is)
	if err != nil {
		return nil, err
	}
	out := &authn.SessionConfig{
		Name: c.Name, Origin: c.Origin, Token: tokenRules(is, pass), Scopes: c.AskedScopes(), UserInfo: c.UserInfo, Timeout: c.Timeout.Std(),
		Client: authn.ClientAuth{Method: c.Auth, ID: c.ClientID, KeyID: c.KeyID},
		Idle:   c.Idle.Std(), Absolute: c.Absolute.Std(), Rotate: c.Rotate.Std(), AfterLogout: c.AfterLogout,
		Store: p.guards.sessions, Once: p.guards.onceToken, Logger: log,
	}
	if u, err := url.Parse(is.Issuer); err == nil && u.Scheme == "http" {
		keys.AllowLoopbackHTTP = true // config admits http on loopback only
	}
	out.Token.Keys, out.Token.Slots = keys, p.guards.slots
	if c.ClientSecret != nil {
		if out.Client.Secret, err = c.ClientSecret.Read(); err != nil {
			return nil, fmt.Errorf("client secret: %w", err)
		}
	}
	if c.PrivateKey != "" {
		text, err := config.ReadFile(c.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		if out.Client.Key, err = authn.ParsePrivateKey(text); err != nil {
			return nil, fmt.Errorf("%s: %w", c.PrivateKey, err)
		}
	}
	return out, nil
}

// sessionRoutes are the pages of all sessions.
func (p *parts) sessionRoutes(f *config.File) (routes []*gate.Route) {
	for i := range f.Sessions {
		c := &f.Sessions[i]
		routes = append(routes, gate.SessionRoutes(config.ReservedRoutes+"session."+c.Name, strings.Trim(c.Host(), "[]"), c.Listeners, p.sessions[c.Name])...)
	}
	return routes
}

// The acts of administrators on sessions, as records name them.
const (
	actSessions      = "session_list"
	actSessionRevoke = "session_revoke"
)

// sessionCalls are the calls about sessions.
func (s *Server) sessionCalls() []admin.Call {
	return []admin.Call{
		{Pattern: "GET /api/v1/sessions", Act: actSessions, Role: admin.Reader, Do: s.listSessions},
		{Pattern: "POST /api/v1/sessions/revoke", Act: actSessionRevoke, Role: admin.Operator, Changes: true, Do: s.revokeSessions},
	}
}

// SessionLine is a session as it is listed: its subject by pseudonym.
type SessionLine struct {
	authn.SessionInfo
	Subject string `json:"subject"`
}

func (s *Server) listSessions(r *http.Request, who *admin.Caller, _ []byte) (any, error) {
	if err := admin.NoteAccess(r.Context(), s.book, who, actSessions, "", false); err != nil {
		return nil, err
	}
	lines := []SessionLine{}
	for _, info := range s.guards.sessions.List() {
		name, err := s.book.Pseudonym(info.Issuer + "|" + info.Subject)
		if err != nil {
			return nil, err
		}
		lines = append(lines, SessionLine{info, cmpOr(name, record.None)})
	}
	slices.SortFunc(lines, func(a, b SessionLine) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Hash, b.Hash)
	})
	return lines, nil
}

// SessionRevocation says which sessions end: exactly one of the two is set.
type SessionRevocation struct {
	Subject string `json:"subject,omitempty"` // pseudonym, as records name it
	Hash    string `json:"session,omitempty"` // keyed hash, as records name it
}

// decodeStrict reads one JSON object and no keys that it does not know.
func decodeStrict(body []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("more than one value")
	}
	return nil
}

// SessionsRevoked says how many have ended.
type SessionsRevoked struct {
	Count int `json:"count"`
}

// revokeSessions ends sessions. They have ended when it returns.
func (s *Server) revokeSessions(r *http.Request, who *admin.Caller, body []byte) (any, error) {
	var q SessionRevocation
	if err := decodeStrict(body, &q); err != nil {
		return nil, admin.Usage("request: " + err.Error())
	}
	if (q.Subject == "") == (q.Hash == "") {
		return nil, admin.Usage("name exactly one of subject and session")
	}
	kind, target := "subject", q.Subject
	if q.Hash != "" {
		kind, target = "session", q.Hash
	}
	if len(target) > 64 || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, admin.Usage("neither a pseudonym nor the hash of a session; gatebook session list shows both")
	}
	ctx := context.WithoutCancel(r.Context()) // once recorded it must be done
	n := 0
	err := admin.Act(ctx, s.book, who, record.Record{
		Kind: record.KindAdmin, Outcome: record.Success, Event: record.Event{Name: actSessionRevoke, Target: target, Cause: kind},
	}, func() (err error) {
		n, err = s.endSessions(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &SessionsRevoked{n}, nil
}

// endSessions ends those that are meant and says how many they were.
func (s *Server) endSessions(ctx context.Context, q SessionRevocation) (int, error) {
	var failed error
	n, err := s.guards.sessions.Revoke(ctx, func(i authn.SessionInfo) bool {
		if q.Hash != "" {
			return i.Hash == q.Hash
		}
		name, err := s.book.Pseudonym(i.Issuer + "|" + i.Subject)
		failed = errors.Join(failed, err)
		return err == nil && name != "" && name == q.Subject
	})
	return n, errors.Join(err, failed)
}
