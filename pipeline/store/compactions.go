package store

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// compactions schedules the compactions of a store: one at a time, and none until start.
// Pebble starts compactions while it opens a database, and Open waits for them, so a store
// that was killed in the middle of much work would open late. It is a
// [pebble.CompactionScheduler].
//
// Its lock comes after the locks of Pebble. Pebble calls TrySchedule with locks held, and
// Done without. Grants call Pebble, so they run without the lock.
type compactions struct {
	db pebble.DBForCompaction // set by Register, before other calls

	mu       sync.Mutex // guards the fields below
	started  bool
	closed   bool
	running  int        // compactions
	granting bool       // grant calls Pebble
	granted  *sync.Cond // granting became false
	refused  bool       // TrySchedule refused a compaction since grant called Pebble
}

var (
	_ pebble.CompactionScheduler   = (*compactions)(nil)
	_ pebble.CompactionGrantHandle = (*compactions)(nil)
)

func newCompactions() *compactions {
	c := &compactions{}
	c.granted = sync.NewCond(&c.mu)
	return c
}

// start allows compactions from now on. The caller holds no locks.
func (c *compactions) start() {
	c.mu.Lock()
	before := c.started
	c.started = true
	c.mu.Unlock()
	if !before {
		c.grant()
	}
}

// Register implements [pebble.CompactionScheduler].
func (c *compactions) Register(_ int, db pebble.DBForCompaction) { c.db = db }

// Unregister implements [pebble.CompactionScheduler].
func (c *compactions) Unregister() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for c.granting {
		c.granted.Wait()
	}
}

// TrySchedule implements [pebble.CompactionScheduler].
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.take() {
		c.refused = true
		return false, nil
	}
	return true, c
}

// take takes the place of a compaction, if one may run now. The caller holds mu.
func (c *compactions) take() bool {
	if !c.started || c.closed || c.running >= max(1, c.db.GetAllowedWithoutPermission()) {
		return false
	}
	c.running++
	return true
}

// UpdateGetAllowedWithoutPermission implements [pebble.CompactionScheduler]. The number of
// compactions that Pebble allows does not change.
func (c *compactions) UpdateGetAllowedWithoutPermission() {}

// Started implements [pebble.CompactionGrantHandle].
func (c *compactions) Started() {}

// MeasureCPU implements [pebble.CompactionGrantHandle].
func (c *compactions) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements [pebble.CompactionGrantHandle].
func (c *compactions) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done implements [pebble.CompactionGrantHandle].
func (c *compactions) Done() {
	c.mu.Lock()
	c.running--
	c.mu.Unlock()
	c.grant()
}

// grant runs the compactions for which Pebble waits, as far as they are allowed.
func (c *compactions) grant() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.granting {
		c.granted.Wait()
	}
	for c.db != nil && c.take() {
		c.granting, c.refused = true, false
		c.mu.Unlock()
		waiting, _ := c.db.GetWaitingCompaction()
		accepted := waiting && c.db.Schedule(c)
		c.mu.Lock()
		c.granting = false
		c.granted.Broadcast()
		if accepted {
			continue
		}
		if c.running--; !c.refused { // otherwise it was refused because of this call
			return
		}
	}
}
