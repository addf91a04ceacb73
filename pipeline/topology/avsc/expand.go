package avsc

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// builtin are the names that no type of a file can have.
var builtin = []string{"null", "boolean", "int", "long", "float", "double", "bytes", "string", "record", "error", "enum", "array", "map", "fixed"}

// maxDepth bounds the nesting of a file; deeper ones are left to the schema parser, which
// refuses them.
const maxDepth = 1000

// index holds the named types of all files.
type index struct {
	defs  map[string][]definition // by full name
	names []string                // full names, in the order of their files
}

// A definition is a named type in a file, as JSON. space is the namespace around it.
type definition struct {
	file, space string
	doc         map[string]any
}

// collect adds the named types of a type to the index.
func (x *index) collect(doc any, space, file string, depth int) {
	if depth > maxDepth {
		return
	}
	switch doc := doc.(type) {
	case []any:
		for _, b := range doc {
			x.collect(b, space, file, depth+1)
		}
	case map[string]any:
		if name, ok := nameOf(doc, space); ok {
			if len(x.defs[name]) == 0 {
				x.names = append(x.names, name)
			}
			x.defs[name] = append(x.defs[name], definition{file, space, doc})
			space = spaceOf(name)
		}
		for _, in := range inside(doc) {
			x.collect(*in, space, file, depth+1)
		}
	}
}

// inside returns the types within a type, in the order in which a parser meets them.
func inside(doc map[string]any) (types []*any) {
	add := func(in map[string]any, key string) {
		if v, ok := in[key]; ok {
			types = append(types, &v)
		}
	}
	add(doc, "type")
	add(doc, "items")
	add(doc, "values")
	fields, _ := doc["fields"].([]any)
	for _, f := range fields {
		if f, ok := f.(map[string]any); ok {
			add(f, "type")
		}
	}
	return types
}

// nameOf returns the full name of a named type.
func nameOf(doc map[string]any, space string) (string, bool) {
	typ, _ := doc["type"].(string)
	name, ok := doc["name"].(string)
	if !ok || !slices.Contains([]string{"record", "error", "enum", "fixed"}, typ) {
		return "", false
	}
	if own, ok := doc["namespace"].(string); ok {
		space = own
	}
	return qualified(name, space), true
}

func qualified(name, space string) string {
	if space == "" || strings.Contains(name, ".") {
		return name
	}
	return space + "." + name
}

func spaceOf(name string) string { return name[:max(0, strings.LastIndexByte(name, '.'))] }

// resolve returns the full name of a type that a name refers to; "" if it is unknown.
func (x *index) resolve(name, space string) string {
	if slices.Contains(builtin, name) {
		return ""
	}
	for _, full := range []string{qualified(name, space), name} {
		if len(x.defs[full]) > 0 {
			return full
		}
	}
	return ""
}

// refersTo reports whether a type refers to a type that only the other index has.
func (x *index) refersTo(all *index, doc any, space string) bool {
	switch doc := doc.(type) {
	case string:
		return x.resolve(doc, space) == "" && all.resolve(doc, space) != ""
	case []any:
		return slices.ContainsFunc(doc, func(b any) bool { return x.refersTo(all, b, space) })
	case map[string]any:
		if name, ok := nameOf(doc, space); ok {
			space = spaceOf(name)
		}
		return slices.ContainsFunc(inside(doc), func(in *any) bool { return x.refersTo(all, *in, space) })
	}
	return false
}

// expanded returns the text of a type, with the definitions of all types that it refers to.
func (x *index) expanded(doc any) (string, error) {
	e := expansion{index: x, done: map[string]map[string]any{}}
	out, err := e.expand(doc, "", 0)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(out)
	return string(text), err
}

// text returns the text of a named type.
func (x *index) text(name string) (string, error) { return x.expanded(name) }

// An expansion puts each definition at the first place that refers to it.
type expansion struct {
	*index
	done map[string]map[string]any // the types that are defined before the current place
}

func (e *expansion) expand(doc any, space string, depth int) (any, error) {
	if depth > maxDepth {
		return doc, nil
	}
	switch doc := doc.(type) {
	case string:
		return e.reference(doc, space, depth)
	case []any:
		out := make([]any, len(doc))
		for i := range doc {
			var err error
			if out[i], err = e.expand(doc[i], space, depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		return e.object(doc, space, depth)
	}
	return doc, nil
}

// reference returns the definition of a type at its first reference, and its full name
// after that.
func (e *expansion) reference(name, space string, depth int) (any, error) {
	full := e.resolve(name, space)
	switch {
	case full == "":
		return name, nil // primitive, or unknown: the parser reports it
	case e.done[full] != nil:
		return full, nil
	}
	defs := e.defs[full]
	for _, d := range defs[1:] {
		if !equal(d.doc, defs[0].doc) {
			return nil, fmt.Errorf("%q is ambiguous: %s and %s define it in different ways", full, defs[0].file, d.file)
		}
	}
	return e.object(defs[0].doc, defs[0].space, depth+1)
}

func equal(a, b map[string]any) bool {
	one, err1 := json.Marshal(a)
	other, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(one) == string(other)
}

func (e *expansion) object(doc map[string]any, space string, depth int) (any, error) {
	out := maps.Clone(doc)
	if name, ok := nameOf(doc, space); ok {
		switch earlier := e.done[name]; {
		case earlier == nil:
			e.done[name] = doc
		case equal(earlier, doc):
			return name, nil // another file has it, too, or it was put to an earlier reference
		default:
			return nil, fmt.Errorf("%q is ambiguous: two files define it in different ways", name)
		}
		space = spaceOf(name)
		out["name"], out["namespace"] = name[strings.LastIndexByte(name, '.')+1:], space
	}
	var err error
	for _, key := range []string{"type", "items", "values"} {
		if in, ok := doc[key]; ok && err == nil {
			out[key], err = e.expand(in, space, depth+1)
		}
	}
	fields, _ := doc["fields"].([]any)
	if fields != nil {
		copied := make([]any, len(fields))
		for i, f := range fields {
			copied[i] = f
			if f, ok := f.(map[string]any); ok && err == nil {
				field := maps.Clone(f)
				field["type"], err = e.expand(f["type"], space, depth+1)
				copied[i] = field
			}
		}
		out["fields"] = copied
	}
	return out, err
}
