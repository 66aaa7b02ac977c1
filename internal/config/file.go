package config

import (
	"net/netip"
)

// File is a whole configuration file after defaults have been applied: what
// the product will do. Its tags are the one table from which the decoder, the
// JSON Schema and docs/configure.md are made:
//
//	key       the key in the file
//	doc       what it means
//	default   the value when the key is absent, as the file would write it
//	required  the key must be there
//	enum      the values allowed, separated by spaces
//	min, max  the range of a number, duration or size, both ends included
//	form      what a text must look like (see forms)
//	names     what a key of a map must look like (see forms)
//	later     the feature behind a key that this release refuses
//	laterenum values of an enum that this release refuses
//
// A File is not changed after it was read and may be shared.
type File struct {
	Data         Path                `key:"data" default:"/var/lib/gatebook" doc:"Directory of the book: write-ahead log, segments, tree and state."`
	Node         string              `key:"node" required:"true" form:"node" doc:"Name of this node, unique among the nodes that share an origin. It is part of the log's origin and of every record."`
	Origin       string              `key:"origin" required:"true" form:"origin" doc:"Prefix of the log's name in checkpoints: a host name you own and a path, without scheme. The node and the key's digest are added to it."`
	Keys         Keys                `key:"keys" doc:"Where the keys that protect the book are kept."`
	Book         Book                `key:"book" doc:"How the book keeps records."`
	Listen       []Listener          `key:"listen" required:"true" doc:"Addresses on which requests come in."`
	Admin        Admin               `key:"admin" doc:"How commands reach the running server."`
	Health       Health              `key:"health" doc:"Health, readiness and metrics: no authentication, nothing personal, not recorded."`
	Issuers      []Issuer            `key:"issuers" doc:"Who may issue access tokens."`
	APIKeys      APIKeys             `key:"apikeys" doc:"What is said of API keys, which gatebook apikey issues."`
	Sessions     []Session           `key:"sessions" doc:"How people log in with a browser, by host."`
	TokenService *TokenService       `key:"token_service" doc:"Built-in authorization server: tokens for machines, exchange of tokens for narrower ones. Unset: off."`
	Upstreams    map[string]Upstream `key:"upstreams" names:"name" doc:"Services to which requests go, by name."`
	Routes       []Route             `key:"routes" required:"true" doc:"What may be asked for. A request that no route matches is answered 404 and recorded."`
	Roles        map[string]Role     `key:"roles" names:"label" doc:"Routes that the bearer of a role may use, by role. Written into policies; for conditions use policies."`
	Policies     *Policies           `key:"policies" doc:"Cedar policies. Without an allowing policy or role every request is denied."`
	Points       map[string]Point    `key:"decision_points" names:"name" doc:"Outside decision points that speak AuthZEN 1.0. What the policies allow, the point must allow too; without a clear answer in time the request is denied (policy_unavailable)."`
	Limits       map[string]Limit    `key:"limits" names:"name" doc:"Rate limits, by the name that routes use."`
	Redact       Redact              `key:"redact" doc:"What records keep beyond the fixed allow-list."`
	Classes      map[string]Class    `key:"classes" names:"name" later:"retention of records by class" doc:"How long records are kept, by class."`
	Detect       Detect              `key:"detect" doc:"What is done about callers who fail again and again, and when it is an alert."`
	Sinks        []Sink              `key:"sinks" doc:"Outside systems that receive every record, at least once each. A sink that is away holds up nothing; what it lacks stays in the book and is sent when it is back."`
	Reload       Reload              `key:"reload" doc:"When the file is read again besides SIGHUP and gatebook reload. Certificates are always read again when they change."`
	RequestID    RequestID           `key:"request_id" doc:"Request ids made by others."`
	DPoP         DPoP                `key:"dpop" doc:"How proofs of possession (DPoP, RFC 9449) are judged on routes with dpop."`
	Reuse        Reuse               `key:"token_reuse" doc:"When a token counts as used by several, by its id (jti)."`
	Valkey       *Valkey             `key:"valkey" doc:"Valkey or Redis server (7.0 or newer, maxmemory-policy noeviction) through which nodes share what was used once. Unset: every node remembers for itself."`
	Identity     Signer              `key:"identity" doc:"Who signs the identity that routes and upstreams with identity get."`

	source source
}

// source is where a File came from.
type source struct {
	name  string // as in messages
	dir   string // absolute; relative Paths were resolved against it
	text  string
	at    map[string]position // by key path: of the value
	keyAt map[string]position // by key path: of the key, where there is one

	relative map[Path]bool // file names that were written relative to dir
}

// Later is the type of a key whose feature does not exist yet. The decoder
// refuses the key and does not look at its value.
type Later struct{}

