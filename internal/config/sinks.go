package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Values of Sink.Type.
const (
	SinkSplunk     = "splunk_hec"
	SinkElastic    = "elasticsearch"
	SinkOpenSearch = "opensearch"
	SinkDatadog    = "datadog"
	SinkWebhook    = "webhook"
	SinkFile       = "file"
	SinkStdout     = "stdout"
)

// Values of Sink.From.
const (
	FromBeginning = "beginning"
	FromNow       = "now"
)

// Values of Sink.Project.
const (
	ProjectNative = "native"
	ProjectECS    = "ecs"
	ProjectOCSF   = "ocsf"
)

// Sink is an outside system that receives every record. Which keys a type has
// is in sinkKeys.
type Sink struct {
	Name    string    `key:"name" required:"true" form:"name" doc:"Name of the sink in commands, metrics and records. The cursor, which says what was delivered, is kept by it."`
	Type    string    `key:"type" required:"true" enum:"splunk_hec elasticsearch opensearch datadog webhook file stdout" doc:"Protocol that the sink speaks. It decides which of the other keys there are."`
	URL     string    `key:"url" form:"sinkurl" doc:"Where the sink is reached: the base URL without the path of the API for splunk_hec, elasticsearch and opensearch, the whole URL for webhook; for datadog in place of site."`
	Plain   bool      `key:"plain" doc:"Send in clear to another machine: url may then begin with http. Whoever sits between can read and drop what is sent."`
	Local   bool      `key:"link_local" doc:"Let the host of url resolve to a link-local or unspecified address, or to that of a cloud's metadata service. Otherwise nothing is sent there, whatever a name resolves to."`
	Token   *Secret   `key:"token" doc:"Credential: the HEC token of splunk_hec, the API key of datadog, the encoded API key of elasticsearch, a bearer token of webhook and opensearch. It is read again when the sink refuses it."`
	User    string    `key:"username" form:"text" doc:"User name, for elasticsearch and opensearch in place of token."`
	Pass    *Secret   `key:"password" doc:"Password of username."`
	Signing *Secret   `key:"signing_key" doc:"Secret of at least 32 characters with which requests to a webhook are signed (Standard Webhooks, HMAC-SHA256): whsec_ and base64, or a text. A webhook has this or token, or both."`
	Before  *Secret   `key:"previous_signing_key" doc:"Key that signing_key replaces. Requests are signed with both, so that the receiver can change over."`
	TLS     *SinkTLS  `key:"tls" doc:"How the sink's certificate is verified, and the certificate of this gate. The sink is always verified."`
	Path    Path      `key:"path" form:"file" doc:"File to which a sink of the type file appends, one JSON object a line. Its directory must be there, and outside data."`
	Rotate  Size      `key:"rotate" min:"1MiB" max:"1024GiB" doc:"Size at which a sink of the type file begins another file. The one before gets the time into its name, and those before that are compressed (zstd). Unset: never."`
	Age     Duration  `key:"rotate_after" min:"1m" max:"366d" doc:"Age at which it begins another file, by the clock: 1d is the end of a day (UTC). Unset: never."`
	Ack     bool      `key:"ack" doc:"Wait for more than a friendly answer, so that what is delivered is durable and not only accepted: for splunk_hec, until a batch is indexed (indexer acknowledgement, which the token must have; Splunk Cloud does not have it); for webhook, for the webhook-id in the field Gatebook-Stored of the answer."`
	AckWait Duration  `key:"ack_timeout" min:"10s" max:"10m" doc:"How long ack waits for splunk_hec to say that a batch is indexed. Then the batch may be there and is sent once more, so an index that is slow by nature needs longer. Default: 5m."`
	Index   string    `key:"index" form:"sinkname" doc:"Index of splunk_hec. Default: that of the token."`
	Source  string    `key:"source" form:"text" doc:"Source of splunk_hec, and of datadog (ddsource). Default: gatebook."`
	SrcType string    `key:"sourcetype" form:"text" doc:"Source type of splunk_hec. Default: gatebook:PROJECT, such as gatebook:ecs."`
	Stream  string    `key:"data_stream" form:"datastream" doc:"Data stream of elasticsearch and opensearch. Default: logs-gatebook.audit-default."`
	Site    string    `key:"site" form:"host" doc:"Site of datadog, such as datadoghq.eu."`
	Service string    `key:"service" form:"text" doc:"Service of datadog. Default: gatebook."`
	Tags    []string  `key:"tags" form:"tag" doc:"Tags of datadog, such as env:prod."`
	Project string    `key:"project" enum:"native ecs ocsf" doc:"Form that a record is given: native is the record as the book has it, ecs the Elastic Common Schema, ocsf the Open Cybersecurity Schema. Default: ecs for splunk_hec, elasticsearch and opensearch, native for the others. Changing it begins with the next record."`
	Fields  []string  `key:"fields" form:"personal" doc:"Fields of the personal part that leave to this sink: sub, name, email, tenant_user, claimed, ip, port, fwd, ua, path, query, referer, cert_subject, session, token, family, client_request_id, traceparent, body_sha256, ja4, bytes_in, bytes_out, headers.NAME and claims.NAME. Unset: none does, and people are pseudonyms of this sink's own. What has left cannot be erased here any more."`
	From    string    `key:"from" default:"beginning" enum:"beginning now" doc:"Where a sink of a new name begins: with the first record of the book, or with what comes from now on."`
	Gzip    string    `key:"compression" default:"gzip" enum:"gzip none" doc:"Compression of requests; those of a webhook have none, because they are signed as they are."`
	Compare *Compare  `key:"compare" doc:"How what the sink holds is read back and compared with the book, once an hour; only that is proof that nothing is missing (G3). Unset: not compared."`
	Batch   SinkBatch `key:"batch" doc:"Bounds of what is sent at once. Those of splunk_hec may be above its defaults, 1000 records and 1 MB, as far as the collector takes it; the other types only take lower ones than their own."`
	Flight  int       `key:"in_flight" min:"1" max:"64" doc:"Batches under way at once. 1 keeps the order of records. Default: that of the type; only splunk_hec (8) takes more than that."`
	Timeout Duration  `key:"timeout" default:"30s" min:"1s" max:"10m" doc:"For one request with its answer."`
	Alarm   Duration  `key:"alarm_after" default:"15m" min:"1m" max:"30d" doc:"Age of the oldest record that is not delivered from which on readiness says so."`
	Paused  bool      `key:"paused" doc:"Deliver nothing; the cursor stays. gatebook sink pause does it without a reload."`
}

