package graph

import (
	"cmp"
	"slices"
	"unicode/utf8"
)

// The layout has columns from left to right, after Sugiyama, Tagawa and Toda,
// "Methods for Visual Understanding of Hierarchical System Structures" (1981):
//
//  1. splitEdges sets aside the arrows that close cycles.
//  2. setLayers puts each box one column to the right of the last box that leads to
//     it.
//  3. setColumns adds a bend to each column that an arrow passes.
//  4. sortColumns sorts columns until few arrows cross.
//  5. setPlaces moves boxes to the height of their neighbors.
//
// The arrows that close cycles run back below everything.

// Sizes in pixels.
const (
	charWidth  = 7.1 // approximate width of a letter
	lineHeight = 16.0
	padding    = 10.0
	boxGap     = 26.0 // between boxes of a column
	bendGap    = 14.0 // below a bend
	columnGap  = 84.0
	margin     = 24.0
	laneGap    = 14.0 // between arrows that lead back
	maxLabel   = 44   // in characters
)

// A placed is a box in the drawing, or a bend of an arrow.
type placed struct {
	box           *box // nil for a bend
	layer         int  // index of the column
	x, y          float64
	width, height float64
	before, after []link  // to the previous and the next column
	rank          float64 // sort key of sortBy
}

// A link is the part of an arrow between two adjacent columns, as seen from one end.
// Each end is a height below the top of its box.
type link struct {
	other        *placed
	here, beyond float64
}

// A drawing is a graph with coordinates. x and y of a box are its upper left corner.
type drawing struct {
	graph   *graph
	places  map[*box]*placed
	columns [][]*placed // from left to right, each from top to bottom
	routes  []route     // arrows to the right
	back    []edge      // arrows that close cycles
	width   float64
	height  float64
}

// A route is an arrow with its bends.
type route struct {
	edge  edge
	bends []*placed
}

func newDrawing(g *graph) *drawing {
	d := &drawing{graph: g, places: map[*box]*placed{}}
	for _, b := range g.boxes {
		p := &placed{box: b}
		p.width, p.height = b.size()
		d.places[b] = p
	}
	forward, order := d.splitEdges()
	d.setLayers(forward, order)
	d.setColumns(forward)
	d.sortColumns()
	d.setPlaces()
	return d
}

// size returns the size of a box.
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
	footHeight = lineHeight + 2 // the row where dead letters leave a pipeline
	lidHeight  = 5.0            // the lid of a table, which is drawn as a drum
)

// head returns the height of a box above its rows.
func (b *box) head() float64 {
	height := float64(2+len(b.notes))*lineHeight + padding
	if b.kind == tableBox {
		height += 2 * lidHeight
	}
	return height
}

// shortened cuts a text to maxLabel characters.
func shortened(text string) string {
	runes := []rune(text)
	if len(runes) > maxLabel {
		return string(runes[:maxLabel-1]) + "…"
	}
	return text
}

// splitEdges sets back to the arrows that close cycles, found by a depth-first
// search. It returns the other arrows, and all boxes in topological order.
func (d *drawing) splitEdges() (forward []edge, order []*box) {
	const (
		entered = 1 + iota
		left
	)
	state := map[*box]int{}
	back := map[edge]bool{}
	var visit func(b *box)
	visit = func(b *box) {
		state[b] = entered
		for _, e := range d.graph.edges {
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
	for _, e := range d.graph.edges {
		if back[e] {
			d.back = append(d.back, e)
		} else {
			forward = append(forward, e)
		}
	}
	slices.Reverse(order)
	return forward, order
}

// setLayers sets the column of each box.
func (d *drawing) setLayers(forward []edge, order []*box) {
	for _, b := range order {
		for _, e := range forward {
			if e.from == b {
				d.places[e.to].layer = max(d.places[e.to].layer, d.places[b].layer+1)
			}
		}
	}
	for _, b := range order { // a box without incoming arrows moves next to its nearest target
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
}

// roots returns all boxes; boxes without incoming arrows come first.
func (d *drawing) roots() []*box {
	reached := map[*box]bool{}
	for _, e := range d.graph.edges {
		reached[e.to] = true
	}
	boxes := slices.Clone(d.graph.boxes)
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

// setColumns puts boxes into columns, adds a bend where an arrow passes a column, and
// links neighbors.
func (d *drawing) setColumns(forward []edge) {
	last := 0
	for _, p := range d.places {
		last = max(last, p.layer)
	}
	d.columns = make([][]*placed, last+1)
	for _, b := range d.graph.boxes {
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

// sortColumns sorts each column by the positions in the previous column, then by those
// in the next column, in turn. It keeps the order with the fewest crossings.
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

// order returns a copy of the current columns.
func (d *drawing) order() [][]*placed {
	out := make([][]*placed, len(d.columns))
	for i := range d.columns {
		out[i] = slices.Clone(d.columns[i])
	}
	return out
}

// sortBy sorts a column by the mean position of neighbors in the other column.
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

// place returns the position of the link's end on the other box: 0 is the top, and
// the bottom is just below 1.
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

// setPlaces sets the coordinates of boxes. All boxes of a column have the same width.
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

// gapBelow returns the minimum distance to the next box of the column.
func gapBelow(p *placed) float64 {
	if p.box == nil {
		return bendGap
	}
	return boxGap
}

// align moves the boxes of a column towards the height of their neighbors, as far as
// order and minimum distance allow.
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
	// Boxes that would overlap form a block, at the mean of the wanted heights.
	type block struct {
		first, n int     // index of the first box, and number of boxes
		at       float64 // top of the first box
		size     float64 // distance from there to the earliest top of the next block
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

// leaves returns the height below the top of its box at which an arrow starts.
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

// arrives returns the height below the top of its box at which an arrow ends.
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

// rowMiddle returns the height of the middle of a row below the top of its box.
func (b *box) rowMiddle(i int) float64 { return b.head() + (float64(i)+0.5)*rowHeight }
