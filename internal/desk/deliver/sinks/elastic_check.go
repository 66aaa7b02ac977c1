package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// elasticKind is which product answers.
type elasticKind int

const (
	elasticOther elasticKind = iota // nothing is taken for granted
	elasticStack
	elasticServerless
	elasticOpenSearch
)

// elasticProduct is what answers at the address.
type elasticProduct struct {
	kind         elasticKind
	name         string // for people
	major, minor int
}

// detect reads the answer to GET /. The header X-Elastic-Product is not asked for:
// OpenSearch has none, and proxies drop it.
func detect(body []byte) (elasticProduct, error) {
	var doc struct {
		Tagline string
		Version struct {
			Number       string
			Distribution string
			Flavor       string `json:"build_flavor"`
		}
	}
	if err := json.Unmarshal(body, &doc); err != nil || doc.Version.Number == "" {
		return elasticProduct{}, errors.New("what answers is neither Elasticsearch nor OpenSearch: it does not tell its version at /")
	}
	p := elasticProduct{name: "an unknown product " + doc.Version.Number}
	if len(doc.Version.Number) > 32 {
		return elasticProduct{}, errors.New("what answers tells a version that is none")
	}
	fmt.Sscanf(doc.Version.Number, "%d.%d", &p.major, &p.minor)
	switch {
	// In its mode of compatibility OpenSearch says 7.10.2 and keeps the tagline.
	case doc.Version.Distribution == "opensearch", strings.Contains(doc.Tagline, "OpenSearch"):
		p.kind, p.name = elasticOpenSearch, "OpenSearch "+doc.Version.Number
	case doc.Version.Flavor == "serverless":
		p.kind, p.name = elasticServerless, "Elasticsearch Serverless"
	case doc.Tagline == "You Know, for Search":
		p.kind, p.name = elasticStack, "Elasticsearch "+doc.Version.Number
	}
	return p, nil
}

// elasticCaller asks with one credential.
type elasticCaller struct {
	e      *Elastic
	header http.Header
	secret string
}

func (e *Elastic) caller(auth ElasticAuth, secret string) (*elasticCaller, error) {
	h, secret, err := e.show(auth, secret, "application/json")
	if err != nil {
		return nil, err
	}
	return &elasticCaller{e, h, secret}, nil
}

// ask sends one request. The answer is of any status.
func (c *elasticCaller) ask(ctx context.Context, method, path string, body any) (*Answer, error) {
	var raw []byte
	header := c.header.Clone()
	if body == nil {
		header.Del("Content-Type")
	} else {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	a, err := c.e.client.Do(ctx, method, path, header, raw)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if a.Cut {
		return nil, fmt.Errorf("%s %s: the answer is too long", method, path)
	}
	return a, nil
}

// product asks what answers, and with that whether the credential is believed.
func (c *elasticCaller) product(ctx context.Context) (elasticProduct, error) {
	a, err := c.ask(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return elasticProduct{}, err
	}
	switch a.Status {
	case http.StatusOK:
		return detect(a.Body)
	case http.StatusUnauthorized:
		return elasticProduct{}, fmt.Errorf("the credential is not believed (401: %s); look at its kind (api_key, basic, bearer) and whether it has expired", c.e.reason(a, c.secret))
	case http.StatusForbidden:
		return elasticProduct{}, fmt.Errorf("the credential may not ask for the version (403: %s); give it monitor on the cluster (OpenSearch: cluster:monitor/main)", c.e.reason(a, c.secret))
	}
	return elasticProduct{}, fmt.Errorf("GET /: answer %d: %s", a.Status, c.e.reason(a, c.secret))
}

// Test asks and writes nothing: what answers, whether the credential is believed,
// whether it may add documents (Elasticsearch can be asked that; OpenSearch
// cannot, there the first batch shows it), and whether the data stream has the
// templates that Bootstrap puts.
func (e *Elastic) Test(ctx context.Context) error {
	secret := ""
	if e.credential != nil {
		secret = e.credential.Get()
	}
	c, err := e.caller(e.set.Auth, secret)
	if err != nil {
		return err
	}
	p, err := c.product(ctx)
	if err != nil {
		return err
	}
	if p.kind == elasticStack || p.kind == elasticServerless {
		if err := c.privileges(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := c.prepared(ctx, p); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	return nil
}

// privileges asks whether what shipping needs is granted.
func (c *elasticCaller) privileges(ctx context.Context) error {
	stream := c.e.set.Stream
	a, err := c.ask(ctx, http.MethodPost, "/_security/user/_has_privileges", map[string]any{
		"cluster": []string{"monitor"},
		"index":   []any{map[string]any{"names": []string{stream}, "privileges": []string{"auto_configure", "create_doc"}}},
	})
	if err != nil {
		return err
	}
	if c.e.set.Auth == ElasticNone && (a.Status == http.StatusBadRequest || a.Status == http.StatusMethodNotAllowed || a.Status == http.StatusInternalServerError) {
		return nil // security is off: nobody answers there
	}
	if a.Status != http.StatusOK {
		return fmt.Errorf("asking for privileges: answer %d: %s", a.Status, c.e.reason(a, c.secret))
	}
	var has struct {
		All     *bool `json:"has_all_requested"`
		Cluster map[string]bool
		Index   map[string]map[string]bool
	}
	if err := json.Unmarshal(a.Body, &has); err != nil || has.All == nil {
		return errors.New("asking for privileges: the answer cannot be read")
	}
	if *has.All {
		return nil
	}
	var missing []string
	for name, ok := range has.Cluster {
		if !ok {
			missing = append(missing, name+" on the cluster")
		}
	}
	for name, ok := range has.Index[stream] {
		if !ok {
			missing = append(missing, name+" on "+stream)
		}
	}
	slices.Sort(missing)
	return fmt.Errorf("the credential lacks the privileges: %s", strings.Join(missing, ", "))
}

// prepared asks whether there is a template of ours, or else a stream of somebody's.
func (c *elasticCaller) prepared(ctx context.Context, p elasticProduct) error {
	stream := c.e.set.Stream
	a, err := c.ask(ctx, http.MethodGet, "/_index_template/"+indexTemplateName(stream), nil)
	if err != nil {
		return err
	}
	if a.Status == http.StatusOK {
		return nil
	}
	templates := a
	if a, err = c.ask(ctx, http.MethodGet, "/_data_stream/"+stream, nil); err != nil {
		return err
	}
	if a.Status == http.StatusOK {
		return nil
	}
	if templates.Status == http.StatusForbidden {
		grant := "monitor on the cluster"
		if p.kind == elasticOpenSearch {
			grant = "indices:admin/index_template/get on the cluster"
		}
		return fmt.Errorf("the credential may not see whether there is a template for %s; give it %s", stream, grant)
	}
	return fmt.Errorf("there is no template for the data stream %s and no such stream that the credential can see: types of fields would be guessed, or the records would go to a plain index; set it up once with a credential that may manage templates", stream)
}
