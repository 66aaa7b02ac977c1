package backends

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// disagreement is what must not be.
type disagreement struct {
	origin string
	kind   string // of the sample
	what   string // a few words, the same ones for the same thing
	detail string
}

func (d disagreement) String() string {
	return fmt.Sprintf("%s: %s (%s)\n\t%.1500s", d.origin, d.what, d.kind, d.detail)
}

// run is what one origin and the thing before it have to say of all samples.
type run struct {
	origin    string
	samples   []*sample
	answers   [][]answer // by number of the sample
	accounts  [][]account
	strays    []account // of no sample
	sightings []sighting
	strict    bool // hold it against the canonical requests too

	passed, refused, silent int // samples of which something passed, nothing did, nothing was asked
	unread, cutOff          int // requests that the origin names not and has not understood; accounts of such
	found                   []disagreement
}

func (c *run) say(s *sample, what, format string, args ...any) {
	d := disagreement{origin: c.origin, what: what, detail: fmt.Sprintf(format, args...)}
	if s != nil {
		d.kind = fmt.Sprintf("%d, %s", s.n, s.kind)
		d.detail += fmt.Sprintf("\n\tsent: %.900q %v", strings.ReplaceAll(s.wire, s.token, tokenHere), append(s.h2, s.tail...))
	}
	c.found = append(c.found, d)
}

// check compares everything with everything.
func (c *run) check() {
	seen := map[string][]sighting{}
	for _, v := range c.sightings {
		if v.id == "" && !v.read {
			c.unread++
			continue
		}
		seen[v.id] = append(seen[v.id], v)
	}
	for _, a := range c.strays {
		c.say(nil, "account of nothing that was sent", "%+v", a)
	}
	for _, s := range c.samples {
		c.checkSample(s, seen)
	}
	for id, views := range seen {
		c.say(nil, "request that nobody sent on", "%s %+v", id, views)
	}
	// What was cut off in its head is in the log of some origins, without a name.
	if c.unread > c.cutOff {
		c.say(nil, "request without an id", "%d, accounts tell of %d", c.unread, c.cutOff)
	}
}

// checkSample takes what it finds out of seen.
func (c *run) checkSample(s *sample, seen map[string][]sighting) {
	accounts, wants := c.accounts[s.n], []reading(nil)
	if c.strict {
		wants = readings(s)
	}
	c.answered(s, accounts)
	forwarded := false
	for i, a := range accounts {
		views := seen[a.id]
		delete(seen, a.id)
		forwarded = forwarded || a.forwarded
		if !a.forwarded {
			c.refusal(s, a, views)
			continue
		}
		if s.h2 != nil {
			i = 0
		}
		switch {
		case !c.arrived(s, a, views):
		case c.strict && (i >= len(wants) || wants[i].req == nil):
			c.say(s, "forwarded although it has no canonical form", "%+v, readings %+v", a, wants)
		default:
			c.compare(s, a, views[0])
			if c.strict {
				c.compareStrictly(s, a, views[0], wants[i])
			}
		}
	}
	if c.strict && len(accounts) > len(wants) {
		c.say(s, "more accounts than requests", "%+v, readings %+v", accounts, wants)
	}
	switch {
	case forwarded:
		c.passed++
	case len(accounts) > 0:
		c.refused++
	default:
		c.silent++
	}
}

// arrived reports whether there is one understanding of a request that was
// forwarded, and complains if there should be.
func (c *run) arrived(s *sample, a account, views []sighting) bool {
	switch {
	case a.upstream == 0 && a.reason == "":
		c.say(s, "neither answered nor a reason", "%+v", a)
	case len(views) == 0 && a.upstream == 0:
		c.cutOff++ // the client went away, or its body was broken, before an origin had it all
	case len(views) == 1 && !views[0].read && a.upstream == 0:
		// The same; the origin noticed.
	case len(views) == 0 && a.upstream >= 400 && c.unread > 0:
		c.unread--
		c.say(s, "refused by the origin", "status %d: %+v", a.upstream, a)
	case len(views) != 1:
		c.say(s, "not exactly one request at the origin", "%d times: %+v %+v", len(views), a, views)
	case !views[0].read:
		c.say(s, "refused by the origin", "%+v %+v", a, views[0])
	default:
		return true
	}
	return false
}

// answered demands an account of each answer.
func (c *run) answered(s *sample, accounts []account) {
	answers := c.answers[s.n]
	if len(answers) > len(accounts) {
		c.say(s, "answer without an account", "%+v, accounts %+v", answers, accounts)
	}
	for _, ans := range answers {
		if ans.id == "" {
			continue
		}
		if i := slices.IndexFunc(accounts, func(a account) bool { return a.id == ans.id }); i < 0 || accounts[i].status != ans.status {
			c.say(s, "answer that differs from its account", "%+v, accounts %+v", ans, accounts)
		}
	}
}