// Keys says where the book's keys are.
type Keys struct {
	Wrapper Wrapper `key:"wrapper" doc:"Root of trust that wraps all other keys. Exactly one kind."`
}

// Wrapper is the root of trust: one kind of several.
type Wrapper struct {
	File         Path  `key:"file" default:"/etc/gatebook/keys" doc:"Directory of key files, mode 0700, outside the data directory and outside its backups."`
	VaultTransit Later `key:"vault_transit" later:"keys wrapped by Vault or OpenBao transit" doc:"Keys wrapped by Vault or OpenBao transit."`
	AWSKMS       Later `key:"aws_kms" later:"keys wrapped by AWS KMS" doc:"Keys wrapped by AWS KMS."`
}

// Book says how the book keeps records.
type Book struct {
	SegmentMaxAge Duration `key:"segment_max_age" default:"1h" min:"1m" max:"1d" doc:"Age at which a segment is sealed even if it is not full."`
	SyncWithin    Duration `key:"sync_within" default:"15ms" min:"1ms" max:"1s" doc:"Longest time between a write and its fdatasync at the level written."`
	CommitTimeout Duration `key:"commit_timeout" default:"1s" min:"10ms" max:"1m" doc:"Longest wait for a record to be kept before the exchange fails with book_slow; as long again for one that is being written then."`
	Anchors       Later    `key:"anchors" later:"witnesses and other anchors" doc:"Witnesses that countersign checkpoints."`
}

// Values of Listener.Plaintext.
const PlaintextBehindProxy = "behind_proxy"

// Listener is one address on which requests come in. Exactly one of TLS,
// RedirectToHTTPS and Plaintext is set.
type Listener struct {
	Name            string         `key:"name" required:"true" form:"name" doc:"Name by which routes and records refer to it."`
	Address         string         `key:"address" required:"true" form:"address" doc:"Host and port to listen on; an empty host means all addresses."`
	TLS             *TLS           `key:"tls" doc:"Serve HTTPS (TLS 1.2 and 1.3) with these certificates."`
	RedirectToHTTPS bool           `key:"redirect_to_https" doc:"Answer every request with a redirect to the https form of its URL. Nothing is routed."`
	Plaintext       string         `key:"plaintext" enum:"behind_proxy" doc:"Serve HTTP without TLS because a proxy in front ends it; its addresses go into trusted."`
	Trusted         []netip.Prefix `key:"trusted" doc:"Address ranges of proxies whose forwarded headers are believed. Unset: nobody's are."`
	ProxyProtocol   string         `key:"proxy_protocol" default:"off" enum:"off" laterenum:"v1 v2 on optional required" doc:"Whether peers send a PROXY protocol header."`
	ClientCert      bool           `key:"client_cert" doc:"The proxies in trusted end the client's TLS and give its certificate in the field Client-Cert (RFC 9440), which they remove from requests without one. It counts for tokens bound to a certificate only."`
	ACME            Later          `key:"acme" later:"certificates obtained by ACME" doc:"Obtain certificates by ACME."`
}

// TLS is the server side of a listener's TLS.
type TLS struct {
	Certificates []Certificate `key:"certificates" required:"true" doc:"Certificates, chosen by server name; the first serves clients that send none."`
	ClientCA     Path          `key:"client_ca" form:"file" doc:"PEM file of the authorities of client certificates. One that another of the file issued is an intermediate, every other one an anchor."`
	ClientAuth   string        `key:"client_auth" default:"off" enum:"off optional required" doc:"Whether clients are asked for a certificate, and whether a connection without one is refused. One that is shown must be good in either case."`
	CRL          Path          `key:"crl" form:"file" doc:"File of revocation lists, PEM or DER: complete and current, one of each authority that issued a certificate below an anchor, and signed by it. When one has run out no client certificate is taken."`
}

// Values of TLS.ClientAuth.
const (
	ClientAuthOff      = "off"
	ClientAuthOptional = "optional"
	ClientAuthRequired = "required"
)

// Certificate is a certificate chain and its private key, both PEM files.
type Certificate struct {
	Cert Path `key:"cert" required:"true" form:"file" doc:"PEM file with the certificate and its chain, leaf first."`
	Key  Path `key:"key" required:"true" form:"file" doc:"PEM file with the private key, readable by its owner only."`
}

// Admin says how commands reach the running server.
type Admin struct {
	Socket  bool       `key:"socket" default:"true" doc:"Open the socket DATA/admin.sock (mode 0600); the peer's uid is the recorded actor."`
	Address string     `key:"address" form:"address" doc:"Address for administration over TCP; unset: not served. It needs tls and roles."`
	TLS     *AdminTLS  `key:"tls" doc:"Certificates of the TCP listener, and whose client certificates it takes."`
	Roles   AdminRoles `key:"roles" doc:"Who holds which role on the TCP listener; who can open the socket holds all. A holder is written as a kind and a name: cn:NAME, dns:NAME, email:NAME and uri:NAME are what a client certificate says, role:ISSUER:ROLE and sub:ISSUER:SUBJECT what a bearer token of that issuer says."`
}

