// Package fold is the pure part of a projection: it computes the state of an
// aggregate after one more event, and encodes the snapshot of that state. It has no
// clock, no randomness and no I/O, so the same events always give the same bytes.
//
// Start reading at [Compile]. A [Spec] declares which event sets which fields of
// the state. Compile checks it against the schemas and returns a [Fold]. A [Folder]
// applies events to an [Aggregate]. The state is always encoded as Avro; setting a
// field is a splice (see pipeline.View). snapshot.go defines the encodings in which
// an aggregate is stored and published.
//
// A Fold is immutable and safe for concurrent use. Each goroutine owns its Folder,
// its Differ and its Aggregates.
package fold

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/identity"
	"millrace/pipeline/keyformat"
)

// A Spec is the declaration of a fold.
type Spec struct {
	Name  string          // of the projection
	Types []*codec.Schema // the event types of the topic; other fields refer to a type by its index
	// Key is the path of the aggregate id in every event that is folded. It may be
	// empty for events without an envelope: then the aggregate id is their key.
	Key   expr.Source
	State *codec.Schema

	// Bare replaces the envelope of events without one. It is nil for events with
	// an envelope.
	Bare *expr.Bare

	On []On

	// MaxState is the maximum size of a state in bytes; 0 means DefaultMaxState.
	MaxState int
	// Keys is the format of the records' keys, and Partitioner assigns the records to
	// partitions by them. AnyPartition means that the aggregate id does not determine the
	// partition of the events; with pipeline.OtherPartitioner, it never does.
	Keys         keyformat.Format
	Partitioner  pipeline.Partitioner
	AnyPartition bool

	// Window, if set, gives the projection one state for each key and window.
	Window Window

	// Wait is the number of offsets of the partition for which an event waits if
	// events before it are missing, by their sequence numbers; 0 means DefaultWait.
	// After that, the event is applied if ApplyGap is set. Otherwise the aggregate
	// is blocked.
	Wait     int64
	ApplyGap bool

	// Tombstones says what a record without a value means. With windows, one that would
	// delete is ignored. UnusualTombstones says that this is not the default of the topic.
	Tombstones        Tombstones
	UnusualTombstones bool

	// Identity is what makes two events the same event; nil means their id. It is always
	// nil with semantics 1.
	Identity identity.Identity

	// PartitionIDs means that the ids of events are compared within the partition.
	// Otherwise they are compared within one aggregate. It is always set with
	// semantics 1.
	PartitionIDs bool

	// Semantics is the meaning of the expressions and of the fold; 0 means
	// that of this release. Compile fails for a meaning that this program does not implement.
	Semantics int
}

// DefaultWait is the default of [Spec.Wait], in offsets.
const DefaultWait = 1000

// DefaultMaxState is the default of [Spec.MaxState], in bytes. A snapshot of that
// size fits in a record under Kafka's default limit.
const DefaultMaxState = 900_000

// On declares the effect of an event of one type: a rule. If a type has several rules,
// the first one applies whose When is true. An event to which none applies is ignored.
type On struct {
	Type   int         // index in Spec.Types
	When   expr.Source // a condition; "" is true
	Set    []Set
	Delete bool // delete the aggregate; its last state stays, so late events are recognized

	// DeleteIf is a condition for Delete; "" is the value of Delete.
	DeleteIf expr.Source
	// Revive says that the event creates a deleted aggregate again, from the initial
	// state and with the next version.
	Revive bool
}

// Set assigns a value to a field of the state.
type Set struct {
	Field expr.Source // path of a field that is not a record
	Value expr.Source // over the fields of the event, and state.* before the event
}

// A Fold is a compiled [Spec]. It is immutable and safe for concurrent use.
type Fold struct {
	spec         Spec // with the defaults of Semantics and PartitionIDs
	name         string
	hash         string
	max          int // bytes of a state
	anyPartition bool
	window       Window
	wait         int64
	applyGap     bool
	tombstones   Tombstones
	revives      bool // some event creates a deleted aggregate again
	bare         bool // events have no envelope
	ownKey       bool // the key of a bare event is an expression, not the key of its record
	state        *codec.Schema
	snapshot     *codec.Schema
	layout       *codec.Layout // of the state: the fields that are set or read
	leaves       *codec.Layout // of the state: every field
	zero         []byte        // a state with all defaults
	types        []typeFold    // by index in Spec.Types
	metadata     metadata.Use  // what the expressions of all types read of records
	warnings     []expr.Fault
}

