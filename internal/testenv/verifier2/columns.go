package verifier2

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// table is the table of section 9: column, key, type, stored as, context.
const table = `
2 id id id -
3 time time time -
4 kind kind symbol -
5 outcome outcome symbol status
6 node string symbol -
7 snap string symbol -
8 route string symbol -
9 op fact symbol route
10 method string symbol op
11 host string symbol route
12 proto string symbol subject
13 template string symbol op
14 status small symbol op
15 upstream_status small symbol status
16 bytes_in int number -
17 bytes_out int number -
18 dur_us int number -
19 phase.auth int number -
20 phase.limit int number -
21 phase.policy int number -
22 phase.open int number -
23 phase.queue int number -
24 phase.connect int number -
25 phase.tls int number -
26 phase.ttfb int number -
27 phase.body int number -
28 subject fact symbol -
29 authn.method string symbol authn.issuer
30 authn.issuer string symbol subject
31 authn.client string symbol subject
32 authn.roles list symbol subject
33 authn.acr string symbol authn.issuer
34 authn.amr list symbol subject
35 authn.age_s int age subject
36 authn.ttl_s int ttl authn.issuer
37 authn.bound string symbol authn.issuer
38 authn.kid string symbol authn.issuer
39 authn.alg string symbol authn.kid
40 authn.outcome string symbol status
41 authn.reason string symbol status
42 authz.decision string symbol status
43 authz.policies list symbol op
44 authz.set string symbol authz.decision
45 authz.errors small number -
46 authz.shadow.decision string symbol op
47 authz.shadow.policies list symbol op
48 limit.rule string symbol route
49 limit.outcome string symbol status
50 limit.remaining int last subject
51 limit.retry_s int number -
52 limit.mode string symbol limit.rule
53 tls.version string symbol tls.ja4
54 tls.cipher string symbol tls.ja4
55 tls.group string symbol tls.ja4
56 tls.alpn string symbol tls.ja4
57 tls.sni string symbol host
58 tls.resumed bool number -
59 tls.ja4 string symbol subject
60 tls.client_cert string symbol subject
61 client.prefix fact symbol subject
62 client.port_class string symbol kind
63 client.hops small last kind
64 upstream.name string symbol route
65 upstream.target string symbol upstream.name
66 upstream.attempts small last upstream.name
67 upstream.reused bool last upstream.name
68 upstream.breaker string symbol upstream.target
69 upstream.ttfb_us int ttfb -
70 error.origin string symbol error.reason
71 error.reason string symbol status
72 error.phase string symbol error.reason
73 san.set string symbol -
74 san.dropped small last op
75 san.masked small number -
76 san.tripped small number -
77 san.invalid small number -
78 trace string symbol -
79 links list symbol -
80 event.name string symbol kind
81 event.count int number -
82 event.exact bool number -
83 event.first int number -
84 event.last int number -
85 event.mono_us int number -
86 event.clock string symbol kind
87 event.before string symbol kind
88 event.after string symbol kind
89 event.target string symbol kind
90 event.cause string symbol kind
`

// order is the order in which a row's columns are decoded.
const order = "18 3 2 4 8 9 14 5 6 7 10 11 28 12 13 15 16 17 19 20 21 22 23 24 25 26 27 30 29 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 59 53 54 55 56 57 58 60 61 62 63 64 65 66 67 68 69 71 70 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90"

// column is one column of the table, and what decoding remembers of it.
type column struct {
	number          int
	path            []string
	typ, stored     string
	context         *column
	empty           bool
	codes           planes
	entries         []string
	fresh           int           // entries that code 2 has given
	symbols         map[int]int   // by context: the last symbol
	numbers         map[int]int64 // by context: the state of last, age, ttl
	symbol          int           // of this row: 0 absent, else entry + 1
	value           int64         // of this row
	text            string        // of this row: JSON, "" if absent
	counters, delta planes        // id
	verbatim        []byte        // id
	source          int           // id: of the row before, -1 verbatim
}

func parseTable() (columns []*column, byKey map[string]*column) {
	byKey = map[string]*column{}
	var contexts []string
	for line := range strings.Lines(strings.TrimSpace(table)) {
		f := strings.Fields(line)
		n, _ := strconv.Atoi(f[0])
		c := &column{number: n, path: strings.Split(f[1], "."), typ: f[2], stored: f[3],
			symbols: map[int]int{}, numbers: map[int]int64{}, source: -1}
		columns = append(columns, c)
		contexts = append(contexts, f[4])
		byKey[f[1]] = c
	}
	for i, c := range columns {
		c.context = byKey[contexts[i]]
	}
	return columns, byKey
}

// planes is one number per row, as its bytes by weight.
type planes [][]byte

