package server

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/obs"
)

// guards are what watches over tokens from one configuration to the next: what
// was used once, what was revoked, and what is told of tokens that are used by
// several.
type guards struct {
	state   *kv.Local // beside the book
	slots   *authn.Slots
	revoked *authn.Revocations
	proofs  *authn.ReplaySet // of this node
	tokens  *authn.ReplaySet // of this node; unused with a shared store
	shared  *kv.Valkey       // nil: there is none

	sessions *authn.SessionStore // of browsers, on this node

	onceProof, onceToken authn.Once

	nonceKey [32]byte // unless the configuration names one
	alerts   chan authn.ReuseAlert
	missed   atomic.Uint64 // alerts for which there was no room
}

// maxAlerts is how many alerts may wait for their record.
const maxAlerts = 1024

// The table and key that say that a node has begun to remember: files that are
// missing after that are a loss and not a first start.
const replayTable, replayBegun = "replay", "begun"

// openGuards reads what was kept of before.
func openGuards(ctx context.Context, f *config.File, b *book.Book, state *kv.Local, log *slog.Logger) (_ *guards, err error) {
	g := &guards{state: state, slots: authn.NewSlots(f.Detect.Verifiers), revoked: authn.NewRevocations(state, nil), alerts: make(chan authn.ReuseAlert, maxAlerts)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if err := g.revoked.Load(ctx); err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	if g.sessions, err = openSessions(ctx, b, state, log); err != nil {
		return nil, err
	}
	secret, err := b.StateKey("replay")
	if err != nil {
		return nil, err
	}
	if g.nonceKey, err = b.StateKey("dpop nonce"); err != nil {
		return nil, err
	}
	if err := g.openSets(ctx, f, secret, state, log); err != nil {
		return nil, err
	}
	g.onceProof, g.onceToken = g.proofs, g.tokens
	if f.Valkey == nil {
		return g, nil
	}
	if g.shared, err = newValkey(f.Valkey, log); err != nil {
		return nil, fmt.Errorf("valkey: %w", err)
	}
	// Whether a proof was seen may be answered by this node alone when the store
	// is away; whether a token was used up may not (DESIGN section 6).
	g.onceProof = authn.NewSharedOnce(g.shared, g.shared.Secret(), g.proofs)
	g.onceToken = authn.NewSharedOnce(g.shared, g.shared.Secret(), nil)
	return g, nil
}

func (g *guards) openSets(ctx context.Context, f *config.File, secret [32]byte, state *kv.Local, log *slog.Logger) error {
	_, err := state.Get(ctx, replayTable, replayBegun)
	begun := err == nil
	if err != nil && !errors.Is(err, kv.ErrNotFound) {
		return fmt.Errorf("state: %w", err)
	}
	boot := bootID()
	for name, to := range map[string]**authn.ReplaySet{"proofs": &g.proofs, "tokens": &g.tokens} {
		path := filepath.Join(filepath.Dir(StatePath(f)), "replay-"+name)
		if *to, err = authn.OpenReplaySet(authn.ReplayConfig{Path: path, Begun: begun, Key: secret, Boot: boot}); err != nil {
			return err
		}
		if t := (*to).Forgets(); !t.IsZero() {
			log.Warn("what was used before the last stop may not be known; what was made before now is refused", "of", name)
		}
	}
	if begun {
		return nil
	}
	return state.Put(ctx, replayTable, replayBegun, []byte{1}, time.Time{})
}

// bootID names the boot of this machine (random(4)); "" where there is no such
// file, which makes every stop that was not clean count as a loss.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func newValkey(c *config.Valkey, log *slog.Logger) (*kv.Valkey, error) {
	out := kv.ValkeyConfig{
		Address: c.Address, Username: c.Username, DB: c.DB, Prefix: c.Prefix, Timeout: c.Timeout.Std(), Logger: log,
	}
	if c.Password != nil {
		var err error
		if out.Password, err = c.Password.Read(); err != nil {
			return nil, err
		}
	}
	if c.TLS == nil {
		return kv.NewValkey(out), nil
	}
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, err
	}
	out.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmpOr(c.TLS.ServerName, host)}
	if c.TLS.CA != "" {
		if out.TLS.RootCAs, err = loadPool(string(c.TLS.CA)); err != nil {
			return nil, err
		}
	}
	return kv.NewValkey(out), nil
}

// close lets go of the files; what is in them is complete.
func (g *guards) close() error {
	var errs []error
	for _, s := range []*authn.ReplaySet{g.proofs, g.tokens} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	if g.shared != nil {
		errs = append(errs, g.shared.Close())
	}
	return errors.Join(errs...)
}

// gauges are what is held and whether the shared store answers.
func (g *guards) gauges() []obs.Gauge {
	out := []obs.Gauge{
		{Name: "gatebook_replay_marks", Help: "Proofs and one-time tokens that this node remembers as used.", Labels: map[string]string{"of": "proofs"}, Read: func() float64 { return float64(g.proofs.Len()) }},
		{Name: "gatebook_replay_marks", Help: "Proofs and one-time tokens that this node remembers as used.", Labels: map[string]string{"of": "tokens"}, Read: func() float64 { return float64(g.tokens.Len()) }},
		{Name: "gatebook_revocations", Help: "Subjects, clients and tokens that are revoked.", Read: func() float64 { return float64(g.revoked.Len()) }},
		{Name: "gatebook_token_alerts_missed", Help: "Alerts about tokens used from too many places for which there was no room.", Read: func() float64 { return float64(g.missed.Load()) }},
	}
	if g.shared != nil {
		out = append(out, obs.Gauge{Name: "gatebook_shared_store_up", Help: "1 if the shared store answers.", Read: func() float64 {
			if g.shared.Up() {
				return 1
			}
			return 0
		}})
	}
	return out
}

