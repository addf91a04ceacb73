package stage

import (
	"context"
	"slices"
	"strings"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// ReasonMissingRow is the reason of a rejection by a lookup stage.
const ReasonMissingRow pipeline.Reason = "missing_row"

// maxWait limits the wait of a lookup and of an HTTP request, because a transaction is
// open during the wait.
const maxWait = time.Minute

// The values of the parameter missing.
const (
	missingKeep       = "keep"
	missingDrop       = "drop"
	missingDeadLetter = "dead_letter"
	missingWait       = "wait"
)

// ChangingRows are [Rows] that change while the program runs.
type ChangingRows interface {
	Rows
	// Changed returns a channel that is closed when rows change after the call.
	Changed() <-chan struct{}
}

// A Delayer is a stage that can delay a batch and so its transaction.
type Delayer interface {
	// MaxDelay returns the maximum delay per batch.
	MaxDelay() time.Duration
}

// A Batcher is a stage that needs to know the end of each batch.
type Batcher interface {
	// EndBatch ends the batch. committed is false if the batch was aborted, so its
	// events will be processed again.
	EndBatch(committed bool)
}

// A MissCounter is a stage that passes events for which it found no row or no answer.
type MissCounter interface {
	// Misses returns the number of such events since the last call. The events of an
	// aborted batch will be processed, and counted, again.
	Misses() int
}

// A TableReader is a stage that reads a table.
type TableReader interface {
	Table() *Table
}

// Lookup is the stage that sets fields from the row of a table.
func Lookup() Kind {
	return Kind{
		Name: "lookup",
		Doc: "Finds a row of a table by key and sets fields from it. The stage uses the newest row that the worker knows. " +
			"A worker reads the whole table when it starts and follows its changes, but it may not see a row that is written at the same time as the event.",
		Params: []Param{
			{Name: "table", Form: Word, Required: true, Doc: "The table."},
			{Name: "key", Form: Expression, Doc: "The key of the row. The default is the key of the event. For a null key, there is no row."},
			{Name: "set", Form: Assignments, Doc: setDoc + " The fields of the row are row.PATH."},
			addFromRow(),
			{Name: "missing", Form: Word, Default: missingKeep, Values: []string{missingKeep, missingDrop, missingDeadLetter, missingWait},
				Doc: "The handling of an event without a row: keep passes it unchanged; drop filters it; dead_letter rejects it with the reason missing_row; wait waits for the row and rejects the event if the row does not arrive in time."},
			{Name: "wait", Form: Duration, Default: "5s", Doc: "The maximum wait per batch. It starts at the first event of the batch without a row, and all such events of the batch share it."},
		},
		Example: `on: [OrderCreated]
table: users
key: data.user_id
set: {metadata.customer: row.name}
missing: keep`,
		AddsFields: true,
		New:        newLookup,
	}
}

// addFromRow returns the parameter add of enrich for a stage that can find no row.
func addFromRow() Param {
	params := Enrich().Params
	add := params[slices.IndexFunc(params, func(p Param) bool { return p.Name == "add" })]
	add.Doc += " It also applies to events without a row."
	return add
}

type lookup struct {
	enrich // the assignments; the row is view 1
	table  *Table
	keys   []*expr.Program // by type; nil: the key of the event
	views  []*codec.Layout // of a row, by event type; nil if the stage does not handle the type
	policy string          // the value of the parameter missing
	wait   time.Duration

	// Owned by the clone.
	rows   Rows
	row    pipeline.View
	missed int
	timer  *time.Timer // started at the first missing row of a batch
	over   bool        // the timer has expired
}

func newLookup(in Input) (Built, []expr.Fault) {
	name, _ := in.Args.Find("table")
	key, keyed := in.Args.Find("key")
	set, _ := in.Args.Find("set")
	add, _ := in.Args.Find("add")
	missing, _ := in.Args.Find("missing")
	wait, _ := in.Args.Find("wait")
	s := &lookup{
		enrich: enrich{sets: make([][]assignment, len(in.Types)), grown: make([]*codec.Schema, len(in.Types))},
		keys:   make([]*expr.Program, len(in.Types)), views: make([]*codec.Layout, len(in.Types)),
		table: in.Tables[name.Value.Text], policy: missing.Value.Text, wait: wait.Duration,
	}
	var faults []expr.Fault
	if s.wait <= 0 || s.wait > maxWait {
		faults = append(faults, fault(wait.Value, "a transaction is open during the wait", "the wait of a lookup must be greater than 0 and at most %v", maxWait))
	}
	if len(set.Entries)+len(add.Items) == 0 && s.policy == missingKeep {
		faults = append(faults, fault(in.At, `set: {metadata.customer: row.name}`, "a lookup needs set or add, or missing with a value other than keep"))
	}
	if s.table == nil {
		names := make([]string, 0, len(in.Tables))
		for n := range in.Tables {
			names = append(names, n)
		}
		slices.Sort(names)
		hint := "there are " + strings.Join(names, ", ")
		if len(names) == 0 {
			hint = "declare it under tables"
		}
		return s, append(faults, fault(name.Value, hint, "there is no table %s", name.Value.Text))
	}
	if s.table.Schema == nil {
		return s, faults // the fault of the table is reported elsewhere
	}
	if !keyed {
		key.Key = in.At // the position for faults
	}
	for i, t := range in.Types {
		if t.On {
			more := s.expressions(i, t, key, set, add)
			if len(more) == 0 {
				again, ok, gaps := s.rebuilt(i, t, in.At)
				if more = gaps; ok {
					more = append(more, s.expressions(i, again, key, set, add)...)
				}
			}
			faults = append(faults, more...)
		}
	}
	return s, faults
}

// expressions compiles the expressions for one type.
func (s *lookup) expressions(typ int, t Type, key, set, add Arg) (faults []expr.Fault) {
	var err error
	if key.Name != "" {
		text := &codec.Node{Kind: codec.Union, Branches: []*codec.Node{{Kind: codec.Null}, {Kind: codec.String}}}
		var more []expr.Fault
		s.keys[typ], more = t.Env.CompileAt(key.Value, t.Name, expr.Value(text, "the key", t.Name))
		faults = append(faults, more...)
	}
	if t.Env, err = t.With(expr.Root{Name: "row", Schema: s.table.Schema, View: 1}); err != nil {
		return append(faults, expr.PlaceErrors(key.Key, t.Name, err)...)
	}
	faults = append(faults, s.compile(typ, t, set, add)...)
	if s.views[typ], err = codec.NewLayout(s.table.Schema, s.paths(typ, 1)); err != nil {
		faults = append(faults, expr.PlaceErrors(key.Key, t.Name, err)...)
	}
	return faults
}

func (s *lookup) Reads(typ int) [][]string {
	return appendPaths(s.paths(typ, 0), s.keys[typ])
}

// Volatile implements [Built]: all effects depend on the rows of the table.
func (s *lookup) Volatile(typ int) (fields [][]string, fate bool) {
	return s.Sets(typ), s.views[typ] != nil && s.policy != missingKeep
}

func (s *lookup) Bind(layouts []*codec.Layout) error {
	if err := bind(s.keys, layouts); err != nil {
		return err
	}
	for typ, view := range s.views {
		if view == nil {
			continue
		}
		if err := s.bind(typ, layouts[typ], view); err != nil {
			return err
		}
	}
	return nil
}

func (s *lookup) Clone() Built {
	return &lookup{
		enrich: *s.enrich.clone(), table: s.table, keys: s.keys, views: s.views,
		policy: s.policy, wait: s.wait, rows: s.table.Rows,
	}
}

// Table implements [TableReader].
func (s *lookup) Table() *Table { return s.table }

var (
	_ Delayer     = (*lookup)(nil)
	_ MissCounter = (*lookup)(nil)
	_ TableReader = (*lookup)(nil)
)

// Misses implements [MissCounter].
func (s *lookup) Misses() int {
	n := s.missed
	s.missed = 0
	return n
}

// MaxDelay implements [Delayer].
func (s *lookup) MaxDelay() time.Duration {
	if s.policy == missingWait {
		return s.wait
	}
	return 0
}

func (s *lookup) Process(ctx context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if s.views[e.Type] == nil {
		return pipeline.Pass, nil
	}
	if s.rebuilds != nil {
		if err := s.rebuild(e); err != nil {
			return pipeline.Drop, err
		}
	}
	s.scope.Reset(e.Started, &e.View)
	key, found, err := s.key(e)
	if err != nil {
		return pipeline.Drop, err
	}
	var row []byte
	if found {
		row, found = s.rows.Get(key)
	}
	if !found && s.policy == missingWait && key != nil {
		if row, found, err = s.await(ctx, key); err != nil {
			return pipeline.Drop, err
		}
	}
	if !found {
		return s.missing(key)
	}
	if err := s.views[e.Type].Walk(row, &s.row); err != nil {
		return pipeline.Drop, err
	}
	s.scope.Reset(e.Started, &e.View, &s.row)
	return pipeline.Pass, s.apply(e)
}

// key returns the key of the row. found is false if the key is null.
func (s *lookup) key(e *pipeline.Event) (key []byte, found bool, err error) {
	if s.keys[e.Type] == nil {
		if key = e.NewKey; key == nil {
			key = e.KeyText
		}
		return key, key != nil, nil
	}
	enc, err := appendIn(&s.scope, e, s.keys[e.Type])
	if err != nil {
		return nil, false, err
	}
	branch, enc, err := codec.ReadLong(enc)
	if err != nil || branch == 0 {
		return nil, false, err
	}
	key, _, err = codec.ReadText(enc)
	return key, err == nil, err
}

// missing handles an event without a row. key is nil if the key is null.
func (s *lookup) missing(key []byte) (pipeline.Verdict, error) {
	switch s.policy {
	case missingKeep:
		s.missed++
		return pipeline.Pass, nil
	case missingDrop:
		return pipeline.Drop, nil
	}
	if key == nil {
		return pipeline.Drop, pipeline.Reject(ReasonMissingRow, "the key of the row in table %s is null", s.table.Name)
	}
	return pipeline.Drop, pipeline.Reject(ReasonMissingRow, "table %s has no row %.100q", s.table.Name, key)
}

// await waits for a row until the wait of the batch is over.
func (s *lookup) await(ctx context.Context, key []byte) (row []byte, found bool, err error) {
	rows, ok := s.rows.(ChangingRows)
	if !ok {
		return nil, false, nil
	}
	if s.timer == nil {
		s.timer = time.NewTimer(s.wait)
	}
	for !s.over {
		changed := rows.Changed() // before Get, or a change between the two calls would be missed
		if row, found = rows.Get(key); found {
			return row, true, nil
		}
		select {
		case <-changed:
		case <-s.timer.C:
			s.over = true
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	row, found = rows.Get(key)
	return row, found, nil
}

// EndBatch implements [Batcher].
func (s *lookup) EndBatch(bool) {
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer, s.over = nil, false
}