// SinkTLS is how a sink is reached by TLS.
type SinkTLS struct {
	CA   Path `key:"ca" form:"file" doc:"PEM file of the authorities trusted, instead of the system's."`
	Cert Path `key:"cert" form:"file" doc:"PEM file with the gate's client certificate and its chain."`
	Key  Path `key:"key" form:"file" doc:"PEM file with the private key of cert, readable by its owner only."`
}

// Compare is how a sink is read.
type Compare struct {
	URL   string  `key:"url" form:"sinkurl" doc:"URL of the management port of a search head, for splunk_hec."`
	Token *Secret `key:"token" doc:"Credential that may search: an authentication token of splunk_hec, an application key of datadog, and of the kind that the sink has for elasticsearch and opensearch (Default there: that of the sink)."`
}

// SinkBatch bounds a batch.
type SinkBatch struct {
	Records int  `key:"records" min:"1" max:"100000" doc:"Records in a batch at most. Default: what the protocol takes well."`
	Bytes   Size `key:"bytes" min:"64KiB" max:"64MiB" doc:"Size of a batch at most, before compression. Default: what the protocol takes well."`
}

// sinkKind is which keys a type of sink has beyond those of all.
type sinkKind struct {
	name  string
	needs []string // must be there
	has   []string // may be there
}

// sinkKeys are all types. Keys that are in no row belong to every type.
func sinkKeys() []sinkKind {
	web := []string{"plain", "link_local", "tls", "timeout"}
	with := func(more ...string) []string { return append(slices.Clone(web), more...) }
	return []sinkKind{
		{SinkSplunk, []string{"url", "token"}, with("compression", "ack", "ack_timeout", "index", "source", "sourcetype", "compare")},
		{SinkElastic, []string{"url"}, with("compression", "token", "username", "password", "data_stream", "compare")},
		{SinkOpenSearch, []string{"url"}, with("compression", "token", "username", "password", "data_stream", "compare")},
		{SinkDatadog, []string{"token"}, with("compression", "url", "site", "source", "service", "tags", "compare")},
		{SinkWebhook, []string{"url"}, with("ack", "token", "signing_key", "previous_signing_key")},
		{SinkFile, []string{"path"}, []string{"rotate", "rotate_after"}},
		{SinkStdout, nil, nil},
	}
}

