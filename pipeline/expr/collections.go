package expr

import (
	"slices"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
)

// This file compiles lists, maps and records as results. CEL cannot construct
// these records, so a map with field names as keys is a record where the target
// type is a record:
//
//	state.items + [{'product_id': data.product_id, 'quantity': 1}]
//
// Fields without a key take their defaults. [compiler.fit] checks the map field
// by field. CEL's type-checker gets it as dyn: otherwise it would refuse to join a
// list of such maps with a list of records.

const mapInsert = "cel.@mapInsert" // the function that transformMap expands to

// parts calls do with each expression that becomes a part of a value of type n,
// and with the type of that part. It returns false if e has no parts.
func parts(e celast.Expr, n *codec.Node, do func(part celast.Expr, n *codec.Node)) bool {
	n = n.NotNull()
	switch e.Kind() {
	case celast.ListKind:
		if n.Kind != codec.Array {
			return false
		}
		for _, item := range e.AsList().Elements() {
			do(item, n.Elem)
		}
		return true
	case celast.CallKind:
		call := e.AsCall()
		args := call.Args()
		switch name := call.FunctionName(); {
		case name == operators.Conditional && len(args) == 3:
			do(args[1], n)
			do(args[2], n)
			return true
		case name == operators.Add && n.Kind == codec.Array && len(args) == 2:
			do(args[0], n)
			do(args[1], n)
			return true
		case name == "with" && n.Kind == codec.Map && call.IsMemberFunction() && len(args) == 2:
			do(call.Target(), n)
			do(args[1], n.Elem)
			return true
		case name == "without" && n.Kind == codec.Map && call.IsMemberFunction():
			do(call.Target(), n)
			return true
		case name == mapInsert && n.Kind == codec.Map && len(args) == 3:
			do(args[2], n.Elem)
			return true
		}
	case celast.ComprehensionKind: // map, filter, transformMap and similar macros
		c := e.AsComprehension()
		if n.Kind == codec.Array && isIdent(c.Result(), c.AccuVar()) || n.Kind == codec.Map && isIdent(c.Result(), c.AccuVar()) {
			accumulated(c.LoopStep(), c.AccuVar(), func(step celast.Expr) { do(step, n) })
			return true
		}
	case celast.MapKind:
		if n.Kind == codec.Map {
			for _, entry := range e.AsMap().Entries() {
				do(entry.AsMapEntry().Value(), n.Elem)
			}
			return true
		}
	}
	return false
}

// accumulated calls do with each expression that the step of a macro adds to the
// accumulator.
func accumulated(step celast.Expr, accu string, do func(celast.Expr)) {
	if isIdent(step, accu) {
		return
	}
	if step.Kind() == celast.CallKind {
		switch args := step.AsCall().Args(); {
		case step.AsCall().FunctionName() == operators.Conditional:
			accumulated(args[1], accu, do)
			accumulated(args[2], accu, do)
			return
		case step.AsCall().FunctionName() == operators.Add && isIdent(args[0], accu):
			do(args[1])
			return
		}
	}
	do(step)
}

// shape wraps the maps in e that are records in dyn().
func (r *resolver) shape(e celast.Expr, n *codec.Node) {
	if parts(e, n, r.shape) {
		return
	}
	if n = n.NotNull(); n.Kind != codec.Record || e.Kind() != celast.MapKind {
		return
	}
	for _, entry := range e.AsMap().Entries() {
		if f := n.Field(entryName(entry)); f != nil {
			r.shape(entry.AsMapEntry().Value(), f.Type)
		}
	}
	inside := r.make.NewUnspecifiedExpr(r.id(e.ID()))
	inside.SetKindCase(e)
	e.SetKindCase(r.make.NewCall(e.ID(), "dyn", inside))
}

// entryName returns the key of a map entry if it is a string literal, else "".
func entryName(entry celast.EntryExpr) string {
	if key := entry.AsMapEntry().Key(); key.Kind() == celast.LiteralKind {
		if name, ok := key.AsLiteral().(types.String); ok {
			return string(name)
		}
	}
	return ""
}

// recordLiteral returns the map inside the dyn() that shape added, if n is a
// record.
func recordLiteral(e celast.Expr, n *codec.Node) (celast.Expr, bool) {
	if n.NotNull().Kind != codec.Record || e.Kind() != celast.CallKind || e.AsCall().FunctionName() != "dyn" {
		return nil, false
	}
	arg := e.AsCall().Args()[0]
	return arg, arg.Kind() == celast.MapKind
}

// fitRecord reports the faults of a map that is a record of type n.
func (c *compiler) fitRecord(e celast.Expr, n *codec.Node, known facts) {
	n = n.NotNull()
	var names []string
	for _, entry := range e.AsMap().Entries() {
		key, value := entry.AsMapEntry().Key(), entry.AsMapEntry().Value()
		name := entryName(entry)
		f := n.Field(name)
		switch {
		case name == "":
			c.fail(c.leftmost(key), "as in {'"+n.Fields[0].Name+"': ...}", "the keys of a %s must be string literals", n.Name)
		case f == nil:
			c.fail(c.leftmost(key), nearest(name, n.FieldNames()), "%s has no field %s", n.Name, name)
		case slices.Contains(names, name):
			c.fail(c.leftmost(key), "", "%s is set twice", name)
		default:
			c.fit(value, place{f.Type, name, n.Name}, known)
		}
		names = append(names, name)
	}
	var missing []string
	for i := range n.Fields {
		f := &n.Fields[i]
		if _, err := codec.AppendDefault(nil, f); err != nil && !slices.Contains(names, f.Name) {
			missing = append(missing, f.Name)
		}
	}
	if len(missing) > 0 {
		c.fail(c.leftmost(e), "", "this %s is missing %s", n.Name, strings.Join(missing, ", "))
	}
}

