package fold

import (
	"bytes"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
)

// A Differ compares two states field by field. It holds scratch memory; one
// goroutine at a time may use it.
type Differ struct {
	layout        *codec.Layout // of every field that is not a record
	zero          []byte        // a state with all defaults
	before, after pipeline.View
}

// NewDiffer returns a Differ for the states of the fold.
func (f *Fold) NewDiffer() *Differ { return &Differ{layout: f.leaves, zero: f.zero} }

// Changed returns the dotted paths of the fields that differ, in the order of the
// schema. An empty slice is a state in which every field has its default.
func (d *Differ) Changed(before, after []byte) ([]string, error) {
	for _, s := range []struct {
		state []byte
		view  *pipeline.View
	}{{before, &d.before}, {after, &d.after}} {
		if len(s.state) == 0 {
			s.state = d.zero
		}
		if err := d.layout.Walk(s.state, s.view); err != nil {
			return nil, err
		}
	}
	var paths []string
	for i := range d.layout.Len() {
		if !bytes.Equal(d.before.Get(i), d.after.Get(i)) {
			paths = append(paths, d.layout.Path(i))
		}
	}
	return paths, nil
}

// Leaves returns the dotted paths of all fields of the state that are not records,
// in the order of the schema.
func (f *Fold) Leaves() []string {
	paths := make([]string, f.leaves.Len())
	for i := range paths {
		paths[i] = f.leaves.Path(i)
	}
	return paths
}

// leafPaths returns the paths of all fields that are not records. Each path starts
// with the names in under.
func leafPaths(n *codec.Node, under []string) (paths [][]string) {
	for i := range n.Fields {
		path := append(slices.Clone(under), n.Fields[i].Name)
		if n.Fields[i].Type.Kind == codec.Record {
			paths = append(paths, leafPaths(n.Fields[i].Type, path)...)
			continue
		}
		paths = append(paths, path)
	}
	return paths
}
