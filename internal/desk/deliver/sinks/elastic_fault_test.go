package sinks

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

// elasticFault is one way in which delivery of six records goes wrong before it
// goes well.
type elasticFault struct {
	name   string
	faults []bulkd.Fault
	first  string // what the first request comes to; alternatives are parted by |
	poison int    // how many records end in quarantine
	pauses int    // how often somebody had to act
	twice  bool   // records may be there twice, and some have to be
	cfg    bulkd.Config
	short  time.Duration // the client's patience

	records int // if more than six
}

func one(f bulkd.Fault) []bulkd.Fault { return []bulkd.Fault{f} }

// item forces what becomes of the third record.
func item(i bulkd.Item) []bulkd.Fault { return one(bulkd.Fault{Items: map[int]bulkd.Item{2: i}}) }

func status(code int, body string) []bulkd.Fault {
	return one(bulkd.Fault{Status: code, Body: body})
}

func elasticFailure(code int, kind string) []bulkd.Fault {
	return status(code, fmt.Sprintf(`{"error":{"root_cause":[{"type":%q,"reason":"r"}],"type":%q,"reason":"r"},"status":%d}`, kind, kind, code))
}

var (
	yes, no  = true, false
	asked429 = bulkd.Item{Status: 429, Type: "es_rejected_execution_exception", Reason: "rejected execution of primary operation"}
	mapping  = bulkd.Item{Status: 400, Type: "document_parsing_exception", Reason: "[1:9] failed to parse field [source.ip] of type [ip] in document. Preview of field's value: 'x'"}
	created  = bulkd.Item{Status: 201, Result: "created", Apply: true}
)

func with(i bulkd.Item, change func(*bulkd.Item)) bulkd.Item {
	change(&i)
	return i
}

// elasticConnections are faults of the connection and of what stands before the node.
var elasticConnections = []elasticFault{
	{name: "reset before anything was done", faults: one(bulkd.Fault{Reset: true}), first: "retry reset?"},
	{name: "reset after everything was done", faults: one(bulkd.Fault{Reset: true, Apply: true}), first: "retry reset?"},
	{name: "three resets", faults: []bulkd.Fault{{Reset: true}, {Reset: true, Apply: true}, {Reset: true}}, first: "retry reset?"},
	{name: "no answer", faults: one(bulkd.Fault{Hang: true}), first: "retry timeout?", short: time.Second},
	{name: "no answer, all done", faults: one(bulkd.Fault{Hang: true, Apply: true}), first: "retry timeout?", short: time.Second},
	{name: "cut behind the first byte", faults: one(bulkd.Fault{Cut: 1}), first: "retry reset?|retry closed?"},
	{name: "cut in the first item", faults: one(bulkd.Fault{Cut: 60}), first: "retry reset?|retry closed?"},
	{name: "cut before the end", faults: one(bulkd.Fault{Cut: 700}), first: "retry reset?|retry closed?"},
	{name: "slow", faults: one(bulkd.Fault{Slow: 50 * time.Millisecond}), first: "done"},
	{name: "too slow", faults: one(bulkd.Fault{Slow: 1500 * time.Millisecond}), first: "retry timeout?", short: time.Second},
	{name: "a bomb", faults: one(bulkd.Fault{Bomb: 64}), first: "split answer_too_long?"},
	{name: "compressed though not asked for", faults: one(bulkd.Fault{Bomb: 1}), first: "done"},
	{name: "reset and a rollover", faults: one(bulkd.Fault{Reset: true, Apply: true, Rollover: true}), first: "retry reset?", twice: true},
	{name: "cut and a rollover", faults: one(bulkd.Fault{Cut: 60, Rollover: true}), first: "retry reset?|retry closed?", twice: true},
	{name: "no answer and a rollover", faults: one(bulkd.Fault{Hang: true, Apply: true, Rollover: true}), first: "retry timeout?", twice: true, short: time.Second},
	{name: "rollover in the middle of a batch", cfg: bulkd.Config{RolloverAt: 3}, first: "done"},
	{name: "a page in place of an answer", faults: one(bulkd.Fault{Status: 200, Header: map[string]string{"Content-Type": "text/html"}, Body: "<html>log in</html>"}), first: "retry bad_answer?"},
	{name: "a redirect", faults: one(bulkd.Fault{Status: 302, Header: map[string]string{"Location": "https://login.example.com/"}}), first: "pause http_302", pauses: 1},
	{name: "502 of a proxy, all done", faults: one(bulkd.Fault{Status: 502, Body: "<html>bad gateway</html>", Apply: true}), first: "retry http_502?"},
	{name: "504 of a proxy, all done", faults: one(bulkd.Fault{Status: 504, Body: "", Apply: true}), first: "retry http_504?"},
	{name: "503 of a proxy, all done, and a rollover", faults: one(bulkd.Fault{Status: 503, Body: "upstream reset", Apply: true, Rollover: true}), first: "retry http_503?", twice: true},
	{name: "408", faults: status(408, ""), first: "retry http_408?"},
	{name: "no header of the product", cfg: bulkd.Config{NoHeader: true}, first: "done"},
	{name: "another product", cfg: bulkd.Config{Product: bulkd.OpenSearch}, faults: item(asked429), first: "2 retry item_429"},
	{name: "serverless throttles by items", cfg: bulkd.Config{Product: bulkd.Serverless}, faults: one(bulkd.Fault{All: &asked429}), first: "0 retry item_429, 1 retry item_429, 2 retry item_429, 3 retry item_429, 4 retry item_429, 5 retry item_429"},
}

