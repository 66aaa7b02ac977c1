package authn_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/reason"
)

// An endpoint that is away: what was said before counts until it runs out, then
// nobody gets through, and the endpoint is left alone in between.
func TestIntrospectionAway(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter, r *http.Request){
		"error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"busy":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) },
		"moved": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		"not us": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error":"invalid_client"}`)
		},
		"client": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_client"}`)
		},
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"stalls":   func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drips": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100000")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, now := newAsked(t, says(active())), newHandClock()
			c := introspectConfig(a.URL, now)
			c.Timeout = 200 * time.Millisecond
			i := newIntrospector(t, c)
			if _, err := introspected(i, "known"); err != nil {
				t.Fatal(err)
			}
			a.answer(fail)
			before := a.n.Load()
			for n := range 10 {
				if _, err := introspected(i, fmt.Sprint("new", n)); reasonOf(err) != reason.IssuerUnavailable || !errors.Is(err, authn.ErrNoCredential) {
					t.Fatalf("%v", err)
				}
			}
			if n := a.n.Load() - before; n != 3 {
				t.Errorf("asked %d times while it was away", n)
			}
			if st := i.Status(); !st.Away || st.Err == nil || st.Failed != 3 {
				t.Errorf("status %+v", st)
			}
			if _, err := introspected(i, "known"); err != nil {
				t.Errorf("what was said before: %v", err)
			}
			now.forward(time.Minute)
			if _, err := introspected(i, "known"); reasonOf(err) != reason.IssuerUnavailable {
				t.Errorf("past the cap: %v", err)
			}
			a.answer(says(active()))
			now.forward(30 * time.Second)
			if _, err := introspected(i, "known"); err != nil {
				t.Errorf("back again: %v", err)
			}
			if st := i.Status(); st.Away || st.Err != nil {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// Tokens that the endpoint will not judge must not make it look broken.
func TestOddTokensDoNotCloseTheEndpoint(t *testing.T) {
	a := newAsked(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("token") == "good" {
			says(active())(w, r)
			return
		}
		w.WriteHeader(400)
		fmt.Fprint(w, `{"error":"unsupported_token_type","error_description":"no"}`)
	})
	i := newIntrospector(t, introspectConfig(a.URL, newHandClock()))
	for n := range 20 {
		if _, err := introspected(i, fmt.Sprint("odd", n)); reasonOf(err) != reason.TokenInactive {
			t.Fatal(err)
		}
	}
	if _, err := introspected(i, "good"); err != nil {
		t.Errorf("%v, status %+v", err, i.Status())
	}
}

// What is no business of the endpoint never reaches it.
func TestIntrospectionKeepsOthersTokens(t *testing.T) {
	jwt := func(claims string) string {
		return b64(`{"alg":"none"}`) + "." + b64(claims) + ".AAAA"
	}
	a := newAsked(t, says(active()))
	c := introspectConfig(a.URL, newHandClock())
	plain := newIntrospector(t, c)
	c.Prefixes = []string{"at_", "rt_"}
	prefixed := newIntrospector(t, c)
	for _, row := range []struct {
		name  string
		i     *authn.Introspector
		field string
		want  reason.Reason
		next  bool
		asked int64
	}{
		{"other scheme", plain, "Basic dTpw", reason.NoCredential, true, 0},
		{"JWT of another issuer", plain, "Bearer " + jwt(`{"iss":"https://other.example"}`), reason.TokenIssuer, true, 0},
		{"JWT with a list as issuer", plain, "Bearer " + jwt(`{"iss":["`+introspectIssuer+`"]}`), reason.TokenIssuer, true, 0},
		{"JWT of the issuer", plain, "Bearer " + jwt(`{"iss":"`+introspectIssuer+`"}`), "", false, 1},
		{"JWT of nobody", plain, "Bearer " + jwt(`{}`), "", false, 1},
		{"no JWT", plain, "Bearer a.b.c", "", false, 1},
		{"character outside b64token", plain, "Bearer a,b", reason.TokenMalformed, false, 0},
		{"line end", plain, "Bearer a\nb", reason.TokenMalformed, false, 0},
		{"long", plain, "Bearer " + strings.Repeat("a", 8193), reason.TokenMalformed, false, 0},
		{"prefix", prefixed, "Bearer at_1", "", false, 1},
		{"second prefix", prefixed, "Bearer rt_1", "", false, 1},
		{"other prefix", prefixed, "Bearer gh_1", reason.TokenMalformed, true, 0},
		{"prefix in the middle", prefixed, "Bearer xat_1", reason.TokenMalformed, true, 0},
		{"prefix in other case", prefixed, "Bearer AT_1", reason.TokenMalformed, true, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := a.n.Load()
			_, err := row.i.Authenticate(context.Background(), request(row.field))
			if got := reasonOf(err); got != row.want || errors.Is(err, authn.ErrNoCredential) != row.next || a.n.Load()-before != row.asked {
				t.Errorf("%v, asked %d times", err, a.n.Load()-before)
			}
		})
	}
}

