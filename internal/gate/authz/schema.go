package authz

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
)

// The entity types that the gate makes.
const (
	typeUser       types.EntityType = "User"
	typeRole       types.EntityType = "Role"
	typeGroup      types.EntityType = "Group"
	typeClient     types.EntityType = "Client"
	typeAnonymous  types.EntityType = "Anonymous"
	typeRoute      types.EntityType = "Route"
	typeRouteGroup types.EntityType = "RouteGroup"
	typeAction     types.EntityType = "Action"
)

// attrTenant is the User attribute with the tenant.
const attrTenant = "tenant"

// The action groups: every method group is in one of the two.
const (
	groupSafe   = "safe"   // methods that are safe in the sense of RFC 9110 section 9.2.1
	groupUnsafe = "unsafe" // all others
)

const schemaHead = `// What a policy can rely on. The gate makes these entities for each request.

// A role that the credential carries.
entity Role;
// A group that the credential carries, where the issuer has a groups_claim.
entity Group;
// The OAuth client, "issuer|client".
entity Client;
// Whoever sends no credential, on routes that admit that: Anonymous::"anonymous".
entity Anonymous;
// The authenticated subject, "issuer|subject". A "|" or "\" in the issuer's name
// is written with a "\" before it. Tags are the claims that the route passes on.
entity User in [Role, Group] {
  issuer: String,
  sub: String,
  client?: Client,
  tenant?: String,
} tags String;
// "orders.read" is in RouteGroup::"orders".
entity RouteGroup;
entity Route in [RouteGroup];

`

const schemaContext = `    ip: ipaddr,            // the client's address
    time: datetime,        // now, UTC
    method: String,
    path: String,          // in normal form
    tls: String,           // "TLS 1.3"; "none" on plaintext
    acr: String,           // "" when the credential says nothing
    amr: Set<String>,
    scopes: Set<String>,
    auth_age?: Long,       // seconds since authentication, rounded up; absent when unknown
    body_size?: Long,      // bytes that the request declares; absent when it does not
`

// DefaultSchema is the schema that is used when none is given: the entity
// types and, for each operation of each route, an action with the parameters
// of its template.
func DefaultSchema(routes []Route) (string, error) {
	routes, probs := checkRoutes(routes)
	if len(probs) > 0 {
		return "", probs
	}
	return generateSchema(routes, nil), nil
}

// action is one operation that the generated schema declares. Routes on
// different hosts may share it.
type action struct {
	method, template string
	anonymous        bool
}

func generateSchema(routes []Route, headers []string) string {
	actions := map[string]action{}
	methods := map[string]bool{}
	for _, r := range routes {
		for _, m := range methodsOf(r) {
			name := Operation(m, r.Template)
			actions[name] = action{m, r.Template, r.Anonymous || actions[name].anonymous}
			methods[m] = true
		}
	}
	var b strings.Builder
	b.WriteString(schemaHead)
	fmt.Fprintf(&b, "action %q, %q;\n", groupSafe, groupUnsafe)
	for _, m := range slices.Sorted(maps.Keys(methods)) {
		fmt.Fprintf(&b, "action %q in [%q];\n", m, methodGroup(m))
	}
	for _, name := range slices.Sorted(maps.Keys(actions)) {
		a := actions[name]
		principals := "[User]"
		if a.anonymous {
			principals = "[User, Anonymous]"
		}
		fmt.Fprintf(&b, "\naction %s in [%q] appliesTo {\n  principal: %s,\n  resource: [Route],\n  context: {\n%s    params: {",
			quote(name), a.method, principals, schemaContext)
		params, _ := templateParams(a.template) // checked by checkRoutes
		for i, p := range params {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(quote(p) + ": String")
		}
		b.WriteString("},\n")
		writeHeaders(&b, headers)
		b.WriteString("  },\n};\n")
	}
	return b.String()
}

// writeHeaders declares the headers that policies may look at.
func writeHeaders(b *strings.Builder, headers []string) {
	if len(headers) == 0 {
		return
	}
	b.WriteString("    headers: {")
	for i, h := range headers {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(h) + ": Set<String>")
	}
	b.WriteString("}, // all values of each; empty when it was not sent\n")
}

// quote writes a Cedar string literal.
func quote(s string) string { return string(types.String(s).MarshalCedar()) }

func methodsOf(r Route) []string {
	if len(r.Methods) == 0 {
		return anyMethods
	}
	return r.Methods
}

func methodGroup(m string) string {
	switch m {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return groupSafe
	}
	return groupUnsafe
}

