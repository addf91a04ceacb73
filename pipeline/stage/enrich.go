package stage

import (
	"context"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
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
const setDoc = "Maps the path of an existing field or of a map entry (metadata.KEY) to its new value."

// addDoc describes the parameter add of several stages.
const addDoc = "Maps the path of a new field to its type and value."

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
	sets  [][]assignment  // by type: the fields to set, in the order of the file
	grown []*codec.Schema // by type: the schema after the stage; nil if unchanged
	scope expr.Scope      // owned by the clone: Process writes it
}

// An assignment computes the new value of a leaf: the whole value or, for a map, some
// of its entries.
type assignment struct {
	path     []string
	node     *codec.Node
	slot     int
	programs []*expr.Program // one for the whole value, or one per key
	keys     [][]byte        // of the entries to set; nil: the whole value is set
	update   *expr.MapUpdate // sets the entries; owned by the clone
	result   []byte          // for the current event; owned by the clone
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
		for _, given := range set.Entries {
			faults = append(faults, s.assign(i, t, given)...)
		}
		for _, given := range add.Items {
			faults = append(faults, s.add(i, t, given)...)
		}
	}
	return s, faults
}

// assign compiles one assignment for one type.
func (s *enrich) assign(typ int, t Type, given Entry) []expr.Fault {
	target, err := t.Env.Target(given.Key.Text)
	if err != nil {
		return expr.PlaceErrors(given.Key, t.Name, err)
	}
	p, faults := t.Env.CompileAt(given.Value, t.Name, target.Want())
	if len(faults) > 0 {
		return faults
	}
	path := strings.Join(target.Path, ".")
	for i := range s.sets[typ] {
		a := &s.sets[typ][i]
		if strings.Join(a.path, ".") != path {
			continue
		}
		if a.keys == nil || !target.Entry {
			return []expr.Fault{fault(given.Key, "", "%s is set twice", path)}
		}
		a.keys, a.programs = append(a.keys, []byte(target.Key)), append(a.programs, p) // the key is new: a mapping has no duplicate paths
		return nil
	}
	a := assignment{path: target.Path, node: target.Node, slot: -1, programs: []*expr.Program{p}}
	if target.Entry {
		a.keys = [][]byte{[]byte(target.Key)}
	}
	s.sets[typ] = append(s.sets[typ], a)
	return nil
}

// add adds one field to one type. The expression for its value cannot read the new
// field.
func (s *enrich) add(typ int, t Type, given Item) []expr.Fault {
	word, _ := given.Args.Find("type")
	value, _ := given.Args.Find("value")
	doc, _ := given.Args.Find("doc")
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
	node := grown.Root()
	for _, name := range field.Path {
		node = node.Field(name).Type
	}
	p, faults := t.Env.CompileAt(value.Value, t.Name, expr.Value(node, given.Key.Text, schema.Name()))
	if len(faults) > 0 {
		return faults
	}
	s.sets[typ] = append(s.sets[typ], assignment{path: field.Path, node: node, slot: -1, programs: []*expr.Program{p}})
	return nil
}

// Schemas implements [FieldAdder].
func (s *enrich) Schemas() []*codec.Schema { return s.grown }

func (s *enrichStage) Reads(typ int) [][]string { return s.paths(typ, 0) }

// paths returns the fields that the expressions for a type read in a view.
func (s *enrich) paths(typ, view int) (paths [][]string) {
	for i := range s.sets[typ] {
		for _, p := range s.sets[typ][i].programs {
			paths = append(paths, p.Paths(view)...)
		}
	}
	return paths
}

// Writes returns the fields that are set in events of a type.
func (s *enrich) Writes(typ int) (paths [][]string) {
	for _, a := range s.sets[typ] {
		paths = append(paths, a.path)
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
				fields = append(fields, a.path)
			default:
				fields = append(fields, append(slices.Clone(a.path), string(a.keys[k])))
			}
		}
	}
	return fields
}

// Ensures implements [Ensurer].
func (s *enrichStage) Ensures(typ int) (known expr.Facts) {
	for _, a := range s.sets[typ] {
		path := strings.Join(a.path, ".")
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
	c := &enrich{sets: make([][]assignment, len(s.sets)), grown: s.grown}
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
	s.scope.Reset(e.Started, &e.View)
	return verdict(s.apply(e))
}

// apply sets the fields of an event. The caller resets the scope to the event first.
func (s *enrich) apply(e *pipeline.Event) (err error) {
	sets := s.sets[e.Type]
	for i := range sets {
		a := &sets[i]
		if a.keys == nil {
			a.result, err = appendIn(&s.scope, e, a.programs[0])
		} else {
			n := len(e.Arena)
			e.Arena, err = a.update.Append(e.Arena, &s.scope, e.Get(a.slot))
			a.result = e.Arena[n:len(e.Arena):len(e.Arena)]
		}
		if err != nil {
			return err
		}
	}
	for i := range sets {
		e.Set(sets[i].slot, sets[i].result)
	}
	return nil
}
