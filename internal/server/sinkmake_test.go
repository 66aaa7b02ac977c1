package server

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// sinkToken is a credential in a file.
func sinkToken(t *testing.T) *config.Secret {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &config.Secret{File: config.Path(name)}
}

// TestSplunkBounds: the bounds of the configuration are those of the sink, below
// its defaults and above them.
func TestSplunkBounds(t *testing.T) {
	for name, c := range map[string]struct {
		batch                 config.SinkBatch
		flight                int
		items, bytes, abreast int
	}{
		"defaults": {items: 1000, bytes: 1_000_000, abreast: 8},
		"lower":    {config.SinkBatch{Records: 10, Bytes: 64 << 10}, 1, 10, 64 << 10, 1},
		"higher":   {config.SinkBatch{Records: 20_000, Bytes: 32 << 20}, 24, 20_000, 32 << 20, 24},
		"one":      {config.SinkBatch{Records: 5000}, 0, 5000, 1_000_000, 8},
	} {
		s, err := newSink(&config.Sink{
			Name: "siem", Type: config.SinkSplunk, URL: "https://splunk.example.com:8088", Token: sinkToken(t), Timeout: config.Duration(time.Second), Batch: c.batch, Flight: c.flight,
		}, "gate-1", nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if l := s.Limits(); l.Items != c.items || l.Bytes != c.bytes || l.InFlight != c.abreast {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

// TestDatadogHostname: what Datadog gets says which node it is of.
func TestDatadogHostname(t *testing.T) {
	got := make(chan []byte, 1)
	there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- b
		w.WriteHeader(http.StatusAccepted)
	}))
	defer there.Close()
	s, err := newSink(&config.Sink{
		Name: "logs", Type: config.SinkDatadog, URL: there.URL, Token: sinkToken(t), Timeout: config.Duration(10 * time.Second),
	}, "gate-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &deliver.Batch{Planned: time.Now(), Attempt: 1, Items: []deliver.Item{{ID: deliver.EventID("log", 1), Time: time.Now(), Kind: "request", Body: []byte(`{"a":1}`)}}}
	if r := s.Send(t.Context(), b); r.Class != deliver.Done {
		t.Fatalf("%+v", r)
	}
	var sent []struct{ Hostname string }
	if body := <-got; json.Unmarshal(body, &sent) != nil || len(sent) != 1 || sent[0].Hostname != "gate-1" {
		t.Errorf("sent %s", body)
	}
}

// TestSplunkAckTimeout: the time limit of the configuration is the sink's.
func TestSplunkAckTimeout(t *testing.T) {
	for wait, ok := range map[time.Duration]bool{0: true, 10 * time.Minute: true, time.Hour: false} {
		_, err := newSink(&config.Sink{
			Name: "siem", Type: config.SinkSplunk, URL: "https://splunk.example.com:8088", Token: sinkToken(t), Timeout: config.Duration(time.Second), Ack: true, AckWait: config.Duration(wait),
		}, "gate-1", nil)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "1h0m0s") {
			t.Errorf("%v: %v", wait, err)
		}
	}
}
