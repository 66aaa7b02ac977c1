package bulkd

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
)

// Principal is somebody with privileges. Cluster and the privileges of a Grant are
// names as Elasticsearch has them, or actions and action groups as the security
// plugin of OpenSearch has them; which, is the product's.
type Principal struct {
	Name string
	// One of these is how it shows who it is.
	APIKey string // id:key
	Basic  string // user:password
	Bearer string

	Cluster []string
	Indices []Grant
}

// Grant is what is allowed on names.
type Grant struct {
	Names      []string // patterns with *
	Privileges []string
}

// elasticPrivileges are the actions behind the names of privileges, as far as
// this server has actions.
var elasticPrivileges = map[string][]string{
	// cluster
	"monitor":                {"cluster:monitor/*", "indices:admin/index_template/get", "cluster:admin/component_template/get"},
	"manage_index_templates": {"indices:admin/index_template/*", "cluster:admin/component_template/*"},
	"manage_ilm":             {"cluster:admin/ilm/*"},
	"read_ilm":               {"cluster:admin/ilm/get"},
	// index
	"create_doc":          {"indices:data/write/bulk[create]"},
	"create":              {"indices:data/write/bulk[create]", "indices:data/write/bulk[index]"},
	"index":               {"indices:data/write/bulk[create]", "indices:data/write/bulk[index]", "indices:data/write/bulk[update]"},
	"write":               {"indices:data/write/*"},
	"auto_configure":      {"indices:admin/auto_create"},
	"create_index":        {"indices:admin/create", "indices:admin/auto_create", "indices:admin/data_stream/create"},
	"read":                {"indices:data/read/*"},
	"view_index_metadata": {"indices:admin/data_stream/get"},
	"manage":              {"indices:admin/*", "indices:monitor/*"},
	"all":                 {"*"},
}

// openGroups are default action groups of the security plugin.
var openGroups = map[string][]string{
	"cluster_monitor":                {"cluster:monitor/*"},
	"cluster_composite_ops":          {"indices:data/write/bulk"},
	"cluster_manage_index_templates": {"indices:admin/template/*", "indices:admin/index_template/*", "cluster:admin/component_template/*"},
	"indices_all":                    {"indices:*"},
	"read":                           {"indices:data/read*"},
	"create_index":                   {"indices:admin/create", "indices:admin/mapping/put"},
	"unlimited":                      {"*"},
}

func (p *Principal) header() string {
	switch {
	case p.APIKey != "":
		return "ApiKey " + base64.StdEncoding.EncodeToString([]byte(p.APIKey))
	case p.Basic != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(p.Basic))
	}
	return "Bearer " + p.Bearer
}

// authenticate says who asks; nobody and no failure if security is off.
func (s *Server) authenticate(r *http.Request) (*Principal, *failure) {
	if len(s.cfg.Principals) == 0 {
		return nil, nil
	}
	given := r.Header.Get("Authorization")
	for i := range s.cfg.Principals {
		p := &s.cfg.Principals[i]
		s.mu.Lock()
		denied := s.denied[p.Name]
		s.mu.Unlock()
		if given == p.header() && !denied && !(s.cfg.Product == OpenSearch && p.APIKey != "") {
			return p, nil
		}
	}
	reason := "missing authentication credentials for REST request [" + r.URL.Path + "]"
	if given != "" {
		reason = "unable to authenticate user for REST request [" + r.URL.Path + "]"
	}
	return nil, fail(http.StatusUnauthorized, "security_exception", reason)
}

func (s *Server) unauthorized(w http.ResponseWriter, r *http.Request, f *failure) {
	if s.cfg.Product == OpenSearch {
		w.Header().Set("WWW-Authenticate", `Basic realm="OpenSearch Security"`)
		w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
		w.WriteHeader(http.StatusUnauthorized)
		w.Write([]byte("Unauthorized"))
		return
	}
	w.Header().Add("WWW-Authenticate", `Basic realm="security", charset="UTF-8"`)
	w.Header().Add("WWW-Authenticate", "ApiKey")
	s.answer(w, r, f.status, f.body(), nil)
}

func (s *Server) expand(names []string) []string {
	table := elasticPrivileges
	if s.cfg.Product == OpenSearch {
		table = openGroups
	}
	var out []string
	for _, n := range names {
		if actions, ok := table[n]; ok {
			out = append(out, actions...)
		} else if strings.Contains(n, ":") || n == "*" {
			out = append(out, n)
		}
	}
	return out
}

func covers(actions []string, action string) bool {
	return slices.ContainsFunc(actions, func(a string) bool { return match(a, action) })
}

// may says whether an action is allowed, on an index or (name "") on the cluster.
func (s *Server) may(who *Principal, action, name string) *failure {
	if len(s.cfg.Principals) == 0 {
		return nil
	}
	if name == "" {
		if covers(s.expand(who.Cluster), action) {
			return nil
		}
	}
	for _, g := range who.Indices {
		for _, n := range g.Names {
			if name != "" && match(n, name) && covers(s.expand(g.Privileges), action) {
				return nil
			}
		}
	}
	if s.cfg.Product == OpenSearch {
		return fail(http.StatusForbidden, "security_exception", "no permissions for ["+action+"] and User [name="+who.Name+"]")
	}
	on := ""
	if name != "" {
		on = " on indices [" + name + "]"
	}
	return fail(http.StatusForbidden, "security_exception", "action ["+action+"] is unauthorized for user ["+who.Name+"]"+on)
}

// hasPrivileges answers POST /_security/user/_has_privileges.
func (s *Server) hasPrivileges(who *Principal, q privilegeQuery) map[string]any {
	all := true
	cluster := map[string]any{}
	for _, p := range q.Cluster {
		ok := true
		for _, a := range s.expand([]string{p}) {
			ok = ok && covers(s.expand(who.Cluster), a)
		}
		cluster[p], all = ok, all && ok
	}
	index := map[string]any{}
	for _, g := range q.Index {
		for _, n := range g.Names {
			each := map[string]any{}
			for _, p := range g.Privileges {
				ok := true
				for _, a := range s.expand([]string{p}) {
					ok = ok && s.may(who, a, n) == nil
				}
				each[p], all = ok, all && ok
			}
			index[n] = each
		}
	}
	return map[string]any{"username": who.Name, "has_all_requested": all, "cluster": cluster, "index": index, "application": map[string]any{}}
}

type privilegeQuery struct {
	Cluster []string
	Index   []struct{ Names, Privileges []string }
}
