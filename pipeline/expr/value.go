package expr

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"millrace/pipeline/codec"
	"millrace/pipeline/decimal"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/raw"
)

// decode converts one Avro value to a value of the interpreter, and returns the
// bytes after it. Records stay encoded: a field is decoded when it is read.
func decode(n *codec.Node, b []byte) (ref.Val, []byte, error) {
	switch n.Kind {
	case codec.Null:
		return types.NullValue, b, nil
	case codec.Boolean:
		v, b, err := codec.ReadBool(b)
		return types.Bool(v), b, err
	case codec.Int, codec.Long:
		v, b, err := codec.ReadLong(b)
		if err != nil {
			return nil, nil, err
		}
		switch u := unitOf(n); u {
		case noTime:
			return types.Int(v), b, nil
		case timeMillis, timeMicros, timeNanos:
			d, err := toDuration(v, u)
			return types.Duration{Duration: d}, b, err
		default:
			t, err := toInstant(v, u)
			return types.Timestamp{Time: t.time()}, b, err
		}
	case codec.Float:
		v, b, err := codec.ReadFloat(b)
		return types.Double(v), b, err
	case codec.Double:
		v, b, err := codec.ReadDouble(b)
		return types.Double(v), b, err
	case codec.Enum:
		v, b, err := codec.ReadLong(b)
		if err == nil && (v < 0 || v >= int64(len(n.Symbols))) {
			err = raw.ErrBytes
		}
		if err != nil {
			return nil, nil, err
		}
		return types.String(n.Symbols[v]), b, nil
	case codec.String:
		v, b, err := codec.ReadText(b)
		return types.String(v), b, err
	case codec.Bytes, codec.Fixed:
		return decodeBytes(n, b)
	case codec.Array:
		return decodeList(n, b)
	case codec.Map:
		return decodeMap(n, b)
	case codec.Record:
		rest, err := raw.Skip(n, b)
		if err != nil {
			return nil, nil, err
		}
		return &recordVal{n, b[:len(b)-len(rest)]}, rest, nil
	}
	branch, rest, err := codec.ReadLong(b)
	if err == nil && (branch < 0 || branch >= int64(len(n.Branches))) {
		err = raw.ErrBytes
	}
	if err != nil {
		return nil, nil, err
	}
	return decode(n.Branches[branch], rest)
}

// decodeBytes is decode for bytes and fixed, which may hold a decimal or a UUID.
func decodeBytes(n *codec.Node, b []byte) (ref.Val, []byte, error) {
	v := b
	var rest []byte
	var err error
	if n.Kind == codec.Bytes {
		v, rest, err = codec.ReadText(b)
	} else if rest, err = raw.Skip(n, b); err == nil {
		v = b[:n.Size]
	}
	switch {
	case err != nil:
		return nil, nil, err
	case isDecimal(n):
		d, err := readDecimal(n, v)
		return library.Decimal(d), rest, err
	case isUUID(n):
		return types.String(appendUUID(nil, v)), rest, nil
	}
	return types.Bytes(v), rest, nil
}

func decodeList(n *codec.Node, b []byte) (ref.Val, []byte, error) {
	it := raw.ItemsOf(n, b)
	list := []ref.Val{}
	for it.Next() {
		v, _, err := decode(n.Elem, it.Value)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, v)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, list), it.Rest, it.Err
}

func decodeMap(n *codec.Node, b []byte) (ref.Val, []byte, error) {
	it := raw.ItemsOf(n, b)
	m := map[string]ref.Val{}
	for it.Next() {
		v, _, err := decode(n.Elem, it.Value)
		if err != nil {
			return nil, nil, err
		}
		m[string(it.Key)] = v
	}
	return types.NewMap(types.DefaultTypeAdapter, m), it.Rest, it.Err
}

// A recordVal is a record inside an array, a map or a union, as a value of the
// interpreter. enc refers to the body of the event.
type recordVal struct {
	node *codec.Node
	enc  []byte
}

