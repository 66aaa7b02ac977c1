package reason

import (
	"slices"
	"strings"
	"testing"
)

// spec is the closed list as spec/record.md has it, by origin.
var spec = []struct{ origin, names string }{
	{"client", "malformed_request ambiguous_framing bad_path bad_host header_too_large body_too_large unsupported_protocol tls_handshake tls_version tls_no_client_cert tls_bad_client_cert timeout_reading client_aborted no_route method_not_allowed upgrade_refused misdirected_request"},
	{"identity", "no_credential two_credentials token_malformed token_algorithm token_key_unknown token_signature token_expired token_not_yet token_lifetime_exceeded token_too_old token_audience token_issuer token_type token_replayed token_reuse_detected token_revoked token_inactive binding_required binding_mismatch dpop_proof dpop_nonce key_unknown key_expired key_revoked session_expired stepup_required cross_site issuer_unavailable"},
	{"policy", "denied_by_policy denied_by_default policy_error scope_missing policy_unavailable"},
	{"limit", "rate_limited concurrency_limited connection_limited quota_exceeded limiter_unavailable overloaded"},
	{"upstream", "dns connect_refused connect_timeout tls_verify tls_handshake_upstream reset_before_response reset_mid_body response_timeout body_stalled bad_response body_length_mismatch breaker_open no_healthy_target retries_exhausted"},
	{"gateway", "panic shutting_down draining"},
	{"book", "book_unavailable book_full book_slow"},
}

func TestListEqualsSpec(t *testing.T) {
	var want []Reason
	for _, line := range spec {
		for name := range strings.FieldsSeq(line.names) {
			r := Reason(name)
			want = append(want, r)
			if !r.Valid() {
				t.Errorf("%s is in the specification but not in the list", r)
			}
			if r.Origin() != line.origin {
				t.Errorf("%s has origin %q, the specification says %q", r, r.Origin(), line.origin)
			}
		}
	}
	for i, r := range want {
		if r.Number() != i+1 {
			t.Errorf("%s has number %d, want %d", r, r.Number(), i+1)
		}
	}
	if Reason("").Number() != 0 || Reason("nonsense").Number() != -1 {
		t.Error("what is no reason has a number")
	}
	if got := All(); !slices.Equal(got, want) {
		t.Errorf("All() = %v\nwant    %v", got, want)
	}
}

func TestEveryReasonIsComplete(t *testing.T) {
	texts := map[string]bool{}
	for _, r := range All() {
		if s := r.Status(); s < 400 || s > 599 {
			t.Errorf("%s has status %d", r, s)
		}
		if r.Public() == "" || strings.Contains(r.Public(), string(r)) {
			t.Errorf("%s has public text %q", r, r.Public())
		}
		switch r.GRPC() {
		case 7, 8, 14, 16:
		default:
			t.Errorf("%s has grpc-status %d", r, r.GRPC())
		}
		texts[r.Public()] = true
	}
	if len(texts) > 18 {
		t.Errorf("%d public texts, they are meant to be few", len(texts))
	}
	if len(table) != len(list) {
		t.Errorf("%d distinct reasons of %d", len(table), len(list))
	}
}

// TestIdentityIsNoOracle: whoever guesses tokens learns nothing from the text.
func TestIdentityIsNoOracle(t *testing.T) {
	for _, r := range All() {
		if r.Origin() != OriginIdentity {
			continue
		}
		if p := r.Public(); p != "authentication required" && p != "authentication failed" {
			t.Errorf("%s says %q", r, p)
		}
	}
	for _, r := range All() {
		if r.Origin() != OriginUpstream {
			continue
		}
		if p := r.Public(); p != "upstream unavailable" && p != "upstream timed out" {
			t.Errorf("%s says %q", r, p)
		}
	}
}

