package sinks

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

const (
	elasticTestOrigin = "log.example.com/test"
	elasticTestStream = "logs-gatebook.audit-default"
)

var elasticTestTime = time.Date(2026, 11, 28, 12, 0, 0, 123456000, time.UTC)

// elasticRecords are n records as the projection ecs makes them, in short.
func elasticRecords(n int) []deliver.Item {
	items := make([]deliver.Item, n)
	for i := range items {
		at := elasticTestTime.Add(time.Duration(i) * time.Millisecond)
		id := deliver.EventID(elasticTestOrigin, uint64(i))
		items[i] = deliver.Item{Index: uint64(i), ID: id, Time: at, Kind: "request", Body: fmt.Appendf(nil,
			`{"@timestamp":%q,"ecs":{"version":"9.4.0"},"event":{"id":%q,"kind":"event","sequence":%d,"outcome":"success"},"source":{"address":"192.0.2.0/24","ip":"192.0.2.%d"},"http":{"response":{"status_code":200}},"gatebook":{"kind":"request"}}`,
			at.Format(time.RFC3339Nano), id, i, i%250)}
	}
	return items
}

// newElastic is a sink before a server that has been set up for it.
func newElastic(t testing.TB, srv *bulkd.Server, change func(*ElasticSettings)) *Elastic {
	t.Helper()
	s := ElasticSettings{Settings: Settings{URL: srv.URL, Timeout: 20 * time.Second}, Stream: elasticTestStream}
	if change != nil {
		change(&s)
	}
	e, err := NewElastic(s)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func elasticServer(t testing.TB, cfg bulkd.Config) (*bulkd.Server, *Elastic) {
	t.Helper()
	srv := bulkd.Start(t, cfg)
	e := newElastic(t, srv, nil)
	if did, err := e.Bootstrap(t.Context(), ElasticSetup{}); err != nil {
		t.Fatalf("%v %v", did, err)
	}
	return srv, e
}

func constant(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// story is a result in words: "retry reset?" is an ambiguous retry.
func story(r deliver.Result) string {
	if r.Items != nil {
		var out []string
		for i, one := range r.Items {
			if one.Class != deliver.Done {
				out = append(out, fmt.Sprintf("%d %s", i, story(one)))
			}
		}
		return strings.Join(out, ", ")
	}
	if r.Class == deliver.Done {
		return "done"
	}
	s := []string{"done", "retry", "split", "poison", "pause"}[r.Class] + " " + r.Cause
	if r.Ambiguous {
		s += "?"
	}
	return s
}

// run does with batches what any engine has to, and holds every Done against what
// the server holds.
type run struct {
	t         *testing.T
	srv       *bulkd.Server
	sink      *Elastic
	first     string // the first result
	done      map[string]bool
	poisoned  map[string]deliver.Result
	ambiguous bool
	pauses    int
	sends     int
}

type work struct {
	items   []deliver.Item
	attempt int
}

func (r *run) deliver(items []deliver.Item) {
	r.t.Helper()
	r.done, r.poisoned = map[string]bool{}, map[string]deliver.Result{}
	queue := []work{{items, 1}}
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		if r.sends++; r.sends > 100 {
			r.t.Fatalf("no end of it: %s", r.first)
		}
		res := r.sink.Send(r.t.Context(), &deliver.Batch{Items: w.items, Planned: elasticTestTime, Attempt: w.attempt})
		if r.sends == 1 {
			r.first = story(res)
		}
		queue = append(queue, r.settle(w, res)...)
	}
}

func (r *run) settle(w work, res deliver.Result) []work {
	r.t.Helper()
	if res.Items == nil {
		return r.settleWhole(w, res)
	}
	if len(res.Items) != len(w.items) {
		r.t.Fatalf("%d results for %d items", len(res.Items), len(w.items))
	}
	var again []deliver.Item
	for i, one := range res.Items {
		r.check(one)
		switch one.Class {
		case deliver.Done:
			r.held(w.items[i])
		case deliver.Poison:
			r.poisoned[w.items[i].ID] = one
		case deliver.Pause:
			r.pauses++
			again = append(again, w.items[i])
		default:
			again = append(again, w.items[i])
		}
	}
	if again == nil {
		return nil
	}
	return []work{{again, w.attempt + 1}}
}

func (r *run) settleWhole(w work, res deliver.Result) []work {
	r.check(res)
	switch {
	case res.Class == deliver.Done:
		for _, it := range w.items {
			r.held(it)
		}
		return nil
	case (res.Class == deliver.Split || res.Class == deliver.Poison) && len(w.items) > 1:
		half := len(w.items) / 2
		return []work{{w.items[:half], 1}, {w.items[half:], 1}}
	case res.Class == deliver.Poison:
		r.poisoned[w.items[0].ID] = res
		return nil
	case res.Class == deliver.Pause:
		r.pauses++
	}
	return []work{{w.items, w.attempt + 1}}
}

func (r *run) check(res deliver.Result) {
	r.t.Helper()
	r.ambiguous = r.ambiguous || res.Ambiguous
	if len(res.Detail) > maxExcerpt {
		r.t.Errorf("a detail of %d bytes", len(res.Detail))
	}
	if res.Class == deliver.Done && res.Grade != deliver.Durable {
		r.t.Errorf("done at %v", res.Grade)
	}
	if res.Class != deliver.Done && res.Cause == "" {
		r.t.Errorf("no cause: %+v", res)
	}
}

// held is the oracle of Done.
func (r *run) held(it deliver.Item) {
	r.t.Helper()
	if r.srv.Held(elasticTestStream)[it.ID] == 0 {
		r.t.Errorf("%s is Done and not in the stream", it.ID)
	}
	r.done[it.ID] = true
}

// settled is the oracle of the end: everything that was sent is in the stream or in
// quarantine, once, but for what was in doubt when the stream rolled over.
func (r *run) settled(items []deliver.Item, duplicates bool) {
	r.t.Helper()
	held := r.srv.Held(elasticTestStream)
	twice := 0
	for _, it := range items {
		_, bad := r.poisoned[it.ID]
		if r.done[it.ID] == bad {
			r.t.Errorf("%s: done %v, poisoned %v", it.ID, r.done[it.ID], bad)
		}
		if held[it.ID] > 1 {
			twice++
		}
		delete(held, it.ID)
	}
	if len(held) > 0 {
		r.t.Errorf("held and not sent: %v", held)
	}
	if twice > 0 && !(duplicates && r.ambiguous) {
		r.t.Errorf("%d records twice, in doubt: %v", twice, r.ambiguous)
	}
	if duplicates && twice == 0 {
		r.t.Error("no record twice: the fault did not happen")
	}
}

func TestElasticDelivers(t *testing.T) {
	for name, cfg := range map[string]bulkd.Config{
		"elasticsearch":       {},
		"older elasticsearch": {Version: "7.17.29", NoHeader: true},
		"opensearch":          {Product: bulkd.OpenSearch},
		"serverless":          {Product: bulkd.Serverless},
		"many rollovers":      {RolloverAt: 7},
	} {
		for _, gzip := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " gzip ", gzip), func(t *testing.T) {
				srv, _ := elasticServer(t, cfg)
				e := newElastic(t, srv, func(s *ElasticSettings) { s.Gzip = gzip })
				items := elasticRecords(300)
				r := &run{t: t, srv: srv, sink: e}
				r.deliver(items)
				r.settled(items, false)
				if r.first != "done" || r.sends != 1 {
					t.Errorf("%s in %d", r.first, r.sends)
				}
				if docs := srv.Docs(elasticTestStream); len(docs) != 300 || string(docs[7].Source) != string(items[7].Body) {
					t.Errorf("%d documents, one is %s", len(docs), docs[7].Source)
				}
				// Again: known, and done.
				if cfg.RolloverAt == 0 {
					if res := e.Send(t.Context(), &deliver.Batch{Items: items, Attempt: 2}); story(res) != "done" || len(srv.Docs(elasticTestStream)) != 300 {
						t.Errorf("again: %s", story(res))
					}
				}
			})
		}
	}
}

