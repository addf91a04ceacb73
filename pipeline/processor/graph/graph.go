// Package graph draws a topology: as text, Mermaid, DOT and SVG.
//
// Start at [Command].
package graph

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

func Command(e *cli.Env) *cobra.Command {
	var format string
	var flags *cli.TopologyFlags
	formats := map[string]func(io.Writer, *graph) error{"mermaid": writeMermaid, "dot": writeDOT, "svg": writeSVG, "text": writeGraphText}
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the topology: topics, pipelines with their stages, tables, projections",
		Example: `  processor graph
  processor graph --format svg > topology.svg
  processor graph --format mermaid   # for Markdown
  processor graph --format dot | dot -Tpng`,
		RunE: func(*cobra.Command, []string) error {
			write, ok := formats[format]
			if !ok {
				return cli.Usagef("--format: %q is none of text, mermaid, dot, svg", format)
			}
			t, err := flags.Load(e)
			if err != nil {
				return err
			}
			return write(e.Stdout, newGraph(t))
		},
	}
	flags = e.TopologyFlags(cmd.Flags())
	cmd.Flags().StringVar(&format, "format", "text", "`format` of the graph: text, mermaid, dot or svg")
	return cmd
}

// graph is a topology as boxes and arrows. A pipeline is one box, with a row for
// each stage.
type graph struct {
	name  string
	boxes []*box
	edges []edge
}

type boxKind uint8

const (
	topicBox boxKind = iota
	pipelineBox
	tableBox
	projectionBox
)

func (k boxKind) String() string { return [...]string{"topic", "pipeline", "table", "projection"}[k] }

// box is one box. id is a word that is unique in the graph.
type box struct {
	id    string
	kind  boxKind
	name  string
	notes []string // what else to say of it, a line each
	rows  []row    // stages
}

type row struct{ name, kind string }

// edge is an arrow. Its ends are rows of boxes; wholeBox is the box itself.
type edge struct {
	from, to       *box
	fromRow, toRow int
	kind           edgeKind
}

const wholeBox = -1

type edgeKind uint8

const (
	flow       edgeKind = iota // of events
	deadLetter                 // of events that are bad
	rowsOf                     // of a table, for lookups
	receiptOf                  // of events that did not come out
)

// aside says what goes along an arrow that any stage may begin, "" if it is not
// such a one.
func (k edgeKind) aside() string {
	return map[edgeKind]string{deadLetter: "dead letters", receiptOf: "receipts"}[k]
}

// newGraph returns the graph of a topology.
func newGraph(t *topology.Topology) *graph {
	g := &graph{name: t.Name}
	topics := map[*topology.Topic]*box{}
	for i, topic := range t.Topics {
		b := &box{id: fmt.Sprint("t", i), kind: topicBox, name: topic.Name, notes: []string{cli.Plural(topic.Partitions, "partition")}}
		if topic.Snapshots != nil {
			b.notes = append(b.notes, "snapshots of "+topic.Snapshots.Name)
		}
		topics[topic] = b
		g.boxes = append(g.boxes, b)
	}
	tables := map[string]*box{}
	for i, table := range t.Tables {
		b := &box{id: fmt.Sprint("r", i), kind: tableBox, name: table.Name}
		tables[table.Name] = b
		g.boxes = append(g.boxes, b)
		if table.Topic != nil {
			g.edge(topics[table.Topic], wholeBox, b, wholeBox, flow)
		} else {
			b.notes = append(b.notes, "file "+visible(table.File))
		}
	}
	for i, pl := range t.Pipelines {
		g.pipeline(fmt.Sprint("p", i), pl, topics, tables)
	}
	for i, p := range t.Projections {
		b := &box{id: fmt.Sprint("f", i), kind: projectionBox, name: p.Name, notes: []string{"state " + p.Fold.State().ShortName()}}
		g.boxes = append(g.boxes, b)
		g.edge(topics[p.From], wholeBox, b, wholeBox, flow)
		g.edge(b, wholeBox, topics[p.Snapshots], wholeBox, flow)
	}
	return g
}

