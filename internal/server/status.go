package server

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/desk/detect"
)

// Status is what the server says of itself and its book. Nothing in it is
// personal.
type Status struct {
	book.Status
	Version       string             `json:"version"`
	Node          string             `json:"node"`
	Snapshot      string             `json:"snapshot"`
	PolicySet     string             `json:"policy_set"`
	LoadedAt      time.Time          `json:"loaded_at"` // of the configuration in force
	LastReload    *LastReload        `json:"last_reload,omitempty"`
	Ready         bool               `json:"ready"`
	NotReady      string             `json:"not_ready,omitempty"`
	CheckpointAge float64            `json:"checkpoint_age_s"` // since the newest checkpoint was written; -1: unknown
	FreeBytes     int64              `json:"free_bytes"`       // where the data is, for the server's user; -1: unknown
	Book          book.Health        `json:"book"`
	State         StateStatus        `json:"state"`
	Connections   int                `json:"connections"`
	Listeners     []ListenerStatus   `json:"listeners"`
	Issuers       []IssuerStatus     `json:"issuers"`
	Upstreams     []UpstreamStatus   `json:"upstreams"`
	Sinks         []admin.SinkStatus `json:"sinks"`
	Detection     detect.Status      `json:"detection"`
}

// ListenerStatus is one listener.
type ListenerStatus struct {
	Name         string              `json:"name"`
	Address      string              `json:"address"`
	Serves       string              `json:"serves"` // "https", "http", "redirect" or "administration"
	Certificates []CertificateStatus `json:"certificates,omitempty"`
}

// IssuerStatus is one issuer's keys.
type IssuerStatus struct {
	Name    string     `json:"name"`
	Usable  bool       `json:"usable"` // a token can be checked now
	Keys    int        `json:"keys"`
	Fetched *time.Time `json:"fetched,omitempty"`
	Refused []string   `json:"refused,omitempty"` // keys that are not used, and why
	Error   string     `json:"error,omitempty"`   // of the last fetch

	Introspection *IntrospectionStatus `json:"introspection,omitempty"`
}

// IntrospectionStatus is where an issuer is asked about tokens.
type IntrospectionStatus struct {
	Asked  uint64 `json:"asked"`
	Failed uint64 `json:"failed"`
	Away   bool   `json:"away"`            // not asked for the moment because the last questions failed
	Error  string `json:"error,omitempty"` // of the last question
}

// UpstreamStatus is one pool.
type UpstreamStatus struct {
	Name    string         `json:"name"`
	Targets []TargetStatus `json:"targets"`
}

// TargetStatus is one target of a pool.
type TargetStatus struct {
	Target   string `json:"target"`
	InFlight int64  `json:"in_flight"`
	Total    uint64 `json:"total"`
	Failures uint64 `json:"failures"`
	Ejected  bool   `json:"ejected"`

	Health    string `json:"health"`               // "healthy", "unhealthy" or "unchecked"
	LastCheck string `json:"last_check,omitempty"` // why the newest check failed
}

// Status looks at everything.
func (s *Server) Status() *Status {
	now := s.now.Load()
	out := &Status{
		Status: s.book.Status(), Version: book.Version(), Node: now.file.Node,
		Snapshot: now.parts.snapshot.ID(), PolicySet: now.parts.engine.SetHash(), LoadedAt: now.since.UTC(), LastReload: s.last.Load(),
		Ready: true, CheckpointAge: -1, FreeBytes: free(string(now.file.Data)), Book: s.book.Health(), State: s.stateStatus(now.file), Connections: s.table.open(),
		Listeners: s.listenerStatus(now.file), Issuers: now.parts.issuerStatus(), Upstreams: now.parts.poolStatus(), Sinks: s.desk.statuses(), Detection: s.detect.status(),
	}
	if err := s.Ready(); err != nil {
		out.Ready, out.NotReady = false, err.Error()
	}
	if st, err := os.Stat(filepath.Join(string(now.file.Data), "checkpoint")); err == nil {
		out.CheckpointAge = max(time.Since(st.ModTime()), 0).Round(time.Millisecond).Seconds()
	}
	return out
}

// free is what is left on the file system of a folder.
func free(dir string) int64 {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return -1
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

func (s *Server) listenerStatus(f *config.File) (out []ListenerStatus) {
	now := time.Now()
	for _, l := range s.lines {
		i := slices.IndexFunc(f.Listen, func(c config.Listener) bool { return c.Name == l.name })
		st := ListenerStatus{Name: l.name, Address: l.socket.Addr().String(), Serves: "http"}
		if l.certs != nil {
			st.Serves, st.Certificates = "https", l.certs.status(now)
		}
		if i >= 0 && f.Listen[i].RedirectToHTTPS {
			st.Serves = "redirect"
		}
		out = append(out, st)
	}
	if s.remote != nil {
		out = append(out, ListenerStatus{Name: adminListener, Address: s.remote.socket.Addr().String(), Serves: "administration", Certificates: s.remote.certs.status(now)})
	}
	return out
}

func (p *parts) issuerStatus() []IssuerStatus {
	out := []IssuerStatus{}
	names := slices.Concat(slices.Collect(maps.Keys(p.issuers)), slices.Collect(maps.Keys(p.introspectors)))
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		st := IssuerStatus{Name: name}
		if j := p.issuers[name]; j != nil {
			k := j.Status()
			st.Usable, st.Keys, st.Refused = k.Usable, k.KIDs, k.Refused
			if !k.Fetched.IsZero() {
				at := k.Fetched.UTC()
				st.Fetched = &at
			}
			if k.Err != nil {
				st.Error = k.Err.Error()
			}
		}
		if i := p.introspectors[name]; i != nil {
			k := i.Status()
			st.Introspection = &IntrospectionStatus{Asked: k.Asked, Failed: k.Failed, Away: k.Away}
			st.Usable = st.Usable || p.issuers[name] == nil && !k.Away
			if k.Err != nil {
				st.Introspection.Error = k.Err.Error()
			}
		}
		out = append(out, st)
	}
	return out
}

func (p *parts) poolStatus() []UpstreamStatus {
	out := []UpstreamStatus{}
	for _, name := range slices.Sorted(maps.Keys(p.pools)) {
		st := UpstreamStatus{Name: name}
		for _, t := range p.pools[name].Stats() {
			st.Targets = append(st.Targets, TargetStatus{t.Target, t.InFlight, t.Total, t.Failures, t.Ejected, t.Health, t.LastCheck})
		}
		out = append(out, st)
	}
	return out
}
