package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// Bounds of Datadog's Logs API v2: 5 MB before compression, 1,000 entries, 1 MB
// an entry (a longer one is cut off there, with a 2xx), dates up to 18 h ago.
// What is sent keeps a distance from each.
const (
	datadogBytes   = 4_000_000
	datadogMost    = 5_000_000
	datadogItems   = 1000
	datadogItem    = 900_000
	datadogEntry   = 1_000_000
	datadogMaxAge  = 17 * time.Hour
	datadogFlight  = 4
	datadogVaries  = 512 // bytes of ids, times and kinds around one body, at most
	datadogLogTag  = "gatebook_log:"
	datadogLateTag = "late:true"
)

// DatadogConfig is what a Datadog sink needs to know.
type DatadogConfig struct {
	Intake Settings // logs are sent there: https://http-intake.logs.SITE
	// API is where keys are tried and logs are searched: https://api.SITE. Without
	// a URL neither is done.
	API Settings
	Key *Credential // API key
	// AppKey is an application key that may read logs (logs_read_data); nil: what
	// was delivered cannot be compared.
	AppKey *Credential

	Source, Service, Hostname string // ddsource, service, hostname; default gatebook, gatebook, none
	Tags                      []string

	Now func() time.Time // default time.Now
}

// DatadogSite sets the URLs of a site, such as datadoghq.eu.
func (c *DatadogConfig) DatadogSite(site string) {
	c.Intake.URL = "https://http-intake.logs." + site
	c.API.URL = "https://api." + site
}

// Datadog sends records to Datadog's Logs API v2. An entry has the record under
// "record" and beside it event_id, event_time, event_kind, and Datadog's reserved
// attributes. Datadog answers 202 before it keeps anything and tells nothing of
// single entries, so the grade is G1.
type Datadog struct {
	intake *Client
	api    *Client // nil: none
	key    *Credential
	now    func() time.Time

	prefix, middle []byte // of an entry: up to the tags, and from their end to the status
}

// datadogFinder is a Datadog with an application key.
type datadogFinder struct {
	*Datadog
	app  *Credential
	wait func(context.Context, time.Duration) error
}

// NewDatadog checks the configuration. With an application key the sink is a
// deliver.Finder too.
func NewDatadog(c DatadogConfig) (deliver.Sink, error) {
	if c.Key == nil {
		return nil, errors.New("datadog: the API key is missing")
	}
	d := &Datadog{key: c.Key, now: c.Now}
	if d.now == nil {
		d.now = time.Now
	}
	if err := d.frame(&c); err != nil {
		return nil, err
	}
	var err error
	if d.intake, err = NewClient(c.Intake); err != nil {
		return nil, fmt.Errorf("datadog: %w", err)
	}
	if c.API.URL != "" {
		c.API.Gzip = false
		if d.api, err = NewClient(c.API); err != nil {
			return nil, fmt.Errorf("datadog: the API: %w", err)
		}
	}
	switch {
	case c.AppKey == nil:
		return d, nil
	case d.api == nil:
		return nil, errors.New("datadog: an application key without the URL of the API")
	}
	return &datadogFinder{d, c.AppKey, pause}, nil
}

// frame makes what is the same around every record.
func (d *Datadog) frame(c *DatadogConfig) error {
	source, service := c.Source, c.Service
	if source == "" {
		source = "gatebook"
	}
	if service == "" {
		service = "gatebook"
	}
	for _, tag := range c.Tags {
		if tag == "" || strings.ContainsAny(tag, ",\"\\ \t\r\n") {
			return fmt.Errorf("datadog: the tag %q is not of the form name:value without comma and space", tag)
		}
	}
	b := append([]byte(`{"ddsource":`), datadogText(source)...)
	b = append(b, `,"ddtags":"`...)
	for _, tag := range c.Tags {
		text := datadogText(tag)
		b = append(append(b, text[1:len(text)-1]...), ',')
	}
	d.prefix = append(b, datadogLogTag...)
	b = append([]byte(`","service":`), datadogText(service)...)
	if c.Hostname != "" {
		b = append(append(b, `,"hostname":`...), datadogText(c.Hostname)...)
	}
	d.middle = append(b, `,"status":"`...)
	return nil
}

func datadogText(s string) []byte {
	b, _ := json.Marshal(s) // a string always can
	return b
}

// Limits implements deliver.Sink.
func (d *Datadog) Limits() deliver.Limits {
	return deliver.Limits{
		Items: datadogItems, Bytes: datadogBytes, Item: datadogItem, Overhead: d.overhead(),
		MaxAge: datadogMaxAge, InFlight: datadogFlight,
	}
}

func (d *Datadog) overhead() int { return len(d.prefix) + len(d.middle) + datadogVaries }

// Grade implements deliver.Sink.
func (d *Datadog) Grade() deliver.Grade { return deliver.Accepted }

// Renew implements deliver.Renewer.
func (d *Datadog) Renew() (bool, error) { return d.key.Renew() }

// Send implements deliver.Sink.
func (d *Datadog) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	key := d.key.Get()
	header := http.Header{"Content-Type": {"application/json"}, "Dd-Api-Key": {key}}
	body, bad := d.encode(b, header)
	if bad != nil {
		return *bad
	}
	a, err := d.intake.Do(ctx, http.MethodPost, "/api/v2/logs", header, body)
	if a == nil {
		return failed(err, key)
	}
	return d.classify(a, key)
}

