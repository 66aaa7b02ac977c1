package gate

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// ConnFacts is what is known of a connection before any request on it. The
// accept loop fills it; once the connection is being served it is only read.
type ConnFacts struct {
	Listener        string // name, as in the snapshot
	Remote          netip.AddrPort
	TLS             *tls.ConnectionState // nil on plaintext and before the handshake has succeeded
	JA4             string               // of the ClientHello, if there was one
	OfferedVersions []uint16             // of the ClientHello, GREASE left out
	SNI             string               // of the ClientHello, as sent
	Start           time.Time            // when it was accepted

	// Seen is TLS in the form that all exchanges of the connection share. H1Conn
	// and H2Conn make it if it is nil.
	Seen *canon.TLS
	// Claimed is whom a refused client certificate names; personal.
	Claimed string

	watch exchangeWatch // set by H1Conn or H2Conn before the connection is served
}

// see makes Seen.
func (f *ConnFacts) see() {
	if f.Seen == nil && f.TLS != nil {
		f.Seen = canon.FromTLS(f.TLS)
	}
	if f.Seen != nil {
		f.Seen.JA4 = f.JA4
	}
}

// Scheme is that of the requests on the connection.
func (f *ConnFacts) Scheme() string {
	if f.TLS != nil {
		return "https"
	}
	return "http"
}

// proto names the protocol spoken on the connection as a record does.
func (f *ConnFacts) proto() string {
	if f.TLS != nil && f.TLS.NegotiatedProtocol == "h2" {
		return "HTTP/2"
	}
	return "HTTP/1.1"
}

// exchangeWatch is told of the exchanges that the engine runs on a connection.
// Both are called on the goroutine of ServeHTTP.
type exchangeWatch interface {
	begin(r *http.Request) // before anything is done
	end()                  // when ServeHTTP returns or panics
}

// watchedConn is a connection that knows its facts: what H1Conn and H2Conn
// return.
type watchedConn interface {
	net.Conn
	Facts() *ConnFacts
}

type factsKey struct{}

// ConnContext gives the exchanges of a connection from H1Conn or H2Conn its
// facts. It is meant for http.Server.ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if w, ok := c.(watchedConn); ok {
		return context.WithValue(ctx, factsKey{}, w.Facts())
	}
	return ctx
}

// factsOf returns what ConnContext kept, nil if the connection is not watched.
func factsOf(ctx context.Context) *ConnFacts {
	f, _ := ctx.Value(factsKey{}).(*ConnFacts)
	return f
}

// complete gives a request what net/http could not know behind H1Conn and
// H2Conn, which speak in the clear.
func (f *ConnFacts) complete(r *http.Request) {
	// The scheme that an HTTP/2 request names is in its URL if H2Conn found it
	// to be http; such a request stays without TLS and is refused.
	if f.TLS != nil && (r.ProtoMajor != 2 || r.URL.Scheme != "http") {
		r.TLS = f.TLS
	}
	if r.ProtoMajor == 1 && r.RequestURI != "" && r.RequestURI[0] != '/' && r.RequestURI != "*" {
		// Of an absolute-form target net/http hides the Host field. H1Conn has
		// found the two to be equal.
		if _, ok := f.watch.(*h1Conn); ok {
			r.Header["Host"] = []string{r.Host}
		}
	}
}
