package topology

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/topology/align"
)

// texts returns the scalars of a document, in order.
func texts(t testing.TB, src string) (*document, []*yaml.Node) {
	t.Helper()
	d, root := parse(Source{Name: "t.yaml", Text: []byte(src)}, func(string) (string, bool) { return "value", true })
	if root == nil {
		t.Fatalf("%q: %v", src, d.faults)
	}
	var out []*yaml.Node
	var visit func(n *yaml.Node)
	visit = func(n *yaml.Node) {
		if n.Kind == yaml.ScalarNode {
			out = append(out, n)
		}
		for _, c := range n.Content {
			visit(c)
		}
	}
	visit(root)
	return d, out
}

// find returns the place of the only occurrence of c in the text.
func find(src string, c rune) align.Place {
	for i, line := range lineEnd.Split(src, -1) {
		if col := slices.Index([]rune(line), c); col >= 0 {
			return align.At(i+1, col+1)
		}
	}
	return align.Place{}
}

// The § in a value has the place of the § in the file.
func TestPlacesOfCharactersInScalars(t *testing.T) {
	for _, src := range []string{
		"k: a §",
		"k: {x: [b, 'a §']}",
		"§: v",
		"k: 'a §'",
		"k: 'it''s §'",
		`k: "a §"`,
		`k: "a \"b\" \\ \t\x41\u00e9\U0001F642 §"`,
		"k: größer §",
		"🙂: 🙂 §",
		"k: &anchor a §",
		"k: &anchor 'a §'",
		"k: a\n  b §",
		"k: a  b\n  \n\n  c §",
		"k: 'a\n  b §'",
		"k: 'a\n\n  b §'",
		"k: \"a\n  b §\"",
		"k: \"a\\\n  b §\"",
		"k: \"a \\\n  \\ b §\"",
		"k: |\n  a §",
		"k: |\n  a\n   b\n\n  c §\n",
		"k: |2-\n  a\n  §",
		"k: |\n\n\n  a §\n",
		"k: | # comment\n  a §\n",
		"k: >\n  a §",
		"k: >\n  a\n  b §\n",
		"k: >-\n  a\n\n  b\n  c §\n",
		"k:\n  - >\n    a\n    b §\n",
		"k: ${A}${A} §",
		"k: ${A:-x} $${A} §",
		"k: 'it''s ${A} §'",
		"k: >\n  ${A}\n  ${A} §\n",
		"\ufeffk: a §",
		"k: a §\r\nl: b\r\n",
		"j: b\rk: a §\r",
		"j: b\r\nk: |\r\n  a\r\n  b §\r\n",
	} {
		d, nodes := texts(t, src)
		found := false
		for _, n := range nodes {
			s := d.scalar(n)
			at := slices.Index([]rune(s.text), '§')
			if at < 0 {
				continue
			}
			found = true
			if got, want := s.place(at), find(strings.TrimPrefix(src, "\ufeff"), '§'); got != want {
				t.Errorf("%q: the § of %q has the place %v, want %v", src, s.text, got, want)
			}
		}
		if !found {
			t.Errorf("%q: no value contains §", src)
		}
	}
}

// If the places are unknown, every character has the place of the first one. A wrong
// place is never returned.
func TestUnknownPlacesAreTheStart(t *testing.T) {
	for _, src := range []string{
		"k: |2\n   a\n  §\n",     // the first line is indented more than the block
		"k: >\n  a\n\n   b\n  §", // a folded block with a more indented line, which is not folded
	} {
		d, nodes := texts(t, src)
		s := d.scalar(nodes[1])
		at := s.place(slices.Index([]rune(s.text), '§'))
		if at != s.start && at != find(src, '§') {
			t.Errorf("%q: the § has the place %v", src, at)
		}
	}
}

func TestValueOfVariableHasThePlaceOfTheVariable(t *testing.T) {
	d, nodes := texts(t, "k: 'a ${LONG} b'")
	s := d.scalar(nodes[1])
	if s.text != "a value b" {
		t.Fatalf("the text is %q", s.text)
	}
	for offset, want := range map[int]int{0: 5, 2: 7, 6: 7, 7: 14, 8: 15, 9: 16} {
		if got := s.place(offset); got != (align.At(1, want)) {
			t.Errorf("character %d has the place %v, want column %d", offset, got, want)
		}
	}
}