// AdminTLS is the server side of the administration's TLS.
type AdminTLS struct {
	Certificates []Certificate `key:"certificates" required:"true" doc:"Certificates, chosen by server name; the first serves clients that send none."`
	ClientCA     Path          `key:"client_ca" form:"file" doc:"PEM file of the authorities of client certificates. Unset: only bearer tokens are taken."`
}

// AdminRoles lists the holders of each administrative role.
type AdminRoles struct {
	Reader   []string `key:"reader" form:"holder" doc:"May read frames, counts, proofs and the status, follow what is recorded, and verify."`
	Reveal   []string `key:"reveal" form:"holder" doc:"May open personal parts, besides being a reader."`
	Operator []string `key:"operator" form:"holder" doc:"May reload, revoke tokens and back up."`
	Privacy  []string `key:"privacy" form:"holder" doc:"May erase, hold and prune, once this release does such."`
	Decide   []string `key:"decide" form:"holder" doc:"May ask the policies for decisions by AuthZEN, and nothing else."`
}

// Health says where health, readiness and metrics are served.
type Health struct {
	Address string `key:"address" form:"address" doc:"Address of /healthz, /readyz and /metrics; unset: not served. Keep it off public networks."`
}

// Issuer is one authority whose access tokens are accepted. After Parse its
// fields hold the effective values, those of the preset included.
type Issuer struct {
	Name        string   `key:"name" required:"true" form:"name" doc:"Name by which routes and records refer to it."`
	Preset      string   `key:"preset" default:"rfc9068" enum:"rfc9068 keycloak entra auth0 okta cognito google" doc:"Product that issues the tokens; sets what is not set here as that product really does it. ID tokens are refused under all."`
	Issuer      string   `key:"issuer" required:"true" form:"issuer" doc:"Issuer identifier: the exact value of the iss claim, an https URL (http on loopback only)."`
	Audiences   []string `key:"audiences" required:"true" form:"text" doc:"Audiences that mean this gate; a token must name one of them in the claim that the preset reads."`
	Algorithms  []string `key:"algorithms" enum:"RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA" doc:"Signature algorithms accepted. Default: those of the preset."`
	Types       []string `key:"types" form:"type" doc:"Values of the token's typ header accepted; absent stands for no typ header. Default: those of the preset."`
	MaxLifetime Duration `key:"max_lifetime" min:"1m" max:"30d" doc:"Longest lifetime (exp minus iat) of an acceptable token. Default: that of the preset."`
	Skew        Duration `key:"skew" default:"30s" min:"1s" max:"1m" doc:"Clock difference to the issuer that is tolerated."`
	RolesClaim  string   `key:"roles_claim" form:"pointer" doc:"JSON pointer to the claim that lists the caller's roles. Default: that of the preset."`
	GroupsClaim string   `key:"groups_claim" form:"pointer" doc:"JSON pointer to the claim that lists the caller's groups, for policies. Default: that of the preset; most have none."`
	TenantClaim string   `key:"tenant_claim" form:"pointer" doc:"JSON pointer to the claim that names the caller's tenant, for policies. Default: that of the preset; most have none."`
	Clients     []string `key:"clients" form:"text" doc:"OAuth clients whose ids records may show; others appear as _other."`
	JWKS        *JWKS    `key:"jwks" doc:"Where the issuer's keys are. Unset: discovered from the issuer URL."`
	KeyInterval Duration `key:"key_interval" default:"30s" min:"1s" max:"10m" doc:"A token that names a key that is not known makes the gate fetch the keys again, but not sooner than this after the fetch before."`
	CA          Path     `key:"ca" form:"file" doc:"PEM file of the authorities trusted for discovery, keys and introspection, instead of the system's."`

	Introspection *Introspection `key:"introspection" doc:"Where the issuer is asked about tokens that cannot be read, or that it may have revoked."`
}

// JWKS names an issuer's key set: exactly one of URL and File.
type JWKS struct {
	URL  string `key:"url" form:"jwksurl" doc:"URL of the key set, https (http on loopback only)."`
	File Path   `key:"file" form:"file" doc:"File with the key set, for issuers that cannot be reached."`
}

// Values of Upstream.Balance.
const (
	BalanceLeastRequests = "least_requests"
	BalanceRoundRobin    = "round_robin"
)