// A typeFold is the compiled effect of one event type.
type typeFold struct {
	schema *codec.Schema
	folded bool             // the other fields are set
	layout *codec.Layout    // of the event
	bare   expr.BareType    // for an event without an envelope
	same   *identity.Reader // nil if the identity is the id
	rules  []rule

	metadata metadata.Use // what the expressions read of the record
	reads    bool         // they read something of it
	bareKey  bool         // the expressions of bare read the key

	// Slots in layout; -1 for none.
	key    int // the leaf with the aggregate id; -1 if that is the key of the event
	id     int // the event id
	time   int // the event time
	number int // the sequence number

	keyAt    within.Field // the aggregate id in the leaf; a string that may be null
	keyNull  int64        // the branch of null in the aggregate id's union; -1 if it cannot be null
	micros   int64        // microseconds per unit of time
	branch   int64        // the branch of the sequence number in its union; -1 if it is a long
	idBranch int64        // the branch of the event id in its union; -1 if it is a string
}

// A rule is a compiled [On].
type rule struct {
	when     *expr.Program // nil is true
	sets     []set
	deletes  bool
	deleteIf *expr.Program // instead of deletes, if not nil
	revives  bool
}

// Tombstone is the type of a record without a value, for [Folder.Read] and [Fold.Folds].
const Tombstone = -1

