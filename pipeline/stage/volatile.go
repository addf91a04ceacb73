package stage

import (
	"slices"
	"time"

	"millrace/pipeline/expr"
)

// Volatile says what a stage does to events of a type that may come out
// otherwise when the same event is handled again: fields that follow from now(),
// from a table's rows or from a service's answer, as paths (the last step may be
// a key of a map), and whether the fate of the event does.
func Volatile(b Built, typ int) (fields [][]string, fate bool) {
	switch s := b.(type) {
	case *enrichStage:
		return s.volatile(typ), false
	case *filter:
		return nil, clocked(s.conds[typ])
	case *assert:
		return nil, clocked(s.conds[typ])
	case *rekey:
		return nil, clocked(s.keys[typ])
	case *dedupe:
		return nil, clocked(s.ids[typ])
	case *route:
		return nil, slices.ContainsFunc(s.cases[typ], func(c routeCase) bool { return clocked(c.when) })
	case *split:
		return s.set.volatile(typ), false
	case *upcast:
		return s.set.volatile(typ), false
	case *lookup:
		return s.Writes(typ), s.keys[typ] != nil && s.policy != missingKeep
	case *call:
		return s.Writes(typ), s.urls[typ] != nil
	}
	return nil, false
}

func clocked(p *expr.Program) bool { return p != nil && p.Clocked() }

func (s *enrich) volatile(typ int) (fields [][]string) {
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

// Remembers returns the duration for which a [Keeper] keeps the id of an event in its
// state, or 0 if the stage has no such limit.
func Remembers(b Built) time.Duration {
	if s, ok := b.(*dedupe); ok {
		return time.Duration(s.within) * time.Millisecond
	}
	return 0
}
