package expr

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr/library"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/expr/zone"
)

// Limits of one expression.
const (
	maxRunes = 10_000
	maxDepth = 100     // of nesting
	maxLoops = 4       // of nested macros
	maxCost  = 500_000 // of one evaluation by the interpreter, in CEL's units: about one per step
	maxMem   = 4 << 20 // bytes of text that closures build in one evaluation
)

// Names that the resolver inserts for fields, null, now() and invalid parts. No
// source text can contain them. CEL uses names with @ itself, such as @result for the
// accumulator of a macro, so the names of fields have another mark.
const (
	fieldMark = "$"
	nullName  = "@null"
	nowName   = "@now"
	badName   = "@bad"
	isNull    = "@is_null"
)

// An Env holds the names that expressions may use. One goroutine at a time may
// use it; the compiled programs do not refer to it.
type Env struct {
	// Clock returns the time for now(). NewEnv leaves it nil: then expressions
	// have no now(). A fold needs that, because it depends on the log alone.
	Clock func() time.Time

	// Known holds what is known about the event before an expression is evaluated,
	// such as the conditions of earlier stages.
	Known Facts

	warnings *[]Fault // nil: not collected

	roots   []Root
	record  *Root // key and headers; nil if they cannot be read
	zones   *zone.Set
	cel     *cel.Env
	records *records
	leaves  map[string]*leaf // by path, including the name of the root
	members map[string]bool  // functions that are called as x.f()
	globals map[string]bool  // functions that are called as f(x)
}

// A leaf is a field that is not a record.
type leaf struct {
	path  string   // as an expression names it: with the name of the root
	rel   []string // the path within the record of the root
	view  int
	node  *codec.Node
	known *string // the value, if it is the same in every event

	record string        // the name of the root's record, if known is set
	key    *metadata.Key // of a part of the record
}

// NewEnv returns an environment over the fields of the roots. Roots without a
// name share the top level: the first is the event. Only its fields can be set, and
// the other roots hide fields of the same name (see [Root]).
func NewEnv(roots ...Root) (*Env, error) {
	base, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	e := &Env{
		roots:   roots,
		zones:   &zone.Set{},
		records: &records{Registry: base, byName: map[string]*codec.Node{}, names: map[*codec.Node]string{}},
		leaves:  map[string]*leaf{},
		members: map[string]bool{},
		globals: map[string]bool{},
	}
	options := append(library.Options(), []cel.EnvOption{
		cel.CustomTypeAdapter(base),
		cel.CustomTypeProvider(e.records),
		cel.CrossTypeNumericComparisons(true),
		cel.EnableIdentifierEscapeSyntax(),
		cel.EnableMacroCallTracking(),         // for hints that show a macro as it is written
		cel.EnableHiddenAccumulatorName(true), // a field may be named __result__
		cel.DefaultUTCTimeZone(true),
		cel.ParserRecursionLimit(maxDepth),
		cel.ParserExpressionSizeLimit(maxRunes),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
			cel.ValidateComprehensionNestingLimit(maxLoops),
		),
		cel.Variable(nullName, cel.DynType),
		cel.Variable(badName, cel.DynType),
		cel.Variable(nowName, cel.TimestampType),
		cel.Function(isNull, cel.Overload("is_null_any", []*cel.Type{cel.TypeParamType("A")}, cel.BoolType,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return types.Bool(v == types.NullValue) }))),
	}...)
	options = append(options, e.zones.Options()...)
	top := map[string]string{} // the names at top level beside the event, with the schema of each
	for i, r := range roots {
		if r.Schema.Root().Kind != codec.Record {
			return nil, fmt.Errorf("schema %s is not a record", r.Schema.Name())
		}
		if r.Name == "" && i > 0 {
			for _, name := range r.Schema.Root().FieldNames() {
				if of, twice := top[name]; twice {
					return nil, fmt.Errorf("field %s is in both %s and %s", name, of, r.Schema.Name())
				}
				top[name] = r.Schema.Name()
			}
		}
		if err := e.addLeaves(r, r.Schema.Root(), nil); err != nil {
			return nil, err
		}
	}
	if record := e.recordRoot(); record != nil {
		if err := e.addLeaves(*record, record.Schema.Root(), nil); err != nil {
			return nil, err
		}
		e.record = record
	}
	for _, l := range e.leaves {
		options = append(options, cel.Variable(fieldMark+l.path, e.records.celType(l.node)))
	}
	if e.cel, err = cel.NewEnv(options...); err != nil {
		return nil, err
	}
	for name, decl := range e.cel.Functions() {
		for _, o := range decl.OverloadDecls() {
			if o.IsMemberFunction() {
				e.members[name] = true
			} else {
				e.globals[name] = true
			}
		}
	}
	return e, nil
}

func (e *Env) addLeaves(r Root, record *codec.Node, at []string) error {
	if len(at) > maxDepth {
		return fmt.Errorf("schema %s: records are recursive or nested more than %d deep", r.Schema.Name(), maxDepth)
	}
	for i := range record.Fields {
		f := &record.Fields[i]
		rel := append(slices.Clone(at), f.Name)
		if f.Type.Kind == codec.Record {
			if err := e.addLeaves(r, f.Type, rel); err != nil {
				return err
			}
			continue
		}
		path := strings.Join(rel, ".")
		l := &leaf{path: e.pathOf(&r, path), rel: rel, view: r.View, node: f.Type, key: r.Key}
		if known, ok := r.Consts[path]; ok {
			if l.known = &known; !r.NoEvent {
				l.record = r.Schema.Name()
			}
		}
		e.leaves[l.path] = l
	}
	return nil
}

