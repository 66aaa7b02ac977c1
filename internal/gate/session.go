package gate

import (
	"bytes"
	"context"
	"errors"
	"html/template"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Keeper is an Authenticator that may give the client a cookie, whatever
// becomes of the request. Keep is called in the place of Authenticate.
type Keeper interface {
	Authenticator
	Keep(ctx context.Context, r *canon.Request) (authn.Kept, error)
}

// ask asks one method.
func (x *exchange) ask(a Authenticator) (*authn.Principal, error) {
	k, ok := a.(Keeper)
	if !ok {
		return a.Authenticate(x.ctx, x.req)
	}
	kept, err := k.Keep(x.ctx, x.req)
	if kept.SetCookie != "" {
		x.cookie = kept.SetCookie
	}
	return kept.Principal, err
}

// addCookie adds the cookie that the client gets, and keeps caches from
// handing it to others.
func (x *exchange) addCookie(fields []canon.Field) []canon.Field {
	if x.cookie == "" {
		return fields
	}
	fields = slices.DeleteFunc(fields, func(f canon.Field) bool { return f.Name == "cache-control" || f.Name == "expires" })
	return append(fields, canon.Field{Name: "set-cookie", Value: x.cookie}, canon.Field{Name: "cache-control", Value: "no-store"})
}

// ownCookie reports a Set-Cookie of an upstream that would replace one of the
// gate's own. Browsers send a cookie without a name back as its value alone (RFC
// 6265bis section 5.8.3), where it reads like one that has the name.
func ownCookie(f *canon.Field) bool {
	if f.Name != "set-cookie" {
		return false
	}
	pair, _, _ := strings.Cut(f.Value, ";")
	for range 2 {
		name, value, more := strings.Cut(pair, "=")
		if name = strings.Trim(name, " \t"); name != "" || !more {
			return authn.OwnCookie(name)
		}
		pair = value
	}
	return false
}

// loginFor is where a browser goes that a page was refused to because nobody,
// or nobody well enough known, stands behind it; "" for whoever does not show
// pages: programs get 401.
func (x *exchange) loginFor(r reason.Reason) string {
	switch r {
	case reason.NoCredential, reason.SessionExpired, reason.StepupRequired, reason.TokenReuseDetected,
		reason.TokenRevoked, reason.TokenSignature, reason.TokenTooOld:
	default:
		return "" // another login would not mend it
	}
	if x.route == nil || x.rec.Authn.Method != record.None && x.rec.Authn.Method != "session" || !navigates(x.req) {
		return ""
	}
	for _, a := range x.route.Authenticators {
		s, ok := a.(*authn.Sessions)
		if !ok || !s.Here(x.req) {
			continue
		}
		if f := x.refusal; f != nil && r == reason.StepupRequired {
			return s.LoginURL(x.req, f.ACRValues, f.MaxAge)
		}
		return s.LoginURL(x.req, "", 0)
	}
	return ""
}

// navigates reports whether a browser asks for a page to show in a tab of its
// own (Fetch Metadata); without its word the media types that it takes tell.
func navigates(r *canon.Request) bool {
	if _, n := r.Get("authorization"); n > 0 || r.Method != http.MethodGet {
		return false
	}
	mode, modes := r.Get("sec-fetch-mode")
	dest, dests := r.Get("sec-fetch-dest")
	if modes > 0 || dests > 0 {
		return modes == 1 && mode == "navigate" && (dests == 0 || dests == 1 && dest == "document")
	}
	accept, _ := r.Get("accept")
	return strings.Contains(strings.ToLower(accept), "text/html")
}

// redirected is the answer that sends a browser to a login.
func (x *exchange) redirected(to string) ownAnswer {
	return ownAnswer{status: http.StatusFound, fields: x.addCookie([]canon.Field{
		{Name: "x-request-id", Value: x.idText}, {Name: "cache-control", Value: "no-store"}, {Name: "location", Value: to},
	})}
}

// What records call what sessions do.
const (
	eventLogin       = "session_login"
	eventLogout      = "session_logout"
	eventBackchannel = "session_backchannel_logout"
)

// Bounds of what the pages of sessions read, in bytes.
const (
	maxLogoutBody      = 1 << 10
	maxBackchannelBody = 16 << 10
)

// SessionRoutes are the gate's own pages of a host with sessions: login,
// callback, logout and back-channel logout. name is how their names begin.
func SessionRoutes(name, host string, listeners []string, s *authn.Sessions) []*Route {
	p := sessionPages{s}
	route := func(what, path string, most int64, respond func(context.Context, *Call) Answer, methods ...string) *Route {
		return &Route{
			Name: name + "." + what, Listeners: slices.Clone(listeners), Host: host, Path: path, Methods: methods,
			Public: true, Kind: record.KindSession, MaxBody: most,
			Responder: ResponderFunc(func(ctx context.Context, c *Call) Answer {
				if !s.Here(c.Request) {
					return Answer{Reason: reason.NoRoute}
				}
				return respond(ctx, c)
			}),
		}
	}
	return []*Route{
		route("login", authn.LoginPath, 1, p.login, http.MethodGet),
		route("callback", authn.CallbackPath, 1, p.callback, http.MethodGet),
		route("logout", authn.LogoutPath, maxLogoutBody, p.logout, http.MethodGet, http.MethodPost),
		route("backchannel", authn.BackchannelPath, maxBackchannelBody, p.backchannel, http.MethodPost),
	}
}

type sessionPages struct{ s *authn.Sessions }

// login sends the browser to the issuer.
func (p sessionPages) login(ctx context.Context, c *Call) Answer {
	if c.Request.Method == http.MethodHead {
		return Answer{Status: http.StatusOK, Fields: noStore()}
	}
	to, f := p.s.Begin(ctx, c.Request)
	if f != nil {
		return failed(c, f, nil)
	}
	return sent(http.StatusFound, to)
}

// callback takes the browser back from the issuer and begins a session.
func (p sessionPages) callback(ctx context.Context, c *Call) Answer {
	if c.Request.Method == http.MethodHead {
		return Answer{Status: http.StatusOK, Fields: noStore()} // a code is used by GET only
	}
	login, clear, f := p.s.Callback(ctx, c.Request)
	if f != nil {
		return failed(c, f, clear)
	}
	if !c.Identify(login.Principal) || !c.Mark() {
		return Answer{}
	}
	to, f := p.s.Establish(ctx, c.Request, login)
	if f != nil {
		return failed(c, f, clear)
	}
	c.Record.Event.Name, c.Record.Personal.Session = eventLogin, login.Principal.Session
	return sent(http.StatusFound, to)
}

// logout asks first: a link or an image must not end a session.
func (p sessionPages) logout(ctx context.Context, c *Call) Answer {
	if c.Request.Method != http.MethodPost {
		return page(c, http.StatusOK, view{Title: "Sign out", Text: "Do you want to sign out?", Post: authn.LogoutPath, Button: "Sign out"})
	}
	leaving, f := p.s.Leave(ctx, c.Request)
	if f != nil {
		return failed(c, f, nil)
	}
	if leaving.Principal != nil && (!c.Identify(leaving.Principal) || !c.Mark()) {
		return Answer{}
	}
	to, f := p.s.Logout(ctx, leaving)
	if f != nil {
		return failed(c, f, nil)
	}
	if leaving.Principal != nil {
		c.Record.Event.Name = eventLogout
	}
	if to.Location == "" {
		a := page(c, http.StatusOK, view{Title: "Signed out", Text: "You are signed out.", Link: authn.LoginPath, Button: "Sign in"})
		a.Fields = append(a.Fields, cookies(to.Cookies)...)
		return a
	}
	return sent(http.StatusSeeOther, to)
}

// backchannel ends sessions because the issuer says so.
func (p sessionPages) backchannel(ctx context.Context, c *Call) Answer {
	body, err := io.ReadAll(c.Body)
	if err != nil {
		return Answer{Reason: reason.MalformedRequest} // the gate has its own answer
	}
	ending, f := p.s.Backchannel(ctx, formOf(c.Request, body))
	if f == nil {
		if ending.Subject != "" {
			c.Record.Raw.IssuerSub, c.Record.Personal.Sub = p.s.Issuer()+"|"+ending.Subject, ending.Subject
		}
		c.Record.Authn.Issuer = p.s.Issuer()
		if !c.Mark() {
			return Answer{}
		}
		c.Record.Event = record.Event{Name: eventBackchannel}
		var n int
		n, f = p.s.End(ctx, ending)
		c.Record.Event.Count, c.Record.Event.Exact = int64(n), f == nil
	}
	if f != nil {
		if f.Reason.Status() >= 500 {
			return Answer{Failure: f}
		}
		return Answer{Status: http.StatusBadRequest, Failure: f, Fields: append(noStore(), canon.Field{Name: "content-type", Value: "application/json"}), Body: []byte(`{"error":"invalid_request"}` + "\n")}
	}
	return Answer{Status: http.StatusOK, Fields: noStore()}
}

// formOf is the body if it is a form, else nothing.
func formOf(r *canon.Request, body []byte) string {
	ct, n := r.Get("content-type")
	if kind, _, _ := strings.Cut(ct, ";"); n != 1 || !strings.EqualFold(strings.Trim(kind, " \t"), "application/x-www-form-urlencoded") {
		return ""
	}
	return string(body)
}

func noStore() []canon.Field {
	return []canon.Field{{Name: "cache-control", Value: "no-store"}, {Name: "x-content-type-options", Value: "nosniff"}}
}

func cookies(values []string) (fields []canon.Field) {
	for _, v := range values {
		fields = append(fields, canon.Field{Name: "set-cookie", Value: v})
	}
	return fields
}

// sent is a redirection. Codes and states stand in the addresses of these
// pages, so that no referrer may tell them.
func sent(status int, to *authn.Redirect) Answer {
	fields := append(noStore(), canon.Field{Name: "location", Value: to.Location}, canon.Field{Name: "referrer-policy", Value: "no-referrer"})
	return Answer{Status: status, Fields: append(fields, cookies(to.Cookies)...)}
}

// failed tells a person or a program that it did not go as asked; why exactly
// is for the record.
func failed(c *Call, f *authn.Failure, clear []string) Answer {
	if !navigates(c.Request) {
		return Answer{Failure: f, Status: f.Reason.Status(), Fields: append(append(noStore(), canon.Field{Name: "content-type", Value: "application/problem+json"}), cookies(clear)...), Body: appendProblem(nil, f.Reason, c.ID)}
	}
	a := page(c, f.Reason.Status(), view{Title: "Sign in", Text: "That did not work: " + f.Reason.Public() + ".", Link: authn.LoginPath, Button: "Try again"})
	a.Failure, a.Fields = f, append(a.Fields, cookies(clear)...)
	return a
}

// view is what a page shows.
type view struct{ Title, Text, Link, Post, Button, ID string }

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}}</title></head>
<body>
<h1>{{.Title}}</h1>
<p>{{.Text}}</p>
{{if .Post}}<form method="post" action="{{.Post}}"><button>{{.Button}}</button></form>
{{else if .Link}}<p><a href="{{.Link}}">{{.Button}}</a></p>
{{end}}<p><small>Request {{.ID}}</small></p>
</body>
</html>
`))

func page(c *Call, status int, v view) Answer {
	v.ID = c.ID
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, v); err != nil {
		panic(errors.New("gate: the page of a session cannot be made")) // the template fits its view
	}
	return Answer{Status: status, Body: b.Bytes(), Fields: append(noStore(),
		canon.Field{Name: "content-type", Value: "text/html; charset=utf-8"},
		canon.Field{Name: "content-security-policy", Value: "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"},
		canon.Field{Name: "referrer-policy", Value: "same-origin"},
	)}
}
