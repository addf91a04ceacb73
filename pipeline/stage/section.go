package stage

import (
	"slices"

	"millrace/pipeline/codec"
)

// A Section is a run of stages that see the events of a type with the same layout.
type Section struct {
	First        int           // the index of its first stage
	Base, Schema *codec.Schema // before and after its stages, which can add fields
	Layout       *codec.Layout
	Rebuilt      bool // its first stage itself gives events this form, see [Rebuilder]
}

// Sections are those of a type, in order: one, and one more for each [Reshaper] and each
// [Rebuilder].
type Sections []Section

// Arriving returns the section of the events that arrive at the stage with an index. It
// is the one of [Sections.At], unless the stage gives its events another form first.
func (s Sections) Arriving(stage int) *Section {
	i := len(s) - 1
	for i > 0 && (s[i].First > stage || s[i].First == stage && s[i].Rebuilt) {
		i--
	}
	return &s[i]
}

// Reshaped reports whether a [Reshaper] gives the events of the type another schema.
func (s Sections) Reshaped() bool {
	return slices.ContainsFunc(s[1:], func(x Section) bool { return !x.Rebuilt })
}

// At returns the section of the stage with an index. The index after the last stage is
// that of the events that left the chain.
func (s Sections) At(stage int) *Section {
	i := len(s) - 1
	for i > 0 && s[i].First > stage {
		i--
	}
	return &s[i]
}

// Last returns the last section.
func (s Sections) Last() *Section { return &s[len(s)-1] }
