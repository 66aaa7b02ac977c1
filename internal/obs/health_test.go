package obs

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	var down error
	value := 7.0
	h, err := NewHealth(func() error { return down }, []Gauge{
		{Name: "gatebook_test", Help: "Test.", Labels: map[string]string{"listener": "a"}, Read: func() float64 { return value }},
		{Name: "gatebook_test", Help: "Test.", Labels: map[string]string{"listener": "b"}, Read: func() float64 { return -value }},
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	check := func(path string, status int, texts ...string) {
		t.Helper()
		got, body := get(path)
		if got != status {
			t.Errorf("%s: %d", path, got)
		}
		for _, text := range texts {
			if !strings.Contains(body, text) {
				t.Errorf("%s: no %q in %q", path, text, body)
			}
		}
	}
	check("/healthz", 200, "ok\n")
	check("/metrics", 200, `gatebook_test{listener="a"} 7`, `gatebook_test{listener="b"} -7`)
	if _, body := get("/readyz"); body != "ready\n" {
		t.Errorf("%q", body)
	}
	h.Notes = func() []string { return []string{"look\x1b at this", "and this"} }
	if _, body := get("/readyz"); body != "ready\nnote: look\\u001b at this\nnote: and this\n" {
		t.Errorf("%q", body)
	}
	down = errors.New("full")
	check("/readyz", 503, "not ready: full\n", "note: and this")
}