// Get returns the value of a field.
func (r *recordVal) Get(index ref.Val) ref.Val {
	b := r.enc
	for i := range r.node.Fields {
		f := &r.node.Fields[i]
		if types.String(f.Name) == index {
			v, _, err := decode(f.Type, b)
			if err != nil {
				return types.WrapErr(err)
			}
			return v
		}
		var err error
		if b, err = raw.Skip(f.Type, b); err != nil {
			return types.WrapErr(err)
		}
	}
	return types.NewErr("%s has no field %v", r.node.Name, index.Value())
}

// IsSet reports whether a field is not null; CEL calls it for has(record.field).
func (r *recordVal) IsSet(field ref.Val) ref.Val {
	v := r.Get(field)
	if types.IsError(v) {
		return v
	}
	return types.Bool(v != types.NullValue)
}

// Equal compares two records field by field. The schemas may differ.
func (r *recordVal) Equal(other ref.Val) ref.Val {
	o, ok := other.(*recordVal)
	if !ok || len(o.node.Fields) != len(r.node.Fields) {
		return types.False
	}
	for i := range r.node.Fields {
		name := types.String(r.node.Fields[i].Name)
		if types.Equal(r.Get(name), o.Get(name)) != types.True {
			return types.False
		}
	}
	return types.True
}

func (r *recordVal) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("a record of type %s cannot be converted to %v", r.node.Name, t)
}

func (r *recordVal) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return r.Type().(ref.Val)
	}
	return types.NewErr("a record of type %s cannot be converted to %s", r.node.Name, t.TypeName())
}

func (r *recordVal) Type() ref.Type { return types.NewObjectType(r.node.Name, traits.IndexerType) }
func (r *recordVal) Value() any     { return r }

func toDuration(v int64, u unit) (time.Duration, error) {
	step := 1_000_000_000 / u.perSecond()
	if v > math.MaxInt64/step || v < math.MinInt64/step {
		return 0, errors.New("time of day out of range")
	}
	return time.Duration(v * step), nil
}

// A misfit is the error for a value that does not fit the type of a field.
type misfit struct{ msg string }

func (m *misfit) Error() string { return m.msg }

func misfitf(format string, args ...any) error { return &misfit{fmt.Errorf(format, args...).Error()} }

// encode appends a value of the interpreter as Avro of type n.
func encode(dst []byte, n *codec.Node, v ref.Val) ([]byte, error) {
	if n.Kind == codec.Union {
		return encodeUnion(dst, n, v)
	}
	switch v := v.(type) {
	case types.Null:
		if n.Kind == codec.Null {
			return dst, nil
		}
		return dst, errNull
	case types.Bool:
		if n.Kind == codec.Boolean {
			return codec.AppendBool(dst, bool(v)), nil
		}
	case types.Int:
		if enc := intEncoder(n); enc != nil {
			return enc(dst, int64(v))
		}
	case types.Uint:
		if enc := intEncoder(n); enc != nil {
			if v > math.MaxInt64 {
				return dst, misfitf("%d is out of range for %s", uint64(v), n)
			}
			return enc(dst, int64(v))
		}
	case types.Double:
		if enc := floatEncoder(n); enc != nil {
			return enc(dst, float64(v))
		}
	case library.Decimal:
		if enc := decimalEncoder(n); enc != nil {
			return enc(dst, decimal.Decimal(v))
		}
	case types.String:
		if enc := textEncoder(n); enc != nil {
			return enc(dst, []byte(v))
		}
	case types.Bytes:
		if enc := bytesEncoder(n); enc != nil {
			return enc(dst, v)
		}
	case types.Timestamp:
		if enc := timeEncoder(n); enc != nil {
			return enc(dst, instantOf(v.Time))
		}
	case types.Duration:
		if enc := durationEncoder(n); enc != nil {
			return enc(dst, int64(v.Duration))
		}
	case *recordVal:
		if n.Kind == codec.Record {
			return encodeRecord(dst, n, v)
		}
	case traits.Mapper:
		switch n.Kind {
		case codec.Map:
			return encodeMap(dst, n, v)
		case codec.Record:
			return encodeMapAsRecord(dst, n, v)
		}
	case traits.Lister:
		if n.Kind == codec.Array {
			return encodeList(dst, n, v)
		}
	}
	return dst, misfitf("%s does not fit into %s", article(typeWord(v.Type().TypeName())), n)
}

