package stage

import (
	"context"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
)

// Enrich is the stage that sets and adds fields.
func Enrich() Kind {
	return Kind{
		Name: "enrich",
		Doc: "Sets fields and map entries (such as metadata.KEY) to computed values, and adds fields. " +
			"All expressions see the event as it was before this stage, and now() has the same value in all of them.",
		Params: []Param{
			{Name: "set", Form: Assignments, Doc: setDoc},
			{Name: "add", Form: Named, Params: []Param{
				{Name: "type", Form: Word, Required: true, Values: addable(),
					Doc: "The Avro type. With a question mark, the field is nullable."},
				{Name: "value", Form: Expression, Required: true, Doc: "The value of the field."},
				{Name: "doc", Form: Word, Doc: "The doc attribute of the field in the schema."},
			}, Doc: addDoc + " In the output schema, the field is the last one of its record. " +
				"Its default applies to events that do not pass this stage. It is null for a nullable type, and otherwise empty, zero or false."},
		},
		Example: `on: [OrderCreated]
set: {metadata.source: "'web'"}
add: {data.total_cents: {type: long, value: int(data.total_amount * 100.0)}}`,
		AddsFields: true,
		New:        newEnrich,
	}
}

// setDoc describes the parameter set of several stages.
const setDoc = "Maps the path of an existing field or of a map entry (metadata.KEY) to its new value. " +
	"A path can lead through records that can be null, and through unions with a record: after.email. " +
	"If the event has no such record, nothing is set, and the expression is not evaluated."

// addDoc describes the parameter add of several stages.
const addDoc = "Maps the path of a new field to its type and value. The path can lead through records that can be null, as in set. " +
	"A record type that the schema uses in several places (such as before and after) gets the field in all of them; in the others it has its default."

// addTypes lists the types of fields that can be added, with their defaults.
var addTypes = []struct{ word, avro, zero string }{
	{"boolean", "boolean", "false"},
	{"int", "int", "0"},
	{"long", "long", "0"},
	{"float", "float", "0"},
	{"double", "double", "0"},
	{"string", "string", `""`},
	{"bytes", "bytes", `""`},
	{"uuid", `{"type": "string", "logicalType": "uuid"}`, `"00000000-0000-0000-0000-000000000000"`},
	{"date", `{"type": "int", "logicalType": "date"}`, "0"},
	{"timestamp-millis", `{"type": "long", "logicalType": "timestamp-millis"}`, "0"},
	{"timestamp-micros", `{"type": "long", "logicalType": "timestamp-micros"}`, "0"},
}

// addable returns the allowed type names: each name of addTypes, without and with a
// question mark.
func addable() (words []string) {
	for _, t := range addTypes {
		words = append(words, t.word)
	}
	for _, t := range addTypes {
		words = append(words, t.word+"?")
	}
	return words
}

// newField returns the new field for a type name of addable.
func newField(path, word, doc string) codec.NewField {
	f := codec.NewField{Path: strings.Split(path, "."), Doc: doc}
	bare, nullable := strings.CutSuffix(word, "?")
	for _, t := range addTypes {
		if t.word == bare {
			f.Type, f.Default = t.avro, t.zero
		}
	}
	if nullable {
		f.Default = "" // makes the field nullable, see codec.NewField
	}
	return f
}

// enrichStage is the stage enrich.
type enrichStage struct{ enrich }

// enrich sets and adds fields. It is the common part of enrich, lookup, http, split and
// upcast. It does not implement Built, so a stage that embeds it must have its own
// Process, Reads, Volatile, Bind and Clone.
type enrich struct {
	sets     [][]assignment  // by type: the fields to set, in the order of the file
	grown    []*codec.Schema // by type: the schema after the stage; nil if unchanged
	rebuilds []*rebuild      // by type; nil if there is none

	// Owned by the clone: Process writes them.
	scope   expr.Scope
	scratch resolve.Scratch
	spare   pipeline.View
}

func newEnrich(in Input) (Built, []expr.Fault) {
	set, _ := in.Args.Find("set")
	add, _ := in.Args.Find("add")
	if len(set.Entries)+len(add.Items) == 0 {
		return nil, []expr.Fault{fault(in.At, "set: {metadata.source: \"'web'\"}", "an enrich stage needs set or add")}
	}
	s := &enrichStage{enrich{sets: make([][]assignment, len(in.Types)), grown: make([]*codec.Schema, len(in.Types))}}
	var faults []expr.Fault
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		more := s.compile(i, t, set, add)
		if len(more) == 0 {
			again, ok, gaps := s.rebuilt(i, t, in.At)
			if more = gaps; ok {
				more = append(more, s.compile(i, again, set, add)...)
			}
		}
		faults = append(faults, more...)
	}
	return s, faults
}

// compile compiles the parameters set and add for one type.
func (s *enrich) compile(typ int, t Type, set, add Arg) (faults []expr.Fault) {
	for _, given := range set.Entries {
		faults = append(faults, s.assign(typ, t, given)...)
	}
	for _, given := range add.Items {
		faults = append(faults, s.add(typ, t, given)...)
	}
	return faults
}

