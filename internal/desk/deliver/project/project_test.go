package project

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

func TestNewRefuses(t *testing.T) {
	good := Options{Name: ECS, Key: testKey(1), Origin: testOrigin}
	with := func(change func(*Options)) Options {
		o := good
		change(&o)
		return o
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	fields := func(l ...string) Options { return with(func(o *Options) { o.Fields = l }) }
	for _, c := range []struct {
		o    Options
		want string
	}{
		{with(func(o *Options) { o.Name = "" }), `projection "": there are [native ecs ocsf]`},
		{with(func(o *Options) { o.Name = "natve" }), `did you mean "native"?`},
		{with(func(o *Options) { o.Key = [32]byte{} }), "the sink's pseudonym key is missing"},
		{with(func(o *Options) { o.Origin = "" }), "the origin of the log is missing"},
		{fields("emial"), `field "emial" is not part of the personal half (did you mean "email"?); it has sub, name`},
		{fields("subject"), `field "subject" is not part of the personal half; it has`},
		{fields("Sub"), `did you mean "sub"?`},
		{fields(""), `field "" is not part`},
		{fields("ip", "ua", "ip"), `field "ip" is named twice`},
		{fields("headers"), "name each one that may leave, such as headers.NAME"},
		{fields("claims"), "such as claims.NAME"},
		{fields("headers."), "headers.accept-language"},
		{fields("headers.X-Tag"), "in lower case"},
		{fields("claims."), "claims.dept"},
	} {
		if _, err := New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

// Without named fields nothing personal leaves, even of an entry whose personal
// part somebody else had opened; with them, those and no others do.
func TestOnlyNamedFieldsLeave(t *testing.T) {
	r := full()
	r.Personal.BodySHA256, r.Personal.JA4, r.Personal.BytesIn, r.Personal.BytesOut = "body-hash", "t99personal", 987001, 987002
	r.Trace = "" // also part of traceparent
	all := map[string]string{
		"sub": "248289761001", "name": "Ana Müller", "email": "ana@example.com", "tenant_user": "t1/ana", "claimed": "claimed-ana",
		"ip": "203.0.113.7", "port": "50123", "fwd": "198.51.100.2", "ua": "curl/8.5", "path": "/v1/orders/17", "query": "page=2",
		"referer": "app.example.com", "cert_subject": "CN=ana", "client_request_id": "abc-1", "traceparent": "00f067aa0ba902b7",
		"body_sha256": "body-hash", "ja4": "t99personal", "bytes_in": "987001", "bytes_out": "987002",
		"headers.accept-language": `"de"`, "headers.x-secret": "x-secret", "claims.dept": "sales", "claims.salary": "salary",
	}
	r.Personal.Claimed = "claimed-ana"
	for _, f := range FieldNames() {
		if all[f] == "" && f != fieldSession && f != fieldToken && f != fieldFamily {
			t.Errorf("no value for %s", f)
		}
	}
	for _, name := range Names() {
		none := newProjection(t, name)
		if none.Reveal() {
			t.Errorf("%s without fields wants personal parts", name)
		}
		body := string(project(t, none, entryOf(r)))
		for f, v := range all {
			if strings.Contains(body, v) {
				t.Errorf("%s without fields: %s in %s", name, f, body)
			}
		}
		for f := range all {
			one := newProjection(t, name, f)
			if !one.Reveal() {
				t.Errorf("%s with %s wants no personal parts", name, f)
			}
			body := string(project(t, one, entryOf(r)))
			for other, v := range all {
				if strings.Contains(body, v) != (other == f) {
					t.Errorf("%s with %s: has %s: %v\n%s", name, f, other, other != f, body)
				}
			}
		}
	}
}

// What is the same at every sink stays out of all of them.
func TestPseudonymsAreTheSinks(t *testing.T) {
	const person, cert, hash = "q7Jc0r1m2n3o4p5q6r7s8Q", "b1946ac92492d2347c6235b4d2611184", "dG9rZW4taGFzaC0wMDAwMQ"
	acts := map[string]record.Event{
		"erase":         {Name: "erase", Target: person, Cause: "subject"},
		"no cause":      {Name: "hold_begin", Target: person},
		"token":         {Name: "token_revoke", Target: hash, Cause: "token"},
		"family":        {Name: "token_revoke_family", Target: hash},
		"odd form":      {Name: "session_revoke", Target: "not-of-the-usual-form", Cause: "session"},
		"before, after": {Name: "x", Before: person, After: hash},
	}
	for _, name := range Names() {
		a := newProjection(t, name, fieldSession, fieldToken, fieldFamily)
		other, err := New(Options{Name: name, Key: testKey(9), Fields: []string{fieldSession, fieldToken, fieldFamily}, Origin: testOrigin})
		if err != nil {
			t.Fatal(err)
		}
		for what, ev := range acts {
			for _, kind := range []record.Kind{record.KindAdmin, record.KindErasure, record.KindHold, record.KindAccess} {
				r := &record.Record{Kind: kind, Outcome: record.Success, Subject: person, TLS: record.TLS{ClientCert: cert}, Event: ev}
				r.Personal.Session, r.Personal.Token, r.Personal.Family = hash, hash, hash
				one, two := project(t, a, entryOf(r)), project(t, other, entryOf(r))
				for _, secret := range []string{person, cert, hash, "not-of-the-usual-form"} {
					if bytes.Contains(one, []byte(secret)) {
						t.Errorf("%s: %s of %s leaves %s: %s", name, what, kind, secret, one)
					}
				}
				for _, f := range []string{fieldSubject, fieldClientCert, fieldToken, fieldSession, fieldFamily} {
					for _, v := range []string{person, cert, hash} {
						p := newScratch(a.(*projection)).pseudonym(f, v)
						if bytes.Contains(two, []byte(p)) {
							t.Errorf("%s: two sinks share %s", name, p)
						}
					}
				}
			}
		}
		// Within one sink a person stays one person, whatever is said of them.
		req := flat(t, project(t, a, entryOf(&record.Record{Kind: record.KindRequest, Outcome: record.Success, Subject: person})))
		act := flat(t, project(t, a, entryOf(&record.Record{Kind: record.KindErasure, Outcome: record.Success, Event: acts["erase"]})))
		who := map[string]string{Native: "subject", ECS: "user.id", OCSF: "actor.user.uid"}[name]
		target := map[string]string{Native: "event.target", ECS: "gatebook.event.target", OCSF: "unmapped.event.target"}[name]
		if req[who][0] != act[target][0] {
			t.Errorf("%s: the person is %s, the one erased %s", name, req[who], act[target])
		}
	}
}

// The pseudonym as docs/projections.md says how to make it.
func TestPseudonymIsAsDocumented(t *testing.T) {
	key := testKey(1)
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("sink|subject\x00q7Jc0r1m2n3o4p5q6r7s8Q"))
	want := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:16])
	r := full()
	got := flat(t, project(t, newProjection(t, Native), entryOf(r)))["subject"][0]
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if r.Subject != "q7Jc0r1m2n3o4p5q6r7s8Q" || r.Personal.Sub == "" {
		t.Error("the book's record was changed")
	}
}

