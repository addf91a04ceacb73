// Package within finds the field that a path names, also within records that can be null,
// and replaces its value in the encoding of the leaf that holds it.
//
// Start at [Find]. A [Place] is immutable and safe for concurrent use.
package within

import (
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
)

// A Place is where a value is within a value of another type: in a branch of a union, or
// in a field of a record.
type Place struct {
	node *codec.Node // the type of the outer value; without next, that of the value itself

	// Of a union: by branch, nil for a branch without the place. Of a record: one, the
	// place in the field.
	next  []*Place
	field int
}

// Span finds the value in enc, an encoded value of the place's type that a walk has
// accepted. ok is false if enc has no such value, because a record on the way is null or
// a union has another branch. An error means that no walk has accepted enc.
func (p *Place) Span(enc []byte) (start, end int, ok bool, err error) {
	rest := enc
	for p.next != nil {
		if p.node.Kind == codec.Union {
			var branch int64
			if branch, rest, err = codec.ReadLong(rest); err != nil {
				return 0, 0, false, err
			}
			if branch < 0 || branch >= int64(len(p.next)) {
				return 0, 0, false, raw.ErrBytes
			}
			if p = p.next[branch]; p == nil {
				return 0, 0, false, nil
			}
			continue
		}
		for i := range p.field {
			if rest, err = raw.Skip(p.node.Fields[i].Type, rest); err != nil {
				return 0, 0, false, err
			}
		}
		p = p.next[0]
	}
	start = len(enc) - len(rest)
	if rest, err = raw.Skip(p.node, rest); err != nil {
		return 0, 0, false, err
	}
	return start, len(enc) - len(rest), true, nil
}
