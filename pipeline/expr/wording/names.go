// Package wording has the words of the messages about expressions: names of types,
// similar names, and explanations of faults in the syntax.
package wording

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Nearest returns the hint `did you mean "x"?` with the most similar of names, or
// "" if none is similar.
func Nearest(name string, names []string) string {
	best, at := "", 1+max(1, len(name)/3)
	for _, n := range names {
		if d := distance(strings.ToLower(name), strings.ToLower(n), at); d < at {
			best, at = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance returns the number of insertions, deletions, replacements and swaps of
// adjacent bytes that turn a into b (optimal string alignment), at most limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return min(prev[len(b)], limit)
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
		if len(n) > 4 && distance(strings.ToLower(name), strings.ToLower(n), 2) < 2 {
			return "write " + foreignNames[n]
		}
	}
	return ""
}
