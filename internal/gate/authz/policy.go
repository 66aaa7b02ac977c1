package authz

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// maxPolicies bounds a set; see maxFiles.
const maxPolicies = 20_000

// maxFaults is how many of the validator's messages are shown for one policy.
const maxFaults = 5

// idPattern: ids stand in records and are searched for.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)*$`)

// rolePrefix starts the ids of the policies made from the roles.
const rolePrefix = "role:"

// OutsidePrefix starts what stands among the determining policies for an
// outside decision point that was asked.
const OutsidePrefix = "pdp:"

// policy is one policy of the set.
type policy struct {
	id    string
	ids   []string // just id; what a decision with one determining policy returns
	pid   cedar.PolicyID
	full  *cedar.Policy // as written
	lean  *cedar.Policy // without its scope, for use where the scope is known to match
	needs ctxMask       // context attributes that its conditions can read
	reads reads         // all that its conditions can read
	// parents are the entities of its principal scope; empty: any principal
	parents []types.EntityUID
	file    string // "" for those made from roles
	line    int
	col     int
	text    string
}

// newPolicy prepares a policy for the index.
func newPolicy(id string, full *cedar.Policy) *policy {
	p := &policy{id: id, ids: []string{id}, pid: cedar.PolicyID(id), full: full}
	lean := xast.Policy(*full.AST())
	lean.Principal, lean.Action, lean.Resource = xast.ScopeTypeAll{}, xast.ScopeTypeAll{}, xast.ScopeTypeAll{}
	p.lean = cedar.NewPolicyFromAST((*ast.Policy)(&lean))
	for _, c := range lean.Conditions {
		p.needs |= contextReads(c.Body)
	}
	p.reads = readsOf(lean.Conditions, p.needs)
	p.parents = scopeParents(p)
	return p
}

// where names the policy in messages.
func (p *policy) where() string {
	if p.file == "" {
		return "policy " + p.id
	}
	return fmt.Sprintf("policy %s (%s:%d:%d)", p.id, p.file, p.line, p.col)
}

// contextReads finds the context attributes that an expression can read. A use
// of context other than context.x and context has x can read all of them.
func contextReads(body xast.IsNode) ctxMask {
	var needs ctxMask
	xast.Inspect(xast.NewNode(body), func(n xast.IsNode) bool {
		switch n := n.(type) {
		case xast.NodeTypeAccess:
			return contextAttr(n.StrOpNode, &needs)
		case xast.NodeTypeHas:
			return contextAttr(n.StrOpNode, &needs)
		case xast.NodeTypeVariable:
			if n.Name == "context" {
				needs = ctxAll
			}
		}
		return true
	})
	return needs
}

// contextAttr notes a read of one attribute of context; false means that the
// operand need not be looked into.
func contextAttr(n xast.StrOpNode, needs *ctxMask) bool {
	if v, ok := n.Arg.(xast.NodeTypeVariable); !ok || v.Name != "context" {
		return true
	}
	for _, a := range ctxAttrs {
		if a.name == n.Value {
			*needs |= a.bit
		}
	}
	return false
}

// parsePlace finds the position in a message of the policy parser or scanner.
var parsePlace = regexp.MustCompile(`^(?:parser error: )?(?:parse error at )?<input>:(\d+):(\d+):? (?:"(.*?)": )?`)

// parsePolicies parses the files of a bundle and checks the ids.
func parsePolicies(files []file) ([]*policy, Problems) {
	var out []*policy
	var probs Problems
	first := map[string]*policy{}
	for _, f := range files {
		list, prob := parseFile(f)
		if prob != nil {
			probs = append(probs, *prob)
			continue
		}
		for _, cp := range list {
			pos := cp.Position()
			id, ok := cp.Annotations()["id"]
			switch {
			case !ok:
				probs = append(probs, at(f.Name, f.Text, pos.Line, pos.Column, `the policy has no id; write @id("name") before it`))
				continue
			case !idPattern.MatchString(string(id)) || len(id) > 128:
				probs = append(probs, at(f.Name, f.Text, pos.Line, pos.Column,
					"id %q must be 1 to 128 of A-Z a-z 0-9 . _ / - : and start with a letter or digit", id))
				continue
			case strings.HasPrefix(string(id), OutsidePrefix):
				probs = append(probs, at(f.Name, f.Text, pos.Line, pos.Column, "id %q: %q is kept for outside decision points", id, OutsidePrefix))
				continue
			case strings.HasPrefix(string(id), rolePrefix):
				probs = append(probs, at(f.Name, f.Text, pos.Line, pos.Column, "id %q: %q is kept for policies made from roles", id, rolePrefix))
				continue
			}
			p := newPolicy(string(id), cp)
			p.file, p.line, p.col = f.Name, pos.Line, pos.Column
			p.text = policyText(f.Text, pos.Offset)
			if prev := first[p.id]; prev != nil {
				probs = append(probs, at(f.Name, f.Text, pos.Line, pos.Column, "id %q is already taken at %s:%d:%d", id, prev.file, prev.line, prev.col))
				continue
			}
			first[p.id] = p
			out = append(out, p)
		}
	}
	if len(out) > maxPolicies {
		probs = append(probs, Problem{Message: fmt.Sprintf("%d policies, at most %d are supported", len(out), maxPolicies)})
	}
	return out, probs
}

