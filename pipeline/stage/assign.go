package stage

import (
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
)

// An assignment computes the new value of a field: the whole value or, for a map, some
// of its entries.
type assignment struct {
	path     []string        // of the leaf that is or holds the field
	place    *within.Place   // of the field in the leaf; nil if it is the leaf
	field    []string        // the path of the field
	node     *codec.Node     // of the field
	slot     int             // of the leaf
	programs []*expr.Program // one for the whole value, or one per key
	keys     [][]byte        // of the entries to set; nil: the whole value is set
	before   int             // the index of the assignment before this one in the same leaf; -1: none
	update   *expr.MapUpdate // sets the entries; owned by the clone
	result   []byte          // the leaf for the current event; nil: the event has no such field; owned by the clone
}

// assign compiles one assignment for one type.
func (s *enrich) assign(typ int, t Type, given Entry) []expr.Fault {
	target, err := t.Env.Target(given.Key.Text)
	if err != nil {
		return expr.PlaceErrors(given.Key, t.Name, err)
	}
	p, faults := t.Env.Also(target.There).CompileAt(given.Value, t.Name, target.Want())
	if len(faults) > 0 {
		return faults
	}
	before, path := -1, strings.Join(target.Whole, ".")
	for i := range s.sets[typ] {
		a := &s.sets[typ][i]
		switch {
		case !slices.Equal(a.path, target.Path):
		case !slices.Equal(a.field, target.Whole):
			if overlap(a.field, target.Whole) {
				return []expr.Fault{fault(given.Key, "set one of them", "%s and %s overlap", strings.Join(a.field, "."), path)}
			}
			before = i
		case a.keys == nil || !target.Entry:
			return []expr.Fault{fault(given.Key, "", "%s is set twice", path)}
		default:
			a.keys, a.programs = append(a.keys, []byte(target.Key)), append(a.programs, p) // the key is new: a mapping has no duplicate paths
			return nil
		}
	}
	a := assignment{path: target.Path, place: target.Place, field: target.Whole, node: target.Node, slot: -1, programs: []*expr.Program{p}, before: before}
	if target.Entry {
		a.keys = [][]byte{[]byte(target.Key)}
	}
	s.sets[typ] = append(s.sets[typ], a)
	return nil
}

// apply sets the fields of an event. The caller resets the scope to the event first.
func (s *enrich) apply(e *pipeline.Event) (err error) {
	sets := s.sets[e.Type]
	for i := range sets {
		a := &sets[i]
		switch {
		case a.place != nil:
			err = s.splice(e, sets, a)
		case a.keys == nil:
			a.result, err = appendIn(&s.scope, e, a.programs[0])
		default:
			n := len(e.Arena)
			e.Arena, err = a.update.Append(e.Arena, &s.scope, e.Get(a.slot))
			a.result = e.Arena[n:len(e.Arena):len(e.Arena)]
		}
		if err != nil {
			return err
		}
	}
	for i := range sets {
		if a := &sets[i]; a.result != nil || a.place == nil {
			e.Set(a.slot, a.result)
		}
	}
	return nil
}

// splice computes the leaf with the new value of a field within it. If the event has no
// such field, the expressions are not evaluated.
func (s *enrich) splice(e *pipeline.Event, sets []assignment, a *assignment) error {
	leaf := e.Get(a.slot)
	for i := a.before; i >= 0; i = sets[i].before {
		if sets[i].result != nil {
			leaf = sets[i].result
			break
		}
	}
	a.result = nil
	start, end, ok, err := a.place.Span(leaf)
	switch {
	case err != nil:
		return badBody(err)
	case !ok:
		return nil
	}
	n := len(e.Arena)
	e.Arena = append(e.Arena, leaf[:start]...)
	if a.keys == nil {
		e.Arena, err = a.programs[0].AppendIn(&s.scope, e.Arena)
	} else {
		e.Arena, err = a.update.Append(e.Arena, &s.scope, leaf[start:end])
	}
	if err != nil {
		e.Arena = e.Arena[:n]
		return err
	}
	e.Arena = append(e.Arena, leaf[end:]...)
	a.result = e.Arena[n:len(e.Arena):len(e.Arena)]
	return nil
}
