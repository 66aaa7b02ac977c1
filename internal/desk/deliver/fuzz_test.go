package deliver

import (
	"bytes"
	"testing"
	"time"
)

// What is stored of a sink is refused or read; what is read is in order, and
// encodes to what reads the same.
func FuzzState(f *testing.F) {
	good := &state{Origin: "log.example/n1/00", Cursor: 5, High: 9, Seen: 30, Projection: "ecs", Version: 2, Noted: 3, Compared: 1,
		Plan: []bounds{{To: 8, Items: 3, Planned: 1_700_000_000_000_000_000}, {To: 20, Items: 12, Planned: 5, Settled: true, Sum: &tally{Count: 11, Quarantined: 1, Grade: Durable}}}, Receipt: tally{Count: 2, Grade: Accepted, Worth: true}}
	b, err := good.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":1,"origin":"o","cursor":0,"high":0,"seen":0,"noted":0,"receipt":{}}`))
	f.Add([]byte(`{"v":1,"origin":"o","cursor":9,"high":3}`))
	f.Add([]byte(`{"v":1,"origin":"o","seen":9,"plan":[{"to":5},{"to":5}]}`))
	f.Add([]byte(`{"v":2}`))
	f.Add([]byte(`{"v":1} {}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		at := s.Cursor
		for _, p := range s.Plan {
			if p.To <= at || p.Items < 0 || p.To > s.Seen {
				t.Fatalf("accepted %+v", s)
			}
			at = p.To
		}
		one, err := s.encode()
		if err != nil {
			return // larger than what is stored
		}
		again, err := decodeState(one)
		if err != nil {
			t.Fatalf("%s: %v", one, err)
		}
		if two, _ := again.encode(); !bytes.Equal(one, two) {
			t.Fatalf("%s and %s", one, two)
		}
	})
}

func FuzzQuarantined(f *testing.F) {
	q := &Quarantined{V: 1, Sink: "s", ID: EventID("o", 7), Origin: "o", Index: 7, Kind: "request", Time: time.Unix(1, 0).UTC(), Since: time.Unix(2, 0).UTC(), Class: "poison", Cause: "mapping", Detail: "no", Attempts: 2, Projection: "ecs", Version: 1}
	b, err := q.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.Replace(b, []byte(`"index":7`), []byte(`"index":8`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeQuarantined(b)
		if err != nil {
			return
		}
		if q.ID != EventID(q.Origin, q.Index) || len(q.Detail) > maxDetail {
			t.Fatalf("accepted %+v", q)
		}
		one, err := q.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeQuarantined(one); err != nil {
			t.Fatalf("%s: %v", one, err)
		}
	})
}

func FuzzScrub(f *testing.F) {
	for _, s := range []string{"", "plain", "a\r\nb\x1b[31m", "\xff\xfe", "\u202egnp", "日本語"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := scrub(s)
		if len(out) > maxDetail {
			t.Fatalf("%d bytes", len(out))
		}
		for _, r := range out {
			if r < ' ' || r == 0x7f || r == '\u202e' || r == '\ufffd' {
				t.Fatalf("%q holds %q", out, r)
			}
		}
	})
}
