package authn

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// The cookies of browser sessions. The prefix __Host- makes browsers keep them
// to one host over https and to the path / (RFC 6265bis section 4.1.3.2).
const (
	sessionCookie = "__Host-gatebook"
	loginCookies  = sessionCookie + "-login-" // and the login's own ending
	cookieFlags   = "; Path=/; Secure; HttpOnly; SameSite=Lax"
)

// OwnCookie reports whether a cookie of that name is the gate's: never sent
// upstream, never taken from there. Case does not count, as it does not for
// some readers.
func OwnCookie(name string) bool {
	n := len(sessionCookie)
	return len(name) >= n && strings.EqualFold(name[:n], sessionCookie) && (len(name) == n || name[n] == '-')
}

// StripCookies takes the gate's own cookies out of a Cookie field and leaves
// the others byte by byte; "" if none is left.
func StripCookies(v string) string {
	if !mayHoldOwn(v) {
		return v
	}
	var kept []string
	for pair := range strings.SplitSeq(v, ";") {
		name, _, _ := strings.Cut(pair, "=")
		if !OwnCookie(strings.Trim(name, " \t")) {
			kept = append(kept, pair)
		}
	}
	return strings.Trim(strings.Join(kept, ";"), " \t")
}

// mayHoldOwn spares almost every request the work.
func mayHoldOwn(v string) bool {
	n := len(sessionCookie)
	for i := 0; i+n <= len(v); i++ {
		if v[i] == '_' && strings.EqualFold(v[i:i+n], sessionCookie) {
			return true
		}
	}
	return false
}

// cookie is the value of a cookie of exactly that name. differ: there are
// several with different values.
func cookie(r *canon.Request, name string) (value string, found, differ bool) {
	eachCookie(r, func(n, v string) {
		if n != name {
			return
		}
		differ = differ || found && v != value
		value, found = v, true
	})
	return value, found, differ
}

func eachCookie(r *canon.Request, fn func(name, value string)) {
	for i := range r.Fields {
		if r.Fields[i].Name != "cookie" {
			continue
		}
		for pair := range strings.SplitSeq(r.Fields[i].Value, ";") {
			if name, value, ok := strings.Cut(strings.Trim(pair, " \t"), "="); ok {
				fn(name, value)
			}
		}
	}
}

func setCookie(name, value string) string { return name + "=" + value + cookieFlags }

func clearCookie(name string) string { return name + "=" + cookieFlags + "; Max-Age=0" }

// sessionKeys protect what browsers keep for us.
type sessionKeys struct {
	id   byte // of these keys, the first byte of what they seal
	mac  []byte
	aead cipher.AEAD
}

func newSessionKeys(secret [32]byte) (*sessionKeys, error) {
	expand := func(what string) []byte {
		k, err := hkdf.Expand(sha256.New, secret[:], "gatebook/v1/session "+what, 32)
		if err != nil {
			panic(err) // 32 bytes are never too many
		}
		return k
	}
	block, err := aes.NewCipher(expand("login"))
	if err != nil {
		return nil, err
	}
	k := &sessionKeys{id: expand("key id")[0], mac: expand("id")}
	k.aead, err = cipher.NewGCMWithRandomNonce(block)
	return k, err
}

// sessionFamily names a session from its login to its end.
type sessionFamily [16]byte

func newFamily() (f sessionFamily) {
	rand.Read(f[:])
	return f
}

func (f sessionFamily) String() string { return base64.RawURLEncoding.EncodeToString(f[:]) }

// A session's id is family, generation and the tag over both and the name of
// the configured session: whoever makes one up is found out without a look at
// the store, and an id that was replaced is still known for what it is.
const (
	tagLen       = 16
	sessionIDLen = len(sessionFamily{}) + 4 + tagLen // 36 bytes, 48 letters
)

func (k *sessionKeys) sessionID(name string, f sessionFamily, generation uint32) string {
	b := binary.BigEndian.AppendUint32(f[:len(f):len(f)], generation)
	return base64.RawURLEncoding.EncodeToString(append(b, k.tag(name, b)...))
}

func (k *sessionKeys) tag(name string, of []byte) []byte {
	m := hmac.New(sha256.New, k.mac)
	m.Write([]byte(name))
	m.Write([]byte{0})
	m.Write(of)
	return m.Sum(nil)[:tagLen]
}

// readSessionID takes an id apart, if it is one of ours.
func (k *sessionKeys) readSessionID(name, text string) (f sessionFamily, generation uint32, ok bool) {
	if len(text) != base64.RawURLEncoding.EncodedLen(sessionIDLen) || strings.ContainsAny(text, "\r\n") {
		return f, 0, false
	}
	b, err := strictURL.DecodeString(text)
	if err != nil {
		return f, 0, false
	}
	said := b[:sessionIDLen-tagLen]
	if !hmac.Equal(b[len(said):], k.tag(name, said)) {
		return f, 0, false
	}
	copy(f[:], said)
	return f, binary.BigEndian.Uint32(said[len(f):]), true
}

// loginTime is how long a login may take, from the redirection to the issuer
// to the way back.
const loginTime = 10 * time.Minute

// maxLogins is how many logins one browser may have under way; with more it
// starts over.
const maxLogins = 5

// loginState is what the gate must know again when the browser comes back. The
// browser keeps it, sealed, so that strangers who begin logins fill nothing.
type loginState struct {
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"`
	Return   string `json:"r"`
	Begun    int64  `json:"t"` // Unix seconds
	ACR      string `json:"a,omitempty"`
	MaxAge   int64  `json:"m,omitempty"` // seconds, 0: none was asked for
}

// loginCookie is where the login with this state is kept.
func loginCookie(state string) string {
	sum := sha256.Sum256([]byte(state))
	return loginCookies + base64.RawURLEncoding.EncodeToString(sum[:6])
}

// maxLoginCookie bounds the value of a login cookie, in bytes.
const maxLoginCookie = 3800

var errLoginState = errors.New("the login's state does not open")

func (k *sessionKeys) sealLogin(name string, l *loginState) (string, error) {
	plain, err := json.Marshal(l)
	if err != nil {
		return "", err
	}
	sealed := k.aead.Seal([]byte{k.id}, nil, plain, []byte(name+"\x00"+loginCookie(l.State)))
	text := base64.RawURLEncoding.EncodeToString(sealed)
	if len(text) > maxLoginCookie {
		return "", errors.New("the login's state does not fit into a cookie")
	}
	return text, nil
}

// openLogin opens what sealLogin made for the session of this name and the same
// state.
func (k *sessionKeys) openLogin(name, state, text string) (*loginState, error) {
	if len(text) > maxLoginCookie || strings.ContainsAny(text, "\r\n") {
		return nil, errLoginState
	}
	sealed, err := strictURL.DecodeString(text)
	if err != nil || len(sealed) < 2 || sealed[0] != k.id {
		return nil, errLoginState
	}
	plain, err := k.aead.Open(nil, nil, sealed[1:], []byte(name+"\x00"+loginCookie(state)))
	if err != nil {
		return nil, errLoginState
	}
	var l loginState
	if json.Unmarshal(plain, &l) != nil || l.State != state {
		return nil, errLoginState
	}
	return &l, nil
}
