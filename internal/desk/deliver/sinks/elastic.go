package sinks

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// ElasticAuth is how a credential is shown to Elasticsearch or OpenSearch.
type ElasticAuth string

const (
	ElasticNone   ElasticAuth = ""        // security is off
	ElasticAPIKey ElasticAuth = "api_key" // id:key, or both as the API encodes them
	ElasticBasic  ElasticAuth = "basic"   // user:password
	ElasticBearer ElasticAuth = "bearer"  // a token
)

// header is the value of Authorization.
func (a ElasticAuth) header(credential string) (string, error) {
	switch a {
	case ElasticNone:
		return "", nil
	case ElasticAPIKey:
		if strings.Contains(credential, ":") {
			credential = base64.StdEncoding.EncodeToString([]byte(credential))
		}
		return "ApiKey " + credential, nil
	case ElasticBasic:
		if !strings.Contains(credential, ":") {
			return "", errors.New("a basic credential is user:password on one line, and there is no colon in it")
		}
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(credential)), nil
	case ElasticBearer:
		return "Bearer " + credential, nil
	}
	return "", fmt.Errorf("a credential is api_key, basic or bearer, not %q", string(a))
}

// ElasticSettings say where records go in Elasticsearch or OpenSearch.
type ElasticSettings struct {
	Settings
	// Stream is the name of the data stream, such as logs-gatebook.audit-default.
	Stream string
	Auth   ElasticAuth
	// Credential reads what may add documents and nothing else; nil with ElasticNone.
	Credential func() (string, error)
	// Read reads a credential of the same kind that may search, for Find; nil: Credential.
	Read func() (string, error)

	Items    int // most records in a request; 0: 1,000
	Bytes    int // most bytes in a request; 0: 4 MiB
	InFlight int // requests at once; 0: 2
}

const (
	// elasticItem is the most bytes of one record: far below what either product
	// takes, and far above what a projection makes.
	elasticItem = 1 << 20
	// elasticOverhead is the action line of an item and two line ends.
	elasticOverhead = 64
	// smallBody is how many bytes of a request nobody finds too long.
	smallBody = 256 << 10
	// timestampFirst is how the projection ecs begins.
	timestampFirst = `{"@timestamp":`
)

// Elastic adds records to a data stream of Elasticsearch or OpenSearch with the
// bulk API. Each is created under its event id, so that what is sent again is
// there once for each backing index. An item that the answer calls created, or
// that was there before, is Durable. It is safe for concurrent use.
type Elastic struct {
	client     *Client
	set        ElasticSettings
	credential *Credential // nil with ElasticNone
	read       *Credential // nil: credential
	now        func() time.Time
}

// NewElastic checks the settings and reads the credentials.
func NewElastic(s ElasticSettings) (*Elastic, error) {
	if err := checkStream(s.Stream); err != nil {
		return nil, err
	}
	if s.Items < 0 || s.Items > 10000 || s.Bytes < 0 || s.Bytes > 64<<20 || s.InFlight < 0 || s.InFlight > 64 {
		return nil, errors.New("a bulk request has at most 10,000 records and 64 MiB, and at most 64 are under way at once")
	}
	s.Items, s.Bytes, s.InFlight = cmpOr(s.Items, 1000), cmpOr(s.Bytes, 4<<20), cmpOr(s.InFlight, 2)
	if (s.Auth == ElasticNone) != (s.Credential == nil) {
		return nil, errors.New("a credential has a kind, and a kind has a credential")
	}
	e := &Elastic{set: s, now: time.Now}
	var err error
	if e.client, err = NewClient(s.Settings); err != nil {
		return nil, err
	}
	if e.credential, err = e.firstRead(s.Credential); err != nil {
		return nil, err
	}
	if e.read, err = e.firstRead(s.Read); err != nil {
		return nil, err
	}
	return e, nil
}

func cmpOr(v, otherwise int) int {
	if v == 0 {
		return otherwise
	}
	return v
}

func (e *Elastic) firstRead(from func() (string, error)) (*Credential, error) {
	if from == nil {
		return nil, nil
	}
	c, err := NewCredential(from)
	if err != nil {
		return nil, err
	}
	if _, err := e.set.Auth.header(c.Get()); err != nil {
		return nil, err
	}
	return c, nil
}

// checkStream holds a name against the rules for names of data streams.
func checkStream(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, "\\/*?\"<>| ,#:%") || strings.ToLower(name) != name || strings.ContainsAny(name[:1], "-_+.") {
		return fmt.Errorf("%q is no name of a data stream: lower-case, no separators or wildcards, not beginning with - _ + or a dot; logs-gatebook.audit-default is one", name)
	}
	for i := range len(name) {
		if name[i] < ' ' || name[i] > '~' {
			return fmt.Errorf("%q is no name of a data stream: ASCII only", name)
		}
	}
	return nil
}

