package gate

import (
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/gatebook/gatebook/internal/reason"
)

// TestWhatMayBeFolded: of all ways through the pipeline, a flood of these may be
// counted instead of written: what a stranger was refused before the exchange
// could have been forwarded.
func TestWhatMayBeFolded(t *testing.T) {
	folds := map[string]bool{
		"no route": true, "wrong method": true, "options not listed": true, "encoded slash": true, "alias of our field": true,
		"limit before authentication": true, "no credential": true, "expired": true, "second method fails": true,
		"first method fails, second not asked": true, "two credentials": true, "not mine": true, "neither yes nor no": true,
		"error without a reason": true, "reason outside the list": true,
	}
	seen := 0
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			h := newHouse(t, w.conf)
			send := func(method, path string, body io.Reader, fields ...string) {
				resp, _, err := do(t, h.h1, h.request(t, method, path, body, fields...))
				if err == nil && resp == nil {
					t.Fatal("neither an answer nor an error")
				}
			}
			for range w.before {
				send("GET", "/v1/orders/1", nil)
				<-h.book.done
			}
			if w.method == "" {
				w.method = "GET"
			}
			if w.path == "" {
				w.path = "/v1/orders/42?x=1"
			}
			var in io.Reader
			if w.body != nil {
				in = w.body()
			}
			send(w.method, w.path, in, w.fields...)
			got := h.one(t)
			if got.rec.Raw.Fold != folds[w.name] {
				t.Errorf("%s (%s) may be folded: %v", w.name, got.rec.Error.Reason, got.rec.Raw.Fold)
			}
		})
		if folds[w.name] {
			seen++
		}
	}
	if seen != len(folds) {
		t.Errorf("%d of %d ways are there", seen, len(folds))
	}
}

// TestPublicRouteIsFoldedToo: nobody is known on a public route, so a flood that
// its limit refuses may be folded; what went upstream may not, nor what may
// have an open mark that the book did not confirm.
func TestPublicRouteIsFoldedToo(t *testing.T) {
	open := houseConfig{tune: func(r *Route) {
		r.Public, r.Authenticators, r.Engine, r.MaxBody = true, nil, nil, 10
	}}
	for _, c := range []struct {
		name    string
		body    io.Reader
		openErr error
		allow   bool
		want    reason.Reason
		folds   bool
	}{
		{"declared too large", body(11), nil, false, reason.BodyTooLarge, true},
		{"too large while it was forwarded", chunked(11), nil, false, reason.BodyTooLarge, false},
		{"too large, its mark not confirmed", chunked(11), errors.New("slow"), true, reason.BodyTooLarge, false},
		{"no mark", chunked(5), errors.New("slow"), false, reason.BookUnavailable, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := open
			conf.tune = func(r *Route) {
				open.tune(r)
				if c.allow {
					r.Audit.OnFailure = Allow
				}
			}
			conf.book = newFakeBook()
			conf.book.openErr = c.openErr
			h := newHouse(t, conf)
			resp, _, err := do(t, h.h1, h.request(t, http.MethodPost, "/v1/orders/42", c.body, "Authorization", ""))
			if err != nil || resp.StatusCode < 400 {
				t.Fatalf("%v %v", resp, err)
			}
			got := h.one(t)
			if got.rec.Error.Reason != string(c.want) || got.rec.Raw.Fold != c.folds {
				t.Errorf("%s: may be folded: %v", got.rec.Error.Reason, got.rec.Raw.Fold)
			}
		})
	}
}
