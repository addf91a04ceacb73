package stage

import (
	"time"

	"millrace/pipeline/expr"
)

// Volatile returns the effects of a stage that can differ when the same event is
// processed again. It calls the stage's method, see [Built].
func Volatile(b Built, typ int) (fields [][]string, fate bool) { return b.Volatile(typ) }

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
