package main

import (
	"fmt"
	"io"
	"strconv"
	"testing"
)

// TestStalledStreams: of many streams on one HTTP/2 connection, one whose
// answer nobody reads stalls nobody else, and one whose body the upstream does
// not take stalls no answers.
func TestStalledStreams(t *testing.T) {
	const size = 16 * mib
	s, b := bodySite(t)
	c := s.clientOf("h2", "")
	stalled, err := c.Get(s.url(fmt.Sprint("/big/down/", size)))
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Body.Close()
	if stalled.ProtoMajor != 2 {
		t.Fatalf("protocol %s", stalled.Proto)
	}
	type end struct {
		id, text string
		err      error
	}
	others := 0
	beside := func(method, path string, body io.Reader, length int64) {
		t.Helper()
		if _, text, err := s.exchanged(c, method, path, body, length); err != nil || text != "3000000" {
			t.Fatalf("%s %s beside stalled streams: %q, %v", method, path, text, err)
		}
		others++
	}
	for range 10 {
		beside("GET", "/big/down/3000000", nil, 0)
		beside("POST", "/big/up", io.LimitReader(zeros{}, 3000000), 3000000)
	}
	uploaded := make(chan end, 1)
	go func() {
		id, text, err := s.exchanged(c, "POST", "/big/hold", io.LimitReader(zeros{}, size), size)
		uploaded <- end{id, text, err}
	}()
	<-b.held
	for range 10 {
		beside("GET", "/big/down/3000000", nil, 0)
		beside("POST", "/big/up", io.LimitReader(zeros{}, 3000000), 3000000)
	}
	if n, err := io.Copy(io.Discard, stalled.Body); n != size || err != nil {
		t.Errorf("the stalled answer: %d bytes, %v", n, err)
	}
	b.letGo()
	u := <-uploaded
	if u.err != nil || u.text != strconv.Itoa(size) {
		t.Errorf("the stalled upload: %q, %v", u.text, u.err)
	}
	records := s.told(`kind == "request"`)
	if len(records) != others+2 {
		t.Errorf("%d records of %d exchanges", len(records), others+2)
	}
	if r := records[stalled.Header.Get("X-Request-Id")]; r.Outcome != "success" || r.BytesOut != size {
		t.Errorf("the stalled answer is recorded as %+v", r)
	}
	if r := records[u.id]; r.Outcome != "success" || r.BytesIn != size {
		t.Errorf("the stalled upload is recorded as %+v", r)
	}
	s.settled()
}
