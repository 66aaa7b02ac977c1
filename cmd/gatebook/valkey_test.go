package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
	"github.com/gatebook/gatebook/internal/testenv/valkeyd"
)

// sharedSite is a bindingSite that shares what was used once.
func sharedSite(t *testing.T, upstream string, store *valkeyd.Server) (*site, *jwtattack.Env) {
	t.Helper()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, env, _ := bindingSite(t, upstream, fmt.Sprintf("valkey: {address: %q, password: {file: %q}, timeout: 500ms}", store.Addr, password))
	s.start()
	return s, env
}

// newest is a one-time token that was issued as late as can be.
func newest(env *jwtattack.Env) string {
	return token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object {
		return c.Set("iat", fmt.Sprint(time.Now().Unix()+4)).Set("jti", fmt.Sprintf("%q", rand.Text()))
	})
}

func (s *site) once(tok string) shown {
	return s.ask("GET", "https://"+s.addr+"/once/a", "Authorization", "Bearer "+tok)
}

// ripe waits until the store remembers far enough back for a newest token: what
// may be older than its memory is refused.
func ripe(t *testing.T, env *jwtattack.Env, s *site) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); <-tick.C {
		if s.once(newest(env)).status == 200 {
			return
		}
	}
	t.Fatal("no one-time token passes")
}

// One one-time token, 64 uses at once on two nodes that share a store: one
// passes. And what happens when the store is killed, stopped, flushed.
func TestTwoNodesShareWhatWasUsed(t *testing.T) {
	up := newUpstream(t)
	store := valkeyd.Start(t, "--requirepass", "sesame")
	a, env := sharedSite(t, up.URL, store)
	defer a.stop()
	b, envB := sharedSite(t, up.URL, store)
	defer b.stop()
	if string(env.JWKS) != string(envB.JWKS) { // both nodes trust the same issuer
		b.write("jwks.json", string(env.JWKS))
		b.kill()
		b.start()
	}
	ripe(t, env, a)
	tok := newest(env)
	parallelReplays(t, tok, a, b)
	for _, s := range []*site{a, b} {
		s.refused(s.once(tok), 401, "token_replayed", "Bearer ")
	}
	a.kill()
	a.start()
	a.refused(a.once(tok), 401, "token_replayed", "Bearer ")

	h := newHolder(t)
	boundTok := bound(env, "ann", "jkt", h.jkt)
	urls := map[*site]string{a: "https://" + a.addr + "/required/a", b: "https://" + b.addr + "/required/a"}
	prove := func(s *site, proof string) shown {
		return s.ask("GET", urls[s], "Authorization", "DPoP "+boundTok, "DPoP", proof)
	}
	mode := func(s *site, x shown) string { return s.frames(fmt.Sprintf("id == %q", x.id))[0].Frame.Limit.Mode }
	// A proof of one node's URI is for that node; its jti counts on the other.
	claims := h.claims("GET", urls[a], boundTok)
	claims["iat"] = time.Now().Unix() + 9
	x := prove(a, h.sign(t, claims))
	a.passed(x, "dpop")
	if m := mode(a, x); m != "" {
		t.Errorf("the record says %q while the store is there", m)
	}
	claims["htu"] = urls[b]
	b.refused(prove(b, h.sign(t, claims)), 401, "token_replayed", "DPoP ")

	for _, how := range []struct {
		name        string
		break_, go_ func()
	}{{"stopped", store.Pause, store.Resume}, {"killed", store.Kill, store.Restart}} {
		how.break_()
		// One-time tokens are closed, proofs are left to each node and say so.
		a.refused(a.once(newest(env)), 503, "limiter_unavailable", "")
		proof := h.sign(t, h.claims("GET", urls[a], boundTok))
		x := prove(a, proof)
		a.passed(x, "dpop")
		if m := mode(a, x); m != "local" {
			t.Errorf("%s: the record says %q", how.name, m)
		}
		a.refused(prove(a, proof), 401, "token_replayed", "DPoP ")
		how.go_()
	}
	// It came back with nothing: whatever may have been used is refused.
	until := time.Now().Add(20 * time.Second)
	for got := a.once(tok); got.status == 503; got = a.once(tok) {
		if time.Now().After(until) {
			t.Fatal("the store is back and is not asked")
		}
	}
	a.refused(a.once(tok), 401, "token_replayed", "Bearer ")
	ripe(t, env, b)
	last := newest(env)
	a.passed(a.once(last), "")
	b.refused(b.once(last), 401, "token_replayed", "Bearer ")
	flushed(t, store)
	a.refused(a.once(last), 401, "token_replayed", "Bearer ")
	for _, s := range []*site{a, b} {
		if strings.Contains(s.stderr.String(), "sesame") {
			t.Error("the process log holds the password")
		}
	}
}

func flushed(t *testing.T, store *valkeyd.Server) {
	t.Helper()
	if got := store.Script("AUTH sesame", "FLUSHALL"); got != "+OK" {
		t.Fatal(got)
	}
}

// A store without its password file, or with one that others can read, is told
// by check.
func TestValkeySecretIsChecked(t *testing.T) {
	up := newUpstream(t)
	s, _, _ := bindingSite(t, up.URL, "")
	text := string(s.read("gatebook.yaml")) + "\nvalkey: {address: \"127.0.0.1:1\", password: {file: pw}}\n"
	s.write("gatebook.yaml", text)
	s.command(2, "check")
	s.write("pw", "x")
	s.command(0, "check")
	if err := os.Chmod(filepath.Join(s.dir, "pw"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.command(2, "check")
	if !strings.Contains(s.said, "others may read") {
		t.Errorf("check says %s", s.said)
	}
}
