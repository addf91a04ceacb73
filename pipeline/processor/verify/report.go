package verify

import (
	"fmt"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/processor/trace"
)

// A verifyReport is the result of a comparison.
type verifyReport struct {
	Pipeline  string `json:"pipeline"`
	Agrees    bool   `json:"agrees"`
	Conserved bool   `json:"conserved"` // in = out + filtered + dead letters + services

	In          int `json:"in"`                 // committed events
	Out         int `json:"out"`                // events with output
	Filtered    int `json:"filtered"`           // events that need no output
	DeadLetters int `json:"dead_letters"`       // events with a dead letter
	Services    int `json:"services,omitempty"` // events whose outcome depends on a service that was not called

	Expected   int `json:"expected"` // records, dead letters included
	Matched    int `json:"matched"`
	Missing    int `json:"missing"`
	Extra      int `json:"extra"`
	Duplicated int `json:"duplicated"`
	Different  int `json:"different"`
	OutOfOrder int `json:"out_of_order"`

	Passes  int            `json:"passes"`  // over input and output
	Ignored []string       `json:"ignored"` // fields that are not compared, as TYPE.PATH
	Notes   []string       `json:"notes"`
	Samples []disagreement `json:"samples"`
}

// A disagreement is an output record that is not as expected, or missing.
type disagreement struct {
	Kind   string          `json:"kind"` // missing, different, twice, too many or out of order
	Topic  string          `json:"topic"`
	Key    string          `json:"key"`
	In     *trace.Place    `json:"in,omitempty"`    // the event
	Found  *trace.Place    `json:"found,omitempty"` // the record
	Text   []string        `json:"text,omitempty"`  // details, a line each
	wanted *expectedRecord // nil if no such record is expected
}

// print prints the report as text.
func (r *verifyReport) print(p *cli.Printer) {
	p.Line("pipeline %s", r.Pipeline)
	services := ""
	if r.Services > 0 {
		services = fmt.Sprintf(" + %d that a service decides", r.Services)
	}
	p.Line("  %s in = %d out + %d filtered + %s%s%s", cli.Plural(r.In, "event"), r.Out, r.Filtered, cli.Plural(r.DeadLetters, "dead letter"), services, map[bool]string{false: ": these do not add up"}[r.Conserved])
	p.Line("  %s expected, %d matched", cli.Plural(r.Expected, "record"), r.Matched)
	for _, line := range []struct {
		n    int
		what string
	}{{r.Missing, "missing"}, {r.Extra, "too many"}, {r.Duplicated, "duplicated"}, {r.Different, "different"}, {r.OutOfOrder, "out of order"}} {
		if line.n > 0 {
			p.Line("  %d %s", line.n, line.what)
		}
	}
	if len(r.Ignored) > 0 {
		p.Item("  not compared:", 16, strings.Join(r.Ignored, ", "))
	}
	for _, note := range r.Notes {
		p.Item("  note:", 16, note)
	}
	for _, d := range r.Samples {
		text := fmt.Sprintf("  %s on %s, key %s", d.Kind, d.Topic, cli.Quote(d.Key))
		if d.In != nil {
			text += ", of the event " + d.In.String()
		}
		if d.Found != nil {
			text += ", at " + d.Found.String()
		}
		p.Line("%s", text)
		for _, line := range d.Text {
			p.Line("    %s", line)
		}
	}
	if r.Agrees {
		p.Line("  the output is as expected")
	} else {
		p.Line("  the output is NOT as expected")
	}
}
