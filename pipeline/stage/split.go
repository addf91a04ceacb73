package stage

import (
	"context"
	"strconv"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage/hide"
	"millrace/pipeline/stage/uuids"
)

// ReasonTooManyItems is the reason of a rejection by a split stage.
const ReasonTooManyItems pipeline.Reason = "too_many_items"

// Split is the stage that creates one event per item of an array.
func Split() Kind {
	return Kind{
		Name: "split",
		Doc: "Splits an event into one event per item of an array. Each new event is a copy of the event with a single item in the array. " +
			"An event whose array is empty or null, or within a record that is null, is filtered. " +
			"If events have an id, the id of each new event is a version 5 UUID. Its name is the index of the item in decimal digits, from 0, and its namespace is the id of the original event. " +
			"If that id is not a UUID, the namespace is the version 5 UUID of the id in the OID namespace. So a repeated split creates the same ids.",
		Params: []Param{
			{Name: "field", Form: Word, Required: true, Doc: "The path of the array."},
			{Name: "set", Form: Assignments, Doc: "Maps paths in the new event to values, as in enrich. " +
				"In addition to the event's fields, expressions can use item (for records, also its fields: item.price) and index, the index of the item from 0."},
			{Name: "max", Form: Number, Min: 1, Max: 100_000, Default: "1000",
				Doc: "The maximum number of items, because each item costs as much as a whole event. An event with more items is rejected with the reason too_many_items."},
		},
		Example: `on: [OrderCreated]
field: data.items
set: {data.total_amount: item.price * double(item.quantity)}`,
		Moves: true,
		New:   newSplit,
	}
}

type split struct {
	cuts []*cut // by type; nil if the stage does not handle the type
	set  enrich
	max  int64

	part, item pipeline.View // owned by the clone: Split writes them
}

// A cut describes how to split events of one type.
type cut struct {
	path  []string      // of the leaf that is or holds the array
	place *within.Place // of the array in the leaf; nil if it is the leaf
	field []string      // the path of the array
	array *codec.Node
	union int64 // the branch of the array if it is nullable; else -1

	named    bool          // events of the type have an id
	uuid     bool          // the id is a fixed of 16 bytes, not a string
	extra    *codec.Layout // of the view with the item and its index, for expressions
	slot, id int
}

