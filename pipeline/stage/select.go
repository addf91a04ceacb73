package stage

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
)

// ReasonNullRecord is the reason of a rejection by a select stage.
const ReasonNullRecord pipeline.Reason = "null_record"

// Select is the stage that gives events another schema.
func Select() Kind {
	return Kind{
		Name: "select",
		Doc: "Gives events another schema: it keeps some fields, or makes events of another type, and it can make an event a deletion. " +
			"It turns change data, whose events hold a row before and after a change, into events and tombstones of the row. " +
			"The stages after it see the new schema, and their on names the new type. " +
			"If the new type has no envelope (id, type and timestamp), the output topic needs envelope: none. Its events have no id for a later dedupe then. " +
			"on_error: skip is not allowed, because an event cannot pass in its old form.",
		Params: []Param{
			{Name: "from", Form: Word, Doc: "The path of a record in the event, such as after. Its fields become the event. If the record is null, the event is rejected with the reason null_record, unless delete is true for it."},
			{Name: "keep", Form: Words, Doc: "The fields that stay, without those of nested records; all others are removed. Set either keep or drop."},
			{Name: "drop", Form: Words, Doc: "The fields that are removed; all others stay. Set either keep or drop."},
			{Name: "rename", Form: Texts, Doc: "Maps fields that stay to their new names."},
			{Name: "type", Form: Word, Doc: "The name of the new type after keep, drop, rename or from. Without a namespace, the one of the record stays. " +
				"By default, it is the name of the record that holds the fields, and the output topic gets a schema of this name with the fields that stay."},
			{Name: "to", Form: Word, Doc: "The new type: a record in the schemas directory. Fields of the same name are copied, or converted if they have another type that holds every value. " +
				"set computes other fields. The rest have their defaults; a field without a default is a fault. Set either to, or keep, drop, rename and type."},
			{Name: "set", Form: Assignments, Doc: "With to: maps the path of a field of the new type to its value. Expressions see the event as it was before this stage, from included."},
			{Name: "delete", Form: Expression, Doc: "Events for which this is true become tombstones with the key of the event (if a stage set a new one, that one). " +
				"They reach no further stage, so stages that set keys or topics must stand before this one."},
		},
		Example: `on: [OrderCreated]
delete: data.items.size() == 0
drop: [metadata]
type: shop.OrderPlaced`,
		AddsFields: true,
		New:        newSelect,
	}
}

// A Reshaper is a stage after which events of some types have another schema.
type Reshaper interface {
	// Reshaped returns the schema of events of a type after the stage; nil if it is the
	// same.
	Reshaped(typ int) *codec.Schema

	// Deletes reports whether events of a type can become deletions.
	Deletes(typ int) bool

	// BindReshaped sets the layouts of the events after the stage, by type. It is called
	// once, before Bind.
	BindReshaped(layouts []*codec.Layout)
}

type selectStage struct {
	types []*selection // by type; nil if the stage does not handle the type

	// Owned by the clone: Process writes them.
	scope   expr.Scope
	scratch resolve.Scratch
	values  [][]byte
}

// A selection is how events of one type are changed.
type selection struct {
	delete  *expr.Program // nil: none is a deletion
	from    *origin       // nil: the whole event
	project *resolve.Projection
	paths   [][]string // of the fields to set
	sets    []*expr.Program
	out     *codec.Schema
	layout  *codec.Layout // of out
}

