package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// detected is what a test looks at in an alert of detection.
type detected struct {
	Frame struct {
		Subject string
		Client  struct{ Prefix string }
		Limit   struct{ Rule string }
		Links   []string
		Event   struct {
			Name, Target, Cause string
			Count               int64
		}
	}
}

// detections waits until detection has told so many times, and a little longer for
// what it should not tell.
func (s *site) detections(n int) (out []detected) {
	s.t.Helper()
	late := time.Now().Add(time.Minute)
	for {
		out = nil
		for line := range strings.Lines(s.command(0, "search", `kind == "alert" && limit.rule startsWith "detect."`, "--json")) {
			var a detected
			if err := json.Unmarshal([]byte(line), &a); err != nil {
				s.t.Fatal(err)
			}
			out = append(out, a)
		}
		if len(out) >= n {
			return out
		}
		if time.Now().After(late) {
			s.t.Fatalf("detection tells %+v, want %d alerts", out, n)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestAttacks attacks the real program, which has the built-in rules and nothing
// configured: what each attack is told as, about whom, and that kill -9 neither
// loses it nor makes it twice.
func TestAttacks(t *testing.T) {
	up := newUpstream(t)
	s, env := keySite(t, up.URL)
	text := string(s.read("gatebook.yaml"))
	var more strings.Builder
	for i := range 10 {
		fmt.Fprintf(&more, "  - {name: \"admin%d\", path: \"/v1/admin/%d\", methods: [GET], upstream: app, authn: [{jwt: corp}]}\n", i, i)
	}
	s.replace("gatebook.yaml", strings.Replace(text, "routes:\n", "routes:\n"+more.String(), 1))
	s.start()
	_, key := s.newKey("--owner", "billing", "--role", "clerk")
	ask := func(c *http.Client, path, credential string, want int) {
		t.Helper()
		req, err := http.NewRequest("GET", "https://"+s.addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+credential)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Fatalf("%s is answered %d, want %d", path, resp.StatusCode, want)
		}
	}
	// Who looks for what is open.
	mallory := token(env, "mallory", "clerk", nil)
	for i := range 10 {
		ask(s.client, fmt.Sprintf("/v1/admin/%d", i), mallory, 403)
	}
	// A guess that hits, from a network where nobody was before.
	guesser := s.from("127.88.1.1")
	for i := range 20 {
		body := "gbk_" + strings.Repeat("1", 41) + fmt.Sprintf("%02d", i)
		ask(guesser, "/v1/orders/7", body+crcOf(body), 401)
	}
	ask(guesser, "/v1/orders/7", key, 200)
	s.detections(2)
	s.kill()
	s.start()
	// A key that many have: of API keys the gate has no single tokens to watch. In
	// the first day it takes three times eight networks.
	for i := range 24 {
		ask(s.from(fmt.Sprintf("127.89.%d.1", i)), "/v1/orders/7", key, 200)
	}
	got := s.detections(3)
	s.stop()
	s.start()
	defer s.stop()
	ask(s.from("127.90.1.1"), "/v1/orders/7", key, 200)
	time.Sleep(3 * time.Second) // longer than detection takes to see it
	if again := s.detections(3); len(again) != 3 {
		t.Errorf("after a restart there are %d alerts, want 3: %+v", len(again), again)
	}
	subject := func(expr string) string {
		t.Helper()
		var found detected
		first, _, _ := strings.Cut(s.command(0, "search", expr, "--json"), "\n")
		if err := json.Unmarshal([]byte(first), &found); err != nil {
			t.Fatalf("no record: %s: %v", expr, err)
		}
		return found.Frame.Subject
	}
	for i, want := range []struct {
		rule, name, target, severity string
		count                        int64
	}{
		{"detect.privilege_probing", "authz_fail", subject(`authz.decision == "deny"`), "medium", 8},
		{"detect.guessed_credential", "authn_login_successafterfail", "127.88.1.0/24", "high", 20},
		{"detect.token_replay", "authn_token_reuse", subject(`client.prefix == "127.89.1.0/24"`), "high", 24},
	} {
		f := got[i].Frame
		if f.Limit.Rule != want.rule || f.Event.Name != want.name || f.Event.Target != want.target || f.Event.Cause != want.severity || f.Event.Count != want.count {
			t.Errorf("alert %d is %+v, want %+v", i, f, want)
		}
		if len(f.Links) == 0 {
			t.Errorf("alert %d links to nothing", i)
			continue
		}
		for _, id := range f.Links {
			s.command(0, "show", id)
		}
	}
}
