package stage

import "millrace/pipeline/codec"

// A Section is a run of stages that see the events of a type with the same layout.
type Section struct {
	First        int           // the index of its first stage
	Base, Schema *codec.Schema // before and after its stages, which can add fields
	Layout       *codec.Layout
}

// Sections are those of a type, in order: one, and one more for each [Reshaper].
type Sections []Section

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