// setSinkDefaults completes what depends on the type.
func (f *File) setSinkDefaults() {
	for i := range f.Sinks {
		s := &f.Sinks[i]
		if s.Project == "" {
			s.Project = ProjectNative
			if s.Type == SinkElastic || s.Type == SinkOpenSearch || s.Type == SinkSplunk {
				s.Project = ProjectECS
			}
		}
		switch s.Type {
		case SinkFile, SinkStdout:
			s.Gzip, s.Timeout = "", 0
		case SinkWebhook:
			s.Gzip = ""
		}
		if s.Stream == "" && (s.Type == SinkElastic || s.Type == SinkOpenSearch) {
			s.Stream = "logs-gatebook.audit-default"
		}
		if s.Source == "" && (s.Type == SinkSplunk || s.Type == SinkDatadog) {
			s.Source = "gatebook"
		}
		if s.SrcType == "" && s.Type == SinkSplunk {
			s.SrcType = "gatebook:" + s.Project
		}
		if s.Service == "" && s.Type == SinkDatadog {
			s.Service = "gatebook"
		}
	}
}

// checkSinks checks what concerns more than one value.
func (d *decoder) checkSinks(f *File) {
	names, files := map[string]int{}, map[string]int{}
	stdout := map[string]int{}
	for i := range f.Sinks {
		s, path := &f.Sinks[i], fmt.Sprintf("sinks[%d]", i)
		d.unique(names, s.Name, i, path+".name", "sink")
		d.unique(files, string(s.Path), i, path+".path", "sink with the file")
		if s.Type == SinkStdout {
			d.unique(stdout, s.Type, i, path+".type", "sink of the type")
		}
		if s.Name == AlertSink {
			d.report(d.where(path+".name"), path+".name", "the name "+AlertSink+" is that of detect.webhook", "choose another name")
		}
		d.sinkKeysOf(s, path)
		d.sinkURL(s, path)
		d.sinkCredentials(s, path)
		d.sinkFile(f, s, path)
		if at := path + ".project"; (s.Type == SinkElastic || s.Type == SinkOpenSearch) && s.Project != ProjectECS && s.Project != "" {
			d.report(d.where(at), at, "project "+s.Project+" in a data stream, which takes only documents with @timestamp", "remove project, or write ecs")
		}
	}
}

// sinkKeysOf wants the keys that a type needs, and none that it does not have.
func (d *decoder) sinkKeysOf(s *Sink, path string) {
	kinds := sinkKeys()
	at := slices.IndexFunc(kinds, func(k sinkKind) bool { return k.name == s.Type })
	if at < 0 {
		return // reported
	}
	kind := &kinds[at]
	for _, key := range kind.needs {
		if _, ok := d.at[path+"."+key]; !ok && d.quiet(path+"."+key) {
			d.report(d.where(path), path, "the key "+key+" is missing, which a sink of the type "+s.Type+" needs", "add it: "+sinkDoc(key))
		}
	}
	for _, row := range fieldsOf(reflect.TypeFor[Sink]()) {
		p, others := path+"."+row.key, typesWith(kinds, row.key)
		pos, given := d.keyAt[p]
		if !given || len(others) == 0 || slices.Contains(others, s.Type) {
			continue
		}
		d.report(pos, p, row.key+" is no key of a sink of the type "+s.Type, "it belongs to "+list(others)+"; remove it, or is another type meant?")
	}
}

// sinkDoc is what a key of a sink means.
func sinkDoc(key string) string {
	rows := fieldsOf(reflect.TypeFor[Sink]())
	return firstSentence(rows[slices.IndexFunc(rows, func(f field) bool { return f.key == key })].doc)
}

// typesWith are the types that have a key; none if all do.
func typesWith(kinds []sinkKind, key string) (names []string) {
	for _, k := range kinds {
		if slices.Contains(k.needs, key) || slices.Contains(k.has, key) {
			names = append(names, k.name)
		}
	}
	return names
}

