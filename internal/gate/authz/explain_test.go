package authz

import (
	"reflect"
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"*"}}}, "p.cedar", `@id("broken") permit(principal, action, resource) when { `+overflow+` };
@id("elsewhere") forbid(principal, action, resource == Route::"rest");
@id("no") forbid(principal, action, resource) when { context.acr == "mfa" };`)
	d, verdicts := e.Explain(asks(nil))
	if want := e.Decide(asks(nil)); !reflect.DeepEqual(d, want) {
		t.Errorf("decision %+v, want %+v", d, want)
	}
	got := map[string]Outcome{}
	for _, v := range verdicts {
		got[v.Policy.ID] = v.Outcome
		if (v.Error != "") != (v.Outcome == OutcomeError) {
			t.Errorf("%s: error %q", v.Policy.ID, v.Error)
		}
		if !strings.Contains(v.Policy.Text, v.Policy.ID) {
			t.Errorf("text of %s is %q", v.Policy.ID, v.Policy.Text)
		}
	}
	want := map[string]Outcome{"broken": OutcomeError, "elsewhere": OutcomeNoMatch, "no": OutcomeForbid, "role:clerk:*": OutcomePermit}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, edit := range []func(*Request){func(r *Request) { r.Route = "x" }, func(r *Request) { r.Subject = "" }} {
		if d, v := e.Explain(asks(edit)); d.Allow || v != nil {
			t.Errorf("impossible request: %+v %v", d, v)
		}
	}
}
