package project

import (
	"cmp"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
)

// The classes of OCSF that are used.
const (
	classFinding   = 2004 // Detection Finding
	classAuthn     = 3002 // Authentication
	classEntity    = 3004 // Entity Management
	classNetwork   = 4001 // Network Activity
	classHTTP      = 4002 // HTTP Activity
	classLifecycle = 6002 // Application Lifecycle
	classAPI       = 6003 // API Activity
	classError     = 6008 // Application Error
)

// Activities, each of one class.
const (
	activityOther = 99

	findingCreate, findingClose                          = 1, 3
	authnLogon, authnLogoff, authnRequest, authnRenew    = 1, 2, 4, 5
	entityCreate, entityRead, entityUpdate, entityDelete = 1, 2, 3, 4
	networkFail, networkRefuse                           = 4, 5
	lifecycleStart, lifecycleStop, lifecycleUpdate       = 3, 4, 8
	apiCreate, apiRead, apiUpdate, apiDelete             = 1, 2, 3, 4
	errorGeneral                                         = 1
	httpConnect, httpDelete, httpGet, httpHead           = 1, 2, 3, 4
	httpOptions, httpPost, httpPut, httpTrace, httpPatch = 5, 6, 7, 8, 9
)

// class is a class and one of its activities.
type class struct{ uid, activity int }

// profiles are those whose attributes are used, as JSON.
func (c class) profiles() string {
	switch c.uid {
	case classAPI:
		return `["security_control","trace"]`
	case classHTTP:
		return `["security_control","host","trace"]`
	case classNetwork, classLifecycle, classError, classFinding:
		return `["security_control","host"]`
	}
	return `["security_control"]`
}

func classOf(r *record.Record) class {
	switch r.Kind {
	case record.KindRequest, record.KindMalformed, record.KindInterrupted:
		return ocsfCall(r)
	case record.KindHandshake:
		if r.Error.Origin == originLimit || r.Error.Origin == originGateway {
			return class{classNetwork, networkRefuse}
		}
		return class{classNetwork, networkFail}
	case record.KindSession:
		switch r.Event.Name {
		case "session_login":
			return class{classAuthn, authnLogon}
		case "session_logout", "session_backchannel_logout":
			return class{classAuthn, authnLogoff}
		}
		return ocsfCall(r)
	case record.KindToken:
		switch r.Event.Name {
		case "client_credentials", "exchange":
			return class{classAuthn, authnRequest}
		case "refresh":
			return class{classAuthn, authnRenew}
		}
		return class{classAuthn, activityOther}
	case record.KindAccess:
		return class{classAPI, apiRead}
	case record.KindAlert:
		if strings.HasSuffix(r.Event.Name, "_end") {
			return class{classFinding, findingClose}
		}
		return class{classFinding, findingCreate}
	}
	return ocsfAct(r)
}

// ocsfCall is a call of the API; without a known operation it is plain HTTP.
func ocsfCall(r *record.Record) class {
	if r.Op == record.None {
		return class{classHTTP, httpActivity(r.Method)}
	}
	switch r.Method {
	case "GET", "HEAD", "OPTIONS", "QUERY":
		return class{classAPI, apiRead}
	case "POST":
		return class{classAPI, apiCreate}
	case "PUT", "PATCH":
		return class{classAPI, apiUpdate}
	case "DELETE":
		return class{classAPI, apiDelete}
	}
	return class{classAPI, activityOther}
}

func httpActivity(method string) int {
	switch method {
	case "CONNECT":
		return httpConnect
	case "DELETE":
		return httpDelete
	case "GET":
		return httpGet
	case "HEAD":
		return httpHead
	case "OPTIONS":
		return httpOptions
	case "POST":
		return httpPost
	case "PUT":
		return httpPut
	case "TRACE":
		return httpTrace
	case "PATCH":
		return httpPatch
	}
	return activityOther
}

// ocsfAct is what the book and operators do.
func ocsfAct(r *record.Record) class {
	name := r.Event.Name
	switch r.Kind {
	case record.KindStart:
		return class{classLifecycle, lifecycleStart}
	case record.KindStop, record.KindUncleanStop:
		return class{classLifecycle, lifecycleStop}
	case record.KindConfig:
		return class{classLifecycle, lifecycleUpdate}
	case record.KindGap:
		return class{classError, errorGeneral}
	case record.KindDelivery:
		if r.Outcome == record.Failure {
			return class{classError, errorGeneral}
		}
		return class{classLifecycle, activityOther}
	case record.KindErasure, record.KindRetention:
		return class{classEntity, entityDelete}
	case record.KindAdmin, record.KindKey, record.KindPolicy, record.KindHold:
		switch {
		case strings.HasSuffix(name, "_create"), strings.HasSuffix(name, "_issue"), name == "new_log":
			return class{classEntity, entityCreate}
		case strings.HasSuffix(name, "_revoke"), strings.Contains(name, "_revoke_"):
			return class{classEntity, entityDelete}
		case name == "shadow", name == "refused":
			return class{classEntity, entityRead}
		}
		return class{classEntity, entityUpdate}
	}
	return class{classLifecycle, activityOther} // heartbeat, clock
}