// Limits are those of the settings.
func (e *Elastic) Limits() deliver.Limits {
	return deliver.Limits{
		Items: e.set.Items, Bytes: e.set.Bytes, Item: min(elasticItem, e.set.Bytes-elasticOverhead),
		Overhead: elasticOverhead, InFlight: e.set.InFlight,
	}
}

// Grade is Durable: a created document is in the translog of its shard, synced
// if the index is set as Bootstrap sets it.
func (e *Elastic) Grade() deliver.Grade { return deliver.Durable }

// Renew reads the credentials again.
func (e *Elastic) Renew() (changed bool, err error) {
	for _, c := range []*Credential{e.credential, e.read} {
		if c == nil {
			continue
		}
		one, oneErr := c.Renew()
		changed, err = changed || one, errors.Join(err, oneErr)
	}
	return changed, err
}

// bulkFilter keeps answers short without hiding what they are judged by: the
// list of items in its order, and what an error is about. A filter applies to
// answers that are errors too.
const bulkFilter = "errors,error,status,items.*._index,items.*._id,items.*.status,items.*.result,items.*.failure_store," +
	"items.*.error.type,items.*.error.reason"

// Send creates a document for every record of the batch.
func (e *Elastic) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	header, secret, err := e.authorize(e.credential, "application/x-ndjson")
	if err != nil {
		return deliver.Result{Class: deliver.Pause, Cause: "credential", Detail: excerpt([]byte(err.Error()))}
	}
	if !bytes.HasPrefix(b.Items[0].Body, []byte(timestampFirst)) {
		return deliver.Result{Class: deliver.Pause, Cause: "projection", Detail: "a data stream takes only documents with @timestamp: use the projection ecs"}
	}
	body, raw, ok := e.bulkBody(header, b.Items)
	if !ok {
		return deliver.Result{Class: deliver.Poison, Cause: "line_break", Detail: "a record is empty or longer than a line"}
	}
	a, err := e.client.Do(ctx, http.MethodPost, "/"+e.set.Stream+"/_bulk?filter_path="+bulkFilter, header, body)
	if err != nil && (a == nil || a.Status == http.StatusOK) {
		r := failed(err, secret)
		if r.Class == deliver.Retry && r.Ambiguous && b.Attempt >= 3 && len(b.Items) > 1 && raw > smallBody {
			// What finds a request too long may close the connection in its middle, so
			// that its 413 is lost.
			r.Class = deliver.Split
		}
		return r
	}
	slice := e.set.Pace.New(time.Now)
	defer slice.Close()
	return bulkResult(a, b.Items, e.set.Stream, e.now(), slice.Yield, secret)
}

// authorize makes the fields of a request that shows a credential.
func (e *Elastic) authorize(c *Credential, contentType string) (h http.Header, secret string, err error) {
	if c != nil {
		secret = c.Get()
	}
	return e.show(e.set.Auth, secret, contentType)
}

func (e *Elastic) show(auth ElasticAuth, secret, contentType string) (http.Header, string, error) {
	h := http.Header{"Accept": {"application/json"}}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	value, err := auth.header(secret)
	if value != "" {
		h.Set("Authorization", value)
	}
	return h, secret, err
}

// bulkBody is the lines of a bulk request: for each record an action and the
// record, and a line end behind the last. raw is its length before compression. It
// is not ok if a record is not one line, because what follows a line break would be
// read as an action.
func (e *Elastic) bulkBody(header http.Header, items []deliver.Item) (body []byte, raw int, ok bool) {
	size := 0
	for i := range items {
		size += len(items[i].Body) + elasticOverhead
	}
	ok = true
	body, raw = e.client.compose(header, len(items), size, func(dst []byte, i int) []byte {
		it := &items[i]
		if ok = ok && oneLine(it); !ok {
			return dst
		}
		dst = append(dst, `{"create":{"_id":"`...)
		dst = append(dst, it.ID...)
		dst = append(dst, "\"}}\n"...)
		dst = append(dst, it.Body...)
		return append(dst, '\n')
	})
	return body, raw, ok
}

func oneLine(it *deliver.Item) bool {
	return len(it.Body) > 0 && bytes.IndexByte(it.Body, '\n') < 0 && bytes.IndexByte(it.Body, '\r') < 0 && !strings.ContainsAny(it.ID, "\"\\\r\n")
}
