// Package fold is the pure part of a projection: the state of an aggregate
// after one more event, and the snapshot that keeps it. It has no clock, no
// randomness and no I/O, so the same events give the same bytes, whenever and
// wherever they are folded.
//
// A [Spec] says which event sets which fields of the state; [Compile] checks it
// against the schemas; a [Folder], one per goroutine, applies events to an
// [Aggregate]. The state stays Avro bytes throughout: setting a field is a
// splice (see pipeline.View). snapshot.go is the form in which an aggregate is
// stored and published.
package fold

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// A Spec is a declared fold.
type Spec struct {
	Name  string          // of the projection
	Types []*codec.Schema // the event types of the topic; an event's type is its index here
	// Key is the path of the aggregate's id in every event that is folded. Of events
	// without an envelope it may be empty: their key is the aggregate's id.
	Key   expr.Source
	State *codec.Schema

	// Bare is of events without an envelope, nil of others.
	Bare *expr.Bare

	On []On

	// MaxState is how many bytes a state may have; DefaultMaxState if it is 0.
	MaxState int
	// AnyPartition says that the aggregate's id does not tell the partition in
	// which its events stand.
	AnyPartition bool

	// Window is of a projection with a state for each key and window.
	Window Window

	// Wait is how far, in offsets of the partition, an event whose sequence number
	// is not the next of its aggregate waits for those that are missing;
	// DefaultWait if it is 0. After that it is applied all the same if ApplyGap,
	// else the aggregate is blocked.
	Wait     int64
	ApplyGap bool
}

// DefaultWait is how long an event waits for the one before it.
const DefaultWait = 1000

// DefaultMaxState leaves a snapshot room in a record of the size that Kafka takes
// if it is not told otherwise.
const DefaultMaxState = 900_000

// On says what an event of one type does.
type On struct {
	Type   int
	Set    []Set
	Delete bool // the aggregate is gone; its last state stays as a fence against late events
}

// Set gives a field of the state a value.
type Set struct {
	Field expr.Source // path of a field, not of a record
	Value expr.Source // over the event's fields, and state.* as it was before the event
}

// A Fold is a checked [Spec]. It is never changed and safe for concurrent use.
type Fold struct {
	name     string
	hash     string
	max      int  // bytes of a state
	anywhere bool // see Spec.AnyPartition
	window   Window
	wait     int64
	applyGap bool
	bare     bool // events have no envelope
	ownKey   bool // the record's key is not the aggregate's id, as the topology says
	state    *codec.Schema
	snapshot *codec.Schema
	layout   *codec.Layout // of the state: what is set or read
	leaves   *codec.Layout // of the state: every field
	zero     []byte
	types    []typeFold
}

type typeFold struct {
	schema *codec.Schema
	folded bool
	delete bool
	layout *codec.Layout // of the event
	key    int           // slots of the event; -1 if the aggregate's id is its key
	bare   expr.BareType // of an event without an envelope
	id     int           // -1 if the event has none
	time   int           // -1 if the event has none
	micros int64         // microseconds in a unit of time
	number int           // the sequence number; -1 if the event has none
	branch int64         // of the union that it is in; -1 if it is in none
	sets   []set
}

type set struct {
	slot  int // of the state
	value *expr.Program
}

