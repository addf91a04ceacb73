// Package align finds the characters of YAML scalars in their file: [Scalar]. The YAML
// parser only says where a scalar starts.
package align

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// A Place is the position of a character in the file; both numbers start at 1.
type Place struct{ Line, Col int }

// At returns a place.
func At(line, col int) Place { return Place{line, col} }

// An aligner walks through a scalar's parsed value and its source text in parallel,
// to find the place of each character. The value itself comes from the YAML parser:
// if the aligner fails, only the places are unknown, and the value is still right.
type aligner struct {
	lines [][]rune
	pos   Place
	empty bool // the position is after the line ending that folding removes
}

// peek returns the character at the position: '\n' at the end of a line, 0 at the
// end of the file.
func (a *aligner) peek() rune {
	if a.pos.Line > len(a.lines) {
		return 0
	}
	line := a.lines[a.pos.Line-1]
	if a.pos.Col > len(line) {
		return '\n'
	}
	return line[a.pos.Col-1]
}

func (a *aligner) next() {
	if a.peek() == '\n' {
		a.pos = Place{a.pos.Line + 1, 1}
	} else if a.peek() != 0 {
		a.pos.Col++
	}
}

func (a *aligner) skip(set string) {
	for c := a.peek(); c != 0 && strings.ContainsRune(set, c); c = a.peek() {
		a.next()
	}
}

// Scalar returns the places of the characters of a scalar's value. If they cannot be
// found, at is nil and only first, the place of the first character, is known.
func Scalar(lines [][]rune, n *yaml.Node) (first Place, at []Place) {
	a := &aligner{lines: lines, pos: Place{n.Line, n.Column}}
	// A node starts at its tag or anchor, if it has any.
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
		if a.pos.Col == 1 { // only empty lines
			return begin, nil
		}
		if strings.HasPrefix(strings.TrimLeft(n.Value, "\n"), " ") {
			return a.pos, nil // the first line is indented more than the block
		}
		indent := a.pos.Col
		if len(value) > 0 && value[0] == '\n' {
			a.pos, a.empty = begin, true
			a.enter(indent)
		}
		literal := style == yaml.LiteralStyle
		step = func(a *aligner, c rune) (Place, bool) { return a.block(c, indent, literal) }
	}
	first = a.pos
	at = make([]Place, 0, len(value)+1)
	for _, c := range value {
		p, ok := step(a, c)
		if !ok {
			return first, nil
		}
		at = append(at, p)
	}
	return first, append(at, a.pos)
}

// plain consumes one character c of an unquoted value. A line break in the source is
// a blank in the value.
func (a *aligner) plain(c rune) (Place, bool) {
	p := a.pos
	if got := a.peek(); got == c && c != '\n' && c != ' ' {
		a.next()
		return p, true
	}
	if c != ' ' && c != '\n' {
		return p, false
	}
	// Either a blank of the text, or the blanks and line endings around a line break
	// that is folded into one.
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

// blankToEnd reports whether only blanks follow in the line.
func (a *aligner) blankToEnd() bool {
	if a.pos.Line > len(a.lines) {
		return true
	}
	line := a.lines[a.pos.Line-1]
	for _, c := range line[min(a.pos.Col-1, len(line)):] {
		if c != ' ' && c != '\t' {
			return false
		}
	}
	return true
}

func (a *aligner) single(c rune) (Place, bool) {
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

// escapes are the escape sequences of a single letter.
var escapes = map[rune]rune{
	'0': 0, 'a': '\a', 'b': '\b', 't': '\t', '\t': '\t', 'n': '\n', 'v': '\v', 'f': '\f', 'r': '\r', 'e': 0x1b,
	' ': ' ', '"': '"', '/': '/', '\\': '\\', 'N': 0x85, '_': 0xa0, 'L': 0x2028, 'P': 0x2029,
}

func (a *aligner) double(c rune) (Place, bool) {
	if a.peek() != '\\' {
		return a.plain(c)
	}
	p := a.pos
	a.next()
	letter := a.peek()
	a.next()
	digits := map[rune]int{'x': 2, 'u': 4, 'U': 8}[letter]
	if digits == 0 {
		if letter == '\n' { // an escaped line ending joins the lines
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

// block consumes one character c of a block scalar whose lines start at column
// indent.
func (a *aligner) block(c rune, indent int, literal bool) (Place, bool) {
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
		if !a.empty && a.peek() == '\n' && a.pos.Line < len(a.lines) {
			a.next() // an empty line yields one line ending; the one before it is folded
			a.enter(indent)
		}
		a.empty = true
	}
	return p, true
}

// enter skips the indentation of a line.
func (a *aligner) enter(indent int) {
	for a.pos.Col < indent && a.peek() == ' ' {
		a.next()
	}
}
