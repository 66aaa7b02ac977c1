package server

import (
	"slices"

	"github.com/gatebook/gatebook/internal/config"
)

// givenUp lists what protected something before and does not any more. The
// file says so plainly, so it is done; but nobody should find out by chance.
func givenUp(was, is *config.File) (warnings []string) {
	say := func(route, text string) { warnings = append(warnings, "route "+route+": "+text) }
	for i := range was.Routes {
		a := &was.Routes[i]
		at := slices.IndexFunc(is.Routes, func(r config.Route) bool { return r.Name == a.Name })
		if at < 0 {
			say(a.Name, "it is gone")
			continue
		}
		b := &is.Routes[at]
		switch {
		case !a.Public && b.Public:
			say(a.Name, "it is public now; nobody is asked who they are")
		case len(a.Scopes) > 0 && len(b.Scopes) == 0:
			say(a.Name, "it demands no scopes any more")
		}
		if len(a.Audiences) > 0 && len(b.Audiences) == 0 {
			say(a.Name, "it takes all audiences of its issuers")
		}
		if len(a.ACR) > 0 && len(b.ACR) == 0 || a.MaxAge > 0 && b.MaxAge == 0 || a.TokenMaxAge > 0 && b.TokenMaxAge == 0 {
			say(a.Name, "it demands less of the login or of the age of tokens")
		}
		if demandsBinding(a) && !demandsBinding(b) {
			say(a.Name, "it takes tokens that are bound to nothing")
		}
		if a.DPoPNonce && !b.DPoPNonce {
			say(a.Name, "proofs need no nonce any more")
		}
		if a.OneTime && !b.OneTime {
			say(a.Name, "a token can be used more than once")
		}
		if !a.PassCredential && b.PassCredential {
			say(a.Name, "it sends the caller's credentials on to the upstream")
		}
		if signedFor(was, a) && !signedFor(is, b) {
			say(a.Name, "its upstream gets no signed identity any more")
		}
		if len(a.Limits) > 0 && len(b.Limits) == 0 {
			say(a.Name, "it has no limits any more")
		}
		if a.Audit.OnFailure == config.OnFailureRefuse && b.Audit.OnFailure == config.OnFailureAllow {
			say(a.Name, "it answers even if the book cannot take the record")
		}
		if a.Audit.Intent == config.IntentAll && b.Audit.Intent != config.IntentAll {
			say(a.Name, "not every request is noted before the upstream is called")
		}
	}
	return append(warnings, lessClientAuth(was, is)...)
}

// lessClientAuth lists the listeners that ask clients for less than before.
func lessClientAuth(was, is *config.File) (warnings []string) {
	rank := []string{"", config.ClientAuthOff, config.ClientAuthOptional, config.ClientAuthRequired}
	for i := range was.Listen {
		a := &was.Listen[i]
		at := slices.IndexFunc(is.Listen, func(l config.Listener) bool { return l.Name == a.Name })
		if at < 0 || a.TLS == nil || is.Listen[at].TLS == nil {
			continue
		}
		b := &is.Listen[at]
		if slices.Index(rank, b.TLS.ClientAuth) < slices.Index(rank, a.TLS.ClientAuth) {
			warnings = append(warnings, "listener "+a.Name+": client_auth is "+b.TLS.ClientAuth+" now, and was "+a.TLS.ClientAuth)
		}
		if a.TLS.CRL != "" && b.TLS.CRL == "" && b.TLS.ClientCA != "" {
			warnings = append(warnings, "listener "+a.Name+": revoked client certificates are taken, since there is no crl any more")
		}
	}
	return warnings
}

func demandsBinding(r *config.Route) bool {
	return r.DPoP == config.BoundRequired || r.CertBound == config.BoundRequired
}
