package sinks

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"unicode"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// Whatever a server answers: a record is Done only if the answer, read in another
// way, says at its place and under its id that it was created or is there.
func FuzzElasticAnswer(f *testing.F) {
	ok := func(id string) string {
		return fmt.Sprintf(`{"create":{"_index":".ds-x-000001","_id":%q,"result":"created","status":201}}`, id)
	}
	conflict := `{"create":{"_index":"x","_id":"b","status":409,"error":{"type":"version_conflict_engine_exception","reason":"[b]: version conflict"}}}`
	for _, s := range []string{
		`{"errors":false,"items":[` + ok("a") + `,` + ok("b") + `]}`,
		`{"errors":true,"items":[` + ok("a") + `,` + conflict + `]}`,
		`{"errors":false,"items":[` + ok("b") + `,` + ok("a") + `]}`,
		`{"errors":false,"items":[` + ok("a") + `]}`,
		`{"items":[` + ok("a") + `,{"create":{"_index":".fs-x","_id":"z","failure_store":"used","status":201,"result":"created"}}]}`,
		`{"items":[` + ok("a") + `,{"create":{"_id":"b","status":400,"error":{"type":"document_parsing_exception","reason":"failed to parse field [user.id] of type [long]. Preview of field's value: 'x'"}}}]}`,
		`{"items":[` + ok("a") + `,{"create":{"_id":"b","status":429,"error":"too many"}}]}`,
		`{"items":[` + ok("a") + `,{"create":{"_ID":"b","_id":"c","Status":201,"result":"created"}}]}`,
		`{"items":[null,{"create":null}]}`, `{"error":{"type":"x","reason":"y"},"status":429}`, `{"error":"x"}`, `[`, ``, "\xff",
	} {
		f.Add(200, []byte(s))
		f.Add(503, []byte(s))
	}
	sent := []deliver.Item{{ID: "a"}, {ID: "b"}}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		r := bulkResult(&Answer{Status: status, Header: http.Header{}, Body: body}, sent, elasticTestStream, elasticTestTime, func() {}, "secret")
		all := r.Items
		if all == nil {
			all = []deliver.Result{r, r}
		}
		if len(all) != len(sent) {
			t.Fatalf("%d results", len(all))
		}
		for i, one := range all {
			if one.Class > deliver.Pause || one.Items != nil || len(one.Detail) > maxExcerpt || one.Class != deliver.Done && one.Cause == "" {
				t.Fatalf("%+v", one)
			}
			for _, c := range one.Detail {
				if !unicode.IsPrint(c) {
					t.Fatalf("%q", one.Detail)
				}
			}
			if one.Class == deliver.Done && !(status == 200 && one.Grade == deliver.Durable && vouched(body, i, sent[i].ID, len(sent))) {
				t.Fatalf("item %d is Done by %q", i, body)
			}
		}
	})
}

// vouched reads an answer as a map.
func vouched(body []byte, i int, id string, n int) bool {
	var doc map[string]any
	if json.Unmarshal(body, &doc) != nil {
		return false
	}
	for k, v := range doc {
		items, ok := v.([]any)
		if !ok || len(k) != len("items") || len(items) != n {
			continue
		}
		ops, _ := items[i].(map[string]any)
		op, _ := ops["create"].(map[string]any)
		var ours, there bool
		for k, v := range op {
			ours = ours || len(k) == len("_id") && v == id
			s, _ := v.(float64)
			there = there || len(k) == len("status") && (s == 201 || s == 409)
		}
		if ours && there {
			return true
		}
	}
	return false
}
