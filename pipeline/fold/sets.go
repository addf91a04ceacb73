package fold

import (
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
)

// This file holds the assignments of rules. A field of the state can be within records that
// can be null. If one of them is null in a state, the field does not exist: nothing is set,
// and the expression is not evaluated.

type set struct {
	field  within.Field
	slot   int // of its leaf in Fold.layout
	value  *expr.Program
	before int // the index of the set before this one in the same leaf; -1: none
}

// compileSets compiles the assignments of a rule. It returns the paths of the event
// that they read, and appends those of the state to statePaths.
func (t *typeFold) compileSets(r *rule, env *expr.Env, spec Spec, sets []Set, statePaths *[][]string) (paths [][]string, faults []expr.Fault) {
	var done []string // the paths so far
	for _, s := range sets {
		field, more := findField(spec.State, s.Field)
		if len(more) == 0 {
			more = overlaps(done, s.Field)
		}
		if len(more) > 0 {
			faults = append(faults, more...)
			continue
		}
		done = append(done, s.Field.Text)
		known := expr.Facts{}
		for _, path := range field.Above {
			known = known.NotNull("state." + path)
		}
		program, more := env.Also(known).CompileAt(s.Value, t.schema.Name(), expr.Value(field.Node, s.Field.Text, spec.State.Name()))
		if len(more) > 0 {
			faults = append(faults, more...)
			continue
		}
		if unknown := spec.unknown(s.Value, t.schema, program); len(unknown) > 0 {
			faults = append(faults, unknown...)
			continue
		}
		t.metadata.Add(program.Metadata())
		paths = append(paths, program.Paths(0)...)
		*statePaths = append(*statePaths, field.Leaf)
		*statePaths = append(*statePaths, program.Paths(1)...)
		before := -1
		for i := range r.sets {
			if strings.Join(r.sets[i].field.Leaf, ".") == strings.Join(field.Leaf, ".") {
				before = i
			}
		}
		r.sets = append(r.sets, set{field: field, value: program, before: before})
	}
	return paths, faults
}

// findField returns the field of the state that a set names.
func findField(state *codec.Schema, at expr.Source) (within.Field, []expr.Fault) {
	field, fault := within.FieldAt(state, strings.Split(at.Text, "."))
	switch {
	case fault != nil:
		return field, []expr.Fault{{Source: at, Msg: fault.Msg, Hint: fault.Hint}}
	case field.Node.Kind == codec.Record:
		return field, []expr.Fault{{Source: at, Msg: fmt.Sprintf("%s is a record", at.Text), Hint: "set its fields one by one"}}
	}
	return field, nil
}

// overlaps returns the fault of a set of a field that is set before, in whole or in part.
func overlaps(done []string, at expr.Source) []expr.Fault {
	for _, path := range done {
		switch {
		case path == at.Text:
			return []expr.Fault{{Source: at, Msg: fmt.Sprintf("%s is set twice", at.Text)}}
		case strings.HasPrefix(path, at.Text+"."), strings.HasPrefix(at.Text, path+"."):
			return []expr.Fault{{Source: at, Msg: fmt.Sprintf("%s and %s overlap", path, at.Text), Hint: "set one of them"}}
		}
	}
	return nil
}

// compute computes the new values of the leaves into f.arena, and whether the event
// deletes the aggregate, before any field is set: each expression sees the state before
// the event.
func (f *Folder) compute(r *rule) (deletes bool, err error) {
	f.arena, f.sizes = f.arena[:0], f.sizes[:0]
	for i := range r.sets {
		if s := &r.sets[i]; s.field.Optional() {
			err = f.splice(r, s)
		} else {
			f.arena, err = s.value.Append(f.arena, &f.event, &f.state)
		}
		if err != nil {
			return false, err
		}
		f.sizes = append(f.sizes, len(f.arena))
	}
	if r.deleteIf != nil {
		return r.deleteIf.Bool(&f.event, &f.state)
	}
	return r.deletes, nil
}

// splice appends the leaf with the new value of a field within it; nothing if the state has
// no such field.
func (f *Folder) splice(r *rule, s *set) error {
	leaf := f.state.Get(s.slot)
	for i := s.before; i >= 0; i = r.sets[i].before {
		if enc := f.computed(i); len(enc) > 0 {
			leaf = enc
			break
		}
	}
	start, end, ok, err := s.field.Span(leaf)
	if !ok || err != nil {
		return err
	}
	f.arena = append(f.arena, leaf[:start]...)
	if f.arena, err = s.value.Append(f.arena, &f.event, &f.state); err != nil {
		return err
	}
	f.arena = append(f.arena, leaf[end:]...)
	return nil
}

// computed returns the new leaf of a set.
func (f *Folder) computed(i int) []byte {
	start, end := 0, f.sizes[i]
	if i > 0 {
		start = f.sizes[i-1]
	}
	return f.arena[start:end:end]
}

// assign sets the computed leaves in the view of the state.
func (f *Folder) assign(r *rule) {
	for i := range r.sets {
		s := &r.sets[i]
		if enc := f.computed(i); len(enc) > 0 || !s.field.Optional() { // a union has a branch at least
			f.state.Set(s.slot, enc)
		}
	}
}

// Sets returns the dotted paths of the leaves of the state that an event of a type
// sets, in the order of the Spec.
func (f *Fold) Sets(typ int) (paths []string) {
	if typ == Tombstone {
		return nil
	}
	for _, r := range f.types[typ].rules {
		for _, s := range r.sets {
			if path := f.layout.Path(s.slot); !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	return paths
}
