package sinks

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// SplunkSettings say how to deliver to a Splunk HTTP Event Collector.
type SplunkSettings struct {
	// Settings of the collector; the URL without a path
	// (https://splunk.example.com:8088). Gzip compresses events and never what
	// is asked; cookies are kept whatever Jar says, for each channel its own.
	Settings
	Token *Credential
	// Index that events go to; "": the token's own.
	Index string
	// Source, Sourcetype and Host of events; "": "gatebook", "gatebook:record"
	// and the collector's own choice.
	Source, Sourcetype, Host string
	// Ack waits until the indexer says that it has indexed. The token must have
	// indexer acknowledgement then, and must not otherwise.
	Ack bool
	// AckLimit is how long to wait for that, 10 min at most; 0: 5 min. What took
	// longer is sent again.
	AckLimit time.Duration
	// BatchBytes and BatchItems are the most of one request, before compression;
	// 0: 1,000,000 and 1,000.
	BatchBytes, BatchItems int
	// InFlight is how many requests may wait at once, each on a channel of its
	// own; 0: 8.
	InFlight int
	// Search, if not nil, is where to read back what was indexed.
	Search *SplunkSearch
}

// SplunkSearch says how to ask a search head.
type SplunkSearch struct {
	// Settings of the management port; the URL without a path
	// (https://splunk.example.com:8089). Timeout 0: 5 min.
	Settings
	// Token is a Splunk authentication token, which is sent as a bearer.
	Token *Credential
}

// requester is what the sink needs of a Client.
type requester interface {
	Do(ctx context.Context, method, path string, header http.Header, body []byte) (*Answer, error)
}

// Splunk delivers to an HTTP Event Collector. It is safe for concurrent use.
type Splunk struct {
	client   requester
	url      *url.URL
	token    *Credential
	ack      bool
	ackLimit time.Duration
	bodies   composer
	limits   deliver.Limits
	middle   []byte              // between the time and the id of an event
	worked   atomic.Bool         // the collector was there once
	free     chan *splunkLane    // lanes that nobody uses
	search   *splunkSearchClient // nil: cannot be asked
}

// splunkLane is a channel of the collector, with the cookies that lead to the
// indexer that knows it. One Send has it at a time: acknowledgement ids count
// from 0 again when an indexer has restarted, so two requests that wait on one
// channel can be taken for each other.
type splunkLane struct {
	s       *Splunk
	channel string
	jar     *cookiejar.Jar
	names   map[string]bool // of cookies in it
}

const (
	splunkEvents = "/services/collector/event"
	splunkAcks   = "/services/collector/ack"
	splunkHealth = "/services/collector/health"
)

var splunkName = regexp.MustCompile(`^[^"\\\x00-\x1f\x7f]{1,256}$`)

// NewSplunk checks the settings and reads the credentials. What it returns is a
// deliver.Finder too if there is a Search. It sends nothing yet.
func NewSplunk(set SplunkSettings) (deliver.Sink, error) {
	reach := set.Settings
	reach.Gzip, reach.Jar = false, false
	client, err := NewClient(reach)
	if err != nil {
		return nil, err
	}
	s, err := newSplunk(set, client)
	if err != nil || set.Search == nil {
		return s, err
	}
	if set.Index == "" {
		return nil, errors.New("splunk: search needs the name of the index")
	}
	if s.search, err = newSplunkSearch(*set.Search, set.Index, splunkSourcetype(set)); err != nil {
		return nil, fmt.Errorf("splunk: search: %w", err)
	}
	return &splunkFinder{s}, nil
}

func splunkSourcetype(set SplunkSettings) string {
	return cmp.Or(set.Sourcetype, "gatebook:record")
}

