package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/reason"
)

// What is wrong with a client certificate, as Error.Phase of the record says.
const (
	certAbsent     = "client_certificate" // none was shown
	certUnproven   = "proof"              // not readable, or shown without its key
	certRanOut     = "expired"
	certUnknown    = "unknown_authority"
	certPurpose    = "purpose" // not for client authentication
	certConstraint = "constraint"
	certOther      = "certificate"
	certRevoked    = "revoked"
	certNoList     = "crl_missing" // its authority has no list, though lists are configured
	certOldList    = "crl_expired"
)

// clientCertError is why a client's certificate, or its absence, is refused.
type clientCertError struct {
	reason  reason.Reason
	phase   string
	claimed string // whom it names; personal
}

func (e *clientCertError) Error() string { return "client certificate refused: " + e.phase }

// clientTrust is whose client certificates are taken. It is immutable.
type clientTrust struct {
	required    bool
	authorities []*x509.Certificate
	roots       *x509.CertPool // of those that no other of the file issued
	between     *x509.CertPool // of the others
	lists       map[string]revocations
	listed      bool // revocation lists are configured, so each issuer needs one
}

// revocations is one authority's list.
type revocations struct {
	issuer      *x509.Certificate
	serials     map[string]struct{}
	from, until time.Time
}

// newClientTrust reads the authorities and the lists; crl is nil if there are to
// be none.
func newClientTrust(required bool, ca, crl []byte) (*clientTrust, error) {
	authorities, err := config.ParseAuthorities(ca)
	if err != nil {
		return nil, err
	}
	t := &clientTrust{required: required, authorities: authorities, roots: x509.NewCertPool(), between: x509.NewCertPool(), lists: map[string]revocations{}}
	for _, c := range authorities {
		if issuedByAnother(c, authorities) {
			t.between.AddCert(c)
		} else {
			t.roots.AddCert(c)
		}
	}
	if t.roots.Equal(x509.NewCertPool()) {
		return nil, errors.New("no anchor: every authority was issued by another of them")
	}
	if crl == nil {
		return t, nil
	}
	t.listed = true
	lists, err := config.ParseRevocations(crl, authorities)
	if err != nil {
		return nil, err
	}
	for list, issuer := range lists {
		r := revocations{issuer: issuer, serials: make(map[string]struct{}, len(list.RevokedCertificateEntries)), from: list.ThisUpdate, until: list.NextUpdate}
		for i := range list.RevokedCertificateEntries {
			r.serials[string(list.RevokedCertificateEntries[i].SerialNumber.Bytes())] = struct{}{}
		}
		t.lists[authorityKey(issuer)] = r
	}
	return t, nil
}

// issuedByAnother reports an intermediate: were it an anchor itself, nobody could
// revoke it.
func issuedByAnother(c *x509.Certificate, all []*x509.Certificate) bool {
	return slices.ContainsFunc(all, func(o *x509.Certificate) bool {
		return authorityKey(o) != authorityKey(c) && c.CheckSignatureFrom(o) == nil
	})
}

// authorityKey is the same for all certificates of one authority.
func authorityKey(c *x509.Certificate) string {
	return string(c.RawSubject) + "\x00" + string(c.RawSubjectPublicKeyInfo)
}

// readClientTrust reads the files that a listener names and returns their
// content, too; nil if it asks for no certificates.
func readClientTrust(f tlsFiles) (t *clientTrust, content [][]byte, err error) {
	if !f.asks() {
		return nil, nil, nil
	}
	ca, err := os.ReadFile(string(f.clientCA))
	if err != nil {
		return nil, nil, err
	}
	content = append(content, ca)
	var crl []byte
	if f.crl != "" {
		if crl, err = config.ReadRevocations(f.crl); err != nil {
			return nil, nil, err
		}
		if len(crl) == 0 {
			return nil, nil, fmt.Errorf("%s is empty", f.crl)
		}
		content = append(content, crl)
	}
	if t, err = newClientTrust(f.auth == config.ClientAuthRequired, ca, crl); err != nil {
		err = fmt.Errorf("client certificates (%s): %w", strings.TrimSuffix(string(f.clientCA)+" "+string(f.crl), " "), err)
	}
	return t, content, err
}

// check refuses lists that would take no certificate now, and lists that know
// less than those in use.
func (t *clientTrust) check(now time.Time, inUse *clientTrust) error {
	if t == nil {
		return nil
	}
	for key, l := range t.lists {
		name := l.issuer.Subject.String()
		switch {
		case now.After(l.until):
			return fmt.Errorf("the revocation list of %q ran out on %s", name, day(l.until))
		case now.Before(l.from):
			return fmt.Errorf("the revocation list of %q is not valid before %s", name, day(l.from))
		}
		if inUse == nil {
			continue
		}
		if was, ok := inUse.lists[key]; ok && l.from.Before(was.from) {
			return fmt.Errorf("the revocation list of %q of %s is older than the one in use", name, day(l.from))
		}
	}
	return nil
}

// verify judges a chain as it was shown, the leaf first, and returns it as it
// was verified and until when the verdict holds at most. Expiry, purpose, name
// constraints and lengths of paths are the standard library's to check.
func (t *clientTrust) verify(shown []*x509.Certificate, now time.Time) (chain []*x509.Certificate, until time.Time, bad *clientCertError) {
	leaf := shown[0]
	refuse := func(phase string) *clientCertError {
		return &clientCertError{reason.TLSBadClientCert, phase, claimedBy(leaf)}
	}
	between := t.between
	if len(shown) > 1 {
		between = between.Clone()
		for _, c := range shown[1:] {
			between.AddCert(c)
		}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: t.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, until, refuse(whyNotVerified(err))
	}
	phase := ""
	for _, c := range chains {
		if phase = t.unrevoked(c, now); phase == "" {
			return c, t.holds(c), nil
		}
	}
	return nil, until, refuse(phase)
}

