// Loadgen drives one HTTP/1.1 endpoint on the loopback address and prints one
// JSON object. It is single-threaded around epoll with raw non-blocking
// sockets, so that it takes little of the core that it shares with the
// upstream. Two modes:
//
//	closed loop (-rate 0): every connection sends its next request as soon as
//	the last response is complete;
//	open loop (-rate N): requests fall due at a constant rate and latency counts
//	from the moment a request fell due, so a stalled proxy cannot hide its queue.
//
// With -settle it then waits until the proxy has nothing left to do and counts that
// work too, so that what is done later is not had for nothing.
//
// "loadgen keys" writes the signing keys, certificate, JWKS, OIDC discovery
// document and token files that the peers' configurations use.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "would block" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

var errWouldBlock net.Error = wouldBlock{}

// rawConn is a net.Conn over a socket descriptor. It blocks until nonblock is
// set, so a TLS handshake can run over it first.
type rawConn struct {
	fd       int
	nonblock bool
}

func (c *rawConn) Read(p []byte) (int, error) {
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch {
		case e == syscall.EINTR:
			continue
		case e == syscall.EAGAIN:
			return 0, errWouldBlock
		case e != 0:
			return 0, e
		case n == 0:
			return 0, io.EOF
		}
		return int(n), nil
	}
}

func (c *rawConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&p[done])), uintptr(len(p)-done))
		if e == syscall.EINTR || e == syscall.EAGAIN {
			continue // requests are far smaller than the socket buffer
		}
		if e != 0 {
			return done, e
		}
		done += int(n)
	}
	return done, nil
}
func (c *rawConn) Close() error                     { return syscall.Close(c.fd) }
func (c *rawConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *rawConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *rawConn) SetDeadline(time.Time) error      { return nil }
func (c *rawConn) SetReadDeadline(time.Time) error  { return nil }
func (c *rawConn) SetWriteDeadline(time.Time) error { return nil }

type conn struct {
	raw   *rawConn
	rw    io.ReadWriter
	buf   []byte
	n     int
	start time.Time
	busy  bool
	dead  bool
}

// hist counts microseconds in log-linear buckets: 256 linear steps an octave.
type hist struct {
	b   [40 * 256]uint64
	n   uint64
	max uint64
	sum float64
}

func (h *hist) add(d time.Duration) {
	us := uint64(max(d.Microseconds(), 0))
	h.n++
	h.sum += float64(us)
	h.max = max(h.max, us)
	h.b[bucket(us)]++
}

func bucket(v uint64) int {
	shift := 0
	for v >= 512 {
		v >>= 1
		shift++
	}
	return shift*256 + int(v)
}

func low(i int) uint64 {
	if i < 512 {
		return uint64(i)
	}
	shift := (i - 256) / 256
	return uint64(i-shift*256) << shift
}

func (h *hist) q(p float64) uint64 {
	want := uint64(p*float64(h.n) + 0.5)
	var c uint64
	for i, x := range h.b {
		c += x
		if x > 0 && c >= want {
			return low(i)
		}
	}
	return h.max
}

type result struct {
	Label     string  `json:"label"`
	Peer      string  `json:"peer"`
	Level     string  `json:"level"`
	Mode      string  `json:"mode"`
	Secs      float64 `json:"secs"`
	Requests  uint64  `json:"requests"`
	RPS       float64 `json:"rps"`
	Non2xx    uint64  `json:"non2xx"`
	Errors    uint64  `json:"errors"`
	Late      uint64  `json:"unsent,omitempty"`
	P50       uint64  `json:"p50_us"`
	P90       uint64  `json:"p90_us"`
	P99       uint64  `json:"p99_us"`
	P999      uint64  `json:"p999_us"`
	Max       uint64  `json:"max_us"`
	ProxyCPU  float64 `json:"proxy_cpu_us_per_req"`
	Settled   float64 `json:"proxy_cpu_settled_us_per_req,omitempty"` // with what the proxy did after the last answer
	SettleS   float64 `json:"settle_secs,omitempty"`
	Next      int     `json:"next"` // where another run goes on in the list of requests
	ProxyBusy float64 `json:"proxy_cpu_share"`
	Core0Busy float64 `json:"core0_busy"`
	Core0PerR float64 `json:"core0_us_per_req"`
	Core1Busy float64 `json:"core1_busy"`
	GenShare  float64 `json:"loadgen_cpu_share"`
	RSSKiB    int64   `json:"rss_kib"`
	BytesIn   uint64  `json:"bytes_in"`
}