// elasticWholes are answers to a whole request.
var elasticWholes = []elasticFault{
	{name: "413", faults: status(413, ""), first: "split http_413"},
	{name: "413 again and again", faults: []bulkd.Fault{{Status: 413}, {Status: 413}, {Status: 413}}, first: "split http_413"},
	{name: "413 by the length", cfg: bulkd.Config{MaxBody: 16000}, records: 100, first: "split http_413"},
	{name: "429", faults: elasticFailure(429, "es_rejected_execution_exception"), first: "retry http_429"},
	{name: "429 of a circuit breaker", faults: elasticFailure(429, "circuit_breaking_exception"), first: "retry http_429"},
	{name: "500, all done", faults: one(bulkd.Fault{Status: 500, Body: `{"error":"x","status":500}`, Apply: true}), first: "retry http_500?"},
	{name: "503 without a master", faults: elasticFailure(503, "master_not_discovered_exception"), first: "retry http_503?"},
	{name: "401", faults: elasticFailure(401, "security_exception"), first: "pause http_401", pauses: 1},
	{name: "403", faults: elasticFailure(403, "security_exception"), first: "pause http_403", pauses: 1},
	{name: "403 of a block", faults: elasticFailure(403, "cluster_block_exception"), first: "retry http_403"},
	{name: "404", faults: elasticFailure(404, "index_not_found_exception"), first: "pause http_404", pauses: 1},
	{name: "405", faults: status(405, `{"error":"Incorrect HTTP method"}`), first: "pause http_405", pauses: 1},
	{name: "406", faults: elasticFailure(406, "media_type_header_exception"), first: "pause http_406", pauses: 1},
	{name: "400 about the request", faults: elasticFailure(400, "illegal_argument_exception"), first: "pause http_400", pauses: 1},
	{name: "400 about a document, then not", faults: elasticFailure(400, "x_content_parse_exception"), first: "poison http_400"},
	{name: "400 that is no JSON", faults: status(400, "Bad Request"), first: "pause http_400", pauses: 1},
	{name: "202", faults: status(202, ""), first: "retry http_202?"},
	{name: "204, all done", faults: one(bulkd.Fault{Status: 204, Apply: true}), first: "retry http_204?"},
	{name: "nothing in the answer", faults: status(200, ""), first: "retry bad_answer?"},
	{name: "null", faults: status(200, "null"), first: "retry no_items?"},
	{name: "a list", faults: status(200, "[]"), first: "retry bad_answer?"},
	{name: "items is an object", faults: status(200, `{"items":{}}`), first: "retry bad_answer?"},
	{name: "errors false and no items", faults: status(200, `{"took":1,"errors":false}`), first: "retry no_items?"},
	{name: "errors false and empty items", faults: status(200, `{"took":1,"errors":false,"items":[]}`), first: "retry item_count?"},
	{name: "a second list of items", faults: one(bulkd.Fault{Edit: bulkd.Edit{Truncate: 1, Append: `,"items":[]}`}}), first: "retry bad_answer?"},
	{name: "a byte is missing", faults: one(bulkd.Fault{Edit: bulkd.Edit{Truncate: 1}}), first: "retry bad_answer?"},
	{name: "half is missing", faults: one(bulkd.Fault{Edit: bulkd.Edit{Truncate: 400}}), first: "retry bad_answer?"},
	{name: "something follows", faults: one(bulkd.Fault{Edit: bulkd.Edit{Append: "{}"}}), first: "retry bad_answer?"},
	{name: "a line end follows", faults: one(bulkd.Fault{Edit: bulkd.Edit{Append: "\n"}}), first: "done"},
	{name: "no list", faults: one(bulkd.Fault{Edit: bulkd.Edit{NoItems: true}}), first: "retry no_items?"},
	{name: "the first item is missing", faults: one(bulkd.Fault{Edit: bulkd.Edit{Drop: []int{0}}}), first: "retry item_count?"},
	{name: "the last item is missing", faults: one(bulkd.Fault{Edit: bulkd.Edit{Drop: []int{5}}}), first: "retry item_count?"},
	{name: "all but one are missing", faults: one(bulkd.Fault{Edit: bulkd.Edit{Drop: []int{0, 1, 2, 3, 5}}}), first: "retry item_count?"},
	{name: "one too many", faults: one(bulkd.Fault{Edit: bulkd.Edit{Repeat: []int{1}}}), first: "retry item_count?"},
	{name: "one missing and one twice", faults: one(bulkd.Fault{Edit: bulkd.Edit{Drop: []int{2}, Repeat: []int{5}}}), first: "retry item_id?"},
	{name: "one missing, and a rollover", faults: one(bulkd.Fault{Edit: bulkd.Edit{Drop: []int{2}}, Rollover: true}), first: "retry item_count?", twice: true},
	{name: "two changed places", faults: one(bulkd.Fault{Edit: bulkd.Edit{Swap: [2]int{1, 2}}}), first: "retry item_id?"},
	{name: "first and last changed places", faults: one(bulkd.Fault{Edit: bulkd.Edit{Swap: [2]int{0, 5}}}), first: "retry item_id?"},
	{name: "a refused one and a created one changed places", faults: one(bulkd.Fault{Items: map[int]bulkd.Item{2: asked429}, Edit: bulkd.Edit{Swap: [2]int{2, 3}}}), first: "retry item_id?"},
	{name: "a null among the items", faults: one(bulkd.Fault{Edit: bulkd.Edit{Null: []int{4}}}), first: "retry item_operation?"},
	{name: "another operation", faults: one(bulkd.Fault{Edit: bulkd.Edit{Op: "index"}}), first: "retry item_operation?"},
	{name: "two operations in one item", faults: one(bulkd.Fault{Edit: bulkd.Edit{Both: []int{1}}}), first: "retry item_operation?"},
	{name: "errors false, and one refused", faults: one(bulkd.Fault{Items: map[int]bulkd.Item{2: asked429}, Edit: bulkd.Edit{Errors: &no}}), first: "2 retry item_429"},
	{name: "errors false, and one poisonous", faults: one(bulkd.Fault{Items: map[int]bulkd.Item{2: mapping}, Edit: bulkd.Edit{Errors: &no}}), first: "2 poison mapping", poison: 1},
	{name: "errors true, and none", faults: one(bulkd.Fault{Edit: bulkd.Edit{Errors: &yes}}), first: "done"},
}

