package webhook

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const origin = "log.example/n1"

// request is what a receiver saw.
type request struct {
	head http.Header
	body []byte
}

// sent lets our webhook send a batch signed with these keys, and a test.
func sent(t *testing.T, keys ...string) []request {
	t.Helper()
	var got []request
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, request{r.Header.Clone(), b})
	}))
	t.Cleanup(s.Close)
	c := sinks.WebhookConfig{Endpoint: sinks.Settings{URL: s.URL}}
	for _, k := range keys {
		cred, err := sinks.NewCredential(func() (string, error) { return k, nil })
		if err != nil {
			t.Fatal(err)
		}
		c.Keys = append(c.Keys, cred)
	}
	h, err := sinks.NewWebhook(c)
	if err != nil {
		t.Fatal(err)
	}
	var items []deliver.Item
	for i := range uint64(20) {
		items = append(items, deliver.Item{Index: i, ID: deliver.EventID(origin, i), Time: time.Now(), Kind: "request", Body: fmt.Appendf(nil, `{"seq":%d,"é":"\u2028 <&> %% ' \" "}`, i)})
	}
	if r := h.Send(t.Context(), &deliver.Batch{Items: items, Planned: time.Now(), Attempt: 1}); r.Class != deliver.Done {
		t.Fatalf("%+v", r)
	}
	if err := h.Test(t.Context()); err != nil {
		t.Fatal(err)
	}
	return got
}

// secret is a key in the form that the verifiers read.
func secret(text string) string {
	return "whsec_" + base64.StdEncoding.EncodeToString([]byte(text))
}

// cases are what a verifier is to say yes and no to.
func cases(t *testing.T) (out []struct {
	name, secret string
	request
	ok bool
}) {
	old, fresh := "an old key with 32 bytes in it..", "a fresh key with 32 bytes in it."
	add := func(name, key string, r request, ok bool) {
		out = append(out, struct {
			name, secret string
			request
			ok bool
		}{name, key, r, ok})
	}
	for _, r := range sent(t, secret(fresh)) {
		add("one key", secret(fresh), r, true)
		add("another key", secret(old), r, false)
		bad := request{r.head.Clone(), slices.Clone(r.body)}
		bad.body[len(bad.body)/2] ^= 1
		add("a changed body", secret(fresh), bad, false)
		for _, field := range []string{"Webhook-Id", "Webhook-Timestamp"} {
			bad := request{r.head.Clone(), r.body}
			bad.head.Set(field, strings.Replace(bad.head.Get(field), bad.head.Get(field)[:1], "9", 1))
			add("a changed "+field, secret(fresh), bad, false)
		}
	}
	for _, r := range sent(t, secret(fresh), secret(old)) {
		add("two keys, the fresh one", secret(fresh), r, true)
		add("two keys, the old one", secret(old), r, true)
		add("two keys, neither", secret("some other key of 32 bytes here."), r, false)
	}
	plain := "0123456789abcdef0123456789abcdef"
	for _, r := range sent(t, plain) {
		add("a key of plain text", secret(plain), r, true)
	}
	return out
}

func TestGoVerifier(t *testing.T) {
	for _, c := range cases(t) {
		v, err := standardwebhooks.NewWebhook(c.secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Verify(c.body, c.head); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// npm's verifier also parses what it has verified.
func TestNPMVerifier(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "node", "verify.mjs")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (node is needed)", err)
	}
	out := bufio.NewScanner(pipe)
	for _, c := range cases(t) {
		head := map[string]string{}
		for k := range c.head {
			head[strings.ToLower(k)] = c.head.Get(k)
		}
		b, err := json.Marshal(map[string]any{"secret": c.secret, "headers": head, "body": string(c.body)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(append(b, '\n')); err != nil {
			t.Fatal(err)
		}
		if !out.Scan() {
			t.Fatalf("the verifier ended: %v (npm ci in this folder installs it)", out.Err())
		}
		var said struct {
			OK    bool
			Type  string
			Count int
			Error string
		}
		if err := json.Unmarshal(out.Bytes(), &said); err != nil {
			t.Fatal(err)
		}
		fine := said.Type == "gatebook.records" && said.Count == 20 || said.Type == "gatebook.test"
		if said.OK != c.ok || c.ok && !fine {
			t.Errorf("%s: %+v", c.name, said)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}
