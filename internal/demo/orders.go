package demo

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// order is what the orders API keeps.
type order struct {
	ID     string `json:"id"`
	Item   string `json:"item"`
	Status string `json:"status"`
}

// orders is the API behind the gate. It trusts the gate: who asks stands in
// X-Gatebook-Subject, which no client can set. Safe for concurrent use.
type orders struct {
	mu   sync.Mutex
	byID map[string]order // guarded by mu
}

func newOrders() *orders {
	return &orders{byID: map[string]order{
		"1042": {"1042", "brass lamp", "open"},
		"1043": {"1043", "oak table", "open"},
		"1044": {"1044", "wool rug", "shipped"},
	}}
}

func (o *orders) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/orders", o.list)
	mux.HandleFunc("GET /v1/orders/{id}", o.read)
	mux.HandleFunc("POST /v1/orders/{id}", o.write)
	return mux
}

func (o *orders) list(w http.ResponseWriter, _ *http.Request) {
	o.mu.Lock()
	all := make([]order, 0, len(o.byID))
	for _, v := range o.byID {
		all = append(all, v)
	}
	o.mu.Unlock()
	slices.SortFunc(all, func(a, b order) int { return cmp.Compare(a.ID, b.ID) })
	answer(w, http.StatusOK, all)
}

func (o *orders) read(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	v, ok := o.byID[r.PathValue("id")]
	o.mu.Unlock()
	if !ok {
		answer(w, http.StatusNotFound, map[string]string{"error": "no such order"})
		return
	}
	answer(w, http.StatusOK, seen{v, r.Header.Get("X-Gatebook-Subject")})
}

// seen is an order and who, as the gate says, asked for it.
type seen struct {
	order
	AskedBy string `json:"asked_by"`
}

// maxOrder bounds what a write may send.
const maxOrder = 4 << 10

func (o *orders) write(w http.ResponseWriter, r *http.Request) {
	var change struct {
		Status string `json:"status"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxOrder)).Decode(&change); err != nil || change.Status == "" || len(change.Status) > 40 {
		answer(w, http.StatusBadRequest, map[string]string{"error": `send {"status": "..."}`})
		return
	}
	o.mu.Lock()
	v, ok := o.byID[r.PathValue("id")]
	if ok {
		v.Status = change.Status
		o.byID[v.ID] = v
	}
	o.mu.Unlock()
	if !ok {
		answer(w, http.StatusNotFound, map[string]string{"error": "no such order"})
		return
	}
	answer(w, http.StatusOK, seen{v, r.Header.Get("X-Gatebook-Subject")})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // a client that is gone is no matter of the demo's
}

// downPort is a loopback port that refuses every connection for as long as it
// is held: it is bound, so nobody else can get it, and never listened on.
type downPort struct {
	fd   int
	addr string
}

func holdDownPort() (*downPort, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	d := &downPort{fd: fd}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		d.close()
		return nil, fmt.Errorf("bind: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		d.close()
		return nil, fmt.Errorf("getsockname: %w", err)
	}
	d.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(sa.(*unix.SockaddrInet4).Port)) // the family of the socket
	return d, nil
}

func (d *downPort) close() error { return unix.Close(d.fd) }
