package server

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/project"
	"github.com/gatebook/gatebook/internal/kv"
)

// saySink answers as told and notes what it was sent.
type saySink struct {
	says deliver.Result
	sent []uint64
}

func (s *saySink) Limits() deliver.Limits     { return deliver.Limits{Items: 10} }
func (s *saySink) Grade() deliver.Grade       { return deliver.Durable }
func (s *saySink) Test(context.Context) error { return nil }
func (s *saySink) Send(_ context.Context, b *deliver.Batch) deliver.Result {
	for _, it := range b.Items {
		s.sent = append(s.sent, it.Index)
	}
	return s.says
}

type renewSink struct{ *saySink }

func (renewSink) Renew() (bool, error) { return true, nil }

type findSink struct{ *saySink }

func (findSink) Find(context.Context, deliver.Window, func(string) error) error { return nil }

type bothSink struct {
	renewSink
	finds
}

type finds struct{}

func (finds) Find(context.Context, deliver.Window, func(string) error) error { return nil }

// TestMeterKeepsAbilities: a meter in front of a sink hides nothing of it and
// adds nothing; one for alerts cannot be compared, since the sink lacks what is
// none.
func TestMeterKeepsAbilities(t *testing.T) {
	plain := &saySink{}
	for _, c := range []struct {
		name          string
		s             deliver.Sink
		alerts        bool
		renews, finds bool
	}{
		{"plain", plain, false, false, false},
		{"renews", renewSink{plain}, false, true, false},
		{"finds", findSink{plain}, false, false, true},
		{"both", bothSink{renewSink{plain}, finds{}}, false, true, true},
		{"both, for alerts", bothSink{renewSink{plain}, finds{}}, true, true, false},
		{"finds, for alerts", findSink{plain}, true, false, false},
	} {
		_, s := metered(c.s, c.alerts)
		_, renews := s.(deliver.Renewer)
		_, finds := s.(deliver.Finder)
		if renews != c.renews || finds != c.finds {
			t.Errorf("%s: renews %t, finds %t", c.name, renews, finds)
		}
	}
}

// A sink that makes up causes makes neither memory nor metrics grow.
func TestMeterCausesAreFew(t *testing.T) {
	m, _ := metered(&saySink{}, false)
	for i := range 1000 {
		m.count(&deliver.Result{Items: []deliver.Result{{Class: deliver.Retry, Cause: fmt.Sprint("item_", i)}}}, 1)
	}
	_, retries, _ := m.counts()
	if len(retries) > mostCauses+1 || retries["other"] != 1000-mostCauses {
		t.Errorf("%d causes, %d others", len(retries), retries["other"])
	}
}

// TestAlertsOnly: of a batch only alerts are sent, and what becomes of them is
// told of them; all else is done at once.
func TestAlertsOnly(t *testing.T) {
	done, retry, poison := deliver.Result{Class: deliver.Done, Grade: deliver.Accepted}, deliver.Result{Class: deliver.Retry, Cause: "http_503"}, deliver.Result{Class: deliver.Poison}
	each := func(rs ...deliver.Result) deliver.Result { return deliver.Result{Items: rs} }
	for _, c := range []struct {
		name, kinds string
		says        deliver.Result
		sent        []uint64
		want        string // class of each item, or of the whole
	}{
		{"none", "request request", retry, nil, "passed"},
		{"one of three", "request alert request", done, []uint64{1}, "passed done passed"},
		{"refused for now", "request alert", retry, []uint64{1}, "retry"},
		{"refused for good", "alert", poison, []uint64{0}, "poison"},
		{"refused for good among others", "request alert", poison, []uint64{1}, "poison"},
		{"told one by one", "alert request alert", each(done, poison), []uint64{0, 2}, "done passed poison"},
		{"told too little", "alert request alert", each(done), []uint64{0, 2}, "retry"},
		{"told too much", "alert request alert", each(done, done, done), []uint64{0, 2}, "retry"},
		{"told too much, of all", "alert alert", each(done, done, done), []uint64{0, 1}, "retry"},
		{"all of them", "alert alert", each(retry, done), []uint64{0, 1}, "retry done"},
	} {
		inner := &saySink{says: c.says}
		m, s := metered(inner, true)
		b := &deliver.Batch{}
		for i, kind := range strings.Fields(c.kinds) {
			b.Items = append(b.Items, deliver.Item{Index: uint64(i), Kind: kind})
		}
		r := s.Send(t.Context(), b)
		word := func(r *deliver.Result) string {
			if r.Passed {
				return "passed" // and counted as delivered nowhere
			}
			return r.Class.String()
		}
		got := word(&r)
		if r.Items != nil {
			if len(r.Items) != len(b.Items) {
				t.Errorf("%s: %d results", c.name, len(r.Items))
			}
			var all []string
			for i := range r.Items {
				all = append(all, word(&r.Items[i]))
			}
			got = strings.Join(all, " ")
		}
		if got != c.want || !slices.Equal(inner.sent, c.sent) {
			t.Errorf("%s: %s, sent %v; want %s, %v", c.name, got, inner.sent, c.want, c.sent)
		}
		if delivered, _, _ := m.counts(); len(c.sent) == 0 && len(delivered) != 0 {
			t.Errorf("%s: counted %v", c.name, delivered)
		}
	}
}

