package bulkd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// op is one action of a bulk request.
type op struct {
	name, index, id string
	source          []byte
}

var knownParameters = []string{
	"_index", "_id", "routing", "require_alias", "require_data_stream", "version", "version_type", "if_seq_no", "if_primary_term",
	"pipeline", "dynamic_templates", "list_executed_pipelines", "retry_on_conflict",
}

// parseBulk reads the lines of a bulk request as strictly as the real thing.
func parseBulk(body []byte, index string) ([]op, *failure) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, fail(400, "parse_exception", "request body is required")
	}
	if body[len(body)-1] != '\n' {
		return nil, fail(400, "illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
	}
	var ops []op
	lines := bytes.Split(body[:len(body)-1], []byte("\n"))
	for i := 0; i < len(lines); i++ {
		if len(bytes.TrimSpace(lines[i])) == 0 {
			continue
		}
		o, bad := parseAction(lines[i], i+1, index)
		if bad != nil {
			return nil, bad
		}
		if o.name != "delete" {
			i++
			if i >= len(lines) {
				return nil, fail(400, "illegal_argument_exception", fmt.Sprintf("action on line [%d] has no document", i))
			}
			o.source = bytes.TrimSuffix(lines[i], []byte("\r"))
		}
		ops = append(ops, o)
	}
	if bad := validate(ops); bad != nil {
		return nil, bad
	}
	return ops, nil
}

func parseAction(line []byte, n int, index string) (op, *failure) {
	var action map[string]json.RawMessage
	if err := json.Unmarshal(line, &action); err != nil || len(action) != 1 {
		return op{}, fail(400, "illegal_argument_exception", fmt.Sprintf("Malformed action/metadata line [%d], expected START_OBJECT or VALUE_STRING", n))
	}
	o := op{index: index}
	for name, raw := range action {
		if !slices.Contains([]string{"create", "index", "update", "delete"}, name) {
			return op{}, fail(400, "illegal_argument_exception", fmt.Sprintf("Malformed action/metadata line [%d], expected one of [create, delete, index, update] but found [%s]", n, name))
		}
		var meta map[string]any
		if err := json.Unmarshal(raw, &meta); err != nil || meta == nil {
			return op{}, fail(400, "illegal_argument_exception", fmt.Sprintf("Malformed action/metadata line [%d], expected START_OBJECT", n))
		}
		for k, v := range meta {
			if !slices.Contains(knownParameters, k) {
				return op{}, fail(400, "illegal_argument_exception", fmt.Sprintf("Action/metadata line [%d] contains an unknown parameter [%s]", n, k))
			}
			switch k {
			case "_index":
				o.index, _ = v.(string)
			case "_id":
				o.id = fmt.Sprint(v)
				if o.id == "" {
					return op{}, fail(400, "illegal_argument_exception", "if _id is specified it must not be empty")
				}
			}
		}
		o.name = name
	}
	return o, nil
}

func validate(ops []op) *failure {
	var wrong []string
	for _, o := range ops {
		if len(o.id) > 512 {
			wrong = append(wrong, fmt.Sprintf("id [%s] is too long, must be no longer than 512 bytes but was: %d", o.id[:32], len(o.id)))
		}
		if o.index == "" {
			wrong = append(wrong, "index is missing")
		}
	}
	if len(ops) == 0 {
		wrong = append(wrong, "no requests added")
	}
	if wrong == nil {
		return nil
	}
	return fail(400, "action_request_validation_exception", "Validation Failed: 1: "+strings.Join(wrong, ";")+";")
}

