package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// keySite is a gate whose routes take tokens and API keys.
func keySite(t *testing.T, upstream string) (*site, *jwtattack.Env) {
	t.Helper()
	s, env := identitySite(t, upstream)
	text := string(s.read("gatebook.yaml"))
	text = strings.ReplaceAll(text, "authn: [{jwt: corp}]", "authn: [{jwt: corp}, {apikey: {}}]")
	text = strings.Replace(text, "  - {name: scoped,", "  - {name: own, path: \"/v1/own\", methods: [GET], upstream: app, authn: [{apikey: {in: [x-acme-key]}}]}\n  - {name: per_key, path: \"/v1/per_key\", methods: [GET], upstream: app, authn: [{apikey: {}}], limits: [each]}\n  - {name: scoped,", 1)
	text = strings.Replace(text, "  slow: {key", "  each: {key: client, rate: 1/h, burst: 1}\n  slow: {key", 1)
	text = strings.Replace(text, "burst, scoped]}", "burst, scoped, own, per_key]}", 1)
	s.replace("gatebook.yaml", text)
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	return s, env
}

// newKey makes a key and returns its id and text.
func (s *site) newKey(args ...string) (id, secret string) {
	s.t.Helper()
	var k struct{ ID, Key string }
	out := s.command(0, append([]string{"apikey", "create", "--name", "test", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &k); err != nil || k.ID == "" || k.Key == "" {
		s.t.Fatalf("%v: %s", err, out)
	}
	return k.ID, k.Key
}

// tryKey sends a GET with header lines and returns status, id and body.
func (s *site) tryKey(path string, lines ...string) (status int, id, body string) {
	s.t.Helper()
	req, err := http.NewRequest("GET", "https://"+s.addr+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		req.Header.Add(name, value)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("X-Request-Id"), string(b)
}

// Every way that a request with an API key can go is answered, recorded and
// explained; what the upstream sees is the subject and never the key.
func TestAPIKeyDecisions(t *testing.T) {
	up := newUpstream(t)
	s, env := keySite(t, up.URL)
	s.start()
	t.Cleanup(func() { s.keepsNoKey() })
	t.Cleanup(s.stop)
	clerkID, clerk := s.newKey("--owner", "billing", "--role", "clerk")
	_, plain := s.newKey("--owner", "nobody-special")
	_, narrow := s.newKey("--owner", "billing", "--role", "clerk", "--route", "reports")
	_, scoped := s.newKey("--owner", "billing", "--role", "clerk", "--scope", "admin:all")
	revokedID, revoked := s.newKey("--owner", "billing", "--role", "clerk")
	s.command(0, "apikey", "revoke", revokedID)
	replacedID, replaced := s.newKey("--owner", "billing", "--role", "clerk")
	s.command(0, "apikey", "rotate", replacedID, "--overlap", "0s")
	_, early := s.newKey("--owner", "billing", "--role", "clerk", "--not-before", "1h")
	_, unknown := "", "gbk_"+strings.Repeat("0", 43)+crcOf("gbk_"+strings.Repeat("0", 43))
	one, two := clerk, scoped
	for _, row := range []struct {
		name, path string
		lines      []string
		status     int
		reason     string
	}{
		{"header", "/v1/orders/7", []string{"X-API-Key: " + clerk}, 200, ""},
		{"bearer", "/v1/orders/7", []string{"Authorization: Bearer " + clerk}, 200, ""},
		{"a token still works", "/v1/orders/7", []string{"Authorization: Bearer " + token(env, "ann", "clerk", nil)}, 200, ""},
		{"no credential", "/v1/orders/7", nil, 401, "no_credential"},
		{"no role", "/v1/orders/7", []string{"X-API-Key: " + plain}, 403, "denied_by_default"},
		{"another route", "/v1/orders/7", []string{"X-API-Key: " + narrow}, 403, "denied_by_policy"},
		{"scope missing", "/v1/scoped", []string{"X-API-Key: " + clerk}, 403, "scope_missing"},
		{"scope there", "/v1/scoped", []string{"X-API-Key: " + scoped}, 200, ""},
		{"unknown", "/v1/orders/7", []string{"X-API-Key: " + unknown}, 401, "key_unknown"},
		{"typing error", "/v1/orders/7", []string{"X-API-Key: " + clerk[:20] + "0" + clerk[21:] + "x"}, 401, "token_malformed"},
		{"revoked", "/v1/orders/7", []string{"X-API-Key: " + revoked}, 401, "key_revoked"},
		{"replaced", "/v1/orders/7", []string{"X-API-Key: " + replaced}, 401, "key_expired"},
		{"too early", "/v1/orders/7", []string{"X-API-Key: " + early}, 401, "token_not_yet"},
		{"two keys", "/v1/orders/7", []string{"X-API-Key: " + one, "Authorization: Bearer " + two}, 400, "two_credentials"},
		{"key and token", "/v1/orders/7", []string{"X-API-Key: " + one, "Authorization: Bearer " + token(env, "ann", "clerk", nil)}, 400, "two_credentials"},
		{"two fields", "/v1/orders/7", []string{"X-API-Key: " + one, "X-API-Key: " + two}, 400, "two_credentials"},
		{"in the query", "/v1/orders/7?api_key=" + one, nil, 401, "no_credential"},
		{"as a cookie", "/v1/orders/7", []string{"Cookie: x-api-key=" + one}, 401, "no_credential"},
		{"under an alias", "/v1/orders/7", []string{"X_API_Key: " + one}, 401, "no_credential"},
		{"own header", "/v1/own", []string{"X-Acme-Key: " + clerk}, 200, ""},
		{"own header, usual one", "/v1/own", []string{"X-API-Key: " + clerk}, 401, "no_credential"},
		{"own header, bearer beside it", "/v1/own", []string{"X-Acme-Key: " + clerk, "Authorization: Bearer " + two}, 400, "two_credentials"},
		{"the first by this key", "/v1/per_key", []string{"X-API-Key: " + clerk}, 200, ""},
		{"the second by this key", "/v1/per_key", []string{"X-API-Key: " + clerk}, 429, "rate_limited"},
		{"the first by another key of the owner", "/v1/per_key", []string{"X-API-Key: " + scoped}, 200, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			status, id, body := s.tryKey(row.path, row.lines...)
			if status != row.status || row.reason != "" && strings.Contains(body, row.reason) {
				t.Errorf("status %d, want %d: %s", status, row.status, body)
			}
			got := s.search(fmt.Sprintf("id == %q", id))
			if len(got) != 1 || got[0].Frame.Status != row.status || got[0].Frame.Error.Reason != row.reason {
				t.Fatalf("recorded: %+v", got)
			}
			up.mu.Lock()
			seen := up.seen[id]
			up.mu.Unlock()
			if want := map[bool]int{true: 1}[status == 200]; seen != want {
				t.Errorf("the upstream saw it %d times", seen)
			}
			if row.reason != "" {
				s.command(0, "doctor", id)
			}
		})
	}
	out := s.command(0, "search", `authn.method == "apikey" && status == 200`, "--reveal", "--json")
	var m struct {
		Frame struct {
			Authn struct {
				Method, Issuer, Client, KID, Outcome string
				Roles                                []string
				TTL                                  int64 `json:"ttl_s"`
			}
		}
		Personal map[string]any
	}
	line, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(line), &m); err != nil {
		t.Fatal(err)
	}
	if a := m.Frame.Authn; a.Issuer != "apikey" || a.Client != clerkID || a.KID != clerkID+".1" || a.Outcome != "ok" || a.TTL == 0 || len(a.Roles) != 1 || a.Roles[0] != "clerk" || m.Personal["sub"] != "billing" {
		t.Errorf("%s", line)
	}
	if out := s.command(0, "search", `error.reason == "key_revoked"`, "--reveal", "--json"); !strings.Contains(out, revokedID+".1") || !strings.Contains(out, `"claimed":"billing"`) {
		t.Errorf("a revoked key does not say whose it was: %s", out)
	}
}

// keyText is a key, or enough of one not to be random bytes that look like it.
var keyText = regexp.MustCompile(`gbk_[0-9A-Za-z]{8}`)

// keepsNoKey demands that what was printed and what is on the disk lack API keys.
func (s *site) keepsNoKey() {
	s.t.Helper()
	if found := keyText.FindString(s.stderr.String()); found != "" {
		s.t.Errorf("the process log has %q: %s", found, s.stderr)
	}
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if found := keyText.Find(b); found != nil {
			s.t.Errorf("%s has %q", path, found)
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
	if found := keyText.FindString(s.command(0, "search", "true", "--reveal", "--json")); found != "" {
		s.t.Errorf("a record has %q", found)
	}
}

// crcOf is the checksum of a key's beginning, by another way than the gate's.
func crcOf(s string) string {
	crc := ^uint32(0)
	for _, c := range []byte(s) {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ 0xedb88320&-(crc&1)
		}
	}
	crc = ^crc
	out := ""
	for range 6 {
		out = string("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[crc%62]) + out
		crc /= 62
	}
	return out
}

// The upstream gets who it is and not the key, wherever it was sent.
func TestAPIKeyIsNotForwarded(t *testing.T) {
	var mu sync.Mutex
	var got http.Header
	up := newUpstream(t)
	up.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = r.Header.Clone()
	})
	s, _ := keySite(t, up.URL)
	s.start()
	defer s.stop()
	id, key := s.newKey("--owner", "billing", "--role", "clerk")
	for path, line := range map[string]string{"/v1/orders/1": "X-API-Key: " + key, "/v1/orders/2": "Authorization: Bearer " + key, "/v1/own": "X-Acme-Key: " + key} {
		if status, _, body := s.tryKey(path, line); status != 200 {
			t.Fatalf("%s: %d %s", line, status, body)
		}
		mu.Lock()
		all := fmt.Sprint(got)
		subject, client := got.Get("X-Gatebook-Subject"), got.Get("X-Gatebook-Client")
		mu.Unlock()
		if strings.Contains(all, "gbk_") || subject != "billing" || client != id {
			t.Errorf("%s: the upstream got %s", line, all)
		}
	}
}

