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

func TestCounters(t *testing.T) {
	members := map[string]float64{"a": 1, "b": 2}
	h, err := NewHealth(func() error { return nil }, nil, Counter{
		Name: "gatebook_test_total", Help: "Test.", Labels: []string{"name", "kind"},
		Read: func(add func(float64, ...string)) {
			for name, v := range members {
				add(v, name, "x")
			}
		},
	}, Counter{Name: "gatebook_plain_total", Help: "Plain.", Read: func(add func(float64, ...string)) { add(3) }})
	if err != nil {
		t.Fatal(err)
	}
	get := func() (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Code, w.Body.String()
	}
	code, body := get()
	for _, text := range []string{
		"# TYPE gatebook_test_total counter", "# HELP gatebook_test_total Test.", "\ngatebook_plain_total 3\n",
		`gatebook_test_total{kind="x",name="a"} 1`, `gatebook_test_total{kind="x",name="b"} 2`,
	} {
		if code != 200 || !strings.Contains(body, text) {
			t.Errorf("%d, no %q in %q", code, text, body)
		}
	}
	members["a"] = 5
	if _, body := get(); !strings.Contains(body, `name="a"} 5`) {
		t.Errorf("the counter is not read again: %q", body)
	}
	bad, err := NewHealth(func() error { return nil }, nil, Counter{
		Name: "gatebook_test_total", Help: "Test.", Labels: []string{"name"}, Read: func(add func(float64, ...string)) { add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	bad.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 500 {
		t.Errorf("a member without its label: %d", w.Code)
	}
	if _, err := NewHealth(nil, nil, Counter{Name: "gatebook_twice_total", Help: "Twice."}, Counter{Name: "gatebook_twice_total", Help: "Twice."}); err == nil {
		t.Error("two counters of one name are taken")
	}
}
