package projection

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
	"millrace/pipeline/rows"
)

// errRevoked ends a batch whose partition was revoked while the batch was open.
var errRevoked = errors.New("the partition was revoked")

// yieldEvery is the number of events after which a session yields the processor. While
// all cores fold, a question waits for that, and not for its turn among goroutines that
// never pause.
const yieldEvery = 256

// Handler folds the records of one session. The session owns its fields, except for
// those that wakeMu guards.
type Handler struct {
	set      *Set
	decoders map[string]*event.Decoder // by topic
	last     *unit                     // of the last record
	batch    []*unit                   // from which the batch has read
	epoch    int                       // number of the batch
	arena    rows.Arena
	limits   kafka.Limits // of the topics that are written

	wake       func() // asks the session for a batch; set once, before the session starts
	hasSession bool   // set with wake
	wakeMu     sync.Mutex
	woken      []*unit // to be flushed with the next batch, even without a record; guarded by wakeMu
}

var (
	_ pipeline.Handler  = (*Handler)(nil)
	_ kafka.Rereader    = (*Handler)(nil)
	_ kafka.Pauser      = (*Handler)(nil)
	_ kafka.SizeLimited = (*Handler)(nil)
)

// NewHandler returns a handler for one session.
func (s *Set) NewHandler() *Handler {
	h := &Handler{set: s, decoders: map[string]*event.Decoder{}, epoch: 1, wake: func() {}}
	for _, t := range s.topics {
		h.decoders[t.name] = s.NewDecoder(t.projections[0])
	}
	return h
}

// SetLimits implements [kafka.SizeLimited].
func (h *Handler) SetLimits(limits kafka.Limits) { h.limits = limits }

// Assign implements [kafka.Assigner].
func (h *Handler) Assign(ctx context.Context, ps []kafka.Partition) ([]int64, error) {
	from := make([]int64, len(ps))
	left := int64(len(ps))
	h.set.opening.Add(left)
	defer func() { h.set.opening.Add(-left) }() // after an error
	last, err := h.set.lastOf(ctx, ps)
	if err != nil {
		return nil, err
	}
	for i, p := range ps {
		// A session that failed may not have learned that it lost the partition.
		h.set.Leave(Key{p.Topic, p.Partition})
		u, err := h.set.open(ctx, p, h.decoders[p.Topic], last)
		if err != nil {
			return nil, err
		}
		from[i] = u.from()
		u.assigned(p, from[i], h.set.cfg.Now())
		h.set.assign(u)
		u.mu.Lock()
		u.handler = h
		due := u.arm(h.set, 0)
		u.mu.Unlock()
		if due {
			h.requestFlush(u)
		}
		left--
		h.set.opening.Add(-1)
	}
	return from, nil
}

// Handled implements [kafka.Rereader].
func (h *Handler) Handled(topic string, partition int32) int64 {
	h.set.mu.Lock()
	u := h.set.units[Key{topic, partition}]
	h.set.mu.Unlock()
	if u == nil {
		return 0
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.folded()
}

// Revoke implements [kafka.Assigner]. It waits for a running fold or write, and stores
// the folded events.
func (h *Handler) Revoke(ps []kafka.Partition) {
	for _, p := range ps {
		h.set.Leave(Key{p.Topic, p.Partition})
	}
}

// Handle implements [pipeline.Handler].
func (h *Handler) Handle(ctx context.Context, in *pipeline.Record, _ pipeline.Emitter) error {
	u := h.lock(in)
	if u == nil {
		return errRevoked
	}
	defer u.mu.Unlock()
	if u.epoch != h.epoch {
		u.epoch = h.epoch
		h.batch = append(h.batch, u)
	}
	if u.wants(in.Offset) {
		began := time.Time{}
		if u.events%sampleCost == 0 {
			began = h.set.cfg.Now()
		}
		if err := h.fold(ctx, u, in); err != nil {
			return err
		}
		if !began.IsZero() {
			u.addCost(h.set.cfg.Now().Sub(began))
		}
	}
	u.read = in.Offset + 1
	if u.events++; u.events%yieldEvery == 0 {
		runtime.Gosched()
	}
	return nil
}

// lock returns the record's unit, locked, or nil if it was revoked.
func (h *Handler) lock(in *pipeline.Record) *unit {
	if u := h.last; u != nil && u.key.Partition == in.Partition && u.key.Topic == in.Topic {
		u.mu.Lock()
		if !u.revoked {
			return u
		}
		u.mu.Unlock()
	}
	h.set.mu.Lock()
	u := h.set.units[Key{in.Topic, in.Partition}]
	h.set.mu.Unlock()
	h.last = u
	if u == nil {
		return nil
	}
	u.mu.Lock()
	if u.revoked {
		u.mu.Unlock()
		return nil
	}
	return u
}

// fold passes an event to all lanes that need it.
func (h *Handler) fold(ctx context.Context, u *unit, in *pipeline.Record) error {
	d, bad := h.decoders[in.Topic].DecodeWithKey(ctx, in, u.folds)
	if bad != nil && pipeline.ClassOf(bad) != pipeline.ClassReject {
		return bad
	}
	for _, l := range u.lanes {
		if err := l.handle(in, d, bad, u.entries); err != nil {
			return err
		}
	}
	return nil
}

// Flush implements [pipeline.Handler]: it stores the folded events, if it is time,
// and emits the due records.
func (h *Handler) Flush(ctx context.Context, out pipeline.Emitter) error {
	h.addWoken()
	for _, u := range h.batch {
		if err := h.set.reconcile(ctx, u, h.decoders[u.key.Topic]); err != nil {
			return err
		}
		if err := h.flush(u, out); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) flush(u *unit, out pipeline.Emitter) error {
	save := u.mustSave(h.set)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.revoked {
		return errRevoked
	}
	if save {
		if err := u.save(h.set); err != nil {
			return err
		}
	}
	u.settle()
	for _, l := range u.lanes {
		if err := l.publish(out, u.read, &h.arena, h.limits); err != nil {
			return err
		}
	}
	return nil
}

// EndBatch implements [pipeline.Handler].
func (h *Handler) EndBatch(committed bool) {
	for _, u := range h.batch {
		if h.endBatch(u, committed) {
			h.requestFlush(u)
		}
	}
	h.set.feeds.Wake()
	clear(h.batch)
	h.batch = h.batch[:0]
	h.epoch++
	h.arena.Reset(rows.ArenaKeep)
}

// endBatch ends the batch of a unit. due reports that the unit is to be flushed now.
func (h *Handler) endBatch(u *unit, committed bool) (due bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.lanes {
		if committed {
			h.set.send(l, u.read)
		}
		l.ended(committed, u.read)
		if u.revoked {
			l.free()
		}
	}
	if !committed {
		u.read = u.settled
		return u.arm(h.set, retryFlush)
	}
	u.settled = u.read
	return u.arm(h.set, 0)
}
