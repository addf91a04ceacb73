package stage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage/reshape"
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
			{Name: "keep", Form: Words, Doc: "The fields that stay; all others are removed. A path leads into a record, also one that may be null (address.city), and with [] into the items of an array or the entries of a map (items[].price). Set either keep or drop."},
			{Name: "drop", Form: Words, Doc: "The fields that are removed, by name or path as in keep; all others stay. Set either keep or drop."},
			{Name: "rename", Form: Texts, Doc: "Maps fields that stay, by name or path as in keep, to their new names. With to: maps fields of the record to fields of the new type, both by name or path (address.city: city). " +
				"A field that leaves a record that can be null is null where the record is. A field that enters one is left out where the record is null."},
			{Name: "type", Form: Word, Doc: "The name of the new type after keep, drop, rename or from. Without a namespace, the one of the record stays. " +
				"By default, it is the name of the record that holds the fields, and the output topic gets a schema of this name with the fields that stay."},
			{Name: "to", Form: Word, Doc: "The new type: a record in the schemas directory. Fields of the same name are copied, or converted if they have another type that holds every value. " +
				"set computes other fields. The rest have their defaults; a field without a default is a fault. Set either to, or keep, drop and type."},
			{Name: "set", Form: Assignments, Doc: "With to: maps the path of a field of the new type, or of an entry of a map in it, to its value. Where a record around the field is null, nothing is set. Expressions see the event as it was before this stage, from included."},
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

	// Follow returns the fields of the new schema that depend on some fields of the old
	// one, for a type that gets another schema. fate reports whether it also depends on
	// them if the event passes.
	Follow(typ int, of [][]string) (fields [][]string, fate bool)

	// ReadsAfter returns the fields of the new schema that the stage itself uses.
	ReadsAfter(typ int) [][]string

	// BindReshaped sets the layouts of the events after the stage, by type. It is called
	// once, before Bind.
	BindReshaped(layouts []*codec.Layout)
}

type selectStage struct {
	types []*selection // by type; nil if the stage does not handle the type
	null  error        // the rejection of an event without the record of from

	// Owned by the clone: Process writes them.
	scope   expr.Scope
	scratch reshape.Scratch
	values  [][]byte
	spare   pipeline.View
}

// A selection is how events of one type are changed.
type selection struct {
	delete  *expr.Program   // nil: none is a deletion
	from    *reshape.Origin // nil: the whole event
	project *resolve.Projection
	mapping reshape.Mapping
	values  []reshape.Value  // of the fields that the mapping has as given, except for those of inserts
	inserts []reshape.Insert // set after the fields
	out     *codec.Schema
	layout  *codec.Layout // of out
}

// programs returns all expressions of a selection.
func (sel *selection) programs() []*expr.Program {
	all := []*expr.Program{sel.delete}
	for i := range sel.values {
		all = append(all, sel.values[i].Program)
	}
	for i := range sel.inserts {
		all = append(all, sel.inserts[i].Value.Program)
	}
	return all
}

