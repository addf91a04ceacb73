// Package graph implements `processor graph`, which draws a topology as text,
// Mermaid, DOT or SVG.
//
// Start at [Command]. newGraph in graph.go turns a topology into boxes and arrows.
// text.go, mermaid.go and dot.go write them. For SVG, layout.go computes the
// coordinates and svg.go writes them.
//
// A single goroutine runs everything here.
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

// Command returns `processor graph`.
func Command(e *cli.Env) *cobra.Command {
	var format string
	var flags *cli.TopologyFlags
	formats := map[string]func(io.Writer, *graph) error{"mermaid": writeMermaid, "dot": writeDOT, "svg": writeSVG, "text": writeText}
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw the topology: topics, pipelines with their stages, tables and projections",
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

// A graph is a topology as boxes and arrows. A pipeline is one box with a row for
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

// A box is a topic, pipeline, table or projection.
type box struct {
	id    string // a word that is unique in the graph
	kind  boxKind
	name  string
	notes []string // more lines of text
	rows  []row    // stages of a pipeline
}

// A row is a stage.
type row struct{ name, kind string }

// An edge is an arrow. Each end is a row of a box, or wholeBox for the box itself.
type edge struct {
	from, to       *box
	fromRow, toRow int
	kind           edgeKind
}

const wholeBox = -1

type edgeKind uint8

const (
	flow       edgeKind = iota // events
	deadLetter                 // dead letters
	rowsOf                     // rows of a table, for a lookup
	receiptOf                  // receipts of events that were not written
)

// aside returns the label of an arrow that starts at the pipeline instead of at a
// stage, because any stage can send along it; "" for another arrow.
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

// visible replaces control characters, which could move the cursor of a terminal.
func visible(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, text)
}

// edge adds an arrow, unless the graph has it.
func (g *graph) edge(from *box, fromRow int, to *box, toRow int, kind edgeKind) {
	e := edge{from, to, fromRow, toRow, kind}
	if !slices.Contains(g.edges, e) {
		g.edges = append(g.edges, e)
	}
}

// pipeline adds the box of a pipeline and its arrows.
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
		if joiner, ok := s.Built.(stage.TableReader); ok {
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

// rowID returns the id of the node of a row in Mermaid and DOT.
func (b *box) rowID(i int) string { return fmt.Sprintf("%ss%d", b.id, i) }

// endID returns the id of the node at an end of an arrow in Mermaid and DOT. An
// arrow of a whole pipeline starts at its last stage or ends at its first.
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