// Upstream is a service with one or more interchangeable targets.
type Upstream struct {
	Targets      []string     `key:"targets" required:"true" form:"target" doc:"Base URLs: scheme, host and port, without path. All with the same scheme."`
	Balance      string       `key:"balance" default:"least_requests" enum:"least_requests round_robin" doc:"How a target is chosen."`
	Timeouts     Timeouts     `key:"timeouts" doc:"How long is waited for the upstream."`
	TLS          *UpstreamTLS `key:"tls" doc:"How https targets are verified. They always are."`
	PreserveHost bool         `key:"preserve_host" doc:"Send the client's Host upstream instead of the target's."`
	MaxIdle      int          `key:"max_idle" default:"128" min:"0" max:"65536" doc:"Idle connections kept per target."`
	Ejection     Ejection     `key:"ejection" doc:"When a failing target is left out."`
	Identity     *Identity    `key:"identity" doc:"What its requests carry to prove that they come through this gate and for whom. Unset: only unsigned fields."`
	Health       *Checks      `key:"health" doc:"Active health checks. Unset: none; ejection works without them."`
}

// Timeouts bounds the parts of an upstream call.
type Timeouts struct {
	Connect  Duration `key:"connect" default:"1s" min:"1ms" max:"1m" doc:"For a connection, TLS included."`
	Response Duration `key:"response" default:"30s" min:"1ms" max:"1h" doc:"From the end of the request to the head of the answer."`
	IdleBody Duration `key:"idle_body" default:"30s" min:"1ms" max:"1d" doc:"Between two reads of the body; long enough for the pauses of event streams."`
}

// UpstreamTLS says how an upstream's certificate is verified.
type UpstreamTLS struct {
	CA         Path   `key:"ca" form:"file" doc:"PEM file of the authorities trusted, instead of the system's."`
	ServerName string `key:"server_name" form:"host" doc:"Name expected in the certificate and sent as SNI. Default: the target's host."`
}

// Ejection is passive: it counts the failures of real requests.
type Ejection struct {
	Failures int      `key:"failures" default:"5" min:"0" max:"1000" doc:"Consecutive failures after which a target is left out; 0: never. When all are left out requests are answered 503."`
	For      Duration `key:"for" default:"10s" min:"100ms" max:"1h" doc:"How long it is left out before one request tries it again; longer each time that fails, up to a minute."`
}

// Checks are active: every target is asked on a connection of its own, and
// nothing of that is recorded.
type Checks struct {
	Path      string   `key:"path" required:"true" form:"checkpath" doc:"Path, with a query if need be, that a GET asks every target for."`
	Interval  Duration `key:"interval" default:"5s" min:"100ms" max:"1h" doc:"Between two checks of a target, give or take a tenth."`
	Timeout   Duration `key:"timeout" min:"10ms" max:"1m" doc:"For a whole check: connection, head and body. Default: the interval, but at most 2s."`
	Healthy   int      `key:"healthy" default:"2" min:"1" max:"100" doc:"Checks passed in a row until an unhealthy target is used again."`
	Unhealthy int      `key:"unhealthy" default:"3" min:"1" max:"100" doc:"Checks failed in a row until a target is no longer used. At the start all are used. When none is left requests are answered 503."`
	Status    []int    `key:"status" min:"100" max:"599" doc:"Status codes that pass. Default: all from 200 to 299."`
}