// elasticItems are what becomes of single items.
var elasticItems = []elasticFault{
	{name: "one 429", faults: item(asked429), first: "2 retry item_429"},
	{name: "all but one 429", faults: one(bulkd.Fault{All: &asked429, Items: map[int]bulkd.Item{2: created}}), first: "0 retry item_429, 1 retry item_429, 3 retry item_429, 4 retry item_429, 5 retry item_429"},
	{name: "429 and it was kept", faults: item(with(asked429, func(i *bulkd.Item) { i.Apply = true })), first: "2 retry item_429"},
	{name: "429 of a full disk", faults: item(bulkd.Item{Status: 429, Type: "cluster_block_exception", Reason: "index [x] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded]"}), first: "2 retry item_429"},
	{name: "503", faults: item(bulkd.Item{Status: 503, Type: "unavailable_shards_exception", Reason: "primary shard is not active"}), first: "2 retry item_503?"},
	{name: "503 and it was kept", faults: item(bulkd.Item{Status: 503, Type: "unavailable_shards_exception", Reason: "r", Apply: true}), first: "2 retry item_503?"},
	{name: "503, it was kept, and a rollover", faults: one(bulkd.Fault{Rollover: true, Items: map[int]bulkd.Item{2: {Status: 503, Type: "node_closed_exception", Reason: "r", Apply: true}}}), first: "2 retry item_503?", twice: true},
	{name: "500", faults: item(bulkd.Item{Status: 500, Type: "exception", Reason: "r", Apply: true}), first: "2 retry item_500?"},
	{name: "502", faults: item(bulkd.Item{Status: 502, Type: "exception", Reason: "r"}), first: "2 retry item_502?"},
	{name: "504", faults: item(bulkd.Item{Status: 504, Type: "exception", Reason: "r"}), first: "2 retry item_504?"},
	{name: "400 of the mapping", faults: item(mapping), first: "2 poison mapping", poison: 1},
	{name: "400 of a strict mapping", faults: item(bulkd.Item{Status: 400, Type: "strict_dynamic_mapping_exception", Reason: "mapping set to strict, dynamic introduction of [a] within [_doc] is not allowed"}), first: "2 poison mapping", poison: 1},
	{name: "400 of a long term", faults: item(bulkd.Item{Status: 400, Type: "illegal_argument_exception", Reason: "immense term"}), first: "2 poison item_400", poison: 1},
	{name: "all 400", faults: one(bulkd.Fault{All: &mapping}), first: "0 poison mapping, 1 poison mapping, 2 poison mapping, 3 poison mapping, 4 poison mapping, 5 poison mapping", poison: 6},
	{name: "the failure store took it", faults: item(bulkd.Item{Status: 201, Result: "created", FailureStore: "used", ID: "fs-1", Index: ".fs-logs-gatebook.audit-default-2026.11.28-000001"}), first: "2 poison failure_store", poison: 1},
	{name: "the failure store took it under our id", faults: item(bulkd.Item{Status: 201, Result: "created", FailureStore: "used"}), first: "2 poison failure_store", poison: 1},
	{name: "an index of the failure store and no flag", faults: item(bulkd.Item{Status: 201, Result: "created", Index: ".fs-logs-gatebook.audit-default-2026.11.28-000001"}), first: "2 poison failure_store", poison: 1},
	{name: "the failure store took them all", faults: one(bulkd.Fault{All: &bulkd.Item{Status: 201, Result: "created", FailureStore: "used", ID: "fs-2"}}), first: "0 poison failure_store, 1 poison failure_store, 2 poison failure_store, 3 poison failure_store, 4 poison failure_store, 5 poison failure_store", poison: 6},
	{name: "the failure store refused it", faults: item(with(mapping, func(i *bulkd.Item) { i.FailureStore = "failed" })), first: "2 poison mapping", poison: 1},
	{name: "the failure store refused it for now", faults: item(with(asked429, func(i *bulkd.Item) { i.FailureStore = "failed" })), first: "2 retry item_429"},
	{name: "no failure store", faults: item(with(mapping, func(i *bulkd.Item) { i.FailureStore = "not_enabled" })), first: "2 poison mapping", poison: 1},
	{name: "nothing known of a failure store", faults: item(with(created, func(i *bulkd.Item) { i.FailureStore = "not_applicable_or_unknown" })), first: "done"},
	{name: "a pipeline dropped it", faults: item(bulkd.Item{Status: 200, Result: "noop"}), first: "2 poison dropped_by_pipeline", poison: 1},
	{name: "a pipeline gave it another id", faults: item(with(created, func(i *bulkd.Item) { i.ID = "another" })), first: "retry item_id?"},
	{name: "201 and nothing else", faults: item(bulkd.Item{Status: 201, Bare: true}), first: "pause item_without_id?", pauses: 1},
	{name: "201 of another result", faults: item(bulkd.Item{Status: 201, Result: "updated"}), first: "2 retry item_result?"},
	{name: "201 without a result", faults: item(bulkd.Item{Status: 201}), first: "2 retry item_result?"},
	{name: "201 with an error", faults: item(bulkd.Item{Status: 201, Result: "created", Type: "exception", Reason: "r"}), first: "2 retry item_result?"},
	{name: "200 updated", faults: item(bulkd.Item{Status: 200, Result: "updated"}), first: "2 retry item_result?"},
	{name: "no status", faults: item(bulkd.Item{Result: "created"}), first: "2 retry item_result?"},
	{name: "a negative status", faults: item(bulkd.Item{Status: -201, Result: "created"}), first: "2 retry item_result?"},
	{name: "another conflict", faults: item(bulkd.Item{Status: 409, Type: "index_closed_exception", Reason: "closed"}), first: "2 retry item_result?"},
	{name: "a conflict without a type", faults: item(bulkd.Item{Status: 409}), first: "2 retry item_result?"},
	{name: "a conflict over another id", faults: item(bulkd.Item{Status: 409, Type: "version_conflict_engine_exception", Reason: "r", ID: "another"}), first: "retry item_id?"},
	{name: "may not", faults: item(bulkd.Item{Status: 403, Type: "security_exception", Reason: "action is unauthorized"}), first: "2 pause item_403", pauses: 1},
	{name: "401 of an item", faults: item(bulkd.Item{Status: 401, Type: "security_exception", Reason: "r"}), first: "2 pause item_401", pauses: 1},
	{name: "no index", faults: item(bulkd.Item{Status: 404, Type: "index_not_found_exception", Reason: "no such index"}), first: "2 pause item_404", pauses: 1},
	{name: "a block", faults: item(bulkd.Item{Status: 403, Type: "cluster_block_exception", Reason: "index [x] blocked by: [FORBIDDEN/8/index write (api)]"}), first: "2 retry cluster_block"},
	{name: "a little of everything", faults: one(bulkd.Fault{Items: map[int]bulkd.Item{0: asked429, 1: mapping, 3: {Status: 503, Type: "unavailable_shards_exception", Reason: "r"}, 4: {Status: 403, Type: "security_exception", Reason: "r"}}}), first: "0 retry item_429, 1 poison mapping, 3 retry item_503?, 4 pause item_403", poison: 1, pauses: 1},
	{name: "trouble upon trouble", faults: []bulkd.Fault{{Items: map[int]bulkd.Item{1: asked429, 4: asked429}}, {Reset: true, Apply: true}, {Status: 503}, {Edit: bulkd.Edit{Drop: []int{0}}}}, first: "1 retry item_429, 4 retry item_429"},
}

