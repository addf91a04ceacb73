package graph

import (
	"fmt"
	"io"
	"strings"

	"millrace/pipeline/cli"
)

// writeDOT writes a graph for Graphviz.
func writeDOT(w io.Writer, g *graph) error {
	p := cli.Printer{Out: w}
	p.Line("digraph %s {", dotText(g.name))
	p.Line("  rankdir=LR;")
	p.Line(`  compound=true;`)
	p.Line(`  node [fontname="Helvetica", fontsize=11, shape=box, style=rounded];`)
	p.Line(`  edge [fontname="Helvetica", fontsize=9];`)
	for _, b := range g.boxes {
		label := dotText(strings.Join(append([]string{b.name}, b.notes...), "\n"))
		switch b.kind {
		case pipelineBox:
			p.Line("  subgraph cluster_%s {", b.id)
			p.Line("    label=%s;", label)
			for i, r := range b.rows {
				p.Line("    %s [label=%s, style=\"\"];", b.rowID(i), dotText(r.name+"\n"+r.kind))
			}
			if len(b.rows) == 0 {
				p.Line("    %s [label=\"copies events\", style=\"\"];", b.rowID(0))
			}
			for i := 1; i < len(b.rows); i++ {
				p.Line("    %s -> %s;", b.rowID(i-1), b.rowID(i))
			}
			p.Line("  }")
		case tableBox:
			p.Line("  %s [label=%s, shape=cylinder, style=\"\"];", b.id, label)
		case projectionBox:
			p.Line("  %s [label=%s, shape=hexagon, style=\"\"];", b.id, label)
		default:
			p.Line("  %s [label=%s];", b.id, label)
		}
	}
	for _, e := range g.edges {
		attributes := ""
		switch e.kind {
		case deadLetter, receiptOf:
			attributes = fmt.Sprintf(` [style=dashed, color=gray, label="%s", ltail=cluster_%s]`, e.kind.aside(), e.from.id)
		case rowsOf:
			attributes = ` [style=dotted, label="rows"]`
		}
		p.Line("  %s -> %s%s;", e.from.endID(e.fromRow, true), e.to.endID(e.toRow, false), attributes)
	}
	p.Line("}")
	return p.Err
}

// dotText returns a text as a quoted string of DOT.
func dotText(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", " ").Replace(text) + `"`
}