// Route is a set of requests and what happens to them.
type Route struct {
	Name      string   `key:"name" required:"true" form:"route" doc:"Name in roles, policies and records."`
	Listeners []string `key:"listeners" form:"name" doc:"Listeners on which it is served. Default: all that do not only redirect."`
	Host      string   `key:"host" form:"host" doc:"Host name asked for, without port. Unset: any."`
	Path      string   `key:"path" required:"true" form:"pattern" doc:"Path pattern, matched segment by segment: {name} is one segment, {rest...} at the end all that remain."`
	Methods   []string `key:"methods" form:"method" doc:"Methods allowed. Unset: all."`
	Upstream  string   `key:"upstream" required:"true" form:"name" doc:"Name of the upstream."`
	Authn     []Authn  `key:"authn" doc:"Ways to say who is asking, tried in order. A route has this or public."`
	Public    bool     `key:"public" doc:"Serve callers who do not say who they are. Policies still apply."`
	Scopes    []string `key:"scopes" form:"scope" doc:"OAuth scopes that a token must have, all of them."`

	Audiences   []string  `key:"audiences" form:"text" doc:"Audiences of which a token must name one here; some issuer of the route has each. Unset: those of the issuer."`
	ACR         []string  `key:"acr" form:"acr" doc:"Authentication context classes of which the login must have had one; otherwise the answer asks for a step-up (RFC 9470)."`
	MaxAge      Duration  `key:"max_age" min:"1s" max:"30d" doc:"Longest time since the person logged in (auth_time); otherwise the answer asks for a step-up (RFC 9470)."`
	TokenMaxAge Duration  `key:"token_max_age" min:"1s" max:"30d" doc:"Longest time since the token was issued (iat)."`
	Resource    string    `key:"resource" form:"resource" doc:"Resource identifier of the API that the route belongs to: the URL that clients use, host and path. Its metadata (RFC 9728) are served at /.well-known/oauth-protected-resource and that path, for all routes with the same identifier, and challenges point there."`
	Limits      []string  `key:"limits" form:"name" doc:"Names of the rate limits that apply, all of them."`
	Audit       Audit     `key:"audit" doc:"How firmly the exchange is recorded."`
	MaxBody     Size      `key:"max_body" default:"10MiB" max:"1024GiB" doc:"Largest request body accepted."`
	Record      Record    `key:"record" doc:"What the record keeps beyond the usual."`
	PathRules   PathRules `key:"path_rules" doc:"Unusual forms of a path that are let through. Paths are strict otherwise."`

	DPoP           string    `key:"dpop" enum:"optional required" doc:"Take tokens bound to a key, under the scheme DPoP and with a proof. required: tokens bound to nothing are refused. Unset: tokens bound to a key are refused."`
	DPoPNonce      bool      `key:"dpop_nonce" doc:"Proofs must hold a nonce that this gate has given out (RFC 9449 section 8)."`
	CertBound      string    `key:"certificate_bound" enum:"optional required" doc:"Take tokens bound to the client's certificate (RFC 8705). required: tokens bound to nothing are refused; with dpop required too, either binding will do. Unset: tokens bound to a certificate are refused."`
	OneTime        bool      `key:"one_time" doc:"Take a token once only on all such routes together; it needs a jti. It is used up when it has been verified, whatever becomes of the request, and refused while what was used cannot be known."`
	PassCredential bool      `key:"pass_credential" doc:"Send the caller's credentials (Authorization, DPoP, API keys) on to the upstream. Otherwise none leaves the gate."`
	Identity       *Identity `key:"identity" doc:"As identity of the upstream, for this route; it replaces the upstream's."`
}

// Values of PathRules.Allow and PathRules.Strict.
const (
	PathEncodedSlash = "encoded_slash"
	PathSemicolon    = "semicolon"
	PathEmptySegment = "empty_segment"
	PathPercent      = "percent"

	StrictRefuse  = "refuse"
	StrictObserve = "observe"
)

// PathRules says which unusual forms of a path a route takes. Its pattern is
// matched with the segments as they were received, and the path is forwarded
// as received.
type PathRules struct {
	Allow  []string `key:"allow" enum:"encoded_slash semicolon empty_segment percent" doc:"Forms that are taken: %2F inside a segment, ; (parameters), // (empty segments), %25 before another encoding. A path is refused all the same if the upstream could take it for one of another route."`
	Strict string   `key:"strict" default:"refuse" enum:"refuse observe" doc:"What happens to the forms that are not allowed: they are refused, or let through and noted in the record as would_refuse. Dot segments, backslashes and control characters are always refused."`
}

// Authn is one way to say who is asking: exactly one key.
type Authn struct {
	JWT        string  `key:"jwt" form:"name" doc:"Bearer access token of the issuer with this name."`
	APIKey     *APIKey `key:"apikey" doc:"API key that gatebook apikey issued. {} takes one where clients usually send it."`
	Session    string  `key:"session" form:"name" doc:"Browser session of the sessions entry with this name. Requests with an unsafe method need Sec-Fetch-Site or Origin to say that a page of the same origin sends them (cross_site)."`
	MTLS       *MTLS   `key:"mtls" doc:"Client certificate, of a listener with client_auth."`
	Introspect string  `key:"introspect" form:"name" doc:"Bearer token, opaque or not, about which the issuer with this name is asked. API keys are not sent there."`
}

// APIKeys says how API keys appear.
type APIKeys struct {
	Issuer string `key:"issuer" default:"apikey" form:"name" doc:"What records and policies call the issuer of API keys: their owners are subjects of it. It is none of issuers. Changing it makes other subjects of the same owners."`
}

// APIKey says where a route looks for an API key.
type APIKey struct {
	In []string `key:"in" form:"keyfield" doc:"Header fields, in lower case; authorization stands for a bearer token that begins with gbk_. Default: x-api-key and authorization."`
}

// Values of MTLS.Subject.
const (
	SubjectCN     = "cn"
	SubjectDNS    = "dns"
	SubjectURI    = "uri"
	SubjectEmail  = "email"
	SubjectSPIFFE = "spiffe"
)

