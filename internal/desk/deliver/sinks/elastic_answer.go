package sinks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// bulkItem is what an answer says of one item.
type bulkItem struct {
	Index        string        `json:"_index"`
	ID           string        `json:"_id"`
	Status       int           `json:"status"`
	Result       string        `json:"result"`
	FailureStore string        `json:"failure_store"`
	Error        *elasticError `json:"error"`
}

// elasticError is the error of an item or of a whole answer. What stands in front of
// the product answers with a string, or with something else.
type elasticError struct{ Type, Reason string }

func (e *elasticError) UnmarshalJSON(b []byte) error {
	var full struct{ Type, Reason string }
	if json.Unmarshal(b, &full) == nil {
		*e = elasticError(full)
		return nil
	}
	var text string
	if json.Unmarshal(b, &text) == nil {
		e.Reason = text
	}
	return nil
}

// quarantined: the document is in the failure store of its stream, and not in what
// is searched. It has an id of the store's own there.
func (i *bulkItem) quarantined() bool {
	return i.FailureStore == "used" || strings.HasPrefix(i.Index, ".fs-")
}

// parseBulk reads the items of an answer to a request that sent these, and calls
// fn with each. A cause that is not empty says why the answer is not believed, what
// fn was told of it included: it has to have one item for each that was sent, in
// their order and with their ids, each about the one operation create. yield is
// called between them: nothing goes through the whole of a long answer at once.
func parseBulk(body []byte, sent []deliver.Item, yield func(), fn func(i int, item *bulkItem)) (cause string) {
	d := json.NewDecoder(bytes.NewReader(body))
	switch t, err := d.Token(); {
	case err == nil && t == nil:
		return "no_items"
	case err != nil, t != json.Delim('{'):
		return "bad_answer"
	}
	found := false
	for d.More() {
		key, err := d.Token()
		switch {
		case err != nil, key == "items" && found:
			return "bad_answer"
		case key == "items":
			var doubt string
			if doubt, err = parseItems(d, sent, yield, fn); err == nil && doubt != "" {
				return doubt
			}
			found = true
		default:
			var rest json.RawMessage
			err = d.Decode(&rest)
		}
		if err != nil {
			return "bad_answer"
		}
	}
	if _, err := d.Token(); err != nil { // the brace
		return "bad_answer"
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "bad_answer"
	}
	if !found {
		return "no_items"
	}
	return ""
}

func parseItems(d *json.Decoder, sent []deliver.Item, yield func(), fn func(i int, item *bulkItem)) (cause string, err error) {
	t, err := d.Token()
	if err != nil {
		return "", err
	}
	if t == nil {
		return "no_items", nil
	}
	if t != json.Delim('[') {
		return "bad_answer", nil
	}
	n := 0
	for ; d.More(); n++ {
		yield()
		var one map[string]*bulkItem
		if err := d.Decode(&one); err != nil {
			return "", err
		}
		if n < len(sent) && cause == "" {
			if cause = disbelief(one, &sent[n]); cause == "" {
				fn(n, one["create"])
			}
		}
	}
	if n != len(sent) {
		cause = "item_count" // whatever else
	}
	_, err = d.Token() // the bracket
	return cause, err
}

// disbelief says why what an answer has for an item is not believed.
func disbelief(one map[string]*bulkItem, sent *deliver.Item) string {
	item := one["create"]
	switch {
	case len(one) != 1 || item == nil:
		return "item_operation"
	case item.ID == sent.ID || item.quarantined():
		return ""
	case item.ID == "":
		return "item_without_id"
	}
	return "item_id"
}

// bulkResult is what an answer to a bulk request means for the records sent.
// What it says in "errors" is not looked at: the items are.
func bulkResult(a *Answer, sent []deliver.Item, stream string, now time.Time, yield func(), secrets ...string) deliver.Result {
	if a.Status != http.StatusOK {
		return bulkRefused(a, now, secrets...)
	}
	doubt := deliver.Result{Class: deliver.Retry, Ambiguous: true, Status: a.Status}
	if a.Cut {
		doubt.Cause = "answer_too_long"
		if len(sent) > 1 {
			doubt.Class = deliver.Split // half of the records, half of an answer
		}
		return doubt
	}
	after := retryAfter(a.Header, now)
	var results []deliver.Result // nil as long as all of them are done
	cause := parseBulk(a.Body, sent, yield, func(i int, item *bulkItem) {
		r := itemResult(item, stream, after, secrets...)
		if results == nil && r.Class != deliver.Done {
			results = make([]deliver.Result, len(sent))
			for before := range i {
				results[before] = deliver.Result{Class: deliver.Done, Grade: deliver.Durable, Status: a.Status}
			}
		}
		if results != nil {
			results[i] = r
		}
	})
	if cause != "" {
		doubt.Cause = cause
		if cause == "item_without_id" {
			// Something that imitates the API and knows no ids keeps one more copy at
			// every attempt.
			doubt.Class, doubt.Detail = deliver.Pause, "the answer names no ids of documents, so nothing in it can be believed and nothing sent twice would be found to be"
		} else if text := strings.TrimSpace(string(a.Body)); !strings.HasPrefix(text, "{") {
			doubt.Detail = excerpt(a.Body, secrets...) // not ours: a page of a proxy
		}
		return doubt
	}
	if results == nil {
		return deliver.Result{Class: deliver.Done, Grade: deliver.Durable, Status: a.Status}
	}
	return deliver.Result{Items: results}
}