// Compile compiles a Spec. It returns either a Fold or all faults that it found.
func Compile(spec Spec) (*Fold, []expr.Fault) {
	spec, faults := spec.withSemantics()
	if len(faults) > 0 {
		return nil, faults
	}
	f := &Fold{spec: spec, name: spec.Name, state: spec.State, types: make([]typeFold, len(spec.Types)),
		max: cmp.Or(spec.MaxState, DefaultMaxState), anyPartition: spec.AnyPartition,
		window: spec.Window, wait: cmp.Or(spec.Wait, DefaultWait), applyGap: spec.ApplyGap,
		tombstones: spec.Tombstones, bare: spec.Bare != nil, ownKey: spec.Bare != nil && spec.Bare.Key.Text != ""}
	zero, err := codec.NewRecord(spec.State.Root())
	if err != nil {
		faults = append(faults, expr.Fault{Source: spec.Key, Msg: fmt.Sprintf("the state %s has no initial value: %v", spec.State.Name(), err), Hint: "give each of its fields a default"})
	}
	f.zero = zero
	if err == nil {
		if err := codec.ValidatePart(spec.State.Root(), zero, stateDepth); err != nil {
			faults = append(faults, expr.Fault{Source: spec.Key, Msg: fmt.Sprintf("the initial value of the state %s: %v", spec.State.Name(), err), Hint: "change the defaults of its fields"})
		}
	}
	statePaths := [][]string{}
	if f.tombstones == DeleteByTombstones && f.window.Size > 0 {
		f.tombstones = IgnoreTombstones
	}
	for typ := range spec.Types {
		if rules := rulesOf(spec, typ); len(rules) > 0 {
			faults = append(faults, f.compileType(&f.types[typ], spec, rules, &statePaths)...)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	if f.layout, err = codec.NewLayout(spec.State, statePaths); err != nil {
		return nil, []expr.Fault{{Source: spec.Key, Msg: err.Error()}}
	}
	// leafPaths terminates: NewLayout above rejects recursive records.
	if f.leaves, err = codec.NewLayout(spec.State, leafPaths(spec.State.Root(), nil)); err != nil {
		return nil, []expr.Fault{{Source: spec.Key, Msg: err.Error()}}
	}
	for typ := range f.types {
		for i, on := range rulesOf(spec, typ) {
			if faults := f.bindRule(&f.types[typ].rules[i], f.types[typ].layout, on, spec.Types[typ].Name()); len(faults) > 0 {
				return nil, faults
			}
		}
	}
	if f.snapshot, err = snapshotSchema(spec.State); err != nil {
		return nil, []expr.Fault{{Source: spec.Key, Msg: err.Error()}}
	}
	f.hash = hash(spec, f.usesZones(), f.metadata)
	return f, nil
}

// compileType compiles the rules of one event type into t, and appends the paths
// of the state that they set or read to statePaths.
func (f *Fold) compileType(t *typeFold, spec Spec, rules []On, statePaths *[][]string) []expr.Fault {
	schema := spec.Types[rules[0].Type]
	t.schema, t.folded, t.key, t.id, t.time, t.number = schema, true, -1, -1, -1, -1
	fault := func(msg string) []expr.Fault {
		return []expr.Fault{{Source: spec.Key, Type: schema.Name(), Msg: msg}}
	}

	var paths [][]string // the fields of the event that the fold reads
	if spec.Key.Text != "" || !f.bare {
		var faults []expr.Fault
		if t.keyAt, faults = findKey(schema, spec.Key); len(faults) > 0 {
			return faults
		}
		paths = append(paths, t.keyAt.Leaf)
	}
	var consts map[string]string
	identified, numbered := false, false
	if f.bare {
		var faults []expr.Fault
		if t.bare, faults = spec.Bare.Compile(schema, schema.Name()); len(faults) > 0 {
			return faults
		}
		t.metadata.Add(t.bare.Metadata())
		t.bareKey = t.metadata.Key
		if faults = spec.unknown(spec.Bare.ID, schema, t.bare.Programs()...); len(faults) > 0 {
			return faults
		}
		paths = append(paths, t.bare.Paths()...)
	} else {
		var envelope [][]string
		envelope, identified, numbered = t.readEnvelope(spec.Window.Size == 0)
		identified = identified && (t.idBranch < 0 || spec.Semantics > 1)
		paths = append(paths, envelope...)
		name := schema.Root().Name
		consts = map[string]string{"type": name[strings.LastIndexByte(name, '.')+1:]}
		if spec.Window.Size > 0 && t.micros == 0 {
			return fault(fmt.Sprintf("%s has no timestamp, but a window needs the time of the event", schema.Name()))
		}
	}

	var faults []expr.Fault
	if t.same, faults = spec.Identity.Compile(schema, spec.Bare, schema.Name()); len(faults) > 0 {
		return faults
	}
	paths = append(paths, t.same.Paths()...)

	env, err := expr.NewEnv(
		expr.Root{Schema: schema, Consts: consts, Key: spec.recordKey(), Later: []string{"prev", "window"}, NoEvent: spec.Semantics == 1},
		expr.Root{Name: "state", Schema: spec.State, View: 1},
	)
	if err != nil {
		return fault(err.Error())
	}
	env = env.Knowing(nil)
	read, faults := t.compileRules(env, spec, rules, numbered, statePaths)
	f.warnings = append(f.warnings, env.Warnings()...)
	if len(faults) > 0 {
		return faults
	}
	t.reads = !t.metadata.None()
	f.metadata.Add(t.metadata)
	f.revives = f.revives || slices.ContainsFunc(rules, func(on On) bool { return on.Revive })
	if err := t.bind(append(paths, read...), identified, numbered); err != nil {
		return fault(err.Error())
	}
	return nil
}

// bind makes the layout of the fields that the fold reads, and resolves the aggregate id
// and the fields of an envelope to slots.
func (t *typeFold) bind(paths [][]string, identified, numbered bool) (err error) {
	if t.layout, err = codec.NewLayout(t.schema, paths); err != nil {
		return err
	}
	if err := errors.Join(t.bare.Bind(t.layout), t.same.Bind(t.layout)); err != nil {
		return err
	}
	if identified {
		t.id = t.layout.Slot("id")
	}
	if t.keyAt.Leaf != nil {
		t.key, t.keyNull = t.layout.Slot(t.keyAt.Leaf...), -1
		if _, null, _, ok := t.keyAt.Node.Nullable(); ok {
			t.keyNull = int64(null)
		}
	}
	if t.micros > 0 {
		t.time = t.layout.Slot("timestamp")
	}
	if numbered {
		t.number = t.layout.Slot("sequence")
	}
	return nil
}

// findKey returns where events have the aggregate id, or the fault of a path that cannot be
// one.
func findKey(schema *codec.Schema, key expr.Source) (at within.Field, faults []expr.Fault) {
	path := key.Text
	at, fault := within.FieldAt(schema, expr.FieldPath(schema, strings.Split(path, ".")))
	bad := func(hint, format string, args ...any) []expr.Fault {
		return []expr.Fault{{Source: key, Type: schema.Name(), Hint: hint, Msg: fmt.Sprintf(format, args...)}}
	}
	switch n := at.Node; {
	case fault != nil:
		return at, bad(fault.Hint, "%s", fault.Msg)
	case n.Tag != "" || n.NotNull().Tag != "":
		return at, bad("", "%s is encrypted in %s, and cannot be a key", path, schema.Name())
	case n.NotNull().Kind != codec.String:
		return at, bad("", "%s is %s in %s, but a key is a string", path, n, schema.Name())
	}
	return at, nil
}

// readEnvelope returns the paths of the event id, the event time and, if sequence is
// set, the sequence number, as far as the type has them. It sets micros and the branches.
func (t *typeFold) readEnvelope(sequence bool) (paths [][]string, identified, numbered bool) {
	root := t.schema.Root()
	if id := root.Field("id"); id != nil {
		if t.idBranch = branchOf(id.Type, codec.String); t.idBranch >= 0 || id.Type.Kind == codec.String {
			paths, identified = append(paths, []string{"id"}), true
		}
	}
	if ts := root.Field("timestamp"); ts != nil {
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
	if number := root.Field("sequence"); number != nil && sequence {
		if t.branch = branchOf(number.Type, codec.Long); t.branch >= 0 || number.Type.Kind == codec.Long {
			paths, numbered = append(paths, []string{"sequence"}), true
		}
	}
	return paths, identified, numbered
}

// branchOf returns the index of the branch of a kind in a union; -1 if there is
// none, or if n is not a union.
func branchOf(n *codec.Node, kind codec.Kind) int64 {
	return int64(slices.IndexFunc(n.Branches, func(b *codec.Node) bool { return b.Kind == kind }))
}

// Name returns the name of the projection.
func (f *Fold) Name() string { return f.name }

// Warnings returns what the expressions do that probably is a mistake.
func (f *Fold) Warnings() []expr.Fault { return f.warnings }

// State returns the schema of the state.
func (f *Fold) State() *codec.Schema { return f.state }

// AnyPartition reports whether the events of an aggregate may be in another
// partition than the partition of its id.
func (f *Fold) AnyPartition() bool { return f.anyPartition }

// Keys returns the format of the records' keys.
func (f *Fold) Keys() keyformat.Format { return f.spec.Keys }

// Partitioner returns what assigns the records to partitions by their keys.
func (f *Fold) Partitioner() pipeline.Partitioner { return f.spec.Partitioner }

// Bare reports whether the events have no envelope.
func (f *Fold) Bare() bool { return f.bare }

// KeyIsAggregateID reports whether the key of a record with an unreadable event is
// assumed to be the id of its aggregate.
func (f *Fold) KeyIsAggregateID() bool { return !f.ownKey }

// Window returns the windows of the projection. Size is 0 if it has no windows.
func (f *Fold) Window() Window { return f.window }

// Wait returns the number of offsets for which an event waits for missing events,
// and whether it is applied after that. Otherwise its aggregate is blocked.
func (f *Fold) Wait() (offsets int64, apply bool) { return f.wait, f.applyGap }

// Folds reports whether events of a type have an effect.
func (f *Fold) Folds(typ int) bool {
	if typ == Tombstone {
		return f.tombstones == DeleteByTombstones
	}
	return f.types[typ].folded
}

// Outcome is the result of applying an event.
type Outcome uint8

const (
	// Applied means that the aggregate has a new version.
	Applied Outcome = iota
	// Late means that the aggregate is deleted, and that the event does not create it
	// again.
	Late
	// Duplicate means that the event was applied before. A Folder does not detect
	// that; its caller does, and does not apply the event.
	Duplicate
	// Ignored means that no rule applies to the event, or that there is nothing for a
	// tombstone to delete.
	Ignored
)

// A Folder applies events to aggregates. It holds scratch memory; one goroutine at
// a time may use it.
type Folder struct {
	*Fold
	event pipeline.View // of the last Read
	typ   int           // of the last Read
	state pipeline.View

	number   int64 // sequence number of the event
	numbered bool  // the event has a sequence number

	// Only for events without an envelope.
	scope   expr.Scope
	id, key []byte
	time    int64 // in microseconds since 1970

	identity, bytes []byte // of the event, if it is not the id: as a text and as bytes

	// Only for events whose expressions read the record.
	record  pipeline.Record   // with Origin.RawKey and the headers
	badKey  error             // why the record has no key of the format
	headers []pipeline.Header // scratch

	arena []byte // the new values of the fields
	sizes []int  // the end of each value in arena
	next  []byte // memory for the next state that Update computes
}

// NewFolder returns a Folder.
func (f *Fold) NewFolder() *Folder { return &Folder{Fold: f} }

// Read reads an event of a type for which [Fold.Folds] is true, and returns the
// aggregate id; of a [Tombstone], that is the key. The id is valid until the next Read, or until body or from changes.
// An error is of pipeline.ClassReject.
func (f *Folder) Read(typ int, body []byte, from Origin) (id []byte, err error) {
	if typ == Tombstone {
		f.typ, f.key, f.time, f.number, f.numbered = typ, append(f.key[:0], from.Key...), from.Time, 0, false
		if from.BadKey != nil {
			return nil, from.BadKey
		}
		return f.key, CheckID(f.key)
	}
	t := &f.types[typ]
	if err := t.layout.Walk(body, &f.event); err != nil {
		return nil, err
	}
	f.typ = typ
	if t.reads {
		f.record.Key, f.record.Headers, f.badKey = from.RawKey, from.Headers, from.BadKey
		f.event.Record, f.event.KeyBody = &f.record, from.RawKey
	}
	if f.bare {
		if err := f.readBare(from); err != nil {
			return nil, err
		}
	}
	if t.same != nil {
		if err := f.readIdentity(from.Headers); err != nil {
			return nil, err
		}
	}
	id = f.key
	if t.key >= 0 {
		id, err = f.readKey(t)
	}
	if err == nil {
		err = f.check(id)
	}
	if err == nil {
		f.number, f.numbered, err = f.readNumber()
	}
	return id, err
}

// readKey reads the aggregate id of an event that has it in a field.
func (f *Folder) readKey(t *typeFold) ([]byte, error) {
	enc, ok, err := t.keyAt.Get(f.event.Get(t.key))
	if err != nil {
		return nil, pipeline.Reject(pipeline.ReasonBadBody, "%s: %w", f.spec.Key.Text, err)
	}
	if !ok {
		return nil, pipeline.Reject(pipeline.ReasonBadBody, "%s, the aggregate id, is missing: %s", f.spec.Key.Text, t.keyAt.Missing())
	}
	if t.keyNull >= 0 {
		var branch int64
		if branch, enc, err = codec.ReadLong(enc); err == nil && branch == t.keyNull {
			return nil, pipeline.Reject(pipeline.ReasonBadBody, "%s, the aggregate id, is null", f.spec.Key.Text)
		}
	}
	if err == nil {
		enc, _, err = codec.ReadText(enc)
	}
	return enc, err
}

// check rejects what could not be read back from a snapshot, or from a window's id.
func (f *Folder) check(id []byte) error {
	if err := CheckID(id); err != nil {
		return err
	}
	eventID := f.EventID()
	if len(eventID) > maxEventID {
		return pipeline.Reject(pipeline.ReasonBadBody, "the event id has %d bytes, the limit is %d", len(eventID), maxEventID)
	}
	if f.bare && !utf8.Valid(eventID) { // with an envelope, Walk has checked it
		return pipeline.Reject(pipeline.ReasonBadBody, "the event id %.40q is not UTF-8", eventID)
	}
	if f.window.Size > 0 && !f.window.hasID(f.Time()) {
		return pipeline.Reject(pipeline.ReasonBadBody, "the event time, %d microseconds since 1970, is outside of the years 1 to 9999, for which there are windows", f.Time())
	}
	return nil
}

// readIdentity sets the identity of the event.
func (f *Folder) readIdentity(headers []pipeline.Header) error {
	if !f.bare {
		f.scope.Reset(time.Time{}, &f.event)
	}
	var err error
	if f.bytes, _, err = f.types[f.typ].same.Append(f.bytes[:0], headers, &f.event, &f.scope); err == nil {
		f.identity = f.spec.Identity.AppendText(f.identity[:0], f.bytes)
	}
	return err
}

// readBare sets the id, the time and the key of an event without an envelope.
func (f *Folder) readBare(from Origin) (err error) {
	t := &f.types[f.typ].bare
	if f.types[f.typ].bareKey && from.BadKey != nil {
		return from.BadKey
	}
	f.scope.Reset(time.Time{}, &f.event)
	if f.id, err = t.AppendID(f.id[:0], &f.scope); err != nil {
		return err
	}
	var ok bool
	if f.time, ok, err = t.Time(&f.scope); err != nil {
		return err
	}
	if !ok {
		f.time = from.Time
	}
	if f.key, ok, err = t.AppendKey(f.key[:0], &f.scope); err == nil && !ok {
		if from.BadKey != nil {
			return from.BadKey
		}
		f.key = append(f.key, from.Key...)
		if err := codec.CheckText(f.key); err != nil {
			return pipeline.Reject(pipeline.ReasonBadBody, "the record key, which is the aggregate id, is not text: %w", err)
		}
	}
	return err
}

// readNumber reads the sequence number of the event. ok is false if it has none.
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

// Number returns the sequence number of the event of the last Read, and whether it
// has one.
func (f *Folder) Number() (int64, bool) { return f.number, f.numbered }

// Time returns the time of the event of the last Read, in microseconds since 1970;
// 0 if its type has no time.
func (f *Folder) Time() int64 {
	if f.bare || f.typ == Tombstone {
		return f.time
	}
	t := &f.types[f.typ]
	if t.time < 0 {
		return 0
	}
	n, _, err := codec.ReadLong(f.event.Get(t.time))
	if err != nil {
		return 0 // impossible: Walk has validated the body
	}
	if t.micros > 1 { // the limits of the result; time.Time has more, which nothing can show
		n = max(math.MinInt64/t.micros, min(n, math.MaxInt64/t.micros))
	}
	return n * t.micros
}

// Maximum sizes of the ids of aggregates and events, in bytes. The id of an aggregate
// is part of many keys. Both are in a snapshot, beside the state.
const (
	maxID      = 1024
	maxEventID = 4096
)

// CheckID rejects text that cannot be the id of an aggregate, such as the key of a
// record that another program wrote. Everything that has an id as its key or contains
// it checks it when it is read and when it is written.
func CheckID(id []byte) error {
	switch {
	case len(id) == 0:
		return pipeline.Reject(pipeline.ReasonBadBody, "the aggregate id is empty")
	case len(id) > maxID:
		return pipeline.Reject(pipeline.ReasonBadBody, "the aggregate id has %d bytes, the limit is %d", len(id), maxID)
	case id[0] == 0:
		return pipeline.Reject(pipeline.ReasonBadBody, "the aggregate id starts with a zero byte, which is reserved for the projector's own records")
	case !utf8.Valid(id):
		return pipeline.Reject(pipeline.ReasonBadBody, "the aggregate id %.40q is not UTF-8", id)
	}
	return nil
}

// CheckStateID is [CheckID] for the key of a snapshot, which names a window if the
// projection has windows.
func (f *Fold) CheckStateID(id []byte) error {
	if f.window.Size > 0 {
		key, _, ok := ParseWindowID(string(id))
		if !ok {
			return pipeline.Reject(pipeline.ReasonBadBody, "%.80q is not the id of a window", id)
		}
		id = []byte(key)
	}
	return CheckID(id)
}

// Type returns the type of the event of the last Read, nil for a tombstone.
func (f *Folder) Type() *codec.Schema {
	if f.typ == Tombstone {
		return nil
	}
	return f.types[f.typ].schema
}

// EventID returns the identity of the event of the last Read as a text, which is the id
// unless the Spec says otherwise; empty if the event has none. It is valid until the next
// Read, or until the body changes.
func (f *Folder) EventID() []byte {
	if f.typ == Tombstone {
		return nil
	}
	t := &f.types[f.typ]
	if t.same != nil {
		return f.identity
	}
	if f.bare {
		return f.id
	}
	if t.id < 0 {
		return nil
	}
	id := f.event.Get(t.id)
	var err error
	if t.idBranch >= 0 {
		var branch int64
		if branch, id, err = codec.ReadLong(id); err != nil || branch != t.idBranch {
			return nil
		}
	}
	if id, _, err = codec.ReadText(id); err != nil {
		return nil // impossible for a string: Walk has validated the body
	}
	return id
}

// Apply applies the event of the last Read to the aggregate. On an error, which is
// of pipeline.ClassReject, the aggregate is unchanged. The caller sets the position
// of the event (Source, Offset).
func (f *Folder) Apply(a *Aggregate) (Outcome, error) { return f.apply(a, nil) }

// ApplyInPlace is [Folder.Apply], but stores the new state in the memory of the old state
// if it fits. The caller must not share that memory.
func (f *Folder) ApplyInPlace(a *Aggregate) (Outcome, error) {
	if f.typ == Tombstone {
		return f.bury(a), nil // the state stays where it is
	}
	mem := a.State[:0]
	result, err := f.apply(a, f.next)
	if err == nil && result == Applied {
		f.next = a.State[:0]
		a.State = append(mem, a.State...)
	}
	return result, err
}

// apply builds the new state in mem, or in new memory if mem is too small. mem must
// not overlap the old state.
func (f *Folder) apply(a *Aggregate, mem []byte) (Outcome, error) {
	if f.typ == Tombstone {
		return f.bury(a), nil
	}
	if a.Deleted && !a.Tombstone && !f.revives {
		return Late, nil
	}
	state := a.State
	if a.Version == 0 || a.Deleted {
		state = f.zero
	}
	if f.badKey != nil && f.types[f.typ].metadata.Key {
		return 0, f.badKey
	}
	if err := f.layout.Walk(state, &f.state); err != nil {
		return 0, fmt.Errorf("read the state of %s: %w", f.name, err)
	}
	r, err := f.choose()
	switch {
	case err != nil:
		return 0, err
	case a.Deleted && !a.Tombstone && (r == nil || !r.revives):
		return Late, nil
	case r == nil:
		return Ignored, nil
	}
	deletes, err := f.compute(r)
	if err != nil {
		return 0, err
	}
	f.assign(r)
	// Do not reuse the memory of the old state: it may be f.zero, and the view
	// refers to it.
	if n := len(state) + len(f.arena); cap(mem) < n {
		mem = make([]byte, 0, n)
	}
	state = f.state.Append(mem[:0])
	if len(state) > f.max {
		return 0, pipeline.Reject(pipeline.ReasonTooLarge, "the new state has %d bytes, the limit is %d", len(state), f.max)
	}
	if f.Fold.state.Open() {
		// The values were checked one by one. Nothing can read the snapshot of a state
		// that is too deep in it.
		if err := codec.ValidatePart(f.Fold.state.Root(), state, stateDepth); err != nil {
			return 0, fmt.Errorf("the new state: %w", err)
		}
	}
	a.EventID = append(a.EventID[:0], f.EventID()...)
	a.State = state
	a.EventTime = f.Time()
	if f.numbered {
		// An aggregate whose earlier events had no number has no gap: the number
		// before this one is unknown.
		if f.number > a.Number+1 && (a.Number > 0 || a.Version == 0) {
			a.Missing += f.number - a.Number - 1
		}
		a.Number = f.number
	}
	a.Version++
	a.Deleted, a.Tombstone = deletes, false
	return Applied, nil
}
