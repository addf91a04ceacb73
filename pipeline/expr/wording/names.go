// Package wording has the words of the messages about expressions: names of types,
// similar names, and explanations of faults in the syntax.
package wording

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/nearest"
)

// Nearest returns the hint `did you mean "x"?` with the most similar of names, or
// "" if none is similar.
func Nearest(name string, names []string) string {
	if best := nearest.Name(name, names); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return ""
}

// List returns the first n names, separated by commas.
func List(names []string, n int) string {
	if len(names) > n {
		return strings.Join(names[:n], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// foreignNames maps the names of functions in other languages to the equivalent
// expression.
var foreignNames = map[string]string{
	"length": "x.size()", "len": "x.size()", "count": "x.size()", "strlen": "x.size()",
	"lower": "x.lowerAscii()", "toLowerCase": "x.lowerAscii()", "tolower": "x.lowerAscii()", "upper": "x.upperAscii()", "toUpperCase": "x.upperAscii()", "toupper": "x.upperAscii()",
	"toString": "string(x)", "str": "string(x)", "parseInt": "int(x)", "toInt": "int(x)", "parseFloat": "double(x)", "float": "double(x)", "number": "double(x)",
	"not": "!x", "isNull": "x == null", "isnull": "x == null", "coalesce": "x != null ? x : y", "ifnull": "x != null ? x : y",
	"concat": "x + y", "append": "list + [x]", "push": "list + [x]", "substr": "x.substring(from, to)", "includes": "x.contains(y)", "any": "list.exists(x, ...)", "some": "list.exists(x, ...)",
	"abs": "math.abs(x)", "round": "math.round(x)", "floor": "math.floor(x)", "ceil": "math.ceil(x)", "min": "math.least(x, y)", "max": "math.greatest(x, y)", "sqrt": "math.sqrt(x)",
	"uuid": "uuid5(namespace, name): a random value would differ on every replay", "random": "hash(id) % 100: a random value would differ on every replay", "rand": "hash(id) % 100: a random value would differ on every replay",
}

// Foreign returns a hint for a name, or a misspelled name, that a function has
// in other languages; "" if there is none.
func Foreign(name string) string {
	if here, ok := foreignNames[name]; ok {
		return "write " + here
	}
	if len(name) < 5 {
		return ""
	}
	for _, n := range slices.Sorted(maps.Keys(foreignNames)) {
		if len(n) > 4 && nearest.Distance(name, n, 2) < 2 {
			return "write " + foreignNames[n]
		}
	}
	return ""
}