func encodeUnion(dst []byte, n *codec.Node, v ref.Val) ([]byte, error) {
	mark := len(dst)
	_, isNull := v.(types.Null)
	var last error
	for i, branch := range n.Branches {
		if isNull != (branch.Kind == codec.Null) {
			continue
		}
		out, err := encode(codec.AppendLong(dst[:mark], int64(i)), branch, v)
		if err == nil {
			return out, nil
		}
		last = err
	}
	switch {
	case last == nil && isNull:
		return dst[:mark], errNull
	case last == nil || len(n.Branches) > 2:
		return dst[:mark], misfitf("%s does not fit into %s", article(typeWord(v.Type().TypeName())), n)
	}
	return dst[:mark], last
}

func encodeList(dst []byte, n *codec.Node, v traits.Lister) ([]byte, error) {
	size, _ := v.Size().(types.Int)
	if size > 0 {
		dst = codec.AppendLong(dst, int64(size))
	}
	var err error
	for i := types.Int(0); i < size; i++ {
		if dst, err = encode(dst, n.Elem, v.Get(i)); err != nil {
			return dst, fmt.Errorf("item %d: %w", i+1, err)
		}
	}
	return codec.AppendLong(dst, 0), nil
}

func encodeMap(dst []byte, n *codec.Node, v traits.Mapper) ([]byte, error) {
	size, _ := v.Size().(types.Int)
	if size > 0 {
		dst = codec.AppendLong(dst, int64(size))
	}
	// Sort the keys: the same event must always give the same bytes.
	keys, err := sortedKeys(v)
	if err != nil {
		return dst, err
	}
	for _, key := range keys {
		dst = codec.AppendString(dst, key)
		if dst, err = encode(dst, n.Elem, v.Get(types.String(key))); err != nil {
			return dst, fmt.Errorf("entry %q: %w", key, err)
		}
	}
	return codec.AppendLong(dst, 0), nil
}

// Closures and interpreter share the encoders below, so both make the same checks.
// Each function returns nil if no value of its Go type fits n.

func intEncoder(n *codec.Node) func([]byte, int64) ([]byte, error) {
	switch n.Kind {
	case codec.Int:
		if unitOf(n) != noTime {
			return nil
		}
		return func(dst []byte, v int64) ([]byte, error) {
			if v < math.MinInt32 || v > math.MaxInt32 {
				return dst, misfitf("%d is out of range for an Avro int", v)
			}
			return codec.AppendLong(dst, v), nil
		}
	case codec.Long:
		if unitOf(n) != noTime {
			return nil
		}
		return func(dst []byte, v int64) ([]byte, error) { return codec.AppendLong(dst, v), nil }
	}
	if enc := floatEncoder(n); enc != nil {
		single := n.Kind == codec.Float
		return func(dst []byte, v int64) ([]byte, error) {
			f := float64(v)
			if single {
				f = float64(float32(v))
			}
			if f >= 1<<63 || int64(f) != v {
				return dst, misfitf("%d is not exact as %s; to round it, write double(x)", v, article(n.String()))
			}
			return enc(dst, f)
		}
	}
	if enc := decimalEncoder(n); enc != nil {
		return func(dst []byte, v int64) ([]byte, error) { return enc(dst, decimal.FromInt(v)) }
	}
	return nil
}