// add adds one field to one type. The expression for its value cannot read the new
// field.
func (s *enrich) add(typ int, t Type, given Item) []expr.Fault {
	word, _ := given.Args.Find("type")
	value, _ := given.Args.Find("value")
	doc, _ := given.Args.Find("doc")
	if s.Rebuilds(typ) { // t has the field already
		return s.assign(typ, t, Entry{given.Key, value.Value})
	}
	schema := t.Schema
	if s.grown[typ] != nil {
		schema = s.grown[typ]
	}
	field := newField(given.Key.Text, word.Value.Text, doc.Value.Text)
	grown, err := schema.With([]codec.NewField{field})
	if err != nil {
		hint := ""
		if _, err := t.Env.Target(given.Key.Text); err == nil {
			hint = "to change its value, use set"
		}
		return []expr.Fault{{Source: given.Key, Type: t.Name, Msg: err.Error(), Hint: hint}}
	}
	s.grown[typ] = grown
	if !codec.Splices(schema, grown) {
		return checkAdded(t, grown, given.Key, value.Value)
	}
	node := grown.Root()
	for _, name := range field.Path {
		node = node.Field(name).Type
	}
	p, faults := t.Env.CompileAt(value.Value, t.Name, expr.Value(node, given.Key.Text, schema.Name()))
	if len(faults) > 0 {
		return faults
	}
	s.sets[typ] = append(s.sets[typ], assignment{path: field.Path, field: field.Path, before: -1, node: node, slot: -1, programs: []*expr.Program{p}})
	return nil
}

// checkAdded checks the value of a field that is added within a value. When all fields are
// known, it is compiled for the new schema.
func checkAdded(t Type, grown *codec.Schema, path, value expr.Source) []expr.Fault {
	env, err := t.Env.Of(grown)
	if err != nil {
		return []expr.Fault{{Source: path, Type: t.Name, Msg: err.Error()}}
	}
	target, err := env.Target(path.Text)
	if err != nil {
		return expr.PlaceErrors(path, t.Name, err)
	}
	_, faults := t.Env.Also(target.There).CompileAt(value, t.Name, target.Want())
	return faults
}

// Schemas implements [FieldAdder].
func (s *enrich) Schemas() []*codec.Schema { return s.grown }

func (s *enrichStage) Reads(typ int) [][]string { return s.paths(typ, 0) }

var _ FieldSetter = (*enrichStage)(nil)

// paths returns the fields that the expressions for a type read in a view.
func (s *enrich) paths(typ, view int) (paths [][]string) {
	for i := range s.sets[typ] {
		for _, p := range s.sets[typ][i].programs {
			paths = append(paths, p.Paths(view)...)
		}
	}
	return paths
}

// Writes returns the leaves that hold the fields that are set in events of a type.
func (s *enrich) Writes(typ int) (paths [][]string) {
	for i := range s.sets[typ] {
		if a := &s.sets[typ][i]; a.before < 0 {
			paths = append(paths, a.path)
		}
	}
	return paths
}

// Sets implements [FieldSetter].
func (s *enrich) Sets(typ int) (paths [][]string) {
	for i := range s.sets[typ] {
		paths = append(paths, s.sets[typ][i].field)
	}
	return paths
}

func (s *enrichStage) Volatile(typ int) (fields [][]string, fate bool) {
	return s.clockedPaths(typ), false
}

// clockedPaths returns the fields and map entries whose values depend on now(). It is not
// named Volatile, because a stage that embeds enrich must declare its own.
func (s *enrich) clockedPaths(typ int) (fields [][]string) {
	for i := range s.sets[typ] {
		a := &s.sets[typ][i]
		for k, p := range a.programs {
			switch {
			case !clocked(p):
			case a.keys == nil:
				fields = append(fields, a.field)
			default:
				fields = append(fields, append(slices.Clone(a.field), string(a.keys[k])))
			}
		}
	}
	return fields
}

// Ensures implements [Ensurer].
func (s *enrichStage) Ensures(typ int) (known expr.Facts) {
	for _, a := range s.sets[typ] {
		path := strings.Join(a.field, ".")
		for k, p := range a.programs {
			at := path
			if a.keys != nil {
				known = known.Has(path, string(a.keys[k]))
				at += "." + string(a.keys[k])
			}
			if p.NeverNull() {
				known = known.NotNull(at)
			}
		}
	}
	return known
}

func (s *enrichStage) Bind(layouts []*codec.Layout) error {
	for typ := range s.sets {
		if err := s.bind(typ, layouts[typ]); err != nil {
			return err
		}
	}
	return nil
}

// bind binds the expressions for one type to the layouts of all views.
func (s *enrich) bind(typ int, layouts ...*codec.Layout) error {
	if s.Rebuilds(typ) {
		s.rebuilds[typ].layout = layouts[0]
	}
	for i := range s.sets[typ] {
		a := &s.sets[typ][i]
		a.slot = layouts[0].Slot(a.path...)
		for _, p := range a.programs {
			if err := p.Bind(layouts...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *enrichStage) Clone() Built { return &enrichStage{*s.clone()} }

func (s *enrich) clone() *enrich {
	c := &enrich{sets: make([][]assignment, len(s.sets)), grown: s.grown, rebuilds: s.rebuilds}
	for typ, sets := range s.sets {
		c.sets[typ] = slices.Clone(sets)
		for i := range sets {
			if a := &c.sets[typ][i]; a.keys != nil {
				a.update = expr.NewMapUpdate(a.node, a.keys, a.programs)
			}
		}
	}
	return c
}

func (s *enrichStage) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if s.rebuilds != nil {
		if err := s.rebuild(e); err != nil {
			return pipeline.Drop, err
		}
	}
	s.scope.Reset(e.Started, &e.View)
	return verdict(s.apply(e))
}