func newSplunk(set SplunkSettings, client requester) (*Splunk, error) {
	u, err := url.Parse(set.URL)
	if err != nil {
		return nil, fmt.Errorf("splunk: url: %w", err)
	}
	for key, v := range map[string]string{"index": set.Index, "source": set.Source, "sourcetype": set.Sourcetype, "host": set.Host} {
		if v != "" && !splunkName.MatchString(v) {
			return nil, fmt.Errorf("splunk: %s %q has a quote, a backslash, a control character or more than 256 bytes", key, v)
		}
	}
	if set.Token == nil {
		return nil, errors.New("splunk: there is no token")
	}
	if set.AckLimit > splunkAckMost {
		return nil, fmt.Errorf("splunk: waiting %s for an acknowledgement is too long; %s is the most", set.AckLimit, splunkAckMost)
	}
	if set.AckLimit < 0 || set.BatchBytes < 0 || set.BatchItems < 0 || set.InFlight < 0 {
		return nil, errors.New("splunk: a limit is negative")
	}
	s := &Splunk{
		client: client, url: u, token: set.Token, ack: set.Ack, bodies: composer{gzip: set.Gzip, pace: set.Pace},
		ackLimit: cmp.Or(set.AckLimit, 5*time.Minute),
	}
	s.middle = splunkMiddle(set, splunkSourcetype(set))
	// A time has at most 27 bytes, an id 37.
	overhead := len(`{"time":`) + 27 + len(s.middle) + 37 + len(splunkBehindID) + len("}\n")
	most := cmp.Or(set.BatchBytes, 1_000_000)
	if most <= 4*overhead {
		return nil, fmt.Errorf("splunk: batches of %d bytes are too small; %d are spent on each event", most, overhead)
	}
	s.limits = deliver.Limits{
		Items: cmp.Or(set.BatchItems, 1000), Bytes: most, Item: min(most-overhead, 4<<20), Overhead: overhead, InFlight: cmp.Or(set.InFlight, 8),
	}
	s.free = make(chan *splunkLane, s.limits.InFlight)
	for range s.limits.InFlight {
		s.free <- newSplunkLane(s)
	}
	return s, nil
}

const splunkBehindID = `"},"event":`

func splunkMiddle(set SplunkSettings, sourcetype string) []byte {
	var b []byte
	for _, kv := range [][2]string{{"host", set.Host}, {"source", cmp.Or(set.Source, "gatebook")}, {"sourcetype", sourcetype}, {"index", set.Index}} {
		if kv[1] == "" {
			continue
		}
		v, _ := json.Marshal(kv[1]) // a string
		b = append(append(b, `,"`+kv[0]+`":`...), v...)
	}
	return append(b, `,"fields":{"event_id":"`...)
}

func newSplunkLane(s *Splunk) *splunkLane {
	l := &splunkLane{s: s}
	l.fresh()
	return l
}

// fresh leaves the channel: whatever it was still waiting for can never be told
// to somebody else, and the balancer may choose another indexer.
func (l *splunkLane) fresh() {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	l.channel = fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	l.jar, _ = cookiejar.New(nil) // never fails without options
	l.names = map[string]bool{}
}

// Limits implements deliver.Sink.
func (s *Splunk) Limits() deliver.Limits { return s.limits }

// Grade implements deliver.Sink: Durable with acknowledgement, Accepted without.
func (s *Splunk) Grade() deliver.Grade {
	if s.ack {
		return deliver.Durable
	}
	return deliver.Accepted
}

// Renew implements deliver.Renewer.
func (s *Splunk) Renew() (changed bool, err error) { return s.token.Renew() }

// Send implements deliver.Sink.
func (s *Splunk) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	var l *splunkLane
	select {
	case l = <-s.free:
	case <-ctx.Done():
		return deliver.Result{Class: deliver.Retry, Cause: "canceled"}
	}
	defer func() { s.free <- l }()
	r, number := l.send(ctx, b.Items)
	if r.Class == deliver.Poison && len(b.Items) > 1 && number >= 0 {
		return l.suspects(ctx, b.Items, number, r)
	}
	return r
}

// suspects finds the event that the collector will not have. Sources differ on
// whether it counts them from 0 or from 1, so the one at the number and then the
// one before it are sent alone, and only what is refused alone is poison. What
// came before that may have been taken, what comes behind it was not.
func (l *splunkLane) suspects(ctx context.Context, items []deliver.Item, number int, all deliver.Result) deliver.Result {
	out := make([]deliver.Result, len(items))
	for i := number; i >= max(number-1, 0) && ctx.Err() == nil; i-- {
		if i >= len(items) {
			continue
		}
		r, _ := l.send(ctx, items[i:i+1])
		switch out[i] = r; r.Class {
		case deliver.Pause:
			r.Ambiguous = true
			return r // as true of all the others
		case deliver.Poison:
			out[i].Ambiguous = false
			for k := range out {
				if alone := k == i || k == i+1 && i < number; !alone {
					out[k] = deliver.Result{Class: deliver.Retry, Status: all.Status, Cause: "refused_with_another", Ambiguous: k < i}
				}
			}
			return deliver.Result{Items: out}
		}
	}
	all.Ambiguous = true
	return all // the number leads nowhere: the engine bisects
}

