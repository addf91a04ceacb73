package graph

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"millrace/pipeline/cli"
)

// The drawing is made in columns, from left to right (after Sugiyama, Tagawa and
// Toda, "Methods for Visual Understanding of Hierarchical System Structures",
// 1981): arrows that lead back are set aside; a box stands one column behind the
// last of those that lead to it; where an arrow passes a column, a bend stands for
// it there; columns are sorted until few arrows cross; then boxes move to the
// height of what they are joined to. Arrows that lead back go round below.

// Sizes, in pixels.
const (
	charWidth  = 7.1 // about, of a letter
	lineHeight = 16.0
	padding    = 10.0
	boxGap     = 26.0 // between boxes of a column
	bendGap    = 14.0
	columnGap  = 84.0
	margin     = 24.0
	laneGap    = 14.0 // between arrows that lead back
	maxLabel   = 44   // characters
)

// placed is a box in the drawing, or a bend of an arrow (no box).
type placed struct {
	*box
	layer         int
	x, y          float64 // upper left corner
	width, height float64
	before, after []link // to the columns beside
	rank          float64
}

// link is a piece of an arrow, from one column to the next, as one end sees it.
// The ends are heights below the tops of the boxes.
type link struct {
	other        *placed
	here, beyond float64
}

// drawing is a graph with places.
type drawing struct {
	*graph
	places  map[*box]*placed
	columns [][]*placed
	routes  []route
	back    []edge
	width   float64
	height  float64
}

// route is an arrow, with its bends.
type route struct {
	edge
	bends []*placed
}

func newDrawing(g *graph) *drawing {
	d := &drawing{graph: g, places: map[*box]*placed{}}
	for _, b := range g.boxes {
		p := &placed{box: b}
		p.width, p.height = b.size()
		d.places[b] = p
	}
	forward := d.setLayers()
	d.setColumns(forward)
	d.sortColumns()
	d.setPlaces()
	return d
}

// size returns how much room a box needs.
func (b *box) size() (width, height float64) {
	lines := append([]string{b.name, b.kind.String()}, b.notes...)
	for _, r := range b.rows {
		lines = append(lines, r.name+"   "+r.kind)
	}
	for _, l := range lines {
		width = max(width, charWidth*float64(utf8.RuneCountInString(shortened(l))))
	}
	height = b.head() + float64(len(b.rows))*rowHeight
	if b.kind == pipelineBox {
		height += footHeight
	}
	return width + 2*padding, height
}

const (
	rowHeight  = lineHeight + 8
	footHeight = lineHeight + 2 // where dead letters leave a pipeline
	lidHeight  = 5.0            // of a table, which is drawn as a drum
)

// head returns the height of a box above its rows.
func (b *box) head() float64 {
	height := float64(2+len(b.notes))*lineHeight + padding
	if b.kind == tableBox {
		height += 2 * lidHeight
	}
	return height
}

func shortened(text string) string {
	runes := []rune(text)
	if len(runes) > maxLabel {
		return string(runes[:maxLabel-1]) + "…"
	}
	return text
}

// setLayers finds the arrows that lead back and the column of each box. It
// returns the others.
func (d *drawing) setLayers() (forward []edge) {
	const (
		entered = 1 + iota
		left
	)
	state := map[*box]int{}
	back := map[edge]bool{}
	var order []*box // who leads to others comes after them
	var visit func(b *box)
	visit = func(b *box) {
		state[b] = entered
		for _, e := range d.edges {
			switch {
			case e.from != b:
			case state[e.to] == entered:
				back[e] = true
			case state[e.to] == 0:
				visit(e.to)
			}
		}
		state[b] = left
		order = append(order, b)
	}
	for _, b := range d.roots() {
		if state[b] == 0 {
			visit(b)
		}
	}
	for _, e := range d.edges {
		if back[e] {
			d.back = append(d.back, e)
		} else {
			forward = append(forward, e)
		}
	}
	slices.Reverse(order)
	for _, b := range order {
		for _, e := range forward {
			if e.from == b {
				d.places[e.to].layer = max(d.places[e.to].layer, d.places[b].layer+1)
			}
		}
	}
	for _, b := range order { // what nobody leads to stands near to what it leads to
		nearest := -1
		for _, e := range forward {
			if e.to == b {
				nearest = -1
				break
			}
			if e.from == b && (nearest < 0 || d.places[e.to].layer-1 < nearest) {
				nearest = d.places[e.to].layer - 1
			}
		}
		if nearest > 0 {
			d.places[b].layer = nearest
		}
	}
	return forward
}

