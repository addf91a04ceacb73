package projection

import (
	"slices"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/fold"
	"millrace/pipeline/kafka"
	"millrace/pipeline/projector/pending"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/projector/states"
)

// Partition is one partition of a projection in this worker, for readers. Its methods
// may be called from any goroutine, also after the partition was revoked.
type Partition struct {
	set  *Set
	unit *unit
	lane *lane
}

// handOver is how long questions about a revoked partition are answered from here, with
// its last position: it may be moving to another session of this process, which takes
// seconds.
const handOver = 10 * time.Second

// Partitions returns the partitions of a projection from which questions are answered,
// in order: those that are assigned, and those that were revoked a short time ago,
// without the hidden ones.
func (s *Set) Partitions(p *Projection) []*Partition {
	assigned, left := s.unitsOf(p)
	if hidden := s.cfg.Hidden; hidden != nil {
		assigned = slices.DeleteFunc(assigned, func(u *unit) bool { return hidden(u.key, false) })
		// Hidden ran without the lock. A partition that was revoked meanwhile must be
		// judged as such, or it could answer from behind its next owner.
		var revoked []*unit
		assigned, revoked = s.stillAssigned(assigned)
		left = append(left, revoked...)
		left = slices.DeleteFunc(left, func(u *unit) bool { return hidden(u.key, true) })
	}
	return s.partitions(p, append(assigned, left...))
}

// AssignedPartitions returns the assigned partitions of a projection, in order, with
// the hidden ones.
func (s *Set) AssignedPartitions(p *Projection) []*Partition {
	assigned, _ := s.unitsOf(p)
	return s.partitions(p, assigned)
}

// unitsOf returns the units of a projection's topic that are assigned, and those that
// were revoked a short time ago.
func (s *Set) unitsOf(p *Projection) (assigned, left []*unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.units {
		if u.key.Topic == p.Spec.Events.Name {
			assigned = append(assigned, u)
		}
	}
	for _, u := range s.left {
		if u.key.Topic == p.Spec.Events.Name && s.cfg.Now().Sub(u.leftAt) < handOver {
			left = append(left, u)
		}
	}
	return assigned, left
}

// stillAssigned divides units into those that are assigned and those that are not.
func (s *Set) stillAssigned(units []*unit) (assigned, revoked []*unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range units {
		if s.units[u.key] == u {
			assigned = append(assigned, u)
		} else {
			revoked = append(revoked, u)
		}
	}
	return assigned, revoked
}

func (s *Set) partitions(p *Projection, units []*unit) []*Partition {
	slices.SortFunc(units, func(a, b *unit) int { return int(a.key.Partition - b.key.Partition) })
	out := make([]*Partition, len(units))
	for i, u := range units {
		out[i] = &Partition{s, u, u.lane(p)}
	}
	return out
}

// Number returns the number of the partition.
func (p *Partition) Number() int32 { return p.lane.source.Partition }

// Assigned reports whether the partition is still assigned to this worker, without an
// interruption.
func (p *Partition) Assigned() bool {
	p.set.mu.Lock()
	defer p.set.mu.Unlock()
	return p.set.units[p.unit.key] == p.unit
}

// Hidden reports whether questions about the assigned partition must not be answered.
func (p *Partition) Hidden() bool {
	return p.set.cfg.Hidden != nil && p.set.cfg.Hidden(p.unit.key, false)
}

// Freshen writes the folded events to the store, unless the partition is being folded:
// then that happens soon anyway.
func (p *Partition) Freshen() { p.unit.freshen(p.set) }

// Position returns the offset below which everything is folded, in the store. ok is
// false if there is none.
func (p *Partition) Position() (next int64, ok bool, err error) { return p.lane.part.Position() }

// At returns the position of the partition for an answer from a view of the store in which
// next was the next offset to fold. Its lag is that of the reader, unless the view has less.
func (p *Partition) At(next int64) query.Position {
	read := p.progress()
	// The reader passes offsets without an event, such as transaction markers; next does
	// not. So a view with all events that the reader has passed is as far as the reader.
	// The order matters: events below the position just read are below settled.
	reached := next
	if next >= p.lane.settled.Load() {
		reached = max(next, read.Reached())
	}
	read.Position, read.Done = reached, 0
	return query.Position{Partition: p.Number(), Offset: next, Lag: read.Lag(), Seconds: read.Age(p.set.cfg.Now()).Seconds(), Unread: p.lane.unread.All()}
}