// ctxMask is a set of context attributes.
type ctxMask uint16

const (
	ctxIP ctxMask = 1 << iota
	ctxTime
	ctxMethod
	ctxPath
	ctxTLS
	ctxACR
	ctxAMR
	ctxScopes
	ctxAuthAge
	ctxParams
	ctxBodySize
	ctxHeaders

	ctxAll ctxMask = 1<<iota - 1
)

// ctxAttr is one context attribute that the gate can supply.
type ctxAttr struct {
	name     types.String
	bit      ctxMask
	typ      string // as typeName gives it
	optional bool   // may be absent, so a schema must say so
}

var ctxAttrs = []ctxAttr{
	{"ip", ctxIP, "ipaddr", false},
	{"time", ctxTime, "datetime", false},
	{"method", ctxMethod, "String", false},
	{"path", ctxPath, "String", false},
	{"tls", ctxTLS, "String", false},
	{"acr", ctxACR, "String", false},
	{"amr", ctxAMR, "Set<String>", false},
	{"scopes", ctxScopes, "Set<String>", false},
	{"auth_age", ctxAuthAge, "Long", true},
	{"params", ctxParams, "record", false},
	{"body_size", ctxBodySize, "Long", true},
	{"headers", ctxHeaders, "record", false},
}

// typeName names the types that the gate can supply.
func typeName(t resolved.IsType) string {
	switch t := t.(type) {
	case resolved.StringType:
		return "String"
	case resolved.LongType:
		return "Long"
	case resolved.BoolType:
		return "Bool"
	case resolved.ExtensionType:
		return string(t)
	case resolved.SetType:
		return "Set<" + typeName(t.Element) + ">"
	case resolved.RecordType:
		return "record"
	case resolved.EntityType:
		return string(t)
	}
	return "unknown"
}

// boundSchema is a schema for which it has been shown that the gate can supply
// everything that it declares, in the declared type. Requests therefore need
// no validation of their own: nothing is built that is not declared.
type boundSchema struct {
	text   string
	types  *resolved.Schema
	issuer bool              // User has the attribute
	sub    bool              // likewise
	client bool              // likewise
	tenant bool              // likewise
	groups bool              // a User is in Groups
	claims map[string]string // claim to the type of the User attribute of its name
	tags   bool              // User has claims as tags
}

// schemaPlace finds the position in a message of the schema parser.
var schemaPlace = regexp.MustCompile(`^.*?:(\d+):(\d+): `)

// bindSchema parses a schema and checks it against what the gate supplies.
func bindSchema(name, text string, routes []Route) (*boundSchema, Problems) {
	if off, deep := tooDeep(text); deep {
		line, col := place(text, off)
		return nil, Problems{at(name, text, line, col, "brackets are nested more than %d deep", maxDepth)}
	}
	var parsed schema.Schema
	parsed.SetFilename(name)
	if err := parsed.UnmarshalCedar([]byte(text)); err != nil {
		msg := err.Error()
		if m := schemaPlace.FindStringSubmatch(msg); m != nil {
			line, _ := strconv.Atoi(m[1])
			col, _ := strconv.Atoi(m[2])
			return nil, Problems{at(name, text, line, col, "%s", msg[len(m[0]):])}
		}
		return nil, Problems{{File: name, Message: msg}}
	}
	rs, err := parsed.Resolve()
	if err != nil {
		return nil, Problems{{File: name, Message: err.Error()}}
	}
	s := &boundSchema{text: text, types: rs, claims: map[string]string{}}
	var probs Problems
	bad := func(format string, args ...any) {
		probs = append(probs, Problem{File: name, Message: fmt.Sprintf(format, args...)})
	}
	s.bindEntities(bad)
	for _, r := range routes {
		for _, m := range methodsOf(r) {
			s.bindAction(r, Operation(m, r.Template), bad)
		}
	}
	slices.SortFunc(probs, func(a, b Problem) int { return strings.Compare(a.Message, b.Message) })
	return s, slices.CompactFunc(probs, func(a, b Problem) bool { return a == b })
}