func parseFile(f file) (cedar.PolicyList, *Problem) {
	if off, deep := tooDeep(f.Text); deep {
		line, col := place(f.Text, off)
		p := at(f.Name, f.Text, line, col, "brackets are nested more than %d deep", maxDepth)
		return nil, &p
	}
	list, err := cedar.NewPolicyListFromBytes(f.Name, []byte(f.Text))
	if err == nil {
		return list, nil
	}
	msg := err.Error()
	m := parsePlace.FindStringSubmatch(msg)
	if m == nil {
		return nil, &Problem{File: f.Name, Message: msg}
	}
	line, _ := strconv.Atoi(m[1])
	col, _ := strconv.Atoi(m[2])
	what := strings.TrimPrefix(msg[len(m[0]):], "exact ")
	if m[3] != "" {
		what = fmt.Sprintf("near %q: %s", m[3], what)
	}
	p := at(f.Name, f.Text, line, col, "%s", what)
	return nil, &p
}

// policyText cuts one policy out of its file, for explanations.
func policyText(text string, offset int) string {
	rest := text[offset:]
	for i := 0; i < len(rest); {
		switch n := opaque(rest[i:]); {
		case n > 0:
			i += n
		case rest[i] == ';':
			return rest[:i+1]
		default:
			i++
		}
	}
	return rest
}

// validatePolicies checks the policies against the schema.
func validatePolicies(policies []*policy, files []file, s *boundSchema) Problems {
	texts := map[string]string{}
	for _, f := range files {
		texts[f.Name] = f.Text
	}
	v := validate.New(s.types)
	var probs Problems
	for _, p := range policies {
		err := v.Policy("", (*xast.Policy)(p.full.AST()))
		if err == nil {
			continue
		}
		// The validator walks maps: sort, and say each thing once.
		lines := strings.Split(err.Error(), "\n")
		slices.Sort(lines)
		lines = slices.Compact(lines)
		// The same fault can come up once for each operation.
		if more := len(lines) - maxFaults; more > 0 {
			lines = append(lines[:maxFaults], fmt.Sprintf("and %d more of the kind", more))
		}
		for _, l := range lines {
			probs = append(probs, at(p.file, texts[p.file], p.line, p.col, "policy %q: %s", p.id, l))
		}
	}
	return probs
}

// rolePolicies turns the roles table into permits, so that one engine decides
// everything. They conform to the schema by construction.
func rolePolicies(roles map[string]Role, routes []Route) ([]*policy, Problems) {
	var out []*policy
	var probs Problems
	for _, name := range slices.Sorted(maps.Keys(roles)) {
		if !validName(name) {
			probs = append(probs, Problem{Message: fmt.Sprintf("role %q: the name must be 1 to 128 printable characters", name)})
			continue
		}
		allow := slices.Sorted(slices.Values(roles[name].Allow))
		for i, a := range allow {
			full, err := rolePolicy(name, a, routes)
			if err == nil && i > 0 && allow[i-1] == a {
				err = fmt.Errorf("listed twice")
			}
			if err != nil {
				probs = append(probs, Problem{Message: fmt.Sprintf("role %q: allow %q: %v", name, a, err)})
				continue
			}
			p := newPolicy(rolePrefix+name+":"+a, full)
			p.text = string(full.MarshalCedar())
			out = append(out, p)
		}
	}
	return out, probs
}

func rolePolicy(role, allow string, routes []Route) (*cedar.Policy, error) {
	id := types.String(rolePrefix + role + ":" + allow)
	p := ast.Annotation("id", id).Permit().
		PrincipalIsIn(typeUser, types.NewEntityUID(typeRole, types.String(role)))
	group, wild := strings.CutSuffix(allow, ".*")
	switch {
	case allow == "*":
		p = p.ResourceIs(typeRoute)
	case wild:
		p = p.ResourceIn(types.NewEntityUID(typeRouteGroup, types.String(group)))
	default:
		p = p.ResourceEq(types.NewEntityUID(typeRoute, types.String(allow)))
	}
	for _, r := range routes {
		if allow == "*" || wild && slices.Contains(routeGroups(r.Name), group) || r.Name == allow {
			return cedar.NewPolicyFromAST(p), nil
		}
	}
	if strings.Contains(strings.TrimSuffix(allow, ".*"), "*") {
		return nil, fmt.Errorf(`* may stand only alone or at the end, as in "orders.*"`)
	}
	return nil, fmt.Errorf("no such route is configured")
}

// routeGroups are the groups of a route: all that stands before one of its
// dots.
func routeGroups(name string) []string {
	var out []string
	for i := range len(name) {
		if name[i] == '.' && i > 0 {
			out = append(out, name[:i])
		}
	}
	return out
}
