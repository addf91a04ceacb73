package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/raw"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage/access"
)

// A Func is a stage that is written in Go. A program with such stages adds them to the
// kinds with which it loads a topology:
//
//	kinds := stage.Builtin()
//	kinds["go"] = stage.Go(discount, score)
//	plan, err := topology.Load(src, topology.Options{Stages: kinds, ...})
type Func struct {
	Name string // the name in a topology
	Doc  string // full sentences

	// New returns the function that handles events, and declares which of its results
	// are repeatable. It declares the fields of the function with [Read] and [Write].
	// with holds the parameter "with" of the topology. An error becomes a fault of the
	// topology. New is called when the topology is loaded, and again for each session,
	// so only one goroutine uses the function that it returns.
	//
	// An error of [pipeline.Reject] from the function rejects the event; any other
	// error aborts the batch.
	New func(f *Fields, with map[string]string) (pipeline.StageFunc, Volatility, error)
}

// A Volatility declares which results of a Go stage can differ when it processes the same
// event again, for example because they depend on the clock, on random numbers, on a
// service or on state in memory. It has no default: the zero Volatility is a fault of the
// topology.
type Volatility uint8

const (
	// Deterministic: all results depend only on the event and the arguments.
	Deterministic Volatility = iota + 1
	// VolatileFields: the values of the fields that the stage sets can differ. Its
	// verdict, the new key and the topics cannot.
	VolatileFields
	// VolatileFate: all results can differ, including the verdict, the new key and the
	// topics.
	VolatileFate
)

// Go is the stage that runs a Go function, one of funcs.
func Go(funcs ...Func) Kind {
	use := Param{Name: "use", Form: Word, Required: true, Doc: "The name of the function in this program."}
	for _, f := range funcs {
		use.Values = append(use.Values, f.Name)
		use.Doc += " " + f.Name + ": " + f.Doc
	}
	return Kind{
		Name: "go",
		Doc:  "Runs a function written in Go. To register functions, build your own program from the packages of Millrace: see Go in pipeline/stage.",
		Params: []Param{
			use,
			{Name: "with", Form: Texts, Doc: "The arguments of the function, by name."},
		},
		Example: `on: [OrderCreated]
use: tier
with: {gold: 100.0}`,
		Moves: true,
		New:   func(in Input) (Built, []expr.Fault) { return newGo(funcs, in) },
	}
}

type goStage struct {
	Func
	with       map[string]string
	types      []Type
	fields     *Fields // declared by the first call of New, when the topology was loaded
	volatility Volatility
	layouts    []*codec.Layout

	// Owned by the clone.
	process pipeline.StageFunc
	before  pipeline.View // copy of the current event's view, to restore it
}

