package graph

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"millrace/pipeline/cli"
)

const svgStyle = `
    .box { fill: #ffffff; stroke: #52606d; stroke-width: 1.2; }
    .topic { fill: #e8f1fb; stroke: #2f6db3; }
    .pipeline { fill: #fffaf0; stroke: #b7791f; }
    .table { fill: #eef7ee; stroke: #3c8043; }
    .projection { fill: #f6eefb; stroke: #7b4aa3; }
    .row { fill: none; stroke: #b7791f; stroke-width: 0.6; }
    text { font: 12px ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; fill: #1f2933; }
    .name { font-weight: 600; }
    .small { font-size: 10.5px; fill: #52606d; }
    .arrow { fill: none; stroke: #52606d; stroke-width: 1.3; }
    .dead_letters { stroke: #a94442; stroke-dasharray: 5 4; }
    .receipts { stroke: #7b8794; stroke-dasharray: 5 4; }
    .rows { stroke: #3c8043; stroke-dasharray: 1.5 3; }
`

// writeSVG writes the graph as an SVG image.
func writeSVG(w io.Writer, g *graph) error {
	p := cli.Printer{Out: w}
	title := "Topology " + g.name
	if len(g.boxes) == 0 {
		p.Line(`<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><title>%s</title></svg>`, xmlText(title))
		return p.Err
	}
	d := newDrawing(g)
	p.Line(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img">`, d.width, d.height, d.width, d.height)
	p.Line("  <title>%s</title>", xmlText(title))
	p.Line("  <style>%s  </style>", svgStyle)
	p.Line("  <defs>")
	p.Line(`    <marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#52606d"/></marker>`)
	p.Line("  </defs>")
	p.Line(`  <rect width="100%%" height="100%%" fill="#ffffff"/>`)
	for _, r := range d.routes {
		p.Line(`  <path class="arrow%s" marker-end="url(#head)" d="%s"/>`, r.edge.class(), d.path(r))
	}
	for i, e := range d.back {
		p.Line(`  <path class="arrow%s" marker-end="url(#head)" d="%s"/>`, e.class(), d.backPath(e, i))
	}
	for _, b := range g.boxes {
		svgBox(&p, d.places[b])
	}
	p.Line("</svg>")
	return p.Err
}

// class returns the CSS classes of an arrow, each after a space.
func (e edge) class() string { return [...]string{"", " dead_letters", " rows", " receipts"}[e.kind] }

// path returns the path data of an arrow.
func (d *drawing) path(r route) string {
	from, to := d.places[r.edge.from], d.places[r.edge.to]
	x, y := from.x+from.width, from.y+r.edge.leaves()
	var b strings.Builder
	fmt.Fprintf(&b, "M%.1f %.1f", x, y)
	curve := func(x2, y2 float64) {
		half := (x + x2) / 2
		fmt.Fprintf(&b, " C%.1f %.1f %.1f %.1f %.1f %.1f", half, y, half, y2, x2, y2)
		x, y = x2, y2
	}
	for _, bend := range r.bends {
		curve(bend.x, bend.y)
		x += bend.width
		fmt.Fprintf(&b, " H%.1f", x)
	}
	curve(to.x, to.y+r.edge.arrives())
	return b.String()
}

// backPath returns the path data of the i-th arrow that leads back, below everything.
func (d *drawing) backPath(e edge, i int) string {
	from, to := d.places[e.from], d.places[e.to]
	aside := 12 + float64(i%5)*5
	lane := d.height - margin/2 - float64(i)*laneGap
	return fmt.Sprintf("M%.1f %.1f H%.1f V%.1f H%.1f V%.1f H%.1f",
		from.x+from.width, from.y+e.leaves(), from.x+from.width+aside, lane, to.x-aside-8, to.y+e.arrives(), to.x)
}

// svgBox writes a box. at.box is not nil.
func svgBox(p *cli.Printer, at *placed) {
	b := at.box
	p.Line("  <g>")
	shape := fmt.Sprintf(`class="box %s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"`, b.kind, at.x, at.y, at.width, at.height)
	switch b.kind {
	case topicBox:
		p.Line(`    <rect %s rx="14"/>`, shape)
	case tableBox:
		const lid = lidHeight
		p.Line(`    <path class="box table" d="M%.1f %.1f a%.1f %.1f 0 0 1 %.1f 0 v%.1f a%.1f %.1f 0 0 1 -%.1f 0 z m0 0 a%.1f %.1f 0 0 0 %.1f 0"/>`,
			at.x, at.y+lid, at.width/2, lid, at.width, at.height-2*lid, at.width/2, lid, at.width, at.width/2, lid, at.width)
	case projectionBox:
		const corner = 8.0
		p.Line(`    <path class="box projection" d="M%.1f %.1f h%.1f l%.1f %.1f l-%.1f %.1f h-%.1f l-%.1f -%.1f z"/>`,
			at.x+corner, at.y, at.width-2*corner, corner, at.height/2, corner, at.height/2, at.width-2*corner, corner, at.height/2)
	default:
		p.Line(`    <rect %s rx="3"/>`, shape)
	}
	y := at.y + padding/2 + 12
	if b.kind == tableBox {
		y += 2*lidHeight - 3
	}
	middle := at.x + at.width/2
	text := func(class, s string) {
		p.Line(`    <text class="%s" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`, class, middle, y, xmlText(shortened(s)))
		y += lineHeight
	}
	text("small", b.kind.String())
	text("name", b.name)
	for _, note := range b.notes {
		text("small", note)
	}
	svgRows(p, at)
	p.Line("  </g>")
}

// svgRows writes the stages of a pipeline.
func svgRows(p *cli.Printer, at *placed) {
	b := at.box
	for i, r := range b.rows {
		top := at.y + b.head() + float64(i)*rowHeight
		p.Line(`    <path class="row" d="M%.1f %.1f h%.1f"/>`, at.x, top, at.width)
		p.Line(`    <text x="%.1f" y="%.1f">%s</text>`, at.x+padding, top+rowHeight/2+4, xmlText(shortened(r.name)))
		p.Line(`    <text class="small" x="%.1f" y="%.1f" text-anchor="end">%s</text>`, at.x+at.width-padding, top+rowHeight/2+4, xmlText(r.kind))
	}
	if b.kind == pipelineBox {
		foot := at.y + at.height - footHeight
		p.Line(`    <path class="row" d="M%.1f %.1f h%.1f"/>`, at.x, foot, at.width)
		p.Line(`    <text class="small" x="%.1f" y="%.1f" text-anchor="end">dead letters</text>`, at.x+at.width-padding, foot+footHeight/2+4)
	}
}

func xmlText(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // writing to a Builder never fails
	return b.String()
}