// refusal demands a reason, and that nothing went on.
func (c *run) refusal(s *sample, a account, views []sighting) {
	// A stream of HTTP/2 that broke the rules of its protocol is reset.
	if a.reason == "" || a.status < 400 && (a.status != 0 || s.h2 == nil) {
		c.say(s, "refusal without a reason", "%+v", a)
	}
	if len(views) > 0 {
		c.say(s, "refused, yet the origin saw it", "%+v %+v", a, views)
	}
}

// compare holds what an origin understood against the account.
func (c *run) compare(s *sample, a account, v sighting) {
	if v.zone == "admin" {
		c.say(s, "in the guarded folder of the origin", "%+v %+v", a, v)
	}
	if v.method != a.method && a.method != "_other" {
		c.say(s, "method", "%q there, account %+v", v.method, a)
	}
	if host, _, _ := strings.Cut(v.host, ":"); a.host != "" && a.host != "_other" && host != a.host {
		c.say(s, "host", "%q there, account %+v", v.host, a)
	}
	if !c.strict {
		if path, err := url.PathUnescape(a.path); err == nil && path != v.path {
			c.say(s, "path", "%q there, account %+v", v.path, a)
		}
	}
}

// compareStrictly holds it against the canonical request.
func (c *run) compareStrictly(s *sample, a account, v sighting, w reading) {
	if v.method != w.req.Method {
		c.say(s, "method", "%q there, canonical %+v", v.method, w.req)
	}
	if !recordedAs(w.req.Path, a.path) {
		c.say(s, "path in the account", "%+v, canonical %+v", a, w.req)
	}
	if v.host != w.req.Authority {
		c.say(s, "host", "%q there, canonical %q", v.host, w.req.Authority)
	}
	if v.target != w.target() {
		c.say(s, "target", "%q there, canonical %q", v.target, w.target())
	}
	if paths := w.paths(); !slices.Contains(paths, v.path) {
		c.say(s, "path", "%q there, canonical %q", v.path, paths)
	}
	want := w.fields(a, s.secure)
	for _, name := range differ(want, v) {
		c.say(s, "field "+name, "%q there, canonical %q", v.fields[name], want[name])
	}
	c.compareBody(s, a, v, w)
}

func (c *run) compareBody(s *sample, a account, v sighting, w reading) {
	sum := sha256.Sum256([]byte(w.body))
	hash := hex.EncodeToString(sum[:])
	switch {
	case !w.whole || w.err != nil || a.reason != "":
		// What the origin tells of the part that it has must be the beginning,
		// and it must not take it for whole.
		if v.body != "" && !strings.HasPrefix(w.body, v.body) {
			c.say(s, "body that was cut off", "%.80q there, sent %.80q", v.body, w.body)
		}
		if v.status < 300 && (!w.whole || w.err != nil) {
			c.say(s, "served a request whose body was broken", "%+v %+v", v, a)
		}
		return
	case v.hash != "" && v.hash != hash, v.hasBody && v.hash == "" && v.body != w.body:
		c.say(s, "body", "%.80q %s there, sent %.80q %s", v.body, v.hash, w.body, hash)
	}
	if a.in != int64(len(w.body)) {
		c.say(s, "length of the body in the account", "%+v, sent %d", a, len(w.body))
	}
	if v.hasBody {
		return
	}
	for _, ans := range c.answers[s.n] { // its answer is the digest
		if ans.id == a.id && a.method != "HEAD" && strings.TrimSpace(ans.body) != hash {
			c.say(s, "body", "%.80q there, sent %.80q %s", ans.body, w.body, hash)
		}
	}
}

// explanation says of some disagreements why they are none.
type explanation struct {
	origin, what string
	detail       *regexp.Regexp
	line         string
	maybe        bool // depends on who is faster
	used         int
}

// explanations reads testdata/explained.txt: "origin | what | pattern of the
// detail", each group under a comment that says why. A question mark in front
// says that it depends on the timing whether it is needed.
func explanations(t *testing.T) []*explanation {
	t.Helper()
	b, err := os.ReadFile("testdata/explained.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []*explanation
	explained := false
	for line := range strings.Lines(string(b)) {
		line, maybe := strings.CutPrefix(strings.TrimSpace(line), "? ")
		switch parts := strings.SplitN(line, " | ", 3); {
		case line == "":
			explained = false
		case strings.HasPrefix(line, "#"):
			explained = true
		case !explained || len(parts) != 3:
			t.Errorf("testdata/explained.txt: %q has no reason above it or is not of the form origin | what | pattern", line)
		default:
			all = append(all, &explanation{origin: parts[0], what: parts[1], detail: regexp.MustCompile(parts[2]), line: line, maybe: maybe})
		}
	}
	return all
}

// explains finds the one that takes a disagreement.
func explains(all []*explanation, d disagreement) bool {
	for _, e := range all {
		if (e.origin == "*" || e.origin == d.origin) && e.what == d.what && e.detail.MatchString(d.detail) {
			e.used++
			return true
		}
	}
	return false
}
