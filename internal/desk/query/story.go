package query

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Line is one line of a story: what it is about and what there is to say.
type Line struct {
	About string `json:"about"`
	Text  string `json:"text"`
}

// Story tells what happened in an exchange, in plain words, from its record.
// where says where a policy is written, "" if that is not known; it may be nil.
func Story(m *Match, where func(policy, set string) string) ([]Line, error) {
	s := &story{where: where}
	if err := record.Decode(m.Frame, m.Personal, &s.r); err != nil {
		return nil, err
	}
	if s.where == nil {
		s.where = func(string, string) string { return "" }
	}
	s.say("record", "number %d, %s, of %s at %s", m.Index, s.r.ID, s.r.Kind, s.r.At().Format("2006-01-02T15:04:05.000000Z"))
	switch s.r.Kind {
	case record.KindRequest, record.KindHandshake, record.KindMalformed, record.KindInterrupted, record.KindSession:
		s.exchange(m)
	default:
		s.act()
	}
	s.reason()
	return s.lines, nil
}

// story is a Story being told.
type story struct {
	r     record.Record
	where func(policy, set string) string
	lines []Line
}

func (s *story) say(about, format string, args ...any) {
	s.lines = append(s.lines, Line{about, fmt.Sprintf(format, args...)})
}

func (s *story) exchange(m *Match) {
	s.came()
	s.who(m)
	s.limit()
	s.decision()
	s.upstream()
	s.client()
	s.time()
}

// came says what came and from where.
func (s *story) came() {
	r := &s.r
	switch {
	case r.Kind == record.KindHandshake:
		s.say("came", "a connection that never became one%s", s.from())
	case r.Op == record.None || r.Op == "":
		s.say("came", "%s %s%s", cmp.Or(r.Method, "a request"), cmp.Or(r.Template, "without a path that could be read"), s.from())
	default:
		s.say("came", "%s%s", r.Op, s.from())
	}
	if p := &r.Personal; p.Path != "" {
		s.say("", "the path was %s", p.Path)
	}
	if r.Event.Name == foldName {
		s.say("", "it is the first of %d alike that were counted instead of written one by one", r.Event.Count)
	}
	if r.Event.Name == "would_refuse" {
		s.say("", "a strict route would have refused its path (%s)", r.Event.Target)
	}
	switch {
	case r.Kind == record.KindHandshake:
	case r.Route == record.None || r.Route == "":
		s.say("route", "none")
	default:
		s.say("route", "%s, under snapshot %s", r.Route, r.Snap)
	}
}

func (s *story) from() string {
	r := &s.r
	var b strings.Builder
	if r.Host != "" && r.Host != record.Other {
		b.WriteString(" for " + r.Host)
	}
	if r.Proto != "" {
		b.WriteString(", " + r.Proto)
	}
	if r.TLS.Version != "" {
		b.WriteString(", TLS " + r.TLS.Version)
	}
	if r.Client.Prefix != "" && r.Client.Prefix != record.None {
		b.WriteString(", from " + r.Client.Prefix)
	}
	if ip := r.Personal.IP; ip != "" {
		b.WriteString(" (" + ip + ")")
	}
	return b.String()
}

// who says who it was found to be.
func (s *story) who(m *Match) {
	a := &s.r.Authn
	switch {
	case s.r.Kind == record.KindHandshake:
		return
	case a.Outcome == "ok":
		text := fmt.Sprintf("subject %s, by %s", s.r.Subject, a.Method)
		if a.Issuer != "" {
			text += " of " + a.Issuer
		}
		if len(a.Roles) > 0 {
			text += ", roles " + strings.Join(a.Roles, " ")
		}
		if a.Client != "" {
			text += ", client " + a.Client
		}
		s.say("who", "%s", text)
	case a.Outcome == "failed":
		s.say("who", "not established: %s", cmp.Or(a.Reason, "no reason given"))
	default:
		s.say("who", "nobody was asked")
	}
	p := &s.r.Personal
	if p.Sub != "" {
		s.say("", "that is %s", p.Sub)
	}
	if p.Claimed != "" {
		s.say("", "the credential claimed to be %s's, which is not proved", p.Claimed)
	}
	if m.Sealed != "" {
		s.say("", "the personal part cannot be opened: %s", m.Sealed)
	}
}

func (s *story) limit() {
	if l := &s.r.Limit; l.Rule != "" {
		s.say("limit", "%s said %s; come again in %d s", l.Rule, l.Outcome, l.RetryS)
	}
}

// decision says which rule decided.
func (s *story) decision() {
	a := &s.r.Authz
	if a.Decision == "" {
		if s.r.Kind != record.KindHandshake {
			s.say("decision", "policies were not asked")
		}
		return
	}
	text := a.Decision
	if len(a.Policies) == 0 {
		text += "; no policy applied"
	} else {
		text += " by " + strings.Join(a.Policies, ", ")
	}
	if a.Errors > 0 {
		text += fmt.Sprintf("; %d policies could not be evaluated", a.Errors)
	}
	if a.Set != "" {
		text += " (set " + a.Set + ")"
	}
	s.say("decision", "%s", text)
	for _, p := range a.Policies {
		if at := s.where(p, a.Set); at != "" {
			s.say("", "%s is %s", p, at)
		}
	}
}

