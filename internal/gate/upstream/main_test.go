package upstream

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// TestMain fails the binary if goroutines of this package or of net/http's
// transport outlive the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leaked(); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left after the tests:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked returns the stacks that are still there after a bounded number of
// looks, each after giving the others a chance to end.
func leaked() string {
	var left []string
	for range 100 {
		left = left[:0]
		buf := make([]byte, 1<<20)
		for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(stack, "gate/upstream") && !strings.Contains(stack, "TestMain") ||
				strings.Contains(stack, "net/http.(*persistConn)") || strings.Contains(stack, "testenv/faultyup") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 {
			return ""
		}
		<-time.After(20 * time.Millisecond)
	}
	return strings.Join(left, "\n\n")
}

// newPool makes a pool for the test with time-outs that no healthy exchange
// comes near.
func newPool(tb testing.TB, cfg Config, urls ...string) *Pool {
	tb.Helper()
	cfg.Name = "test"
	cfg.Targets = append(cfg.Targets, urls...)
	setDefault(&cfg.ConnectTimeout, 5*time.Second)
	p, err := NewPool(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

func get(path string) *Request {
	return &Request{Method: "GET", Authority: "client.example", Path: path}
}

// answered is a whole response.
type answered struct {
	*Response
	body     string
	trailers []canon.Field
}

// do makes an exchange and reads the whole answer. The error is that of
// RoundTrip or of the body; resp is nil only for the former.
func do(p *Pool, r *Request) (*answered, error) { return doCtx(context.Background(), p, r) }

func doCtx(ctx context.Context, p *Pool, r *Request) (*answered, error) {
	resp, err := p.RoundTrip(ctx, r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	a := &answered{Response: resp, body: string(body), trailers: resp.Trailers()}
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	return a, err
}

func mustDo(tb testing.TB, p *Pool, r *Request) *answered {
	tb.Helper()
	a, err := do(p, r)
	if err != nil {
		tb.Fatalf("%s %s: %v", r.Method, r.Path, err)
	}
	return a
}

func fieldText(fields []canon.Field) string {
	var b strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&b, "%s=%s;", f.Name, f.Value)
	}
	return b.String()
}

// checkIdle fails if an exchange is still counted as in flight.
func checkIdle(tb testing.TB, p *Pool) {
	tb.Helper()
	for _, s := range p.Stats() {
		if s.InFlight != 0 {
			tb.Errorf("%s: %d exchanges in flight, want 0", s.Target, s.InFlight)
		}
	}
}

func serverAndPool(tb testing.TB, cfg Config) (*faultyup.Server, *Pool) {
	tb.Helper()
	s := faultyup.Start(tb)
	return s, newPool(tb, cfg, s.URL())
}
