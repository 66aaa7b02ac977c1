package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

func TestSinkSetup(t *testing.T) {
	srv := bulkd.Start(t, bulkd.Config{Principals: []bulkd.Principal{
		{Name: "setup", Basic: "setup:pw", Cluster: []string{"monitor", "manage_index_templates", "manage_ilm"}, Indices: []bulkd.Grant{{Names: []string{"logs-*"}, Privileges: []string{"manage"}}}},
		{Name: "ship", APIKey: "id:key", Cluster: []string{"monitor"}, Indices: []bulkd.Grant{{Names: []string{"logs-*"}, Privileges: []string{"create_doc", "auto_configure"}}}},
	}})
	dir := t.TempDir()
	conf := filepath.Join(dir, "gatebook.yaml")
	write(t, conf, replayConfig+fmt.Sprintf(`
sinks:
  - {name: siem, type: elasticsearch, url: %q, token: {file: ship}}
  - {name: lines, type: stdout}
`, srv.URL))
	write(t, filepath.Join(dir, "policies", "p.cedar"), replayPolicies)
	write(t, filepath.Join(dir, "ship"), "id:key\n")
	setup := filepath.Join(dir, "setup")
	write(t, setup, "setup:pw\n")
	ship := filepath.Join(dir, "ship")

	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"siem --auth api_key --credential " + ship, ExitFailure, "needs more privileges than the one that ships"},
		{"siem --auth basic --credential " + filepath.Join(dir, "none"), ExitFailure, "no such file"},
		{"siem --auth basic", ExitUsage, "go together"},
		{"siem --auth oauth --credential x", ExitUsage, "basic, api_key or bearer"},
		{"siem --keep-days 3", ExitUsage, "needs --lifecycle"},
		{"lines", ExitFailure, "needs no setting up"},
		{"other", ExitFailure, "there is no sink \"other\""},
		{"siem --auth basic --credential " + setup + " --lifecycle --keep-days 400", ExitOK, "created ILM policy gatebook-logs-gatebook.audit-default, version 1"},
		{"siem --auth basic --credential " + setup + " --lifecycle", ExitOK, "kept data stream logs-gatebook.audit-default"},
	} {
		var out, errs strings.Builder
		args := append([]string{"--config", conf, "sink", "setup"}, strings.Fields(tt.args)...)
		code := Run(t.Context(), args, IO{In: strings.NewReader(""), Out: &out, Err: &errs})
		if said := out.String() + errs.String(); code != tt.code || !strings.Contains(said, tt.want) || strings.Contains(said, "pw") {
			t.Errorf("%s: exit %d\n%s\nwant %d, %s", tt.args, code, said, tt.code, tt.want)
		}
	}
	if !strings.Contains(srv.Stored("policy", "gatebook-logs-gatebook.audit-default"), `"min_age":"400d"`) {
		t.Error("no policy")
	}
}
