package verify

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
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
			writes := s.Built.Writes(typ)
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
	path []string
	node *codec.Node
	keys []raw.Entry // the keys to remove from a map; nil removes the whole leaf
}

// newNormal returns a normal that removes fields of s. A path ends at the first node
// that is not a record.
func newNormal(s *codec.Schema, fields [][]string) (*normal, error) {
	n := &normal{}
	var paths [][]string
	for _, field := range fields {
		node, i := s.Root(), 0
		for ; node.Kind == codec.Record && i < len(field); i++ {
			f := node.Field(field[i])
			if f == nil {
				return nil, fmt.Errorf("%s has no %s", s.Name(), strings.Join(field, "."))
			}
			node = f.Type
		}
		at := slices.IndexFunc(n.leaves, func(l normalLeaf) bool { return slices.Equal(l.path, field[:i]) })
		if at < 0 {
			at = len(n.leaves)
			n.leaves = append(n.leaves, normalLeaf{path: field[:i], node: node, keys: []raw.Entry{}})
			paths = append(paths, field[:i])
		}
		leaf := &n.leaves[at]
		switch {
		case leaf.keys == nil:
		case i == len(field) || node.Kind != codec.Map:
			leaf.keys = nil
		case !slices.ContainsFunc(leaf.keys, func(e raw.Entry) bool { return string(e.Key) == field[i] }):
			leaf.keys = append(leaf.keys, raw.Entry{Key: []byte(field[i]), Value: []byte{}})
		}
	}
	var err error
	n.layout, err = codec.NewLayout(s, paths)
	return n, err
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
		if leaf.keys == nil {
			n.view.Set(slot, nil)
			continue
		}
		rest, err := raw.AppendMap(nil, leaf.node, n.view.Get(slot), leaf.keys)
		if err != nil {
			return body
		}
		n.view.Set(slot, rest)
	}
	n.buf = n.view.Append(n.buf[:0])
	return n.buf
}
