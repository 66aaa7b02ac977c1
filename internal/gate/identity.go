package gate

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Identity is what a route tells its upstream about a request in a way that
// nobody else can: a JWT (RFC 7519) of the gate, in a field that only the gate
// sets, made for one request and bound to it. It is immutable.
type Identity struct {
	Field    string // name of the field, in lower case
	Issuer   string // iss
	Audience string // aud
	Lifetime time.Duration
	// BodyDigest is the longest body, in bytes, that the token is bound to. 0:
	// none is. Longer ones and those of unknown length are not, and the token
	// says so.
	BodyDigest int64
	Keys       *IdentityKeys
}

func (id *Identity) check() error {
	switch {
	case id.Field == "" || id.Field != strings.ToLower(id.Field):
		return errors.New("identity: the field must have a name in lower case")
	case id.Issuer == "" || id.Audience == "":
		return errors.New("identity: no issuer or audience")
	case id.Lifetime < time.Second || id.Lifetime > maxIdentityLife:
		return errors.New("identity: the lifetime is not from 1 s to 5 min")
	case id.BodyDigest < 0 || id.BodyDigest > maxBodyDigest:
		return errors.New("identity: bodies of up to 1 MiB can be bound")
	case id.Keys == nil:
		return errors.New("identity: no keys")
	}
	return nil
}

// Why a token is bound to no body, as its claim content_digest_absent says.
const (
	digestOff     = "off"            // the route does not ask for it
	digestTooLong = "too_long"       // longer than the route takes into memory
	digestUnknown = "unknown_length" // chunked, or HTTP/2 without a length
)

// maxIdentityLife and maxBodyDigest bound what a route can ask for.
const (
	maxIdentityLife = 5 * time.Minute
	maxBodyDigest   = 1 << 20
)

// prove gives the request the token. It may read the body for that, up to what
// the route allows; the upstream then gets it from memory.
func (x *exchange) prove() bool {
	id := x.route.Identity
	digest, absent, ok := x.bodyDigest(id)
	if !ok {
		return false
	}
	buf := tokens.Get().(*tokenBuffer)
	defer tokens.Put(buf)
	buf.claims = x.appendClaims(buf.claims[:0], id, digest, absent)
	token := id.Keys.sign(buf, x.start)
	x.fields = append(x.fields, canon.Field{Name: id.Field, Value: token})
	return true
}

// tokenBuffer is what a token is made in.
type tokenBuffer struct{ claims, token []byte }

var tokens = sync.Pool{New: func() any { return new(tokenBuffer) }}

// bodyDigest reads and digests the body, or says why there is no digest.
func (x *exchange) bodyDigest(id *Identity) (digest [sha256.Size]byte, absent string, ok bool) {
	n := x.req.ContentLength
	switch {
	case id.BodyDigest == 0:
		return digest, digestOff, true
	case n < 0:
		return digest, digestUnknown, true
	case n > id.BodyDigest:
		return digest, digestTooLong, true
	case n == 0:
		return sha256.Sum256(nil), "", true
	}
	whole := make([]byte, n)
	_, err := io.ReadFull(x.body, whole)
	if err == nil {
		// The end has to be seen, too, or the connection cannot go on.
		var more [1]byte
		if k, end := x.body.Read(more[:]); k > 0 || end != io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil {
		if x.ctx.Err() != nil {
			x.body.settle()
		}
		if r := x.body.failure(); r != "" {
			x.fail(r)
		} else {
			x.fail(reason.ClientAborted)
		}
		return digest, "", false
	}
	x.out.Body = bytes.NewReader(whole)
	return sha256.Sum256(whole), "", true
}

// appendClaims writes the claims. All that a decision may rest on is there in
// every token: what is absent is said to be.
func (x *exchange) appendClaims(b []byte, id *Identity, digest [sha256.Size]byte, absent string) []byte {
	text := func(name, value string) {
		b = append(append(append(b, `,"`...), name...), `":`...)
		b = appendJSON(b, value)
	}
	b = append(b, `{"iss":`...)
	b = appendJSON(b, id.Issuer)
	text("aud", id.Audience)
	b = strconv.AppendInt(append(b, `,"iat":`...), x.start.Unix(), 10)
	b = strconv.AppendInt(append(b, `,"exp":`...), x.start.Add(id.Lifetime).Unix(), 10)
	text("jti", x.idText)
	if p := x.principal; p != nil {
		// A subject is unique only together with its issuer.
		text("sub", x.rec.Raw.IssuerSub)
		text("idp", p.Issuer)
		text("user", p.Subject)
		text("method", p.Method)
		if p.Client != "" {
			text("client_id", p.Client)
		}
		b = append(b, `,"roles":[`...)
		for i, r := range p.Roles {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, r)
		}
		b = append(b, ']')
	} else {
		b = append(b, `,"anonymous":true`...)
	}
	text("route", x.route.Name)
	text("htm", x.out.Method)
	text("path", x.out.Path)
	query := sha256.Sum256([]byte(x.out.Query))
	b = appendDigest(append(b, `,"query_digest":`...), query)
	if absent != "" {
		text("content_digest_absent", absent)
	} else {
		b = appendDigest(append(b, `,"content_digest":`...), digest)
	}
	return append(b, '}')
}

// appendDigest writes a digest as the dictionary of RFC 9530 section 2 does.
func appendDigest(b []byte, sum [sha256.Size]byte) []byte {
	b = append(b, `"sha-256=:`...)
	b = base64.StdEncoding.AppendEncode(b, sum[:])
	return append(b, `:"`...)
}

// appendJSON writes a string of JSON (RFC 8259 section 7). Bytes that are no
// UTF-8 become U+FFFD.
func appendJSON(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		case r < 0x80:
			b = append(b, byte(r))
		default:
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}
