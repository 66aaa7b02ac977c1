package main

import (
	"crypto/rand"

	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// A one-time token passes once, whatever comes in between: a refusal that did
// not use it up, a restart, kill -9.
func TestOneTimeToken(t *testing.T) {
	up := newUpstream(t)
	s, env, _ := bindingSite(t, up.URL, "")
	s.start()
	url := "https://" + s.addr + "/once/a"
	use := func(tok string) shown { return s.ask("GET", url, "Authorization", "Bearer "+tok) }
	spent, killed, later := bound(env, "ann", "", ""), bound(env, "ann", "", ""), bound(env, "ann", "", "")
	s.passed(use(spent), "")
	s.refused(use(spent), 401, "token_replayed", `Bearer realm="gatebook", error="invalid_token"`)
	s.refused(s.ask("GET", url, "Authorization", "Bearer "+token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object { return c.Del("jti") })), 401, "token_malformed", "Bearer ")
	s.passed(use(killed), "")
	s.kill()
	s.start()
	for _, tok := range []string{spent, killed} {
		s.refused(use(tok), 401, "token_replayed", "Bearer ")
	}
	s.passed(use(later), "")
	s.stop()
	s.start()
	defer s.stop()
	for _, tok := range []string{spent, killed, later} {
		s.refused(use(tok), 401, "token_replayed", "Bearer ")
	}
	h := newHolder(t)
	tok := bound(env, "ann", "jkt", h.jkt)
	proof := h.sign(t, h.claims("GET", "https://"+s.addr+"/required/a", tok))
	prove := func() shown {
		return s.ask("GET", "https://"+s.addr+"/required/a", "Authorization", "DPoP "+tok, "DPoP", proof)
	}
	s.passed(prove(), "dpop")
	s.kill()
	s.start()
	s.refused(prove(), 401, "token_replayed", "DPoP ")
}

// Of any number of callers that use one token at the same time one gets in.
func TestOneTimeTokenInParallel(t *testing.T) {
	up := newUpstream(t)
	s, env, _ := bindingSite(t, up.URL, "")
	s.start()
	defer s.stop()
	parallelReplays(t, bound(env, "ann", "", ""), s)
}

// parallelReplays uses one token 64 times at once, spread over the sites.
func parallelReplays(t *testing.T, tok string, sites ...*site) {
	t.Helper()
	var ok, replayed atomic.Int32
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range 64 {
		s := sites[i%len(sites)]
		wg.Go(func() {
			<-begin
			switch a := s.ask("POST", "https://"+s.addr+"/once/a", "Authorization", "Bearer "+tok); a.status {
			case 200:
				ok.Add(1)
			case 401:
				replayed.Add(1)
			default:
				t.Errorf("status %d %s", a.status, a.body)
			}
		})
	}
	close(begin)
	wg.Wait()
	if ok.Load() != 1 || replayed.Load() != 63 {
		t.Errorf("%d of 64 passed, %d were replays", ok.Load(), replayed.Load())
	}
}

// What is revoked is refused from the moment the command returns, also while
// its verdict is hot in the cache, and stays so over kill -9.
func TestRevokeWhileHotInCache(t *testing.T) {
	up := newUpstream(t)
	s, env, _ := bindingSite(t, up.URL, "")
	s.start()
	use := func(tok string) shown {
		return s.ask("GET", "https://"+s.addr+"/plain/a", "Authorization", "Bearer "+tok)
	}
	of := func(sub, client, jti string) string {
		return token(env, sub, "clerk", func(c jwtattack.Object) jwtattack.Object {
			return c.Set("jti", fmt.Sprintf("%q", jti)).Set("client_id", fmt.Sprintf("%q", client))
		})
	}
	ann, bob, web, one := of("ann", "app", rand.Text()), of("bob", "app", rand.Text()), of("cy", "web", rand.Text()), of("dan", "app", "only-this")
	for _, tok := range []string{ann, bob, web, one, ann, web, one} {
		s.passed(use(tok), "")
	}
	const challenge = `Bearer realm="gatebook", error="invalid_token"`
	for _, row := range []struct {
		flag, value, tok string
		target           func(f boundFrame) bool
	}{
		{"--subject", "ann", ann, nil},
		{"--client", "web", web, nil},
		{"--jti", "only-this", one, nil},
	} {
		subject := s.frames(fmt.Sprintf(`id == %q`, use(row.tok).id))[0].Frame.Subject
		s.command(0, "token", "revoke", "--issuer", "corp", row.flag, row.value)
		s.refused(use(row.tok), 401, "token_revoked", challenge)
		notes := s.frames(`kind == "admin" && event.name == "token_revoke"`)
		e := notes[len(notes)-1].Frame.Event
		switch row.flag {
		case "--subject":
			if e.Cause != "subject" || e.Target != subject {
				t.Errorf("recorded %+v, want the pseudonym %s", e, subject)
			}
		case "--client":
			if e.Cause != "client" || e.Target != "web" {
				t.Errorf("recorded %+v", e)
			}
		default:
			if e.Cause != "token" || len(e.Target) != 22 {
				t.Errorf("recorded %+v", e)
			}
		}
	}
	s.passed(use(bob), "")
	fresh := token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object {
		return c.Set("iat", fmt.Sprint(time.Now().Unix()+2)).Set("jti", `"fresh"`)
	})
	s.passed(use(fresh), "")
	s.kill()
	s.start()
	defer s.stop()
	for _, tok := range []string{ann, web, one} {
		s.refused(use(tok), 401, "token_revoked", challenge)
	}
	s.passed(use(fresh), "")
	for _, args := range [][]string{{}, {"--subject", "a", "--client", "b"}, {"--issuer", "other", "--subject", "a"}} {
		s.command(2, append([]string{"token", "revoke"}, args...)...)
	}
}

