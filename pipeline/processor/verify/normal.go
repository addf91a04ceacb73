package verify

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// normalize determines the fields that cannot be compared, and sets normals.
func (c *comparison) normalize() error {
	fields := map[string][][]string{}
	schemas := map[string]*codec.Schema{}
	ignored, fates := map[string]bool{}, map[string]bool{}
	for _, pl := range c.sources {
		for typ, s := range pl.Output {
			if !pl.Emits[typ] {
				continue
			}
			schemas[s.Name()] = s
			volatile, deciding := volatileFields(pl, typ)
			fields[s.Name()] = append(fields[s.Name()], volatile...)
			for _, path := range volatile {
				ignored[s.ShortName()+"."+strings.Join(path, ".")] = true
			}
			for _, name := range deciding {
				if pl == c.pl {
					fates[name] = true
				}
			}
			c.guessed = c.guessed || !c.services && decidesByService(pl, typ)
		}
	}
	c.report.Ignored = append(c.report.Ignored, slices.Sorted(maps.Keys(ignored))...)
	for _, name := range slices.Sorted(maps.Keys(fates)) {
		c.note("stage %s depends on now(), a table or a service: its decisions in this run may differ from the original ones", name)
	}
	c.normals = map[string]*normal{}
	for name, paths := range fields {
		if len(paths) == 0 {
			continue
		}
		n, err := newNormal(schemas[name], paths)
		if err != nil {
			return err
		}
		c.normals[name] = n
	}
	return nil
}

// volatileFields returns the fields of the output of a type that can differ when the same
// event is processed again, and the stages that can decide differently. Both depend on
// now(), a table or a service, directly or through a field that an earlier stage set.
func volatileFields(pl *topology.Pipeline, typ int) (fields [][]string, deciding []string) {
	for _, s := range pl.Stages {
		if !s.On[typ] {
			continue
		}
		own, fate := stage.Volatile(s.Built, typ)
		if r, ok := s.Built.(stage.Reshaper); ok && r.Reshaped(typ) != nil {
			follow, decides := r.Follow(typ, fields)
			fields = append(own, follow...) // of the new schema
			if fate || decides {
				deciding = append(deciding, s.Name)
			}
			continue
		}
		if slices.ContainsFunc(s.Built.Reads(typ), func(read []string) bool {
			return slices.ContainsFunc(fields, func(f []string) bool { return overlap(read, f) })
		}) {
			writes := stage.Sets(s.Built, typ)
			own = append(own, writes...)
			fate = fate || len(writes) == 0
		}
		fields = append(fields, own...)
		if fate {
			deciding = append(deciding, s.Name)
		}
	}
	return fields, deciding
}

// decidesByService reports whether a stage decides about events of a type by what a
// service answered: which topic and key they have, or whether they pass at all.
func decidesByService(pl *topology.Pipeline, typ int) bool {
	_, deciding := volatileFields(pl, typ)
	after := false
	for _, s := range pl.Stages {
		if _, asks := s.Built.(stage.Requester); asks {
			after = after || s.On[typ]
		} else if after && slices.Contains(deciding, s.Name) {
			return true
		}
	}
	return false
}

// overlap reports whether one path is a prefix of the other.
func overlap(a, b []string) bool {
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

// A normal removes volatile fields from the bodies of one type.
type normal struct {
	layout *codec.Layout
	leaves []normalLeaf

	view pipeline.View // of the current body
	buf  []byte        // the last result
}

// A normalLeaf is a part of a body that is removed, entirely or in part.
type normalLeaf struct {
	path  []string
	whole bool
	parts []normalPart // in no order; they do not overlap
}

// A normalPart is a field that is or is within a leaf.
type normalPart struct {
	field string        // dotted
	place *within.Place // of the field in the leaf; nil if it is the leaf
	node  *codec.Node
	keys  []raw.Entry // the keys to remove from a map; nil removes the whole field
}

// newNormal returns a normal that removes fields of s. The last step of a field can be the
// key of a map.
func newNormal(s *codec.Schema, fields [][]string) (*normal, error) {
	n := &normal{}
	finder := within.Finder{Schema: s, Word: (*codec.Node).String, Same: func(a, b *codec.Node) bool { return a.String() == b.String() }}
	var paths [][]string
	for _, field := range fields {
		found, fault := finder.Find(strings.Join(field, "."))
		if fault != nil {
			return nil, errors.New(fault.Msg)
		}
		at := slices.IndexFunc(n.leaves, func(l normalLeaf) bool { return slices.Equal(l.path, found.Leaf) })
		if at < 0 {
			at = len(n.leaves)
			n.leaves = append(n.leaves, normalLeaf{path: found.Leaf})
			paths = append(paths, found.Leaf)
		}
		n.leaves[at].add(found)
	}
	var err error
	n.layout, err = codec.NewLayout(s, paths)
	return n, err
}

// add adds a field to what is removed from the leaf.
func (l *normalLeaf) add(found within.Found) {
	part := normalPart{field: strings.Join(found.Path, "."), place: found.Place, node: found.Node}
	if found.Entry {
		part.keys = []raw.Entry{{Key: []byte(found.Key), Value: []byte{}}}
	}
	if l.whole = l.whole || part.place == nil && part.keys == nil; l.whole {
		l.parts = nil
		return
	}
	for i := range l.parts {
		have := &l.parts[i]
		switch {
		case have.field == part.field && have.keys != nil && part.keys != nil:
			if !slices.ContainsFunc(have.keys, func(e raw.Entry) bool { return string(e.Key) == found.Key }) {
				have.keys = append(have.keys, part.keys...)
			}
			return
		case part.field == have.field || strings.HasPrefix(part.field, have.field+".") && have.keys == nil:
			have.keys = nil
			return
		case strings.HasPrefix(have.field, part.field+"."):
			*have = part
			return
		}
	}
	l.parts = append(l.parts, part)
}

// rest returns the leaf without the fields.
func (l *normalLeaf) rest(leaf []byte) ([]byte, error) {
	type cut struct {
		start, end int
		by         []byte
	}
	var cuts []cut
	for _, part := range l.parts {
		c := cut{end: len(leaf)}
		if part.place != nil {
			var ok bool
			var err error
			if c.start, c.end, ok, err = part.place.Span(leaf); err != nil {
				return nil, err
			} else if !ok {
				continue
			}
		}
		if part.keys != nil {
			var err error
			if c.by, err = raw.AppendMap(nil, part.node, leaf[c.start:c.end], part.keys); err != nil {
				return nil, err
			}
		}
		cuts = append(cuts, c)
	}
	slices.SortFunc(cuts, func(a, b cut) int { return b.start - a.start }) // from the end: the earlier places stay valid
	for _, c := range cuts {
		leaf = slices.Concat(leaf[:c.start], c.by, leaf[c.end:])
	}
	return leaf, nil
}

// of returns the body without the fields. The result is valid until the next call. It
// is not Avro, but equal for bodies that differ only in these fields. A body that the
// schema does not fit is returned unchanged. A nil normal removes nothing.
func (n *normal) of(body []byte) []byte {
	if n == nil {
		return body
	}
	if err := n.layout.Walk(body, &n.view); err != nil {
		return body
	}
	for _, leaf := range n.leaves {
		slot := n.layout.Slot(leaf.path...)
		if leaf.whole {
			n.view.Set(slot, nil)
			continue
		}
		rest, err := leaf.rest(n.view.Get(slot))
		if err != nil {
			return body
		}
		n.view.Set(slot, rest)
	}
	n.buf = n.view.Append(n.buf[:0])
	return n.buf
}
