package stage

import "testing"

// Stages embed enrich. If it had a method Volatile, a stage that embeds it would compile
// without its own declaration.
func TestEmbeddedEnrichDeclaresNoVolatileEffects(t *testing.T) {
	if _, ok := any(&enrich{}).(interface {
		Volatile(typ int) (fields [][]string, fate bool)
	}); ok {
		t.Error("enrich has a method Volatile, so stages that embed it inherit its declaration")
	}
}
