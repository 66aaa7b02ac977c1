package cedar

import (
	"bufio"
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go/types"
)

// oracle is Cedar's own implementation in one node process that lives as long
// as the test.
type oracle struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func startOracle(t *testing.T) *oracle {
	t.Helper()
	cmd := exec.Command("node", "oracle.mjs")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("node: %v; `make deps` installs it", err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
			t.Errorf("the oracle ended with %v: %s; `make deps` installs what it needs", err, stderr.String())
		}
	})
	o := &oracle{in: in, out: bufio.NewReaderSize(out, 1<<20)}
	var v struct{ Version string }
	o.ask(t, "version", nil, &v)
	if !strings.HasPrefix(v.Version, "4.") {
		t.Fatalf("the oracle is Cedar %q, want 4.x", v.Version)
	}
	return o
}

func (o *oracle) ask(t *testing.T, op string, call, answer any) {
	t.Helper()
	o.send(t, op, call)
	o.receive(t, answer)
}

func (o *oracle) send(t *testing.T, op string, call any) {
	t.Helper()
	line, err := json.Marshal(map[string]any{"op": op, "call": call})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.in.Write(append(line, '\n')); err != nil {
		t.Fatalf("the oracle does not listen: %v", err)
	}
}

func (o *oracle) receive(t *testing.T, answer any) {
	t.Helper()
	line, err := o.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the oracle does not answer: %v", err)
	}
	if err := json.Unmarshal(line, answer); err != nil {
		t.Fatalf("%v in the oracle's answer %s", err, line)
	}
}

// The oracle's forms.
type (
	entityRef struct {
		Type types.EntityType `json:"type"`
		ID   types.String     `json:"id"`
	}
	policies struct {
		Static any `json:"staticPolicies"`
	}
	authorizeCall struct {
		Principal entityRef       `json:"principal"`
		Action    entityRef       `json:"action"`
		Resource  entityRef       `json:"resource"`
		Context   json.RawMessage `json:"context"`
		Policies  policies        `json:"policies"`
		Entities  json.RawMessage `json:"entities"`
	}
	fault struct {
		PolicyID string `json:"policyId"`
		Error    struct{ Message string }
		Message  string
	}
	authorizeAnswer struct {
		Type     string
		Errors   []fault
		Response struct {
			Decision    string
			Diagnostics struct {
				Reason []string
				Errors []fault
			}
		}
	}
	validateCall struct {
		Schema   any      `json:"schema"`
		Policies policies `json:"policies"`
	}
	validateAnswer struct {
		Type             string
		Errors           []fault
		ValidationErrors []fault
		// ValidationWarnings: among them that a policy can never apply.
		ValidationWarnings []fault
	}
)

func refOf(uid types.EntityUID) entityRef { return entityRef{uid.Type, uid.ID} }

func policyIDs(faults []fault) []string {
	var out []string
	for _, f := range faults {
		out = append(out, f.PolicyID)
	}
	return out
}
