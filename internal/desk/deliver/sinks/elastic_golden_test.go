package sinks

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

// What goes over the wire, to the byte. The files are compared and never written by
// a test: a change of one is a change of what other people's servers get.
func TestElasticGolden(t *testing.T) {
	srv := bulkd.Start(t, bulkd.Config{Principals: []bulkd.Principal{
		{Name: "ship", APIKey: "VuaCfGcBCdbkQm-e5aOx:ui2lp2axTNmsyakw9tvNnw", Cluster: []string{"all"}, Indices: []bulkd.Grant{{Names: []string{"*"}, Privileges: []string{"all"}}}},
	}})
	e := newElastic(t, srv, func(s *ElasticSettings) {
		s.Auth, s.Credential = ElasticAPIKey, constant("VuaCfGcBCdbkQm-e5aOx:ui2lp2axTNmsyakw9tvNnw")
	})
	items := elasticRecords(3)
	setup := ElasticSetup{Auth: ElasticAPIKey, Credential: "VuaCfGcBCdbkQm-e5aOx:ui2lp2axTNmsyakw9tvNnw", Lifecycle: true, KeepDays: 365}
	did, err := e.Bootstrap(t.Context(), setup)
	if err != nil {
		t.Fatal(did, err)
	}
	at := len(srv.Requests(""))
	if err := e.Test(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := story(e.Send(t.Context(), &deliver.Batch{Items: items, Attempt: 1})); got != "done" {
		t.Fatal(got)
	}
	w := deliver.Window{Origin: elasticTestOrigin, To: 3, Since: items[0].Time, Until: items[2].Time}
	if err := e.Find(t.Context(), w, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	all := srv.Requests("")
	compareGolden(t, "setup.http", all[:at])
	compareGolden(t, "ship.http", all[at:])
}

func compareGolden(t *testing.T, name string, requests []bulkd.Request) {
	t.Helper()
	var got bytes.Buffer
	for _, r := range requests {
		fmt.Fprintf(&got, "%s %s\n", r.Method, r.URI)
		var fields []string
		for k, v := range r.Header {
			fields = append(fields, k+": "+strings.Join(v, ", ")+"\n")
		}
		sort.Strings(fields)
		fmt.Fprintf(&got, "%s\n%s", strings.Join(fields, ""), r.Body)
		if len(r.Body) > 0 && r.Body[len(r.Body)-1] != '\n' {
			got.WriteString("\n")
		}
		got.WriteString("----\n")
	}
	path := filepath.Join("testdata", "elastic", name)
	want, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s (%v) is not what was sent:\n%s", path, err, got.Bytes())
	}
}
