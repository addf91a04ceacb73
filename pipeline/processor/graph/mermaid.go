package graph

import (
	"fmt"
	"io"
	"strings"

	"millrace/pipeline/cli"
)

// writeMermaid writes a Mermaid flowchart.
func writeMermaid(w io.Writer, g *graph) error {
	p := cli.Printer{Out: w}
	p.Line("flowchart LR")
	for _, b := range g.boxes {
		label := mermaidText(b.name)
		for _, note := range b.notes {
			label += "<br/><small>" + mermaidText(note) + "</small>"
		}
		switch b.kind {
		case pipelineBox:
			p.Line(`  subgraph %s["%s"]`, b.id, label)
			for i, r := range b.rows {
				p.Line(`    %s["%s<br/><small>%s</small>"]`, b.rowID(i), mermaidText(r.name), mermaidText(r.kind))
			}
			if len(b.rows) == 0 {
				p.Line(`    %s["copies events"]`, b.rowID(0))
			}
			for i := 1; i < len(b.rows); i++ {
				p.Line("    %s --> %s", b.rowID(i-1), b.rowID(i))
			}
			p.Line("  end")
		case tableBox:
			p.Line(`  %s[("%s")]`, b.id, label)
		case projectionBox:
			p.Line(`  %s{{"%s"}}`, b.id, label)
		default:
			p.Line(`  %s(["%s"])`, b.id, label)
		}
	}
	for _, e := range g.edges {
		arrow := "-->"
		switch e.kind {
		case deadLetter, receiptOf:
			arrow = "-. " + e.kind.aside() + " .->"
		case rowsOf:
			arrow = "-. rows .->"
		}
		from := e.from.endID(e.fromRow, true)
		if e.kind.aside() != "" {
			from = e.from.id
		}
		p.Line("  %s %s %s", from, arrow, e.to.endID(e.toRow, false))
	}
	return p.Err
}

// mermaidText escapes a text for a label in double quotes. Special characters become
// entities, which Mermaid writes as # and the code point.
func mermaidText(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case strings.ContainsRune("\"#<>&;`[](){}|\\", r) || r < ' ':
			fmt.Fprintf(&b, "#%d;", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
