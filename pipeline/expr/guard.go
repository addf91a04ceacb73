package expr

import (
	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/wording"
)

// A guard checks that a field has the value that a program relies on. The value of
// "type" is known before the event is read; if the field says something else, a result
// that depends on it would be wrong.
type guard struct {
	field
	record string
	names  []string // the values that the field may have
	// encoded holds the encodings of names: the usual case needs no decoding.
	encoded [][]byte
}

// guards returns a guard for each field of known value that the expression relies on.
// A field that is not a string is not checked.
func (c *compiler) guards() (out []guard) {
	for _, l := range c.relied {
		if l.node.Kind != codec.String || l.record == "" {
			continue
		}
		g := guard{field: field{leaf: l, slot: -1}, record: l.record, names: []string{*l.known, l.record, wording.Snake(*l.known, false), wording.Snake(*l.known, true)}}
		for _, name := range g.names {
			g.encoded = append(g.encoded, codec.AppendString(nil, name))
		}
		out = append(out, g)
	}
	return out
}

// Checks reports whether the program checks the event before it computes its result, so
// that it can reject the event even if the result is known.
func (p *Program) Checks() bool { return len(p.guards) > 0 }

// check returns the rejection of an event whose field has another value.
func (g *guard) check(s *Scope) error {
	if g.slot < 0 {
		return nil // the program is not bound: there is no event
	}
	enc := g.get(s)
	for _, name := range g.encoded {
		if string(enc) == string(name) {
			return nil
		}
	}
	text, _, err := codec.ReadText(enc)
	if err != nil {
		return err
	}
	for _, name := range g.names {
		if string(text) == name {
			return nil
		}
	}
	return pipeline.Reject(pipeline.ReasonExpression,
		"the field %s is %.100q, but the record is a %s, and an expression uses %s as the name of the record; to read the field, write event.%s",
		g.path, text, g.record, g.path, g.path)
}
