package bulkd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// route does everything that is not a bulk request.
func (s *Server) route(r *http.Request, body []byte, who *Principal) (int, any) {
	status, doc, err := s.dispatch(r, body, who)
	var f *failure
	if errors.As(err, &f) {
		return f.status, f.body()
	}
	return status, doc
}

func (s *Server) dispatch(r *http.Request, body []byte, who *Principal) (int, any, error) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	get, put, post := r.Method == http.MethodGet || r.Method == http.MethodHead, r.Method == http.MethodPut, r.Method == http.MethodPost
	p := func(i int) string {
		if i < len(parts) {
			return parts[i]
		}
		return ""
	}
	open := s.cfg.Product == OpenSearch
	switch {
	case r.URL.Path == "/" && get:
		return s.checked(who, "cluster:monitor/main", "", s.info)
	case r.URL.Path == "/_security/user/_has_privileges" && (get || post) && !open && who != nil:
		var q privilegeQuery
		if err := json.Unmarshal(body, &q); err != nil {
			return 0, nil, fail(400, "x_content_parse_exception", err.Error())
		}
		return 200, s.hasPrivileges(who, q), nil
	case (p(0) == "_component_template" || p(0) == "_index_template") && len(parts) == 2 && (get || put):
		return s.templates(who, p(0), p(1), put, body, r.URL.Query().Get("create") == "true")
	case p(0) == "_ilm" && p(1) == "policy" && len(parts) == 3 && s.cfg.Product == Elasticsearch && (get || put):
		return s.ilm(who, p(2), put, body)
	case p(0) == "_plugins" && p(1) == "_ism" && p(2) == "policies" && len(parts) == 4 && open && (get || put):
		return s.ism(who, p(3), put, body, r.URL.Query().Get("if_seq_no"))
	case p(0) == "_data_stream" && len(parts) == 2 && (get || put):
		return s.dataStream(who, p(1), put)
	case p(1) == "_rollover" && len(parts) == 2 && post:
		return s.checked(who, "indices:admin/rollover", p(0), func() (int, any, error) {
			ds := s.store.streams[p(0)]
			if ds == nil {
				return 0, nil, fail(404, "index_not_found_exception", "no such index ["+p(0)+"]")
			}
			t, _ := s.store.templateFor(ds.name)
			s.store.rollover(ds, t)
			return 200, map[string]any{"acknowledged": true, "rolled_over": true}, nil
		})
	case p(1) == "_search" && len(parts) == 2 && (get || post):
		return s.checked(who, "indices:data/read/search", p(0), func() (int, any, error) { return s.search(p(0), body) })
	case strings.HasPrefix(r.URL.Path, "/_cat/health") && get, strings.HasPrefix(r.URL.Path, "/_cluster/health") && get:
		return s.checked(who, "cluster:monitor/health", "", func() (int, any, error) {
			return 200, map[string]any{"cluster_name": "bulkd", "status": "green"}, nil
		})
	}
	return 0, nil, fail(400, "illegal_argument_exception", "no handler found for uri ["+r.RequestURI+"] and method ["+r.Method+"]")
}