// tell takes an alert, without waiting, unless there is no room.
func (g *guards) tell(a authn.ReuseAlert) bool {
	select {
	case g.alerts <- a:
		return true
	default:
		g.missed.Add(1)
		return false
	}
}

// eventReuse is what records call a token that is used by several.
const eventReuse = "authn_token_reuse"

// noteAlerts records alerts until ctx ends.
func (g *guards) noteAlerts(ctx context.Context, b *book.Book, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-g.alerts:
			cause := "observed"
			if a.Blocked {
				cause = "blocked"
			}
			r := &record.Record{
				Kind: record.KindAlert, Outcome: record.Failure, Authn: record.Authn{Method: record.None, Issuer: a.Issuer},
				Event: record.Event{Name: eventReuse, Count: int64(a.Places), Exact: true, First: a.At.UnixMicro(), Cause: cause},
			}
			r.Raw.IssuerSub = a.Issuer + "|" + a.Subject
			r.Personal.Sub, r.Personal.Token = a.Subject, b.TokenHash(a.Issuer, a.TokenID)
			if err := b.Note(context.WithoutCancel(ctx), r); err != nil {
				log.Error("a token is used from too many places; that could not be recorded", "issuer", a.Issuer, "err", err)
			}
		}
	}
}

// defaultProofAlgorithms are those that clients use.
func defaultProofAlgorithms() []string { return []string{"ES256", "EdDSA", "Ed25519"} }

// addBinding makes the judge of proofs and the watch over reuse.
func (p *parts) addBinding(f *config.File, prev *parts) (err error) {
	g := p.guards
	if len(f.DPoP.Origins) > 0 {
		algorithms := f.DPoP.Algorithms
		if len(algorithms) == 0 {
			algorithms = defaultProofAlgorithms()
		}
		if p.dpop, err = authn.NewDPoP(authn.DPoPConfig{
			Origins: f.DPoP.Origins, Algorithms: algorithms, MaxAge: f.DPoP.MaxAge.Std(), Ahead: f.DPoP.Ahead.Std(),
			Once: g.onceProof, Slots: g.slots,
		}); err != nil {
			return err
		}
		key := g.nonceKey
		if s := f.DPoP.NonceKey; s != nil {
			if key, err = nonceKey(s); err != nil {
				return fmt.Errorf("dpop.nonce_key: %w", err)
			}
		}
		p.nonces = authn.NewNonces(key, f.DPoP.NonceTime.Std())
		p.proofAlgorithms = strings.Join(algorithms, " ")
	}
	if f.Reuse.Places == 0 {
		return nil
	}
	print, err := f.Fingerprint(&f.Reuse)
	if err != nil {
		return err
	}
	p.prints[printReuse] = print
	if prev.reuse != nil && prev.prints[printReuse] == print {
		p.reuse = prev.reuse
		return nil
	}
	p.reuse = authn.NewReuse(authn.ReuseConfig{Places: f.Reuse.Places, Block: f.Reuse.Block, Revocations: g.revoked, Tell: g.tell})
	return nil
}

// nonceKey makes a key of a secret of any length.
func nonceKey(s *config.Secret) (key [32]byte, err error) {
	text, err := s.Read()
	if err != nil {
		return key, err
	}
	out, err := hkdf.Key(sha256.New, []byte(text), nil, "gatebook/v1/dpop nonce", len(key))
	copy(key[:], out)
	return key, err
}

// bind gives a route what it demands of tokens beyond who issued them. Using
// one up comes last, so that nobody uses up what would have been refused.
func (p *parts) bind(f *config.File, r *config.Route, out *gate.Route) {
	if out.Public {
		return
	}
	if r.DPoP != "" || r.CertBound != "" {
		b := &authn.Binding{
			Certificates: r.CertBound != "",
			Required:     r.DPoP == config.BoundRequired || r.CertBound == config.BoundRequired,
		}
		if r.DPoP != "" {
			b.DPoP = p.dpop
			out.Challenge.DPoP, out.Challenge.DPoPAlgorithms = gate.DPoPOptional, p.proofAlgorithms
			if r.DPoP == config.BoundRequired && r.CertBound != config.BoundRequired {
				out.Challenge.DPoP = gate.DPoPRequired
			}
		}
		if r.DPoPNonce {
			b.Nonces = p.nonces
		}
		out.Demands = append(out.Demands, b)
	}
	out.Demands = append(out.Demands, p.guards.revoked)
	if p.reuse != nil {
		out.Demands = append(out.Demands, p.reuse)
	}
	if r.OneTime {
		out.Demands = append(out.Demands, authn.NewOneTime(p.guards.onceToken, longestSkew(f)))
	}
}

func longestSkew(f *config.File) (d time.Duration) {
	for i := range f.Issuers {
		d = max(d, f.Issuers[i].Skew.Std())
	}
	return d
}