func newSelect(in Input) (Built, []expr.Fault) {
	if faults := checkSelect(in); len(faults) > 0 {
		return nil, faults
	}
	from, _ := in.Args.Find("from")
	s := &selectStage{types: make([]*selection, len(in.Types)), null: pipeline.Reject(ReasonNullRecord, "%s is null", from.Value.Text)}
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
	for _, name := range []string{"keep", "drop", "type"} {
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
		if sel.from, record, err = reshape.NewOrigin(t.Schema, from.Value.Text); err != nil {
			return nil, expr.PlaceErrors(from.Value, t.Name, err)
		}
		sel.mapping.From = sel.from.Path()
		for i := range sel.mapping.From {
			env = env.Also(expr.Facts{}.NotNull(strings.Join(sel.mapping.From[:i+1], ".")))
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
	drop, _ := in.Args.Find("drop")
	name, _ := in.Args.Find("type")
	parts := reshape.Fields{Drop: texts(drop.Words)}
	if keeps {
		parts.Keep = append([]string{}, texts(keep.Words)...)
	}
	for _, w := range append(slices.Clone(keep.Words), drop.Words...) {
		if err := reshape.Check(record, record.Name, w.Text); err != nil {
			faults = append(faults, expr.PlaceErrors(w, t.Name, err)...)
		}
	}
	names, more := newNames(in, t, record, parts)
	if faults = append(faults, more...); len(faults) > 0 {
		return faults
	}
	var err error
	if sel.out, err = t.Schema.Select(codec.Selection{From: sel.mapping.From, Keep: parts.Part, Names: names, Name: name.Value.Text}); err != nil {
		hint := "select the same fields wherever a type is used, or declare the new type in the schemas directory and name it with to"
		if errors.Is(err, codec.ErrNoField) {
			hint = "drop the record as a whole; to remove events, use a filter"
		}
		return []expr.Fault{{Source: in.At, Type: t.Name, Msg: err.Error(), Hint: hint}}
	}
	sel.mapping.Names, sel.mapping.Out = names, sel.out.Root()
	var gaps []resolve.Gap
	sel.project, gaps = resolve.NewProjection(record, sel.out.Root(), names, nil)
	for _, g := range gaps {
		faults = append(faults, expr.Fault{Source: in.At, Type: t.Name, Msg: fmt.Sprintf("%s of %s cannot be copied: %s", g.Path, t.Name, g.Why), Hint: "leave it out"})
	}
	return faults
}

// newNames returns the new names of fields, by path.
func newNames(in Input, t Type, record *codec.Node, parts reshape.Fields) (names map[string]string, faults []expr.Fault) {
	rename, _ := in.Args.Find("rename")
	_, to := in.Args.Find("to")
	names = map[string]string{}
	for _, e := range rename.Entries {
		if names[e.Key.Text] = e.Value.Text; !to && strings.ContainsAny(e.Value.Text, ".[") {
			faults = append(faults, fault(e.Value, "write the new name alone; to move a field, declare the new type in the schemas directory and name it with to", "%s is not a name", e.Value.Text))
		}
		if err := reshape.Check(record, record.Name, e.Key.Text); err != nil {
			faults = append(faults, expr.PlaceErrors(e.Key, t.Name, err)...)
		} else if !parts.Stays(e.Key.Text) {
			faults = append(faults, fault(e.Key, "keep it, or remove it here", "%s is renamed, but it does not stay", e.Key.Text))
		}
	}
	return names, faults
}

func texts(words []expr.Source) (out []string) {
	for _, w := range words {
		out = append(out, w.Text)
	}
	return out
}

// convert makes a selection that makes events of another type.
func (sel *selection) convert(in Input, t Type, env *expr.Env, record *codec.Node, to Arg) (faults []expr.Fault) {
	target, err := expr.NewEnv(expr.Root{Schema: sel.out})
	if err != nil {
		return []expr.Fault{{Source: to.Value, Type: t.Name, Msg: err.Error()}}
	}
	rename, _ := in.Args.Find("rename")
	set, _ := in.Args.Find("set")
	if faults = sel.rename(in, t, record, rename, set); len(faults) > 0 {
		return faults
	}
	for _, move := range sel.mapping.Moves {
		i := slices.IndexFunc(rename.Entries, func(e Entry) bool { return e.Key.Text == move.From })
		faults = append(faults, sel.move(t, record, rename.Entries[i])...)
	}
	for _, e := range set.Entries {
		faults = append(faults, sel.assign(t, env, target, record, e)...)
	}
	if len(faults) > 0 {
		return faults
	}
	for i := range sel.inserts {
		if sel.inserts[i].Key == nil {
			sel.mapping.Given = append(sel.mapping.Given, sel.inserts[i].Field)
		}
	}
	var given []string
	for _, path := range sel.mapping.Given {
		given = append(given, strings.Join(path, "."))
	}
	var gaps []resolve.Gap
	sel.project, gaps = resolve.NewProjection(record, sel.out.Root(), sel.mapping.Names, given)
	for _, g := range gaps {
		path := g.Path
		if f, fault := within.FieldAt(sel.out, strings.Split(path, ".")); fault == nil && f.Node.NotNull().Kind == codec.Record {
			path += ".FIELD"
		}
		faults = append(faults, expr.Fault{Source: to.Value, Type: t.Name, Hint: fmt.Sprintf("set: {%s: EXPRESSION}", path),
			Msg: fmt.Sprintf("%s of %s cannot be filled from %s: %s", g.Path, sel.out.Name(), record.Name, g.Why)})
	}
	return faults
}

// rename reads the new names of fields, which are paths of the new type.
func (sel *selection) rename(in Input, t Type, record *codec.Node, rename, set Arg) []expr.Fault {
	_, faults := newNames(in, t, record, reshape.Fields{})
	var renames []reshape.Moved
	for _, e := range rename.Entries {
		faults = append(faults, expr.PlaceErrors(e.Value, t.Name, reshape.Check(sel.out.Root(), sel.out.Name(), e.Value.Text))...)
		renames = append(renames, reshape.Moved{From: e.Key.Text, To: e.Value.Text})
	}
	sel.mapping.Out = sel.out.Root()
	sel.mapping.Rename(renames)
	var given, copied []expr.Source
	for _, e := range rename.Entries {
		if sel.mapping.Names[e.Key.Text] == "" {
			given = append(given, e.Value)
		} else {
			copied = append(copied, e.Value)
		}
	}
	for _, e := range set.Entries {
		given = append(given, e.Key)
	}
	return append(faults, reshape.Overlaps(given, copied)...)
}

// move adds a field of the record that becomes one of another record.
func (sel *selection) move(t Type, record *codec.Node, given Entry) []expr.Fault {
	bad := func(at expr.Source, hint, format string, args ...any) []expr.Fault {
		return []expr.Fault{{Source: at, Type: t.Name, Hint: hint, Msg: fmt.Sprintf(format, args...)}}
	}
	if strings.Contains(given.Key.Text+given.Value.Text, "[]") {
		return bad(given.Value, "name a field of the same items, or set the array with map()", "%s cannot become %s: a field of items stays in its item", given.Key.Text, given.Value.Text)
	}
	field, missing := within.FieldAt(sel.out, strings.Split(given.Value.Text, "."))
	if missing != nil {
		return bad(given.Value, missing.Hint, "%s", missing.Msg)
	}
	move, err := reshape.NewMove(record, given.Key.Text, field.Node, sel.mapping.Origins(record, field.Above))
	if err != nil {
		return bad(given.Value, fmt.Sprintf("set: {%s: EXPRESSION}", given.Value.Text), "%s cannot become %s of %s: %v", given.Key.Text, given.Value.Text, sel.out.Name(), err)
	}
	path := strings.Split(given.Value.Text, ".")
	sel.give(reshape.Insert{Leaf: field.Leaf, Place: field.Place(), Field: path, Node: field.Node, Value: reshape.Value{Move: move}})
	return nil
}

// give adds a field that is not copied.
func (sel *selection) give(field reshape.Insert) {
	if field.Place != nil || field.Key != nil {
		sel.inserts = append(sel.inserts, field)
		return
	}
	sel.mapping.Given, sel.values = append(sel.mapping.Given, field.Field), append(sel.values, field.Value)
}

// assign adds an assignment of set.
func (sel *selection) assign(t Type, env, target *expr.Env, record *codec.Node, given Entry) []expr.Fault {
	field, err := target.Target(given.Key.Text)
	if err != nil {
		return expr.PlaceErrors(given.Key, t.Name, err)
	}
	for _, path := range sel.mapping.Origins(record, field.Above) { // copied, so neither is null
		env = env.Also(expr.Facts{}.NotNull(strings.Join(append(slices.Clone(sel.mapping.From), path), ".")))
	}
	p, faults := env.CompileAt(given.Value, t.Name, field.Want())
	if len(faults) > 0 {
		return faults
	}
	insert := reshape.Insert{Leaf: field.Path, Place: field.Place, Field: field.Whole, Node: field.Node, Value: reshape.Value{Program: p}}
	if field.Entry {
		insert.Key = []byte(field.Key)
	}
	sel.give(insert)
	return nil
}

func (s *selectStage) Reads(typ int) [][]string {
	sel := s.types[typ]
	if sel == nil {
		return nil
	}
	paths := appendPaths(nil, sel.programs()...)
	if sel.from != nil {
		paths = append(paths, sel.from.Leaves()...)
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
	return sel.settable(clocked), clocked(sel.delete)
}

// settable returns the fields and entries that are set by the expressions for which is
// returns true.
func (sel *selection) settable(is func(*expr.Program) bool) (fields [][]string) {
	for i := range sel.values {
		if is(sel.values[i].Program) {
			fields = append(fields, sel.mapping.Given[i])
		}
	}
	for i := range sel.inserts {
		if in := &sel.inserts[i]; is(in.Value.Program) {
			fields = append(fields, in.Path())
		}
	}
	return fields
}

// Follow implements [Reshaper].
func (s *selectStage) Follow(typ int, of [][]string) (fields [][]string, fate bool) {
	sel := s.types[typ]
	reads := func(p *expr.Program) bool {
		return p != nil && slices.ContainsFunc(p.Paths(0), func(read []string) bool {
			return slices.ContainsFunc(of, func(f []string) bool { return overlap(read, f) })
		})
	}
	fields, fate = sel.mapping.Follow(of)
	return append(fields, sel.settable(reads)...), fate || reads(sel.delete)
}

// overlap reports whether one path is a prefix of the other.
func overlap(a, b []string) bool {
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

// ReadsAfter implements [Reshaper].
func (s *selectStage) ReadsAfter(typ int) (paths [][]string) {
	if sel := s.types[typ]; sel != nil {
		for i := range sel.inserts {
			paths = append(paths, sel.inserts[i].Leaf)
		}
	}
	return paths
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
			for i := range sel.inserts {
				sel.inserts[i].Bind(sel.layout)
			}
		}
	}
}

func (s *selectStage) Bind(layouts []*codec.Layout) error {
	for typ, sel := range s.types {
		if sel == nil {
			continue
		}
		for _, p := range sel.programs() {
			if p == nil {
				continue
			}
			if err := p.Bind(layouts[typ]); err != nil {
				return err
			}
		}
		if sel.from != nil {
			sel.from.Bind(layouts[typ])
		}
	}
	return nil
}

func (s *selectStage) Clone() Built { return &selectStage{types: s.types, null: s.null} }

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
	record, err := s.record(e, sel)
	if err != nil {
		return pipeline.Drop, err
	}
	s.values = s.values[:0]
	for i := range sel.values {
		enc, err := sel.values[i].Append(e, &s.scope, record, &s.scratch)
		if err != nil {
			return pipeline.Drop, err
		}
		s.values = append(s.values, enc)
	}
	n := len(e.Arena)
	if e.Arena, err = sel.project.Append(e.Arena, record, s.values, &s.scratch.Resolve); err != nil {
		return pipeline.Drop, badBody(err)
	}
	body := e.Arena[n:len(e.Arena):len(e.Arena)]
	if sel.layout.Len() == 0 { // no stage reads it, and it is made of checked parts
		e.View.Reset(body, 0)
		return pipeline.Pass, nil
	}
	if len(sel.inserts) == 0 {
		return verdict(sel.layout.Walk(body, &e.View))
	}
	return verdict(s.insert(e, sel, body, record))
}

// insert makes body the event and sets the fields within its values. The expressions see
// the old event.
func (s *selectStage) insert(e *pipeline.Event, sel *selection, body, record []byte) error {
	s.spare.Record, s.spare.KeyBody = e.View.Record, e.KeyBody
	if err := sel.layout.Walk(body, &s.spare); err != nil {
		return err
	}
	for i := range sel.inserts {
		if err := sel.inserts[i].Apply(e, &s.spare, &s.scope, record, &s.scratch); err != nil {
			return err
		}
	}
	e.View, s.spare = s.spare, e.View
	return nil
}

// record returns the encoding of the record whose fields are selected.
func (s *selectStage) record(e *pipeline.Event, sel *selection) ([]byte, error) {
	switch {
	case sel.from != nil:
		enc, null, err := sel.from.Record(e)
		switch {
		case err != nil:
			return nil, badBody(err)
		case null:
			return nil, s.null
		}
		return enc, nil
	case !e.Changed():
		return e.Body, nil
	}
	n := len(e.Arena)
	e.Arena = e.Append(e.Arena)
	return e.Arena[n:len(e.Arena):len(e.Arena)], nil
}
