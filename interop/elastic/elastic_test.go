package elastic

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/elastic/go-elasticsearch/v9"
	"github.com/elastic/go-elasticsearch/v9/esutil"
	"github.com/opensearch-project/opensearch-go/v4"
	"github.com/opensearch-project/opensearch-go/v4/opensearchapi"
	"github.com/opensearch-project/opensearch-go/v4/opensearchutil"

	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

const stream = "logs-foreign-default"

const template = `{"index_patterns":["logs-foreign-*"],"priority":500,"data_stream":{},"template":{"mappings":{"dynamic":false,"properties":{
	"@timestamp":{"type":"date"},"n":{"type":"long"},"message":{"type":"keyword"}}}}}`

func server(t *testing.T, cfg bulkd.Config) *bulkd.Server {
	s := bulkd.Start(t, cfg)
	s.Put("_index_template", "foreign", template)
	return s
}

// tally is what a client was told about its items.
type tally struct {
	mu   sync.Mutex
	seen map[string]string // id: status, and type of the error
}

func (c *tally) note(id string, status int, kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[id] = strings.TrimSpace(fmt.Sprint(status, " ", kind))
}

func body(n int) string {
	return fmt.Sprintf(`{"@timestamp":"2026-11-28T12:00:00.%03dZ","n":%d,"message":"näh \"%d\""}`, n%1000, n, n)
}

// send gives one item to a client, which tells the tally what became of it.
type send func(action, id, body string)

