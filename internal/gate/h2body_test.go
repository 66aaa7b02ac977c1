package gate

import (
	"fmt"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// TestH2BodyOfRefusedHead: net/http refuses the head of a stream, and then takes
// the body that is still coming for a breach that ends the connection. That is
// one request, and one record.
func TestH2BodyOfRefusedHead(t *testing.T) {
	for name, block := range map[string]string{
		"bad path":   "\x83\x87" + lit(":path", "/s/a\r\nX: y", ":authority", "example.com"),
		"upper case": post + lit("X-Up", "1"),
		"no route":   "\x83\x87" + lit(":path", "/nowhere", ":authority", "example.com"),
		"good":       post,
	} {
		parts := []string{begun, wire(canon.H2Headers, 4, 1, block), wire(canon.H2Data, 0, 1, "abc"), wire(canon.H2Data, 0, 1, "defg"), wire(canon.H2Data, 1, 1, "x")}
		trailers := append(parts[:4:4], wire(canon.H2Headers, 5, 1, lit("x-check", "1")))
		for round := range 8 {
			t.Run(fmt.Sprint(name, round), func(t *testing.T) {
				t.Parallel()
				h := newH2House(t, true, houseConfig{})
				c := h.raw(t)
				parts := parts
				if round > 3 {
					parts = trailers
				}
				if round%2 == 0 {
					c.send(parts...)
				} else {
					for _, p := range parts {
						c.send(p)
					}
				}
				c.until(ends(1))
				c.Close()
				if all := h.recordsOf(t, 1); len(all) != 1 {
					t.Errorf("%d records: %v", len(all), tally(all))
				}
			})
		}
	}
}