// MTLS says whom a client certificate speaks for.
type MTLS struct {
	Name         string              `key:"name" default:"mtls" form:"name" doc:"What records and policies call the issuer. Different authorities need different names, since a subject is only unique with its issuer."`
	Subject      string              `key:"subject" required:"true" enum:"cn dns uri email spiffe" doc:"Which name of the certificate is the subject: the common name, or the alternative name of that kind. The certificate must have exactly one such name. spiffe: its only URI is a SPIFFE id, and it is an X.509-SVID."`
	TrustDomains []string            `key:"trust_domains" form:"trustdomain" doc:"SPIFFE trust domains that are accepted; with subject spiffe only, and needed there."`
	Roles        map[string][]string `key:"roles" names:"label" form:"text" doc:"Roles and the subjects that hold each. One that ends in /* means all that begin with what stands before the star."`
}

// Identity is what an upstream gets to know for certain. Exactly one kind.
type Identity struct {
	JWT *IdentityJWT `key:"jwt" required:"true" doc:"A signed JWT, made for each request."`
}

// IdentityJWT describes the JWT that a request carries to its upstream.
type IdentityJWT struct {
	Header     string   `key:"header" default:"X-Gatebook-Identity" form:"identityheader" doc:"Header that carries it. What the client sends under that name is removed."`
	Lifetime   Duration `key:"lifetime" default:"1m" min:"5s" max:"5m" doc:"Time from iat to exp."`
	Audience   string   `key:"audience" form:"text" doc:"Value of aud. Default: the name of the upstream."`
	BodyDigest Size     `key:"body_digest" max:"1MiB" doc:"Bind bodies of known length up to this size, by the claim content_digest; they are held in memory until they are complete. A body that is not bound is named in content_digest_absent. Default: no body is bound."`
}

// Signer is the authority whose keys sign Identity.
type Signer struct {
	Issuer string   `key:"issuer" form:"text" doc:"Value of iss. Default: https:// and the origin."`
	Rotate Duration `key:"rotate" default:"7d" min:"1h" max:"90d" doc:"How long a key signs. The next one is published that long before it signs, and one that no longer signs for a day after."`
}

// Values of Audit.Commit, Audit.Intent and Audit.OnFailure.
const (
	CommitWritten = "written"
	CommitDurable = "durable"
	CommitQueued  = "queued"

	IntentAll    = "all"
	IntentUnsafe = "unsafe"
	IntentNone   = "none"

	OnFailureRefuse = "refuse"
	OnFailureAllow  = "allow"
)

// Audit says how firmly an exchange is recorded.
type Audit struct {
	Commit    string `key:"commit" default:"written" enum:"written durable queued" doc:"When an answer may end: its record is in the kernel (survives kill -9), on disk, or only accepted in memory."`
	Intent    string `key:"intent" default:"all" enum:"all unsafe none" doc:"Which requests are noted before the upstream is called: all, only unsafe methods, or none."`
	OnFailure string `key:"on_failure" default:"refuse" enum:"refuse allow" doc:"If the book cannot take the record: refuse the request, or answer and count the gap."`
}

// Record lists what a route's records keep beyond the usual.
type Record struct {
	Headers []string `key:"headers" form:"header" doc:"Request headers kept in the personal part, in lower case."`
	Claims  []string `key:"claims" form:"claim" doc:"Token claims kept in the personal part."`
	Phases  bool     `key:"phases" doc:"Keep how long each part of the exchange took."`
}

// Role lists the routes that the bearer of a role may use.
type Role struct {
	Allow []string `key:"allow" required:"true" form:"routes" doc:"Route names; orders.* means all routes whose names begin with orders., and * all."`
}

// Policies names the Cedar policies.
type Policies struct {
	Dir    Path `key:"dir" required:"true" form:"file" doc:"Directory of the policy files, *.cedar, in it and below it."`
	Schema Path `key:"schema" form:"file" doc:"Cedar schema that policies are checked against. Default: schema.cedarschema in dir, else one made from the routes."`
	Tests  Path `key:"tests" form:"file" doc:"Directory of policy tests, *.json. All must pass before policies are used."`

	Headers []string `key:"headers" form:"header" doc:"Request headers, in lower case, that policies see as context.headers, each with all its values. A schema of its own declares what it wants."`
	Shadow  *Shadow  `key:"shadow" doc:"Policies that are asked too and decide nothing; where they would have decided otherwise is recorded."`
}