// TestSinkKept: a sink's pseudonym key is its own and stays; its type too.
func TestSinkKept(t *testing.T) {
	store, err := kv.OpenLocal(filepath.Join(t.TempDir(), "kv.db"), [32]byte{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sink := func(name, kind, url string) *config.Sink { return &config.Sink{Name: name, Type: kind, URL: url} }
	keys := map[string]bool{}
	for _, name := range []string{"a", "b"} {
		first, err := keptOf(t.Context(), store, sink(name, config.SinkWebhook, "https://x"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := keptOf(t.Context(), store, sink(name, config.SinkWebhook, "https://y"))
		if err != nil || string(again.Key) != string(first.Key) || again.Target == sinkTarget(sink(name, "", "https://y")) {
			t.Errorf("%s: %v", name, err)
		}
		keys[string(first.Key)] = true
	}
	if len(keys) != 2 {
		t.Error("two sinks have one key")
	}
	if _, err := keptOf(t.Context(), store, sink("a", config.SinkSplunk, "https://x")); err == nil || !strings.Contains(err.Error(), "of the type webhook") {
		t.Errorf("another type: %v", err)
	}
	for _, bad := range []string{"", "{}", `{"type":"webhook","target":"x","key":"AAAA"}`, `{"type":"webhook","target":"x","key":"","more":1}`} {
		if err := store.Put(t.Context(), sinkTable, "bad", []byte(bad), time.Time{}); err != nil {
			t.Fatal(err)
		}
		if _, err := keptOf(t.Context(), store, sink("bad", config.SinkWebhook, "https://x")); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

// TestPersonalFieldsAgree: what the configuration lets through as a personal
// field, the projections know, and the other way round.
func TestPersonalFieldsAgree(t *testing.T) {
	sorted := func(list []string) []string { return slices.Sorted(slices.Values(list)) }
	if have, want := sorted(config.PersonalFields()), sorted(project.FieldNames()); !slices.Equal(have, want) {
		t.Errorf("the configuration has %v, projections have %v", have, want)
	}
	asked := func(name string) (conf, proj error) {
		if _, problems := config.Parse("/srv/gatebook.yaml", fmt.Appendf(nil, sinkFileForm, strconv.Quote(name))); problems != nil {
			conf = problems
		}
		_, proj = project.New(project.Options{Name: project.Native, Key: [32]byte{1}, Origin: "log", Fields: []string{name}})
		return conf, proj
	}
	for _, name := range append(config.PersonalFields(), "headers.accept-language", "claims.dept") {
		if conf, proj := asked(name); conf != nil || proj != nil {
			t.Errorf("%s: the configuration says %v, projections say %v", name, conf, proj)
		}
	}
	for _, name := range []string{"no_such", "Sub", "subject", "headers", "claims", "headers.", "claims.", "headers.Accept", ""} {
		if conf, proj := asked(name); conf == nil || proj == nil {
			t.Errorf("%q: the configuration says %v, projections say %v", name, conf, proj)
		}
	}
}

const sinkFileForm = `
data: data
node: gate-1
origin: log.example.com/gates
keys: {wrapper: {file: keys}}
listen: [{name: public, address: ":8443", plaintext: behind_proxy, trusted: ["10.0.0.0/8"]}]
upstreams: {api: {targets: ["http://10.0.0.1"]}}
routes: [{name: a, path: /a, upstream: api, public: true}]
policies: {dir: policies}
sinks: [{name: a, type: stdout, fields: [%s]}]
`