// Many requests with one token ask once; with many tokens, no more at once than
// allowed, and no more in a while than the budget.
func TestIntrospectionBudget(t *testing.T) {
	t.Run("one token", func(t *testing.T) {
		arrived, release := make(chan struct{}), make(chan struct{})
		var first sync.Once
		a := newAsked(t, func(w http.ResponseWriter, r *http.Request) {
			first.Do(func() { close(arrived) })
			<-release
			says(active())(w, r)
		})
		i := newIntrospector(t, introspectConfig(a.URL, newHandClock()))
		var all sync.WaitGroup
		var bad atomic.Int64
		for range 100 {
			all.Go(func() {
				if p, err := introspected(i, "opaque"); err != nil || p.Subject != "ann" {
					bad.Add(1)
				}
			})
		}
		<-arrived
		close(release)
		all.Wait()
		if a.n.Load() != 1 || bad.Load() != 0 {
			t.Errorf("asked %d times, %d failed", a.n.Load(), bad.Load())
		}
	})
	t.Run("at once", func(t *testing.T) {
		const abreast, tokens = 3, 60
		var mu sync.Mutex
		now, most, n, round := 0, 0, 0, make(chan struct{})
		over := make(chan struct{})
		a := newAsked(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			now++
			n++
			most = max(most, now)
			if n == abreast+1 && now > abreast {
				close(over)
			}
			mine, full := round, n%abreast == 0 // no answer before as many are here as may be
			if full {
				round = make(chan struct{})
			}
			first := n == abreast
			mu.Unlock()
			if first {
				select { // the one that must not come has a while to come
				case <-over:
				case <-time.After(100 * time.Millisecond):
				}
			}
			if full {
				close(mine)
			}
			select {
			case <-mine:
			case <-r.Context().Done():
			}
			mu.Lock()
			now--
			mu.Unlock()
			says(active())(w, r)
		})
		c := introspectConfig(a.URL, newHandClock())
		c.Concurrency, c.Timeout = abreast, 30*time.Second
		i := newIntrospector(t, c)
		var all, ready sync.WaitGroup
		var bad atomic.Int64
		ready.Add(tokens)
		for k := range tokens {
			all.Go(func() {
				ready.Done()
				ready.Wait()
				if _, err := introspected(i, fmt.Sprint("t", k)); err != nil {
					bad.Add(1)
				}
			})
		}
		all.Wait()
		if most != abreast || n != tokens || bad.Load() != 0 {
			t.Errorf("%d questions at once, %d in all, %d failed", most, n, bad.Load())
		}
	})
	t.Run("in a while", func(t *testing.T) {
		a, now := newAsked(t, says(`{"active":false}`)), newHandClock()
		c := introspectConfig(a.URL, now)
		c.Rate = 10
		i := newIntrospector(t, c)
		count := func(from, n int) (over int) {
			for k := range n {
				if _, err := introspected(i, fmt.Sprint("t", from+k)); reasonOf(err) == reason.Overloaded {
					over++
				}
			}
			return over
		}
		if over := count(0, 50); over != 40 || a.n.Load() != 10 {
			t.Errorf("%d over the budget, asked %d times", over, a.n.Load())
		}
		now.forward(500 * time.Millisecond)
		if over := count(50, 20); over != 15 {
			t.Errorf("%d over the budget after half a second", over)
		}
	})
}

// A request that ends does not take along the answer that others wait for.
func TestIntrospectionOutlivesItsRequest(t *testing.T) {
	got, release := make(chan struct{}), make(chan struct{})
	a := newAsked(t, func(w http.ResponseWriter, r *http.Request) { close(got); <-release; says(active())(w, r) })
	i := newIntrospector(t, introspectConfig(a.URL, newHandClock()))
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { i.Authenticate(ctx, request("Bearer opaque")) })
	<-got
	waiter, stop := context.WithCancel(t.Context())
	stop()
	if _, err := i.Authenticate(waiter, request("Bearer opaque")); reasonOf(err) != reason.ClientAborted {
		t.Errorf("a waiter that ended: %v", err)
	}
	cancel()
	close(release)
	all.Wait()
	if _, err := introspected(i, "opaque"); err != nil || a.n.Load() != 1 {
		t.Errorf("%v, asked %d times", err, a.n.Load())
	}
}