// Shadow names policies that are only tried.
type Shadow struct {
	Dir    Path `key:"dir" required:"true" form:"file" doc:"Directory of the policy files, as in policies.dir. Roles and routes are the same."`
	Schema Path `key:"schema" form:"file" doc:"Cedar schema of the shadow policies, as in policies.schema."`
	Sample int  `key:"sample" default:"100" min:"1" max:"100" doc:"How many in a hundred requests the shadow policies are asked about."`
	Queue  int  `key:"queue" default:"1024" min:"1" max:"65536" doc:"Requests that may wait for the shadow policies; more are skipped and counted."`
	CPU    int  `key:"cpu" default:"10" min:"1" max:"100" doc:"How much of one processor the shadow policies may take, in percent; what does not fit is skipped and counted."`
}

// Point is an outside decision point. It is told who asks, with roles, scopes
// and claims, and for what.
type Point struct {
	URL     string   `key:"url" required:"true" form:"jwksurl" doc:"URL of its access evaluation endpoint, https (http on loopback only)."`
	Routes  []string `key:"routes" form:"routes" doc:"Routes for which it is asked; orders.* means all routes whose names begin with orders. Default: all. A route has one point at most."`
	Timeout Duration `key:"timeout" default:"200ms" min:"1ms" max:"10s" doc:"For a whole question, waiting for a connection included."`
	Conns   int      `key:"connections" default:"16" min:"1" max:"1024" doc:"Connections at once."`
	CA      Path     `key:"ca" form:"file" doc:"PEM file of the authorities trusted, instead of the system's."`
	Token   Path     `key:"token" form:"file" doc:"File with a bearer token to show it."`
}

// Values of Limit.Key.
const (
	KeyPrefix  = "prefix"
	KeySubject = "subject"
	KeyClient  = "client"
	KeyRoute   = "route"
)

// Limit is one rate limit.
type Limit struct {
	Key            string `key:"key" required:"true" enum:"prefix subject client route" laterenum:"tenant" doc:"What is counted separately: client address prefix, subject, OAuth client, or the route as a whole."`
	Rate           Rate   `key:"rate" required:"true" doc:"Requests per second, minute or hour, such as 100/s."`
	Burst          int64  `key:"burst" min:"1" max:"1000000000" doc:"Requests that may come at once. Default: the number in rate."`
	Store          string `key:"store" default:"memory" enum:"memory" laterenum:"redis valkey" doc:"Where counters are kept."`
	OnStoreFailure Later  `key:"on_store_failure" later:"limits shared through a store, so no store can fail" doc:"What happens while the store is away."`
}

// Redact widens what records keep.
type Redact struct {
	ClientPrefix Prefixes            `key:"client_prefix" default:"/24,/32" doc:"Bits of an IPv4 and IPv6 client address kept in the frame, or none."`
	QueryKeys    map[string][]string `key:"query_keys" names:"route" form:"text" doc:"Query parameters kept in the personal part, by route. All others are dropped."`
}

// Values of FailedLogins.Action.
const (
	ActionRefuse = "refuse"
	ActionCount  = "count"
)

// Detect says what a series of refusals leads to.
type Detect struct {
	Window       Duration     `key:"window" default:"1m" min:"1s" max:"1h" doc:"Of one kind, by one address prefix or person, there is at most one alert in this time."`
	FailedLogins FailedLogins `key:"failed_logins" doc:"When callers whose credentials fail are answered 429 before anything is checked. Whose credential was found good before is not."`
	Verifiers    int          `key:"verifiers" default:"0" min:"0" max:"1024" doc:"Signatures of tokens and proofs that are checked at a time, of all issuers; more wait, at most five seconds, and are then answered 503. 0: as many as there are processors. Only a restart can change it."`
	Off          []string     `key:"off" enum:"credential_stuffing guessed_credential privilege_probing scraping token_replay" doc:"Built-in rules of detection that are off."`
	Rules        []DetectRule `key:"rules" doc:"Rules of detection beside the built-in ones."`
	Webhook      *AlertHook   `key:"webhook" doc:"Where every alert, the gate's too, is sent by itself, whatever the sinks are. It is among the sinks under the name alerts."`
	Alerts       Alerts       `key:"alerts" doc:"How many events in a window make an alert, by its name in the OWASP Application Logging Vocabulary; 0: never."`
}

// FailedLogins limits failed authentication.
type FailedLogins struct {
	Rate   Rate   `key:"rate" default:"100/m" doc:"Failures from one address prefix (a whole IPv4 address, the first 64 bits of IPv6)."`
	By     string `key:"by" default:"prefix" enum:"prefix" doc:"What rate counts by."`
	Name   Rate   `key:"name" default:"20/m" doc:"Failures that claim one name, from one address prefix: those who share it with a guesser are not held back for it."`
	Spread Rate   `key:"spread" default:"1000/m" doc:"Failures that claim one name, from everywhere. More of them make an alert; nobody is held back, or strangers could lock out whom they name."`
	Action string `key:"action" default:"refuse" enum:"refuse count" doc:"Answer 429, or only make alerts."`
}

