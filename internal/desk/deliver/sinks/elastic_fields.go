package sinks

import "strings"

// elasticFields are the types of what the projection ecs writes, after the Elastic
// Common Schema 9.4; what is under gatebook is our own. Whatever is not here is kept
// and not indexed.
var elasticFields = []struct{ kind, names string }{
	{"date", "@timestamp event.start"},
	{"text", "message"},
	{"keyword", "ecs.version event.id event.kind event.category event.type event.action event.outcome event.reason event.module event.dataset"},
	{"long", "event.duration event.sequence"},
	{"keyword", "observer.name observer.vendor observer.product observer.type observer.version"},
	{"keyword", "http.version http.request.id http.request.method http.request.referrer"},
	{"long", "http.request.body.bytes http.response.status_code http.response.body.bytes"},
	{"keyword", "url.domain url.path url.query user_agent.original"},
	{"keyword", "user.id user.name user.full_name user.email user.roles"},
	{"keyword", "source.address destination.address service.target.name"},
	{"ip", "source.ip"},
	{"long", "source.port"},
	{"keyword", "tls.version tls.version_protocol tls.cipher tls.curve tls.next_protocol tls.client.server_name tls.client.subject"},
	{"boolean", "tls.resumed"},
	{"keyword", "rule.id rule.version trace.id"},

	{"keyword", "gatebook.id gatebook.kind gatebook.origin gatebook.snap gatebook.route gatebook.op gatebook.template gatebook.links"},
	{"long", "gatebook.upstream_status gatebook.dur_us gatebook.size"},
	{"boolean", "gatebook.truncated gatebook.erased"},
	{"long", "gatebook.phase.auth gatebook.phase.limit gatebook.phase.policy gatebook.phase.open gatebook.phase.queue gatebook.phase.connect gatebook.phase.tls gatebook.phase.ttfb gatebook.phase.body"},
	{"keyword", "gatebook.authn.method gatebook.authn.issuer gatebook.authn.client gatebook.authn.acr gatebook.authn.amr gatebook.authn.bound gatebook.authn.kid gatebook.authn.alg gatebook.authn.outcome gatebook.authn.reason"},
	{"long", "gatebook.authn.age_s gatebook.authn.ttl_s"},
	{"keyword", "gatebook.authz.decision gatebook.authz.policies gatebook.authz.set gatebook.authz.shadow.decision gatebook.authz.shadow.policies"},
	{"long", "gatebook.authz.errors"},
	{"keyword", "gatebook.limit.rule gatebook.limit.outcome gatebook.limit.mode"},
	{"long", "gatebook.limit.remaining gatebook.limit.retry_s"},
	{"keyword", "gatebook.tls.ja4 gatebook.tls.client_cert gatebook.client.port_class gatebook.upstream.breaker"},
	{"long", "gatebook.client.hops gatebook.upstream.attempts gatebook.upstream.ttfb_us"},
	{"boolean", "gatebook.upstream.reused"},
	{"keyword", "gatebook.error.origin gatebook.error.phase gatebook.san.set"},
	{"long", "gatebook.san.dropped gatebook.san.masked gatebook.san.tripped gatebook.san.invalid"},
	{"keyword", "gatebook.event.name gatebook.event.clock gatebook.event.before gatebook.event.after gatebook.event.target gatebook.event.cause"},
	{"long", "gatebook.event.count gatebook.event.first gatebook.event.last gatebook.event.mono_us"},
	{"boolean", "gatebook.event.exact"},
	{"keyword", "gatebook.personal.tenant_user gatebook.personal.claimed gatebook.personal.ip gatebook.personal.fwd gatebook.personal.session gatebook.personal.token gatebook.personal.family gatebook.personal.client_request_id gatebook.personal.traceparent gatebook.personal.body_sha256 gatebook.personal.ja4"},
	{"long", "gatebook.personal.port gatebook.personal.bytes_in gatebook.personal.bytes_out"},
}

// elasticMapping is the mapping of those fields. A value that does not fit its type
// is kept and not indexed, so that it costs a search result and not the record; only
// @timestamp has to fit.
func elasticMapping() map[string]any {
	root := map[string]any{}
	for _, row := range elasticFields {
		for _, name := range strings.Fields(row.names) {
			at := root
			steps := strings.Split(name, ".")
			for _, step := range steps[:len(steps)-1] {
				inner, ok := at[step].(map[string]any)
				if !ok {
					inner = map[string]any{"properties": map[string]any{}}
					at[step] = inner
				}
				at = inner["properties"].(map[string]any)
			}
			field := map[string]any{"type": row.kind}
			switch {
			case row.kind == "keyword":
				// Four bytes a character at most; a longer term would refuse the record.
				field["ignore_above"] = 8191
			case row.kind == "long", row.kind == "ip", row.kind == "date" && name != "@timestamp":
				field["ignore_malformed"] = true
			}
			at[steps[len(steps)-1]] = field
		}
	}
	return map[string]any{"dynamic": false, "date_detection": false, "properties": root}
}
