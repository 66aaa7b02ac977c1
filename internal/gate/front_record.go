package gate

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Refusal is one failed attempt that never became an exchange of the pipeline.
type Refusal struct {
	Kind   record.Kind // KindHandshake or KindMalformed
	Reason reason.Reason
	Phase  string // where it failed, a closed word of the part that refuses
	Status int    // of the answer that is sent, 0 if none
	// Start is when the attempt began; zero: with the connection.
	Start time.Time
}

// Refused records one failed attempt and returns the text of its id; kind is
// record.KindHandshake or record.KindMalformed. A malformed request over
// HTTP/1 is recorded with the status of its reason, everything else without.
// It is safe for concurrent use and takes no longer than the Recorder does.
func (g *Gate) Refused(kind record.Kind, f *ConnFacts, r reason.Reason, phase string) (id string) {
	what := Refusal{Kind: kind, Reason: r, Phase: phase}
	if kind == record.KindMalformed {
		what.Start = g.now()
		if f.proto() == "HTTP/1.1" {
			what.Status = r.Status()
		}
	}
	// A record that the book does not take is counted by the book; there is no
	// answer here that could be held back for it.
	id, _ = g.Refuse(f, what)
	return id
}

// Refuse is Refused for those who answer themselves: what was sent is known to
// them, and a request must not be answered as if its record had been written.
// The error is the Recorder's.
func (g *Gate) Refuse(f *ConnFacts, what Refusal) (id string, err error) {
	now := g.now()
	start := what.Start
	if start.IsZero() {
		start = f.Start
	}
	if start.IsZero() {
		start = now
	}
	snap := g.snapshot.Load()
	rec := &record.Record{
		ID: g.newID(start), Time: start.UnixMicro(), Kind: what.Kind, Outcome: record.Failure,
		Node: snap.node, Snap: snap.id, Route: record.None, Op: record.None,
		Status: what.Status, DurUS: max(now.Sub(start).Microseconds(), 0),
		Error: record.Error{Origin: what.Reason.Origin(), Reason: string(what.Reason), Phase: what.Phase},
	}
	rec.Authn.Method = record.None
	// Nobody was authenticated and nothing was forwarded. Heads that were cut
	// off fold too, or strangers could write as many records as they like.
	rec.Raw.Fold = what.Reason.Folds() || what.Kind == record.KindMalformed
	f.describe(rec, snap)
	err = g.commitRefusal(snap, rec)
	why := what.Reason
	if err != nil {
		why = bookReason(err)
	}
	g.counts.add(what.Kind, why, what.Status)
	if snap.alerts.Window > 0 {
		at := start.UnixMicro()
		g.alerts.add(&snap.alerts, alertKey{name: alertOf(what.Reason), prefix: snap.recordPrefix(f.Remote.Addr().Unmap().WithZone(""))},
			&alertEvents{count: 1, first: at, last: at, link: rec.ID, why: what.Reason})
	}
	return rec.ID.String(), err
}

func (g *Gate) commitRefusal(snap *Snapshot, rec *record.Record) error {
	if snap.recorder == nil {
		return errNoRecorder
	}
	return snap.recorder.Commit(context.Background(), record.Ref{}, rec, snap.audit.Level)
}

// describe fills in what the connection says of its client.
func (f *ConnFacts) describe(rec *record.Record, snap *Snapshot) {
	if f.TLS != nil || len(f.OfferedVersions) == 0 && rec.Kind != record.KindHandshake {
		rec.Proto = f.proto()
	}
	if f.TLS != nil {
		t := f.Seen
		if t == nil {
			t = canon.FromTLS(f.TLS)
		}
		rec.TLS = record.TLS{Version: t.Version, Cipher: t.Cipher, Group: t.Group, ALPN: t.ALPN, Resumed: t.Resumed, ClientCert: t.ClientHash}
		rec.Personal.CertSubject = t.ClientSubject
	} else {
		rec.TLS.Version = versionNames(f.OfferedVersions)
	}
	rec.TLS.JA4 = f.JA4
	rec.Personal.Claimed = f.Claimed
	if f.SNI != "" {
		rec.TLS.SNI = snap.hostName(strings.ToLower(f.SNI))
	}
	rec.Client.Prefix = record.None
	addr := f.Remote.Addr().Unmap().WithZone("")
	if p := snap.recordPrefix(addr); p.IsValid() {
		rec.Client.Prefix = p.String()
	}
	rec.Client.PortClass = portClass(f.Remote.Port())
	if addr.IsValid() {
		rec.Raw.RemoteAddr = addr.String()
	}
	rec.Raw.RemotePort = int(f.Remote.Port())
	rec.Raw.Unmatched = true
}

// versionNames lists offered versions, the lowest first. What has no name
// here is no version of TLS.
func versionNames(offered []uint16) string {
	var names []string
	for _, v := range slices.Sorted(slices.Values(offered)) {
		name := ""
		switch v {
		case 0x0200, 0x0002:
			name = "ssl2"
		case 0x0300:
			name = "ssl3"
		case tls.VersionTLS10:
			name = "1.0"
		case tls.VersionTLS11:
			name = "1.1"
		case tls.VersionTLS12:
			name = "1.2"
		case tls.VersionTLS13:
			name = "1.3"
		}
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}
