package graph

import (
	"fmt"
	"io"
	"strings"

	"millrace/pipeline/cli"
)

// writeText writes the graph as trees for a terminal. The roots are the boxes
// without incoming arrows. A box that was already shown is named without the boxes
// below it.
func writeText(w io.Writer, g *graph) error {
	t := textWriter{out: cli.Printer{Out: w}, graph: g, shown: map[*box]bool{}}
	t.out.Line("%s", g.name)
	written := map[*box]bool{}
	for _, e := range g.edges {
		written[e.to] = true
	}
	for _, b := range g.boxes {
		if !written[b] {
			t.root(b)
		}
	}
	for _, b := range g.boxes { // the rest is in cycles, which have no root
		if !t.shown[b] {
			t.root(b)
		}
	}
	return t.out.Err
}

// A textWriter holds the state of writeText.
type textWriter struct {
	out   cli.Printer
	graph *graph
	shown map[*box]bool
}

// root writes the tree of a box.
func (t *textWriter) root(b *box) {
	t.out.Line("")
	t.out.Line("%s", b.title())
	t.below(b, "")
}

// title returns the line of a box.
func (b *box) title() string {
	title := b.name
	if b.kind != topicBox {
		title = b.kind.String() + " " + b.name
	}
	if len(b.notes) > 0 {
		title += "  (" + strings.Join(b.notes, ", ") + ")"
	}
	return title
}

// below writes the stages of a box, and the boxes that its arrows lead to.
func (t *textWriter) below(b *box, indent string) {
	t.shown[b] = true
	var out []edge
	for _, e := range t.graph.edges {
		if e.from == b {
			out = append(out, e)
		}
	}
	if b.kind == pipelineBox {
		bar := "    "
		if len(out) > 0 {
			bar = "|   "
		}
		for _, r := range b.rows {
			t.out.Line("%s%s%s", indent, bar, strings.TrimRight(fmt.Sprintf("%-20s %s", r.name, r.kind), " "))
		}
	}
	for i, e := range out {
		branch, deeper := "|-", "|   "
		if i == len(out)-1 {
			branch, deeper = "`-", "    "
		}
		arrow := "> "
		how := ""
		switch {
		case e.kind.aside() != "":
			arrow, how = "x ", "  "+e.kind.aside()
		case e.kind == rowsOf:
			arrow = ". "
			how = ": rows for " + e.to.rows[e.toRow].name
		case e.fromRow >= 0:
			how = "  by " + b.rows[e.fromRow].name
		}
		title := e.to.title()
		if t.shown[e.to] || e.kind == rowsOf {
			title = e.to.name
			if e.to.kind != topicBox {
				title = e.to.kind.String() + " " + title
			}
		}
		t.out.Line("%s%s%s%s%s", indent, branch, arrow, title, how)
		if !t.shown[e.to] && e.kind != rowsOf {
			t.below(e.to, indent+deeper)
		}
	}
}