// A change through the running server counts with the next request, on
// connections that are open, too; each act is one record that names the key by
// its id.
func TestAPIKeyActs(t *testing.T) {
	up := newUpstream(t)
	s, _ := keySite(t, up.URL)
	offlineID, offline := s.newKey("--owner", "ops", "--role", "clerk") // no server runs
	s.start()
	id, first := s.newKey("--owner", "Ann Owner", "--role", "clerk", "--expires", "never", "--tenant", "acme")
	if status, _, _ := s.tryKey("/v1/orders/1", "X-API-Key: "+offline); status != 200 {
		t.Errorf("a key that was made offline: %d", status)
	}
	if status, _, _ := s.tryKey("/v1/orders/1", "X-API-Key: "+first); status != 200 {
		t.Errorf("a new key: %d", status)
	}
	second := strings.TrimSpace(s.command(0, "apikey", "rotate", id, "--overlap", "1h"))
	if !regexp.MustCompile(`^gbk_[0-9A-Za-z]{49}$`).MatchString(second) || !strings.Contains(s.said, "stays valid until") || strings.Contains(s.said, "gbk_") {
		t.Errorf("rotate prints %q and says %q", second, s.said)
	}
	for _, k := range []string{first, second} {
		if status, _, _ := s.tryKey("/v1/orders/1", "X-API-Key: "+k); status != 200 {
			t.Errorf("in the overlap: %d", status)
		}
	}
	shown := s.command(0, "apikey", "show", id)
	for _, want := range []string{"Ann Owner", "active", "clerk", "acme", "without end", "2, last used 20", "1, valid until 20"} {
		if !strings.Contains(shown, want) {
			t.Errorf("show lacks %q:\n%s", want, shown)
		}
	}
	if out := s.command(0, "apikey", "revoke", id); !strings.Contains(out, "revoked "+id) {
		t.Errorf("%s", out)
	}
	for _, k := range []string{first, second} {
		if status, _, _ := s.tryKey("/v1/orders/1", "X-API-Key: "+k); status != 401 {
			t.Errorf("at once after the revocation: %d", status)
		}
	}
	if list := s.command(0, "apikey", "list"); strings.Contains(list, id) || !strings.Contains(list, offlineID) || !strings.Contains(s.said, "left out") {
		t.Errorf("list: %s%s", list, s.said)
	}
	if list := s.command(0, "apikey", "list", "--all", "--json"); !strings.Contains(list, id) || strings.Contains(list, "gbk_") || strings.Contains(list, "sha256") {
		t.Errorf("list --all: %s", list)
	}
	if out := s.command(0, "status"); !strings.Contains(out, "API keys: 1 active, 1 revoked") || !strings.Contains(out, "live.db") {
		t.Errorf("status: %s", out)
	}
	// What cannot be granted says so by its exit code, with a server and without.
	refusals := func() {
		t.Helper()
		s.command(3, "apikey", "show", "2222222222")
		s.command(3, "apikey", "revoke", "../records")
		s.command(1, "apikey", "revoke", id)
		s.command(1, "apikey", "rotate", id)
		s.command(2, "apikey", "create", "--name", "x")
		s.command(2, "apikey", "create", "--name", "x", "--owner", "y", "--expires", "soon")
		s.command(2, "apikey", "create", "--name", "x", "--owner", "y", "--expires", "2020-01-01")
		s.command(2, "apikey", "rotate", offlineID, "--overlap", "400d")
		if s.command(2, "apikey", "revoke", second); strings.Contains(s.said, second) || !strings.Contains(s.said, "that is a key") {
			t.Errorf("a key instead of an id: %s", s.said)
		}
	}
	refusals()
	s.stop()
	refusals()
	s.command(0, "apikey", "rotate", offlineID)
	s.command(0, "apikey", "list")
	// The records: one for each act, with who did it and digests that join.
	out := s.command(0, "search", `kind == "key"`, "--reveal", "--json")
	last := map[string]string{}
	n := 0
	for line := range strings.Lines(out) {
		var r struct {
			Frame struct {
				Outcome string
				Event   struct{ Name, Target, Before, After string }
			}
			Personal struct{ Sub string }
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		e := r.Frame.Event
		if r.Frame.Outcome != "success" || e.Before != last[e.Target] || len(e.After) != 32 || !strings.HasPrefix(r.Personal.Sub, "uid:") || !strings.HasPrefix(e.Name, "apikey_") {
			t.Errorf("record %s", line)
		}
		last[e.Target] = e.After
		n++
	}
	if n != 5 || len(last) != 2 {
		t.Errorf("%d records of acts upon %d keys:\n%s", n, len(last), out)
	}
	if strings.Contains(s.command(0, "search", "true", "--json"), "Ann Owner") || strings.Contains(out, "gbk_") {
		t.Error("a frame names an owner, or a record holds a key")
	}
	if n := len(s.search(`kind == "access" && event.name in ["apikey_list", "apikey_show"]`)); n != 4 {
		t.Errorf("%d records of looking at keys", n)
	}
}

// Keys survive what the book survives: kill -9 while they are being made, a
// backup, the loss of everything and a restore.
func TestAPIKeysSurvive(t *testing.T) {
	up := newUpstream(t)
	s, _ := keySite(t, up.URL)
	good := map[string]string{} // by id, acknowledged
	var mu sync.Mutex
	rounds := 4
	for round := range rounds {
		s.start()
		for id, k := range good {
			if status, _, _ := s.tryKey("/v1/orders/1", "X-API-Key: "+k); status != 200 {
				t.Fatalf("round %d: key %s is answered %d", round, id, status)
			}
		}
		if round == rounds-1 {
			break
		}
		enough, stop := make(chan struct{}, 10_000), make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					out, err := exec.Command("gatebook", "apikey", "create", "--name", "n", "--owner", "o", "--role", "clerk", "--json", "-c", filepath.Join(s.dir, "gatebook.yaml")).Output()
					var k struct{ ID, Key string }
					if err != nil || json.Unmarshal(out, &k) != nil {
						continue // the server is gone, or the other one has its files
					}
					mu.Lock()
					good[k.ID] = k.Key
					mu.Unlock()
					select {
					case enough <- struct{}{}:
					default:
					}
				}
			})
		}
		for range 3 + 2*round {
			<-enough
		}
		s.kill()
		close(stop)
		wg.Wait()
	}
	t.Logf("%d keys were acknowledged", len(good))
	// Those whose creation was acknowledged have a record, and each key that is
	// there has one.
	var list []struct{ ID string }
	if err := json.Unmarshal([]byte(s.command(0, "apikey", "list", "--json")), &list); err != nil || len(list) < len(good) {
		t.Fatalf("%d keys of %d, %v", len(list), len(good), err)
	}
	for _, k := range list {
		if n := len(s.search(fmt.Sprintf("event.name == \"apikey_create\" && event.target == %q", k.ID))); n != 1 {
			t.Errorf("%d records of the creation of %s", n, k.ID)
		}
	}

	backup := filepath.Join(t.TempDir(), "backup")
	s.command(0, "backup", backup, "--with-keys")
	if _, err := os.Stat(filepath.Join(backup, "state", "live.db")); err != nil {
		t.Fatal(err)
	}
	var victim string
	for victim = range good {
		break
	}
	s.command(0, "apikey", "revoke", victim) // after the backup: it will be undone
	s.stop()
	offline := filepath.Join(t.TempDir(), "offline")
	s.command(0, "backup", offline)
	if _, err := os.Stat(filepath.Join(offline, "state", "live.db")); err != nil {
		t.Fatal(err)
	}
	checkpoint := filepath.Join(t.TempDir(), "checkpoint")
	if err := os.WriteFile(checkpoint, s.read("data/checkpoint"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data", "keys"} {
		if err := os.RemoveAll(filepath.Join(s.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	if out := s.command(0, "restore", backup); !strings.Contains(out, "revoke again what was revoked since") {
		t.Errorf("restore says %q", out)
	}
	s.command(0, "book", "new", "--reason", "restored", "--continues", checkpoint)
	s.start()
	for id, k := range good {
		if status, _, _ := s.tryKey("/v1/orders/1", "X-API-Key: "+k); status != 200 {
			t.Errorf("restored: key %s is answered %d", id, status)
		}
	}
	s.stop()
	s.command(0, "verify")
}

// A state file that is not this book's, or not as it was written, stops the start
// and every command that would use it, with a message and exit code 10; it is
// never taken for an empty one.
func TestStateDamage(t *testing.T) {
	up := newUpstream(t)
	s, _ := keySite(t, up.URL)
	other, _ := keySite(t, up.URL)
	other.newKey("--owner", "mallory", "--role", "clerk")
	s.newKey("--owner", "billing", "--role", "clerk")
	live := filepath.Join(s.dir, "data", "state", "live.db")
	good, err := os.ReadFile(live)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte, mode os.FileMode) {
		t.Helper()
		if err := os.Remove(live); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := os.WriteFile(live, b, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(live, mode); err != nil {
			t.Fatal(err)
		}
	}
	half := append([]byte{}, good...)
	for i := len(half) / 4; i < len(half); i++ {
		half[i] ^= 0x55
	}
	flips := func(b []byte) []byte { // one bit in each value, wherever it lies
		out := append([]byte{}, b...)
		for i := 4096 * 2; i < len(out); i += 64 {
			if out[i] != 0 {
				out[i] ^= 1
			}
		}
		return out
	}
	for _, row := range []struct {
		name string
		data []byte
		mode os.FileMode
		code int
		says string
	}{
		{"of another book", other.read("data/state/live.db"), 0o600, 10, "belongs to another book"},
		{"noise", []byte(strings.Repeat("noise ", 4000)), 0o600, 10, "damaged"},
		{"cut", good[:len(good)/2], 0o600, 10, "damaged"},
		{"half of it changed", half, 0o600, 10, "damaged"},
		{"bits flipped", flips(good), 0o600, 10, "live.db"},
		{"readable by others", good, 0o644, 1, "chmod"},
	} {
		put(row.data, row.mode)
		for _, args := range [][]string{{"serve"}, {"apikey", "list"}} {
			if s.command(row.code, args...); !strings.Contains(s.said, row.says) || !strings.Contains(s.said, "live.db") || strings.Contains(s.said, "panic") || strings.Contains(s.said, "goroutine") {
				t.Errorf("%s: %v says %q", row.name, args, s.said)
			}
		}
		if row.code == 10 && row.name != "of another book" && row.name != "bits flipped" {
			if s.command(10, "backup", filepath.Join(t.TempDir(), "b")); !strings.Contains(s.said, "damaged") {
				t.Errorf("%s: backup says %q", row.name, s.said)
			}
		}
	}
	put(good, 0o600)
	s.start()
	if s.command(13, "serve"); !strings.Contains(s.said, "in use") && !strings.Contains(s.said, "lock") {
		t.Errorf("a second one: %q", s.said)
	}
	s.stop()
	// Moved away, as the message says, it is made anew.
	if err := os.Remove(live); err != nil {
		t.Fatal(err)
	}
	s.start()
	if out := s.command(0, "apikey", "list", "--all"); out != "" {
		t.Errorf("keys: %s", out)
	}
	s.stop()
	s.command(0, "verify")
}

// What is kept of when a key was last used survives a restart.
func TestAPIKeyLastUse(t *testing.T) {
	up := newUpstream(t)
	s, _ := keySite(t, up.URL)
	s.start()
	id, key := s.newKey("--owner", "billing", "--role", "clerk")
	if out := s.command(0, "apikey", "show", id); !strings.Contains(out, "last used never") {
		t.Errorf("%s", out)
	}
	s.tryKey("/v1/orders/1", "X-API-Key: "+key)
	s.stop()
	if out := s.command(0, "apikey", "show", id); !strings.Contains(out, "last used "+time.Now().UTC().Format("2006")) {
		t.Errorf("%s", out)
	}
}