// becomes reports whether a record of type from converts to type to: every field
// of to has a default, or from has a field of that name that fits. It is Avro's
// schema resolution by name, without aliases.
func (c *compiler) becomes(from, to *codec.Node, depth int) bool {
	if same(from, to) {
		return true
	}
	if depth > maxDepth {
		return false
	}
	for i := range to.Fields {
		f := &to.Fields[i]
		was := from.Field(f.Name)
		if was == nil {
			if _, err := codec.AppendDefault(nil, f); err != nil {
				return false
			}
			continue
		}
		a, b := was.Type.NotNull(), f.Type.NotNull()
		switch {
		case was.Type.HoldsNull() && !f.Type.HoldsNull():
			return false
		case a.Kind == codec.Record && b.Kind == codec.Record:
			if !c.becomes(a, b, depth+1) {
				return false
			}
		case !c.holds(b, c.env.records.celType(a)):
			return false
		}
	}
	return true
}

// encodeFields appends a record of type n. find returns the value of a field; a
// field without a value takes its default.
func encodeFields(dst []byte, n *codec.Node, find func(name string) (ref.Val, bool)) ([]byte, error) {
	for i := range n.Fields {
		f := &n.Fields[i]
		var err error
		if v, ok := find(f.Name); ok {
			dst, err = encode(dst, f.Type, v)
		} else {
			dst, err = codec.AppendDefault(dst, f)
		}
		if err != nil {
			return dst, misfitf("%s of %s: %w", f.Name, n.Name, err)
		}
	}
	return dst, nil
}

// encodeMapAsRecord appends the record that a map of its fields represents.
func encodeMapAsRecord(dst []byte, n *codec.Node, m traits.Mapper) ([]byte, error) {
	keys, err := sortedKeys(m)
	if err != nil {
		return dst, err
	}
	for _, key := range keys {
		if n.Field(key) == nil {
			return dst, misfitf("%s has no field %s", n.Name, key)
		}
	}
	return encodeFields(dst, n, func(name string) (ref.Val, bool) { return m.Find(types.String(name)) })
}

// encodeRecord appends a record, converted to the record type n.
func encodeRecord(dst []byte, n *codec.Node, v *recordVal) ([]byte, error) {
	if same(v.node, n) {
		return append(dst, v.enc...), nil
	}
	return encodeFields(dst, n, func(name string) (ref.Val, bool) {
		if v.node.Field(name) == nil {
			return nil, false
		}
		return v.Get(types.String(name)), true
	})
}

// listAppender compiles a concatenation of array fields, whose items are copied
// as bytes, and of list literals. ok is false for other lists.
func (c *compiler) listAppender(e celast.Expr, n *codec.Node) (enc appender, fixed, ok bool) {
	if n.Kind != codec.Array {
		return nil, false, false
	}
	type part struct {
		array *field   // a whole array; or, if nil,
		items appender // an appender of count items
		count int64
	}
	var list []part
	fixed = true
	var add func(e celast.Expr) bool
	add = func(e celast.Expr) bool {
		if l := c.leafOf(e); l != nil && same(l.node, n) {
			list, fixed = append(list, part{array: c.fields[l.path]}), false
			return true
		}
		switch e.Kind() {
		case celast.ListKind:
			for _, item := range e.AsList().Elements() {
				enc, konst, ok := c.appender(item, n.Elem)
				if !ok {
					return false
				}
				list, fixed = append(list, part{items: enc, count: 1}), fixed && konst
			}
			return len(e.AsList().OptionalIndices()) == 0
		case celast.CallKind:
			args := e.AsCall().Args()
			return e.AsCall().FunctionName() == operators.Add && add(args[0]) && add(args[1])
		}
		return false
	}
	if !add(e) {
		return nil, false, false
	}
	return func(dst []byte, s *Scope) ([]byte, error) {
		count := int64(0)
		for i := range list {
			count += list[i].count
			if f := list[i].array; f != nil {
				it := raw.ItemsOf(n, f.get(s))
				for it.Next() {
					count++
				}
				if it.Err != nil {
					return dst, it.Err
				}
			}
		}
		if count == 0 {
			return append(dst, 0), nil
		}
		dst = codec.AppendLong(dst, count)
		for i := range list {
			if f := list[i].array; f != nil {
				it := raw.ItemsOf(n, f.get(s))
				for it.Next() {
					dst = append(dst, it.Whole...)
				}
				continue
			}
			var err error
			if dst, err = list[i].items(dst, s); err != nil {
				return dst, err
			}
		}
		return append(dst, 0), nil
	}, fixed, true
}
