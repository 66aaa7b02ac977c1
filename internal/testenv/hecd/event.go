package hecd

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// reply is the JSON that the collector answers with.
type reply struct {
	Text   string          `json:"text"`
	Code   int             `json:"code"`
	Number *int            `json:"invalid-event-number,omitempty"`
	Ack    *uint64         `json:"ackId,omitempty"`
	Acks   map[uint64]bool `json:"acks,omitempty"`
}

// codes are the documented answers.
var codes = map[int]struct {
	status int
	text   string
}{
	0: {200, "Success"}, 1: {403, "Token disabled"}, 2: {401, "Token is required"}, 3: {401, "Invalid authorization"},
	4: {403, "Invalid token"}, 5: {400, "No data"}, 6: {400, "Invalid data format"}, 7: {400, "Incorrect index"},
	8: {500, "Internal server error"}, 9: {503, "Server is busy"}, 10: {400, "Data channel is missing"},
	11: {400, "Invalid data channel"}, 12: {400, "Event field is required"}, 13: {400, "Event field cannot be blank"},
	14: {400, "ACK is disabled"}, 15: {400, "Error in handling indexed fields"},
	16: {400, "Query string authorization is not enabled"}, 17: {200, "HEC is healthy"},
	18: {503, "HEC is unhealthy, queues are full"}, 19: {503, "HEC is unhealthy, ack service unavailable"},
	20: {503, "HEC is unhealthy, queues are full, ack service unavailable"}, 21: {400, "Invalid token"}, 22: {400, "Token disabled"},
}

func fail(code int) *reply { return &reply{Text: codes[code].text, Code: code} }

func statusOf(code int) int {
	if c, ok := codes[code]; ok {
		return c.status
	}
	return http.StatusBadRequest
}

var guid = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// channelFault is code 10 or 11, or nil.
func channelFault(id string, need bool) *reply {
	switch {
	case id == "" && need:
		return fail(10)
	case id != "" && !guid.MatchString(id):
		return fail(11)
	}
	return nil
}

// take takes events: one after another, so what came before a bad one is in. It
// runs under mu.
func (s *Server) take(n int, id string, token Token, path string, body []byte, f *Fault) (int, any) {
	if v := channelFault(id, token.Ack); v != nil {
		return statusOf(v.Code), v
	}
	if s.MaxBody > 0 && len(body) > s.MaxBody {
		return http.StatusRequestEntityTooLarge, map[string]string{"text": "Content-Length is too large"}
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return statusOf(5), fail(5)
	}
	var taken []*Event
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	for i := 0; ; i++ {
		if f != nil && f.Code != 0 && i == f.Take {
			return s.refuse(taken, n, f.Code, i, f)
		}
		e, code, err := next(dec, token)
		if errors.Is(err, io.EOF) {
			break
		}
		if code == 0 && s.Indexes != nil && e.Index != "" && !slices.Contains(s.Indexes, e.Index) {
			code = 7
		}
		if code == 0 && s.Bad != nil {
			code = s.Bad(e)
		}
		if code != 0 {
			return s.refuse(taken, n, code, i, f)
		}
		taken = append(taken, e)
	}
	s.keep(taken, n, f)
	v := fail(0)
	if token.Ack && !strings.HasSuffix(path, "/noack") {
		v.Ack = s.open(n, id, taken, f)
	}
	return http.StatusOK, v
}

// refuse keeps what came before and says where it stopped.
func (s *Server) refuse(taken []*Event, n, code, i int, f *Fault) (int, any) {
	s.keep(taken, n, f)
	v := fail(code)
	if s.OneBased {
		i++
	}
	v.Number = &i
	status := statusOf(code)
	if code == 9 && s.Busy429 {
		status = http.StatusTooManyRequests
	}
	return status, v
}

