package stage

import (
	"context"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
)

// Upcast is the stage that converts events of an older schema or version.
func Upcast() Kind {
	return Kind{
		Name: "upcast",
		Doc: "Converts old events to the current form of their type, when the defaults and aliases of Avro schemas are not sufficient. " +
			"It handles events below a version, or events that were written with an older schema. Other events pass unchanged.",
		Params: []Param{
			{Name: "below", Form: Number, Min: 2, Max: 1_000_000, Doc: "Events with a lower version are converted, and their version is set to this number. Set either below or from."},
			{Name: "from", Form: Word, Doc: "Events that were written with this older schema are converted. It is the name of its file in the schemas directory without .avsc, such as OrderCreated.v1. " +
				"The name of its record determines the event type. Set either from or below."},
			{Name: "set", Form: Assignments, Required: true, Doc: "Maps paths to values, as in enrich. Expressions see the event in its current schema. " +
				"With from, old.PATH is a field of the event in the older schema."},
		},
		Example: `on: [OrderCreated]
below: 2
set: {metadata.currency: "'USD'"}`,
		New: newUpcast,
	}
}

type upcast struct {
	set      enrich
	on       []bool // by type: the stage handles it
	below    int64  // 0: the stage handles events of shape
	versions []int  // by type: the slot of its version

	shape Shape         // its Schema is nil if below is set
	old   int           // the index of the shape, to compare with pipeline.Event.OldType
	view  *codec.Layout // of the shape
}

var versionPath = []string{"version"}

func newUpcast(in Input) (Built, []expr.Fault) {
	below, byVersion := in.Args.Find("below")
	from, byShape := in.Args.Find("from")
	set, _ := in.Args.Find("set")
	switch {
	case byVersion && byShape:
		return nil, []expr.Fault{fault(below.Key, "write one upcast for each", "an upcast takes below or from, not both")}
	case !byVersion && !byShape:
		return nil, []expr.Fault{fault(in.At, "below: VERSION, or from: SCHEMA", "an upcast needs below or from")}
	}
	s := &upcast{
		set: enrich{sets: make([][]assignment, len(in.Types))}, on: make([]bool, len(in.Types)),
		below: below.Number, versions: make([]int, len(in.Types)),
	}
	var faults []expr.Fault
	if len(set.Entries) == 0 {
		faults = append(faults, fault(set.Key, "set: {PATH: EXPRESSION}", "an upcast needs at least one field to set"))
	}
	if byShape {
		return s.done(append(faults, s.fromShape(in, from.Value, set)...))
	}
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		s.on[i] = true
		if f := t.Schema.Root().Field("version"); f == nil || f.Type.Kind != codec.Int && f.Type.Kind != codec.Long {
			faults = append(faults, expr.Fault{Source: below.Key, Type: t.Name, Msg: t.Name + " has no numeric field version", Hint: "use from, or leave the type out of on"})
			continue
		}
		for _, given := range set.Entries {
			if given.Key.Text == versionPath[0] {
				faults = append(faults, fault(given.Key, "remove it", "the stage already sets the version to %d", s.below))
				continue
			}
			faults = append(faults, s.set.assign(i, t, given)...)
		}
	}
	return s.done(faults)
}

