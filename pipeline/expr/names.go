package expr

import (
	"fmt"
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"

	"millrace/pipeline/codec"
)

// This file has the rules for names. A name is, in this order: the variable of a
// macro; "event"; a root of the place, such as state; a field of the event; key or
// headers. event.NAME is always the field NAME of the event.

const eventName = "event"

// FieldPath returns the path of a field of a record, which may start with "event" as in an
// expression, without that.
func FieldPath(s *codec.Schema, path []string) []string {
	if len(path) > 1 && path[0] == eventName && s.Root().Field(eventName) == nil {
		return path[1:]
	}
	return path
}

// event returns the root that "event" refers to, or nil.
func (e *Env) event() *Root {
	if root := e.top(); root != nil && !root.NoEvent {
		return root
	}
	return nil
}

// pathOf returns the text that names the field rel of a root. It starts with "event."
// only if another root hides the field.
func (e *Env) pathOf(root *Root, rel string) string {
	if root.Name != "" {
		return root.Name + "." + rel
	}
	name, _, _ := strings.Cut(rel, ".")
	if event := e.event(); event != nil && event.Schema == root.Schema && event.View == root.View && e.hides(name) {
		return eventName + "." + rel
	}
	return rel
}

// hides reports whether a name at top level is not a field of the event, even if the
// event has such a field.
func (e *Env) hides(name string) bool {
	event := e.event()
	return name == eventName || slices.ContainsFunc(e.roots, func(r Root) bool {
		return r.Name == name || r.Name == "" && (r.Schema != event.Schema || r.View != event.View) && r.Schema.Root().Field(name) != nil
	})
}

// hiddenField returns the type of the field of the event that a name of a root hides,
// or nil.
func (e *Env) hiddenField(name string, root *Root) *codec.Node {
	event := e.event()
	if event == nil || root == event && name != eventName {
		return nil
	}
	if f := event.Schema.Root().Field(name); f != nil {
		return f.Type.NotNull()
	}
	return nil
}

// hasMember reports whether a value of type n can have the member in n.member.
func hasMember(n *codec.Node, member string) bool {
	return n.Kind == codec.Map || n.Kind == codec.Union || n.Kind == codec.Record && n.Field(member) != nil
}

// meaning returns what a root is, for messages.
func (e *Env) meaning(root *Root) string {
	switch {
	case root == e.event():
		return "the event"
	case root.Name == "":
		return "set by the stage"
	}
	return "the record " + root.Name
}

// hidden warns of a name that is both a root and a field of the event, if the
// expression would also be valid for the field. It also warns of the names that will
// be roots.
func (r *resolver) hidden(base celast.Expr, name string, root *Root, chain []celast.Expr) {
	at := r.offset(base.ID())
	if root == r.env.event() && slices.Contains(root.Later, name) {
		r.warn(RuleName, at, fmt.Sprintf("write event.%s", name), "a later release gives %s another meaning here than the field of the event", name)
		return
	}
	field := r.env.hiddenField(name, root)
	if field == nil || len(chain) > 0 && !hasMember(field, chain[0].AsSelect().FieldName()) || len(chain) == 0 && root.Name != "" {
		return
	}
	if name == eventName && (len(chain) == 0 || field.Kind != codec.Record) {
		return // a fault, or most likely meant: a map has every member
	}
	r.warn(RuleName, at, fmt.Sprintf("for the field, write event.%s", name), "%s is %s here, not the field %s of the event", name, r.env.meaning(root), name)
}

// warn adds a warning, unless it has the same one already.
func (r *resolver) warn(rule Rule, offset int, hint, format string, args ...any) {
	w := &Error{Offset: offset, Msg: fmt.Sprintf(format, args...), Hint: hint, Rule: rule}
	if !slices.ContainsFunc(r.warns, func(have *Error) bool { return have.Msg == w.Msg && have.Hint == w.Hint }) {
		r.warns = append(r.warns, w)
	}
}
