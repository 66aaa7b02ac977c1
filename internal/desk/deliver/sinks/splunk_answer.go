package sinks

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// splunkReply is what an answer of the collector says.
type splunkReply struct {
	code   int // -1: it said none
	text   string
	ack    *uint64
	number int // of the event it stopped at, -1: none
}

// splunkParse reads an answer, which may be anything.
func splunkParse(a *Answer) splunkReply {
	none := splunkReply{code: -1, number: -1}
	if a.Cut {
		return none
	}
	var v struct {
		Text   string  `json:"text"`
		Code   *int    `json:"code"`
		Ack    *uint64 `json:"ackId"`
		Number *int    `json:"invalid-event-number"`
	}
	if err := json.Unmarshal(a.Body, &v); err != nil || v.Code == nil || *v.Code < 0 {
		return none
	}
	r := splunkReply{code: *v.Code, text: v.Text, ack: v.Ack, number: -1}
	if v.Number != nil && *v.Number >= 0 {
		r.number = *v.Number
	}
	return r
}

// splunkAdvice says what to do about codes with which nothing goes on.
var splunkAdvice = map[int]string{
	1:  "the token is disabled; enable it",
	2:  "no token arrived; something between takes the Authorization header away",
	3:  "the Authorization header is not understood",
	4:  "the token is not known to this collector",
	5:  "the collector found no event in the request; something between changes or drops bodies",
	7:  "the index does not exist or the token may not write to it; add it to the token's indexes",
	10: "the token has indexer acknowledgement and wants a channel; set ack: true, or turn useACK off",
	11: "the channel is not accepted",
	14: "indexer acknowledgement is off for this token; turn it on (useACK), or set ack: false for grade G1",
	16: "the token did not arrive in the Authorization header",
	21: "the token is not known to this collector",
	22: "the token is disabled; enable it",
}

// classify says what an answer to events means.
func (s *Splunk) classify(a *Answer, p splunkReply) deliver.Result {
	r := deliver.Result{Status: a.Status, Detail: s.detail(string(a.Body)), Cause: "http_" + strconv.Itoa(a.Status)}
	if p.code > 0 && p.code < 100 { // causes are few
		r.Cause = "hec_" + strconv.Itoa(p.code)
	}
	switch {
	case a.Status == http.StatusOK && (p.code == 0 || p.code > 22):
		// Above 22 a success is a warning: queues fill up.
		return deliver.Result{Class: deliver.Done, Status: a.Status}
	case a.Status >= 200 && a.Status < 300:
		r.Class, r.Ambiguous, r.Cause = deliver.Retry, true, "answer"
	case a.Status == http.StatusRequestEntityTooLarge:
		r.Class = deliver.Split
	case a.Status == http.StatusTooManyRequests, a.Status == http.StatusServiceUnavailable && p.code >= 0:
		// Busy: it says how far it came, if it began.
		r.Class, r.Ambiguous, r.After = deliver.Retry, p.number > 0, retryAfter(a.Header, time.Now())
	case a.Status == http.StatusRequestTimeout, a.Status >= 500:
		r.Class, r.Ambiguous, r.After = deliver.Retry, true, retryAfter(a.Header, time.Now())
	case a.Status == http.StatusNotFound && s.worked.Load():
		r.Class, r.After = deliver.Retry, retryAfter(a.Header, time.Now())
	case a.Status == http.StatusBadRequest && (p.code == 6 || p.code == 12 || p.code == 13 || p.code == 15):
		r.Class, r.Ambiguous = deliver.Poison, p.number != 0
	default:
		r.Class = deliver.Pause
		// A wrong index is found at an event; those before it went elsewhere.
		r.Ambiguous = p.number > 0
		r.Detail = s.advise(a, p)
	}
	return r
}

// advise says what stopped the sink and what to do.
func (s *Splunk) advise(a *Answer, p splunkReply) string {
	advice, ok := splunkAdvice[p.code]
	switch {
	case ok:
		advice = fmt.Sprintf("%d, code %d: %s", a.Status, p.code, advice)
	case a.Status == http.StatusNotFound:
		advice = "404: there is no event collector at this URL; give it without a path, with the collector's port (8088)"
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		advice = fmt.Sprintf("%d: the token is not accepted", a.Status)
	case a.Status == http.StatusUnsupportedMediaType:
		advice = "415: compressed bodies are not accepted; set gzip: false"
	case a.Status >= 300 && a.Status < 400:
		advice = fmt.Sprintf("%d: redirects are not followed; give the URL of the collector itself", a.Status)
	case a.Status == http.StatusBadRequest && p.code < 0:
		advice = "400 without a code of the collector: a load balancer's cookie may be enforced that does not come, or this is no event collector"
	default:
		advice = fmt.Sprintf("%d, code %d: not an answer that is known", a.Status, p.code)
	}
	return s.detail(advice + "; it said: " + string(a.Body))
}

// detail is what was said, without the token.
func (s *Splunk) detail(text string) string { return excerpt([]byte(text), s.token.Get()) }