func floatEncoder(n *codec.Node) func([]byte, float64) ([]byte, error) {
	switch n.Kind {
	case codec.Double:
		return func(dst []byte, v float64) ([]byte, error) { return codec.AppendDouble(dst, v), nil }
	case codec.Float:
		return func(dst []byte, v float64) ([]byte, error) {
			if math.Abs(v) > math.MaxFloat32 && !math.IsInf(v, 0) {
				return dst, misfitf("%g is out of range for an Avro float", v)
			}
			return codec.AppendFloat(dst, float32(v)), nil
		}
	}
	return nil
}

func textEncoder(n *codec.Node) func([]byte, []byte) ([]byte, error) {
	switch {
	case n.Kind == codec.String && n.Logical == "uuid":
		return func(dst, v []byte) ([]byte, error) {
			if !library.ValidUUID(v) {
				return dst, misfitf("%q is not a UUID", v)
			}
			return codec.AppendBytes(dst, v), nil
		}
	case n.Kind == codec.String:
		return func(dst, v []byte) ([]byte, error) { return codec.AppendBytes(dst, v), nil }
	case n.Kind == codec.Enum:
		index := make(map[string]int64, len(n.Symbols))
		for i, s := range n.Symbols {
			index[s] = int64(i)
		}
		return func(dst, v []byte) ([]byte, error) {
			i, ok := index[string(v)]
			if !ok {
				return dst, misfitf("%q is not one of %s", v, listed(n.Symbols, 12))
			}
			return codec.AppendLong(dst, i), nil
		}
	case isUUID(n):
		return func(dst, v []byte) ([]byte, error) {
			if !library.ValidUUID(v) {
				return dst, misfitf("%q is not a UUID", v)
			}
			for _, part := range [][]byte{v[:8], v[9:13], v[14:18], v[19:23], v[24:]} {
				dst, _ = hex.AppendDecode(dst, part)
			}
			return dst, nil
		}
	}
	return nil
}

func bytesEncoder(n *codec.Node) func([]byte, []byte) ([]byte, error) {
	switch {
	case isDecimal(n) || isUUID(n):
		return nil
	case n.Kind == codec.Bytes:
		return func(dst, v []byte) ([]byte, error) { return codec.AppendBytes(dst, v), nil }
	case n.Kind == codec.Fixed:
		return func(dst, v []byte) ([]byte, error) {
			if len(v) != n.Size {
				return dst, misfitf("%d bytes do not fit into %s, which has %d", len(v), n, n.Size)
			}
			return append(dst, v...), nil
		}
	}
	return nil
}

func timeEncoder(n *codec.Node) func([]byte, instant) ([]byte, error) {
	if kindOf(n) != types.TimestampKind {
		return nil
	}
	u := unitOf(n)
	return func(dst []byte, v instant) ([]byte, error) {
		units, err := fromInstant(v, u)
		if err != nil {
			return dst, &misfit{err.Error()}
		}
		return codec.AppendLong(dst, units), nil
	}
}

// durationEncoder encodes a time of day, given as nanoseconds since midnight.
func durationEncoder(n *codec.Node) func([]byte, int64) ([]byte, error) {
	if kindOf(n) != types.DurationKind {
		return nil
	}
	step := 1_000_000_000 / unitOf(n).perSecond()
	return func(dst []byte, v int64) ([]byte, error) {
		if v < 0 || v >= int64(24*time.Hour) {
			return dst, misfitf("%v is not a time of day", time.Duration(v))
		}
		return codec.AppendLong(dst, v/step), nil
	}
}

// sortedKeys returns the keys of a map, which must be strings.
func sortedKeys(m traits.Mapper) ([]string, error) {
	var keys []string
	for it := m.Iterator(); it.HasNext() == types.True; {
		key, ok := it.Next().(types.String)
		if !ok {
			return nil, misfitf("the keys of an Avro map are strings")
		}
		keys = append(keys, string(key))
	}
	slices.Sort(keys)
	return keys, nil
}