// records is the type provider for CEL. It declares the records inside arrays,
// maps and unions as object types with typed fields.
type records struct {
	*types.Registry
	byName map[string]*codec.Node
	names  map[*codec.Node]string
	misses []miss // failed field lookups, in order
}

// A miss is a lookup of a field that its record does not have.
type miss struct {
	record *codec.Node
	field  string
}

// celType returns the CEL type of values of n.
func (r *records) celType(n *codec.Node) *types.Type {
	if other, _, _, ok := n.Nullable(); ok {
		t := r.celType(other)
		switch t.Kind() {
		case types.BoolKind, types.IntKind, types.DoubleKind, types.StringKind, types.BytesKind:
			return types.NewNullableType(t)
		}
		return t // CEL has no nullable form of these; @is_null compares them with null
	}
	switch kindOf(n) {
	case types.ListKind:
		return types.NewListType(r.celType(n.Elem))
	case types.MapKind:
		return types.NewMapType(types.StringType, r.celType(n.Elem))
	case types.StructKind:
		return types.NewObjectType(r.name(n))
	case types.NullTypeKind:
		return types.NullType
	case types.BoolKind:
		return types.BoolType
	case types.IntKind:
		return types.IntType
	case types.DoubleKind:
		return types.DoubleType
	case types.StringKind:
		return types.StringType
	case types.BytesKind:
		return types.BytesType
	case types.TimestampKind:
		return types.TimestampType
	case types.DurationKind:
		return types.DurationType
	case decimalKind:
		return library.DecimalType
	}
	return types.DynType
}

// name returns the CEL name of a record. It is the Avro name, with a suffix if
// another record already has that name, such as another version of the record
// (one in the event, one in the state).
func (r *records) name(n *codec.Node) string {
	if name, ok := r.names[n]; ok {
		return name
	}
	name := n.Name
	for r.byName[name] != nil && !same(r.byName[name], n) {
		name += "'"
	}
	r.byName[name], r.names[n] = n, name
	return name
}

func (r *records) FindStructType(name string) (*types.Type, bool) {
	if _, ok := r.byName[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return r.Registry.FindStructType(name)
}

func (r *records) FindStructFieldNames(name string) ([]string, bool) {
	n, ok := r.byName[name]
	if !ok {
		return r.Registry.FindStructFieldNames(name)
	}
	return n.FieldNames(), true
}

func (r *records) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	n, ok := r.byName[name]
	if !ok {
		return r.Registry.FindStructFieldType(name, field)
	}
	f := n.Field(field)
	if f == nil {
		r.misses = append(r.misses, miss{n, field})
		return nil, false
	}
	return &types.FieldType{
		Type: r.celType(f.Type),
		IsSet: func(target any) bool {
			v, ok := target.(*recordVal)
			return ok && v.Get(types.String(field)) != types.NullValue
		},
		GetFrom: func(target any) (any, error) {
			v, ok := target.(*recordVal)
			if !ok {
				return nil, errNull
			}
			got := v.Get(types.String(field))
			if err, ok := got.(*types.Err); ok {
				return nil, err
			}
			return got, nil
		},
	}, true
}

// kindOf returns the CEL kind of values of n. The kind of a union is dyn.
func kindOf(n *codec.Node) types.Kind {
	switch n.Kind {
	case codec.Null:
		return types.NullTypeKind
	case codec.Boolean:
		return types.BoolKind
	case codec.Int, codec.Long:
		switch unitOf(n) {
		case noTime:
			return types.IntKind
		case timeMillis, timeMicros, timeNanos:
			return types.DurationKind
		}
		return types.TimestampKind
	case codec.Float, codec.Double:
		return types.DoubleKind
	case codec.String, codec.Enum:
		return types.StringKind
	case codec.Bytes, codec.Fixed:
		switch {
		case isDecimal(n):
			return decimalKind
		case isUUID(n):
			return types.StringKind
		}
		return types.BytesKind
	case codec.Array:
		return types.ListKind
	case codec.Map:
		return types.MapKind
	case codec.Record:
		return types.StructKind
	}
	return types.DynKind
}

// isUUID reports whether n is the 16-byte form of a UUID.
func isUUID(n *codec.Node) bool {
	return n.Kind == codec.Fixed && n.Logical == "uuid" && n.Size == 16
}

// unit is the time unit of an int or long with a logical type.
type unit uint8

const (
	noTime unit = iota
	days
	millis
	micros
	nanos
	timeMillis
	timeMicros
	timeNanos
)

// unitOf returns the unit of an int or long. A logical type on the wrong kind is
// ignored, as the Avro specification requires.
func unitOf(n *codec.Node) unit {
	if n.Kind == codec.Int {
		switch n.Logical {
		case "date":
			return days
		case "time-millis":
			return timeMillis
		}
		return noTime
	}
	switch n.Logical {
	case "timestamp-millis", "local-timestamp-millis":
		return millis
	case "timestamp-micros", "local-timestamp-micros":
		return micros
	case "timestamp-nanos", "local-timestamp-nanos":
		return nanos
	case "time-micros":
		return timeMicros
	case "time-nanos":
		return timeNanos
	}
	return noTime
}

// perSecond returns the number of units per second; 0 for days.
func (u unit) perSecond() int64 {
	switch u {
	case millis, timeMillis:
		return 1e3
	case micros, timeMicros:
		return 1e6
	case nanos, timeNanos:
		return 1e9
	}
	return 0
}
