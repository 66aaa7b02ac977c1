package cedar

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
	exptypes "github.com/cedar-policy/cedar-go/x/exp/types"
)

// everyOracle is how sparse the slice of the corpus is that the oracle, too, is
// asked about; it parses schema, policies and entities for every request.
const everyOracle = 25

// newlyValid are cases that the oracle, being newer than the corpus, admits: an
// empty set where it is never evaluated.
var newlyValid = map[string]bool{
	"corpus-tests/c54dbee8ca6742ac5299df0cb9f1308fcc679da1.json": true,
}

// corpusCase is one case of the official corpus, which comes with cedar-go.
type corpusCase struct {
	Schema         string
	Policies       string
	ShouldValidate bool
	Entities       string
	Requests       []struct {
		Description                 string
		Principal, Action, Resource cedar.EntityUID
		Context                     json.RawMessage
		Decision                    string
		Reason, Errors              []string
	}
}

func readCorpus(t *testing.T) map[string][]byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cedar-policy/cedar-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "corpus-tests.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if files[strings.TrimPrefix(h.Name, "./")], err = io.ReadAll(tr); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// bigNumber: JavaScript has no such numbers in JSON.
var bigNumber = regexp.MustCompile(`[:\[,]\s*-?\d{16,}`)

// TestCorpus holds the evaluator and the validator that are built in to the
// official corpus: decision, determining policies, failing policies, verdict of
// the validator. A slice is put to the oracle too, which shows that the way it
// is asked is right.
func TestCorpus(t *testing.T) {
	o := startOracle(t)
	files := readCorpus(t)
	cases, requests, asked := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !strings.HasSuffix(name, ".json") || strings.HasSuffix(name, ".entities.json") {
			continue
		}
		var c corpusCase
		if err := json.Unmarshal(files[name], &c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cases++
		set, entities := c.load(t, name, files)
		for i, r := range c.Requests {
			var context cedar.Record
			if err := json.Unmarshal(r.Context, &context); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, diag := cedar.Authorize(set, entities, cedar.Request{Principal: r.Principal, Action: r.Action, Resource: r.Resource, Context: context})
			var reasons, errors []string
			for _, d := range diag.Reasons {
				reasons = append(reasons, string(d.PolicyID))
			}
			for _, d := range diag.Errors {
				errors = append(errors, string(d.PolicyID))
			}
			if got.String() != r.Decision || !same(reasons, r.Reason) || !same(errors, r.Errors) {
				t.Errorf("%s request %d: %v by %v, errors %v; the corpus says %s by %v, errors %v", name, i, got, reasons, errors, r.Decision, r.Reason, r.Errors)
			}
			requests++
		}
		if cases%everyOracle == 0 && !bigNumber.Match(files[c.Entities]) {
			asked += c.askOracle(t, o, name, files)
		}
	}
	t.Logf("%d cases, %d requests, %d of them put to the oracle", cases, requests, asked)
	if cases < 7000 || requests < 50_000 || asked < 1500 {
		t.Errorf("only %d cases, %d requests, %d put to the oracle", cases, requests, asked)
	}
}

// load parses a case and holds the validator to the verdict of the corpus.
func (c *corpusCase) load(t *testing.T, name string, files map[string][]byte) (*cedar.PolicySet, cedar.EntityMap) {
	t.Helper()
	set, err := cedar.NewPolicySetFromBytes("policy.cedar", files[c.Policies])
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var s schema.Schema
	if err := s.UnmarshalCedar(files[c.Schema]); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	rs, err := s.Resolve()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	v, valid := validate.New(rs), true
	for id, p := range set.All() {
		if v.Policy(string(id), (*xast.Policy)(p.AST())) != nil {
			valid = false
		}
	}
	if valid != c.ShouldValidate {
		t.Errorf("%s: valid %v, the corpus says %v", name, valid, c.ShouldValidate)
	}
	var entities exptypes.EntityMap
	if err := entities.UnmarshalJSONWithSchema(files[c.Entities], rs); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return set, cedar.EntityMap(entities)
}

func (c *corpusCase) askOracle(t *testing.T, o *oracle, name string, files map[string][]byte) (asked int) {
	t.Helper()
	text := policies{string(files[c.Policies])}
	var verdict validateAnswer
	o.ask(t, "validate", validateCall{string(files[c.Schema]), text}, &verdict)
	if verdict.Type != "success" || (len(verdict.ValidationErrors) == 0) != (c.ShouldValidate || newlyValid[name]) {
		t.Errorf("%s: the oracle's validator says %+v, the corpus %v", name, verdict, c.ShouldValidate)
	}
	for i, r := range c.Requests {
		if bigNumber.Match(r.Context) {
			continue
		}
		var answer authorizeAnswer
		o.ask(t, "isAuthorized", map[string]any{
			"principal": refOf(r.Principal), "action": refOf(r.Action), "resource": refOf(r.Resource), "context": r.Context,
			"policies": text, "entities": json.RawMessage(bytes.TrimSpace(files[c.Entities])), "schema": string(files[c.Schema]), "validateRequest": false,
		}, &answer)
		d := answer.Response
		if answer.Type != "success" || d.Decision != r.Decision || !same(d.Diagnostics.Reason, r.Reason) || !same(policyIDs(d.Diagnostics.Errors), r.Errors) {
			t.Errorf("%s request %d: the oracle says %+v; the corpus %s by %v, errors %v", name, i, answer, r.Decision, r.Reason, r.Errors)
		}
		asked++
	}
	return asked
}

func same(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
