package codec

import (
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
)

// Unions. A bare value belongs to the branch that accepts it; if several do, to the
// first that can encode it. AppendJSON tags a value only if the bare value would be
// read as another branch, or as a tag.

// appendUnion encodes v as a branch of the union.
func appendUnion(dst []byte, n *Node, v any, depth int, e *effort) ([]byte, error) {
	if b, inner, ok := tagged(n, v); ok {
		dst = binary.AppendVarint(dst, int64(b))
		dst, err := appendAvro(dst, n.Branches[b], inner, depth+1, e)
		if err != nil {
			return dst, underKey(branchName(n.Branches[b]), err)
		}
		return dst, nil
	}
	start := len(dst)
	var first error
	for b := nextBranch(n, v, 0); b >= 0; {
		next := nextBranch(n, v, b+1)
		if next >= 0 && e == nil {
			e = newEffort(n, v)
		}
		dst = binary.AppendVarint(dst[:start], int64(b))
		var err error
		if dst, err = appendAvro(dst, n.Branches[b], v, depth+1, e); err == nil {
			return dst, nil
		}
		if first == nil {
			first = err
		}
		switch {
		case e != nil && e.exceeded:
			return dst[:start], err
		case next >= 0 && e.spent > e.most:
			e.exceeded = true
			return dst[:start], &PathError{Msg: `too many ways to read this as branches of unions: name the branch, as in {"branch": value}`}
		}
		b = next
	}
	if first != nil {
		return dst[:start], first
	}
	return dst, expected(n, v)
}

// nextBranch returns the number of the first branch, from b on, that may accept the
// value; -1 if there is none. An object matches a record only if the field names
// match (see hasFields). If b is 0 and no branch matches, it returns the first branch
// of the right JSON type, whose error then explains the fault.
func nextBranch(n *Node, v any, b int) int {
	for i := b; i < len(n.Branches); i++ {
		if accepts(n.Branches[i], v) && hasFields(n.Branches[i], v) {
			return i
		}
	}
	if b > 0 {
		return -1
	}
	return slices.IndexFunc(n.Branches, func(branch *Node) bool { return accepts(branch, v) })
}

// hasFields reports whether the fields of a record match an object: the record has
// every member as a field, and the object has every field without a default. For
// other nodes and values it returns true.
func hasFields(n *Node, v any) bool {
	m, ok := v.(map[string]any)
	if !ok || n.Kind != Record {
		return true
	}
	known := 0
	for i := range n.Fields {
		if _, ok := m[n.Fields[i].Name]; ok {
			known++
		} else if !n.Fields[i].HasDefault {
			return false
		}
	}
	return known == len(m)
}

// An effort bounds the search for the branch of a value that fits several branches.
// Nested values may fit several, too, so without a bound the time grows exponentially
// with the depth.
type effort struct {
	spent, most int  // encoded values: so far, and the limit
	exceeded    bool // the limit was exceeded, and the search is over
}

func newEffort(n *Node, v any) *effort {
	return &effort{most: 256 + (16+len(n.Branches))*countValues(v)}
}

// countValues returns the number of values in v, itself included.
func countValues(v any) int {
	n := 1
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			n += countValues(item)
		}
	case map[string]any:
		for _, item := range v {
			n += countValues(item)
		}
	}
	return n
}

// tagged returns the branch and the value if v has the tagged form {"branch": value}.
// AppendJSON never tags in a union with a single branch other than null, so there a
// map, or a record with a field of that name, takes precedence over the tag.
func tagged(n *Node, v any) (branch int, inner any, ok bool) {
	m, isObject := v.(map[string]any)
	if !isObject || len(m) != 1 {
		return 0, nil, false
	}
	for tag, inner := range m {
		b := branchNamed(n, tag)
		if b < 0 {
			return 0, nil, false
		}
		if branches := n.Branches; single(n) {
			other := branches[b]
			if other.Kind == Map || other.Kind == Record && other.Field(tag) != nil {
				return 0, nil, false
			}
		}
		return b, inner, true
	}
	return 0, nil, false
}

// single reports whether the union has at most one branch other than null.
func single(n *Node) bool {
	others := 0
	for _, b := range n.Branches {
		if b.Kind != Null {
			others++
		}
	}
	return others <= 1
}

// branchNamed returns the number of the branch with that tag, or -1. A named type may
// be given without its namespace if no other branch has the same short name.
func branchNamed(n *Node, tag string) int {
	short := -1
	for i, b := range n.Branches {
		if b.Kind == Null {
			continue
		}
		name := branchName(b)
		if name == tag {
			return i
		}
		if strings.HasSuffix(name, tag) && strings.HasSuffix(name[:len(name)-len(tag)], ".") {
			if short >= 0 {
				return -1
			}
			short = i
		}
	}
	return short
}

func branchName(n *Node) string {
	if n.Name != "" {
		return n.Name
	}
	return n.Kind.String()
}

// accepts reports whether a value of the JSON type of v may belong to the node. It is a
// first filter; the encoder does the full check.
func accepts(n *Node, v any) bool {
	switch v := v.(type) {
	case nil:
		return n.Kind == Null
	case bool:
		return n.Kind == Boolean
	case string:
		switch n.Kind {
		case Int, Long:
			return isTime(n)
		case Float, Double:
			return v == "NaN" || v == "Infinity" || v == "-Infinity"
		case Enum:
			return slices.Contains(n.Symbols, v)
		}
		return n.Kind == String || n.Kind == Bytes || n.Kind == Fixed
	case []any:
		return n.Kind == Array
	case map[string]any:
		return n.Kind == Map || n.Kind == Record
	case []byte:
		return n.Kind == Bytes || n.Kind == Fixed
	}
	switch n.Kind {
	case Int, Long:
		text, ok := numberText(v)
		if !ok {
			return false
		}
		_, exact := scaled(text, 0, 20)
		return exact
	case Float, Double:
		return true
	}
	return n.Logical == "decimal"
}

// needsTag reports whether the JSON of a value of branch b needs a tag, because
// without it the value would be read back as another branch, or as a tag.
func needsTag(n *Node, b int, bare []byte) bool {
	if single(n) {
		return false
	}
	var shape any
	switch bare[0] {
	case 'n':
		return false
	case 't', 'f':
		shape = true
	case '"':
		// Symbols and NaN contain no escapes, so the text needs no unquoting.
		shape = string(bare[1 : len(bare)-1])
	case '[':
		shape = []any(nil)
	case '{':
		for i := range n.Branches[b].Fields {
			if branchNamed(n, n.Branches[b].Fields[i].Name) >= 0 {
				return true
			}
		}
		if n.Branches[b].Kind == Map {
			return true
		}
		shape = map[string]any(nil)
	default:
		shape = json.Number(bare)
	}
	for i, branch := range n.Branches {
		if i != b && accepts(branch, shape) {
			return true
		}
	}
	return false
}
