package align

import (
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
	"pgregory.net/rapid"
)

// lineEnd matches the line endings of YAML 1.1.
var lineEnd = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// In every style of YAML, each character of a text has its own place, or the place of
// the start.
func TestPlacesOfAnyText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-zé🙂'"$#:{}\\. -]{0,12}`)
		text := strings.Join(rapid.SliceOfN(word, 1, 4).Draw(t, "lines"), rapid.SampledFrom([]string{" ", "\n", "\t"}).Draw(t, "between"))
		style := rapid.SampledFrom([]yaml.Style{0, yaml.SingleQuotedStyle, yaml.DoubleQuotedStyle, yaml.LiteralStyle, yaml.FoldedStyle}).Draw(t, "style")
		out, err := yaml.Dump(&yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
			{Kind: yaml.ScalarNode, Value: "k"}, {Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Style: style},
		}}, yaml.WithLineWidth(rapid.IntRange(10, 80).Draw(t, "width")))
		if err != nil {
			return // a text that YAML cannot hold
		}
		var root yaml.Node
		if err := yaml.Unmarshal(out, &root); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		var lines [][]rune
		for _, line := range lineEnd.Split(string(out), -1) {
			lines = append(lines, []rune(line))
		}
		n := root.Content[0].Content[1]
		first, at := Scalar(lines, n)
		if at == nil && n.Style&(yaml.TaggedStyle|yaml.FoldedStyle|yaml.LiteralStyle) == 0 {
			t.Fatalf("%q: the places are unknown", out)
		}
		if first.Line > len(lines)+1 {
			t.Fatalf("%q: the first character has the place %v", out, first)
		}
		for i, c := range []rune(n.Value) {
			if at == nil {
				break
			}
			a := aligner{lines: lines, pos: at[i]}
			blank := strings.ContainsRune(" \t\n", c)
			if got := a.peek(); got != c && got != '\\' && !(blank && strings.ContainsRune(" \t\n", got)) {
				t.Fatalf("%q: character %d, %q, has the place %v, where the file has %q", out, i, c, at[i], got)
			}
		}
	})
}