// classify reads an answer of the intake. Its status decides: the body says
// nothing of single entries, so it does not matter if it broke.
func (d *Datadog) classify(a *Answer, key string) deliver.Result {
	class := classOf(a.Status)
	if a.Status == http.StatusAccepted {
		class = deliver.Done
	}
	r := answered(class, a, d.now(), key)
	if class == deliver.Done {
		r.Grade = deliver.Accepted
	}
	// Whatever answers 5xx stands somewhere before or behind where logs are taken,
	// and a 2xx that is not 202 is nobody's word that they were not.
	r.Ambiguous = a.Status >= 500 || a.Status < 300 && class != deliver.Done
	return r
}

// encode makes the array. Anything that Datadog would cut off in silence is
// refused here, whatever was asked of the caller.
func (d *Datadog) encode(b *deliver.Batch, header http.Header) (body []byte, bad *deliver.Result) {
	size := 2
	for i := range b.Items {
		size += len(b.Items[i].Body) + d.overhead() + 1
	}
	now := d.now()
	body, raw := d.intake.compose(header, len(b.Items), size, func(dst []byte, i int) []byte {
		it, first := &b.Items[i], byte(',')
		if bad != nil {
			return dst
		}
		if i == 0 {
			first = '['
		}
		start := len(dst)
		dst = d.entry(append(dst, first), it, now)
		if len(dst)-start > datadogEntry {
			bad = &deliver.Result{Class: deliver.Split, Cause: "too_large", Detail: fmt.Sprintf("not sent: Datadog would cut record %d off at 1 MB", it.Index)}
		}
		if i == len(b.Items)-1 {
			dst = append(dst, ']')
		}
		return dst
	})
	if bad == nil && (raw > datadogMost || len(b.Items) > datadogItems) {
		bad = &deliver.Result{Class: deliver.Split, Cause: "too_large", Detail: "not sent: more than Datadog takes in one request"}
	}
	return body, bad
}

// entry appends one log. A late one has no date of its own: Datadog then dates it
// when it receives it, and a re-sent entry has the same bytes.
func (d *Datadog) entry(b []byte, it *deliver.Item, now time.Time) []byte {
	late := it.Late || now.Sub(it.Time) > datadogMaxAge
	log, _, _ := strings.Cut(it.ID, "-")
	kind := datadogText(it.Kind)
	b = append(b, d.prefix...)
	b = append(b, log...)
	b = append(append(b, ",kind:"...), kind[1:len(kind)-1]...)
	if late {
		b = append(append(b, ','), datadogLateTag...)
	}
	b = append(b, d.middle...)
	b = append(b, datadogStatus(it.Kind)...)
	b = append(b, `","message":"`...)
	b = append(append(b, kind[1:len(kind)-1]...), ' ')
	b = append(append(b, it.ID...), '"')
	if late {
		b = append(b, `,"late":true`...)
	} else {
		b = strconv.AppendInt(append(b, `,"timestamp":`...), it.Time.UnixMilli(), 10)
	}
	b = append(append(b, `,"event_id":"`...), it.ID...)
	b = it.Time.UTC().AppendFormat(append(b, `","event_time":"`...), time.RFC3339Nano)
	b = append(append(b, `","event_kind":`...), kind...)
	b = append(append(b, `,"record":`...), it.Body...)
	return append(b, '}')
}

// datadogStatus is how loud a kind of record is.
func datadogStatus(kind string) string {
	switch kind {
	case "alert":
		return "alert"
	case "gap", "unclean_stop":
		return "error"
	case "malformed", "handshake", "interrupted", "clock":
		return "warning"
	}
	return "info"
}

// Test implements deliver.Sink: the key is tried at the API, or an empty array is
// sent if there is none.
func (d *Datadog) Test(ctx context.Context) error {
	key := d.key.Get()
	h := http.Header{"Dd-Api-Key": {key}, "Content-Type": {"application/json"}}
	var a *Answer
	var err error
	if d.api != nil {
		a, err = d.api.Do(ctx, http.MethodGet, "/api/v1/validate", h, nil)
	} else {
		a, err = d.intake.Do(ctx, http.MethodPost, "/api/v2/logs", h, []byte("[]"))
	}
	switch {
	case err != nil:
		return fmt.Errorf("datadog cannot be reached (%s): %s", causeOf(err), excerpt([]byte(err.Error()), key))
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		return fmt.Errorf("datadog refuses the API key (%d): %s; is it one of this site, and an API key, not an application key?", a.Status, excerpt(a.Body, key))
	case d.api == nil && (a.Status == http.StatusAccepted || a.Status == http.StatusBadRequest):
		return nil // the key was looked at first
	case d.api == nil || a.Status != http.StatusOK:
		return fmt.Errorf("what answers is not Datadog (%d): %s", a.Status, excerpt(a.Body, key))
	}
	var v struct {
		Valid bool `json:"valid"`
	}
	if err := json.Unmarshal(a.Body, &v); err != nil || !v.Valid {
		return fmt.Errorf("datadog does not call the API key valid: %s", excerpt(a.Body, key))
	}
	return nil
}
