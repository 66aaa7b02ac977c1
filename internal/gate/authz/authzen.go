package authz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The forms of the OpenID AuthZEN Authorization API 1.0 (sections 5 and 6), as
// the gate asks outside decision points and answers others.
type (
	// ZenEntity is a subject or a resource.
	ZenEntity struct {
		Type       string          `json:"type"`
		ID         string          `json:"id"`
		Properties json.RawMessage `json:"properties,omitempty"`
	}
	// ZenAction is an action.
	ZenAction struct {
		Name       string          `json:"name"`
		Properties json.RawMessage `json:"properties,omitempty"`
	}
	// ZenEvaluation is a question, or in a list of them the part of it that the
	// defaults do not say.
	ZenEvaluation struct {
		Subject  *ZenEntity      `json:"subject,omitempty"`
		Action   *ZenAction      `json:"action,omitempty"`
		Resource *ZenEntity      `json:"resource,omitempty"`
		Context  json.RawMessage `json:"context,omitempty"`
	}
	// ZenEvaluations is a list of questions with defaults.
	ZenEvaluations struct {
		ZenEvaluation
		Evaluations []ZenEvaluation `json:"evaluations,omitempty"`
		Options     *ZenOptions     `json:"options,omitempty"`
	}
	// ZenOptions says when a list may end early.
	ZenOptions struct {
		Semantic string `json:"evaluations_semantic,omitempty"`
	}
	// ZenDecision is an answer.
	ZenDecision struct {
		Decision bool           `json:"decision"`
		Context  map[string]any `json:"context,omitempty"`
	}
)

// The semantics of a list (AuthZEN section 7.1.2).
const (
	ZenExecuteAll    = "execute_all"
	ZenDenyFirst     = "deny_on_first_deny"
	ZenPermitFirst   = "permit_on_first_permit"
	maxZenQuestions  = 100
	zenUser          = "user"
	zenAnonymous     = "anonymous"
	zenRoute         = "route"
	zenContextReason = "reason"
)

// zenSubject are the properties of a subject; the id is the subject itself.
type zenSubject struct {
	Issuer string            `json:"issuer"`
	Client string            `json:"client,omitempty"`
	Tenant string            `json:"tenant,omitempty"`
	Roles  []string          `json:"roles,omitempty"`
	Groups []string          `json:"groups,omitempty"`
	Scopes []string          `json:"scopes,omitempty"`
	Claims map[string]string `json:"claims,omitempty"`
}

// zenResource are the properties of a route.
type zenResource struct {
	Template string            `json:"template,omitempty"`
	Path     string            `json:"path,omitempty"`
	Params   map[string]string `json:"params,omitempty"`
}

// zenContext is the moment.
type zenContext struct {
	IP       netip.Addr          `json:"ip"`
	Time     time.Time           `json:"time"`
	TLS      string              `json:"tls,omitempty"`
	ACR      string              `json:"acr,omitempty"`
	AMR      []string            `json:"amr,omitempty"`
	AuthAge  int64               `json:"auth_age,omitempty"`
	BodySize *int64              `json:"body_size,omitempty"`
	Headers  map[string][]string `json:"headers,omitempty"`
}

// ParseZen reads one question or a list. Unknown members are ignored, as the
// specification wants, but a member that occurs twice is refused: two readers
// would see two questions.
func ParseZen(body []byte) (*ZenEvaluations, error) {
	if _, err := repeatedKey(string(body)); err != nil {
		return nil, err
	}
	var q ZenEvaluations
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, err
	}
	if len(q.Evaluations) > maxZenQuestions {
		return nil, fmt.Errorf("%d evaluations, at most %d are taken at once", len(q.Evaluations), maxZenQuestions)
	}
	if o := q.Options; o != nil && !slices.Contains([]string{"", ZenExecuteAll, ZenDenyFirst, ZenPermitFirst}, o.Semantic) {
		return nil, fmt.Errorf("evaluations_semantic %q is not known", o.Semantic)
	}
	return &q, nil
}

// Merge completes a question of a list by the defaults; a member that is there
// replaces the default as a whole.
func (q *ZenEvaluations) Merge(e *ZenEvaluation) *ZenEvaluation {
	out := *e
	if out.Subject == nil {
		out.Subject = q.Subject
	}
	if out.Action == nil {
		out.Action = q.Action
	}
	if out.Resource == nil {
		out.Resource = q.Resource
	}
	if out.Context == nil {
		out.Context = q.Context
	}
	return &out
}

// EvaluateZen decides a question. An error means that it is none: a part is
// missing or is not what the gate knows.
func (e *Engine) EvaluateZen(q *ZenEvaluation, now time.Time) (*Request, Decision, error) {
	r, err := e.zenRequest(q, now)
	if err != nil {
		return nil, Decision{}, err
	}
	return r, e.Decide(r), nil
}

