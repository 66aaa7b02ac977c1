package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// eventID is how a record is named in every sink.
var eventID = regexp.MustCompile(`"event_id":"([0-9a-f]{16}-[0-9]+)"`)

// receiver is a webhook's other end. It counts the copies of every record, by
// the id that it bears.
type receiver struct {
	*httptest.Server
	mu      sync.Mutex
	copies  map[string]int // under mu
	bodies  map[string]string
	refused int                        // requests that answer did not take; under mu
	answer  func(r *http.Request) int  // under mu; nil: 200. 0: the connection is cut after the records were kept
	hang    chan struct{}              // under mu; while it is not nil requests wait until it is closed, and are then cut
	change  chan struct{}              // under mu; closed at the next change
	saw     func(h http.Header, n int) // under mu; may be nil
}

func newReceiver(t *testing.T, start func(s *httptest.Server)) *receiver {
	t.Helper()
	r := &receiver{copies: map[string]int{}, bodies: map[string]string{}, change: make(chan struct{})}
	r.Server = httptest.NewUnstartedServer(r)
	start(r.Server)
	t.Cleanup(func() {
		r.Server.CloseClientConnections()
		r.Server.Close()
	})
	return r
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	ids, err := idsOf(q)
	r.mu.Lock()
	hang, answer := r.hang, r.answer
	r.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-q.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	code := http.StatusOK
	if answer != nil {
		code = answer(q)
	}
	r.mu.Lock()
	if err == nil && (code == 0 || code < 300) {
		for id, body := range ids {
			r.copies[id]++
			r.bodies[id] = body
		}
		if r.saw != nil {
			r.saw(q.Header, len(ids))
		}
	} else {
		r.refused++
	}
	close(r.change)
	r.change = make(chan struct{})
	r.mu.Unlock()
	if code == 0 || err != nil {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(code)
}

// idsOf reads the records of a webhook's request by their ids.
func idsOf(q *http.Request) (map[string]string, error) {
	var in struct {
		Data struct {
			Records []struct {
				ID     string
				Record json.RawMessage
			}
		}
	}
	if err := json.NewDecoder(q.Body).Decode(&in); err != nil {
		return nil, err
	}
	ids := map[string]string{}
	for _, r := range in.Data.Records {
		if m := eventID.FindSubmatch(r.Record); m == nil || string(m[1]) != r.ID {
			return nil, fmt.Errorf("the record %s has another id: %s", r.ID, r.Record)
		}
		ids[r.ID] = string(r.Record)
	}
	return ids, nil
}

// behave sets what is answered from now on, and whether requests hang.
func (r *receiver) behave(answer func(*http.Request) int, hang bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
	switch {
	case hang && r.hang == nil:
		r.hang = make(chan struct{})
	case !hang && r.hang != nil:
		close(r.hang)
		r.hang = nil
	}
}

// held returns how many copies there are of each index.
func (r *receiver) held(t *testing.T) map[uint64]int {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	return byIndex(t, r.copies)
}

func byIndex(t *testing.T, copies map[string]int) map[uint64]int {
	t.Helper()
	out := map[uint64]int{}
	prefix := ""
	for id, n := range copies {
		log, index, _ := strings.Cut(id, "-")
		if prefix == "" {
			prefix = log
		}
		i, err := strconv.ParseUint(index, 10, 64)
		if err != nil || log != prefix {
			t.Fatalf("event id %q beside %q", id, prefix)
		}
		out[i] = n
	}
	return out
}

// wait returns when ok says so of the receiver, which is locked meanwhile.
func (r *receiver) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		r.mu.Lock()
		done, change := ok(), r.change
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-change:
		case <-late:
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// holding waits until there are at least so many different records.
func (r *receiver) holding(t *testing.T, n int) {
	t.Helper()
	r.wait(t, fmt.Sprintf("%d records", n), func() bool { return len(r.copies) >= n })
}

// refusals is how many requests were not taken so far.
func (r *receiver) refusals() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refused
}

// refusing waits until more requests than n have not been taken.
func (r *receiver) refusing(t *testing.T, n int) {
	t.Helper()
	r.wait(t, fmt.Sprintf("more than %d refusals", n), func() bool { return r.refused > n })
}