// ocsfClass writes what only some classes have.
func (p *projection) ocsfClass(e *enc, r *record.Record, c class, id string, h *has) {
	switch c.uid {
	case classAPI:
		p.ocsfAPI(e, r, h)
	case classAuthn:
		ocsfUser(e, r)
		e.lit(`"service":`, `{"name":"Gatebook"}`)
		if r.Kind == record.KindToken {
			e.num(`"auth_protocol_id":`, 6) // OAuth 2.0
		} else {
			e.num(`"auth_protocol_id":`, 4) // OpenID
		}
	case classEntity:
		at := e.open(`"entity":`)
		e.must(`"name":`, cmp.Or(r.Event.Target, r.Event.Name, string(r.Kind)))
		e.must(`"type":`, string(r.Kind))
		if r.Kind == record.KindPolicy {
			e.num(`"type_id":`, 5)
		} else {
			e.num(`"type_id":`, activityOther)
		}
		e.close(at)
	case classLifecycle:
		e.lit(`"app":`, `{"name":"Gatebook","vendor_name":"Gatebook"`)
		e.str(`"version":`, p.product)
		e.end()
	case classHTTP, classNetwork:
		ocsfTLS(e, r, h)
	case classFinding:
		ocsfFinding(e, r, id)
	}
}

func (p *projection) ocsfAPI(e *enc, r *record.Record, h *has) {
	at := e.open(`"api":`)
	if r.Kind == record.KindAccess {
		e.must(`"operation":`, cmp.Or(r.Event.Name, record.None))
	} else {
		e.must(`"operation":`, r.Op)
		h.op = true
	}
	e.id(`"request":{"uid":`, r.ID)
	e.end()
	e.close(at)
	if r.Route == "" {
		return
	}
	h.route = true
	e.list(`"resources":`)
	e.item()
	e.must(`"name":`, r.Route)
	e.lit(`"type":`, `"route"`)
	e.end()
	e.endList()
}

// ocsfTLS writes the connection of the classes that know one.
func ocsfTLS(e *enc, r *record.Record, h *has) {
	if r.TLS.Version != "" {
		h.tls = true
		at := e.open(`"tls":`)
		e.must(`"version":`, r.TLS.Version)
		e.str(`"cipher":`, r.TLS.Cipher)
		e.str(`"sni":`, r.TLS.SNI)
		e.close(at)
	}
	if r.TLS.JA4 != "" {
		h.ja4 = true
		e.list(`"ja4_fingerprint_list":`)
		e.item()
		e.num(`"type_id":`, 1) // JA4
		e.must(`"value":`, r.TLS.JA4)
		e.end()
		e.endList()
	}
}

func ocsfFinding(e *enc, r *record.Record, id string) {
	e.bool(`"is_alert":`, true)
	at := e.open(`"finding_info":`)
	e.must(`"uid":`, id)
	e.must(`"title":`, cmp.Or(r.Event.Name, string(r.Kind)))
	if r.Event.First > 0 {
		e.num(`"first_seen_time":`, r.Event.First/1000)
	}
	if r.Event.Last > 0 {
		e.num(`"last_seen_time":`, r.Event.Last/1000)
	}
	if len(r.Links) > 0 {
		e.list(`"related_events":`)
		for _, link := range r.Links {
			e.item()
			e.must(`"uid":`, link)
			e.end()
		}
		e.endList()
	}
	e.close(at)
}

// severity: 1 informational, 2 low, 3 medium, 4 high.
func severity(r *record.Record) int {
	switch r.Kind {
	case record.KindGap, record.KindUncleanStop:
		return 4
	case record.KindAlert:
		if strings.HasPrefix(r.Event.Name, "flood_") {
			return 3
		}
		return 4
	}
	switch action(r) {
	case "authn_token_reuse":
		return 4
	case "authz_fail":
		return 3
	}
	if r.Outcome == record.Success {
		return 1
	}
	return 2
}

// controls gives action_id and disposition_id.
func controls(r *record.Record) (action, disposition int) {
	const (
		unknown, allow, deny, observe = 0, 1, 2, 3

		isAllowed, blocked, logged, challenge  = 1, 2, 17, 23
		revoked, rejected, unauthorized, wrong = 24, 25, 26, 27
	)
	if !exchange(r.Kind) {
		if r.Outcome == record.Failure && (r.Error.Origin == originPolicy || r.Error.Origin == originIdentity) {
			return deny, unauthorized
		}
		return observe, logged
	}
	switch verdictOf(r) {
	case open:
		return unknown, 0
	case allowed:
		return allow, isAllowed
	case failed:
		return allow, wrong
	}
	switch r.Error.Reason {
	case "token_revoked", "key_revoked":
		return deny, revoked
	case "stepup_required", "dpop_nonce":
		return deny, challenge
	}
	switch r.Error.Origin {
	case originIdentity:
		return deny, unauthorized
	case originPolicy:
		return deny, blocked
	case originClient, originLimit:
		return deny, rejected
	}
	return deny, blocked
}
