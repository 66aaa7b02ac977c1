package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// DetectRule is a rule of detection: which records, in which number, are an
// alert. docs/detection.md says how rules work.
type DetectRule struct {
	Name     string     `key:"name" required:"true" form:"rule" doc:"Name of the rule. One with the name of a built-in rule takes its place."`
	Alert    string     `key:"alert" form:"rule" doc:"Name of the alert in records (event.name). Default: the name of the rule."`
	Severity string     `key:"severity" default:"medium" enum:"low medium high critical" doc:"How soon somebody should look (event.cause of the alert)."`
	Where    string     `key:"where" required:"true" form:"expression" doc:"Records that count, in the language of gatebook search."`
	By       []string   `key:"by" form:"fieldpath" doc:"Fields whose values are counted apart, at most three, such as subject or client.prefix. Unset: everybody together."`
	Count    int64      `key:"count" min:"1" max:"1000000000" doc:"So many make an alert. Needed but with new."`
	Window   Duration   `key:"window" required:"true" min:"1s" max:"1d" doc:"The time in which they come."`
	Distinct string     `key:"distinct" form:"fieldpath" doc:"Count the different values of this field; count is then at most 1024."`
	Times    int64      `key:"times" min:"2" max:"1000" doc:"The number must also be so many times the most that the key had in a window of the last one to two weeks."`
	Learn    Duration   `key:"learn" max:"30d" doc:"How long the past is learned first, with times or new."`
	After    string     `key:"after" form:"expression" doc:"So many (count) of the records that this takes must have come in the window before one that where takes, and none that where takes."`
	New      string     `key:"new" form:"fieldpath" doc:"An alert for each value of this field that the key has not had before; beside after, none for a value that it has had before."`
	Hours    *RuleHours `key:"hours" doc:"Only what happens outside of these hours counts."`
	Unless   string     `key:"unless" form:"rule" doc:"No alert about a key that an alert of this name, of the gate, was about within a window."`
}

// RuleHours are the hours of a week in which something is expected.
type RuleHours struct {
	Zone string   `key:"zone" default:"UTC" form:"zone" doc:"Time zone, such as Europe/Berlin."`
	Days []string `key:"days" required:"true" enum:"mon tue wed thu fri sat sun" doc:"Days of the week."`
	From string   `key:"from" required:"true" form:"clock" doc:"Beginning on each of them, by the wall clock, such as 07:00 in quotes."`
	To   string   `key:"to" required:"true" form:"clock" doc:"End, at most 24:00."`
}

// AlertHook is where alerts are sent by themselves.
type AlertHook struct {
	URL     string   `key:"url" required:"true" form:"sinkurl" doc:"Whole URL of the webhook."`
	Plain   bool     `key:"plain" doc:"As plain of a sink."`
	Local   bool     `key:"link_local" doc:"As link_local of a sink."`
	Token   *Secret  `key:"token" doc:"Bearer token."`
	Signing *Secret  `key:"signing_key" doc:"As signing_key of a sink."`
	TLS     *SinkTLS `key:"tls" doc:"As tls of a sink."`
	Timeout Duration `key:"timeout" default:"30s" min:"1s" max:"10m" doc:"For one request with its answer."`
	Project string   `key:"project" default:"native" enum:"native ecs ocsf" doc:"As project of a sink."`
}

// AlertSink is the name under which detect.webhook is among the sinks.
const AlertSink = "alerts"

// AlertSink returns detect.webhook as the sink that it is, nil if there is
// none. It begins with what comes from now on.
func (f *File) AlertSink() *Sink {
	h := f.Detect.Webhook
	if h == nil {
		return nil
	}
	return &Sink{
		Name: AlertSink, Type: SinkWebhook, URL: h.URL, Plain: h.Plain, Local: h.Local, Token: h.Token, Signing: h.Signing, TLS: h.TLS,
		Project: h.Project, Timeout: h.Timeout, From: FromNow, Flight: 1, Alarm: Duration(5 * time.Minute),
	}
}

