package graph

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// anyGraph generates a graph with arbitrary boxes and arrows.
func anyGraph(t *rapid.T) *graph {
	g := &graph{name: rapid.String().Draw(t, "name")}
	for i := range rapid.IntRange(1, 14).Draw(t, "boxes") {
		b := &box{id: fmt.Sprint("b", i), kind: boxKind(rapid.IntRange(0, 3).Draw(t, "kind")), name: rapid.String().Draw(t, "box"), notes: rapid.SliceOfN(rapid.String(), 0, 2).Draw(t, "notes")}
		if b.kind == pipelineBox {
			for range rapid.IntRange(0, 4).Draw(t, "rows") {
				b.rows = append(b.rows, row{rapid.String().Draw(t, "row"), "filter"})
			}
		}
		g.boxes = append(g.boxes, b)
	}
	end := func(label string) (*box, int) {
		b := rapid.SampledFrom(g.boxes).Draw(t, label)
		return b, rapid.IntRange(wholeBox, len(b.rows)-1).Draw(t, label+" row")
	}
	for range rapid.IntRange(0, 25).Draw(t, "arrows") {
		from, fromRow := end("from")
		to, toRow := end("to")
		g.edge(from, fromRow, to, toRow, edgeKind(rapid.IntRange(0, 3).Draw(t, "arrow")))
	}
	return g
}

// Boxes are inside the drawing and do not overlap. Every arrow either leads to the
// right or is one of those that lead back.
func TestLayoutSeparatesBoxes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := newDrawing(anyGraph(t))
		for i, b := range d.graph.boxes {
			p := d.places[b]
			if p.x < margin-1 || p.y < margin-1 || p.x+p.width > d.width-margin+1 || p.y+p.height > d.height-margin+1 {
				t.Errorf("box %d is outside the drawing of %.0f by %.0f: %+v", i, d.width, d.height, p)
			}
			for j, other := range d.graph.boxes[:i] {
				q := d.places[other]
				if p.x < q.x+q.width && q.x < p.x+p.width && p.y < q.y+q.height && q.y < p.y+p.height {
					t.Errorf("boxes %d and %d overlap", i, j)
				}
			}
		}
		if len(d.routes)+len(d.back) != len(d.graph.edges) {
			t.Errorf("the drawing has %d arrows to the right and %d back, but the graph has %d", len(d.routes), len(d.back), len(d.graph.edges))
		}
		for _, r := range d.routes {
			if d.places[r.edge.from].layer >= d.places[r.edge.to].layer {
				t.Errorf("an arrow does not lead to the right: %v", r.edge)
			}
		}
	})
}

// With arbitrary names, the SVG is well-formed XML with one group for each box.
func TestSVGIsWellFormedXML(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := anyGraph(t)
		var out bytes.Buffer
		if err := writeSVG(&out, g); err != nil {
			t.Fatal(err)
		}
		groups := 0
		d := xml.NewDecoder(&out)
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if start, ok := token.(xml.StartElement); ok && start.Name.Local == "g" {
				groups++
			}
		}
		if groups != len(g.boxes) {
			t.Errorf("the SVG has %d groups for %d boxes", groups, len(g.boxes))
		}
	})
}

// No character of a name ends the label or the line that contains it.
func TestNamesAreEscapedInLabels(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := anyGraph(t)
		var mermaid, dot bytes.Buffer
		if err := errors.Join(writeMermaid(&mermaid, g), writeDOT(&dot, g)); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(mermaid.String()) {
			if n := strings.Count(line, `"`); n != 0 && n != 2 {
				t.Errorf("a line of Mermaid has %d quotes: %s", n, line)
			}
		}
		for line := range strings.Lines(dot.String()) {
			plain := strings.ReplaceAll(strings.ReplaceAll(line, `\\`, ""), `\"`, "")
			if n := strings.Count(plain, `"`); n%2 != 0 || !strings.ContainsAny(strings.TrimSpace(line), ";{}") {
				t.Errorf("a line of DOT is broken: %s", line)
			}
		}
	})
}
