package projection

import (
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/fold"
	"millrace/pipeline/projector/internalrecord"
	"millrace/pipeline/projector/measure"
	"millrace/pipeline/projector/pending"
	"millrace/pipeline/projector/states"
	"millrace/pipeline/store"
)

// drain folds the held events of an aggregate that are next, when the offset now is
// read.
func (t *track) drain(a *states.Aggregate, now int64, b *store.Batch) error {
	for h := t.held.First(a.ID); h != nil; h = t.held.First(a.ID) {
		if h.Number > a.Number+1 && (!a.Deleted || t.fold.CanRevive(&a.Aggregate)) {
			return nil
		}
		if err := t.retry(a, h, now, b); err != nil {
			return err
		}
	}
	return nil
}

// retry folds a held event, whatever its number.
func (t *track) retry(a *states.Aggregate, h *pending.HeldEvent, now int64, b *store.Batch) error {
	t.held.Remove(h)
	if _, err := t.folder.Read(h.Type, h.Body, fold.OriginOf(&h.In, h.Key)); err != nil {
		return err // it was read before without an error
	}
	known, err := t.duplicate([]byte(h.ID), h.Offset())
	switch {
	case err != nil:
		return err
	case known || t.sameID(a):
		t.count(&h.In, measure.Duplicate)
	case a.Deleted && !t.fold.CanRevive(&a.Aggregate):
		t.count(&h.In, measure.Late)
	case h.Number <= a.Number:
		t.conflict(a, &h.In, h.Number, now, b)
	default:
		err := t.apply(a, &h.In, now, b)
		if err == nil || pipeline.ClassOf(err) != pipeline.ClassReject {
			return err
		}
		if t.skips.Offsets.Has(h.Offset()) {
			t.count(&h.In, measure.Skipped)
			return nil
		}
		return t.block(string(a.ID), &h.In, now, err)
	}
	return nil
}

// expire ends the wait of held events that waited long enough when the record at the
// offset now is read.
func (t *track) expire(now int64, b *store.Batch) error {
	wait, apply := t.fold.Wait()
	for all := t.held.All(); len(all) > 0 && all[0].Offset()+wait <= now; all = t.held.All() {
		h := all[0]
		a, err := t.states.Get([]byte(h.ID))
		if err != nil {
			return err
		}
		if !apply && !t.skips.Offsets.Has(h.Offset()) {
			err := pipeline.Reject(internalrecord.ReasonGap, "number %d came, and number %d did not within %d records", h.Number, a.Number+1, wait)
			if err := t.block(h.ID, &h.In, now, err); err != nil {
				return err
			}
			continue
		}
		if err := t.applyGap(a, h, now, b); err != nil {
			return err
		}
		t.markDue(h.ID)
	}
	return nil
}

// applyGap folds the held events of an aggregate up to h, despite the gap before them,
// and those that follow without a gap.
func (t *track) applyGap(a *states.Aggregate, h *pending.HeldEvent, now int64, b *store.Batch) error {
	for t.blocked[h.ID] == nil && slices.Contains(t.held.All(), h) {
		if err := t.retry(a, t.held.First([]byte(h.ID)), now, b); err != nil {
			return err
		}
	}
	if t.blocked[h.ID] != nil {
		return nil
	}
	return t.drain(a, now, b)
}

// decodeFunc decodes an event from its record.
type decodeFunc func(*pipeline.Record) (event.Decoded, error)
