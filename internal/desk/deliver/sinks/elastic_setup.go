package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// elasticVersion is that of the templates and policies that Bootstrap puts. It
// grows with every change of one of them.
const elasticVersion = 1

const (
	elasticOwner    = "gatebook" // _meta.managed_by of what is ours
	elasticMappings = "gatebook-ecs"
	elasticTuning   = "gatebook-settings"
	// templatePriority is above the templates that Elasticsearch brings (100) and
	// those of its integrations (200 and 250).
	templatePriority = 500
)

func indexTemplateName(stream string) string { return "gatebook-" + stream }

// ElasticSetup is how Bootstrap prepares a data stream.
type ElasticSetup struct {
	// Auth and Credential are a one-off credential that may manage templates.
	Auth       ElasticAuth
	Credential string
	// Lifecycle puts a policy too, of ILM, of ISM in OpenSearch, or of the data
	// stream in Serverless. Without it, what the cluster does is not changed.
	Lifecycle bool
	// RolloverDays and RolloverGB end a backing index; 0: 30 days and 50 GB.
	RolloverDays, RolloverGB int
	// KeepDays is after how many days a backing index is deleted; 0: never.
	KeepDays int
}

// Bootstrap puts the component and index templates for the stream, a policy if one
// is wanted, and makes the stream, and says line by line what it did. It never
// replaces what is newer or what somebody else made. It can be called again; what is
// there already is left alone.
func (e *Elastic) Bootstrap(ctx context.Context, s ElasticSetup) (did []string, err error) {
	if s.RolloverDays < 0 || s.RolloverGB < 0 || s.KeepDays < 0 {
		return nil, errors.New("days and gigabytes are not negative")
	}
	s.RolloverDays, s.RolloverGB = cmpOr(s.RolloverDays, 30), cmpOr(s.RolloverGB, 50)
	c, err := e.caller(s.Auth, s.Credential)
	if err != nil {
		return nil, err
	}
	p, err := c.product(ctx)
	if err != nil {
		return nil, err
	}
	did = append(did, "found "+p.name)
	steps := []func() (string, error){
		func() (string, error) {
			return c.template(ctx, "component_template", elasticMappings, mappingsTemplate())
		},
		func() (string, error) { return c.template(ctx, "component_template", elasticTuning, tuningTemplate(p)) },
	}
	if s.Lifecycle {
		switch p.kind {
		case elasticStack:
			steps = append(steps, func() (string, error) { return c.ilm(ctx, s) })
		case elasticOpenSearch:
			steps = append(steps, func() (string, error) { return c.ism(ctx, s) })
		case elasticOther:
			return did, errors.New("what answers is not known well enough to put a lifecycle policy")
		}
	}
	steps = append(steps,
		func() (string, error) {
			return c.template(ctx, "index_template", indexTemplateName(e.set.Stream), indexTemplate(e.set.Stream, p, s))
		},
		func() (string, error) { return c.stream(ctx) },
	)
	for _, step := range steps {
		line, err := step()
		if err != nil {
			return did, err
		}
		did = append(did, line)
	}
	return did, nil
}

func elasticMeta() map[string]any {
	return map[string]any{"managed_by": elasticOwner, "version": elasticVersion, "description": "access records of Gatebook"}
}

func mappingsTemplate() map[string]any {
	return map[string]any{"_meta": elasticMeta(), "version": elasticVersion, "template": map[string]any{"mappings": elasticMapping()}}
}

// tuningTemplate has settings that the promises rest on, where they may be set.
func tuningTemplate(p elasticProduct) map[string]any {
	set := map[string]any{"index.codec": "best_compression"}
	if p.kind == elasticStack || p.kind == elasticOpenSearch {
		set["index.translog.durability"] = "request" // the grade Durable rests on it
	}
	if p.kind == elasticStack && (p.major > 8 || p.major == 8 && p.minor >= 7) {
		set["index.mode"] = "standard" // the source stays as it was sent
	}
	return map[string]any{"_meta": elasticMeta(), "version": elasticVersion, "template": map[string]any{"settings": set}}
}

func indexTemplate(stream string, p elasticProduct, s ElasticSetup) map[string]any {
	inner := map[string]any{}
	if s.Lifecycle && p.kind == elasticStack {
		inner["settings"] = map[string]any{"index.lifecycle.name": indexTemplateName(stream)}
	}
	if s.Lifecycle && p.kind == elasticServerless {
		life := map[string]any{}
		if s.KeepDays > 0 {
			life["data_retention"] = strconv.Itoa(s.KeepDays) + "d"
		}
		inner["lifecycle"] = life
	}
	return map[string]any{
		"_meta": elasticMeta(), "version": elasticVersion, "priority": templatePriority,
		"index_patterns": []string{stream}, "data_stream": map[string]any{},
		"composed_of": []string{elasticMappings, elasticTuning}, "template": inner,
	}
}

