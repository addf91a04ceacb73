package reshape

import (
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/raw"
	"millrace/pipeline/expr/within"
)

// An Insert sets a field within a value of the new event: an entry of a map, or a field
// below a record that can be null. Where that record is null, it sets nothing. It is
// immutable after Bind and safe for concurrent use.
type Insert struct {
	Leaf  []string      // the path of the leaf that holds the field
	Place *within.Place // of the field in the leaf; nil if it is the leaf
	Field []string      // the path of the field
	Node  *codec.Node   // the type of the field
	Key   []byte        // of the entry that is set in the field, a map; nil: the field is set
	Value Value

	slot int // of the leaf
}

// Scratch is the memory of a stage that reshapes events. One goroutine at a time may use it.
type Scratch struct {
	Resolve resolve.Scratch
	entry   [1]raw.Entry
}

// Path returns the path of the field or the entry.
func (i *Insert) Path() []string {
	if i.Key == nil {
		return i.Field
	}
	return append(slices.Clone(i.Field), string(i.Key))
}

// Bind resolves the leaf to a slot of the layout of the new event.
func (i *Insert) Bind(l *codec.Layout) { i.slot = l.Slot(i.Leaf...) }

// Apply sets the field in a view of the new event. scope and record are those of the old
// one.
func (i *Insert) Apply(e *pipeline.Event, to *pipeline.View, scope *expr.Scope, record []byte, scratch *Scratch) error {
	leaf := to.Get(i.slot)
	start, end := 0, len(leaf)
	if i.Place != nil {
		var ok bool
		var err error
		if start, end, ok, err = i.Place.Span(leaf); err != nil {
			return badBody(err)
		} else if !ok {
			return nil
		}
	}
	value, err := i.Value.Append(e, scope, record, scratch)
	if err != nil {
		return err
	}
	n := len(e.Arena)
	e.Arena = append(e.Arena, leaf[:start]...)
	if i.Key == nil {
		e.Arena = append(e.Arena, value...)
	} else {
		scratch.entry[0] = raw.Entry{Key: i.Key, Value: value}
		if e.Arena, err = raw.AppendMap(e.Arena, i.Node, leaf[start:end], scratch.entry[:]); err != nil {
			return badBody(err)
		}
	}
	e.Arena = append(e.Arena, leaf[end:]...)
	to.Set(i.slot, e.Arena[n:len(e.Arena):len(e.Arena)])
	return nil
}
