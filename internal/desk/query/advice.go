package query

// Advice says what a reason means and what to do about it.
type Advice struct{ Means, Do string }

// AdviceOn explains a reason of the closed list; false for any other.
func AdviceOn(reason string) (Advice, bool) {
	a, ok := advice[reason]
	return a, ok
}

// Things to do that several reasons share.
const (
	doToken  = "Let the client get a fresh token from the issuer; if new ones fail too, compare the issuer's settings with the token (docs/configure.md, issuers)."
	doClient = "Look at how the client builds its requests; the gate does not repair what could be read in two ways."
	doUp     = "Look at the upstream and the way to it; \"gatebook status\" shows its targets."
	doBook   = "Run \"gatebook status\": it says what the book lacks. Routes with on_failure: refuse answer again when it is back."
	doPolicy = "If this should be allowed, change the policies or roles, test with \"gatebook check\" and run \"gatebook reload\"."
	doNone   = "Nothing, unless it happens often."
)

// advice holds the closed list of reasons.
var advice = map[string]Advice{
	"malformed_request":       {"the bytes that came are no HTTP request", doClient},
	"ambiguous_framing":       {"where the request ends could be read in two ways, as in request smuggling", doClient},
	"bad_path":                {"the path has a form that servers read differently (encoded slashes, dot segments, and the like)", "If the application needs such paths, allow the form under the route's path_rules."},
	"bad_host":                {"the Host field is missing, doubled or no host name", doClient},
	"header_too_large":        {"the header fields are larger than the gate takes (32 KiB)", "Let the client send less, for example smaller cookies."},
	"body_too_large":          {"the request body is larger than the route takes", "Raise the route's max_body if such bodies are meant to come."},
	"unsupported_protocol":    {"the client spoke a protocol that is not HTTP/1.1 or HTTP/2", doClient},
	"tls_handshake":           {"the TLS handshake failed; error.phase says where", "Look at the phase: http_on_tls is http:// on a TLS port, alert means that the client refused our certificate."},
	"tls_version":             {"the client offered nothing newer than TLS 1.1", "Update the client; nothing older than TLS 1.2 is spoken."},
	"tls_no_client_cert":      {"a client certificate is demanded and none came", "Give the client a certificate of the configured authority."},
	"tls_bad_client_cert":     {"the client certificate is expired, of another authority, or not for clients", "Look at the certificate's dates, issuer and extended key usage."},
	"timeout_reading":         {"the client took too long to send its request", doNone},
	"client_aborted":          {"the client went away before its answer was complete", "Nothing at the gate; look at upstream.ttfb_us if clients give up because answers take long."},
	"no_route":                {"no route has this host and path", "Compare with the routes in \"gatebook check\"; the record shows the path's shape only, its text with --reveal."},
	"method_not_allowed":      {"there is a route for the path, but not with this method", "Add the method to the route if it should be served."},
	"misdirected_request":     {"the request came over a connection that was made for another host, whose client certificates are asked for in another way", "Clients that know status 421 try again on a connection of their own; others must not share connections between hosts."},
	"upgrade_refused":         {"the client wanted another protocol than HTTP on this connection, which the route or the upstream does not give", doClient},
	"no_credential":           {"the route asks who is there, and the request does not say", "Let the client send an access token (Authorization: Bearer)."},
	"two_credentials":         {"the request has two different credentials, so it is not clear who is asking", doClient},
	"token_malformed":         {"what stands in Authorization is no JWS token of the strict form", doToken},
	"token_algorithm":         {"the token is signed by an algorithm that is not configured for its issuer", "Add the algorithm to the issuer if it is really in use there."},
	"token_key_unknown":       {"the issuer's key set has no key with the token's kid", "Look whether the issuer has just changed its keys; \"gatebook status\" shows when they were fetched."},
	"token_signature":         {"the token's signature does not fit the issuer's key", "A changed or forged token, or one of another issuer with the same name. Find out where it comes from."},
	"token_expired":           {"the token is past its exp", "Let the client get a fresh token before the old one ends; look at both clocks if it did."},
	"token_not_yet":           {"the token's nbf or iat lies in the future", "Compare the clocks of issuer and gate; the issuer's skew can be raised to a minute."},
	"token_lifetime_exceeded": {"the token lives longer than max_lifetime allows", "Shorten the lifetime at the issuer, or raise the issuer's max_lifetime."},
	"token_too_old":           {"the token was issued too long ago", doToken},
	"token_audience":          {"the token is for another audience", "Ask for a token for this API, or add the audience to the issuer."},
	"token_issuer":            {"the token is of an issuer that this route does not take", "Add the issuer to the route's authn if it should be believed there."},
	"token_type":              {"the token is of another type, for example an ID token", "Let the client send the access token, not the ID token."},
	"token_replayed":          {"a token that may be used once came again", "Find out who else has it."},
	"token_reuse_detected":    {"a refresh token, or a session id that was replaced, came again: somebody else may have it", "Let the person sign in again."},
	"token_revoked":           {"the token was revoked", doToken},
	"token_inactive":          {"the issuer says that the token is not active", doToken},
	"binding_required":        {"the token is bound to a key and came without proof of that key", "Such tokens are not taken as plain bearer tokens; use an unbound one until bindings are supported."},
	"binding_mismatch":        {"the token is bound to another key or certificate than the one shown", doClient},
	"dpop_proof":              {"the DPoP proof is missing or wrong", doClient},
	"dpop_nonce":              {"the DPoP proof needs the nonce that was sent with this answer", doNone},
	"key_unknown":             {"nobody was ever given an API key like this", "Look where it comes from: a typing error would be token_malformed, so it is made up, or a key of another gate."},
	"key_expired":             {"the API key has expired, or a newer secret has replaced this one", "Issue a new one; \"gatebook apikey show\" tells which secret is current."},
	"key_revoked":             {"the API key was revoked", "Issue a new one if its holder should still have access."},
	"cross_site":              {"a page of another site, or something that is no page, sent a request that changes something with a browser's session", "Call from pages of the API's own origin, or use a token."},
	"session_expired":         {"the browser session is over", "Let the person sign in again."},
	"stepup_required":         {"the route demands a stronger or newer sign-in than the token shows", "Let the client ask the issuer for it (acr, max_age)."},
	"issuer_unavailable":      {"the issuer could not be asked for its keys or about the token, so it cannot be checked", "Look at the way to the issuer and, for introspection, at client_id and secret; \"gatebook status\" shows the last error, \"gatebook check --probe\" what is wrong."},
	"denied_by_policy":        {"a policy forbids it, or the API key is not good for this route", "The policies named above decided. If none is named, it is the API key: \"gatebook apikey show\" lists its routes. " + doPolicy},
	"denied_by_default":       {"no policy and no role allows it", doPolicy},
	"policy_error":            {"a policy could not be evaluated, which counts as a denial", "Look for \"policy error\" with this request id in the process log and mend the policy."},
	"scope_missing":           {"the token lacks a scope that the route demands", "Let the client ask for the scope, or take it off the route."},
	"policy_unavailable":      {"the outside decision point gave no clear answer in time, which counts as a denial", "Look for \"policy error\" with this request id in the process log, and see whether the decision point is up."},
	"rate_limited":            {"the rate limit named above was used up; failed_logins.rate and failed_logins.name mean that too many credentials failed before this one, which was not looked at", "Let the client slow down and honour Retry-After, or raise the limit (failed ones: detect.failed_logins)."},
	"concurrency_limited":     {"too many requests of one kind at a time", "Let the client send fewer at a time."},
	"connection_limited":      {"too many connections at a time, in all or from one address", "A proxy in front belongs into the listener's trusted ranges; otherwise look for who opens so many."},
	"quota_exceeded":          {"the quota is used up", "Wait for the next period, or raise the quota."},
	"limiter_unavailable":     {"the store of a limit could not be reached, and the limit is set to refuse then", "Bring the store back."},
	"overloaded":              {"the gate has more to do than it can", "Give it more processors, or fewer requests."},
	"dns":                     {"the upstream's name could not be resolved", doUp},
	"connect_refused":         {"the upstream refused the connection: nothing listens there", doUp},
	"connect_timeout":         {"the upstream did not take the connection in time", doUp},
	"tls_verify":              {"the upstream's certificate is not of a trusted authority, expired, or for another name", "Look at the certificate and at the upstream's tls.ca and tls.server_name."},
	"tls_handshake_upstream":  {"the TLS handshake with the upstream failed", doUp},
	"reset_before_response":   {"the upstream closed the connection without an answer", doUp},
	"reset_mid_body":          {"the upstream broke off in the middle of its answer", doUp},
	"response_timeout":        {"the upstream did not begin its answer in time", doUp + " The route's upstream has timeouts.response."},
	"body_stalled":            {"the upstream stopped in the middle of its answer for too long", doUp + " The route's upstream has timeouts.idle_body."},
	"bad_response":            {"the upstream's answer is no HTTP, or could be read in two ways", doUp},
	"body_length_mismatch":    {"the upstream sent more or less than it had declared", doUp},
	"breaker_open":            {"the upstream failed so often in a row that it is left alone for a while", doUp},
	"no_healthy_target":       {"all targets of the upstream failed so often that they are left alone for a while", doUp},
	"retries_exhausted":       {"every attempt that is allowed failed", doUp},
	"panic":                   {"a fault of the gate itself", "Look for \"exchange panicked\" with this request id in the process log and report it."},
	"shutting_down":           {"the gate was stopping", doNone},
	"draining":                {"the gate was stopping and took no new requests", doNone},
	"book_unavailable":        {"the record could not be kept, so the answer was not given", doBook},
	"book_full":               {"there is no space left for records, so the answer was not given", "Make space where the data is; it goes on by itself."},
	"book_slow":               {"the record was not kept in time (book.commit_timeout), so the answer was not given", "Look at the disk's latency."},
}
