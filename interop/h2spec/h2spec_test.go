package h2spec

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

const configuration = `
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, public: true}
policies: {dir: policies}
`

// gate is one that answers over TLS.
type gate struct {
	*program.Gate
	addr string
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{program.NewGate(t, program.Build(t)), program.FreeAddr(t)}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // the gate has reset the request
		}
		fmt.Fprintln(w, "hello")
	}))
	t.Cleanup(up.Close)
	g.Configure(fmt.Sprintf(configuration, g.addr, up.URL))
	return g
}

// outcome is what has become of the cases of a suite.
type outcome struct {
	cases  int
	failed []string // "section/number: what is demanded"
	actual map[string]string
}

func (o *outcome) add(g *spec.TestGroup) {
	for _, c := range append(slices.Clone(g.Tests), g.StrictTests...) {
		r := c.Result
		if r == nil {
			continue
		}
		o.cases++
		if r.Failed || r.Skipped {
			name := fmt.Sprintf("%s/%d: %s", g.ID(), r.Sequence, c.Desc)
			o.failed = append(o.failed, name)
			if r.Error != nil {
				o.actual[name] = r.Error.Error()
			}
		}
	}
	for _, sub := range g.Groups {
		o.add(sub)
	}
}

// expected reads testdata/expected.txt: names of cases, each under a comment.
func expected(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	explained := false
	for line := range strings.Lines(string(b)) {
		switch line = strings.TrimSpace(line); {
		case line == "":
			explained = false
		case strings.HasPrefix(line, "#"):
			explained = true
		case !explained:
			t.Errorf("testdata/expected.txt does not say why %q is expected", line)
		default:
			names = append(names, line)
		}
	}
	return names
}

func TestH2spec(t *testing.T) {
	g := newGate(t)
	g.Start()
	host, port, err := net.SplitHostPort(g.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true, TLS: true, Insecure: true}
	if c.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	o := &outcome{actual: map[string]string{}}
	for _, suite := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		suite.Test(c)
		o.add(suite)
	}
	g.Stop()

	want := expected(t)
	for _, name := range o.failed {
		if !slices.Contains(want, name) {
			t.Errorf("failed: %s\n%s", name, o.actual[name])
		}
	}
	for _, name := range want {
		if !slices.Contains(o.failed, name) {
			t.Errorf("passes now: %s; take it out of testdata/expected.txt", name)
		}
	}
	if o.cases < 140 {
		t.Errorf("only %d cases ran", o.cases)
	}
	g.inBook(o.cases)
}

// inBook checks that no case has escaped the book: each made a connection of
// its own, and each but the silent ones asked for something or broke a rule.
func (g *gate) inBook(cases int) {
	g.T.Helper()
	// Those that only exchange frames of the connection: a PING, SETTINGS,
	// a GOAWAY, a frame of unknown type, a PRIORITY or the preface.
	const silent = 12
	type record struct {
		Frame struct {
			Kind  string
			Event struct{ Count int }
		}
	}
	total, kinds := 0, map[string]int{}
	for _, r := range program.Search[record](g.Gate, "kind == 'request' || kind == 'malformed'", "--limit", "10000") {
		n := max(r.Frame.Event.Count, 1) // more in the record of a flood
		total += n
		kinds[r.Frame.Kind] += n
	}
	g.T.Logf("%d cases, exchanges by kind: %v", cases, kinds)
	if total < cases-silent {
		g.T.Errorf("%d records of %d cases, %d of them silent", total, cases, silent)
	}
	g.Run("verify")
}
