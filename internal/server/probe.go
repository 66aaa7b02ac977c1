package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Probed is what was found of an issuer.
type Probed struct {
	Name          string   `json:"name"`
	Keys          int      `json:"keys"`              // usable
	Refused       []string `json:"refused,omitempty"` // keys that would not be used, and why
	Introspection bool     `json:"introspection"`     // it answers
	Sample        bool     `json:"sample"`            // the sample token would be taken
}

// Probe asks the issuers of a configuration for their metadata and keys, and
// where tokens are introspected for an answer, and tries a sample token, if
// there is one. It says what would be refused and which line of the file is to
// be changed. The sample goes nowhere but to an issuer that introspects it.
func Probe(ctx context.Context, f *config.File, sample string) ([]Probed, *config.Problems) {
	p := &prober{f: f, found: f.NewFindings(), sample: strings.TrimSpace(sample)}
	for i := range f.Issuers {
		p.issuer(ctx, i)
	}
	p.judgeSample()
	return p.out, p.found.Problems()
}

type prober struct {
	f      *config.File
	found  *config.Findings
	sample string
	out    []Probed

	opaque, taken bool     // the sample is no JWT; an issuer takes it
	others        []string // paths of issuers of which the sample is not
	of            string   // issuer that the sample names
}

func (p *prober) issuer(ctx context.Context, i int) {
	c, path := &p.f.Issuers[i], fmt.Sprintf("issuers[%d]", i)
	out := Probed{Name: c.Name}
	defer func() { p.out = append(p.out, out) }()
	j, err := buildIssuer(c, nil, nil, authn.NewCache(0), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		p.found.Add(path, err.Error(), "see docs/configure.md")
		return
	}
	signed := p.f.Signed(c.Name)
	if signed {
		p.keys(ctx, j, c, path, &out)
	}
	p.introspection(ctx, c, path, &out)
	if p.sample == "" {
		return
	}
	look := j.Look(p.sample)
	switch {
	case !look.JWT:
		p.opaque = true
	case look.Issuer != c.Issuer:
		p.of, p.others = look.Issuer, append(p.others, path+".issuer")
	case signed && out.Keys > 0:
		p.trySample(ctx, j, c, path, &look, &out)
	}
}

func (p *prober) keys(ctx context.Context, j *authn.JWT, c *config.Issuer, path string, out *Probed) {
	source := path + ".issuer"
	if c.JWKS != nil {
		source = path + ".jwks"
	}
	if err := j.Load(ctx); err != nil {
		p.unreachable(err, c, path, source)
		return
	}
	st := j.Status()
	out.Keys, out.Refused = st.KIDs, st.Refused
	named := false
	for _, why := range st.Refused { // but for those for encryption and the like: nothing is wrong with them
		switch {
		case strings.Contains(why, "no configured algorithm fits"):
			named = true
			p.found.Add(path+".algorithms", "a key of the issuer fits none of the algorithms ("+why+")", "add what the issuer signs with, if tokens signed with that key should be taken")
		case strings.Contains(why, "private or symmetric"):
			named = true
			p.found.Add(source, "the issuer publishes a secret ("+why+")", "tell whoever runs it: anybody can make its tokens until it is replaced")
		}
	}
	if st.KIDs == 0 && !named {
		p.found.Add(source, "the issuer has no key that can be used: "+strings.Join(st.Refused, "; "), "every token would be refused (token_key_unknown)")
	}
}

// unreachable says what to change when nothing was got.
func (p *prober) unreachable(err error, c *config.Issuer, path, source string) {
	var other *authn.IssuerMismatch
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &other):
		p.found.Add(path+".issuer", "the issuer calls itself "+config.Quote(other.Found)+", not "+config.Quote(c.Issuer), "write it exactly as it does: tokens name it so, and all others are refused (token_issuer)")
	case errors.As(err, &authority):
		p.found.Add(path+".ca", "the certificate of the issuer is of no authority that is trusted here: "+err.Error(), "name the authority's PEM file in ca")
	case errors.As(err, &name):
		p.found.Add(source, "the certificate of the issuer is for another name: "+err.Error(), "use the name that it is for")
	default:
		p.found.Add(source, "what is needed cannot be got: "+err.Error(), "every token would be refused (issuer_unavailable)")
	}
}