// procTicks adds up utime+stime (100 Hz ticks, as microseconds) and RSS.
func procCPU(pids []int) (us float64, rss int64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
		ut, _ := strconv.ParseFloat(f[11], 64)
		st, _ := strconv.ParseFloat(f[12], 64)
		us += (ut + st) * 10000
		s, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for _, l := range strings.Split(string(s), "\n") {
			if strings.HasPrefix(l, "VmRSS:") {
				k, _ := strconv.ParseInt(strings.Fields(l)[1], 10, 64)
				rss += k
			}
		}
	}
	return
}

// untilIdle waits until the processes use less than a twentieth of a core, for ten
// seconds at most, and returns how long that took.
func untilIdle(pids []int) (secs float64) {
	const step = 250 * time.Millisecond
	before, _ := procCPU(pids)
	for range 40 {
		time.Sleep(step)
		now, _ := procCPU(pids)
		if now-before <= float64(step.Microseconds())/20 {
			return secs
		}
		before = now
		secs += step.Seconds()
	}
	return secs
}

// coreBusy gives busy and total ticks of one core from /proc/stat.
func coreBusy(core int) (busy, total float64) {
	b, _ := os.ReadFile("/proc/stat")
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) > 8 && f[0] == fmt.Sprintf("cpu%d", core) {
			for i := 1; i <= 8; i++ {
				v, _ := strconv.ParseFloat(f[i], 64)
				total += v
				if i != 4 && i != 5 {
					busy += v
				}
			}
		}
	}
	return
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "keys" {
		keysMain(os.Args[2:])
		return
	}
	url := flag.String("url", "http://127.0.0.1:8000", "scheme://127.0.0.1:port")
	conns := flag.Int("c", 32, "connections")
	secs := flag.Float64("d", 8, "seconds (at most 60)")
	rate := flag.Float64("rate", 0, "requests a second, 0 for closed loop")
	tokens := flag.String("tokens", "", "file of bearer tokens, one a line")
	pids := flag.String("pids", "", "comma-separated process ids of the proxy")
	peer := flag.String("peer", "", "label")
	level := flag.String("level", "", "label")
	label := flag.String("label", "", "label")
	first := flag.Int("first", 0, "request to begin with")
	fresh := flag.Bool("fresh", false, "as many different requests as there are tokens, each with its own")
	settle := flag.Bool("settle", false, "wait for the proxy to become idle and count what it still did")
	flag.Parse()
	if *secs > 60 {
		*secs = 60
	}
	scheme, hostport, ok := strings.Cut(*url, "://")
	if !ok || !strings.HasPrefix(hostport, "127.0.0.1:") {
		log.Fatal("only 127.0.0.1 is a target")
	}
	port, err := strconv.Atoi(strings.TrimPrefix(hostport, "127.0.0.1:"))
	if err != nil {
		log.Fatal(err)
	}
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(1000)
	distinct := 4096
	if *rate > 0 {
		distinct = 32768 // no request twice in the log that is measured for size
	}
	reqs := requests(hostport, *tokens, distinct, *fresh)
	g := &gen{port: port, tls: scheme == "https", reqs: reqs, next: *first % len(reqs)}
	g.ep, err = syscall.EpollCreate1(0)
	if err != nil {
		log.Fatal(err)
	}
	for range *conns {
		c, err := g.dial()
		if err != nil {
			log.Fatal("dial: ", err)
		}
		g.conns = append(g.conns, c)
		g.byFD[c.raw.fd] = c
	}
	var pidList []int
	for s := range strings.SplitSeq(*pids, ",") {
		if p, err := strconv.Atoi(s); err == nil {
			pidList = append(pidList, p)
		}
	}
	u0, _ := procCPU(pidList)
	b0, t0 := coreBusy(0)
	b1, t1 := coreBusy(1)
	var ru0, ru1 syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru0)
	begin := time.Now()
	g.run(begin, time.Duration(*secs*float64(time.Second)), *rate)
	el := time.Since(begin).Seconds()
	syscall.Getrusage(syscall.RUSAGE_SELF, &ru1)
	u1, rss := procCPU(pidList)
	b0e, t0e := coreBusy(0)
	b1e, t1e := coreBusy(1)
	var settled, settleSecs float64
	if *settle {
		settleSecs = untilIdle(pidList)
		u2, _ := procCPU(pidList)
		settled = u2 - u0
	}
	h := &g.h
	mode := "closed"
	if *rate > 0 {
		mode = fmt.Sprintf("open-%g", *rate)
	}
	n := max(float64(h.n), 1)
	err = json.NewEncoder(os.Stdout).Encode(result{
		Label: *label, Peer: *peer, Level: *level, Mode: mode,
		Secs: round(el, 3), Requests: h.n, RPS: round(float64(h.n)/el, 1), Non2xx: g.non2xx, Errors: g.errs, Late: g.unsent,
		P50: h.q(.5), P90: h.q(.9), P99: h.q(.99), P999: h.q(.999), Max: h.max,
		ProxyCPU: round((u1-u0)/n, 2), ProxyBusy: round((u1-u0)/1e6/el, 3), Settled: round(settled/n, 2), SettleS: settleSecs, Next: g.next,
		Core0Busy: round((b0e-b0)/max(t0e-t0, 1), 3), Core0PerR: round((b0e-b0)*10000/n, 2), Core1Busy: round((b1e-b1)/max(t1e-t1, 1), 3),
		GenShare: round((tv(ru1.Utime)+tv(ru1.Stime)-tv(ru0.Utime)-tv(ru0.Stime))/el, 3), RSSKiB: rss, BytesIn: g.in,
	})
	if err != nil {
		log.Fatal(err)
	}
}