func newSplit(in Input) (Built, []expr.Fault) {
	field, _ := in.Args.Find("field")
	set, _ := in.Args.Find("set")
	limit, _ := in.Args.Find("max")
	s := &split{max: limit.Number, cuts: make([]*cut, len(in.Types)), set: enrich{sets: make([][]assignment, len(in.Types))}}
	var faults []expr.Fault
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		c, more := newCut(t, field.Value)
		if len(more) > 0 {
			faults = append(faults, more...)
			continue
		}
		s.cuts[i] = c
		if len(set.Entries) > 0 {
			faults = append(faults, s.assign(i, t, set)...)
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

// assign compiles the assignments for the parts of one type.
func (s *split) assign(typ int, t Type, set Arg) (faults []expr.Fault) {
	c := s.cuts[typ]
	extra := codec.RecordSchema("item", codec.Field{Name: "item", Type: c.array.Elem}, codec.Field{Name: "index", Type: &codec.Node{Kind: codec.Long}})
	var err error
	if t.Env, err = t.With(expr.Root{Schema: extra, View: 1}); err != nil {
		return []expr.Fault{{Source: set.Key, Type: t.Name, Msg: err.Error()}}
	}
	for _, given := range set.Entries {
		faults = append(faults, s.set.assign(typ, t, given)...)
	}
	if len(faults) > 0 {
		return faults
	}
	if c.extra, err = codec.NewLayout(extra, s.set.paths(typ, 1)); err != nil {
		return []expr.Fault{{Source: set.Key, Type: t.Name, Msg: err.Error()}}
	}
	return nil
}

func newCut(t Type, field expr.Source) (*cut, []expr.Fault) {
	target, err := t.Env.Target(field.Text)
	if err != nil {
		return nil, expr.PlaceErrors(field, t.Name, err)
	}
	c := &cut{path: target.Path, place: target.Place, field: target.Whole, array: target.Node, union: -1}
	if other, _, branch, ok := target.Node.Nullable(); ok {
		c.array, c.union = other, int64(branch)
	}
	if target.Entry || c.array.Kind != codec.Array {
		return nil, []expr.Fault{{Source: field, Type: t.Name, Msg: field.Text + " of " + t.Name + " is not an array", Hint: "a split needs the path of an array"}}
	}
	// Without an envelope, a field named id is not necessarily the event's id.
	if _, envelope := t.Consts["type"]; envelope {
		if f := t.Schema.Root().Field("id"); f != nil {
			c.uuid = hide.IsUUID(f.Type)
			c.named = c.uuid || f.Type.Kind == codec.String
		}
	}
	return c, nil
}

var idPath = []string{"id"}

func (s *split) Reads(typ int) [][]string { return s.cut(typ, s.set.paths(typ, 0)) }

func (s *split) Writes(typ int) [][]string { return s.cut(typ, s.set.Writes(typ)) }

// Sets implements [FieldSetter].
func (s *split) Sets(typ int) [][]string {
	paths := s.set.Sets(typ)
	if c := s.cuts[typ]; c != nil {
		if paths = append(paths, c.field); c.named {
			paths = append(paths, idPath)
		}
	}
	return paths
}

func (s *split) Volatile(typ int) (fields [][]string, fate bool) {
	return s.set.clockedPaths(typ), false
}

// cut appends the fields that a split of events of a type reads and writes.
func (s *split) cut(typ int, paths [][]string) [][]string {
	c := s.cuts[typ]
	if c == nil {
		return paths
	}
	if paths = append(paths, c.path); c.named {
		paths = append(paths, idPath)
	}
	return paths
}

func (s *split) Bind(layouts []*codec.Layout) error {
	for typ, c := range s.cuts {
		if c == nil {
			continue
		}
		c.slot, c.id = layouts[typ].Slot(c.path...), layouts[typ].Slot(idPath...)
		if err := s.set.bind(typ, layouts[typ], c.extra); err != nil {
			return err
		}
	}
	return nil
}

func (s *split) Clone() Built { return &split{cuts: s.cuts, max: s.max, set: *s.set.clone()} }

// Process implements [pipeline.Stage]. A chain calls Split instead.
func (s *split) Process(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
	return pipeline.Drop, pipeline.Fatal("split stage: Process was called instead of Split")
}

// Split implements [pipeline.Splitter].
func (s *split) Split(_ context.Context, e *pipeline.Event, next func(*pipeline.Event) error) error {
	c := s.cuts[e.Type]
	if c == nil {
		return next(e)
	}
	whole := *e
	defer func() { arena := e.Arena; *e = whole; e.Arena = arena[:len(whole.Arena)] }()
	array := whole.Get(c.slot)
	if c.place != nil {
		start, end, ok, err := c.place.Span(array)
		if err != nil {
			return badBody(err)
		}
		if !ok {
			return nil // a record around it is null
		}
		array = array[start:end]
	}
	if c.union >= 0 {
		branch, rest, err := codec.ReadLong(array)
		if err != nil {
			return badBody(err)
		}
		if branch != c.union {
			return nil // null
		}
		array = rest
	}
	switch count, err := items(c.array, array); {
	case err != nil:
		return badBody(err)
	case count > s.max:
		return pipeline.Reject(ReasonTooManyItems, "%d items, but max is %d", count, s.max)
	}
	it := codec.ItemsOf(c.array, array)
	for index := int64(0); it.Next(); index++ {
		s.part.Copy(&whole.View)
		e.View, e.NewKey, e.To, e.Arena = s.part, whole.NewKey, whole.To, e.Arena[:len(whole.Arena)]
		err := s.fill(c, e, &whole, it.Value, index)
		if err == nil {
			err = next(e)
		}
		s.part = e.View // its memory is reused for the next part
		if err != nil {
			return err
		}
	}
	if it.Err != nil {
		return badBody(it.Err)
	}
	return nil
}

// items returns the number of items of an array.
func items(n *codec.Node, array []byte) (count int64, err error) {
	it := codec.ItemsOf(n, array)
	for it.Next() {
		count++
	}
	return count, it.Err
}

// fill makes e, a copy of the whole event, the event of one item.
func (s *split) fill(c *cut, e, whole *pipeline.Event, item []byte, index int64) error {
	n := len(e.Arena)
	var after []byte // the part of the leaf after the array
	if c.place != nil {
		leaf := whole.Get(c.slot)
		start, end, _, err := c.place.Span(leaf)
		if err != nil {
			return badBody(err)
		}
		e.Arena, after = append(e.Arena, leaf[:start]...), leaf[end:]
	}
	if c.union >= 0 {
		e.Arena = codec.AppendLong(e.Arena, c.union)
	}
	e.Arena = append(append(codec.AppendLong(e.Arena, 1), item...), 0)
	e.Arena = append(e.Arena, after...)
	e.Set(c.slot, e.Arena[n:len(e.Arena):len(e.Arena)])
	if c.named {
		n = len(e.Arena)
		var err error
		if e.Arena, err = c.appendID(e.Arena, whole.Get(c.id), index); err != nil {
			return err
		}
		e.Set(c.id, e.Arena[n:len(e.Arena):len(e.Arena)])
	}
	if len(s.set.sets[e.Type]) == 0 {
		return nil
	}
	n = len(e.Arena)
	e.Arena = codec.AppendLong(append(e.Arena, item...), index)
	if err := c.extra.Walk(e.Arena[n:len(e.Arena):len(e.Arena)], &s.item); err != nil {
		return err
	}
	s.set.scope.Reset(e.Started, &e.View, &s.item)
	return s.set.apply(e)
}

// appendID appends the id of the part with an index. id is the id of the whole event.
func (c *cut) appendID(dst, id []byte, index int64) ([]byte, error) {
	var space [16]byte
	if c.uuid {
		copy(space[:], id)
	} else {
		text, _, err := codec.ReadText(id)
		if err != nil {
			return dst, badBody(err)
		}
		if !uuids.Parse(&space, text) {
			uuids.V5(&space, uuids.OIDSpace, text)
		}
	}
	var digits [20]byte
	var part [16]byte
	uuids.V5(&part, space, strconv.AppendInt(digits[:0], index, 10))
	if c.uuid {
		return append(dst, part[:]...), nil
	}
	return uuids.Append(codec.AppendLong(dst, 36), &part), nil
}