// roots returns all boxes, those first that nobody leads to.
func (d *drawing) roots() []*box {
	reached := map[*box]bool{}
	for _, e := range d.edges {
		reached[e.to] = true
	}
	boxes := slices.Clone(d.boxes)
	slices.SortStableFunc(boxes, func(a, b *box) int {
		switch {
		case reached[a] == reached[b]:
			return 0
		case reached[a]:
			return 1
		}
		return -1
	})
	return boxes
}

// setColumns puts boxes into columns, and bends where arrows pass some.
func (d *drawing) setColumns(forward []edge) {
	last := 0
	for _, p := range d.places {
		last = max(last, p.layer)
	}
	d.columns = make([][]*placed, last+1)
	for _, b := range d.boxes {
		p := d.places[b]
		d.columns[p.layer] = append(d.columns[p.layer], p)
	}
	join := func(a, b *placed, leaves, arrives float64) {
		a.after = append(a.after, link{b, leaves, arrives})
		b.before = append(b.before, link{a, arrives, leaves})
	}
	for _, e := range forward {
		r := route{edge: e}
		at, leaves := d.places[e.from], e.leaves()
		for layer := at.layer + 1; layer < d.places[e.to].layer; layer++ {
			bend := &placed{layer: layer}
			d.columns[layer] = append(d.columns[layer], bend)
			join(at, bend, leaves, 0)
			r.bends = append(r.bends, bend)
			at, leaves = bend, 0
		}
		join(at, d.places[e.to], leaves, e.arrives())
		d.routes = append(d.routes, r)
	}
}

// sortColumns sorts each column by where its neighbours stand, to and fro, and
// keeps the order with the fewest crossings.
func (d *drawing) sortColumns() {
	const sweeps = 12
	best, fewest := d.order(), d.crossings()
	for i := range sweeps {
		if i%2 == 0 {
			for l := 1; l < len(d.columns); l++ {
				sortBy(d.columns[l], d.columns[l-1], func(p *placed) []link { return p.before })
			}
		} else {
			for l := len(d.columns) - 2; l >= 0; l-- {
				sortBy(d.columns[l], d.columns[l+1], func(p *placed) []link { return p.after })
			}
		}
		if n := d.crossings(); n < fewest {
			best, fewest = d.order(), n
		}
	}
	d.columns = best
}

func (d *drawing) order() [][]*placed {
	out := make([][]*placed, len(d.columns))
	for i := range d.columns {
		out[i] = slices.Clone(d.columns[i])
	}
	return out
}

// sortBy sorts a column by the mean place of neighbours in another.
func sortBy(column, other []*placed, links func(*placed) []link) {
	index := map[*placed]int{}
	for i, p := range other {
		index[p] = i
	}
	for i, p := range column {
		p.rank = float64(i)
		if near := links(p); len(near) > 0 {
			p.rank = 0
			for _, l := range near {
				p.rank += (float64(index[l.other]) + l.place()) / float64(len(near))
			}
		}
	}
	slices.SortStableFunc(column, func(a, b *placed) int { return cmp.Compare(a.rank, b.rank) })
}

// place returns where on the other box the link ends: 0 is the top, near 1 the
// bottom.
func (l link) place() float64 { return l.beyond / (l.other.height + 1) }