func (s *Server) keep(taken []*Event, n int, f *Fault) {
	ready := time.Now().Add(s.Delay)
	if f != nil {
		ready = ready.Add(f.Late)
	}
	for _, e := range taken {
		e.ready, e.node = ready, n
		s.events = append(s.events, e)
	}
}

// open gives the request an id: they count from 0 in every channel of every
// indexer, and from 0 again after a restart.
func (s *Server) open(n int, id string, taken []*Event, f *Fault) *uint64 {
	c := s.nodes[n].channels[id]
	if c == nil {
		c = &channelState{acks: map[uint64]*ack{}}
		s.nodes[n].channels[id] = c
	}
	a := &ack{events: taken, ready: time.Now().Add(s.Delay)}
	if f != nil {
		a.ready = a.ready.Add(f.Late)
		a.never = f.NeverAck
	}
	k := c.next
	c.acks[k] = a
	c.next++
	return &k
}

// envelope is what stands around an event. Anything else in it is not data.
type envelope struct {
	Time       json.RawMessage `json:"time"`
	Host       string          `json:"host"`
	Source     string          `json:"source"`
	Sourcetype string          `json:"sourcetype"`
	Index      string          `json:"index"`
	Fields     map[string]any  `json:"fields"`
	Event      json.RawMessage `json:"event"`
}

// next reads the next event, or says the code with which it is refused.
func next(dec *json.Decoder, token Token) (*Event, int, error) {
	var raw json.RawMessage
	if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
		return nil, 0, err
	} else if err != nil {
		return nil, 6, nil
	}
	var env envelope
	strict := json.NewDecoder(bytes.NewReader(raw))
	strict.UseNumber()
	strict.DisallowUnknownFields()
	if err := strict.Decode(&env); err != nil {
		if strings.Contains(err.Error(), "unknown field") {
			return nil, 5, nil
		}
		return nil, 6, nil
	}
	switch ev := bytes.TrimSpace(env.Event); {
	case len(ev) == 0 || bytes.Equal(ev, []byte("null")):
		return nil, 12, nil
	case bytes.Equal(ev, []byte(`""`)) || bytes.Equal(ev, []byte(`{}`)):
		return nil, 13, nil
	}
	if token.Indexes != nil && env.Index != "" && !slices.Contains(token.Indexes, env.Index) {
		return nil, 7, nil
	}
	for _, v := range env.Fields { // flat, or a flat list
		switch v := v.(type) {
		case map[string]any:
			return nil, 15, nil
		case []any:
			if slices.ContainsFunc(v, func(v any) bool { _, m := v.(map[string]any); _, l := v.([]any); return m || l }) {
				return nil, 15, nil
			}
		}
	}
	at := json.Number(strings.Trim(string(env.Time), `"`))
	if at != "" {
		if _, err := at.Float64(); err != nil {
			return nil, 6, nil
		}
	}
	id, _ := env.Fields["event_id"].(string)
	return &Event{ID: id, Time: at, Host: env.Host, Source: env.Source, Sourcetype: env.Sourcetype, Index: env.Index, Fields: env.Fields, Event: env.Event}, 0, nil
}

// ask tells acknowledgements: true once, and false for what is pending, lost or
// never was. It runs under mu.
func (s *Server) ask(n int, id string, token Token, body []byte) (int, any) {
	if !token.Ack {
		return statusOf(14), fail(14)
	}
	if v := channelFault(id, true); v != nil {
		return statusOf(v.Code), v
	}
	var q struct {
		Acks []uint64 `json:"acks"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return statusOf(6), fail(6)
	}
	out := map[uint64]bool{}
	c := s.nodes[n].channels[id]
	for _, k := range q.Acks {
		out[k] = false
		if c == nil {
			continue
		}
		if a := c.acks[k]; a != nil && !a.never && !a.ready.After(time.Now()) {
			out[k] = true
			delete(c.acks, k)
		}
	}
	return http.StatusOK, struct {
		Acks map[uint64]bool `json:"acks"`
	}{out}
}
