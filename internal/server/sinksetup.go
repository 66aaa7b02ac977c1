package server

import (
	"context"
	"fmt"
	"slices"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
)

// SinkSetup is how the system behind a sink is prepared, once, with a credential
// that the sink does not have.
type SinkSetup struct {
	Name string // of the sink
	// Auth is basic, api_key or bearer, and Credential the file that holds it; both
	// empty: security is off there.
	Auth, Credential string
	// Lifecycle puts a policy that begins new indexes and, if KeepDays is not 0,
	// deletes old ones.
	Lifecycle bool
	KeepDays  int
}

// SetUpSink puts the templates of a sink and says line by line what it did, also
// before an error. It needs no running server and changes nothing of ours.
func SetUpSink(ctx context.Context, f *config.File, s SinkSetup) ([]string, error) {
	i := slices.IndexFunc(f.Sinks, func(c config.Sink) bool { return c.Name == s.Name })
	if i < 0 {
		return nil, fmt.Errorf("there is no sink %q in %s", s.Name, f.Name())
	}
	c := &f.Sinks[i]
	if c.Type != config.SinkElastic && c.Type != config.SinkOpenSearch {
		return nil, fmt.Errorf("sink %s is of type %s, which needs no setting up; only elasticsearch and opensearch do", c.Name, c.Type)
	}
	reach, err := sinkSettings(c, nil)
	if err != nil {
		return nil, err
	}
	e, err := sinks.NewElastic(sinks.ElasticSettings{Settings: reach, Stream: c.Stream})
	if err != nil {
		return nil, err
	}
	secret := ""
	if s.Credential != "" {
		if secret, err = sinks.FromFile(s.Credential)(); err != nil {
			return nil, err
		}
	}
	return e.Bootstrap(ctx, sinks.ElasticSetup{
		Auth: sinks.ElasticAuth(s.Auth), Credential: secret, Lifecycle: s.Lifecycle, KeepDays: s.KeepDays,
	})
}
