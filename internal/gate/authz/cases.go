package authz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gatebook/gatebook/internal/reason"
)

// Case is one test of a policy set. A test file holds a JSON array of them.
type Case struct {
	Name string `json:"name"`
	// Principal is who asks; absent means nobody.
	Principal CasePrincipal `json:"principal"`
	Route     string        `json:"route"`
	// Action defaults to the operation of Method on the route's template.
	Action  string            `json:"action"`
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Params  map[string]string `json:"params"`
	Context CaseContext       `json:"context"`

	// Expect is "allow" or "deny".
	Expect string `json:"expect"`
	// Reason, if given, must be the reason of the denial.
	Reason reason.Reason `json:"reason"`
	// Policies, if given, must be exactly the determining policies.
	Policies []string `json:"policies"`
}

// CasePrincipal is the identity in a Case.
type CasePrincipal struct {
	Issuer  string            `json:"issuer"`
	Subject string            `json:"subject"`
	Client  string            `json:"client"`
	Tenant  string            `json:"tenant"`
	Roles   []string          `json:"roles"`
	Groups  []string          `json:"groups"`
	Scopes  []string          `json:"scopes"`
	Claims  map[string]string `json:"claims"`
}

// CaseContext is the moment in a Case.
type CaseContext struct {
	IP      netip.Addr `json:"ip"`   // 192.0.2.1 unless given
	Time    time.Time  `json:"time"` // 2026-01-01T12:00:00Z unless given
	TLS     string     `json:"tls"`
	ACR     string     `json:"acr"`
	AMR     []string   `json:"amr"`
	AuthAge int64      `json:"auth_age"` // seconds; 0: unknown
	// BodySize in bytes; absent: unknown.
	BodySize *int64 `json:"body_size"`
	// Headers by name in lower case, each with its field lines.
	Headers map[string][]string `json:"headers"`
}

// What a case has unless it says otherwise.
var (
	caseIP   = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	caseTime = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
)

// maxAuthAge keeps a test's seconds within a time.Duration.
const maxAuthAge = int64(1<<63-1) / int64(time.Second)

// runTests loads the cases and refuses the set unless all pass.
func (e *Engine) runTests(name string) error {
	d, err := openDir(name)
	if err != nil {
		return fmt.Errorf("policy tests %s: %w", name, err)
	}
	defer d.root.Close()
	files, err := d.files(".json")
	if err != nil {
		return fmt.Errorf("policy tests %s: %w", name, err)
	}
	return e.test(files)
}

func (e *Engine) test(files []file) error {
	ran := 0
	var failed Problems
	probs, determined := e.eachCase(files, func(r Result) {
		ran++
		if r.Fault != "" {
			failed = append(failed, Problem{File: r.File, Message: fmt.Sprintf("case %q: %s", r.Name, r.Fault)})
		}
	})
	if ran > 0 {
		for _, p := range e.policies {
			if !determined[p.id] {
				e.untested = append(e.untested, p.id)
			}
		}
	}
	return append(probs, failed...).err()
}

// eachCase runs the cases of all files and hands out what became of each. It
// returns what is wrong with the files, and the policies that determined a case.
func (e *Engine) eachCase(files []file, fn func(Result)) (probs Problems, determined map[string]bool) {
	seen := map[string]string{}
	determined = map[string]bool{}
	for _, f := range files {
		cases, prob := parseCases(f)
		if prob != nil {
			probs = append(probs, *prob)
			continue
		}
		for i := range cases {
			c := &cases[i]
			if other, ok := seen[c.Name]; ok || c.Name == "" {
				msg := fmt.Sprintf("case %d has no name", i+1)
				if ok {
					msg = fmt.Sprintf("case %q has the name of one in %s", c.Name, other)
				}
				probs = append(probs, Problem{File: f.Name, Message: msg})
				continue
			}
			seen[c.Name] = f.Name
			d, fault := e.runCase(c)
			for _, id := range d.Policies {
				determined[id] = true
			}
			fn(Result{File: f.Name, Name: c.Name, Fault: fault, Decision: d})
		}
	}
	return probs, determined
}