func tv(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
func round(v float64, d int) float64 {
	f, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'f', d, 64), 64)
	return f
}

type gen struct {
	port   int
	tls    bool
	reqs   [][]byte
	next   int
	ep     int
	conns  []*conn
	byFD   [4096]*conn
	h      hist
	non2xx uint64
	errs   uint64
	unsent uint64
	in     uint64
}

func (g *gen) dial() (*conn, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrInet4{Port: g.port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	raw := &rawConn{fd: fd}
	c := &conn{raw: raw, rw: raw, buf: make([]byte, 32<<10)}
	if g.tls {
		t := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, ServerName: "localhost", NextProtos: []string{"http/1.1"}})
		if err := t.Handshake(); err != nil {
			return nil, err
		}
		if t.ConnectionState().Version != tls.VersionTLS13 {
			return nil, errors.New("not TLS 1.3")
		}
		c.rw = t
	}
	syscall.SetNonblock(fd, true)
	raw.nonblock = true
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	return c, syscall.EpollCtl(g.ep, syscall.EPOLL_CTL_ADD, fd, &ev)
}

func (g *gen) redial(i *conn) bool {
	g.byFD[i.raw.fd] = nil
	i.raw.Close()
	c, err := g.dial()
	if err != nil {
		i.dead = true
		return false
	}
	*i = *c
	g.byFD[i.raw.fd] = i
	return true
}

func (g *gen) send(c *conn, due time.Time) {
	r := g.reqs[g.next]
	g.next++
	if g.next == len(g.reqs) {
		g.next = 0
	}
	c.start, c.busy, c.n = due, true, 0
	if _, err := c.rw.Write(r); err != nil {
		g.errs++
		g.redial(c)
	}
}

const sysEpollPwait2 = 441

func (g *gen) run(begin time.Time, dur time.Duration, rate float64) {
	end := begin.Add(dur)
	events := make([]syscall.EpollEvent, 512)
	var idle []*conn
	var step time.Duration
	due := begin
	if rate > 0 {
		step = time.Duration(float64(time.Second) / rate)
		idle = append(idle, g.conns...)
	} else {
		for _, c := range g.conns {
			g.send(c, time.Now())
		}
	}
	for {
		now := time.Now()
		if !now.Before(end) {
			break
		}
		wait := end.Sub(now)
		if rate > 0 {
			for !due.After(now) && len(idle) > 0 {
				c := idle[len(idle)-1]
				idle = idle[:len(idle)-1]
				if !c.dead {
					g.send(c, due)
				}
				due = due.Add(step)
			}
			if due.After(now) {
				wait = min(wait, due.Sub(now))
			}
		}
		ts := syscall.NsecToTimespec(int64(wait))
		n, _, e := syscall.RawSyscall6(sysEpollPwait2, uintptr(g.ep), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
		if e != 0 {
			if e == syscall.EINTR {
				continue
			}
			log.Fatal("epoll_pwait2: ", e)
		}
		for i := range int(n) {
			c := g.byFD[events[i].Fd]
			if c == nil {
				continue
			}
			if g.readable(c) {
				if rate > 0 {
					idle = append(idle, c)
				} else {
					g.send(c, time.Now())
				}
			}
		}
	}
	if rate > 0 {
		for due.Before(end) {
			g.unsent++
			due = due.Add(step)
		}
	}
}

// readable takes what has arrived and says whether the connection is free.
func (g *gen) readable(c *conn) bool {
	for {
		n, err := c.rw.Read(c.buf[c.n:])
		if n > 0 {
			g.in += uint64(n)
			if !c.busy {
				continue
			}
			c.n += n
			done, status, closing := parse(c.buf[:c.n])
			if done {
				c.busy = false
				g.h.add(time.Since(c.start))
				if status < 200 || status > 299 {
					g.non2xx++
				}
				if closing {
					return g.redial(c)
				}
				return true
			}
			if c.n == len(c.buf) {
				log.Fatal("response larger than the buffer")
			}
			if _, plain := c.rw.(*rawConn); plain {
				return false
			}
			continue
		}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			return false
		}
		if err != nil {
			if c.busy {
				g.errs++
			}
			return g.redial(c)
		}
	}
}

