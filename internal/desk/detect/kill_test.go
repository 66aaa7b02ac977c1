package detect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/kv"
)

// killDir names the folder of a process that is to be killed.
const killDir = "GATEBOOK_TEST_DETECT_DIR"

// TestKilled kills processes while they record, find and tell. In the end whoever
// was denied three times is told of exactly once.
func TestKilled(t *testing.T) {
	h := newHouse(t)
	h.detector(h.book) // from the beginning
	h.stop()
	rounds := 12
	for i := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestToBeKilled$", "-test.timeout", "60s")
		cmd.Env = append(os.Environ(), killDir+"="+filepath.Dir(h.cfg.Dir), fmt.Sprintf("GATEBOOK_TEST_DETECT_ROUND=%d", i))
		out, err := cmd.StdoutPipe()
		h.must(err)
		cmd.Stderr = os.Stderr
		h.must(cmd.Start())
		// It says so when its first record is written; then it lives for another while.
		line := make([]byte, 8)
		if _, err := out.Read(line); err != nil {
			t.Fatalf("round %d: the process ended before it began: %v", i, errors.Join(err, cmd.Wait()))
		}
		time.Sleep(time.Duration(i*137%1500) * time.Millisecond) // when it dies, not what is waited for
		h.must(cmd.Process.Kill())
		_ = cmd.Wait() // killed
	}
	h.open()
	h.sign()
	d := h.detector(h.book)
	h.must(h.round(d))

	denials, alerts := map[string]int{}, map[string]int{}
	r, err := h.book.Reader()
	h.must(err)
	defer r.Close()
	h.must(r.Each(0, r.Size(), false, func(e *book.Entry) error {
		switch e.Record.Kind {
		case record.KindRequest:
			denials[e.Record.Subject]++
		case record.KindAlert:
			alerts[e.Record.Event.Target]++
		}
		return nil
	}))
	due := 0
	for who, n := range denials {
		want := 0
		if n >= 3 {
			want, due = 1, due+1
		}
		if alerts[who] != want {
			t.Errorf("%s was denied %d times and told of %d times", who, n, alerts[who])
		}
	}
	t.Logf("%d people, %d of them to be told of, %d alerts", len(denials), due, len(alerts))
	if due < rounds || len(alerts) != due {
		t.Errorf("%d people to be told of and %d keys with alerts", due, len(alerts))
	}
}

// TestToBeKilled is the process of TestKilled; without its folder it is nothing.
func TestToBeKilled(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		return
	}
	h := &house{t: t, cfg: book.Config{Dir: filepath.Join(dir, "data"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1", Ballast: -1}, rules: testRules(t)}
	h.open()
	d, err := New(context.Background(), Config{Book: h.book, Store: h.store, Missing: kv.ErrNotFound, Rules: probing()})
	h.must(err)
	round, err := strconv.Atoi(os.Getenv("GATEBOOK_TEST_DETECT_ROUND"))
	h.must(err)
	if round%3 > 0 {
		d.every = 0 // keep the state as often as it can be
	}
	go func() { _ = d.Run(context.Background()) }() // until it is killed
	for n := 0; ; n++ {
		// Two people are denied three times each, by turns, and then two others. The
		// clock goes fast, so that there are few in a window.
		h.denied(fmt.Sprintf("%d-%d", round, n/6*2+n%2), "GET /a", time.Duration(round*1000+n)*time.Minute)
		if n == 0 {
			fmt.Println("begun")
		}
		time.Sleep(5 * time.Millisecond) // so that detection is among the records when it dies
	}
}
