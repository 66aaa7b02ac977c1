package server

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authz"
)

// Our decision endpoint, by AuthZEN 1.0 sections 6, 7 and 9. Each evaluation is
// a record of kind access: it tells the caller something and changes nothing.
const (
	zenEvaluation  = "/access/v1/evaluation"
	zenEvaluations = "/access/v1/evaluations"
	zenMetadata    = "/.well-known/authzen-configuration"
	actEvaluate    = "evaluate"
)

// zenCalls are the calls of the decision endpoint.
func (s *Server) zenCalls() []admin.Call {
	return []admin.Call{
		{Pattern: "POST " + zenEvaluation, Act: actEvaluate, Role: admin.Decide, Do: s.zenOne},
		{Pattern: "POST " + zenEvaluations, Act: actEvaluate, Role: admin.Decide, Do: s.zenMany},
		{Pattern: "GET " + zenMetadata, Act: "metadata", Role: admin.Decide, Do: s.zenDescribe},
	}
}

func zenProblem(err error) error {
	return &admin.Problem{Title: err.Error(), Status: http.StatusBadRequest, Code: 2}
}

// zenDescribe says where the endpoints are, as the caller has reached them: the
// listener admits only its own names as host.
func (s *Server) zenDescribe(r *http.Request, _ *admin.Caller, _ []byte) (any, error) {
	base := "https://" + r.Host
	if r.TLS == nil {
		base = "http://" + r.Host // the socket
	}
	return map[string]string{
		"policy_decision_point":       base,
		"access_evaluation_endpoint":  base + zenEvaluation,
		"access_evaluations_endpoint": base + zenEvaluations,
	}, nil
}

func (s *Server) zenOne(r *http.Request, who *admin.Caller, body []byte) (any, error) {
	q, err := zenParse(r, body)
	if err != nil {
		return nil, zenProblem(err)
	}
	return s.evaluate(r, who, &q.ZenEvaluation)
}

func zenParse(r *http.Request, body []byte) (*authz.ZenEvaluations, error) {
	typ, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !strings.EqualFold(strings.TrimSpace(typ), "application/json") {
		return nil, fmt.Errorf("the body must be application/json")
	}
	return authz.ParseZen(body)
}

// zenMany answers a list in its order. A question that is none is denied and
// says so; the others are answered all the same.
func (s *Server) zenMany(r *http.Request, who *admin.Caller, body []byte) (any, error) {
	q, err := zenParse(r, body)
	if err != nil {
		return nil, zenProblem(err)
	}
	if len(q.Evaluations) == 0 {
		return s.evaluate(r, who, &q.ZenEvaluation)
	}
	semantic := ""
	if q.Options != nil {
		semantic = q.Options.Semantic
	}
	out := []*authz.ZenDecision{}
	for i := range q.Evaluations {
		d, err := s.evaluate(r, who, q.Merge(&q.Evaluations[i]))
		if p, ok := err.(*admin.Problem); ok {
			d = &authz.ZenDecision{Context: map[string]any{"error": map[string]any{"status": p.Status, "message": p.Title}}}
		} else if err != nil {
			return nil, err // it could not be recorded
		}
		out = append(out, d)
		if semantic == authz.ZenDenyFirst && !d.Decision || semantic == authz.ZenPermitFirst && d.Decision {
			break
		}
	}
	return map[string]any{"evaluations": out}, nil
}

// evaluate decides and records, and only then tells. An outside decision point
// is not asked: it may be the caller.
func (s *Server) evaluate(r *http.Request, who *admin.Caller, q *authz.ZenEvaluation) (*authz.ZenDecision, error) {
	now := s.now.Load().parts
	asked, d, err := now.engine.EvaluateZen(q, time.Now())
	if err != nil {
		return nil, zenProblem(err)
	}
	rec := &record.Record{
		Kind: record.KindAccess, Outcome: record.Success, Snap: now.snapshot.ID(),
		Authz: record.Authz{Decision: decisionWord(d.Allow), Policies: d.Policies, Set: d.Set, Errors: len(d.Errors)},
		Event: record.Event{Name: actEvaluate, Target: asked.Route},
	}
	if err := admin.Note(r.Context(), s.book, who, rec); err != nil {
		return nil, err
	}
	out := &authz.ZenDecision{Decision: d.Allow}
	if !d.Allow {
		out.Context = map[string]any{"reason": string(d.Reason)}
	}
	return out, nil
}

// CheckPoints looks for what of a configuration's decision points cannot be.
func CheckPoints(f *config.File) error {
	for name, c := range f.Points {
		for _, pattern := range c.Routes {
			if !slices.ContainsFunc(f.Routes, func(r config.Route) bool { return routeIn(r.Name, pattern) }) {
				return fmt.Errorf("decision point %q: routes: %q names no route", name, pattern)
			}
		}
	}
	for i := range f.Routes {
		var of []string
		for name, c := range f.Points {
			if len(c.Routes) == 0 || slices.ContainsFunc(c.Routes, func(pattern string) bool { return routeIn(f.Routes[i].Name, pattern) }) {
				of = append(of, name)
			}
		}
		slices.Sort(of)
		if len(of) > 1 {
			return fmt.Errorf("route %q: it has the decision points %s; a route has one at most: narrow their routes", f.Routes[i].Name, strings.Join(of, " and "))
		}
	}
	return nil
}

// addPoints makes the outside decision points. They hold no state worth keeping,
// so a reload makes them anew.
func (p *parts) addPoints(f *config.File) error {
	if err := CheckPoints(f); err != nil {
		return err
	}
	for name, c := range f.Points {
		pc := authz.PointConfig{Name: name, URL: c.URL, Timeout: c.Timeout.Std(), Conns: c.Conns}
		if c.CA != "" {
			pool, err := loadPool(string(c.CA))
			if err != nil {
				return fmt.Errorf("decision point %q: %w", name, err)
			}
			pc.RootCAs = pool
		}
		if c.Token != "" {
			text, err := os.ReadFile(string(c.Token))
			if err != nil {
				return fmt.Errorf("decision point %q: %w", name, err)
			}
			if pc.Token = string(bytes.TrimSpace(text)); pc.Token == "" || strings.ContainsAny(pc.Token, " \r\n") {
				return fmt.Errorf("decision point %q: %s holds no token", name, c.Token)
			}
		}
		p.points[name] = authz.NewPoint(pc)
	}
	return nil
}

func routeIn(name, pattern string) bool {
	if group, wild := strings.CutSuffix(pattern, "*"); wild {
		return strings.HasPrefix(name, group)
	}
	return name == pattern
}

// authorizer is who decides about a route: the policies, with a decision point
// if there is one.
func (p *parts) authorizer(f *config.File, route string) gate.Authorizer {
	for name, c := range f.Points {
		if len(c.Routes) == 0 || slices.ContainsFunc(c.Routes, func(pattern string) bool { return routeIn(route, pattern) }) {
			return &authz.Both{Engine: p.engine, Point: p.points[name]}
		}
	}
	return p.engine
}
