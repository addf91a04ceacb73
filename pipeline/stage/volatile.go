package stage

import (
	"time"

	"millrace/pipeline/expr"
)

// Volatile returns the effects of a stage that can differ when the same event is
// processed again. It calls the stage's method, see [Built].
func Volatile(b Built, typ int) (fields [][]string, fate bool) { return b.Volatile(typ) }

// A FieldSetter is a stage that sets fields within the leaves of [Built].Writes, in records
// that can be null.
type FieldSetter interface {
	// Sets returns the paths of the fields that the stage sets in events of a type.
	Sets(typ int) [][]string
}

// Sets returns the paths of the fields that a stage sets in events of a type.
func Sets(b Built, typ int) [][]string {
	if s, ok := b.(FieldSetter); ok {
		return s.Sets(typ)
	}
	return b.Writes(typ)
}

// clocked reports whether a program depends on now(). It can be nil.
func clocked(p *expr.Program) bool { return p != nil && p.UsesNow() }

// Retention returns the duration for which a [Keeper] keeps the id of an event in its
// state, or 0 if the stage has no such limit.
func Retention(b Built) time.Duration {
	if s, ok := b.(*dedupe); ok {
		return time.Duration(s.within) * time.Millisecond
	}
	return 0
}
