package book

import (
	"context"
	"errors"
	"testing"
)

// TestStopReading: whoever reads or verifies offline can be stopped.
func TestStopReading(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 50)
	stopBook(t, b, stop)
	ctx, cancel := context.WithCancel(t.Context())
	rd, err := OpenReader(ctx, s.cfg)
	s.must(err)
	defer rd.Close()
	rd.EndWith(ctx)
	seen := 0
	count := func(*Entry) error { seen++; return nil }
	reads := map[string]func() error{
		"frames":              func() error { return rd.Each(0, rd.Size(), false, count) },
		"personal parts":      func() error { return rd.Each(0, rd.Size(), true, count) },
		"one after the other": func() error { return rd.Forward(0, rd.Size(), false, count) },
	}
	for how, read := range reads {
		if seen = 0; read() != nil || seen < 50 {
			t.Errorf("%s: %d records", how, seen)
		}
	}
	cancel()
	seen = 0
	for how, read := range reads {
		if err := read(); !errors.Is(err, context.Canceled) || seen != 0 {
			t.Errorf("%s: %d records and %v", how, seen, err)
		}
	}
	if _, err := Verify(ctx, VerifyOptions{Dir: s.cfg.Dir, KeyDir: s.cfg.KeyDir, Key: s.vkey}); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
}