func TestElasticRefusesSettings(t *testing.T) {
	for _, tt := range []struct {
		want   string
		change func(*ElasticSettings)
	}{
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "Logs" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "logs-*" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "a/_doc" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "a?b" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "a%2fb" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = ".hidden" }},
		{"no name of a data stream", func(s *ElasticSettings) { s.Stream = "b\u00fccher" }},
		{"a credential has a kind", func(s *ElasticSettings) { s.Credential = constant("x") }},
		{"a credential has a kind", func(s *ElasticSettings) { s.Auth = ElasticBearer }},
		{"no colon", func(s *ElasticSettings) { s.Auth, s.Credential = ElasticBasic, constant("user") }},
		{"api_key, basic or bearer", func(s *ElasticSettings) { s.Auth, s.Credential = "oauth", constant("user") }},
		{"no credential in it", func(s *ElasticSettings) {
			s.Auth, s.Credential = ElasticBearer, func() (string, error) { return checkSecret("") }
		}},
		{"at most 10,000", func(s *ElasticSettings) { s.Items = 10001 }},
		{"http to another machine", func(s *ElasticSettings) { s.URL = "http://es.example.com" }},
	} {
		s := ElasticSettings{Settings: Settings{URL: "https://es.example.com"}, Stream: "logs-gatebook.audit-default"}
		tt.change(&s)
		if _, err := NewElastic(s); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", s.Stream, err, tt.want)
		}
	}
}

