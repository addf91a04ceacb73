package topology

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// A place is a character of the file, from 1:1.
type place struct{ line, col int }

// A scalar is a text in the file, after quotes, escapes and ${VAR} are resolved,
// and where each of its characters comes from.
type scalar struct {
	text  string
	start place   // of the first character: behind the quote
	at    []place // by character, and one more for the end; nil if that cannot be told
	plain bool    // neither quoted nor a block
	given bool    // a variable's value is part of it

	broken bool // a variable is not there, and that has been said
}

// place returns where a character of the text comes from.
func (s *scalar) place(offset int) place {
	if s.at == nil || offset < 0 {
		return s.start
	}
	return s.at[min(offset, len(s.at)-1)]
}

// An aligner goes through a scalar's value and its source side by side. The
// parser says what the value is; so it cannot come to a wrong value, it only
// finds, or fails to find, the places.
type aligner struct {
	lines [][]rune
	pos   place
	empty bool // the position is behind the line end that a fold swallows
}

// peek returns the character at the position; '\n' at the end of a line, 0 at
// the end of the file.
func (a *aligner) peek() rune {
	if a.pos.line > len(a.lines) {
		return 0
	}
	line := a.lines[a.pos.line-1]
	if a.pos.col > len(line) {
		return '\n'
	}
	return line[a.pos.col-1]
}

func (a *aligner) next() {
	if a.peek() == '\n' {
		a.pos = place{a.pos.line + 1, 1}
	} else if a.peek() != 0 {
		a.pos.col++
	}
}

func (a *aligner) skip(set string) {
	for c := a.peek(); c != 0 && strings.ContainsRune(set, c); c = a.peek() {
		a.next()
	}
}

// align finds the places of the characters of a scalar's value. first is that of
// the first one even if the others cannot be told.
func align(lines [][]rune, n *yaml.Node) (first place, at []place) {
	a := &aligner{lines: lines, pos: place{n.Line, n.Column}}
	// A node begins with its tag and anchor.
	for range 2 {
		if c := a.peek(); n.Value != "" && (c == '&' || c == '!') {
			for c := a.peek(); c != ' ' && c != '\n' && c != 0; c = a.peek() {
				a.next()
			}
			a.skip(" \t\n")
		}
	}
	value := []rune(n.Value)
	style := n.Style &^ (yaml.TaggedStyle | yaml.FlowStyle)
	step := (*aligner).plain
	switch style {
	case yaml.SingleQuotedStyle:
		a.next()
		step = (*aligner).single
	case yaml.DoubleQuotedStyle:
		a.next()
		step = (*aligner).double
	case yaml.LiteralStyle, yaml.FoldedStyle:
		for a.peek() != '\n' && a.peek() != 0 {
			a.next()
		}
		a.next()
		begin := a.pos
		a.skip(" \n")
		if a.pos.col == 1 { // nothing but empty lines
			return begin, nil
		}
		if strings.HasPrefix(strings.TrimLeft(n.Value, "\n"), " ") {
			return a.pos, nil // whose indentation is not that of its first line
		}
		indent := a.pos.col
		if len(value) > 0 && value[0] == '\n' {
			a.pos, a.empty = begin, true
			a.enter(indent)
		}
		literal := style == yaml.LiteralStyle
		step = func(a *aligner, c rune) (place, bool) { return a.block(c, indent, literal) }
	}
	first = a.pos
	at = make([]place, 0, len(value)+1)
	for _, c := range value {
		p, ok := step(a, c)
		if !ok {
			return first, nil
		}
		at = append(at, p)
	}
	return first, append(at, a.pos)
}

// plain takes one character of a plain text. Where the text goes on in another
// line there is a blank for the line's end.
func (a *aligner) plain(c rune) (place, bool) {
	p := a.pos
	if got := a.peek(); got == c && c != '\n' && c != ' ' {
		a.next()
		return p, true
	}
	if c != ' ' && c != '\n' {
		return p, false
	}
	// A blank of the text, or the blanks and line ends around a fold.
	if a.peek() == ' ' && !a.blankToEnd() {
		a.next()
		return p, c == ' '
	}
	if c == '\n' {
		if !a.empty {
			a.skip(" \t")
			a.next()
		}
		a.skip(" \t")
		a.next()
		if a.empty = a.blankToEnd(); !a.empty {
			a.skip(" \t")
		}
		return p, true
	}
	a.skip(" \t\n")
	return p, true
}

// blankToEnd reports whether nothing but blanks follows in the line.
func (a *aligner) blankToEnd() bool {
	if a.pos.line > len(a.lines) {
		return true
	}
	line := a.lines[a.pos.line-1]
	for _, c := range line[min(a.pos.col-1, len(line)):] {
		if c != ' ' && c != '\t' {
			return false
		}
	}
	return true
}