func elasticFaults() []elasticFault {
	return append(append(append([]elasticFault{}, elasticConnections...), elasticWholes...), elasticItems...)
}

// Whatever goes wrong: nothing is Done that is not there, everything ends in the
// stream or in quarantine, and nothing is there twice that was not in doubt.
func TestElasticFaults(t *testing.T) {
	if n := len(elasticFaults()); n < 100 {
		t.Fatalf("%d faults", n)
	}
	for _, tt := range elasticFaults() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv, _ := elasticServer(t, tt.cfg)
			e := newElastic(t, srv, func(s *ElasticSettings) {
				if tt.short != 0 {
					s.Timeout = tt.short
				}
			})
			srv.Script(tt.faults...)
			items := elasticRecords(max(6, tt.records))
			r := &run{t: t, srv: srv, sink: e}
			r.deliver(items)
			r.settled(items, tt.twice)
			if !slices.Contains(strings.Split(tt.first, "|"), r.first) {
				t.Errorf("first %q, want %q", r.first, tt.first)
			}
			if len(r.poisoned) != tt.poison || r.pauses != tt.pauses {
				t.Errorf("%d in quarantine, %d pauses; want %d, %d", len(r.poisoned), r.pauses, tt.poison, tt.pauses)
			}
			if n := srv.Left(); n != 0 {
				t.Errorf("%d faults were not played", n)
			}
		})
	}
}