// runCase decides a case and says in which way it failed, if it did.
func (e *Engine) runCase(c *Case) (Decision, string) {
	r, err := e.caseRequest(c)
	if err != nil {
		return Decision{}, err.Error()
	}
	d := e.Decide(r)
	got := "deny (" + string(d.Reason) + ")"
	if d.Allow {
		got = "allow"
	}
	got += " by " + list(d.Policies)
	if len(d.Errors) > 0 {
		got += "; " + strings.Join(d.Errors, "; ")
	}
	switch {
	case d.Allow != (c.Expect == "allow"):
		return d, fmt.Sprintf("expected %s, got %s", c.Expect, got)
	case c.Reason != "" && c.Reason != d.Reason:
		return d, fmt.Sprintf("expected reason %s, got %s", c.Reason, got)
	case c.Policies != nil && !slices.Equal(slices.Sorted(slices.Values(c.Policies)), slices.Clip(d.Policies)):
		return d, fmt.Sprintf("expected %s by %s, got %s", c.Expect, list(c.Policies), got)
	}
	return d, ""
}

func list(ids []string) string {
	if len(ids) == 0 {
		return "no policy"
	}
	return strings.Join(ids, ", ")
}

func (e *Engine) caseRequest(c *Case) (*Request, error) {
	if c.Expect != "allow" && c.Expect != "deny" {
		return nil, fmt.Errorf(`expect must be "allow" or "deny", not %q`, c.Expect)
	}
	rt := e.routes[c.Route]
	if rt == nil {
		return nil, fmt.Errorf("route %q is not configured", c.Route)
	}
	if c.Method == "" {
		return nil, errors.New("method is missing")
	}
	if c.Context.AuthAge < 0 || c.Context.AuthAge > maxAuthAge {
		return nil, fmt.Errorf("auth_age %d is out of range", c.Context.AuthAge)
	}
	r := &Request{
		Issuer: c.Principal.Issuer, Subject: c.Principal.Subject, Client: c.Principal.Client,
		Roles: c.Principal.Roles, Scopes: c.Principal.Scopes, Claims: c.Principal.Claims,
		Route: c.Route, Action: c.Action, Method: c.Method, Path: c.Path,
		ACR: c.Context.ACR, AMR: c.Context.AMR, AuthAge: time.Duration(c.Context.AuthAge) * time.Second,
		Tenant: c.Principal.Tenant, Groups: c.Principal.Groups, BodySize: -1,
		RemoteIP: c.Context.IP, TLSVersion: c.Context.TLS, Now: c.Context.Time,
	}
	if n := c.Context.BodySize; n != nil && *n >= 0 {
		r.BodySize = *n
	} else if n != nil {
		return nil, fmt.Errorf("body_size %d is negative", *n)
	}
	for h := range c.Context.Headers {
		if !validHeader(h) {
			return nil, fmt.Errorf("header %q: write the name of a header in lower case", h)
		}
	}
	if len(c.Context.Headers) > 0 {
		r.Header = func(name string) []string { return c.Context.Headers[name] }
	}
	if r.Action == "" {
		r.Action = c.Method + rt.suffix
	}
	if !r.RemoteIP.IsValid() {
		r.RemoteIP = caseIP
	}
	if r.Now.IsZero() {
		r.Now = caseTime
	}
	for _, name := range slices.Sorted(maps.Keys(c.Params)) {
		r.Params = append(r.Params, Param{name, c.Params[name]})
	}
	return r, nil
}