func goElasticsearch(t *testing.T, url string, c *tally) (send, func() error) {
	client, err := elasticsearch.NewClient(elasticsearch.Config{Addresses: []string{url}, DisableRetry: true})
	if err != nil {
		t.Fatal(err)
	}
	bi, err := esutil.NewBulkIndexer(esutil.BulkIndexerConfig{Client: client, Index: stream, NumWorkers: 1, FlushBytes: 4 << 10, OnError: func(_ context.Context, err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return func(action, id, body string) {
		err := bi.Add(t.Context(), esutil.BulkIndexerItem{
			Action: action, DocumentID: id, Body: strings.NewReader(body),
			OnSuccess: func(_ context.Context, i esutil.BulkIndexerItem, r esutil.BulkIndexerResponseItem) {
				c.note(i.DocumentID, r.Status, r.FailureStore)
			},
			OnFailure: func(_ context.Context, i esutil.BulkIndexerItem, r esutil.BulkIndexerResponseItem, _ error) {
				c.note(i.DocumentID, r.Status, r.Error.Type)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}, func() error { return bi.Close(t.Context()) }
}

func opensearchGo(t *testing.T, url string, c *tally) (send, func() error) {
	client, err := opensearchapi.NewClient(opensearchapi.Config{Client: opensearch.Config{Addresses: []string{url}, DisableRetry: true}})
	if err != nil {
		t.Fatal(err)
	}
	bi, err := opensearchutil.NewBulkIndexer(opensearchutil.BulkIndexerConfig{Client: client, Index: stream, NumWorkers: 1, FlushBytes: 4 << 10, OnError: func(_ context.Context, err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	return func(action, id, body string) {
		err := bi.Add(t.Context(), opensearchutil.BulkIndexerItem{
			Action: action, DocumentID: id, Body: strings.NewReader(body),
			OnSuccess: func(_ context.Context, i opensearchutil.BulkIndexerItem, r opensearchapi.BulkRespItem) {
				c.note(i.DocumentID, r.Status, "")
			},
			OnFailure: func(_ context.Context, i opensearchutil.BulkIndexerItem, r opensearchapi.BulkRespItem, _ error) {
				kind := ""
				if r.Error != nil {
					kind = r.Error.Type
				}
				c.note(i.DocumentID, r.Status, kind)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}, func() error { return bi.Close(t.Context()) }
}

// What two vendors' clients send arrives as it was sent, and they read out of the
// answers what the server meant.
func TestVendorsClients(t *testing.T) {
	for _, tt := range []struct {
		name  string
		cfg   bulkd.Config
		start func(*testing.T, string, *tally) (send, func() error)
		// stored is what becomes of a document that does not fit.
		misfit string
	}{
		{"go-elasticsearch", bulkd.Config{}, goElasticsearch, "400 document_parsing_exception"},
		{"go-elasticsearch and a failure store", bulkd.Config{FailureStore: true}, goElasticsearch, "201 used"},
		{"opensearch-go", bulkd.Config{Product: bulkd.OpenSearch}, opensearchGo, "400 document_parsing_exception"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := server(t, tt.cfg)
			told, want := &tally{seen: map[string]string{}}, map[string]string{}
			add, end := tt.start(t, s.URL, told)
			for i := range 500 {
				id := fmt.Sprintf("id-%d", i)
				add("create", id, body(i))
				want[id] = "201"
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(told.seen, want) {
				t.Errorf("the client was told %v", told.seen)
			}
			docs := s.Docs(stream)
			if len(docs) != 500 || len(s.Held(stream)) != 500 {
				t.Fatalf("%d documents", len(docs))
			}
			for i, d := range docs {
				if d.ID != fmt.Sprintf("id-%d", i) || string(d.Source) != body(i) {
					t.Fatalf("document %d is %s %s", i, d.ID, d.Source)
				}
			}
			if n := len(s.Requests("/_bulk")); n < 5 {
				t.Errorf("%d requests", n)
			}

			// And what is refused.
			told.seen = map[string]string{}
			add, end = tt.start(t, s.URL, told)
			add("create", "id-3", body(3))
			add("create", "no-time", `{"n":1}`)
			add("index", "no-index", body(1))
			add("create", "new", body(1))
			if err := end(); err != nil {
				t.Fatal(err)
			}
			want = map[string]string{"id-3": "409 version_conflict_engine_exception", "no-time": tt.misfit, "no-index": "400 illegal_argument_exception", "new": "201"}
			if !maps.Equal(told.seen, want) {
				t.Errorf("the client was told %v, want %v", told.seen, want)
			}
		})
	}
}

// go-elasticsearch goes on only before a server that says it is the product; that the
// header is missed shows that the client looked.
func TestProductHeader(t *testing.T) {
	for _, hidden := range []bool{false, true} {
		s := server(t, bulkd.Config{NoHeader: hidden})
		client, err := elasticsearch.NewClient(elasticsearch.Config{Addresses: []string{s.URL}})
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Bulk(strings.NewReader("{\"create\":{\"_id\":\"1\"}}\n"+body(1)+"\n"), client.Bulk.WithIndex(stream))
		if err == nil {
			res.Body.Close()
		}
		if (err != nil) != hidden {
			t.Errorf("hidden %v: %v", hidden, err)
		}
	}
}

const rsyslogConf = `
global(workDirectory="%[1]s")
module(load="imptcp")
module(load="omelasticsearch")
input(type="imptcp" port="%[2]s" address="127.0.0.1")
template(name="id" type="string" string="%%syslogtag:R,ERE,1,DFLT:(id-[0-9]+)--end%%")
template(name="doc" type="list" option.jsonf="on") {
	property(outname="@timestamp" name="timereported" dateFormat="rfc3339" format="jsonf")
	property(outname="message" name="msg" format="jsonf")
}
action(type="omelasticsearch" server="127.0.0.1" serverport="%[3]s" searchIndex="%[4]s" searchType="" template="doc"
	bulkmode="on" maxbytes="1m" dynbulkid="on" bulkid="id" writeoperation="create" errorfile="%[1]s/errors"
	queue.type="linkedList" queue.dequeueBatchSize="50" action.resumeRetryCount="-1" action.resumeInterval="1")
`

// rsyslog sends the lines that it got, and sends again what was lost on the way.
func TestRsyslog(t *testing.T) {
	program := "/usr/sbin/rsyslogd"
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	s := server(t, bulkd.Config{})
	// A reset it tries again, by design; a 503 with an error it would write to its
	// error file and forget.
	s.Script(bulkd.Fault{Name: "reset", Reset: true})
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, in, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	_, out, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	conf := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, rsyslogConf, dir, in, out, stream), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-n", "-f", conf, "-i", filepath.Join(dir, "pid"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	write(ctx, t, in, 200)

	for len(s.Held(stream)) < 200 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	docs := s.Docs(stream)
	if len(docs) != 200 {
		errs, _ := os.ReadFile(filepath.Join(dir, "errors"))
		t.Fatalf("%d documents; rsyslog says\n%s\n%s", len(docs), said.Bytes(), errs)
	}
	for i, d := range docs {
		if want := fmt.Sprintf("\"message\":\"line %d with \\\"quotes\\\"\"", i); d.ID != fmt.Sprintf("id-%d", i) || !strings.Contains(string(d.Source), want) {
			t.Fatalf("document %d is %s %s, want %s", i, d.ID, d.Source, want)
		}
	}
	if s.Left() != 0 {
		t.Error("no fault was played")
	}
	for _, r := range s.Requests("/_bulk") {
		if !bytes.HasSuffix(r.Body, []byte("\n")) || !strings.Contains(string(r.Body), `{"create":{`) {
			t.Errorf("request %s\n%s", r.URI, r.Body)
		}
	}
}

// write gives rsyslog n lines, as soon as it listens.
func write(ctx context.Context, t *testing.T, port string, n int) {
	t.Helper()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
		if err == nil {
			defer c.Close()
			for i := range n {
				fmt.Fprintf(c, "<134>1 2026-11-28T12:00:00.%03dZ host id-%d - - - line %d with \"quotes\"\n", i, i, i)
			}
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
