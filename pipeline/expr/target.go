package expr

import (
	"fmt"
	"strings"

	"millrace/pipeline/codec"
)

// A Target is a part of an event that a stage sets: a field that is not a record,
// or one entry of a map field.
type Target struct {
	Path  []string    // of the field
	Node  *codec.Node // the type of the field
	Entry bool        // the target is one entry of the map
	Key   string      // of the entry: the text after the path of the map, including dots

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
	t := Target{text: path, record: root.Schema.Name()}
	record := root.Schema.Root()
	at := 0
	for rest := path; ; {
		name, after, more := strings.Cut(rest, ".")
		if name == "" {
			return fail(at, "a.b.c", "%q is not a path", path)
		}
		f := record.Field(name)
		t.Path = append(t.Path, name)
		if f == nil && name == eventName && len(t.Path) == 1 && more {
			return fail(0, "write "+after, "%s has no field event: the path of a field to set does not start with event", t.record)
		}
		if f == nil {
			return fail(at, nearest(name, fieldNames(record)), "%s has no field %s", t.record, strings.Join(t.Path, "."))
		}
		t.Node = f.Type
		at += len(name) + 1
		switch full := strings.Join(t.Path, "."); {
		case f.Type.Kind == codec.Record && more:
			record, rest = f.Type, after
			continue
		case f.Type.Kind == codec.Record:
			return fail(0, "name one of its fields: "+listed(fieldNames(f.Type), 4), "%s is a whole record (%s)", full, f.Type.Name)
		case e.leaves[e.pathOf(root, full)].known != nil:
			return fail(0, "", "%s is %q in every %s and cannot be set", full, *e.leaves[e.pathOf(root, full)].known, t.record)
		case more && f.Type.Kind == codec.Map && after == "":
			return fail(at-1, full+".KEY", "the key is missing")
		case more && f.Type.Kind == codec.Map:
			t.Entry, t.Key = true, after
		case more:
			return fail(at, "", "%s is %s, which has no fields to set", full, avroWord(f.Type))
		}
		return t, nil
	}
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
