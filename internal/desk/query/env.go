package query

import (
	"github.com/gatebook/gatebook/internal/book/record"
)

// env is what an expression sees: the frame's fields under the names that they
// have in the record, absent ones as zero values.
type env struct {
	Index          int    `expr:"index"`
	ID             string `expr:"id"`
	Time           string `expr:"time"`
	Kind           string `expr:"kind"`
	Outcome        string `expr:"outcome"`
	Node           string `expr:"node"`
	Snap           string `expr:"snap"`
	Route          string `expr:"route"`
	Op             string `expr:"op"`
	Method         string `expr:"method"`
	Host           string `expr:"host"`
	Proto          string `expr:"proto"`
	Template       string `expr:"template"`
	Status         int    `expr:"status"`
	UpstreamStatus int    `expr:"upstream_status"`
	BytesIn        int    `expr:"bytes_in"`
	BytesOut       int    `expr:"bytes_out"`
	DurUS          int    `expr:"dur_us"`
	Subject        string `expr:"subject"`

	Authn    authnEnv    `expr:"authn"`
	Authz    authzEnv    `expr:"authz"`
	Limit    limitEnv    `expr:"limit"`
	TLS      tlsEnv      `expr:"tls"`
	Client   clientEnv   `expr:"client"`
	Upstream upstreamEnv `expr:"upstream"`
	Error    errorEnv    `expr:"error"`
	San      sanEnv      `expr:"san"`
	Event    eventEnv    `expr:"event"`
}

type authnEnv struct {
	Method  string   `expr:"method"`
	Issuer  string   `expr:"issuer"`
	Client  string   `expr:"client"`
	Roles   []string `expr:"roles"`
	ACR     string   `expr:"acr"`
	AMR     []string `expr:"amr"`
	AgeS    int      `expr:"age_s"`
	TTLS    int      `expr:"ttl_s"`
	Bound   string   `expr:"bound"`
	KID     string   `expr:"kid"`
	Alg     string   `expr:"alg"`
	Outcome string   `expr:"outcome"`
	Reason  string   `expr:"reason"`
}

type authzEnv struct {
	Decision string   `expr:"decision"`
	Policies []string `expr:"policies"`
	Set      string   `expr:"set"`
	Errors   int      `expr:"errors"`

	Shadow shadowEnv `expr:"shadow"`
}

type shadowEnv struct {
	Decision string   `expr:"decision"`
	Policies []string `expr:"policies"`
}

type limitEnv struct {
	Rule      string `expr:"rule"`
	Outcome   string `expr:"outcome"`
	Remaining int    `expr:"remaining"`
	RetryS    int    `expr:"retry_s"`
	Mode      string `expr:"mode"`
}

type tlsEnv struct {
	Version string `expr:"version"`
	Cipher  string `expr:"cipher"`
	Group   string `expr:"group"`
	ALPN    string `expr:"alpn"`
	SNI     string `expr:"sni"`
	Resumed bool   `expr:"resumed"`
	JA4     string `expr:"ja4"`
}

type clientEnv struct {
	Prefix    string `expr:"prefix"`
	PortClass string `expr:"port_class"`
	Hops      int    `expr:"hops"`
}

type upstreamEnv struct {
	Name     string `expr:"name"`
	Target   string `expr:"target"`
	Attempts int    `expr:"attempts"`
	Reused   bool   `expr:"reused"`
	TTFBUS   int    `expr:"ttfb_us"`
}

type errorEnv struct {
	Origin string `expr:"origin"`
	Reason string `expr:"reason"`
	Phase  string `expr:"phase"`
}

type sanEnv struct {
	Dropped int `expr:"dropped"`
	Masked  int `expr:"masked"`
	Tripped int `expr:"tripped"`
	Invalid int `expr:"invalid"`
}

type eventEnv struct {
	Name   string `expr:"name"`
	Count  int    `expr:"count"`
	Target string `expr:"target"`
	Cause  string `expr:"cause"`
}

// openEnv adds the personal part, for readers who may open it.
type openEnv struct {
	env
	Personal personalEnv `expr:"personal"`
}

type personalEnv struct {
	Sub     string `expr:"sub"`
	Name    string `expr:"name"`
	Email   string `expr:"email"`
	Claimed string `expr:"claimed"`
	IP      string `expr:"ip"`
	UA      string `expr:"ua"`
	Path    string `expr:"path"`
	Query   string `expr:"query"`
	Token   string `expr:"token"`
}

func personalOf(p *record.Personal) personalEnv {
	return personalEnv{p.Sub, p.Name, p.Email, p.Claimed, p.IP, p.UA, p.Path, p.Query, p.Token}
}

func (v *env) set(index uint64, r *record.Record) {
	*v = env{
		Index: int(index), ID: r.ID.String(), Time: r.At().Format("2006-01-02T15:04:05.000000Z"),
		Kind: string(r.Kind), Outcome: string(r.Outcome), Node: r.Node, Snap: r.Snap, Route: r.Route, Op: r.Op,
		Method: r.Method, Host: r.Host, Proto: r.Proto, Template: r.Template,
		Status: r.Status, UpstreamStatus: r.UpstreamStatus, BytesIn: int(r.BytesIn), BytesOut: int(r.BytesOut), DurUS: int(r.DurUS),
		Subject: r.Subject,
		Authn: authnEnv{r.Authn.Method, r.Authn.Issuer, r.Authn.Client, r.Authn.Roles, r.Authn.ACR, r.Authn.AMR,
			int(r.Authn.AgeS), int(r.Authn.TTLS), r.Authn.Bound, r.Authn.KID, r.Authn.Alg, r.Authn.Outcome, r.Authn.Reason},
		Authz:    authzEnv{r.Authz.Decision, r.Authz.Policies, r.Authz.Set, r.Authz.Errors, shadowEnv{r.Authz.ShadowDecision, r.Authz.ShadowPolicies}},
		Limit:    limitEnv{r.Limit.Rule, r.Limit.Outcome, int(r.Limit.Remaining), int(r.Limit.RetryS), r.Limit.Mode},
		TLS:      tlsEnv{r.TLS.Version, r.TLS.Cipher, r.TLS.Group, r.TLS.ALPN, r.TLS.SNI, r.TLS.Resumed, r.TLS.JA4},
		Client:   clientEnv{r.Client.Prefix, r.Client.PortClass, r.Client.Hops},
		Upstream: upstreamEnv{r.Upstream.Name, r.Upstream.Target, r.Upstream.Attempts, r.Upstream.Reused, int(r.Upstream.TTFBUS)},
		Error:    errorEnv{r.Error.Origin, r.Error.Reason, r.Error.Phase},
		San:      sanEnv{r.San.Dropped, r.San.Masked, r.San.Tripped, r.San.Invalid},
		Event:    eventEnv{r.Event.Name, int(r.Event.Count), r.Event.Target, r.Event.Cause},
	}
}