func whyNotVerified(err error) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return certRanOut
		case x509.IncompatibleUsage:
			return certPurpose
		case x509.CANotAuthorizedForThisName, x509.TooManyIntermediates, x509.NameConstraintsWithoutSANs, x509.UnconstrainedName,
			x509.TooManyConstraints, x509.CANotAuthorizedForExtKeyUsage, x509.NotAuthorizedToSign:
			return certConstraint
		}
		return certOther
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return certUnknown
	}
	return certOther
}

// unrevoked is empty if every certificate below the anchor is good by a current
// list of the one that issued it.
func (t *clientTrust) unrevoked(chain []*x509.Certificate, now time.Time) string {
	if !t.listed {
		return ""
	}
	for i, c := range chain[:len(chain)-1] {
		list, ok := t.lists[authorityKey(chain[i+1])]
		if !ok {
			return certNoList
		}
		if _, revoked := list.serials[string(c.SerialNumber.Bytes())]; revoked {
			return certRevoked
		}
		if now.After(list.until) || now.Before(list.from) {
			return certOldList
		}
	}
	return ""
}

// holds is when the first thing ends that the verdict on a chain rests on.
func (t *clientTrust) holds(chain []*x509.Certificate) time.Time {
	until := chain[0].NotAfter
	for i, c := range chain {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
		if i == 0 || !t.listed {
			continue
		}
		if l := t.lists[authorityKey(c)]; l.until.Before(until) {
			until = l.until
		}
	}
	return until
}

// maxClaimed bounds what a refused certificate can put into a record.
const maxClaimed = 512

// claimedBy is whom a certificate names, though nobody vouches for it.
func claimedBy(c *x509.Certificate) string {
	s := c.Subject.String()
	for _, u := range c.URIs {
		if s == "" {
			s = u.String()
		}
	}
	if len(s) > maxClaimed {
		s = strings.ToValidUTF8(s[:maxClaimed], "")
	}
	return s
}

// notes are what readiness says about authorities and lists.
func (t *clientTrust) notes(now time.Time) (out []string) {
	for _, c := range t.authorities {
		switch stateOf(c, now) {
		case certExpired:
			out = append(out, fmt.Sprintf("the authority %q of client certificates expired on %s", c.Subject.String(), day(c.NotAfter)))
		case certExpiring:
			out = append(out, fmt.Sprintf("the authority %q of client certificates expires on %s", c.Subject.String(), day(c.NotAfter)))
		}
	}
	for _, l := range t.lists {
		switch left := l.until.Sub(now); {
		case left < 0:
			out = append(out, fmt.Sprintf("no client certificate of %q is taken: its revocation list ran out on %s", l.issuer.Subject.String(), day(l.until)))
		case left < l.until.Sub(l.from)/5:
			out = append(out, fmt.Sprintf("the revocation list of %q runs out on %s", l.issuer.Subject.String(), day(l.until)))
		}
	}
	slices.Sort(out)
	return out
}

// standing is how the client of one connection stands with the listener. It
// holds what the handshake found and judges again when that no longer counts.
type standing struct {
	store *certStore
	shown []*x509.Certificate // leaf first; nil if none
	good  atomic.Pointer[verdict]
}

// verdict is what was found by whom, and how long that holds.
type verdict struct {
	trust *clientTrust
	chain []*x509.Certificate
	until time.Time
}

// judge is done in the handshake, a resumed one included.
func (s *standing) judge(trust *clientTrust, shown []*x509.Certificate, now time.Time) error {
	s.shown = shown
	if len(shown) == 0 {
		if trust.required {
			return &clientCertError{reason: reason.TLSNoClientCert, phase: certAbsent}
		}
		s.good.Store(&verdict{trust: trust})
		return nil
	}
	chain, until, bad := trust.verify(shown, now)
	if bad != nil {
		return bad
	}
	s.good.Store(&verdict{trust, chain, until})
	return nil
}

// still implements canon.TLS.Still: two loads and two comparisons as long as
// nothing has changed.
func (s *standing) still(now time.Time) string {
	trust, good := s.store.now.Load().trust, s.good.Load()
	if trust == good.trust && (good.chain == nil || !now.After(good.until)) {
		return ""
	}
	switch {
	case trust == nil && len(s.shown) == 0:
		s.good.Store(&verdict{})
		return ""
	case trust == nil:
		return string(reason.TLSBadClientCert) // nobody vouches for it any more
	}
	if err := s.judge(trust, s.shown, now); err != nil {
		if bad, ok := errors.AsType[*clientCertError](err); ok {
			return string(bad.reason)
		}
		return string(reason.TLSBadClientCert)
	}
	return ""
}

// ask makes a listener's configuration ask for certificates. Tickets are of this
// set only: a session of other authorities, lists or listeners is not resumed,
// and its client shows its certificate again.
func (t *clientTrust) ask(c *tls.Config) {
	c.ClientAuth = tls.RequestClientCert
	if t.required {
		c.ClientAuth = tls.RequireAnyClientCert
	}
	c.ClientCAs = x509.NewCertPool() // a hint for the client; verify judges
	for _, a := range t.authorities {
		c.ClientCAs.AddCert(a)
	}
	c.WrapSession, c.UnwrapSession = c.EncryptTicket, c.DecryptTicket
}
