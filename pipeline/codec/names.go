package codec

import (
	"fmt"
	"slices"
	"strings"
)

// Matches between the name of a writer's type and a type of the reader's schema, the
// best first. A number is 0 if they do not match.
const (
	NoMatch      = iota
	MatchShort   // the names without namespace are equal, or an alias without namespace is
	MatchAlias   // an alias of the reader's type is the full name
	MatchExactly // the full names are equal
)

// MatchName returns how a named type of a writer matches a type of the reader's schema,
// by the Avro specification: by name without namespace, or by an alias of the reader's
// type. An alias with a namespace matches only the full name. Types without a name do
// not match.
func MatchName(writer, reader *Node) int {
	short := baseName(writer.Name)
	switch {
	case writer.Kind != reader.Kind || writer.Name == "":
		return NoMatch
	case writer.Name == reader.Name:
		return MatchExactly
	case slices.ContainsFunc(reader.Aliases, func(alias string) bool { return fullName(alias, reader) == writer.Name }):
		return MatchAlias
	case short == baseName(reader.Name), slices.Contains(reader.Aliases, short):
		return MatchShort
	}
	return NoMatch
}

// BestMatch returns the index of the type that a writer's type matches best, -1 if none
// matches. It is an error if several types match without a better one.
func BestMatch(writer *Node, types []*Schema) (int, error) {
	best, at := NoMatch, -1
	var equal []string
	for i, t := range types {
		switch match := MatchName(writer, t.Root()); {
		case match == NoMatch || match < best:
		case match > best:
			best, at, equal = match, i, []string{t.Name()}
		default:
			equal = append(equal, t.Name())
		}
	}
	if len(equal) > 1 {
		return -1, fmt.Errorf("%s is ambiguous: it matches %s; add an alias to one of them", writer.Name, strings.Join(equal, " and "))
	}
	return at, nil
}

// fullName returns an alias in the namespace of its type.
func fullName(alias string, of *Node) string {
	if at := strings.LastIndexByte(of.Name, '.'); at >= 0 && !strings.Contains(alias, ".") {
		return of.Name[:at+1] + alias
	}
	return alias
}

func baseName(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// Same reports whether every value of a is, byte for byte, a value of b with the same
// meaning and the same names.
func Same(a, b *Node) bool { return same(a, b, map[[2]*Node]bool{}) }

// SameBytes is [Same] for the records of two schemas.
func SameBytes(a, b *Schema) bool { return a == b || Same(a.Root(), b.Root()) }

func same(a, b *Node, seen map[[2]*Node]bool) bool {
	if a == b || seen[[2]*Node{a, b}] {
		return true
	}
	if a.Kind != b.Kind || a.Name != b.Name || a.Logical != b.Logical || a.Precision != b.Precision ||
		a.Scale != b.Scale || a.Size != b.Size || len(a.Fields) != len(b.Fields) ||
		len(a.Branches) != len(b.Branches) || !slices.Equal(a.Symbols, b.Symbols) {
		return false
	}
	seen[[2]*Node{a, b}] = true
	if a.Elem != nil && !same(a.Elem, b.Elem, seen) {
		return false
	}
	for i := range a.Branches {
		if !same(a.Branches[i], b.Branches[i], seen) {
			return false
		}
	}
	for i := range a.Fields {
		if a.Fields[i].Name != b.Fields[i].Name || !same(a.Fields[i].Type, b.Fields[i].Type, seen) {
			return false
		}
	}
	return true
}
