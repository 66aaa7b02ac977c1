package admin

import (
	"errors"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
)

// TestAct: what is done is recorded once, and what could not be done after all a
// second time, so that the first record does not stand alone.
func TestAct(t *testing.T) {
	b := openBook(t)
	who := Local("socket", "uid:7")
	broken := errors.New("the disk is gone")
	for _, c := range []struct {
		name string
		err  error
		want []string // outcome and cause of each record
	}{
		{"done", nil, []string{"success subject"}},
		{"not_done", broken, []string{"success subject", "failure not_stored"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			did := 0
			err := Act(t.Context(), b, who, record.Record{
				Kind: record.KindAdmin, Outcome: record.Success, Event: record.Event{Name: c.name, Target: "s-1", Cause: "subject"},
				Personal: record.Personal{Family: "f-1"},
			}, func() error {
				if did++; len(events(t, b, c.name)) != 1 {
					t.Error("it is done before it is recorded")
				}
				return c.err
			})
			if !errors.Is(err, c.err) || did != 1 {
				t.Errorf("done %d times: %v", did, err)
			}
			var got []string
			for _, r := range events(t, b, c.name) {
				got = append(got, string(r.Outcome)+" "+r.Event.Cause)
				if r.Kind != record.KindAdmin || r.Event.Target != "s-1" || r.Personal.Sub != "uid:7" || r.Personal.Family != "f-1" || (r.Outcome == record.Failure) != (r.Error.Origin == "gateway") {
					t.Errorf("%+v", r)
				}
			}
			if strings.Join(got, ", ") != strings.Join(c.want, ", ") {
				t.Errorf("records %q, want %q", got, c.want)
			}
		})
	}
	if err := Act(t.Context(), b, nil, record.Record{Kind: record.KindAdmin}, func() error { t.Error("done for nobody"); return nil }); err == nil {
		t.Error("an act of nobody")
	}
}