func (d *decoder) sinkURL(s *Sink, path string) {
	at := path + ".url"
	if s.Type == SinkDatadog {
		if (s.URL == "") == (s.Site == "") && d.quiet(at) && d.quiet(path+".site") {
			d.report(d.where(path), path, "a sink of the type datadog needs exactly one of site and url", "name the site of your account, such as site: datadoghq.eu")
		}
	}
	u, err := url.Parse(s.URL)
	if s.URL == "" || err != nil {
		return
	}
	far := u.Scheme == "http" && !isLoopback(u.Hostname())
	if far && !s.Plain {
		d.report(d.where(at), at, "an http URL of another machine: "+quote(s.URL), "use https; if it must be, plain: true lets records go in clear")
	}
	if s.Plain && !far {
		d.report(d.where(path+".plain"), path+".plain", "plain has no effect with "+quote(s.URL), "remove it")
	}
	if u.Scheme == "http" && s.TLS != nil {
		d.report(d.where(path+".tls"), path+".tls", "tls has no effect with an http URL", "write https in url, or remove tls")
	}
	base := s.Type == SinkSplunk || s.Type == SinkElastic || s.Type == SinkOpenSearch
	for _, own := range []string{"/services/collector", "/_bulk", "/api/v2/logs"} {
		if (base || s.Type == SinkDatadog) && strings.Contains(u.Path, own) {
			d.report(d.where(at), at, "a URL with the path of the API: "+quote(s.URL), "remove it from "+own+" on; the gate adds it")
		}
	}
}

func (d *decoder) sinkCredentials(s *Sink, path string) {
	d.checkSecret(s.Token, path+".token")
	d.checkSecret(s.Pass, path+".password")
	d.checkSecret(s.Signing, path+".signing_key")
	d.checkSecret(s.Before, path+".previous_signing_key")
	if s.Type == SinkWebhook && s.Signing == nil && s.Token == nil && d.quiet(path+".signing_key") && d.quiet(path+".token") {
		d.report(d.where(path), path, "the webhook has neither signing_key nor token", "give it one, or the receiver cannot tell who sends: signing_key: {file: /run/secrets/NAME}, made with: echo whsec_$(openssl rand -base64 32)")
	}
	if s.Before != nil && s.Signing == nil {
		d.report(d.where(path+".previous_signing_key"), path+".previous_signing_key", "previous_signing_key without signing_key", "the newer key is signing_key")
	}
	if at := path + ".ack_timeout"; s.AckWait != 0 && !s.Ack && s.Type == SinkSplunk && d.quiet(at) {
		d.report(d.where(at), at, "ack_timeout without ack", "write ack: true, or remove ack_timeout")
	}
	d.sinkCompare(s, path+".compare")
	if (s.User == "") != (s.Pass == nil) && d.quiet(path+".username") && d.quiet(path+".password") {
		d.report(d.where(path), path, "username and password go together", "give both, or neither")
	}
	if s.Token != nil && s.Pass != nil {
		d.report(d.where(path+".token"), path+".token", "a token beside a password", "keep one of them")
	}
	if t := s.TLS; t != nil && (t.Cert == "") != (t.Key == "") && d.quiet(path+".tls") {
		d.report(d.where(path+".tls"), path+".tls", "a certificate and its key go together", "name both files")
	}
}

func (d *decoder) sinkCompare(s *Sink, path string) {
	c := s.Compare
	if c == nil || !d.quiet(path) {
		return
	}
	d.checkSecret(c.Token, path+".token")
	splunk := s.Type == SinkSplunk
	switch {
	case splunk && (c.URL == "" || c.Token == nil || s.Index == ""):
		d.report(d.where(path), path, "to compare with splunk_hec takes url and token here, and index", "name the management port, such as https://splunk.example.com:8089, a token that may search, and the index of the sink")
	case !splunk && c.URL != "":
		d.report(d.where(path+".url"), path+".url", "compare.url is for splunk_hec only", "remove it")
	case s.Type == SinkDatadog && (c.Token == nil || s.Site == ""):
		d.report(d.where(path), path, "to compare with datadog takes token here, and site", "name an application key that may read logs")
	}
}

