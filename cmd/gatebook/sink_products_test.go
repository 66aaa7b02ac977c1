package main

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
	"github.com/gatebook/gatebook/internal/testenv/hecd"
)

// TestSinkProducts: the gate as it is configured delivers to Splunk and to
// Elasticsearch, as far as our servers are like them, at the grades promised.
func TestSinkProducts(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	splunk := hecd.New()
	splunk.Tokens = map[string]hecd.Token{"hec-token": {Ack: true}}
	collector := httptest.NewServer(splunk)
	t.Cleanup(collector.Close)
	search := bulkd.Start(t, bulkd.Config{Principals: []bulkd.Principal{
		{Name: "ship", APIKey: "ship:secret", Cluster: []string{"monitor"}, Indices: []bulkd.Grant{{Names: []string{"logs-gatebook.audit-default"}, Privileges: []string{"auto_configure", "create_doc"}}}},
		{Name: "setup", APIKey: "setup:secret", Cluster: []string{"monitor", "manage_index_templates", "manage_ilm", "manage_pipeline"}, Indices: []bulkd.Grant{{Names: []string{"logs-gatebook.audit-default"}, Privileges: []string{"manage", "create_doc"}}}},
	}})
	s.write("hec.token", "hec-token\n")
	s.write("ship.key", "ship:secret\n")
	s.withSinks(
		fmt.Sprintf("{name: siem, type: splunk_hec, url: %q, token: {file: hec.token}, ack: true, index: audit}", collector.URL),
		fmt.Sprintf("{name: search, type: elasticsearch, url: %q, token: {file: ship.key}}", search.URL))
	stream, err := sinks.NewElastic(sinks.ElasticSettings{Settings: sinks.Settings{URL: search.URL}, Stream: "logs-gatebook.audit-default"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Bootstrap(t.Context(), sinks.ElasticSetup{Auth: sinks.ElasticAPIKey, Credential: "setup:secret"}); err != nil {
		t.Fatal(err)
	}
	s.start()
	for n := range 10 {
		s.get(fmt.Sprintf("/v1/orders/%d", n))
	}
	siem, elastic := s.caughtUp("siem"), s.caughtUp("search")
	if siem.Grade != "G2" || elastic.Grade != "G2" || siem.Delivered["G2"] == 0 || elastic.Delivered["G2"] == 0 {
		t.Errorf("%+v\n%+v", siem, elastic)
	}
	book := s.inBook()
	delivered(t, book, byIndex(t, splunk.Copies()), siem.Cursor)
	delivered(t, book, byIndex(t, search.Held("logs-gatebook.audit-default")), elastic.Cursor)
	for _, e := range splunk.Indexed()[:1] {
		if e.Index != "audit" || e.Sourcetype != "gatebook:ecs" || !strings.Contains(string(e.Event), `"@timestamp"`) {
			t.Errorf("event %+v", e)
		}
	}
	s.command(0, "sink", "test", "siem")
	s.command(0, "sink", "test", "search")
	s.stop()
}
