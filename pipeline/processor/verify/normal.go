package verify

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
)

// normalize finds out which fields cannot be compared.
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
		}
	}
	c.report.Ignored = append(c.report.Ignored, slices.Sorted(maps.Keys(ignored))...)
	for _, name := range slices.Sorted(maps.Keys(fates)) {
		c.note("stage %s decides by now(), by a table or by a service, which was another answer then: what it did to an event may differ from this run", name)
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

// volatileFields returns the fields of events of a type that may come out
// otherwise each time, and the stages that may decide otherwise: by what they
// ask themselves, or by what an earlier one set.
func volatileFields(pl *topology.Pipeline, typ int) (fields [][]string, deciding []string) {
	for _, s := range pl.Stages {
		if !s.On[typ] {
			continue
		}
		own, fate := stage.Volatile(s.Built, typ)
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

// overlap reports whether one path leads to a part of the other.
func overlap(a, b []string) bool {
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

// normal takes fields out of bodies.
type normal struct {
	layout *codec.Layout
	leaves []normalLeaf

	view pipeline.View
	buf  []byte
}

type normalLeaf struct {
	path []string
	node *codec.Node
	keys []expr.Entry // of a map, what is taken out; nil: the whole leaf
}

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
			n.leaves = append(n.leaves, normalLeaf{path: field[:i], node: node, keys: []expr.Entry{}})
			paths = append(paths, field[:i])
		}
		leaf := &n.leaves[at]
		switch {
		case leaf.keys == nil:
		case i == len(field) || node.Kind != codec.Map:
			leaf.keys = nil
		case !slices.ContainsFunc(leaf.keys, func(e expr.Entry) bool { return string(e.Key) == field[i] }):
			leaf.keys = append(leaf.keys, expr.Entry{Key: []byte(field[i]), Value: []byte{}})
		}
	}
	var err error
	n.layout, err = codec.NewLayout(s, paths)
	return n, err
}

// of returns the body without the fields: no Avro any more, but equal for bodies
// that differ in nothing else. What has another form comes back as it is.
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
		rest, err := expr.AppendMap(nil, leaf.node, n.view.Get(slot), leaf.keys)
		if err != nil {
			return body
		}
		n.view.Set(slot, rest)
	}
	n.buf = n.view.Append(n.buf[:0])
	return n.buf
}
