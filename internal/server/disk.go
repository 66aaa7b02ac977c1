package server

import "github.com/gatebook/gatebook/internal/obs"

// bookGauges are what the book says of its disk and keys.
func (s *Server) bookGauges() []obs.Gauge {
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return []obs.Gauge{
		{Name: "gatebook_book_disk_free_bytes", Help: "Bytes that the book's disk still takes.", Read: func() float64 { return float64(s.book.Health().Free) }},
		{Name: "gatebook_book_disk_low", Help: "1 if the book's disk is below the alarm.", Read: func() float64 { return is(s.book.Health().Low) }},
		{Name: "gatebook_book_full", Help: "1 if records are refused for lack of room.", Read: func() float64 { return is(s.book.Health().Full != "") }},
		{Name: "gatebook_book_keyless", Help: "1 if the key store gives no keys; those in use go on for a while.", Read: func() float64 { return is(s.book.Health().Keys != "") }},
		{Name: "gatebook_book_sealing_failed", Help: "1 if the newest try to seal failed; it is tried again.", Read: func() float64 { return is(s.book.Health().Sealing != "") }},
	}
}
