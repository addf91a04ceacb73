package pipeline_test

import (
	"testing"

	"millrace/pipeline"
)

func TestSetOnACopiedViewDoesNotAffectTheOriginal(t *testing.T) {
	var a, b pipeline.View
	a.Reset([]byte("abc"), 2)
	a.SetSpan(0, pipeline.Span{Start: 0, End: 1})
	a.SetSpan(1, pipeline.Span{Start: 2, End: 3})
	a.Set(0, []byte("A"))
	for range 2 { // the second copy reuses the memory of the first
		b.Copy(&a)
		b.Set(1, []byte("C"))
		if got := string(b.Append(nil)); got != "AbC" {
			t.Errorf("the copy is %s, want AbC", got)
		}
		if got := string(a.Append(nil)); got != "Abc" {
			t.Errorf("the original is %s, want Abc", got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { b.Copy(&a) }); n != 0 {
		t.Errorf("%v allocations for a copy, want 0", n)
	}
}