// ClockTime reads a time of day, "07:00" to "24:00", as time since midnight.
func ClockTime(s string) (time.Duration, bool) {
	if len(s) != 5 || s[2] != ':' || !isDigit(s[0]) || !isDigit(s[1]) || !isDigit(s[3]) || !isDigit(s[4]) {
		return 0, false
	}
	h, m := time.Duration(s[0]-'0')*10+time.Duration(s[1]-'0'), time.Duration(s[3]-'0')*10+time.Duration(s[4]-'0')
	d := h*time.Hour + m*time.Minute
	return d, m < 60 && d <= 24*time.Hour
}

func checkClock(s string) (string, string) {
	if _, ok := ClockTime(s); !ok {
		return "not a time of day: " + quote(s), `write hours and minutes in quotes, such as "07:00"`
	}
	return "", ""
}

func checkZone(s string) (string, string) {
	if _, err := time.LoadLocation(s); err != nil || s == "" || s == "Local" {
		return "not a time zone: " + quote(s), "write UTC or a name of the IANA data base, such as Europe/Berlin"
	}
	return "", ""
}

func checkRuleName(s string) (string, string) {
	if s == "" || len(s) > 48 || !only(s, lower, "_") || strings.IndexByte(lower, s[0]) < 0 {
		return "not the name of a rule or an alert: " + quote(s), "use up to 48 lower case letters, digits and _, a letter first"
	}
	return "", ""
}

func checkFieldPath(s string) (string, string) {
	if s == "" || len(s) > 64 || !only(s, lower, "_.") {
		return "not a field of a record: " + quote(s), "write it as gatebook search does, such as client.prefix"
	}
	return "", ""
}

// checkExpression keeps to what one line can hold; its language is known
// elsewhere.
func checkExpression(s string) (string, string) {
	if len(s) > 4096 {
		return fmt.Sprintf("an expression of %d bytes", len(s)), "the longest allowed is 4096"
	}
	if s == "" || strings.TrimSpace(s) != s || strings.ContainsAny(s, "\r\n\x00") {
		return "not an expression: " + quote(s), "write one line, without white space around it"
	}
	return "", ""
}

// checkDetect checks what concerns more than one value.
func (d *decoder) checkDetect(f *File) {
	names := map[string]int{}
	for i := range f.Detect.Rules {
		r, path := &f.Detect.Rules[i], fmt.Sprintf("detect.rules[%d]", i)
		d.unique(names, r.Name, i, path+".name", "rule")
		if len(r.By) > 3 {
			d.report(d.where(path+".by"), path+".by", "more than three fields", "keep the three that tell callers apart best")
		}
		if r.New == "" && r.Count == 0 && d.quiet(path+".count") && d.quiet(path+".new") {
			d.report(d.where(path), path, "the rule has no count", "say how many make an alert, or name in new a field whose first values do")
		}
		for _, pair := range [][2]string{{"after", "distinct"}, {"after", "times"}, {"new", "distinct"}, {"new", "times"}} {
			_, a := d.at[path+"."+pair[0]]
			if _, b := d.at[path+"."+pair[1]]; a && b {
				d.report(d.where(path+"."+pair[1]), path+"."+pair[1], pair[1]+" and "+pair[0]+" do not go together", "make two rules of it")
			}
		}
		if h := r.Hours; h != nil {
			from, okFrom := ClockTime(h.From)
			if to, okTo := ClockTime(h.To); okFrom && okTo && from >= to {
				d.report(d.where(path+".hours.to"), path+".hours.to", "the hours end before they begin", "swap them; for a night, write the day in hours and what is outside counts")
			}
		}
		if r.Name != "" && slices.Contains(f.Detect.Off, r.Name) {
			d.report(d.where(path+".name"), path+".name", "the rule "+r.Name+" is in detect.off, too", "remove it there: a rule of its name replaces the built-in one")
		}
	}
	if h := f.Detect.Webhook; h != nil {
		path := "detect.webhook"
		s := f.AlertSink()
		d.sinkURL(s, path)
		d.sinkCredentials(s, path)
	}
}