// A token that is used from one place too many raises an alert, once, and is
// refused from then on if the configuration says so.
func TestTokenReuse(t *testing.T) {
	up := newUpstream(t)
	s, env, proxy := bindingSite(t, up.URL, "token_reuse: {places: 2, block: true}")
	s.start()
	url := "http://" + proxy + "/plain/a"
	tok, other := bound(env, "ann", "", ""), bound(env, "ann", "", "")
	from := func(tok, addr string) shown {
		return s.ask("GET", url, "Authorization", "Bearer "+tok, "X-Forwarded-For", addr)
	}
	for _, addr := range []string{"192.0.2.1", "192.0.2.77", "198.51.100.1", "192.0.2.1"} {
		s.passed(from(tok, addr), "")
	}
	if n := len(s.frames(`kind == "alert"`)); n != 0 {
		t.Errorf("%d alerts before there was reason", n)
	}
	s.refused(from(tok, "203.0.113.9"), 401, "token_reuse_detected", `Bearer realm="gatebook", error="invalid_token"`)
	s.refused(from(tok, "192.0.2.1"), 401, "token_reuse_detected", "Bearer ")
	s.passed(from(other, "203.0.113.9"), "")
	s.kill()
	s.start()
	s.refused(from(tok, "192.0.2.1"), 401, "token_reuse_detected", "Bearer ")
	s.stop() // which writes the alerts that were not due yet
	alerts := s.frames(`kind == "alert" && event.name == "authn_token_reuse"`)
	if len(alerts) != 1 || alerts[0].Frame.Event.Count != 3 || alerts[0].Frame.Event.Cause != "blocked" || alerts[0].Frame.Authn.Issuer != "corp" {
		t.Fatalf("alerts %+v", alerts)
	}
	if who := s.frames(`kind == "request" && status == 200`)[0].Frame.Subject; alerts[0].Frame.Subject != who {
		t.Errorf("the alert is about %s, the token of %s", alerts[0].Frame.Subject, who)
	}
}

// Certificates count as places, too, and without block the token goes on.
func TestTokenReuseIsToldOnly(t *testing.T) {
	up := newUpstream(t)
	s, env, proxy := bindingSite(t, up.URL, "token_reuse: {places: 1}")
	s.start()
	defer s.stop()
	tok := bound(env, "ann", "", "")
	for range 3 {
		for _, der := range [][]byte{clientCert(t), clientCert(t)} {
			s.passed(s.ask("GET", "http://"+proxy+"/plain/a", "Authorization", "Bearer "+tok, "Client-Cert", ":"+base64.StdEncoding.EncodeToString(der)+":"), "")
		}
	}
	s.ask("GET", "http://"+proxy+"/plain/a") // one more record behind the alert's
	alerts := s.frames(`kind == "alert" && event.name == "authn_token_reuse"`)
	if len(alerts) != 1 || alerts[0].Frame.Event.Cause != "observed" {
		t.Errorf("alerts %+v", alerts)
	}
}

// What takes a route's protection away is said.
func TestReloadTellsOfLostBinding(t *testing.T) {
	up := newUpstream(t)
	s, _, _ := bindingSite(t, up.URL, "")
	s.start()
	defer s.stop()
	text := string(s.read("gatebook.yaml"))
	for old, now := range map[string]string{
		"dpop: required, dpop_nonce: true": "dpop: optional", ", one_time: true": "", "certificate_bound: required": "certificate_bound: optional",
	} {
		text = strings.ReplaceAll(text, old, now)
	}
	s.write("gatebook.yaml", text)
	out := s.command(0, "reload")
	for _, want := range []string{
		"route nonce: it takes tokens that are bound to nothing", "route nonce: proofs need no nonce any more",
		"route cert: it takes tokens that are bound to nothing", "route once: a token can be used more than once",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("reload does not say %q:\n%s", want, out)
		}
	}
}
