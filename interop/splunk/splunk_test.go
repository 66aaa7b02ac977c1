package splunk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/hecd"
)

// said is what the library got for one request.
type said struct {
	Status int
	Body   struct {
		Text  string
		Code  *int
		AckID *uint64 `json:"ackId"`
	}
	Problem *struct {
		Message string
		Code    json.RawMessage
	}
}

// drive runs the library.
func drive(t *testing.T, order map[string]any) []said {
	t.Helper()
	b, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "client.mjs", string(b))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v (npm ci in this folder installs the library)\n%s", err, stderr.String())
	}
	var all []said
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		var s said
		if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
			t.Fatalf("%v: %s", err, sc.Text())
		}
		all = append(all, s)
	}
	return all
}

func serve(t *testing.T) (*hecd.Server, string) {
	t.Helper()
	h := hecd.New()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return h, srv.URL
}

func events(n int, meta map[string]any) []any {
	var out []any
	for i := range n {
		e := map[string]any{"message": map[string]any{"n": i, "text": "grün \"zwei\"\n"}, "severity": "info"}
		if meta != nil {
			e["metadata"] = meta
		}
		out = append(out, e)
	}
	return out
}

// What the library sends is taken as it was meant, in batches and one by one.
func TestLibraryDelivers(t *testing.T) {
	for _, batch := range []int{1, 7, 50} {
		h, url := serve(t)
		meta := map[string]any{"time": 1772366400.5, "host": "farm.local", "source": "chicken coop", "sourcetype": "httpevent", "index": "main"}
		got := drive(t, map[string]any{"url": url, "token": hecd.PlainToken, "batch": batch, "events": events(50, meta)})
		for _, s := range got {
			if s.Status != 200 || s.Body.Code == nil || *s.Body.Code != 0 || s.Body.Text != "Success" || s.Problem != nil {
				t.Fatalf("batch %d: %+v", batch, s)
			}
		}
		if len(got) != (50+batch-1)/batch {
			t.Errorf("batch %d: %d requests", batch, len(got))
		}
		kept := h.Indexed()
		if len(kept) != 50 {
			t.Fatalf("batch %d: %d events", batch, len(kept))
		}
		for i, e := range kept {
			var body struct {
				Message struct {
					N    int
					Text string
				}
				Severity string
			}
			if err := json.Unmarshal(e.Event, &body); err != nil {
				t.Fatal(err)
			}
			if body.Message.N != i || body.Message.Text != "grün \"zwei\"\n" || body.Severity != "info" || e.Host != "farm.local" ||
				e.Source != "chicken coop" || e.Sourcetype != "httpevent" || e.Index != "main" || e.Time.String() != "1772366400.500" {
				t.Errorf("batch %d: event %d is %+v %s", batch, i, e, e.Event)
			}
		}
	}
}

// What the collector refuses, the library understands as the refusal it is.
func TestLibraryUnderstands(t *testing.T) {
	for name, c := range map[string]struct {
		token   string
		change  func(*hecd.Server)
		order   map[string]any
		status  int
		code    int
		message string
	}{
		"invalid token":  {token: "other", status: 403, code: 4, message: "Invalid token"},
		"disabled":       {token: hecd.PlainToken, change: func(s *hecd.Server) { s.Tokens[hecd.PlainToken] = hecd.Token{Disabled: true} }, status: 403, code: 1, message: "Token disabled"},
		"no channel":     {token: hecd.AckToken, status: 400, code: 10, message: "Data channel is missing"},
		"bad channel":    {token: hecd.AckToken, order: map[string]any{"headers": map[string]string{"X-Splunk-Request-Channel": "x"}}, status: 400, code: 11, message: "Invalid data channel"},
		"wrong index":    {token: hecd.PlainToken, change: func(s *hecd.Server) { s.Tokens[hecd.PlainToken] = hecd.Token{Indexes: []string{"other"}} }, status: 400, code: 7, message: "Incorrect index"},
		"blank event":    {token: hecd.PlainToken, order: map[string]any{"raw": true, "events": []any{map[string]any{"message": ""}}}, status: 400, code: 13, message: "Event field cannot be blank"},
		"busy":           {token: hecd.PlainToken, change: func(s *hecd.Server) { s.Script(hecd.Events, hecd.Fault{Code: 9}) }, status: 503, code: 9, message: "Server is busy"},
		"internal error": {token: hecd.PlainToken, change: func(s *hecd.Server) { s.Script(hecd.Events, hecd.Fault{Code: 8}) }, status: 500, code: 8, message: "Internal server error"},
	} {
		t.Run(name, func(t *testing.T) {
			h, url := serve(t)
			if c.change != nil {
				c.change(h)
			}
			order := map[string]any{"url": url, "token": c.token, "events": events(1, map[string]any{"index": "main"})}
			for k, v := range c.order {
				order[k] = v
			}
			got := drive(t, order)
			if len(got) != 1 || got[0].Status != c.status || got[0].Problem == nil || got[0].Problem.Message != c.message || string(got[0].Problem.Code) != fmt.Sprint(c.code) {
				t.Errorf("%+v", got)
			}
			if n := len(h.Copies()); n != 0 {
				t.Errorf("%d events were taken", n)
			}
		})
	}
}

// The library tries again after a cut connection, so what was taken before the
// cut is there twice: the collector keeps every copy.
func TestLibraryRetries(t *testing.T) {
	h, url := serve(t)
	h.Script(hecd.Events, hecd.Fault{Reset: hecd.After}, hecd.Fault{Reset: hecd.Before})
	got := drive(t, map[string]any{"url": url, "token": hecd.PlainToken, "retries": 3, "events": events(1, nil)})
	if len(got) != 1 || got[0].Status != 200 || h.Left() != 0 {
		t.Fatalf("%+v, %d faults left", got, h.Left())
	}
	if n := len(h.Indexed()); n != 2 {
		t.Errorf("%d copies", n)
	}
}

// With a channel the library gets an id, and the collector acknowledges it once
// it has indexed, and says so once.
func TestLibraryWithChannel(t *testing.T) {
	h, url := serve(t)
	const channel = "FE0ECFAD-13D5-401B-847D-77833BD77131"
	got := drive(t, map[string]any{"url": url, "token": hecd.AckToken, "events": events(3, nil), "headers": map[string]string{"X-Splunk-Request-Channel": channel}})
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	for i, s := range got {
		if s.Body.AckID == nil || *s.Body.AckID != uint64(i) {
			t.Errorf("request %d: %+v", i, s)
		}
	}
	// The question of the documentation, letter for letter.
	for _, want := range []string{`{"acks":{"0":true,"1":true,"2":true}}`, `{"acks":{"0":false,"1":false,"2":false}}`} {
		req, err := http.NewRequest(http.MethodPost, url+"/services/collector/ack?channel="+channel, strings.NewReader(`{"acks":[0,1,2]}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Splunk "+hecd.AckToken)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		b.ReadFrom(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || b.String() != want {
			t.Errorf("%d %s", res.StatusCode, b.String())
		}
	}
	if len(h.Indexed()) != 3 {
		t.Errorf("%d events", len(h.Indexed()))
	}
}