func TestElasticPoisonBeforeSending(t *testing.T) {
	srv, e := elasticServer(t, bulkd.Config{})
	for name, tt := range map[string]struct{ body, want string }{
		"line break": {"{\"@timestamp\":1,\n\"a\":1}", "poison line_break"},
		"return":     {"{\"@timestamp\":1,\r\"a\":1}", "poison line_break"},
		"no time":    {`{"time":1}`, "pause projection"},
		"empty":      {``, "pause projection"},
	} {
		items := elasticRecords(1)
		items[0].Body = []byte(tt.body)
		if got := story(e.Send(t.Context(), &deliver.Batch{Items: items, Attempt: 1})); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	if n := len(srv.Requests("/_bulk")); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// A request that nobody can read to its end is cut in halves, once it has been tried.
func TestElasticHalvesWhatIsAlwaysReset(t *testing.T) {
	srv, e := elasticServer(t, bulkd.Config{})
	items := elasticRecords(2)
	long := strings.Repeat("x", smallBody)
	for i := range items {
		items[i].Body = []byte(strings.Replace(string(items[i].Body), `"gatebook":{`, `"gatebook":{"op":"`+long+`",`, 1))
	}
	for attempt, want := range []string{"retry reset?", "retry reset?", "split reset?"} {
		srv.Script(bulkd.Fault{Reset: true})
		if got := story(e.Send(t.Context(), &deliver.Batch{Items: items, Attempt: attempt + 1})); got != want {
			t.Errorf("attempt %d: %s, want %s", attempt+1, got, want)
		}
	}
	srv.Script(bulkd.Fault{Reset: true})
	if got := story(e.Send(t.Context(), &deliver.Batch{Items: items[:1], Attempt: 9})); got != "retry reset?" {
		t.Errorf("one record: %s", got)
	}
}

func TestElasticNobodyThere(t *testing.T) {
	e, err := NewElastic(ElasticSettings{Settings: Settings{URL: "http://127.0.0.1:1"}, Stream: elasticTestStream})
	if err != nil {
		t.Fatal(err)
	}
	if got := story(e.Send(t.Context(), &deliver.Batch{Items: elasticRecords(2), Attempt: 5})); got != "retry refused" {
		t.Error(got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := story(e.Send(ctx, &deliver.Batch{Items: elasticRecords(2), Attempt: 1})); got != "retry canceled" {
		t.Error(got)
	}
	if err := e.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

// Answers as the vendors' documentation has them, and what they mean.
func TestElasticDocumentedAnswers(t *testing.T) {
	sent := []deliver.Item{{ID: "1"}, {ID: "2"}}
	ok := `{"create":{"_index":".ds-x-2026.11.28-000001","_id":"2","_version":1,"result":"created","_shards":{"total":2,"successful":1,"failed":0},"status":201,"_seq_no":1,"_primary_term":1}}`
	for name, tt := range map[string]struct{ item, want string }{
		"created":                 {`{"create":{"_index":"x","_id":"1","_version":1,"result":"created","_shards":{"total":2,"successful":1,"failed":0},"status":201,"_seq_no":0,"_primary_term":1}}`, "done"},
		"plain index":             {`{"create":{"_index":"` + elasticTestStream + `","_id":"1","_version":1,"result":"created","_shards":{"total":2,"successful":1,"failed":0},"status":201,"_seq_no":0,"_primary_term":1}}`, "0 pause plain_index"},
		"known to a plain index":  {`{"create":{"_index":"` + elasticTestStream + `","_id":"1","status":409,"error":{"type":"version_conflict_engine_exception","reason":"[1]: version conflict, document already exists (current version [1])"}}}`, "0 pause plain_index"},
		"conflict":                {`{"create":{"_index":"x","_id":"1","status":409,"error":{"type":"version_conflict_engine_exception","reason":"[1]: version conflict, document already exists (current version [1])","index_uuid":"u","shard":"0","index":"x"}}}`, ""},
		"failure store":           {`{"create":{"_index":".fs-x-2025.05.01-000002","_id":"dEngApcB8JHZk5kzcAaw","_version":1,"result":"created","_shards":{"total":1,"successful":1,"failed":0},"_seq_no":0,"_primary_term":1,"failure_store":"used","status":201}}`, "0 poison failure_store"},
		"failure store is off":    {`{"create":{"_index":".ds-x","_id":"1","status":400,"failure_store":"not_enabled","error":{"type":"document_parsing_exception","reason":"[1:7] failed to parse field [source.ip] of type [ip] in document with id '1'. Preview of field's value: 'Anna'"}}}`, "0 poison mapping"},
		"failure store failed":    {`{"create":{"_index":".ds-x","_id":"1","status":400,"failure_store":"failed","error":{"type":"document_parsing_exception","reason":"x"}}}`, "0 poison mapping"},
		"rejected":                {`{"create":{"_index":".ds-x","_id":"1","status":429,"error":{"type":"es_rejected_execution_exception","reason":"rejected execution of primary operation [coordinating_and_primary_bytes=1]"}}}`, "0 retry item_429"},
		"opensearch rejected":     {`{"create":{"_index":".ds-x","_id":"1","status":429,"error":{"type":"rejected_execution_exception","reason":"rejected execution of coordinating operation"}}}`, "0 retry item_429"},
		"shard is not there":      {`{"create":{"_index":".ds-x","_id":"1","status":503,"error":{"type":"unavailable_shards_exception","reason":"[.ds-x][0] primary shard is not active Timeout: [1m]"}}}`, "0 retry item_503?"},
		"may not":                 {`{"create":{"_index":"x","_id":"1","status":403,"error":{"type":"security_exception","reason":"action [indices:admin/auto_create] is unauthorized"}}}`, "0 pause item_403"},
		"disk full":               {`{"create":{"_index":".ds-x","_id":"1","status":429,"error":{"type":"cluster_block_exception","reason":"index [.ds-x] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has read-only-allow-delete block];"}}}`, "0 retry item_429"},
		"disk full in opensearch": {`{"create":{"_index":".ds-x","_id":"1","status":403,"error":{"type":"cluster_block_exception","reason":"index [.ds-x] blocked by: [FORBIDDEN/10/cluster create-index blocked (api)];"}}}`, "0 retry cluster_block"},
		"dropped by a pipeline":   {`{"create":{"_index":"x","_id":"1","_version":-3,"result":"noop","_shards":{"total":0,"successful":0,"failed":0},"status":200}}`, "0 poison dropped_by_pipeline"},
	} {
		a := &Answer{Status: 200, Body: []byte(`{"took":7,"errors":true,"items":[` + tt.item + `,` + ok + `]}`)}
		r := bulkResult(a, sent, elasticTestStream, elasticTestTime, func() {})
		got := story(r)
		if got != tt.want && !(tt.want == "" && r.Class == deliver.Done) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		if strings.Contains(fmt.Sprint(r), "Anna") {
			t.Errorf("%s: the value of a field is in %v", name, r)
		}
		if name == "failure store is off" && r.Items[0].Detail != "document_parsing_exception: field source.ip" {
			t.Errorf("detail %q", r.Items[0].Detail)
		}
	}
}

// A credential is read again where it is kept, and the old one is forgotten.
func TestElasticRenews(t *testing.T) {
	now := "id1:key1"
	srv := bulkd.Start(t, bulkd.Config{Principals: []bulkd.Principal{
		{Name: "admin", Basic: "elastic:changeme", Cluster: []string{"all"}, Indices: []bulkd.Grant{{Names: []string{"*"}, Privileges: []string{"all"}}}},
		{Name: "old", APIKey: "id1:key1", Cluster: []string{"monitor"}, Indices: []bulkd.Grant{{Names: []string{"logs-*"}, Privileges: []string{"create_doc", "auto_configure"}}}},
		{Name: "new", APIKey: "id2:key2", Cluster: []string{"monitor"}, Indices: []bulkd.Grant{{Names: []string{"logs-*"}, Privileges: []string{"create_doc", "auto_configure"}}}},
	}})
	e := newElastic(t, srv, func(s *ElasticSettings) {
		s.Auth, s.Credential = ElasticAPIKey, func() (string, error) { return now, nil }
	})
	if _, err := e.Bootstrap(t.Context(), ElasticSetup{Auth: ElasticBasic, Credential: "elastic:changeme"}); err != nil {
		t.Fatal(err)
	}
	send := func() string {
		return story(e.Send(t.Context(), &deliver.Batch{Items: elasticRecords(2), Attempt: 1}))
	}
	if got := send(); got != "done" {
		t.Error(got)
	}
	srv.Deny("old", true)
	if got := send(); got != "pause http_401" {
		t.Error(got)
	}
	if changed, err := e.Renew(); changed || err != nil {
		t.Error(changed, err)
	}
	now = "id2:key2"
	if changed, err := e.Renew(); !changed || err != nil {
		t.Error(changed, err)
	}
	if got := send(); got != "done" {
		t.Error(got)
	}
	var by []string
	for _, r := range srv.Requests("/_bulk") {
		by = append(by, r.Principal)
	}
	if !slices.Equal(by, []string{"old", "", "new"}) {
		t.Error(by)
	}
}
