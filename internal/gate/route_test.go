package gate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authz"
)

// table makes routes of lines "NAME METHODS HOST PATH"; '-' stands for none.
func table(lines ...string) []*Route {
	var routes []*Route
	for _, l := range lines {
		f := strings.Fields(l)
		r := &Route{Name: f[0], Path: f[3]}
		if f[1] != "-" {
			r.Methods = strings.Split(f[1], ",")
		}
		if f[2] != "-" {
			r.Host = f[2]
		}
		routes = append(routes, r)
	}
	return routes
}

func segments(path string) []string {
	if path == "/" {
		return nil
	}
	return strings.Split(path[1:], "/")
}

func TestRouter(t *testing.T) {
	routes := table(
		"root GET - /",
		"orders GET,POST - /v1/orders",
		"orders.slash GET - /v1/orders/",
		"order GET - /v1/orders/{id}",
		"order.delete DELETE - /v1/orders/{key}",
		"order.new GET - /v1/orders/new",
		"items GET - /v1/orders/{id}/items/{item}",
		"special GET - /v1/orders/special/items",
		"files - - /files/{path...}",
		"head HEAD,GET - /probe",
		"head.only HEAD - /ping",
		"options OPTIONS,GET - /cors",
		"rest GET - /{rest...}",
		"host.order GET api.example.com /v1/orders/{id}",
		"host.admin GET admin.example.com /{rest...}",
		"utf8 GET - /café/{x}",
	)
	rt, err := newRouter(routes)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ method, host, path, want, params string }{
		{"GET", "x", "/", "root", ""},
		{"GET", "x", "/v1/orders", "orders", ""},
		{"POST", "x", "/v1/orders", "orders", ""},
		{"GET", "x", "/v1/orders/", "orders.slash", ""},
		{"GET", "x", "/v1/orders/7", "order", "id=7"},
		{"DELETE", "x", "/v1/orders/7", "order.delete", "key=7"},
		{"GET", "x", "/v1/orders/new", "order.new", ""},
		{"GET", "x", "/v1/orders/newer", "order", "id=newer"},
		{"GET", "x", "/v1/orders/New", "order", "id=New"},
		{"GET", "x", "/v1/orders/new/items/2", "items", "id=new item=2"},
		{"GET", "x", "/v1/orders/special/items", "special", ""},
		{"GET", "x", "/v1/orders/special/items/3", "items", "id=special item=3"},
		{"GET", "x", "/v1/orders/7/items/", "rest", "rest=v1/orders/7/items/"},
		{"GET", "x", "/v1", "rest", "rest=v1"},
		{"GET", "x", "/v1/ordersx", "rest", "rest=v1/ordersx"},
		{"GET", "x", "/V1/orders", "rest", "rest=V1/orders"},
		{"GET", "x", "/files/a/b c/d", "files", "path=a/b c/d"},
		{"PATCH", "x", "/files/a", "files", "path=a"},
		{"PUT", "x", "/files/", "files", "path="},
		{"GET", "x", "/files", "rest", "rest=files"},
		{"GET", "x", "/café/1", "utf8", "x=1"},
		{"GET", "api.example.com", "/v1/orders/7", "host.order", "id=7"},
		{"GET", "api.example.com", "/v1/orders/new", "host.order", "id=new"},
		{"GET", "api.example.com", "/v1/orders", "orders", ""},
		{"GET", "admin.example.com", "/v1/orders/7", "host.admin", "rest=v1/orders/7"},
		{"GET", "admin.example.com", "/", "host.admin", "rest="},
		{"GET", "sub.api.example.com", "/v1/orders/7", "order", "id=7"},
		{"HEAD", "x", "/probe", "head", ""},
		{"HEAD", "x", "/v1/orders/7", "order", "id=7"},
		{"HEAD", "x", "/ping", "head.only", ""},
		{"OPTIONS", "x", "/cors", "options", ""},

		{"PUT", "x", "/v1/orders/7", "405 DELETE, GET, HEAD", ""},
		{"POST", "x", "/v1/orders/new", "405 GET, HEAD", ""}, // the wider routes do not get it
		{"POST", "x", "/anything", "405 GET, HEAD", ""},
		{"OPTIONS", "x", "/v1/orders", "405 GET, HEAD, POST", ""},
		{"OPTIONS", "x", "/files/a", "405 DELETE, GET, HEAD, PATCH, POST, PUT", ""},
		{"get", "x", "/", "405 GET, HEAD", ""},
		{"TRACE", "x", "/files/a", "405 DELETE, GET, HEAD, PATCH, POST, PUT", ""},
		{"GET", "x", "/ping", "405 HEAD", ""},
		{"DELETE", "api.example.com", "/v1/orders/7", "405 GET, HEAD", ""}, // the routes of any host do not get it
	} {
		op, params, allow := rt.match(tc.host, tc.method, segments(tc.path), nil, nil)
		got := "405 " + allow
		if op != nil {
			got = op.route.Name
		} else if allow == "" {
			got = "404"
		}
		var ps []string
		for _, p := range params {
			ps = append(ps, p.Name+"="+p.Value)
		}
		if got != tc.want || strings.Join(ps, " ") != tc.params {
			t.Errorf("%s %s%s: %s %q, want %s %q", tc.method, tc.host, tc.path, got, ps, tc.want, tc.params)
		}
	}

	rt, err = newRouter(table("only GET a.example /x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"b.example", "", "example", "x.a.example"} {
		if op, _, allow := rt.match(host, "GET", []string{"x"}, nil, nil); op != nil || allow != "" {
			t.Errorf("host %q matches", host)
		}
	}
	if op, _, _ := rt.match("a.example", "GET", nil, nil, nil); op != nil {
		t.Error("the root matches")
	}
}

