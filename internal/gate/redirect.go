package gate

import (
	"context"
	"net/http"
	"strings"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// Redirect takes one exchange of a listener that serves nothing: it sends the
// client to the https form of what it asked for. Like one of Serve it has
// exactly one record, and no answer without it. No route, limit or upstream has
// a part in it, and it is no refusal, so it never folds.
func (g *Gate) Redirect(ctx context.Context, ex Exchange) {
	x := g.begin(ctx, ex)
	defer x.finish()
	if x.canonical() && x.accepted() {
		x.redirect()
	}
}

// redirect answers 308, which keeps the method (RFC 9110 section 15.4.9), and
// ends the connection: the next request is to be made elsewhere. The target is
// made of the canonical request, so that nothing that the client wrote in
// another way comes back to it.
func (x *exchange) redirect() {
	x.phase = phaseRoute
	host := x.req.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	to := "https://" + host + x.req.Path
	if x.req.HasQuery {
		to += "?" + x.req.Query
	}
	x.own = ownAnswer{status: http.StatusPermanentRedirect, fields: []canon.Field{
		{Name: "x-request-id", Value: x.idText},
		{Name: "location", Value: to},
		{Name: "connection", Value: "close"},
	}}
	x.answer = answerOwn
}