// withSinks adds sinks to the site's configuration.
func (s *site) withSinks(lines ...string) {
	s.t.Helper()
	text, _, _ := strings.Cut(string(s.read("gatebook.yaml")), "sinks:\n")
	if len(lines) > 0 {
		text += "sinks:\n- " + strings.Join(lines, "\n- ") + "\n"
	}
	s.write("gatebook.yaml", text)
}

// sinkStatus is what tests look at in the status of a sink.
type sinkStatus struct {
	Name       string
	State, Why string
	Grade      string
	Alarms     []string
	Cursor     uint64
	Lag        uint64 `json:"lag_records"`
	Quarantine int
	Delivered  map[string]uint64
	Retries    map[string]uint64
	Duplicates uint64 `json:"duplicates_possible"`
	Fields     []string
}

// try runs a command with the site's configuration whatever its exit code.
func (s *site) try(args ...string) (out string, code int) {
	s.t.Helper()
	cmd := exec.Command("gatebook", append(args, "-c", filepath.Join(s.dir, "gatebook.yaml"))...)
	var said strings.Builder
	cmd.Stderr = &said
	b, err := cmd.Output()
	s.said = said.String()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func (s *site) sink(name string) sinkStatus {
	s.t.Helper()
	var all []sinkStatus
	out, code := s.try("sink", "status", name, "--json")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 || code > 1 {
		s.t.Fatalf("sink status %s: exit code %d, %v: %s%s", name, code, err, out, s.said)
	}
	return all[0]
}

// until polls a sink's status.
func (s *site) sinkUntil(name, what string, ok func(sinkStatus) bool) sinkStatus {
	s.t.Helper()
	late := time.Now().Add(time.Minute)
	for {
		st := s.sink(name)
		if ok(st) {
			return st
		}
		if time.Now().After(late) {
			s.t.Fatalf("sink %s: %s: not within a minute: %+v\n%s", name, what, st, s.stderr)
		}
		pause(context.Background(), 20*time.Millisecond)
	}
}

// caughtUp waits until a sink has everything that was in the book at the call.
func (s *site) caughtUp(name string) sinkStatus {
	s.t.Helper()
	all := s.search(`index >= 0`)
	last := all[len(all)-1].Index
	return s.sinkUntil(name, fmt.Sprintf("cursor above %d", last), func(st sinkStatus) bool { return st.Cursor > last })
}

// inBook are the indexes of all records, which the server is asked for.
func (s *site) inBook() map[uint64]bool {
	s.t.Helper()
	out := map[uint64]bool{}
	for _, f := range s.search(`index >= 0`) {
		out[f.Index] = true
	}
	return out
}

// delivered demands that a sink holds exactly the records of the book below an
// index, and nothing that is no record.
func delivered(t *testing.T, book map[uint64]bool, held map[uint64]int, below uint64) {
	t.Helper()
	missing := 0
	for i := range book {
		if i < below && held[i] == 0 {
			missing++
			t.Errorf("record %d is not at the sink", i)
		}
		if missing > 10 {
			t.Fatal("and more")
		}
	}
	for i := range held {
		if !book[i] {
			t.Errorf("the sink has %d, which is no record of the book", i)
		}
	}
}

// fileHolds reads what a file sink has written, as copies by id.
func fileHolds(t *testing.T, pattern string) map[uint64]int {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	copies := map[string]int{}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			m := eventID.FindStringSubmatch(lines.Text())
			if m == nil || !json.Valid(lines.Bytes()) {
				t.Fatalf("%s: not a record: %q", name, lines.Text())
			}
			copies[m[1]]++
		}
		if err := lines.Err(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return byIndex(t, copies)
}

// pair is a certificate for 127.0.0.1 and a name, good for both ends.
func (a *authority) pair(t *testing.T, name string) tls.Certificate {
	t.Helper()
	return a.client(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// demand starts a server that wants certificates of this authority.
func (a *authority) demand(s *httptest.Server, own tls.Certificate) {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
}

func keyOf(t *testing.T, c tls.Certificate) string {
	t.Helper()
	return keyPEM(t, c.PrivateKey.(*ecdsa.PrivateKey))
}