func (p planes) at(row int) (v uint64) {
	for k, plane := range p {
		if row < len(plane) {
			v |= uint64(plane[row]) << (8 * k)
		}
	}
	return v
}

func (r *reader) planes(rows int) (p planes) {
	n := int(r.u8())
	r.bad = r.bad || n > 8
	for range min(n, 8) {
		plane := r.take(r.count())
		r.bad = r.bad || len(plane) > rows
		p = append(p, plane)
	}
	return p
}

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// idKey is an id key and its counter.
type idKey struct {
	block cipher.Block
	next  uint64
}

// rowDecoder decodes the columns of one segment.
type rowDecoder struct {
	columns []*column
	byKey   map[string]*column
	order   []*column
	keys    []*idKey
	ended   int64 // time + dur_us of the row before
	sum     uint64
}

// DecodeColumns is section 9.
func DecodeColumns(cols [][]byte, n int) ([][]byte, error) {
	if len(cols) != 91 {
		return nil, fmt.Errorf("%d columns", len(cols))
	}
	d := &rowDecoder{}
	d.columns, d.byKey = parseTable()
	for number := range strings.FieldsSeq(order) {
		i, _ := strconv.Atoi(number)
		d.order = append(d.order, d.columns[i-2])
	}
	if err := d.readHeader(cols[0], n); err != nil {
		return nil, err
	}
	kept, err := readVerbatim(cols[1], n)
	if err != nil {
		return nil, err
	}
	rows := n - len(kept)
	for _, c := range d.columns {
		if err := c.open(cols[c.number], rows); err != nil {
			return nil, fmt.Errorf("column %d: %w", c.number, err)
		}
	}
	var frames [][]byte
	total := uint64(0)
	for row := 0; len(frames) < n; {
		frame, ok := kept[len(frames)]
		if !ok {
			if frame, err = d.row(row); err != nil {
				return nil, fmt.Errorf("row %d: %w", row, err)
			}
			row++
		}
		frames = append(frames, frame)
		total += uint64(len(frame))
	}
	if total != d.sum {
		return nil, fmt.Errorf("frames of %d bytes instead of %d", total, d.sum)
	}
	return frames, nil
}

func (d *rowDecoder) readHeader(b []byte, n int) error {
	r := reader{b: b}
	version, layout := r.u8(), r.u8()
	ok := version == 1 && layout == 1 && r.uvarint() == uint64(n)
	d.sum = r.uvarint()
	for range r.count() {
		block, err := aes.NewCipher(r.take(r.count()))
		if err != nil {
			return fmt.Errorf("id key: %w", err)
		}
		d.keys = append(d.keys, &idKey{block: block})
	}
	if !ok || r.bad || len(r.b) > 0 {
		return fmt.Errorf("column 0: %w", errForm)
	}
	return nil
}

// readVerbatim gives the frames of column 1 by their number.
func readVerbatim(b []byte, n int) (map[int][]byte, error) {
	kept := map[int][]byte{}
	if len(b) == 0 {
		return kept, nil
	}
	r := reader{b: b}
	count, frame := r.count(), -1
	for range count {
		step := r.uvarint()
		if step == 0 || step > uint64(n) {
			return nil, errForm
		}
		frame += int(step)
		kept[frame] = r.take(r.count())
	}
	if r.bad || len(r.b) > 0 || count == 0 || frame >= n {
		return nil, fmt.Errorf("column 1: %w", errForm)
	}
	return kept, nil
}

func (c *column) open(b []byte, rows int) error {
	if c.empty = len(b) == 0; c.empty {
		return nil
	}
	r := reader{b: b}
	c.codes = r.planes(rows)
	switch c.stored {
	case "symbol":
		var sizes []int
		for range r.count() {
			sizes = append(sizes, r.count())
		}
		for _, size := range sizes {
			c.entries = append(c.entries, string(r.take(size)))
		}
	case "id":
		c.counters, c.delta = r.planes(rows), r.planes(rows)
		c.verbatim, r.b = r.b, nil
	}
	if r.bad || len(r.b) > 0 {
		return errForm
	}
	return nil
}

// row decodes one row and joins its frame.
func (d *rowDecoder) row(row int) ([]byte, error) {
	for _, c := range d.order {
		c.symbol, c.value, c.text = 0, 0, ""
		alwaysThere := c.stored == "id" || c.stored == "time" || c.stored == "ttfb" && !d.byKey["upstream.name"].empty
		if c.empty && !alwaysThere {
			continue
		}
		var err error
		switch c.stored {
		case "symbol":
			err = c.readSymbol(row)
		case "id":
			err = d.readID(c, row)
		default:
			d.readNumber(c, row)
		}
		if err != nil {
			return nil, err
		}
	}
	d.ended = d.byKey["time"].value + d.byKey["dur_us"].value
	return d.join(), nil
}