// TestRouterOrder: the order of declaration changes nothing.
func TestRouterOrder(t *testing.T) {
	lines := []string{"a GET - /{x}/b", "b GET - /a/{y}", "c GET - /a/b", "d GET - /{rest...}", "e POST - /a/{z...}"}
	paths := []string{"/a/b", "/a/c", "/c/b", "/c/d", "/a/b/c"}
	var want string
	for i := range lines {
		turned := append(slices.Clone(lines[i:]), lines[:i]...)
		rt, err := newRouter(table(turned...))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range paths {
			op, _, allow := rt.match("", "GET", segments(p), nil, nil)
			if op == nil {
				got = append(got, allow)
				continue
			}
			got = append(got, op.route.Name)
		}
		if s := fmt.Sprint(got); want == "" {
			want = s
		} else if s != want {
			t.Errorf("turned by %d: %s, want %s", i, s, want)
		}
	}
	if want != "[c b a d POST]" {
		t.Errorf("got %s", want)
	}
}

func TestRouterConflicts(t *testing.T) {
	for _, lines := range [][]string{
		{"a GET - /x", "b GET - /x"},
		{"a GET - /{x}", "b GET - /{y}"},
		{"a GET - /v/{x...}", "b GET,POST - /v/{y...}"},
		{"a - - /x", "b POST - /x"},
		{"a GET h /x", "b GET h /x"},
		{"a GET,GET - /x"},
	} {
		if _, err := newRouter(table(lines...)); err == nil || !strings.Contains(err.Error(), "already taken") {
			t.Errorf("%q: %v", lines, err)
		}
	}
	if _, err := newRouter(table("a GET - /x", "b POST - /x", "c GET h /x", "d GET - /x/", "e GET - /{x}")); err != nil {
		t.Error(err)
	}
}

func TestPatterns(t *testing.T) {
	for _, bad := range []string{
		"", "x", "//", "/a//b", "/./a", "/..", "/a/..", "/{", "/}", "/{}", "/{a", "/a}", "/{a}b", "/a{b}", "/{a-b}", "/{1a}", "/{...}", "/{a...}/b",
		"/{a}/{a}", "/{a}/{a...}", "/%41", "/a;b", "/a?b", "/a#b", "/a\\b", "/a\x00", "/a\n", "/{a..}", "/{a...b}", "*",
	} {
		if _, err := parsePattern(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	for _, good := range []string{"/", "/a", "/a/", "/{a}", "/a/{b_1}/c", "/{a...}", "/a/{b}/{c...}", "/a b", "/é", "/a:b", "/.well-known/x", "/..."} {
		if _, err := parsePattern(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func BenchmarkRouter(b *testing.B) {
	rt, err := newRouter(table("orders GET - /v1/orders", "order GET - /v1/orders/{id}", "items GET - /v1/orders/{id}/items", "rest GET - /{rest...}"))
	if err != nil {
		b.Fatal(err)
	}
	values, params := make([]string, 0, 4), make([]authz.Param, 0, 4)
	segs := []string{"v1", "orders", "42", "items"}
	b.ReportAllocs()
	for b.Loop() {
		if op, _, _ := rt.match("api.example.com", "GET", segs, values, params); op == nil {
			b.Fatal("no match")
		}
	}
}
