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

// ReasonMissingRow is why a lookup stage rejects an event.
const ReasonMissingRow pipeline.Reason = "missing_row"

// maxWait bounds the wait of a lookup: a transaction is open meanwhile.
const maxWait = time.Minute

// What a lookup does with an event that has no row.
const (
	missingKeep       = "keep"
	missingDrop       = "drop"
	missingDeadLetter = "dead_letter"
	missingWait       = "wait"
)

// ChangingRows are [Rows] that come and go while the program runs.
type ChangingRows interface {
	Rows
	// Changed returns a channel that is closed once rows have changed after the
	// call.
	Changed() <-chan struct{}
}

// A Holder is a stage that may hold up a batch, and with it a transaction.
type Holder interface {
	// Holds returns for how long, at most, in one batch.
	Holds() time.Duration
}

// A Batcher is a stage that is told of the end of each batch.
type Batcher interface {
	EndBatch(committed bool)
}

// A Misser is a stage that lets events pass for which it found nothing.
type Misser interface {
	// Missed returns how many they were since the last call. Those of a batch that
	// was rolled back come again.
	Missed() int
}

// A Joiner is a stage that looks into a table.
type Joiner interface {
	Table() *Table
}

// Lookup is the stage that takes fields from the row of a table.
func Lookup() Kind {
	return Kind{
		Name: "lookup",
		Doc: "Finds a row of a table by key and sets fields from it. The row is the newest that this worker has: " +
			"it knows all rows that were there when it started, and follows the table from then on, but an event and a row that are written at the same time may miss each other.",
		Params: []Param{
			{Name: "table", Form: Word, Required: true, Doc: "The table."},
			{Name: "key", Form: Expression, Doc: "The key of the row; the event's own if not given. Under null there is never one."},
			{Name: "set", Form: Assignments, Doc: "From the path of a field that is there, or of an entry of a map (metadata.KEY), to its new value. The row's fields are row.PATH."},
			addFromRow(),
			{Name: "missing", Form: Word, Default: missingKeep, Values: []string{missingKeep, missingDrop, missingDeadLetter, missingWait},
				Doc: "What to do with an event that has no row: keep it as it is; drop it, as a filter does; reject it, with the reason missing_row; or wait for the row, and reject the event if it does not come."},
			{Name: "wait", Form: Duration, Default: "5s", Doc: "How long to wait. All events of a batch that have no row wait together, from the first of them on."},
		},
		Example: `on: [OrderCreated]
table: users
key: data.user_id
set: {metadata.customer: row.name}
missing: keep`,
		Grows: true,
		New:   newLookup,
	}
}

// addFromRow is the parameter of enrich, over rows.
func addFromRow() Param {
	params := Enrich().Params
	add := params[slices.IndexFunc(params, func(p Param) bool { return p.Name == "add" })]
	add.Doc += " An event that has no row keeps that, too."
	return add
}

type lookup struct {
	enrich // what to set, with the row in view 1
	table  *Table
	keys   []*expr.Program // by type; nil where it is the event's own
	views  []*codec.Layout // of a row, by type of the event; nil where the lookup is not for it
	policy string
	wait   time.Duration

	// What follows belongs to a clone.
	rows   Rows
	row    pipeline.View
	missed int
	timer  *time.Timer // runs from the first missing row of a batch on
	over   bool        // it has run out
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
		faults = append(faults, fault(wait.Value, "a transaction is open meanwhile", "a lookup waits for more than nothing and at most %v", maxWait))
	}
	if len(set.Entries)+len(add.Items) == 0 && s.policy == missingKeep {
		faults = append(faults, fault(in.At, `set: {metadata.customer: row.name}`, "a lookup needs something to set or to add, or a say on events that have no row"))
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
		return s, faults // the table has a fault of its own
	}
	if !keyed {
		key.Key = in.At // for faults
	}
	for i, t := range in.Types {
		if t.On {
			faults = append(faults, s.compile(i, t, key, set, add)...)
		}
	}
	return s, faults
}

// compile compiles everything for one type.
func (s *lookup) compile(typ int, t Type, key, set, add Arg) (faults []expr.Fault) {
	var err error
	if key.Name != "" {
		text := &codec.Node{Kind: codec.Union, Branches: []*codec.Node{{Kind: codec.Null}, {Kind: codec.String}}}
		s.keys[typ], err = t.Env.Compile(key.Value.Text, expr.Value(text, "the key", t.Name))
		faults = append(faults, expr.Faults(key.Value, t.Name, err)...)
	}
	if t.Env, err = t.With(expr.Root{Name: "row", Schema: s.table.Schema, View: 1}); err != nil {
		return append(faults, expr.Faults(key.Key, t.Name, err)...)
	}
	for _, given := range set.Entries {
		faults = append(faults, s.assign(typ, t, given)...)
	}
	for _, given := range add.Items {
		faults = append(faults, s.add(typ, t, given)...)
	}
	if s.views[typ], err = codec.NewLayout(s.table.Schema, s.paths(typ, 1)); err != nil {
		faults = append(faults, expr.Faults(key.Key, t.Name, err)...)
	}
	return faults
}

func (s *lookup) Reads(typ int) [][]string {
	return appendPaths(s.paths(typ, 0), s.keys[typ])
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

// Table implements [Joiner].
func (s *lookup) Table() *Table { return s.table }

// Missed implements [Misser].
func (s *lookup) Missed() int {
	n := s.missed
	s.missed = 0
	return n
}

// Holds implements [Holder].
func (s *lookup) Holds() time.Duration {
	if s.policy == missingWait {
		return s.wait
	}
	return 0
}

func (s *lookup) Process(ctx context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if s.views[e.Type] == nil {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Taken, &e.View)
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
	s.scope.Reset(e.Taken, &e.View, &s.row)
	return pipeline.Pass, s.apply(e)
}

// key returns the key; found is false for null.
func (s *lookup) key(e *pipeline.Event) (key []byte, found bool, err error) {
	if s.keys[e.Type] == nil {
		if key = e.NewKey; key == nil {
			key = e.Key
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

// await waits for a row until the time of the batch is up.
func (s *lookup) await(ctx context.Context, key []byte) (row []byte, found bool, err error) {
	rows, ok := s.rows.(ChangingRows)
	if !ok {
		return nil, false, nil
	}
	if s.timer == nil {
		s.timer = time.NewTimer(s.wait)
	}
	for !s.over {
		changed := rows.Changed() // before Get, so that no change is missed between them
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
