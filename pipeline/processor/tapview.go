package processor

import (
	"encoding/json"
	"fmt"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/processor/trace"
)

// tapView prints lines as text: an event, and below it the changes of each stage.
type tapView struct {
	out   cli.Printer
	color bool

	last    trace.Place                     // of the last printed event
	entered map[trace.Place]json.RawMessage // the newest events, as they entered their current stage
}

// maxEntered limits tapView.entered. A worker does not tell when an event ends, so the map
// is emptied when it is full.
const maxEntered = 1000

// paint returns text in a color of the terminal. code is a parameter of SGR (ECMA-48).
func (v *tapView) paint(code, text string) string {
	if !v.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// harmless replaces control characters, which could change the state of the terminal.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}

func (v *tapView) show(l trace.Line) {
	if l.Dropped > 0 {
		v.out.Line("%s", v.paint("33", fmt.Sprintf("(%s dropped: this client was too slow)", cli.Plural(int(l.Dropped), "line"))))
	}
	if l.Stage == "" {
		return
	}
	at := trace.Place{Topic: l.Topic, Partition: l.Partition, Offset: l.Offset}
	if v.entered == nil || len(v.entered) > maxEntered {
		v.entered = map[trace.Place]json.RawMessage{}
	}
	_, known := v.entered[at]
	if at != v.last {
		v.out.Line("%s %s key %s %s %s", recordTime(l.Time), v.paint("1", at.String()), harmless(cli.Quote(l.Key)), l.Type, v.paint("2", l.Pipeline))
		v.last = at
	}
	before := v.entered[at]
	if l.At == trace.MomentName(pipeline.Entering) {
		v.entered[at] = l.Event
		if !known {
			v.out.Line("  %s", harmless(string(l.Event)))
		}
		return
	}
	color := map[string]string{"passed": "32", "filtered": "33", "skipped": "33", "failed": "31"}[l.At]
	v.out.Line("  %-20s %s%s", l.Stage, v.paint(color, l.At), harmless(tapDetail(before, l)))
}

// tapDetail returns the effect of a stage. before is the event that entered it, nil if it
// is unknown.
func tapDetail(before json.RawMessage, l trace.Line) string {
	var parts []string
	if l.Error != "" {
		parts = append(parts, cli.Clip(l.Error, 300))
	}
	if before != nil && l.Event != nil {
		parts = append(parts, trace.Changes(before, l.Event)...)
	}
	if l.NewKey != nil {
		parts = append(parts, "new key "+cli.Quote(*l.NewKey))
	}
	if len(l.To) > 0 {
		parts = append(parts, "to "+strings.Join(l.To, ", "))
	}
	if len(parts) == 0 {
		return ""
	}
	return "  " + strings.Join(parts, ", ")
}

// recordTime returns the time of a record, in milliseconds.
func recordTime(t pipeline.Time) string {
	if !t.HasText() {
		return t.String()
	}
	return t.Std().UTC().Format("2006-01-02T15:04:05.000Z")
}