// Names of the configuration stay what they are.
func TestNamesAreNoPseudonyms(t *testing.T) {
	for _, v := range []string{"", "none", "siem", "gatebook.yaml", "9c1185a5c5e9fc54612808977ee8f548", "019ab1c2-d3e4-7123-9abc-def012345678",
		"https://api.example.com", "orders/api.production1A", "q7Jc0r1m2n3o4p5q6r7s8R"} {
		if pseudonymous(v) {
			t.Errorf("%q is taken for a pseudonym", v)
		}
	}
}

func TestErasedAndSealed(t *testing.T) {
	for _, name := range Names() {
		p := newProjection(t, name, "sub")
		e := entryOf(full())
		e.Record.Personal = record.Personal{}
		e.Sealed = fmt.Errorf("subject: %w", keys.ErrKeyDestroyed)
		where := map[string]string{Native: "erased", ECS: "gatebook.erased", OCSF: "unmapped.erased"}[name]
		if got := flat(t, project(t, p, e)); len(got[where]) != 1 || got[where][0] != "true" {
			t.Errorf("%s does not say that the person was erased: %v", name, got[where])
		}
		// Nobody who asked for nothing is told.
		if got := flat(t, project(t, newProjection(t, name), e)); len(got[where]) != 0 {
			t.Errorf("%s without fields says erased", name)
		}
		for _, cause := range []error{keys.ErrKeyUnavailable, keys.ErrKeyUnknown, keys.ErrKeyDamaged, errors.New("some other trouble")} {
			e.Sealed = cause
			dst := []byte("before")
			got, err := p.Append(dst, "x", e)
			if !errors.Is(err, ErrSealed) || !errors.Is(err, cause) || string(got) != "before" {
				t.Errorf("%s: %v gives %q, %v", name, cause, got, err)
			}
			if waits := errors.Is(err, deliver.ErrNotNow); waits != (cause == keys.ErrKeyUnavailable) {
				t.Errorf("%s: %v waits: %v", name, cause, waits)
			}
			if _, err := newProjection(t, name).Append(nil, "x", e); err != nil {
				t.Errorf("%s without fields: %v", name, err)
			}
		}
	}
}

