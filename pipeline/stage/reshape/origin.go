package reshape

import (
	"fmt"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// An Origin is a record in an event, or a record that may be null. It is immutable after
// Bind and safe for concurrent use.
type Origin struct {
	path   []string
	leaves [][]string // of the event: one that holds the record, or all those of a plain record
	slots  []int      // of the leaves
	hops   []hop      // from the one leaf to the record
	last   *codec.Node
}

// A hop leads into a value: into the branch of a nullable record, or to a field of a
// record.
type hop struct {
	node   *codec.Node // the record whose field it is; nil for a branch
	field  int
	branch int64
}

// NewOrigin returns the record at a path of a schema, and its type. Errors are of type
// [expr.Errors].
func NewOrigin(s *codec.Schema, path string) (*Origin, *codec.Node, error) {
	o := &Origin{path: strings.Split(path, ".")}
	n, leaf := s.Root(), 0 // leaf is the length of the path of the leaf; 0: not reached
	for i, name := range o.path {
		at := -1
		for f := range n.Fields {
			if n.Fields[f].Name == name {
				at = f
			}
		}
		if at < 0 {
			return nil, nil, expr.Errors{{Msg: fmt.Sprintf("%s has no field %s", s.Name(), strings.Join(o.path[:i+1], ".")), Hint: expr.Suggest(name, n.FieldNames())}}
		}
		if leaf > 0 {
			o.hops = append(o.hops, hop{node: n, field: at})
		}
		n = n.Fields[at].Type
		if other, _, branch, ok := n.Nullable(); ok {
			if leaf == 0 {
				leaf = i + 1
			}
			n = other
			o.hops = append(o.hops, hop{branch: int64(branch)})
		}
		if n.Kind != codec.Record {
			return nil, nil, expr.Errors{{Msg: fmt.Sprintf("%s of %s is %s, and from needs a record", strings.Join(o.path[:i+1], "."), s.Name(), n),
				Hint: "name a record, or a record that may be null"}}
		}
	}
	if o.last = n; leaf > 0 {
		o.leaves = [][]string{o.path[:leaf:leaf]}
	} else {
		o.leaves = appendLeaves(nil, n, o.path)
	}
	return o, n, nil
}

// appendLeaves appends the paths of the leaves of a record. A record cannot hold itself
// without a union, an array or a map between.
func appendLeaves(paths [][]string, n *codec.Node, at []string) [][]string {
	for i := range n.Fields {
		path := append(at[:len(at):len(at)], n.Fields[i].Name)
		if t := n.Fields[i].Type; t.Kind == codec.Record {
			paths = appendLeaves(paths, t, path)
		} else {
			paths = append(paths, path)
		}
	}
	return paths
}

// Path returns the path of the record.
func (o *Origin) Path() []string { return o.path }

// Leaves returns the paths of the leaves of the event that hold the record.
func (o *Origin) Leaves() [][]string { return o.leaves }

// Bind resolves the leaves to the slots of a layout.
func (o *Origin) Bind(l *codec.Layout) {
	o.slots = make([]int, len(o.leaves))
	for i, path := range o.leaves {
		o.slots[i] = l.Slot(path...)
	}
}

// Record returns the encoding of the record, or that it is null. A walk has accepted the
// event.
func (o *Origin) Record(e *pipeline.Event) (enc []byte, null bool, err error) {
	if len(o.hops) == 0 { // the encoding of a record is that of its fields
		n := len(e.Arena)
		for _, slot := range o.slots {
			e.Arena = append(e.Arena, e.Get(slot)...)
		}
		return e.Arena[n:len(e.Arena):len(e.Arena)], false, nil
	}
	enc = e.Get(o.slots[0])
	for i := range o.hops {
		h := &o.hops[i]
		if h.node == nil {
			branch, rest, err := codec.ReadLong(enc)
			if err != nil || branch != h.branch {
				return nil, err == nil, err
			}
			enc = rest
			continue
		}
		for f := range h.field {
			if enc, err = codec.Skip(h.node.Fields[f].Type, enc); err != nil {
				return nil, false, err
			}
		}
	}
	rest, err := codec.Skip(o.last, enc)
	if err != nil {
		return nil, false, err
	}
	return enc[: len(enc)-len(rest) : len(enc)-len(rest)], false, nil
}
