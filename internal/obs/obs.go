// Package obs is what the product says of itself to those who run it: the
// process log, health, readiness and metrics. It knows nothing of the domain,
// and nothing personal passes through it.
package obs

import (
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewLogger makes the process log: text on a terminal, JSON elsewhere. Texts
// and errors in attributes are written through PlainLines.
func NewLogger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{ReplaceAttr: plainAttr}
	if f, ok := w.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode()&os.ModeCharDevice != 0 {
			return slog.New(slog.NewTextHandler(w, opts))
		}
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}

// Gauge is a number that is read when somebody asks.
type Gauge struct {
	Name   string // gatebook_...
	Help   string
	Labels map[string]string // fixed; gauges of one name differ in their values
	Read   func() float64
}

// Counter is a number that only grows, or a family of such, read when somebody
// asks.
type Counter struct {
	Name   string // gatebook_..._total
	Help   string
	Labels []string // names; the family has a member for each combination of values
	Level  bool     // it goes up and down after all: a gauge
	// Read calls add once for each member, with a value for each label.
	Read func(add func(value float64, labels ...string))
}

// family is a Counter as Prometheus collects it.
type family struct {
	Counter
	desc *prometheus.Desc
}

func newFamily(c Counter) *family {
	return &family{c, prometheus.NewDesc(c.Name, c.Help, c.Labels, nil)}
}

// Describe implements prometheus.Collector.
func (f *family) Describe(out chan<- *prometheus.Desc) { out <- f.desc }

// Collect implements prometheus.Collector. A member with a wrong number of
// labels is reported by the handler of /metrics.
func (f *family) Collect(out chan<- prometheus.Metric) {
	f.Read(func(value float64, labels ...string) {
		kind := prometheus.CounterValue
		if f.Level {
			kind = prometheus.GaugeValue
		}
		m, err := prometheus.NewConstMetric(f.desc, kind, value, labels...)
		if err != nil {
			m = prometheus.NewInvalidMetric(f.desc, err)
		}
		out <- m
	})
}

// Health answers /healthz, /readyz and /metrics. Ready returns nil, or why the
// process should get no traffic.
type Health struct {
	Ready func() error
	// Notes are lines that readiness adds: what needs looking after before it
	// becomes a reason to get no traffic. It may be nil; set it before serving.
	Notes func() []string
	mux   *http.ServeMux
}

// NewHealth makes the handler. Runtime metrics of the process are added to the
// gauges and counters.
func NewHealth(ready func() error, gauges []Gauge, counters ...Counter) (*Health, error) {
	reg := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	for _, g := range gauges {
		if err := reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: g.Name, Help: g.Help, ConstLabels: g.Labels}, g.Read)); err != nil {
			return nil, err
		}
	}
	for _, c := range counters {
		if err := reg.Register(newFamily(c)); err != nil {
			return nil, err
		}
	}
	h := &Health{Ready: ready, mux: http.NewServeMux()}
	h.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	h.mux.HandleFunc("GET /readyz", h.ready)
	h.mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	return h, nil
}

func (h *Health) ready(w http.ResponseWriter, _ *http.Request) {
	if err := h.Ready(); err != nil {
		http.Error(w, strings.Join(append([]string{"not ready: " + err.Error()}, h.notes()...), "\n"), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, strings.Join(append([]string{"ready"}, h.notes()...), "\n")+"\n")
}

func (h *Health) notes() (lines []string) {
	if h.Notes == nil {
		return nil
	}
	for _, n := range h.Notes() {
		lines = append(lines, "note: "+Plain(n))
	}
	return lines
}

// ServeHTTP implements http.Handler.
func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }
