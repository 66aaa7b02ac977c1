package server

import (
	"fmt"
	"os"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
	"github.com/gatebook/gatebook/internal/pace"
)

// newSink makes what speaks the protocol of a sink, for the node of this name;
// long work waits its turn in group, which may be nil. It reads credentials and
// certificates and sends nothing.
func newSink(c *config.Sink, node string, group *pace.Group) (deliver.Sink, error) {
	switch c.Type {
	case config.SinkFile:
		return sinks.NewFile(sinks.FileConfig{Path: string(c.Path), MaxBytes: int64(c.Rotate), MaxAge: c.Age.Std(), Pace: group})
	case config.SinkStdout:
		return sinks.NewStdout(os.Stdout), nil
	}
	reach, err := sinkSettings(c, group)
	if err != nil {
		return nil, err
	}
	switch c.Type {
	case config.SinkSplunk:
		return newSplunkSink(c, reach)
	case config.SinkElastic, config.SinkOpenSearch:
		return newElasticSink(c, reach)
	case config.SinkDatadog:
		return newDatadogSink(c, reach, node)
	case config.SinkWebhook:
		return newWebhookSink(c, reach)
	}
	return nil, fmt.Errorf("unknown type %q", c.Type) // config has seen that there is none
}

// sinkSettings are how a sink is reached by HTTP.
func sinkSettings(c *config.Sink, group *pace.Group) (sinks.Settings, error) {
	s := sinks.Settings{URL: c.URL, Plain: c.Plain, Private: c.Local, Timeout: c.Timeout.Std(), Gzip: c.Gzip == "gzip", Pace: group}
	if c.TLS == nil {
		return s, nil
	}
	for _, f := range []struct {
		name config.Path
		into *[]byte
	}{{c.TLS.CA, &s.CA}, {c.TLS.Cert, &s.Cert}, {c.TLS.Key, &s.Key}} {
		if f.name == "" {
			continue
		}
		b, err := os.ReadFile(string(f.name))
		if err != nil {
			return s, err
		}
		*f.into = b
	}
	return s, nil
}

// secretSource reads a secret from where it is kept, each time anew.
func secretSource(s *config.Secret) func() (string, error) {
	if s.Env != "" {
		return sinks.FromEnv(s.Env)
	}
	return sinks.FromFile(string(s.File))
}

// credential reads a secret for the first time; nil if there is none.
func credential(s *config.Secret) (*sinks.Credential, error) {
	if s == nil {
		return nil, nil
	}
	return sinks.NewCredential(secretSource(s))
}

func newSplunkSink(c *config.Sink, reach sinks.Settings) (deliver.Sink, error) {
	token, err := credential(c.Token)
	if err != nil {
		return nil, err
	}
	set := sinks.SplunkSettings{
		Settings: reach, Token: token, Index: c.Index, Source: c.Source, Sourcetype: c.SrcType, Ack: c.Ack, AckLimit: c.AckWait.Std(),
		BatchItems: c.Batch.Records, BatchBytes: int(c.Batch.Bytes), InFlight: c.Flight,
	}
	if c.Compare != nil {
		search, err := credential(c.Compare.Token)
		if err != nil {
			return nil, err
		}
		there := reach
		there.URL = c.Compare.URL
		set.Search = &sinks.SplunkSearch{Settings: there, Token: search}
	}
	return sinks.NewSplunk(set)
}

func newElasticSink(c *config.Sink, reach sinks.Settings) (deliver.Sink, error) {
	set := sinks.ElasticSettings{Settings: reach, Stream: c.Stream}
	switch {
	case c.Pass != nil:
		pass := secretSource(c.Pass)
		set.Auth = sinks.ElasticBasic
		set.Credential = func() (string, error) {
			text, err := pass()
			return c.User + ":" + text, err
		}
	case c.Token != nil && c.Type == config.SinkOpenSearch:
		set.Auth, set.Credential = sinks.ElasticBearer, secretSource(c.Token)
	case c.Token != nil:
		set.Auth, set.Credential = sinks.ElasticAPIKey, secretSource(c.Token)
	}
	if c.Compare != nil && c.Compare.Token != nil {
		set.Read = secretSource(c.Compare.Token)
	}
	e, err := sinks.NewElastic(set)
	if err != nil || c.Compare != nil {
		return e, err
	}
	return deliverOnly{e, e}, nil
}

// deliverOnly is a sink that is not to be asked for what it holds.
type deliverOnly struct {
	deliver.Sink
	deliver.Renewer
}

func newDatadogSink(c *config.Sink, reach sinks.Settings, node string) (deliver.Sink, error) {
	key, err := credential(c.Token)
	if err != nil {
		return nil, err
	}
	set := sinks.DatadogConfig{Intake: reach, Key: key, Source: c.Source, Service: c.Service, Hostname: node, Tags: c.Tags}
	if c.Site != "" {
		set.API = reach
		set.DatadogSite(c.Site)
	}
	if c.Compare != nil {
		if set.AppKey, err = credential(c.Compare.Token); err != nil {
			return nil, err
		}
	}
	return sinks.NewDatadog(set)
}

func newWebhookSink(c *config.Sink, reach sinks.Settings) (deliver.Sink, error) {
	set := sinks.WebhookConfig{Endpoint: reach, Stored: c.Ack}
	var err error
	if set.Token, err = credential(c.Token); err != nil {
		return nil, err
	}
	for _, s := range []*config.Secret{c.Signing, c.Before} {
		if s == nil {
			continue
		}
		key, err := credential(s)
		if err != nil {
			return nil, err
		}
		set.Keys = append(set.Keys, key)
	}
	return sinks.NewWebhook(set)
}