func newSelect(in Input) (Built, []expr.Fault) {
	if faults := checkSelect(in); len(faults) > 0 {
		return nil, faults
	}
	s := &selectStage{types: make([]*selection, len(in.Types))}
	var faults []expr.Fault
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		var more []expr.Fault
		s.types[i], more = newSelection(in, t)
		faults = append(faults, more...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

// checkSelect checks that the parameters fit each other.
func checkSelect(in Input) (faults []expr.Fault) {
	given := map[string]Arg{}
	for _, a := range in.Args {
		given[a.Name] = a
	}
	has := func(name string) bool { _, ok := given[name]; return ok }
	if has("keep") && has("drop") {
		faults = append(faults, fault(given["drop"].Key, "keep: [FIELD], or drop: [FIELD]", "a select takes keep or drop, not both"))
	}
	for _, name := range []string{"keep", "drop", "rename", "type"} {
		if has("to") && has(name) {
			faults = append(faults, fault(given[name].Key, "the type of to has the fields: remove "+name, "a select takes to or %s, not both", name))
		}
	}
	if has("set") && !has("to") {
		faults = append(faults, fault(given["set"].Key, "add to: TYPE, or set fields with an enrich stage", "set of a select needs to"))
	}
	if !slices.ContainsFunc([]string{"from", "keep", "drop", "rename", "type", "to"}, has) {
		faults = append(faults, fault(in.At, "keep: [FIELD], from: PATH, or to: TYPE", "a select needs one of from, keep, drop, rename, type and to"))
	}
	return faults
}

// newSelection checks the parameters for one type.
func newSelection(in Input, t Type) (*selection, []expr.Fault) {
	sel := &selection{}
	record, env := t.Schema.Root(), t.Env
	if del, ok := in.Args.Find("delete"); ok {
		var faults []expr.Fault
		if sel.delete, faults = env.CompileAt(del.Value, t.Name, expr.Condition("delete")); len(faults) > 0 {
			return nil, faults
		}
		env = env.Also(sel.delete.Ensures(false))
	}
	if from, ok := in.Args.Find("from"); ok {
		var err error
		if sel.from, record, err = newOrigin(t.Schema, from.Value.Text); err != nil {
			return nil, expr.PlaceErrors(from.Value, t.Name, err)
		}
		for i := range sel.from.path {
			env = env.Also(expr.Facts{}.NotNull(strings.Join(sel.from.path[:i+1], ".")))
		}
	}
	to, ok := in.Args.Find("to")
	if !ok {
		return sel, sel.fields(in, t, record)
	}
	out, err := in.Schema(to.Value.Text)
	if err != nil {
		return nil, expr.PlaceErrors(to.Value, t.Name, err)
	}
	sel.out = out
	return sel, sel.convert(in, t, env, record, to)
}

// fields makes a selection that keeps some fields of a record.
func (sel *selection) fields(in Input, t Type, record *codec.Node) (faults []expr.Fault) {
	keep, keeps := in.Args.Find("keep")
	drop, drops := in.Args.Find("drop")
	rename, _ := in.Args.Find("rename")
	name, _ := in.Args.Find("type")
	stays := func(field string) bool {
		is := func(w expr.Source) bool { return w.Text == field }
		return (!keeps || slices.ContainsFunc(keep.Words, is)) && (!drops || !slices.ContainsFunc(drop.Words, is))
	}
	check := func(field expr.Source) {
		if f := unknownField(t, record, field); f != nil {
			faults = append(faults, *f)
		}
	}
	for _, w := range append(slices.Clone(keep.Words), drop.Words...) {
		check(w)
	}
	names := map[string]string{}
	for _, e := range rename.Entries {
		check(e.Key)
		names[e.Key.Text] = e.Value.Text
		if record.Field(e.Key.Text) != nil && !stays(e.Key.Text) {
			faults = append(faults, fault(e.Key, "keep it, or remove it here", "%s is renamed, but it does not stay", e.Key.Text))
		}
	}
	if keeps && len(keep.Words) == 0 || len(faults) == 0 && !slices.ContainsFunc(record.Fields, func(f codec.Field) bool { return stays(f.Name) }) {
		faults = append(faults, expr.Fault{Source: in.At, Type: t.Name, Msg: "no field of " + record.Name + " stays", Hint: "to remove events, use a filter"})
	}
	if len(faults) > 0 {
		return faults
	}
	of := codec.Selection{Keep: stays, Names: names, Name: name.Value.Text}
	if sel.from != nil {
		of.From = sel.from.path
	}
	var err error
	if sel.out, err = t.Schema.Select(of); err != nil {
		return []expr.Fault{{Source: in.At, Type: t.Name, Msg: err.Error(), Hint: "declare the new type in the schemas directory, and name it with to"}}
	}
	var gaps []resolve.Gap
	sel.project, gaps = resolve.NewProjection(record, sel.out.Root(), names, nil)
	for _, g := range gaps {
		faults = append(faults, expr.Fault{Source: in.At, Type: t.Name, Msg: fmt.Sprintf("%s of %s cannot be copied: %s", g.Path, t.Name, g.Why), Hint: "leave it out"})
	}
	return faults
}

// unknownField returns the fault of a name that is no field of a record.
func unknownField(t Type, record *codec.Node, field expr.Source) *expr.Fault {
	if record.Field(field.Text) != nil {
		return nil
	}
	var names []string
	for i := range record.Fields {
		names = append(names, record.Fields[i].Name)
	}
	f := expr.Fault{Source: field, Type: t.Name, Msg: fmt.Sprintf("%s has no field %s", record.Name, field.Text), Hint: expr.Suggest(field.Text, names)}
	if strings.Contains(field.Text, ".") {
		f.Msg = fmt.Sprintf("a select keeps whole fields of %s, and %s is within one", record.Name, field.Text)
		f.Hint = "select fields of one record, with from: PATH, or compute fields of another type with to and set"
	}
	return &f
}

// convert makes a selection that makes events of another type.
func (sel *selection) convert(in Input, t Type, env *expr.Env, record *codec.Node, to Arg) (faults []expr.Fault) {
	target, err := expr.NewEnv(expr.Root{Schema: sel.out})
	if err != nil {
		return []expr.Fault{{Source: to.Value, Type: t.Name, Msg: err.Error()}}
	}
	set, _ := in.Args.Find("set")
	var given []string
	for _, e := range set.Entries {
		field, err := target.Target(e.Key.Text)
		if err != nil {
			faults = append(faults, expr.PlaceErrors(e.Key, t.Name, err)...)
			continue
		}
		if field.Place != nil {
			faults = append(faults, expr.Fault{Source: e.Key, Type: t.Name, Msg: fmt.Sprintf("a select sets whole fields, and %s is within %s, which can be null", e.Key.Text, strings.Join(field.Path, ".")), Hint: "set it with an enrich stage after it"})
			continue
		}
		if field.Entry {
			faults = append(faults, expr.Fault{Source: e.Key, Type: t.Name, Msg: fmt.Sprintf("a select sets whole fields, and %s is an entry of a map", e.Key.Text), Hint: "set the entry with an enrich stage after it"})
			continue
		}
		p, more := env.CompileAt(e.Value, t.Name, field.Want())
		if len(more) > 0 {
			faults = append(faults, more...)
			continue
		}
		given = append(given, strings.Join(field.Path, "."))
		sel.paths, sel.sets = append(sel.paths, field.Path), append(sel.sets, p)
	}
	if len(faults) > 0 {
		return faults
	}
	var gaps []resolve.Gap
	sel.project, gaps = resolve.NewProjection(record, sel.out.Root(), nil, given)
	for _, g := range gaps {
		path := g.Path
		if n := sel.out.Root().Field(path); n != nil && n.Type.Kind == codec.Record {
			path += ".FIELD"
		}
		faults = append(faults, expr.Fault{Source: to.Value, Type: t.Name, Hint: fmt.Sprintf("set: {%s: EXPRESSION}", path),
			Msg: fmt.Sprintf("%s of %s cannot be filled from %s: %s", g.Path, sel.out.Name(), record.Name, g.Why)})
	}
	return faults
}

func (s *selectStage) Reads(typ int) [][]string {
	sel := s.types[typ]
	if sel == nil {
		return nil
	}
	paths := appendPaths(nil, append([]*expr.Program{sel.delete}, sel.sets...)...)
	if sel.from != nil {
		paths = append(paths, sel.from.leaves...)
	}
	return paths
}

// Writes implements [Built]. All fields of the new event are new, so none is written in the
// layout of the old one.
func (s *selectStage) Writes(int) [][]string { return nil }

func (s *selectStage) Volatile(typ int) (fields [][]string, fate bool) {
	sel := s.types[typ]
	if sel == nil {
		return nil, false
	}
	for i, p := range sel.sets {
		if clocked(p) {
			fields = append(fields, sel.paths[i])
		}
	}
	return fields, clocked(sel.delete)
}

// Reshaped implements [Reshaper].
func (s *selectStage) Reshaped(typ int) *codec.Schema {
	if s.types[typ] == nil {
		return nil
	}
	return s.types[typ].out
}

// Deletes implements [Reshaper].
func (s *selectStage) Deletes(typ int) bool { return s.types[typ] != nil && s.types[typ].delete != nil }

// BindReshaped implements [Reshaper].
func (s *selectStage) BindReshaped(layouts []*codec.Layout) {
	for typ, sel := range s.types {
		if sel != nil {
			sel.layout = layouts[typ]
		}
	}
}

func (s *selectStage) Bind(layouts []*codec.Layout) error {
	for typ, sel := range s.types {
		if sel == nil {
			continue
		}
		for _, p := range append([]*expr.Program{sel.delete}, sel.sets...) {
			if p == nil {
				continue
			}
			if err := p.Bind(layouts[typ]); err != nil {
				return err
			}
		}
		if sel.from != nil {
			sel.from.bind(layouts[typ])
		}
	}
	return nil
}

func (s *selectStage) Clone() Built { return &selectStage{types: s.types} }

func (s *selectStage) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	sel := s.types[e.Type]
	if sel == nil {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Started, &e.View)
	if sel.delete != nil {
		switch is, err := sel.delete.Test(&s.scope); {
		case err != nil:
			return pipeline.Drop, err
		case is:
			return pipeline.Delete, nil
		}
	}
	record, err := sel.record(e)
	if err != nil {
		return pipeline.Drop, err
	}
	s.values = s.values[:0]
	for _, p := range sel.sets {
		enc, err := appendIn(&s.scope, e, p)
		if err != nil {
			return pipeline.Drop, err
		}
		s.values = append(s.values, enc)
	}
	n := len(e.Arena)
	if e.Arena, err = sel.project.Append(e.Arena, record, s.values, &s.scratch); err != nil {
		return pipeline.Drop, badBody(err)
	}
	body := e.Arena[n:len(e.Arena):len(e.Arena)]
	if sel.layout.Len() == 0 { // no stage reads it, and it is made of checked parts
		e.View.Reset(body, 0)
		return pipeline.Pass, nil
	}
	return verdict(sel.layout.Walk(body, &e.View))
}

// record returns the encoding of the record whose fields are selected.
func (sel *selection) record(e *pipeline.Event) ([]byte, error) {
	switch {
	case sel.from != nil:
		return sel.from.record(e)
	case !e.Changed():
		return e.Body, nil
	}
	n := len(e.Arena)
	e.Arena = e.Append(e.Arena)
	return e.Arena[n:len(e.Arena):len(e.Arena)], nil
}