// crossings counts the pairs of arrows that cross between columns.
func (d *drawing) crossings() (n int) {
	index := map[*placed]int{}
	for _, column := range d.columns {
		for i, p := range column {
			index[p] = i
		}
	}
	type line struct{ from, to float64 }
	for _, column := range d.columns {
		var lines []line
		for i, p := range column {
			for _, l := range p.after {
				lines = append(lines, line{float64(i) + l.here/(p.height+1), float64(index[l.other]) + l.place()})
			}
		}
		for i, a := range lines {
			for _, b := range lines[i+1:] {
				if (a.from-b.from)*(a.to-b.to) < 0 {
					n++
				}
			}
		}
	}
	return n
}

// setPlaces gives boxes their coordinates. All boxes of a column have its width.
func (d *drawing) setPlaces() {
	x := margin
	for _, column := range d.columns {
		width := 0.0
		for _, p := range column {
			width = max(width, p.width)
		}
		y := margin
		for _, p := range column {
			p.x, p.y, p.width = x, y, width
			y += p.height + gapBelow(p)
		}
		x += width + columnGap
	}
	d.width = x - columnGap + margin
	const rounds = 10
	for i := range rounds {
		for j := range d.columns {
			l := j
			near := func(p *placed) []link { return p.before }
			if i%2 == 1 {
				l = len(d.columns) - 1 - j
				near = func(p *placed) []link { return p.after }
			}
			align(d.columns[l], near)
		}
	}
	top := d.columns[0][0].y
	for _, column := range d.columns {
		for _, p := range column {
			top = min(top, p.y)
		}
	}
	for _, column := range d.columns {
		for _, p := range column {
			p.y += margin - top
			d.height = max(d.height, p.y+p.height+margin)
		}
	}
	d.height += float64(len(d.back)) * laneGap
}

func gapBelow(p *placed) float64 {
	if p.box == nil {
		return bendGap
	}
	return boxGap
}

// align moves the boxes of a column to the height of their neighbours, as far as
// they keep their order and distance.
func align(column []*placed, links func(*placed) []link) {
	want := make([]float64, len(column))
	for i, p := range column {
		want[i] = p.y
		if near := links(p); len(near) > 0 {
			sum := 0.0
			for _, l := range near {
				sum += l.other.y + l.beyond - l.here
			}
			want[i] = sum / float64(len(near))
		}
	}
	// Boxes that would overlap form a block, which stands at the mean of what its
	// boxes want.
	type block struct {
		first, n int
		at       float64 // of the first box
		size     float64 // from the first box's top to where the next may begin
	}
	var blocks []block
	for i, p := range column {
		b := block{i, 1, want[i], p.height + gapBelow(p)}
		for len(blocks) > 0 {
			before := blocks[len(blocks)-1]
			if before.at+before.size <= b.at {
				break
			}
			blocks = blocks[:len(blocks)-1]
			at := (before.at*float64(before.n) + (b.at-before.size)*float64(b.n)) / float64(before.n+b.n)
			b = block{before.first, before.n + b.n, at, before.size + b.size}
		}
		blocks = append(blocks, b)
	}
	for _, b := range blocks {
		y := b.at
		for _, p := range column[b.first : b.first+b.n] {
			p.y = y
			y += p.height + gapBelow(p)
		}
	}
}

// leaves returns how far below the top of its box an arrow begins, and arrives
// where it ends.
func (e edge) leaves() float64 {
	b := e.from
	_, height := b.size()
	switch {
	case b.kind != pipelineBox:
		return height / 2
	case e.kind.aside() != "":
		return height - footHeight/2
	case e.fromRow >= 0:
		return b.rowMiddle(e.fromRow)
	case len(b.rows) == 0:
		return b.head() / 2
	}
	return b.rowMiddle(len(b.rows) - 1)
}

func (e edge) arrives() float64 {
	b := e.to
	_, height := b.size()
	switch {
	case b.kind != pipelineBox:
		return height / 2
	case e.toRow >= 0:
		return b.rowMiddle(e.toRow)
	}
	return b.head() / 2
}

