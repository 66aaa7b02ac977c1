package project

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"strings"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// What pseudonyms are of. The same thing has the same pseudonym at a sink
// wherever it stands: the subject of a request and the target of its erasure.
const (
	fieldSubject    = "subject"
	fieldClientCert = "client_cert"
	fieldSession    = "session"
	fieldToken      = "token"
	fieldFamily     = "family"
)

// scratch is what one Append works with.
type scratch struct {
	rec    record.Record // what may leave
	erased bool          // personal fields were named and are no more
	mac    hash.Hash
	buf    []byte

	headers, claims []record.Pair
}

func newScratch(p *projection) *scratch {
	return &scratch{mac: hmac.New(sha256.New, p.key[:])}
}

// prepare makes of an entry the record that may leave.
func (s *scratch) prepare(p *projection, e *book.Entry) error {
	s.frame(p, e.Record)
	s.erased = false
	s.rec.Personal = record.Personal{}
	if !p.fields.any() {
		return nil
	}
	if e.Sealed != nil {
		switch {
		case e.Away():
			return fmt.Errorf("%w: %w: %w", ErrSealed, deliver.ErrNotNow, e.Sealed)
		case !e.Erased():
			return fmt.Errorf("%w: %w", ErrSealed, e.Sealed)
		}
		s.erased = true
		return nil
	}
	s.rec.Personal.Headers, s.rec.Personal.Claims = s.headers[:0], s.claims[:0]
	p.fields.keep(&s.rec.Personal, &e.Record.Personal, s.pseudonym)
	s.headers, s.claims = s.rec.Personal.Headers, s.rec.Personal.Claims
	return nil
}

// frame copies the frame with the pseudonyms of the sink.
func (s *scratch) frame(p *projection, r *record.Record) {
	s.rec = *r
	s.rec.Raw = record.Raw{}
	t := &s.rec
	t.Node = p.nodeOf(r)
	t.Subject = s.pseudonym(fieldSubject, cmp.Or(r.Subject, record.None))
	t.TLS.ClientCert = s.pseudonym(fieldClientCert, r.TLS.ClientCert)
	t.Event.Before = s.ifPseudonym(r.Event.Before)
	t.Event.After = s.ifPseudonym(r.Event.After)
	t.Event.Target = s.target(r)
	t.Op = cmp.Or(t.Op, record.None)
	t.Client.Prefix = cmp.Or(t.Client.Prefix, record.None)
}

// target is Event.Target without a pseudonym that other sinks would get too. It
// is told by what the act says it is about and, for acts that say nothing, by
// its form.
func (s *scratch) target(r *record.Record) string {
	target := r.Event.Target
	if target == "" {
		return ""
	}
	switch r.Kind {
	case record.KindAdmin, record.KindAccess, record.KindErasure, record.KindHold, record.KindRetention, record.KindAlert:
		switch c := r.Event.Cause; {
		case c == fieldSubject, c == fieldToken, c == fieldSession, c == fieldFamily:
			return s.pseudonym(c, target)
		case strings.HasSuffix(r.Event.Name, "_family"):
			return s.pseudonym(fieldFamily, target)
		}
	}
	return s.ifPseudonym(target)
}

// ifPseudonym replaces what has the form of a pseudonym or keyed hash of the
// book: 128 bits in base64url.
func (s *scratch) ifPseudonym(v string) string {
	if !pseudonymous(v) {
		return v
	}
	return s.pseudonym(fieldSubject, v)
}

const pseudonymLen = 22

func pseudonymous(v string) bool {
	if len(v) != pseudonymLen || strings.IndexByte("AQgw", v[pseudonymLen-1]) < 0 {
		return false
	}
	for i := range len(v) {
		c := v[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// pseudonym is the sink's own name for a value: HMAC-SHA-256 under its key of
// "sink|FIELD", a zero byte and the value, the first 128 bits. What is no value
// ("", none, _other) stays.
func (s *scratch) pseudonym(field, value string) string {
	if value == "" || value == record.None || value == record.Other {
		return value
	}
	s.buf = append(append(append(s.buf[:0], "sink|"...), field...), 0)
	s.buf = append(s.buf, value...)
	s.mac.Reset()
	s.mac.Write(s.buf)
	s.buf = s.mac.Sum(s.buf[:0])
	var out [pseudonymLen]byte
	base64.RawURLEncoding.Encode(out[:], s.buf[:16])
	return string(out[:])
}

// stubText is the longest text in a stub.
const stubText = 200

// prepareStub makes a record of what cannot be long.
func (s *scratch) prepareStub(p *projection, e *book.Entry) {
	r := e.Record
	s.erased = false
	s.frame(p, &record.Record{
		ID: r.ID, Time: r.Time, Kind: r.Kind, Outcome: r.Outcome, Node: short(r.Node), Op: short(r.Op), Method: short(r.Method),
		Status: r.Status, Subject: r.Subject, Authn: record.Authn{Method: short(r.Authn.Method)},
		Authz: record.Authz{Decision: short(r.Authz.Decision)}, Client: record.Client{Prefix: short(r.Client.Prefix)},
		Error: record.Error{Origin: short(r.Error.Origin), Reason: short(r.Error.Reason)}, Event: record.Event{Name: short(r.Event.Name)},
	})
}

// short is v if it is no longer than a stub may hold, else none.
func short(v string) string {
	if record.EscapedLen(v) > stubText {
		return record.None
	}
	return v
}