func (s *upcast) done(faults []expr.Fault) (Built, []expr.Fault) {
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

// fromShape configures the stage for events of an older schema.
func (s *upcast) fromShape(in Input, from expr.Source, set Arg) (faults []expr.Fault) {
	old, err := in.Schema(from.Text)
	if err != nil {
		return expr.PlaceErrors(from, "", err)
	}
	types := make([]*codec.Schema, len(in.Types))
	for i, t := range in.Types {
		types[i] = t.Schema
	}
	typ, err := codec.BestMatch(old.Root(), types)
	if err != nil {
		return []expr.Fault{fault(from, "", "%s: %v", from.Text, err)}
	}
	if typ < 0 {
		var names []string
		for _, t := range in.Types {
			names = append(names, t.Name)
		}
		return []expr.Fault{fault(from, "there are "+strings.Join(names, ", "), "%s is a schema of %s, which is not an event type of this pipeline", from.Text, old.Name())}
	}
	t := in.Types[typ]
	if !t.On {
		return []expr.Fault{fault(from, "", "%s is a schema of %s, which this stage does not handle", from.Text, t.Name)}
	}
	if codec.SameBytes(old, t.Schema) {
		return []expr.Fault{fault(from, "name an older schema, from a file such as "+t.Name+".v1.avsc", "this is the current schema of %s, so there is nothing to upcast", t.Name)}
	}
	if _, err := resolve.New(old, t.Schema); err != nil {
		return []expr.Fault{fault(from, "give new fields a default, and set them here", "%s cannot be read as %s: %v", from.Text, t.Name, err)}
	}
	if t.Env, err = t.With(expr.Root{Name: "old", Schema: old, View: 1}); err != nil {
		return expr.PlaceErrors(from, t.Name, err)
	}
	for _, given := range set.Entries {
		faults = append(faults, s.set.assign(typ, t, given)...)
	}
	s.on[typ] = true
	s.shape = Shape{Type: typ, Schema: old, Paths: s.set.paths(typ, 1)}
	return faults
}

// Shapes implements [Upcaster].
func (s *upcast) Shapes() []Shape {
	if s.shape.Schema == nil {
		return nil
	}
	return []Shape{s.shape}
}

// BindOld implements [Upcaster].
func (s *upcast) BindOld(first int, layouts []*codec.Layout) error {
	if len(layouts) > 0 {
		s.old, s.view = first, layouts[0]
	}
	return nil
}

func (s *upcast) Reads(typ int) [][]string {
	paths := s.set.paths(typ, 0)
	if s.on[typ] && s.below > 0 {
		paths = append(paths, versionPath)
	}
	return paths
}

func (s *upcast) Writes(typ int) [][]string {
	paths := s.set.Writes(typ)
	if s.on[typ] && s.below > 0 {
		paths = append(paths, versionPath)
	}
	return paths
}

// Sets implements [FieldSetter].
func (s *upcast) Sets(typ int) [][]string {
	paths := s.set.Sets(typ)
	if s.on[typ] && s.below > 0 {
		paths = append(paths, versionPath)
	}
	return paths
}

func (s *upcast) Volatile(typ int) (fields [][]string, fate bool) {
	return s.set.clockedPaths(typ), false
}

func (s *upcast) Bind(layouts []*codec.Layout) error {
	for typ, on := range s.on {
		if !on {
			continue
		}
		s.versions[typ] = layouts[typ].Slot(versionPath...)
		if err := s.set.bind(typ, layouts[typ], s.view); err != nil {
			return err
		}
	}
	return nil
}

func (s *upcast) Clone() Built {
	clone := *s
	clone.set = *s.set.clone()
	return &clone
}

func (s *upcast) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if !s.on[e.Type] {
		return pipeline.Pass, nil
	}
	if s.below == 0 {
		if e.OldType != s.old {
			return pipeline.Pass, nil
		}
		s.set.scope.Reset(e.Started, &e.View, &e.Old)
		return verdict(s.set.apply(e))
	}
	version, _, err := codec.ReadLong(e.Get(s.versions[e.Type]))
	if err != nil {
		return pipeline.Drop, badBody(err)
	}
	if version >= s.below {
		return pipeline.Pass, nil
	}
	s.set.scope.Reset(e.Started, &e.View)
	if err := s.set.apply(e); err != nil {
		return pipeline.Drop, err
	}
	n := len(e.Arena)
	e.Arena = codec.AppendLong(e.Arena, s.below)
	e.Set(s.versions[e.Type], e.Arena[n:len(e.Arena):len(e.Arena)])
	return pipeline.Pass, nil
}
