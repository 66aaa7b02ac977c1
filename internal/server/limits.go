package server

import (
	"time"

	"github.com/gatebook/gatebook/internal/obs"
)

// limitGauges are how full the table of limits is, and how often it was too
// full to tell callers apart.
func (s *Server) limitGauges() []obs.Gauge {
	return []obs.Gauge{
		{Name: "gatebook_limiter_keys", Help: "Keys of limits that are remembered because they are not back at rest.", Read: func() float64 { return float64(s.limits.Stats(time.Now()).Live) }},
		{Name: "gatebook_limiter_coarse", Help: "Requests that counted with their neighbours because the table of limits had no room.", Read: func() float64 {
			coarse, _ := s.limits.Overflows()
			return float64(coarse)
		}},
		{Name: "gatebook_limiter_global", Help: "Requests that counted with everybody under their limit because the table had no room.", Read: func() float64 {
			_, global := s.limits.Overflows()
			return float64(global)
		}},
	}
}