// visible returns a text without what would move a terminal's cursor.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, text)
}

func (g *graph) edge(from *box, fromRow int, to *box, toRow int, kind edgeKind) {
	e := edge{from, to, fromRow, toRow, kind}
	if !slices.Contains(g.edges, e) {
		g.edges = append(g.edges, e)
	}
}

func (g *graph) pipeline(id string, pl *topology.Pipeline, topics map[*topology.Topic]*box, tables map[string]*box) {
	b := &box{id: id, kind: pipelineBox, name: pl.Name, notes: []string{pl.Guarantee}}
	g.boxes = append(g.boxes, b)
	byName := map[string]*topology.Topic{}
	for topic := range topics {
		byName[topic.Name] = topic
	}
	routed := map[*topology.Topic]bool{}
	for i, s := range pl.Stages {
		b.rows = append(b.rows, row{s.Name, s.Kind.Name})
		if router, ok := s.Built.(stage.Router); ok {
			for _, name := range router.Topics() {
				g.edge(b, i, topics[byName[name]], wholeBox, flow)
				routed[byName[name]] = true
			}
		}
		if joiner, ok := s.Built.(stage.Joiner); ok {
			g.edge(tables[joiner.Table().Name], wholeBox, b, i, rowsOf)
		}
	}
	g.edge(topics[pl.From], wholeBox, b, wholeBox, flow)
	for _, to := range pl.Writes() {
		reached := slices.ContainsFunc(pl.Targets, func(targets []*topology.Topic) bool { return slices.Contains(targets, to) })
		if reached && !routed[to] {
			g.edge(b, wholeBox, topics[to], wholeBox, flow)
		}
	}
	g.edge(b, wholeBox, topics[pl.DeadLetter], wholeBox, deadLetter)
	if pl.Receipts != nil {
		g.edge(b, wholeBox, topics[pl.Receipts], wholeBox, receiptOf)
	}
}

// writeMermaid writes a flowchart of Mermaid. Labels are in quotes, with what
// has a meaning of its own there as numbers of characters.
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

func (b *box) rowID(i int) string { return fmt.Sprintf("%ss%d", b.id, i) }

// endID returns the node that an edge begins or ends at: of a pipeline, the last
// stage or the first, if it is not of one stage.
func (b *box) endID(row int, begins bool) string {
	switch {
	case b.kind != pipelineBox:
		return b.id
	case row >= 0:
		return b.rowID(row)
	case begins:
		return b.rowID(max(0, len(b.rows)-1))
	}
	return b.rowID(0)
}

// mermaidText escapes a text for a label in double quotes. Entities are written
// with # there.
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

// writeGraphText writes the graph as a tree for a terminal: from each topic that
// nobody writes down to where its events end. What was shown before is named
// again, and not followed again.
func writeGraphText(w io.Writer, g *graph) error {
	t := graphText{Printer: cli.Printer{Out: w}, graph: g, shown: map[*box]bool{}}
	t.Line("%s", g.name)
	written := map[*box]bool{}
	for _, e := range g.edges {
		written[e.to] = true
	}
	for _, b := range g.boxes {
		if !written[b] {
			t.root(b)
		}
	}
	for _, b := range g.boxes { // only circles are left
		if !t.shown[b] {
			t.root(b)
		}
	}
	return t.Err
}

type graphText struct {
	cli.Printer
	*graph
	shown map[*box]bool
}

func (t *graphText) root(b *box) {
	t.Line("")
	t.Line("%s", b.title())
	t.below(b, "")
}

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

// below writes what comes after a box.
func (t *graphText) below(b *box, indent string) {
	t.shown[b] = true
	var out []edge
	for _, e := range t.edges {
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
			t.Line("%s%s%s", indent, bar, strings.TrimRight(fmt.Sprintf("%-20s %s", r.name, r.kind), " "))
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
		t.Line("%s%s%s%s%s", indent, branch, arrow, title, how)
		if !t.shown[e.to] && e.kind != rowsOf {
			t.below(e.to, indent+deeper)
		}
	}
}
