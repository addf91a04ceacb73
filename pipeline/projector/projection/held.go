package projection

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
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// held is an event that waits for the events with the numbers before its own.
type held struct {
	id     string
	number int64
	typ    int
	body   []byte
	key    *keyformat.Key  // nil if the keys are text
	in     pipeline.Record // a deep copy
}

func (h *held) offset() int64 { return h.in.Offset }

func (t *track) hold(h *held) {
	i, _ := slices.BinarySearchFunc(t.held, h, func(a, b *held) int { return cmp.Compare(a.offset(), b.offset()) })
	t.held = slices.Insert(t.held, i, h)
	t.heldOf[h.id] = append(t.heldOf[h.id], h)
	t.heldNow[h.offset()] = h
}

// unhold removes held events.
func (t *track) unhold(gone ...*held) {
	for _, h := range gone {
		t.heldNow[h.offset()] = nil
		t.held = slices.DeleteFunc(t.held, func(x *held) bool { return x == h })
		left := slices.DeleteFunc(t.heldOf[h.id], func(x *held) bool { return x == h })
		if t.heldOf[h.id] = left; len(left) == 0 {
			delete(t.heldOf, h.id)
		}
	}
}

// firstHeld returns the held event of an aggregate with the lowest number; of two with
// the same number, the first in the log.
func (t *track) firstHeld(id string) *held {
	return slices.MinFunc(t.heldOf[id], func(a, b *held) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.offset(), b.offset()))
	})
}

// drain folds the held events of an aggregate that are next, when the offset now is
// read.
func (t *track) drain(a *states.Aggregate, now int64, b *store.Batch) error {
	for len(t.heldOf[a.ID]) > 0 {
		h := t.firstHeld(a.ID)
		if h.number > a.Number+1 && (!a.Deleted || t.fold.CanRevive(&a.Aggregate)) {
			return nil
		}
		if err := t.retry(a, h, now, b); err != nil {
			return err
		}
	}
	return nil
}

// retry folds a held event, whatever its number.
func (t *track) retry(a *states.Aggregate, h *held, now int64, b *store.Batch) error {
	t.unhold(h)
	if _, err := t.folder.Read(h.typ, h.body, fold.OriginOf(&h.in, h.key)); err != nil {
		return err // it was read before without an error
	}
	known, err := t.duplicate([]byte(h.id), h.offset())
	switch {
	case err != nil:
		return err
	case known || t.sameID(a):
		t.count(&h.in, isDuplicate)
	case a.Deleted && !t.fold.CanRevive(&a.Aggregate):
		t.count(&h.in, isLate)
	case h.number <= a.Number:
		t.conflict(a, &h.in, h.number, now, b)
	default:
		err := t.apply(a, &h.in, now, b)
		if err == nil || pipeline.ClassOf(err) != pipeline.ClassReject {
			return err
		}
		if t.skips.offsets.Has(h.offset()) {
			t.count(&h.in, isSkipped)
			return nil
		}
		return t.block(a.ID, &h.in, now, err)
	}
	return nil
}

// expire ends the wait of held events that waited long enough when the record at the
// offset now is read.
func (t *track) expire(now int64, b *store.Batch) error {
	wait, apply := t.fold.Wait()
	for len(t.held) > 0 && t.held[0].offset()+wait <= now {
		h := t.held[0]
		a, err := t.states.Get([]byte(h.id))
		if err != nil {
			return err
		}
		if !apply && !t.skips.offsets.Has(h.offset()) {
			err := pipeline.Reject(internalrecord.ReasonGap, "number %d came, and number %d did not within %d records", h.number, a.Number+1, wait)
			if err := t.block(h.id, &h.in, now, err); err != nil {
				return err
			}
			continue
		}
		if err := t.applyGap(a, h, now, b); err != nil {
			return err
		}
		t.markDue(h.id)
	}
	return nil
}

// applyGap folds the held events of an aggregate up to h, despite the gap before them,
// and those that follow without a gap.
func (t *track) applyGap(a *states.Aggregate, h *held, now int64, b *store.Batch) error {
	for t.blocked[h.id] == nil && slices.Contains(t.held, h) {
		if err := t.retry(a, t.firstHeld(h.id), now, b); err != nil {
			return err
		}
	}
	if t.blocked[h.id] != nil {
		return nil
	}
	return t.drain(a, now, b)
}

func (t *track) writeHeld(b *store.Batch) {
	for offset, h := range t.heldNow {
		if h == nil {
			b.Delete(t.part, t.families.held, states.OffsetKey(offset))
			continue
		}
		b.Put(t.part, t.families.held, states.OffsetKey(offset), states.AppendRecord(nil, &h.in, t.fold))
	}
}

// decodeFunc decodes an event from its record.
type decodeFunc func(*pipeline.Record) (event.Decoded, error)

// loadHeld reads an entry of the family held.
func (t *track) loadHeld(key, value []byte, decode decodeFunc) (*held, error) {
	in, err := states.ReadRecord(value)
	if err != nil {
		return nil, states.Damaged(key, err)
	}
	in.Topic, in.Partition, in.Offset = t.source.Topic, t.source.Partition, int64(binary.BigEndian.Uint64(key))
	d, err := decode(in)
	if err != nil {
		return nil, fmt.Errorf("the event at offset %d, which waits for an earlier one: %w", in.Offset, err)
	}
	body := bytes.Clone(d.Body)
	id, err := t.folder.Read(d.Type, body, fold.OriginOf(in, d.Key))
	if err != nil {
		return nil, err
	}
	number, _ := t.folder.Number()
	return &held{id: string(id), number: number, typ: d.Type, body: body, key: d.Key.Clone(), in: *in}, nil
}
