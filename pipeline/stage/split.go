package stage

import (
	"context"
	"strconv"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// ReasonTooManyItems is why a split stage rejects an event.
const ReasonTooManyItems pipeline.Reason = "too_many_items"

// Split is the stage that makes one event of each item of an array.
func Split() Kind {
	return Kind{
		Name: "split",
		Doc: "Makes several events of one: for each item of an array the same event again, with only this item in the array. " +
			"An event whose array is empty or null is filtered. " +
			"The id of each, where events have one, is the UUID of version 5 whose name space is the id of the event it came from " +
			"(if that is no UUID, the UUID of it in the name space for OIDs) and whose name is the item's number, from 0, in digits: the same each time.",
		Params: []Param{
			{Name: "field", Form: Word, Required: true, Doc: "The path of the array."},
			{Name: "set", Form: Assignments, Doc: "What to set in each event after that, as in enrich. " +
				"Beside the event, expressions have item (of a record, its fields: item.price) and index, its number from 0."},
			{Name: "max", Form: Number, Min: 1, Max: 100_000, Default: "1000",
				Doc: "How many items an array may have: each costs as much as the whole event. An event with more is rejected with the reason too_many_items."},
		},
		Example: `on: [OrderCreated]
field: data.items
set: {data.total_amount: item.price * double(item.quantity)}`,
		New: newSplit,
	}
}

type split struct {
	cuts []*cut // by type; nil where the stage is not for it
	set  enrich
	max  int64

	part, item pipeline.View // these are written by Split
}

// A cut is how the events of one type are split.
type cut struct {
	path  []string
	array *codec.Node
	union int64 // the array's branch, if it may be null; else -1

	named    bool          // its events have an id
	uuid     bool          // as 16 bytes
	beside   *codec.Layout // of what expressions see beside the event: the item, then its index
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

// assign compiles what is set in the parts of one type.
func (s *split) assign(typ int, t Type, set Arg) (faults []expr.Fault) {
	c := s.cuts[typ]
	beside := codec.Gather("item", codec.Field{Name: "item", Type: c.array.Elem}, codec.Field{Name: "index", Type: &codec.Node{Kind: codec.Long}})
	var err error
	if t.Env, err = t.With(expr.Root{Schema: beside, View: 1}); err != nil {
		return []expr.Fault{{Source: set.Key, Type: t.Name, Msg: err.Error()}}
	}
	for _, given := range set.Entries {
		faults = append(faults, s.set.assign(typ, t, given)...)
	}
	if len(faults) > 0 {
		return faults
	}
	if c.beside, err = codec.NewLayout(beside, s.set.paths(typ, 1)); err != nil {
		return []expr.Fault{{Source: set.Key, Type: t.Name, Msg: err.Error()}}
	}
	return nil
}

func newCut(t Type, field expr.Source) (*cut, []expr.Fault) {
	target, err := t.Env.Target(field.Text)
	if err != nil {
		return nil, expr.Faults(field, t.Name, err)
	}
	c := &cut{path: target.Path, array: target.Node, union: -1}
	if other, _, branch, ok := target.Node.Nullable(); ok {
		c.array, c.union = other, int64(branch)
	}
	if target.Entry || c.array.Kind != codec.Array {
		return nil, []expr.Fault{{Source: field, Type: t.Name, Msg: field.Text + " of " + t.Name + " is not an array", Hint: "a split needs the path of an array"}}
	}
	// Only of an envelope is it known that its id is the event's.
	if _, envelope := t.Consts["type"]; envelope {
		if f := t.Schema.Root().Field("id"); f != nil {
			c.uuid = isUUID(f.Type)
			c.named = c.uuid || f.Type.Kind == codec.String
		}
	}
	return c, nil
}

var idPath = []string{"id"}

func (s *split) Reads(typ int) [][]string { return s.cut(typ, s.set.Reads(typ)) }

func (s *split) Writes(typ int) [][]string { return s.cut(typ, s.set.Writes(typ)) }

// cut appends the fields that splitting events of a type reads and writes.
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
		if err := s.set.bind(typ, layouts[typ], c.beside); err != nil {
			return err
		}
	}
	return nil
}

func (s *split) Clone() Built { return &split{cuts: s.cuts, max: s.max, set: *s.set.clone()} }

// Process implements [pipeline.Stage], for chains that know no splitters: there
// are none.
func (s *split) Process(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
	return pipeline.Drop, pipeline.Fatal("a split stage is not one that a chain calls Process of")
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
		return pipeline.Reject(ReasonTooManyItems, "%d items; at most %d are split", count, s.max)
	}
	it := codec.ItemsOf(c.array, array)
	for index := int64(0); it.Next(); index++ {
		s.part.Copy(&whole.View)
		e.View, e.NewKey, e.To, e.Arena = s.part, whole.NewKey, whole.To, e.Arena[:len(whole.Arena)]
		err := s.becomes(c, e, &whole, it.Value, index)
		if err == nil {
			err = next(e)
		}
		s.part = e.View // whose memory is used again
		if err != nil {
			return err
		}
	}
	if it.Err != nil {
		return badBody(it.Err)
	}
	return nil
}

// items returns how many items an array has.
func items(n *codec.Node, array []byte) (count int64, err error) {
	it := codec.ItemsOf(n, array)
	for it.Next() {
		count++
	}
	return count, it.Err
}

// becomes makes e the event of one item of the whole.
func (s *split) becomes(c *cut, e, whole *pipeline.Event, item []byte, index int64) error {
	n := len(e.Arena)
	if c.union >= 0 {
		e.Arena = codec.AppendLong(e.Arena, c.union)
	}
	e.Arena = append(append(codec.AppendLong(e.Arena, 1), item...), 0)
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
	if err := c.beside.Walk(e.Arena[n:len(e.Arena):len(e.Arena)], &s.item); err != nil {
		return err
	}
	s.set.scope.Reset(e.Taken, &e.View, &s.item)
	return s.set.apply(e)
}

// appendID appends the id of the part with that index of the event with that id.
func (c *cut) appendID(dst, id []byte, index int64) ([]byte, error) {
	var space [16]byte
	if c.uuid {
		copy(space[:], id)
	} else {
		text, _, err := codec.ReadText(id)
		if err != nil {
			return dst, badBody(err)
		}
		if !parseUUID(&space, text) {
			uuid5(&space, oidSpace, text)
		}
	}
	var digits [20]byte
	var part [16]byte
	uuid5(&part, space, strconv.AppendInt(digits[:0], index, 10))
	if c.uuid {
		return append(dst, part[:]...), nil
	}
	return appendUUID(codec.AppendLong(dst, 36), &part), nil
}
