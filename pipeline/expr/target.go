package expr

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/within"
)

// A Target is a part of an event that a stage sets: a field that is not a record,
// or one entry of a map field.
type Target struct {
	Path  []string      // of the leaf of the event that is or holds the field
	Place *within.Place // of the field in the leaf, below a union; nil if it is the leaf
	Whole []string      // the path of the field
	Node  *codec.Node   // the type of the field
	Entry bool          // the target is one entry of the map
	Key   string        // of the entry: the text after the path of the map, including dots
	There Facts         // what is known about an event that has the field
	Above []string      // the dotted paths on the way that are not null then

	text, record string // the path as written and the name of the schema, for messages
}

// Want returns the result that an expression for the target must return.
func (t Target) Want() Want {
	n := t.Node
	if t.Entry {
		n = n.Elem
	}
	return Value(n, t.text, t.record)
}

// Target resolves a path such as data.total_amount or metadata.source in the
// fields at top level. An error is [Errors], with offsets in the path.
func (e *Env) Target(path string) (Target, error) {
	fail := func(at int, hint, format string, args ...any) (Target, error) {
		return Target{}, Errors{{Offset: len([]rune(path[:at])), Msg: fmt.Sprintf(format, args...), Hint: hint}}
	}
	root := e.top()
	if root == nil {
		return fail(0, "", "there is no event to set %s in", path)
	}
	record := root.Schema.Name()
	if after, ok := strings.CutPrefix(path, eventName+"."); ok && root.Schema.Root().Field(eventName) == nil {
		return fail(0, "write "+after, "%s has no field event: the path of a field to set does not start with event", record)
	}
	found, fault := within.Finder{Schema: root.Schema, Word: avroWord, Same: same}.Find(path)
	if fault != nil {
		return fail(fault.At, fault.Hint, "%s", fault.Msg)
	}
	if l := e.leaves[e.pathOf(root, strings.Join(found.Leaf, "."))]; l != nil && l.known != nil {
		return fail(0, "", "%s is %q in every %s and cannot be set", strings.Join(found.Leaf, "."), *l.known, record)
	}
	t := Target{Path: found.Leaf, Place: found.Place, Whole: found.Path, Node: found.Node, Entry: found.Entry, Key: found.Key, Above: found.Unions, text: path, record: record}
	for _, union := range found.Unions {
		t.There = t.There.NotNull(e.pathOf(root, union))
	}
	return t, nil
}

// Of returns an environment for the same place with another schema of the event, which
// has all fields of the old one. It collects its own warnings.
func (e *Env) Of(s *codec.Schema) (*Env, error) {
	roots := slices.Clone(e.roots)
	for i := range roots {
		if roots[i].Name == "" {
			roots[i].Schema = s
			break
		}
	}
	out, err := NewEnv(roots...)
	if err == nil {
		out.Clock, out.Known, out.warnings = e.Clock, e.Known, new([]Fault)
	}
	return out, err
}

// top returns the first root with fields at top level, or nil.
func (e *Env) top() *Root {
	for i := range e.roots {
		if e.roots[i].Name == "" {
			return &e.roots[i]
		}
	}
	return nil
}
