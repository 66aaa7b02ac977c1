package bulkd

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// do sends one request and returns the status and the body.
func do(t *testing.T, method, url, contentType, authorization, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// outcome is the status and the type of an error, or the statuses of the items.
func outcome(t *testing.T, status int, body string) string {
	t.Helper()
	var doc struct {
		Error struct{ Type string }
		Items []map[string]struct {
			Status       int
			FailureStore string `json:"failure_store"`
			Error        struct{ Type string }
		}
	}
	if body != "" {
		if err := json.Unmarshal([]byte(body), &doc); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
	}
	if doc.Items == nil {
		return strings.TrimSpace(fmt.Sprint(status, " ", doc.Error.Type))
	}
	var out []string
	for _, i := range doc.Items {
		for op, one := range i {
			out = append(out, strings.TrimSpace(fmt.Sprint(op, " ", one.Status, " ", one.Error.Type, one.FailureStore)))
		}
	}
	return strings.Join(out, ", ")
}

const (
	streamTemplate = `{"index_patterns":["logs-*"],"priority":1,"data_stream":{},"template":{"mappings":{"dynamic":"strict","properties":{"@timestamp":{"type":"date"},"n":{"type":"long"},"o":{"properties":{"k":{"type":"keyword"}}}}}}}`
	good           = `{"@timestamp":"2026-11-28T12:00:00Z"}`
)

// The rules of the real thing, as its documentation has them.
func TestRules(t *testing.T) {
	for _, tt := range []struct{ name, path, body, want string }{
		{"created", "/logs-a/_bulk", "{\"create\":{\"_id\":\"1\"}}\n" + good + "\n", "create 201"},
		{"index in the action", "/_bulk", "{\"create\":{\"_index\":\"logs-a\"}}\n" + good + "\n", "create 201"},
		{"twice", "/logs-a/_bulk", "{\"create\":{\"_id\":\"1\"}}\n" + good + "\n{\"create\":{\"_id\":\"1\"}}\n" + good + "\n", "create 201, create 409 version_conflict_engine_exception"},
		{"blank lines between", "/logs-a/_bulk", "\n{\"create\":{\"_id\":\"1\"}}\n" + good + "\n\n", "create 201"},
		{"no final newline", "/logs-a/_bulk", "{\"create\":{\"_id\":\"1\"}}\n" + good, "400 illegal_argument_exception"},
		{"no document", "/logs-a/_bulk", "{\"create\":{\"_id\":\"1\"}}\n", "400 illegal_argument_exception"},
		{"nothing", "/logs-a/_bulk", "", "400 parse_exception"},
		{"blank", "/logs-a/_bulk", "\n", "400 parse_exception"},
		{"no action", "/logs-a/_bulk", "{}\n" + good + "\n", "400 illegal_argument_exception"},
		{"unknown action", "/logs-a/_bulk", "{\"upsert\":{}}\n" + good + "\n", "400 illegal_argument_exception"},
		{"unknown parameter", "/logs-a/_bulk", "{\"create\":{\"_type\":\"_doc\"}}\n" + good + "\n", "400 illegal_argument_exception"},
		{"unknown parameter of the query", "/logs-a/_bulk?x=1", "{\"create\":{}}\n" + good + "\n", "400 illegal_argument_exception"},
		{"two lines for one", "/logs-a/_bulk", "{\"create\":{\"_id\":\"1\"}}\n{\n}\n", "400 illegal_argument_exception"},
		{"no index", "/_bulk", "{\"create\":{}}\n" + good + "\n", "400 action_request_validation_exception"},
		{"long id", "/logs-a/_bulk", "{\"create\":{\"_id\":\"" + strings.Repeat("x", 513) + "\"}}\n" + good + "\n", "400 action_request_validation_exception"},
		{"empty id", "/logs-a/_bulk", "{\"create\":{\"_id\":\"\"}}\n" + good + "\n", "400 illegal_argument_exception"},
		{"index on a stream", "/logs-a/_bulk", "{\"index\":{\"_id\":\"1\"}}\n" + good + "\n", "index 400 illegal_argument_exception"},
		{"delete on a stream", "/logs-a/_bulk", "{\"create\":{\"_id\":\"1\"}}\n" + good + "\n{\"delete\":{\"_id\":\"1\"}}\n", "create 201, delete 400 illegal_argument_exception"},
		{"plain index", "/plain/_bulk", "{\"index\":{\"_id\":\"1\"}}\n{\"a\":1}\n{\"index\":{\"_id\":\"1\"}}\n{\"a\":2}\n{\"delete\":{\"_id\":\"1\"}}\n{\"delete\":{\"_id\":\"1\"}}\n", "index 201, index 200, delete 200, delete 404"},
		{"types guessed once", "/plain/_bulk", "{\"index\":{}}\n{\"a\":1}\n{\"index\":{}}\n{\"a\":\"x\"}\n", "index 201, index 400 document_parsing_exception"},
		{"no time", "/logs-a/_bulk", "{\"create\":{}}\n{\"n\":1}\n", "create 400 document_parsing_exceptionnot_enabled"},
		{"two times", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":[1,2]}\n", "create 400 document_parsing_exceptionnot_enabled"},
		{"no number", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":1,\"n\":\"x\"}\n", "create 400 document_parsing_exceptionnot_enabled"},
		{"object for a value", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":1,\"n\":{}}\n", "create 400 document_parsing_exceptionnot_enabled"},
		{"value for an object", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":1,\"o\":1}\n", "create 400 document_parsing_exceptionnot_enabled"},
		{"strict", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":1,\"x\":1}\n", "create 400 strict_dynamic_mapping_exceptionnot_enabled"},
		{"dots", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":1,\"o.k\":\"v\"}\n", "create 201"},
		{"long term", "/logs-a/_bulk", "{\"create\":{}}\n{\"@timestamp\":1,\"o\":{\"k\":\"" + strings.Repeat("x", 32767) + "\"}}\n", "create 400 illegal_argument_exceptionnot_enabled"},
	} {
		s := Start(t, Config{})
		s.Put("_index_template", "t", streamTemplate)
		status, body := do(t, "POST", s.URL+tt.path, "application/x-ndjson", "", tt.body)
		if got := outcome(t, status, body); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestServerRules(t *testing.T) {
	one := "{\"create\":{\"_id\":\"1\"}}\n" + good + "\n"
	who := []Principal{{Name: "a", Basic: "a:b", Cluster: []string{"monitor"}, Indices: []Grant{{Names: []string{"logs-*"}, Privileges: []string{"create_doc"}}}}}
	basic := "Basic YTpi"
	for _, tt := range []struct {
		name                           string
		cfg                            Config
		method, path, kind, auth, body string
		want                           string
	}{
		{"type of content", Config{}, "POST", "/logs-a/_bulk", "text/plain", "", one, "406 media_type_header_exception"},
		{"vendor's type", Config{}, "POST", "/logs-a/_bulk", "application/vnd.elasticsearch+x-ndjson;compatible-with=9", "", one, "create 201"},
		{"vendor's type to the other", Config{Product: OpenSearch}, "POST", "/logs-a/_bulk", "application/vnd.elasticsearch+x-ndjson;compatible-with=9", "", one, "406 media_type_header_exception"},
		{"too long", Config{MaxBody: 10}, "POST", "/logs-a/_bulk", "application/x-ndjson", "", one, "413"},
		{"nobody", Config{Principals: who}, "POST", "/logs-a/_bulk", "application/x-ndjson", "", one, "401 security_exception"},
		{"somebody else", Config{Principals: who}, "POST", "/logs-a/_bulk", "application/x-ndjson", "Basic eDp5", one, "401 security_exception"},
		{"may not make it", Config{Principals: who}, "POST", "/logs-a/_bulk", "application/x-ndjson", basic, one, "create 403 security_exception"},
		{"may not write there", Config{Principals: who}, "POST", "/other/_bulk", "application/x-ndjson", basic, one, "create 403 security_exception"},
		{"may not search", Config{Principals: who}, "POST", "/logs-a/_search", "application/json", basic, "{}", "403 security_exception"},
		{"may not put templates", Config{Principals: who}, "PUT", "/_index_template/x", "application/json", basic, `{}`, "403 security_exception"},
		{"may look at templates", Config{Principals: who}, "GET", "/_index_template/t", "", basic, "", "200"},
		{"no auto-create", Config{NoAutoCreate: true}, "POST", "/logs-a/_bulk", "application/x-ndjson", "", one, "create 404 index_not_found_exception"},
		{"failure store", Config{FailureStore: true}, "POST", "/logs-a/_bulk", "application/x-ndjson", "", "{\"create\":{}}\n{}\n", "create 201 used"},
		{"no failure store there", Config{FailureStore: true, Product: OpenSearch}, "POST", "/logs-a/_bulk", "application/x-ndjson", "", "{\"create\":{}}\n{}\n", "create 400 document_parsing_exception"},
		{"unknown path", Config{}, "GET", "/_nodes", "", "", "", "400 illegal_argument_exception"},
		{"privileges are not asked there", Config{Product: OpenSearch, Principals: []Principal{{Name: "a", Basic: "a:b"}}}, "POST", "/_security/user/_has_privileges", "application/json", basic, "{}", "400 illegal_argument_exception"},
		{"ilm of opensearch", Config{Product: OpenSearch}, "PUT", "/_ilm/policy/x", "application/json", "", "{}", "400 illegal_argument_exception"},
		{"ilm of serverless", Config{Product: Serverless}, "PUT", "/_ilm/policy/x", "application/json", "", "{}", "400 illegal_argument_exception"},
		{"setting of another product", Config{Product: OpenSearch}, "PUT", "/_component_template/x", "application/json", "", `{"template":{"settings":{"index.mode":"standard"}}}`, "400 illegal_argument_exception"},
		{"component that is missing", Config{}, "PUT", "/_index_template/x", "application/json", "", `{"index_patterns":["a"],"composed_of":["b"]}`, "400 invalid_index_template_exception"},
		{"same priority", Config{}, "PUT", "/_index_template/x", "application/json", "", `{"index_patterns":["logs-a"],"priority":1}`, "400 illegal_argument_exception"},
		{"there already", Config{}, "PUT", "/_index_template/t?create=true", "application/json", "", `{"index_patterns":["z"]}`, "400 illegal_argument_exception"},
		{"stream without a template", Config{}, "PUT", "/_data_stream/other", "", "", "", "400 illegal_argument_exception"},
		{"unknown query", Config{}, "POST", "/logs-a/_search", "application/json", "", `{"query":{"magic":{}}}`, "404 index_not_found_exception"},
		{"large window", Config{}, "POST", "/logs-a/_search", "application/json", "", `{"size":10001}`, "400 illegal_argument_exception"},
	} {
		s := Start(t, tt.cfg)
		s.Put("_index_template", "t", streamTemplate)
		status, body := do(t, tt.method, s.URL+tt.path, tt.kind, tt.auth, tt.body)
		if got := outcome(t, status, body); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// An id is known in one backing index only.
func TestRollover(t *testing.T) {
	s := Start(t, Config{RolloverAt: 2})
	s.Put("_index_template", "t", streamTemplate)
	send := func(ids ...string) string {
		var b strings.Builder
		for _, id := range ids {
			fmt.Fprintf(&b, "{\"create\":{\"_id\":%q}}\n%s\n", id, good)
		}
		status, body := do(t, "POST", s.URL+"/logs-a/_bulk", "application/x-ndjson", "", b.String())
		return outcome(t, status, body)
	}
	if got := send("1", "2", "2"); got != "create 201, create 201, create 201" {
		t.Error(got) // the third document is the first of the next
	}
	if got := send("2"); !strings.Contains(got, "409") {
		t.Error(got)
	}
	if held := s.Held("logs-a"); held["1"] != 1 || held["2"] != 2 {
		t.Error(held)
	}
}

func TestFilter(t *testing.T) {
	doc := map[string]any{"took": 1, "error": map[string]any{"type": "x"}, "items": []any{map[string]any{"create": map[string]any{"_id": "1", "status": 201, "_shards": 1}}}}
	for paths, want := range map[string]string{
		"items.*._id":           `{"items":[{"create":{"_id":"1"}}]}`,
		"items.*.s*":            `{"items":[{"create":{"status":201}}]}`,
		"took,items.create._id": `{"items":[{"create":{"_id":"1"}}],"took":1}`,
		"**._id":                `{"items":[{"create":{"_id":"1"}}]}`,
		"error":                 `{"error":{"type":"x"}}`,
		"errors":                `{}`,
	} {
		got, err := json.Marshal(filter(doc, paths))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, want %s", paths, got, want)
		}
	}
	var yes []string
	for _, p := range []string{"*", "a*", "*c", "a*c", "abc", "a**c", "b*", "abcd", ""} {
		if match(p, "abc") {
			yes = append(yes, p)
		}
	}
	if !slices.Equal(yes, []string{"*", "a*", "*c", "a*c", "abc", "a**c"}) {
		t.Error(yes)
	}
}
