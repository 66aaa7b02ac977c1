package main

import (
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"testing"
)

// The tricks of the catalogue of published bypasses that aim at what binds a
// token to its holder.
func TestBindingBypasses(t *testing.T) {
	up := newUpstream(t)
	s, env, proxy := bindingSite(t, up.URL, "")
	s.start()
	defer s.stop()
	h, thief := newHolder(t), newHolder(t)
	der := clientCert(t)
	sum := sha256.Sum256(der)
	field := ":" + base64.StdEncoding.EncodeToString(der) + ":"
	tok, certTok := bound(env, "ann", "jkt", h.jkt), bound(env, "ann", "x5t#S256", raw64(sum[:]))
	base, inner := "https://"+s.addr, "http://"+proxy
	proof := func(path string) string { return h.sign(t, h.claims("GET", base+path, tok)) }

	t.Run("Traefik CVE-2024-45410, CVE-2026-29054: Connection takes the proof away", func(t *testing.T) {
		for _, name := range []string{"DPoP", "dpop", "Authorization", "close, DPoP"} {
			s.refused(s.ask("GET", base+"/optional/a", "Authorization", "DPoP "+tok, "DPoP", proof("/optional/a"), "Connection", name), 400, "malformed_request", "")
		}
		s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+certTok, "Client-Cert", field, "Connection", "Client-Cert"), 400, "malformed_request", "")
	})
	t.Run("Traefik CVE-2026-33433, oauth2-proxy CVE-2025-64484: another spelling of a trusted field", func(t *testing.T) {
		for _, name := range []string{"Client_Cert", "client_cert"} {
			s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+certTok, name, field), 400, "malformed_request", "")
		}
		s.refused(s.ask("GET", inner+"/cert/a", "Authorization", "Bearer "+certTok, "X-Forwarded-Client-Cert", field), 401, "binding_required", "Bearer ")
	})
	t.Run("Kong #9946: two tokens, one checked and the other used", func(t *testing.T) {
		bare := bound(env, "bob", "", "")
		s.refused(s.ask("GET", base+"/optional/a", "Authorization", "DPoP "+tok, "Authorization", "Bearer "+bare, "DPoP", proof("/optional/a")), 400, "two_credentials", "")
	})
	t.Run("Teleport 10.3.11: the binding is lost on the way to the cache", func(t *testing.T) {
		for range 3 {
			s.passed(s.ask("GET", base+"/required/a", "Authorization", "DPoP "+tok, "DPoP", proof("/required/a")), "dpop")
			s.refused(s.ask("GET", base+"/required/a", "Authorization", "Bearer "+tok), 401, "binding_required", "DPoP ")
			s.refused(s.ask("GET", base+"/plain/a", "Authorization", "Bearer "+tok), 401, "binding_required", "Bearer ")
			s.refused(s.ask("GET", base+"/required/a", "Authorization", "DPoP "+tok, "DPoP", thief.sign(t, thief.claims("GET", base+"/required/a", tok))), 401, "binding_mismatch", "DPoP ")
		}
	})
	t.Run("Traefik CVE-2026-71326: one caller's verdict goes to another at the same time", func(t *testing.T) {
		mine, other := bound(env, "ann", "jkt", h.jkt), bound(env, "eve", "jkt", thief.jkt)
		var all sync.WaitGroup
		for i := range 40 {
			who, token, want := h, mine, 200
			switch i % 4 {
			case 1:
				who, token = thief, other
			case 2:
				who, token, want = thief, mine, 401
			case 3:
				who, token, want = h, other, 401
			}
			p := who.sign(t, who.claims("GET", base+"/required/b", token))
			all.Go(func() {
				if a := s.ask("GET", base+"/required/b", "Authorization", "DPoP "+token, "DPoP", p); a.status != want {
					t.Errorf("case %d: status %d, want %d", i%4, a.status, want)
				}
			})
		}
		all.Wait()
	})
}
