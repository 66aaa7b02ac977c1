package reason

// The public texts.
const (
	textMalformed    = "malformed request"
	textTooLarge     = "request too large"
	textVersion      = "protocol version not supported"
	textTLS          = "secure connection failed"
	textSlow         = "request timed out"
	textAborted      = "client closed the request"
	textNotFound     = "not found"
	textMethod       = "method not allowed"
	textUpgrade      = "upgrade refused"
	textAuthRequired = "authentication required"
	textAuthFailed   = "authentication failed"
	textDenied       = "access denied"
	textLimited      = "too many requests"
	textBusy         = "service busy"
	textUpstream     = "upstream unavailable"
	textUpstreamSlow = "upstream timed out"
	textInternal     = "internal error"
	textUnavailable  = "service unavailable"
)

// entry is what the list says about one reason.
type entry struct {
	reason Reason
	status int
	origin string
	public string
}

// list is the closed list, in the order of spec/record.md.
var list = []entry{
	{MalformedRequest, 400, OriginClient, textMalformed},
	{AmbiguousFraming, 400, OriginClient, textMalformed},
	{BadPath, 400, OriginClient, textMalformed},
	{BadHost, 400, OriginClient, textMalformed},
	{HeaderTooLarge, 431, OriginClient, textTooLarge},
	{BodyTooLarge, 413, OriginClient, textTooLarge},
	{UnsupportedProtocol, 505, OriginClient, textVersion},
	{TLSHandshake, 400, OriginClient, textTLS},
	{TLSVersion, 400, OriginClient, textTLS},
	{TLSNoClientCert, 400, OriginClient, textTLS},
	{TLSBadClientCert, 400, OriginClient, textTLS},
	{TimeoutReading, 408, OriginClient, textSlow},
	{ClientAborted, StatusClientAborted, OriginClient, textAborted},
	{NoRoute, 404, OriginClient, textNotFound},
	{MethodNotAllowed, 405, OriginClient, textMethod},
	{UpgradeRefused, 400, OriginClient, textUpgrade},
	{MisdirectedRequest, 421, OriginClient, textNotFound},

	{NoCredential, 401, OriginIdentity, textAuthRequired},
	{TwoCredentials, 400, OriginIdentity, textAuthFailed},
	{TokenMalformed, 401, OriginIdentity, textAuthFailed},
	{TokenAlgorithm, 401, OriginIdentity, textAuthFailed},
	{TokenKeyUnknown, 401, OriginIdentity, textAuthFailed},
	{TokenSignature, 401, OriginIdentity, textAuthFailed},
	{TokenExpired, 401, OriginIdentity, textAuthFailed},
	{TokenNotYet, 401, OriginIdentity, textAuthFailed},
	{TokenLifetimeExceeded, 401, OriginIdentity, textAuthFailed},
	{TokenTooOld, 401, OriginIdentity, textAuthFailed},
	{TokenAudience, 401, OriginIdentity, textAuthFailed},
	{TokenIssuer, 401, OriginIdentity, textAuthFailed},
	{TokenType, 401, OriginIdentity, textAuthFailed},
	{TokenReplayed, 401, OriginIdentity, textAuthFailed},
	{TokenReuseDetected, 401, OriginIdentity, textAuthFailed},
	{TokenRevoked, 401, OriginIdentity, textAuthFailed},
	{TokenInactive, 401, OriginIdentity, textAuthFailed},
	{BindingRequired, 401, OriginIdentity, textAuthFailed},
	{BindingMismatch, 401, OriginIdentity, textAuthFailed},
	{DPoPProof, 401, OriginIdentity, textAuthFailed},
	{DPoPNonce, 401, OriginIdentity, textAuthFailed},
	{KeyUnknown, 401, OriginIdentity, textAuthFailed},
	{KeyExpired, 401, OriginIdentity, textAuthFailed},
	{KeyRevoked, 401, OriginIdentity, textAuthFailed},
	{SessionExpired, 401, OriginIdentity, textAuthRequired},
	{StepupRequired, 401, OriginIdentity, textAuthRequired},
	{CrossSite, 403, OriginIdentity, textAuthFailed},
	// Not the caller's fault, and a client that reads 401 would throw away a
	// good token: it is told to come back instead.
	{IssuerUnavailable, 503, OriginIdentity, textAuthFailed},

	{DeniedByPolicy, 403, OriginPolicy, textDenied},
	{DeniedByDefault, 403, OriginPolicy, textDenied},
	{PolicyError, 403, OriginPolicy, textDenied},
	{ScopeMissing, 403, OriginPolicy, textDenied},
	{PolicyUnavailable, 503, OriginPolicy, textUnavailable},

	{RateLimited, 429, OriginLimit, textLimited},
	{ConcurrencyLimited, 429, OriginLimit, textLimited},
	{ConnectionLimited, 503, OriginLimit, textBusy},
	{QuotaExceeded, 429, OriginLimit, textLimited},
	{LimiterUnavailable, 503, OriginLimit, textBusy},
	{Overloaded, 503, OriginLimit, textBusy},

	{DNS, 502, OriginUpstream, textUpstream},
	{ConnectRefused, 502, OriginUpstream, textUpstream},
	{ConnectTimeout, 504, OriginUpstream, textUpstreamSlow},
	{TLSVerify, 502, OriginUpstream, textUpstream},
	{TLSHandshakeUpstream, 502, OriginUpstream, textUpstream},
	{ResetBeforeResponse, 502, OriginUpstream, textUpstream},
	{ResetMidBody, 502, OriginUpstream, textUpstream},
	{ResponseTimeout, 504, OriginUpstream, textUpstreamSlow},
	{BodyStalled, 504, OriginUpstream, textUpstreamSlow},
	{BadResponse, 502, OriginUpstream, textUpstream},
	{BodyLengthMismatch, 502, OriginUpstream, textUpstream},
	{BreakerOpen, 503, OriginUpstream, textUpstream},
	{NoHealthyTarget, 503, OriginUpstream, textUpstream},
	{RetriesExhausted, 502, OriginUpstream, textUpstream},

	{Panic, 500, OriginGateway, textInternal},
	{ShuttingDown, 503, OriginGateway, textUnavailable},
	{Draining, 503, OriginGateway, textUnavailable},

	{BookUnavailable, 503, OriginBook, textUnavailable},
	{BookFull, 503, OriginBook, textUnavailable},
	{BookSlow, 503, OriginBook, textUnavailable},
}

// numbered is an entry and its place in the list, from 1.
type numbered struct {
	entry
	number int
}

// table finds an entry by name; it is built from list once and never changes.
var table = func() map[Reason]numbered {
	m := make(map[Reason]numbered, len(list))
	for i, e := range list {
		m[e.reason] = numbered{e, i + 1}
	}
	return m
}()