func (b *box) rowMiddle(i int) float64 { return b.head() + (float64(i)+0.5)*rowHeight }

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

// writeSVG draws the graph.
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
		p.Line(`  <path class="arrow%s" marker-end="url(#head)" d="%s"/>`, r.class(), d.path(r))
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

func (e edge) class() string { return [...]string{"", " dead_letters", " rows", " receipts"}[e.kind] }

// path returns the curve of an arrow.
func (d *drawing) path(r route) string {
	from, to := d.places[r.from], d.places[r.to]
	x, y := from.x+from.width, from.y+r.leaves()
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
	curve(to.x, to.y+r.arrives())
	return b.String()
}

// backPath returns the way of an arrow that leads back, below everything.
func (d *drawing) backPath(e edge, i int) string {
	from, to := d.places[e.from], d.places[e.to]
	aside := 12 + float64(i%5)*5
	lane := d.height - margin/2 - float64(i)*laneGap
	return fmt.Sprintf("M%.1f %.1f H%.1f V%.1f H%.1f V%.1f H%.1f",
		from.x+from.width, from.y+e.leaves(), from.x+from.width+aside, lane, to.x-aside-8, to.y+e.arrives(), to.x)
}

func svgBox(p *cli.Printer, b *placed) {
	p.Line("  <g>")
	shape := fmt.Sprintf(`class="box %s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"`, b.kind, b.x, b.y, b.width, b.height)
	switch b.kind {
	case topicBox:
		p.Line(`    <rect %s rx="14"/>`, shape)
	case tableBox:
		const lid = lidHeight
		p.Line(`    <path class="box table" d="M%.1f %.1f a%.1f %.1f 0 0 1 %.1f 0 v%.1f a%.1f %.1f 0 0 1 -%.1f 0 z m0 0 a%.1f %.1f 0 0 0 %.1f 0"/>`,
			b.x, b.y+lid, b.width/2, lid, b.width, b.height-2*lid, b.width/2, lid, b.width, b.width/2, lid, b.width)
	case projectionBox:
		const corner = 8.0
		p.Line(`    <path class="box projection" d="M%.1f %.1f h%.1f l%.1f %.1f l-%.1f %.1f h-%.1f l-%.1f -%.1f z"/>`,
			b.x+corner, b.y, b.width-2*corner, corner, b.height/2, corner, b.height/2, b.width-2*corner, corner, b.height/2)
	default:
		p.Line(`    <rect %s rx="3"/>`, shape)
	}
	y := b.y + padding/2 + 12
	if b.kind == tableBox {
		y += 2*lidHeight - 3
	}
	middle := b.x + b.width/2
	text := func(class, s string) {
		p.Line(`    <text class="%s" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`, class, middle, y, xmlText(shortened(s)))
		y += lineHeight
	}
	text("small", b.kind.String())
	text("name", b.name)
	for _, note := range b.notes {
		text("small", note)
	}
	for i, r := range b.rows {
		top := b.y + b.head() + float64(i)*rowHeight
		p.Line(`    <path class="row" d="M%.1f %.1f h%.1f"/>`, b.x, top, b.width)
		p.Line(`    <text x="%.1f" y="%.1f">%s</text>`, b.x+padding, top+rowHeight/2+4, xmlText(shortened(r.name)))
		p.Line(`    <text class="small" x="%.1f" y="%.1f" text-anchor="end">%s</text>`, b.x+b.width-padding, top+rowHeight/2+4, xmlText(r.kind))
	}
	if b.kind == pipelineBox {
		foot := b.y + b.height - footHeight
		p.Line(`    <path class="row" d="M%.1f %.1f h%.1f"/>`, b.x, foot, b.width)
		p.Line(`    <text class="small" x="%.1f" y="%.1f" text-anchor="end">dead letters</text>`, b.x+b.width-padding, foot+footHeight/2+4)
	}
	p.Line("  </g>")
}

func xmlText(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}