// parseCases decodes a test file strictly: unknown and repeated keys and
// anything after the array are errors.
func parseCases(f file) ([]Case, *Problem) {
	fault := func(offset int64, err error) *Problem {
		line, col := place(f.Text, int(min(offset, int64(len(f.Text)))))
		p := at(f.Name, f.Text, line, col, "%v", err)
		return &p
	}
	if offset, err := repeatedKey(f.Text); err != nil {
		return nil, fault(offset, err)
	}
	dec := json.NewDecoder(strings.NewReader(f.Text))
	dec.DisallowUnknownFields()
	var cases []Case
	if err := dec.Decode(&cases); err != nil {
		return nil, fault(faultOffset(f.Text, dec, err), err)
	}
	if rest := strings.TrimSpace(f.Text[dec.InputOffset():]); rest != "" {
		return nil, fault(dec.InputOffset(), errors.New("there is text after the array of cases"))
	}
	return cases, nil
}

// faultOffset is where in a JSON text the decoder's error lies, as far as it
// tells.
func faultOffset(text string, dec *json.Decoder, err error) int64 {
	var typ *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &typ):
		return typ.Offset
	case errors.As(err, &syntax):
		return max(syntax.Offset-1, 0)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return int64(len(text))
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if i := strings.Index(text, name); i >= 0 {
			return int64(i)
		}
	}
	return dec.InputOffset()
}

// repeatedKey walks the tokens of a JSON text for a key that occurs twice in
// one object; keys that differ only in case count as one, as in encoding/json.
func repeatedKey(text string) (int64, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	type level struct {
		keys map[string]bool // nil in an array
		key  bool            // the next token is a key
	}
	var stack []level
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return 0, nil
		}
		if err != nil {
			return faultOffset(text, dec, err), err
		}
		if len(stack) > 0 {
			top := &stack[len(stack)-1]
			if name, ok := tok.(string); ok && top.keys != nil && top.key {
				fold := folded(name)
				if top.keys[fold] {
					return dec.InputOffset(), fmt.Errorf("key %q occurs twice", name)
				}
				top.keys[fold], top.key = true, false
				continue
			}
			top.key = true
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, level{keys: map[string]bool{}, key: true})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
		}
	}
}

// folded is a name as encoding/json compares it with those of a struct: without
// regard to case, in which it also takes the long s and the Kelvin sign for
// letters.
func folded(name string) string {
	return strings.Map(func(c rune) rune {
		least := c
		for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}

// Report is what became of all cases of a directory.
type Report struct {
	Set      string   `json:"set"`
	Policies int      `json:"policies"`
	Failed   int      `json:"failed"`
	Untested []string `json:"never_determining"` // policies that determined no case
	Results  []Result `json:"results"`
}

// Result is what became of one case.
type Result struct {
	File     string   `json:"file"`
	Name     string   `json:"case"`
	Fault    string   `json:"fault,omitempty"` // empty if it passed
	Decision Decision `json:"-"`
}

// RunCases runs all cases of a directory and says what became of each. The
// error is about the files; a case that fails is none.
func (e *Engine) RunCases(dir string) (*Report, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, fmt.Errorf("policy tests %s: %w", dir, err)
	}
	defer d.root.Close()
	files, err := d.files(".json")
	if err != nil {
		return nil, fmt.Errorf("policy tests %s: %w", dir, err)
	}
	rep := &Report{Set: e.set, Policies: len(e.policies)}
	probs, determined := e.eachCase(files, func(r Result) { rep.Results = append(rep.Results, r) })
	if err := probs.err(); err != nil {
		return nil, err
	}
	for _, r := range rep.Results {
		if r.Fault != "" {
			rep.Failed++
		}
	}
	for _, p := range e.policies {
		if !determined[p.id] {
			rep.Untested = append(rep.Untested, p.id)
		}
	}
	return rep, nil
}

// ParseCase reads one case, without an expectation if need be, and makes its
// request.
func (e *Engine) ParseCase(text string) (*Request, error) {
	cases, prob := parseCases(file{"", "[" + text + "]"})
	if prob != nil {
		return nil, errors.New(prob.Message)
	}
	if len(cases) != 1 {
		return nil, fmt.Errorf("one case is wanted, not %d", len(cases))
	}
	if cases[0].Expect == "" {
		cases[0].Expect = "deny" // nobody compares
	}
	return e.caseRequest(&cases[0])
}
