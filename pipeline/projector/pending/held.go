package pending

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// HeldEvent is an event that waits for the events with the numbers before its own.
type HeldEvent struct {
	ID     string // of the aggregate
	Number int64
	Type   int
	Body   []byte
	Key    *keyformat.Key  // nil if the keys are text
	In     pipeline.Record // a deep copy
}

// Offset returns the offset of the event.
func (h *HeldEvent) Offset() int64 { return h.In.Offset }

// Held are the events that wait for an earlier number.
type Held struct {
	family  store.Family // offset -> the event's record
	all     []*HeldEvent // by offset
	of      map[string][]*HeldEvent
	unsaved map[int64]*HeldEvent // by offset: changed since the last write; nil: removed
}

// NewHeld returns no events. The store has them as entries of a family.
func NewHeld(family store.Family) Held {
	return Held{family: family, of: map[string][]*HeldEvent{}, unsaved: map[int64]*HeldEvent{}}
}

// All returns all events, by offset.
func (d *Held) All() []*HeldEvent { return d.all }

// Of returns the events of an aggregate.
func (d *Held) Of(id string) []*HeldEvent { return slices.Clone(d.of[id]) }

// Add adds an event.
func (d *Held) Add(h *HeldEvent) {
	i, _ := slices.BinarySearchFunc(d.all, h, func(a, b *HeldEvent) int { return cmp.Compare(a.Offset(), b.Offset()) })
	d.all = slices.Insert(d.all, i, h)
	d.of[h.ID] = append(d.of[h.ID], h)
	d.unsaved[h.Offset()] = h
}

// Remove removes events.
func (d *Held) Remove(gone ...*HeldEvent) {
	for _, h := range gone {
		d.unsaved[h.Offset()] = nil
		d.all = slices.DeleteFunc(d.all, func(x *HeldEvent) bool { return x == h })
		left := slices.DeleteFunc(d.of[h.ID], func(x *HeldEvent) bool { return x == h })
		if d.of[h.ID] = left; len(left) == 0 {
			delete(d.of, h.ID)
		}
	}
}

// First returns the event of an aggregate with the lowest number; of two with the same
// number, the first in the log. It returns nil if there is none.
func (d *Held) First(id []byte) *HeldEvent {
	of := d.of[string(id)]
	if len(of) == 0 {
		return nil
	}
	return slices.MinFunc(of, func(a, b *HeldEvent) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Offset(), b.Offset()))
	})
}

// Write adds to the batch what the store lacks. f is the fold of the events.
func (d *Held) Write(b *store.Batch, part *store.Part, f *fold.Fold) {
	for offset, h := range d.unsaved {
		if h == nil {
			b.Delete(part, d.family, states.OffsetKey(offset))
			continue
		}
		b.Put(part, d.family, states.OffsetKey(offset), states.AppendRecord(nil, &h.In, f))
	}
}

// Written notes that the store has what Write added.
func (d *Held) Written() { clear(d.unsaved) }

// Load reads the events of a source that the store has. decode decodes a record.
func (d *Held) Load(v *store.View, source fold.Source, folder *fold.Folder, decode func(*pipeline.Record) (event.Decoded, error)) error {
	var bad error
	err := v.Scan(d.family, nil, nil, false, func(key, value []byte) bool {
		var h *HeldEvent
		if h, bad = load(key, value, source, folder, decode); bad == nil {
			d.Add(h)
		}
		return bad == nil
	})
	clear(d.unsaved)
	return cmp.Or(bad, err)
}

func load(key, value []byte, source fold.Source, folder *fold.Folder, decode func(*pipeline.Record) (event.Decoded, error)) (*HeldEvent, error) {
	in, err := states.ReadRecord(value)
	if err != nil {
		return nil, states.Damaged(key, err)
	}
	in.Topic, in.Partition, in.Offset = source.Topic, source.Partition, int64(binary.BigEndian.Uint64(key))
	d, err := decode(in)
	if err != nil {
		return nil, fmt.Errorf("the event at offset %d, which waits for an earlier one: %w", in.Offset, err)
	}
	body := bytes.Clone(d.Body)
	id, err := folder.Read(d.Type, body, fold.OriginOf(in, d.Key))
	if err != nil {
		return nil, err
	}
	number, _ := folder.Number()
	return &HeldEvent{ID: string(id), Number: number, Type: d.Type, Body: body, Key: d.Key.Clone(), In: *in}, nil
}
