package bulkd

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Doc is a document that is kept.
type Doc struct {
	Index, ID string
	Source    []byte
}

type index struct {
	name    string
	docs    []Doc
	byID    map[string]int // position in docs
	fields  fields
	failure bool
}

type stream struct {
	name    string
	backing []*index // the last is written to
	failed  *index
}

// store is guarded by Server.mu.
type store struct {
	cfg        Config
	streams    map[string]*stream
	indices    map[string]*index // all, backing ones too
	components map[string]json.RawMessage
	templates  map[string]json.RawMessage
	policies   map[string]json.RawMessage // ILM or ISM
	policySeq  map[string]int
	seq        int
}

func newStore(cfg Config) *store {
	return &store{
		cfg: cfg, streams: map[string]*stream{}, indices: map[string]*index{}, components: map[string]json.RawMessage{},
		templates: map[string]json.RawMessage{}, policies: map[string]json.RawMessage{}, policySeq: map[string]int{},
	}
}

// template is what is understood of an index or component template.
type template struct {
	IndexPatterns []string         `json:"index_patterns"`
	ComposedOf    []string         `json:"composed_of"`
	Priority      int              `json:"priority"`
	DataStream    *json.RawMessage `json:"data_stream"`
	Template      struct {
		Settings          map[string]any `json:"settings"`
		Mappings          *mapping       `json:"mappings"`
		DataStreamOptions struct {
			FailureStore struct {
				Enabled bool `json:"enabled"`
			} `json:"failure_store"`
		} `json:"data_stream_options"`
	} `json:"template"`
}

// templateFor is the one of highest priority that matches a name.
func (st *store) templateFor(name string) (*template, string) {
	var best *template
	var bestName string
	for _, n := range slices.Sorted(maps.Keys(st.templates)) {
		var t template
		if json.Unmarshal(st.templates[n], &t) != nil {
			continue
		}
		if slices.ContainsFunc(t.IndexPatterns, func(p string) bool { return match(p, name) }) && (best == nil || t.Priority > best.Priority) {
			best, bestName = &t, n
		}
	}
	return best, bestName
}

// compose gives the fields of a new index with this template.
func (st *store) compose(t *template) fields {
	f := fields{dynamic: "true", types: map[string]field{}, objects: map[string]bool{}}
	if t == nil {
		return f
	}
	for _, c := range t.ComposedOf {
		var part template
		if json.Unmarshal(st.components[c], &part) == nil {
			f.add(part.Template.Mappings, part.Template.Settings)
		}
	}
	f.add(t.Template.Mappings, t.Template.Settings)
	return f
}

func (st *store) newIndex(name string, f fields) *index {
	ix := &index{name: name, byID: map[string]int{}, fields: f}
	st.indices[name] = ix
	return ix
}

func (st *store) newStream(name string, t *template) *stream {
	ds := &stream{name: name}
	st.streams[name] = ds
	st.rollover(ds, t)
	return ds
}

func (st *store) rollover(ds *stream, t *template) {
	name := fmt.Sprintf(".ds-%s-2026.11.28-%06d", ds.name, len(ds.backing)+1)
	ds.backing = append(ds.backing, st.newIndex(name, st.compose(t)))
}

// resolve is what a name stands for when it is written to; auto says that it had
// to be made.
func (st *store) resolve(name string) (ds *stream, ix *index, auto bool) {
	if ds := st.streams[name]; ds != nil {
		return ds, ds.backing[len(ds.backing)-1], false
	}
	if ix := st.indices[name]; ix != nil {
		return nil, ix, false
	}
	return nil, nil, true
}

func (st *store) create(name string) (*stream, *index) {
	t, _ := st.templateFor(name)
	if t != nil && t.DataStream != nil {
		ds := st.newStream(name, t)
		return ds, ds.backing[0]
	}
	return nil, st.newIndex(name, st.compose(t))
}

func (st *store) put(ix *index, id string, source []byte) {
	ix.byID[id] = len(ix.docs)
	ix.docs = append(ix.docs, Doc{ix.name, id, slices.Clone(source)})
	st.seq++
}

// search is the indexes behind a name, without failure stores.
func (st *store) search(name string) []*index {
	if ds := st.streams[name]; ds != nil {
		return ds.backing
	}
	var out []*index
	for _, n := range slices.Sorted(maps.Keys(st.indices)) {
		if match(name, n) && !st.indices[n].failure {
			out = append(out, st.indices[n])
		}
	}
	for _, n := range slices.Sorted(maps.Keys(st.streams)) {
		if strings.Contains(name, "*") && match(name, n) {
			out = append(out, st.streams[n].backing...)
		}
	}
	return out
}

// Docs are what a stream or index holds, oldest first.
func (s *Server) Docs(name string) []Doc {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Doc
	for _, ix := range s.store.search(name) {
		out = append(out, ix.docs...)
	}
	return out
}

// Failed are what the failure store of a stream holds.
func (s *Server) Failed(name string) []Doc {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ds := s.store.streams[name]; ds != nil && ds.failed != nil {
		return slices.Clone(ds.failed.docs)
	}
	return nil
}

// Held is how many copies of each id a stream or index holds.
func (s *Server) Held(name string) map[string]int {
	out := map[string]int{}
	for _, d := range s.Docs(name) {
		out[d.ID]++
	}
	return out
}

// Rollover gives every stream a new backing index.
func (s *Server) Rollover() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ds := range s.store.streams {
		t, _ := s.store.templateFor(ds.name)
		s.store.rollover(ds, t)
	}
}

// Seed keeps a document in a plain index or a stream without asking anybody.
func (s *Server) Seed(name, id string, source []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ix, auto := s.store.resolve(name)
	if auto {
		_, ix = s.store.create(name)
	}
	s.store.put(ix, id, source)
}

// Put keeps a template or policy: kind is _component_template, _index_template or policy.
func (s *Server) Put(kind, name, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !json.Valid([]byte(body)) {
		panic("bulkd: not JSON: " + body)
	}
	s.store.kind(kind)[name] = json.RawMessage(body)
}

// Stored is a template or policy, "" if there is none.
func (s *Server) Stored(kind, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.store.kind(kind)[name])
}

func (st *store) kind(kind string) map[string]json.RawMessage {
	switch kind {
	case "_component_template":
		return st.components
	case "_index_template":
		return st.templates
	case "policy":
		return st.policies
	}
	panic("bulkd: no kind " + kind)
}