// upstream says what the service behind the gate did.
func (s *story) upstream() {
	u := &s.r.Upstream
	if u.Name == "" {
		if s.r.Kind != record.KindHandshake {
			s.say("upstream", "never called")
		}
		return
	}
	text := u.Name
	if u.Target != "" {
		text += " at " + u.Target
	}
	switch {
	case s.r.UpstreamStatus != 0:
		text += fmt.Sprintf(" answered %d after %s", s.r.UpstreamStatus, span(u.TTFBUS))
	case s.r.Kind == record.KindInterrupted:
		text += " may have been called; the gate died before it knew"
	default:
		text += " gave no usable answer"
	}
	if u.Attempts > 1 {
		text += fmt.Sprintf(", at attempt %d", u.Attempts)
	}
	if u.Reused {
		text += ", over a kept connection"
	}
	s.say("upstream", "%s", text)
}

// client says what the client saw.
func (s *story) client() {
	r := &s.r
	switch {
	case r.Kind == record.KindInterrupted:
		s.say("client", "saw no complete answer that is on record")
	case r.Status == 499:
		s.say("client", "went away; %d bytes of the answer had been sent", r.BytesOut)
	case r.Status != 0:
		s.say("client", "got %d with %d bytes; it had sent %d", r.Status, r.BytesOut, r.BytesIn)
		if r.Error.Reason != "" && r.UpstreamStatus != 0 && r.Status == r.UpstreamStatus {
			s.say("", "the answer was broken off")
		}
	default:
		s.say("client", "got no answer")
	}
}

// time says where it went.
func (s *story) time() {
	p := &s.r.Phase
	var parts []string
	for _, one := range []struct {
		name string
		us   int64
	}{
		{"authentication", p.Auth}, {"limits", p.Limit}, {"policies", p.Policy}, {"open mark", p.Open}, {"queue", p.Queue},
		{"connecting", p.Connect}, {"TLS", p.TLS}, {"the upstream's head", p.TTFB}, {"body", p.Body},
	} {
		if one.us > 0 {
			parts = append(parts, one.name+" "+span(one.us))
		}
	}
	switch ttfb := s.r.Upstream.TTFBUS; {
	case len(parts) > 0:
		s.say("time", "%s in all: %s", span(s.r.DurUS), strings.Join(parts, ", "))
	case ttfb > 0:
		s.say("time", "%s in all, %s of it until the upstream's head (record: {phases: true} on the route tells more)", span(s.r.DurUS), span(ttfb))
	case s.r.DurUS > 0:
		s.say("time", "%s in all", span(s.r.DurUS))
	}
}

// act tells a record of the book's own or of what somebody did to it.
func (s *story) act() {
	r, e := &s.r, &s.r.Event
	text := cmp.Or(e.Name, string(r.Kind))
	if e.Count != 0 {
		text += fmt.Sprintf(", %d", e.Count)
	}
	if e.Target != "" {
		text += ", of " + e.Target
	}
	if e.Cause != "" {
		text += " (" + e.Cause + ")"
	}
	s.say("what", "%s: %s", text, r.Outcome)
	if e.Before != "" || e.After != "" {
		s.say("", "before %s, after %s", cmp.Or(e.Before, "nothing"), cmp.Or(e.After, "nothing"))
	}
	if r.Authn.Outcome != "" {
		s.say("who", "subject %s, by %s", r.Subject, r.Authn.Method)
	}
	if r.Personal.Sub != "" {
		s.say("", "that is %s", r.Personal.Sub)
	}
}

// reason says why it went as it did and what to do.
func (s *story) reason() {
	e := &s.r.Error
	switch {
	case e.Reason != "":
		a, known := AdviceOn(e.Reason)
		if !known {
			a = Advice{"this program does not know the reason", "Use the program that wrote the record, or a newer one."}
		}
		at := ""
		if e.Phase != "" {
			at = ", phase " + e.Phase
		}
		s.say("why", "%s (%s%s): %s", e.Reason, e.Origin, at, a.Means)
		s.say("to do", "%s", a.Do)
	case s.r.Kind == record.KindInterrupted:
		s.say("why", "the gate was killed or lost power in the middle; the unclean_stop record nearby says when")
		s.say("to do", "Ask the upstream what became of the request; its X-Request-Id is the id above.")
	case s.r.Status >= 400:
		s.say("why", "the gate let it through; the status is the upstream's own")
		s.say("to do", "Look into the upstream's log for this request id.")
	}
}

// span says a duration in microseconds.
func span(us int64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%d us", us)
	case us < 1_000_000:
		return fmt.Sprintf("%.1f ms", float64(us)/1000)
	}
	return fmt.Sprintf("%.2f s", float64(us)/1e6)
}