// itemResult is what became of one item.
func itemResult(i *bulkItem, stream string, after time.Duration, secrets ...string) deliver.Result {
	created := i.Status == http.StatusCreated && i.Result == "created" && i.Error == nil
	if created && i.Index != stream && !i.quarantined() {
		return deliver.Result{Class: deliver.Done, Grade: deliver.Durable, Status: i.Status}
	}
	kind := ""
	if i.Error != nil {
		kind = i.Error.Type
	}
	exists := i.Status == http.StatusConflict && kind == "version_conflict_engine_exception"
	r := deliver.Result{Status: i.Status, Cause: "item_" + strconv.Itoa(i.Status), Detail: itemDetail(i, secrets...)}
	switch {
	case i.quarantined():
		// It answers created, and whoever looks at the stream does not find it.
		r.Class, r.Cause = deliver.Poison, "failure_store"
	case i.Index == stream && (created || exists):
		// A document of a data stream is in a backing index of another name. Without a
		// template the product makes an index of this one, and guesses its types.
		r.Class, r.Cause = deliver.Pause, "plain_index"
		r.Detail = "it went to a plain index, since there is no data stream of this name: delete the index and run gatebook sink setup; the records are sent again"
	case exists:
		return deliver.Result{Class: deliver.Done, Grade: deliver.Durable, Status: i.Status, Cause: "exists"}
	case i.Status == http.StatusOK && i.Result == "noop":
		r.Class, r.Cause = deliver.Poison, "dropped_by_pipeline"
	case i.Status == http.StatusTooManyRequests:
		r.Class, r.After = deliver.Retry, after
	case i.Status >= 500:
		r.Class, r.After, r.Ambiguous = deliver.Retry, after, true
	case kind == "cluster_block_exception":
		// A full disk, or an operator at work: neither the record nor the credential.
		r.Class, r.Cause, r.After = deliver.Retry, "cluster_block", after
	case i.Status == http.StatusUnauthorized, i.Status == http.StatusForbidden, i.Status == http.StatusNotFound:
		r.Class = deliver.Pause
	case i.Status == http.StatusConflict, i.Status < 400:
		// Neither created nor refused, or both.
		r.Class, r.Ambiguous, r.Cause = deliver.Retry, true, "item_result"
	default:
		r.Class, r.Cause = deliver.Poison, poisonCause(kind, i.Status)
	}
	return r
}

func poisonCause(kind string, status int) string {
	switch kind {
	case "mapper_parsing_exception", "document_parsing_exception", "strict_dynamic_mapping_exception":
		return "mapping"
	}
	return "item_" + strconv.Itoa(status)
}

// bulkRefused is what an answer means that is about the whole request.
func bulkRefused(a *Answer, now time.Time, secrets ...string) deliver.Result {
	var doc struct {
		Error *elasticError `json:"error"`
	}
	kind := ""
	if json.Unmarshal(a.Body, &doc) == nil && doc.Error != nil {
		kind = doc.Error.Type
	}
	class := classOf(a.Status)
	if a.Status == http.StatusBadRequest || a.Status == http.StatusUnprocessableEntity {
		class = badRequest(kind)
	}
	if kind == "cluster_block_exception" {
		class = deliver.Retry
	}
	if a.Status < 300 {
		class = deliver.Retry // 2xx that is not 200: not the bulk API
	}
	r := answered(class, a, now, secrets...)
	if doc.Error != nil {
		r.Detail = elasticDetail(kind, doc.Error.Reason, class == deliver.Poison, secrets...) // a parser quotes
	}
	// A node or something before it may have passed the request on.
	r.Ambiguous = a.Status < 300 || a.Status >= 500 || a.Status == http.StatusRequestTimeout
	return r
}

// badRequest: the parser did not get through a document, which bisecting finds; or
// the request was not understood at all, and no record is to blame.
func badRequest(kind string) deliver.Class {
	switch kind {
	case "parse_exception", "parsing_exception", "json_parse_exception", "x_content_parse_exception",
		"mapper_parsing_exception", "document_parsing_exception", "action_request_validation_exception":
		return deliver.Poison
	}
	return deliver.Pause
}

func itemDetail(i *bulkItem, secrets ...string) string {
	if i.quarantined() {
		return "the document is in the failure store of the data stream, not in the stream"
	}
	if i.Error == nil {
		return ""
	}
	// What the parser has against a document quotes the document.
	quotes := i.Status == http.StatusBadRequest || i.Status == http.StatusUnprocessableEntity
	d := elasticDetail(i.Error.Type, i.Error.Reason, quotes, secrets...)
	if i.FailureStore == "failed" {
		d = excerpt([]byte("also refused by the failure store; " + d))
	}
	return d
}

// elasticDetail is an error in words that may be kept. Of a reason that quotes the
// document, only the name of the field.
func elasticDetail(kind, reason string, quotes bool, secrets ...string) string {
	if quotes {
		if name := fieldOf(reason); name != "" {
			return excerpt(fmt.Appendf(nil, "%s: field %s", kind, name), secrets...)
		}
		return excerpt([]byte(kind), secrets...)
	}
	// Rejections print the operation with its source.
	reason, _, _ = strings.Cut(reason, "source[")
	if kind != "" {
		reason = kind + ": " + reason
	}
	return excerpt([]byte(reason), secrets...)
}

// fieldOf is the field that a reason names, if it looks like a name.
func fieldOf(reason string) string {
	for _, before := range []string{"field [", "mapping for [", "introduction of ["} {
		_, rest, found := strings.Cut(reason, before)
		if !found {
			continue
		}
		name, _, found := strings.Cut(rest, "]")
		ok := found && name != "" && len(name) <= 128
		for i := range len(name) {
			c := name[i]
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '@' && i == 0)
		}
		if ok {
			return name
		}
	}
	return ""
}