// Compile checks a Spec. Faults, if there are any, are all that were found.
func Compile(spec Spec) (*Fold, []expr.Fault) {
	f := &Fold{name: spec.Name, state: spec.State, types: make([]typeFold, len(spec.Types)),
		max: cmp.Or(spec.MaxState, DefaultMaxState), anywhere: spec.AnyPartition,
		window: spec.Window, wait: cmp.Or(spec.Wait, DefaultWait), applyGap: spec.ApplyGap,
		bare: spec.Bare != nil, ownKey: spec.Bare != nil && spec.Bare.Key.Text != ""}
	var faults []expr.Fault
	zero, err := codec.NewRecord(spec.State.Root())
	if err != nil {
		faults = append(faults, expr.Fault{Source: spec.Key, Msg: fmt.Sprintf("the state %s cannot start out empty: %v", spec.State.Name(), err), Hint: "give each of its fields a default"})
	}
	f.zero = zero
	statePaths := [][]string{}
	for _, on := range spec.On {
		faults = append(faults, f.compileType(&f.types[on.Type], spec, on, &statePaths)...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	if f.layout, err = codec.NewLayout(spec.State, statePaths); err != nil {
		return nil, []expr.Fault{{Source: spec.Key, Msg: err.Error()}}
	}
	// The layout above has refused records within themselves.
	if f.leaves, err = codec.NewLayout(spec.State, leafPaths(spec.State.Root(), nil)); err != nil {
		return nil, []expr.Fault{{Source: spec.Key, Msg: err.Error()}}
	}
	for _, on := range spec.On {
		t := &f.types[on.Type]
		for i, s := range on.Set {
			t.sets[i].slot = f.layout.Slot(strings.Split(s.Field.Text, ".")...)
			if err := t.sets[i].value.Bind(t.layout, f.layout); err != nil {
				return nil, expr.Faults(s.Value, spec.Types[on.Type].Name(), err)
			}
		}
	}
	if f.snapshot, err = snapshotSchema(spec.State); err != nil {
		return nil, []expr.Fault{{Source: spec.Key, Msg: err.Error()}}
	}
	f.hash = hash(spec)
	return f, nil
}

// compileType checks what one type of event does, and adds the fields of the
// state that it needs to statePaths.
func (f *Fold) compileType(t *typeFold, spec Spec, on On, statePaths *[][]string) (faults []expr.Fault) {
	schema := spec.Types[on.Type]
	root := schema.Root()
	t.schema, t.folded, t.delete, t.key, t.id, t.time, t.number = schema, true, on.Delete, -1, -1, -1, -1

	var paths [][]string
	var key []string
	if spec.Key.Text != "" || !f.bare {
		key = strings.Split(spec.Key.Text, ".")
		switch n, fault := lookup(root, key); {
		case fault != "":
			return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: fault}}
		case n.Tag != "":
			return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: fmt.Sprintf("%s is encrypted in %s, and cannot be a key", spec.Key.Text, schema.Name())}}
		case n.Kind != codec.String:
			return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: fmt.Sprintf("%s is %s in %s, but a key is a string", spec.Key.Text, n, schema.Name())}}
		}
		paths = append(paths, key)
	}
	consts := map[string]string{"type": root.Name[strings.LastIndexByte(root.Name, '.')+1:]}
	if f.bare {
		if t.bare, faults = spec.Bare.Compile(schema, schema.Name()); len(faults) > 0 {
			return faults
		}
		paths, consts = append(paths, t.bare.Paths()...), nil
	}
	if id := root.Field("id"); id != nil && id.Type.Kind == codec.String && !f.bare {
		paths = append(paths, []string{"id"})
	}
	if ts := root.Field("timestamp"); ts != nil && !f.bare {
		switch ts.Type.Logical {
		case "timestamp-micros":
			t.micros = 1
		case "timestamp-millis":
			t.micros = 1000
		}
		if t.micros > 0 {
			paths = append(paths, []string{"timestamp"})
		}
	}

	if spec.Window.Size > 0 && t.micros == 0 && !f.bare {
		return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: fmt.Sprintf("%s has no timestamp, and a window is one of event time", schema.Name())}}
	}
	numbered := false
	if number := root.Field("sequence"); number != nil && spec.Window.Size == 0 && !f.bare {
		if t.branch = branchOf(number.Type, codec.Long); t.branch >= 0 || number.Type.Kind == codec.Long {
			paths, numbered = append(paths, []string{"sequence"}), true
		}
	}

	env, err := expr.NewEnv(
		expr.Root{Schema: schema, Consts: consts},
		expr.Root{Name: "state", Schema: spec.State, View: 1},
	)
	if err != nil {
		return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: err.Error()}}
	}
	seen := map[string]bool{}
	for _, s := range on.Set {
		path := strings.Split(s.Field.Text, ".")
		n, fault := lookup(spec.State.Root(), path)
		switch {
		case fault != "":
			faults = append(faults, expr.Fault{Source: s.Field, Msg: fault})
			continue
		case n.Kind == codec.Record:
			faults = append(faults, expr.Fault{Source: s.Field, Msg: fmt.Sprintf("%s is a record", s.Field.Text), Hint: "set its fields one by one"})
			continue
		case seen[s.Field.Text]:
			faults = append(faults, expr.Fault{Source: s.Field, Msg: fmt.Sprintf("%s is set twice", s.Field.Text)})
			continue
		}
		seen[s.Field.Text] = true
		program, err := env.Compile(s.Value.Text, expr.Value(n, s.Field.Text, spec.State.Name()))
		if err != nil {
			faults = append(faults, expr.Faults(s.Value, schema.Name(), err)...)
			continue
		}
		paths = append(paths, program.Paths(0)...)
		*statePaths = append(*statePaths, path)
		*statePaths = append(*statePaths, program.Paths(1)...)
		t.sets = append(t.sets, set{value: program})
	}
	if len(faults) > 0 {
		return faults
	}
	if t.layout, err = codec.NewLayout(schema, paths); err != nil {
		return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: err.Error()}}
	}
	if f.bare {
		if err := t.bare.Bind(t.layout); err != nil {
			return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: err.Error()}}
		}
	} else {
		t.id = t.layout.Slot("id")
	}
	if len(key) > 0 {
		t.key = t.layout.Slot(key...)
	}
	if t.micros > 0 {
		t.time = t.layout.Slot("timestamp")
	}
	if numbered {
		t.number = t.layout.Slot("sequence")
	}
	return nil
}