func TestStatusAndChallenge(t *testing.T) {
	for _, tc := range []struct {
		r      Reason
		status int
		oauth  string
		grpc   int
	}{
		{NoCredential, 401, "", 16},
		{TwoCredentials, 400, "invalid_request", 16},
		{TokenExpired, 401, "invalid_token", 16},
		{KeyRevoked, 401, "invalid_token", 16},
		{BindingMismatch, 401, "invalid_token", 16},
		{DPoPProof, 401, "invalid_dpop_proof", 16},
		{DPoPNonce, 401, "use_dpop_nonce", 16},
		{StepupRequired, 401, "insufficient_user_authentication", 16},
		{CrossSite, 403, "", 16},
		{IssuerUnavailable, 503, "", 14},
		{SessionExpired, 401, "", 16},
		{ScopeMissing, 403, "insufficient_scope", 7},
		{DeniedByDefault, 403, "", 7},
		{RateLimited, 429, "", 8},
		{QuotaExceeded, 429, "", 8},
		{Overloaded, 503, "", 14},
		{ClientAborted, 499, "", 7},
		{BodyTooLarge, 413, "", 8},
		{HeaderTooLarge, 431, "", 8},
		{TimeoutReading, 408, "", 7},
		{NoRoute, 404, "", 7},
		{MethodNotAllowed, 405, "", 7},
		{UnsupportedProtocol, 505, "", 14},
		{ConnectTimeout, 504, "", 14},
		{ResponseTimeout, 504, "", 14},
		{BodyStalled, 504, "", 14},
		{BreakerOpen, 503, "", 14},
		{DNS, 502, "", 14},
		{Panic, 500, "", 14},
		{BookFull, 503, "", 14},
		{Reason("nonsense"), 500, "", 14},
	} {
		if got := tc.r.Status(); got != tc.status {
			t.Errorf("%s: status %d, want %d", tc.r, got, tc.status)
		}
		if got := tc.r.OAuthError(); got != tc.oauth {
			t.Errorf("%s: OAuth error %q, want %q", tc.r, got, tc.oauth)
		}
		if got := tc.r.GRPC(); got != tc.grpc {
			t.Errorf("%s: grpc-status %d, want %d", tc.r, got, tc.grpc)
		}
	}
	if Reason("nonsense").Valid() || Reason("").Valid() {
		t.Error("a reason outside the list is valid")
	}
	if got := Reason("nonsense").Origin(); got != OriginGateway {
		t.Errorf("unknown reason has origin %q", got)
	}
}

// TestFolds names every reason: a flood of strangers may be folded, and nothing
// else.
func TestFolds(t *testing.T) {
	yes := strings.Fields(`
		malformed_request ambiguous_framing bad_path bad_host header_too_large unsupported_protocol
		tls_handshake tls_version tls_no_client_cert tls_bad_client_cert
		timeout_reading connection_limited no_route method_not_allowed misdirected_request body_too_large
		rate_limited concurrency_limited quota_exceeded limiter_unavailable overloaded
		no_credential two_credentials token_malformed token_algorithm token_key_unknown token_signature token_expired
		token_not_yet token_lifetime_exceeded token_too_old token_audience token_issuer token_type
		token_revoked token_inactive dpop_proof dpop_nonce key_unknown key_expired key_revoked
		session_expired issuer_unavailable
		shutting_down draining`)
	no := strings.Fields(`
		client_aborted upgrade_refused
		stepup_required cross_site binding_required binding_mismatch token_replayed token_reuse_detected
		denied_by_policy denied_by_default policy_error scope_missing policy_unavailable
		dns connect_refused connect_timeout tls_verify tls_handshake_upstream reset_before_response reset_mid_body
		response_timeout body_stalled bad_response body_length_mismatch breaker_open no_healthy_target retries_exhausted
		panic
		book_unavailable book_full book_slow`)
	for _, r := range All() {
		folds, writes := slices.Contains(yes, string(r)), slices.Contains(no, string(r))
		if folds == writes {
			t.Errorf("%s must be in one of the two lists", r)
		}
		if r.Folds() != folds {
			t.Errorf("%s: Folds() = %v", r, r.Folds())
		}
	}
	if n := len(yes) + len(no); n != len(All()) {
		t.Errorf("%d names in the two lists, %d reasons", n, len(All()))
	}
	if Reason("").Folds() || Reason("nonsense").Folds() {
		t.Error("what is no reason folds")
	}
}
