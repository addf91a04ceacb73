package escape

import (
	"strings"
	"testing"
)

// Only names of fields are replaced: not operators, literals, strings, comments and
// calls.
func TestMaskReplacesNamesOnly(t *testing.T) {
	for _, test := range []struct{ src, want string }{
		{"a.in == 1", "a.# == 1"},
		{"a . in", "a . #"},
		{"x in [true, null]", "x in [true, null]"},
		{"event.true && true", "event.# && true"},
		{"package + package.size()", "# + #.size()"},
		{"'for' + \"if \\\" while\" + r'\\' + for", "'for' + \"if \\\" while\" + r'\\' + #"},
		{"'''it's for''' + if", "'''it's for''' + #"},
		{"a // for\n+ for", "a // for\n+ #"},
		{"if(a)", "if(a)"},
		{"a.`for`", "a.`for`"},
		{"1.5 + a[0].in", "1.5 + a[0].#"},
		{"forward.format", "forward.format"},
		{"é.for", "é.#"},
	} {
		got, names := Mask(test.src)
		if len([]rune(got)) != len([]rune(test.src)) {
			t.Errorf("%q: the length changes: %q", test.src, got)
		}
		for to := range names {
			got = strings.ReplaceAll(got, to, "#")
		}
		if got != test.want {
			t.Errorf("%q gives %q, want %q", test.src, got, test.want)
		}
	}
}

func TestMaskAvoidsTheNamesOfTheText(t *testing.T) {
	masked, names := Mask("_0 + _1 + if")
	if masked != "_0 + _1 + _2" || names["_2"] != "if" {
		t.Errorf("got %q, %v", masked, names)
	}
}
