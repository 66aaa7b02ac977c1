package sinks

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/scripted"
)

const testHookKey = "whsec_dGhlIGtleSBvZiBhIHRlc3QsIDMyIGJ5dGVzIGxvbmc="

// receiver checks signatures by its own reading of the format and keeps what it
// took.
type receiver struct {
	t   *testing.T
	key []byte

	mu     sync.Mutex
	held   map[string]int
	ids    []string
	bodies [][]byte
	answer func(w http.ResponseWriter, id string)
}

func newReceiver(t *testing.T) *receiver {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(testHookKey, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	return &receiver{t: t, key: key, held: map[string]int{}}
}

func (v *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	id, at := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	m := hmac.New(sha256.New, v.key)
	_, _ = io.WriteString(m, id+"."+at+"."+string(body))
	want := "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
	ok := false
	for s := range strings.SplitSeq(r.Header.Get("webhook-signature"), " ") {
		ok = ok || s == want
	}
	var msg struct {
		Type string `json:"type"`
		Data struct {
			Batch   string `json:"batch"`
			Count   int    `json:"count"`
			Records []struct {
				ID     string          `json:"id"`
				Record json.RawMessage `json:"record"`
			} `json:"records"`
		} `json:"data"`
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !ok:
		w.WriteHeader(401)
		return
	case json.Unmarshal(body, &msg) != nil:
		w.WriteHeader(400)
		return
	case msg.Type == "gatebook.test":
		w.WriteHeader(204)
		return
	case msg.Data.Batch != id || msg.Data.Count != len(msg.Data.Records):
		v.t.Errorf("batch %s of %d, id %s, %d records", msg.Data.Batch, msg.Data.Count, id, len(msg.Data.Records))
	}
	for _, rec := range msg.Data.Records {
		v.held[rec.ID]++
	}
	v.ids, v.bodies = append(v.ids, id), append(v.bodies, body)
	if v.answer != nil {
		v.answer(w, id)
	}
}

func webhookWorld(t *testing.T, change func(*WebhookConfig)) (*receiver, *scripted.Server, *Webhook) {
	t.Helper()
	v := newReceiver(t)
	script := scripted.New(v)
	s := httptest.NewServer(script)
	t.Cleanup(s.Close)
	c := WebhookConfig{Endpoint: Settings{URL: s.URL + "/hooks/a?b=c", Gzip: true, Timeout: time.Minute}, Keys: []*Credential{fixed(testHookKey)}}
	if change != nil {
		change(&c)
	}
	h, err := NewWebhook(c)
	if err != nil {
		t.Fatal(err)
	}
	return v, script, h
}

func TestWebhookFaults(t *testing.T) {
	rows := webRows(202)
	for _, r := range webRows(204) {
		if r.class == deliver.Done && r.Break == scripted.Answers && r.Body == "" {
			rows = append(rows, r)
		}
	}
	rows = append(rows, row{Fault: scripted.Fault{Name: "status 410", Status: 410}, class: deliver.Pause, cause: "http_410"},
		row{Fault: scripted.Fault{Name: "status 422", Status: 422}, class: deliver.Poison, cause: "http_422"},
		row{Fault: scripted.Fault{Name: "another receipt", Status: 200, Keep: true, Header: map[string]string{webhookStored: "x"}}, class: deliver.Pause, cause: "wrong_receipt", maybe: true})
	play(t, rows, func(t *testing.T, wait time.Duration) (deliver.Sink, *scripted.Server, func() map[string]int) {
		v, script, h := webhookWorld(t, func(c *WebhookConfig) { c.Endpoint.Timeout = wait })
		return h, script, func() map[string]int { v.mu.Lock(); defer v.mu.Unlock(); return v.held }
	})
}

// The same batch has the same id and body at every attempt; only the time and
// with it the signature differ.
func TestWebhookSame(t *testing.T) {
	v, script, h := webhookWorld(t, nil)
	script.Play(scripted.Fault{Keep: true, Break: scripted.Resets, Times: 3})
	items := testItems(5, 4, time.Now())
	newDriver(t, h).run(items, 4)
	if len(v.ids) != 4 {
		t.Fatalf("%d requests", len(v.ids))
	}
	for i := range v.ids {
		if v.ids[i] != items[0].ID+"-8" || !bytes.Equal(v.bodies[i], v.bodies[0]) {
			t.Errorf("attempt %d: id %s, body %s", i+1, v.ids[i], v.bodies[i])
		}
	}
}

func TestWebhookGolden(t *testing.T) {
	b := &deliver.Batch{Planned: time.Date(2026, 3, 1, 12, 0, 0, 5e8, time.UTC), Items: []deliver.Item{
		{Index: 7, ID: "00112233445566ff-7", Kind: "request", Body: []byte(`{"a":"<é>"}`)},
		{Index: 8, ID: "00112233445566ff-8", Kind: "gap", Body: []byte(`{}`)},
	}}
	want, err := os.ReadFile(filepath.Join("testdata", "webhook", "body.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := (&Webhook{}).body(b, webhookID(b)); string(got) != strings.TrimSuffix(string(want), "\n") {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// During a rotation a receiver that has either key is content.
func TestWebhookRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("an old key of enough characters")
	first, err := NewCredential(FromFile(file))
	if err == nil {
		t.Fatal("a key with spaces is taken")
	}
	write("an-old-key-of-enough-characters")
	if first, err = NewCredential(FromFile(file)); err != nil {
		t.Fatal(err)
	}
	v, _, h := webhookWorld(t, func(c *WebhookConfig) { c.Keys = []*Credential{first}; c.Token = fixed("bearer-token") })
	items := testItems(0, 3, time.Now())
	d := newDriver(t, h)
	step := 0
	d.fix = func() {
		step++
		switch step {
		case 1: // too short to be a key: the old one stays
			write("short")
			if changed, err := h.Renew(); changed || err == nil || strings.Contains(err.Error(), "short") || first.Get() != "an-old-key-of-enough-characters" {
				t.Errorf("a short key: %v, %v", changed, err)
			}
		case 2:
			write(testHookKey)
			if changed, err := h.Renew(); !changed || err != nil {
				t.Errorf("the new key: %v, %v", changed, err)
			}
		}
	}
	d.run(items, 3)
	d.check(items, v.held)
	if step != 2 || d.first.Class != deliver.Pause {
		t.Errorf("%d steps, first %+v", step, *d.first)
	}
	for _, keys := range [][]*Credential{{fixed(testHookKey), fixed("an-old-key-of-enough-characters")}, {fixed("an-old-key-of-enough-characters"), fixed(testHookKey)}} {
		_, _, both := webhookWorld(t, func(c *WebhookConfig) { c.Keys = keys })
		if err := both.Test(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestWebhookStored(t *testing.T) {
	for _, c := range []struct {
		name   string
		stored bool
		says   string // what the receiver repeats; "id": the id
		class  deliver.Class
		grade  deliver.Grade
		cause  string
	}{
		{"asked and said", true, "id", deliver.Done, deliver.Durable, "http_200"},
		{"asked and not said", true, "", deliver.Pause, 0, "no_receipt"},
		{"asked and another", true, "other", deliver.Pause, 0, "wrong_receipt"},
		{"not asked and said", false, "id", deliver.Done, deliver.Accepted, "http_200"},
		{"not asked and not said", false, "", deliver.Done, deliver.Accepted, "http_200"},
		{"not asked and another", false, "other", deliver.Pause, 0, "wrong_receipt"},
	} {
		v, _, h := webhookWorld(t, func(cfg *WebhookConfig) { cfg.Stored = c.stored })
		v.answer = func(w http.ResponseWriter, id string) {
			if c.says == "id" {
				w.Header().Set(webhookStored, id)
			} else if c.says != "" {
				w.Header().Set(webhookStored, c.says)
			}
		}
		r := h.Send(t.Context(), &deliver.Batch{Items: testItems(0, 2, time.Now())})
		if r.Class != c.class || r.Grade != c.grade || r.Cause != c.cause || r.Ambiguous != (c.class == deliver.Pause) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

func TestWebhookSplit(t *testing.T) {
	v, script, h := webhookWorld(t, nil)
	script.Play(scripted.Fault{Status: 413, Times: 4})
	items := testItems(0, 8, time.Now())
	d := newDriver(t, h)
	d.run(items, 8) // 8, 4, 2, 1: the first one is too large by itself
	if len(d.waste) != 1 || d.waste[items[0].ID] != "http_413" {
		t.Errorf("quarantine: %v", d.waste)
	}
	d.check(items, v.held)
}

func TestWebhookTest(t *testing.T) {
	v, script, h := webhookWorld(t, func(c *WebhookConfig) { c.Token = fixed("bearer-token") })
	if err := h.Test(t.Context()); err != nil || len(v.held) != 0 {
		t.Errorf("%v, held %v", err, v.held)
	}
	script.Play(scripted.Fault{Status: 403, Body: "bearer-token? no"}, scripted.Fault{Break: scripted.Resets})
	if err := h.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "(403): ***? no") {
		t.Errorf("refused: %v", err)
	}
	if err := h.Test(t.Context()); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("reset: %v", err)
	}
}

func TestWebhookConfig(t *testing.T) {
	for name, c := range map[string]WebhookConfig{
		"nothing to know it by": {Endpoint: Settings{URL: "https://a.example"}},
		"a short key":           {Endpoint: Settings{URL: "https://a.example"}, Keys: []*Credential{fixed("short")}},
		"a key that is none":    {Endpoint: Settings{URL: "https://a.example"}, Keys: []*Credential{fixed("whsec_*")}},
		"three keys":            {Endpoint: Settings{URL: "https://a.example"}, Keys: []*Credential{fixed(testHookKey), fixed(testHookKey), fixed(testHookKey)}},
		"no URL":                {Keys: []*Credential{fixed(testHookKey)}},
		"a negative bound":      {Endpoint: Settings{URL: "https://a.example"}, Keys: []*Credential{fixed(testHookKey)}, Items: -1},
	} {
		if _, err := NewWebhook(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := NewWebhook(WebhookConfig{Endpoint: Settings{URL: "https://a.example"}, Token: fixed("t")}); err != nil {
		t.Error(err)
	}
}