// Alerts are thresholds.
type Alerts struct {
	LoginFail    int `key:"authn_login_fail" default:"20" min:"0" max:"1000000000" doc:"Credentials that fail, but for those that are only past their time."`
	LoginFailMax int `key:"authn_login_fail_max" default:"1" min:"0" max:"1000000000" doc:"Requests at or over a limit of failed_logins."`
	TokenReuse   int `key:"authn_token_reuse" default:"1" min:"0" max:"1000000000" doc:"Tokens that may be used once and came again."`
	AuthzFail    int `key:"authz_fail" default:"20" min:"0" max:"1000000000" doc:"Requests that policies deny, by person."`
	RateLimit    int `key:"excess_rate_limit_exceeded" default:"20" min:"0" max:"1000000000" doc:"Requests over a limit."`
	Input        int `key:"input_validation_fail" default:"20" min:"0" max:"1000000000" doc:"Requests that are malformed or not canonical."`
	Excess404    int `key:"malicious_excess_404" default:"50" min:"0" max:"1000000000" doc:"Requests for what no route has."`
	Crash        int `key:"sys_crash" default:"1" min:"0" max:"1000000000" doc:"Faults of the gate itself."`
}

// Class is how long records of a class are kept.
type Class struct {
	Min Duration `key:"min" required:"true" doc:"Kept at least this long."`
	Max Duration `key:"max" required:"true" doc:"Removed after this long."`
}

// Reload says when the file is read again.
type Reload struct {
	Watch bool `key:"watch" doc:"Reload when the file, or a policy, schema, test, authority or key set file that it names, has changed and then stayed the same for a second."`
}

// Values of RequestID.AcceptFrom.
const (
	AcceptNone    = "none"
	AcceptTrusted = "trusted"
)

// RequestID says whose request ids are noted beside our own.
type RequestID struct {
	AcceptFrom string `key:"accept_from" default:"none" enum:"none trusted" doc:"Whose X-Request-Id is kept in the personal part: nobody's, or that of a listener's trusted peers."`
}

// Values of Route.DPoP and Route.CertBound.
const (
	BoundOptional = "optional"
	BoundRequired = "required"
)

// DPoP says how proofs of possession are judged.
type DPoP struct {
	Origins    []string `key:"origins" form:"target" doc:"External origins (scheme, host, port) under which clients reach this gate; a proof's htu must begin with the one of the host asked for. If there is only one it stands for every host. Routes with dpop need it."`
	Algorithms []string `key:"algorithms" enum:"RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA Ed25519" doc:"Algorithms that a proof may be signed with. Default: ES256, EdDSA, Ed25519."`
	MaxAge     Duration `key:"max_age" default:"1m" min:"5s" max:"10m" doc:"How long ago a proof may have been made."`
	Ahead      Duration `key:"ahead" default:"10s" min:"1s" max:"1m" doc:"How far a client's clock may be ahead."`
	NonceTime  Duration `key:"nonce_time" default:"5m" min:"10s" max:"1h" doc:"How long a nonce is the newest; it is taken for as long again."`
	NonceKey   *Secret  `key:"nonce_key" doc:"Secret from which nonces are made, the same on all nodes. Default: one of this node's own."`
}

// Reuse says when a token counts as used by several.
type Reuse struct {
	Places int  `key:"places" default:"4" min:"0" max:"16" doc:"Client prefixes (/24, /48) or client certificates from which one token may be used; one more raises the alert authn_token_reuse. 0: not watched."`
	Block  bool `key:"block" doc:"Refuse the token from then on (token_reuse_detected)."`
}

// Valkey is a server that nodes share.
type Valkey struct {
	Address  string     `key:"address" required:"true" form:"peer" doc:"Host and port."`
	Username string     `key:"username" form:"text" doc:"User name, for servers with more than the default user."`
	Password *Secret    `key:"password" doc:"Password. Unset: none is sent."`
	DB       int        `key:"db" default:"0" min:"0" max:"65535" doc:"Number of the database."`
	Prefix   string     `key:"prefix" default:"gatebook:" form:"text" doc:"Beginning of every name that is used there. Gates with the same prefix share."`
	Timeout  Duration   `key:"timeout" default:"100ms" min:"1ms" max:"5s" doc:"For one call. After three failures in a row nobody asks for a second."`
	TLS      *ValkeyTLS `key:"tls" doc:"Connect with TLS and verify the server. Unset: in clear."`
}

// ValkeyTLS says how the server's certificate is verified.
type ValkeyTLS struct {
	CA         Path   `key:"ca" form:"file" doc:"PEM file of the authorities trusted, instead of the system's."`
	ServerName string `key:"server_name" form:"host" doc:"Name expected in the certificate. Default: the host of the address."`
}
