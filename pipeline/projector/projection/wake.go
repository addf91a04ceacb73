package projection

import (
	"slices"
	"time"

	"millrace/pipeline/kafka"
)

// The due records of a partition are emitted with its next batch. If none comes because
// the topic is quiet, the unit asks the session for a batch: when the publish policy
// requires it, and after a release.
//
// Such a batch contains snapshots and the records that belong to them, which may be
// written twice. The dead letter of a late event may not, and is always in one batch
// with its event.

var _ kafka.Waker = (*Handler)(nil)

// retryFlush is the delay before a flush without records is tried again after its
// transaction was aborted.
const retryFlush = 100 * time.Millisecond

// OnWake implements [kafka.Waker].
func (h *Handler) OnWake(wake func()) { h.wake, h.hasSession = wake, true }

// requestFlush asks the session to flush a unit soon. It must be called without a lock.
func (h *Handler) requestFlush(u *unit) {
	h.wakeMu.Lock()
	if !slices.Contains(h.woken, u) {
		h.woken = append(h.woken, u)
	}
	h.wakeMu.Unlock()
	h.wake()
}

// addWoken adds to the batch the units that are to be flushed and have no record in it.
func (h *Handler) addWoken() {
	h.wakeMu.Lock()
	woken := h.woken
	h.woken = nil
	h.wakeMu.Unlock()
	for _, u := range woken {
		u.mu.Lock()
		if !u.revoked && u.epoch != h.epoch {
			u.epoch = h.epoch
			h.batch = append(h.batch, u)
		}
		u.mu.Unlock()
	}
}

// arm sets the timer of the next flush that is due without a record, at the earliest
// after a delay. due reports that the flush is due now: the caller then calls
// requestFlush after it has released the unit's lock.
func (u *unit) arm(s *Set, delay time.Duration) (due bool) {
	u.disarm()
	if u.revoked || u.handler == nil {
		return false
	}
	var first time.Time
	for _, l := range u.lanes {
		if at, ok := l.dueAt(u.read); ok && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	if first.IsZero() {
		return false
	}
	if delay = max(delay, first.Sub(s.cfg.Now())); delay <= 0 {
		return true
	}
	h := u.handler
	u.stopAlarm = s.cfg.After(delay, func() { h.requestFlush(u) })
	return false
}

func (u *unit) disarm() {
	if u.stopAlarm != nil {
		u.stopAlarm()
		u.stopAlarm = nil
	}
}
