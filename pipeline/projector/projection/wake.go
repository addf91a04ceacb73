package projection

import (
	"slices"
	"time"

	"millrace/pipeline/kafka"
)

// What is due of a partition goes out with its next batch. If none comes, because
// its topic is quiet, a unit has the session make one: when a policy says that it
// is time, and when somebody released an aggregate.
//
// Such a batch has snapshots and what goes with them, which may be written twice. A
// late event's dead letter may not, and is always in a batch with its event.

var _ kafka.Waker = (*Handler)(nil)

// retryFlush is how long after a flush without records that came to nothing it is
// tried again.
const retryFlush = 100 * time.Millisecond

// OnWake implements [kafka.Waker].
func (h *Handler) OnWake(wake func()) { h.wake = wake }

// ring has the session flush a unit soon.
func (h *Handler) ring(u *Unit) {
	h.rungMu.Lock()
	if !slices.Contains(h.rung, u) {
		h.rung = append(h.rung, u)
	}
	h.rungMu.Unlock()
	h.wake()
}

// answer adds to the batch the units that are to be flushed and have no record in
// it.
func (h *Handler) answer() {
	h.rungMu.Lock()
	rung := h.rung
	h.rung = nil
	h.rungMu.Unlock()
	for _, u := range rung {
		u.mu.Lock()
		if !u.revoked && u.epoch != h.epoch {
			u.epoch = h.epoch
			h.batch = append(h.batch, u)
		}
		u.mu.Unlock()
	}
}

// arm sees to it that the unit is flushed when it is time, also without a record.
// after is how long that waits at least. The unit's lock is held.
func (u *Unit) arm(ps *Set, after time.Duration) {
	u.disarm()
	if u.revoked || u.handler == nil {
		return
	}
	var first time.Time
	for _, l := range u.Lanes {
		if at, ok := l.dueAt(u.Read); ok && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return
	}
	if after = max(after, first.Sub(ps.now())); after <= 0 {
		u.handler.ring(u)
		return
	}
	u.alarm = ps.after(after, func() { u.handler.ring(u) })
}

func (u *Unit) disarm() {
	if u.alarm != nil {
		u.alarm()
		u.alarm = nil
	}
}

// realTimer calls f after a time, unless stop is called before.
func realTimer(after time.Duration, f func()) (stop func() bool) {
	return time.AfterFunc(after, f).Stop
}
