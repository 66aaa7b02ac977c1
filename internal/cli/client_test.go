package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/desk/query"
)

// answers is a server that gives one answer, or an error instead.
type answers struct {
	status int
	body   string
	err    error
}

// RoundTrip implements http.RoundTripper.
func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.err != nil {
		return nil, a.err
	}
	return &http.Response{StatusCode: a.status, Status: "500 broken", Body: io.NopCloser(strings.NewReader(a.body)), Request: r}, nil
}

// What a server answers decides with which code a command ends.
func TestCallCodes(t *testing.T) {
	problem := func(status, code int) answers {
		b, err := json.Marshal(admin.Problem{Title: "why", Status: status, Code: code})
		if err != nil {
			t.Fatal(err)
		}
		return answers{status: status, body: string(b)}
	}
	for name, c := range map[string]struct {
		answers
		code int
	}{
		"fine":                 {answers{status: 200, body: "{}"}, 0},
		"denied by role":       {problem(403, 4), ExitDenied},
		"not found":            {problem(404, 3), ExitNotFound},
		"refused reload":       {problem(409, 2), ExitUsage},
		"damaged":              {problem(500, 10), ExitDamaged},
		"denied by the kernel": {answers{err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)}}, ExitDenied},
		"gone":                 {answers{err: io.ErrUnexpectedEOF}, ExitFailure},
		"no problem":           {answers{status: 500, body: "oops"}, ExitFailure},
		"a problem without a code would be success": {answers{status: 500, body: "{}"}, ExitFailure},
	} {
		cl := &client{ctx: t.Context(), http: &http.Client{Transport: c.answers}}
		_, err := cl.reload()
		got := 0
		if err != nil {
			got = codeOf(err)
		}
		if got != c.code {
			t.Errorf("%s: exit code %d (%v), want %d", name, got, err, c.code)
		}
	}
}

// A tail hands out matches and never ends well by itself.
func TestTailLines(t *testing.T) {
	for name, c := range map[string]struct {
		body  string
		found int
		says  string
	}{
		"two":      {": hello\n\nid: 1\ndata: {\"index\":1,\"frame\":{}}\n\n: still here\n\nid: 2\ndata: {\"index\":2,\"frame\":{}}\n\n", 2, "was cut"},
		"end":      {"id: 1\ndata: {\"index\":1,\"frame\":{}}\n\nevent: end\ndata: {\"cause\":\"stopping\"}\n\n", 1, "the server is stopping"},
		"nothing":  {"", 0, "was cut"},
		"nonsense": {"data: nonsense\n\n", 0, "invalid character"},
		"too long": {"data: " + strings.Repeat("x", maxLine) + "\n\n", 0, "token too long"},
	} {
		cl := &client{ctx: t.Context(), http: &http.Client{Transport: answers{status: 200, body: c.body}}}
		found := 0
		err := cl.tail(query.Query{}, func(*query.Match) error { found++; return nil })
		if err == nil || !strings.Contains(err.Error(), c.says) || found != c.found {
			t.Errorf("%s: %d found, %v", name, found, err)
		}
	}
	stop := errors.New("stop")
	cl := &client{ctx: t.Context(), http: &http.Client{Transport: answers{status: 200, body: "data: {\"index\":1,\"frame\":{}}\n\n"}}}
	if err := cl.tail(query.Query{}, func(*query.Match) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// A search takes the longest records that there can be, and ends with the code
// of what ended it.
func TestSearchLines(t *testing.T) {
	const part = 64 << 10 // record.MaxPart
	long, err := json.Marshal(query.Match{Index: 7, Frame: json.RawMessage(`"` + strings.Repeat("<", part-2) + `"`), Personal: json.RawMessage(`"` + strings.Repeat("<", part-2) + `"`)})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		body  string
		found int
		code  int
	}{
		"none":      {"", 0, 0},
		"long":      {string(long) + "\n", 1, 0},
		"cut short": {"{\"index\":1,\"frame\":{}}\n{\"problem\":{\"title\":\"edited\",\"status\":500,\"exit_code\":10}}\n", 1, ExitDamaged},
		"half":      {"{\"index\":1,\"frame\":{}}\n{\"index\"", 1, ExitFailure},
	} {
		cl := &client{ctx: t.Context(), http: &http.Client{Transport: answers{status: 200, body: c.body}}}
		found := 0
		err := cl.Search(query.Query{}, func(m *query.Match) error { found++; return nil })
		if code := 0; found != c.found || err != nil && codeOf(err) != c.code || err == nil && code != c.code {
			t.Errorf("%s: %d found, %v", name, found, err)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0.0 B", 1023: "1023.0 B", 1024: "1.0 KiB", 5 << 30: "5.0 GiB", 1 << 62: "4096.0 PiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	var out bytes.Buffer
	(&app{IO: IO{Out: &out}}).printf("%s", "\x1b[1m")
	if strings.Contains(out.String(), "\x1b") {
		t.Error("a terminal is spoken to")
	}
}
