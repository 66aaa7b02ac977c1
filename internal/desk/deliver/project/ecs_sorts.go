package project

import (
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
)

// sorts are event.category and event.type, as JSON. ECS allows a type only with
// a category that expects it; the tests hold this against its own table.
type sorts struct{ category, types string }

// ecsSorts gives event.kind, event.category and event.type.
func ecsSorts(r *record.Record) (string, sorts) {
	switch r.Kind {
	case record.KindAlert:
		return "alert", sorts{`["intrusion_detection"]`, `["info"]`}
	case record.KindHeartbeat:
		return "state", sorts{`["process"]`, `["info"]`}
	}
	return "event", ecsSort(r)
}

func ecsSort(r *record.Record) sorts {
	switch r.Kind {
	case record.KindRequest, record.KindMalformed, record.KindInterrupted:
		return ecsRequest(r)
	case record.KindHandshake:
		if verdictOf(r) == denied {
			return sorts{`["network"]`, `["connection","denied"]`}
		}
		return sorts{`["network"]`, `["connection"]`}
	case record.KindSession:
		switch r.Event.Name {
		case "session_login":
			return sorts{`["authentication","session"]`, `["start"]`}
		case "session_logout", "session_backchannel_logout":
			return sorts{`["authentication","session"]`, `["end"]`}
		}
		return sorts{`["session"]`, `["info"]`}
	case record.KindToken:
		switch action(r) {
		case "authn_token_created":
			return sorts{`["authentication"]`, `["start"]`}
		case "authn_token_revoked":
			return sorts{`["authentication"]`, `["end"]`}
		}
		return sorts{`["authentication"]`, `["info"]`}
	}
	return ecsAct(r)
}

// ecsRequest sorts the calls of an API.
func ecsRequest(r *record.Record) sorts {
	switch verdictOf(r) {
	case allowed:
		return sorts{`["web","api"]`, `["access","allowed"]`}
	case denied:
		return sorts{`["web","api"]`, `["access","denied"]`}
	case failed:
		if r.Authz.Decision == "allow" {
			return sorts{`["web","api"]`, `["access","allowed","error"]`}
		}
		return sorts{`["web","api"]`, `["access","error"]`}
	}
	return sorts{`["web","api"]`, `["access","info"]`}
}

// ecsAct sorts what the book and operators do.
func ecsAct(r *record.Record) sorts {
	name := r.Event.Name
	switch r.Kind {
	case record.KindAdmin:
		return sorts{`["iam"]`, `["admin","change"]`}
	case record.KindKey:
		switch {
		case strings.HasSuffix(name, "_create"):
			return sorts{`["iam"]`, `["admin","creation"]`}
		case strings.HasSuffix(name, "_revoke"):
			return sorts{`["iam"]`, `["admin","deletion"]`}
		}
		return sorts{`["iam"]`, `["admin","change"]`}
	case record.KindAccess:
		return sorts{`["database"]`, `["access"]`}
	case record.KindPolicy:
		if name == "shadow" {
			return sorts{`["configuration"]`, `["info"]`}
		}
		return sorts{`["configuration"]`, `["change"]`}
	case record.KindConfig, record.KindHold:
		return sorts{`["configuration"]`, `["change"]`}
	case record.KindErasure, record.KindRetention:
		return sorts{`["database"]`, `["change"]`}
	case record.KindGap:
		return sorts{`["database"]`, `["error"]`}
	case record.KindClock:
		return sorts{`["host"]`, `["change"]`}
	case record.KindStart:
		return sorts{`["process"]`, `["start"]`}
	case record.KindStop, record.KindUncleanStop:
		return sorts{`["process"]`, `["end"]`}
	}
	return sorts{`["process"]`, `["info"]`} // delivery
}
