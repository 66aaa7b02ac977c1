package sinks

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

// elasticRoles are the principals of docs/sinks/elasticsearch.md, read from there, so
// that what can be pasted is what was tried.
func elasticRoles(t *testing.T, open bool) []bulkd.Principal {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "sinks", "elasticsearch.md"))
	if err != nil {
		t.Fatal(err)
	}
	var out []bulkd.Principal
	for _, name := range []string{"gatebook-ship", "gatebook-compare", "gatebook-setup"} {
		request := "PUT /_security/role/" + name
		if open {
			request = "PUT /_plugins/_security/api/roles/" + name
		}
		_, rest, found := strings.Cut(string(doc), request+"\n")
		body, _, closed := strings.Cut(rest, "```")
		if !found || !closed {
			t.Fatalf("no %s in the document", request)
		}
		var role struct {
			Cluster []string `json:"cluster"`
			Indices []struct{ Names, Privileges []string }
			OCl     []string `json:"cluster_permissions"`
			OIx     []struct {
				Patterns []string `json:"index_patterns"`
				Allowed  []string `json:"allowed_actions"`
			} `json:"index_permissions"`
		}
		dec := json.NewDecoder(strings.NewReader(body))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&role); err != nil {
			t.Fatalf("%s: %v", request, err)
		}
		p := bulkd.Principal{Name: name, Basic: name + ":pw", Cluster: append(role.Cluster, role.OCl...)}
		for _, ix := range role.Indices {
			p.Indices = append(p.Indices, bulkd.Grant{Names: ix.Names, Privileges: ix.Privileges})
		}
		for _, ix := range role.OIx {
			p.Indices = append(p.Indices, bulkd.Grant{Names: ix.Patterns, Privileges: ix.Allowed})
		}
		out = append(out, p)
	}
	return out
}

func as(name string) func(*ElasticSettings) {
	return func(s *ElasticSettings) { s.Auth, s.Credential = ElasticBasic, constant(name+":pw") }
}

// The roles that the document gives suffice, and each for nothing more than its part.
func TestElasticLeastPrivileges(t *testing.T) {
	for _, product := range []bulkd.Product{bulkd.Elasticsearch, bulkd.OpenSearch, bulkd.Serverless} {
		t.Run(fmt.Sprint(product), func(t *testing.T) {
			open := product == bulkd.OpenSearch
			srv := bulkd.Start(t, bulkd.Config{Product: product, Principals: elasticRoles(t, open)})
			ship := newElastic(t, srv, func(s *ElasticSettings) {
				as("gatebook-ship")(s)
				s.Read = constant("gatebook-compare:pw")
			})
			items := elasticRecords(20)
			batch := &deliver.Batch{Items: items, Attempt: 1}
			window := deliver.Window{Origin: elasticTestOrigin, To: 20, Since: items[0].Time, Until: items[19].Time}

			if err := ship.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "no template") {
				t.Errorf("before setting up: %v", err)
			}
			if _, err := ship.Bootstrap(t.Context(), ElasticSetup{Auth: ElasticBasic, Credential: "gatebook-ship:pw"}); err == nil || !strings.Contains(err.Error(), "needs more privileges") {
				t.Errorf("setting up with what ships: %v", err)
			}
			setup := ElasticSetup{Auth: ElasticBasic, Credential: "gatebook-setup:pw", Lifecycle: true, KeepDays: 400}
			if did, err := ship.Bootstrap(t.Context(), setup); err != nil {
				t.Fatalf("%v %v", did, err)
			}
			if err := ship.Test(t.Context()); err != nil {
				t.Errorf("after setting up: %v", err)
			}
			if r := ship.Send(t.Context(), batch); story(r) != "done" {
				t.Errorf("%+v", r)
			}
			n := 0
			if err := ship.Find(t.Context(), window, func(string) error { n++; return nil }); err != nil || n != 20 {
				t.Errorf("%d found, %v", n, err)
			}

			compare, blind := newElastic(t, srv, as("gatebook-compare")), newElastic(t, srv, as("gatebook-ship"))
			if r := compare.Send(t.Context(), batch); !strings.Contains(story(r), "pause") {
				t.Errorf("what compares can write: %s", story(r))
			}
			if err := blind.Find(t.Context(), window, func(string) error { return nil }); err == nil || !strings.Contains(err.Error(), "privilege to read") {
				t.Errorf("what ships can search: %v", err)
			}
			if err := compare.Test(t.Context()); !open && (err == nil || !strings.Contains(err.Error(), "give it monitor on the cluster")) {
				t.Errorf("what compares passes for what ships: %v", err)
			}
		})
	}
}