// What the mapping of the server itself refuses.
func TestElasticMisfits(t *testing.T) {
	for _, tt := range []struct {
		name, old, new string
		want           string // without and with a failure store
		stored         string
	}{
		{"an object where a value is mapped", `"ip":"192.0.2.2"`, `"ip":{"a":1}`, "2 poison mapping", "2 poison failure_store"},
		{"a value where an object is mapped", `"gatebook":{"kind":"request"}`, `"gatebook":"request"`, "2 poison mapping", "2 poison failure_store"},
		{"no time", `{"@timestamp":"2026-11-28T12:00:00.125456Z"`, `{"@timestamp":"yesterday"`, "2 poison mapping", "2 poison failure_store"},
		{"not JSON", `}}`, `}`, "2 poison mapping", "2 poison failure_store"},
		{"a malformed address", `"ip":"192.0.2.2"`, `"ip":"unix"`, "done", "done"},
		{"a number that is none", `"status_code":200`, `"status_code":"many"`, "done", "done"},
		{"a field of nobody", `"kind":"request"`, `"kind":"request","x":{"y":[1,"a",{"z":null}]}`, "done", "done"},
		{"a long term", `"kind":"request"`, `"kind":"` + strings.Repeat("\u20ac", 20000) + `"`, "done", "done"},
	} {
		for _, store := range []bool{false, true} {
			srv, e := elasticServer(t, bulkd.Config{FailureStore: store})
			items := elasticRecords(4)
			bad := strings.Replace(string(items[2].Body), tt.old, tt.new, 1)
			if bad == string(items[2].Body) {
				t.Fatalf("%s: nothing to replace in %s", tt.name, bad)
			}
			items[2].Body = []byte(bad)
			want := tt.want
			if store {
				want = tt.stored
			}
			r := &run{t: t, srv: srv, sink: e}
			r.deliver(items)
			r.settled(items, false)
			if r.first != want {
				t.Errorf("%s, failure store %v: %s, want %s", tt.name, store, r.first, want)
			}
			if n := len(srv.Failed(elasticTestStream)); (n == 1) != (store && want != "done") {
				t.Errorf("%s, failure store %v: %d in it", tt.name, store, n)
			}
		}
	}
}