func newGo(funcs []Func, in Input) (Built, []expr.Fault) {
	use, _ := in.Args.Find("use")
	i := slices.IndexFunc(funcs, func(f Func) bool { return f.Name == use.Value.Text })
	if i < 0 {
		return nil, []expr.Fault{fault(use.Value, "register it with stage.Go", "this program has no Go stage %s", use.Value.Text)}
	}
	s := &goStage{Func: funcs[i], with: map[string]string{}, types: in.Types}
	at := use.Value
	if with, ok := in.Args.Find("with"); ok {
		at = with.Key
		for _, e := range with.Entries {
			s.with[e.Key.Text] = e.Value.Text
		}
	}
	s.fields = &Fields{types: in.Types}
	_, volatility, err := s.New(s.fields, s.with)
	s.volatility = volatility
	var faults []expr.Fault
	for _, f := range s.fields.faults {
		f.Source = use.Value
		faults = append(faults, f)
	}
	switch {
	case err != nil:
		faults = append(faults, fault(at, "", "Go stage %s: %v", s.Name, err))
	case volatility < Deterministic || volatility > VolatileFate:
		faults = append(faults, fault(use.Value, "return stage.Deterministic, stage.VolatileFields or stage.VolatileFate from New",
			"Go stage %s does not declare its volatility", s.Name))
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

func (s *goStage) Reads(typ int) [][]string  { return s.fields.paths(typ, false) }
func (s *goStage) Writes(typ int) [][]string { return s.fields.paths(typ, true) }

// Volatile implements [Built] with the declaration of New.
func (s *goStage) Volatile(typ int) (fields [][]string, fate bool) {
	if !s.types[typ].On || s.volatility == Deterministic {
		return nil, false
	}
	return s.fields.written(typ), s.volatility == VolatileFate
}

func (s *goStage) Bind(layouts []*codec.Layout) (err error) {
	s.layouts = layouts
	s.process, _, err = s.New(&Fields{types: s.types, layouts: layouts}, s.with)
	return err
}

func (s *goStage) Clone() Built {
	clone := &goStage{Func: s.Func, with: s.with, types: s.types, fields: s.fields, volatility: s.volatility}
	if err := clone.Bind(s.layouts); err != nil {
		clone.process = func(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
			return pipeline.Drop, pipeline.Fatal("New of Go stage %s failed for a session, but not before: %w", s.Name, err)
		}
	}
	return clone
}

func (s *goStage) Process(ctx context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if !s.types[e.Type].On {
		return pipeline.Pass, nil
	}
	s.before.Copy(&e.View)
	key, to := e.NewKey, e.To
	done := false
	defer func() {
		if !done { // an error or a panic: restore the event
			e.View.Copy(&s.before)
			e.NewKey, e.To = key, to
		}
	}()
	v, err := s.process(ctx, e)
	done = err == nil
	return v, err
}

// Fields collects the event fields that a [Func] declares.
type Fields struct {
	types    []Type
	layouts  []*codec.Layout // nil during the first declaration, before Bind
	declared []declaredField
	faults   []expr.Fault
}

type declaredField struct {
	typ   int
	path  []string // of the leaf of the schema that is or holds the field
	field []string // of the field
	entry []byte   // the key, if the field is an entry of the leaf; else nil
	write bool
}

// written returns the fields that the stage sets in events of a type. The path of a map
// entry includes its key.
func (f *Fields) written(typ int) (paths [][]string) {
	for _, d := range f.declared {
		switch {
		case d.typ != typ || !d.write:
		case d.entry == nil:
			paths = append(paths, d.field)
		default:
			paths = append(paths, append(slices.Clone(d.field), string(d.entry)))
		}
	}
	return paths
}

// paths returns the leaves with fields that the stage writes, or reads, in events of a
// type.
func (f *Fields) paths(typ int, write bool) (paths [][]string) {
	for _, d := range f.declared {
		if d.typ == typ && d.write == write {
			paths = append(paths, d.path)
		}
	}
	return paths
}

// A Value is a Go type for the value of a field. The Avro types that each Go type can
// hold:
//
//   - int64: int, long and their logical types (a timestamp in its own unit)
//   - float64: float and double
//   - string: string and the symbols of an enum
//   - []byte: the content of bytes, fixed and string
//   - Raw: all types
type Value interface {
	string | []byte | int64 | float64 | bool | Raw
}

// Raw is the Avro encoding of a field, including the branch of a union.
type Raw []byte

// A Reader reads a field.
type Reader[T Value] struct{ slots []slot[T] }

// A Writer sets a field.
type Writer[T Value] struct{ slots []slot[T] }

// Read declares that a stage reads a field in events of all types that the stage
// handles. The path can be a map entry: metadata.source.
func Read[T Value](f *Fields, path string) Reader[T] { return Reader[T]{slots[T](f, path, false)} }

// Write declares that a stage sets a field. The path is as in [Read].
func Write[T Value](f *Fields, path string) Writer[T] { return Writer[T]{slots[T](f, path, true)} }

// Get returns the current value of the field. ok is false if the field or a record around
// it is null, or if the map has no such entry. A []byte or Raw is not copied: it belongs to the event, and
// the caller must not change it.
func (r Reader[T]) Get(e *pipeline.Event) (v T, ok bool) {
	s := &r.slots[e.Type]
	enc := e.Get(s.at)
	if s.place != nil {
		start, end, ok, err := s.place.Span(enc)
		if err != nil || !ok {
			return v, false
		}
		enc = enc[start:end]
	}
	if s.entry != nil {
		var value []byte
		found := false
		for it := codec.ItemsOf(s.node, enc); it.Next(); {
			if bytes.Equal(it.Key, s.entry) {
				value, found = it.Value, true // of duplicate keys, the last one is valid
			}
		}
		if enc = value; !found {
			return v, false
		}
	}
	if s.branch >= 0 {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil || branch != s.branch {
			return v, false
		}
		enc = rest
	}
	return s.get(enc)
}

// Set sets the field. It has no effect if a record around the field is null. If the field's
// type cannot hold the value, the error has [pipeline.ClassReject], with [ReasonGo].
func (w Writer[T]) Set(e *pipeline.Event, v T) error {
	s := &w.slots[e.Type]
	old := e.Get(s.at)
	start, end := 0, len(old)
	if s.place != nil {
		var ok bool
		var err error
		if start, end, ok, err = s.place.Span(old); err != nil {
			return badBody(err)
		} else if !ok {
			return nil
		}
	}
	n := len(e.Arena)
	arena := append(e.Arena, old[:start]...)
	value := len(arena)
	if s.branch >= 0 {
		arena = codec.AppendLong(arena, s.branch)
	}
	arena, err := s.put(arena, v)
	if err != nil {
		return pipeline.Reject(ReasonGo, "%s: %w", s.path, err)
	}
	if s.entry != nil {
		enc := arena[value:len(arena):len(arena)]
		n = len(arena)
		arena = append(arena, old[:start]...)
		if arena, err = raw.AppendMap(arena, s.node, old[start:end], []raw.Entry{{Key: s.entry, Value: enc}}); err != nil {
			return badBody(err)
		}
	}
	e.Arena = append(arena, old[end:]...)
	e.Set(s.at, e.Arena[n:len(e.Arena):len(e.Arena)])
	return nil
}

// ReasonGo is the reason of a rejection if a Go stage sets a field to a value that the
// field's type cannot hold.
const ReasonGo pipeline.Reason = "go"

// A slot describes a field in events of one type and how to read and set it.
type slot[T Value] struct {
	path   string
	at     int           // slot of the leaf in the view
	place  *within.Place // of the field in the leaf; nil if it is the leaf
	node   *codec.Node   // of the field
	entry  []byte        // the key, if the field is an entry of the leaf; else nil
	branch int64         // the branch of the value if it is nullable; else -1
	get    func(enc []byte) (T, bool)
	put    func(dst []byte, v T) ([]byte, error)
}

func slots[T Value](f *Fields, path string, write bool) []slot[T] {
	slots := make([]slot[T], len(f.types))
	for i, t := range f.types {
		if !t.On {
			continue
		}
		target, err := goTarget(t, path, write)
		if err != nil {
			f.fail(t, err)
			continue
		}
		s := slot[T]{path: path, at: -1, place: target.Place, node: target.Node, branch: -1}
		n := target.Node
		if target.Entry {
			n, s.entry = n.Elem, []byte(target.Key)
		}
		var v T
		if _, raw := any(v).(Raw); !raw {
			if other, _, branch, ok := n.Nullable(); ok {
				n, s.branch = other, int64(branch)
			}
		}
		if s.get, s.put = access.Of[T](n, accessRaw); s.get == nil {
			f.fail(t, fmt.Errorf("%s of %s is %s, which cannot be used as a Go %T", path, t.Name, n, v))
			continue
		}
		whole := target.Whole
		if whole == nil {
			whole = target.Path
		}
		f.declared = append(f.declared, declaredField{i, target.Path, whole, s.entry, write})
		if f.layouts != nil {
			s.at = f.layouts[i].Slot(target.Path...)
		}
		slots[i] = s
	}
	return slots
}

// goTarget finds a field. Unlike an expression, a Go stage can read a field that has the
// same value in every event as a regular field.
func goTarget(t Type, path string, write bool) (expr.Target, error) {
	if _, known := t.Consts[path]; !known || write {
		return t.Env.Target(path)
	}
	target := expr.Target{Path: strings.Split(path, "."), Node: t.Schema.Root()}
	for _, name := range target.Path {
		target.Node = target.Node.Field(name).Type
	}
	return target, nil
}

func (f *Fields) fail(t Type, err error) {
	for _, fault := range expr.PlaceErrors(expr.Source{}, t.Name, err) {
		fault.Offset = 0 // it is relative to the path, which is not in the file
		f.faults = append(f.faults, fault)
	}
}

// accessRaw returns the functions that read and write values of an Avro type as [Raw].
func accessRaw(n *codec.Node) (get, put any) {
	return func(enc []byte) (Raw, bool) { return enc, true },
		func(dst []byte, v Raw) ([]byte, error) {
			if err := codec.Validate(n, v); err != nil {
				return dst, fmt.Errorf("the bytes are not a valid %s: %w", n, errors.Unwrap(err))
			}
			return append(dst, v...), nil
		}
}