// bindEntities checks the entity types.
func (s *boundSchema) bindEntities(bad func(string, ...any)) {
	for _, t := range []types.EntityType{typeRole, typeClient, typeAnonymous, typeRoute, typeRouteGroup} {
		ent, ok := s.types.Entities[t]
		if !ok {
			bad("must declare entity type %s", t)
			continue
		}
		for attr, def := range ent.Shape {
			if !def.Optional {
				bad("entity type %s declares attribute %q, which the gate cannot supply; remove it", t, attr)
			}
		}
	}
	if !slices.Contains(s.types.Entities[typeRoute].ParentTypes, typeRouteGroup) {
		bad("entity type Route must be in [RouteGroup]")
	}
	user, ok := s.types.Entities[typeUser]
	if !ok {
		bad("must declare entity type User")
		return
	}
	s.groups = slices.Contains(user.ParentTypes, typeGroup)
	for attr, def := range s.types.Entities[typeGroup].Shape {
		if !def.Optional {
			bad("entity type Group declares attribute %q, which the gate cannot supply; remove it", attr)
		}
	}
	if !slices.Contains(user.ParentTypes, typeRole) {
		bad("entity type User must be in [Role]")
	}
	if user.Tags != nil {
		if s.tags = typeName(user.Tags) == "String"; !s.tags {
			bad("tags of entity type User must be String: they are claims")
		}
	}
	for attr, def := range user.Shape {
		s.bindUserAttr(string(attr), typeName(def.Type), def.Optional, bad)
	}
}

func (s *boundSchema) bindUserAttr(attr, typ string, optional bool, bad func(string, ...any)) {
	want := "String"
	switch attr {
	case "issuer":
		s.issuer = true
	case "sub":
		s.sub = true
	case "client":
		s.client, want = true, string(typeClient)
		if !optional {
			bad("attribute client of entity type User must be optional (client?)")
		}
	case attrTenant:
		s.tenant = true
		if !optional {
			bad("attribute tenant of entity type User must be optional (tenant?)")
		}
	default:
		s.claims[attr] = typ
		if !optional {
			bad("attribute %s of entity type User is a claim and must be optional (%s?)", attr, attr)
		}
		if typ == "Long" || typ == "Bool" {
			return
		}
	}
	if typ != want {
		bad("attribute %s of entity type User is declared %s; the gate supplies %s", attr, typ, want)
	}
}

// bindAction checks one operation.
func (s *boundSchema) bindAction(r Route, name string, bad func(string, ...any)) {
	a, ok := s.types.Actions[types.NewEntityUID(typeAction, types.String(name))]
	if !ok {
		bad("must declare action %s of route %q", quote(name), r.Name)
		return
	}
	if a.AppliesTo == nil || !slices.Contains(a.AppliesTo.Principals, typeUser) || !slices.Contains(a.AppliesTo.Resources, typeRoute) {
		bad("action %s must apply to principal User and resource Route", quote(name))
		return
	}
	if r.Anonymous && !slices.Contains(a.AppliesTo.Principals, typeAnonymous) {
		bad("action %s must apply to principal Anonymous, because route %q admits requests without a credential", quote(name), r.Name)
	}
	for attr, def := range a.AppliesTo.Context {
		i := slices.IndexFunc(ctxAttrs, func(c ctxAttr) bool { return c.name == attr })
		if i < 0 {
			bad("context of action %s declares %q, which the gate does not supply", quote(name), attr)
			continue
		}
		known := ctxAttrs[i]
		if got := typeName(def.Type); got != known.typ {
			bad("context of action %s declares %s: %s; the gate supplies %s", quote(name), attr, got, known.typ)
		} else if known.optional && !def.Optional {
			bad("context of action %s must declare %s? as optional, because it is not always known", quote(name), attr)
		} else if rec, ok := def.Type.(resolved.RecordType); ok && known.bit == ctxHeaders {
			bindHeaders(name, rec, bad)
		} else if ok {
			s.bindParams(r, name, rec, bad)
		}
	}
}

// bindHeaders: a policy sees all values of a field, so that none can hide behind
// another one.
func bindHeaders(name string, rec resolved.RecordType, bad func(string, ...any)) {
	for attr, def := range rec {
		switch {
		case typeName(def.Type) != "Set<String>":
			bad("context of action %s declares headers.%s as %s; it is a Set<String> of all its values", quote(name), attr, typeName(def.Type))
		case !validHeader(string(attr)):
			bad("context of action %s declares headers[%q]; write the name of a header in lower case", quote(name), attr)
		}
	}
}

func (s *boundSchema) bindParams(r Route, name string, rec resolved.RecordType, bad func(string, ...any)) {
	params, _ := templateParams(r.Template) // checked by checkRoutes
	for attr, def := range rec {
		switch {
		case typeName(def.Type) != "String":
			bad("context of action %s declares params.%s as %s; it is a String", quote(name), attr, typeName(def.Type))
		case !def.Optional && !slices.Contains(params, string(attr)):
			bad("context of action %s declares params.%s, which is not in the template", quote(name), attr)
		}
	}
}
