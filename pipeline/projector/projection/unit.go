package projection

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/fill"
	"millrace/pipeline/store"
)

// unit is one partition of a topic while it is assigned, with the lanes of all
// projections that read the topic.
type unit struct {
	key    Key       // immutable
	lanes  []*lane   // immutable; mu guards the lanes
	leftAt time.Time // when the partition was given up; guarded by Set.mu

	mu      sync.Mutex // guards the fields below and the lanes; see the package comment
	handler *Handler   // session that folds; nil if the partition is followed
	revoked bool       // nothing may be written: another unit has the partition
	read    int64      // next offset to read
	settled int64      // read after the last committed batch
	epoch   int        // number of the last batch that read from the unit

	entries *store.Batch // folded since the last flush, without dirty states
	events  int          // read since the last flush
	filling bool         // a goroutine of Set.Fill has the unit
	flushed time.Time    // last flush
	handled time.Time    // end of the last batch
	queried time.Time    // last flush for a question

	seen atomic.Pointer[kafka.PartitionProgress] // of the reader, when it was asked for last; not nil once assigned

	ids fill.Progress // of reading the ids of the past

	stopAlarm func() bool // stops the timer of the next flush; nil if none is set
}

// FlushPolicy determines when a unit is flushed to the store at the end of a batch: if
// there is little to write, or much, or the last flush was some time ago, or all events
// were read. A worker with a long backlog flushes rarely, which makes it fast.
type FlushPolicy struct {
	Little int           // flush after at most this number of events
	Much   int           // flush after at least this number of events
	Bytes  int           // flush when the batch for the store has this size
	After  time.Duration // flush when the last flush was this long ago
}

// defaultFlush is used if Config.Flush is zero.
var defaultFlush = FlushPolicy{Little: 1 << 10, Much: 1 << 18, Bytes: 64 << 20, After: time.Second}

// from returns the offset to read from.
func (u *unit) from() int64 {
	from := u.lanes[0].from()
	for _, l := range u.lanes {
		from = min(from, l.from())
	}
	return from
}

// wants reports whether some lane needs the record at an offset.
func (u *unit) wants(offset int64) bool {
	for _, l := range u.lanes {
		if l.wants(offset) {
			return true
		}
	}
	return false
}

// folds reports whether some lane folds a type of events.
func (u *unit) folds(typ int) bool {
	for _, l := range u.lanes {
		if l.fold.Folds(typ) {
			return true
		}
	}
	return false
}

// sampleCost is the number of records per measurement of the cost of folding.
const sampleCost = 64

// assigned notes from which offset the unit is read. The caller has the only reference.
func (u *unit) assigned(p kafka.Partition, from int64, now time.Time) {
	u.read, u.settled = from, from
	u.seen.Store(&kafka.PartitionProgress{Topic: p.Topic, Partition: p.Partition, Position: from, End: p.End, Last: now})
	u.settle()
	if ids := u.unreadIDs(); len(ids) > 0 {
		u.ids.Set(fill.Range(ids))
	}
}

// settle notes that a batch is about to be committed. The caller has the lock, or the only
// reference.
func (u *unit) settle() {
	for _, l := range u.lanes {
		l.settled.Store(l.next)
	}
}

// folded returns the offset below which all lanes have folded everything. The caller has
// the lock, or the only reference.
func (u *unit) folded() int64 {
	next := u.lanes[0].next
	for _, l := range u.lanes {
		next = min(next, l.next)
	}
	return next
}

// addCost takes the duration of folding one record into the lanes' averages.
func (u *unit) addCost(d time.Duration) {
	each := d / time.Duration(len(u.lanes))
	for _, l := range u.lanes {
		l.publication.addCost(each)
	}
}

// revoke stores the folded events, and frees the lanes. Nothing is written afterwards.
func (u *unit) revoke(s *Set) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.revoked = true
	u.disarm()
	err := u.save(s)
	for _, l := range u.lanes {
		err = errors.Join(err, u.savePast(s, l))
		l.projection.metrics.Blocked.Sub(float64(l.stuck.Load()))
		l.projection.metrics.Unread.Sub(float64(l.unread.Total()))
		if !l.publication.sending { // otherwise when the transaction has ended
			l.free()
		}
	}
	return err
}

// mustSave reports whether the folded events are to be stored at the end of a batch. It
// takes the lock itself, because Progress must be called without it.
func (u *unit) mustSave(s *Set) bool {
	u.mu.Lock()
	u.handled = s.cfg.Now()
	p := &s.cfg.Flush
	due := u.events <= p.Little || u.events >= p.Much || u.entries.Bytes() >= p.Bytes || u.handled.Sub(u.flushed) >= p.After
	read := u.read
	u.mu.Unlock()
	return due || read >= s.cfg.Progress(u.key.Topic, u.key.Partition).End
}

// save writes the folded events to the store, in one step.
func (u *unit) save(s *Set) error {
	for _, l := range u.lanes {
		if err := l.write(u.entries); err != nil {
			return err
		}
	}
	if err := commit(u.entries); err != nil {
		return err
	}
	for _, l := range u.lanes {
		if err := l.written(s.memory()); err != nil {
			return pipeline.Fatal("writing to the store: %w", err)
		}
	}
	u.flushed, u.events = u.handled, 0
	return nil
}

// commit writes a batch to the store.
func commit(b *store.Batch) error {
	err := b.Commit()
	if errors.Is(err, store.ErrNoSpace) {
		return fmt.Errorf("writing to the store: %w", err) // nothing was written, so the next flush can write it
	}
	if err != nil {
		return pipeline.Fatal("writing to the store: %w", err)
	}
	return nil
}

// memory returns the number of bytes that the states of a lane may take.
func (s *Set) memory() int { return s.cfg.Memory / max(1, int(s.lanes.Load())) }

// busy is how long a partition must be idle before a question flushes it: while it is
// being folded, a flush costs more than it is worth, and happens soon anyway.
const busy = 50 * time.Millisecond

// freshen writes the folded events to the store for a question, unless the partition is
// being folded. Many questions cost no more writes than few.
func (u *unit) freshen(s *Set) {
	if !u.mu.TryLock() {
		return // it is being folded
	}
	defer u.mu.Unlock()
	now := s.cfg.Now()
	if u.revoked || u.events == 0 || u.events > s.cfg.Flush.Little && now.Sub(u.handled) < busy || now.Sub(u.queried) < busy {
		return
	}
	u.queried = now
	if err := u.save(s); err != nil {
		// The next flush tries again, and its error ends the session.
		s.cfg.Log.Error("cannot write to the store for a question", "topic", u.key.Topic, "partition", u.key.Partition, "err", err)
	}
}