func (e *Engine) zenRequest(q *ZenEvaluation, now time.Time) (*Request, error) {
	switch {
	case q.Subject == nil || q.Subject.Type == "" || q.Subject.ID == "":
		return nil, errors.New("subject with type and id is missing")
	case q.Action == nil || q.Action.Name == "":
		return nil, errors.New("action with name is missing")
	case q.Resource == nil || q.Resource.Type == "" || q.Resource.ID == "":
		return nil, errors.New("resource with type and id is missing")
	case !strings.EqualFold(q.Resource.Type, zenRoute):
		return nil, fmt.Errorf("resource type %q is not known; it is %q, with the name of a route as id", q.Resource.Type, zenRoute)
	}
	r := &Request{Now: now, RemoteIP: caseIP, BodySize: -1}
	if err := zenWho(q.Subject, r); err != nil {
		return nil, err
	}
	if err := e.zenWhat(q, r); err != nil {
		return nil, err
	}
	return r, zenWhen(q.Context, r)
}

func zenWho(s *ZenEntity, r *Request) error {
	switch {
	case strings.EqualFold(s.Type, zenAnonymous):
		return nil
	case !strings.EqualFold(s.Type, zenUser):
		return fmt.Errorf("subject type %q is not known; it is %q or %q", s.Type, zenUser, zenAnonymous)
	}
	var p zenSubject
	if err := unmarshalPart("subject.properties", s.Properties, &p); err != nil {
		return err
	}
	if p.Issuer == "" {
		return errors.New("subject.properties.issuer is missing; it is the configured name of the issuer")
	}
	r.Issuer, r.Subject, r.Client, r.Tenant = p.Issuer, s.ID, p.Client, p.Tenant
	r.Roles, r.Groups, r.Scopes, r.Claims = p.Roles, p.Groups, p.Scopes, p.Claims
	return nil
}

func (e *Engine) zenWhat(q *ZenEvaluation, r *Request) error {
	var p zenResource
	if err := unmarshalPart("resource.properties", q.Resource.Properties, &p); err != nil {
		return err
	}
	r.Route, r.Path = q.Resource.ID, p.Path
	var ok bool
	if r.Action, r.Method, ok = e.ActionOf(r.Route, q.Action.Name); !ok {
		return fmt.Errorf("route %q or its method %q is not configured", r.Route, q.Action.Name)
	}
	if p.Params == nil && p.Path != "" {
		if r.Params, ok = ParamsOf(e.TemplateOf(r.Route), p.Path); !ok {
			return errors.New("resource.properties.path does not match the route")
		}
		return nil
	}
	for name, v := range p.Params {
		r.Params = append(r.Params, Param{name, v})
	}
	return nil
}

func zenWhen(context json.RawMessage, r *Request) error {
	var c zenContext
	if err := unmarshalPart("context", context, &c); err != nil {
		return err
	}
	if c.AuthAge < 0 || c.AuthAge > maxAuthAge {
		return errors.New("context.auth_age is out of range")
	}
	r.TLSVersion, r.ACR, r.AMR, r.AuthAge = c.TLS, c.ACR, c.AMR, time.Duration(c.AuthAge)*time.Second
	if c.IP.IsValid() {
		r.RemoteIP = c.IP
	}
	if !c.Time.IsZero() {
		r.Now = c.Time
	}
	if c.BodySize != nil && *c.BodySize >= 0 {
		r.BodySize = *c.BodySize
	}
	if len(c.Headers) > 0 {
		r.Header = func(name string) []string { return c.Headers[name] }
	}
	return nil
}

func unmarshalPart(what string, raw json.RawMessage, to any) error {
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// zenQuestion writes a request as a question to an outside decision point.
func (r *Request) zenQuestion() ([]byte, error) {
	subject := &ZenEntity{Type: zenAnonymous, ID: zenAnonymous}
	var err error
	if r.Subject != "" {
		subject = &ZenEntity{Type: zenUser, ID: r.Subject}
		if subject.Properties, err = json.Marshal(zenSubject{r.Issuer, r.Client, r.Tenant, r.Roles, r.Groups, r.Scopes, r.Claims}); err != nil {
			return nil, err
		}
	}
	_, template, _ := strings.Cut(r.Action, " ")
	about := zenResource{Template: template, Path: r.Path, Params: make(map[string]string, len(r.Params))}
	for _, p := range r.Params {
		about.Params[p.Name] = p.Value
	}
	resource := &ZenEntity{Type: zenRoute, ID: r.Route}
	if resource.Properties, err = json.Marshal(about); err != nil {
		return nil, err
	}
	when := zenContext{IP: remoteIP(r), Time: r.Now.UTC(), TLS: tlsVersion(r), ACR: r.ACR, AMR: r.AMR, AuthAge: authAge(r)}
	if r.BodySize >= 0 {
		when.BodySize = &r.BodySize
	}
	context, err := json.Marshal(when)
	if err != nil {
		return nil, err
	}
	return json.Marshal(ZenEvaluation{Subject: subject, Action: &ZenAction{Name: r.Method}, Resource: resource, Context: context})
}

// parseZenDecision reads an answer strictly: exactly one object with a decision
// that is true or false.
func parseZenDecision(body []byte) (bool, error) {
	if _, err := repeatedKey(string(body)); err != nil {
		return false, err
	}
	var a struct {
		Decision *bool `json:"decision"`
	}
	dec := json.NewDecoder(strings.NewReader(string(body)))
	if err := dec.Decode(&a); err != nil {
		return false, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return false, errors.New("there is text after the answer")
	}
	if a.Decision == nil {
		return false, errors.New("the answer has no decision")
	}
	return *a.Decision, nil
}
