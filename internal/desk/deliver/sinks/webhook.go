package sinks

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// Bounds of a webhook's requests. Receivers are of all kinds, so they are low.
const (
	webhookItems  = 500
	webhookBytes  = 1 << 20
	webhookItem   = 512 << 10
	webhookVaries = 64 // bytes around one body
	webhookFlight = 1
	minHookKey    = 24 // bytes of a signing key
)

// webhookStored is the field of an answer by which a receiver says that it keeps
// a batch: its value is the webhook-id.
const webhookStored = "Gatebook-Stored"

// WebhookConfig is what a webhook needs to know.
type WebhookConfig struct {
	// Endpoint is where to send; the URL is used as it is. Bodies are never
	// compressed: what is signed is what is on the wire.
	Endpoint Settings
	// Keys sign every request, the newest first. During a rotation there are two,
	// and the receiver may check either. A key is whsec_ and base64, or a text
	// that is the key as it is; 24 bytes at least.
	Keys []*Credential
	// Token is a bearer token beside the signature; nil: none. Without a key there
	// must be one.
	Token *Credential
	// Stored asks the receiver for more than a 2xx: for the webhook-id in the field
	// Gatebook-Stored, by which it says that it keeps the batch. Then the grade is
	// G2, and a 2xx without the field stops the sink.
	Stored bool
	// Items and Bytes bound a request; 0: 500 and 1 MiB.
	Items, Bytes int

	Now func() time.Time // default time.Now
}

// Webhook sends records to a receiver of anybody's, signed the way that Standard
// Webhooks describes it. The body is one JSON object: type, timestamp, and data
// with the records of a batch. The webhook-id is made of the first and the last
// record of the batch and is the same at every attempt.
type Webhook struct {
	client *Client
	conf   WebhookConfig
	bodies composer // of client, but never compressed
}

// NewWebhook checks the configuration.
func NewWebhook(c WebhookConfig) (*Webhook, error) {
	c.Endpoint.Gzip = false
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Items == 0 {
		c.Items = webhookItems
	}
	if c.Bytes == 0 {
		c.Bytes = webhookBytes
	}
	switch {
	case len(c.Keys) == 0 && c.Token == nil:
		return nil, errors.New("webhook: neither a signing key nor a token: the receiver could not tell who sent records")
	case len(c.Keys) > 2:
		return nil, errors.New("webhook: more than two signing keys; during a rotation there are the new one and the old one")
	case c.Items < 1 || c.Bytes < 1:
		return nil, errors.New("webhook: the bounds of a request must be positive")
	}
	for i, k := range c.Keys {
		if _, err := hookKey(k.Get()); err != nil {
			return nil, fmt.Errorf("webhook: signing key %d: %w", i+1, err)
		}
	}
	client, err := NewClient(c.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("webhook: %w", err)
	}
	return &Webhook{client: client, conf: c, bodies: composer{pace: c.Endpoint.Pace}}, nil
}

// hookKey reads a signing key. Errors do not repeat it.
func hookKey(text string) ([]byte, error) {
	key := []byte(text)
	if coded, ok := strings.CutPrefix(text, "whsec_"); ok {
		var err error
		if key, err = base64.StdEncoding.DecodeString(coded); err != nil {
			return nil, errors.New("what follows whsec_ is not base64")
		}
	}
	if len(key) < minHookKey {
		return nil, fmt.Errorf("it has %d bytes and needs %d; make one with: echo whsec_$(openssl rand -base64 32)", len(key), minHookKey)
	}
	return key, nil
}

// Limits implements deliver.Sink.
func (h *Webhook) Limits() deliver.Limits {
	return deliver.Limits{Items: h.conf.Items, Bytes: h.conf.Bytes, Item: min(webhookItem, h.conf.Bytes-webhookVaries), Overhead: webhookVaries, InFlight: webhookFlight}
}

// Grade implements deliver.Sink.
func (h *Webhook) Grade() deliver.Grade {
	if h.conf.Stored {
		return deliver.Durable
	}
	return deliver.Accepted
}

// Renew implements deliver.Renewer. A key that cannot be used is refused, and the
// one before it stays.
func (h *Webhook) Renew() (changed bool, err error) {
	for _, k := range h.conf.Keys {
		c, e := k.renew(func(s string) error { _, err := hookKey(s); return err })
		changed, err = changed || c, errors.Join(err, e)
	}
	if h.conf.Token != nil {
		c, e := h.conf.Token.Renew()
		changed, err = changed || c, errors.Join(err, e)
	}
	return changed, err
}

// Send implements deliver.Sink.
func (h *Webhook) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	id := webhookID(b)
	a, err := h.post(ctx, id, h.body(b, id))
	if a == nil {
		return failed(err, h.secrets()...)
	}
	if a.Status >= 200 && a.Status < 300 {
		return h.taken(a, id)
	}
	r := answered(classOf(a.Status), a, h.conf.Now(), h.secrets()...)
	r.Ambiguous = a.Status >= 500
	return r
}