func (c *column) state() int {
	if c.context == nil {
		return 0
	}
	return c.context.symbol
}

func (c *column) readSymbol(row int) error {
	state := c.state()
	switch code := c.codes.at(row); {
	case code == 0:
	case code == 1:
		c.symbols[state] = 0
	case code == 2 && c.fresh < len(c.entries):
		c.fresh++
		c.symbols[state] = c.fresh
	case code >= 3 && code-3 < uint64(len(c.entries)):
		c.symbols[state] = int(code-3) + 1
	default:
		return fmt.Errorf("column %d: code %d", c.number, code)
	}
	if c.symbol = c.symbols[state]; c.symbol > 0 {
		c.text = c.entries[c.symbol-1]
	}
	return nil
}

func (d *rowDecoder) readNumber(c *column, row int) {
	at, duration, age := d.byKey["time"], d.byKey["dur_us"], d.byKey["authn.age_s"]
	state := c.state()
	known := c.numbers[state]
	guess := int64(0)
	switch c.stored {
	case "last":
		guess = known
	case "time":
		guess = d.ended - duration.value
	case "ttfb":
		if d.byKey["upstream.name"].symbol != 0 {
			guess = duration.value
		}
	case "age":
		if known != 0 {
			guess = at.value/1_000_000 - known
		}
	case "ttl":
		if known != 0 && age.value != 0 {
			guess = known - age.value
		}
	}
	c.value = guess + unzigzag(c.codes.at(row))
	switch {
	case c.stored == "last":
		c.numbers[state] = c.value
	case c.stored == "age" && c.value != 0:
		c.numbers[state] = at.value/1_000_000 - c.value
	case c.stored == "ttl" && c.value != 0:
		c.numbers[state] = c.value + age.value
	}
	switch {
	case c.typ == "time":
		c.text = time.UnixMicro(c.value).UTC().Format(`"2006-01-02T15:04:05.000000Z"`)
	case c.value == 0:
	case c.typ == "bool":
		c.text = "true"
	default:
		c.text = strconv.FormatInt(c.value, 10)
	}
}

func (d *rowDecoder) readID(c *column, row int) error {
	switch code := c.codes.at(row); {
	case code == 0:
	case code == 1:
		c.source = -1
	case code-2 < uint64(len(d.keys)):
		c.source = int(code - 2)
	default:
		return fmt.Errorf("id source %d", code)
	}
	var b []byte
	if c.source < 0 {
		if len(c.verbatim) < 16 {
			return fmt.Errorf("no verbatim id left")
		}
		b, c.verbatim = c.verbatim[:16], c.verbatim[16:]
	} else {
		k := d.keys[c.source]
		counter := k.next + uint64(unzigzag(c.counters.at(row)))
		k.next = counter + 1
		b = k.make(d.byKey["time"].value/1000+unzigzag(c.delta.at(row)), counter)
	}
	c.text = fmt.Sprintf(`"%x-%x-%x-%x-%x"`, b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	return nil
}

// make is the id of a counter: five Feistel rounds over 37-bit halves.
func (k *idKey) make(ms int64, counter uint64) []byte {
	const mask = 1<<37 - 1
	l, r := counter>>37&mask, counter&mask
	for i := range 5 {
		var in, out [16]byte
		in[0] = byte(i)
		binary.BigEndian.PutUint64(in[8:], r)
		k.block.Encrypt(out[:], in[:])
		l, r = r, l^binary.BigEndian.Uint64(out[:])&mask
	}
	ms = min(max(ms, 0), 1<<48-1)
	b := binary.BigEndian.AppendUint64(nil, uint64(ms)<<16|0x7000|l>>25)
	return binary.BigEndian.AppendUint64(b, 1<<63|l&(1<<25-1)<<37|r)
}

// join writes the frame.
func (d *rowDecoder) join() []byte {
	b := []byte(`{"v":1`)
	var open []string
	for _, c := range d.columns {
		if c.text == "" {
			continue
		}
		groups := c.path[:len(c.path)-1]
		common := 0
		for common < min(len(open), len(groups)) && open[common] == groups[common] {
			common++
		}
		for len(open) > common {
			b = append(b, '}')
			open = open[:len(open)-1]
		}
		b = append(b, ',')
		for _, g := range groups[common:] {
			b = append(b, `"`+g+`":{`...)
			open = append(open, g)
		}
		b = append(b, `"`+c.path[len(c.path)-1]+`":`+c.text...)
	}
	for range open {
		b = append(b, '}')
	}
	return append(b, '}')
}