func (a *aligner) single(c rune) (place, bool) {
	p := a.pos
	if c == '\'' {
		ok := a.peek() == '\''
		a.next()
		ok = ok && a.peek() == '\''
		a.next()
		return p, ok
	}
	return a.plain(c)
}

// escapes are those of one letter.
var escapes = map[rune]rune{
	'0': 0, 'a': '\a', 'b': '\b', 't': '\t', '\t': '\t', 'n': '\n', 'v': '\v', 'f': '\f', 'r': '\r', 'e': 0x1b,
	' ': ' ', '"': '"', '/': '/', '\\': '\\', 'N': 0x85, '_': 0xa0, 'L': 0x2028, 'P': 0x2029,
}

func (a *aligner) double(c rune) (place, bool) {
	if a.peek() != '\\' {
		return a.plain(c)
	}
	p := a.pos
	a.next()
	letter := a.peek()
	a.next()
	digits := map[rune]int{'x': 2, 'u': 4, 'U': 8}[letter]
	if digits == 0 {
		if letter == '\n' { // the line goes on in the next
			a.skip(" \t")
			return a.double(c)
		}
		got, ok := escapes[letter]
		return p, ok && got == c
	}
	var hex []rune
	for range digits {
		hex = append(hex, a.peek())
		a.next()
	}
	got, err := strconv.ParseUint(string(hex), 16, 32)
	return p, err == nil && rune(got) == c
}

// block takes one character of a block scalar that is indented to a column.
func (a *aligner) block(c rune, indent int, literal bool) (place, bool) {
	p := a.pos
	got := a.peek()
	if got == c && c != '\n' && got != 0 {
		a.next()
		a.empty = false
		return p, true
	}
	if got != '\n' || c != '\n' && (c != ' ' || literal) {
		return p, false
	}
	a.next()
	a.enter(indent)
	if c == '\n' && !literal {
		if !a.empty && a.peek() == '\n' && a.pos.line < len(a.lines) {
			a.next() // an empty line is one line end: that before it is folded
			a.enter(indent)
		}
		a.empty = true
	}
	return p, true
}

// enter goes over the indentation of a line.
func (a *aligner) enter(indent int) {
	for a.pos.col < indent && a.peek() == ' ' {
		a.next()
	}
}

// scalar returns what a scalar node says.
func (d *document) scalar(n *yaml.Node) *scalar {
	if s, ok := d.byNode[n]; ok {
		return s
	}
	first, at := align(d.runes, n)
	s := &scalar{text: n.Value, start: first, at: at, plain: n.Style&^(yaml.TaggedStyle|yaml.FlowStyle) == 0}
	if strings.Contains(n.Value, "${") {
		d.expand(s)
	}
	d.byNode[n] = s
	d.byPlace[s.start] = s
	return s
}

// expand puts the values of variables in place of ${VAR} and ${VAR:-default},
// and ${ in place of $${.
func (d *document) expand(s *scalar) {
	in := s.text
	var out strings.Builder
	var at []place
	offset := 0 // in characters of in
	keep := func(text string, fixed bool) {
		out.WriteString(text)
		for i := range utf8.RuneCountInString(text) {
			if fixed {
				i = 0
			}
			at = append(at, s.place(offset+i))
		}
	}
	for in != "" {
		before, rest, found := strings.Cut(in, "${")
		if !found {
			keep(in, false)
			offset += utf8.RuneCountInString(in)
			break
		}
		if strings.HasSuffix(before, "$") { // $${
			keep(before, false)
			offset += utf8.RuneCountInString(before)
			out.WriteString("{")
			at = append(at, s.place(offset+1))
			offset += 2
			in = rest
			continue
		}
		keep(before, false)
		offset += utf8.RuneCountInString(before)
		inside, after, closed := strings.Cut(rest, "}")
		name, fallback, has := strings.Cut(inside, ":-")
		switch value, ok := d.lookup(name); {
		case !closed || !isVariable(name):
			d.fault(s.place(offset), "write ${NAME} or ${NAME:-default}; for a plain ${ write $${", "${ begins a variable, but there is none")
			keep("${"+rest, true)
			s.broken, after = true, ""
		case has && value == "":
			keep(fallback, true)
		case !ok:
			d.fault(s.place(offset), "set it, or give a default: ${"+name+":-default}", "the environment variable %s is not set", name)
			s.broken = true
		default:
			keep(strings.ToValidUTF8(value, "\uFFFD"), true)
		}
		s.given = true
		offset += 2 + utf8.RuneCountInString(inside) + 1
		in = after
	}
	s.text = out.String()
	if s.at != nil {
		s.at = append(at, s.at[len(s.at)-1])
	}
}

func isVariable(name string) bool {
	for i, c := range name {
		if c != '_' && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
