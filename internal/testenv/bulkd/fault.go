package bulkd

import (
	"compress/gzip"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Fault is what goes wrong with one request. The zero value of everything but the
// name is a request that goes well.
type Fault struct {
	Name string
	// Path is a suffix of the path that it is for; "": the next bulk request.
	Path string

	// Status answers with Header and Body in place of doing anything.
	Status int
	Header map[string]string
	Body   string
	// Apply does the work first and throws its answer away for the above.
	Apply bool
	// Reset closes the connection hard: without having done anything, or, with
	// Apply, after everything.
	Reset bool
	// Hang answers never; with Apply after everything is done.
	Hang bool

	// Items replaces what becomes of single items, by position.
	Items map[int]Item
	// All is what becomes of every item that is not in Items.
	All *Item
	// Edit changes the answer before it leaves.
	Edit Edit
	// Cut is how many bytes of the answer leave before the connection is reset; 0: all.
	Cut int
	// Slow is how long the answer waits, and again in its middle.
	Slow time.Duration
	// Bomb answers with this many MiB of blanks before the answer, compressed.
	Bomb int
	// Rollover gives the streams new backing indexes after the work.
	Rollover bool
}

// Item is what becomes of one item.
type Item struct {
	Status       int
	Type, Reason string
	Result       string
	FailureStore string // as the answer says it
	ID           string // another id in the answer
	Index        string // another index in the answer
	Apply        bool   // keep the document in spite of what is said
	Bare         bool   // an answer of nothing but the status
}

// Edit is what is done to the list of items in an answer.
type Edit struct {
	Drop     []int  // positions left out
	Repeat   []int  // positions put again at the end
	Swap     [2]int // two positions exchanged, if they differ
	Errors   *bool  // what "errors" says
	Op       string // the name of the operation of all items
	Truncate int    // bytes taken from the end
	Append   string // put behind the document
	NoItems  bool   // without the list
	Null     []int  // positions that become null
	Both     []int  // positions that name a second operation
}

// Script adds faults for the next requests.
func (s *Server) Script(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// Left is how many faults have not been played.
func (s *Server) Left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.faults)
}

// play does what comes in place of the work and says whether that was all.
func (f *Fault) play(s *Server, w http.ResponseWriter, r *http.Request) bool {
	if f.Apply {
		return false
	}
	switch {
	case f.Reset:
		reset(w)
	case f.Hang:
		s.hang(r)
		reset(w)
	case f.Status != 0:
		f.head(w)
		w.Write([]byte(f.Body))
	default:
		return false
	}
	return true
}

func (s *Server) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.stop:
	}
}

func (f *Fault) head(w http.ResponseWriter) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	for k, v := range f.Header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(f.Status)
}

// write lets the answer of work that was done go out, as far as it gets.
func (f *Fault) write(s *Server, w http.ResponseWriter, r *http.Request, status int, body []byte) {
	if f.Slow > 0 {
		select {
		case <-time.After(f.Slow):
		case <-r.Context().Done():
		case <-s.stop:
		}
	}
	switch {
	case f.Reset:
		reset(w)
		return
	case f.Hang:
		s.hang(r)
		reset(w)
		return
	case f.Status != 0:
		f.head(w)
		w.Write([]byte(f.Body))
		return
	}
	body = f.Edit.bytes(body)
	w.Header().Set("Content-Type", "application/json")
	for k, v := range f.Header {
		w.Header().Set(k, v)
	}
	switch {
	case f.Bomb > 0:
		w.Header().Set("Content-Encoding", "gzip")
		w.WriteHeader(status)
		z := gzip.NewWriter(w)
		blank := slices.Repeat([]byte(" "), 1<<20)
		for range f.Bomb {
			z.Write(blank)
		}
		z.Write(body)
		z.Close()
	case f.Cut > 0 && f.Cut < len(body):
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(status)
		w.Write(body[:f.Cut])
		w.(http.Flusher).Flush()
		reset(w)
	case f.Slow > 0:
		w.WriteHeader(status)
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		select {
		case <-time.After(f.Slow):
		case <-r.Context().Done():
		case <-s.stop:
		}
		w.Write(body[len(body)/2:])
	default:
		w.WriteHeader(status)
		w.Write(body)
	}
}

// bytes does the edits to an answer to a bulk request.
func (e *Edit) bytes(body []byte) []byte {
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		return body
	}
	if items, ok := doc["items"].([]any); ok {
		doc["items"] = e.list(items)
	}
	if e.NoItems {
		delete(doc, "items")
	}
	if e.Errors != nil {
		doc["errors"] = *e.Errors
	}
	out, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return append(out[:len(out)-min(e.Truncate, len(out))], e.Append...)
}

func (e *Edit) list(items []any) []any {
	if i, j := e.Swap[0], e.Swap[1]; i != j && i < len(items) && j < len(items) {
		items[i], items[j] = items[j], items[i]
	}
	for i := range items {
		item, _ := items[i].(map[string]any)
		if slices.Contains(e.Both, i) {
			item["delete"] = map[string]any{"status": 200}
		}
		if e.Op != "" {
			for op, v := range item {
				delete(item, op)
				item[e.Op] = v
				break
			}
		}
		if slices.Contains(e.Null, i) {
			items[i] = nil
		}
	}
	var out []any
	for i, item := range items {
		if !slices.Contains(e.Drop, i) {
			out = append(out, item)
		}
	}
	for _, i := range e.Repeat {
		if i < len(items) {
			out = append(out, items[i])
		}
	}
	return out
}