// sinkFile keeps what is sent out of what a backup of the book holds, and off
// the book's own files.
func (d *decoder) sinkFile(f *File, s *Sink, path string) {
	for _, dir := range []struct{ is, what string }{{string(f.Data), "data"}, {string(f.Keys.Wrapper.File), "key"}} {
		if s.Path != "" && inside(string(s.Path), dir.is) {
			d.report(d.where(path+".path"), path+".path", "the file is inside the "+dir.what+" directory", "keep it apart: what is there is the book's own")
		}
	}
}

// checkSinkURL takes http and https URLs; which of them is decided with the
// other keys.
func checkSinkURL(s string) (string, string) {
	_, what, hint := checkURL(s)
	return what, strings.Replace(hint, "idp.example.com", "siem.example.com", 1)
}

// PersonalFields lists the fields of a record's personal part that may leave as
// a whole. Headers and claims are named one by one.
func PersonalFields() []string {
	return []string{
		"sub", "name", "email", "tenant_user", "claimed", "ip", "port", "fwd", "ua", "path", "query", "referer", "cert_subject", "session",
		"token", "family", "client_request_id", "traceparent", "body_sha256", "ja4", "bytes_in", "bytes_out",
	}
}

func checkPersonalField(s string) (string, string) {
	if h, ok := strings.CutPrefix(s, "headers."); ok {
		return checkHeader(h)
	}
	if c, ok := strings.CutPrefix(s, "claims."); ok {
		return checkClaim(c)
	}
	if s == "headers" || s == "claims" {
		return "all " + s + " at once", "name each one that may leave, such as " + s + ".NAME"
	}
	if !slices.Contains(PersonalFields(), s) {
		return "not a field of the personal part: " + quote(s), didYouMean(s, PersonalFields(), "known are "+list(PersonalFields())+", headers.NAME and claims.NAME")
	}
	return "", ""
}

func checkSinkName(s string) (string, string) {
	if s == "" || len(s) > 255 || !only(s, lower, "_-") || s[0] == '_' && len(s) == 1 || s[0] == '-' {
		return "not the name of an index: " + quote(s), "use lower case letters, digits, _ and -"
	}
	return "", ""
}

// checkDataStream takes TYPE-DATASET-NAMESPACE.
func checkDataStream(s string) (string, string) {
	parts := strings.Split(s, "-")
	if len(s) > 255 || len(parts) != 3 || slices.Contains(parts, "") || !only(s, lower, "._-") {
		return "not a data stream: " + quote(s), "write TYPE-DATASET-NAMESPACE in lower case, such as logs-gatebook.audit-default"
	}
	return "", ""
}

func checkTag(s string) (string, string) {
	if s == "" || len(s) > 200 || !only(s, letters, "_-:./") || strings.IndexByte(letters, s[0]) < 0 {
		return "not a tag: " + quote(s), "write NAME:VALUE of letters, digits, _, -, ., / and :, a letter first, such as env:prod"
	}
	return "", ""
}

// sinks looks at the files of sinks.
func (c *checker) sinks() {
	for i := range c.f.Sinks {
		c.sink(&c.f.Sinks[i], fmt.Sprintf("sinks[%d]", i))
	}
	if s := c.f.AlertSink(); s != nil {
		c.sink(s, "detect.webhook")
	}
}

func (c *checker) sink(s *Sink, path string) {
	c.secret(path+".token", s.Token)
	c.secret(path+".password", s.Pass)
	c.secret(path+".signing_key", s.Signing)
	c.secret(path+".previous_signing_key", s.Before)
	if s.Compare != nil {
		c.secret(path+".compare.token", s.Compare.Token)
	}
	if s.Signing != nil && s.Signing.File != "" {
		if text, err := s.Signing.Read(); err == nil && len(text) < minSecret {
			c.blame(path+".signing_key.file", s.Signing.File, "a signing key that is too short", "make one with: openssl rand -hex 32")
		}
	}
	if t := s.TLS; t != nil {
		c.authority(path+".tls.ca", t.CA)
		if t.Cert != "" {
			c.pair(path+".tls", Certificate{t.Cert, t.Key})
		}
	}
	if s.Path != "" {
		c.stat(path+".path", Path(filepath.Dir(string(s.Path))), true)
	}
}