// branchOf returns the number of the branch of a kind in a union, -1 if it has
// none or is no union.
func branchOf(n *codec.Node, kind codec.Kind) int64 {
	return int64(slices.IndexFunc(n.Branches, func(b *codec.Node) bool { return b.Kind == kind }))
}

// lookup follows a path through records.
func lookup(n *codec.Node, path []string) (_ *codec.Node, fault string) {
	for i, name := range path {
		f := n.Field(name)
		if f == nil {
			return nil, fmt.Sprintf("%s has no field %s", n, strings.Join(path[:i+1], "."))
		}
		n = f.Type
	}
	return n, ""
}

// hash identifies what a fold does: states made under another hash are not
// its states. It covers the text of the fold and the schema of the state.
func hash(spec Spec) string {
	h := sha256.New()
	fmt.Fprintf(h, "fold 1\n%s\nkey %q\nstate %q\n", spec.Name, spec.Key.Text, spec.State.String())
	if spec.MaxState > 0 {
		fmt.Fprintf(h, "max %d\n", spec.MaxState)
	}
	if spec.AnyPartition {
		fmt.Fprintf(h, "any partition\n")
	}
	if spec.Window.Size > 0 {
		fmt.Fprintf(h, "window %v\n", spec.Window)
	}
	if spec.Wait > 0 {
		fmt.Fprintf(h, "wait %d\n", spec.Wait)
	}
	if spec.ApplyGap {
		fmt.Fprintf(h, "apply gap\n")
	}
	if b := spec.Bare; b != nil {
		fmt.Fprintf(h, "bare %q %q %q\n", b.ID.Text, b.Time.Text, b.Key.Text)
	}
	on := slices.Clone(spec.On)
	slices.SortFunc(on, func(a, b On) int {
		return strings.Compare(spec.Types[a.Type].Name(), spec.Types[b.Type].Name())
	})
	for _, o := range on {
		fmt.Fprintf(h, "on %q delete %v\n", spec.Types[o.Type].Name(), o.Delete)
		for _, s := range o.Set {
			fmt.Fprintf(h, "set %q = %q\n", s.Field.Text, s.Value.Text)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Name returns the name of the projection.
func (f *Fold) Name() string { return f.name }

// Hash identifies what the fold does, in 32 hexadecimal digits. States made
// under another hash are to be made anew.
func (f *Fold) Hash() string { return f.hash }

// State returns the schema of the state.
func (f *Fold) State() *codec.Schema { return f.state }

// AnyPartition reports whether an aggregate's events may stand in another
// partition than that of its id.
func (f *Fold) AnyPartition() bool { return f.anywhere }

// Bare reports whether the events have no envelope.
func (f *Fold) Bare() bool { return f.bare }

// TellsByKey reports whether the key of a record that cannot be read is taken for
// the id of its aggregate.
func (f *Fold) TellsByKey() bool { return !f.ownKey }

// Window returns the windows of the projection; Size is 0 if it has none.
func (f *Fold) Window() Window { return f.window }

// Wait returns how far, in offsets, an event waits for those before it, and
// whether it is applied after that; else its aggregate is blocked.
func (f *Fold) Wait() (offsets int64, apply bool) { return f.wait, f.applyGap }

// Folds reports whether events of the type do anything.
func (f *Fold) Folds(typ int) bool { return f.types[typ].folded }

// Outcome is what became of an event.
type Outcome uint8

const (
	// Applied: the aggregate has a new version.
	Applied Outcome = iota
	// Late: the aggregate was deleted before, and nothing brings it back.
	Late
	// Duplicate: the event was applied before. A Folder remembers no events, so
	// this is what its caller says of one that it does not apply.
	Duplicate
)

// A Folder applies events. It holds scratch memory: one goroutine at a time.
type Folder struct {
	*Fold
	event pipeline.View
	typ   int
	state pipeline.View

	number   int64 // of the event
	numbered bool
	scope    expr.Scope // these are of an event without an envelope
	id, key  []byte
	time     int64
	arena    []byte
	sizes    []int
	next     []byte // the state that Update makes
}

// NewFolder returns a Folder.
func (f *Fold) NewFolder() *Folder { return &Folder{Fold: f} }

// An Origin is what the record of an event says, which counts for events without
// an envelope whose topic does not say otherwise.
type Origin struct {
	Key  []byte
	Time int64 // in microseconds since 1970
}

// Read takes in an event of a type that the fold [Fold.Folds], and returns the
// aggregate's id, which is valid until body or from changes, or the next Read. An
// error is of pipeline.ClassReject.
func (f *Folder) Read(typ int, body []byte, from Origin) (id []byte, err error) {
	t := &f.types[typ]
	if err := t.layout.Walk(body, &f.event); err != nil {
		return nil, err
	}
	f.typ = typ
	if f.bare {
		if err := f.readBare(from); err != nil {
			return nil, err
		}
	}
	id = f.key
	if t.key >= 0 {
		id, _, err = codec.ReadText(f.event.Get(t.key))
	}
	switch {
	case err != nil:
	case len(id) == 0:
		err = pipeline.Reject(pipeline.ReasonBadBody, "the aggregate's id is empty")
	case len(id) > maxID:
		err = pipeline.Reject(pipeline.ReasonBadBody, "the aggregate's id has %d bytes, at most %d are taken", len(id), maxID)
	case id[0] == 0:
		err = pipeline.Reject(pipeline.ReasonBadBody, "the aggregate's id begins with a zero byte: such keys are those of a projector's own records")
	default:
		f.number, f.numbered, err = f.readNumber()
	}
	return id, err
}

// readBare finds out what an envelope would say.
func (f *Folder) readBare(from Origin) (err error) {
	t := &f.types[f.typ].bare
	f.scope.Reset(time.Time{}, &f.event)
	if f.id, err = t.AppendID(f.id[:0], &f.scope); err != nil {
		return err
	}
	var told bool
	if f.time, told, err = t.Time(&f.scope); err != nil {
		return err
	}
	if !told {
		f.time = from.Time
	}
	if f.key, told, err = t.AppendKey(f.key[:0], &f.scope); err == nil && !told {
		f.key = append(f.key, from.Key...)
	}
	return err
}

// readNumber reads the sequence number of the event.
func (f *Folder) readNumber() (n int64, ok bool, err error) {
	t := &f.types[f.typ]
	if t.number < 0 {
		return 0, false, nil
	}
	enc := f.event.Get(t.number)
	if t.branch >= 0 {
		var branch int64
		if branch, enc, err = codec.ReadLong(enc); err != nil || branch != t.branch {
			return 0, false, err
		}
	}
	if n, _, err = codec.ReadLong(enc); err != nil {
		return 0, false, err
	}
	if n < 1 {
		return 0, false, pipeline.Reject(pipeline.ReasonBadBody, "the sequence number is %d; the first is 1", n)
	}
	return n, true, nil
}

// Number returns the sequence number of the event that was read last, and whether
// it has one.
func (f *Folder) Number() (int64, bool) { return f.number, f.numbered }

// Time returns the time of the event that was read last, in microseconds since
// 1970; 0 if its type has none.
func (f *Folder) Time() int64 {
	t := &f.types[f.typ]
	if f.bare {
		return f.time
	}
	if t.time < 0 {
		return 0
	}
	n, _, err := codec.ReadLong(f.event.Get(t.time))
	if err != nil {
		return 0 // the walk has seen it
	}
	return n * t.micros
}

// maxID bounds an aggregate's id: it is part of many keys.
const maxID = 1024

// Type returns the type of the event that was read last.
func (f *Folder) Type() *codec.Schema { return f.types[f.typ].schema }

// EventID returns the id of the event that was read last, nil if it has none. It
// is valid until body changes, or the next Read.
func (f *Folder) EventID() []byte {
	t := &f.types[f.typ]
	if f.bare {
		return f.id
	}
	if t.id < 0 {
		return nil
	}
	id, _, err := codec.ReadText(f.event.Get(t.id))
	if err != nil {
		return nil // the walk has seen it
	}
	return id
}

// Apply applies the event that was read last to the aggregate. On an error,
// which is of pipeline.ClassReject, the aggregate is as it was. The caller
// fills in where the event stands (Source, Offset).
func (f *Folder) Apply(a *Aggregate) (Outcome, error) { return f.apply(a, nil) }

// Update is [Folder.Apply], but leaves the new state in the memory of the old one,
// if it has room: nobody else may hold it.
func (f *Folder) Update(a *Aggregate) (Outcome, error) {
	mem := a.State[:0]
	result, err := f.apply(a, f.next)
	if err == nil && result == Applied {
		f.next = a.State[:0]
		a.State = append(mem, a.State...)
	}
	return result, err
}

// apply makes the new state in mem, which is not the old one's, or new memory.
func (f *Folder) apply(a *Aggregate, mem []byte) (Outcome, error) {
	if a.Deleted {
		return Late, nil
	}
	t := &f.types[f.typ]
	state := a.State
	if a.Version == 0 {
		state = f.zero
	}
	if err := f.layout.Walk(state, &f.state); err != nil {
		return 0, fmt.Errorf("the state of %s is not one: %w", f.name, err)
	}
	// All values first, then all sets: no value sees another's set.
	f.arena, f.sizes = f.arena[:0], f.sizes[:0]
	for i := range t.sets {
		var err error
		if f.arena, err = t.sets[i].value.Append(f.arena, &f.event, &f.state); err != nil {
			return 0, err
		}
		f.sizes = append(f.sizes, len(f.arena))
	}
	start := 0
	for i, end := range f.sizes {
		f.state.Set(t.sets[i].slot, f.arena[start:end:end])
		start = end
	}
	// Not where the old one is: that may be f.zero, and the view points into it.
	if n := len(state) + len(f.arena); cap(mem) < n {
		mem = make([]byte, 0, n)
	}
	state = f.state.Append(mem[:0])
	if len(state) > f.max {
		return 0, pipeline.Reject(pipeline.ReasonTooLarge, "the state would have %d bytes, at most %d are taken", len(state), f.max)
	}
	a.EventID = append(a.EventID[:0], f.EventID()...)
	a.State = state
	a.EventTime = f.Time()
	if f.numbered {
		// Of an aggregate whose earlier events had no number, nothing is missing.
		if f.number > a.Number+1 && (a.Number > 0 || a.Version == 0) {
			a.Missing += f.number - a.Number - 1
		}
		a.Number = f.number
	}
	a.Version++
	a.Deleted = t.delete
	return Applied, nil
}
