package authz

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
)

// engineVersion is part of every set hash: another evaluator or another
// reading of the tables may decide differently.
const engineVersion = "gatebook-authz/2 cedar-go/v1.9.0"

// source is all that decisions depend on, in canonical order. Its JSON is the
// bundle that SetHash names: a decision can be repeated from it.
type source struct {
	Engine     string       `json:"engine"`
	SchemaName string       `json:"schema_name"`
	Schema     string       `json:"schema"`
	Roles      []sourceRole `json:"roles"`
	Routes     []Route      `json:"routes"`
	Files      []file       `json:"files"`
}

type sourceRole struct {
	Name  string   `json:"name"`
	Allow []string `json:"allow"`
}

// generatedSchema names the schema when none was given.
const generatedSchema = "built-in schema"

// Load reads, validates and indexes a policy set and runs its test cases. The
// error is Problems when the set is at fault, and names everything found. The
// order of files, roles and routes does not matter to the result.
func Load(c Config) (*Engine, error) {
	src, err := read(c)
	if err != nil {
		return nil, err
	}
	e, err := build(src)
	if err != nil {
		return nil, err
	}
	if c.Tests != "" {
		if err := e.runTests(c.Tests); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// LoadBundle makes the engine whose Bundle it is given, to repeat decisions.
// It refuses bundles of another engine version.
func LoadBundle(bundle []byte) (*Engine, error) {
	var src source
	if err := json.Unmarshal(bundle, &src); err != nil {
		return nil, fmt.Errorf("policy bundle: %w", err)
	}
	if src.Engine != engineVersion {
		return nil, fmt.Errorf("policy bundle: made by engine %q, this is %q; use the release that made it", src.Engine, engineVersion)
	}
	return build(&src)
}

// Bundle is the canonical text of the set.
func (e *Engine) Bundle() []byte { return slices.Clone(e.bundle) }

// read collects the texts.
func read(c Config) (*source, error) {
	src := &source{Engine: engineVersion}
	routes, probs := checkRoutes(c.Routes)
	for _, h := range c.Headers {
		if !validHeader(h) {
			probs = append(probs, Problem{Message: fmt.Sprintf("header %q for policies: write the name of a header in lower case", h)})
		}
	}
	src.Routes = routes
	for _, name := range slices.Sorted(maps.Keys(c.Roles)) {
		src.Roles = append(src.Roles, sourceRole{name, slices.Sorted(slices.Values(c.Roles[name].Allow))})
	}
	if err := probs.err(); err != nil {
		return nil, err
	}
	if c.Dir != "" {
		if err := readDir(c, src); err != nil {
			return nil, fmt.Errorf("policies %s: %w", c.Dir, err)
		}
	}
	if c.Schema != "" {
		text, err := readFile(c.Schema)
		if err != nil {
			return nil, fmt.Errorf("policy schema: %w", err)
		}
		src.SchemaName, src.Schema = filepath.Base(c.Schema), text
	}
	if src.SchemaName == "" {
		src.SchemaName, src.Schema = generatedSchema, generateSchema(routes, once(c.Headers))
	}
	return src, nil
}

func readDir(c Config, src *source) error {
	d, err := openDir(c.Dir)
	if err != nil {
		return err
	}
	defer d.root.Close()
	if src.Files, err = d.files(".cedar"); err != nil {
		return err
	}
	if c.Schema != "" {
		return nil
	}
	if _, err := d.root.Lstat(schemaFile); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	src.SchemaName = schemaFile
	src.Schema, err = d.read(schemaFile)
	return err
}

// build validates a source and makes its engine.
func build(src *source) (*Engine, error) {
	routes, probs := checkRoutes(src.Routes)
	if err := probs.err(); err != nil {
		return nil, err
	}
	roles := make(map[string]Role, len(src.Roles))
	for _, r := range src.Roles {
		roles[r.Name] = Role{Allow: r.Allow}
	}
	policies, probs := parsePolicies(src.Files)
	generated, more := rolePolicies(roles, routes)
	probs = append(probs, more...)
	schema, more := bindSchema(src.SchemaName, src.Schema, routes)
	probs = append(probs, more...)
	if len(more) == 0 {
		probs = append(probs, validatePolicies(policies, src.Files, schema)...)
	}
	policies = append(policies, generated...)
	sortPolicies(policies)
	for i := 1; i < len(policies); i++ {
		// Two roles can spell the same id when names contain colons.
		if policies[i-1].id == policies[i].id {
			probs = append(probs, Problem{Message: fmt.Sprintf("policy id %q is made from two lines of the roles; rename a role", policies[i].id)})
		}
	}
	if err := probs.err(); err != nil {
		return nil, err
	}
	bundle, err := json.Marshal(src)
	if err != nil {
		return nil, fmt.Errorf("policy bundle: %w", err)
	}
	sum := sha256.Sum256(bundle)
	return &Engine{
		set:       hex.EncodeToString(sum[:16]),
		bundle:    bundle,
		schema:    schema,
		policies:  policies,
		routes:    buildIndex(routes, policies, schema),
		seed:      maphash.MakeSeed(),
		anonymous: &principal{uid: anonymousUID, entity: types.Entity{UID: anonymousUID}},
		cache:     make([]atomic.Pointer[principal], cacheSlots),
	}, nil
}

// declaresParam says whether the context of an action has the parameter.
func (s *boundSchema) declaresParam(action types.EntityUID, name string) bool {
	rec, ok := s.types.Actions[action].AppliesTo.Context["params"].Type.(resolved.RecordType)
	if !ok {
		return false
	}
	_, ok = rec[types.String(name)]
	return ok
}
