package pending

import (
	"encoding/binary"
	"maps"
	"slices"

	"millrace/pipeline/codec"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// Letters are the dead letters of events that were too late for a window.
type Letters struct {
	family    store.Family
	due       map[int64][]int64 // offset of the event -> starts of the windows it missed
	unsaved   map[int64]bool    // offsets
	sentBelow int64
}

// NewLetters returns no dead letters. The store has them as entries of a family.
func NewLetters(family store.Family) Letters {
	return Letters{family: family, due: map[int64][]int64{}, unsaved: map[int64]bool{}}
}

// Add adds the dead letter of an event, and the starts of the windows that it missed.
func (d *Letters) Add(offset int64, missed []int64) {
	d.due[offset], d.unsaved[offset] = slices.Clone(missed), true
}

// Len returns the number of due letters.
func (d *Letters) Len() int { return len(d.due) }

// First returns the offset of the first due letter, or next if there is none below.
func (d *Letters) First(next int64) int64 {
	for offset := range d.due {
		next = min(next, offset)
	}
	return next
}

// Missed returns the starts of the windows that an event missed. ok is false if no letter
// is due.
func (d *Letters) Missed(offset int64) (starts []int64, ok bool) {
	starts, ok = d.due[offset]
	return starts, ok
}

// SentBelow returns the offset below which all dead letters are in committed transactions.
func (d *Letters) SentBelow() int64 { return d.sentBelow }

// Sent notes that the dead letters of all events below an offset are in committed
// transactions.
func (d *Letters) Sent(below int64) {
	d.sentBelow = max(d.sentBelow, below)
	d.Drop(d.sentBelow)
}

// Drop drops the due letters of events below an offset, and returns their number.
func (d *Letters) Drop(below int64) (n int) {
	maps.DeleteFunc(d.due, func(offset int64, _ []int64) bool {
		if offset >= below {
			return false
		}
		d.unsaved[offset] = true
		n++
		return true
	})
	return n
}

// Write adds to the batch what the store lacks.
func (d *Letters) Write(b *store.Batch, part *store.Part) {
	for offset := range d.unsaved {
		missed, ok := d.due[offset]
		if !ok {
			b.Delete(part, d.family, states.OffsetKey(offset))
			continue
		}
		var value []byte
		for _, start := range missed {
			value = codec.AppendLong(value, start)
		}
		b.Put(part, d.family, states.OffsetKey(offset), value)
	}
}

// Written notes that the store has what Write added.
func (d *Letters) Written() { clear(d.unsaved) }

// Load reads the letters that the store has. SentBelow must be known.
func (d *Letters) Load(v *store.View) error {
	var bad error
	err := v.Scan(d.family, nil, nil, false, func(key, value []byte) bool {
		offset := int64(binary.BigEndian.Uint64(key))
		if offset < d.sentBelow {
			d.unsaved[offset] = true // its transaction was committed
			return true
		}
		missed := []int64{}
		for r := (states.Fields{Rest: value}); len(r.Rest) > 0 && bad == nil; bad = r.Err {
			missed = append(missed, r.Long())
		}
		d.due[offset] = missed
		return bad == nil
	})
	if bad != nil {
		return bad
	}
	return err
}