func (p *prober) introspection(ctx context.Context, c *config.Issuer, path string, out *Probed) {
	if c.Introspection == nil {
		return
	}
	path += ".introspection"
	conf, err := introspection(c, [32]byte{})
	if err != nil {
		p.found.Add(path, err.Error(), "see docs/configure.md")
		return
	}
	conf.Token = tokenRules(c, nil)
	in, err := authn.NewIntrospector(*conf)
	if err != nil {
		p.found.Add(path, err.Error(), "see docs/configure.md")
		return
	}
	if err := in.Probe(ctx); err != nil {
		where, hint := path+".url", "every token would be refused (issuer_unavailable)"
		if strings.Contains(err.Error(), "answered 401") || strings.Contains(err.Error(), "answered 400") {
			where, hint = path+".client_id", "check client_id, the secret or key, and auth: the issuer does not know this gate"
		}
		p.found.Add(where, "no answer about a token: "+err.Error(), hint)
		return
	}
	out.Introspection = true
	if p.sample == "" {
		return
	}
	_, err = in.Authenticate(ctx, bearerOf(p.sample))
	var f *authn.Failure
	switch {
	case err == nil:
		out.Sample, p.taken = true, true
	case errors.As(err, &f) && f.Reason != reason.TokenInactive && f.Reason != reason.TokenIssuer:
		p.found.Add(path, "the sample token would be refused ("+string(f.Reason)+"): "+f.Detail, "look at what the endpoint answers, and at audiences and preset of the issuer")
	}
}

func bearerOf(token string) *canon.Request {
	return &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: "Bearer " + token}}}
}

// trySample judges a token of the issuer, and by what other preset it would be
// taken.
func (p *prober) trySample(ctx context.Context, j *authn.JWT, c *config.Issuer, path string, look *authn.Sample, out *Probed) {
	_, err := j.Authenticate(ctx, bearerOf(p.sample))
	if err == nil {
		out.Sample, p.taken = true, true
		return
	}
	p.taken = true // it has found its issuer, which says no
	var f *authn.Failure
	if !errors.As(err, &f) {
		p.found.Add(path, "the sample token would be refused: "+err.Error(), "see docs/operate.md")
		return
	}
	where, hint := sampleAdvice(f.Reason, look)
	switch f.Reason {
	case reason.TokenType, reason.TokenMalformed, reason.TokenAlgorithm, reason.TokenAudience: // what presets differ in
		if others := p.presetsThatTake(ctx, c); len(others) > 0 && !slices.Contains(others, c.Preset) {
			where, hint = "preset", "it would be taken with preset: "+strings.Join(others, " or ")
		}
	}
	p.found.Add(path+"."+where, "the sample token would be refused ("+string(f.Reason)+"): "+f.Detail, hint)
}

// presetsThatTake are those with which, and with nothing set beside them, the
// sample would be taken.
func (p *prober) presetsThatTake(ctx context.Context, c *config.Issuer) (names []string) {
	for _, name := range config.Presets() {
		j, err := buildIssuer(c.WithPreset(name), nil, nil, authn.NewCache(0), nil, slog.New(slog.DiscardHandler))
		if err != nil {
			continue
		}
		if _, err := j.Authenticate(ctx, bearerOf(p.sample)); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// sampleAdvice is the key that decides about a reason, and what to write there.
func sampleAdvice(r reason.Reason, look *authn.Sample) (key, hint string) {
	switch r {
	case reason.TokenAudience:
		all := make([]string, len(look.Audiences))
		for i, a := range look.Audiences {
			all[i] = config.Quote(a)
		}
		if len(all) == 0 {
			return "audiences", "the token names no audience: let the issuer put one in for this API"
		}
		return "audiences", "the token is for " + strings.Join(all, ", ") + ": add the one that means this API, or let the issuer put it in"
	case reason.TokenAlgorithm:
		return "algorithms", "the token is signed with " + config.Quote(look.Alg)
	case reason.TokenType:
		if look.Type == "" {
			return "types", "the token has no typ header; if it is an access token, write absent"
		}
		return "types", "the token's typ header is " + config.Quote(look.Type) + "; ID tokens are refused whatever is written here"
	case reason.TokenKeyUnknown, reason.TokenSignature:
		return "jwks", "the token is of key " + config.Quote(look.KID) + "; look whether these are the keys of the server that made it"
	case reason.TokenLifetimeExceeded:
		return "max_lifetime", "the token lives " + look.Lifetime.String() + "; let the issuer shorten that, or allow it"
	case reason.TokenNotYet:
		return "skew", "set the clocks right, here and at the issuer; skew allows for up to a minute"
	case reason.TokenExpired:
		return "name", "take a fresh token"
	case reason.BindingRequired:
		return "name", "the token is bound to a key and needs routes that check the proof"
	}
	return "preset", "compare the token with what docs/configure.md says of the preset"
}

// judgeSample says what became of a sample that no issuer has taken up.
func (p *prober) judgeSample() {
	if p.sample == "" || p.taken || slices.ContainsFunc(p.out, func(o Probed) bool { return o.Sample }) {
		return
	}
	switch {
	case len(p.f.Issuers) == 0:
		p.found.Add("issuers", "there is no issuer whose token the sample could be", "add one")
	case p.opaque:
		p.found.Add("issuers", "the sample token is no JWT, and no issuer that is asked calls it active", "give its issuer an introspection, or let it issue JWTs")
	default:
		for _, path := range p.others {
			p.found.Add(path, "the sample token is of the issuer "+config.Quote(p.of), "write it exactly so if this is meant (token_issuer)")
		}
	}
}