// checked does something under the lock if it is allowed.
func (s *Server) checked(who *Principal, action, name string, do func() (int, any, error)) (int, any, error) {
	if f := s.may(who, action, name); f != nil {
		return 0, nil, f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return do()
}

func (s *Server) info() (int, any, error) {
	version := map[string]any{"number": s.cfg.Version, "lucene_version": "10.2.2", "build_type": "docker"}
	doc := map[string]any{"name": "bulkd-1", "cluster_name": "bulkd", "cluster_uuid": "GZbSUUMQQI-A7UcGS6vCMa", "version": version, "tagline": "You Know, for Search"}
	switch s.cfg.Product {
	case OpenSearch:
		version["distribution"] = "opensearch"
		doc["tagline"] = "The OpenSearch Project: https://opensearch.org/"
	case Serverless:
		version["build_flavor"] = "serverless"
		doc["name"] = "serverless"
	default:
		version["build_flavor"] = "default"
	}
	return 200, doc, nil
}

func (s *Server) templates(who *Principal, kind, name string, put bool, body []byte, create bool) (int, any, error) {
	action := map[string]string{"_component_template": "cluster:admin/component_template/", "_index_template": "indices:admin/index_template/"}[kind]
	list := map[string]string{"_component_template": "component_template", "_index_template": "index_template"}[kind]
	if !put {
		return s.checked(who, action+"get", "", func() (int, any, error) {
			raw, ok := s.store.kind(kind)[name]
			if !ok {
				return 0, nil, fail(404, "resource_not_found_exception", strings.ReplaceAll(list, "_", " ")+" matching ["+name+"] not found")
			}
			return 200, map[string]any{list + "s": []any{map[string]any{"name": name, list: raw}}}, nil
		})
	}
	return s.checked(who, action+"put", "", func() (int, any, error) {
		var t template
		dec := json.NewDecoder(bytes.NewReader(body))
		if err := dec.Decode(&t); err != nil {
			return 0, nil, fail(400, "x_content_parse_exception", err.Error())
		}
		if f := s.store.checkTemplate(kind, name, &t); f != nil {
			return 0, nil, f
		}
		if _, there := s.store.kind(kind)[name]; there && create {
			return 0, nil, fail(400, "illegal_argument_exception", list+" ["+name+"] already exists")
		}
		s.store.kind(kind)[name] = slices.Clone(body)
		return 200, map[string]any{"acknowledged": true}, nil
	})
}

// settings are those that a template may have.
var settings = map[string][]Product{
	"index.mapping.ignore_malformed": {Elasticsearch, OpenSearch, Serverless},
	"index.codec":                    {Elasticsearch, OpenSearch, Serverless},
	"index.mode":                     {Elasticsearch, Serverless},
	"index.translog.durability":      {Elasticsearch, OpenSearch},
	"index.lifecycle.name":           {Elasticsearch},
	"index.number_of_shards":         {Elasticsearch, OpenSearch},
	"index.number_of_replicas":       {Elasticsearch, OpenSearch},
	"index.plugins.index_state_management.rollover_alias":    {OpenSearch},
	"index.mapping.total_fields.ignore_dynamic_beyond_limit": {Elasticsearch, Serverless},
}

func (st *store) checkTemplate(kind, name string, t *template) *failure {
	for k := range t.Template.Settings {
		products, ok := settings[k]
		if !ok {
			return fail(400, "illegal_argument_exception", "unknown setting ["+k+"] please check that any required plugins are installed, or check the breaking changes documentation for removed settings")
		}
		if !slices.Contains(products, st.cfg.Product) {
			return fail(400, "illegal_argument_exception", "unknown setting ["+k+"], or it is not available here")
		}
	}
	if f := t.Template.Mappings.check(st.cfg.Product); f != nil {
		return f
	}
	if kind == "_component_template" {
		return nil
	}
	if len(t.IndexPatterns) == 0 {
		return fail(400, "x_content_parse_exception", "index_patterns is missing")
	}
	var missing []string
	for _, c := range t.ComposedOf {
		if _, ok := st.components[c]; !ok {
			missing = append(missing, c)
		}
	}
	if missing != nil {
		return fail(400, "invalid_index_template_exception", fmt.Sprintf("index_template [%s] invalid, cause [index template [%s] specifies component templates %v that do not exist]", name, name, missing))
	}
	for _, other := range slices.Sorted(maps.Keys(st.templates)) {
		var o template
		if other == name || json.Unmarshal(st.templates[other], &o) != nil || o.Priority != t.Priority {
			continue
		}
		for _, a := range t.IndexPatterns {
			for _, b := range o.IndexPatterns {
				if match(a, b) || match(b, a) {
					return fail(400, "illegal_argument_exception", fmt.Sprintf("index template [%s] has index patterns %v matching patterns from existing templates [%s] that have the same priority [%d]", name, t.IndexPatterns, other, t.Priority))
				}
			}
		}
	}
	return nil
}

func (s *Server) ilm(who *Principal, name string, put bool, body []byte) (int, any, error) {
	action := map[bool]string{false: "cluster:admin/ilm/get", true: "cluster:admin/ilm/put"}[put]
	return s.checked(who, action, "", func() (int, any, error) {
		if put {
			if !json.Valid(body) {
				return 0, nil, fail(400, "x_content_parse_exception", "policy")
			}
			s.store.policies[name] = slices.Clone(body)
			return 200, map[string]any{"acknowledged": true}, nil
		}
		raw, ok := s.store.policies[name]
		if !ok {
			return 0, nil, fail(404, "resource_not_found_exception", "Lifecycle policy not found: "+name)
		}
		doc := map[string]any{}
		if err := json.Unmarshal(raw, &doc); err != nil {
			panic(err)
		}
		doc["version"], doc["modified_date"] = 1, "2026-11-28T00:00:00.000Z"
		return 200, map[string]any{name: doc}, nil
	})
}

func (s *Server) ism(who *Principal, name string, put bool, body []byte, seq string) (int, any, error) {
	action := map[bool]string{false: "cluster:admin/opendistro/ism/policy/get", true: "cluster:admin/opendistro/ism/policy/write"}[put]
	return s.checked(who, action, "", func() (int, any, error) {
		raw, ok := s.store.policies[name]
		now := s.store.policySeq[name]
		if !put {
			if !ok {
				return 0, nil, fail(404, "status_exception", "Policy not found")
			}
			doc := map[string]any{}
			if err := json.Unmarshal(raw, &doc); err != nil {
				panic(err)
			}
			doc["_id"], doc["_version"], doc["_seq_no"], doc["_primary_term"] = name, now+1, now, 1
			return 200, doc, nil
		}
		if !json.Valid(body) {
			return 0, nil, fail(400, "illegal_argument_exception", "policy")
		}
		if ok && seq != fmt.Sprint(now) {
			return 0, nil, fail(409, "version_conflict_engine_exception", "["+name+"]: version conflict")
		}
		s.store.policies[name] = slices.Clone(body)
		s.store.policySeq[name]++
		return 201, map[string]any{"_id": name, "_version": 1}, nil
	})
}

func (s *Server) dataStream(who *Principal, name string, put bool) (int, any, error) {
	if put {
		return s.checked(who, "indices:admin/data_stream/create", name, func() (int, any, error) {
			t, _ := s.store.templateFor(name)
			if t == nil || t.DataStream == nil {
				return 0, nil, fail(400, "illegal_argument_exception", "no matching index template found for data stream ["+name+"]")
			}
			if s.store.streams[name] != nil {
				return 0, nil, fail(400, "resource_already_exists_exception", "data_stream ["+name+"] already exists")
			}
			if s.store.indices[name] != nil {
				return 0, nil, fail(500, "illegal_state_exception", "index, alias, and data stream names need to be unique, but the following duplicates were found [data stream ["+name+"] conflicts with index]")
			}
			s.store.newStream(name, t)
			return 200, map[string]any{"acknowledged": true}, nil
		})
	}
	return s.checked(who, "indices:admin/data_stream/get", name, func() (int, any, error) {
		ds := s.store.streams[name]
		if ds == nil {
			return 0, nil, fail(404, "index_not_found_exception", "no such index ["+name+"]")
		}
		var backing []any
		for _, ix := range ds.backing {
			backing = append(backing, map[string]any{"index_name": ix.name})
		}
		_, by := s.store.templateFor(name)
		return 200, map[string]any{"data_streams": []any{map[string]any{
			"name": name, "timestamp_field": map[string]any{"name": "@timestamp"}, "indices": backing,
			"generation": len(backing), "status": "GREEN", "template": by,
		}}}, nil
	})
}
