package gate

import (
	"context"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

func answersWith(text func(*upstream.Request) (string, error)) backend {
	return func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
		s, err := text(r)
		if err != nil {
			return nil, err
		}
		if s == "" {
			return response(200, 0, nil, io.EOF), nil
		}
		return response(200, int64(len(s)), nil, io.EOF, s), nil
	}
}

// probe is one row of testdata/probes.txt; its head says what the columns are.
type probe struct {
	name, rfc string
	verdicts  []verdict
	raw       string
}

type verdict struct {
	status int
	reason string // "" if the upstream answered
	body   string // what the upstream saw
}

var repeat = regexp.MustCompile(`\{(.)\*(\d+)\}`)

func probeBytes(t testing.TB, text string) string {
	t.Helper()
	raw, err := strconv.Unquote(`"` + text + `"`)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	raw = strings.ReplaceAll(raw, "{H}", "Host: example.com\r\n")
	return repeat.ReplaceAllStringFunc(raw, func(m string) string {
		parts := repeat.FindStringSubmatch(m)
		n, _ := strconv.Atoi(parts[2])
		switch parts[1] {
		case "N":
			return strings.Repeat("X-N: 1\r\n", n)
		case "F":
			return strings.Repeat("X-F: "+strings.Repeat("f", 1017)+"\r\n", n)
		case "K":
			return strings.Repeat("k=v; ", n) + "k=v"
		}
		return strings.Repeat(parts[1], n)
	})
}

func readProbes(t testing.TB) (out []probe) {
	t.Helper()
	b, err := os.ReadFile("testdata/probes.txt")
	if err != nil {
		t.Fatal(err)
	}
	for n, line := range strings.Split(string(b), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		cols := strings.Split(line, "\t")
		if len(cols) != 4 {
			t.Fatalf("probes.txt:%d: %d columns", n+1, len(cols))
		}
		p := probe{name: cols[0], rfc: cols[1], raw: probeBytes(t, cols[3])}
		for v := range strings.SplitSeq(probeBytes(t, cols[2]), " ; ") {
			status, rest, _ := strings.Cut(v, " ")
			code, err := strconv.Atoi(status)
			if err != nil {
				t.Fatalf("probes.txt:%d: %v", n+1, err)
			}
			if body, ok := strings.CutPrefix(rest, "="); ok {
				p.verdicts = append(p.verdicts, verdict{status: code, body: body})
			} else {
				p.verdicts = append(p.verdicts, verdict{status: code, reason: rest})
			}
		}
		out = append(out, p)
	}
	return out
}

// TestProbes sends each probe over a socket, at once and in small pieces: each
// message has one answer and one record, and whatever was refused ends the
// connection.
func TestProbes(t *testing.T) {
	probes := readProbes(t)
	if len(probes) < 150 {
		t.Fatalf("only %d probes", len(probes))
	}
	h := newFrontHouse(t, houseConfig{})
	for _, p := range probes {
		t.Run(p.name, func(t *testing.T) {
			h.probe(t, p, len(p.raw))
			if len(p.raw) < 400 {
				h.probe(t, p, 1)
			}
		})
	}
}

func (h *frontHouse) probe(t *testing.T, p probe, size int) {
	t.Helper()
	for len(h.book.done) > 0 { // of a probe that failed
		<-h.book.done
	}
	conn, r := h.open(t)
	for rest := p.raw; rest != ""; {
		n := min(size, len(rest))
		if _, err := io.WriteString(conn, rest[:n]); err != nil {
			break // refused before all of it was sent
		}
		rest = rest[n:]
	}
	last := p.verdicts[len(p.verdicts)-1]
	if last.status == 499 {
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	closes := false
	for i, v := range p.verdicts {
		if v.status == 499 {
			continue
		}
		resp, text, err := reply(r)
		if err != nil {
			t.Fatalf("answer %d: %v", i+1, err)
		}
		if resp.StatusCode == 100 {
			if resp, text, err = reply(r); err != nil {
				t.Fatalf("answer %d after 100: %v", i+1, err)
			}
		}
		if resp.StatusCode != v.status {
			t.Fatalf("answer %d (RFC %s): %s %s, want %d", i+1, p.rfc, resp.Status, text, v.status)
		}
		if v.reason == "" && text != v.body {
			t.Errorf("answer %d: the upstream saw %q, want %q", i+1, text, v.body)
		}
		if v.reason != "" && resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("answer %d: head %v", i+1, resp.Header)
		}
		closes = resp.Close
	}
	if closes {
		if more, err := io.ReadAll(r); err == nil && len(more) > 0 {
			t.Errorf("%q after the end", more)
		}
	}
	conn.Close()
	<-h.over
	for i, v := range p.verdicts {
		rec := h.next(t)
		framing := v.reason == canon.AmbiguousFraming || v.reason == canon.HeaderTooLarge || rec.Error.Phase == phaseHead
		if framing && v.status != 499 && !closes {
			t.Errorf("answer %d keeps the connection", i+1)
		}
		if rec.Status != v.status || rec.Error.Reason != v.reason {
			t.Fatalf("record %d: %d %+v, want %+v", i+1, rec.Status, rec.Error, v)
		}
		if rec.Kind == record.KindMalformed && (rec.Outcome != record.Failure || rec.Proto != "HTTP/1.1" || rec.Client.Prefix == "" || rec.ID == record.ID{}) {
			t.Errorf("record %d is not complete: %+v", i+1, rec)
		}
	}
	h.quiet(t)
}