func TestElasticWaitsAsAsked(t *testing.T) {
	srv, e := elasticServer(t, bulkd.Config{})
	e.now = func() time.Time { return elasticTestTime }
	for header, want := range map[string]time.Duration{
		"7": 7 * time.Second, elasticTestTime.Add(90 * time.Second).Format(http.TimeFormat): 90*time.Second - 123456*time.Microsecond,
		"": 0, "soon": 0, "99999999999": time.Hour,
	} {
		srv.Script(bulkd.Fault{Status: 429, Header: map[string]string{"Retry-After": header}})
		if r := e.Send(t.Context(), &deliver.Batch{Items: elasticRecords(1), Attempt: 1}); r.After != want {
			t.Errorf("%q: %v, want %v", header, r.After, want)
		}
		srv.Script(bulkd.Fault{All: &asked429, Header: map[string]string{"Retry-After": header}})
		if r := e.Send(t.Context(), &deliver.Batch{Items: elasticRecords(1), Attempt: 1}); r.Items[0].After != want {
			t.Errorf("item, %q: %v, want %v", header, r.Items[0].After, want)
		}
	}
}

// What a parser has against a whole request quotes a record, too.
func TestElasticRefusalQuotesNothing(t *testing.T) {
	a := &Answer{Status: 400, Body: []byte(`{"error":{"type":"mapper_parsing_exception","reason":"failed to parse field [user.email] of type [ip]. Preview of field's value: 'anna@example.org'"},"status":400}`)}
	if r := bulkRefused(a, start); r.Class != deliver.Poison || r.Detail != "mapper_parsing_exception: field user.email" {
		t.Errorf("%+v", r)
	}
}
