package sinks

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

// projected are records of every kind and reason as the projection ecs makes them,
// whole and as stubs: its golden files.
func projected(t *testing.T) [][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "project", "testdata", "ecs", "*.jsonl"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	var out [][]byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, bytes.Split(bytes.TrimSpace(b), []byte("\n"))...)
	}
	return out
}

// Every field that the projection writes has a type, and its values fit.
func TestElasticFieldsCoverTheProjection(t *testing.T) {
	kinds := map[string]string{}
	for _, row := range elasticFields {
		for _, name := range strings.Fields(row.names) {
			if kinds[name] != "" {
				t.Errorf("%s is listed twice", name)
			}
			kinds[name] = row.kind
		}
	}
	seen := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if kinds[path] != "" {
				t.Errorf("%s is an object", path)
			}
			for k, child := range v {
				if path != "" {
					k = path + "." + k
				}
				walk(k, child)
			}
		case []any:
			for _, child := range v {
				walk(path, child)
			}
		default:
			if strings.HasPrefix(path, "gatebook.personal.headers.") || strings.HasPrefix(path, "gatebook.personal.claims.") {
				return // named by whoever configures them; kept and not indexed
			}
			if !seen[path] && !elasticFits(kinds[path], v) {
				t.Errorf("%s is %q, which does not fit %v", path, kinds[path], v)
			}
			seen[path] = true
		}
	}
	for _, line := range projected(t) {
		var doc map[string]any
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.UseNumber()
		if err := dec.Decode(&doc); err != nil {
			t.Fatal(err)
		}
		walk("", doc)
	}
}

func elasticFits(kind string, v any) bool {
	text, isText := v.(string)
	switch kind {
	case "keyword", "text":
		return isText
	case "ip":
		_, err := netip.ParseAddr(text)
		return err == nil
	case "date":
		_, err := time.Parse(time.RFC3339Nano, text)
		return err == nil
	case "boolean":
		_, ok := v.(bool)
		return ok
	case "long":
		n, ok := v.(json.Number)
		_, err := n.Int64()
		return ok && err == nil
	}
	return false
}

// And all of them arrive, as they are.
func TestElasticTakesTheProjection(t *testing.T) {
	for _, product := range []bulkd.Product{bulkd.Elasticsearch, bulkd.OpenSearch} {
		srv, e := elasticServer(t, bulkd.Config{Product: product})
		var items []deliver.Item
		for i, line := range projected(t) {
			items = append(items, deliver.Item{Index: uint64(i), ID: deliver.EventID(elasticTestOrigin, uint64(i)), Body: line})
		}
		if got := story(e.Send(t.Context(), &deliver.Batch{Items: items, Attempt: 1})); got != "done" {
			t.Errorf("%s", got)
		}
		for i, d := range srv.Docs(elasticTestStream) {
			if !bytes.Equal(d.Source, items[i].Body) {
				t.Errorf("document %d is %s", i, d.Source)
			}
		}
	}
}