// taken judges a 2xx: by the field of the answer that says what is kept.
func (h *Webhook) taken(a *Answer, id string) deliver.Result {
	r := answered(deliver.Done, a, h.conf.Now())
	said := a.Header.Get(webhookStored)
	switch {
	case said != "" && said != id:
		r.Class, r.Ambiguous, r.Cause = deliver.Pause, true, "wrong_receipt"
		r.Detail = excerpt([]byte("the receiver says that it keeps " + said + ", and was sent " + id))
	case h.conf.Stored && said == "":
		r.Class, r.Ambiguous, r.Cause = deliver.Pause, true, "no_receipt"
		r.Detail = "the receiver does not say in the field " + webhookStored + " that it keeps the batch"
	default:
		r.Grade = h.Grade()
	}
	return r
}

// Test implements deliver.Sink: a request of the type gatebook.test without
// records.
func (h *Webhook) Test(ctx context.Context) error {
	now := h.conf.Now()
	id := "test-" + strconv.FormatInt(now.UnixNano(), 10)
	body := now.UTC().AppendFormat([]byte(`{"type":"gatebook.test","timestamp":"`), time.RFC3339)
	a, err := h.post(ctx, id, append(body, `","data":{}}`...))
	if err != nil && a == nil {
		return fmt.Errorf("the receiver cannot be reached (%s): %s", causeOf(err), excerpt([]byte(err.Error()), h.secrets()...))
	}
	if a.Status < 200 || a.Status > 299 {
		return fmt.Errorf("the receiver refuses a signed test (%d): %s", a.Status, excerpt(a.Body, h.secrets()...))
	}
	return nil
}

func (h *Webhook) post(ctx context.Context, id string, body []byte) (*Answer, error) {
	at := strconv.FormatInt(h.conf.Now().Unix(), 10)
	f := http.Header{"Content-Type": {"application/json"}, "Webhook-Id": {id}, "Webhook-Timestamp": {at}}
	signs, err := h.sign(id, at, body)
	if err != nil {
		return nil, &Unsent{err}
	}
	if signs != nil {
		f.Set("Webhook-Signature", strings.Join(signs, " "))
	}
	if h.conf.Token != nil {
		f.Set("Authorization", "Bearer "+h.conf.Token.Get())
	}
	return h.client.Do(ctx, http.MethodPost, "", f, body)
}

// sign makes the signatures of all keys.
func (h *Webhook) sign(id, at string, body []byte) (signs []string, err error) {
	slice := h.bodies.pace.New(time.Now)
	defer slice.Close()
	for _, k := range h.conf.Keys {
		key, err := hookKey(k.Get())
		if err != nil {
			return nil, err
		}
		signs = append(signs, webhookSign(key, id, at, body, slice.Yield))
	}
	return signs, nil
}

// signPiece is how much is signed without a pause.
const signPiece = 32 << 10

// webhookSign is a signature of the version v1: HMAC-SHA-256 over id, time and
// body. yield is called between two pieces.
func webhookSign(key []byte, id, at string, body []byte, yield func()) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(id + "." + at + "."))
	for piece := range slices.Chunk(body, signPiece) {
		m.Write(piece)
		yield()
	}
	return "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// webhookID names a batch: the id of its first record and the index of its last.
func webhookID(b *deliver.Batch) string {
	last := b.Items[len(b.Items)-1]
	return b.Items[0].ID + "-" + strconv.FormatUint(last.Index, 10)
}

// body is the same at every attempt: its time is that of the plan.
func (h *Webhook) body(b *deliver.Batch, id string) []byte {
	size := 256
	for i := range b.Items {
		size += len(b.Items[i].Body) + webhookVaries
	}
	body, _ := h.bodies.body(len(b.Items), size, func(dst []byte, i int) []byte {
		if i == 0 {
			dst = append(dst, `{"type":"gatebook.records","timestamp":"`...)
			dst = b.Planned.UTC().AppendFormat(dst, time.RFC3339Nano)
			dst = fmt.Appendf(dst, `","data":{"batch":%q,"count":%d,"records":[`, id, len(b.Items))
		} else {
			dst = append(dst, ',')
		}
		name, _ := json.Marshal(b.Items[i].ID) // a string always can
		dst = append(append(dst, `{"id":`...), name...)
		dst = append(append(dst, `,"record":`...), b.Items[i].Body...)
		if dst = append(dst, '}'); i == len(b.Items)-1 {
			dst = append(dst, "]}}"...)
		}
		return dst
	})
	return body
}

// secrets are what must not come back in a detail.
func (h *Webhook) secrets() (s []string) {
	for _, k := range h.conf.Keys {
		s = append(s, k.Get())
	}
	if h.conf.Token != nil {
		s = append(s, h.conf.Token.Get())
	}
	return s
}