var crlf2, clen, chunk, cclose = []byte("\r\n\r\n"), []byte("content-length: "), []byte("transfer-encoding: chunked"), []byte("connection: close")

func parse(b []byte) (done bool, status int, closing bool) {
	h := bytes.Index(b, crlf2)
	if h < 12 {
		return
	}
	status = int(b[9]-'0')*100 + int(b[10]-'0')*10 + int(b[11]-'0')
	head, body := b[:h+2], b[h+4:]
	length, chunked := -1, false
	for len(head) > 0 {
		nl := bytes.IndexByte(head, '\n')
		line := head[:nl]
		head = head[nl+1:]
		switch {
		case len(line) > 16 && (line[0]|32) == 'c' && bytes.EqualFold(line[:16], clen):
			length = 0
			for _, d := range line[16:] {
				if d >= '0' && d <= '9' {
					length = length*10 + int(d-'0')
				}
			}
		case len(line) >= len(chunk) && (line[0]|32) == 't' && bytes.EqualFold(line[:len(chunk)], chunk):
			chunked = true
		case len(line) >= len(cclose) && (line[0]|32) == 'c' && bytes.EqualFold(line[:len(cclose)], cclose):
			closing = true
		}
	}
	if chunked {
		return bytes.HasSuffix(body, []byte("0\r\n\r\n")), status, closing
	}
	return length < 0 || len(body) >= length, status, closing
}

// requests lays out that many different requests: paths with ids, queries, user
// agents and, where given, one of the tokens (fresh: each token once, in order).
func requests(host, tokenFile string, distinct int, fresh bool) [][]byte {
	var toks []string
	if tokenFile != "" {
		b, err := os.ReadFile(tokenFile)
		if err != nil {
			log.Fatal(err)
		}
		toks = strings.Fields(string(b))
	}
	if fresh {
		distinct = len(toks)
	}
	r := rand.New(rand.NewPCG(7, 11))
	var out [][]byte
	for i := range distinct {
		id, sub := r.IntN(1_000_000), r.IntN(5000)
		var path string
		switch r.IntN(6) {
		case 0:
			path = fmt.Sprintf("/api/v1/users/%d", id)
		case 1:
			path = fmt.Sprintf("/api/v1/users/%d/orders?limit=%d&cursor=%x", id, 10*(1+r.IntN(10)), r.Uint64())
		case 2:
			path = fmt.Sprintf("/api/v1/orders/%08x-%04x-4%03x-9%03x-%012x", r.Uint32(), r.IntN(65536), r.IntN(4096), r.IntN(4096), r.Uint64N(1<<48))
		case 3:
			path = fmt.Sprintf("/api/v1/projects/%d/items/%d?expand=owner,tags", sub, id)
		case 4:
			path = fmt.Sprintf("/api/v1/search?q=%s+%s&page=%d", words[r.IntN(len(words))], words[r.IntN(len(words))], 1+r.IntN(20))
		default:
			path = fmt.Sprintf("/api/v1/reports/%d/%02d/summary?tz=UTC&fields=id,total,%s", 2024+r.IntN(3), 1+r.IntN(12), words[r.IntN(len(words))])
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nAccept: application/json\r\nX-Request-Id: %016x%016x\r\n", path, host, agents[r.IntN(len(agents))], r.Uint64(), r.Uint64())
		switch {
		case fresh:
			fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", toks[i])
		case toks != nil:
			fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", toks[r.IntN(len(toks))])
		}
		b.WriteString("\r\n")
		out = append(out, b.Bytes())
	}
	return out
}

var words = strings.Fields("invoice refund ledger customer shipment payroll contract region quota backup metric tenant policy device session webhook export vendor balance ticket")

var agents = []string{
	"curl/8.5.0", "python-requests/2.32.3", "Go-http-client/1.1", "okhttp/4.12.0", "axios/1.7.9", "PostmanRuntime/7.43.0",
	"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
	"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.2 Safari/605.1.15",
	"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0",
	"kubectl/v1.31.2 (linux/amd64) kubernetes/5864a46", "terraform-provider-acme/2.28.0", "aws-sdk-go-v2/1.32.7 os/linux lang/go#1.23.4",
}
