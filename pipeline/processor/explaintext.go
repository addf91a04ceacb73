package processor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// Widths of the columns of printPipeline.
const (
	topicColumn = 16
	limitColumn = 24
)

// printPipeline prints a plan as text.
func printPipeline(p *cli.Printer, pl *pipelinePlan) {
	printTopics(p, pl)
	printStages(p, pl.Stages)
	printSchemas(p, pl.Schemas)
	printLimits(p, pl)
	printAccess(p, pl)
}

func printTopics(p *cli.Printer, pl *pipelinePlan) {
	item := func(name, format string, args ...any) {
		p.Item("  "+name, topicColumn, fmt.Sprintf(format, args...))
	}
	p.Line("Pipeline %s", pl.Name)
	if pl.Guarantee == topology.ExactlyOnce {
		item("guarantee", "exactly_once: outputs, dead letters, state and offsets are committed in one transaction")
	} else {
		item("guarantee", "at_least_once: after a crash, events may be written again")
	}
	item("reads", "%s", pl.Reads.text())
	for _, t := range pl.Writes {
		item("writes", "%s", t.text())
		if t.Note != "" {
			item("", "note: %s", t.Note)
		}
	}
	item("dead letters", "%s", pl.DeadLetters.text())
	if pl.DeadLetters.Note != "" {
		item("", "note: %s", pl.DeadLetters.Note)
	}
	if pl.Receipts != nil {
		item("receipts", "%s", pl.Receipts.text())
	}
	for _, t := range pl.Tables {
		from := t.Topic
		if from == "" {
			from = "the file " + t.File
		}
		item("table", "%s: rows of %s from %s, all of them in memory", t.Name, t.Schema, from)
	}
	for _, t := range pl.State {
		item("state", "%s", t.text())
	}
	p.Line("")
}

func printSchemas(p *cli.Printer, schemas []schemaPlan) {
	p.Line("Schemas")
	for _, s := range schemas {
		p.Line("  %s", s.Type)
		p.Line("    read     %s", s.Reads)
		if s.Becomes != "" {
			p.Line("    becomes  %s", s.Becomes)
		}
		for _, subject := range s.Writes {
			p.Line("    written  %s", subject)
		}
		if len(s.Writes) == 0 {
			p.Line("    not written: no event of this type passes all stages")
		}
		for _, field := range s.Adds {
			p.Line("    added    %s", field)
		}
		printWriters(p, &s)
	}
	p.Line("")
}

// printProjection prints how the events of a projection are read.
func printProjection(p *cli.Printer, plan *projectionPlan) {
	p.Line("")
	p.Line("projection %s reads %s", plan.Name, plan.Reads)
	for i := range plan.Schemas {
		p.Line("  %s", plan.Schemas[i].Type)
		p.Line("    read     %s", plan.Schemas[i].Reads)
		printWriters(p, &plan.Schemas[i])
	}
}

func printWriters(p *cli.Printer, s *schemaPlan) {
	for i := range s.Writers {
		for j, line := range s.Writers[i].lines() {
			if j == 0 {
				line = "writer   " + line
			} else {
				line = "         " + line
			}
			p.Line("    %s", line)
		}
	}
}

func printLimits(p *cli.Printer, pl *pipelinePlan) {
	p.Line("Limits")
	p.Item("  sessions", limitColumn, cli.Plural(pl.Limits.Sessions, "member")+" of the group in this process")
	p.Item("  commit interval", limitColumn, pl.Limits.CommitInterval)
	if pl.Guarantee == topology.ExactlyOnce {
		p.Item("  transaction timeout", limitColumn, pl.Limits.TransactionTimeout+": how long a crashed worker's partitions wait")
	}
	p.Item("  session timeout", limitColumn, pl.Limits.SessionTimeout)
	if pl.Limits.HoldsUp != "" {
		p.Item("  waits of stages", limitColumn, "up to "+pl.Limits.HoldsUp+" per batch")
	}
	p.Item("  record", limitColumn, fmt.Sprintf("key, value and headers: max.message.bytes of the topic minus 512, or %s if it cannot be read; at most a quarter of a session's memory, and at most 64 MiB", cli.GroupDigits(int64(pl.Limits.RecordBytes))))
	p.Item("  memory", limitColumn, fmt.Sprintf("%d MiB for records in flight, plus tables and state", pl.Limits.MemoryBytes>>20))
	p.Line("")
}

// printAccess prints the names of the worker on Kafka, and its permissions.
func printAccess(p *cli.Printer, pl *pipelinePlan) {
	p.Line("On Kafka")
	p.Item("  group", limitColumn, pl.Group)
	for i, id := range pl.TransactionalIDs {
		name := ""
		if i == 0 {
			name = "  transactional ids"
		}
		p.Item(name, limitColumn, id)
	}
	for _, a := range pl.ACLs {
		name := a.Name
		if a.Pattern == "prefixed" {
			name += "*"
		}
		p.Line("  allow %-15s %-16s %s  (%s)", a.Operation, a.Resource, name, a.For)
	}
}

func printStages(p *cli.Printer, stages []stagePlan) {
	p.Line("Stages")
	if len(stages) == 0 {
		p.Line("  none: events are copied")
	}
	width := 0
	for _, s := range stages {
		width = max(width, len(s.Name))
	}
	for i, s := range stages {
		on := "all types"
		if !s.All {
			on = strings.Join(s.On, ", ")
		}
		head := fmt.Sprintf("  %d. %-*s ", i+1, width, s.Name)
		p.Item(head, len(head), fmt.Sprintf("%-7s %s", s.Kind, "on "+on))
		detail := func(name, text string) {
			if text != "" {
				p.Item("     "+name, 16, text)
			}
		}
		detail("reads", fieldsText(s.Reads))
		detail("writes", fieldsText(s.Writes))
		detail("becomes", strings.Join(s.Becomes, ", "))
		if s.Deletes {
			detail("deletes", "events that it makes tombstones")
		}
		detail("stops", strings.Join(s.Stops, ", "))
		detail("routes to", strings.Join(s.Routes, ", "))
		detail("state on", s.State)
		if s.Holds != "" {
			detail("waits", "up to "+s.Holds+" per batch")
		}
		if s.OnError != "dead_letter" {
			detail("on error", s.OnError)
		}
	}
	p.Line("")
}

func fieldsText(fields []fieldPlan) string {
	texts := make([]string, len(fields))
	for i, f := range fields {
		texts[i] = f.Path
		if f.Types != nil {
			texts[i] += " (" + strings.Join(f.Types, ", ") + ")"
		}
	}
	return strings.Join(texts, ", ")
}

func (t *topicPlan) text() string {
	text := fmt.Sprintf("%s, %s", t.Name, cli.Plural(t.Partitions, "partition"))
	if t.Replication > 0 {
		text += fmt.Sprintf(" on %s each", cli.Plural(t.Replication, "broker"))
	}
	for _, name := range slices.Sorted(maps.Keys(t.Config)) {
		text += ", " + name + "=" + t.Config[name]
	}
	if len(t.Types) > 0 {
		text += ": " + strings.Join(t.Types, ", ")
	}
	return text
}