// injective is what no two records may share: which, what was decided, how it
// ended.
type injective struct {
	id       string
	index    uint64
	decision string
	outcome  record.Outcome
}

// back reads it from what a sink got.
func back(t *testing.T, name string, body []byte) injective {
	t.Helper()
	f := flat(t, body)
	first := func(path string) string {
		if len(f[path]) == 0 {
			return ""
		}
		return f[path][0]
	}
	var v injective
	index := map[string]string{Native: "index", ECS: "event.sequence", OCSF: "metadata.sequence"}[name]
	if _, err := fmt.Sscan(first(index), &v.index); err != nil {
		t.Fatal(err)
	}
	v.id = first(map[string]string{Native: "event_id", ECS: "event.id", OCSF: "metadata.uid"}[name])
	v.decision = first(map[string]string{Native: "authz.decision", ECS: "gatebook.authz.decision", OCSF: "authorizations.decision"}[name])
	outcome := first(map[string]string{Native: "outcome", ECS: "event.outcome", OCSF: "unmapped.outcome"}[name])
	if name == OCSF && outcome == "" {
		outcome = map[string]string{"1": "success", "2": "failure", "0": "unknown"}[first("status_id")]
	}
	v.outcome = record.Outcome(outcome)
	return v
}

func TestInjective(t *testing.T) {
	for _, name := range Names() {
		p := newProjection(t, name)
		for _, kind := range kinds() {
			for _, outcome := range []record.Outcome{record.Success, record.Failure, record.Unknown} {
				for _, decision := range []string{"", "allow", "deny", "none", "other"} {
					for _, policies := range [][]string{nil, {"a"}, {"a", "b"}} {
						for _, index := range []uint64{0, 1<<64 - 1} {
							r := &record.Record{Kind: kind, Outcome: outcome, Authz: record.Authz{Decision: decision, Policies: policies}}
							want := injective{deliver.EventID(testOrigin, index), index, decision, outcome}
							e := entryOf(r)
							e.Index = index
							if got := back(t, name, project(t, p, e)); got != want {
								t.Fatalf("%s of %s: %+v came back as %+v", name, kind, want, got)
							}
							stub, err := p.Stub(nil, want.id, e, 9)
							if err != nil {
								t.Fatal(err)
							}
							if got := back(t, name, stub); got != want {
								t.Fatalf("stub of %s of %s: %+v came back as %+v", name, kind, want, got)
							}
						}
					}
				}
			}
		}
	}
}