// owned is the mark on what Bootstrap makes.
type owned struct {
	ManagedBy string `json:"managed_by"`
	Version   int    `json:"version"`
}

// decide says what to do with what is there: put ours, or keep, or neither.
func decide(what string, there owned) (put bool, line string, err error) {
	switch {
	case there.ManagedBy != elasticOwner:
		return false, "", fmt.Errorf("%s exists and was not made by Gatebook (_meta.managed_by is %q); it is left alone: rename or delete it, or name another stream", what, excerpt([]byte(there.ManagedBy)))
	case there.Version > elasticVersion:
		return false, fmt.Sprintf("left %s alone: its version %d is newer than %d", what, there.Version, elasticVersion), nil
	case there.Version == elasticVersion:
		return false, fmt.Sprintf("kept %s, version %d", what, there.Version), nil
	}
	return true, fmt.Sprintf("updated %s from version %d to %d, for backing indexes from the next rollover on", what, there.Version, elasticVersion), nil
}

// template puts a component or index template.
func (c *elasticCaller) template(ctx context.Context, kind, name string, ours map[string]any) (string, error) {
	path, what := "/_"+kind+"/"+name, kind+" "+name
	there, found, err := c.there(ctx, kind, name)
	if err == nil && !found {
		quicker := c.put(ctx, what, path+"?create=true", ours)
		if quicker == nil {
			return fmt.Sprintf("created %s, version %d", what, elasticVersion), nil
		}
		// Somebody may have made it meanwhile; then theirs is looked at.
		if there, found, err = c.there(ctx, kind, name); err != nil || !found {
			return "", quicker
		}
	}
	if err != nil {
		return "", err
	}
	put, line, err := decide(what, there)
	if err != nil || !put {
		return line, err
	}
	return line, c.put(ctx, what, path, ours)
}

// there reads the mark of a template, if there is one of this name.
func (c *elasticCaller) there(ctx context.Context, kind, name string) (mark owned, found bool, err error) {
	what := kind + " " + name
	a, err := c.ask(ctx, http.MethodGet, "/_"+kind+"/"+name, nil)
	switch {
	case err != nil:
		return owned{}, false, err
	case a.Status == http.StatusNotFound:
		return owned{}, false, nil
	case a.Status != http.StatusOK:
		return owned{}, false, c.refused("reading "+what, a)
	}
	if mark, err = templateMeta(a.Body, kind); err != nil {
		return owned{}, false, fmt.Errorf("%s: %w", what, err)
	}
	return mark, true, nil
}

func templateMeta(body []byte, kind string) (owned, error) {
	type inner struct {
		Meta owned `json:"_meta"`
	}
	var doc map[string][]struct {
		Component inner `json:"component_template"`
		Index     inner `json:"index_template"`
	}
	if err := json.Unmarshal(body, &doc); err != nil || len(doc[kind+"s"]) != 1 {
		return owned{}, errors.New("the answer cannot be read")
	}
	if kind == "component_template" {
		return doc[kind+"s"][0].Component.Meta, nil
	}
	return doc[kind+"s"][0].Index.Meta, nil
}

func (c *elasticCaller) put(ctx context.Context, what, path string, body any) error {
	a, err := c.ask(ctx, http.MethodPut, path, body)
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK && a.Status != http.StatusCreated {
		return c.refused("putting "+what, a)
	}
	var ack struct{ Acknowledged *bool }
	if json.Unmarshal(a.Body, &ack) != nil || ack.Acknowledged != nil && !*ack.Acknowledged {
		return fmt.Errorf("putting %s: it was not acknowledged; look whether the cluster is well and try again", what)
	}
	return nil
}

func (c *elasticCaller) refused(doing string, a *Answer) error {
	hint := ""
	if a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden {
		hint = "; the credential for setting up needs more privileges than the one that ships"
	}
	return fmt.Errorf("%s: answer %d: %s%s", doing, a.Status, c.e.reason(a, c.secret), hint)
}