// progress returns how far the reader of the partition is; after a revocation, how far it
// was, with the end that is known now.
func (p *Partition) progress() kafka.PartitionProgress {
	now := p.set.cfg.Progress(p.unit.key.Topic, p.Number())
	if now.Topic != "" && p.Assigned() { // in this order: the progress of the next owner begins after Assigned ends
		p.unit.seen.Store(&now)
		return now
	}
	seen := *p.unit.seen.Load()
	seen.End = max(seen.End, now.End)
	return seen
}

// End returns the last known end of the partition in the log.
func (p *Partition) End() int64 { return p.progress().End }

// Describe returns an aggregate for an answer.
func (p *Partition) Describe(id string, a *fold.Aggregate, at query.Position) query.Aggregate {
	return p.lane.describe(id, a, at)
}

// Status returns the status of an aggregate that is not deleted, "" if it has none.
func (p *Partition) Status(id string, a *fold.Aggregate) string { return p.lane.status(id, a) }

// Refused returns the outcome of an event that an aggregate refused recently; any aggregate
// if that is "".
func (p *Partition) Refused(eventID, aggregate string) (query.Outcome, bool) {
	return p.lane.refused.Get(eventID, aggregate)
}

// Blocked returns the blocked aggregates, in no order, and the next offset to fold. ok
// is false if the partition was revoked.
func (p *Partition) Blocked() (items []query.BlockedAggregate, next int64, ok bool) {
	p.unit.mu.Lock()
	defer p.unit.mu.Unlock()
	if p.unit.revoked {
		return nil, 0, false
	}
	for _, q := range p.lane.own.blocked {
		items = append(items, blockedItem(q, p.Number()))
	}
	return items, p.lane.next, true
}

// CountBlocked returns the number of blocked aggregates in the store. It needs no lock.
func (p *Partition) CountBlocked() int64 { return p.lane.stuck.Load() }

// Folded returns the next offset to fold. ok is false if the partition was revoked.
func (p *Partition) Folded() (next int64, ok bool) {
	p.unit.mu.Lock()
	defer p.unit.mu.Unlock()
	return p.lane.next, !p.unit.revoked
}

// View returns a consistent view of the store. It must be closed.
func (p *Partition) View() *states.View { return states.NewView(p.lane.part, p.lane.source) }

// ChangedOutOfOrder returns the aggregates in a view of the partition that changed
// otherwise than by the event at their offset, with the next offset at that time, which
// is in the range from first to last, both included.
func (p *Partition) ChangedOutOfOrder(v *states.View, first, last int64) (map[string]int64, error) {
	return pending.ReadChanges(v, familyOutOfOrder, first, last)
}

// describe returns an aggregate for an answer. It needs no lock.
func (l *lane) describe(id string, a *fold.Aggregate, at query.Position) query.Aggregate {
	return query.Aggregate{
		ID: id, Version: a.Version, Deleted: a.Deleted, Status: l.status(id, a), EventID: string(a.EventID), EventTime: pipeline.UnixMicro(a.EventTime),
		Offset: a.Offset, Sequence: a.Number, State: a.State, At: at,
	}
}

// status returns the status of an aggregate that is not deleted. It needs no lock.
func (l *lane) status(id string, a *fold.Aggregate) string {
	switch {
	case a.Deleted:
	case l.isBlocked(id):
		return fold.Blocked
	case a.Missing > 0:
		return fold.Gap
	}
	return ""
}

// isBlocked reports whether the store has an aggregate as blocked. It needs no lock.
func (l *lane) isBlocked(id string) bool {
	if l.stuck.Load() == 0 {
		return false
	}
	_, ok, err := l.part.Get(nil, familyBlocked, []byte(id))
	return ok && err == nil // a reader of the state gets the error, too
}
