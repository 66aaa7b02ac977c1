package authn

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

func TestSessionRefreshOnce(t *testing.T) {
	l := newLoginTest(t, nil)
	l.op.Person = map[string]any{"sub": "ann", "roles": []string{"clerk"}}
	l.login("")
	other := l.sessions(l.newStore(true)) // another node
	l.store.shared = true
	l.clock.pass(5 * time.Minute)
	var wg sync.WaitGroup
	for i := range 64 {
		s := l.s
		if i%2 == 1 {
			s = other
		}
		r := l.request("GET", "/page")
		wg.Go(func() {
			if _, err := s.Keep(t.Context(), r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := l.op.Count("refresh"); n != 1 {
		t.Errorf("%d refreshes", n)
	}
	l.clock.pass(5 * time.Minute)
	if _, err := other.Keep(t.Context(), l.request("GET", "/page")); err != nil {
		t.Fatal(err)
	}
	if n, reuse := l.op.Count("refresh"), l.op.Count("reuse"); n != 2 || reuse != 0 {
		t.Errorf("%d refreshes, %d with a token that was used", n, reuse)
	}
}

func TestSessionRefreshTrouble(t *testing.T) {
	status := func(code int) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(code); return true }
	}
	t.Run("the issuer says no", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.Tokens = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			w.Write([]byte(`{"error":"invalid_grant"}`))
			return true
		}
		l.clock.pass(5 * time.Minute)
		if _, err := l.use(); why(err) != reason.SessionExpired {
			t.Error(err)
		}
		if len(l.store.List()) != 0 || l.jar[sessionCookie] != "" {
			t.Error("the session goes on")
		}
	})
	t.Run("the answer gets lost", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.Tokens = func(w http.ResponseWriter, r *http.Request) bool {
			l.op.Tokens = nil
			l.op.ServeHTTP(discard{}, r) // the server has used the token up
			panic(http.ErrAbortHandler)
		}
		l.clock.pass(5 * time.Minute)
		if _, err := l.use(); why(err) != reason.IssuerUnavailable {
			t.Error(err)
		}
		l.clock.pass(refreshRetry)
		if _, err := l.use(); why(err) != reason.SessionExpired {
			t.Error(err)
		}
		if l.op.Count("reuse") != 1 {
			t.Error("the token was not shown again")
		}
	})
	t.Run("away before and after the end", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.Tokens = status(503)
		l.clock.pass(5*time.Minute - refreshAhead)
		if _, err := l.use(); err != nil {
			t.Errorf("still good: %v", err)
		}
		l.clock.pass(refreshAhead)
		if _, err := l.use(); why(err) != reason.IssuerUnavailable {
			t.Error(err)
		}
		l.op.Tokens = nil
		l.clock.pass(refreshRetry)
		if _, err := l.use(); err != nil {
			t.Errorf("back again: %v", err)
		}
	})
	t.Run("somebody else", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.IDToken = func(_, c map[string]any) { c["sub"] = "eve" }
		l.clock.pass(5 * time.Minute)
		if _, err := l.use(); why(err) != reason.SessionExpired {
			t.Error(err)
		}
	})
}
