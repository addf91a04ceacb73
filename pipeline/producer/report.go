package producer

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// summary is the result of a run as --json prints it.
type summary struct {
	Topic           string         `json:"topic"`
	Sent            int            `json:"sent"` // acknowledged by Kafka
	ByType          map[string]int `json:"by_type"`
	Rejected        int            `json:"rejected"`          // bad lines
	Failed          int            `json:"failed,omitempty"`  // failed in Kafka
	Unknown         int            `json:"unknown,omitempty"` // without a result
	Seconds         float64        `json:"seconds"`
	EventsPerSecond float64        `json:"events_per_second"`
	CompleteTo      string         `json:"complete_to,omitempty"` // every valid line up to this one is acknowledged
	Rejects         []string       `json:"rejects,omitempty"`     // files
	DryRun          bool           `json:"dry_run,omitempty"`
	Interrupted     bool           `json:"interrupted,omitempty"`
	Error           string         `json:"error,omitempty"`
}

// report prints the result for people on stderr and, with --json, for programs on
// stdout.
func (p *producer) report(topic string, out *sendOutcome) error {
	p.reportText(p.env.Stderr, topic, out)
	if !p.asJSON {
		return nil
	}
	s := summary{
		Topic: topic, Sent: out.total, ByType: out.sent, Rejected: out.rejected, Failed: out.failed, Unknown: out.unknown,
		Seconds: out.took.Seconds(), EventsPerSecond: perSecond(out.total, out.took), CompleteTo: out.through.String(),
		Rejects: out.rejects, DryRun: p.dryRun, Interrupted: out.interrupted,
	}
	if out.err != nil {
		s.Error = out.err.Error()
	}
	enc := json.NewEncoder(p.env.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(s)
}

func (p *producer) reportText(w io.Writer, topic string, out *sendOutcome) {
	if p.dryRun {
		fmt.Fprintf(w, "dry run: checked %d events for %s in %.1f s (%.0f per second) and sent none\n", out.total, topic, out.took.Seconds(), perSecond(out.total, out.took))
	} else {
		fmt.Fprintf(w, "sent %d events to %s in %.1f s (%.0f per second)\n", out.total, topic, out.took.Seconds(), perSecond(out.total, out.took))
	}
	for _, name := range slices.Sorted(maps.Keys(out.sent)) {
		fmt.Fprintf(w, "  %-20s %10d\n", name, out.sent[name])
	}
	switch {
	case out.rejected == 0:
	case p.dryRun:
		fmt.Fprintf(w, "%d bad lines would be rejected\n", out.rejected)
	default:
		fmt.Fprintf(w, "%d bad lines were not sent; they are kept in %s\n", out.rejected, strings.Join(out.rejects, ", "))
	}
	switch {
	case out.err != nil:
		fmt.Fprintf(w, "error: %v\n", out.err)
	case out.interrupted:
		fmt.Fprintln(w, "interrupted")
	default:
		return
	}
	switch {
	case p.dryRun:
		// Nothing was to be acknowledged.
	case out.through.line > 0:
		fmt.Fprintf(w, "Kafka acknowledged %d events, among them every valid line up to %s\n", out.total, out.through)
	case out.total > 0:
		fmt.Fprintf(w, "Kafka acknowledged %d events, but not the first line\n", out.total)
	default:
		fmt.Fprintln(w, "no event was acknowledged")
	}
}