func TestElasticTestSays(t *testing.T) {
	all := []bulkd.Grant{{Names: []string{"*"}, Privileges: []string{"all", "unlimited"}}}
	for _, tt := range []struct {
		name, want string
		cfg        bulkd.Config
		fault      *bulkd.Fault
		as         string
	}{
		{"unknown", "the credential is not believed (401", bulkd.Config{Principals: []bulkd.Principal{{Name: "a", Basic: "a:pw"}}}, nil, "b"},
		{"unknown to opensearch", "the credential is not believed (401: Unauthorized)", bulkd.Config{Product: bulkd.OpenSearch, Principals: []bulkd.Principal{{Name: "a", Basic: "a:pw"}}}, nil, "b"},
		{"no monitor", "give it monitor on the cluster", bulkd.Config{Principals: []bulkd.Principal{{Name: "a", Basic: "a:pw", Indices: all}}}, nil, "a"},
		{"only reading", "lacks the privileges: auto_configure on logs-gatebook.audit-default, create_doc on logs-gatebook.audit-default", bulkd.Config{Principals: []bulkd.Principal{{Name: "a", Basic: "a:pw", Cluster: []string{"monitor"}, Indices: []bulkd.Grant{{Names: []string{"logs-*"}, Privileges: []string{"read"}}}}}}, nil, "a"},
		{"opensearch without templates", "indices:admin/index_template/get", bulkd.Config{Product: bulkd.OpenSearch, Principals: []bulkd.Principal{{Name: "a", Basic: "a:pw", Cluster: []string{"cluster:monitor/main"}}}}, nil, "a"},
		{"something else", "neither Elasticsearch nor OpenSearch", bulkd.Config{}, &bulkd.Fault{Path: "/", Status: 200, Body: `{"hello":"world"}`}, ""},
		{"a page", "neither Elasticsearch nor OpenSearch", bulkd.Config{}, &bulkd.Fault{Path: "/", Status: 200, Body: `<html>`}, ""},
		{"a redirect", "answer 302", bulkd.Config{}, &bulkd.Fault{Path: "/", Status: 302}, ""},
		{"down", "answer 503", bulkd.Config{}, &bulkd.Fault{Path: "/", Status: 503, Body: "no server is available"}, ""},
		{"reset", "connection reset", bulkd.Config{}, &bulkd.Fault{Path: "/", Reset: true}, ""},
		{"a bomb", "too long", bulkd.Config{}, &bulkd.Fault{Path: "/", Bomb: 8}, ""},
		{"privileges unreadable", "cannot be read", bulkd.Config{Principals: []bulkd.Principal{{Name: "a", Basic: "a:pw", Cluster: []string{"all"}, Indices: all}}}, &bulkd.Fault{Path: "_has_privileges", Status: 200, Body: `{}`}, "a"},
		{"no template", "set it up once", bulkd.Config{}, nil, ""},
	} {
		srv := bulkd.Start(t, tt.cfg)
		e := newElastic(t, srv, func(s *ElasticSettings) {
			if tt.as != "" {
				as(tt.as)(s)
			}
		})
		if tt.fault != nil {
			srv.Script(*tt.fault)
		}
		err := e.Test(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if tt.as != "" && err != nil && strings.Contains(err.Error(), tt.as+":pw") {
			t.Errorf("%s: a secret is in %v", tt.name, err)
		}
		for _, r := range srv.Requests("") {
			if r.Method == "PUT" || strings.Contains(r.URI, "_bulk") || strings.Contains(r.URI, "_doc") {
				t.Errorf("%s: Test writes: %s %s", tt.name, r.Method, r.URI)
			}
		}
	}
	// A stream that somebody else prepared will do.
	srv := bulkd.Start(t, bulkd.Config{})
	srv.Put("_index_template", "theirs", `{"index_patterns":["logs-*"],"priority":900,"data_stream":{}}`)
	srv.Seed(elasticTestStream, "x", []byte(`{"@timestamp":"2026-11-28T12:00:00Z"}`))
	if err := newElastic(t, srv, nil).Test(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestElasticDetect(t *testing.T) {
	for body, want := range map[string]string{
		`{"version":{"number":"9.1.3","build_flavor":"default"},"tagline":"You Know, for Search"}`:         "1 9.1 Elasticsearch 9.1.3",
		`{"version":{"number":"7.17.29"},"tagline":"You Know, for Search"}`:                                "1 7.17 Elasticsearch 7.17.29",
		`{"version":{"number":"8.11.0","build_flavor":"serverless"},"tagline":"You Know, for Search"}`:     "2 8.11 Elasticsearch Serverless",
		`{"version":{"distribution":"opensearch","number":"3.2.0"},"tagline":"The OpenSearch Project: x"}`: "3 3.2 OpenSearch 3.2.0",
		`{"version":{"number":"7.10.2"},"tagline":"The OpenSearch Project: https://opensearch.org/"}`:      "3 7.10 OpenSearch 7.10.2",
		`{"version":{"number":"1.0"},"tagline":"mine"}`:                                                    "0 1.0 an unknown product 1.0",
	} {
		p, err := detect([]byte(body))
		if got := fmt.Sprintf("%d %d.%d %s", p.kind, p.major, p.minor, p.name); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", body, got, err, want)
		}
	}
	for _, body := range []string{``, `[]`, `{}`, `{"version":"9"}`, `{"version":{"number":"` + strings.Repeat("9", 40) + `"}}`} {
		if _, err := detect([]byte(body)); err == nil {
			t.Errorf("%s is a product", body)
		}
	}
}

func TestElasticBootstrap(t *testing.T) {
	policy := map[bulkd.Product]string{bulkd.Elasticsearch: "ILM policy ", bulkd.OpenSearch: "ISM policy "}
	for _, product := range []bulkd.Product{bulkd.Elasticsearch, bulkd.OpenSearch, bulkd.Serverless} {
		srv := bulkd.Start(t, bulkd.Config{Product: product})
		e := newElastic(t, srv, nil)
		for _, verb := range []string{"created ", "kept "} {
			did, err := e.Bootstrap(t.Context(), ElasticSetup{Lifecycle: true, KeepDays: 400})
			if err != nil {
				t.Fatalf("%d: %v", product, err)
			}
			want := []string{"component_template gatebook-ecs, version 1", "component_template gatebook-settings, version 1"}
			if p := policy[product]; p != "" {
				want = append(want, p+"gatebook-"+elasticTestStream+", version 1")
			}
			want = append(want, "index_template gatebook-"+elasticTestStream+", version 1", "data stream "+elasticTestStream)
			for i := range want {
				want[i] = verb + want[i]
			}
			if !slices.Equal(did[1:], want) {
				t.Errorf("%d: %q, want %q", product, did, want)
			}
		}
		index := srv.Stored("_index_template", "gatebook-"+elasticTestStream)
		for what, found := range map[string]bool{
			`"index.lifecycle.name":"gatebook-logs-gatebook.audit-default"`: product == bulkd.Elasticsearch,
			`"data_retention":"400d"`: product == bulkd.Serverless,
			`"priority":500`:          true,
		} {
			if strings.Contains(index, what) != found {
				t.Errorf("%d: %s: %v in %s", product, what, !found, index)
			}
		}
		tuning := srv.Stored("_component_template", "gatebook-settings")
		if strings.Contains(tuning, `"index.translog.durability":"request"`) != (product != bulkd.Serverless) || strings.Contains(tuning, "index.mode") != (product == bulkd.Elasticsearch) {
			t.Errorf("%d: %s", product, tuning)
		}
	}
}

// What is there decides: older is replaced, newer and foreign are not.
func TestElasticBootstrapRespects(t *testing.T) {
	mine := func(v int) string {
		return fmt.Sprintf(`{"_meta":{"managed_by":"gatebook","version":%d},"template":{}}`, v)
	}
	index := `{"index_patterns":["logs-gatebook.audit-default"],"data_stream":{},"priority":400,"_meta":{"managed_by":"gatebook","version":%d}}`
	ilm := `{"policy":{"_meta":{"managed_by":"gatebook","version":%d},"phases":{}}}`
	ism := `{"policy":{"description":"managed by gatebook, version %d","states":[]}}`
	name := "gatebook-" + elasticTestStream
	for _, tt := range []struct {
		product           bulkd.Product
		kind, name, there string
		want              string // a line, or after "!" an error
	}{
		{0, "_component_template", "gatebook-ecs", mine(0), "updated component_template gatebook-ecs from version 0 to 1"},
		{0, "_component_template", "gatebook-ecs", mine(1), "kept component_template gatebook-ecs"},
		{0, "_component_template", "gatebook-ecs", mine(7), "left component_template gatebook-ecs alone: its version 7 is newer"},
		{0, "_component_template", "gatebook-ecs", `{"template":{}}`, "!was not made by Gatebook"},
		{0, "_component_template", "gatebook-settings", `{"_meta":{"managed_by":"fleet","version":0},"template":{}}`, `!_meta.managed_by is "fleet"`},
		{0, "_index_template", name, fmt.Sprintf(index, 0), "updated index_template " + name},
		{0, "_index_template", name, fmt.Sprintf(index, 9), "left index_template " + name + " alone"},
		{0, "_index_template", "theirs", `{"index_patterns":["logs-*"],"priority":500}`, "!same priority"},
		{0, "policy", name, fmt.Sprintf(ilm, 0), "updated ILM policy"},
		{0, "policy", name, fmt.Sprintf(ilm, 3), "left ILM policy"},
		{0, "policy", name, `{"policy":{"phases":{}}}`, "!was not made by Gatebook"},
		{bulkd.OpenSearch, "policy", name, fmt.Sprintf(ism, 0), "updated ISM policy"},
		{bulkd.OpenSearch, "policy", name, fmt.Sprintf(ism, 2), "left ISM policy"},
		{bulkd.OpenSearch, "policy", name, `{"policy":{"description":"mine","states":[]}}`, "!was not made by Gatebook"},
	} {
		srv := bulkd.Start(t, bulkd.Config{Product: tt.product})
		srv.Put(tt.kind, tt.name, tt.there)
		did, err := newElastic(t, srv, nil).Bootstrap(t.Context(), ElasticSetup{Lifecycle: true})
		bad, isError := strings.CutPrefix(tt.want, "!")
		switch {
		case isError && (err == nil || !strings.Contains(err.Error(), bad)):
			t.Errorf("%s %s: %v, want %s", tt.kind, tt.there, err, tt.want)
		case !isError && (err != nil || !strings.Contains(strings.Join(did, "\n"), tt.want)):
			t.Errorf("%s %s: %q %v, want %s", tt.kind, tt.there, did, err, tt.want)
		}
		if now := srv.Stored(tt.kind, tt.name); (now != tt.there) != strings.HasPrefix(tt.want, "updated") {
			t.Errorf("%s %s became %s", tt.kind, tt.there, now)
		}
	}
	// Not acknowledged is not done; refused halfway says how far it got.
	srv := bulkd.Start(t, bulkd.Config{})
	srv.Script(bulkd.Fault{Path: "/gatebook-settings", Status: 404, Body: `{}`}, bulkd.Fault{Path: "/gatebook-settings", Status: 200, Body: `{"acknowledged":false}`})
	did, err := newElastic(t, srv, nil).Bootstrap(t.Context(), ElasticSetup{})
	if err == nil || !strings.Contains(err.Error(), "not acknowledged") || len(did) != 2 {
		t.Errorf("%q %v", did, err)
	}
}

// Two set up at the same time: whoever is later finds what the other made.
func TestElasticBootstrapTwice(t *testing.T) {
	for _, product := range []bulkd.Product{bulkd.Elasticsearch, bulkd.OpenSearch} {
		srv := bulkd.Start(t, bulkd.Config{Product: product})
		if _, err := newElastic(t, srv, nil).Bootstrap(t.Context(), ElasticSetup{}); err != nil {
			t.Fatal(err)
		}
		srv.Script(bulkd.Fault{Path: "/gatebook-ecs", Status: 404, Body: `{}`}) // it was not there a moment ago
		did, err := newElastic(t, srv, nil).Bootstrap(t.Context(), ElasticSetup{})
		if said := strings.Join(did, "\n"); err != nil || !strings.Contains(said, "kept component_template gatebook-ecs") {
			t.Errorf("%s, %v", said, err)
		}
	}
}

func TestElasticFind(t *testing.T) {
	for _, product := range []bulkd.Product{bulkd.Elasticsearch, bulkd.OpenSearch} {
		srv, e := elasticServer(t, bulkd.Config{Product: product, RolloverAt: 700})
		items := elasticRecords(2500)
		for i := 0; i < len(items); i += 500 {
			if r := e.Send(t.Context(), &deliver.Batch{Items: items[i : i+500], Attempt: 1}); story(r) != "done" {
				t.Fatal(story(r))
			}
		}
		srv.Rollover()
		e.Send(t.Context(), &deliver.Batch{Items: items[40:43], Attempt: 2}) // copies in another backing index
		srv.Seed(elasticTestStream, "somebody-else", items[50].Body)

		find := func(from, to uint64) (map[string]int, error) {
			got := map[string]int{}
			w := deliver.Window{Origin: elasticTestOrigin, From: from, To: to, Since: items[from].Time, Until: items[to-1].Time}
			return got, e.Find(t.Context(), w, func(id string) error { got[id]++; return nil })
		}
		got, err := find(0, 2500)
		if err != nil || len(got) != 2500 || got[items[41].ID] != 2 || got[items[0].ID] != 1 {
			t.Errorf("%d found, %d copies, %v", len(got), got[items[41].ID], err)
		}
		if got, err = find(41, 45); err != nil || len(got) != 4 || got[items[41].ID] != 2 {
			t.Errorf("%v %v", got, err)
		}
		stop := errors.New("enough")
		if err := e.Find(t.Context(), deliver.Window{Origin: elasticTestOrigin, To: 9}, func(string) error { return stop }); !errors.Is(err, stop) {
			t.Error(err)
		}
		if err := e.Find(t.Context(), deliver.Window{Origin: "another", To: 9}, func(id string) error { return errors.New(id) }); err != nil {
			t.Error(err)
		}
	}
}

// More copies than one answer holds are asked for in halves, and nothing is passed over.
func TestElasticFindManyCopies(t *testing.T) {
	srv, e := elasticServer(t, bulkd.Config{})
	items := elasticRecords(1000)
	for range 11 {
		for _, it := range items {
			srv.Seed(elasticTestStream, it.ID, it.Body)
		}
	}
	n := 0
	if err := e.Find(t.Context(), deliver.Window{Origin: elasticTestOrigin, To: 1000}, func(string) error { n++; return nil }); err != nil || n != 11000 {
		t.Errorf("%d, %v", n, err)
	}
	for range findHits {
		srv.Seed(elasticTestStream, items[3].ID, items[3].Body)
	}
	err := e.Find(t.Context(), deliver.Window{Origin: elasticTestOrigin, From: 3, To: 4}, func(string) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "more than 10000 copies") {
		t.Error(err)
	}
}

// An answer that may have left something out is no answer.
func TestElasticFindDoubts(t *testing.T) {
	for want, f := range map[string]bulkd.Fault{
		"only a part of the shards": {Status: 200, Body: `{"timed_out":false,"_shards":{"failed":1},"hits":{"total":{"value":0,"relation":"eq"},"hits":[]}}`},
		"part of the shards":        {Status: 200, Body: `{"timed_out":true,"_shards":{"failed":0},"hits":{"total":{"value":0,"relation":"eq"},"hits":[]}}`},
		"2 hits are counted and 1":  {Status: 200, Body: `{"timed_out":false,"_shards":{"failed":0},"hits":{"total":{"value":2,"relation":"eq"},"hits":[{"_id":"a"}]}}`},
		"cannot be read":            {Status: 200, Body: `{"timed_out":false,"_shards":{"failed":0},"hits":{"hits":[]}}`},
		"answer cannot be read":     {Status: 200, Body: `{"timed_out":fal`},
		"search: the answer":        {Status: 200, Body: `{}`},
		"may not search":            {Status: 403, Body: `{"error":{"type":"security_exception","reason":"r"},"status":403}`},
		"there is none":             {Status: 404, Body: `{}`},
		"answer 503":                {Status: 503, Body: `x`},
		"connection reset":          {Reset: true},
	} {
		srv, e := elasticServer(t, bulkd.Config{})
		f.Path = "/_search"
		srv.Script(f)
		err := e.Find(t.Context(), deliver.Window{Origin: elasticTestOrigin, To: 5}, func(string) error { return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// Before it is set up, the product makes a plain index of the name. That is no
// delivery, and setting up says why it cannot be done.
func TestElasticNotSetUp(t *testing.T) {
	for _, product := range []bulkd.Product{bulkd.Elasticsearch, bulkd.OpenSearch} {
		srv := bulkd.Start(t, bulkd.Config{Product: product})
		e := newElastic(t, srv, nil)
		for attempt := range 2 { // the second time the ids are there
			if got := story(e.Send(t.Context(), &deliver.Batch{Items: elasticRecords(1), Attempt: attempt + 1})); got != "0 pause plain_index" {
				t.Errorf("attempt %d: %s", attempt+1, got)
			}
		}
		if _, err := e.Bootstrap(t.Context(), ElasticSetup{}); err == nil || !strings.Contains(err.Error(), "there is a plain index of that name") {
			t.Error(err)
		}
	}
}
