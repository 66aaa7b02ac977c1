package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// metadataPath is where metadata of protected resources begin (RFC 9728
// section 3).
const metadataPath = "/.well-known/oauth-protected-resource"

// Resource is a protected resource as clients learn about it (RFC 9728 section
// 2).
type Resource struct {
	Identifier string   // the URL that clients use: host and path
	Servers    []string // issuer identifiers of the authorization servers
	Scopes     []string
	// DPoPAlgorithms, if any, are those of proofs that the resource takes.
	DPoPAlgorithms []string
}

// MetadataURL is where the metadata of the resource are: its path goes behind
// the well-known one (RFC 9728 section 3.1).
func (r *Resource) MetadataURL() (string, error) {
	u, err := r.url()
	if err != nil {
		return "", err
	}
	return u.Scheme + "://" + u.Host + metadataPath + strings.TrimSuffix(u.Path, "/"), nil
}

func (r *Resource) url() (*url.URL, error) {
	u, err := url.Parse(r.Identifier)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.EscapedPath() != u.Path {
		return nil, fmt.Errorf("resource %q is not a plain URL of host and path", r.Identifier)
	}
	return u, nil
}

// MetadataRoute is the route that serves the metadata on the listeners: to
// everybody, at exactly the identifier's host and port, so that nobody who asks
// at another address is told that it is this resource (RFC 9728 section 3.3).
func MetadataRoute(name string, listeners []string, r Resource) (*Route, error) {
	u, err := r.url()
	if err != nil {
		return nil, err
	}
	if len(r.Servers) == 0 {
		return nil, errors.New("a resource without authorization server")
	}
	body, err := json.Marshal(struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported,omitempty"`
		Methods  []string `json:"bearer_methods_supported"`
		DPoP     []string `json:"dpop_signing_alg_values_supported,omitempty"`
	}{r.Identifier, r.Servers, r.Scopes, []string{"header"}, r.DPoPAlgorithms})
	if err != nil {
		return nil, err
	}
	answer := Answer{Status: http.StatusOK, Body: body, Fields: []canon.Field{
		{Name: "content-type", Value: "application/json"},
		{Name: "cache-control", Value: "public, max-age=300"},
		{Name: "access-control-allow-origin", Value: "*"}, // clients in browsers read it before they have a token
		{Name: "x-content-type-options", Value: "nosniff"},
	}}
	authority := u.Host
	return &Route{
		Name: name, Listeners: slices.Clone(listeners), Host: strings.Trim(u.Hostname(), "[]"), Path: metadataPath + strings.TrimSuffix(u.Path, "/"),
		Methods: []string{http.MethodGet}, Public: true, MaxBody: 1,
		Responder: ResponderFunc(func(_ context.Context, c *Call) Answer {
			if c.Request.Authority != authority {
				return Answer{Reason: reason.NoRoute}
			}
			return answer
		}),
	}, nil
}
