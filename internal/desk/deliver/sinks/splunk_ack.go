package sinks

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// Polls for an acknowledgement begin quickly and slow down.
const (
	splunkPollFirst = 250 * time.Millisecond
	splunkPollMost  = 10 * time.Second
	splunkAckMost   = 10 * time.Minute // the engine gives a send up after 15
)

// wait asks until the indexer says that it has indexed the request. It says so
// once: an answer that gets lost on the way is lost, and so is what an indexer
// knew before it restarted; both look like "not yet", for ever. So after the
// limit the request may be in, and is to be sent again.
func (l *splunkLane) wait(ctx context.Context, id uint64) deliver.Result {
	until := time.Now().Add(l.s.ackLimit)
	trouble := "it said false all the time"
	for pause := splunkPollFirst; ; pause = min(2*pause, splunkPollMost) {
		left := time.Until(until)
		if left <= 0 {
			l.fresh()
			return deliver.Result{
				Class: deliver.Retry, Ambiguous: true, Status: http.StatusOK, Cause: "ack_timeout",
				Detail: l.s.detail(fmt.Sprintf("not acknowledged within %s: %s", l.s.ackLimit, trouble)),
			}
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			l.fresh()
			return deliver.Result{Class: deliver.Retry, Ambiguous: true, Status: http.StatusOK, Cause: "canceled"}
		}
		a, err := l.poll(ctx, id)
		if err != nil {
			trouble = err.Error()
			continue
		}
		if len(l.jar.Cookies(l.s.url)) == 0 {
			// Otherwise those stay that led to the indexer that has the events: if
			// they got lost on the way here, another one has answered.
			l.learn(a)
		}
		switch taken, err := splunkAcked(a, id); {
		case err == nil && taken:
			return deliver.Result{Class: deliver.Done, Grade: deliver.Durable, Status: http.StatusOK}
		case err != nil:
			trouble = err.Error()
			if r := l.s.classify(a, splunkParse(a)); r.Class == deliver.Pause && !l.waitable(a) {
				r.Ambiguous = true // the events are there, only nobody will say so
				l.fresh()
				return r
			}
		}
	}
}

// waitable reports whether a refused question may be answered later: a cookie
// that is enforced came with the refusal.
func (l *splunkLane) waitable(a *Answer) bool {
	return a.Status == http.StatusBadRequest && splunkParse(a).code < 0
}

func (l *splunkLane) poll(ctx context.Context, id uint64) (*Answer, error) {
	h := l.header()
	h.Set("Content-Type", "application/json")
	return l.s.client.Do(ctx, http.MethodPost, splunkAcks, h, []byte(`{"acks":[`+strconv.FormatUint(id, 10)+`]}`))
}

// splunkAcked reads the answer to a question for one acknowledgement.
func splunkAcked(a *Answer, id uint64) (bool, error) {
	if a.Status != http.StatusOK || a.Cut {
		return false, fmt.Errorf("the last question was answered with %d", a.Status)
	}
	var v struct {
		Acks map[string]bool `json:"acks"`
	}
	if err := json.Unmarshal(a.Body, &v); err != nil || v.Acks == nil {
		return false, fmt.Errorf("the last question was answered with something that is not JSON of acks")
	}
	return v.Acks[strconv.FormatUint(id, 10)], nil
}