// A stub is short whatever the record is, and says that it is one.
func TestStub(t *testing.T) {
	long := strings.Repeat("long \x1b\" ", 1<<11)
	r := full()
	r.Route, r.Op, r.Node, r.Template, r.Subject, r.Error.Reason, r.Event.Name = long, long, long, long, long, long, long
	r.Authn.Method, r.Authn.Roles, r.Links, r.Client.Prefix, r.Authz.Decision, r.Method = long, []string{long}, []string{long}, long, long, long
	for _, name := range Names() {
		p := newProjection(t, name, everyField()...)
		for _, kind := range kinds() {
			r.Kind = kind
			stub, err := p.Stub([]byte("x"), "id", entryOf(r), 1234567)
			if err != nil || stub[0] != 'x' {
				t.Fatal(err)
			}
			stub = stub[1:]
			if len(stub) > 3000 {
				t.Errorf("%s of %s: a stub of %d bytes", name, kind, len(stub))
			}
			f := flat(t, stub)
			truncated := map[string]string{Native: "truncated", ECS: "gatebook.truncated", OCSF: "metadata.is_truncated"}[name]
			size := map[string]string{Native: "size", ECS: "gatebook.size", OCSF: "metadata.untruncated_size"}[name]
			if len(f[truncated]) == 0 || f[truncated][0] != "true" || len(f[size]) == 0 || f[size][0] != "1234567" {
				t.Errorf("%s of %s does not say that it is a stub: %s", name, kind, stub)
			}
			for _, v := range []string{"248289761001", "203.0.113.7", "ana@example.com"} {
				if bytes.Contains(stub, []byte(v)) {
					t.Errorf("%s of %s: a stub with %s", name, kind, v)
				}
			}
		}
	}
}

// The same record gives the same bytes, whoever else projects meanwhile and
// whatever was projected before.
func TestDeterministicAndConcurrent(t *testing.T) {
	for _, name := range Names() {
		p := newProjection(t, name, everyField()...)
		var want [][]byte
		for _, n := range corpus() {
			want = append(want, project(t, newProjection(t, name, everyField()...), entryOf(n.rec)))
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i, n := range corpus() {
					got, err := p.Append(nil, deliver.EventID(testOrigin, 4711), entryOf(n.rec))
					if err != nil || !bytes.Equal(got, want[i]) {
						t.Errorf("%s of %s: %v\n got %s\nwant %s", name, n.name, err, got, want[i])
					}
				}
			})
		}
		wg.Wait()
	}
}

// What is handed out appends, and uses memory that it was given.
func TestAppends(t *testing.T) {
	for _, name := range Names() {
		p := newProjection(t, name)
		one := project(t, p, entryOf(full()))
		buf := make([]byte, 0, 1<<16)
		buf = append(buf, "head"...)
		got, err := p.Append(buf, deliver.EventID(testOrigin, 4711), entryOf(full()))
		if err != nil || string(got) != "head"+string(one) || &got[0] != &buf[0] {
			t.Errorf("%s: %v %s", name, err, got)
		}
		if !json.Valid(one) {
			t.Errorf("%s: %s", name, one)
		}
	}
}

// native is the book's own encoding: its decoder reads back the record, with the
// sink's pseudonyms.
func TestNativeDecodes(t *testing.T) {
	p := newProjection(t, Native, everyField()...).(*projection)
	for _, n := range corpus() {
		body := string(project(t, p, entryOf(n.rec)))
		head := fmt.Sprintf(`{"event_id":%q,"index":4711,"origin":%q,`, deliver.EventID(testOrigin, 4711), testOrigin)
		frame, ok := strings.CutPrefix(body, head)
		if !ok {
			t.Fatalf("%s: %s does not begin with %s", n.name, body, head)
		}
		frame, personal, revealed := strings.Cut(strings.TrimSuffix(frame, "}"), `,"personal":`)
		var got record.Record
		if err := record.Decode([]byte("{"+frame+"}"), []byte(personal), &got); err != nil {
			t.Fatalf("%s: %v\n%s", n.name, err, body)
		}
		s := newScratch(p)
		if err := s.prepare(p, entryOf(n.rec)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(record.AppendFrame(nil, &got), record.AppendFrame(nil, &s.rec)) ||
			!bytes.Equal(record.AppendPersonal(nil, &got), record.AppendPersonal(nil, &s.rec)) {
			t.Errorf("%s: %s came back as %s", n.name, body, record.AppendFrame(nil, &got))
		}
		if revealed == (n.rec.Personal.Sub+n.rec.Personal.IP == "") {
			t.Errorf("%s: personal is there: %v", n.name, revealed)
		}
	}
}