// ilm puts a policy of index lifecycle management.
func (c *elasticCaller) ilm(ctx context.Context, s ElasticSetup) (string, error) {
	name := indexTemplateName(c.e.set.Stream)
	path, what := "/_ilm/policy/"+name, "ILM policy "+name
	phases := map[string]any{"hot": map[string]any{"actions": map[string]any{"rollover": map[string]any{
		"max_age": strconv.Itoa(s.RolloverDays) + "d", "max_primary_shard_size": strconv.Itoa(s.RolloverGB) + "gb",
	}}}}
	if s.KeepDays > 0 {
		phases["delete"] = map[string]any{"min_age": strconv.Itoa(s.KeepDays) + "d", "actions": map[string]any{"delete": map[string]any{}}}
	}
	a, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	line := fmt.Sprintf("created %s, version %d", what, elasticVersion)
	switch a.Status {
	case http.StatusNotFound:
	case http.StatusOK:
		var doc map[string]struct {
			Policy struct {
				Meta owned `json:"_meta"`
			}
		}
		if err := json.Unmarshal(a.Body, &doc); err != nil {
			return "", fmt.Errorf("%s: the answer cannot be read", what)
		}
		put, said, err := decide(what, doc[name].Policy.Meta)
		if err != nil || !put {
			return said, err
		}
		line = said
	default:
		return "", c.refused("reading "+what, a)
	}
	return line, c.put(ctx, what, path, map[string]any{"policy": map[string]any{"_meta": elasticMeta(), "phases": phases}})
}

// ism puts a policy of index state management, which attaches itself by the name
// of the stream.
func (c *elasticCaller) ism(ctx context.Context, s ElasticSetup) (string, error) {
	name := indexTemplateName(c.e.set.Stream)
	path, what := "/_plugins/_ism/policies/"+name, "ISM policy "+name
	a, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	line := fmt.Sprintf("created %s, version %d", what, elasticVersion)
	switch a.Status {
	case http.StatusNotFound:
	case http.StatusOK:
		var doc struct {
			Seq    int64 `json:"_seq_no"`
			Term   int64 `json:"_primary_term"`
			Policy struct{ Description string }
		}
		if err := json.Unmarshal(a.Body, &doc); err != nil {
			return "", fmt.Errorf("%s: the answer cannot be read", what)
		}
		// A policy of ISM has no _meta.
		var there owned
		if n, err := fmt.Sscanf(doc.Policy.Description, ismDescription, &there.Version); n == 1 && err == nil {
			there.ManagedBy = elasticOwner
		}
		put, said, err := decide(what, there)
		if err != nil || !put {
			return said, err
		}
		line = said
		path += "?" + url.Values{"if_seq_no": {strconv.FormatInt(doc.Seq, 10)}, "if_primary_term": {strconv.FormatInt(doc.Term, 10)}}.Encode()
	default:
		return "", c.refused("reading "+what, a)
	}
	return line, c.put(ctx, what, path, ismPolicy(c.e.set.Stream, s))
}

const ismDescription = "managed by gatebook, version %d"

func ismPolicy(stream string, s ElasticSetup) map[string]any {
	hot := map[string]any{"name": "hot", "transitions": []any{}, "actions": []any{map[string]any{"rollover": map[string]any{
		"min_index_age": strconv.Itoa(s.RolloverDays) + "d", "min_primary_shard_size": strconv.Itoa(s.RolloverGB) + "gb",
	}}}}
	states := []any{hot}
	if s.KeepDays > 0 {
		hot["transitions"] = []any{map[string]any{"state_name": "delete", "conditions": map[string]any{"min_rollover_age": strconv.Itoa(s.KeepDays) + "d"}}}
		states = append(states, map[string]any{"name": "delete", "transitions": []any{}, "actions": []any{map[string]any{"delete": map[string]any{}}}})
	}
	return map[string]any{"policy": map[string]any{
		"description": fmt.Sprintf(ismDescription, elasticVersion), "default_state": "hot", "states": states,
		"ism_template": []any{map[string]any{"index_patterns": []string{stream, ".ds-" + stream + "-*"}, "priority": templatePriority}},
	}}
}

// stream makes the data stream, so that the credential that ships need not.
func (c *elasticCaller) stream(ctx context.Context) (string, error) {
	what := "data stream " + c.e.set.Stream
	a, err := c.ask(ctx, http.MethodPut, "/_data_stream/"+c.e.set.Stream, nil)
	if err != nil {
		return "", err
	}
	if a.Status == http.StatusOK {
		return "created " + what, nil
	}
	var doc struct{ Error *elasticError }
	if json.Unmarshal(a.Body, &doc) == nil && doc.Error != nil && doc.Error.Type == "resource_already_exists_exception" {
		return "kept " + what, nil
	}
	if doc.Error != nil && strings.Contains(doc.Error.Reason, "conflicts with index") {
		return "", fmt.Errorf("making %s: there is a plain index of that name, made when records were sent before this; delete it, set up again and resume the sink (the book has every record), or name another stream", what)
	}
	return "", c.refused("making "+what, a)
}