// send sends items in one request and waits for the best answer that there can
// be. number is the collector's number of the event it did not like, or -1.
func (l *splunkLane) send(ctx context.Context, items []deliver.Item) (r deliver.Result, number int) {
	body := l.encode(items)
	a, err := l.offer(ctx, body)
	if err != nil {
		r := failed(err, l.s.token.Get())
		if r.Ambiguous {
			l.fresh()
		}
		return r, -1
	}
	p := splunkParse(a)
	r = l.s.classify(a, p)
	if r.Class != deliver.Done {
		if r.Ambiguous {
			// It may have been taken under an id that was never told. Another indexer
			// may give the next request that id too, and the first would answer for it.
			l.fresh()
		}
		return r, p.number
	}
	l.s.worked.Store(true)
	if !l.s.ack {
		r.Grade = deliver.Accepted
		return r, -1
	}
	if p.ack == nil {
		return deliver.Result{
			Class: deliver.Pause, Ambiguous: true, Status: a.Status, Cause: "ack_off",
			Detail: "the collector took the events without an ackId: indexer acknowledgement is off for this token; turn it on (useACK), or set ack: false for grade G1",
		}, -1
	}
	return l.wait(ctx, *p.ack), -1
}

// encode makes the lines of items, compressed if that was asked for.
func (l *splunkLane) encode(items []deliver.Item) []byte {
	size := 0
	for i := range items {
		size += len(items[i].Body) + l.s.limits.Overhead
	}
	body, _ := l.s.bodies.body(len(items), size, func(dst []byte, i int) []byte { return l.s.appendEvent(dst, &items[i]) })
	return body
}

// appendEvent appends the line of one record. The time is that of the exchange
// in microseconds; the id is an indexed field.
func (s *Splunk) appendEvent(b []byte, it *deliver.Item) []byte {
	b = append(b, `{"time":`...)
	b = splunkTime(b, it.Time)
	b = append(b, s.middle...)
	b = append(b, it.ID...)
	b = append(b, splunkBehindID...)
	b = append(b, it.Body...)
	return append(b, "}\n"...)
}

// splunkTime appends seconds since 1970 with six decimals. Before that it is 0.
func splunkTime(b []byte, t time.Time) []byte {
	us := max(t.UnixMicro(), 0)
	b = strconv.AppendInt(b, us/1e6, 10)
	b = append(b, '.')
	frac := strconv.Itoa(int(us % 1e6))
	b = append(b, "000000"[len(frac):]...)
	return append(b, frac...)
}

// offer posts events. A balancer whose cookie is enforced sends it with the
// refusal, so then it is posted once more.
func (l *splunkLane) offer(ctx context.Context, body []byte) (*Answer, error) {
	a, err := l.post(ctx, body)
	if err == nil && a.Status == http.StatusBadRequest && l.newCookies(a) && splunkParse(a).code < 0 {
		l.learn(a)
		a, err = l.post(ctx, body)
	}
	if err == nil {
		l.learn(a)
	}
	return a, err
}

func (l *splunkLane) post(ctx context.Context, body []byte) (*Answer, error) {
	h := l.header()
	h.Set("Content-Type", "application/json")
	if l.s.bodies.gzip && len(body) > 0 {
		h.Set("Content-Encoding", "gzip")
	}
	return l.s.client.Do(ctx, http.MethodPost, splunkEvents, h, body)
}

func (l *splunkLane) header() http.Header {
	h := http.Header{"Authorization": {"Splunk " + l.s.token.Get()}}
	if l.s.ack {
		h.Set("X-Splunk-Request-Channel", l.channel)
	}
	var cookies []string
	for _, c := range l.jar.Cookies(l.s.url) {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	if len(cookies) > 0 {
		h.Set("Cookie", strings.Join(cookies, "; "))
	}
	return h
}

// Bounds of what is kept of a collector's cookies: a balancer needs one or two.
const (
	splunkCookies = 16
	splunkCookie  = 4 << 10 // bytes of one
)

// learn keeps the cookies of an answer, for all paths.
func (l *splunkLane) learn(a *Answer) {
	var keep []*http.Cookie
	for _, c := range (&http.Response{Header: a.Header}).Cookies() {
		if !l.names[c.Name] && len(l.names) >= splunkCookies || len(c.Name)+len(c.Value) > splunkCookie {
			continue
		}
		l.names[c.Name] = true
		c.Path, c.Domain = "/", ""
		keep = append(keep, c)
	}
	l.jar.SetCookies(l.s.url, keep)
}

// newCookies reports whether an answer brings a cookie that was not sent.
func (l *splunkLane) newCookies(a *Answer) bool {
	sent := map[string]bool{}
	for _, c := range l.jar.Cookies(l.s.url) {
		sent[c.Name] = true
	}
	for _, c := range (&http.Response{Header: a.Header}).Cookies() {
		if !sent[c.Name] {
			return true
		}
	}
	return false
}