// bulk does a bulk request, with the faults of single items.
func (s *Server) bulk(r *http.Request, body []byte, who *Principal, fault *Fault) (int, any) {
	for name := range r.URL.Query() {
		known := slices.Contains([]string{"filter_path", "pretty", "human", "error_trace", "refresh", "timeout", "wait_for_active_shards", "routing", "pipeline", "require_alias", "_source"}, name) ||
			name == "require_data_stream" && s.cfg.Product != OpenSearch
		if !known {
			f := fail(400, "illegal_argument_exception", "request ["+r.URL.Path+"] contains unrecognized parameter: ["+name+"]")
			return f.status, f.body()
		}
	}
	if s.cfg.Product == OpenSearch {
		if f := s.may(who, "indices:data/write/bulk", ""); f != nil {
			return f.status, f.body()
		}
	}
	ops, bad := parseBulk(body, strings.Trim(strings.TrimSuffix(r.URL.Path, "_bulk"), "/"))
	if bad != nil {
		return bad.status, bad.body()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	items, failed := make([]any, 0, len(ops)), false
	for i, o := range ops {
		item := s.one(i, o, who, fault)
		status := item["status"].(int)
		failed = failed || status >= 400
		items = append(items, map[string]any{o.name: item})
	}
	if fault != nil && fault.Rollover {
		for _, ds := range s.store.streams {
			t, _ := s.store.templateFor(ds.name)
			s.store.rollover(ds, t)
		}
	}
	return 200, map[string]any{"took": 3, "errors": failed, "items": items}
}

// one does one action.
func (s *Server) one(i int, o op, who *Principal, fault *Fault) map[string]any {
	if fault != nil {
		forced, ok := fault.Items[i]
		if !ok && fault.All != nil {
			forced, ok = *fault.All, true
		}
		if ok {
			return s.forced(o, who, forced)
		}
	}
	return s.apply(o, who)
}

func (s *Server) forced(o op, who *Principal, f Item) map[string]any {
	index := o.index
	if f.Apply {
		index = s.apply(o, who)["_index"].(string)
	}
	if f.Bare {
		return map[string]any{"status": f.Status}
	}
	id := o.id
	if f.ID != "" {
		id = f.ID
	}
	if f.Index != "" {
		index = f.Index
	}
	item := map[string]any{"_index": index, "_id": id, "status": f.Status}
	if f.Type != "" {
		item["error"] = map[string]any{"type": f.Type, "reason": f.Reason, "index": index, "shard": "0", "index_uuid": "xBQ1D1yTRhuOBvs2pR6NMA"}
	}
	if f.Result != "" {
		item["result"] = f.Result
	}
	if f.FailureStore != "" {
		item["failure_store"] = f.FailureStore
	}
	return item
}

func (s *Server) apply(o op, who *Principal) map[string]any {
	refuse := func(index string, f *failure) map[string]any {
		return map[string]any{"_index": index, "_id": o.id, "status": f.status, "error": map[string]any{"type": f.kind, "reason": f.reason}}
	}
	action := "indices:data/write/bulk[" + o.name + "]"
	if s.cfg.Product == OpenSearch && o.name != "delete" {
		action = "indices:data/write/index"
	}
	if f := s.may(who, action, o.index); f != nil {
		return refuse(o.index, f)
	}
	st := s.store
	ds, ix, auto := st.resolve(o.index)
	if auto {
		if s.cfg.NoAutoCreate {
			return refuse(o.index, fail(404, "index_not_found_exception", "no such index ["+o.index+"] and [action.auto_create_index] is [false]"))
		}
		if f := s.may(who, "indices:admin/auto_create", o.index); f != nil {
			return refuse(o.index, f)
		}
		ds, ix = st.create(o.index)
	}
	if ds != nil && o.name != "create" {
		return refuse(o.index, fail(400, "illegal_argument_exception", "only write ops with an op_type of create are allowed in data streams"))
	}
	if ds != nil && st.cfg.RolloverAt > 0 && len(ix.docs) >= st.cfg.RolloverAt {
		t, _ := st.templateFor(ds.name)
		st.rollover(ds, t)
		ix = ds.backing[len(ds.backing)-1]
	}
	if o.id == "" {
		o.id = fmt.Sprintf("auto%016d", st.seq)
	}
	at, there := ix.byID[o.id]
	if o.name == "delete" {
		return st.remove(ix, o.id, there, at)
	}
	if o.name == "update" {
		return refuse(ix.name, fail(400, "illegal_argument_exception", "this server does no updates"))
	}
	if f := ix.fields.parse(o.source, ds != nil); f != nil {
		return st.misfit(ds, ix, o, f)
	}
	if there && o.name == "create" {
		return refuse(ix.name, fail(409, "version_conflict_engine_exception", "["+o.id+"]: version conflict, document already exists (current version [1])"))
	}
	if there {
		ix.docs[at].Source = slices.Clone(o.source)
		return written(ix.name, o.id, "updated", 200, st.seq)
	}
	st.put(ix, o.id, o.source)
	return written(ix.name, o.id, "created", 201, st.seq)
}

func written(index, id, result string, status, seq int) map[string]any {
	return map[string]any{
		"_index": index, "_id": id, "_version": 1, "result": result, "status": status, "_seq_no": seq, "_primary_term": 1,
		"_shards": map[string]any{"total": 2, "successful": 1, "failed": 0},
	}
}

func (st *store) remove(ix *index, id string, there bool, at int) map[string]any {
	if !there {
		return written(ix.name, id, "not_found", 404, st.seq)
	}
	delete(ix.byID, id)
	ix.docs = slices.Delete(ix.docs, at, at+1)
	for k, p := range ix.byID {
		if p > at {
			ix.byID[k] = p - 1
		}
	}
	return written(ix.name, id, "deleted", 200, st.seq)
}

// misfit is a document that the mapping refuses: into the failure store, if the
// stream has one, under an id of the store's own.
func (st *store) misfit(ds *stream, ix *index, o op, f *failure) map[string]any {
	item := map[string]any{"_index": ix.name, "_id": o.id, "status": f.status, "error": map[string]any{
		"type": f.kind, "reason": f.reason, "caused_by": map[string]any{"type": "illegal_argument_exception", "reason": f.reason},
	}}
	if ds == nil || st.cfg.Product == OpenSearch {
		return item
	}
	t, _ := st.templateFor(ds.name)
	if !st.cfg.FailureStore && (t == nil || !t.Template.DataStreamOptions.FailureStore.Enabled) {
		item["failure_store"] = "not_enabled"
		return item
	}
	if ds.failed == nil {
		ds.failed = st.newIndex(fmt.Sprintf(".fs-%s-2026.11.28-000001", ds.name), fields{})
		ds.failed.failure = true
	}
	doc, err := json.Marshal(map[string]any{
		"document": map[string]any{"id": o.id, "index": ds.name, "source": json.RawMessage(o.source)},
		"error":    map[string]any{"type": f.kind, "message": f.reason},
	})
	if err != nil {
		doc = []byte(`{"error":{"type":"parse_exception"}}`)
	}
	id := fmt.Sprintf("fs%018d", st.seq)
	st.put(ds.failed, id, doc)
	item = written(ds.failed.name, id, "created", 201, st.seq)
	item["failure_store"] = "used"
	return item
}
